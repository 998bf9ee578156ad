package fit

import (
	"context"
	"fmt"
	"math"

	"github.com/phaseconv/phaseconv/kernels/gemm"
	"github.com/phaseconv/phaseconv/kernels/linalg"
	"github.com/phaseconv/phaseconv/rotations/codec"
)

// GroupSample is what the code of a group is fitted to: the keys and values of some KV heads of
// a layer, of the same tokens.
type GroupSample struct {
	Parts            []codec.Part // in the order of a group
	KeyDim, ValueDim int
	// Rows holds the tokens, [N, D]: the parts one after the other, keys turned back to their
	// blocks.
	Rows []float32
	// Metrics says per part in which metric its error counts, [length, length]; nil weighs all
	// directions alike, and Metrics itself may be nil. Parts of K take E[w q q^T] over the
	// queries that meet them, and count by its trace among each other. See Absolute for values.
	Metrics [][]float64
	// Absolute says that all metrics are in one unit, as second moments of gradients of one
	// loss are: then K and V count against each other as the metrics say. Otherwise the
	// values are weighed so that K and V have the same energy.
	Absolute bool
	// Below, [N, BelowSigns], is the signs of the same tokens in the group below, times their
	// scales; nil for a code that stands by itself.
	Below      []float32
	BelowSigns int
	// BelowKeySigns and BelowValueSigns are how many of them parts of K, and those of V, are given: the
	// first and the last ones, as KeySigns and ValueSigns; 0 for all.
	BelowKeySigns, BelowValueSigns int
	// KeySigns and ValueSigns are how many signs the parts of K, and those of V, are decoded from: the
	// first and the last ones; 0 for all. Each sign must serve one of them at least.
	KeySigns, ValueSigns int
	// Layer and Index say which group this is.
	Layer, Index int
	// Draft ends the fit early, for codes that are only measured, not used.
	Draft bool
	// Threads for matrix products; results do not depend on it.
	Threads int
}

// Settings of the fit of groups.
const (
	groupSteps = 5
	// groupThinned is how many vectors per number or sign the first steps take.
	groupThinned = 8
	// groupGauged is how many vectors the gains are taken from.
	groupGauged = 4096
)

// D returns the length of the vectors.
func (s *GroupSample) D() int { return codec.PartsDim(s.Parts, s.KeyDim, s.ValueDim) }

// N returns the number of tokens.
func (s *GroupSample) N() int { return len(s.Rows) / max(1, s.D()) }

func (s *GroupSample) dim(p codec.Part) int { return p.Dim(s.KeyDim, s.ValueDim) }

// Group fits a frame of b signs to the vectors of a group, with a gain for its parts of K and
// one for those of V. The curve is that of Fit. When ctx ends, it returns its cause after at
// most one step.
func Group(ctx context.Context, b int, s *GroupSample) (*codec.Group, []Point, error) {
	g, curve, err := s.fit(ctx, b)
	if err != nil && ctx.Err() == nil {
		err = fmt.Errorf("layer %d, group %d: %w", s.Layer, s.Index, err)
	}
	return g, curve, err
}

func (s *GroupSample) fit(ctx context.Context, b int) (*codec.Group, []Point, error) {
	d := s.D()
	if d < 1 || len(s.Rows)%d != 0 || s.N() == 0 {
		return nil, nil, fmt.Errorf("%d numbers for vectors of %d", len(s.Rows), d)
	}
	if err := codec.CheckSize(d, b); err != nil {
		return nil, nil, err
	}
	if s.Metrics != nil && len(s.Metrics) != len(s.Parts) {
		return nil, nil, fmt.Errorf("%d metrics for %d parts", len(s.Metrics), len(s.Parts))
	}
	for i, m := range s.Metrics {
		if n := s.dim(s.Parts[i]); m != nil && len(m) != n*n {
			return nil, nil, fmt.Errorf("part %s: metric of %d numbers for vectors of %d", s.Parts[i], len(m), n)
		}
	}
	if s.Below != nil {
		return s.fitGiven(ctx, b)
	}
	sides, err := s.sides(b, s.KeySigns, s.ValueSigns)
	if err != nil {
		return nil, nil, err
	}
	mean := rowMean(s.Rows, d)
	root, inv, err := s.roots(ctx, mean)
	if err != nil {
		return nil, nil, err
	}
	t := &frameTask{d: d, b: b, threads: s.Threads, few: everyRow(s.Rows, d, groupThinned*max(d, b)), all: s.Rows,
		mean: mean, root: root, inv: inv, sides: sides, steps: groupSteps}
	if s.Draft {
		t.steps = frameDraft
	}
	c, curve, err := t.run(ctx)
	if err != nil {
		return nil, nil, err
	}
	gains, err := s.gains(ctx, c)
	if err != nil {
		return nil, nil, err
	}
	g, err := codec.NewGroup(c, s.Parts, s.KeyDim, s.ValueDim, gains)
	return g, curve, err
}

// sides returns which of b signs the parts of K and of V are decoded from: so many of the first and
// of the last ones; one side, for 0 and 0, if all from all.
func (s *GroupSample) sides(b, k, v int) ([]frameSide, error) {
	d := s.D()
	if k == 0 && v == 0 {
		return []frameSide{{to: d, last: b}}, nil
	}
	keys := 0 // parts of K come first
	for _, p := range s.Parts {
		if !p.Value {
			keys += s.dim(p)
		}
	}
	if k < 1 || k > b || v < 1 || v > b || k+v < b || keys == 0 || keys == d {
		return nil, fmt.Errorf("%d of %d signs for keys and %d for values, of groups with %d and %d numbers of each", k, b, v,
			keys, d-keys)
	}
	return []frameSide{{to: keys, last: k}, {from: keys, to: d, first: b - v, last: b}}, nil
}

// belowRidge keeps what rarely moves from mattering.
const belowRidge = 1e-3

// fitGiven fits a code to what the group below leaves of the vectors: least squares from its signs
// first, then the code of the rest.
func (s *GroupSample) fitGiven(ctx context.Context, b int) (*codec.Group, []Point, error) {
	d, n, k := s.D(), s.N(), s.BelowSigns
	if k < 1 || len(s.Below) != n*k {
		return nil, nil, fmt.Errorf("%d numbers for %d signs of the group below, of %d tokens", len(s.Below), k, n)
	}
	sides, err := s.sides(k, s.BelowKeySigns, s.BelowValueSigns)
	if err != nil {
		return nil, nil, err
	}
	mean := rowMean(s.Rows, d)
	centred := make([]float32, len(s.Rows))
	for i, v := range s.Rows {
		centred[i] = v - mean[i%d]
	}
	u := gemm.Transpose(nil, s.Below, n, k)
	var w gemm.Weights
	w.PackRows(k, n, u, n, s.Threads)
	cross := make([]float32, d*k)
	gemm.Mul(cross, k, gemm.Transpose(nil, centred, n, d), n, d, &w, s.Threads)
	gram, sol := gramOf(u, k, n, &w, s.Threads), make([]float64, d*k)
	for _, x := range sides {
		if err := leastSquares(ctx, sol, cross, gram, k, x, belowRidge); err != nil {
			return nil, nil, fmt.Errorf("least squares from the group below: %w", err)
		}
	}
	below := gemm.Transpose(nil, linalg.Float32(sol), d, k)
	rest := *s
	rest.Below, rest.Rows = nil, make([]float32, len(s.Rows))
	w.PackT(d, k, below, d, s.Threads)
	gemm.Mul(rest.Rows, d, s.Below, k, n, &w, s.Threads)
	for i, v := range rest.Rows {
		rest.Rows[i] = s.Rows[i] - v
	}
	g, curve, err := rest.fit(ctx, b)
	if err == nil {
		g, err = g.Given(k, below)
	}
	return g, curve, err
}

// roots returns the roots of the metric of the whole vector, block by block, and their inverses.
func (s *GroupSample) roots(ctx context.Context, mean []float32) (root, inv []float64, err error) {
	d := s.D()
	root, inv = make([]float64, d*d), make([]float64, d*d)
	at := 0
	weights := s.weights()
	var energy [2]float64 // of centred parts of K and V in their metrics
	for i, p := range s.Parts {
		n := s.dim(p)
		var metric []float64
		if s.Metrics != nil {
			metric = s.Metrics[i]
		}
		r, v, err := shrunkRoots(ctx, metric, n)
		if err != nil {
			return nil, nil, fmt.Errorf("part %s: %w", p, err)
		}
		scale := math.Sqrt(weights[i])
		for j := range n {
			for k := range n {
				root[(at+j)*d+at+k] = r[j*n+k] * scale
				inv[(at+j)*d+at+k] = v[j*n+k] / scale
			}
		}
		energy[side(p)] += s.energy(at, n, mean, root)
		at += n
	}
	if s.Absolute || energy[0] == 0 || energy[1] == 0 {
		return root, inv, nil
	}
	at = 0
	scale := math.Sqrt(energy[0] / energy[1])
	for _, p := range s.Parts {
		n := s.dim(p)
		for j := at; p.Value && j < at+n; j++ {
			for k := at; k < at+n; k++ {
				root[j*d+k] *= scale
				inv[j*d+k] /= scale
			}
		}
		at += n
	}
	return root, inv, nil
}

// side is 0 for a part of K and 1 for one of V.
func side(p codec.Part) int {
	if p.Value {
		return 1
	}
	return 0
}

// weights returns what the metric of each part is multiplied by after it was brought to a mean
// diagonal of one: that mean, over its mean in the parts of K, or of all where the metrics are
// absolute. A part that nobody looks at gets little, not nothing: its inverse is needed.
func (s *GroupSample) weights() []float64 {
	const least = 1e-6
	out := make([]float64, len(s.Parts))
	var sum [2]float64
	var count [2]int
	for i, p := range s.Parts {
		out[i] = 1
		if s.Metrics != nil && s.Metrics[i] != nil {
			n := s.dim(p)
			out[i] = 0
			for j := range n {
				out[i] += s.Metrics[i][j*n+j] / float64(n)
			}
		}
		k := side(p)
		if s.Absolute {
			k = 0
		}
		sum[k] += out[i]
		count[k]++
	}
	for i, p := range s.Parts {
		k := side(p)
		if s.Absolute {
			k = 0
		}
		if sum[k] == 0 {
			out[i] = 1
			continue
		}
		out[i] = max(least, out[i]*float64(count[k])/sum[k])
	}
	return out
}

// energy returns the energy of the part of n numbers at the given place, centred, in the metric
// with this root. A part of the tokens tells enough.
func (s *GroupSample) energy(at, n int, mean []float32, root []float64) (total float64) {
	d := s.D()
	rows := everyRow(s.Rows, d, groupGauged)
	cov := make([]float64, n*n) // sum x x^T, lower half
	x := make([]float64, n)
	for i := 0; i < len(rows); i += d {
		for j := range x {
			x[j] = float64(rows[i+at+j]) - float64(mean[at+j])
		}
		for j, v := range x {
			row := cov[j*n : j*n+j+1]
			for k := range row {
				row[k] += float64(v * x[k])
			}
		}
	}
	// tr(R C R^T), C symmetric
	for j := range n {
		for k := range j + 1 {
			var m float64 // of R^T R
			for i := range n {
				m += float64(root[(at+i)*d+at+j] * root[(at+i)*d+at+k])
			}
			if k < j {
				m *= 2
			}
			total += float64(m * cov[j*n+k])
		}
	}
	return total / float64(len(rows)/d)
}

// gains returns what the parts of K and of V are multiplied by. With o the centred part of a
// token and p what its code gives, each in its own space:
//   - V: sum o.o / sum o.p, the inverse of the share of energy that the code keeps. Decoded values
//     are then right on average, and their errors cancel in sums over tokens.
//   - K: the root of that with cosines for shares: decoded keys as long as the keys, as in matchNorm.
func (s *GroupSample) gains(ctx context.Context, c *codec.Code) ([]float32, error) {
	d := s.D()
	rows := everyRow(s.Rows, d, groupGauged)
	n := len(rows) / d
	words, alpha, hat := make([]uint32, n*c.Words()), make([]float32, n), make([]float32, n*d)
	err := codec.Batches(ctx, n, s.Threads, func(k0, k1 int) error {
		w, a := words[k0*c.Words():k1*c.Words()], alpha[k0:k1]
		if err := c.EncodeKeys(ctx, rows[k0*d:k1*d], w, a); err != nil {
			return err
		}
		c.DecodeKeys(hat[k0*d:k1*d], w, a)
		return nil
	})
	if err != nil {
		return nil, err
	}
	var oo, pp, op [2]float64
	for i := range n {
		at := 0
		for _, p := range s.Parts {
			k := side(p)
			for range s.dim(p) {
				o, h := float64(rows[i*d+at])-float64(c.Mean[at]), float64(hat[i*d+at])-float64(c.Mean[at])
				oo[k] += float64(o * o)
				pp[k] += float64(h * h)
				op[k] += float64(o * h)
				at++
			}
		}
	}
	var gain [2]float64
	for k := range gain {
		if gain[k] = 1; !(op[k] > 0) {
			continue
		}
		if k == 0 {
			gain[k] = math.Sqrt(oo[k]*pp[k]) / op[k]
		} else {
			gain[k] = oo[k] / op[k]
		}
		gain[k] = min(max(gain[k], 1.0/codec.MaxGain), codec.MaxGain)
	}
	out := make([]float32, len(s.Parts))
	for i, p := range s.Parts {
		out[i] = float32(gain[side(p)])
	}
	return out, nil
}
