package ffn

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/phaseconv/phaseconv/format/gguf"
)

// random makes a group whose inputs and columns differ in size, so that there is something to gain.
func random(n, rows int, typ gguf.Type) *group {
	r := rand.New(rand.NewPCG(1, 2))
	g := &group{n: n, parts: []part{{typ: typ}}}
	size := make([]float64, n)
	for j := range n {
		g.energy = append(g.energy, math.Exp(2*r.NormFloat64()))
		size[j] = math.Exp(r.NormFloat64())
	}
	for i := range 2 * rows {
		for j := range n {
			v := float32(size[j] * r.NormFloat64())
			if i%2 == 0 {
				g.parts[0].fitted = append(g.parts[0].fitted, v)
			} else {
				g.parts[0].held = append(g.parts[0].held, v)
			}
		}
	}
	return g
}

// TestTune: scales that were searched lose less than the closed form, that less than none, also on rows
// that nothing was fitted to; no block is worse than without; threads change nothing.
func TestTune(t *testing.T) {
	g := random(64, 64, gguf.TypeQ4_0)
	order := g.identity().order
	none, closed, tuned := g.total(g.identity(), 1), g.total(g.balanced(order, 1), 1), g.tune(order, 2)
	if !slices.Equal(tuned.scale, g.tune(order, 1).scale) {
		t.Error("threads change the scales")
	}
	got := g.total(tuned, 1)
	t.Logf("none %.4g, closed form %.4g, tuned %.4g", none, closed, got)
	if !(closed < none && got < closed) {
		t.Errorf("none %g, closed form %g, tuned %g", none, closed, got)
	}
	for at := 0; at < g.n; at += g.block() {
		if a, b := g.loss(tuned, at, at+g.block(), true), g.loss(g.identity(), at, at+g.block(), true); a > b {
			t.Errorf("block %d loses %g, %g without scales", at, a, b)
		}
	}
}

// TestOrders: every order has each neuron once.
func TestOrders(t *testing.T) {
	g := random(128, 4, gguf.TypeQ4_0)
	for i, o := range g.orders() {
		sorted := slices.Sorted(slices.Values(o))
		if !slices.Equal(sorted, g.identity().order) {
			t.Errorf("order %d is none: %v", i, o)
		}
	}
	// Dealt: the largest four go to four blocks.
	list := g.identity().order
	dealt := g.dealt(list)
	for b := range 4 {
		if dealt[b*32] != b || dealt[b*32+1] != 7-b {
			t.Errorf("block %d begins with %v", b, dealt[b*32:b*32+2])
		}
	}
}
