package rotations

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"phaseconv/kernels/rope"
	"phaseconv/rotations/internal/linalg"
)

// secondMoment returns X^T X of random rows whose dimensions are correlated and
// differ in size.
func secondMoment(r *rand.Rand, n, d int) []float64 {
	mix := make([]float64, d*d)
	for i := range mix {
		mix[i] = r.NormFloat64()
	}
	out := make([]float64, d*d)
	x, y := make([]float64, d), make([]float64, d)
	for range n {
		for i := range x {
			x[i] = r.NormFloat64() * math.Exp2(float64(i%5)-2)
		}
		for i := range y {
			y[i] = linalg.Dot(mix[i*d:(i+1)*d], x)
		}
		for i, a := range y {
			for j, b := range y {
				out[i*d+j] += a * b
			}
		}
	}
	return out
}

// trace of A X A^T over the mixed dimensions.
func mixedEnergy(a, full []float64, dims []int, d int) (sum float64) {
	n := len(dims)
	for i := range n {
		for j, x := range dims {
			for k, y := range dims {
				sum += a[i*n+j] * full[x*d+y] * a[i*n+k]
			}
		}
	}
	return sum
}

// TestMixSlow: queries get the inverse transpose, so with RoPE at rest no score
// changes; and the product of energies, to which noise is proportional, falls
// below what scales alone reach, to the optimum (the squared nuclear norm of
// K^1/2 Q^1/2).
func TestMixSlow(t *testing.T) {
	const d = 24
	r := rand.New(rand.NewPCG(1, 1))
	for _, pairs := range []rope.Layout{rope.Half, rope.Interleaved} {
		k, q := secondMoment(r, 4000, d), secondMoment(r, 4000, d)
		slow := []int{3, 4, 7, 8, 9, 11}
		m, err := MixSlow(k, q, d, pairs, slow)
		if err != nil {
			t.Fatal(err)
		}
		n := len(m.Dims)
		if n != 2*len(slow) || !slices.IsSorted(m.Dims) {
			t.Fatalf("dimensions %v", m.Dims)
		}
		for _, p := range slow {
			i, j := pairs.Dims(p, d)
			if !slices.Contains(m.Dims, i) || !slices.Contains(m.Dims, j) {
				t.Errorf("pair %d is not mixed: %v", p, m.Dims)
			}
		}
		for range 20 {
			x, y := random(r, d), random(r, d)
			var before, after, size float64
			u, v := slices.Clone(x), slices.Clone(y)
			m.Apply(u, false)
			m.Apply(v, true)
			for i := range x {
				before += float64(x[i]) * float64(y[i])
				after += float64(u[i]) * float64(v[i])
				size += math.Abs(float64(u[i]) * float64(v[i]))
				if !slices.Contains(m.Dims, i) && u[i] != x[i] {
					t.Errorf("dimension %d is not mixed and changes", i)
				}
			}
			if math.Abs(before-after) > 1e-5*size { // rounding of float32 products
				t.Errorf("a score of %g becomes %g", before, after)
			}
			m.Undo(u)
			for i := range u {
				if math.Abs(float64(u[i]-x[i])) > 1e-4 {
					t.Errorf("undone: %g for %g", u[i], x[i])
				}
			}
		}
		// The measures that a mix has to improve, on the moments that it was given.
		got := mixedEnergy(m.Key, k, m.Dims, d) * mixedEnergy(m.Query, q, m.Dims, d)
		var scales float64
		for _, p := range slow {
			i, j := pairs.Dims(p, d)
			scales += math.Sqrt((k[i*d+i] + k[j*d+j]) * (q[i*d+i] + q[j*d+j]))
		}
		kk, qq := make([]float64, n*n), make([]float64, n*n)
		for i, x := range m.Dims {
			for j, y := range m.Dims {
				kk[i*n+j], qq[i*n+j] = k[x*d+y], q[x*d+y]
			}
		}
		values, vectors := linalg.Eigen(kk, n)
		root := linalg.SymmetricPower(values, vectors, n, math.Sqrt)
		values, _ = linalg.Eigen(product(root, product(qq, root, n), n), n)
		var nuclear float64
		for _, v := range values {
			nuclear += math.Sqrt(max(v, 0))
		}
		// mixShrink keeps it off the optimum by a few per cent.
		if got < 0.999*nuclear*nuclear || got > 1.1*nuclear*nuclear || got > 0.9*scales*scales {
			t.Errorf("%v: energies multiply to %g; scales alone reach %g, the optimum is %g", pairs, got, scales*scales, nuclear*nuclear)
		}
		// Metric is the queries' moment after the mix.
		var sum float64
		after := m.Metric(q, d)
		for _, x := range m.Dims {
			sum += after[x*d+x]
		}
		if want := mixedEnergy(m.Query, q, m.Dims, d); math.Abs(sum-want) > 1e-9*want {
			t.Errorf("mixed queries have energy %g, want %g", sum, want)
		}
	}
	if m, err := MixSlow(make([]float64, d*d), make([]float64, d*d), d, rope.Half, []int{3}); m != nil || err != nil {
		t.Errorf("one pair: %v, %v", m, err)
	}
	if _, err := MixSlow(make([]float64, d*d), make([]float64, d*d), d, rope.Half, []int{3, 4}); err == nil {
		t.Error("keys without energy were mixed")
	}
}

// TestSlowPairs: pairs by the angle that they turn by.
func TestSlowPairs(t *testing.T) {
	p := rope.Params{Theta: 10000, Dim: 8} // 1, 0.1, 0.01, 0.001 per position
	for limit, want := range map[float64][]int{0.2: {3}, 2: {2, 3}, 1e9: {0, 1, 2, 3}, 0.01: nil} {
		if got := SlowPairs(p, 100, limit); !slices.Equal(got, want) {
			t.Errorf("limit %g: %v, want %v", limit, got, want)
		}
	}
}
