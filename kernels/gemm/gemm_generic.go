package gemm

import "github.com/phaseconv/phaseconv/kernels/internal/fma32"

// tileGeneric is the tile of the generic tier, and the reference for the others.
// It takes any number of rows and any width that is a multiple of 4.
func tileGeneric(rows, width, kc int, a []float32, lda int, b []float32, ldb int, c []float32, ldc int, add bool) {
	for r := range rows {
		ar := a[r*lda : r*lda+kc]
		cr := c[r*ldc : r*ldc+width]
		if !add {
			clear(cr)
		}
		for j := 0; j < width; j += 4 {
			cj := (*[4]float32)(cr[j:])
			s0, s1, s2, s3 := cj[0], cj[1], cj[2], cj[3]
			at := j
			for _, v := range ar {
				// Four times fma, written out: the chains overlap only without calls.
				bj := (*[4]float32)(b[at:])
				at += ldb
				x := float64(v)
				p0, p1, p2, p3 := x*float64(bj[0]), x*float64(bj[1]), x*float64(bj[2]), x*float64(bj[3])
				t0, t1, t2, t3 := p0+float64(s0), p1+float64(s1), p2+float64(s2), p3+float64(s3)
				if fma32.Doubtful(t0) || fma32.Doubtful(t1) || fma32.Doubtful(t2) || fma32.Doubtful(t3) {
					s0, s1, s2, s3 = fma32.Odd(p0, float64(s0)), fma32.Odd(p1, float64(s1)), fma32.Odd(p2, float64(s2)),
						fma32.Odd(p3, float64(s3))
					continue
				}
				s0, s1, s2, s3 = float32(t0), float32(t1), float32(t2), float32(t3)
			}
			cj[0], cj[1], cj[2], cj[3] = s0, s1, s2, s3
		}
	}
}
