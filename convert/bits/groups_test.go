package bits

import (
	"fmt"
	"testing"

	"github.com/phaseconv/phaseconv/internal/tiny"
	"github.com/phaseconv/phaseconv/rotations/codec"
)

// TestSpreadJoint: the budget is kept, layers that cost more get more, nobody a fifth more or less
// than evenly, and equal layers get equal signs.
func TestSpreadJoint(t *testing.T) {
	c := tiny.Open(t, "llama", tiny.Options{Seed: 1, Layers: 4, HeadDim: 64}).Config
	g, err := JointGroups(c, GroupOptions{Parts: PartsBoth, Bits: 3.2, Span: 1 << 10})
	if err != nil {
		t.Fatal(err)
	}
	want, bytes := g.Total()
	numbers := 0
	for l := range c.Layers {
		numbers += codec.PartsDim(g.Parts[l][0], c.Layers[l].HeadDim, c.Layers[l].ValueDim)
	}
	// 3.2 bits per pair, less a scale for each group, in whole words.
	if most := int(3.2*float64(numbers)/2) - 16*4; want > most || want <= most-32 || bytes != want/8+2*4 {
		t.Errorf("%d signs and %d bytes for %d numbers", want, bytes, numbers)
	}
	sum := func(signs [][]int) (n int) {
		for _, layer := range signs {
			for _, b := range layer {
				n += b
			}
		}
		return n
	}
	got := spreadJoint(c, g, [][]float64{{1e-9}, {0.01}, {0.01}, {5}})
	if sum(got) != want {
		t.Errorf("%v are not %d signs", got, want)
	}
	bound := func(l, sign int) int { // in whole words
		words := g.Signs[l][0] / wordSigns
		return (words + sign*(words/5)) * wordSigns
	}
	if got[0][0] >= got[1][0] || got[1][0] > got[3][0] || got[0][0] != bound(0, -1) || got[3][0] != bound(3, 1) {
		t.Errorf("signs %v for rising damage, %v evenly", got, g.Signs)
	}
	got = spreadJoint(c, g, [][]float64{{1}, {1}, {1}, {1}})
	for l := range got {
		if d := got[l][0] - g.Signs[l][0]; d < -32 || d > 32 {
			t.Errorf("equal damage: %v instead of %v", got, g.Signs)
		}
	}
	if got = spreadJoint(c, g, [][]float64{{0}, {0}, {0}, {0}}); sum(got) != want {
		t.Errorf("no damage: %v are not %d signs", got, want)
	}
}

// TestLongHeads: only layers with heads that do not fit the span have keys and values in groups of
// their own, and those that do not fit it even so are refused.
func TestLongHeads(t *testing.T) {
	c := tiny.Open(t, "llama", tiny.Options{Seed: 1, Layers: 3, HeadDim: 32}).Config
	c.Layers[2].HeadDim, c.Layers[2].ValueDim, c.Layers[2].KVHeads = 128, 64, 3
	o := GroupOptions{Parts: PartsBoth, Bits: 4, Span: 128}
	g, err := JointGroups(c, o)
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(g.Parts); got != "[[[k0 k1 v0 v1]] [[k0 k1 v0 v1]] [[k0] [k1] [k2] [v0 v1] [v2]]]" {
		t.Error(got)
	}
	if got := o.Divided(c); len(got) != 1 || got[0] != 2 {
		t.Errorf("layers %v", got)
	}
	o.Span = 127
	if _, err := JointGroups(c, o); err == nil {
		t.Error("keys of 128 numbers in groups of 127")
	}
}

// TestRobust: what a layer costs goes with all tokens and not with the worst.
func TestRobust(t *testing.T) {
	for _, x := range []struct {
		kld  []float64
		want float64
	}{{nil, 0}, {[]float64{4, 4}, 4}, {[]float64{4, 0}, 1}, {[]float64{0, 0, 0, 16}, 1}, {[]float64{-1e-9, 4}, 1}} {
		if got := robust(x.kld); got != x.want {
			t.Errorf("%v: %g, want %g", x.kld, got, x.want)
		}
	}
}

// TestSides: keys and values are measured apart where groups hold one of them alone, and each group
// gets an equal part of its side's damage.
func TestSides(t *testing.T) {
	c := tiny.Open(t, "llama", tiny.Options{Seed: 1, Layers: 2, HeadDim: 32}).Config
	for parts, want := range map[Parts]int{PartsBoth: 1, PartsKeys: 1, PartsValues: 1, PartsApart: 2} {
		g, err := JointGroups(c, GroupOptions{Parts: parts, Bits: 4, Span: 64})
		if err != nil {
			t.Fatal(err)
		}
		sides := g.sides()
		shifted := *g // the upper layer of a pair has a group of keys less than the lower one
		shifted.Given, shifted.Parts = [][]bool{nil, {true}}, [][][]codec.Part{g.Parts[0], g.Parts[1][1:]}
		if n := len(shifted.sides()); n != 1 {
			t.Errorf("%s: %d sides of layers with other numbers of groups", parts, n)
		}
		if len(sides) != want {
			t.Errorf("%s: %d sides", parts, len(sides))
		}
		damage := make([]float64, len(g.Parts[0]))
		for i, s := range sides {
			s.share(g.Parts[0], damage, float64(i+1))
		}
		for i, group := range g.Parts[0] {
			kld, of := 1.0, len(damage)/want
			if parts == PartsApart && group[0].Value {
				kld = 2
			}
			if damage[i] != kld/float64(of) {
				t.Errorf("%s: group %v costs %g", parts, group, damage[i])
			}
		}
	}
}
