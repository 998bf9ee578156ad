package sidecar

import (
	"context"
	"fmt"
	"math"

	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/spec"
)

// distance is |x - y| / max(|x|, |y|) with Euclidean norms, 0 for equal vectors;
// nil where lengths differ.
func distance(x, y []float32) *float64 {
	if len(x) != len(y) {
		return nil
	}
	var d, a, b float64
	for i, v := range x {
		u, w := float64(v), float64(y[i])
		d += (u - w) * (u - w)
		a += u * u
		b += w * w
	}
	var r float64
	if d > 0 {
		r = math.Sqrt(d / max(a, b))
	}
	return &r
}

// Compare tells how two sidecars differ: their keys, and head by head how far
// apart means and matrices are. The second is first brought into the pair layout
// of the first, so that the same codes of two containers compare as equal; the
// layouts themselves are among the keys. Folds may be nil. When ctx ends, it returns its cause.
func Compare(ctx context.Context, a, b *Sidecar, fa, fb *Fold) (*spec.DiffJSON, error) {
	out := &spec.DiffJSON{Keys: []spec.DiffKey{}, Heads: []spec.DiffHead{}, Fold: []spec.DiffTensor{}}
	kb := b.keys()
	for i, x := range a.keys() {
		if x.value != kb[i].value {
			out.Keys = append(out.Keys, spec.DiffKey{Key: x.key, A: fmt.Sprint(x.value), B: fmt.Sprint(kb[i].value)})
		}
	}
	if a.HeadDim == b.HeadDim {
		moved, err := b.To(ctx, a.Pairs)
		if err != nil {
			return nil, err
		}
		for l := range min(len(a.Codes), len(b.Codes)) {
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			for h := range min(len(a.Codes[l]), len(b.Codes[l])) {
				if d := compareCodes(a.Codes[l][h], moved.Codes[l][h]); d != nil {
					d.Layer, d.Head = l, h
					out.Heads = append(out.Heads, *d)
				}
			}
		}
	}
	if fa != nil && fb != nil {
		out.Fold = append(out.Fold, fa.compare(fb)...)
	}
	out.Equal = len(out.Keys) == 0 && len(out.Heads) == 0 && len(out.Fold) == 0
	return out, nil
}

// compareCodes returns nil for codes that are the same to the last bit.
func compareCodes(a, b *codec.Code) *spec.DiffHead {
	d := &spec.DiffHead{SignsA: a.B, SignsB: b.B, GainA: float64(a.Gain), GainB: float64(b.Gain)}
	same := a.B == b.B && a.Gain == b.Gain && (a.Encode == nil) == (b.Encode == nil)
	for _, p := range [][2][]float32{{a.Mean, b.Mean}, {a.Decode, b.Decode}, {a.Encode, b.Encode}} {
		same = same && len(p[0]) == len(p[1])
		for i := 0; same && i < len(p[0]); i++ {
			same = math.Float32bits(p[0][i]) == math.Float32bits(p[1][i])
		}
	}
	if same {
		return nil
	}
	d.Mean, d.Decode = distance(a.Mean, b.Mean), distance(a.Decode, b.Decode)
	if a.Encode != nil || b.Encode != nil {
		d.Encode = distance(a.Encode, b.Encode)
	}
	return d
}
