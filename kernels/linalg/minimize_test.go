package linalg

import (
	"math"
	"math/rand/v2"
	"testing"
)

// TestInverse: A A^-1 is the identity, also where rows must change places;
// singular matrices and those with NaN have none.
func TestInverse(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{1, 2, 3, 17, 64} {
		a := gaussians(r, n*n)
		a[0] = 0
		if n == 1 {
			a[0] = -3
		}
		inverse, err := Inverse(a, n)
		if err != nil {
			t.Fatal(err)
		}
		var worst float64
		for i := range n {
			for j := range n {
				var x float64
				for k := range n {
					x += a[i*n+k] * inverse[k*n+j]
				}
				if i == j {
					x--
				}
				worst = max(worst, math.Abs(x))
			}
		}
		// Elimination loses about the condition number, here up to some thousands.
		if !(worst < 1e-10) {
			t.Errorf("n = %d: A A^-1 is %g from the identity", n, worst)
		}
	}
	for name, a := range map[string][]float64{"zero": {0, 0, 0, 0}, "rank one": {1, 2, 2, 4}, "NaN": {1, 0, 0, math.NaN()}, "infinite": {1, 0, 0, math.Inf(1)}} {
		if _, err := Inverse(a, 2); err == nil {
			t.Errorf("%s: has an inverse", name)
		}
	}
}

// TestMinimize: the minimum of a badly scaled quadratic and of Rosenbrock's valley is
// found, and no step goes up.
func TestMinimize(t *testing.T) {
	last := math.Inf(1)
	quadratic := func(x []float64) (f float64, g []float64) {
		for i, v := range x {
			c := math.Pow(10, float64(i%5))
			f += c * (v - 1) * (v - 1)
			g = append(g, 2*c*(v-1))
		}
		return f, g
	}
	x, f, steps := minimize(constant(20, 3), constant(20, 100), quadratic, 200, 1e-12)
	if !(f < 1e-8) || math.Abs(x[0]-1) > 1e-3 || steps == 0 || steps == 200 {
		t.Errorf("quadratic: %g at %v after %d steps", f, x[:5], steps)
	}
	for _, n := range []int{1, 5, 500} {
		_, f, steps := minimize([]float64{-1.2, 1}, constant(2, 100), func(x []float64) (float64, []float64) {
			a, b := 1-x[0], x[1]-x[0]*x[0]
			return a*a + 100*b*b, []float64{-2*a - 400*x[0]*b, 200 * b}
		}, n, 1e-15)
		if !(f < last) || steps > n || n == 500 && f > 1e-10 {
			t.Errorf("valley: %g after %d of %d steps, %g before", f, steps, n, last)
		}
		last = f
	}
}

func constant(n int, v float64) []float64 {
	out := make([]float64, n)
	for i := range out {
		out[i] = v
	}
	return out
}
