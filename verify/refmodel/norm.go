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

// norm is the norm of the residual stream and of what is added to it.
func (m *Model) norm(dst, x, gain []float32) {
	if m.Config.LayerNorm {
		layerNorm(dst, x, gain, m.Config.NormEps, m.Threads)
		return
	}
	rmsNorm(dst, x, gain, m.Config.NormEps, m.Threads)
}

// layerNorm sets dst = (x - mean(x)) / std(x) * gain for every row of length len(gain). Mean and
// variance are formed in float64.
func layerNorm(dst, x, gain []float32, eps float64, threads int) {
	d := len(gain)
	parallel.Rows(threads, len(x)/d, func(r0, r1 int) {
		for r := r0; r < r1; r++ {
			src, out := x[r*d:(r+1)*d], dst[r*d:(r+1)*d]
			var mean, sum float64
			for _, v := range src {
				mean += float64(v)
			}
			mean /= float64(d)
			for i, v := range src {
				c := float64(v) - mean
				sum += float64(c * c)
				out[i] = float32(c)
			}
			fmath.ScaleMul(out, out, float32(1/math.Sqrt(sum/float64(d)+eps)), gain)
		}
	})
}

// unitGains returns n gains of one.
func unitGains(n int) []float32 {
	g := make([]float32, n)
	for i := range g {
		g[i] = 1
	}
	return g
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

// addScaled adds scale times src to dst.
func addScaled(dst, src []float32, scale float64, threads int) {
	if scale != 1 {
		f := float32(scale)
		for i, v := range src {
			src[i] = float32(v * f)
		}
	}
	addTo(dst, src, threads)
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
