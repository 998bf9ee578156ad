package rotations

import (
	"phaseconv/format/dtype"
	"phaseconv/kernels/gemm"
)

// encodeBatch is how many keys are encoded at a time; it bounds the buffers.
const encodeBatch = 1024

// signBlock is how many signs are chosen before their effect on all others is
// brought in as one matrix product.
const signBlock = 16

// vanishing is the squared length of a sum of rows, as a share of that of its
// terms, below which float32 rounding makes up most of it: where rows depend on
// each other such sums occur, and their quotients mean nothing.
const vanishing = 1e-6

// An encoder finds signs for batches of keys. All sums over signs run in
// ascending order of the signs, so batches and blocks do not change a bit.
type encoder struct {
	b     int
	gram  []float32 // [b, b], nil for orthonormal rows
	gramW *gemm.Weights
	code  *Code

	x, z, s, g []float32 // centred keys [n, d]; projections, signs and G s, [n, b]
	num, den   []float64 // s.z and s^T G s
}

func newEncoder(c *Code) *encoder { return &encoder{b: c.B, gram: c.gram, gramW: &c.gramW, code: c} }

func grow[T any](s *[]T, n int) []T {
	if cap(*s) < n {
		*s = make([]T, n)
	}
	*s = (*s)[:n]
	return *s
}

// encode chooses signs for keys, [n, d].
func (e *encoder) encode(keys []float32) {
	d := e.code.D
	n := len(keys) / d
	x := grow(&e.x, n*d)
	for i := range x {
		x[i] = keys[i] - e.code.Mean[i%d]
	}
	z := grow(&e.z, n*e.b)
	gemm.Mul(z, e.b, x, d, n, &e.code.encode, 1)
	e.search(n, false)
}

// search chooses signs for the n projections in e.z. warm starts from the signs
// in e.s instead of choosing afresh.
func (e *encoder) search(n int, warm bool) {
	grow(&e.num, n)
	grow(&e.den, n)
	s := grow(&e.s, n*e.b)
	if e.gram == nil {
		for k := range n {
			e.num[k], e.den[k] = 0, float64(e.b)
			for i, v := range e.z[k*e.b : (k+1)*e.b] {
				if v >= 0 {
					s[k*e.b+i] = 1
					e.num[k] += float64(v)
				} else {
					s[k*e.b+i] = -1
					e.num[k] -= float64(v)
				}
			}
		}
		return
	}
	grow(&e.g, n*e.b)
	if warm {
		gemm.Mul(e.g, e.b, s, e.b, n, e.gramW, 1)
		for k := range n {
			sk := s[k*e.b : (k+1)*e.b]
			e.num[k], e.den[k] = dot64(sk, e.z[k*e.b:(k+1)*e.b]), dot64(sk, e.g[k*e.b:(k+1)*e.b])
		}
	} else {
		e.greedy(n)
	}
	for k := range n {
		e.flip(k)
		if e.num[k] < 0 { // the opposite signs fit as well, with a positive scale
			e.num[k] = -e.num[k]
			sk, gk := s[k*e.b:(k+1)*e.b], e.g[k*e.b:(k+1)*e.b]
			for i := range sk {
				sk[i], gk[i] = -sk[i], -gk[i]
			}
		}
	}
}

// greedy chooses the signs of n keys in order. Afterwards g = G s.
func (e *encoder) greedy(n int) {
	b := e.b
	clear(e.g)
	clear(e.num)
	clear(e.den)
	for i0 := 0; i0 < b; i0 += signBlock {
		i1 := min(b, i0+signBlock)
		for k := range n {
			num, den := e.num[k], e.den[k]
			z, s, g := e.z[k*b:(k+1)*b], e.s[k*b:(k+1)*b], e.g[k*b:(k+1)*b]
			for i := i0; i < i1; i++ {
				// With s_i the quotient becomes (num + s_i z_i)^2 / (den + 2 s_i g_i + G_ii).
				zi, gi, gii := float64(z[i]), float64(g[i]), float64(e.gram[i*b+i])
				nUp, dUp := num+zi, den+2*gi+gii
				nDown, dDown := num-zi, den-2*gi+gii
				up := zi >= 0
				if i > 0 {
					least := float64(vanishing * (den + gii))
					up = dDown <= least || dUp > least && float64(nUp*nUp)*dDown >= float64(nDown*nDown)*dUp
				}
				row := e.gram[i*b+i0 : i*b+i1]
				if up {
					s[i], num, den = 1, nUp, dUp
					for j, v := range row {
						g[i0+j] += v
					}
				} else {
					s[i], num, den = -1, nDown, dDown
					for j, v := range row {
						g[i0+j] -= v
					}
				}
			}
			e.num[k], e.den[k] = num, den
		}
		if i0 > 0 {
			gemm.MulRange(e.g, b, e.s, b, n, e.gramW, 0, i0, i0, i1, true, 1)
		}
		if i1 < b {
			gemm.MulRange(e.g, b, e.s, b, n, e.gramW, i1, b, i0, i1, true, 1)
		}
	}
}

// maxSweeps bounds the passes over all signs; nearly all keys need two or three.
const maxSweeps = 8

// flip improves the signs of key k one by one until a whole pass changes nothing.
func (e *encoder) flip(k int) {
	b := e.b
	z, s, g := e.z[k*b:(k+1)*b], e.s[k*b:(k+1)*b], e.g[k*b:(k+1)*b]
	num, den := e.num[k], e.den[k]
	last := b // the pass ends where the last change was made, one pass later
	for i, left := 0, maxSweeps*b; left > 0; left-- {
		si := float64(s[i])
		n := num - 2*float64(si*float64(z[i]))
		d := den - 4*float64(si*float64(g[i])) + 4*float64(e.gram[i*b+i])
		// The margin keeps rounding noise from flipping back and forth.
		if d > float64(vanishing*den) && float64(n*n)*den > float64(num*num)*d*(1+1e-9) {
			num, den, last = n, d, i
			row, step := e.gram[i*b:(i+1)*b], -2*s[i]
			s[i] = -s[i]
			for j, v := range row {
				g[j] += float32(step * v)
			}
		} else if i == last {
			break
		}
		if i++; i == b {
			if i = 0; last == b {
				break
			}
		}
	}
	e.num[k], e.den[k] = num, den
}

// alpha returns the best scale of key k, unrounded.
func (e *encoder) alpha(k int) float64 {
	if e.den[k] > 0 {
		return e.num[k] / e.den[k]
	}
	return 0
}

// result stores the signs of key k and returns its scale as binary16 holds it.
func (e *encoder) result(k int, words []uint32) float32 {
	clear(words)
	for i, v := range e.s[k*e.b : (k+1)*e.b] {
		if v > 0 {
			words[i/32] |= 1 << (i % 32)
		}
	}
	return dtype.F16Round(float32(min(e.alpha(k)*float64(e.code.Gain), MaxAlpha)))
}
