package linalg

import (
	"errors"
	"math"
)

// ErrSingular is why a matrix has no inverse.
var ErrSingular = errors.New("matrix is singular")

// Inverse returns the inverse of a, [n, n], by Gauss-Jordan elimination with
// row pivots. It fails on singular matrices and on those that hold NaN or infinities.
func Inverse(a []float64, n int) ([]float64, error) {
	m, out := append([]float64(nil), a...), Identity(n)
	for c := range n {
		pivot := c
		for r := c + 1; r < n; r++ {
			if math.Abs(m[r*n+c]) > math.Abs(m[pivot*n+c]) {
				pivot = r
			}
		}
		v := m[pivot*n+c]
		if v == 0 || math.IsNaN(v) || math.IsInf(v, 0) {
			return nil, ErrSingular
		}
		for _, x := range [][]float64{m, out} {
			if pivot != c {
				for j := range n {
					x[c*n+j], x[pivot*n+j] = x[pivot*n+j], x[c*n+j]
				}
			}
			for j := range n {
				x[c*n+j] /= v
			}
		}
		for r := range n {
			f := m[r*n+c]
			if r == c || f == 0 {
				continue
			}
			// What is left of the pivot is 0 in m, and nothing reads it.
			less(m[r*n+c+1:(r+1)*n], m[c*n+c+1:(c+1)*n], f)
			less(out[r*n:(r+1)*n], out[c*n:(c+1)*n], f)
		}
	}
	for _, v := range out {
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return nil, ErrSingular
		}
	}
	return out, nil
}

// less takes f times y from x.
func less(x, y []float64, f float64) {
	y = y[:len(x)]
	for i := range x {
		x[i] -= float64(f * y[i])
	}
}
