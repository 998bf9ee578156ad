package linalg

import (
	"context"
	"errors"
	"math"

	"github.com/phaseconv/phaseconv/kernels/gemm"
)

// Dot64 sums the products of float32 numbers in float64, in index order. Each
// product is exact there, so fusing it would change nothing.
func Dot64(x, y []float32) float64 {
	var s float64
	for i, v := range x {
		s += float64(float64(v) * float64(y[i]))
	}
	return s
}

// DotRows sets dst[j] to the inner product of x and row j of m, summed in float64 and in
// index order. A sum waits for its last product, so four run side by side.
func DotRows[T float32 | float64](dst []float64, x, m []T) {
	d := len(x)
	j := 0
	for ; j+4 <= len(dst); j += 4 {
		m0, m1, m2, m3 := m[j*d:][:d], m[(j+1)*d:][:d], m[(j+2)*d:][:d], m[(j+3)*d:][:d]
		var s0, s1, s2, s3 float64
		for i, v := range x {
			w := float64(v)
			s0 += float64(w * float64(m0[i]))
			s1 += float64(w * float64(m1[i]))
			s2 += float64(w * float64(m2[i]))
			s3 += float64(w * float64(m3[i]))
		}
		dst[j], dst[j+1], dst[j+2], dst[j+3] = s0, s1, s2, s3
	}
	for ; j < len(dst); j++ {
		var s float64
		for i, v := range x {
			s += float64(float64(v) * float64(m[j*d+i]))
		}
		dst[j] = s
	}
}

// Grow sets s to n elements, in the memory that it has if that is enough, and
// returns it. What the elements hold is left open.
func Grow[T any](s *[]T, n int) []T {
	if cap(*s) < n {
		*s = make([]T, n)
	}
	*s = (*s)[:n]
	return *s
}

// Float32 returns x rounded to float32.
func Float32(x []float64) []float32 {
	out := make([]float32, len(x))
	for i, v := range x {
		out[i] = float32(v)
	}
	return out
}

// Float64 returns x in float64.
func Float64(x []float32) []float64 {
	out := make([]float64, len(x))
	for i, v := range x {
		out[i] = float64(v)
	}
	return out
}

// Transpose returns the transpose of a, [n, n].
func Transpose(a []float64, n int) []float64 {
	out := make([]float64, len(a))
	for i := range n {
		for j := range n {
			out[j*n+i] = a[i*n+j]
		}
	}
	return out
}

// ProductSingle returns A B, [n, n], in float32: errors of about 1e-7 of the terms of each number,
// many times faster.
func ProductSingle(a, b []float64, n int) []float64 {
	var w gemm.Weights
	w.PackT(n, n, Float32(b), n, 1)
	c := make([]float32, n*n)
	gemm.Mul(c, n, Float32(a), n, n, &w, 1)
	return Float64(c)
}

// AddOuter adds w x x^T to sum.
func AddOuter(sum []float64, x []float32, w float64) {
	for i, a := range x {
		for j, b := range x {
			sum[i*len(x)+j] += float64(w * float64(float64(a)*float64(b)))
		}
	}
}

// outersRows is how many rows AddOuters adds up in float32 before they go to float64.
const outersRows = 128

// AddOuters adds w x x^T of many rows x of d numbers to sum, [d, d], for weights that are not
// negative; nil for ones. Products and short sums are in float32: errors of about 1e-6 of the
// terms of each number, many times faster than AddOuter.
func AddOuters(sum []float64, x []float32, weights []float64, d int) {
	if len(x) == 0 {
		return
	}
	var w gemm.Weights
	var turned []float32
	rows, out := make([]float32, outersRows*d), make([]float32, d*d)
	for at := 0; at*d < len(x); at += outersRows {
		part := rows[:copy(rows, x[at*d:])]
		n := len(part) / d
		if weights != nil {
			for r, weight := range weights[at : at+n] {
				root := float32(math.Sqrt(weight))
				for i, v := range part[r*d : (r+1)*d] {
					part[r*d+i] = float32(v * root)
				}
			}
		}
		w.PackT(d, n, part, d, 1)
		turned = gemm.Transpose(turned, part, n, d)
		gemm.Mul(out, d, turned, n, d, &w, 1)
		AddTo32(sum, out)
	}
}

// AddTo32 adds x to dst, element by element.
func AddTo32(dst []float64, x []float32) {
	for i, v := range x {
		dst[i] += float64(v)
	}
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

// Root returns the lower triangle L with L L^T = a for a symmetric positive
// semidefinite n x n matrix; a little is added to the diagonal of a singular one.
func Root(ctx context.Context, a []float64, n int) ([]float64, error) {
	var top float64
	for i := range n {
		top = max(top, a[i*n+i])
	}
	if top == 0 {
		return make([]float64, n*n), nil
	}
	var err error
	for damp := 1e-12; damp < 1e-3; damp *= 100 {
		m := append([]float64(nil), a...)
		for i := range n {
			m[i*n+i] += float64(damp * top)
		}
		var l []float64
		if l, err = Cholesky(ctx, m, n); !errors.Is(err, ErrNotPositive) {
			return l, err
		}
	}
	return nil, err
}

// Sign returns 1 or -1, without a branch.
func Sign(positive bool) float32 {
	var negative uint32 = 1
	if positive {
		negative = 0
	}
	return math.Float32frombits(negative<<31 | 0x3f800000)
}
