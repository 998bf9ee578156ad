package codec

import (
	"context"
	"math"

	"github.com/phaseconv/phaseconv/format/dtype"
	"github.com/phaseconv/phaseconv/kernels/fmath"
	"github.com/phaseconv/phaseconv/kernels/gemm"
	"github.com/phaseconv/phaseconv/kernels/linalg"
	"github.com/phaseconv/phaseconv/kernels/parallel"
)

// EncodeBatch is how many keys are encoded at a time; it bounds the buffers.
const EncodeBatch = 1024

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
	diag       []float64 // of the Gram matrix
}

func newEncoder(c *Code) *encoder { return &encoder{b: c.B, gram: c.gram, gramW: &c.gramW, code: c} }

// encode chooses signs for keys, [n, d].
func (e *encoder) encode(keys []float32) {
	d := e.code.D
	n := len(keys) / d
	x := linalg.Grow(&e.x, n*d)
	for i := 0; i < len(x); i += d {
		row, key := x[i:i+d], keys[i:i+d]
		for j, v := range e.code.Mean {
			row[j] = key[j] - v
		}
	}
	z := linalg.Grow(&e.z, n*e.b)
	gemm.Mul(z, e.b, x, d, n, &e.code.encode, 1)
	e.search(n, false)
}

// search chooses signs for the n projections in e.z. warm starts from the signs
// in e.s instead of choosing afresh.
func (e *encoder) search(n int, warm bool) {
	linalg.Grow(&e.num, n)
	linalg.Grow(&e.den, n)
	s := linalg.Grow(&e.s, n*e.b)
	if e.gram == nil {
		for k := range n {
			var num float64
			sk := s[k*e.b : (k+1)*e.b]
			for i, v := range e.z[k*e.b : (k+1)*e.b] {
				sk[i] = linalg.Sign(v >= 0)
				num += float64(sk[i] * v)
			}
			e.num[k], e.den[k] = num, float64(e.b)
		}
		return
	}
	for i := range linalg.Grow(&e.diag, e.b) {
		e.diag[i] = float64(e.gram[i*e.b+i])
	}
	linalg.Grow(&e.g, n*e.b)
	if warm {
		gemm.Mul(e.g, e.b, s, e.b, n, e.gramW, 1)
		for k := range n {
			sk := s[k*e.b : (k+1)*e.b]
			zk, gk := e.z[k*e.b:(k+1)*e.b], e.g[k*e.b:(k+1)*e.b]
			var num, den float64
			for i, v := range sk {
				num += float64(v) * float64(zk[i])
				den += float64(v) * float64(gk[i])
			}
			e.num[k], e.den[k] = num, den
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
			z, s, g := e.z[k*b+i0:k*b+i1], e.s[k*b+i0:k*b+i1], e.g[k*b+i0:k*b+i1]
			for i, gii := range e.diag[i0:i1] {
				// With s_i the quotient becomes (num + s_i z_i)^2 / (den + 2 s_i g_i + G_ii).
				zi, gi := float64(z[i]), float64(g[i])
				nUp, dUp := num+zi, den+2*gi+gii
				nDown, dDown := num-zi, den-2*gi+gii
				up := float64(nUp*nUp)*dDown >= float64(nDown*nDown)*dUp
				if least := float64(vanishing * (den + gii)); dUp <= least || dDown <= least {
					up = dDown <= least
				}
				if i0+i == 0 {
					up = zi >= 0
				}
				// A branch on a sign would be missed half the time.
				si := linalg.Sign(up)
				s[i] = si
				num += float64(float64(si) * zi)
				den = den + float64(2*float64(si)*gi) + gii
				fmath.AddScaled(g, e.gram[(i0+i)*b+i0:][:len(g)], si)
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
	num, den, diag := e.num[k], e.den[k], e.diag[:b]
	// The margin keeps rounding noise from flipping back and forth.
	const margin = 1 + 1e-9
	square, least := float64(num*num), float64(vanishing*den)
	last := b // the pass ends where the last change was made, one pass later
	for i, left := 0, maxSweeps*b; left > 0; left-- {
		si := float64(s[i])
		n := num - 2*float64(si*float64(z[i]))
		d := den - 4*float64(si*float64(g[i])) + 4*diag[i]
		if float64(n*n)*den > square*d*margin && d > least {
			num, den, last = n, d, i
			square, least = float64(num*num), float64(vanishing*den)
			fmath.AddScaled(g, e.gram[i*b:(i+1)*b], -2*s[i])
			s[i] = -s[i]
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

// SearchSigns chooses signs s, [n, b] of +1 and -1, for the projections z, [n, b], of n
// keys on the b rows of a code whose Gram matrix is gram, [b, b], packed as packed, or nil
// for orthonormal rows. warm starts from the signs in s. It sets num[k] = s.z and
// den[k] = s^T G s of each key, from which Scale takes the best scale.
func SearchSigns(b int, gram []float32, packed *gemm.Weights, z, s []float32, num, den []float64, warm bool) {
	e := &encoder{b: b, gram: gram, gramW: packed, z: z, s: s, num: num, den: den}
	e.search(len(num), warm)
}

// Scale returns the best scale of a key, unrounded, from num = s.z and den = s^T G s:
// 0 where den is.
func Scale(num, den float64) float64 {
	if den > 0 {
		return num / den
	}
	return 0
}

// result stores the signs of key k and returns its scale as binary16 holds it.
func (e *encoder) result(k int, words []uint32) float32 {
	clear(words)
	for i, v := range e.s[k*e.b : (k+1)*e.b] {
		words[i/32] |= (^math.Float32bits(v) >> 31) << (i % 32)
	}
	return dtype.F16Round(float32(min(Scale(e.num[k], e.den[k])*float64(e.code.Gain), MaxAlpha)))
}

// Batches calls f for [0, n) in pieces of EncodeBatch keys, on up to threads
// goroutines. It fails as parallel.For does, and when ctx ends.
func Batches(ctx context.Context, n, threads int, f func(k0, k1 int) error) error {
	return parallel.For(ctx, threads, (n+EncodeBatch-1)/EncodeBatch, func(i int) error {
		return f(i*EncodeBatch, min(n, (i+1)*EncodeBatch))
	})
}
