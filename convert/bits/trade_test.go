package bits

import (
	"testing"

	"github.com/phaseconv/phaseconv/internal/tiny"
	"github.com/phaseconv/phaseconv/verify/kvcache"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// TestDecodeCost counts by hand for one layer, and holds what the trade is about: wider groups and
// shorter anchors cost more, values alone cost the same with any anchor.
func TestDecodeCost(t *testing.T) {
	c := tiny.Open(t, "llama", tiny.Options{Seed: 1, Layers: 1, HeadDim: 32}).Config
	y := &c.Layers[0]
	cost := func(parts Parts, span, anchor int) (float64, *Groups) {
		g, err := JointGroups(c, GroupOptions{Parts: parts, Bits: 4, Span: span})
		if err != nil {
			t.Fatal(err)
		}
		return DecodeCost(c, g, anchor), g
	}
	got, g := cost(PartsBoth, 64, 64)
	want := 0.0
	for _, b := range g.Signs[0] { // each group: one KV head, its query heads, K turned every 64 tokens
		want += float64(b*y.Group()) * (0.4 + (0.75*32+42)/64 + 0.6)
	}
	if got/want > 1.000001 || got/want < 0.999999 {
		t.Errorf("cost %g, by hand %g", got, want)
	}
	wide, _ := cost(PartsBoth, 128, 64)
	long, _ := cost(PartsBoth, 64, 256)
	if !(wide > got && long < got) {
		t.Errorf("cost %g with wider groups, %g with longer anchors, %g", wide, long, got)
	}
	a, _ := cost(PartsValues, 64, 64)
	if b, _ := cost(PartsValues, 64, 256); a != b {
		t.Errorf("values cost %g and %g", a, b)
	}
}

// TestPairsCost: a pair of layers costs what its lower layer does three times, since the upper one scores
// and sums the signs of both.
func TestPairsCost(t *testing.T) {
	c := tiny.Open(t, "llama", tiny.Options{Seed: 1, Layers: 3, HeadDim: 32}).Config
	o := GroupOptions{Parts: PartsBoth, Bits: 3, Span: 128}
	var cost [2]float64
	for i := range cost {
		o.Pairs = i == 1
		g, err := JointGroups(c, o)
		if err != nil {
			t.Fatal(err)
		}
		for l := range g.Signs {
			g.Signs[l][0] = 64 << l // 64 and 128 in the pair, 256 alone
		}
		if cost[i] = DecodeCost(c, g, 64); g.AnyGiven(1) != o.Pairs || g.AnyGiven(2) || g.AnyGiven(3) {
			t.Errorf("pairs %v: given %v", o.Pairs, g.Given)
		}
	}
	if x := cost[1] / cost[0] * (64 + 128 + 256); x < 511.999 || x > 512.001 { // 64 more
		t.Errorf("signs of %g, want 512: %v", x, cost)
	}
}

func TestSpanChoices(t *testing.T) {
	c := tiny.Open(t, "llama", tiny.Options{Seed: 1, Layers: 1, HeadDim: 32, KVHeads: 4, Heads: 4}).Config
	if got := SpanChoices(c, PartsBoth, 512); len(got) != 3 || got[0] != 64 || got[1] != 128 || got[2] != 512 {
		t.Errorf("both: %v", got)
	}
	if got := SpanChoices(c, PartsKeys, 64); len(got) != 2 || got[0] != 32 || got[1] != 64 {
		t.Errorf("keys: %v", got)
	}
}

// TestChoose: what is chosen is worth most, whichever candidate comes first, and the drafts are of
// the candidates.
func TestChoose(t *testing.T) {
	c := tiny.Open(t, "llama", tiny.Options{Seed: 1, Layers: 1, HeadDim: 32})
	m := refmodel.New(c.Config, c, 1)
	windows := tiny.Windows(c.Config, 4, 96)
	all := []Candidate{{GroupOptions{Parts: PartsBoth, Bits: 1.5, Span: 128}, 64},
		{GroupOptions{Parts: PartsBoth, Bits: 3, Span: 128}, 64}}
	tried, best, err := Choose(t.Context(), m, windows, all, Options{Policy: kvcache.Policy{Sink: 2}, Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	if !(tried[1].KLD < tried[0].KLD) || !(tried[1].Cost > tried[0].Cost) {
		t.Errorf("%+v: more bits must lose less and cost more", tried)
	}
	for i := range tried {
		if tried[i].Worth() < tried[best].Worth() {
			t.Errorf("chosen %d of %+v", best, tried)
		}
	}
	if _, _, err := Choose(t.Context(), m, windows[:1], all, Options{}); err == nil {
		t.Error("drafts were measured on the window that they were fitted to")
	}
}
