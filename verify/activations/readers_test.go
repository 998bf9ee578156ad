package activations

import (
	"math"
	"slices"
	"testing"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/internal/tiny"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/rotations/transform"
	"github.com/phaseconv/phaseconv/verify/kvcache"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// seen is what one layer's queries say of the keys of KV head 0, summed as the definitions have it.
type seen struct {
	moments, weights []float64
	queries          int
}

func look(c *family.Config, a *refmodel.Attention) seen {
	y := &c.Layers[a.Layer]
	d, width := y.HeadDim, y.Heads*y.HeadDim
	s := seen{moments: make([]float64, d*d), weights: make([]float64, a.T*a.Windows)}
	for w := range a.Windows {
		for h := range y.Group() {
			a.Probabilities(c, w, h, func(i, lo int, p []float32) {
				q := a.Q[(w*a.T+i)*width+h*d:][:d]
				flat := 1.0
				for j, v := range p {
					flat -= float64(v) * float64(v)
					s.weights[w*a.T+lo+j] += float64(v) * (1 - float64(v))
				}
				for j, x := range q {
					for k, z := range q {
						s.moments[j*d+k] += flat * float64(x) * float64(z)
					}
				}
				s.queries++
			})
		}
	}
	return s
}

// TestAllReaders: what the code of a shared cache is fitted to takes in the queries of every layer that
// reads it. With any one of them left out, the numbers differ by far more than they do here.
func TestAllReaders(t *testing.T) {
	ck, err := checkpoint.Open(tiny.Folder(t, "../refmodel/testdata/gemma4"))
	if err != nil {
		t.Fatal(err)
	}
	defer ck.Close()
	c := ck.Config
	policy := kvcache.Policy{Sink: 2} // no anchor: queries meet keys as they are
	g := NewGatherer(c, policy, 2, nil)
	own, energies := map[int][]seen{}, map[int]*transform.PairEnergy{}
	shared := 0
	hook := func(a *refmodel.Attention) error {
		owner := c.Layers[a.Layer].Owner
		own[owner] = append(own[owner], look(c, a))
		if owner == a.Layer {
			energies[owner] = transform.NewPairEnergy(c.Layers[owner].KVHeads, c.Layers[owner].HeadDim)
		}
		alone := energies[owner].PairScale(true)
		addEnergies(energies[owner], c, a, policy.Sink)
		x, err := g.Add(t.Context(), a)
		if err != nil || x == nil {
			return err
		}
		if x.Layer != owner || a.Layer != c.LastReader(owner) {
			t.Errorf("layer %d is gathered when layer %d passes", x.Layer, a.Layer)
		}
		if len(own[owner]) == 1 {
			return nil
		}
		shared++
		y := &c.Layers[owner]
		scales := x.PairScale()
		if want := energies[owner].PairScale(true); !slices.Equal(scales.Scale[0], want.Scale[0]) ||
			slices.Equal(scales.Scale[0], alone.Scale[0]) {
			t.Errorf("layer %d: scales %v, without the last reader %v, want %v", owner, scales.Scale[0], alone.Scale[0],
				want.Scale[0])
		}
		scale := scales.KeyScale(0, y.HeadDim, c.PairsIn(owner))
		s, err := x.Sample(t.Context(), 0, scale)
		if err != nil {
			return err
		}
		parts := []codec.Part{{Head: 0}, {Head: 0, Value: true}}
		group, err := x.Groups(t.Context(), parts, func(int) []float32 { return nil }, nil)
		if err != nil {
			return err
		}
		if d := differ(own[owner], nil, s.Metric, group.Metrics[0], s.Weights, scale, y.HeadDim, a.T, policy.Sink); d > 1e-5 {
			t.Errorf("layer %d: off by %g", owner, d) // float32 sums of some hundred queries
		}
		for i := range own[owner] {
			if d := differ(own[owner], &i, s.Metric, group.Metrics[0], s.Weights, scale, y.HeadDim, a.T, policy.Sink); d < 1e-2 {
				t.Errorf("layer %d: without its reader %d off by %g only", owner, i, d)
			}
		}
		return nil
	}
	m := refmodel.New(c, ck, 2)
	err = m.Run(t.Context(), tiny.Windows(c, 2, 40), []*refmodel.Variant{{}},
		refmodel.Options{Hooks: refmodel.Hooks{Attention: hook}})
	if err != nil || shared != 2 {
		t.Fatalf("%d shared caches, %v", shared, err)
	}
}

// differ returns the largest difference of what was gathered from the sums of layers, but one, as a share
// of the largest number.
func differ(layers []seen, without *int, metric, group, weights []float64, scale []float32, d, T, sink int) (
	worst float64) {
	sum := seen{moments: make([]float64, d*d), weights: make([]float64, len(layers[0].weights))}
	for i, s := range layers {
		if without != nil && i == *without {
			continue
		}
		for j, v := range s.moments {
			sum.moments[j] += v
		}
		for j, v := range s.weights {
			sum.weights[j] += v
		}
		sum.queries += s.queries
	}
	against := func(got, want []float64) {
		var top, off float64
		for i, v := range want {
			top, off = max(top, math.Abs(v)), max(off, math.Abs(v-got[i]))
		}
		worst = max(worst, off/top)
	}
	plain, scaled := make([]float64, d*d), make([]float64, d*d)
	for i, v := range sum.moments {
		plain[i] = v / float64(sum.queries)
		scaled[i] = plain[i] / float64(scale[i/d]) / float64(scale[i%d])
	}
	var coded []float64 // weights of the keys that are coded
	for i, v := range sum.weights {
		if i%T >= sink {
			coded = append(coded, v)
		}
	}
	against(metric, scaled)
	against(group, plain)
	against(weights, coded)
	return worst
}

// TestScaledAfterwards: with blocks and scales of keys, what is scaled after it was summed up is what is
// summed up of scaled queries.
func TestScaledAfterwards(t *testing.T) {
	ck := tiny.Open(t, "llama", tiny.Options{})
	c := ck.Config
	g := NewGatherer(c, kvcache.Policy{Sink: 1, Anchor: 8}, 2, nil)
	hook := func(a *refmodel.Attention) error {
		x, err := g.Add(t.Context(), a)
		if err != nil {
			return err
		}
		y := &c.Layers[a.Layer]
		scale := x.PairScale().KeyScale(1, y.HeadDim, c.PairsIn(a.Layer))
		want, err := x.Sample(t.Context(), 1, scale)
		if err != nil {
			return err
		}
		x.heads, x.energies = make([]readers, y.KVHeads), transform.NewPairEnergy(y.KVHeads, y.HeadDim)
		if err := x.read(t.Context(), a); err != nil {
			return err
		}
		got, err := x.Sample(t.Context(), 1, scale)
		if err != nil {
			return err
		}
		if !slices.Equal(got.Keys, want.Keys) || !slices.Equal(got.Weights, want.Weights) {
			t.Errorf("layer %d: keys or their weights differ", a.Layer)
		}
		top := slices.Max(want.Metric)
		for i, v := range got.Metric {
			if math.Abs(v-want.Metric[i]) > 1e-6*top { // float32 sums
				t.Errorf("layer %d, number %d: %g, want %g", a.Layer, i, v, want.Metric[i])
			}
		}
		return nil
	}
	err := refmodel.New(c, ck, 2).Run(t.Context(), tiny.Windows(c, 2, 40), []*refmodel.Variant{{}},
		refmodel.Options{Hooks: refmodel.Hooks{Attention: hook}})
	if err != nil {
		t.Fatal(err)
	}
}
