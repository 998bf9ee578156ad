package transform_test

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/internal/tiny"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/rotations/fit"
	"github.com/phaseconv/phaseconv/rotations/transform"
)

// openBoth writes a tiny model as a folder and as a GGUF file and opens both.
func openBoth(t *testing.T, fam string, o tiny.Options) []*checkpoint.Checkpoint {
	t.Helper()
	dir := t.TempDir()
	m := tiny.New(t, fam, o)
	m.HF(t, filepath.Join(dir, "hf"))
	m.GGUF(t, filepath.Join(dir, "m.gguf"))
	var out []*checkpoint.Checkpoint
	for _, path := range []string{"hf", "m.gguf"} {
		c, err := checkpoint.Open(filepath.Join(dir, path))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		out = append(out, c)
	}
	return out
}

// broken is a model in which one tensor is what another model says.
type broken struct {
	checkpoint.Weights
	from checkpoint.Weights
	name string
}

func (b broken) ReadRows(t *checkpoint.Tensor, row0, n int, dst []float32) error {
	if t.Name == b.name {
		return b.from.ReadRows(t, row0, n, dst)
	}
	return b.Weights.ReadRows(t, row0, n, dst)
}

// preserved is how far logits may move, as a share of the largest: each folded
// weight and each number of the turned stream is rounded a few times more, 6e-8
// of it at a time, and sums of 64 numbers add up other terms. Measured 2e-7 to 2e-6.
const preserved = 1e-5

// spoiled is how far logits move at least if one tensor is left out of a fold.
const spoiled = 1e-3

// TestFoldResidual: a model with its residual stream rotated computes the same
// function, in every family and container, whatever the rotation; and does not
// when any one tensor is left as it was.
func TestFoldResidual(t *testing.T) {
	for _, fam := range tiny.Families {
		// 48 = 16 * 3 is no power of two.
		for _, o := range []tiny.Options{{Seed: 4, Bias: true}, {Seed: 5, Hidden: 48, Heads: 3, KVHeads: 1, Untied: true}} {
			for _, c := range openBoth(t, fam, o) {
				cfg := c.Config
				if cfg.Layers[0].PostNorms {
					q, err := transform.NewResidualRotation("hadamard", cfg.Hidden, 1)
					if err != nil {
						t.Fatal(err)
					}
					_, err = transform.FoldResidual(c, cfg, q, 1)
					if !errors.Is(err, transform.ErrNoResidual) || !strings.Contains(err.Error(), "before they are added") {
						t.Errorf("%s: %v", fam, err)
					}
					continue
				}
				want := logits(t, cfg, c, nil)
				kinds := append([]string{"dense"}, transform.ResidualKinds...)
				for _, kind := range kinds {
					var q *transform.ResidualRotation
					var err error
					if kind == "dense" { // as a learned rotation would be
						code, _ := codec.DataFree("random", cfg.Hidden, 3, 0, 0)
						q = &transform.ResidualRotation{D: cfg.Hidden, P: 1, Small: code.Decode}
					} else if q, err = transform.NewResidualRotation(kind, cfg.Hidden, 7); err != nil {
						t.Fatal(err)
					}
					f, err := transform.FoldResidual(c, cfg, q, 2)
					if err != nil {
						t.Fatal(err)
					}
					worst, size := difference(want, logits(t, cfg, f, nil))
					t.Logf("%s %s %s: logits up to %.2f change by %.1e of that", fam, c.Container, kind, size, worst/size)
					if !(worst < preserved*size) {
						t.Errorf("%s %s %s: logits up to %.3g change by %.3g", fam, c.Container, kind, size, worst)
					}
					if (f.Untied() != nil) != cfg.TiedEmbeddings {
						t.Errorf("%s: a head was added: %v; tied: %v", fam, f.Untied() != nil, cfg.TiedEmbeddings)
					}
					if c.Container != checkpoint.GGUF || kind != "srht" || o.Hidden > 0 {
						continue
					}
					for _, x := range c.Tensors() {
						if x.Layer == 0 || x.Layer < 0 {
							worst, _ := difference(want, logits(t, cfg, broken{f, c, x.Name}, nil))
							if f.Changes(x.Name) == (worst < spoiled*size) {
								t.Errorf("%s: with %s as it was, logits up to %.3g change by %.3g; changed by the fold: %v", fam, x.Name, size,
									worst, f.Changes(x.Name))
							}
						}
					}
				}
			}
		}
	}
}

// TestResidualRows: rows read in any pieces are those read at once, and those of
// experts too.
func TestResidualRows(t *testing.T) {
	for _, c := range openBoth(t, "mixtral", tiny.Options{Seed: 1}) {
		q, err := transform.NewResidualRotation("srht", c.Config.Hidden, 1)
		if err != nil {
			t.Fatal(err)
		}
		f, err := transform.FoldResidual(c, c.Config, q, 1)
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range c.Tensors() {
			all := make([]float32, x.Elements())
			if err := f.ReadRows(x, 0, x.Rows(), all); err != nil {
				t.Fatal(err)
			}
			part := make([]float32, 7*x.Cols())
			for at := x.Rows(); at > 0; {
				n := min(7, at)
				at -= n
				if err := f.ReadRows(x, at, n, part); err != nil {
					t.Fatal(err)
				}
				for i, v := range part[:n*x.Cols()] {
					if v != all[at*x.Cols()+i] {
						t.Fatalf("%s: row %d differs when read alone", x.Name, at+i/x.Cols())
					}
				}
			}
			if err := f.ReadRows(x, x.Rows(), 1, part); err == nil || !strings.Contains(err.Error(), x.Name) {
				t.Errorf("%s: a row behind the last: %v", x.Name, err)
			}
		}
	}
}

// TestResidualRotation: rotations are orthogonal and of the stated form.
func TestResidualRotation(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, d := range []int{1, 2, 24, 64, 96} {
		for _, kind := range transform.ResidualKinds {
			q, err := transform.NewResidualRotation(kind, d, 5)
			if err != nil {
				t.Fatal(err)
			}
			if err := q.Check(d); err != nil {
				t.Fatal(err)
			}
			x := make([]float32, 3*d)
			for i := range x {
				x[i] = float32(r.NormFloat64())
			}
			y := append([]float32(nil), x...)
			q.Apply(y, 2)
			for i := range 3 { // inner products stay
				for j := range 3 {
					var a, b float64
					for k := range d {
						a += float64(x[i*d+k]) * float64(x[j*d+k])
						b += float64(y[i*d+k]) * float64(y[j*d+k])
					}
					if math.Abs(a-b) > 1e-5*float64(d) {
						t.Errorf("%s of %d: an inner product of %g becomes %g", kind, d, a, b)
					}
				}
			}
		}
	}
	// H_2 x I_3 by hand.
	q, err := transform.NewResidualRotation("hadamard", 6, 0)
	if err != nil {
		t.Fatal(err)
	}
	x := []float32{1, 2, 3, 10, 20, 30}
	q.Apply(x, 1)
	for i, v := range []float64{11, 22, 33, -9, -18, -27} {
		if math.Abs(float64(x[i])-v/math.Sqrt2) > 1e-5 {
			t.Errorf("H_2 x I_3: number %d is %g", i, x[i])
		}
	}
	good := transform.ResidualRotation{D: 4, P: 2, Small: []float32{0, 1, 1, 0}, Sign: []float32{1, -1, 1, 1}}
	if err := good.Check(4); err != nil {
		t.Error(err)
	}
	for says, bad := range map[string]transform.ResidualRotation{
		"blocks of 3":      {D: 6, P: 3},
		"hidden size of 4": {D: 8, P: 2},
		"blocks of 8":      {D: 4, P: 8},
		"blocks of 0":      {D: 4},
		"2 signs":          {D: 4, P: 4, Sign: []float32{1, 1}},
		"sign 1 of":        {D: 4, P: 4, Sign: []float32{1, 2, 1, 1}},
		"3 numbers":        {D: 4, P: 2, Small: []float32{1, 0, 0}},
		"not orthogonal":   {D: 4, P: 2, Small: []float32{1, 0, 0, 0.99}},
		"is NaN":           {D: 4, P: 2, Small: []float32{float32(math.NaN()), 0, 0, 1}},
	} {
		d := 4
		if says == "blocks of 3" {
			d = 6
		}
		if err := bad.Check(d); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%+v: %v, want %q", bad, err, says)
		}
	}
	for _, bad := range []struct {
		kind string
		d    int
	}{{"learned", 8}, {"hadamard", 7}, {"srht", 0}, {"srht", 1 << 13 * 5001}} {
		if _, err := transform.NewResidualRotation(bad.kind, bad.d, 0); err == nil {
			t.Errorf("%v: no error", bad)
		}
	}
}

// TestFoldNeurons: neurons in another order and of other sizes, and norms of other gains, compute the
// same function, alone and below a rotated stream; and do not when any tensor is left as it was.
func TestFoldNeurons(t *testing.T) {
	for _, fam := range tiny.Families {
		for i, c := range openBoth(t, fam, tiny.Options{Seed: 6}) {
			r := rand.New(rand.NewPCG(3, 4))
			cfg := c.Config
			scales := func(n int) []float32 {
				s := make([]float32, n)
				for j := range s {
					s[j] = float32(math.Exp2(4 * (r.Float64() - 0.5)))
				}
				return s
			}
			var experts []transform.Neurons
			for range max(1, cfg.Experts()) {
				experts = append(experts, transform.Neurons{Order: r.Perm(cfg.Layers[0].FFN.Size), Scale: scales(cfg.Layers[0].FFN.Size)})
			}
			v := checkpoint.NewEdited(c, checkpoint.Edits{})
			if err := transform.FoldNeurons(v, 1, experts); err != nil { // layer 0 stays
				t.Fatal(err)
			}
			for _, norm := range []string{"attn_norm.weight", "ffn_norm.weight"} {
				if err := transform.FoldChannels(v, 1, norm, scales(cfg.Hidden)); err != nil {
					t.Fatal(err)
				}
			}
			want := logits(t, cfg, c, nil)
			worst, size := difference(want, logits(t, cfg, v, nil))
			if !(worst < preserved*size) {
				t.Errorf("%s: logits up to %.3g change by %.3g", fam, size, worst)
			}
			if i == 0 {
				for _, x := range c.Tensors() {
					worst, _ := difference(want, logits(t, cfg, broken{v, c, x.Name}, nil))
					planned := x.Layer == 1 && (transform.NeuronTensor(cfg, x.Name) || transform.ChannelTensor(cfg, x.Name))
					if v.Changed(x.Name) == (worst < spoiled*size) || planned != v.Changed(x.Name) {
						t.Errorf("%s: with %s as it was, logits up to %.3g change by %.3g; changed: %v, planned: %v", fam, x.Name, size,
							worst, v.Changed(x.Name), planned)
					}
				}
			}
			if transform.CheckResidual(cfg) != nil {
				continue
			}
			q, err := transform.NewResidualRotation("srht", cfg.Hidden, 1)
			if err != nil {
				t.Fatal(err)
			}
			if err := transform.FoldStream(v, q, 1); err != nil {
				t.Fatal(err)
			}
			if worst, size := difference(want, logits(t, cfg, v, nil)); !(worst < preserved*size) {
				t.Errorf("%s: with a rotated stream logits up to %.3g change by %.3g", fam, size, worst)
			}
		}
	}
}

// TestFoldNeuronsRefuses: what is no order, or no scale, is refused by name.
func TestFoldNeuronsRefuses(t *testing.T) {
	c := openBoth(t, "llama", tiny.Options{Seed: 6})[0]
	n := c.Config.Layers[0].FFN.Size
	with := func(v float32) []transform.Neurons {
		s := slices.Repeat([]float32{1}, n)
		s[3] = v
		return []transform.Neurons{{Scale: s}}
	}
	for says, bad := range map[string][]transform.Neurons{
		"for 0 experts of 1": {}, "expert 0: 0 places and 95": {{Scale: make([]float32, n-1)}}, "scale 3 is 0": with(0),
		"scale 3 is -1": with(-1), "scale 3 is +Inf": with(float32(math.Inf(1))), "scale 3 is NaN": with(float32(math.NaN())),
		"scale 3 is 1e-45": with(1e-45),
	} {
		v := checkpoint.NewEdited(c, checkpoint.Edits{})
		if err := transform.FoldNeurons(v, 0, bad); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, want %q", err, says)
		}
	}
	v := checkpoint.NewEdited(c, checkpoint.Edits{})
	twice := make([]int, n) // all neurons are the first
	if err := transform.FoldNeurons(v, 0, []transform.Neurons{{Order: twice}}); err != nil {
		t.Fatal(err)
	}
	x, _ := v.Find("blk.0.ffn_up.weight")
	if err := v.ReadRows(x, 0, 1, make([]float32, x.Cols())); err == nil ||
		!strings.Contains(err.Error(), "the same as another") {
		t.Errorf("an order that takes one neuron twice: %v", err)
	}
}

// TestFFNBalance: the closed form is the optimum of what it minimises.
func TestFFNBalance(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	energy, down := make([]float64, 50), make([]float64, 50)
	for j := range energy {
		energy[j], down[j] = math.Exp(r.NormFloat64()), math.Exp(r.NormFloat64())
	}
	cost := func(s []float32) float64 {
		var a, b float64
		for j, x := range s {
			a += energy[j] * float64(x) * float64(x)
			b += down[j] / (float64(x) * float64(x))
		}
		return a * b
	}
	s := transform.FFNBalance(energy, down)
	best := cost(s)
	if one := cost(transform.FFNBalance(make([]float64, 50), down)); best > 0.8*one {
		t.Errorf("cost %g, %g with scales of one", best, one)
	}
	for range 200 {
		x := append([]float32(nil), s...)
		x[r.IntN(50)] *= float32(math.Exp(0.1 * r.NormFloat64()))
		if c := cost(x); c < best*(1-1e-6) {
			t.Fatalf("cost %g, %g after a change", best, c)
		}
	}
	if s := transform.FFNBalance([]float64{0, 1e-30, 1}, []float64{1, 1e30, 0}); s[0] != 1 || s[2] != 1 ||
		!(s[1] >= 1.0/transform.MaxFFNScale) || s[1] > transform.MaxFFNScale {
		t.Errorf("scales %v of dead and huge neurons", s)
	}
	for _, v := range transform.FFNBalance([]float64{math.Inf(1), math.NaN(), 1, 2, 3}, []float64{1, 1, math.Inf(1), 1}) {
		if v != 1 {
			t.Errorf("scale %g where one neuron alone has numbers", v)
		}
	}
}

func measureRows(t testing.TB, b *fit.BlockRotation, rows []float32, d, threads int) codec.Beta {
	t.Helper()
	out, err := b.Measure(t.Context(), rows, d, threads)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestFitRows: on rows with a rotation hidden in them it is found, held out; on
// noise the gain is all on the fitted rows (the honesty test), and fewer rows than
// dimensions are no trouble.
func TestFitRows(t *testing.T) {
	const d, block = 48, 24
	hidden := fit.HadamardRows(d, block, 99, 1, 1)
	r := rand.New(rand.NewPCG(7, 8))
	rows := make([]float32, 2000*d)
	for i := 0; i < len(rows); i += d {
		for b := 0; b < d; b += block { // R^T s for random signs s
			for k := range block {
				s := float32(1 - 2*r.IntN(2))
				for j := range block {
					rows[i+b+j] += s * hidden.R[(b+k)*block+j]
				}
			}
		}
	}
	fitted, held := rows[:1000*d], rows[1000*d:]
	q, err := fit.FitRows(t.Context(), fitted, d, block, 1, 0, 0, 2)
	if err != nil {
		t.Fatal(err)
	}
	if b := measureRows(t, q, held, d, 1); b.Cos1bit < 0.99 || b.MomentRatio < 0.98 || b.N != 1000 {
		t.Errorf("rows made of signs: %+v", b)
	}
	if b := measureRows(t, fit.HadamardRows(d, block, 1, 0, 0), held, d, 1); b.Cos1bit > 0.85 {
		t.Errorf("without the fitted: %+v", b)
	}
	for _, c := range []struct {
		n         int
		low, high float64 // on the fitted rows
	}{{24, 0.90, 1}, {96, 0.85, 0.92}, {960, 0.80, 0.84}} {
		q, err := fit.FitRows(t.Context(), fit.NoiseRows(c.n, d, 1), d, block, 1, 0, 0, 2)
		if err != nil {
			t.Fatal(err)
		}
		train := measureRows(t, q, fit.NoiseRows(c.n, d, 1), d, 1).Cos1bit
		other := measureRows(t, q, fit.NoiseRows(2000, d, 2), d, 1)
		// 2000 x 48 numbers of noise: a standard error of 0.002; the floor for d = 48
		// is 0.802.
		if train < c.low || train > c.high || math.Abs(other.Cos1bit-0.802) > 0.006 ||
			math.Abs(other.MomentRatio-2/math.Pi) > 0.008 {
			t.Errorf("%d rows of noise: %.4f on those fitted, %+v on others", c.n, train, other)
		}
	}
	if q, err := fit.FitRows(t.Context(), fit.NoiseRows(3, d, 1), d, block, 1, 0, 0, 2); err != nil ||
		!(measureRows(t, q, rows, d, 1).Cos1bit > 0.7) {
		t.Errorf("3 rows: %v", err)
	}
	for _, bad := range [][2]int{{0, 1}, {48, 7}, {47, 1}, {48, 0}} {
		if _, err := fit.FitRows(t.Context(), rows, bad[0], bad[1], 1, 0, 0, 1); err == nil {
			t.Errorf("%v: no error", bad)
		}
	}
	stop := errors.New("stop")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(stop)
	if _, err := fit.FitRows(ctx, rows, d, block, 1, 0, 0, 1); err != stop {
		t.Errorf("stopped: %v", err)
	}
	for _, c := range [][3]int{{576, 256, 192}, {1536, 256, 256}, {4864, 256, 256}, {128, 256, 128}, {97, 64, 1}} {
		if b := fit.BlockSize(c[0], c[1]); b != c[2] {
			t.Errorf("block of %d, at most %d: %d", c[0], c[1], b)
		}
	}
}
