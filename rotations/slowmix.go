package rotations

import (
	"fmt"
	"math"

	"phaseconv/kernels/rope"
	"phaseconv/rotations/internal/linalg"
)

// IDSlowMix is the near-identity that mixes slow rotary pairs: inside the
// target context RoPE hardly turns them, so nearly any invertible matrix over
// their numbers passes through it.
const IDSlowMix = "G8"

// A SlowMix multiplies the numbers of some rotary pairs of a head's keys, before
// RoPE, by a matrix A, and those of its queries by A^-T. Were RoPE the identity
// on these pairs, no score would change.
type SlowMix struct {
	// Dims are the mixed dimensions of a head, ascending.
	Dims []int
	// Key is A and Query A^-T, [n, n] for n = len(Dims).
	Key, Query []float64
}

// Check refuses what cannot be folded.
func (m *SlowMix) Check(d int) error {
	n := len(m.Dims)
	if n == 0 || len(m.Key) != n*n || len(m.Query) != n*n {
		return fmt.Errorf("a mix of %d dimensions with matrices of %d and %d numbers", n, len(m.Key), len(m.Query))
	}
	for i, x := range m.Dims {
		if x < 0 || x >= d || i > 0 && x <= m.Dims[i-1] {
			return fmt.Errorf("mixed dimension %d is %d: they must ascend below %d", i, x, d)
		}
	}
	for _, part := range [][]float64{m.Key, m.Query} {
		for _, x := range part {
			if math.IsNaN(x) || math.Abs(x) > maxBalance {
				return fmt.Errorf("a mix with the number %g", x)
			}
		}
	}
	return nil
}

// Apply multiplies a head of a key, or of a query, before RoPE, in place.
func (m *SlowMix) Apply(x []float32, query bool) {
	a := m.Key
	if query {
		a = m.Query
	}
	n := len(m.Dims)
	in := make([]float64, n)
	for i, k := range m.Dims {
		in[i] = float64(x[k])
	}
	for i, k := range m.Dims {
		x[k] = float32(linalg.Dot(a[i*n:(i+1)*n], in))
	}
}

// Undo takes back what Apply did to a key.
func (m *SlowMix) Undo(x []float32) {
	// A^-1 is the transpose of Query.
	n := len(m.Dims)
	in := make([]float64, n)
	for i, k := range m.Dims {
		in[i] = float64(x[k])
	}
	for i, k := range m.Dims {
		var sum float64
		for j, v := range in {
			sum += float64(m.Query[j*n+i] * v)
		}
		x[k] = float32(sum)
	}
}

// Metric returns A^-T Q A^-1 for the second moment Q of queries, [d, d].
func (m *SlowMix) Metric(q []float64, d int) []float64 {
	out := append([]float64(nil), q...)
	n := len(m.Dims)
	rows := make([]float64, n*d)
	for range 2 { // rows, then the transpose's rows
		for i := range n {
			for k := range d {
				var sum float64
				for j, x := range m.Dims {
					sum += float64(m.Query[i*n+j] * out[x*d+k])
				}
				rows[i*d+k] = sum
			}
		}
		for i, x := range m.Dims {
			copy(out[x*d:(x+1)*d], rows[i*d:(i+1)*d])
		}
		out = transpose64(out, d)
	}
	return out
}

func transpose64(a []float64, n int) []float64 {
	out := make([]float64, len(a))
	for i := range n {
		for j := range n {
			out[j*n+i] = a[i*n+j]
		}
	}
	return out
}

// mixShrink is the share of the second moments' diagonal, as the balance knows
// it, in what MixSlow uses: directions that few samples show must not grow.
const mixShrink = 0.02

// SlowPairs returns the rotary pairs that turn by at most limit radians over n positions.
func SlowPairs(p rope.Params, n int, limit float64) []int {
	var out []int
	for i, w := range p.InvFreq() {
		if w*float64(n) <= limit {
			out = append(out, i)
		}
	}
	return out
}

// MixSlow returns the mix of pairs that suits cache types with errors alike in
// all directions, given second moments of keys and queries before RoPE, [d, d]:
// A = P^1/2 with P the geometric mean of K^-1 and Q, for which A K A^T =
// A^-T Q A^-1. It minimises tr(A K A^T) tr(A^-T Q A^-1), of which the balance
// finds the best diagonal. nil where there are fewer than two pairs.
func MixSlow(keys, queries []float64, d int, pairs rope.Layout, slow []int) (*SlowMix, error) {
	if len(slow) < 2 {
		return nil, nil
	}
	mixed := make([]bool, d)
	for _, p := range slow {
		i, j := pairs.Dims(p, d)
		mixed[i], mixed[j] = true, true
	}
	m := &SlowMix{}
	for i, x := range mixed {
		if x {
			m.Dims = append(m.Dims, i)
		}
	}
	n := len(m.Dims)
	moments := func(full []float64) ([]float64, error) {
		out := make([]float64, n*n)
		var trace float64
		for i, x := range m.Dims {
			for j, y := range m.Dims {
				out[i*n+j] = (1 - mixShrink) * 0.5 * (full[x*d+y] + full[y*d+x])
			}
			out[i*n+i] += mixShrink * full[x*d+x]
			trace += full[x*d+x]
		}
		if !(trace > 0) || math.IsInf(trace, 0) {
			return nil, fmt.Errorf("slow pairs have the energy %g", trace)
		}
		for i := range n {
			out[i*n+i] += 1e-6 * trace / float64(n)
		}
		return out, nil
	}
	k, err := moments(keys)
	if err != nil {
		return nil, err
	}
	q, err := moments(queries)
	if err != nil {
		return nil, err
	}
	power := func(a []float64, f func(float64) float64) []float64 {
		values, v := linalg.Eigen(a, n)
		return linalg.SymmetricPower(values, v, n, f)
	}
	// P = K^-1/2 (K^1/2 Q K^1/2)^1/2 K^-1/2
	kr := power(k, math.Sqrt)
	ki := power(k, func(x float64) float64 { return 1 / math.Sqrt(x) })
	p := product(ki, product(power(product(kr, product(q, kr, n), n), func(x float64) float64 { return math.Sqrt(max(x, 0)) }), ki, n), n)
	m.Key = power(p, math.Sqrt)
	m.Query = power(p, func(x float64) float64 { return 1 / math.Sqrt(x) })
	return m, m.Check(d)
}

// product returns A B, [n, n].
func product(a, b []float64, n int) []float64 {
	bt := transpose64(b, n)
	out := make([]float64, n*n)
	for i := range n {
		for j := range n {
			out[i*n+j] = linalg.Dot(a[i*n:(i+1)*n], bt[j*n:(j+1)*n])
		}
	}
	return out
}
