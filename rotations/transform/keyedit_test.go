package transform_test

import (
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/internal/tiny"
	"github.com/phaseconv/phaseconv/kernels/rope"
	"github.com/phaseconv/phaseconv/rotations/transform"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// turns draws scales and, where they are exact, angles for every head.
func turns(r *rand.Rand, cfg *family.Config) []transform.KeyEdit {
	norm := cfg.Layers[0].QKNorm
	out := make([]transform.KeyEdit, cfg.Layers[0].KVHeads)
	for h := range out {
		if h > 0 && norm == family.NormHead {
			out[h] = out[0]
			continue
		}
		turn := &transform.PairRotation{}
		for range cfg.Layers[0].HeadDim / 2 {
			turn.Scale = append(turn.Scale, float32(math.Exp(r.NormFloat64())))
			if norm == family.NoQKNorm {
				turn.Angle = append(turn.Angle, 6*r.Float64())
			}
		}
		out[h].Pairs = turn
	}
	return out
}

// TestFoldTurns: scales and angles of pairs change no logit, in every family.
func TestFoldTurns(t *testing.T) {
	for _, fam := range tiny.Families {
		c := tiny.Open(t, fam, tiny.Options{Seed: 3, Bias: true})
		v := checkpoint.NewEdited(c, nil)
		r := rand.New(rand.NewPCG(1, 2))
		want := logits(t, c.Config, c, nil)
		for l := range c.Config.Layers {
			for range 2 { // edits go on top of edits
				if err := transform.FoldKeys(v, l, turns(r, c.Config)); err != nil {
					t.Fatal(err)
				}
			}
		}
		worst, size := difference(want, logits(t, c.Config, v, nil))
		// As in TestFoldBalance, and a turned pair adds two products whose scales may
		// differ by some powers of e.
		if !(worst < 1e-4*size) || worst == 0 {
			t.Errorf("%s: logits up to %.3g change by %.3g", fam, size, worst)
		}
		// The check can fail: half a fold is another model.
		for _, n := range v.Edits.Names() {
			if slices.Contains([]string{"blk.0.attn_q.weight", "blk.0.attn_q_norm.weight"}, n) {
				delete(v.Edits, n)
			}
		}
		if worst, _ := difference(want, logits(t, c.Config, v, nil)); worst < 1e-3*size {
			t.Errorf("%s: half a fold changes logits by %.3g only", fam, worst)
		}
	}
}

// scoreTap keeps what it needs to recompute scores of layer 0.
type scoreTap struct {
	pre, q, k []float32
}

func (s *scoreTap) Attention(a *refmodel.Attention) error {
	if a.Layer == 0 {
		s.pre, s.q, s.k = slices.Clone(a.KPre), slices.Clone(a.Q), slices.Clone(a.K)
	}
	return nil
}

func run(t *testing.T, c *family.Config, w checkpoint.Weights) *scoreTap {
	t.Helper()
	s := &scoreTap{}
	window := make([]int32, 24)
	for i := range window {
		window[i] = int32(i * 37 % c.Vocab)
	}
	if err := refmodel.New(c, w, 1).Run(t.Context(), [][]int32{window}, []*refmodel.Variant{{}},
		refmodel.Options{Hooks: refmodel.Hooks{Attention: s.Attention}}); err != nil {
		t.Fatal(err)
	}
	return s
}

// TestFoldRemoval: the forward pass of the edited model has keys without delta,
// and each score changes by q . R(j - i) delta, in a model with a key bias, in one
// that gets its first, and with a turn on top.
func TestFoldRemoval(t *testing.T) {
	for _, x := range []struct {
		fam  string
		bias bool
	}{{"qwen2", true}, {"llama", true}, {"llama", false}} {
		c := tiny.Open(t, x.fam, tiny.Options{Seed: 4, Bias: x.bias})
		cfg := c.Config
		d, kw, qw := cfg.Layers[0].HeadDim, cfg.Layers[0].KVHeads*cfg.Layers[0].HeadDim,
			cfg.Layers[0].Heads*cfg.Layers[0].HeadDim
		r := rand.New(rand.NewPCG(3, 4))
		edits := make([]transform.KeyEdit, cfg.Layers[0].KVHeads)
		for h := range edits {
			m := &transform.BiasShift{Delta: make([]float64, d)}
			for i := range m.Delta {
				m.Delta[i] = r.NormFloat64()
			}
			edits[h].Shift = m
		}
		v := checkpoint.NewEdited(c, nil)
		if err := transform.FoldKeys(v, 0, edits); err != nil {
			t.Fatal(err)
		}
		if (len(v.Added) > 0) == x.bias {
			t.Errorf("%s, bias %v: added tensors %v", x.fam, x.bias, v.Added)
		}
		before, after := run(t, cfg, c), run(t, cfg, v)
		for i, k := range before.pre {
			want := float64(k) - edits[i%kw/d].Shift.Delta[i%d]
			if math.Abs(want-float64(after.pre[i])) > 1e-5 {
				t.Fatalf("%s, bias %v: key %g becomes %g, want %g", x.fam, x.bias, k, after.pre[i], want)
			}
		}
		table := rope.NewTable(cfg.Layers[0].Rope, 32)
		for _, ij := range [][2]int{{5, 0}, {20, 7}, {23, 23}} {
			i, j := ij[0], ij[1]
			for head := range cfg.Layers[0].Heads {
				kv := head / cfg.Layers[0].Group()
				q := before.q[i*qw+head*d:][:d]
				old, now := dot(q, before.k[j*kw+kv*d:][:d]), dot(q, after.k[j*kw+kv*d:][:d])
				x := make([]float32, d)
				for n, v := range edits[kv].Shift.Delta {
					x[n] = float32(v)
				}
				table.Apply(x, j, cfg.Pairs)
				if diff := old - now; math.Abs(diff-dot(q, x)) > 1e-4 {
					t.Errorf("score of %d and %d falls by %g, want %g", i, j, diff, dot(q, x))
				}
			}
		}
		// A turn on top turns the rest of the bias with the weights: no score moves.
		want := logits(t, cfg, v, nil)
		if err := transform.FoldKeys(v, 0, turns(r, cfg)); err != nil {
			t.Fatal(err)
		}
		if worst, size := difference(want, logits(t, cfg, v, nil)); !(worst < 1e-4*size) {
			t.Errorf("%s, bias %v: logits up to %.3g change by %.3g", x.fam, x.bias, size, worst)
		}
	}
}

func dot(a, b []float32) (s float64) {
	for i := range a {
		s += float64(a[i]) * float64(b[i])
	}
	return s
}

// invertible returns a random matrix and its inverse transposed.
func invertible(r *rand.Rand, d int) *transform.KeyTransform {
	// A product of shears x_i += t x_j, whose inverses are known.
	m := &transform.KeyTransform{Key: make([]float64, d*d), Query: make([]float64, d*d)}
	for i := range d {
		m.Key[i*d+i], m.Query[i*d+i] = 2, 0.5
	}
	for range 4 * d {
		i, j, t := r.IntN(d), r.IntN(d), r.NormFloat64()/2
		if i == j {
			continue
		}
		for c := range d {
			m.Key[i*d+c] += t * m.Key[j*d+c]
			m.Query[j*d+c] -= t * m.Query[i*d+c]
		}
	}
	return m
}

// TestFoldValues: a mix of values changes no logit, in every family.
func TestFoldValues(t *testing.T) {
	for _, fam := range tiny.Families {
		c := tiny.Open(t, fam, tiny.Options{Seed: 5, Bias: true})
		r := rand.New(rand.NewPCG(5, 6))
		v := checkpoint.NewEdited(c, nil)
		for l := range c.Config.Layers {
			edits := make([]transform.KeyEdit, c.Config.Layers[0].KVHeads)
			for h := range edits {
				if l+h > 0 { // a head may stay as it is
					edits[h].Values = invertible(r, c.Config.Layers[0].HeadDim)
				}
			}
			if err := transform.FoldKeys(v, l, edits); err != nil {
				t.Fatal(err)
			}
		}
		want := logits(t, c.Config, c, nil)
		// Matrices up to a condition of some hundreds magnify roundings of 1e-7.
		if worst, size := difference(want, logits(t, c.Config, v, nil)); !(worst < 1e-4*size) || worst == 0 {
			t.Errorf("%s: logits up to %.3g change by %.3g", fam, size, worst)
		}
		delete(v.Edits, "blk.1.attn_output.weight")
		if worst, size := difference(want, logits(t, c.Config, v, nil)); worst < 1e-3*size {
			t.Errorf("%s: half a fold changes logits by %.3g only", fam, worst)
		}
	}
}

// TestFoldKeysRefuses: what no weight can do is refused, and nothing is edited.
func TestFoldKeysRefuses(t *testing.T) {
	for _, fam := range tiny.Families {
		c := tiny.Open(t, fam, tiny.Options{})
		cfg := c.Config
		v := checkpoint.NewEdited(c, nil)
		shift := make([]transform.KeyEdit, cfg.Layers[0].KVHeads)
		shift[1].Shift = &transform.BiasShift{Delta: make([]float64, cfg.Layers[0].HeadDim)}
		err := transform.FoldKeys(v, 0, shift)
		// A GGUF file of mistral is one of llama.
		if can := fam == "qwen2" || fam == "llama" || fam == "mistral"; (err == nil) != can || err != nil &&
			!errors.Is(err, transform.ErrNoKeyBias) {
			t.Errorf("%s: a shift of keys gives %v", fam, err)
		}
		v = checkpoint.NewEdited(c, nil)
		ones := make([]float32, cfg.Layers[0].HeadDim/2)
		for p := range ones {
			ones[p] = 1
		}
		// Twice the keys, and queries as they were: not the inverse.
		d := cfg.Layers[0].HeadDim
		double := &transform.KeyTransform{Key: make([]float64, d*d), Query: make([]float64, d*d)}
		for i := range d {
			double.Key[i*d+i], double.Query[i*d+i] = 2, 1
		}
		bad := map[string][]transform.KeyEdit{
			"values not inverse": {{Values: double}, {}},
			"mix not inverse":    {{Transform: double}, {}},
			"heads":              make([]transform.KeyEdit, cfg.Layers[0].KVHeads-1),
			"scale":              {{Pairs: &transform.PairRotation{Scale: make([]float32, cfg.Layers[0].HeadDim/2)}}, {}},
			"length":             {{Pairs: &transform.PairRotation{Scale: ones[1:]}}, {}},
			"angle":              {{Pairs: &transform.PairRotation{Scale: ones, Angle: []float64{math.NaN()}}}, {}},
			"values":             {{Values: &transform.KeyTransform{Key: make([]float64, 4), Query: make([]float64, 4)}}, {}},
			"mix":                {{Transform: &transform.KeyTransform{Key: make([]float64, 4), Query: make([]float64, 4)}}, {}},
		}
		if cfg.Layers[0].QKNorm != family.NoQKNorm {
			bad["mixed norm"] = []transform.KeyEdit{{Transform: &transform.KeyTransform{Key: make([]float64,
				cfg.Layers[0].HeadDim*cfg.Layers[0].HeadDim), Query: make([]float64, cfg.Layers[0].HeadDim*cfg.Layers[0].HeadDim)}},
				{}}
			a := &transform.PairRotation{Scale: ones, Angle: make([]float64, len(ones))}
			bad["norm"] = []transform.KeyEdit{{Pairs: a}, {Pairs: a}}
		}
		if cfg.Layers[0].QKNorm == family.NormHead {
			two := slices.Clone(ones)
			two[1] = 2
			bad["shared"] = []transform.KeyEdit{{Pairs: &transform.PairRotation{Scale: ones}},
				{Pairs: &transform.PairRotation{Scale: two}}}
		}
		for what, e := range bad {
			if transform.FoldKeys(v, 0, e) == nil {
				t.Errorf("%s: %s accepted", fam, what)
			}
		}
		if len(v.Edits)+len(v.Added) != 0 {
			t.Errorf("%s: edits after refusals: %v", fam, v.Edits.Names())
		}
	}
}
