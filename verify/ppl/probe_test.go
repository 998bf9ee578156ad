package ppl

import (
	"slices"
	"testing"

	"github.com/phaseconv/phaseconv/internal/tiny"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// TestBlock: as many positions as asked for, at the end of a window where they are fewer than
// what is scored, else all that is scored of several.
func TestBlock(t *testing.T) {
	ids := make([]int32, 400)
	for i := range ids {
		ids[i] = int32(i)
	}
	w, err := Cut(ids, 100, 4, -1)
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct{ n, windows, from, scored int }{{20, 1, 79, 84}, {49, 1, 50, 50}, {100, 2, 50, 50},
		{9999, 4, 50, 50}} {
		b := w.Block(x.n)
		if b.Windows != x.windows || b.Positions[0] != x.from || b.Positions[len(b.Positions)-1] != 98 ||
			b.Scored[0] != x.scored || b.Scored[len(b.Scored)-1] != 98 {
			t.Errorf("%d positions: %+v", x.n, b)
		}
		if of := b.Of(w); len(of.Targets) != b.Windows*len(b.Scored) || int(of.Targets[0]) != x.scored+1 {
			t.Errorf("%d positions: targets %v", x.n, of.Targets)
		}
	}
}

// TestProbe: a block's probe of the model itself has what the whole run has there.
func TestProbe(t *testing.T) {
	c := tiny.Open(t, "llama", tiny.Options{})
	m := refmodel.New(c.Config, c, 1)
	w := From(tiny.Windows(c.Config, 3, 40), 20)
	context, err := m.NewContext(w.Tokens)
	if err != nil {
		t.Fatal(err)
	}
	base, err := Run(t.Context(), m, w, refmodel.Options{Hooks: context.Hooks()}, &refmodel.Variant{})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{8, 40} {
		b := w.Block(n)
		got, err := b.Probe(t.Context(), m, context, nil, &refmodel.Variant{})
		if err != nil {
			t.Fatal(err)
		}
		if want := b.Base(w, base[0]); !slices.Equal(want.Normed, got[0].Normed) || len(want.Normed) == 0 {
			t.Errorf("%d positions: the probe of the model differs from its run", n)
		}
	}
}
