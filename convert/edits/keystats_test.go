package edits

import (
	"cmp"
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/internal/tiny"
	"github.com/phaseconv/phaseconv/rotations/transform"
	"github.com/phaseconv/phaseconv/verify/kvcache"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

func collect(t *testing.T, c *checkpoint.Checkpoint, o StatsOptions, batches ...[][]int32) *KeyStats {
	t.Helper()
	s, err := NewKeyStats(c.Config, o)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range batches {
		m := refmodel.New(c.Config, c, o.Threads)
		if err := m.Run(context.Background(), b, []*refmodel.Variant{{}},
			refmodel.Options{Hooks: s.Hooks(t.Context())}); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// brute recomputes statistics from the definitions, in float64.
type brute struct {
	c     *family.Config
	root  checkpoint.Weights
	heads []*bruteHead
}

type bruteHead struct {
	curvature, queries, attention float64
	mean, query, key2             []float64
	drift                         float64 // delta^T C delta
}

// probe is the delta whose drift is computed.
func probe(d int) []float64 {
	r := rand.New(rand.NewPCG(2, 2))
	out := make([]float64, d)
	for i := range out {
		out[i] = r.NormFloat64()
	}
	return out
}

func (b *brute) Attention(a *refmodel.Attention) error {
	c, d := b.c, b.c.Layers[0].HeadDim
	kw, qw, g := c.Layers[0].KVHeads*d, c.Layers[0].Heads*d, c.Layers[0].Group()
	delta := probe(d)
	var wo []float32
	if b.root != nil {
		t, _ := b.root.Find(family.Name(a.Layer, "attn_output.weight"))
		wo = make([]float32, t.Elements())
		if err := b.root.ReadRows(t, 0, t.Rows(), wo); err != nil {
			return err
		}
	}
	for h := range c.Layers[0].KVHeads {
		x := &bruteHead{mean: make([]float64, d), query: make([]float64, d/2), key2: make([]float64, d/2)}
		for w := range a.Windows {
			shift := make([][]float32, a.T)
			for j := range shift {
				for _, v := range delta {
					shift[j] = append(shift[j], float32(v))
				}
				a.Rope.Apply(shift[j], j, c.PairsIn(a.Layer))
			}
			seen := make([]float64, a.T)
			for head := h * g; head < (h+1)*g; head++ {
				for i := range a.T {
					q := a.Q[(w*a.T+i)*qw+head*d:][:d]
					lo := 0
					if w := c.Layers[a.Layer].Window; w > 0 {
						lo = max(0, i-w+1)
					}
					p, f := make([]float64, i+1), make([]float64, i+1)
					var sum float64
					for j := lo; j <= i; j++ {
						k := a.K[(w*a.T+j)*kw+h*d:][:d]
						p[j] = math.Exp(inner(q, k) * c.Layers[0].Scale)
						f[j] = inner(q, shift[j]) * c.Layers[0].Scale
						sum += p[j]
					}
					var mean, weight, drift float64
					sink := 0.0
					if a.Sinks != nil {
						sink = math.Exp(float64(a.Sinks[head]))
					}
					left := sink / (sum + sink)
					for j := range p {
						p[j] /= sum + sink
						mean += p[j] * f[j]
					}
					if wo == nil {
						drift += left * mean * mean
						for j := range p {
							seen[j] += p[j] * (1 - p[j])
							weight += p[j] * (1 - p[j])
							drift += p[j] * (f[j] - mean) * (f[j] - mean)
						}
					} else {
						weight, drift = outputs(a, c, wo, w, h, head, p, f, seen)
					}
					x.curvature += weight
					x.drift += drift
					x.queries++
					for k := range d / 2 {
						m, n := c.PairsIn(a.Layer).Dims(k, d)
						x.query[k] += weight * (float64(q[m])*float64(q[m]) + float64(q[n])*float64(q[n]))
					}
				}
			}
			for j := 2; j < a.T; j++ {
				k := a.KPre[(w*a.T+j)*kw+h*d:][:d]
				for i, v := range k {
					x.mean[i] += seen[j] * float64(v)
				}
				for p := range d / 2 {
					m, n := c.PairsIn(a.Layer).Dims(p, d)
					x.key2[p] += seen[j] * (float64(k[m])*float64(k[m]) + float64(k[n])*float64(k[n]))
				}
				x.attention += seen[j]
			}
		}
		b.heads = append(b.heads, x)
	}
	return nil
}

// outputs takes the definitions behind W_O literally: what a unit error in one
// score does to the head's output in the residual stream, to first order, and
// what the shift does.
func outputs(a *refmodel.Attention, c *family.Config, wo []float32, w, h, head int, p, f, seen []float64) (weight,
	drift float64) {
	d, kw, qw := c.Layers[0].HeadDim, c.Layers[0].KVHeads*c.Layers[0].HeadDim, c.Layers[0].Heads*c.Layers[0].HeadDim
	values := make([][]float64, len(p))
	mean := make([]float64, c.Hidden)
	for j := range p {
		values[j] = make([]float64, c.Hidden)
		for r := range values[j] {
			values[j][r] = inner(wo[r*qw+head*d:][:d], a.V[(w*a.T+j)*kw+h*d:][:d])
			mean[r] += p[j] * values[j][r]
		}
	}
	moved := make([]float64, c.Hidden)
	for j := range p {
		var e float64
		for r, v := range values[j] {
			e += (v - mean[r]) * (v - mean[r])
			moved[r] += p[j] * f[j] * (v - mean[r])
		}
		seen[j] += p[j] * p[j] * e
		weight += p[j] * p[j] * e
	}
	for _, v := range moved {
		drift += v * v
	}
	return weight, drift
}

func inner(a, b []float32) (s float64) {
	for i := range a {
		s += float64(a[i]) * float64(b[i])
	}
	return s
}

func near(t *testing.T, what string, got, want, tol float64) {
	t.Helper()
	if !(math.Abs(got-want) <= tol*math.Max(math.Abs(want), 1e-12)) {
		t.Errorf("%s is %.9g, want %.9g", what, got, want)
	}
}

// openAny opens a tiny model of a family with biases, or one of the folders that transformers wrote.
func openAny(t *testing.T, name string) *checkpoint.Checkpoint {
	t.Helper()
	if folder, ok := strings.CutSuffix(name, " folder"); ok {
		c, err := checkpoint.Open(tiny.Folder(t, "../../verify/refmodel/testdata/"+folder))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	return tiny.Open(t, name, tiny.Options{Seed: 2, Bias: true})
}

// TestKeyStats: with every query looked at, the statistics are their definitions.
func TestKeyStats(t *testing.T) {
	const T = 40
	for _, fam := range []string{"qwen2", "llama", "gemma3_text", "olmoe", "glm4 folder", "smollm3 folder", "gptoss folder"} {
		for _, out := range []bool{false, true} {
			c := openAny(t, fam)
			ws := tiny.Windows(c.Config, 2, T)
			o := StatsOptions{Queries: T, Sink: 2, Threads: 2}
			b := &brute{c: c.Config}
			if out {
				o.Weights, b.root = c, c
			}
			s := collect(t, c, o, ws)
			if err := refmodel.New(c.Config, c, 1).Run(context.Background(), ws, []*refmodel.Variant{{}},
				refmodel.Options{Hooks: refmodel.Hooks{Attention: b.Attention}}); err != nil {
				t.Fatal(err)
			}
			delta := probe(c.Config.Layers[0].HeadDim)
			for n, x := range b.heads {
				got, err := s.Head(n/c.Config.Layers[0].KVHeads, n%c.Config.Layers[0].KVHeads)
				if err != nil {
					t.Fatal(err)
				}
				// float32 softmax and products; in W_O's frame differences of values too.
				const tol = 2e-4
				near(t, fam+": curvature", got.Curvature, x.curvature/x.queries, tol)
				var drift float64
				for i := range delta {
					for j := range delta {
						drift += delta[i] * got.Drift[i*len(delta)+j] * delta[j]
					}
				}
				near(t, fam+": drift", drift, x.drift/x.queries, tol)
				for p := range got.Query {
					near(t, fam+": query energy", got.Query[p], x.query[p]/x.curvature, tol)
					i, j := c.Config.PairsIn(n/c.Config.Layers[0].KVHeads).Dims(p, len(delta))
					mi, mj := x.mean[i]/x.attention, x.mean[j]/x.attention
					near(t, fam+": variance", got.Var[p]+mi*mi+mj*mj, x.key2[p]/x.attention, tol)
					if math.Abs(got.Mean[i]-mi) > tol*(math.Sqrt(got.Var[p])+math.Abs(mi)) {
						t.Errorf("%s: mean %g, want %g", fam, got.Mean[i], mi)
					}
				}
			}
		}
	}
}

// TestKeyStatsDeterministic: neither threads nor the cut into runs change a bit.
func TestKeyStatsDeterministic(t *testing.T) {
	c := tiny.Open(t, "qwen2", tiny.Options{Seed: 3})
	ws := tiny.Windows(c.Config, 3, 48)
	var first *KeyStats
	for _, threads := range []int{1, 2, 5} {
		for _, batches := range [][][][]int32{{ws}, {ws[:1], ws[1:]}} {
			s := collect(t, c, StatsOptions{Queries: 7, Samples: 9, Seed: 4, Threads: threads, Weights: c}, batches...)
			if first == nil {
				first = s
				continue
			}
			if !reflect.DeepEqual(s.heads, first.heads) {
				t.Errorf("%d threads, %d runs: other sums", threads, len(batches))
			}
			f := KeyFit{Shift: &transform.BiasShiftOptions{Noise: transform.NoiseQ4_0, Penalty: 1}, Pairs: ForType,
				Cache: transform.CacheRow{Type: gguf.TypeQ8_0}}
			f.Cache.Type = gguf.TypeQ8_0
			a, errA := first.Fit(t.Context(), f, nil)
			b, errB := s.Fit(t.Context(), f, nil)
			if c.Config.Layers[0].HeadDim%32 != 0 {
				if errA == nil || errB == nil {
					t.Error("a cache whose blocks do not fit was accepted")
				}
				f.Pairs = ClosedForm
				a, errA = first.Fit(t.Context(), f, nil)
				b, errB = s.Fit(t.Context(), f, nil)
			}
			if errA != nil || errB != nil || !reflect.DeepEqual(a, b) {
				t.Errorf("%d threads: other fit (%v, %v)", threads, errA, errB)
			}
		}
	}
	other := collect(t, c, StatsOptions{Queries: 7, Samples: 9, Seed: 5, Threads: 1}, ws)
	if reflect.DeepEqual(other.heads[0][0].drift, first.heads[0][0].drift) {
		t.Error("another seed gives the same queries")
	}
}

// TestEditedKeys: a variant with edited keys computes what the model with edited
// weights computes.
func TestEditedKeys(t *testing.T) {
	for _, x := range []struct {
		name    string
		balance PairScaling
		mix     float64
		options tiny.Options
	}{
		{"removal", NoPairScaling, 0, tiny.Options{}},
		{"balance", ClosedForm, 0, tiny.Options{}},
		{"powers of two", PowerOfTwo, 0, tiny.Options{}},
		{"tuned", ForType, 0, tiny.Options{}},
		{"mix", NoPairScaling, 1, tiny.Options{}},
		{"mix, tuned", ForType, 0.01, tiny.Options{}},
		{"values", ClosedForm, 0, tiny.Options{}},
		// YaRN turns and multiplies.
		{"yarn, mix", ClosedForm, 1, tiny.Options{Config: map[string]any{"rope_scaling": map[string]any{
			"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}}}},
	} {
		x.options.Seed, x.options.HeadDim, x.options.Hidden = 6, 32, 128
		c := tiny.Open(t, "qwen2", x.options)
		cfg := c.Config
		ws := tiny.Windows(cfg, 2, 40)
		o := StatsOptions{Samples: 30, Seed: 1, Threads: 2}
		if x.name == "values" {
			o.Weights = c
		}
		s := collect(t, c, o, ws)
		edits, err := s.Fit(t.Context(), KeyFit{Shift: &transform.BiasShiftOptions{Noise: 0.36, Penalty: 0.01},
			Pairs: x.balance, Transform: x.mix,
			Cache: transform.CacheRow{Type: gguf.TypeQ4_0, Hadamard: 32}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if x.name == "values" {
			if edits, err = s.FitValues(t.Context(), edits, transform.CacheRow{Type: gguf.TypeQ4_0, Hadamard: 32},
				nil); err != nil {
				t.Fatal(err)
			}
		}
		v := checkpoint.NewEdited(c, nil)
		for l, heads := range edits {
			if err := transform.FoldKeys(v, l, heads); err != nil {
				t.Fatal(err)
			}
		}
		for _, inner := range []refmodel.Cache{nil, halves{}} {
			e, err := kvcache.NewEditedKeys(cfg, edits, inner, 40)
			if err != nil {
				t.Fatal(err)
			}
			plain, variant, weights := &refmodel.Variant{}, &refmodel.Variant{Cache: e}, &refmodel.Variant{Cache: inner}
			if err := refmodel.New(cfg, c, 2).Run(context.Background(), ws, []*refmodel.Variant{plain, variant},
				refmodel.Options{}); err != nil {
				t.Fatal(err)
			}
			if err := refmodel.New(cfg, v, 2).Run(context.Background(), ws, []*refmodel.Variant{weights},
				refmodel.Options{}); err != nil {
				t.Fatal(err)
			}
			var worst, moved, size float64
			for i, x := range weights.Hidden {
				worst = max(worst, math.Abs(float64(x-variant.Hidden[i])))
				moved = max(moved, math.Abs(float64(x-plain.Hidden[i])))
				size = max(size, math.Abs(float64(x)))
			}
			if !(worst < 1e-4*size) || !(moved > 10*worst) {
				t.Errorf("%s: hidden states up to %.3g, moved by %.3g, differ by %.3g", x.name, size, moved, worst)
			}
		}
	}
}

// TestMeasuredNoise: every candidate fits; the noise of a removal without one is
// that of the stored keys, near what Gaussian numbers in blocks of 32 give, so the
// result lies between those for noises below and above.
func TestMeasuredNoise(t *testing.T) {
	c := tiny.Open(t, "qwen2", tiny.Options{Seed: 7, HeadDim: 32, Hidden: 128})
	s := collect(t, c, StatsOptions{Samples: 40, Seed: 1, Threads: 2}, tiny.Windows(c.Config, 3, 48))
	row := transform.CacheRow{Type: gguf.TypeQ4_0, Hadamard: 32}
	for i, x := range append(Candidates(row), Shift(32, row)) {
		edits, err := s.Fit(t.Context(), x.Fit, nil)
		if err != nil {
			t.Fatalf("%s: %v", x.Name, err)
		}
		if e := edits[1][0]; (e.Pairs != nil) != (i > 0) || (e.Shift != nil) != x.Approximate {
			t.Errorf("%s: edits %+v", x.Name, e)
		}
	}
	cost := func(noise float64) float64 {
		e, err := s.Fit(t.Context(), KeyFit{Shift: &transform.BiasShiftOptions{Noise: noise, Penalty: 1}, Cache: row}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return e[1][1].Shift.Cost
	}
	if lo, m, hi := cost(0.003), cost(0), cost(0.015); !(lo < m && m < hi) {
		t.Errorf("cost %g with measured noise, %g with 0.003, %g with 0.015", m, lo, hi)
	}
}

// pruned is a model some of whose rows are zero.
type pruned struct {
	checkpoint.Weights
	rows map[string][2]int // [from, to) of a tensor
}

func (p pruned) ReadRows(t *checkpoint.Tensor, row0, n int, dst []float32) error {
	err := p.Weights.ReadRows(t, row0, n, dst)
	if r, ok := p.rows[t.Name]; ok {
		width := len(dst) / n
		if strings.HasSuffix(t.Name, "bias") { // one row
			clear(dst[r[0]:r[1]])
			return err
		}
		for i := max(r[0], row0); i < min(r[1], row0+n); i++ {
			clear(dst[(i-row0)*width : (i-row0+1)*width])
		}
	}
	return err
}

// TestSilentHeads: heads that pruning has left without keys, queries or values are
// no reason to fail, and are not changed.
func TestSilentHeads(t *testing.T) {
	c := tiny.Open(t, "qwen2", tiny.Options{Seed: 6, HeadDim: 32, Hidden: 128})
	d, group := c.Config.Layers[0].HeadDim, c.Config.Layers[0].Group()
	w := pruned{c, map[string][2]int{
		"blk.0.attn_k.weight": {0, d}, "blk.0.attn_k.bias": {0, d},
		"blk.1.attn_q.weight": {group * d, 2 * group * d}, "blk.1.attn_q.bias": {group * d, 2 * group * d},
		"blk.0.attn_v.weight": {d, 2 * d}, "blk.0.attn_v.bias": {d, 2 * d},
	}}
	s, err := NewKeyStats(c.Config, StatsOptions{Queries: 8, Samples: 30, Weights: w, Seed: 1, Threads: 2})
	if err != nil {
		t.Fatal(err)
	}
	m := refmodel.New(c.Config, w, 2)
	if err := m.Run(context.Background(), tiny.Windows(c.Config, 2, 40), []*refmodel.Variant{{}},
		refmodel.Options{Hooks: s.Hooks(t.Context())}); err != nil {
		t.Fatal(err)
	}
	row := transform.CacheRow{Type: gguf.TypeQ4_0, Hadamard: 32}
	for _, x := range append(Candidates(row), Shift(32, row).Tuned(), Shift(32, row).Transformed(4)) {
		edits, err := s.Fit(t.Context(), x.Fit, nil)
		if err != nil {
			t.Errorf("%s: %v", x.Name, err)
			continue
		}
		if edits, err = s.FitValues(t.Context(), edits, row, nil); err != nil {
			t.Errorf("%s, values: %v", x.Name, err)
			continue
		}
		for l, heads := range edits {
			for h, e := range heads {
				dead := l == h || l == 0 && h == 1
				if keys := e.Shift != nil || e.Pairs != nil || e.Transform != nil; keys == (dead || x.Name == "as published") {
					t.Errorf("%s: layer %d, head %d: changed %v", x.Name, l, h, keys)
				}
				if values := e.Values != nil; values == (l == 0 && h == 1) {
					t.Errorf("%s: layer %d, head %d: values changed %v", x.Name, l, h, values)
				}
			}
		}
	}
}

// TestDrift: candidates are ordered by how much they may change a model; Below is the
// part of that order in which a removal and a mix agree.
func TestDrift(t *testing.T) {
	var row transform.CacheRow
	order := append(Candidates(row), Shift(32, row), Shift(8, row), Shift(8, row).Tuned(),
		Shift(32, row).Transformed(4), Shift(8, row).Transformed(16), Shift(8, row).Transformed(4))
	for i, x := range order {
		for j, y := range order {
			if got := x.Drift(y); got != cmp.Compare(i, j) {
				t.Errorf("%s against %s: %d", x.Name, y.Name, got)
			}
			if x.NoMoreThan(y) && !y.NoMoreThan(x) && i > j {
				t.Errorf("%s drifts no more than %s", x.Name, y.Name)
			}
		}
	}
	if a, b := Shift(32, row).Transformed(4), Shift(8, row).Transformed(16); a.NoMoreThan(b) || b.NoMoreThan(a) {
		t.Error("a removal and a mix that disagree are ordered")
	}
	if a, b := Shift(32, row), Shift(8, row).Transformed(16); !a.NoMoreThan(b) {
		t.Error("a removal drifts more than a stronger one with a mix")
	}
}

// halves is a cache that gives half of each key back, and scores itself.
type halves struct{}

func (halves) Values(_, _ int, v []float32) error {
	for i := range v { // what is not the same for mixed values
		v[i] = max(v[i], -v[i])
	}
	return nil
}
func (halves) Keys(_, _ int, k []float32) (refmodel.Scorer, error) {
	return halfScorer{k: append([]float32(nil), k...)}, nil
}

type halfScorer struct{ k []float32 }

func (s halfScorer) Fork() refmodel.Scorer { return s }

func (s halfScorer) Score(t refmodel.Tile) {
	const d = 32
	for r := range t.Rows {
		for j := t.From; j < t.To; j++ {
			t.Dst[r*t.LD+j] = float32(inner(t.Q[r*t.LDQ:][:d], s.k[j*d:][:d]) / 2)
		}
	}
}

// TestFitRefuses: no removal behind a QK-norm, no tuning without keys, no
// statistics without attention.
func TestFitRefuses(t *testing.T) {
	c := tiny.Open(t, "gemma3_text", tiny.Options{})
	s := collect(t, c, StatsOptions{Threads: 1}, tiny.Windows(c.Config, 1, 16))
	if _, err := s.Fit(t.Context(), KeyFit{Shift: &transform.BiasShiftOptions{Noise: 0.002, Penalty: 1}},
		nil); !errors.Is(err, transform.ErrNoKeyBias) {
		t.Errorf("a removal behind a QK-norm gives %v", err)
	}
	edits, err := s.Fit(t.Context(), KeyFit{Pairs: ClosedForm}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := transform.FoldKeys(checkpoint.NewEdited(c, nil), 0, edits[0]); err != nil {
		t.Errorf("a balance for a QK-norm cannot be folded: %v", err)
	}
	if _, err := s.Fit(t.Context(), KeyFit{Pairs: ForType, Cache: transform.CacheRow{Type: gguf.TypeQ4_0}},
		nil); err == nil {
		t.Error("a balance was tuned without keys")
	}
	if _, err := s.FitValues(t.Context(), edits, transform.CacheRow{Type: gguf.TypeQ4_0}, nil); err == nil {
		t.Error("values were mixed without samples and weights")
	}
	empty, err := NewKeyStats(c.Config, StatsOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := empty.Fit(t.Context(), KeyFit{Pairs: ClosedForm}, nil); err == nil {
		t.Error("a fit to nothing")
	}
	if _, err := NewKeyStats(c.Config, StatsOptions{Sink: -1}); err == nil {
		t.Error("a negative number of sinks")
	}
	for x, want := range map[float32]float32{1: 1, 1.4: 1, 1.42: 2, 0.7: 0.5, 0.71: 1, 3: 4, 0.3: 0.25} {
		if got := nearestPower(x); got != want {
			t.Errorf("%g rounds to %g, want %g", x, got, want)
		}
	}
}
