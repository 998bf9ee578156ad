package gguf

import (
	"encoding/binary"
	"fmt"
	"math"
)

// Quantisers that weigh errors by the importance of each number of a row, the mean square of what
// it multiplies: with the bits that llama-quantize writes with an importance matrix.

// weighted lists the types whose quantiser looks at importances. Those of IQ4_NL and IQ4_XS do too,
// and are not here: llama-quantize searches longer for them than the cache, with or without.
var weighted = map[Type]func(dst []byte, src, importance []float32){
	TypeQ4_0: weightedQ4_0,
	TypeQ4_1: weightedQ4_1,
	TypeQ5_0: weightedQ5_0,
	TypeQ5_1: weightedQ5_1,
	TypeQ2_K: weightedQ2_K,
	TypeQ3_K: weightedQ3_K,
	TypeQ4_K: weightedQ4_K,
	TypeQ5_K: weightedQ5_K,
	TypeQ6_K: weightedQ6_K,
}

// QuantizeRowWeighted is QuantizeRow with the importance of each number, as ggml_quantize_chunk has
// it for one row: src must be a whole row, since Q4_0, Q4_1, Q5_0 and Q5_1 weigh by its mean square
// too. Types without a rule for importances, Q8_0, Q1_0, Q2_0, MXFP4 and floats, are those of
// QuantizeRow, and so is any with importance nil. Other lengths than that of src give ErrLength, importances that are not finite ErrNotFinite.
func QuantizeRowWeighted(t Type, dst []byte, src, importance []float32) error {
	q, ok := weighted[t]
	if !ok || importance == nil {
		return QuantizeRow(t, dst, src)
	}
	if len(importance) != len(src) {
		return fmt.Errorf("gguf: %d importances for %d numbers: %w", len(importance), len(src), ErrLength)
	}
	for i, x := range importance {
		if x-x != 0 {
			return fmt.Errorf("gguf: importance %d of a row is %g: %w", i, x, ErrNotFinite)
		}
	}
	return quantizeRow(func(dst []byte, src []float32) { q(dst, src, importance) }, t, dst, src)
}

// meanSquare is the mean square of numbers, times a power of two.
func meanSquare(x []float32, times float32) float32 {
	var sum float32
	for _, v := range x {
		sum += float32(v * v)
	}
	// A division by a power of two becomes a product, which must be rounded before it is added to.
	return float32(float32(times*sum) / float32(len(x)))
}

// weigh sets the weights of numbers: their importance times the root of their squares above a floor.
// It returns their sum.
func weigh(weights, x, importance []float32, floor float32) (sum float32) {
	for i, v := range x {
		weights[i] = float32(importance[i] * float32(math.Sqrt(float64(floor+float32(v*v)))))
		sum += weights[i]
	}
	return sum
}

// Blocks of 32 without groups: the floor is that of the whole row.

func weightedQ4_0(dst []byte, src, importance []float32) {
	weightedSigned32(dst, src, importance, 18, 8, func(y []byte, levels []int32) { packHalves(y[2:], levels) })
}

func weightedQ5_0(dst []byte, src, importance []float32) {
	weightedSigned32(dst, src, importance, 22, 16, func(y []byte, levels []int32) {
		binary.LittleEndian.PutUint32(y[2:], fifthBits(levels))
		packHalves(y[6:], levels)
	})
}

func weightedQ4_1(dst []byte, src, importance []float32) {
	weightedAffineBlocks(dst, src, importance, 20, &ruleWeighted4,
		func(y []byte, levels []int32) { packHalves(y[4:], levels) })
}

func weightedQ5_1(dst []byte, src, importance []float32) {
	weightedAffineBlocks(dst, src, importance, 24, &ruleWeighted5, func(y []byte, levels []int32) {
		binary.LittleEndian.PutUint32(y[4:], fifthBits(levels))
		packHalves(y[8:], levels)
	})
}

func weightedSigned32(dst []byte, src, importance []float32, size int, most int32,
	pack func(y []byte, levels []int32)) {
	floor := meanSquare(src, 1)
	for at := 0; at < len(src); at += 32 {
		x, y := src[at:at+32], dst[at/32*size:][:size]
		var weights [32]float32
		var levels [32]int32
		weigh(weights[:], x, importance[at:at+32], floor)
		putHalf(y, fitSigned(x, weights[:], levels[:], most))
		pack(y, levels[:])
	}
}

func weightedAffineBlocks(dst []byte, src, importance []float32, size int, rule *affineRule,
	pack func(y []byte, levels []int32)) {
	floor := meanSquare(src, 1)
	for at := 0; at < len(src); at += 32 {
		x, y := src[at:at+32], dst[at/32*size:][:size]
		var weights [32]float32
		var levels [32]int32
		weigh(weights[:], x, importance[at:at+32], floor)
		a := rule.fit(x, weights[:], levels[:])
		putHalf(y, a.scale)
		putHalf(y[2:], -a.minimum)
		pack(y, levels[:])
	}
}

// packHalves stores the low nibbles of 32 levels: number i beside number i + 16.
func packHalves(y []byte, levels []int32) {
	for i := range 16 {
		y[i] = byte(levels[i]&15) | byte(levels[i+16]&15)<<4
	}
}

// fifthBits gathers the fifth bits of 32 levels.
func fifthBits(levels []int32) (bits uint32) {
	for i, l := range levels {
		bits |= uint32(l>>4&1) << i
	}
	return bits
}

// Rules of a search with importances.
var (
	ruleWeighted2 = affineRule{most: 3, first: -0.9, part: 0.05, steps: 36}
	ruleWeighted4 = affineRule{most: 15, first: -0.9, part: 0.05, steps: 36}
	ruleWeighted5 = affineRule{most: 31, first: -0.9, part: 0.05, steps: 36}
)

func weightedQ2_K(dst []byte, src, importance []float32) {
	for at := 0; at < len(src); at += 256 {
		x, y := src[at:at+256], dst[at/256*84:][:84]
		var levels [256]int32
		groups := weightedGroups{floor: meanSquare(x, 1), size: 16, rule: &ruleWeighted2}
		scales, lows := groups.fit(x, importance[at:at+256], levels[:], 15)
		putHalf(y[80:], scales.step)
		putHalf(y[82:], lows.step)
		d, dmin := half(y[80:]), half(y[82:])
		for g := range 16 {
			y[g] = scales.levels[g] | lows.levels[g]<<4
			scale, low := float32(d*float32(y[g]&15)), float32(dmin*float32(y[g]>>4))
			requantize(x[16*g:][:16], levels[16*g:][:16], scale, low, 3)
		}
		packTwoBits(y[16:80], levels[:])
	}
}

func weightedQ4_K(dst []byte, src, importance []float32) {
	for at := 0; at < len(src); at += 256 {
		y := dst[at/256*144:][:144]
		levels := weightedAffine32(y[:16], src[at:at+256], importance[at:at+256], &ruleWeighted4)
		packNibbles(y[16:], levels[:])
	}
}

func weightedQ5_K(dst []byte, src, importance []float32) {
	for at := 0; at < len(src); at += 256 {
		y := dst[at/256*176:][:176]
		levels := weightedAffine32(y[:16], src[at:at+256], importance[at:at+256], &ruleWeighted5)
		packQ5(y[16:], levels[:])
	}
}

// weightedAffine32 is quantAffine32 with importances.
func weightedAffine32(y []byte, x, importance []float32, rule *affineRule) (levels [256]int32) {
	groups := weightedGroups{floor: meanSquare(x, 2), size: 32, rule: rule}
	scales, lows := groups.fit(x, importance, levels[:], 63)
	putHalf(y, scales.step)
	putHalf(y[2:], lows.step)
	d, dmin, packed := half(y), half(y[2:]), y[4:16]
	clear(packed)
	for g := range 8 {
		scale, low := min(63, scales.levels[g]), min(63, lows.levels[g])
		packScaleK(packed, g, scale, low)
		requantize(x[32*g:][:32], levels[32*g:][:32], float32(d*float32(scale)), float32(dmin*float32(low)), rule.most)
	}
	return levels
}

// weightedGroups fits groups of so many numbers with a scale and a minimum each.
type weightedGroups struct {
	floor float32
	size  int
	rule  *affineRule
}

// steps is numbers above zero, of groups, as levels times a step.
type steps struct {
	step   float32
	levels [16]byte
}

// fit sets the levels of 256 numbers, and returns scales and minima of their groups in levels up to
// most.
func (w *weightedGroups) fit(x, importance []float32, levels []int32, most int32) (scales, lows steps) {
	var weights [32]float32
	var scale, low, sums [16]float32
	n := len(x) / w.size
	for g := range n {
		at := g * w.size
		part := x[at : at+w.size]
		sums[g] = weigh(weights[:w.size], part, importance[at:], w.floor)
		a := w.rule.fit(part, weights[:w.size], levels[at:at+w.size])
		scale[g], low[g] = a.scale, a.minimum
	}
	scales.fit(scale[:n], sums[:n], most)
	lows.fit(low[:n], sums[:n], most)
	return scales, lows
}

// fit searches the step for numbers above zero with weights: the largest of them in most levels, or
// what serves their squared errors better, then level by level for as long as that helps. Like ggml
// it keeps levels in a byte, of numbers below zero what is left of them there.
func (s *steps) fit(x, weights []float32, most int32) {
	var top float32
	for _, v := range x {
		top = max(top, v)
	}
	if top < kTiny {
		return
	}
	inv := s.start(x, weights, most, top)
	var sumXL, sumL2 float32
	for i, v := range x {
		s.levels[i] = byte(min(most, nearest(float32(inv*v))))
		// The sums have the level before it is stored in a byte.
		l, w := float32(min(most, nearest(float32(inv*v)))), weights[i]
		sumXL += float32(float32(w*v) * l)
		sumL2 += float32(float32(w*l) * l)
	}
	for range 5 {
		changed := false
		for i, v := range x {
			w, was := weights[i], float32(s.levels[i])
			xl, l2 := sumXL-float32(float32(w*v)*was), sumL2-float32(float32(w*was)*was)
			if !(xl > 0 && l2 > 0) {
				continue
			}
			next := min(most, nearest(float32(v*l2)/xl))
			if next == int32(s.levels[i]) {
				continue
			}
			l := float32(next)
			xl += float32(float32(w*v) * l)
			l2 += float32(float32(w*l) * l)
			if float32(float32(xl*xl)*sumL2) > float32(float32(sumXL*sumXL)*l2) {
				s.levels[i], sumXL, sumL2, changed = byte(next), xl, l2, true
			}
		}
		if !changed {
			break
		}
	}
	if sumL2 > 0 {
		s.step = sumXL / sumL2
	}
}

// start returns the inverse step, of nine, that leaves the least error.
func (s *steps) start(x, weights []float32, most int32, top float32) float32 {
	best := float32(most) / top
	var least float32
	step := 1 / best
	for i, v := range x {
		diff := v - float32(step*float32(byte(nearest(float32(best*v)))))
		least += float32(float32(weights[i]*diff) * diff)
	}
	for k := -4; k <= 4; k++ {
		if k == 0 {
			continue
		}
		inv := (float32(float32(0.1)*float32(k)) + float32(most)) / top
		step := 1 / inv
		var loss float32
		for i, v := range x {
			diff := v - float32(step*float32(min(most, nearest(float32(inv*v)))))
			loss += float32(float32(weights[i]*diff) * diff)
		}
		if loss < least {
			least, best = loss, inv
		}
	}
	return best
}

func weightedQ3_K(dst []byte, src, importance []float32) {
	for at := 0; at < len(src); at += 256 {
		x, y := src[at:at+256], dst[at/256*110:][:110]
		clear(y)
		floor := meanSquare(x, 2)
		var levels [256]int32
		var codes [16]int32
		var weights, scales, sums [16]float32
		for g := range scales {
			part := x[16*g:][:16]
			sums[g] = weigh(weights[:], part, importance[at+16*g:], floor)
			scales[g] = fitSigned(part, weights[:], levels[16*g:][:16], 4)
		}
		putHalf(y[108:], fitSigned(scales[:], sums[:], codes[:], 32))
		d := half(y[108:])
		for g, l := range codes {
			packScaleQ3(y[96:108], g, byte(l))
			requantizeSigned(x[16*g:][:16], levels[16*g:][:16], float32(d*float32(l-32)), 4)
		}
		packQ3(y, levels[:])
	}
}
