package transform

import (
	"fmt"
	"math"

	"github.com/phaseconv/phaseconv/kernels/fmath"
	"github.com/phaseconv/phaseconv/kernels/rope"
)

// PairRotation multiplies each rotary pair of a head, as a complex number, by
// Scale e^(i Angle), and the queries that meet it by e^(i Angle)/Scale, which
// changes no score: identity G3. RoPE commutes with it.
type PairRotation struct {
	Scale []float32 // [D/2]
	Angle []float64 // [D/2], radians; nil: none
}

// factor returns the complex number of pair p, or of the queries' side.
func (t *PairRotation) factor(p int, query bool) (re, im float64) {
	s := float64(t.Scale[p])
	if query {
		s = 1 / s
	}
	if t.Angle == nil {
		return s, 0
	}
	sin, cos := fmath.SinCos(t.Angle[p])
	return float64(s * cos), float64(s * sin)
}

func (t *PairRotation) clone() *PairRotation {
	return &PairRotation{Scale: append([]float32(nil), t.Scale...), Angle: append([]float64(nil), t.Angle...)}
}

// Check refuses what cannot be folded.
func (t *PairRotation) Check(d int) error {
	if len(t.Scale) != d/2 || t.Angle != nil && len(t.Angle) != d/2 {
		return fmt.Errorf("%d scales and %d angles for %d pairs", len(t.Scale), len(t.Angle), d/2)
	}
	for p, s := range t.Scale {
		if !(s > 0) || math.IsInf(float64(s), 0) {
			return fmt.Errorf("pair %d has scale %g", p, s)
		}
		if t.Angle != nil && (math.IsNaN(t.Angle[p]) || math.Abs(t.Angle[p]) > 1e6) {
			return fmt.Errorf("pair %d has angle %g", p, t.Angle[p])
		}
	}
	return nil
}

// ApplyKey multiplies the pairs of a key, in place.
func (t *PairRotation) ApplyKey(x []float32, pairs rope.Layout) { t.apply(x, pairs, false) }

// ApplyQuery multiplies the pairs of a query that meets such keys, in place.
func (t *PairRotation) ApplyQuery(x []float32, pairs rope.Layout) { t.apply(x, pairs, true) }

func (t *PairRotation) apply(x []float32, pairs rope.Layout, query bool) {
	for p := range t.Scale {
		i, j := pairs.Dims(p, len(x))
		re, im := t.factor(p, query)
		a, b := float64(x[i]), float64(x[j])
		x[i] = float32(float64(re*a) - float64(im*b))
		x[j] = float32(float64(im*a) + float64(re*b))
	}
}

// Undo takes back what ApplyKey did.
func (t *PairRotation) Undo(x []float32, pairs rope.Layout) {
	for p := range t.Scale {
		i, j := pairs.Dims(p, len(x))
		re, im := t.factor(p, false)
		a, b := over(float64(x[i]), float64(x[j]), re, -im)
		x[i], x[j] = float32(a), float32(b)
	}
}

// over returns the row (x, y) times the inverse of the matrix of re + i im.
func over(x, y, re, im float64) (float64, float64) {
	n := float64(re*re) + float64(im*im)
	return (float64(x*re) - float64(y*im)) / n, (float64(x*im) + float64(y*re)) / n
}

// mix returns the turn as a mix of all numbers.
func (t *PairRotation) mix(d int, pairs rope.Layout) *KeyTransform {
	m := &KeyTransform{Key: make([]float64, d*d), Query: make([]float64, d*d)}
	for p := range t.Scale {
		i, j := pairs.Dims(p, d)
		for _, x := range []struct {
			m     []float64
			query bool
		}{{m.Key, false}, {m.Query, true}} {
			re, im := t.factor(p, x.query)
			x.m[i*d+i], x.m[i*d+j], x.m[j*d+i], x.m[j*d+j] = re, -im, im, re
		}
	}
	return m
}
