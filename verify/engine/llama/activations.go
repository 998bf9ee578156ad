package llama

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/phaseconv/phaseconv/kernels/rope"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// tapMemory bounds the activations that are kept until a layer has seen all windows, in bytes.
const tapMemory = 2 << 30

// A tapped layer is one that Tap shows.
type tappedLayer struct {
	*Attention
	number int          // in Config
	owner  *tappedLayer // whose keys and values it reads, itself mostly
	last   int          // the place of the last layer that reads its own
	kept   map[string][]float32
}

// known says that Config is one of the table of families, with a layer for each block.
func (m *Model) known() bool { return m.Source != nil && m.Source.Graph == nil }

// tappedLayers lists the layers that own caches and, where Config has them, those that read these too, in
// the order of Config.
func (m *Model) tappedLayers() []*tappedLayer {
	var out []*tappedLayer
	for i, a := range m.Facts.Owners() {
		x := &tappedLayer{Attention: a, number: i}
		if m.known() {
			x.number = a.Layer
		}
		x.owner, out = x, append(out, x)
		for j := range m.Facts.Attention {
			if r := &m.Facts.Attention[j]; m.known() && r.Owner == a.Owner && r.Layer != a.Layer {
				out = append(out, &tappedLayer{Attention: r, number: r.Layer, owner: x})
			}
		}
	}
	slices.SortStableFunc(out, func(a, b *tappedLayer) int { return cmp.Compare(a.number, b.number) })
	for i, y := range out {
		y.owner.last = i
	}
	return out
}

// Tap shows the activations of each layer once, with all windows. llama.cpp gives window by window, so
// as many layers as fit into memory are collected at a time, and the windows run again for the next
// ones. Rope is nil where the kind of rotation is one that package rope does not have, and X always:
// what it is for (FFN weights, ladder) takes the own pass, and it would be a quarter of all that is sent.
func (m *Model) Tap(ctx context.Context, windows [][]int32, h refmodel.Hooks, p func(done, total int)) error {
	if len(windows) == 0 {
		return fmt.Errorf("no windows to run")
	}
	layers := m.tappedLayers()
	tokens := len(windows) * len(windows[0])
	for from := 0; from < len(layers); {
		to, bytes := from, 0
		for to < len(layers) && (to == from || bytes < tapMemory) {
			a := layers[to]
			bytes += 4 * tokens * (2*a.Heads*a.HeadDim + 2*a.KVHeads*a.HeadDim + a.KVHeads*a.ValueDim + m.Facts.Hidden)
			to++
		}
		tick := func(done, total int) {
			if p != nil {
				p(from*total+done*(to-from), len(layers)*total)
			}
		}
		if err := m.tapLayers(ctx, windows, h, layers, from, to, tick); err != nil {
			return err
		}
		from = to
	}
	return nil
}

// tapLayers shows layers [from, to). Keys and values stay for layers behind that read them.
func (m *Model) tapLayers(ctx context.Context, windows [][]int32, h refmodel.Hooks, layers []*tappedLayer, from, to int,
	tick func(done, total int)) error {
	attn := h.Attention != nil
	job := Tap{Wants: Wants{QKV: attn, Pre: attn, FFN: h.FFN != nil}, Patch: m.patched}
	byNumber := map[int]*tappedLayer{}
	for _, y := range layers[from:to] {
		y.kept, byNumber[y.Layer] = map[string][]float32{}, y
		job.Layers = append(job.Layers, y.Layer)
	}
	err := m.Activations(ctx, windows, job, tick, func(a *Activation) error {
		y, ok := byNumber[a.Layer]
		if !ok {
			return fmt.Errorf("activations of layer %d, which was not asked for", a.Layer)
		}
		for name, x := range a.Values {
			y.kept[name] = append(y.kept[name], x...)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for i := from; i < to; i++ {
		y := layers[i]
		if attn {
			if err := h.Attention(y.attention(windows)); err != nil {
				return err
			}
		}
		if h.FFN != nil && y.kept[TapFFN] != nil {
			if err := h.FFN(y.number, y.kept[TapFFN]); err != nil {
				return err
			}
		}
		for _, x := range []*tappedLayer{y, y.owner} {
			if x.last <= i { // nobody reads its keys any more
				x.kept = nil
			}
		}
	}
	return nil
}

// attention puts what was kept of a layer, and of the owner of its cache, into the form of hooks.
func (y *tappedLayer) attention(windows [][]int32) *refmodel.Attention {
	T, v, k := len(windows[0]), y.kept, y.owner.kept
	a := &refmodel.Attention{Layer: y.number, T: T, Windows: len(windows), QPre: v[TapQPre],
		KPre: k[TapKPre], Q: v[TapQ], K: k[TapK], V: k[TapV]}
	if params, _, ok := y.Rope.Params(); ok {
		a.Rope = rope.NewTable(params, T)
	} else if y.Rope == nil {
		a.Rope = rope.NewTable(rope.Params{}, T) // nothing turns
	}
	// Without RoPE nothing is in front of it.
	if a.QPre == nil {
		a.QPre = a.Q
	}
	if a.KPre == nil {
		a.KPre = a.K
	}
	return a
}
