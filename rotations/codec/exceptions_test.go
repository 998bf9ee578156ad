package codec_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/phaseconv/phaseconv/format/dtype"
	"github.com/phaseconv/phaseconv/internal/keydata"
	"github.com/phaseconv/phaseconv/kernels/linalg"
	"github.com/phaseconv/phaseconv/kernels/onebit"
	"github.com/phaseconv/phaseconv/rotations/codec"
)

// TestExceptionScores: a score from signs and exceptions is the product of the
// query with the decoded key, for the kernels too, and exceptions of a wrong
// frame would be seen.
func TestExceptionScores(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	const d, n = 64, 33
	for name, c := range codes(t, r, d, "learned", "frame") {
		for _, per := range []int{0, 1, 8, 32} {
			t.Run(fmt.Sprintf("%s, %d exceptions", name, per), func(t *testing.T) {
				keys := keydata.Keyish(r, n, d)
				words, alpha, plain := make([]uint32, n*c.Words()), make([]float32, n), make([]float32, n*d)
				encode(t, c, keys, words, alpha)
				c.DecodeKeys(plain, words, alpha)
				x, err := codec.Except(keys, plain, d, per)
				if err != nil {
					t.Fatal(err)
				}
				hat := append([]float32(nil), plain...)
				x.Add(hat, d)
				q := keydata.Normal(r, d)
				got, others := make([]float32, n), make([]float32, n)
				onebit.AddExceptions(got, q, x.Index, x.Values, per, n)
				onebit.AddExceptions(others, append(q[1:], q[0]), x.Index, x.Values, per, n)
				differ := false
				for i := range n {
					want := linalg.Dot64(q, hat[i*d:(i+1)*d]) - linalg.Dot64(q, plain[i*d:(i+1)*d])
					// The decoded key was rounded to float32 once more at each exception.
					room := 1e-6 * math.Sqrt(linalg.Dot64(q, q)*linalg.Dot64(keys[i*d:(i+1)*d], keys[i*d:(i+1)*d]))
					if math.Abs(float64(got[i])-want) > room {
						t.Errorf("key %d: %g, want %g", i, got[i], want)
					}
					differ = differ || math.Abs(float64(others[i])-want) > room
				}
				if differ != (per > 0) {
					t.Error("another query goes unnoticed")
				}
			})
		}
	}
}

// TestExcept: the coordinates that are kept are the worst ones, they come back as
// binary16 holds them, and more of them never make a key worse.
func TestExcept(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 10))
	const d, n = 32, 50
	c := codes(t, r, d, "frame")["frame d=32 b=32"]
	keys := keydata.Keyish(r, n, d)
	words, alpha, plain := make([]uint32, n*c.Words()), make([]float32, n), make([]float32, n*d)
	encode(t, c, keys, words, alpha)
	c.DecodeKeys(plain, words, alpha)
	last := math.Inf(1)
	for per := range d/2 + 1 {
		x, err := codec.Except(keys, plain, d, per)
		if err != nil {
			t.Fatal(err)
		}
		hat := append([]float32(nil), plain...)
		x.Add(hat, d)
		var lost float64
		for i := range n {
			kept := map[int]bool{}
			least := math.Inf(1)
			for e, j := range x.Of(i).Index {
				if e > 0 && j <= x.Of(i).Index[e-1] {
					t.Fatalf("coordinates %v", x.Of(i).Index)
				}
				kept[int(j)] = true
				at := i*d + int(j)
				least = min(least, math.Abs(float64(keys[at]-plain[at])))
				most := 0x1p-11*math.Abs(float64(keys[at]-plain[at])) + 1e-6*math.Abs(float64(keys[at]))
				if rest := math.Abs(float64(keys[at] - hat[at])); rest > most {
					t.Fatalf("key %d, coordinate %d: %g instead of %g", i, j, hat[at], keys[at])
				}
			}
			for j := range d {
				at := i*d + j
				e := float64(keys[at] - hat[at])
				lost += e * e
				if !kept[j] && (math.Abs(e) > least || math.Float32bits(hat[at]) != math.Float32bits(plain[at])) {
					t.Fatalf("key %d: coordinate %d is off by %g and not kept, the least that is was off by %g", i, j, e, least)
				}
			}
		}
		if lost > last {
			t.Errorf("%d exceptions lose %g, one less %g", per, lost, last)
		}
		last = lost
	}
}

// TestExceptTies: of equal errors the first coordinates are kept; values that
// binary16 cannot hold are cut.
func TestExceptTies(t *testing.T) {
	keys := []float32{1, -2, 2, 2, 0, 0, 0, 0, 1e9, -1e9, 0, 0, 0, 0, 0, 0}
	x, err := codec.Except(keys, make([]float32, 16), 8, 2)
	if err != nil {
		t.Fatal(err)
	}
	want := []float32{-2, 2, codec.MaxAlpha, -codec.MaxAlpha}
	for i, at := range []uint8{1, 2, 0, 1} {
		if v := dtype.F16ToF32(x.Values[i]); x.Index[i] != at || v != want[i] {
			t.Errorf("exception %d is %g at %d, want %g at %d", i, v, x.Index[i], want[i], at)
		}
	}
	for _, bad := range [][2]int{{-1, 64}, {33, 64}, {1, 512}, {129, 256}} {
		if _, err := codec.Except(nil, nil, bad[1], bad[0]); err == nil {
			t.Errorf("%d exceptions of %d numbers: no error", bad[0], bad[1])
		}
	}
	nan := float32(math.NaN())
	if _, err := codec.Except([]float32{nan, nan, 1, nan}, make([]float32, 4), 4, 2); err != nil {
		t.Error(err)
	}
}
