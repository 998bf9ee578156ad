package linalg

import (
	"math"
	"math/rand/v2"
	"testing"

	"gonum.org/v1/gonum/mat"
	"gonum.org/v1/gonum/optimize"
)

// The tests of this file hold the package against gonum, which uses other methods:
// tridiagonal eigenvectors, blocked factors, singular values. Fits do not use it,
// because its last bits depend on the machine; here only digits count that do not.

var oracleSizes = []int{1, 2, 3, 8, 17, 64}

// apart is the largest difference of two matrices over the largest entry of the second.
func apart(x []float64, y mat.Matrix) float64 {
	rows, cols := y.Dims()
	if len(x) != rows*cols {
		return math.Inf(1)
	}
	var worst, most float64
	for i := range rows {
		for j := range cols {
			worst = max(worst, math.Abs(x[i*cols+j]-y.At(i, j)))
			most = max(most, math.Abs(y.At(i, j)))
		}
	}
	if most == 0 {
		return worst
	}
	return worst / most
}

// covariance returns the second moments of twice as many random vectors as they are
// long, whose numbers differ a hundredfold in size, as those of keys do.
func covariance(r *rand.Rand, n int) []float64 {
	x := gaussians(r, 2*n*n)
	for i := range x {
		x[i] *= math.Pow(100, float64(i%n)/float64(n))
	}
	var c mat.Dense
	m := mat.NewDense(2*n, n, x)
	c.Mul(m.T(), m)
	return c.RawMatrix().Data
}

func TestGonumEigen(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(21, 1))
	for _, n := range oracleSizes {
		a := covariance(r, n)
		values, v := eigen(a, n)
		var e mat.EigenSym
		if !e.Factorize(mat.NewSymDense(n, a), true) {
			t.Fatal("gonum finds no eigenvectors")
		}
		theirs := e.Values(nil) // smallest first
		var w mat.Dense
		e.VectorsTo(&w)
		for i := range n {
			if d := math.Abs(values[i] - theirs[n-1-i]); !(d <= eigenTolerance(n)*values[0]) {
				t.Errorf("n %d: eigenvalue %d is %v, gonum has %v", n, i, values[i], theirs[n-1-i])
			}
			// Vectors are those of gonum up to sign, as far as eigenvalues are apart.
			var product float64
			gap := math.Inf(1)
			for j := range n {
				product += v[i*n+j] * w.At(j, n-1-i)
				if j != i {
					gap = min(gap, math.Abs(values[i]-values[j]))
				}
			}
			if tol := 10 * eigenTolerance(n) * values[0] / gap; !(1-math.Abs(product) <= tol) {
				t.Errorf("n %d: eigenvector %d and gonum's have the product %v", n, i, product)
			}
		}
	}
}

func TestGonumCholesky(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(22, 1))
	for _, n := range oracleSizes {
		a := covariance(r, n)
		l, err := cholesky(a, n)
		if err != nil {
			t.Fatal(err)
		}
		var c mat.Cholesky
		if !c.Factorize(mat.NewSymDense(n, a)) {
			t.Fatal("gonum finds no factor")
		}
		var theirs mat.TriDense
		c.LTo(&theirs)
		if d := apart(l, &theirs); !(d < 1e-12) {
			t.Errorf("n %d: the factor is %.2g from gonum's", n, d)
		}
		const m = 5
		rhs := gaussians(r, m*n)
		x := solveRight(rhs, m, l, n)
		var solved mat.Dense // A X^T = rhs^T, and A is symmetric
		if err := c.SolveTo(&solved, mat.NewDense(m, n, rhs).T()); err != nil {
			t.Fatal(err)
		}
		if d := apart(x, solved.T()); !(d < 1e-10) {
			t.Errorf("n %d: the solution is %.2g from gonum's", n, d)
		}
	}
}

func TestGonumInverse(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(23, 1))
	for _, n := range oracleSizes {
		a := gaussians(r, n*n)
		x, err := Inverse(a, n)
		if err != nil {
			t.Fatal(err)
		}
		var theirs mat.Dense
		if err := theirs.Inverse(mat.NewDense(n, n, a)); err != nil {
			t.Fatal(err)
		}
		if d := apart(x, &theirs); !(d < 1e-10) {
			t.Errorf("n %d: the inverse is %.2g from gonum's", n, d)
		}
	}
}

// TestGonumPolar: the polar factor is U V^T of the singular vectors.
func TestGonumPolar(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(24, 1))
	for _, n := range oracleSizes {
		// Singular values from 1 to 1/10: float32 finds the factor of those.
		values := make([]float64, n)
		for i := range values {
			values[i] = math.Pow(10, -float64(i)/float64(n))
		}
		q := gaussians(r, n*n)
		Orthonormalize(q, n)
		var c, u, v, theirs mat.Dense
		c.Mul(mat.NewDense(n, n, q), mat.NewDense(n, n, symmetric(r, values)))
		c32 := floats32(c.RawMatrix().Data)
		var s mat.SVD
		if !s.Factorize(mat.NewDense(n, n, floats64(c32)), mat.SVDFull) {
			t.Fatal("gonum finds no singular vectors")
		}
		s.UTo(&u)
		s.VTo(&v)
		theirs.Mul(&u, v.T())
		if d := apart(floats64(polar(c32, n, 1)), &theirs); !(d < 2e-5) {
			t.Errorf("n %d: Polar is %.2g from gonum's U V^T", n, d)
		}
		if d := apart(floats64(byEigen(c32, n)), &theirs); !(d < 2e-5) {
			t.Errorf("n %d: polarByEigen is %.2g from gonum's U V^T", n, d)
		}
	}
}

// TestGonumMinimize: gonum's L-BFGS finds no lower point of the kind of function
// that fits minimise, a norm that is nearly kinked and a quadratic.
func TestGonumMinimize(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(25, 1))
	for _, n := range []int{2, 8, 32} {
		a, b := covariance(r, n), gaussians(r, n)
		f := func(x []float64) (float64, []float64) {
			g := make([]float64, n)
			var sum float64
			for i, v := range x {
				s := math.Sqrt(1e-4 + v*v)
				sum += s
				g[i] += v / s
			}
			for i := range n {
				var row float64
				for j, v := range x {
					row += a[i*n+j] * (v - b[j])
				}
				sum += row * (x[i] - b[i]) / 2
				g[i] += row
			}
			return sum, g
		}
		curvature := make([]float64, n)
		for i := range curvature {
			curvature[i] = a[i*n+i]
		}
		x, got, _ := minimize(b, curvature, f, 2000, 1e-14)
		res, err := optimize.Minimize(optimize.Problem{
			Func: func(x []float64) float64 { v, _ := f(x); return v },
			Grad: func(g, x []float64) { _, h := f(x); copy(g, h) },
		}, b, &optimize.Settings{GradientThreshold: 1e-9}, &optimize.LBFGS{})
		if res == nil {
			t.Fatal(err)
		}
		if !(math.Abs(got-res.F) <= 1e-8*res.F) {
			t.Errorf("n %d: %v, gonum finds %v", n, got, res.F)
		}
		if d := apart(x, mat.NewDense(n, 1, res.X)); !(d < 1e-3) {
			t.Errorf("n %d: the minimum is %.2g from gonum's", n, d)
		}
	}
}
