package transform

import (
	"context"
	"errors"
	"fmt"
	"math"

	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/kernels/fmath"
	"github.com/phaseconv/phaseconv/kernels/gemm"
	"github.com/phaseconv/phaseconv/kernels/linalg"
	"github.com/phaseconv/phaseconv/kernels/rope"
)

// IDKeyTransform is the near-identity that mixes rotary pairs: pairs that hardly turn
// within a context, or turn at nearly the same speed, can be mixed by a matrix that
// passes through RoPE nearly unchanged.
const IDKeyTransform = "G8"

// A KeyTransform multiplies a head's keys, before RoPE, by a matrix A, and the queries
// that meet them by A^-T. Did A commute with RoPE, no score would change.
type KeyTransform struct {
	// Key is A and Query A^-T, [D, D], row by row.
	Key, Query []float64
	// Exact: it mixes only dimensions that RoPE does not turn, see IDStillTransform.
	Exact bool
	// Before and After are the predicted KL divergences from the cache type's error,
	// with the best balance (G3) and with the mix, and Cost what the mix itself does,
	// for one query head and token, in nats.
	Before, After, Cost float64
	// Steps is how many steps the search took.
	Steps int
}

// CheckKeyTransform says whether dimensions of a model's keys can be mixed.
func CheckKeyTransform(c *family.Config) error {
	for l := range c.Layers {
		if err := checkKeyTransform(c, &c.Layers[l]); err != nil {
			return err
		}
	}
	return nil
}

func checkKeyTransform(c *family.Config, y *family.Layer) error {
	if err := CheckPairScale(y); err != nil {
		return err
	}
	if y.QKNorm != family.NoQKNorm {
		return fmt.Errorf("family %s normalises queries and keys after their projection (QK-norm), and no matrix passes through the norm", c.Family.Name)
	}
	return nil
}

// ErrNoTransform says that for these keys, or values, no transform can be found that could
// be folded: they are constant, or differ too much in size. Such a head stays as it is.
var ErrNoTransform = errors.New("no transform for the numbers of this head")

// Check refuses what cannot be folded into heads of d numbers.
func (m *KeyTransform) Check(d int) error {
	if d < 1 || len(m.Key) != d*d || len(m.Query) != d*d {
		return fmt.Errorf("a mix with matrices of %d and %d numbers for head_dim %d", len(m.Key), len(m.Query), d)
	}
	for _, part := range [][]float64{m.Key, m.Query} {
		for _, x := range part {
			if math.IsNaN(x) || math.Abs(x) > maxBalance {
				return fmt.Errorf("%w: a mix with the number %g", ErrNoTransform, x)
			}
		}
	}
	return m.checkInverse(d)
}

// inverseTolerance is how far an inner product of a column of Query and one of Key may be
// from that of an inverse, against the sum of the sizes of its terms.
const inverseTolerance = 1e-6

// checkInverse refuses a mix whose Query is not Key^-T: it would change scores, or what
// leaves a head, and nothing that follows would tell.
func (m *KeyTransform) checkInverse(d int) error {
	sum, size := make([]float64, d), make([]float64, d)
	for i := range d { // column i of Query against all columns of Key
		clear(sum)
		clear(size)
		for k := range d {
			q := m.Query[k*d+i]
			for j, a := range m.Key[k*d : (k+1)*d] {
				sum[j] += float64(q * a)
				size[j] += math.Abs(q * a)
			}
		}
		sum[i]--
		for j, x := range sum {
			if math.Abs(x) > inverseTolerance*max(1, size[j]) {
				return fmt.Errorf("a mix whose matrix of queries is not the inverse transposed of that of keys: columns %d and %d are off by %.2g", i, j, x)
			}
		}
	}
	return nil
}

// diagonal says whether the transform of heads of d numbers only scales.
func (m *KeyTransform) diagonal(d int) bool {
	for i, v := range m.Key {
		if i%(d+1) != 0 && (v != 0 || m.Query[i] != 0) {
			return false
		}
	}
	return true
}

// orthogonalTolerance is how far a number of A^-T may be from that of A in an orthogonal matrix,
// whose rows have the length 1.
const orthogonalTolerance = 1e-6

// orthogonal says whether the matrix is its own inverse transposed.
func (m *KeyTransform) orthogonal() bool {
	for i, v := range m.Key {
		if !(math.Abs(v-m.Query[i]) <= orthogonalTolerance) {
			return false
		}
	}
	return true
}

// KeyWeights packs the matrix of keys for products with rows of heads.
func (m *KeyTransform) KeyWeights(d int) *gemm.Weights { return packed(m.Key, d) }

// QueryWeights packs the matrix of queries for products with rows of heads.
func (m *KeyTransform) QueryWeights(d int) *gemm.Weights { return packed(m.Query, d) }

func packed(from []float64, d int) *gemm.Weights {
	w := &gemm.Weights{}
	w.PackRows(d, d, linalg.Float32(from), d, 1)
	return w
}

// UndoWeights packs the matrix that takes back what KeyWeights does.
func (m *KeyTransform) UndoWeights(d int) *gemm.Weights {
	return packed(linalg.Transpose(m.Query, d), d) // A^-1
}

// Metric returns A^-T Q A^-1, the second moment of queries [D, D] after the mix.
func (m *KeyTransform) Metric(q []float64, d int) []float64 {
	return linalg.Product(linalg.Product(m.Query, q, d), linalg.Transpose(m.Query, d), d)
}

// A KeyTransformStats is what is known of one KV head when its pairs are to be mixed. Keys
// and queries count as in KeyStats.
type KeyTransformStats struct {
	D     int
	Pairs rope.Layout
	// Queries is the second moment of queries before RoPE, [D, D].
	Queries []float64
	// Keys are groups of keys, such as the first ones of a window and the others.
	Keys []DistanceBucket
	// Freq is the angle that each pair turns by from one position to the next, [D/2].
	Freq []float64
	// Curvature and Scale are as in KeyStats.
	Curvature, Scale float64
}

// DistanceBucket is a group of keys that lie about as far from the queries they meet.
type DistanceBucket struct {
	// Moment is the second moment of keys before RoPE, [D, D], and Share the group's
	// part of their weight.
	Moment []float64
	Share  float64
	// Distances from queries.
	Distances []Distance
}

// A Distance is a number of positions between a key and a query, with how much
// score errors there count that agree in all keys of a query: relative to what
// errors of equal size count that are independent in all keys, added up over the
// distances of all groups.
type Distance struct{ Positions, Weight float64 }

// KeyTransformOptions says how noise and drift are weighed against each other, as
// BiasShiftOptions does.
type KeyTransformOptions struct {
	Noise, Penalty float64
	// Still, if set, are the pairs that RoPE does not turn, [D/2]: only they are mixed, at no cost,
	// and the others scaled.
	Still []bool
}

// mixShrink is the share of the second moments' diagonal in what FitKeyTransform uses:
// directions that few samples show must not grow.
const mixShrink = 0.02

// Bounds of the search for a mix; 15 to 30 steps are usual.
const (
	mixSteps = 60
	mixGain  = 1e-4 // a step that lowers the sum by less, relative to it, is the last
)

// FitKeyTransform finds the mix A = e^X T, for the balance T of G3 and a symmetric X, with
// the least sum of two terms. The first is the error of a cache type whose errors
// are alike in all directions,
//
//	noise/D tr(A K A^T) tr(A^-T Q A^-1)
//
// which could fall to the squared nuclear norm of K^1/2 Q^1/2 if RoPE stood still
// (scales alone reach the squared sum over pairs of the roots of their energies'
// products). The second is how X differs on the two sides of RoPE. As a map from
// pair b to pair a, both complex numbers, X is z -> x z + y conj(z); RoPE turns
// a and b by w_a and w_b per position, so over a distance n a score errs by
//
//	Re[conj(q_a) (x k_b (e^(i w_a n) - e^(i w_b n)) + y conj(k_b) (e^(i w_a n) - e^(-i w_b n)))]
//
// to first order in X, whose mean square is E|q_a|^2 E|k_b|^2 (|x|^2 E[1 - cos((w_a - w_b) n)]
// + |y|^2 E[1 - cos((w_a + w_b) n)]) if queries, keys and distances are independent.
// Preconditioned descent with exact gradients of both terms; no step makes the sum worse.
// When ctx ends, it returns its cause after at most one step.
func FitKeyTransform(ctx context.Context, s *KeyTransformStats, o KeyTransformOptions) (*KeyTransform, error) {
	if !(o.Noise > 0) || !(o.Penalty > 0) || math.IsInf(o.Noise, 0) || math.IsInf(o.Penalty, 0) {
		return nil, fmt.Errorf("mix of pairs with noise %g and drift weight %g: both must be positive", o.Noise, o.Penalty)
	}
	p, scale, err := newTransformProgram(s, o)
	if err != nil {
		return nil, err
	}
	d := s.D
	m, err := p.at(ctx, make([]float64, d*d))
	if err != nil {
		return nil, err
	}
	out := &KeyTransform{Exact: o.Still != nil}
	factor := 0.5 * s.Curvature * s.Scale
	out.Before = factor * m.noise
	for ; out.Steps < mixSteps; out.Steps++ {
		next, err := p.search(ctx, m)
		if err != nil {
			return nil, err
		}
		if next == nil {
			break // rounding: the sum can fall no further
		}
		was := m.value()
		m = next
		if was-m.value() < mixGain*was {
			break
		}
	}
	out.After, out.Cost = factor*m.noise, factor*m.drift/o.Penalty
	out.Key = linalg.SymmetricPower(m.values, m.vectors, d, fmath.Exp)
	out.Query = linalg.SymmetricPower(m.values, m.vectors, d, func(v float64) float64 { return fmath.Exp(-v) })
	for i := range out.Key {
		out.Key[i] *= scale[i%d]
		out.Query[i] /= scale[i%d]
	}
	return out, out.Check(d)
}

// mixProgram is what FitKeyTransform minimises, after the balance.
type transformProgram struct {
	d     int
	pairs rope.Layout
	noise float64   // noise/D
	k, q  []float64 // second moments, [D, D]
	still []bool    // pairs that alone are mixed, nil for all
	// linear and conjugate weigh |x|^2 and |y|^2 of each pair of pairs, [D/2, D/2].
	linear, conjugate []float64
}

func newTransformProgram(s *KeyTransformStats, o KeyTransformOptions) (p *transformProgram, scale []float64,
	err error) {
	d, half := s.D, s.D/2
	if d < 2 || d%2 != 0 || len(s.Queries) != d*d || len(s.Freq) != half {
		return nil, nil, fmt.Errorf("statistics for a mix with %d query moments and %d frequencies for head_dim %d",
			len(s.Queries), len(s.Freq), d)
	}
	keys := make([]float64, d*d)
	for _, g := range s.Keys {
		if len(g.Moment) != d*d {
			return nil, nil, fmt.Errorf("statistics for a mix with %d key moments for head_dim %d", len(g.Moment), d)
		}
		for i, v := range g.Moment {
			keys[i] += float64(g.Share * v)
		}
	}
	p = &transformProgram{d: d, pairs: s.Pairs, noise: o.Noise / float64(d), still: o.Still}
	ek, eq := p.energies(keys), p.energies(s.Queries)
	scale = make([]float64, d)
	for a, t := range PairScaleOf(eq, ek) {
		i, j := p.pairs.Dims(a, d)
		scale[i], scale[j] = float64(t), float64(t)
		eq[a] /= float64(t) * float64(t)
	}
	p.k, p.q = make([]float64, d*d), make([]float64, d*d)
	var tk, tq float64
	for i := range d {
		for j := range d {
			share := 0.5 * (1 - mixShrink)
			if i == j {
				share = 0.5
			}
			p.k[i*d+j] = share * (keys[i*d+j] + keys[j*d+i]) * scale[i] * scale[j]
			p.q[i*d+j] = share * (s.Queries[i*d+j] + s.Queries[j*d+i]) / (scale[i] * scale[j])
		}
		tk += p.k[i*d+i]
		tq += p.q[i*d+i]
	}
	if !(tk > 0) || !(tq > 0) || math.IsInf(tk, 0) || math.IsInf(tq, 0) {
		return nil, nil, fmt.Errorf("%w: keys and queries with the energies %g and %g", ErrNoTransform, tk, tq)
	}
	p.linear, p.conjugate = make([]float64, half*half), make([]float64, half*half)
	for _, g := range s.Keys {
		e := p.energies(g.Moment)
		for b := range half {
			i, _ := p.pairs.Dims(b, d)
			energy := e[b] * scale[i] * scale[i]
			for a := range half {
				w := o.Penalty * eq[a] * energy
				p.linear[a*half+b] += float64(w * g.turned(s.Freq[a]-s.Freq[b]))
				p.conjugate[a*half+b] += float64(w * g.turned(s.Freq[a]+s.Freq[b]))
			}
		}
	}
	return p, scale, nil
}

// energies returns the second moment of each pair, as a complex number.
func (p *transformProgram) energies(moment []float64) []float64 {
	out := make([]float64, p.d/2)
	for a := range out {
		i, j := p.pairs.Dims(a, p.d)
		out[a] = max(0, moment[i*p.d+i]+moment[j*p.d+j])
	}
	return out
}

// turned returns the weighted sum of 1 - cos(w n) over the distances n.
func (g *DistanceBucket) turned(w float64) float64 {
	var sum float64
	for _, x := range g.Distances {
		_, c := fmath.SinCos(w * x.Positions)
		sum += float64(x.Weight * (1 - c))
	}
	return sum
}

// entries returns where X maps pair b to pair a: its entries (i,k), (i,l), (j,k)
// and (j,l) for a = (i, j) and b = (k, l).
func (p *transformProgram) entries(a, b int) (ik, il, jk, jl int) {
	i, j := p.pairs.Dims(a, p.d)
	k, l := p.pairs.Dims(b, p.d)
	return i*p.d + k, i*p.d + l, j*p.d + k, j*p.d + l
}

// A mixPoint is a point of the search.
type transformPoint struct {
	x               []float64 // [D, D], symmetric
	values, vectors []float64 // of x; vectors are rows
	tk, tq          float64   // tr(A K A^T), tr(A^-T Q A^-1)
	noise, drift    float64
}

func (m *transformPoint) value() float64 { return m.noise + m.drift }

func (p *transformProgram) at(ctx context.Context, x []float64) (*transformPoint, error) {
	d, half := p.d, p.d/2
	m := &transformPoint{x: x}
	var err error
	if m.values, m.vectors, err = linalg.EigenQL(ctx, x, d); err != nil {
		return nil, err
	}
	// tr(e^X K e^X) = sum_i e^(2 l_i) v_i^T K v_i
	for i, l := range m.values {
		v := m.vectors[i*d : (i+1)*d]
		var k, q float64
		for r, a := range v {
			k += float64(a * linalg.Dot(p.k[r*d:(r+1)*d], v))
			q += float64(a * linalg.Dot(p.q[r*d:(r+1)*d], v))
		}
		m.tk += float64(fmath.Exp(2*l) * k)
		m.tq += float64(fmath.Exp(-2*l) * q)
	}
	m.noise = p.noise * m.tk * m.tq
	for a := range half {
		for b := range half {
			xr, xi, yr, yi := p.split(x, a, b)
			m.drift += float64(p.linear[a*half+b]*(float64(xr*xr)+float64(xi*xi))) +
				float64(p.conjugate[a*half+b]*(float64(yr*yr)+float64(yi*yi)))
		}
	}
	return m, nil
}

// split returns the complex numbers x and y of the map from pair b to pair a.
func (p *transformProgram) split(x []float64, a, b int) (xr, xi, yr, yi float64) {
	ik, il, jk, jl := p.entries(a, b)
	return 0.5 * (x[ik] + x[jl]), 0.5 * (x[jk] - x[il]), 0.5 * (x[ik] - x[jl]), 0.5 * (x[jk] + x[il])
}

// search walks back along a descent direction until the sum falls enough (Armijo); nil
// if it does nowhere.
func (p *transformProgram) search(ctx context.Context, m *transformPoint) (*transformPoint, error) {
	dir, slope := p.direction(m)
	for t := 1.0; t > 1e-4; t /= 2 {
		x := make([]float64, len(dir))
		for i, v := range m.x {
			x[i] = v + float64(t*dir[i])
		}
		next, err := p.at(ctx, x)
		if err != nil {
			return nil, err
		}
		if next.value() < m.value()+float64(1e-4*float64(t*slope)) {
			return next, nil
		}
	}
	return nil, nil
}

// direction returns minus the gradient at m, each coordinate divided by about its
// curvature, and the slope along it.
func (p *transformProgram) direction(m *transformPoint) (dir []float64, slope float64) {
	d, half := p.d, p.d/2
	gk, gq := p.traceGradient(m, p.k, 1), p.traceGradient(m, p.q, -1)
	g, h := make([]float64, d*d), make([]float64, d)
	for i := range g {
		g[i] = p.noise * (float64(m.tq*gk[i]) + float64(m.tk*gq[i]))
	}
	for i := range h {
		h[i] = 2 * p.noise * (float64(m.tq*p.k[i*d+i]) + float64(m.tk*p.q[i*d+i]))
	}
	dir = make([]float64, d*d)
	for a := range half {
		for b := range half {
			if p.still != nil && (!p.still[a] || !p.still[b]) {
				continue
			}
			i, j := p.pairs.Dims(a, d)
			k, l := p.pairs.Dims(b, d)
			ik, il, jk, jl := p.entries(a, b)
			xr, xi, yr, yi := p.split(m.x, a, b)
			curve := h[i] + h[j] + h[k] + h[l]
			lin, con := 2*p.linear[a*half+b], 2*p.conjugate[a*half+b]
			step := func(g, weight, at float64) float64 {
				g += float64(weight * at)
				s := -g / (curve + weight)
				slope += float64(g * s)
				return s
			}
			xr, xi = step(g[ik]+g[jl], lin, xr), step(g[jk]-g[il], lin, xi)
			yr, yi = step(g[ik]-g[jl], con, yr), step(g[jk]+g[il], con, yi)
			dir[ik], dir[jl], dir[jk], dir[il] = xr+yr, xr-yr, xi+yi, yi-xi
		}
	}
	// Rounding aside the direction is symmetric; the eigenvalues of x rely on it.
	for i := range d {
		for j := range i {
			v := 0.5 * (dir[i*d+j] + dir[j*d+i])
			dir[i*d+j], dir[j*d+i] = v, v
		}
	}
	return dir, slope
}

// traceGradient returns the gradient of tr(a e^(2 sign X)) at m: in the basis of X's
// eigenvectors, a times the divided differences of the function.
func (p *transformProgram) traceGradient(m *transformPoint, a []float64, sign float64) []float64 {
	d := p.d
	vt := linalg.Transpose(m.vectors, d)
	t := linalg.Product(linalg.Product(m.vectors, a, d), vt, d)
	f := make([]float64, d)
	for i, l := range m.values {
		f[i] = fmath.Exp(2 * sign * l)
	}
	for i := range d {
		for j := range d {
			gap := 2 * sign * (m.values[i] - m.values[j])
			g := 0.5 * (f[i] + f[j]) // the limit, as near as rounding lets the quotient be
			if math.Abs(gap) > 1e-5 {
				g = (f[i] - f[j]) / gap
			}
			t[i*d+j] *= 2 * sign * g
		}
	}
	return linalg.Product(linalg.Product(vt, t, d), m.vectors, d)
}
