package fit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/phaseconv/phaseconv/kernels/gemm"
	"github.com/phaseconv/phaseconv/kernels/linalg"
	"github.com/phaseconv/phaseconv/rotations/codec"
)

// Settings of the frame fit, from measurements in docs/.
const (
	frameSteps = 6
	frameDraft = 3 // of a draft
	frameLast  = 2 // of them
	// metricShrink mixes the identity into the query metric: directions that no
	// calibration query used must not become free.
	metricShrink = 0.3
	// jacobiDim is up to how many numbers axes come from Jacobi's method, which codes of heads
	// always had. Beyond it takes too long.
	jacobiDim = 256
	// gramRidge keeps the least-squares system solvable when two signs always agree.
	gramRidge = 1e-6
)

// frame fits a binary frame: any number of signs, decode rows of any length and
// direction, errors measured in the query metric.
//
// In the coordinates x = C^1/2 (k - mean) the error is Euclidean. Signs start as
// those of the residual along principal axes, each sign going to the axis with
// the largest residual, so an axis with much energy gets several. Then least
// squares for the matrix and the search for signs alternate; neither increases
// the error.
func (s *Sample) frame(ctx context.Context, b int) (*codec.Code, []Point, error) {
	root, inv, err := s.metricRoots(ctx)
	if err != nil {
		return nil, nil, err
	}
	t := &frameTask{d: s.D, b: b, threads: s.Threads, few: s.thin(thinned * max(s.D, b)).Keys, all: s.Keys,
		mean: s.Mean(), root: root, inv: inv, steps: frameSteps}
	if s.Draft {
		t.steps = frameDraft
	}
	if s.Trace != nil {
		t.trace = func(step int, c *codec.Code) { s.Trace(0, step, c) }
	}
	c, curve, err := t.run(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("layer %d, head %d: %w", s.Layer, s.Head, err)
	}
	c, err = s.matchNorm(ctx, c)
	return c, curve, err
}

// A frameTask is a frame to be fitted: of b signs to vectors of d numbers.
type frameTask struct {
	d, b, threads int
	few, all      []float32 // [n, d]: the vectors of the first steps, and all of them
	mean          []float32
	root, inv     []float64 // of the metric, [d, d]
	// sides are the numbers that have signs of their own; nil for all signs for all numbers.
	// The metric must not mix those of different sides.
	sides []frameSide
	steps int
	trace func(step int, c *codec.Code) // nil for none
}

// A frameSide is the numbers from <= j < to of a vector, and the signs first <= i < last that they
// are decoded from. The other signs have zeros there.
type frameSide struct{ from, to, first, last int }

// run fits the frame, without gain.
func (t *frameTask) run(ctx context.Context) (*codec.Code, []Point, error) {
	f := &frameFit{d: t.d, b: t.b, threads: t.threads, sides: t.sides}
	if f.sides == nil {
		f.sides = []frameSide{{to: t.d, last: t.b}}
	}
	root := linalg.Float32(t.root)
	f.take(t.few, t.mean, root)
	if err := f.init(ctx); err != nil {
		return nil, nil, err
	}
	var curve []Point
	for step := range t.steps {
		if err := f.solve(ctx); err != nil {
			return nil, nil, err
		}
		// The last rounds use the encoder as a runtime will: from scratch; and all vectors.
		last := step >= t.steps-frameLast
		if last && f.n < len(t.all)/t.d {
			f.take(t.all, t.mean, root)
		}
		if err := f.encode(ctx, !last); err != nil {
			return nil, nil, err
		}
		curve = append(curve, Point{step, f.cosine()})
		if t.trace != nil {
			if c, err := f.code(t.mean, t.root, t.inv); err == nil {
				t.trace(step, c)
			}
		}
	}
	if err := f.solve(ctx); err != nil {
		return nil, nil, err
	}
	c, err := f.code(t.mean, t.root, t.inv)
	return c, curve, err
}

// code brings the matrix back to key space: decode rows M^T = M'^T C^-1/2, encode
// rows E = M'^T C^1/2.
func (f *frameFit) code(mean []float32, root, invRoot []float64) (*codec.Code, error) {
	return codec.New(codec.Frame, f.d, f.b, mean, linalg.Multiply(f.m, invRoot, f.b, f.d),
		linalg.Multiply(f.m, root, f.b, f.d))
}

// matchNorm gives a code the gain with which decoded keys are as long as the keys,
// on average (docs/codes.md): the best fit of a key is shorter, which flattens
// every softmax, and over the layers that adds up.
func (s *Sample) matchNorm(ctx context.Context, c *codec.Code) (*codec.Code, error) {
	beta, err := c.Measure(ctx, s.thin(2*thinned*s.D).Keys)
	if err != nil {
		return nil, err
	}
	if !(beta.Energy > 0) {
		return c, nil
	}
	return c.WithGain(float32(1 / math.Sqrt(max(beta.Energy, 1.0/(codec.MaxGain*codec.MaxGain)))))
}

// metricRoots returns C^1/2 and C^-1/2 of the shrunk query metric.
func (s *Sample) metricRoots(ctx context.Context) (root, inv []float64, err error) {
	if root, inv, err = shrunkRoots(ctx, s.Metric, s.D); err != nil {
		return nil, nil, fmt.Errorf("layer %d, head %d: %w", s.Layer, s.Head, err)
	}
	return root, inv, nil
}

// shrunkRoots returns C^1/2 and C^-1/2 for a metric that is brought to a trace of d and mixed with
// the identity.
func shrunkRoots(ctx context.Context, metric []float64, d int) (root, inv []float64, err error) {
	if metric == nil {
		return linalg.Identity(d), linalg.Identity(d), nil
	}
	if len(metric) != d*d {
		return nil, nil, fmt.Errorf("metric of %d numbers for vectors of %d", len(metric), d)
	}
	var trace float64
	for i := range d {
		trace += metric[i*d+i]
	}
	if trace == 0 {
		// No query asks for these keys, as in pruned heads: any direction is as good.
		return linalg.Identity(d), linalg.Identity(d), nil
	}
	if !(trace > 0) || math.IsInf(trace, 0) {
		return nil, nil, fmt.Errorf("the energy of the queries is %g", trace)
	}
	c := make([]float64, d*d)
	for i := range d {
		for j := range d {
			c[i*d+j] = (1 - metricShrink) * 0.5 * (metric[i*d+j] + metric[j*d+i]) * float64(d) / trace
		}
		c[i*d+i] += metricShrink
	}
	values, v, err := linalg.Eigen(ctx, c, d)
	if err != nil {
		return nil, nil, err
	}
	root = linalg.SymmetricPower(values, v, d, math.Sqrt)
	inv = linalg.SymmetricPower(values, v, d, func(x float64) float64 { return 1 / math.Sqrt(x) })
	return root, inv, nil
}

// frameFit is the state of one fit, in metric coordinates.
type frameFit struct {
	d, b, n, threads int
	sides            []frameSide
	x, xt            []float32 // [n, d] and its transpose
	m                []float32 // decode rows, [b, d]
	s                []float32 // signs, [n, b]
	alpha            []float64 // [n]
	energy           []float64 // squared lengths of x
	z, p             []float32 // buffers of encode and solve
	num, den         []float64 // s.z and s^T G s per key
}

func (f *frameFit) project(keys, mean, root []float32) []float32 {
	centred := make([]float32, len(keys))
	for i := 0; i < len(keys); i += f.d {
		for j, v := range mean {
			centred[i+j] = keys[i+j] - v
		}
	}
	var w gemm.Weights
	w.PackRows(f.d, f.d, root, f.d, f.threads)
	out := make([]float32, len(keys))
	gemm.Mul(out, f.d, centred, f.d, f.n, &w, f.threads)
	return out
}

// take makes keys the ones to fit; signs and scales are still to be found.
func (f *frameFit) take(keys, mean, root []float32) {
	f.n = len(keys) / f.d
	f.x = f.project(keys, mean, root)
	f.xt = gemm.Transpose(nil, f.x, f.n, f.d)
	f.energy = make([]float64, f.n)
	for i := range f.energy {
		x := f.x[i*f.d : (i+1)*f.d]
		f.energy[i] = linalg.Dot64(x, x)
	}
	f.s, f.alpha = make([]float32, f.n*f.b), make([]float64, f.n)
}

// init sets signs and scales by coding residuals along the principal axes of
// the keys, each key brought to unit length first, since a scale per key takes
// its length away. Signs that several sides share come first, along axes of all
// numbers; each side's own ones code what these leave.
func (f *frameFit) init(ctx context.Context) error {
	d, n := f.d, f.n
	unit := make([]float32, len(f.x))
	for i := range n {
		row := f.x[i*d : (i+1)*d]
		norm := math.Sqrt(f.energy[i])
		f.alpha[i] = norm
		if norm == 0 {
			continue
		}
		for j, v := range row {
			unit[i*d+j] = float32(float64(v) / norm)
		}
	}
	shared := frameSide{to: d, last: f.b}
	for _, x := range f.sides {
		shared.first, shared.last = max(shared.first, x.first), min(shared.last, x.last)
	}
	if err := f.axes(ctx, unit, shared); err != nil || len(f.sides) == 1 {
		return err
	}
	for _, x := range f.sides {
		own := x
		if own.first < shared.first {
			own.last = shared.first
		} else {
			own.first = shared.last
		}
		if err := f.axes(ctx, unit, own); err != nil {
			return err
		}
	}
	return nil
}

// axes sets the signs of a side to those of rows, [n, d], along the principal axes of its numbers, each
// sign going to the axis with the largest residual, and leaves in rows what remains of them.
func (f *frameFit) axes(ctx context.Context, rows []float32, side frameSide) error {
	d, n, b := side.to-side.from, f.n, f.b
	if side.first >= side.last {
		return nil
	}
	x := rows
	if d < f.d {
		x = make([]float32, n*d)
		for i := range n {
			copy(x[i*d:(i+1)*d], rows[i*f.d+side.from:])
		}
	}
	xt := gemm.Transpose(nil, x, n, d)
	var w gemm.Weights
	w.PackRows(d, n, xt, n, f.threads)
	c := linalg.Float64(gramOf(xt, d, n, &w, f.threads))
	eigen := linalg.Eigen
	if d > jacobiDim {
		eigen = linalg.EigenQL
	}
	_, v, err := eigen(ctx, c, d)
	if err != nil {
		return err
	}
	axes := linalg.Float32(v)
	w.PackRows(n, d, x, d, f.threads)
	r := make([]float32, d*n) // residual coordinates, axis by axis
	gemm.Mul(r, n, axes, d, d, &w, f.threads)
	energy := make([]float64, d)
	for j := range d {
		row := r[j*n : (j+1)*n]
		energy[j] = linalg.Dot64(row, row)
	}
	for i := side.first; i < side.last; i++ {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		axis := 0
		for j := range d {
			if energy[j] > energy[axis] {
				axis = j
			}
		}
		row := r[axis*n : (axis+1)*n]
		var size float64
		for _, v := range row {
			size += math.Abs(float64(v)) / float64(n)
		}
		step := float32(size)
		for k, v := range row {
			s := linalg.Sign(v >= 0)
			f.s[k*b+i] = s
			row[k] = v - float32(s*step)
		}
		energy[axis] = linalg.Dot64(row, row)
	}
	if len(f.sides) == 1 {
		return nil
	}
	w.PackT(d, d, axes, d, f.threads)
	gemm.Mul(x, d, gemm.Transpose(nil, r, d, n), d, n, &w, f.threads)
	if d < f.d {
		for i := range n {
			copy(rows[i*f.d+side.from:i*f.d+side.to], x[i*d:])
		}
	}
	return nil
}

// gramOf returns the inner products of the rows of x, [k, n], which w holds too, as [k, k]. Chains of
// products are the same from both sides, so one half is enough.
func gramOf(x []float32, k, n int, w *gemm.Weights, threads int) []float32 {
	const side = 96 // rows of a piece: enough for the threads
	out := make([]float32, k*k)
	for i0 := 0; i0 < k; i0 += side {
		i1 := min(k, i0+side)
		gemm.MulRange(out[i0*k:], k, x[i0*n:], n, i1-i0, w, 0, i1, 0, n, false, threads)
	}
	for i := range k {
		for j := range i {
			out[j*k+i] = out[i*k+j]
		}
	}
	return out
}

// ridged returns a matrix of inner products, [k, k], with a share of its mean diagonal added to the
// diagonal, and the trace that it had.
func ridged(gram []float32, k int, share float64) (out []float64, trace float64) {
	out = linalg.Float64(gram)
	for i := range k {
		trace += out[i*k+i]
	}
	for i := range k {
		out[i*k+i] += share*trace/float64(k) + 1e-30
	}
	return out, trace
}

// solve finds the decode rows that minimise the error for the given signs and
// scales: M = (sum alpha x s^T)(sum alpha^2 s s^T)^-1. It then sorts the rows
// by length, because the encoder decides the longest first.
func (f *frameFit) solve(ctx context.Context) error {
	d, n, b := f.d, f.n, f.b
	p := linalg.Grow(&f.p, b*n) // (alpha s)^T
	const side = 16             // keys at a time, because a row of p is far from the next
	for k0 := 0; k0 < n; k0 += side {
		var a [side]float32
		k1 := min(n, k0+side)
		for k := k0; k < k1; k++ {
			a[k-k0] = float32(f.alpha[k])
		}
		for i := range b {
			to := p[i*n+k0 : i*n+k1]
			for k := range to {
				to[k] = f.s[(k0+k)*b+i] * a[k]
			}
		}
	}
	var w gemm.Weights
	w.PackRows(b, n, p, n, f.threads)
	a32 := make([]float32, d*b)
	gemm.Mul(a32, b, f.xt, n, d, &w, f.threads)
	gram := gramOf(p, b, n, &w, f.threads)
	sol := make([]float64, d*b)
	for _, x := range f.sides {
		if err := leastSquares(ctx, sol, a32, gram, b, x, gramRidge); err != nil {
			return fmt.Errorf("frame least squares: %w", err)
		}
	}
	f.sortRows(sol)
	return nil
}

// leastSquares sets the columns of a side's signs in the rows of its numbers of sol, [d, b], to the
// solution of M gram = a for them alone, with a share ridge of the mean diagonal of gram added to it.
func leastSquares(ctx context.Context, sol []float64, a, gram []float32, b int, x frameSide, ridge float64) error {
	k := x.last - x.first
	own, rows := make([]float32, 0, k*k), make([]float32, 0, (x.to-x.from)*k)
	for i := x.first; i < x.last; i++ {
		own = append(own, gram[i*b+x.first:i*b+x.last]...)
	}
	for j := x.from; j < x.to; j++ {
		rows = append(rows, a[j*b+x.first:j*b+x.last]...)
	}
	square, trace := ridged(own, k, ridge)
	l, err := linalg.Cholesky(ctx, square, k)
	// Fewer keys than signs leave directions open, and rounding may put them below zero.
	for ; errors.Is(err, linalg.ErrNotPositive) && ridge < 1; ridge *= 10 {
		for i := range k {
			square[i*k+i] += 9 * ridge * trace / float64(k) // ten times as much in all
		}
		l, err = linalg.Cholesky(ctx, square, k)
	}
	if err != nil {
		return err
	}
	m, err := linalg.SolveRight(ctx, linalg.Float64(rows), x.to-x.from, l, k)
	if err != nil {
		return err
	}
	for j := x.from; j < x.to; j++ {
		copy(sol[j*b+x.first:j*b+x.last], m[(j-x.from)*k:])
	}
	return nil
}

// sortRows stores the solution as rows, longest first among those of the same sides, and moves the
// signs along.
func (f *frameFit) sortRows(sol []float64) {
	d, b := f.d, f.b
	length := make([]float64, b)
	order := make([]int, b)
	for i := range b {
		order[i] = i
		for j := range d {
			length[i] += float64(sol[j*b+i] * sol[j*b+i])
		}
	}
	// Signs of the same sides follow each other: what starts or ends before them differs.
	place := func(i int) (n int) {
		for _, x := range f.sides {
			if i >= x.first {
				n++
			}
			if i >= x.last {
				n++
			}
		}
		return n
	}
	slices.SortStableFunc(order, func(i, j int) int {
		return cmp.Or(cmp.Compare(place(i), place(j)), cmp.Compare(length[j], length[i]))
	})
	f.m = make([]float32, b*d)
	for i, k := range order {
		for j := range d {
			f.m[i*d+j] = float32(sol[j*b+k])
		}
	}
	row := make([]float32, b)
	for k := range f.n {
		s := f.s[k*b : (k+1)*b]
		for i, o := range order {
			row[i] = s[o]
		}
		copy(s, row)
	}
}

// encode finds new signs and scales for the current matrix; warm starts from
// the signs there are, which makes the error fall step by step.
func (f *frameFit) encode(ctx context.Context, warm bool) error {
	d, n, b := f.d, f.n, f.b
	var w, gw gemm.Weights
	w.PackRows(b, d, f.m, d, f.threads)
	z := linalg.Grow(&f.z, n*b)
	gemm.Mul(z, b, f.x, d, n, &w, f.threads)
	gram := linalg.Float32(linalg.Gram(f.m, b, d))
	gw.PackRows(b, b, gram, b, f.threads)
	f.num, f.den = make([]float64, n), make([]float64, n)
	return codec.Batches(ctx, n, f.threads, func(k0, k1 int) error {
		codec.SearchSigns(b, gram, &gw, z[k0*b:k1*b], f.s[k0*b:k1*b], f.num[k0:k1], f.den[k0:k1], warm)
		for k := k0; k < k1; k++ {
			f.alpha[k] = codec.Scale(f.num[k], f.den[k])
		}
		return nil
	})
}

// cosine is the mean cosine between keys and codes in the metric.
func (f *frameFit) cosine() float64 {
	var total float64
	for k := range f.n {
		if e := f.energy[k]; e > 0 && f.den[k] > 0 {
			total += f.num[k] / math.Sqrt(e*f.den[k])
		}
	}
	return total / float64(f.n)
}
