package transform

import (
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/phaseconv/phaseconv/kernels/fmath"
	"github.com/phaseconv/phaseconv/kernels/gemm"
	"github.com/phaseconv/phaseconv/kernels/linalg"
	"github.com/phaseconv/phaseconv/kernels/rope"
)

// RefineOptions of RefineKeyTransform.
type RefineOptions struct {
	// Cache is the row that keys are stored in; its type must have blocks.
	Cache CacheRow
	// Penalty weighs the drift, as in KeyTransformOptions.
	Penalty float64
	// Steps is how many steps of descent there are at most, 0: refineSteps.
	Steps int
}

const (
	// After so many steps keys and queries that were not fitted gain nothing more: noise still
	// falls, and drift, which a matrix fits to the sampled queries, rises by more
	// (docs/slowmean.md).
	refineSteps = 30
	refineGain  = 1e-4
	// shapeEven is the share of the sample's weight that is spread evenly over its
	// keys: a few keys have most of the attention, and a fit would follow them alone.
	shapeEven = 0.3
)

// A RefineSample is keys of one KV head and queries that meet them.
type RefineSample struct {
	// KeySample holds keys after RoPE, before the mix.
	KeySample
	Pos []int // of the keys, [n]
	// Table is RoPE's, without a magnitude.
	Table *rope.Table
	// Windows say which queries meet which keys; none: there is no drift.
	Windows []QueryWindow
	// Scale is what multiplies q.k before softmax, squared.
	Scale float64
}

// A QueryWindow is sampled queries that meet keys [From, To) of the sample: those at
// their position and before, and if Span > 0 less than Span before.
type QueryWindow struct {
	From, To int
	Span     int
	Queries  []float32 // [n, D], before RoPE
	Pos      []int     // [n]
	// Counts says how many keys of the window each key of the sample stands for, [To - From].
	Counts []float64
}

// RefineKeyTransform goes on from a mix and fits it to a cache type with blocks. FitKeyTransform
// takes the error of a key for noise in proportion to its energy; a type with blocks errs in
// proportion to the square of the largest number in each block, so of two mixes with the same
// energies that one is better whose stored numbers are more even. And FitKeyTransform predicts
// drift from second moments, as if pairs were independent; here it is what the sampled scores do.
// The objective, both terms predicted divergences of attention, is
//
//	c/2 sum_b E|z_b|_8^2 tr_b(H A^-T Q A^-1 H) + kappa/2 E_i Var_{j~p_i}(s'_ij - s_ij)
//
// with the numbers z = H R(n) A k that are stored (the 8-norm is near the largest number, and
// smooth; c makes its sum the error that the type makes of the sample with the first mix), s_ij
// scores as they are and s'_ij = R(i) A^-T q_i . R(j) A k_j those with the mix.
// Descent (L-BFGS) lowers the sum at every step, so the result is never worse on the sample.
// When ctx ends, it returns its cause after at most one step.
func RefineKeyTransform(ctx context.Context, m *KeyTransform, x *RefineSample, o RefineOptions) (*KeyTransform, error) {
	if o.Steps == 0 {
		o.Steps = refineSteps
	}
	p, err := newBlockObjective(ctx, m, x, o)
	if err != nil {
		return nil, err
	}
	d := x.D
	before := p.noise
	value := func(c []float64) (float64, []float64) { return p.value(ctx, c) }
	c, f, steps, err := linalg.Minimize(ctx, linalg.Identity(d), p.curvature, value, o.Steps, refineGain)
	if err != nil {
		return nil, err
	}
	if math.IsNaN(f) {
		return nil, fmt.Errorf("%w: the search ended at %g", ErrNoTransform, f)
	}
	out := &KeyTransform{Steps: m.Steps + steps}
	if m.After > 0 { // what FitKeyTransform predicts, in the units of scores that are seen here
		out.Before = m.Before / m.After * before
	}
	p.value(ctx, c)
	out.After, out.Cost = p.noise, p.drift/o.Penalty
	out.Key = linalg.Product(c, m.Key, d)
	inverse, err := linalg.Inverse(c, d)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoTransform, err)
	}
	out.Query = linalg.Product(linalg.Transpose(inverse, d), m.Query, d)
	return out, out.Check(d)
}

// FitValueTransform finds the matrix A by which the values of a KV head are multiplied, and its
// output projection by the inverse, so that a cache type with blocks errs least: identity
// G2, exact for every invertible A, because nothing stands between values and W_O but
// sums over keys. x holds values, how much an error of each counts (the sum of its squared
// probabilities), and as Metric W_O^T W_O, over the query heads of the group. For errors alike in
// all directions the best A^T A is the geometric mean of the inverse second moment of the values
// and the metric; RefineKeyTransform goes on from there, with a RoPE that stands still.
// When ctx ends, it returns its cause after at most one step.
func FitValueTransform(ctx context.Context, x *KeySample, cache CacheRow) (*KeyTransform, error) {
	d := x.D
	if d < 2 || len(x.Keys) != len(x.Weights)*d || len(x.Metric) != d*d {
		return nil, fmt.Errorf("a sample of %d values, %d weights and %d metric entries does not fit head_dim %d",
			len(x.Keys), len(x.Weights), len(x.Metric), d)
	}
	total, err := x.total()
	if err != nil {
		return nil, err
	}
	moment := make([]float64, d*d)
	linalg.AddOuters(moment, x.Keys, x.Weights, d)
	for i := range moment {
		moment[i] /= total
	}
	m, err := meanTransform(ctx, moment, x.Metric, d)
	if err != nil {
		return nil, err
	}
	cache.Pairs = x.Pairs // values are stored as they are
	return RefineKeyTransform(ctx, m, x.withoutRoPE(), RefineOptions{Cache: cache, Penalty: 1})
}

// FitValueRotation is FitValueTransform for layers that normalise values: only an orthogonal matrix
// passes through the norm. It descends from the identity along the Cayley transforms of
// skew-symmetric matrices.
func FitValueRotation(ctx context.Context, x *KeySample, cache CacheRow) (*KeyTransform, error) {
	d := x.D
	cache.Pairs = x.Pairs
	start := &KeyTransform{Key: linalg.Identity(d), Query: linalg.Identity(d)}
	p, err := newBlockObjective(ctx, start, x.withoutRoPE(), RefineOptions{Cache: cache, Penalty: 1})
	if err != nil {
		return nil, err
	}
	before := p.noise
	var broken error
	value := func(v []float64) (float64, []float64) {
		c, inverse, err := cayley(v, d)
		if err != nil {
			broken = err
			return math.NaN(), make([]float64, d*d)
		}
		f, g := p.value(ctx, c)
		// dC = (1 - X/2)^-1 dX/2 (1 + C)
		for i := range d {
			c[i*d+i]++
		}
		gx := linalg.Product(linalg.Product(linalg.Transpose(inverse, d), g, d), linalg.Transpose(c, d), d)
		out := make([]float64, d*d)
		for i := range d {
			for j := range d {
				out[i*d+j] = 0.25 * (gx[i*d+j] - gx[j*d+i])
			}
		}
		return f, out
	}
	v, f, steps, err := linalg.Minimize(ctx, make([]float64, d*d), p.curvature, value, refineSteps, refineGain)
	if err != nil {
		return nil, err
	}
	if broken != nil || math.IsNaN(f) {
		return nil, fmt.Errorf("%w: the search ended at %g: %w", ErrNoTransform, f, broken)
	}
	c, _, err := cayley(v, d)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoTransform, err)
	}
	p.value(ctx, c)
	out := &KeyTransform{Key: c, Query: slices.Clone(c), Before: before, After: p.noise, Steps: steps}
	return out, out.Check(d)
}

// cayley returns the orthogonal (1 - X/2)^-1 (1 + X/2) for the skew part X of v, and the inverse in
// it.
func cayley(v []float64, d int) (c, inverse []float64, err error) {
	minus, plus := linalg.Identity(d), linalg.Identity(d)
	for i := range d {
		for j := range d {
			x := 0.25 * (v[i*d+j] - v[j*d+i])
			minus[i*d+j] -= x
			plus[i*d+j] += x
		}
	}
	if inverse, err = linalg.Inverse(minus, d); err != nil {
		return nil, nil, err
	}
	return linalg.Product(inverse, plus, d), inverse, nil
}

// still returns the sample for a search in which RoPE has no say and nothing drifts.
func (s *KeySample) withoutRoPE() *RefineSample {
	return &RefineSample{KeySample: *s, Pos: make([]int, len(s.Weights)),
		Table: rope.NewTable(rope.Params{Dim: s.D, Theta: 1}, 1), Scale: 1}
}

// meanMix returns the mix that leaves tr(A K A^T) tr(A^-T Q A^-1) least: with K = L L^T and
// B = L^T Q L it is A = B^1/4 L^-1, up to an orthogonal matrix. Off the diagonal
// both matrices count a little less, see mixShrink.
func meanTransform(ctx context.Context, k, q []float64, d int) (*KeyTransform, error) {
	shrunk := func(a []float64) []float64 {
		out := make([]float64, d*d)
		var trace float64
		for i := range d {
			trace += a[i*d+i]
		}
		for i := range d {
			for j := range d {
				out[i*d+j] = 0.5 * (1 - mixShrink) * (a[i*d+j] + a[j*d+i])
			}
			out[i*d+i] = a[i*d+i] + 1e-6*trace/float64(d) // dead dimensions must not grow without bound
		}
		return out
	}
	l, err := linalg.Cholesky(ctx, shrunk(k), d)
	if err != nil {
		return nil, fmt.Errorf("%w: second moment of values: %w", ErrNoTransform, err)
	}
	inverse, err := linalg.Inverse(l, d)
	if err != nil {
		return nil, fmt.Errorf("%w: second moment of values: %w", ErrNoTransform, err)
	}
	lt := linalg.Transpose(l, d)
	values, vectors, err := linalg.EigenQL(ctx, linalg.Product(linalg.Product(lt, shrunk(q), d), l, d), d)
	if err != nil {
		return nil, err
	}
	if !(slices.Min(values) > 0) {
		return nil, fmt.Errorf("%w: a metric with the eigenvalue %g", ErrNoTransform, slices.Min(values))
	}
	power := func(f func(float64) float64) []float64 { return linalg.SymmetricPower(values, vectors, d, f) }
	m := &KeyTransform{
		Key:   linalg.Product(power(func(v float64) float64 { return math.Sqrt(math.Sqrt(v)) }), inverse, d),
		Query: linalg.Product(power(func(v float64) float64 { return 1 / math.Sqrt(math.Sqrt(v)) }), lt, d),
	}
	return m, m.Check(d)
}

// shape is what RefineKeyTransform minimises, over C with A = C A_0.
type blockObjective struct {
	d, block, n int
	pairs       rope.Layout
	row         CacheRow
	weights     []float64    // of keys, sum to one
	keys        []float32    // [n, d]: A_0 k before RoPE
	turns       turns        // of the keys
	query       []float64    // [d, d]: A_0^-T Q A_0^-1
	h           []float64    // [d, d]: the transform before storing
	enter       gemm.Weights // by h
	leave       gemm.Weights // by its transpose
	scale       float32      // of scores
	factor      float64      // makes errors of scores a divergence
	kappa       float64
	windows     []objectiveWindow
	queries     float64   // how many
	curvature   []float64 // [d, d], about that of the objective at C = 1

	noise, drift float64 // of the last value
	k, z, g, gz  []float32
	powers       []float64 // [block]
	w            gemm.Weights
	c32, t, gt   []float32
	// of drifts: the mix of queries, and the keys of a window
	mix, byRow, byColumn gemm.Weights
}

// shapeWindow is a QueryWindow with what scores are without a mix. Queries are in the
// order of their positions.
type objectiveWindow struct {
	from, to int
	seen     []int     // of each shapeStretch of queries: keys before this one are seen by some
	queries  []float32 // [n, d]: A_0^-T q before RoPE
	turns    turns
	s, p     []float32 // [n, to - from]: scores and probabilities; p is 0 where a query sees no key

	q, gq, ds []float32
}

// shapeStretch is how many queries are multiplied at a time: with the keys up to the
// last that one of them sees.
const shapeStretch = 64

// keyStretch is how many keys get their gradients at a time: from the queries that see any of them.
const keyStretch = 192

// turns are the rotations of RoPE of some rows.
type turns struct {
	table *rope.Table
	pairs rope.Layout
	pos   []int // [n]
}

func newTurns(t *rope.Table, pos []int, pairs rope.Layout) (turns, error) {
	for _, p := range pos {
		if p < 0 || p >= t.Positions() {
			return turns{}, fmt.Errorf("position %d, the table has %d", p, t.Positions())
		}
	}
	return turns{t, pairs, pos}, nil
}

// apply turns rows of d numbers, undo turns them back.
func (t *turns) apply(x []float32, d int) {
	for r, p := range t.pos {
		t.table.Apply(x[r*d:(r+1)*d], p, t.pairs)
	}
}

func (t *turns) undo(x []float32, d int) {
	for r, p := range t.pos {
		t.table.ApplyInverse(x[r*d:(r+1)*d], p, t.pairs)
	}
}

func newBlockObjective(ctx context.Context, m *KeyTransform, x *RefineSample, o RefineOptions) (*blockObjective,
	error) {
	d, n := x.D, len(x.Weights)
	if err := m.Check(d); err != nil {
		return nil, err
	}
	if err := o.Cache.check(d); err != nil {
		return nil, err
	}
	block, _ := o.Cache.Type.Block()
	if block < 2 {
		return nil, fmt.Errorf("type %v has no blocks to fit a mix to", o.Cache.Type)
	}
	if len(x.Keys) != n*d || len(x.Metric) != d*d || len(x.Pos) != n || n == 0 {
		return nil, fmt.Errorf("a sample of %d keys with %d positions, %d values and %d metric entries does not fit head_dim %d", n, len(x.Pos), len(x.Keys), len(x.Metric), d)
	}
	if !(o.Penalty > 0) || !(x.Scale > 0) {
		return nil, fmt.Errorf("a mix with drift weight %g and scale %g: both must be positive", o.Penalty, x.Scale)
	}
	p := &blockObjective{d: d, block: block, n: n, pairs: x.Pairs, row: o.Cache, h: o.Cache.matrix(d, x.Pairs),
		kappa: o.Penalty, scale: float32(math.Sqrt(x.Scale)),
		k: make([]float32, n*d), z: make([]float32, n*d), g: make([]float32, n*d), gz: make([]float32, n*d),
		c32: make([]float32, d*d), powers: make([]float64, block)}
	p.enter.PackRows(d, d, linalg.Float32(p.h), d, 1)
	p.leave.PackT(d, d, linalg.Float32(p.h), d, 1)
	total, err := x.total()
	if err != nil {
		return nil, err
	}
	for _, w := range x.Weights {
		p.weights = append(p.weights, float64((1-shapeEven)*w/total)+shapeEven/float64(n))
	}
	if p.turns, err = newTurns(x.Table, x.Pos, x.Pairs); err != nil {
		return nil, fmt.Errorf("keys: %w", err)
	}
	metric := append([]float64(nil), x.Metric...)
	for i := range metric {
		if i%(d+1) != 0 {
			metric[i] *= 1 - mixShrink
		}
	}
	p.query = m.Metric(metric, d)
	for _, w := range x.Windows {
		if err := p.window(ctx, m, x, &w); err != nil {
			return nil, err
		}
	}
	plain := append([]float32(nil), x.Keys...)
	p.turns.undo(plain, d)
	p.keys = make([]float32, n*d)
	gemm.Mul(p.keys, d, plain, d, n, m.KeyWeights(d), 1)
	// The error of the sample as it is gives the objective its size.
	p.factor = 1
	p.value(ctx, linalg.Identity(d))
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	stored, err := p.quantisedNoise()
	if err != nil {
		return nil, err
	}
	size := 0.5 * x.Scale * stored
	p.factor = size / p.noise
	p.noise = size
	if !(p.factor > 0) || math.IsInf(p.factor, 0) {
		return nil, fmt.Errorf("%w: a type that errs by %g on keys of norm %g", ErrNoTransform, stored, size/p.factor)
	}
	p.perturb(size)
	return p, nil
}

// bend fills in the curvature: that of noise alike in all directions.
func (p *blockObjective) perturb(size float64) {
	d := p.d
	ek := make([]float64, d)
	for i, w := range p.weights {
		for j, v := range p.keys[i*d : (i+1)*d] {
			ek[j] += float64(w * float64(float64(v)*float64(v)))
		}
	}
	var tk, tq float64
	for j := range d {
		tk += ek[j]
		tq += p.query[j*d+j]
	}
	p.curvature = make([]float64, d*d)
	for i := range d {
		for j := range d {
			p.curvature[i*d+j] = 2 * size * (ek[j]/tk + p.query[i*d+i]/tq)
		}
	}
}

// window prepares what drift is measured by, before keys are mixed.
func (p *blockObjective) window(ctx context.Context, m *KeyTransform, x *RefineSample, w *QueryWindow) error {
	d, n, keys := p.d, len(w.Pos), w.To-w.From
	if w.From < 0 || w.To > p.n || keys < 1 || len(w.Counts) != keys || len(w.Queries) != n*d || n == 0 {
		return fmt.Errorf("a window of %d queries, %d values and %d counts at keys %d to %d of %d", n, len(w.Queries),
			len(w.Counts), w.From, w.To, p.n)
	}
	out := objectiveWindow{from: w.From, to: w.To, queries: make([]float32, n*d), s: make([]float32, n*keys),
		p: make([]float32, n*keys),
		q: make([]float32, n*d), gq: make([]float32, n*d), ds: make([]float32, n*keys)}
	order := make([]int, n)
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return w.Pos[a] - w.Pos[b] })
	pos := make([]int, n)
	for i, at := range order {
		pos[i] = w.Pos[at]
	}
	var err error
	if out.turns, err = newTurns(x.Table, pos, p.pairs); err != nil {
		return fmt.Errorf("queries: %w", err)
	}
	for i, at := range order {
		copy(out.q[i*d:(i+1)*d], w.Queries[at*d:(at+1)*d])
	}
	gemm.Mul(out.queries, d, out.q, d, n, m.QueryWeights(d), 1)
	out.turns.apply(out.q, d)
	p.w.PackRows(keys, d, x.Keys[w.From*d:w.To*d], d, 1)
	gemm.Mul(out.s, keys, out.q, d, n, &p.w, 1)
	last := 0
	for i, at := range pos {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		s, prob := out.s[i*keys:(i+1)*keys], out.p[i*keys:(i+1)*keys]
		top := float32(math.Inf(-1))
		for j := range s {
			s[j] = float32(s[j] * p.scale)
			if sees(at, x.Pos[w.From+j], w.Span) {
				top = max(top, s[j])
			}
		}
		var sum float64
		for j := range s {
			if sees(at, x.Pos[w.From+j], w.Span) {
				e := float64(w.Counts[j] * fmath.Exp(float64(s[j])-float64(top)))
				prob[j] = float32(e)
				sum += e
				last = max(last, j+1)
			}
		}
		if sum > 0 {
			fmath.Scale(prob, float32(1/sum))
		}
		if (i+1)%shapeStretch == 0 || i == n-1 {
			out.seen = append(out.seen, last)
		}
	}
	p.windows = append(p.windows, out)
	p.queries += float64(n)
	return nil
}

func sees(query, key, span int) bool {
	return key <= query && (span == 0 || query-key < span)
}

// store computes the keys after RoPE, and the numbers that would be stored, for C.
func (p *blockObjective) quantise(c []float64) {
	d := p.d
	p.pack(&p.w, c)
	gemm.Mul(p.k, d, p.keys, d, p.n, &p.w, 1)
	p.turns.apply(p.k, d)
	gemm.Mul(p.z, d, p.k, d, p.n, &p.enter, 1)
}

func (p *blockObjective) pack(w *gemm.Weights, c []float64) {
	for i, v := range c {
		p.c32[i] = float32(v)
	}
	w.PackRows(p.d, p.d, p.c32, p.d, 1)
}

// stored returns the error of the scores that the cache type makes at C = 1.
func (p *blockObjective) quantisedNoise() (float64, error) {
	d := p.d
	e, err := p.row.errors(p.z)
	if err != nil {
		return 0, err
	}
	tq := p.blocks(p.query)
	var sum float64
	for r, w := range p.weights {
		for b, q := range tq {
			var s float64
			at := r*d + b*p.block
			for _, v := range e[at : at+p.block] {
				s += float64(float64(v) * float64(v))
			}
			sum += float64(w * float64(s*q))
		}
	}
	return sum / float64(p.block), nil
}

// blocks returns the trace of H q H over each block.
func (p *blockObjective) blocks(q []float64) []float64 {
	d := p.d
	out := make([]float64, d/p.block)
	hq := linalg.ProductSingle(p.h, q, d)
	for i := range d {
		out[i/p.block] += linalg.Dot(hq[i*d:(i+1)*d], p.h[i*d:(i+1)*d])
	}
	return out
}

// value returns the objective at C, [d, d], and its gradient. Once ctx has ended it returns
// something else, soon.
func (p *blockObjective) value(ctx context.Context, c []float64) (float64, []float64) {
	d := p.d
	inverse, err := linalg.Inverse(c, d)
	if err != nil {
		return math.Inf(1), nil
	}
	return p.at(ctx, c, inverse)
}

// at is value for a matrix whose inverse is known.
func (p *blockObjective) at(ctx context.Context, c, inverse []float64) (float64, []float64) {
	d := p.d
	// The second moment of queries: Q' = C^-T Q C^-1.
	it := linalg.Transpose(inverse, d)
	q := linalg.ProductSingle(linalg.ProductSingle(it, p.query, d), inverse, d)
	p.quantise(c)
	energy := p.stores(p.blocks(q))
	gemm.Mul(p.g, d, p.gz, d, p.n, &p.leave, 1)
	if ctx.Err() != nil {
		return math.Inf(1), nil
	}
	gd := p.drifts(ctx, it) // and adds to the gradient of the keys
	if ctx.Err() != nil {
		return math.Inf(1), nil
	}
	p.turns.undo(p.g, d)
	g := make([]float64, d*d)
	linalg.AddTo32(g, p.outer(p.g, p.keys, p.n))
	// Through Q': dJ/dQ' = M = H^T E H.
	eh := append([]float64(nil), p.h...)
	for r := range d {
		for i := range eh[r*d : (r+1)*d] {
			eh[r*d+i] *= energy[r/p.block]
		}
	}
	m := linalg.ProductSingle(linalg.Transpose(p.h, d), eh, d)
	qm := linalg.ProductSingle(linalg.ProductSingle(q, m, d), it, d)
	for i := range g {
		g[i] -= 2 * qm[i]
	}
	// Through the sampled queries, D = C^-T: dD = -D dC^T D.
	if gd != nil {
		x := linalg.ProductSingle(linalg.ProductSingle(it, linalg.Transpose(gd, d), d), it, d)
		for i := range g {
			g[i] -= x[i]
		}
	}
	return p.noise + p.drift, g
}

// tiniest is the sum of eighth powers of a block below which the block counts as 0.
const tiniest = 1e-240

// stores sets the noise, for traces tq of the queries over the blocks, and its gradient
// with respect to z. It returns the share of each block's keys in the noise.
func (p *blockObjective) stores(tq []float64) []float64 {
	scale := p.factor / float64(p.block)
	energy := make([]float64, len(tq)) // E|z_b|_8^2, scaled
	for r, w := range p.weights {
		for b := range tq {
			at := r*p.d + b*p.block
			z, g := p.z[at:at+p.block], p.gz[at:at+p.block]
			sum := sevenths(p.powers, z)
			if sum < tiniest {
				clear(g)
				continue
			}
			norm := math.Sqrt(math.Sqrt(sum)) // |z|_8^2
			energy[b] += float64(float64(w*norm) * scale)
			// Its gradient is 2 sum^(1/4 - 1) z^7.
			f := 2 * w * scale * tq[b] * norm / sum
			for i, v := range p.powers[:len(g)] {
				g[i] = float32(v * f)
			}
		}
	}
	p.noise = 0
	for b, n := range energy {
		p.noise += float64(n * tq[b])
	}
	return energy
}

// sevenths sets dst to the seventh powers of z and returns the sum of the eighth ones. In float64
// no number of a cache overflows.
func sevenths(dst []float64, z []float32) float64 {
	dst = dst[:len(z)]
	var even, odd float64 // two sums, so that one addition need not wait for the other
	for i := 0; i+1 < len(z); i += 2 {
		a, b := float64(z[i]), float64(z[i+1])
		a2, b2 := float64(a*a), float64(b*b)
		a4, b4 := float64(a2*a2), float64(b2*b2)
		dst[i], dst[i+1] = float64(float64(a4*a2)*a), float64(float64(b4*b2)*b)
		even += float64(a4 * a4)
		odd += float64(b4 * b4)
	}
	return even + odd
}

// drifts sets the drift, for queries times it, adds its gradient with respect to the
// keys after RoPE, and returns that with respect to it; nil where there are no queries, and
// when ctx has ended.
func (p *blockObjective) drifts(ctx context.Context, it []float64) []float64 {
	p.drift = 0
	if p.queries == 0 {
		return nil
	}
	d := p.d
	out := make([]float64, d*d)
	factor := float32(p.kappa / p.queries * float64(p.scale))
	p.pack(&p.mix, it)
	for i := range p.windows {
		if ctx.Err() != nil {
			return nil
		}
		w := &p.windows[i]
		n, keys := len(w.q)/d, w.to-w.from
		gemm.Mul(w.q, d, w.queries, d, n, &p.mix, 1)
		w.turns.apply(w.q, d)
		k := p.k[w.from*d : w.to*d]
		p.byRow.PackRows(keys, d, k, d, 1)
		p.byColumn.PackT(d, keys, k, d, 1)
		for part, seen := range w.seen {
			at := part * shapeStretch
			rows := min(shapeStretch, n-at)
			gemm.MulRange(w.ds[at*keys:], keys, w.q[at*d:], d, rows, &p.byRow, 0, seen, 0, d, false, 1)
			for r := at; r < at+rows; r++ {
				p.drift += w.differ(r, seen, p.scale, factor)
			}
			// Gradients: of the queries G k, of the keys G^T q.
			gemm.MulRange(w.gq[at*d:], d, w.ds[at*keys:], keys, rows, &p.byColumn, 0, d, 0, seen, false, 1)
		}
		// (G^T q)^T = q^T G: so only what is small is transposed.
		p.t = gemm.Transpose(p.t, w.q, n, d)
		p.w.PackT(keys, n, w.ds, keys, 1)
		gt := linalg.Grow(&p.gt, d*keys)
		at := 0 // the stretch of queries that is the first to see a key
		for j := 0; j < keys; j += keyStretch {
			for at < len(w.seen) && w.seen[at] <= j {
				at++
			}
			gemm.MulRange(gt, keys, p.t, n, d, &p.w, j, min(j+keyStretch, keys), min(at*shapeStretch, n), n, false, 1)
		}
		p.t = gemm.Transpose(p.t, gt, d, keys)
		for i, v := range p.t {
			p.g[w.from*d+i] += v
		}
		w.turns.undo(w.gq, d)
		linalg.AddTo32(out, p.outer(w.gq, w.queries, n))
	}
	p.drift = float64(p.drift * (0.5 * p.kappa / p.queries))
	return out
}

// differ replaces the new scores of query r with the keys before seen by the gradient
// of the drift, and returns the query's variance of their differences from the old ones.
func (w *objectiveWindow) differ(r, seen int, scale, factor float32) float64 {
	keys := w.to - w.from
	ds, s, prob := w.ds[r*keys:r*keys+seen], w.s[r*keys:r*keys+seen], w.p[r*keys:r*keys+seen]
	var means, squares [2]float64 // two sums each, so that one addition need not wait for the other
	j := 0
	for ; j+1 < len(ds); j += 2 {
		a, b := float32(ds[j]*scale)-s[j], float32(ds[j+1]*scale)-s[j+1]
		ds[j], ds[j+1] = a, b
		pa, pb := float64(prob[j])*float64(a), float64(prob[j+1])*float64(b)
		means[0] += pa
		means[1] += pb
		squares[0] += float64(pa * float64(a))
		squares[1] += float64(pb * float64(b))
	}
	if j < len(ds) {
		a := float32(ds[j]*scale) - s[j]
		ds[j] = a
		pa := float64(prob[j]) * float64(a)
		means[0] += pa
		squares[0] += float64(pa * float64(a))
	}
	mean, square := means[0]+means[1], squares[0]+squares[1]
	for j, v := range ds {
		ds[j] = float32(float32(prob[j]*(v-float32(mean))) * factor)
	}
	return square - float64(mean*mean)
}

// outer returns the sum over n rows of a x b^T, [d, d].
func (p *blockObjective) outer(a, b []float32, n int) []float32 {
	p.t = gemm.Transpose(p.t, a, n, p.d)
	p.w.PackT(p.d, n, b, p.d, 1)
	out := make([]float32, p.d*p.d)
	gemm.Mul(out, p.d, p.t, n, p.d, &p.w, 1)
	return out
}
