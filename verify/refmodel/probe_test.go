package refmodel

import (
	"slices"
	"testing"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/internal/tiny"
)

// lastLayer is a cache that halves the keys and turns the sign of values of one layer.
type lastLayer struct{ layer int }

func (c lastLayer) Keys(layer, _ int, k []float32) (Scorer, error) {
	for i := range k {
		if layer == c.layer {
			k[i] /= 2
		}
	}
	return nil, nil
}

func (c lastLayer) Values(layer, _ int, v []float32) error {
	for i := range v {
		if layer == c.layer {
			v[i] = -v[i]
		}
	}
	return nil
}

// TestProbes: in every model, probes of all positions have the bits of a whole run, whatever the
// cache does; those of a few positions have them as far as nothing before was changed, and not
// beyond.
func TestProbes(t *testing.T) {
	few, all := []int{0, 3, 4, 5, 17, 20, 21}, make([]int, 22)
	for i := range all {
		all[i] = i
	}
	for _, dir := range models(t) {
		c, err := checkpoint.Open(tiny.Folder(t, dir))
		if err != nil {
			t.Fatal(err)
		}
		m := New(c.Config, c, 2)
		windows := tiny.Windows(c.Config, 2, 22)
		context, err := m.NewContext(windows)
		if err != nil {
			t.Fatal(err)
		}
		layers, d := len(c.Config.Layers), c.Config.Hidden
		last := c.Config.Layers[layers-1].Owner
		caches := []Cache{nil, lastLayer{last}, lastLayer{0}}
		var whole []*Variant
		for _, x := range caches {
			whole = append(whole, &Variant{Cache: x})
		}
		if err := m.Run(t.Context(), windows, whole, Options{Hooks: context.Hooks()}); err != nil {
			t.Fatal(err)
		}
		for _, positions := range [][]int{few, all} {
			var probes []*Variant
			for _, x := range caches {
				probes = append(probes, &Variant{Cache: x})
			}
			if err := m.Probes(t.Context(), context, positions, probes, nil); err != nil {
				t.Fatal(err)
			}
			for i := range caches {
				var want []float32
				for w := range windows {
					for _, p := range positions {
						want = append(want, whole[i].Hidden[(w*22+p)*d:][:d]...)
					}
				}
				equal := slices.Equal(want, probes[i].Hidden)
				exact := len(positions) == 22 || i == 0 || i == 1 && last == layers-1
				if exact && !equal || !exact && i == 2 && last > 0 && equal {
					t.Errorf("%s, cache %d, %d positions: equal is %v", dir, i, len(positions), equal)
				}
			}
			part := []*Variant{{Cache: caches[2]}}
			if err := m.Probes(t.Context(), context.Part(1), positions, part, nil); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(part[0].Hidden, probes[2].Hidden[:len(positions)*d]) {
				t.Errorf("%s: the first window alone differs", dir)
			}
		}
		c.Close()
	}
}

// TestProbeRefusals: positions that are not there, or not in order, and contexts without keys.
func TestProbeRefusals(t *testing.T) {
	c := tiny.Open(t, "llama", tiny.Options{})
	m := New(c.Config, c, 1)
	context, err := m.NewContext(tiny.Windows(c.Config, 1, 8))
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range [][]int{nil, {-1}, {8}, {3, 2}, {3, 3}, {1}} {
		if err := m.Probes(t.Context(), context, x, []*Variant{{}}, nil); err == nil {
			t.Errorf("positions %v of a context without keys", x)
		}
	}
	if _, err := m.NewContext(nil); err == nil {
		t.Error("a context without windows")
	}
}
