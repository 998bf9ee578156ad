package rotations

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/phaseconv/phaseconv/rotations/internal/linalg"
)

// random returns n numbers from [-1, 1), the same on every machine.
func random(r *rand.Rand, n int) []float32 {
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(2*r.Float64() - 1)
	}
	return x
}

// normal returns n numbers close to standard normal, the same on every machine:
// NormFloat64 uses functions whose last bit may differ.
func normal(r *rand.Rand, n int) []float32 {
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

// rotated returns x R for rows x of length d and an orthogonal R.
func rotated(r *rand.Rand, x []float32, d int) []float32 {
	q := make([]float64, d*d)
	for i, v := range normal(r, d*d) {
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

// keyish returns keys as models have them: a mean far from zero, energy that falls
// by several orders of magnitude over hidden directions, lengths that vary.
func keyish(r *rand.Rand, n, d int) []float32 {
	x := normal(r, n*d)
	for i := range n {
		length := float32(math.Exp2(float64(i%5) / 4))
		for j := range d {
			x[i*d+j] *= length * float32(math.Exp2(-8*float64(j)/float64(d)))
		}
	}
	x = rotated(r, x, d)
	mean := normal(r, d)
	for i := range x {
		x[i] += 2 * mean[i%d]
	}
	return x
}

// metric returns E[q q^T] of unit queries with the energy of keyish, turned
// another way.
func metric(r *rand.Rand, n, d int) ([]float64, []float32) {
	q := keyish(r, n, d)
	c := make([]float64, d*d)
	for i := 0; i < len(q); i += d {
		norm := dot64(q[i:i+d], q[i:i+d])
		for a := range d {
			for b := range d {
				c[a*d+b] += float64(q[i+a]) * float64(q[i+b]) / norm / float64(n)
			}
		}
	}
	return c, q
}

// codes returns one code of every kind (or of those given), and frames of several sizes.
func codes(t testing.TB, r *rand.Rand, d int, kinds ...string) map[string]*Code {
	t.Helper()
	if len(kinds) == 0 {
		kinds = Kinds
	}
	c, _ := metric(r, 4*d, d)
	s := &Sample{D: d, Keys: keyish(r, 12*d, d), Metric: c, Seed: 5, Threads: 1}
	out := map[string]*Code{}
	for _, kind := range kinds {
		sizes := []int{d}
		if kind == "frame" {
			sizes = []int{max(8, d/2&^7), (d + 7) &^ 7, d + 8&^7, (2*d + 7) &^ 7}
		}
		for _, b := range sizes {
			if kind != "frame" && b%8 != 0 {
				continue
			}
			code, _, err := Fit(kind, b, s)
			if err != nil {
				t.Fatal(err)
			}
			out[fmt.Sprintf("%s d=%d b=%d", kind, d, b)] = code
		}
	}
	return out
}

// signOf returns sign i of a key as +1 or -1.
func signOf(words []uint32, i int) float64 {
	if words[i/32]>>(i%32)&1 != 0 {
		return 1
	}
	return -1
}
