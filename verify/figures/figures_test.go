package figures

import (
	"math"
	"math/rand/v2"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/phaseconv/phaseconv/rotations/fit"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/internal/tiny"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/kvcache"
)

func model(t *testing.T, family string) *checkpoint.Checkpoint {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "m")
	tiny.HF(t, dir, family, tiny.Options{Seed: 3, Layers: 3})
	c, err := checkpoint.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func windows(n, T int, seed uint64) [][]int32 {
	r := rand.New(rand.NewPCG(seed, 1))
	var out [][]int32
	for range n {
		w := make([]int32, T)
		for i := range w {
			w[i] = int32(r.IntN(256))
		}
		out = append(out, w)
	}
	return out
}

func options(t *testing.T, c *checkpoint.Checkpoint, kind codec.Kind) Options {
	t.Helper()
	o := Options{Config: c.Config, Weights: c, Kind: kind, Policy: kvcache.Policy{Anchor: 16, Sink: 2}, Seed: 1,
		Threads: 2,
		Windows: windows(2, 64, 7), Calibration: windows(3, 64, 8), CalibrationName: "fit",
		Long: func(n int) [][]int32 { return windows(1, n, 9) }}
	for l := range c.Config.Layers {
		var row []*codec.Code
		for h := range c.Config.Layers[0].KVHeads {
			x, err := codec.DataFree(kind, c.Config.Layers[0].HeadDim, 1, l, h)
			if err != nil {
				t.Fatal(err)
			}
			row = append(row, x)
		}
		o.Codes = append(o.Codes, row)
	}
	return o
}

// TestRun: every part is there, counts add up, numbers are finite, and neither
// threads nor a second run change anything.
func TestRun(t *testing.T) {
	for _, family := range []string{"llama", "gemma3_text", "mixtral"} {
		t.Run(family, func(t *testing.T) {
			c := model(t, family)
			o := options(t, c, "srht")
			o.Detail = true
			d, err := Run(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			tokens := 0
			for i, b := range d.Positions {
				tokens += b.Tokens
				if i > 0 && b.From != d.Positions[i-1].To {
					t.Errorf("band %d begins at %d", i, b.From)
				}
				if !(b.KLD >= -1e-9) {
					t.Errorf("band %d has KLD %g", i, b.KLD)
				}
			}
			if want := 2 * 63; tokens != want {
				t.Errorf("%d tokens in bands, want %d", tokens, want)
			}
			if n := len(c.Config.Layers) * c.Config.Layers[0].KVHeads; len(d.Angles) != n {
				t.Errorf("%d angles, want %d", len(d.Angles), n)
			}
			if len(d.Layers) != len(c.Config.Layers) {
				t.Errorf("%d layers", len(d.Layers))
			}
			if len(d.Contexts) != 2 || d.Contexts[0].Ctx != 64 || d.Contexts[1].Ctx != 256 {
				t.Errorf("contexts %+v", d.Contexts)
			}
			if len(d.Codes) != 4 || d.Codes[1].Code != "srht" {
				t.Fatalf("codes %+v", d.Codes)
			}
			// The data-free srht and the code in use are the same here.
			if x, y := d.Codes[1], d.Codes[3]; x.KLD != y.KLD {
				t.Errorf("the same code costs %g and %g", x.KLD, y.KLD)
			}
			s := d.Scores
			want := 64
			if w := c.Config.Layers[s.Layer].Window; w > 0 {
				want = w
			}
			if len(s.Float) != want {
				t.Errorf("%d scores, want %d", len(s.Float), want)
			}
			for _, k := range s.Codes {
				if len(k.Scores) != len(s.Float) {
					t.Fatalf("code %s has %d scores", k.Code, len(k.Scores))
				}
				for i := range s.Sink { // sinks are only rounded to F16
					if e := math.Abs(k.Scores[i] - s.Float[i]); e > 2e-3*(1+math.Abs(s.Float[i])) {
						t.Errorf("code %s: sink %d scores %g, float %g", k.Code, i, k.Scores[i], s.Float[i])
					}
				}
			}
			if d.Convergence == nil || len(d.Convergence.Points) < 2 {
				t.Fatalf("convergence %+v", d.Convergence)
			}
			o.Threads = 1
			again, err := Run(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(d, again) {
				t.Error("another number of threads gives another result")
			}
		})
	}
}

// TestOneLayer: of a model whose codes are exact in all layers but one, only that
// layer costs anything. Codes cannot be exact, so it is the other way round: the
// sum of one layer coded at a time is of the order of all coded together, and a
// layer that is not coded leaves the model alone.
func TestOneLayer(t *testing.T) {
	c := model(t, "llama")
	o := options(t, c, "raw")
	o.Detail = true
	d, err := Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	all := d.Codes[len(d.Codes)-1].KLD
	for _, l := range d.Layers {
		if !(l.KLD > 0) || l.KLD > 3*all {
			t.Errorf("layer %d alone costs %g, all layers %g", l.Layer, l.KLD, all)
		}
	}
	// Sinks that cover the whole window leave nothing to code but F16 rounding.
	o.Policy.Sink = 64
	d, err = Run(t.Context(), o)
	if err == nil {
		for _, l := range d.Layers {
			if l.KLD > all/100 {
				t.Errorf("layer %d with F16 keys costs %g", l.Layer, l.KLD)
			}
		}
	} else {
		t.Fatal(err)
	}
}

// TestScoresDirect compares a score with q.(mean + alpha M s) computed here.
func TestScoresDirect(t *testing.T) {
	c := model(t, "llama")
	o := options(t, c, "srht")
	o.Policy = kvcache.Policy{}
	p := &measurer{o: o}
	r := rand.New(rand.NewPCG(1, 2))
	d := c.Config.Layers[0].HeadDim
	tp := &tap{p: p}
	for range 20 * d {
		tp.keys = append(tp.keys, float32(r.NormFloat64()))
	}
	for range d {
		tp.query = append(tp.query, float32(r.NormFloat64()))
	}
	code := o.Codes[0][0]
	got, err := p.query(code, tp, 0)
	if err != nil {
		t.Fatal(err)
	}
	hat := make([]float32, d)
	words := make([]uint32, code.Words())
	for j := range 20 {
		code.DecodeKey(hat, words, code.EncodeKey(tp.keys[j*d:(j+1)*d], words))
		var want float64
		for i, v := range hat {
			want += float64(v) * float64(tp.query[i])
		}
		want *= c.Config.Layers[0].Scale
		if math.Abs(got[j]-want) > 1e-4*(1+math.Abs(want)) {
			t.Errorf("key %d scores %g, want %g", j, got[j], want)
		}
	}
}

// TestCloud: the plane in which two planted coordinates can be turned best is found.
func TestCloud(t *testing.T) {
	const d, n = 8, 400
	r := rand.New(rand.NewPCG(5, 5))
	keys := make([]float32, n*d)
	sin, cos := math.Sincos(22.5 * math.Pi / 180)
	for i := range n {
		for j := range d {
			keys[i*d+j] = float32(r.NormFloat64() + 3)
		}
		// Signs, turned by 22.5 degrees: neither 0 nor 45 degrees serves them.
		x, y := math.Copysign(1, r.NormFloat64()), math.Copysign(1, r.NormFloat64())
		keys[i*d+2], keys[i*d+5] = float32(cos*x-sin*y), float32(sin*x+cos*y)
	}
	c, err := cloud(t.Context(), keys, d, 1, 2)
	if err != nil {
		t.Fatal(err)
	}
	if c.Dims != [2]int{2, 5} {
		t.Errorf("plane %v, want 2 and 5", c.Dims)
	}
	if len(c.Points) != cloudPoints {
		t.Errorf("%d points", len(c.Points))
	}
	if c, err := cloud(t.Context(), nil, d, 0, 0); c != nil || err != nil {
		t.Error("a cloud of no keys")
	}
}

// TestConverge: planted sign keys are learned and hold on other keys; noise is
// learned only on the keys that are fitted.
func TestConverge(t *testing.T) {
	const d = 16
	r := rand.New(rand.NewPCG(9, 9))
	draw := func(n int, planted bool) []float32 {
		out := make([]float32, 0, n*d)
		for range n {
			k := make([]float32, d)
			for j := range k {
				k[j] = float32(r.NormFloat64())
			}
			if planted {
				// Hadamard pairs of sparse keys: two large coordinates.
				for j := range k {
					k[j] *= 0.05
				}
				k[r.IntN(4)] += float32(math.Copysign(1, r.NormFloat64()))
			}
			out = append(out, k...)
		}
		return out
	}
	run := func(fitted, held []float32) *spec.Convergence {
		p := &measurer{o: Options{Seed: 1, Threads: 1}}
		c, err := p.converge(t.Context(), &fit.Sample{D: d, Keys: fitted}, held)
		if err != nil {
			t.Fatal(err)
		}
		for i := 1; i < len(c.Points); i++ {
			if c.Points[i][1] < c.Points[i-1][1]-1e-4 {
				t.Errorf("step %d loses: %g after %g", i, c.Points[i][1], c.Points[i-1][1])
			}
		}
		return c
	}
	c := run(draw(600, true), draw(600, true))
	last := c.Points[len(c.Points)-1]
	if last[1] < 0.8 || last[1]-last[2] > 0.03 || last[2] < c.Points[0][2]+0.1 {
		t.Errorf("planted keys: %v to %v", c.Points[0], last)
	}
	c = run(draw(32, false), draw(2000, false))
	last = c.Points[len(c.Points)-1]
	if last[1]-last[2] < 0.05 || last[2] > c.SRHT+0.02 {
		t.Errorf("noise, two keys a dimension: fitted %g, held out %g, SRHT %g", last[1], last[2], c.SRHT)
	}
}

func TestRound(t *testing.T) {
	for _, x := range []struct{ in, want float64 }{{0, 0}, {123456, 123460}, {-0.00123456, -0.0012346}, {1, 1},
		{99999.6, 100000}} {
		if got := round(x.in); math.Abs(got-x.want) > 1e-9*math.Abs(x.want) {
			t.Errorf("round(%g) = %g, want %g", x.in, got, x.want)
		}
	}
}

func TestChoose(t *testing.T) {
	c := model(t, "llama").Config
	p := func(x float64) *float64 { return &x }
	rows := []spec.Layer{{Layer: 0, Head: 0, Delta: p(0.1)}, {Layer: 1, Head: 1, Delta: p(0.3)},
		{Layer: 2, Head: 0, Delta: p(0.2)}, {Layer: 99, Delta: p(0.25)}, {Layer: 1}}
	if l, h := choose(c, rows); l != 2 || h != 0 {
		t.Errorf("chose layer %d, head %d", l, h)
	}
	if l, h := choose(c, nil); l != 1 || h != 0 {
		t.Errorf("without rows: layer %d, head %d", l, h)
	}
	if _, err := Run(t.Context(), Options{Config: c}); err == nil {
		t.Error("a run without windows")
	}
}
