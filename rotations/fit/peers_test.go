package fit

import (
	"math"
	"math/bits"
	"math/rand/v2"
	"testing"

	"github.com/phaseconv/phaseconv/rotations/codec"
)

// TestPeers_SignThenHadamard: random signs and the Hadamard matrix do not commute,
// and programs that took them in the other order read each other's caches as
// noise. Here a key meets its signs first: the matrix is H D, so each column is
// one of H's, turned as a whole. D H would turn rows.
func TestPeers_SignThenHadamard(t *testing.T) {
	for _, d := range []int{8, 64, 256} {
		c, err := codec.DataFree("srht", d, 5, 1, 0)
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

// TestPeers_DoubleRotation: runtimes that apply a Hadamard transform of their own to
// the keys and queries of a low-bit cache must not do so before coding. Float
// scores would not show it, because such a transform is orthogonal; coded ones do.
func TestPeers_DoubleRotation(t *testing.T) {
	const d, n = 64, 200
	c, err := codec.DataFree("random", d, 7, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	// Keys for which the code is exact: alpha M s.
	keys := make([]float32, n*d)
	words, alpha := make([]uint32, n*c.Words()), make([]float32, n)
	for i := range words {
		words[i] = rng.Uint32()
	}
	for i := range alpha {
		alpha[i] = 1 + rng.Float32()
	}
	c.DecodeKeys(keys, words, alpha)
	hadamard := func(x []float32) []float32 {
		y := make([]float32, d)
		for i := range y {
			for j, v := range x {
				y[i] += v * float32(1-2*(bits.OnesCount(uint(i&j))%2)) / 8 // 1/sqrt(d)
			}
		}
		return y
	}
	dot := func(x, y []float32) (s float64) {
		for i := range x {
			s += float64(x[i]) * float64(y[i])
		}
		return s
	}
	// Root mean square error of scores against a query, relative to their own size:
	// float scores after the runtime's rotation, coded ones without it and with it.
	var float, once, twice, size float64
	hat, w := make([]float32, d), make([]uint32, c.Words())
	for i := range n {
		k, q := keys[i*d:(i+1)*d], make([]float32, d)
		for j := range q {
			q[j] = float32(rng.NormFloat64())
		}
		exact := dot(k, q)
		size += exact * exact
		hk, hq := hadamard(k), hadamard(q)
		float += math.Pow(dot(hk, hq)-exact, 2)
		c.DecodeKey(hat, w, c.EncodeKey(k, w))
		once += math.Pow(dot(hat, q)-exact, 2)
		c.DecodeKey(hat, w, c.EncodeKey(hk, w))
		twice += math.Pow(dot(hat, hq)-exact, 2)
	}
	float, once, twice = math.Sqrt(float/size), math.Sqrt(once/size), math.Sqrt(twice/size)
	t.Logf("relative error of scores: float after a Hadamard %.1e, coded %.1e, coded after a Hadamard %.2f", float, once,
		twice)
	// alpha is stored in F16.
	if float > 1e-5 || once > 1.0/1024 {
		t.Errorf("float scores err by %.1e, coded ones by %.1e: the test's keys are not exact", float, once)
	}
	// One bit of a Gaussian number leaves sqrt(1-2/pi) = 0.60 of it as error.
	if twice < 0.4 {
		t.Errorf("coded scores after a second rotation err by %.2f only", twice)
	}
}
