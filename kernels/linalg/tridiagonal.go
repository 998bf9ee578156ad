package linalg

import (
	"context"
	"errors"
	"math"
	"sort"
)

// maxQLSteps bounds the steps for one eigenvalue; two are usual.
const maxQLSteps = 60

// EigenQL is Eigen by reduction to a tridiagonal matrix and implicit QL: at n = 512 some forty
// times faster. Eigenvectors of nearly equal eigenvalues are orthonormal, but which basis of their
// space they are differs from Eigen's. It fails where a has numbers that are not finite, and when
// ctx ends.
func EigenQL(ctx context.Context, a []float64, n int) (values []float64, v []float64, err error) {
	// A power of two keeps squares in range and changes no digit.
	var largest float64
	for _, x := range a {
		if x-x != 0 {
			return nil, nil, errors.New("eigenvalues of numbers that are not finite")
		}
		largest = max(largest, math.Abs(x))
	}
	_, exp := math.Frexp(largest)
	scaled := make([]float64, n*n)
	for i, x := range a {
		scaled[i] = math.Ldexp(x, -exp)
	}
	diag, off, q, err := tridiagonal(ctx, scaled, n)
	if err != nil {
		return nil, nil, err
	}
	if err := ql(ctx, diag, off, q, n); err != nil {
		return nil, nil, err
	}
	order := make([]int, n)
	for i := range order {
		order[i] = i
	}
	sort.SliceStable(order, func(i, j int) bool { return diag[order[i]] > diag[order[j]] })
	values, v = make([]float64, n), make([]float64, n*n)
	for i, k := range order {
		values[i] = math.Ldexp(diag[k], exp)
		copy(v[i*n:(i+1)*n], q[k*n:(k+1)*n])
		fixSign(v[i*n : (i+1)*n])
	}
	return values, v, nil
}

// tridiagonal returns Q, [n, n], with Q m Q^T tridiagonal: diag, [n], and off, [n], whose number i
// stands between i and i+1. Column by column a reflection I - beta u u^T takes away what is below
// the second diagonal. m is used up.
func tridiagonal(ctx context.Context, m []float64, n int) (diag, off, q []float64, err error) {
	diag, off = make([]float64, n), make([]float64, n)
	betas, p := make([]float64, n), make([]float64, n)
	for k := range n - 1 {
		if ctx.Err() != nil {
			return nil, nil, nil, context.Cause(ctx)
		}
		u := m[k*n+k+1 : (k+1)*n] // row k stands for column k, and keeps the reflection
		norm := Norm(u)
		if len(u) == 1 || norm == 0 {
			off[k] = u[0]
			continue
		}
		alpha := -math.Copysign(norm, u[0])
		off[k] = alpha
		u[0] -= alpha
		beta := 2 / Dot(u, u)
		betas[k] = beta
		w := p[k+1:]
		for i := range u {
			w[i] = beta * Dot(m[(k+1+i)*n+k+1:(k+2+i)*n], u)
		}
		half := 0.5 * beta * Dot(w, u)
		for i := range w {
			w[i] -= float64(half * u[i])
		}
		for i := range u {
			row, ui, wi := m[(k+1+i)*n+k+1:(k+2+i)*n], u[i], w[i]
			for j := range row {
				row[j] -= float64(ui*w[j]) + float64(wi*u[j])
			}
		}
	}
	q = Identity(n)
	for i := range diag {
		diag[i] = m[i*n+i]
	}
	// Q is the product of the reflections, the last one first: each then touches only rows and
	// columns that are not the identity's any more.
	for k := n - 2; k >= 0; k-- {
		if ctx.Err() != nil {
			return nil, nil, nil, context.Cause(ctx)
		}
		if betas[k] == 0 {
			continue
		}
		u := m[k*n+k+1 : (k+1)*n]
		for i := k + 1; i < n; i++ { // Q <- Q (I - beta u u^T), Q so far on the rows and columns past k
			row := q[i*n+k+1 : (i+1)*n]
			s := betas[k] * Dot(row, u)
			for j := range row {
				row[j] -= float64(s * u[j])
			}
		}
	}
	return diag, off, q, nil
}

// ql diagonalises the tridiagonal matrix with implicit shifts, and turns the rows of q along.
func ql(ctx context.Context, diag, off, q []float64, n int) error {
	const eps = 0x1p-52
	for l := range n {
		for step := 0; ; step++ {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			m := l
			for m < n-1 && !(math.Abs(off[m]) <= eps*(math.Abs(diag[m])+math.Abs(diag[m+1]))) {
				m++
			}
			if m == l {
				break
			}
			if step == maxQLSteps {
				return errors.New("the eigenvalues of a matrix were not found")
			}
			// The shift is the eigenvalue of the leading 2x2 that is nearer to its corner.
			g := (diag[l+1] - diag[l]) / (2 * off[l])
			r := math.Sqrt(float64(g*g) + 1)
			g = diag[m] - diag[l] + off[l]/(g+math.Copysign(r, g))
			s, c, p := 1.0, 1.0, 0.0
			i := m - 1
			for ; i >= l; i-- {
				f, b := float64(s*off[i]), float64(c*off[i])
				r = math.Sqrt(float64(f*f) + float64(g*g))
				off[i+1] = r
				if r == 0 { // the matrix falls apart here
					diag[i+1] -= p
					break
				}
				s, c = f/r, g/r
				g = diag[i+1] - p
				r = float64((diag[i]-g)*s) + float64(2*float64(c*b))
				p = float64(s * r)
				diag[i+1] = g + p
				g = float64(c*r) - b
				x, y := q[i*n:(i+1)*n], q[(i+1)*n:(i+2)*n]
				for k, xv := range x {
					yv := y[k]
					y[k] = float64(s*xv) + float64(c*yv)
					x[k] = float64(c*xv) - float64(s*yv)
				}
			}
			if i >= l {
				off[m] = 0
				continue
			}
			diag[l] -= p
			off[l], off[m] = g, 0
		}
	}
	return nil
}
