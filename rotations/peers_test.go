package rotations

import (
	"math"
	"math/bits"
	"testing"
)

// TestPeers_SignThenHadamard: random signs and the Hadamard matrix do not commute,
// and programs that took them in the other order read each other's caches as
// noise. Here a key meets its signs first: the matrix is H D, so each column is
// one of H's, turned as a whole. D H would turn rows.
func TestPeers_SignThenHadamard(t *testing.T) {
	for _, d := range []int{8, 64, 256} {
		c, err := DataFree("srht", d, 5, 1, 0)
		if err != nil {
			t.Fatal(err)
		}
		sign := func(i, j int) int {
			if math.Signbit(float64(c.Decode[i*d+j])) {
				return -1
			}
			return 1
		}
		hadamard := func(i, j int) int { return 1 - 2*(bits.OnesCount(uint(i&j))%2) }
		minus, rows := 0, 0
		for j := range d {
			if sign(0, j) < 0 {
				minus++
			}
			for i := range d {
				if sign(i, j) != sign(0, j)*hadamard(i, j) {
					t.Fatalf("d=%d: entry (%d, %d) is not that of H D", d, i, j)
				}
				if sign(i, j) != sign(i, 0)*hadamard(i, j) {
					rows++
				}
			}
		}
		// The input is asymmetric enough to tell the orders apart.
		if minus == 0 || minus == d || rows == 0 {
			t.Errorf("d=%d: %d of %d signs are negative, %d entries tell H D from D H", d, minus, d, rows)
		}
	}
}
