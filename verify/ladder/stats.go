package ladder

import (
	"context"
	"math"

	"github.com/phaseconv/phaseconv/kernels/fmath"
	"github.com/phaseconv/phaseconv/kernels/gemm"
	"github.com/phaseconv/phaseconv/kernels/linalg"
)

// stats are the statistics of one KV head that methods are fitted with, from fit text only.
type stats struct {
	d           int
	mu          []float32 // mean of scaled queries
	keyMean     []float32
	half, ihalf []float32 // symmetric roots of their covariance and of its inverse, [d, d]
	queries     []float32 // a strided sample, [n, d]
	logZ        []float32 // log partition of each
	lead        []float32 // see leading

	// queries and half, packed for products once.
	packed, packedHalf gemm.Weights
}

// fitStats measures the heads of one KV head in the fit windows. n queries are sampled at even
// distances over windows, query heads and positions.
func fitStats(ctx context.Context, heads []*head, n int) (*stats, error) {
	T, d, G := heads[0].T, heads[0].d, heads[0].G
	t0 := min(64, T/4) // earlier queries see few keys
	k0 := min(8, T/16) // first keys are of another kind
	mean, keys := make([]float64, d), make([]float64, d)
	count, keyCount := 0, 0
	for _, x := range heads {
		for r := range G * T {
			if r%T >= t0 {
				linalg.AddTo32(mean, x.Q[r*d:(r+1)*d])
				count++
			}
		}
		for t := k0; t < T; t++ {
			linalg.AddTo32(keys, x.K[t*d:(t+1)*d])
			keyCount++
		}
	}
	for i := range d {
		mean[i] /= float64(count)
		keys[i] /= float64(keyCount)
	}
	s := &stats{d: d, mu: linalg.Float32(mean), keyMean: linalg.Float32(keys)}
	cov := make([]float64, d*d)
	centred := make([]float32, d)
	for _, x := range heads {
		if err := stop(ctx); err != nil {
			return nil, err
		}
		for r := range G * T {
			if r%T < t0 {
				continue
			}
			for i, q := range x.Q[r*d : (r+1)*d] {
				centred[i] = float32(float64(q) - mean[i])
			}
			linalg.AddOuter(cov, centred, 1)
		}
	}
	trace := 0.0
	for i := range cov {
		cov[i] /= float64(max(1, count-1))
	}
	for i := range d {
		trace += cov[i*d+i]
	}
	floor := 1e-6*trace/float64(d) + 1e-30
	for i := range d {
		cov[i*d+i] += floor
	}
	values, v, err := linalg.Eigen(ctx, cov, d)
	if err != nil {
		return nil, err
	}
	root := func(x float64) float64 { return math.Sqrt(max(x, floor)) }
	s.half = linalg.Float32(linalg.SymmetricPower(values, v, d, root))
	s.ihalf = linalg.Float32(linalg.SymmetricPower(values, v, d, func(x float64) float64 { return 1 / root(x) }))

	total := len(heads) * G * (T - t0)
	n = min(n, total)
	for i := range n {
		at := 0
		if n > 1 {
			at = i * (total - 1) / (n - 1)
		}
		x, r := heads[at/(G*(T-t0))], at%(G*(T-t0))
		r = r/(T-t0)*T + r%(T-t0) + t0
		s.queries = append(s.queries, x.Q[r*d:(r+1)*d]...)
		s.logZ = append(s.logZ, float32(float64(x.c[r])+fmath.Log(x.Z[r])))
	}
	s.packed.PackRows(n, d, s.queries, d, 1)
	s.packedHalf.PackRows(d, d, s.half, d, 1) // symmetric
	return s, nil
}

// mass is the root mean square attention that each of the keys [n, d] draws from the sampled
// queries.
func (s *stats) mass(ctx context.Context, keys []float32) ([]float32, error) {
	d, n := s.d, len(s.logZ)
	T := len(keys) / d
	out := make([]float32, T)
	const step = 64
	buf := make([]float32, step*n)
	for t := 0; t < T; t += step {
		if err := stop(ctx); err != nil {
			return nil, err
		}
		rows := min(step, T-t)
		gemm.Mul(buf, n, keys[t*d:], d, rows, &s.packed, 1)
		for r := range rows {
			row := buf[r*n : (r+1)*n]
			for i := range row {
				row[i] = min(row[i]-s.logZ[i], 0)
			}
			fmath.ExpSlice(row, row)
			out[t+r] = float32(math.Sqrt(fmath.SumSq(row) / float64(n)))
		}
	}
	return out, nil
}

// whiten multiplies keys [n, d] by the root of the queries' covariance: distances there are
// those of scores.
func (s *stats) whiten(keys []float32) []float32 {
	d := s.d
	out := make([]float32, len(keys))
	gemm.Mul(out, d, keys, d, len(keys)/d, &s.packedHalf, 1)
	return out
}
