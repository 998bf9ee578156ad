package fmath

import (
	"fmt"
	"math"
)

// The row functions work in float32 where package math has nothing, with the
// plainest operations of all vector units: additions, multiplications and
// divisions, never fused, so that one order of operations gives the same bits in
// AVX-512, AVX2 and Go. Sums are kept in lanes float64 partial sums: element i
// goes to partial sum i mod lanes in ascending order, then the upper half is
// added to the lower half until one is left.
const lanes = 16

// reduce adds up partial sums as described above.
func reduce(s *[lanes]float64) float64 {
	for half := lanes / 2; half > 0; half /= 2 {
		for i := range half {
			s[i] += s[i+half]
		}
	}
	return s[0]
}

const (
	// Beyond these, e^x is 0 or infinite in float32.
	expMin = -104
	expMax = 89

	log2e32 = float32(math.Log2E)
	// ln 2 in two parts: the first has 9 bits, so its product with an exponent is
	// exact and so is x minus that.
	ln2Hi32 = float32(0x1.63p-1)
	ln2Lo32 = float32(-0x1.bd0106p-13)
	// Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
	roundMagic = float32(0x1.8p23)

	// e^r = 1 + r + r^2 (expC0 + r expC1 + ...) on |r| <= ln(2)/2: the polynomial of
	// least relative error (2^-28), found by Remez exchange.
	expC0 = float32(0x1.fffffcp-2)
	expC1 = float32(0x1.555492p-3)
	expC2 = float32(0x1.5558f2p-5)
	expC3 = float32(0x1.123a20p-7)
	expC4 = float32(0x1.6a23d0p-10)
)

// exp32 is the exponential of the row functions: error at most 1 ulp.
func exp32(x float32) float32 {
	// In this form NaN passes, as it does through the vector instructions.
	if x < expMin {
		x = expMin
	}
	if x > expMax {
		x = expMax
	}
	t := float32(x*log2e32) + roundMagic
	n := t - roundMagic
	r := (x - float32(n*ln2Hi32)) - float32(n*ln2Lo32)
	p := float32(expC4*r) + expC3
	p = float32(p*r) + expC2
	p = float32(p*r) + expC1
	p = float32(p*r) + expC0
	y := (float32(p*float32(r*r)) + r) + 1
	// 2^k in two factors: either alone may be out of range, and only the second
	// multiplication can round.
	k := int32(math.Float32bits(t)) - int32(math.Float32bits(roundMagic))
	h := k >> 1
	return float32(y*math.Float32frombits(uint32(h+127)<<23)) * math.Float32frombits(uint32(k-h+127)<<23)
}

func checkLengths(name string, dst int, src ...int) {
	for _, n := range src {
		if n != dst {
			panic(fmt.Sprintf("fmath: %s: slices of different lengths %d and %d", name, dst, n))
		}
	}
}

// ExpSlice sets dst[i] = e^src[i], with an error of at most 1 ulp. The slices are
// of one length and may be the same.
func ExpSlice(dst, src []float32) {
	checkLengths("ExpSlice", len(dst), len(src))
	n := vectorised(len(dst))
	if n > 0 {
		expBlocks(dst[:n], src[:n])
	}
	for i := n; i < len(dst); i++ {
		dst[i] = exp32(src[i])
	}
}

// SiLUMul sets dst[i] = silu(gate[i]) * up[i] with silu(x) = x / (1 + e^-x), the
// gated activation of Llama and Qwen. The slices are of one length; dst may be
// either operand.
func SiLUMul(dst, gate, up []float32) {
	checkLengths("SiLUMul", len(dst), len(gate), len(up))
	n := vectorised(len(dst))
	if n > 0 {
		siluBlocks(dst[:n], gate[:n], up[:n])
	}
	for i := n; i < len(dst); i++ {
		g := gate[i]
		dst[i] = float32(g/(1+exp32(-g))) * up[i]
	}
}

// gelu(x) = x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) is x / (1 + e^-v) with
// v = x (geluA + geluB x^2).
const (
	geluA = float32(2 * 0.79788456080286535588)
	geluB = float32(2 * 0.79788456080286535588 * 0.044715)
)

// GELUTanhMul sets dst[i] = gelu(gate[i]) * up[i] with the tanh approximation of
// gelu, the gated activation of Gemma. The slices are of one length; dst may be
// either operand.
func GELUTanhMul(dst, gate, up []float32) {
	checkLengths("GELUTanhMul", len(dst), len(gate), len(up))
	n := vectorised(len(dst))
	if n > 0 {
		geluBlocks(dst[:n], gate[:n], up[:n])
	}
	for i := n; i < len(dst); i++ {
		g := gate[i]
		v := float32(g * (float32(geluB*float32(g*g)) + geluA))
		dst[i] = float32(g/(1+exp32(-v))) * up[i]
	}
}

// Max returns the largest element of x, -Inf for none. Where there are NaN the
// result is some element or NaN.
func Max(x []float32) float32 {
	m := float32(math.Inf(-1))
	n := vectorised(len(x))
	if n > 0 {
		var part [lanes]float32
		maxBlocks(x[:n], &part)
		for _, v := range part {
			if v > m {
				m = v
			}
		}
	}
	for _, v := range x[n:] {
		if v > m {
			m = v
		}
	}
	return m
}

// ExpSum sets dst[i] = e^(scale*(x[i]-shift)) and returns the sum of dst, in the
// order of the lanes. The slices are of one length and may be the same. With
// shift = Max(x) and scale > 0 no term exceeds 1: a softmax before its division,
// and shift + Log of the sum is log-sum-exp.
func ExpSum(dst, x []float32, shift, scale float32) float64 {
	checkLengths("ExpSum", len(dst), len(x))
	var part [lanes]float64
	n := vectorised(len(dst))
	if n > 0 {
		expSumBlocks(dst[:n], x[:n], shift, scale, &part)
	}
	for i := n; i < len(dst); i++ {
		dst[i] = exp32(float32((x[i] - shift) * scale))
		part[i%lanes] += float64(dst[i])
	}
	return reduce(&part)
}

// Softmax replaces row by softmax(scale * row) for scale > 0. Elements of -Inf
// become 0; when all are, or one is NaN or +Inf, all become NaN.
func Softmax(row []float32, scale float32) {
	if len(row) == 0 {
		return
	}
	sum := ExpSum(row, row, Max(row), scale)
	Scale(row, float32(1/sum))
}

// Scale multiplies every element of x by s.
func Scale(x []float32, s float32) {
	n := vectorised(len(x))
	if n > 0 {
		scaleBlocks(x[:n], s)
	}
	for i := n; i < len(x); i++ {
		x[i] *= s
	}
}

// Sum returns the sum of x in the order of the lanes.
func Sum(x []float32) float64 {
	var part [lanes]float64
	n := vectorised(len(x))
	if n > 0 {
		sumBlocks(x[:n], &part)
	}
	for i := n; i < len(x); i++ {
		part[i%lanes] += float64(x[i])
	}
	return reduce(&part)
}

// SumSq returns the sum of squares of x in the order of the lanes; the squares
// are exact.
func SumSq(x []float32) float64 {
	var part [lanes]float64
	n := vectorised(len(x))
	if n > 0 {
		sumSqBlocks(x[:n], &part)
	}
	for i := n; i < len(x); i++ {
		v := float64(x[i])
		part[i%lanes] += float64(v * v)
	}
	return reduce(&part)
}

// ScaleMul sets dst[i] = x[i] * s * w[i], rounded after each product: the second
// half of RMSNorm, with s = 1/rms. The slices are of one length; dst may be x.
func ScaleMul(dst, x []float32, s float32, w []float32) {
	checkLengths("ScaleMul", len(dst), len(x), len(w))
	n := vectorised(len(dst))
	if n > 0 {
		scaleMulBlocks(dst[:n], x[:n], s, w[:n])
	}
	for i := n; i < len(dst); i++ {
		dst[i] = float32(x[i]*s) * w[i]
	}
}

// AddScaled adds s x to y, of the same length; products are rounded before they are added.
func AddScaled(y, x []float32, s float32) {
	checkLengths("AddScaled", len(y), len(x))
	n := vectorised(len(y))
	if n > 0 {
		addScaledBlocks(y[:n], x[:n], s)
	}
	for i := n; i < len(y); i++ {
		y[i] += float32(s * x[i])
	}
}
