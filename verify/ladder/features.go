package ladder

import (
	"context"
	"math"
	"math/rand/v2"

	"github.com/phaseconv/phaseconv/kernels/fmath"
	"github.com/phaseconv/phaseconv/kernels/gemm"
	"github.com/phaseconv/phaseconv/kernels/linalg"
)

// A featureMap estimates weights of keys from features of query and key: it returns
// P [G*T, T], relative to exp(c) of each query, for all keys. It is a linear carrier: the state
// is the sum of phi(k) [v, 1].
type featureMap func(x *head) []float32

// clampFar bounds exponents of estimated weights beside an exact largest weight of 1.
const clampFar = 30

// product returns A B^T for A [n, k] and B [m, k].
func product(a, b []float32, k int) []float32 {
	n, m := len(a)/k, len(b)/k
	var w gemm.Weights
	w.PackRows(m, k, b, k, 1)
	out := make([]float32, n*m)
	gemm.Mul(out, m, a, k, n, &w, 1)
	return out
}

// less subtracts a row from every row.
func less(x, row []float32) []float32 {
	d := len(row)
	out := make([]float32, len(x))
	for i, v := range x {
		out[i] = v - row[i%d]
	}
	return out
}

// offsets splits off the exact factors of centred features: q.k = q.km + mu.(k-km) + the rest.
// It returns q.km - c for queries and mu.(k-km) for keys.
func (s *stats) offsets(x *head) (q, k []float64) {
	d := s.d
	q, k = make([]float64, x.G*x.T), make([]float64, x.T)
	for r := range q {
		q[r] = linalg.Dot64(x.Q[r*d:(r+1)*d], s.keyMean) - float64(x.c[r])
	}
	for t := range k {
		k[t] = linalg.Dot64(s.mu, x.K[t*d:(t+1)*d]) - linalg.Dot64(s.mu, s.keyMean)
	}
	return q, k
}

// favor are positive random features (FAVOR+) of the centred product, dimensions balanced,
// directions orthogonal in blocks. seed makes the directions.
func favor(s *stats, heads []*head, m int, seed uint64) featureMap {
	d := s.d
	scale := balance(s, heads)
	w := directions(m, d, seed)
	return func(x *head) []float32 {
		q, k := less(x.Q, s.mu), less(x.K, s.keyMean)
		for i := range q {
			q[i] *= scale[i%d]
		}
		for i := range k {
			k[i] /= scale[i%d]
		}
		oq, ok := s.offsets(x)
		fq, fk := product(q, w, d), product(k, w, d)
		for t := range ok {
			ok[t] -= 0.5 * linalg.Dot64(k[t*d:(t+1)*d], k[t*d:(t+1)*d])
		}
		top := math.Inf(-1)
		for i, v := range fk {
			top = max(top, float64(v)+ok[i/m])
		}
		for i, v := range fk {
			fk[i] = float32(float64(v) + ok[i/m] - top)
		}
		fmath.ExpSlice(fk, fk)
		for r := range oq {
			row := fq[r*m : (r+1)*m]
			oq[r] += top - 0.5*linalg.Dot64(q[r*d:(r+1)*d], q[r*d:(r+1)*d])
			high := fmath.Max(row)
			factor := fmath.Exp(min(oq[r]+float64(high), maxExponent)) / float64(m)
			fmath.ExpSum(row, row, high, 1)
			for i := range row {
				row[i] = float32(float64(row[i]) * factor)
			}
		}
		return product(fq, fk, m)
	}
}

// balance returns per dimension what queries are multiplied and keys divided by.
func balance(s *stats, heads []*head) []float32 {
	d := s.d
	vq, vk := make([]float64, d), make([]float64, d)
	nq, nk := 0, 0
	spread := func(sum []float64, x, mean []float32) int {
		for i, v := range x {
			diff := float64(v) - float64(mean[i%d])
			sum[i%d] += float64(diff * diff)
		}
		return len(x) / d
	}
	for _, x := range heads {
		nq += spread(vq, x.Q, s.mu)
		nk += spread(vk, x.K, s.keyMean)
	}
	out := make([]float32, d)
	for i := range out {
		out[i] = float32(fmath.Pow((vk[i]/float64(nk)+1e-9)/(vq[i]/float64(nq)+1e-9), 0.25))
	}
	return out
}

// directions returns m Gaussian directions of d numbers, orthogonal within blocks of d. The
// generator and the functions it is turned into a Gaussian with have the same bits everywhere.
func directions(m, d int, seed uint64) []float32 {
	r := rand.New(rand.NewPCG(seed, uint64(d)))
	gauss := func() float64 {
		radius := math.Sqrt(-2 * fmath.Log(1-r.Float64()))
		return radius * fmath.Cos(2*math.Pi*r.Float64())
	}
	out := make([]float32, 0, m*d)
	for len(out) < m*d {
		block := make([]float64, d*d)
		for i := range block {
			block[i] = gauss()
		}
		linalg.Orthonormalize(block, d)
		for i := 0; i < d && len(out) < m*d; i++ {
			length := 0.0
			for range d {
				g := gauss()
				length += float64(g * g)
			}
			length = math.Sqrt(length)
			for _, v := range block[i*d : (i+1)*d] {
				out = append(out, float32(v*length))
			}
		}
	}
	return out
}

// leading returns the directions in which whitened fit keys vary, most first, [d, d].
func (s *stats) leading(ctx context.Context, heads []*head) ([]float32, error) {
	if s.lead != nil {
		return s.lead, nil
	}
	d := s.d
	cov, mean, n := make([]float64, d*d), make([]float64, d), 0
	var white [][]float32
	for _, x := range heads {
		w := s.whiten(less(x.K, s.keyMean)[min(8, x.T/16)*d:])
		white = append(white, w)
		for t := range len(w) / d {
			linalg.AddTo32(mean, w[t*d:(t+1)*d])
			n++
		}
	}
	for i := range mean {
		mean[i] /= float64(n)
	}
	for _, w := range white {
		if err := stop(ctx); err != nil {
			return nil, err
		}
		for i := range w {
			w[i] = float32(float64(w[i]) - mean[i%d])
		}
		for t := range len(w) / d {
			linalg.AddOuter(cov, w[t*d:(t+1)*d], 1)
		}
	}
	_, v, err := linalg.Eigen(ctx, cov, d)
	if err == nil {
		s.lead = linalg.Float32(v)
	}
	return s.lead, err
}

// taylor is the second-order series of the centred product on its r leading directions, with
// 1 + r + r(r+1)/2 <= m features (Based).
func taylor(ctx context.Context, s *stats, heads []*head, m int) (featureMap, error) {
	d := s.d
	r := 0
	for r < d && 1+(r+1)+(r+1)*(r+2)/2 <= m {
		r++
	}
	lead, err := s.leading(ctx, heads)
	if err != nil {
		return nil, err
	}
	lead = lead[:r*d]
	return func(x *head) []float32 {
		oq, ok := s.offsets(x)
		q := product(product(less(x.Q, s.mu), s.ihalf, d), lead, d)
		k := product(s.whiten(less(x.K, s.keyMean)), lead, d)
		e := exponents(make([]float32, len(oq)*len(ok)), oq, ok)
		for i, v := range product(q, k, r) {
			u := float64(v)
			e[i] = float32((1 + u + float64(0.5*u*u)) * float64(e[i]))
		}
		return e
	}, nil
}

// exponents sets e to exp(oq + ok), clamped.
func exponents(e []float32, oq, ok []float64) []float32 {
	n := len(ok)
	for r, a := range oq {
		for t, b := range ok {
			e[r*n+t] = float32(min(a+b, maxExponent))
		}
	}
	fmath.ExpSlice(e, e)
	return e
}

// A codebook holds the centres of keys in the metric of queries (Transformer-VQ).
type codebook struct {
	s       *stats
	m       int
	white   []float32 // centres, whitened and centred, [m, d]
	centres []float32 // as keys
	norms   []float64 // of white
}

// codebookKeys bounds the keys that centres are fitted to; they lie at even distances.
const codebookKeys = 6000

// kmeansSteps is how often centres move; errors hardly fall afterwards.
const kmeansSteps = 12

// fitCodebook clusters the keys of fit windows, weighted by the attention that they draw.
func fitCodebook(ctx context.Context, s *stats, heads []*head, m int) (*codebook, error) {
	d := s.d
	var keys []float32
	skip := min(4, heads[0].T/16)
	total := len(heads) * (heads[0].T - skip)
	n := min(total, codebookKeys)
	for i := range n {
		at := i * total / n
		x, t := heads[at/(heads[0].T-skip)], at%(heads[0].T-skip)+skip
		keys = append(keys, x.K[t*d:(t+1)*d]...)
	}
	w, err := s.mass(ctx, keys)
	if err != nil {
		return nil, err
	}
	points := s.whiten(less(keys, s.keyMean))
	c := &codebook{s: s, m: m}
	c.white, err = kmeans(ctx, points, w, m, d)
	if err != nil {
		return nil, err
	}
	c.centres = product(c.white, s.ihalf, d)
	for i := range c.centres {
		c.centres[i] += s.keyMean[i%d]
	}
	c.norms = norms(c.white, d)
	return c, nil
}

func norms(x []float32, d int) []float64 {
	out := make([]float64, len(x)/d)
	for i := range out {
		out[i] = linalg.Dot64(x[i*d:(i+1)*d], x[i*d:(i+1)*d])
	}
	return out
}

// kmeans returns m centres of weighted points [n, d]. It begins with the points that stand at
// even shares of the weight, without random numbers.
func kmeans(ctx context.Context, x, w []float32, m, d int) ([]float32, error) {
	n := len(x) / d
	weight := func(i int) float64 { return float64(w[i]) + 1e-4 }
	total := 0.0
	for i := range n {
		total += weight(i)
	}
	centres := make([]float32, m*d)
	sum, next := 0.0, 0
	for i := range n {
		sum += weight(i)
		for next < m && sum >= total*(float64(next)+0.5)/float64(m) {
			copy(centres[next*d:(next+1)*d], x[i*d:(i+1)*d])
			next++
		}
	}
	for ; next < m; next++ {
		copy(centres[next*d:(next+1)*d], x[(n-1)*d:])
	}
	means, mass := make([]float64, m*d), make([]float64, m)
	for range kmeansSteps {
		if err := stop(ctx); err != nil {
			return nil, err
		}
		at := assign(x, centres, norms(centres, d), d)
		clear(means)
		clear(mass)
		for i, c := range at {
			mass[c] += weight(i)
			row := means[c*d : (c+1)*d]
			for j, v := range x[i*d : (i+1)*d] {
				row[j] += float64(weight(i) * float64(v))
			}
		}
		for c := range m {
			for j := range d {
				if mass[c] > 0 { // an empty cluster stays where it is
					centres[c*d+j] = float32(means[c*d+j] / mass[c])
				}
			}
		}
	}
	return centres, nil
}

// assign returns the nearest centre of each point, the first of equals.
func assign(x, centres []float32, norms []float64, d int) []int {
	m := len(norms)
	z := product(x, centres, d)
	out := make([]int, len(x)/d)
	for i := range out {
		best := math.Inf(1)
		for c, v := range z[i*m : (i+1)*m] {
			if dist := norms[c] - 2*float64(v); dist < best {
				best, out[i] = dist, c
			}
		}
	}
	return out
}

// features returns phi(q) relative to exp(c), [G*T, m], and of each key its centre and its
// weight exp(mu.(k - centre)).
func (b *codebook) features(x *head) (fq []float32, at []int, fk []float32) {
	d, s := b.s.d, b.s
	at = assign(s.whiten(less(x.K, s.keyMean)), b.white, b.norms, d)
	fq = product(x.Q, b.centres, d)
	for i := range fq {
		fq[i] = min(fq[i]-x.c[i/b.m], clampFar)
	}
	fmath.ExpSlice(fq, fq)
	fk = make([]float32, x.T)
	for t := range fk {
		c := at[t]
		fk[t] = float32(min(linalg.Dot64(s.mu, x.K[t*d:(t+1)*d])-linalg.Dot64(s.mu, b.centres[c*d:(c+1)*d]), clampFar))
	}
	fmath.ExpSlice(fk, fk)
	return fq, at, fk
}

func (b *codebook) weights(x *head) []float32 {
	fq, at, fk := b.features(x)
	P := make([]float32, x.G*x.T*x.T)
	for r := range x.G * x.T {
		for t := range r%x.T + 1 {
			P[r*x.T+t] = fq[r*b.m+at[t]] * fk[t]
		}
	}
	return P
}

// replay runs the linear carrier of a codebook token by token with a float32 state, and
// compares it with the same features summed in float64 without recurrence.
func (b *codebook) replay(x *head) (out squares) {
	d, T := x.d, x.T
	fq, at, fk := b.features(x)
	S := make([]float32, b.m*(d+1))
	num := make([]float64, d)
	want := make([]float64, d)
	for t := range T {
		row := S[at[t]*(d+1) : (at[t]+1)*(d+1)]
		for i, v := range x.V[t*d : (t+1)*d] {
			row[i] += float32(fk[t] * v)
		}
		row[d] += fk[t]
		if t < T/2 || (t-T/2)%max(1, T/2/replays) != 0 {
			continue
		}
		for g := range x.G {
			r := g*T + t
			clear(num)
			clear(want)
			var z, zw float64
			for c := range b.m {
				f := float64(fq[r*b.m+c])
				for i := range d {
					num[i] += float64(f * float64(S[c*(d+1)+i]))
				}
				z += float64(f * float64(S[c*(d+1)+d]))
			}
			for j := range t + 1 {
				f := float64(float64(fq[r*b.m+at[j]]) * float64(fk[j]))
				for i, v := range x.V[j*d : (j+1)*d] {
					want[i] += float64(f * float64(v))
				}
				zw += f
			}
			for i := range d {
				diff := num[i]/z - want[i]/zw
				out.diff += float64(diff * diff)
				out.norm += float64(want[i] / zw * (want[i] / zw))
			}
		}
	}
	return out
}
