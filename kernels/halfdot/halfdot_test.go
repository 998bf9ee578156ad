package halfdot

import (
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"github.com/phaseconv/phaseconv/kernels/internal/asmcheck"
	"github.com/phaseconv/phaseconv/kernels/internal/bench"
	"github.com/phaseconv/phaseconv/kernels/internal/fma32"
	"github.com/phaseconv/phaseconv/kernels/internal/guard"
	"github.com/phaseconv/phaseconv/kernels/internal/impl"
)

func TestRequires(t *testing.T) {
	asm, err := os.ReadFile("halfdot_amd64.s")
	if err != nil {
		t.Fatal(err)
	}
	features := map[string][]string{}
	for tier, f := range asmcheck.AMD64 {
		features[tier] = f
	}
	features["avx2"] = append(slices.Clone(features["avx2"]), "F16C")
	features["avx512vnni"] = append(slices.Clone(features["avx512"]), "F16C", "AVX512VL", "AVX512VNNI")
	for _, err := range asmcheck.Requires(string(asm), features) {
		t.Error(err)
	}
}

// randomHalf returns finite binary16 numbers of both signs, some subnormal.
func randomHalf(r *rand.Rand) uint16 {
	h := uint16(r.Uint32())
	if h&0x7c00 == 0x7c00 {
		h &^= 0x4000
	}
	return h
}

// define follows the package comment: all partial sums, then halves.
func define(q []float32, key []uint16) float32 {
	s := make([]float32, 64)
	for i, h := range key {
		s[i%64] = fma32.FMA(q[i], widen(h), s[i%64])
	}
	u := make([]float32, 16)
	for j := range u {
		u[j] = (s[j] + s[j+16]) + (s[j+32] + s[j+48])
	}
	for len(u) > 1 {
		for j := range u[:len(u)/2] {
			u[j] += u[j+len(u)/2]
		}
		u = u[:len(u)/2]
	}
	return u[0]
}

func TestScore(t *testing.T) {
	impl.TestAll(t, "halfdot", func(t *testing.T) {
		r := rand.New(rand.NewPCG(1, 1))
		for trial, d := range []int{1, 8, 63, 64, 65, 80, 96, 128, 192, 256, 320} {
			for _, n := range []int{0, 1, 2, 3, 17} {
				side := guard.Sides[trial%2]
				q := guard.Slice[float32](t, d, side)
				exact := 0.0
				for i := range q {
					q[i] = float32(r.NormFloat64())
				}
				keys := guard.Slice[uint16](t, n*d, side)
				for i := range keys {
					keys[i] = randomHalf(r)
				}
				out := guard.Slice[float32](t, n, side)
				Score(out, q, keys, n)
				for i, got := range out {
					key := keys[i*d : (i+1)*d]
					if want := define(q, key); math.Float32bits(got) != math.Float32bits(want) {
						t.Fatalf("d %d, key %d of %d: got %x, want %x", d, i, n, got, want)
					}
					exact = 0
					size := 0.0
					for j := range q {
						p := float64(q[j]) * float64(widen(key[j]))
						exact += p
						size += math.Abs(p)
					}
					// At most d/64 roundings in a chain and 6 in the tree.
					if tol := float64(d/64+7) * 0x1p-24 * size; math.Abs(float64(got)-exact) > tol {
						t.Fatalf("d %d, key %d: got %v, exact %v", d, i, got, exact)
					}
				}
			}
		}
	})
}

func TestMisuse(t *testing.T) {
	for name, f := range map[string]func(){
		"out short":  func() { Score(make([]float32, 1), make([]float32, 64), make([]uint16, 128), 2) },
		"keys short": func() { Score(make([]float32, 2), make([]float32, 64), make([]uint16, 127), 2) },
		"negative":   func() { Score(nil, make([]float32, 64), nil, -1) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			f()
		}()
	}
}

func BenchmarkScore(b *testing.B) {
	impl.TestAll(b, "halfdot", func(b *testing.B) {
		for _, n := range []int{8 << 10, 1 << 20} {
			for _, d := range []int{64, 128, 256} {
				b.Run(fmt.Sprintf("keys=%d/dim=%d", n, d), func(b *testing.B) {
					r := rand.New(rand.NewPCG(1, 1))
					q, out := make([]float32, d), make([]float32, n)
					for i := range q {
						q[i] = float32(r.NormFloat64())
					}
					keys := slices.Repeat([]uint16{0x3c00}, n*d)
					b.SetBytes(int64(2 * n * d))
					best := bench.Best(b, func() { Score(out, q, keys, n) })
					b.ReportMetric(float64(best.Nanoseconds())/float64(n), "best-ns/key")
				})
			}
		}
	})
}
