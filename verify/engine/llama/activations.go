package llama

import (
	"context"
	"fmt"

	"github.com/phaseconv/phaseconv/kernels/rope"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// Tap shows activations, window by window, in each layer by layer: Layer is the number of a cache
// in Config. Rope is nil where the kind of rotation is one that package rope does not have.
func (m *Model) Tap(ctx context.Context, windows [][]int32, h refmodel.Hooks, p func(done, total int)) error {
	if len(windows) == 0 {
		return fmt.Errorf("no windows to run")
	}
	T := len(windows[0])
	number, tables := map[int]int{}, map[int]*rope.Table{}
	for i, a := range m.Facts.Owners() {
		number[a.Layer] = i
		if params, _, ok := a.Rope.Params(); ok {
			tables[i] = rope.NewTable(params, T)
		}
	}
	wants := Wants{QKV: h.Attention != nil, Pre: h.Attention != nil, In: h.Attention != nil, FFN: h.FFN != nil}
	return m.Activations(ctx, windows, Tap{Wants: wants}, p, func(a *Activation) error {
		l, ok := number[a.Layer]
		if !ok {
			return fmt.Errorf("activations of layer %d, which has no cache", a.Layer)
		}
		v := a.Values
		if h.Attention != nil {
			x := &refmodel.Attention{Layer: l, T: T, Windows: 1, X: v[TapIn], QPre: v[TapQPre], KPre: v[TapKPre], Q: v[TapQ],
				K: v[TapK], V: v[TapV], Rope: tables[l]}
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
			return h.FFN(l, v[TapFFN])
		}
		return nil
	})
}
