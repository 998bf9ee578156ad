package refmodel

import (
	"math"

	"github.com/phaseconv/phaseconv/kernels/fmath"
	"github.com/phaseconv/phaseconv/kernels/parallel"
)

// rmsNorm sets dst = x / rms(x) * gain for every row of length len(gain).
// The mean of squares is formed in float64.
func rmsNorm(dst, x, gain []float32, eps float64, threads int) {
	d := len(gain)
	parallel.Rows(threads, len(x)/d, func(r0, r1 int) {
		for r := r0; r < r1; r++ {
			src, out := x[r*d:(r+1)*d], dst[r*d:(r+1)*d]
			scale := float32(1 / math.Sqrt(fmath.SumSq(src)/float64(d)+eps))
			fmath.ScaleMul(out, src, scale, gain)
		}
	})
}

func addBias(x, bias []float32) {
	if bias == nil {
		return
	}
	d := len(bias)
	for r := 0; r < len(x); r += d {
		row := x[r : r+d]
		for i, b := range bias {
			row[i] += b
		}
	}
}

func addTo(dst, src []float32, threads int) {
	const piece = 1 << 15
	parallel.Do(threads, (len(src)+piece-1)/piece, func(i int) {
		from, to := i*piece, min(len(src), (i+1)*piece)
		d := dst[from:to]
		for k, v := range src[from:to] {
			d[k] += v
		}
	})
}
