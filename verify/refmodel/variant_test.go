package refmodel_test

import (
	"context"
	"path/filepath"
	"slices"
	"testing"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/internal/tiny"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// lateCache changes the values of one layer.
type lateCache struct{ layer int }

func (c lateCache) Keys(int, int, []float32) (refmodel.Scorer, error) { return nil, nil }

func (c lateCache) Values(layer, _ int, v []float32) error {
	if layer == c.layer {
		for i := range v {
			v[i] *= 1.5
		}
	}
	return nil
}

// TestLanesBeginLate: a variant that begins where its cache changes something first
// ends with the bits of one that goes through all layers, and so does one that
// another run carries on.
func TestLanesBeginLate(t *testing.T) {
	for _, family := range []string{"llama", "qwen3_moe"} {
		dir := filepath.Join(t.TempDir(), family)
		tiny.HF(t, dir, family, tiny.Options{Seed: 1, Layers: 4})
		c, err := checkpoint.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		m := refmodel.New(c.Config, c, 2)
		run := func(variants ...*refmodel.Variant) error {
			return m.Run(context.Background(), [][]int32{{1, 5, 9, 2, 7}, {1, 3, 3, 8, 4}}, variants, refmodel.Options{})
		}
		float, whole := &refmodel.Variant{}, &refmodel.Variant{Cache: lateCache{2}}
		late, mark := &refmodel.Variant{Cache: lateCache{2}, From: 2}, &refmodel.Variant{From: 1, Until: 1}
		last := &refmodel.Variant{From: 4}
		if err := run(float, whole, late, mark, last); err != nil {
			t.Fatal(err)
		}
		if slices.Equal(float.Hidden, whole.Hidden) || !slices.Equal(late.Hidden, whole.Hidden) ||
			!slices.Equal(last.Hidden, float.Hidden) {
			t.Errorf("%s: variants that begin late differ", family)
		}
		on, more := &refmodel.Variant{From: 1, Start: mark.Hidden, Until: 3}, &refmodel.Variant{Cache: lateCache{2}, From: 2}
		kept := slices.Clone(mark.Hidden)
		if err := run(on, more); err != nil {
			t.Fatal(err)
		}
		end := &refmodel.Variant{From: 3, Start: on.Hidden}
		if err := run(end); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(more.Hidden, whole.Hidden) || !slices.Equal(end.Hidden, float.Hidden) ||
			!slices.Equal(mark.Hidden, kept) {
			t.Errorf("%s: variants that were carried on differ", family)
		}
		for name, variants := range map[string][]*refmodel.Variant{
			"no start":          {{From: 1}},
			"short start":       {{From: 1, Start: kept[1:]}},
			"behind the first":  {{Until: 2}, {From: 3}},
			"before the first":  {{From: 1, Start: kept}, {}},
			"backwards":         {{}, {From: 3, Until: 2}},
			"behind the layers": {{}, {Until: 5}},
			"negative":          {{From: -1}},
		} {
			if run(variants...) == nil {
				t.Errorf("%s: %s: no error", family, name)
			}
		}
	}
}

// TestResident: a model that keeps what it has read computes the same at every run.
func TestResident(t *testing.T) {
	for _, name := range []string{"gemma4", "gemma4-moe", "gptoss"} {
		c, err := checkpoint.Open(tiny.Folder(t, "testdata/"+name))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		m, kept := refmodel.New(c.Config, c, 1), refmodel.New(c.Config, c, 1)
		kept.Resident = true
		windows := tiny.Windows(c.Config, 1, 9)
		want := &refmodel.Variant{}
		if err := m.Run(t.Context(), windows, []*refmodel.Variant{want}, refmodel.Options{}); err != nil {
			t.Fatal(err)
		}
		for i := range 3 {
			got := &refmodel.Variant{}
			if err := kept.Run(t.Context(), windows, []*refmodel.Variant{got}, refmodel.Options{}); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(got.Hidden, want.Hidden) {
				t.Errorf("%s: run %d of a resident model differs", name, i)
			}
		}
	}
}
