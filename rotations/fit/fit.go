// Package fit fits key codes to the keys of a KV head, and rotations to the rows of FFN matrices.
package fit

import (
	"context"
	"fmt"
	"math"

	"github.com/phaseconv/phaseconv/kernels/gemm"
	"github.com/phaseconv/phaseconv/kernels/linalg"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/rotations/internal/seeded"
)

// Sample is what the codes of one KV head are fitted to.
type Sample struct {
	D    int
	Keys []float32 // [N, D], after RoPE and after every folded identity
	// Metric is E[w q q^T] over the queries q that meet these keys, with weights w,
	// [D, D]; nil weighs all directions alike. Its scale does not matter to fits.
	Metric []float64
	// Weights says how much attention each key gets, [N]; nil weighs all alike.
	// Only the choice between finished codes uses it.
	Weights []float64
	// Layer, Head and Seed select the random numbers.
	Layer, Head int
	Seed        uint64
	// Draft ends the fit of a frame early, for codes that are only measured, not used.
	Draft bool
	// Threads for matrix products; results do not depend on it.
	Threads int
	// Trace, if set, is given what an iterative fit has after each step, without
	// gain. learned begins from several starts, numbered from 0, goes on from the best
	// under its number, and ends with all keys under the next; frame has one start.
	Trace func(start, step int, c *codec.Code)
}

// trace calls Trace for an orthogonal matrix.
func (s *Sample) trace(start, step int, mean, m []float32) {
	if s.Trace == nil {
		return
	}
	if c, err := codec.New(codec.Learned, s.D, s.D, mean, linalg.Orthogonal(m, s.D), nil); err == nil {
		s.Trace(start, step, c)
	}
}

// N returns the number of keys.
func (s *Sample) N() int { return len(s.Keys) / s.D }

// A Point is one step of an iterative fit.
type Point struct {
	Step int `json:"step"`
	// Cos1bit is the mean cosine between a key and its code on the keys that the
	// step was fitted to: a part of them first, then all.
	Cos1bit float64 `json:"cos1bit"`
}

// Fit fits a code with b signs per key. Only frame takes b other than D. The
// curve is nil for codes that are not found step by step. When ctx ends, Fit returns its
// cause after at most one step.
func Fit(ctx context.Context, kind codec.Kind, b int, s *Sample) (*codec.Code, []Point, error) {
	if s.D < 1 || len(s.Keys)%s.D != 0 {
		return nil, nil, fmt.Errorf("%d key values for head_dim %d", len(s.Keys), s.D)
	}
	if kind != codec.Frame && b != s.D {
		return nil, nil, fmt.Errorf("code %s has one sign per number; only frame can use %d signs for %d numbers", kind, b,
			s.D)
	}
	if err := codec.CheckSize(s.D, b); err != nil {
		return nil, nil, err
	}
	if s.N() == 0 && kind != codec.Raw {
		return nil, nil, fmt.Errorf("no calibration keys for layer %d, head %d", s.Layer, s.Head)
	}
	zero := make([]float32, s.D)
	var m []float32
	mean := zero
	switch kind {
	case codec.Raw:
		m = linalg.Float32(linalg.Identity(s.D))
	case codec.Cen:
		m, mean = linalg.Float32(linalg.Identity(s.D)), s.Mean()
	case codec.SRHT:
		return s.bestSRHT(ctx)
	case codec.Random:
		m, mean = linalg.Float32(seeded.RandomOrthogonal(s.D, seeded.Stream(s.Seed, s.Layer, s.Head, seeded.PurposeRandom))),
			s.Mean()
	case codec.Learned:
		return s.bestLearned(ctx)
	case codec.Frame:
		return s.frame(ctx, b)
	default:
		return nil, nil, fmt.Errorf("code %q is not known (%v)", kind, codec.Kinds)
	}
	c, err := codec.New(kind, s.D, b, mean, m, nil)
	return c, nil, err
}

// srhtTries is how many sign patterns a fitted srht code chooses from. Patterns
// differ: on Qwen2.5-Coder-0.5B single ones range from 5 to 14 times the float
// perplexity.
const srhtTries = 16

// thinned is how many keys per number of a key are enough to tell codes apart, and
// to bring an iteration near its end.
const thinned = 16

// thin returns the sample with about n of its keys, evenly spread, or the sample
// itself if it has less than twice as many.
func (s *Sample) thin(n int) *Sample {
	step := s.N() / n
	if step < 2 {
		return s
	}
	t := *s
	t.Keys, t.Weights = everyRow(s.Keys, s.D, n), nil
	for i := 0; i < s.N() && s.Weights != nil; i += step {
		t.Weights = append(t.Weights, s.Weights[i])
	}
	return &t
}

// everyRow returns about n of rows of d numbers, evenly spread, or all where there are less than
// twice as many.
func everyRow(rows []float32, d, n int) []float32 {
	step := len(rows) / d / n
	if step < 2 {
		return rows
	}
	out := make([]float32, 0, (n+n/step+1)*d)
	for i := 0; i+d <= len(rows); i += step * d {
		out = append(out, rows[i:i+d]...)
	}
	return out
}

// bestSRHT returns the Hadamard code, among a few sign patterns, that loses least.
func (s *Sample) bestSRHT(ctx context.Context) (*codec.Code, []Point, error) {
	mean := s.Mean()
	few := s.thin(thinned * s.D)
	r := seeded.Stream(s.Seed, s.Layer, s.Head, seeded.PurposeSRHT)
	var best *codec.Code
	least := math.Inf(1)
	for range srhtTries {
		if ctx.Err() != nil {
			return nil, nil, context.Cause(ctx)
		}
		c, err := codec.New(codec.SRHT, s.D, s.D, mean, linalg.Float32(seeded.SRHT(s.D, r)), nil)
		if err != nil {
			return nil, nil, err
		}
		loss, err := few.ScoreLoss(ctx, c)
		if err != nil {
			return nil, nil, err
		}
		if loss < least || best == nil {
			best, least = c, loss
		}
	}
	return best, nil, nil
}

// ScoreLoss is the mean square error of scores that a code causes on the
// sample's keys, E[(q.(e - E e))^2] for the metric E[q q^T] and errors
// e = k - k_hat. The mean error is taken out: softmax does not see it. It fails only when
// ctx ends.
func (s *Sample) ScoreLoss(ctx context.Context, c *codec.Code) (float64, error) {
	d, n := s.D, s.N()
	words, alpha := make([]uint32, n*c.Words()), make([]float32, n)
	e := make([]float32, n*d)
	if err := c.EncodeKeys(ctx, s.Keys, words, alpha); err != nil {
		return 0, err
	}
	c.DecodeKeys(e, words, alpha)
	mean := make([]float64, d)
	var total float64
	for i := range n {
		total += s.weight(i)
	}
	for i := range n {
		row, key, weight := e[i*d:(i+1)*d], s.Keys[i*d:(i+1)*d], s.weight(i)
		for j, v := range key {
			row[j] = v - row[j]
			mean[j] += float64(row[j]) * weight / total
		}
	}
	for i := range n {
		row, weight := e[i*d:(i+1)*d], math.Sqrt(s.weight(i))
		for j, v := range mean {
			row[j] = float32((float64(row[j]) - v) * weight)
		}
	}
	et := gemm.Transpose(nil, e, n, d)
	var w gemm.Weights
	w.PackRows(d, n, et, n, s.Threads)
	cov := make([]float32, d*d)
	gemm.Mul(cov, d, et, n, d, &w, s.Threads)
	var loss float64
	for i := range d {
		if s.Metric == nil {
			loss += float64(cov[i*d+i])
			continue
		}
		for j := range d {
			loss += float64(s.Metric[i*d+j] * float64(cov[i*d+j]))
		}
	}
	return loss / total, nil
}

func (s *Sample) weight(key int) float64 {
	if s.Weights == nil {
		return 1
	}
	return s.Weights[key]
}

// Mean returns the mean key, [D]; NaN where there are no keys.
func (s *Sample) Mean() []float32 { return rowMean(s.Keys, s.D) }

func rowMean(rows []float32, d int) []float32 {
	sum := make([]float64, d)
	for i := 0; i < len(rows); i += d {
		for j, v := range rows[i : i+d] {
			sum[j] += float64(v)
		}
	}
	out := make([]float32, d)
	for j, v := range sum {
		out[j] = float32(v / float64(len(rows)/d))
	}
	return out
}

// Settings of the learned rotation's fixed point. Momentum 2 reaches in 30 steps
// what the plain iteration reaches in 300 (docs/codes.md).
const (
	learnedFirst    = 10   // steps from each start
	learnedSteps    = 30   // steps from the best of them, the first included
	learnedLast     = 5    // steps with all keys after those with a part
	learnedGain     = 1e-5 // a step that raises the objective by less is the last
	learnedMomentum = 2
)

// learnedStarts is how many starts a learned code chooses from: the identity,
// then Hadamard bases.
const learnedStarts = 2

// bestLearned learns from several starts for a while, goes on from the one whose code
// loses least (the objective has many local optima, and a higher one is often no
// better), and ends with all keys: until then a part of them has to do.
func (s *Sample) bestLearned(ctx context.Context) (*codec.Code, []Point, error) {
	mean := s.Mean()
	few := s.thin(2 * thinned * s.D)
	r := seeded.Stream(s.Seed, s.Layer, s.Head, seeded.PurposeLearned)
	var best *codec.Code
	var curve []Point
	from, least := 0, math.Inf(1)
	for i := range learnedStarts {
		start := linalg.Identity(s.D)
		if i > 0 {
			start = seeded.SRHT(s.D, r)
		}
		c, points, err := few.learnedCode(ctx, learnedRun{start: i, steps: learnedFirst}, mean, linalg.Float32(start))
		if err != nil {
			return nil, nil, err
		}
		loss, err := few.ScoreLoss(ctx, c)
		if err != nil {
			return nil, nil, err
		}
		if loss < least || best == nil {
			best, curve, from, least = c, points, i, loss
		}
	}
	best, points, err := few.learnedCode(ctx, learnedRun{from, learnedFirst, learnedSteps - learnedFirst}, mean,
		best.Decode)
	if err != nil {
		return nil, nil, err
	}
	if len(points) > 1 {
		curve = append(curve, points[1:]...) // the first is where the start ended
	}
	if few != s {
		if best, points, err = s.learnedCode(ctx, learnedRun{start: learnedStarts, steps: learnedLast}, mean,
			best.Decode); err != nil {
			return nil, nil, err
		}
		curve = append(curve, points...)
	}
	for i := range curve {
		curve[i].Step = i
	}
	best, err = s.matchNorm(ctx, best)
	return best, curve, err
}

// A learnedRun is a part of the way of a learned code: so many steps, traced as
// those of a start after the first few.
type learnedRun struct{ start, after, steps int }

func (s *Sample) learnedCode(ctx context.Context, run learnedRun, mean, start []float32) (*codec.Code, []Point, error) {
	m, points, err := s.learned(ctx, run, mean, start)
	if err != nil {
		return nil, nil, err
	}
	c, err := codec.New(codec.Learned, s.D, s.D, mean, m, nil)
	return c, points, err
}

// learned maximises the mean of |R x|_1 / (sqrt(d) |x|_2) over orthogonal R for
// the centred keys x by the fixed point R <- polar(C), C = sum sign(R x) x^T,
// x normalised, which never decreases it and needs no step size (the L1-max
// objective). Each step is stretched along the change of C; when that fails to
// help, the best R so far takes a plain step instead.
func (s *Sample) learned(ctx context.Context, run learnedRun, mean, start []float32) (best []float32, curve []Point,
	err error) {
	d := s.D
	x := UnitKeys(s.Keys, mean)
	n := len(x) / d
	best = start
	if n == 0 {
		return best, nil, nil
	}
	f := NewL1(x, d, s.Threads)
	r, value := best, -1.0
	var bestC, c []float32 // the correlation matrix at best, and at r
	for step := 0; ; step++ {
		if ctx.Err() != nil {
			return nil, nil, context.Cause(ctx)
		}
		v := f.Objective(r)
		c = f.Correlate()
		curve = append(curve, Point{step, max(v, value)})
		gain := v - value
		if gain > 0 {
			s.trace(run.start, run.after+step, mean, r)
		} else {
			s.trace(run.start, run.after+step, mean, best)
		}
		if step == run.steps || gain >= 0 && gain < learnedGain {
			if gain > 0 {
				best = r
			}
			return linalg.Orthogonal(best, d), curve, nil
		}
		next := stretched(c, bestC, gain)
		if gain > 0 {
			best, bestC, value = r, c, v
		}
		if r, err = linalg.Polar(ctx, next, d, s.Threads); err != nil {
			return nil, nil, err
		}
	}
}

// stretched returns the correlation matrix from which the next step is taken: c
// carried on along its change since best, the one of the best step so far, nil
// before there is one; or best again where the last step lost (gain < 0), because
// it was stretched too far.
func stretched(c, best []float32, gain float64) []float32 {
	if gain < 0 {
		return best
	}
	if best == nil {
		return c
	}
	next := make([]float32, len(c))
	for i := range next {
		next[i] = c[i] + float32(learnedMomentum*(c[i]-best[i]))
	}
	return next
}

// UnitKeys returns keys [n, d] minus their mean [d], with length one; keys equal to the
// mean carry no direction and are left out.
func UnitKeys(keys, mean []float32) []float32 {
	d := len(mean)
	out := make([]float32, 0, len(keys))
	k := make([]float32, d)
	for i := 0; i+d <= len(keys); i += d {
		for j := range k {
			k[j] = keys[i+j] - mean[j]
		}
		if norm := math.Sqrt(linalg.Dot64(k, k)); norm > 0 {
			for _, v := range k {
				out = append(out, float32(float64(v)/norm))
			}
		}
	}
	return out
}

// L1 evaluates the objective of learned rotations, the mean of |R x|_1 / sqrt(d) over
// unit keys x, which is the mean cosine between R x and its signs.
type L1 struct {
	d, n, threads int
	keys, dims    gemm.Weights // unit keys x as [n, d] and as [d, n]
	y             []float32    // (R x)^T, then its signs, [d, n]
}

// NewL1 takes unit keys x, [n, d]; threads <= 0 uses all.
func NewL1(x []float32, d, threads int) *L1 {
	f := &L1{d: d, n: len(x) / d, threads: threads, y: make([]float32, len(x))}
	f.keys.PackRows(f.n, d, x, d, threads)
	f.dims.PackT(d, f.n, x, d, threads)
	return f
}

// Bits of a float32: the sign, and the number 1.
const (
	signBit = 1 << 31
	one     = 0x3f800000
)

// Objective returns the value at R, [d, d], and keeps the signs of R x for Correlate.
func (f *L1) Objective(r []float32) float64 {
	gemm.Mul(f.y, f.n, r, f.d, f.d, &f.keys, f.threads)
	var total float64
	for i := 0; i < f.d; i += 4 {
		// A sum waits for its last number, so the rows' sums run side by side.
		if i+4 <= f.d {
			for _, sum := range takeSigns4(f.y[i*f.n:(i+4)*f.n], f.n) {
				total += sum
			}
			continue
		}
		for j := i; j < f.d; j++ {
			total += takeSigns(f.y[j*f.n : (j+1)*f.n])
		}
	}
	return total / float64(f.n) / math.Sqrt(float64(f.d))
}

// takeSigns replaces numbers by their signs and returns the sum of their magnitudes.
func takeSigns(x []float32) (sum float64) {
	for j, v := range x {
		var a float64
		x[j], a = parts(v)
		sum += a
	}
	return sum
}

// takeSigns4 is takeSigns for four rows of n numbers.
func takeSigns4(x []float32, n int) (sums [4]float64) {
	x0, x1, x2, x3 := x[:n], x[n:][:n], x[2*n:][:n], x[3*n:][:n]
	var s0, s1, s2, s3, a float64
	for j := range x0 {
		x0[j], a = parts(x0[j])
		s0 += a
		x1[j], a = parts(x1[j])
		s1 += a
		x2[j], a = parts(x2[j])
		s2 += a
		x3[j], a = parts(x3[j])
		s3 += a
	}
	return [4]float64{s0, s1, s2, s3}
}

// parts returns the sign and the magnitude of a number. Signs are as good as random,
// so a branch on them would be missed half the time.
func parts(v float32) (sign float32, magnitude float64) {
	bits := math.Float32bits(v)
	return math.Float32frombits(bits&signBit | one), float64(math.Float32frombits(bits &^ signBit))
}

// Correlate returns sum sign(R x) x^T for the R of the last Objective, [d, d]: the next R
// of the fixed point is its orthogonal polar factor.
func (f *L1) Correlate() []float32 {
	c := make([]float32, f.d*f.d)
	gemm.Mul(c, f.d, f.y, f.n, f.d, &f.dims, f.threads)
	return c
}
