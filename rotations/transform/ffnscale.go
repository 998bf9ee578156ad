package transform

import (
	"math"

	"github.com/phaseconv/phaseconv/kernels/fmath"
)

// IDNeurons is identity G4, a positive diagonal between up and down of an FFN.
const IDNeurons = "G4"

// FFNBalance returns the scales of G4 that lose least when down is stored in a
// format whose error in a weight depends on its whole block: s^4 = down / energy,
// with energy_j the mean square of neuron j (up times activated gate) and down_j
// the squared length of its column in down. It minimises sum_j energy_j s_j^2
// times sum_j down_j / s_j^2, as the K/Q balance does for keys. A neuron that
// never fires, or that nothing reads, keeps a scale of one; the largest scales are
// cut off at MaxFFNScale.
func FFNBalance(energy, down []float64) []float32 {
	out := make([]float32, len(energy))
	var logs float64
	n := 0
	for j, e := range energy[:min(len(energy), len(down))] {
		// A quotient that is 0, infinite or NaN comes of numbers that say nothing.
		if q := down[j] / e; e > 0 && q > 0 && !math.IsInf(q, 0) {
			s := math.Sqrt(math.Sqrt(q))
			out[j] = float32(s)
			logs += fmath.Log(s)
			n++
		}
	}
	// Only ratios matter; the geometric mean of one keeps the size of both matrices.
	unit := float32(1)
	if n > 0 {
		unit = float32(fmath.Exp(-logs / float64(n)))
	}
	for j, s := range out {
		if s == 0 {
			out[j] = 1
			continue
		}
		out[j] = min(max(s*unit, 1/float32(MaxFFNScale)), MaxFFNScale)
	}
	return out
}

// MaxFFNScale bounds the scales of FFNBalance and their inverses.
const MaxFFNScale = 64
