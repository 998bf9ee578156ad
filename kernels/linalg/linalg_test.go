package linalg

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

func gaussians(r *rand.Rand, n int) []float64 {
	x := make([]float64, n)
	for i := range x {
		x[i] = r.NormFloat64()
	}
	return x
}

// symmetric returns V^T diag(values) V for a random orthogonal V.
func symmetric(r *rand.Rand, values []float64) []float64 {
	n := len(values)
	v := gaussians(r, n*n)
	Orthonormalize(v, n)
	return SymmetricPower(values, v, n, func(x float64) float64 { return x })
}

func largest(x []float64) (m float64) {
	for _, v := range x {
		m = max(m, math.Abs(v))
	}
	return m
}

// orthoError returns how far the rows of the n x n matrix v are from orthonormal.
func orthoError(v []float64, n int) (worst float64) {
	for i := range n {
		for j := range n {
			d := Dot(v[i*n:(i+1)*n], v[j*n:(j+1)*n])
			if i == j {
				d--
			}
			if !(math.Abs(d) <= worst) {
				worst = math.Abs(d)
			}
		}
	}
	return worst
}

// eigenError returns the largest entry of A - V^T diag(values) V over that of A.
func eigenError(a, values, v []float64, n int) float64 {
	b := SymmetricPower(values, v, n, func(x float64) float64 { return x })
	for i := range b {
		b[i] -= a[i]
	}
	if m := largest(a); m > 0 {
		return largest(b) / m
	}
	return largest(b)
}

// eigenTolerance is some roundings of float64 per dimension: Jacobi is backward
// stable, and its rotations, about ten sweeps of n, each add one.
func eigenTolerance(n int) float64 { return 2e-15 * float64(n+4) }

func TestEigen(t *testing.T) {
	t.Run("Jacobi", func(t *testing.T) { testEigen(t, eigen) })
	t.Run("QL", func(t *testing.T) {
		testEigen(t, func(a []float64, n int) (values, v []float64) {
			values, v, err := EigenQL(t.Context(), a, n)
			if err != nil {
				t.Fatal(err)
			}
			return values, v
		})
	})
	nan := []float64{1, math.NaN(), math.NaN(), 1}
	if _, _, err := EigenQL(t.Context(), nan, 2); err == nil {
		t.Error("eigenvalues of what is no number")
	}
}

func testEigen(t *testing.T, eigen func(a []float64, n int) (values, v []float64)) {
	r := rand.New(rand.NewPCG(1, 2))
	repeat := func(n int, f func(i int) float64) []float64 {
		x := make([]float64, n)
		for i := range x {
			x[i] = f(i)
		}
		return x
	}
	cases := map[string][]float64{
		"1x1":          {3},
		"1x1 negative": {-3},
		"zero":         repeat(16, func(int) float64 { return 0 }),
		"identity":     repeat(16, func(int) float64 { return 1 }),
		"repeated":     repeat(24, func(i int) float64 { return float64(i / 8) }),
		"rank 1":       repeat(17, func(i int) float64 { return float64(min(i, 1)) }),
		"projection":   repeat(20, func(i int) float64 { return float64(i % 2) }),
		"signs":        repeat(12, func(i int) float64 { return 1 - 2*float64(i%2) }),
		"graded":       repeat(20, func(i int) float64 { return math.Pow(10, float64(-i)) }),
		"huge":         repeat(8, func(i int) float64 { return 1e150 * float64(i+1) }),
		"small":        repeat(8, func(i int) float64 { return 1e-150 * float64(i+1) }),
		"close":        repeat(8, func(i int) float64 { return 1 + 1e-13*float64(i) }),
	}
	for _, n := range []int{2, 3, 5, 16, 33, 64} {
		cases[fmt.Sprint("random ", n)] = gaussians(r, n)
	}
	for name, want := range cases {
		n := len(want)
		a := symmetric(r, want)
		if n == 1 || name == "identity" || name == "zero" {
			a = make([]float64, n*n)
			for i := range n {
				a[i*n+i] = want[i]
			}
		}
		before := slices.Clone(a)
		values, v := eigen(a, n)
		if !slices.Equal(a, before) {
			t.Errorf("%s: the input changed", name)
		}
		if e := eigenError(a, values, v, n); !(e <= eigenTolerance(n)) {
			t.Errorf("%s: reconstruction is off by %.2g", name, e)
		}
		if e := orthoError(v, n); !(e <= eigenTolerance(n)) {
			t.Errorf("%s: eigenvectors are off by %.2g", name, e)
		}
		sorted := slices.Clone(want)
		slices.Sort(sorted)
		slices.Reverse(sorted)
		for i, x := range values {
			// The construction of a rounds too, so twice the tolerance.
			if !(math.Abs(x-sorted[i]) <= 2*eigenTolerance(n)*largest(want)) {
				t.Errorf("%s: eigenvalue %d is %v, want %v", name, i, x, sorted[i])
			}
			if i > 0 && x > values[i-1] {
				t.Errorf("%s: eigenvalues are not sorted", name)
			}
			row := v[i*n : (i+1)*n]
			if slices.Max(row) < -slices.Min(row) {
				t.Errorf("%s: the largest component of vector %d is negative", name, i)
			}
		}
		if n < 2 {
			continue
		}
		// The checks can fail: a turn by 1e-9 of two eigenvectors shows.
		v[0] += 1e-9
		if orthoError(v, n) <= eigenTolerance(n) {
			t.Errorf("%s: the check does not see a wrong vector", name)
		}
		if m := largest(want); m > 0 && want[0] != want[n-1] {
			values[0] += 1e-9 * m
			if eigenError(a, values, v, n) <= eigenTolerance(n) {
				t.Errorf("%s: the check does not see a wrong value", name)
			}
		}
	}
}

// TestEigenScaled: rows and columns of unlike size, as covariances of keys have
// them. Eigenvalues err by roundings of the largest, so the smallest, 1e-11 of
// that, keeps four digits and its sign.
func TestEigenScaled(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	const n = 12
	g := gaussians(r, n*n)
	base := make([]float64, n*n) // well conditioned
	for i := range n {
		for j := range n {
			base[i*n+j] = Dot(g[i*n:(i+1)*n], g[j*n:(j+1)*n]) / n / 4
		}
		base[i*n+i] += 1
	}
	a := make([]float64, n*n)
	inverse := make([]float64, n*n)
	scale := make([]float64, n)
	for i := range scale {
		scale[i] = math.Pow(10, -float64(i)/2)
	}
	for i := range n {
		for j := range n {
			a[i*n+j] = base[i*n+j] * scale[i] * scale[j]
		}
	}
	values, v := eigen(a, n)
	for i, x := range values {
		if !(x > 0) {
			t.Errorf("eigenvalue %d of a positive definite matrix is %g", i, x)
		}
	}
	// The largest eigenvalue of the inverse is one over the smallest of a, and the
	// inverse comes from Cholesky, another way.
	l, err := cholesky(a, n)
	if err != nil {
		t.Fatal(err)
	}
	copy(inverse, solveRight(Identity(n), n, l, n))
	for i := range n {
		for j := range i {
			inverse[i*n+j] = inverse[j*n+i]
		}
	}
	inv, _ := eigen(inverse, n)
	if e := math.Abs(inv[0]*values[n-1] - 1); !(e < 1e-4) {
		t.Errorf("smallest eigenvalue %g, from the inverse %g: off by %.2g of it", values[n-1], 1/inv[0], e)
	}
	if e := orthoError(v, n); !(e < eigenTolerance(n)) {
		t.Errorf("eigenvectors are off by %.2g", e)
	}
}

// TestEigenReturns: numbers that are not finite give no answer, but an end.
func TestEigenReturns(t *testing.T) {
	for _, x := range []float64{math.NaN(), math.Inf(1), -math.Inf(1), math.MaxFloat64} {
		values, v := eigen([]float64{1, x, x, 2}, 2)
		if len(values) != 2 || len(v) != 4 {
			t.Error("lengths")
		}
	}
	if values, v := eigen(nil, 0); len(values) != 0 || len(v) != 0 {
		t.Error("0 x 0")
	}
}

func TestCholesky(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for _, n := range []int{1, 2, 7, 32, 64} {
		values := make([]float64, n)
		for i := range values {
			values[i] = math.Pow(10, -6*float64(i)/float64(n)) // condition up to 1e6
		}
		a := symmetric(r, values)
		l, err := cholesky(a, n)
		if err != nil {
			t.Fatal(err)
		}
		var worst float64
		for i := range n {
			for j := range n {
				if j > i && l[i*n+j] != 0 {
					t.Fatalf("n %d: L is not lower triangular", n)
				}
				worst = max(worst, math.Abs(Dot(l[i*n:(i+1)*n], l[j*n:(j+1)*n])-a[i*n+j]))
			}
		}
		// Backward stable: n roundings of numbers up to 1.
		if tol := 4e-16 * float64(n+1); !(worst <= tol) {
			t.Errorf("n %d: L L^T is off by %.2g", n, worst)
		}
		const m = 5
		rhs := gaussians(r, m*n)
		before := slices.Clone(rhs)
		x := solveRight(rhs, m, l, n)
		if !slices.Equal(rhs, before) {
			t.Error("the right-hand side changed")
		}
		residual := func() (worst float64) {
			for i := range m {
				for j := range n {
					// a is symmetric, so its row is its column.
					worst = max(worst, math.Abs(Dot(x[i*n:(i+1)*n], a[j*n:(j+1)*n])-rhs[i*n+j]))
				}
			}
			return worst
		}
		// The residual is small against |X| |A|, whatever the condition.
		tol := 4e-16 * float64(n+1) * largest(x) * math.Sqrt(float64(n))
		if e := residual(); !(e <= tol) {
			t.Errorf("n %d: residual %.2g, allowed %.2g", n, e, tol)
		}
		x[0] += 1e-6 * largest(x) // the check can fail
		if e := residual(); e <= tol {
			t.Errorf("n %d: the check does not see a wrong solution", n)
		}
	}
}

func TestCholeskyRefuses(t *testing.T) {
	for name, a := range map[string][]float64{
		"zero":       {0, 0, 0, 0},
		"negative":   {-1, 0, 0, 1},
		"indefinite": {1, 2, 2, 1},
		"singular":   {1, 1, 1, 1},
		"NaN":        {1, 0, 0, math.NaN()},
		"NaN beside": {1, math.NaN(), math.NaN(), 1},
		"-Inf":       {math.Inf(-1), 0, 0, 1},
	} {
		if _, err := cholesky(a, 2); !errors.Is(err, ErrNotPositive) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestOrthonormalize(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	for _, n := range []int{1, 2, 3, 17, 64} {
		for name, change := range map[string]func(a []float64){
			"random":     func([]float64) {},
			"zero":       func(a []float64) { clear(a) },
			"first zero": func(a []float64) { clear(a[:n]) },
			"last zero":  func(a []float64) { clear(a[len(a)-n:]) },
			"all equal": func(a []float64) {
				for i := range a {
					a[i] = 1
				}
			},
			"rank 1": func(a []float64) {
				for i := n; i < len(a); i++ {
					a[i] = a[i%n] * float64(i/n)
				}
			},
			"sums": func(a []float64) { // every third row is the sum of the two before
				for i := 2; i < n; i += 3 {
					for j := range n {
						a[i*n+j] = a[(i-1)*n+j] + a[(i-2)*n+j]
					}
				}
			},
			"nearly dependent": func(a []float64) {
				for i := 1; i < n; i++ {
					for j := range n {
						a[i*n+j] = a[j] + 1e-9*a[i*n+j]
					}
				}
			},
			"badly scaled": func(a []float64) {
				for i := range a {
					a[i] *= math.Pow(10, float64(i/n%40-20))
				}
			},
			"not finite": func(a []float64) { a[0], a[len(a)-1] = math.NaN(), math.Inf(1) },
		} {
			a := gaussians(r, n*n)
			change(a)
			before := slices.Clone(a)
			Orthonormalize(a, n)
			if e := orthoError(a, n); !(e < 1e-13) {
				t.Errorf("%s, n %d: off by %.2g", name, n, e)
			}
			if name != "random" {
				continue
			}
			// The span of the first rows stays: row i is a combination of rows 0 to i.
			for i := range n {
				rest := slices.Clone(before[i*n : (i+1)*n])
				for j := 0; j <= i; j++ {
					d := Dot(rest, a[j*n:(j+1)*n])
					for k := range rest {
						rest[k] -= d * a[j*n+k]
					}
				}
				if e := Norm(rest); !(e < 1e-12) {
					t.Errorf("n %d: row %d has %.2g outside the span", n, i, e)
				}
			}
			// Rows that are orthonormal already stay as they are.
			b := slices.Clone(a)
			Orthonormalize(b, n)
			for i := range b {
				if math.Abs(b[i]-a[i]) > 1e-15*float64(n) {
					t.Errorf("n %d: an orthonormal matrix changed by %g", n, b[i]-a[i])
				}
			}
		}
	}
}
