package fit

import (
	"context"
	"fmt"
	"math"

	"github.com/phaseconv/phaseconv/kernels/gemm"
	"github.com/phaseconv/phaseconv/kernels/linalg"
)

// Spectrum returns the eigenvalues of C^1/2 S C^1/2 for the sample's metric C and
// the covariance S of its keys, largest first: the variances that matter to
// scores, in the coordinates in which errors are Euclidean. It fails without keys and when
// ctx ends.
func (s *Sample) Spectrum(ctx context.Context) ([]float64, error) {
	d, n := s.D, s.N()
	if n == 0 {
		return nil, fmt.Errorf("no calibration keys for layer %d, head %d", s.Layer, s.Head)
	}
	mean := s.Mean()
	x := make([]float32, n*d)
	for i, v := range s.Keys {
		x[i] = v - mean[i%d]
	}
	xt := gemm.Transpose(nil, x, n, d)
	var w gemm.Weights
	w.PackRows(d, n, xt, n, s.Threads)
	c := linalg.Identity(d)
	if s.Metric != nil {
		for i := range d {
			for j := range d {
				c[i*d+j] = 0.5 * (s.Metric[i*d+j] + s.Metric[j*d+i])
			}
		}
	}
	values, v, err := linalg.Eigen(ctx, c, d)
	if err != nil {
		return nil, err
	}
	root := linalg.SymmetricPower(values, v, d, func(x float64) float64 { return math.Sqrt(max(x, 0)) })
	a := linalg.Float64(gramOf(xt, d, n, &w, s.Threads))
	for i := range a {
		a[i] /= float64(n)
	}
	a = linalg.Product(linalg.Product(root, a, d), root, d)
	for i := range d {
		for j := range i {
			m := 0.5 * (a[i*d+j] + a[j*d+i])
			a[i*d+j], a[j*d+i] = m, m
		}
	}
	if values, _, err = linalg.Eigen(ctx, a, d); err != nil {
		return nil, err
	}
	for i, x := range values {
		values[i] = max(x, 0)
	}
	return values, nil
}
