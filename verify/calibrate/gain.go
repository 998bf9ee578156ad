package calibrate

import (
	"math"

	"phaseconv/format/family"
	"phaseconv/kernels/fmath"
	"phaseconv/kernels/gemm"
	"phaseconv/rotations"
	"phaseconv/verify/kvcache"
	"phaseconv/verify/refmodel"
)

// gainGrid are the gains that are tried for a head.
var gainGrid = []float32{0.9, 0.95, 1, 1.05, 1.1, 1.15, 1.2, 1.25, 1.3, 1.4, 1.5}

// gainStride is the distance between the queries that a gain is fitted to.
const gainStride = 8

// fitGain returns the code with the gain for which attention over coded keys
// should be closest to attention over the keys themselves.
//
// The scale that fits a key best shortens it by its cosine, so every head's
// scores lose spread, and the losses of the layers add up. Two numbers say what
// to do about it: the gain g that minimises the divergence of this head's own
// softmax, which is near 1 because noise in the scores sharpens softmax too, and
// 1/E, E the share of energy that the code keeps, which restores the scores
// themselves. Their geometric mean measured better on whole models than either
// (docs/codes.md).
func fitGain(c *family.Config, a *refmodel.Attention, code *rotations.Code, h int, keys, scale []float32, p kvcache.Policy) (*rotations.Code, error) {
	energy := code.Measure(keys).Energy
	if !(energy > 0) {
		return code, nil // no keys, or keys that the code cannot tell apart
	}
	loss := make([]float64, len(gainGrid))
	d, T := c.HeadDim, a.T
	for w := range a.Windows {
		exact := make([]float32, T*d)
		for i := range T {
			copy(exact[i*d:(i+1)*d], a.K[(w*T+i)*c.KVHeads*d+h*d:])
		}
		coded, mean := kvcache.Decoded(c, a.Layer, code, exact, scale, p)
		headLoss(loss, c, a, w, h, exact, coded, mean)
	}
	best := 0
	for i := range loss {
		if loss[i] < loss[best] {
			best = i
		}
	}
	return code.WithGain(float32(math.Sqrt(float64(gainGrid[best]) / energy)))
}

// headLoss adds to loss[i] the divergence of attention in one window, for
// gainGrid[i], summed over queries. Scores are linear in the gain: those of the
// code's mean plus the gain times the rest.
func headLoss(loss []float64, c *family.Config, a *refmodel.Attention, window, h int, exact, coded, mean []float32) {
	d, T, width := c.HeadDim, a.T, c.Heads*c.HeadDim
	n := T / gainStride
	if n == 0 {
		return
	}
	var scores [3][]float32
	var keys [3]gemm.Weights
	for x, k := range [][]float32{exact, coded, mean} {
		scores[x] = make([]float32, n*T)
		keys[x].PackRows(T, d, k, d, 1)
	}
	p, hat := make([]float32, T), make([]float32, T)
	scale := c.AttnScale
	for g := range c.Group() {
		q := a.Q[(window*T+gainStride-1)*width+(h*c.Group()+g)*d:]
		for x := range scores {
			gemm.Mul(scores[x], T, q, gainStride*width, n, &keys[x], 1)
		}
		for r := range n {
			i := r*gainStride + gainStride - 1
			lo := 0
			if c.IsSliding(a.Layer) {
				lo = max(0, i-c.SlidingWindow+1)
			}
			s, sc, sm := scores[0][r*T+lo:r*T+i+1], scores[1][r*T+lo:r*T+i+1], scores[2][r*T+lo:r*T+i+1]
			p, hat := p[:len(s)], hat[:len(s)]
			copy(p, s)
			base, sum := logSumExp(p, scale)
			fmath.Scale(p, float32(1/sum)) // probabilities
			for x, gain := range gainGrid {
				var moved float64
				for j, v := range sm {
					hat[j] = v + float32(gain*(sc[j]-v))
					moved += float64(p[j]) * float64(hat[j]-s[j])
				}
				// KL(p || p_hat) = lse(s_hat) - lse(s) - sum p (s_hat - s)
				l, _ := logSumExp(hat, scale)
				loss[x] += l - base - float64(moved*scale)
			}
		}
	}
}

// logSumExp returns log sum exp(scale*s) and replaces s by the terms of sum, all
// divided by the largest.
func logSumExp(s []float32, scale float64) (log, sum float64) {
	m := fmath.Max(s)
	sum = fmath.ExpSum(s, s, m, float32(scale))
	return float64(float64(m)*scale) + fmath.Log(sum), sum
}
