// Package bits decides how many signs the code of each KV head gets, so that a model keeps to a
// budget of bits per number: all alike, by measured sensitivity, or by angle.
package bits

import (
	"math"
	"slices"

	"github.com/phaseconv/phaseconv/kernels/fmath"
	"github.com/phaseconv/phaseconv/rotations/codec"
)

// wordSigns is how many signs a stored word has: fewer than a multiple of it
// leave bits of the last word empty.
const wordSigns = 32

// EvenSigns spreads a budget over heads, whose keys have so many numbers each, as evenly as steps
// of 8 allow: with n numbers in all a head between numbers a and b has floor(b u/n) - floor(a u/n)
// steps of u in all, but at least one.
func EvenSigns(total int, dims []int) []int {
	u, n := total/codec.SignStep, 0
	for _, d := range dims {
		n += d
	}
	out := make([]int, len(dims))
	at, given := 0, 0
	for i, d := range dims {
		at += d
		// Each head behind this one needs a step too.
		steps := min(max(1, at*u/n-given), u-given-(len(dims)-1-i))
		given += steps
		out[i] = steps * codec.SignStep
	}
	return out
}

// WeightedSigns spreads a budget in proportion to weights, in steps of 8, at
// least 8 and at most what a head may have: each head gets the whole steps of its
// share, and what is left goes to the largest remainders, the first heads first.
func WeightedSigns(total int, dims []int, weights []float64) []int {
	return greedySigns(total, dims, codec.SignStep, func(h, have int) float64 {
		// The next step is worth more the further the head is below its share.
		return weights[h] / float64(have+codec.SignStep/2)
	})
}

// greedySigns gives every head a step, and the others one by one to the head for
// which worth is largest, the first of equals. The budget has a step for each head,
// and no more than they may have.
func greedySigns(total int, dims []int, step int, worth func(head, have int) float64) []int {
	out := make([]int, len(dims))
	for h := range out {
		out[h] = step
	}
	for left := total - step*len(dims); left > 0; {
		n, best, most := min(step, left), -1, math.Inf(-1)
		for h, have := range out {
			if have+n > codec.MaxSigns(dims[h]) {
				continue
			}
			if w := worth(h, have); w > most || best < 0 {
				best, most = h, w
			}
		}
		if best < 0 { // all are nearly full: smaller steps still fit
			step = codec.SignStep
			continue
		}
		out[best] += n
		left -= n
	}
	return out
}

// A DamageCurve tells what a head costs with so many signs.
type DamageCurve func(signs int) float64

// AllotSigns spreads a budget so that the sum of the heads' damage is least: steps
// go one by one to the head whose damage falls most, on the convex hull of its
// curve, which finds the least sum for convex curves. Steps are words of 32
// signs where the budget has one for each head, because a part of a word is stored
// like a whole one; the last step takes what is left.
func AllotSigns(total int, dims []int, damage []DamageCurve) []int {
	step := codec.SignStep
	if total >= wordSigns*len(damage) && codec.MaxSigns(slices.Min(dims)) >= wordSigns {
		step = wordSigns
	}
	return allot(total, dims, step, damage)
}

func allot(total int, dims []int, step int, damage []DamageCurve) []int {
	slopes := make([][]float64, len(damage))
	for h, f := range damage {
		slopes[h] = hullSlopes(f, step, codec.MaxSigns(dims[h]))
	}
	return greedySigns(total, dims, step, func(h, have int) float64 {
		return slopes[h][min(max(have/step, 1), len(slopes[h]))-1]
	})
}

// hullSlopes returns by how much the convex hull of f falls from i steps to i+1,
// at index i-1.
func hullSlopes(f DamageCurve, step, most int) []float64 {
	n := most / step
	y := make([]float64, n)
	for i := range y {
		y[i] = f((i + 1) * step)
	}
	out := make([]float64, max(n-1, 1))
	for i := 0; i < n-1; {
		// The steepest chord from i on is the next edge of the hull.
		to, steepest := i+1, y[i]-y[i+1]
		for j := i + 2; j < n; j++ {
			if s := (y[i] - y[j]) / float64(j-i); s > steepest {
				to, steepest = j, s
			}
		}
		for ; i < to; i++ {
			out[i] = steepest
		}
	}
	return out
}

// Waterfill returns the least mean square error with which b bits can describe
// Gaussian numbers of the given variances: reverse water filling.
func Waterfill(variances []float64, b float64) float64 {
	// The level falls until the bits are spent: between 0 and the largest variance.
	lo, hi := 0.0, 0.0
	for _, v := range variances {
		hi = max(hi, v)
	}
	for range 80 {
		level := 0.5 * (lo + hi)
		var bits float64
		for _, v := range variances {
			if v > level && level > 0 {
				bits += fmath.Log(v/level) / (2 * math.Ln2)
			}
		}
		if level == 0 || bits > b {
			lo = level
		} else {
			hi = level
		}
	}
	var sum float64
	for _, v := range variances {
		sum += min(v, hi)
	}
	return sum
}
