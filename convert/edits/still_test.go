package edits

import (
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/internal/tiny"
	"github.com/phaseconv/phaseconv/kernels/linalg"
	"github.com/phaseconv/phaseconv/rotations/transform"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// hidden runs windows through a model with some weights.
func hidden(t *testing.T, c *family.Config, w checkpoint.Weights, windows [][]int32) []float32 {
	t.Helper()
	x := &refmodel.Variant{}
	if err := refmodel.New(c, w, 2).Run(t.Context(), windows, []*refmodel.Variant{x}, refmodel.Options{}); err != nil {
		t.Fatal(err)
	}
	return x.Hidden
}

// farthest is the largest difference of two vectors, relative to the largest number.
func farthest(a, b []float32) float64 {
	var worst, size float64
	for i := range a {
		worst = max(worst, math.Abs(float64(a[i])-float64(b[i])))
		size = max(size, math.Abs(float64(a[i])))
	}
	return worst / size
}

// randomStill is a change of a head that RoPE lets through exactly: a constant and an invertible
// matrix on the pairs that stand still, and scales of the others.
func randomStill(r *rand.Rand, c *family.Config, l int) transform.KeyEdit {
	y := &c.Layers[l]
	d, pairs := y.HeadDim, c.PairsIn(l)
	still, _ := transform.StillPairs(y)
	key := make([]float64, d*d)
	e := transform.KeyEdit{Shift: &transform.BiasShift{Exact: true, Delta: make([]float64, d)}}
	var dims []int
	for p, on := range still {
		i, j := pairs.Dims(p, d)
		if on {
			dims = append(dims, i, j)
			e.Shift.Delta[i], e.Shift.Delta[j] = r.NormFloat64(), r.NormFloat64()
		} else {
			key[i*d+i] = math.Exp(r.NormFloat64() / 3)
			key[j*d+j] = key[i*d+i]
		}
	}
	for _, i := range dims {
		for _, j := range dims {
			if key[i*d+j] = 0.3 * r.NormFloat64(); i == j {
				key[i*d+j]++
			}
		}
	}
	inverse := make([]float64, d*d)
	// Gauss-Jordan without pivots: the matrix is near a diagonal one.
	a := append([]float64(nil), key...)
	for i := range d {
		inverse[i*d+i] = 1
	}
	for k := range d {
		f := 1 / a[k*d+k]
		for j := range d {
			a[k*d+j] *= f
			inverse[k*d+j] *= f
		}
		for i := range d {
			if g := a[i*d+k]; i != k {
				for j := range d {
					a[i*d+j] -= g * a[k*d+j]
					inverse[i*d+j] -= g * inverse[k*d+j]
				}
			}
		}
	}
	e.Transform = &transform.KeyTransform{Exact: true, Key: key, Query: linalg.Transpose(inverse, d)}
	return e
}

// foldStill folds random changes into the layers of a model that have pairs that stand still.
func foldStill(t *testing.T, c *checkpoint.Checkpoint,
	change func(l int, e *transform.KeyEdit)) (*checkpoint.Edited, error) {
	t.Helper()
	r := rand.New(rand.NewPCG(3, 4))
	v := checkpoint.NewEdited(c, checkpoint.Edits{})
	for l := range c.Config.Layers {
		if _, some := transform.StillPairs(&c.Config.Layers[l]); !some {
			continue
		}
		heads := make([]transform.KeyEdit, c.Config.Layers[l].KVHeads)
		for h := range heads {
			heads[h] = randomStill(r, c.Config, l)
			change(l, &heads[h])
		}
		if err := transform.FoldKeys(v, l, heads); err != nil {
			return v, err
		}
	}
	return v, nil
}

// TestStillIsExact: on dimensions that RoPE does not turn any matrix passes between keys and
// queries, and a constant may leave the keys, whether they are the rest of a head (GLM-4,
// Phi-4-mini) or all of it in some layers (SmolLM3, Command R7B). What RoPE turns, an edit that is
// called exact does not touch.
func TestStillIsExact(t *testing.T) {
	for _, name := range []string{"glm4", "phi3-long", "smollm3", "cohere2"} {
		c := openAny(t, name+" folder")
		windows := tiny.Windows(c.Config, 2, 36)
		want := hidden(t, c.Config, c, windows)
		v, err := foldStill(t, c, func(int, *transform.KeyEdit) {})
		if err != nil {
			t.Fatal(err)
		}
		// A few hundred roundings of float32, amplified layer by layer.
		if d := farthest(want, hidden(t, c.Config, v, windows)); d > 2e-4 {
			t.Errorf("%s: exact changes move hidden states by %.1e", name, d)
		}
		// Without the inverse on the queries it is another model, and the test sees it.
		half := checkpoint.Edits{}
		for n, e := range v.Edits {
			if strings.Contains(n, "attn_k") {
				half[n] = e
			}
		}
		broken := *v
		broken.Edits = half
		if d := farthest(want, hidden(t, c.Config, &broken, windows)); d < 1e-2 {
			t.Errorf("%s: changes of keys alone move hidden states by %.1e only", name, d)
		}
		if name == "smollm3" || name == "cohere2" {
			continue // nothing turns in those layers
		}
		l := 0
		i, _ := c.Config.PairsIn(l).Dims(0, c.Config.Layers[l].HeadDim)
		for what, change := range map[string]func(l int, e *transform.KeyEdit){
			"shift": func(l int, e *transform.KeyEdit) { e.Shift.Delta[i] = 1 },
			"transform": func(l int, e *transform.KeyEdit) {
				e.Transform.Key[i*c.Config.Layers[l].HeadDim+i] *= 2
				e.Transform.Query[i*c.Config.Layers[l].HeadDim+i] /= 2
			},
		} {
			if _, err := foldStill(t, c, change); err == nil || !strings.Contains(err.Error(), "exact") {
				t.Errorf("%s: a %s that RoPE feels: %v", name, what, err)
			}
		}
		// Called by its name, the shift is folded, and is no identity.
		v, err = foldStill(t, c, func(l int, e *transform.KeyEdit) { e.Shift.Delta[i], e.Shift.Exact = 3, false })
		if err != nil {
			t.Fatal(err)
		}
		if d := farthest(want, hidden(t, c.Config, v, windows)); d < 1e-3 {
			t.Errorf("%s: a shift that RoPE turns moves hidden states by %.1e only", name, d)
		}
	}
}

// TestStillStops: where the exact changes are no identities they are refused with the reason.
func TestStillStops(t *testing.T) {
	for name, says := range map[string][2]string{
		"llama": {"RoPE turns all", "RoPE turns all"}, "exaone4": {"", "QK-norm"}, "olmo2": {"RoPE turns all", "RoPE turns"},
		"gemma4": {"", "QK-norm"}, "gptoss": {"RoPE turns all", "RoPE turns"},
		"glm4": {"", ""}, "smollm3": {"", ""},
	} {
		c := openAny(t, name+" folder").Config
		matrix, shift := transform.CheckStill(c)
		for i, err := range []error{matrix, shift} {
			if got := says[i]; (err == nil) != (got == "") || err != nil && !strings.Contains(err.Error(), got) {
				t.Errorf("%s: %v, want %q", name, err, got)
			}
		}
	}
	c := openAny(t, "glm4 folder")
	c.Config.Layers[0].Sinks = true
	if _, shift := transform.CheckStill(c.Config); shift == nil || !strings.Contains(shift.Error(), "sinks") {
		t.Errorf("a constant beside sinks: %v", shift)
	}
	if _, err := foldStill(t, c, func(int, *transform.KeyEdit) {}); err == nil || !strings.Contains(err.Error(), "sinks") {
		t.Errorf("an exact shift beside sinks: %v", err)
	}
}

// TestStillFit: fitted exact changes leave the model as it is, and the keys that they make have no
// mean where RoPE does not turn and a smaller predicted error.
func TestStillFit(t *testing.T) {
	for _, name := range []string{"glm4", "smollm3"} {
		c := openAny(t, name+" folder")
		windows := tiny.Windows(c.Config, 2, 36)
		o := StatsOptions{Queries: 36, Samples: 36, Threads: 2}
		s := collect(t, c, o, windows)
		row := transform.CacheRow{Type: gguf.TypeQ4_0, Pairs: c.Config.Pairs}
		fit, err := s.Fit(t.Context(), Still(false, false, row).Fit, nil)
		if err != nil {
			t.Fatal(err)
		}
		v := checkpoint.NewEdited(c, checkpoint.Edits{})
		transformed := 0
		for l, heads := range fit {
			_, some := transform.StillPairs(&c.Config.Layers[l])
			for h, e := range heads {
				if !some {
					if e.Transform != nil || e.Shift != nil || e.Pairs == nil {
						t.Errorf("%s: layer %d, head %d has no pairs that stand still, and %+v", name, l, h, e)
					}
					continue
				}
				if e.Transform == nil || !e.Transform.Exact || e.Shift == nil || !e.Shift.Exact {
					t.Fatalf("%s: layer %d, head %d is left as it is", name, l, h)
				}
				if e.Transform.Cost != 0 || !(e.Transform.After < e.Transform.Before) {
					t.Errorf("%s: layer %d, head %d: error %g becomes %g at the cost of %g", name, l, h, e.Transform.Before,
						e.Transform.After, e.Transform.Cost)
				}
				transformed++
			}
			if err := transform.FoldKeys(v, l, heads); err != nil {
				t.Fatal(err)
			}
		}
		if transformed == 0 {
			t.Errorf("%s: nothing is transformed", name)
		}
		if d := farthest(hidden(t, c.Config, c, windows), hidden(t, c.Config, v, windows)); d > 2e-4 {
			t.Errorf("%s: fitted exact changes move hidden states by %.1e", name, d)
		}
		if name == "glm4" { // the folded keys have no mean where RoPE does not turn
			after, err := NewKeyStats(c.Config, o)
			if err != nil {
				t.Fatal(err)
			}
			if err := refmodel.New(c.Config, v, 2).Run(t.Context(), windows, []*refmodel.Variant{{}},
				refmodel.Options{Hooks: after.Hooks(t.Context())}); err != nil {
				t.Fatal(err)
			}
			head, err := after.Head(0, 0)
			if err != nil {
				t.Fatal(err)
			}
			still, _ := transform.StillPairs(&c.Config.Layers[0])
			for p, on := range still {
				i, j := c.Config.PairsIn(0).Dims(p, head.D)
				if m := math.Hypot(head.Mean[i], head.Mean[j]); on && m > 1e-3*math.Sqrt(head.Var[p]) {
					t.Errorf("pair %d keeps a mean of %g beside a deviation of %g", p, m, math.Sqrt(head.Var[p]))
				}
			}
		}
	}
}
