package gemm

import (
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/phaseconv/phaseconv/kernels/internal/fma32"
)

// Peak measures how many floating point operations per second the machine
// reaches with the multiply-add of the tier in use, in registers only, on the
// given number of threads at once for about the given time. A multiply-add
// counts as two. It is the yardstick for Mul, not a property of the machine:
// clocks and neighbours change it from one moment to the next.
func Peak(threads int, d time.Duration) float64 {
	loop, flop := peakLoop()
	rates := make([]float64, max(threads, 1))
	var wg sync.WaitGroup
	for i := range rates {
		wg.Go(func() {
			const iterations = 1 << 12
			best := math.Inf(1)
			for start := time.Now(); time.Since(start) < d; {
				t := time.Now()
				loop(iterations)
				best = min(best, time.Since(t).Seconds())
			}
			rates[i] = iterations * flop / best
		})
	}
	wg.Wait()
	var sum float64
	for _, r := range rates {
		sum += r
	}
	return sum
}

// peakGeneric is the loop of the generic tier: 4 independent chains.
func peakGeneric(iterations int) {
	x := peakInput
	s0, s1, s2, s3 := x, x, x, x
	for range iterations {
		s0, s1, s2, s3 = fma32.FMA(x, x, s0), fma32.FMA(x, x, s1), fma32.FMA(x, x, s2), fma32.FMA(x, x, s3)
	}
	peakSink.Store(math.Float32bits(s0 + s1 + s2 + s3))
}

// peakInput and peakSink keep the compiler from working the loop out itself.
var (
	peakInput float32 = 1
	peakSink  atomic.Uint32
)

// peakLoop returns the loop of the tier in use and its operations per iteration.
func peakLoop() (loop func(iterations int), flop float64) {
	if t := current(); t.peak != nil {
		return t.peak, t.peakFlop
	}
	return peakGeneric, 4 * 2
}
