package refmodel

import (
	"context"
	"fmt"
	"slices"

	"github.com/phaseconv/phaseconv/kernels/linalg"
)

// A Context holds the keys and values of windows, layer by layer, as one run of a model computed
// them: 2 x n_kv_heads x head_dim numbers a token and layer. Probes look at it.
type Context struct {
	T, Windows int

	owners []int // by layer
	tokens [][]int32
	kv     Shared
}

// NewContext returns the context of windows, to be filled by a Run of them with its Hooks.
func (m *Model) NewContext(windows [][]int32) (*Context, error) {
	b, err := newBatch(windows)
	if err != nil {
		return nil, err
	}
	c := &Context{T: b.T, Windows: b.windows, tokens: windows, kv: Shared{}}
	for l := range m.Config.Layers {
		c.owners = append(c.owners, m.Config.Layers[l].Owner)
	}
	return c, nil
}

// Hooks record the keys and values of the first variant.
func (c *Context) Hooks() Hooks {
	return Hooks{Attention: func(a *Attention) error {
		if l := a.Layer; c.owners[l] == l {
			c.kv[l] = sharedKV{k: slices.Clone(a.K), v: slices.Clone(a.V)}
		}
		return nil
	}}
}

// patch returns the keys and values of layer l with those of the positions replaced.
func (c *Context) patch(l int, k, v []float32, positions []int) ([]float32, []float32) {
	replaced := func(all, own []float32) []float32 {
		all = slices.Clone(all)
		width := len(all) / (c.T * c.Windows)
		for r := range len(own) / width {
			at := r/len(positions)*c.T + positions[r%len(positions)]
			copy(all[at*width:(at+1)*width], own[r*width:])
		}
		return all
	}
	return replaced(c.kv[l].k, k), replaced(c.kv[l].v, v)
}

// Part returns the context of the first n windows. It shares memory.
func (c *Context) Part(n int) *Context {
	out := &Context{T: c.T, Windows: n, owners: c.owners, tokens: c.tokens[:n], kv: Shared{}}
	for l, x := range c.kv {
		out.kv[l] = sharedKV{k: x.k[:len(x.k)/c.Windows*n], v: x.v[:len(x.v)/c.Windows*n]}
	}
	return out
}

// Probes computes the hidden states of some positions of each window, in ascending order, once
// per variant: Hidden of each becomes [windows*positions, hidden]. At these positions everything
// is the variant's own; the keys and values of other positions are those of the Context, behind
// the variant's Cache. So what a cache does to hidden states is seen from the first position of a
// stretch on, and a position costs as much as a token does, whatever the length of the window.
// With all positions it is a whole run, bit by bit. Of a Variant only Cache and Hidden count.
// progress, if not nil, is told how many layers are done.
func (m *Model) Probes(ctx context.Context, c *Context, positions []int, variants []*Variant,
	progress func(done, total int)) error {
	if err := m.Config.Require("a probe", features); err != nil {
		return err
	}
	if len(positions) == 0 || len(variants) == 0 || positions[0] < 0 || positions[len(positions)-1] >= c.T {
		return fmt.Errorf("%d probes of %d positions in windows of %d tokens", len(variants), len(positions), c.T)
	}
	for i, p := range positions[1:] {
		if p <= positions[i] {
			return fmt.Errorf("probed positions %d and %d are not in ascending order", positions[i], p)
		}
	}
	for l, owner := range c.owners {
		if len(c.kv[owner].k) == 0 {
			return fmt.Errorf("the keys of layer %d were not recorded", l)
		}
	}
	b := &batch{T: len(positions), windows: c.Windows, span: c.T, positions: positions, context: c}
	for _, w := range c.tokens {
		for _, p := range positions {
			b.tokens = append(b.tokens, w[p])
		}
	}
	start := &Variant{}
	if err := m.embed(b, start); err != nil {
		return err
	}
	for _, x := range variants {
		x.Hidden = slices.Clone(start.Hidden)
	}
	if err := m.perLayerInputs(ctx, b); err != nil {
		return err
	}
	for l := range m.Config.Layers {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := m.layer(ctx, l, b, variants, Hooks{}); err != nil {
			return err
		}
		if progress != nil {
			progress(l+1, len(m.Config.Layers))
		}
	}
	return nil
}

// maxProbeRun bounds how many neighbouring positions meet the keys at a time.
const maxProbeRun = 64

// probe computes attention of query head g of the group at positions of the window, run by run.
func (h *attentionHead) probe(o []float32, positions []int, g int) {
	y, T := h.y, h.a.T
	d, width := y.HeadDim, y.Heads*y.HeadDim
	buffer := scores.Get().(*[]float32)
	defer scores.Put(buffer)
	ld := scoreStride(T)
	rows := min(maxProbeRun, queryRows(T))
	s := linalg.Grow(buffer, rows*ld)
	head := h.head*y.Group() + g
	for from := 0; from < len(positions); {
		to := from + 1
		for to < len(positions) && to-from < rows && positions[to] == positions[to-1]+1 {
			to++
		}
		at := (h.window*len(positions)+from)*width + head*d
		h.block(o[at:], h.a.Q[at:], s, ld, positions[from], positions[from]+to-from, head)
		from = to
	}
}
