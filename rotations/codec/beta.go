package codec

import (
	"context"
	"math"
)

// Beta holds the two measures of how well signs describe keys. They are
// different quantities and are never written as a bare "beta".
type Beta struct {
	// Cos1bit is the mean over keys of the cosine between the centred key and
	// its code; for an orthonormal code |x|_1 / (sqrt(d) |x|_2) with x = R(k - mean).
	// Gaussian keys give sqrt(2/pi) = 0.798.
	Cos1bit float64
	// MomentRatio is (E|x|)^2 / E[x^2] over all numbers of all keys. Gaussian
	// keys give 2/pi = 0.637. It is NaN for codes that are not orthonormal,
	// which have no such numbers.
	MomentRatio float64
	// Energy is the share of the centred keys' energy that the code keeps,
	// 1 - sum |k - k_hat|^2 / sum |k - mean|^2, with a scale per key that is best
	// for the code's own metric.
	Energy float64
	N      int // keys measured
}

// Measure computes Beta of keys, [n, D]. Keys equal to the mean are left out. It fails
// only when ctx ends.
func (c *Code) Measure(ctx context.Context, keys []float32) (Beta, error) {
	d := c.D
	var b Beta
	var cos, abs, sq, lost, total float64
	e := newEncoder(c)
	words := make([]uint32, EncodeBatch*c.Words())
	alpha, hats := make([]float32, EncodeBatch), make([]float32, EncodeBatch*d)
	for ; len(keys) >= d; keys = keys[min(len(keys), EncodeBatch*d):] {
		if ctx.Err() != nil {
			return Beta{}, context.Cause(ctx)
		}
		part := keys[:min(len(keys)/d, EncodeBatch)*d]
		n := len(part) / d
		e.encode(part)
		for i := range n {
			alpha[i] = e.result(i, words[i*c.Words():(i+1)*c.Words()])
		}
		c.DecodeKeys(hats[:n*d], words, alpha)
		for i := range n {
			var xx, hh, xh float64
			for j, v := range part[i*d : (i+1)*d] {
				x, h := float64(v)-float64(c.Mean[j]), float64(hats[i*d+j])-float64(c.Mean[j])
				xx += float64(x * x)
				hh += float64(h * h)
				xh += float64(x * h)
			}
			if xx == 0 {
				continue
			}
			b.N++
			if hh > 0 {
				cos += xh / math.Sqrt(float64(xx*hh))
			}
			lost += xx - 2*xh + hh
			total += xx
			if !c.Orthonormal() {
				continue
			}
			var zz float64
			for _, v := range e.z[i*c.B : (i+1)*c.B] {
				abs += math.Abs(float64(v))
				zz += float64(v) * float64(v)
			}
			sq += zz
		}
	}
	if b.N == 0 {
		return Beta{Cos1bit: math.NaN(), MomentRatio: math.NaN(), Energy: math.NaN()}, nil
	}
	n := float64(b.N)
	b.Cos1bit, b.Energy = cos/n, 1-lost/total
	b.MomentRatio = math.NaN()
	if c.Orthonormal() {
		m := abs / (n * float64(d))
		b.MomentRatio = float64(m*m) / (sq / (n * float64(d)))
	}
	return b, nil
}
