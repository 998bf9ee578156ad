package transform

import (
	"context"
	"errors"
	"fmt"
	"math"

	"github.com/phaseconv/phaseconv/kernels/linalg"
	"github.com/phaseconv/phaseconv/kernels/rope"
)

// IDBiasShift is a near-identity (docs/slowmean.md): a constant is taken out of the
// keys before RoPE.
const IDBiasShift = "G7"

// KeyStats is what is known of one KV head when its key cache is to be made
// cheaper: moments of its keys and queries, weighted by how much attention feels
// them, and what a constant shift of the keys does to the scores. An expectation
// over keys weighs key j by E_i[p_ij (1 - p_ij)], for the attention
// probabilities p_ij of queries i: the variance of softmax under an error in one
// score. One over queries weighs query i by w_i = 1 - sum_j p_ij^2.
type KeyStats struct {
	D     int
	Pairs rope.Layout
	// Mean is the mean key before RoPE, [D].
	Mean []float64
	// Var is the variance of each rotary pair about Mean, [D/2].
	Var []float64
	// Query is E|q_p|^2 of each rotary pair, [D/2], over all queries of the group.
	Query []float64
	// Drift is C = E_i Cov_{j~p_i}(F_ij), [D, D], where F_ij . delta is what a
	// shift of all keys by delta before RoPE adds to the scaled score of query i
	// and key j. Half of delta^T C delta is the KL divergence that it costs a
	// query head.
	Drift []float64
	// Curvature is E_i w_i.
	Curvature float64
	// Scale is what multiplies q.k before softmax, squared.
	Scale float64
	// Group is the number of query heads that share the KV head.
	Group int
}

// Check refuses statistics from which nothing can be fitted.
func (s *KeyStats) Check() error {
	h := s.D / 2
	if s.D < 2 || s.D%2 != 0 || len(s.Mean) != s.D || len(s.Var) != h || len(s.Query) != h || len(s.Drift) != s.D*s.D {
		return fmt.Errorf("key statistics with %d means, %d variances, %d query energies and %d drifts for head_dim %d",
			len(s.Mean), len(s.Var), len(s.Query), len(s.Drift), s.D)
	}
	for _, x := range [][]float64{s.Mean, s.Var, s.Query, s.Drift, {s.Curvature, s.Scale}} {
		for _, v := range x {
			if math.IsNaN(v) || math.IsInf(v, 0) {
				return fmt.Errorf("key statistics hold %v", v)
			}
		}
	}
	return nil
}

// BiasShiftOptions says how noise and drift are weighed against each other.
type BiasShiftOptions struct {
	// Noise is the cache type's error relative to a key's energy, E|e|^2 / E|k|^2.
	Noise float64
	// Penalty weighs the drift, which later layers and longer contexts raise above
	// what one head's formula says. 1 takes the formula at its word.
	Penalty float64
}

// Relative errors of cache types on Gaussian numbers, for BiasShiftOptions.Noise:
// the largest of 32 has the square 5.4, a step is 1/8 or 1/127 of it, and an error
// has 1/12 of a step's square; 1 - 2/pi for signs. Keys that are nearly all mean
// store better (q4_0: 0.002), balanced ones somewhat worse (up to 0.01).
const (
	NoiseQ8_0 = 2.8e-5
	NoiseQ4_0 = 0.007
	NoiseBit  = 0.36
)

// A BiasShift is the constant to take out of one KV head's keys.
type BiasShift struct {
	// Delta is subtracted from the keys before RoPE, [D].
	Delta []float64
	// Exact: it is nonzero only where RoPE does not turn, see IDStillShift.
	Exact bool
	// Energy is the key energy before, and Removed the share of it that goes.
	Energy, Removed float64
	// Before and After are the predicted KL divergences from the cache type's
	// error, and Cost from the shift itself, for one query head and token, in nats.
	Before, After, Cost float64
	// Steps is how many Newton steps were taken; Gradient the norm of the
	// gradient that is left, relative to the one at the start.
	Steps    int
	Gradient float64
}

// ridge is added to the drift's diagonal, relative to it: statistics of finitely
// many queries leave directions that look free and are not.
const ridge = 1e-3

// program is the convex program of one head,
//
//	f(r) = noise (sum_p sqrt((V_p + |r_p|^2) Q_p))^2 + (r-b)^T C (r-b)
//
// over what stays of the mean, r = b - delta.
type program struct {
	d     int
	pairs rope.Layout
	b     []float64
	v, q  []float64 // per pair
	c     []float64 // drift times kappa, with the ridge
	noise float64
}

func newProgram(s *KeyStats, o BiasShiftOptions) *program {
	p := &program{d: s.D, pairs: s.Pairs, b: s.Mean, noise: o.Noise * s.Curvature * s.Scale / float64(s.D)}
	var energy float64
	for i := range s.Var {
		energy += max(s.Var[i], 0)
	}
	for i := range s.Var {
		// The floor keeps the square root smooth where a pair never moves.
		p.v = append(p.v, max(s.Var[i], 1e-9*energy, 1e-30))
		p.q = append(p.q, max(s.Query[i], 0))
	}
	p.c = make([]float64, len(s.Drift))
	for i, x := range s.Drift {
		p.c[i] = o.Penalty * x
		if i%(s.D+1) == 0 {
			p.c[i] += float64(ridge * p.c[i])
		}
	}
	return p
}

// terms returns the two terms of f at r.
func (p *program) terms(r []float64) (noise, drift float64) {
	var sum float64
	for k := range p.v {
		i, j := p.pairs.Dims(k, p.d)
		sum += math.Sqrt((p.v[k] + float64(r[i]*r[i]) + float64(r[j]*r[j])) * p.q[k])
	}
	e := make([]float64, p.d)
	for i := range e {
		e[i] = r[i] - p.b[i]
	}
	for i := range e {
		drift += float64(e[i] * linalg.Dot(p.c[i*p.d:(i+1)*p.d], e))
	}
	return float64(p.noise * float64(sum*sum)), drift
}

func (p *program) value(r []float64) float64 {
	a, b := p.terms(r)
	return a + b
}

// derivatives returns the gradient of f and its Hessian,
//
//	2 noise (s s^T + S diag(sqrt(Q_p) (I - r_p r_p^T/n_p^2)/n_p)) + 2 C
//
// for S the sum of square roots, s its gradient and n_p^2 = V_p + |r_p|^2. Both
// parts are positive semidefinite: f is convex.
func (p *program) derivatives(r []float64) (g, h []float64) {
	d := p.d
	s := make([]float64, d)
	g, h = make([]float64, d), make([]float64, d*d)
	var sum float64
	for k := range p.v {
		i, j := p.pairs.Dims(k, d)
		n := math.Sqrt(p.v[k] + float64(r[i]*r[i]) + float64(r[j]*r[j]))
		sum += float64(n * math.Sqrt(p.q[k]))
		w := math.Sqrt(p.q[k]) / n
		s[i], s[j] = float64(w*r[i]), float64(w*r[j])
	}
	for k := range p.v {
		i, j := p.pairs.Dims(k, d)
		nn := p.v[k] + float64(r[i]*r[i]) + float64(r[j]*r[j])
		w := sum * math.Sqrt(p.q[k]) / math.Sqrt(nn)
		h[i*d+i] = w * (1 - float64(r[i]*r[i])/nn)
		h[j*d+j] = w * (1 - float64(r[j]*r[j])/nn)
		h[i*d+j] = -w * float64(r[i]*r[j]) / nn
		h[j*d+i] = h[i*d+j]
	}
	e := make([]float64, d)
	for i := range e {
		e[i] = r[i] - p.b[i]
	}
	for i := range d {
		g[i] = float64(2*p.noise*float64(sum*s[i])) + float64(2*linalg.Dot(p.c[i*d:(i+1)*d], e))
		for j := range d {
			h[i*d+j] = float64(2*p.noise*(h[i*d+j]+float64(s[i]*s[j]))) + float64(2*p.c[i*d+j])
		}
	}
	return g, h
}

// newtonSteps bounds the search; a dozen steps are usual.
const newtonSteps = 100

// FitBiasShift finds the constant whose removal from the keys of a head costs
// least, drift of the scores and error of the cache type after a balance (G3) of
// what is left taken together. The program is convex and smooth, so
// damped Newton steps from "remove nothing" end at its only minimum, and no step
// makes it worse. When ctx ends, it returns its cause after at most one step.
func FitBiasShift(ctx context.Context, s *KeyStats, o BiasShiftOptions) (*BiasShift, error) {
	if err := s.Check(); err != nil {
		return nil, err
	}
	if !(o.Noise > 0) || !(o.Penalty > 0) || math.IsInf(o.Noise, 0) || math.IsInf(o.Penalty, 0) {
		return nil, fmt.Errorf("slow-mean removal with noise %g and drift weight %g: both must be positive", o.Noise,
			o.Penalty)
	}
	p := newProgram(s, o)
	r := append([]float64(nil), s.Mean...)
	out := &BiasShift{}
	f := p.value(r)
	var first float64
	for ; out.Steps < newtonSteps; out.Steps++ {
		g, h := p.derivatives(r)
		n := linalg.Norm(g)
		if out.Steps == 0 {
			first = n
		}
		if out.Gradient = 0; first > 0 {
			out.Gradient = n / first
		}
		if out.Gradient <= 1e-10 {
			break
		}
		step, err := newton(ctx, h, g, s.D)
		if err != nil {
			return nil, err
		}
		next, v, ok := p.search(r, step, f, linalg.Dot(g, step))
		// Far from the minimum, where the roots have kinks, reweighted least squares
		// goes further than Newton; near it Newton wins.
		if m, err := p.reweighted(ctx, r); err != nil {
			return nil, err
		} else if u := p.value(m); u < v || !ok && u < f {
			next, v, ok = m, u, true
		}
		if !ok {
			break // rounding: the value can fall no further
		}
		r, f = next, v
	}
	p.report(out, s, r, o.Penalty)
	return out, nil
}

// reweighted minimises the quadratic that touches f at r from above: for shares
// u_p that sum to one, (sum_p s_p)^2 <= sum_p s_p^2 / u_p, with equality for u_p
// in proportion to s_p. f never rises.
func (p *program) reweighted(ctx context.Context, r []float64) ([]float64, error) {
	d := p.d
	s := make([]float64, len(p.v))
	var sum float64
	for k := range s {
		i, j := p.pairs.Dims(k, d)
		s[k] = math.Sqrt((p.v[k] + float64(r[i]*r[i]) + float64(r[j]*r[j])) * p.q[k])
		sum += s[k]
	}
	a := append([]float64(nil), p.c...)
	g := make([]float64, d)
	for i := range d {
		g[i] = linalg.Dot(p.c[i*d:(i+1)*d], p.b)
	}
	for k := range s {
		if s[k] == 0 {
			continue
		}
		i, j := p.pairs.Dims(k, d)
		w := float64(p.noise*p.q[k]) * sum / s[k]
		a[i*d+i] += w
		a[j*d+j] += w
	}
	return newton(ctx, a, g, d)
}

// newton solves h x = g; a little is added to the diagonal where queries never
// look and h is singular.
func newton(ctx context.Context, h, g []float64, d int) ([]float64, error) {
	var top float64
	for i := range d {
		top = max(top, h[i*d+i])
	}
	for damp := 1e-12; damp < 1; damp *= 100 {
		m := append([]float64(nil), h...)
		for i := range d {
			m[i*d+i] += float64(damp * top)
		}
		l, err := linalg.Cholesky(ctx, m, d)
		if err == nil {
			return linalg.SolveRight(ctx, g, 1, l, d)
		}
		if !errors.Is(err, linalg.ErrNotPositive) {
			return nil, err
		}
	}
	return nil, fmt.Errorf("slow-mean removal: %w", linalg.ErrNotPositive)
}

// search walks back along a Newton step until f falls enough (Armijo).
func (p *program) search(r, step []float64, f, slope float64) ([]float64, float64, bool) {
	x := make([]float64, len(r))
	for t := 1.0; t > 1e-10; t /= 2 {
		for i := range x {
			x[i] = r[i] - float64(t*step[i])
		}
		if v := p.value(x); v < f-float64(1e-4*float64(t*slope)) {
			return x, v, true
		}
	}
	return nil, f, false
}

// report fills in what the shift does. Costs of a query head are half the sums
// of squared score errors.
func (p *program) report(out *BiasShift, s *KeyStats, r []float64, kappa float64) {
	out.Delta = make([]float64, s.D)
	var before, after float64
	for i := range r {
		out.Delta[i] = s.Mean[i] - r[i]
		before += float64(s.Mean[i] * s.Mean[i])
		after += float64(r[i] * r[i])
	}
	for _, v := range s.Var {
		before += v
		after += v
	}
	out.Energy = before
	if before > 0 {
		out.Removed = 1 - after/before
	}
	n, _ := p.terms(s.Mean)
	out.Before = n / 2
	n, d := p.terms(r)
	out.After, out.Cost = n/2, d/2/kappa
}

// AddPairEnergies adds E|q_p|^2 and what a removal (delta, nil for none) leaves of
// E|k_p|^2 to q and k, [D/2].
func (s *KeyStats) AddPairEnergies(q, k, delta []float64) {
	for p := range q {
		i, j := s.Pairs.Dims(p, s.D)
		a, b := s.Mean[i], s.Mean[j]
		if delta != nil {
			a, b = a-delta[i], b-delta[j]
		}
		q[p] += s.Query[p]
		k[p] += s.Var[p] + float64(a*a) + float64(b*b)
	}
}

// PairScaleOf returns the scales t with t^2 = sqrt(q/k), which minimise the product
// of the energies sum k t^2 and sum q/t^2 that meet an error alike in all directions.
func PairScaleOf(q, k []float64) []float32 {
	out := make([]float32, len(q))
	for p := range out {
		out[p] = 1
		if q[p] > 0 && k[p] > 0 {
			t := math.Sqrt(math.Sqrt(q[p] / k[p]))
			out[p] = float32(min(max(t, 1.0/maxBalance), maxBalance))
		}
	}
	return out
}
