package halfdot

import (
	"fmt"

	"github.com/phaseconv/phaseconv/kernels/internal/fma32"
)

// Sum adds to out the sum of n values times their weights, for values of len(out)
// binary16 numbers each, one after another:
//
//	out[i] = fma(v_j[i], w[j], out[i])
//
// in float32 for ascending j. All tiers give these bits.
func Sum(out, w []float32, values []uint16, n int) {
	d := len(out)
	checkSum(d, len(w), len(values), n, d)
	if d == 0 || n <= 0 {
		return
	}
	if d%partial == 0 && sumF16(out, w[:n], values) {
		return
	}
	for j := range n {
		for i, h := range values[j*d : (j+1)*d] {
			out[i] = fma32.FMA(widen(h), w[j], out[i])
		}
	}
}

// SumQ8 is Sum for values in Q8_0, a multiple of 32 numbers each. With f the product of
// the factor of a block and w[j], a float32, out[i] = fma(q, f, out[i]).
func SumQ8(out, w []float32, values []byte, n int) {
	size := checkSumBlocks(out, w, values, n, BytesQ8)
	if size == 0 || len(out)%partial == 0 && sumQ8(out, w[:n], values) {
		return
	}
	for j := range n {
		for b := range len(out) / BlockLen {
			v := values[j*size+b*BytesQ8:][:BytesQ8]
			f := blockFactor(v, w[j])
			for i, q := range v[2:] {
				at := b*BlockLen + i
				out[at] = fma32.FMA(float32(int8(q)), f, out[at])
			}
		}
	}
}

// SumQ4 is SumQ8 for values in Q4_0.
func SumQ4(out, w []float32, values []byte, n int) {
	size := checkSumBlocks(out, w, values, n, BytesQ4)
	if size == 0 || len(out)%partial == 0 && sumQ4(out, w[:n], values) {
		return
	}
	for j := range n {
		for b := range len(out) / BlockLen {
			v := values[j*size+b*BytesQ4:][:BytesQ4]
			f := blockFactor(v, w[j])
			for i, q := range v[2:] {
				at := b*BlockLen + i
				out[at] = fma32.FMA(float32(int(q&15)-8), f, out[at])
				out[at+16] = fma32.FMA(float32(int(q>>4)-8), f, out[at+16])
			}
		}
	}
}

// blockFactor is the factor at the start of a block times a weight.
func blockFactor(v []byte, w float32) float32 {
	return float32(widen(uint16(v[0])|uint16(v[1])<<8) * w)
}

func checkSum(d, weights, values, n, size int) {
	if n < 0 || weights < n || values < n*size {
		panic(fmt.Sprintf("halfdot: %d values of %d numbers do not fit in slices of %d weights and %d", n, d, weights, values))
	}
}

// checkSumBlocks returns the bytes of a value, 0 if there is nothing to do.
func checkSumBlocks(out, w []float32, values []byte, n, block int) int {
	if len(out)%BlockLen != 0 {
		panic(fmt.Sprintf("halfdot: values of %d numbers: want a multiple of %d", len(out), BlockLen))
	}
	size := len(out) / BlockLen * block
	checkSum(len(out), len(w), len(values), n, size)
	if n == 0 {
		return 0
	}
	return size
}
