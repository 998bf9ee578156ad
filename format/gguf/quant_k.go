package gguf

import (
	"math"

	"github.com/phaseconv/phaseconv/kernels/fmath"
)

// Quantisers of the K types and of those with few levels: the inverses of dequant_k.go and
// dequantMXFP4, with the bits that llama-quantize writes without an importance matrix. Every
// product is rounded before it is added, in the order of ggml's reference.

// kTiny is the magnitude below which ggml takes a group for zero.
const kTiny = 1e-15

// nearest rounds to an integer, ties to even, for magnitudes below 2^22. Others give what the low
// bits of x + 1.5 * 2^23 say, as in ggml.
func nearest(x float32) int32 {
	return int32(math.Float32bits(x+0x1.8p23)&0x7fffff) - 0x400000
}

// level rounds x to an integer from lo to hi.
func level(x float32, lo, hi int32) int32 { return max(lo, min(hi, nearest(x))) }

// affineRule is how a K type with minima searches the scale of a group: steps+1 scales are tried
// for levels from 0 to most, from first on in parts of a level.
type affineRule struct {
	most  int32
	first float32
	part  float32
	steps int
	mad   bool // weighs magnitudes of errors, not squares
}

// An affine group is stored as scale * level - minimum.
type affine struct{ scale, minimum float32 }

// fit searches scale and minimum of a group of at most 32 numbers with weights, and sets levels.
func (r *affineRule) fit(x, weights []float32, levels []int32) affine {
	lo, hi := x[0], x[0]
	var sumW, sumX float32
	for i, v := range x {
		lo, hi = min(lo, v), max(hi, v)
		sumW += weights[i]
		sumX += float32(weights[i] * v)
	}
	if lo > 0 {
		lo = 0
	}
	if hi == lo {
		clear(levels)
		return affine{0, -lo}
	}
	inv := float32(r.most) / (hi - lo)
	for i, v := range x {
		levels[i] = level(float32(inv*(v-lo)), 0, r.most)
	}
	best := affine{1 / inv, lo} // with the minimum as it is added
	least := r.loss(x, weights, levels, best)
	var buf [32]int32
	try := buf[:len(x)]
	for s := range r.steps + 1 {
		// Like ggml's, the range moves with the best minimum so far.
		inv := (float32(r.first+float32(r.part*float32(s))) + float32(r.most)) / (hi - best.minimum)
		a, ok := r.refit(x, weights, try, inv, best.minimum, sumW, sumX)
		if !ok {
			continue
		}
		if loss := r.loss(x, weights, try, a); loss < least {
			least, best = loss, a
			copy(levels, try)
		}
	}
	return affine{best.scale, -best.minimum}
}

// refit sets levels for an inverse scale, and fits scale and minimum to them by least squares.
func (r *affineRule) refit(x, weights []float32, levels []int32, inv, lo, sumW, sumX float32) (affine, bool) {
	var sumL, sumL2, sumXL float32
	for i, v := range x {
		l := level(float32(inv*(v-lo)), 0, r.most)
		levels[i] = l
		wl := float32(weights[i] * float32(l))
		sumL += wl
		sumL2 += float32(wl * float32(l))
		sumXL += float32(wl * v)
	}
	d := float32(sumW*sumL2) - float32(sumL*sumL)
	if !(d > 0) {
		return affine{}, false
	}
	a := affine{(float32(sumW*sumXL) - float32(sumX*sumL)) / d, (float32(sumL2*sumX) - float32(sumL*sumXL)) / d}
	if a.minimum > 0 {
		a = affine{sumXL / sumL2, 0}
	}
	return a, true
}

// loss is the weighted error of a group whose minimum is added.
func (r *affineRule) loss(x, weights []float32, levels []int32, a affine) float32 {
	var sum float32
	for i, v := range x {
		diff := float32(a.scale*float32(levels[i])) + a.minimum - v
		if r.mad {
			diff = magnitude(diff)
		} else {
			diff = float32(diff * diff)
		}
		sum += float32(weights[i] * diff)
	}
	return sum
}

// largest returns the largest scale and minimum of groups, zero if none is positive.
func largest(groups []affine) (top affine) {
	for _, g := range groups { // comparisons that NaN fails, as in ggml
		if g.scale > top.scale {
			top.scale = g.scale
		}
		if g.minimum > top.minimum {
			top.minimum = g.minimum
		}
	}
	return top
}

// over is n/x, and 0 where x is not positive.
func over(n, x float32) float32 {
	if x > 0 {
		return n / x
	}
	return 0
}

var ruleQ2K = affineRule{most: 3, first: -0.5, part: 0.1, steps: 15, mad: true}

func quantQ2_K(dst []byte, src []float32) {
	for len(src) >= 256 && len(dst) >= 84 {
		x, y := src[:256:256], dst[:84:84]
		var levels [256]int32
		var groups [16]affine
		var weights [16]float32
		for g := range groups {
			part := x[16*g:][:16]
			for i, v := range part {
				weights[i] = magnitude(v)
			}
			groups[g] = ruleQ2K.fit(part, weights[:], levels[16*g:][:16])
		}
		top := largest(groups[:])
		inv := affine{over(15, top.scale), over(15, top.minimum)}
		putHalf(y[80:], top.scale/15)
		putHalf(y[82:], top.minimum/15)
		d, dmin := half(y[80:]), half(y[82:])
		for g := range groups {
			y[g] = byte(nearest(float32(inv.scale*groups[g].scale))) | byte(nearest(float32(inv.minimum*groups[g].minimum))<<4)
			scale, low := float32(d*float32(y[g]&15)), float32(dmin*float32(y[g]>>4))
			requantize(x[16*g:][:16], levels[16*g:][:16], scale, low, 3)
		}
		packTwoBits(y[16:80], levels[:])
		src, dst = src[256:], dst[84:]
	}
}

// requantize sets the levels of a group for its scale and minimum as they are stored; where the
// scale is stored as zero the levels of the search stay.
func requantize(x []float32, levels []int32, scale, low float32, most int32) {
	if scale == 0 {
		return
	}
	for i, v := range x {
		levels[i] = level((v+low)/scale, 0, most)
	}
}

// packTwoBits stores the low two bits of 256 levels in 64 bytes: see dequantQ2_K.
func packTwoBits(y []byte, levels []int32) {
	clear(y)
	for i, l := range levels {
		y[i/128*32+i%32] |= byte(l&3) << (i % 128 / 32 * 2)
	}
}

func quantQ3_K(dst []byte, src []float32) {
	for len(src) >= 256 && len(dst) >= 110 {
		x, y := src[:256:256], dst[:110:110]
		clear(y)
		var levels [256]int32
		var scales [16]float32
		for g := range scales {
			scales[g] = fitQ3(x[16*g:][:16], levels[16*g:][:16])
		}
		top, _ := absMax(scales[:])
		var inv float32
		if top != 0 {
			inv = -32 / top
			putHalf(y[108:], 1/inv)
		}
		d, packed := half(y[108:]), y[96:108]
		for g := range scales {
			if top == 0 {
				break
			}
			l := max(-32, min(31, int32(int8(nearest(float32(inv*scales[g]))))))
			packScaleQ3(packed, g, byte(l+32))
			requantizeSigned(x[16*g:][:16], levels[16*g:][:16], float32(d*float32(l)), 4)
		}
		packQ3(y, levels[:])
		src, dst = src[256:], dst[110:]
	}
}

// packScaleQ3 stores the 6 bits of a group's scale in 12 bytes that were zero.
func packScaleQ3(packed []byte, g int, l byte) {
	packed[g%8] |= l & 15 << (g / 8 * 4)
	packed[8+g%4] |= l >> 4 << (g / 4 * 2)
}

// packQ3 stores 3-bit levels: the low bits in 64 bytes, the high ones in the 32 before them, which
// were zero.
func packQ3(y []byte, levels []int32) {
	packTwoBits(y[32:96], levels)
	for i, l := range levels {
		y[i%32] |= byte(l>>2) << (i / 32)
	}
}

// requantizeSigned sets the levels, from 0 on, of a group without minimum.
func requantizeSigned(x []float32, levels []int32, scale float32, most int32) {
	if scale == 0 {
		return
	}
	for i, v := range x {
		levels[i] = level(v/scale, -most, most-1) + most
	}
}

// fitQ3 searches the scale of 16 numbers in 8 levels, weighed by their squares: from the rounded
// ones, levels are moved one by one for as long as that helps. levels are set from 0 on.
func fitQ3(x []float32, levels []int32) float32 {
	const most = 4
	extreme, amax := absMax(x)
	if amax < kTiny {
		clear(levels)
		return 0
	}
	inv := float32(-most) / extreme
	var sumXL, sumL2 float32
	for i, v := range x {
		l := level(float32(inv*v), -most, most-1)
		levels[i] = l
		w := float32(v * v)
		sumXL += float32(float32(w*v) * float32(l))
		sumL2 += float32(float32(w*float32(l)) * float32(l))
	}
	for range 5 {
		changed := false
		for i, v := range x {
			w, was := float32(v*v), float32(levels[i])
			xl := sumXL - float32(float32(w*v)*was)
			if !(xl > 0) {
				continue
			}
			l2 := sumL2 - float32(float32(w*was)*was)
			l := level(float32(v*l2)/xl, -most, most-1)
			if l == levels[i] {
				continue
			}
			xl += float32(float32(w*v) * float32(l))
			l2 += float32(float32(w*float32(l)) * float32(l))
			if l2 > 0 && float32(float32(xl*xl)*sumL2) > float32(float32(sumXL*sumXL)*l2) {
				levels[i], sumXL, sumL2, changed = l, xl, l2, true
			}
		}
		if !changed {
			break
		}
	}
	for i := range levels {
		levels[i] += most
	}
	if sumL2 > 0 {
		return sumXL / sumL2
	}
	return 0
}

var (
	ruleQ4K = affineRule{most: 15, first: -1, part: 0.1, steps: 20}
	ruleQ5K = affineRule{most: 31, first: -0.5, part: 0.1, steps: 15}
)

// quantAffine32 quantises 256 numbers in groups of 32: it writes scales and minima, the first 16
// bytes of Q4_K and Q5_K, and returns the levels.
func quantAffine32(y []byte, x []float32, rule *affineRule) (levels [256]int32) {
	var groups [8]affine
	var weights [32]float32
	for g := range groups {
		part := x[32*g:][:32]
		var sum float32
		for _, v := range part {
			sum += float32(v * v)
		}
		mean := float32(math.Sqrt(float64(sum / 32))) // rounds like a float32 root
		for i, v := range part {
			weights[i] = mean + magnitude(v)
		}
		groups[g] = rule.fit(part, weights[:], levels[32*g:][:32])
	}
	top := largest(groups[:])
	inv := affine{over(63, top.scale), over(63, top.minimum)}
	putHalf(y, top.scale/63)
	putHalf(y[2:], top.minimum/63)
	d, dmin, packed := half(y), half(y[2:]), y[4:16]
	clear(packed)
	for g := range groups {
		scale := min(63, byte(nearest(float32(inv.scale*groups[g].scale))))
		low := min(63, byte(nearest(float32(inv.minimum*groups[g].minimum))))
		packScaleK(packed, g, scale, low)
		requantize(x[32*g:][:32], levels[32*g:][:32], float32(d*float32(scale)), float32(dmin*float32(low)), rule.most)
	}
	return levels
}

// packScaleK stores 6-bit scales and minima of eight groups, from the first on, in 12 bytes.
func packScaleK(packed []byte, g int, scale, low byte) {
	if g < 4 {
		packed[g], packed[g+4] = scale, low
		return
	}
	packed[g+4] = scale&15 | low&15<<4
	packed[g-4] |= scale >> 4 << 6
	packed[g] |= low >> 4 << 6
}

// packNibbles stores the low nibbles of 256 levels in 128 bytes: see dequantQ4_K.
func packNibbles(y []byte, levels []int32) {
	clear(y)
	for i, l := range levels {
		y[i/64*32+i%32] |= byte(l&15) << (i % 64 / 32 * 4)
	}
}

func quantQ4_K(dst []byte, src []float32) {
	for len(src) >= 256 && len(dst) >= 144 {
		levels := quantAffine32(dst[:16:16], src[:256:256], &ruleQ4K)
		packNibbles(dst[16:144:144], levels[:])
		src, dst = src[256:], dst[144:]
	}
}

func quantQ5_K(dst []byte, src []float32) {
	for len(src) >= 256 && len(dst) >= 176 {
		levels := quantAffine32(dst[:16:16], src[:256:256], &ruleQ5K)
		packQ5(dst[16:176:176], levels[:])
		src, dst = src[256:], dst[176:]
	}
}

// packQ5 stores 5-bit levels: the high bits in 32 bytes, then the low nibbles.
func packQ5(y []byte, levels []int32) {
	high := y[:32]
	clear(high)
	for i, l := range levels {
		high[i%32] |= byte(l>>4) << (i / 32)
	}
	packNibbles(y[32:], levels)
}

func quantQ6_K(dst []byte, src []float32) {
	weights := make([]float32, len(src))
	for i, v := range src {
		weights[i] = float32(v * v)
	}
	weightedQ6_K(dst, src, weights)
}

// weightedQ6_K weighs squared errors as it is told.
func weightedQ6_K(dst []byte, src, weights []float32) {
	for len(src) >= 256 && len(dst) >= 210 {
		x, y := src[:256:256], dst[:210:210]
		clear(y)
		var levels [256]int32
		var scales [16]float32
		for g := range scales {
			scales[g] = fitSigned(x[16*g:][:16], weights[16*g:][:16], levels[16*g:][:16], 32)
		}
		if top, amax := absMax(scales[:]); amax >= kTiny {
			inv := -128 / top
			putHalf(y[208:], 1/inv)
			d := half(y[208:])
			for g := range scales {
				scale := int8(min(127, nearest(float32(inv*scales[g]))))
				y[192+g] = byte(scale)
				requantizeSigned(x[16*g:][:16], levels[16*g:][:16], float32(d*float32(scale)), 32)
			}
			packQ6(y, levels[:])
		}
		src, dst, weights = src[256:], dst[210:], weights[256:]
	}
}

// packQ6 stores 6-bit levels: of each 128, low nibbles in 64 bytes, high bits in 32.
func packQ6(y []byte, levels []int32) {
	for i, l := range levels {
		low, high := y[i/128*64:], y[128+i/128*32:]
		low[i%64] |= byte(l&15) << (i % 128 / 64 * 4)
		high[i%32] |= byte(l>>4) << (i % 128 / 32 * 2)
	}
}

// fitSigned searches the scale of numbers in levels from -most to most-1, by their weights, among 19.
// levels are set from 0 on; where all numbers are next to zero they are 0 and so is the scale.
func fitSigned(x, weights []float32, levels []int32, most int32) float32 {
	extreme, amax := absMax(x)
	if amax < kTiny {
		clear(levels)
		return 0
	}
	inv := float32(-most) / extreme
	sumXL, sumL2 := sumsSigned(x, weights, inv, most)
	setSigned(x, levels, inv, most)
	var scale float32
	if sumL2 != 0 {
		scale = sumXL / sumL2
	}
	best := float32(scale * sumXL)
	for s := -9; s <= 9; s++ {
		if s == 0 {
			continue
		}
		inv := -(float32(most) + float32(float32(0.1)*float32(s))) / extreme
		sumXL, sumL2 := sumsSigned(x, weights, inv, most)
		if sumL2 > 0 && float32(sumXL*sumXL) > float32(best*sumL2) {
			setSigned(x, levels, inv, most)
			scale = sumXL / sumL2
			best = float32(scale * sumXL)
		}
	}
	return scale
}

func setSigned(x []float32, levels []int32, inv float32, most int32) {
	for i, v := range x {
		levels[i] = level(float32(inv*v), -most, most-1) + most
	}
}

func sumsSigned(x, weights []float32, inv float32, most int32) (xl, l2 float32) {
	for i, v := range x {
		l, w := float32(level(float32(inv*v), -most, most-1)), weights[i]
		xl += float32(float32(w*v) * l)
		l2 += float32(float32(w*l) * l)
	}
	return xl, l2
}

// quantQ2_0 takes the largest magnitude as scale and rounds to -1, 0 and 1.
func quantQ2_0(dst []byte, src []float32) {
	for len(src) >= 64 && len(dst) >= 18 {
		x, y := src[:64:64], dst[:18:18]
		_, amax := absMax(x)
		putHalf(y, amax)
		inv := inverse(amax)
		clear(y[2:])
		for j, v := range x {
			y[2+j/4] |= ternary(float32(v*inv)) << (j % 4 * 2)
		}
		src, dst = src[64:], dst[18:]
	}
}

// ternary is C's (int)roundf(x) + 1 for magnitudes up to 1; the inverse of a subnormal scale is
// infinite, and what does not fit an int becomes 0.
func ternary(x float32) byte {
	switch {
	case !(magnitude(x) <= 1.5):
		return 0
	case x >= 0.5:
		return 2
	case x > -0.5:
		return 1
	}
	return 0
}

// quantMXFP4 takes the power of two that leaves the largest magnitude between 4 and 8 and picks
// the nearest of the 16 numbers, the first of two.
func quantMXFP4(dst []byte, src []float32) {
	for len(src) >= 32 && len(dst) >= 17 {
		x, y := src[:32:32], dst[:17:17]
		_, amax := absMax(x)
		y[0] = exponentMXFP4(amax)
		d := halfE8M0(y[0])
		for j := range 16 {
			y[1+j] = nearestFP4(x[j], d) | nearestFP4(x[j+16], d)<<4
		}
		src, dst = src[32:], dst[17:]
	}
}

// exponentMXFP4 is floor(log2(amax)) - 2 + 127 in float32, so that magnitudes next to a power of
// two count as that.
func exponentMXFP4(amax float32) byte {
	if amax == 0 {
		return 0
	}
	e := float32(fmath.Log(float64(amax)) / math.Ln2)
	return byte(int32(float32(math.Floor(float64(e))) - 2 + 127))
}

func nearestFP4(x, d float32) (best byte) {
	least := magnitude(x)
	for i, v := range fp4Values[1:] {
		if e := magnitude(float32(float32(v)*d) - x); e < least {
			best, least = byte(i+1), e
		}
	}
	return best
}
