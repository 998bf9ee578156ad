package sidecar

import (
	"context"
	"fmt"
	"math"
	"slices"

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
	out.Keys = append(out.Keys, compareKeys(a.keys(), b.keys())...)
	if a.HeadDim == b.HeadDim {
		moved, err := b.To(ctx, a.Pairs)
		if err != nil {
			return nil, err
		}
		for l := range min(len(a.Layers), len(b.Layers)) {
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			for i := range min(len(a.Layers[l].Groups), len(b.Layers[l].Groups)) {
				if d := compareGroups(a.Layers[l].Groups[i], moved.Layers[l].Groups[i]); d != nil {
					d.Layer, d.Group = l, i
					out.Groups = append(out.Groups, *d)
				}
			}
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
	out.Equal = len(out.Keys) == 0 && len(out.Heads) == 0 && len(out.Groups) == 0 && len(out.Fold) == 0
	return out, nil
}

// compareKeys lists the keys whose values differ, and those that one of two versions lacks.
func compareKeys(a, b []keyValue) (out []spec.DiffKey) {
	find := func(all []keyValue, key string) string {
		for _, x := range all {
			if x.key == key {
				return fmt.Sprint(x.value)
			}
		}
		return "-"
	}
	for _, x := range a {
		if va, vb := fmt.Sprint(x.value), find(b, x.key); va != vb {
			out = append(out, spec.DiffKey{Key: x.key, A: va, B: vb})
		}
	}
	for _, x := range b {
		if find(a, x.key) == "-" {
			out = append(out, spec.DiffKey{Key: x.key, A: "-", B: fmt.Sprint(x.value)})
		}
	}
	return out
}

// compareGroups returns nil for groups that are the same to the last bit, or of other parts.
func compareGroups(a, b *codec.Group) *spec.DiffGroup {
	if !slices.Equal(a.Parts, b.Parts) {
		return nil
	}
	h := compareCodes(a.Code, b.Code)
	if h == nil {
		if slices.Equal(a.Gains, b.Gains) && slices.Equal(a.Below, b.Below) {
			return nil
		}
		h = &spec.DiffHead{SignsA: a.B(), SignsB: b.B(), GainA: float64(a.Code.Gain), GainB: float64(b.Code.Gain),
			Mean: new(float64), Decode: new(float64)}
		if a.Code.Encode != nil {
			h.Encode = new(float64)
		}
	}
	d := &spec.DiffGroup{SignsA: h.SignsA, SignsB: h.SignsB, GainA: h.GainA, GainB: h.GainB,
		PartGains: distance(a.Gains, b.Gains), Mean: h.Mean, Decode: h.Decode, Encode: h.Encode}
	for _, p := range a.Parts {
		d.Parts = append(d.Parts, p.String())
	}
	return d
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
