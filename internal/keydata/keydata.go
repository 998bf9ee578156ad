// Package keydata makes keys and queries for tests. It is for tests.
package keydata

import (
	"math"
	"math/rand/v2"

	"github.com/phaseconv/phaseconv/kernels/linalg"
)

// Uniform returns n numbers from [-1, 1), the same on every machine.
func Uniform(r *rand.Rand, n int) []float32 {
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(2*r.Float64() - 1)
	}
	return x
}

// Normal returns n numbers close to standard normal, the same on every machine:
// NormFloat64 uses functions whose last bit may differ.
func Normal(r *rand.Rand, n int) []float32 {
	x := make([]float32, n)
	for i := range x {
		g := -6.0
		for range 12 {
			g += r.Float64()
		}
		x[i] = float32(g)
	}
	return x
}

// Rotated returns x R for rows x of length d and an orthogonal R.
func Rotated(r *rand.Rand, x []float32, d int) []float32 {
	q := make([]float64, d*d)
	for i, v := range Normal(r, d*d) {
		q[i] = float64(v)
	}
	linalg.Orthonormalize(q, d)
	out := make([]float32, len(x))
	for i := 0; i < len(x); i += d {
		for j := range d {
			var s float64
			for k := range d {
				s += float64(float64(x[i+k]) * q[k*d+j])
			}
			out[i+j] = float32(s)
		}
	}
	return out
}

// Keyish returns keys as models have them: a mean far from zero, energy that falls
// by several orders of magnitude over hidden directions, lengths that vary.
func Keyish(r *rand.Rand, n, d int) []float32 {
	x := Normal(r, n*d)
	for i := range n {
		length := float32(math.Exp2(float64(i%5) / 4))
		for j := range d {
			x[i*d+j] *= length * float32(math.Exp2(-8*float64(j)/float64(d)))
		}
	}
	x = Rotated(r, x, d)
	mean := Normal(r, d)
	for i := range x {
		x[i] += 2 * mean[i%d]
	}
	return x
}

// Metric returns E[q q^T] of unit queries with the energy of keyish, turned
// another way.
func Metric(r *rand.Rand, n, d int) ([]float64, []float32) {
	q := Keyish(r, n, d)
	c := make([]float64, d*d)
	for i := 0; i < len(q); i += d {
		norm := linalg.Dot64(q[i:i+d], q[i:i+d])
		for a := range d {
			for b := range d {
				c[a*d+b] += float64(q[i+a]) * float64(q[i+b]) / norm / float64(n)
			}
		}
	}
	return c, q
}
