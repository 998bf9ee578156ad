package llama

import (
	"context"
	"fmt"

	"github.com/phaseconv/phaseconv/kernels/rope"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// tapMemory bounds the activations that are kept until a layer has seen all windows, in bytes.
const tapMemory = 2 << 30

// Tap shows the activations of each layer once, with all windows. llama.cpp gives window by window, so
// as many layers as fit into memory are collected at a time, and the windows run again for the next
// ones. Layer is the number of a cache in Config. Rope is nil where the kind of rotation is one that
// package rope does not have.
func (m *Model) Tap(ctx context.Context, windows [][]int32, h refmodel.Hooks, p func(done, total int)) error {
	if len(windows) == 0 {
		return fmt.Errorf("no windows to run")
	}
	owners := m.Facts.Owners()
	tokens := len(windows) * len(windows[0])
	for from := 0; from < len(owners); {
		to, bytes := from, 0
		for to < len(owners) && (to == from || bytes < tapMemory) {
			a := owners[to]
			bytes += 4 * tokens * (2*a.Heads*a.HeadDim + 2*a.KVHeads*a.HeadDim + a.KVHeads*a.ValueDim + 2*m.Facts.Hidden)
			to++
		}
		tick := func(done, total int) {
			if p != nil {
				p(from*total+done*(to-from), len(owners)*total)
			}
		}
		if err := m.tapLayers(ctx, windows, h, from, to, tick); err != nil {
			return err
		}
		from = to
	}
	return nil
}

// tapLayers shows the layers of caches [from, to).
func (m *Model) tapLayers(ctx context.Context, windows [][]int32, h refmodel.Hooks, from, to int,
	tick func(done, total int)) error {
	owners, T := m.Facts.Owners(), len(windows[0])
	attn := h.Attention != nil
	job := Tap{Wants: Wants{QKV: attn, Pre: attn, In: attn, FFN: h.FFN != nil}, Patch: m.patched}
	number := map[int]int{}
	for i := from; i < to; i++ {
		number[owners[i].Layer] = i - from
		job.Layers = append(job.Layers, owners[i].Layer)
	}
	kept := make([]map[string][]float32, to-from)
	for i := range kept {
		kept[i] = map[string][]float32{}
	}
	err := m.Activations(ctx, windows, job, tick, func(a *Activation) error {
		i, ok := number[a.Layer]
		if !ok {
			return fmt.Errorf("activations of layer %d, which was not asked for", a.Layer)
		}
		for name, x := range a.Values {
			kept[i][name] = append(kept[i][name], x...)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for i, v := range kept {
		var table *rope.Table
		if params, _, ok := owners[from+i].Rope.Params(); ok {
			table = rope.NewTable(params, T)
		} else if owners[from+i].Rope == nil {
			table = rope.NewTable(rope.Params{}, T) // nothing turns
		}
		if attn {
			x := &refmodel.Attention{Layer: from + i, T: T, Windows: len(windows), X: v[TapIn], QPre: v[TapQPre],
				KPre: v[TapKPre], Q: v[TapQ], K: v[TapK], V: v[TapV], Rope: table}
			// Without RoPE nothing is in front of it.
			if x.QPre == nil {
				x.QPre = x.Q
			}
			if x.KPre == nil {
				x.KPre = x.K
			}
			if err := h.Attention(x); err != nil {
				return err
			}
		}
		if h.FFN != nil && v[TapFFN] != nil {
			if err := h.FFN(from+i, v[TapFFN]); err != nil {
				return err
			}
		}
		kept[i] = nil
	}
	return nil
}
