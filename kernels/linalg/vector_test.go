package linalg

import (
	"math"
	"math/rand/v2"
	"testing"
)

// TestAddOuters: many rows at once give what one row after the other does, within what float32
// loses, and what was in the sum stays there.
func TestAddOuters(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	const d, n = 24, 3*outersRows + 5
	x, weights := make([]float32, n*d), make([]float64, n)
	for i := range x {
		x[i] = float32(r.NormFloat64())
	}
	for i := range weights {
		weights[i] = r.Float64()
	}
	for _, w := range [][]float64{weights, nil} {
		got, want, size := make([]float64, d*d), make([]float64, d*d), make([]float64, d*d)
		got[3], want[3] = 7, 7
		AddOuters(got, x, w, d)
		for i := range n {
			weight := 1.0
			if w != nil {
				weight = w[i]
			}
			row := x[i*d : (i+1)*d]
			AddOuter(want, row, weight)
			for a, v := range row {
				for b, u := range row {
					size[a*d+b] += weight * math.Abs(float64(v)*float64(u))
				}
			}
		}
		for i := range got {
			// Chains of 128 roundings to 2^-24, that rarely agree; two more in the weights' roots.
			if e := math.Abs(got[i] - want[i]); e > 1e-6*size[i] {
				t.Fatalf("entry %d: %g, want %g", i, got[i], want[i])
			}
		}
	}
	AddOuters(nil, nil, nil, d)
}
