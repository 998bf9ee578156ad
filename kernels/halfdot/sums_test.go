package halfdot

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/phaseconv/phaseconv/kernels/internal/bench"
	"github.com/phaseconv/phaseconv/kernels/internal/fma32"
	"github.com/phaseconv/phaseconv/kernels/internal/guard"
	"github.com/phaseconv/phaseconv/kernels/internal/impl"
)

// TestSum holds sums in all three formats against their documentation.
func TestSum(t *testing.T) {
	impl.TestAll(t, "halfdot", func(t *testing.T) {
		r := rand.New(rand.NewPCG(7, 1))
		for trial, d := range []int{32, 64, 96, 128, 256} {
			for _, n := range []int{0, 1, 2, 3, 17} {
				side := guard.Sides[trial%2]
				w := guard.Slice[float32](t, n, side)
				for i := range w {
					w[i] = float32(r.NormFloat64())
				}
				start := make([]float32, d)
				for i := range start {
					start[i] = float32(r.NormFloat64())
				}
				check := func(name string, run func(out []float32), factor func(j, i int) (x, y float32)) {
					t.Helper()
					out := guard.Copy(t, start, side)
					run(out)
					for i, got := range out {
						want := start[i]
						for j := range n {
							x, y := factor(j, i)
							want = fma32.FMA(x, y, want)
						}
						if math.Float32bits(got) != math.Float32bits(want) {
							t.Fatalf("%s: d %d, n %d, number %d: got %v, want %v", name, d, n, i, got, want)
						}
					}
				}
				half := guard.Slice[uint16](t, n*d, side)
				for i := range half {
					half[i] = randomHalf(r)
				}
				check("F16", func(out []float32) { Sum(out, w, half, n) },
					func(j, i int) (float32, float32) { return widen(half[j*d+i]), w[j] })
				for _, f := range formats {
					size := d / BlockLen * f.size
					values := guard.Slice[byte](t, n*size, side)
					randomKeys(r, values, f.size)
					sum := SumQ8
					if f.size == BytesQ4 {
						sum = SumQ4
					}
					check(f.name, func(out []float32) { sum(out, w, values, n) }, func(j, i int) (float32, float32) {
						b := values[j*size+i/32*f.size:]
						return float32(f.number(b, i%32)), float32(widen(binary.LittleEndian.Uint16(b)) * w[j])
					})
				}
			}
		}
	})
}

func TestSumMisuse(t *testing.T) {
	out, w := make([]float32, 64), make([]float32, 2)
	for name, f := range map[string]func(){
		"values short":  func() { Sum(out, w, make([]uint16, 127), 2) },
		"weights short": func() { Sum(out, w[:1], make([]uint16, 128), 2) },
		"negative":      func() { Sum(out, w, nil, -1) },
		"no block":      func() { SumQ8(out[:40], w, make([]byte, 136), 2) },
		"blocks short":  func() { SumQ4(out, w, make([]byte, 71), 2) },
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
	if slices.ContainsFunc(out, func(v float32) bool { return v != 0 }) {
		t.Error("written before the panic")
	}
}

func BenchmarkSum(b *testing.B) {
	impl.TestAll(b, "halfdot", func(b *testing.B) {
		for _, d := range []int{64, 128} {
			const n = 4096
			w, out := make([]float32, n), make([]float32, d)
			half := slices.Repeat([]uint16{0x3c00}, n*d)
			q8, q4 := slices.Repeat([]byte{0x3c}, n*d/32*BytesQ8), slices.Repeat([]byte{0x3c}, n*d/32*BytesQ4)
			for name, run := range map[string]func(){"F16": func() { Sum(out, w, half, n) },
				"Q8_0": func() { SumQ8(out, w, q8, n) }, "Q4_0": func() { SumQ4(out, w, q4, n) }} {
				b.Run(fmt.Sprintf("format=%s/dim=%d", name, d), func(b *testing.B) {
					best := bench.Best(b, run)
					b.ReportMetric(float64(best.Nanoseconds())/n, "best-ns/value")
				})
			}
		}
	})
}
