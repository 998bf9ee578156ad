package llama

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/phaseconv/phaseconv/kernels/rope"
	"github.com/phaseconv/phaseconv/verify/engine"
	"github.com/phaseconv/phaseconv/verify/engine/wire"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// tapMemory bounds the activations that are kept until a layer has seen all windows, in bytes.
const tapMemory = 2 << 30

// A TappedLayer is one whose activations are shown.
type TappedLayer struct {
	*Attention
	Number int          // in the model's configuration
	owner  *TappedLayer // whose keys and values it reads, itself mostly
	last   int          // the place of the last layer that reads its own
	kept   map[string][]float32
}

// known says that Config is one of the table of families, with a layer for each block.
func (m *Model) known() bool { return m.Source != nil && m.Source.Graph == nil }

// Tapped lists the layers that own caches and, where the configuration is one of the table of families, those that
// read these too, in its order.
func (f *Facts) Tapped(known bool) []*TappedLayer {
	var out []*TappedLayer
	for i, a := range f.Owners() {
		x := &TappedLayer{Attention: a, Number: i}
		if known {
			x.Number = a.Layer
		}
		x.owner, out = x, append(out, x)
		for j := range f.Attention {
			if r := &f.Attention[j]; known && r.Owner == a.Owner && r.Layer != a.Layer {
				out = append(out, &TappedLayer{Attention: r, Number: r.Layer, owner: x})
			}
		}
	}
	slices.SortStableFunc(out, func(a, b *TappedLayer) int { return cmp.Compare(a.Number, b.Number) })
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
	layers := m.Facts.Tapped(m.known())
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
func (m *Model) tapLayers(ctx context.Context, windows [][]int32, h refmodel.Hooks, layers []*TappedLayer, from, to int,
	tick func(done, total int)) error {
	attn := h.Attention != nil
	job := Tap{Wants: Wants{QKV: attn, NoValues: h.NoValues, Pre: attn && !h.NoPre, FFN: h.FFN != nil}, Patch: m.patched}
	byNumber := map[int]*TappedLayer{}
	for _, y := range layers[from:to] {
		byNumber[y.Layer] = y
		job.Layers = append(job.Layers, y.Layer)
	}
	err := m.Activations(ctx, windows, job, tick, func(a *Activation) error {
		y, ok := byNumber[a.Layer]
		if !ok {
			return fmt.Errorf("activations of layer %d, which was not asked for", a.Layer)
		}
		for name, x := range a.Values {
			y.Keep(name, x)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for i := from; i < to; i++ {
		y := layers[i]
		if attn {
			if err := h.Attention(y.Attend(len(windows[0]), len(windows))); err != nil {
				return err
			}
		}
		if h.FFN != nil && y.kept[TapFFN] != nil {
			if err := h.FFN(y.Number, y.kept[TapFFN]); err != nil {
				return err
			}
		}
		y.Forget(i)
	}
	return nil
}

// Keep adds activations of the layer, by the names of taps, window by window.
func (y *TappedLayer) Keep(name string, x []float32) {
	if y.kept == nil {
		y.kept = map[string][]float32{}
	}
	y.kept[name] = append(y.kept[name], x...)
}

// Forget drops what was kept for layer number i of the list: its own, unless others read its keys, and those that it
// was the last to read.
func (y *TappedLayer) Forget(i int) {
	for _, x := range []*TappedLayer{y, y.owner} {
		if x.last <= i {
			x.kept = nil
		}
	}
}

// Table is the layer's rotary table for T positions, nil for kinds that package rope does not have.
func (a *Attention) Table(T int) *rope.Table {
	if params, _, ok := a.Rope.Params(); ok {
		return rope.NewTable(params, T)
	} else if a.Rope == nil {
		return rope.NewTable(rope.Params{}, T) // nothing turns
	}
	return nil
}

// Attend puts what was kept of a layer, and of the owner of its cache, into the form of hooks.
func (y *TappedLayer) Attend(T, windows int) *refmodel.Attention {
	v, k := y.kept, y.owner.kept
	a := &refmodel.Attention{Layer: y.Number, T: T, Windows: windows, QPre: v[TapQPre],
		KPre: k[TapKPre], Q: v[TapQ], K: k[TapK], V: k[TapV], Rope: y.Table(T)}
	// Without RoPE nothing is in front of it.
	if y.Rope == nil {
		a.QPre, a.KPre = a.Q, a.K
	}
	return a
}

// KeySums implements engine.Summer: the worker sums up.
func (m *Model) KeySums(ctx context.Context, windows [][]int32, o engine.KeySums, p func(done, total int)) ([]byte,
	[]*rope.Table, error) {
	if len(windows) == 0 {
		return nil, nil, fmt.Errorf("no windows to run")
	}
	job := Sums{Model: m.n, Ctx: len(windows[0]), Patch: m.patched, KeySums: o}
	blobs, err := m.w.call(ctx, KindSums, job, nil, p, nil, wire.Int32s(slices.Concat(windows...)))
	if err != nil {
		return nil, nil, err
	}
	if len(blobs) != 1 {
		return nil, nil, fmt.Errorf("the worker gave no sums")
	}
	layers := m.Facts.Tapped(m.known())
	n := len(layers)
	if m.known() {
		n = len(m.Source.Config.Layers)
	}
	ropes := make([]*rope.Table, n)
	for _, y := range layers {
		ropes[y.Number] = y.Table(job.Ctx)
	}
	return blobs[0], ropes, nil
}
