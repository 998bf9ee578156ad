package transform

import (
	"fmt"
	"slices"

	"github.com/phaseconv/phaseconv/kernels/fmath"
	"github.com/phaseconv/phaseconv/kernels/gemm"
	"github.com/phaseconv/phaseconv/kernels/rope"
)

// A KeySample is keys of one KV head with what an error in them costs.
type KeySample struct {
	D     int
	Pairs rope.Layout
	Keys  []float32 // [n, D], after RoPE
	// Weights says how much an error of each key counts, [n].
	Weights []float64
	// Metric is the mean of q q^T over the queries that meet the keys, [D, D].
	Metric []float64
}

// IsZero says whether nothing in the sample can err or nobody would notice: keys, weights
// or the metric are all zero.
func (s *KeySample) IsZero() bool {
	some := func(v float64) bool { return v != 0 }
	return !slices.ContainsFunc(s.Keys, func(v float32) bool { return v != 0 }) ||
		!slices.ContainsFunc(s.Weights, some) || !slices.ContainsFunc(s.Metric, some)
}

// total returns the sum of the weights, which must be positive.
func (s *KeySample) total() (sum float64, err error) {
	for _, w := range s.Weights {
		sum += w
	}
	if !(sum > 0) {
		return 0, fmt.Errorf("a sample of %d keys that no query looks at", len(s.Weights))
	}
	return sum, nil
}

// Noise returns the cache's error relative to the energy of the turned keys,
// E|e|^2 / E|k|^2 with the sample's weights: BiasShiftOptions.Noise as it is,
// rather than as a type promises it.
func (s *KeySample) Noise(turn *PairRotation, cache CacheRow) (float64, error) {
	if err := turn.Check(s.D); err != nil {
		return 0, err
	}
	if err := cache.check(s.D); err != nil {
		return 0, err
	}
	n := len(s.Weights)
	if n == 0 || len(s.Keys) != n*s.D {
		return 0, fmt.Errorf("a sample of %d keys and %d values does not fit head_dim %d", n, len(s.Keys), s.D)
	}
	if _, err := s.total(); err != nil {
		return 0, err
	}
	y, e, err := s.store(turn, cache)
	if err != nil {
		return 0, err
	}
	var noise, energy float64
	for i, w := range s.Weights {
		noise += float64(w * fmath.SumSq(e[i*s.D:(i+1)*s.D]))
		energy += float64(w * fmath.SumSq(y[i*s.D:(i+1)*s.D]))
	}
	if energy == 0 {
		return 0, fmt.Errorf("a sample of %d keys without energy", n)
	}
	return noise / energy, nil
}

// store returns the sample's keys as a cache would store them, and their errors.
func (s *KeySample) store(turn *PairRotation, cache CacheRow) (y, e []float32, err error) {
	y = append([]float32(nil), s.Keys...)
	for i := 0; i < len(y); i += s.D {
		turn.ApplyKey(y[i:i+s.D], s.Pairs)
	}
	cache.ToCacheBasis(y, s.D, s.Pairs)
	e, err = cache.errors(y)
	return y, e, err
}

// loss returns the mean square error of scores that a cache causes.
func (s *KeySample) loss(turn *PairRotation, cache CacheRow) (float64, error) {
	total, err := s.total()
	if err != nil {
		return 0, err
	}
	_, e, err := s.store(turn, cache)
	if err != nil {
		return 0, err
	}
	d := s.D
	cache.FromCacheBasis(e, d, s.Pairs)
	metric, image := make([]float32, d*d), make([]float32, len(e))
	for i, v := range s.Metric {
		metric[i] = float32(v)
	}
	for i := 0; i < len(e); i += d {
		turn.Undo(e[i:i+d], s.Pairs)
	}
	var w gemm.Weights
	w.PackRows(d, d, metric, d, 1)
	gemm.Mul(image, d, e, d, len(s.Weights), &w, 1)
	var sum float64
	for r, weight := range s.Weights {
		for i := r * d; i < (r+1)*d; i++ {
			sum += float64(weight * float64(float64(e[i])*float64(image[i])))
		}
	}
	return sum / total, nil
}
