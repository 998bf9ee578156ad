// Package seeded makes random matrices from a seed, the same on every machine.
package seeded

import (
	"math"
	"math/bits"
	"math/rand/v2"

	"github.com/phaseconv/phaseconv/kernels/fmath"
	"github.com/phaseconv/phaseconv/kernels/linalg"
)

// Stream returns the random numbers for one purpose. PCG is specified bit by bit,
// so a seed means the same on every machine and Go version.
func Stream(seed uint64, layer, head int, purpose uint64) *rand.PCG {
	return rand.NewPCG(seed, uint64(layer)<<40|uint64(head)<<20|purpose)
}

// What random numbers are drawn for.
const (
	PurposeSRHT uint64 = iota + 1
	PurposeRandom
	PurposeLearned
)

// uniform returns a number in (0, 1).
func uniform(r *rand.PCG) float64 { return (float64(r.Uint64()>>11) + 0.5) / (1 << 53) }

// Gaussian returns a standard normal number (Box-Muller).
func Gaussian(r *rand.PCG) float64 {
	u, v := uniform(r), uniform(r)
	_, c := fmath.SinCos(2 * math.Pi * v)
	return math.Sqrt(-2*fmath.Log(u)) * c
}

// RandomOrthogonal returns a d x d orthogonal matrix, uniformly distributed.
func RandomOrthogonal(d int, r *rand.PCG) []float64 {
	m := make([]float64, d*d)
	for i := range m {
		m[i] = Gaussian(r)
	}
	linalg.Orthonormalize(m, d)
	return m
}

// SRHT returns the d x d matrix H D of a randomised Hadamard transform: random
// signs, then the normalised Sylvester-Hadamard matrix. A dimension m*2^k with
// odd m > 1 has no such matrix for all of it; there H is the Kronecker product
// of the Hadamard matrix of 2^k and a random orthogonal m x m matrix.
func SRHT(d int, r *rand.PCG) []float64 {
	p := 1 << bits.TrailingZeros(uint(d))
	m := d / p
	sign := make([]float64, d)
	for i := range sign {
		sign[i] = 1 - 2*float64(r.Uint64()>>63)
	}
	small := []float64{1}
	if m > 1 {
		small = RandomOrthogonal(m, r)
	}
	scale := 1 / math.Sqrt(float64(p))
	out := make([]float64, d*d)
	for i := range d {
		for j := range d {
			h := scale
			if bits.OnesCount(uint(i/m)&uint(j/m))%2 == 1 {
				h = -h
			}
			out[i*d+j] = float64(h*small[i%m*m+j%m]) * sign[j]
		}
	}
	return out
}
