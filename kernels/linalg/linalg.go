// Package linalg holds the small dense linear algebra that fitting needs:
// symmetric eigenvectors, the orthogonal polar factor, positive definite solves.
//
// Own code rather than gonum, because the same input must give the same bits on
// every machine: gonum's inner products are assembly on amd64 and plain Go, which
// the compiler may fuse, elsewhere. Here each product is rounded on its own.
// Matrices are row-major. What takes long for the sizes of attention heads, up to 512
// numbers, or of their codes, up to 2,048 signs, takes a context; the rest takes at most
// some tenths of a second.
package linalg

import (
	"context"
	"math"
	"sort"

	"github.com/phaseconv/phaseconv/kernels/gemm"
)

// Eigen returns the eigenvalues of the symmetric n x n matrix a, largest first,
// and the matching orthonormal eigenvectors as the rows of v. a is not changed.
// Cyclic Jacobi: slower than tridiagonal methods, but the order of operations is
// plain. Eigenvalues err by some float64 roundings of the largest. At n = 512 it takes
// ten seconds; it fails only when ctx ends, which it looks at once in n rotations.
func Eigen(ctx context.Context, a []float64, n int) (values []float64, v []float64, err error) {
	m := append([]float64(nil), a...)
	v = Identity(n)
	var scale float64
	for _, x := range m {
		scale = max(scale, math.Abs(x))
	}
	for sweep := 0; sweep < 60; sweep++ {
		var off float64
		for i := range n {
			for j := i + 1; j < n; j++ {
				off = max(off, math.Abs(m[i*n+j]))
			}
		}
		if off <= 1e-15*scale || scale == 0 {
			break
		}
		for p := range n {
			if ctx.Err() != nil {
				return nil, nil, context.Cause(ctx)
			}
			for q := p + 1; q < n; q++ {
				if math.Abs(m[p*n+q]) > 1e-18*scale {
					rotate(m, v, n, p, q)
				}
			}
		}
	}
	order := make([]int, n)
	values = make([]float64, n)
	for i := range order {
		order[i] = i
	}
	sort.SliceStable(order, func(i, j int) bool { return m[order[i]*n+order[i]] > m[order[j]*n+order[j]] })
	out := make([]float64, n*n)
	for i, k := range order {
		values[i] = m[k*n+k]
		copy(out[i*n:(i+1)*n], v[k*n:(k+1)*n])
		fixSign(out[i*n : (i+1)*n])
	}
	return values, out, nil
}

// fixSign makes the largest component positive: an eigenvector has no sign of its own.
func fixSign(x []float64) {
	k := 0
	for i, v := range x {
		if math.Abs(v) > math.Abs(x[k]) {
			k = i
		}
	}
	if x[k] < 0 {
		for i := range x {
			x[i] = -x[i]
		}
	}
}

// rotate zeroes m[p][q] by a plane rotation, applied to the rows of v too.
func rotate(m, v []float64, n, p, q int) {
	theta := (m[q*n+q] - m[p*n+p]) / (2 * m[p*n+q])
	t := 1 / (math.Abs(theta) + math.Sqrt(float64(theta*theta)+1))
	if theta < 0 {
		t = -t
	}
	c := 1 / math.Sqrt(float64(t*t)+1)
	s := t * c
	turn := func(a, b float64) (float64, float64) {
		return float64(c*a) - float64(s*b), float64(s*a) + float64(c*b)
	}
	// The rows and columns are turned; m being symmetric, both give the same numbers
	// but where they cross.
	rp, rq := m[p*n:(p+1)*n], m[q*n:(q+1)*n]
	pp, pq := turn(rp[p], rp[q])
	qp, qq := turn(rq[p], rq[q])
	pp, _ = turn(pp, qp)
	_, qq = turn(pq, qq)
	vp, vq := v[p*n:(p+1)*n], v[q*n:(q+1)*n]
	for k := range n {
		rp[k], rq[k] = turn(rp[k], rq[k])
		m[k*n+p], m[k*n+q] = rp[k], rq[k]
		vp[k], vq[k] = turn(vp[k], vq[k])
	}
	rp[p], rp[q], rq[p], rq[q] = pp, 0, 0, qq
}

// Identity returns the n x n identity.
func Identity(n int) []float64 {
	m := make([]float64, n*n)
	for i := range n {
		m[i*n+i] = 1
	}
	return m
}

// SymmetricPower returns V f(values) V^T for eigenvectors in the rows of v.
func SymmetricPower(values, v []float64, n int, f func(float64) float64) []float64 {
	out := make([]float64, n*n)
	for k := range n {
		w := f(values[k])
		row := v[k*n : (k+1)*n]
		for i := range n {
			x := w * row[i]
			o := out[i*n : (i+1)*n]
			for j := range n {
				o[j] += float64(x * row[j])
			}
		}
	}
	return out
}

// Orthonormalize makes the rows of the n x n matrix a orthonormal by modified
// Gram-Schmidt, twice, in float64. A row without a direction of its own is
// replaced by the first unit vector that has one.
func Orthonormalize(a []float64, n int) {
	for i := range n {
		row := a[i*n : (i+1)*n]
		for try := 0; ; try++ {
			norm0 := Norm(row)
			for range 2 {
				for j := range i {
					o := a[j*n : (j+1)*n]
					d := Dot(row, o)
					for k := range row {
						row[k] -= float64(d * o[k])
					}
				}
			}
			if norm := Norm(row); norm > 1e-12*norm0 && norm > 1e-300 {
				for k := range row {
					row[k] /= norm
				}
				break
			}
			clear(row)
			row[try%n] = 1
		}
	}
}

// Dot is the inner product, summed in index order.
func Dot(x, y []float64) float64 {
	var s float64
	for i, v := range x {
		s += float64(v * y[i])
	}
	return s
}

// Norm is the Euclidean length.
func Norm(x []float64) float64 { return math.Sqrt(Dot(x, x)) }

// Polar returns the orthogonal polar factor of the n x n matrix c, the
// orthogonal R that maximises trace(R^T c), by Newton-Schulz iteration in float32
// on the matrix kernels. Its rows are orthonormal to a few units of float32
// rounding; Orthogonal takes that out too. threads <= 0 uses all. It fails only when ctx
// ends.
func Polar(ctx context.Context, c []float32, n, threads int) ([]float32, error) {
	// The Frobenius norm bounds the largest singular value, as convergence needs;
	// a few power steps give a far tighter bound and so save iterations.
	x := make([]float32, n*n)
	s := spectralBound(c, n)
	if s == 0 {
		for i := range n {
			x[i*n+i] = 1
		}
		return x, nil
	}
	for i, v := range c {
		x[i] = v / s
	}
	var w gemm.Weights
	g, y := make([]float32, n*n), make([]float32, n*n)
	last := float32(math.Inf(1))
	for range 60 {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		// X <- 1.5 X - 0.5 (X X^T) X
		w.PackRows(n, n, x, n, threads)
		gemm.Mul(g, n, x, n, n, &w, threads)
		worst := distance(g, n)
		if worst < 4e-6 {
			return x, nil
		}
		// Singular values above sqrt(3) run away: the bound was none, because the
		// power steps began at right angles to the largest singular vector.
		if !(worst <= 4) {
			break
		}
		last = worst
		w.PackT(n, n, x, n, threads)
		gemm.Mul(y, n, g, n, n, &w, threads)
		for i, v := range y {
			x[i] = float32(1.5*x[i]) - float32(0.5*v)
		}
	}
	if last < polarTolerance {
		return x, nil
	}
	return polarByEigen(ctx, c, n)
}

// distance returns how far the numbers of the n x n matrix g are from the identity's.
func distance(g []float32, n int) float32 {
	// Magnitudes order like their bits, and integers compare faster; a NaN is above all.
	var worst uint32
	for i := range n {
		row := g[i*n : (i+1)*n]
		for _, v := range row[:i] {
			worst = max(worst, math.Float32bits(v)&^(1<<31))
		}
		worst = max(worst, math.Float32bits(row[i]-1)&^(1<<31))
		for _, v := range row[i+1:] {
			worst = max(worst, math.Float32bits(v)&^(1<<31))
		}
	}
	return math.Float32frombits(worst)
}

// polarTolerance is how far from orthonormal the iteration may end. What exceeds
// it had singular values of zero, which no iteration brings to one.
const polarTolerance = 1e-4

// polarByEigen finds the polar factor from the eigenvectors of c^T c, in float64:
// slow, but it needs no full rank. Where c has none, any orthogonal completion
// gives the same trace.
func polarByEigen(ctx context.Context, c []float32, n int) ([]float32, error) {
	var top float64
	for _, v := range c {
		top = max(top, math.Abs(float64(v)))
	}
	out := make([]float32, n*n)
	if !(top > 0) || math.IsInf(top, 0) {
		for i := range n {
			out[i*n+i] = 1
		}
		return out, nil
	}
	square := make([]float64, n*n)
	for k := range n {
		row := c[k*n : (k+1)*n]
		for i, a := range row {
			for j, b := range row {
				square[i*n+j] += float64(float64(a) / top * (float64(b) / top))
			}
		}
	}
	values, v, err := Eigen(ctx, square, n)
	if err != nil {
		return nil, err
	}
	u := make([]float64, n*n)
	for k := range n {
		// The square of float32 rounding, relative to the largest: beyond that a
		// direction is noise, and Orthonormalize chooses another.
		if !(values[k] > 1e-13*values[0]) {
			break
		}
		for i := range n {
			for j := range n {
				u[k*n+i] += float64(float64(c[i*n+j]) / top * v[k*n+j])
			}
		}
	}
	Orthonormalize(u, n)
	r := make([]float64, n*n)
	for k := range n {
		for i := range n {
			for j := range n {
				r[i*n+j] += float64(u[k*n+i] * v[k*n+j])
			}
		}
	}
	for i, x := range r {
		out[i] = float32(x)
	}
	return out, nil
}

// Orthogonal returns the matrix with rows made orthonormal in float64.
func Orthogonal(x []float32, n int) []float32 {
	f := make([]float64, n*n)
	for i, v := range x {
		f[i] = float64(v)
	}
	Orthonormalize(f, n)
	out := make([]float32, n*n)
	for i, v := range f {
		out[i] = float32(v)
	}
	return out
}

// spectralBound estimates the largest singular value from above.
func spectralBound(c []float32, n int) float32 {
	v := make([]float64, n)
	for i := range v {
		v[i] = 1
	}
	var s float64
	for range 12 {
		u := make([]float64, n)
		i := 0
		for ; i+4 <= n; i += 4 { // sums wait for their last product; four run side by side
			c0, c1, c2, c3 := c[i*n:][:n], c[(i+1)*n:][:n], c[(i+2)*n:][:n], c[(i+3)*n:][:n]
			var s0, s1, s2, s3 float64
			for j, x := range v[:n] {
				s0 += float64(float64(c0[j]) * x)
				s1 += float64(float64(c1[j]) * x)
				s2 += float64(float64(c2[j]) * x)
				s3 += float64(float64(c3[j]) * x)
			}
			u[i], u[i+1], u[i+2], u[i+3] = s0, s1, s2, s3
		}
		for ; i < n; i++ {
			for j := range n {
				u[i] += float64(float64(c[i*n+j]) * v[j])
			}
		}
		w := make([]float64, n)
		for i := range n {
			x := u[i]
			for j, v := range c[i*n : (i+1)*n] {
				w[j] += float64(float64(v) * x)
			}
		}
		l := Norm(w)
		if l == 0 {
			break
		}
		s = math.Sqrt(l / max(Norm(v), 1e-300))
		for j := range w {
			v[j] = w[j] / l
		}
	}
	var fro float64
	for _, x := range c {
		fro += float64(x) * float64(x)
	}
	// Newton-Schulz converges below sqrt(3); 10 % covers an unfinished power iteration.
	return float32(min(1.1*s, math.Sqrt(fro)) + float64(1e-30*math.Sqrt(fro)))
}
