package rotations

import (
	"fmt"
	"math"
	"math/bits"
	"math/rand/v2"

	"phaseconv/format/gguf"
	"phaseconv/kernels/fmath"
	"phaseconv/kernels/gemm"
	"phaseconv/kernels/rope"
	"phaseconv/rotations/internal/linalg"
)

// A CacheRow is what a runtime does to a key before it stores it.
type CacheRow struct {
	Type gguf.Type
	// Hadamard is the size of the orthonormal Hadamard matrix that turns each
	// stretch of so many numbers of a head first; 0 for none.
	Hadamard int
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

// matrix returns the d x d transform before storing; it is its own inverse.
func (c CacheRow) matrix(d int) []float64 {
	m := linalg.Identity(d)
	if n := c.Hadamard; n > 0 {
		f := 1 / math.Sqrt(float64(n))
		for i := range d {
			for j := i - i%n; j < i-i%n+n; j++ {
				m[i*d+j] = f
				if bits.OnesCount(uint(i%n&(j%n)))%2 == 1 {
					m[i*d+j] = -f
				}
			}
		}
	}
	return m
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
	t, err := newTuner(s, s.D, cache)
	if err != nil {
		return 0, err
	}
	if _, err := reset([]*tuner{t}, turn); err != nil {
		return 0, err
	}
	var noise, energy float64
	for i, w := range t.weights {
		noise += float64(w * fmath.SumSq(t.e[i*s.D:(i+1)*s.D]))
		energy += float64(w * fmath.SumSq(t.now.y[i*s.D:(i+1)*s.D]))
	}
	if energy == 0 {
		return 0, fmt.Errorf("a sample of %d keys without energy", t.n)
	}
	return noise / energy, nil
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

// TuneOptions of TuneBalance.
type TuneOptions struct {
	// Sweeps over all pairs; 3 is a good number.
	Sweeps int
	// Angles are searched too, not scales alone.
	Angles bool
	Seed   uint64
}

// Tuned is the result of TuneBalance.
type Tuned struct {
	Turn *PairTurn
	// Before and After are the mean square errors of scores on the sample, with
	// the closed form and with the result.
	Before, After float64
}

// TuneBalance improves a balance for one cache type: it stores the sampled keys
// as the cache would, and looks pair by pair for scales and angles with which
// what comes back does less harm to scores. Where the closed form takes every
// error for noise alike in all directions, this sees the blocks, the Hadamard
// transform and the keys that always come back with the same error, such as
// attention sinks. All samples share the result: heads whose scales must be one.
func TuneBalance(samples []*KeySample, start *PairTurn, cache CacheRow, o TuneOptions) (*Tuned, error) {
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
	turn := start.clone()
	if o.Angles && len(turn.Angle) == 0 {
		turn.Angle = make([]float64, d/2)
	} else if len(turn.Angle) == 0 {
		turn.Angle = nil
	}
	var heads []*tuner
	for _, s := range samples {
		t, err := newTuner(s, d, cache)
		if err != nil {
			return nil, err
		}
		heads = append(heads, t)
	}
	out := &Tuned{Turn: turn}
	r := rand.New(rand.NewPCG(o.Seed, uint64(d)))
	for sweep := range max(o.Sweeps, 1) {
		loss, err := reset(heads, turn)
		if err != nil {
			return nil, err
		}
		if sweep == 0 {
			out.Before = loss
		}
		out.After = loss
		if o.Sweeps <= 0 {
			break
		}
		for _, p := range r.Perm(d / 2) {
			if loss, err = improve(heads, turn, p, loss, sweep, r); err != nil {
				return nil, err
			}
		}
		out.After = loss
	}
	return out, nil
}

// improve tries other factors for pair p and keeps the best.
func improve(heads []*tuner, turn *PairTurn, p int, loss float64, sweep int, r *rand.Rand) (float64, error) {
	shrink := 1 / (1 + 0.5*float64(sweep))
	for kind := range 2 {
		if kind == 1 && turn.Angle == nil {
			break
		}
		scale := turn.Scale[p]
		var angle float64
		if turn.Angle != nil {
			angle = turn.Angle[p]
		}
		bestScale, bestAngle := scale, angle
		for sign := range 2 {
			step := shrink * (0.5 + r.Float64())
			if kind == 0 {
				f := 1 + float64(0.25*step)
				if sign == 0 {
					f = 1 / f
				}
				turn.Scale[p] = float32(float64(scale) * f)
			} else {
				turn.Angle[p] = angle + float64(0.8*step*float64(2*sign-1))
			}
			var got float64
			for _, h := range heads {
				l, err := h.try(turn, p)
				if err != nil {
					return 0, err
				}
				got += l
			}
			if got < loss {
				loss, bestScale = got, turn.Scale[p]
				if turn.Angle != nil {
					bestAngle = turn.Angle[p]
				}
				for _, h := range heads {
					h.keep()
				}
			}
			turn.Scale[p] = scale
			if turn.Angle != nil {
				turn.Angle[p] = angle
			}
		}
		turn.Scale[p] = bestScale
		if turn.Angle != nil {
			turn.Angle[p] = bestAngle
		}
	}
	return loss, nil
}

// tuner holds one head's sample in the frame of the cache.
type tuner struct {
	d, n    int
	pairs   rope.Layout
	keys    []float32 // [n, d]
	weights []float64 // sum to one
	root    []float64 // [d, d] L^T with metric L L^T
	h       []float64 // [d, d] Hadamard
	row     CacheRow

	now, tried state
	buf        []byte
	e, out     []float32 // [n, d]
	w          gemm.Weights
	scratch    []float32 // [d, d]
}

// state is keys before storing, y = H A k, and B = L^T A^-1 H, which takes their
// errors to what queries feel.
type state struct {
	y []float32
	b []float64
	// re, im are the factors of A.
	re, im []float64
}

func newTuner(s *KeySample, d int, row CacheRow) (*tuner, error) {
	n := len(s.Weights)
	if s.D != d || n == 0 || len(s.Keys) != n*d || len(s.Metric) != d*d {
		return nil, fmt.Errorf("a sample of %d keys, %d values and %d metric entries does not fit head_dim %d", n, len(s.Keys), len(s.Metric), d)
	}
	l, err := Root(s.Metric, d)
	if err != nil {
		return nil, err
	}
	t := &tuner{d: d, n: n, pairs: s.Pairs, keys: s.Keys, row: row, h: row.matrix(d), root: make([]float64, d*d)}
	for i := range d {
		for j := range d {
			t.root[j*d+i] = l[i*d+j]
		}
	}
	total, err := s.total()
	if err != nil {
		return nil, err
	}
	for _, w := range s.Weights {
		t.weights = append(t.weights, w/total)
	}
	size, err := gguf.RowBytes(row.Type, n*d)
	if err != nil {
		return nil, err
	}
	t.buf = make([]byte, size)
	t.e, t.out, t.scratch = make([]float32, n*d), make([]float32, n*d), make([]float32, d*d)
	for _, x := range []*state{&t.now, &t.tried} {
		*x = state{make([]float32, n*d), make([]float64, d*d), make([]float64, d/2), make([]float64, d/2)}
	}
	return t, nil
}

// reset computes the state of a turn from scratch, so that the roundings of
// updates do not add up, and returns the loss.
func reset(heads []*tuner, turn *PairTurn) (float64, error) {
	var sum float64
	for _, t := range heads {
		d, s := t.d, &t.now
		h := make([]float32, d*d)
		for i, v := range t.h {
			h[i] = float32(v)
		}
		z := append([]float32(nil), t.keys...)
		for i := 0; i < len(z); i += d {
			turn.Apply(z[i:i+d], t.pairs, false)
		}
		t.w.PackRows(d, d, h, d, 1)
		gemm.Mul(s.y, d, z, d, t.n, &t.w, 1)
		p := append([]float64(nil), t.root...)
		for k := range d / 2 {
			i, j := t.pairs.Dims(k, d)
			s.re[k], s.im[k] = turn.factor(k, false)
			for r := range d {
				x, y := p[r*d+i], p[r*d+j]
				p[r*d+i], p[r*d+j] = over(x, y, s.re[k], s.im[k])
			}
		}
		for r := range d {
			for c := range d {
				// H is symmetric.
				s.b[r*d+c] = linalg.Dot(p[r*d:(r+1)*d], t.h[c*d:(c+1)*d])
			}
		}
		l, err := t.loss(s)
		if err != nil {
			return 0, err
		}
		sum += l
	}
	return sum, nil
}

// over returns the row (x, y) times the inverse of the matrix of re + i im.
func over(x, y, re, im float64) (float64, float64) {
	n := float64(re*re) + float64(im*im)
	return (float64(x*re) - float64(y*im)) / n, (float64(x*im) + float64(y*re)) / n
}

// try computes the loss with pair p as turn has it and the rest as it is.
func (t *tuner) try(turn *PairTurn, p int) (float64, error) {
	d := t.d
	i, j := t.pairs.Dims(p, d)
	from, to := &t.now, &t.tried
	copy(to.re, from.re)
	copy(to.im, from.im)
	to.re[p], to.im[p] = turn.factor(p, false)
	// y changes by the columns i and j of H times the change of the pair.
	dr, di := to.re[p]-from.re[p], to.im[p]-from.im[p]
	hi, hj := make([]float32, d), make([]float32, d)
	for c := range d {
		hi[c], hj[c] = float32(t.h[i*d+c]), float32(t.h[j*d+c])
	}
	for k := range t.n {
		x, y := float64(t.keys[k*d+i]), float64(t.keys[k*d+j])
		a, b := float32(float64(dr*x)-float64(di*y)), float32(float64(di*x)+float64(dr*y))
		src, dst := from.y[k*d:(k+1)*d], to.y[k*d:(k+1)*d]
		for c, v := range src {
			dst[c] = v + float32(a*hi[c]) + float32(b*hj[c])
		}
	}
	for r := range d {
		x, y := t.root[r*d+i], t.root[r*d+j]
		a0, b0 := over(x, y, from.re[p], from.im[p])
		a1, b1 := over(x, y, to.re[p], to.im[p])
		a, b := a1-a0, b1-b0
		for c := range d {
			to.b[r*d+c] = from.b[r*d+c] + float64(a*t.h[i*d+c]) + float64(b*t.h[j*d+c])
		}
	}
	return t.loss(to)
}

// keep makes what was tried last the present state.
func (t *tuner) keep() { t.now, t.tried = t.tried, t.now }

// loss is the mean square error of scores on the sample.
func (t *tuner) loss(s *state) (float64, error) {
	if err := gguf.QuantizeCacheRow(t.row.Type, t.buf, s.y); err != nil {
		return 0, err
	}
	if err := gguf.DequantizeRow(t.row.Type, t.e, t.buf); err != nil {
		return 0, err
	}
	for i, v := range s.y {
		t.e[i] -= v
	}
	for i, v := range s.b {
		t.scratch[i] = float32(v)
	}
	t.w.PackRows(t.d, t.d, t.scratch, t.d, 1)
	gemm.Mul(t.out, t.d, t.e, t.d, t.n, &t.w, 1)
	var sum float64
	for k, w := range t.weights {
		sum += float64(w * fmath.SumSq(t.out[k*t.d:(k+1)*t.d]))
	}
	return sum, nil
}
