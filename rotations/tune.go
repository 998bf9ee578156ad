package rotations

import (
	"fmt"
	"math"
	"math/bits"
	"slices"

	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/kernels/fmath"
	"github.com/phaseconv/phaseconv/kernels/gemm"
	"github.com/phaseconv/phaseconv/kernels/rope"
	"github.com/phaseconv/phaseconv/rotations/internal/linalg"
)

// A CacheRow is what a runtime does to a key before it stores it.
type CacheRow struct {
	Type gguf.Type
	// Hadamard is the size of the orthonormal Hadamard matrix that turns each
	// stretch of so many numbers of a head first; 0 for none.
	Hadamard int
	// Pairs is the order of a head's numbers in the runtime, which decides what stands
	// in a stretch and in a block: that of the GGUF file, whatever the checkpoint's is.
	Pairs rope.Layout
}

// Enter brings heads of d numbers in layout from, in place, to what is stored: in
// the runtime's order, turned.
func (c CacheRow) Enter(x []float32, d int, from rope.Layout) {
	reorder(x, d, from, c.Pairs)
	Hadamard(x, c.Hadamard)
}

// Leave is the inverse of Enter. As Enter is orthogonal, it is also its transpose.
func (c CacheRow) Leave(x []float32, d int, to rope.Layout) {
	Hadamard(x, c.Hadamard)
	reorder(x, d, c.Pairs, to)
}

// reorder moves the numbers of heads from one layout to another.
func reorder(x []float32, d int, from, to rope.Layout) {
	if from == to {
		return
	}
	old := make([]float32, d)
	for at := 0; at+d <= len(x); at += d {
		copy(old, x[at:at+d])
		for i, v := range old {
			x[at+from.Index(to, i, d)] = v
		}
	}
}

// check refuses rows that no cache has.
func (c CacheRow) check(d int) error {
	if block, _ := c.Type.Block(); !gguf.CanQuantize(c.Type) || d%max(block, 1) != 0 {
		return fmt.Errorf("no cache rows of type %v for head_dim %d", c.Type, d)
	}
	if c.Hadamard < 0 || c.Hadamard > 0 && (bits.OnesCount(uint(c.Hadamard)) != 1 || d%c.Hadamard != 0) {
		return fmt.Errorf("a Hadamard matrix of size %d does not divide head_dim %d", c.Hadamard, d)
	}
	return nil
}

// matrix returns the d x d transform before storing, of heads in layout from: Enter
// as an orthogonal matrix.
func (c CacheRow) matrix(d int, from rope.Layout) []float64 {
	m := make([]float64, d*d)
	n := max(c.Hadamard, 1)
	f := 1 / math.Sqrt(float64(n))
	for k := range d { // a number, and where the runtime has it
		j := from.Index(c.Pairs, k, d)
		for i := j - j%n; i < j-j%n+n; i++ {
			m[i*d+k] = f
			if bits.OnesCount(uint(i%n&(j%n)))%2 == 1 {
				m[i*d+k] = -f
			}
		}
	}
	return m
}

// errors stores numbers and returns how far what comes back is off.
func (c CacheRow) errors(x []float32) ([]float32, error) {
	size, err := gguf.RowBytes(c.Type, len(x))
	if err != nil {
		return nil, err
	}
	buf, e := make([]byte, size), make([]float32, len(x))
	if err := gguf.QuantizeCacheRow(c.Type, buf, x); err != nil {
		return nil, err
	}
	if err := gguf.DequantizeRow(c.Type, e, buf); err != nil {
		return nil, err
	}
	for i, v := range x {
		e[i] -= v
	}
	return e, nil
}

// Hadamard multiplies every run of n numbers of x by the orthonormal Hadamard
// matrix of size n, a power of two; n = 0 does nothing. The order of operations
// is that of ggml's fast transform, so that the bits are too: scaled first, then
// neighbours, then ever larger distances.
func Hadamard(x []float32, n int) {
	if n == 0 {
		return
	}
	scale := 1 / float32(math.Sqrt(float64(n)))
	for i, v := range x {
		x[i] = v * scale
	}
	for step := 1; step < n; step *= 2 {
		for at := 0; at+2*step <= len(x); at += 2 * step {
			lo, hi := x[at:at+step:at+step], x[at+step:at+2*step:at+2*step]
			for i, u := range lo {
				v := hi[i]
				lo[i], hi[i] = u+v, u-v
			}
		}
	}
}

// A KeySample is keys of one KV head with what an error in them costs.
type KeySample struct {
	D     int
	Pairs rope.Layout
	Keys  []float32 // [n, D], after RoPE
	// Weights says how much an error of each key counts, [n].
	Weights []float64
	// Metric is the mean of q q^T over the queries that meet the keys, [D, D].
	Metric []float64
}

// Silent says whether nothing in the sample can err or nobody would notice: keys, weights
// or the metric are all zero.
func (s *KeySample) Silent() bool {
	some := func(v float64) bool { return v != 0 }
	return !slices.ContainsFunc(s.Keys, func(v float32) bool { return v != 0 }) ||
		!slices.ContainsFunc(s.Weights, some) || !slices.ContainsFunc(s.Metric, some)
}

// total returns the sum of the weights, which must be positive.
func (s *KeySample) total() (sum float64, err error) {
	for _, w := range s.Weights {
		sum += w
	}
	if !(sum > 0) {
		return 0, fmt.Errorf("a sample of %d keys that no query looks at", len(s.Weights))
	}
	return sum, nil
}

// Noise returns the cache's error relative to the energy of the turned keys,
// E|e|^2 / E|k|^2 with the sample's weights: SlowMeanOptions.Noise as it is,
// rather than as a type promises it.
func (s *KeySample) Noise(turn *PairTurn, cache CacheRow) (float64, error) {
	if err := turn.Check(s.D); err != nil {
		return 0, err
	}
	if err := cache.check(s.D); err != nil {
		return 0, err
	}
	n := len(s.Weights)
	if n == 0 || len(s.Keys) != n*s.D {
		return 0, fmt.Errorf("a sample of %d keys and %d values does not fit head_dim %d", n, len(s.Keys), s.D)
	}
	if _, err := s.total(); err != nil {
		return 0, err
	}
	y, e, err := s.store(turn, cache)
	if err != nil {
		return 0, err
	}
	var noise, energy float64
	for i, w := range s.Weights {
		noise += float64(w * fmath.SumSq(e[i*s.D:(i+1)*s.D]))
		energy += float64(w * fmath.SumSq(y[i*s.D:(i+1)*s.D]))
	}
	if energy == 0 {
		return 0, fmt.Errorf("a sample of %d keys without energy", n)
	}
	return noise / energy, nil
}

// store returns the sample's keys as a cache would store them, and their errors.
func (s *KeySample) store(turn *PairTurn, cache CacheRow) (y, e []float32, err error) {
	y = append([]float32(nil), s.Keys...)
	for i := 0; i < len(y); i += s.D {
		turn.Apply(y[i:i+s.D], s.Pairs, false)
	}
	cache.Enter(y, s.D, s.Pairs)
	e, err = cache.errors(y)
	return y, e, err
}

// loss returns the mean square error of scores that a cache causes.
func (s *KeySample) loss(turn *PairTurn, cache CacheRow) (float64, error) {
	total, err := s.total()
	if err != nil {
		return 0, err
	}
	_, e, err := s.store(turn, cache)
	if err != nil {
		return 0, err
	}
	d := s.D
	cache.Leave(e, d, s.Pairs)
	metric, image := make([]float32, d*d), make([]float32, len(e))
	for i, v := range s.Metric {
		metric[i] = float32(v)
	}
	for i := 0; i < len(e); i += d {
		turn.Undo(e[i:i+d], s.Pairs)
	}
	var w gemm.Weights
	w.PackRows(d, d, metric, d, 1)
	gemm.Mul(image, d, e, d, len(s.Weights), &w, 1)
	var sum float64
	for r, weight := range s.Weights {
		for i := r * d; i < (r+1)*d; i++ {
			sum += float64(weight * float64(float64(e[i])*float64(image[i])))
		}
	}
	return sum / total, nil
}

// PairTurn multiplies each rotary pair of a head, as a complex number, by
// Scale e^(i Angle), and the queries that meet it by e^(i Angle)/Scale, which
// changes no score: identity G3. RoPE commutes with it.
type PairTurn struct {
	Scale []float32 // [D/2]
	Angle []float64 // [D/2], radians; nil: none
}

// factor returns the complex number of pair p, or of the queries' side.
func (t *PairTurn) factor(p int, query bool) (re, im float64) {
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

func (t *PairTurn) clone() *PairTurn {
	return &PairTurn{Scale: append([]float32(nil), t.Scale...), Angle: append([]float64(nil), t.Angle...)}
}

// Check refuses what cannot be folded.
func (t *PairTurn) Check(d int) error {
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

// Apply multiplies the pairs of a head, in place; query takes the factor of queries.
func (t *PairTurn) Apply(x []float32, pairs rope.Layout, query bool) {
	for p := range t.Scale {
		i, j := pairs.Dims(p, len(x))
		re, im := t.factor(p, query)
		a, b := float64(x[i]), float64(x[j])
		x[i] = float32(float64(re*a) - float64(im*b))
		x[j] = float32(float64(im*a) + float64(re*b))
	}
}

// Undo takes back what Apply did to a key.
func (t *PairTurn) Undo(x []float32, pairs rope.Layout) {
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
func (t *PairTurn) mix(d int, pairs rope.Layout) *PairMix {
	m := &PairMix{Key: make([]float64, d*d), Query: make([]float64, d*d)}
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

// Tuned is the result of TuneBalance.
type Tuned struct {
	Turn *PairTurn
	// Before and After are the mean square errors of scores that the type makes on the
	// sample, with the start and with the result.
	Before, After float64
}

// TuneBalance improves a balance for a cache type with blocks: by descent on what
// ShapeMix minimises, over one scale and, with angles, one angle per pair. RoPE
// commutes with those, so nothing drifts. Where the closed form takes every error for
// noise alike in all directions, this sees the blocks, the Hadamard transform and the
// largest number of each block. All samples share the result: heads whose scales must be
// one. It is never worse than the start for the type itself on the sample.
func TuneBalance(samples []*KeySample, start *PairTurn, cache CacheRow, angles bool) (*Tuned, error) {
	if len(samples) == 0 {
		return nil, fmt.Errorf("no keys to tune a balance with")
	}
	d := samples[0].D
	if err := start.Check(d); err != nil {
		return nil, err
	}
	if err := cache.check(d); err != nil {
		return nil, err
	}
	t := &turnSearch{d: d, pairs: samples[0].Pairs, angles: angles}
	for _, s := range samples {
		if s.D != d {
			return nil, fmt.Errorf("samples of head_dim %d and %d", d, s.D)
		}
		p, err := newShape(start.mix(d, s.Pairs), s.still(), ShapeOptions{Cache: cache, Kappa: 1})
		if err != nil {
			return nil, err
		}
		t.heads = append(t.heads, p)
	}
	out := &Tuned{Turn: start}
	x, _, _ := linalg.Minimize(make([]float64, t.size()), t.curvature(), t.value, shapeSteps, shapeGain)
	turn := start.clone()
	if angles && turn.Angle == nil {
		turn.Angle = make([]float64, d/2)
	}
	for p := range turn.Scale {
		turn.Scale[p] = float32(float64(turn.Scale[p]) * fmath.Exp(x[p]))
		if angles {
			turn.Angle[p] += x[d/2+p]
		}
	}
	if err := turn.Check(d); err != nil {
		return nil, fmt.Errorf("the search for a balance ended badly: %w", err)
	}
	for _, s := range samples {
		before, err := s.loss(start, cache)
		if err != nil {
			return nil, err
		}
		after, err := s.loss(turn, cache)
		if err != nil {
			return nil, err
		}
		out.Before, out.After = out.Before+before, out.After+after
	}
	if out.After < out.Before {
		out.Turn = turn
	} else {
		out.After = out.Before
	}
	return out, nil
}

// turnSearch is the objective of TuneBalance over logarithms of scales, then angles,
// each relative to the start.
type turnSearch struct {
	d      int
	pairs  rope.Layout
	angles bool
	heads  []*shape
}

func (t *turnSearch) size() int {
	if t.angles {
		return t.d
	}
	return t.d / 2
}

// curvature adds up that of the numbers of the matrix that a scale or an angle moves.
func (t *turnSearch) curvature() []float64 {
	out := make([]float64, t.size())
	for _, p := range t.heads {
		for k := range t.d / 2 {
			i, j := t.pairs.Dims(k, t.d)
			out[k] += p.curvature[i*t.d+i] + p.curvature[j*t.d+j]
			if t.angles {
				out[t.d/2+k] += p.curvature[i*t.d+j] + p.curvature[j*t.d+i]
			}
		}
	}
	return out
}

// value returns the objective and its gradient.
func (t *turnSearch) value(x []float64) (float64, []float64) {
	d := t.d
	turn := &PairTurn{Scale: make([]float32, d/2)}
	c, inverse := make([]float64, d*d), make([]float64, d*d)
	for p := range turn.Scale {
		i, j := t.pairs.Dims(p, d)
		re, im := fmath.Exp(x[p]), 0.0
		if t.angles {
			sin, cos := fmath.SinCos(x[d/2+p])
			re, im = float64(re*cos), float64(re*sin)
		}
		c[i*d+i], c[i*d+j], c[j*d+i], c[j*d+j] = re, -im, im, re
		n := float64(re*re) + float64(im*im)
		re, im = re/n, -im/n
		inverse[i*d+i], inverse[i*d+j], inverse[j*d+i], inverse[j*d+j] = re, -im, im, re
	}
	var f float64
	out := make([]float64, len(x))
	for _, h := range t.heads {
		v, g := h.at(c, inverse)
		f += v
		for p := range d / 2 {
			i, j := t.pairs.Dims(p, d)
			re, im := c[i*d+i], c[j*d+i]
			// A scale moves the pair's matrix along itself, an angle along itself times i.
			out[p] += float64(re*(g[i*d+i]+g[j*d+j])) + float64(im*(g[j*d+i]-g[i*d+j]))
			if t.angles {
				out[d/2+p] += float64(re*(g[j*d+i]-g[i*d+j])) - float64(im*(g[i*d+i]+g[j*d+j]))
			}
		}
	}
	return f, out
}
