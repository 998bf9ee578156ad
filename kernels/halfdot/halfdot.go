// Package halfdot computes attention scores against keys in IEEE binary16, the
// usual KV cache, and in GGML's Q8_0 and Q4_0: the baselines that package onebit is
// measured against.
//
// All tiers give the same bits. For binary16: with t[i] = element i, t goes to the partial sum
// i mod 64 by a fused multiply-add in float32, in ascending order from +0. The 64
// sums are added as (s[j] + s[j+16]) + (s[j+32] + s[j+48]) for j < 16, then the
// upper half to the lower half until one is left.
package halfdot

import (
	"fmt"
	"math"

	"github.com/phaseconv/phaseconv/kernels/internal/fma32"
)

// partial is the number of partial sums: four registers of AVX-512.
const partial = 64

// Score sets out[i] to the product of q with key i, for n keys of len(q) binary16
// numbers each, one key after another in keys.
func Score(out, q []float32, keys []uint16, n int) {
	d := len(q)
	if n < 0 || len(out) < n || len(keys) < n*d {
		panic(fmt.Sprintf("halfdot: %d keys of %d do not fit in slices of %d scores and %d numbers", n, d, len(out),
			len(keys)))
	}
	if n == 0 || d == 0 {
		clear(out[:n])
		return
	}
	if d%partial == 0 && vectorised() {
		scoreRows(out[:n], q, keys)
		return
	}
	for i := range n {
		var s [partial]float32
		for j, h := range keys[i*d : (i+1)*d] {
			s[j%partial] = fma32.FMA(q[j], widen(h), s[j%partial])
		}
		for j := range 16 {
			s[j] = (s[j] + s[j+16]) + (s[j+32] + s[j+48])
		}
		for half := 8; half > 0; half /= 2 {
			for j := range half {
				s[j] += s[j+half]
			}
		}
		out[i] = s[0]
	}
}

// widen converts an IEEE binary16 number to float32, which is exact.
func widen(h uint16) float32 {
	sign, abs := uint32(h&0x8000)<<16, uint32(h&0x7fff)
	if abs >= 0x7c00 {
		return math.Float32frombits(sign | 0x7f800000 | abs<<13)
	}
	return math.Float32frombits(sign|abs<<13) * 0x1p112
}
