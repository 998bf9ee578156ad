package gemm

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/phaseconv/phaseconv/kernels/internal/bench"
	"github.com/phaseconv/phaseconv/kernels/internal/impl"
)

// BenchmarkMul gives the speed of the whole product with packed weights, in
// GFLOP/s: the mean, the best call, and that as a share of the peak that Peak
// measures right before it.
func BenchmarkMul(b *testing.B) {
	shapes := [][3]int{
		{512, 576, 576}, {512, 1536, 576}, {512, 896, 4864}, {512, 4096, 4096},
		{512, 64, 512}, {512, 512, 64}, {1, 4096, 4096}, {1, 576, 576}, {4, 4096, 4096}, {8, 4096, 4096},
	}
	impl.TestAll(b, "gemm", func(b *testing.B) {
		for _, s := range shapes {
			m, n, k := s[0], s[1], s[2]
			flop := 2 * float64(m) * float64(n) * float64(k)
			for _, threads := range []int{1, 2} {
				b.Run(fmt.Sprintf("shape=%dx%dx%d/threads=%d", m, n, k, threads), func(b *testing.B) {
					if Tier() == "generic" && flop > 1e9 {
						b.Skip("the generic tier would take seconds per product")
					}
					r := rand.New(rand.NewPCG(1, 1))
					a, c := random(r, m*k), make([]float32, m*n)
					var w Weights
					w.PackRows(n, k, random(r, n*k), k, 0)
					peak := Peak(threads, 20*time.Millisecond)
					best := bench.Best(b, func() { Mul(c, n, a, k, m, &w, threads) })
					rate := flop / best.Seconds()
					b.ReportMetric(flop*float64(b.N)/b.Elapsed().Seconds()/1e9, "GFLOP/s")
					b.ReportMetric(rate/1e9, "best-GFLOP/s")
					b.ReportMetric(100*rate/peak, "%peak")
				})
			}
		}
	})
}

func BenchmarkPack(b *testing.B) {
	const n, k = 1536, 576
	r := rand.New(rand.NewPCG(1, 1))
	src := random(r, n*k)
	impl.TestAll(b, "gemm", func(b *testing.B) {
		var w Weights
		b.Run("rows", func(b *testing.B) {
			b.SetBytes(4 * n * k)
			for b.Loop() {
				w.PackRows(n, k, src, k, 1)
			}
		})
		b.Run("transpose", func(b *testing.B) {
			b.SetBytes(4 * n * k)
			for b.Loop() {
				w.PackT(n, k, src, n, 1)
			}
		})
	})
}
