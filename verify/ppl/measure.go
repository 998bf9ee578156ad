package ppl

import (
	"context"
	"fmt"
	"math"
	"slices"
	"sort"

	"github.com/phaseconv/phaseconv/kernels/fmath"
	"github.com/phaseconv/phaseconv/kernels/parallel"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// vocabPiece is how many logits of a row are held at a time.
const vocabPiece = 8192

// rowsAtOnce is how many rows of logits are held at a time, so that what Measure needs does not
// grow with the context: rowsAtOnce x vocabPiece numbers, 32 MiB, for each stream.
const rowsAtOnce = 1024

// rowsPerTask is how many scored tokens are compared between two looks at the context: for
// some streams and vocabPiece logits each, some milliseconds.
const rowsPerTask = 32

// Positions are the scored positions of windows as one model computed them: hidden states
// after the final norm, [windows*PerWindow, hidden].
type Positions struct {
	Model  *refmodel.Model
	Normed []float32
}

// positions takes the scored positions of a variant that ran w's windows.
func positions(m *refmodel.Model, w *Windows, v *refmodel.Variant) (Positions, error) {
	d := m.Config.Hidden
	// The last position predicts a token outside the window.
	var rows []float32
	for at := 0; at < len(v.Hidden); at += w.Ctx * d {
		rows = append(rows, v.Hidden[at+w.First()*d:at+(w.Ctx-1)*d]...)
	}
	normed, err := m.FinalNorm(rows)
	return Positions{m, normed}, err
}

// Run sends w's windows through a model once for all variants, and returns what Measure
// compares. The variants' hidden states are given up.
func Run(ctx context.Context, m *refmodel.Model, w *Windows, opt refmodel.Options,
	variants ...*refmodel.Variant) ([]Positions, error) {
	if err := m.Run(ctx, w.Tokens, variants, opt); err != nil {
		return nil, err
	}
	out := make([]Positions, len(variants))
	for i, v := range variants {
		var err error
		if out[i], err = positions(m, w, v); err != nil {
			return nil, err
		}
		v.Hidden = nil
	}
	return out, nil
}

// Compare runs a model over w's windows and measures variants against base: Run, then
// Measure. opt.Progress counts the layers of the first and the pieces of the second.
func Compare(ctx context.Context, m *refmodel.Model, w *Windows, opt refmodel.Options, base *refmodel.Variant,
	variants ...*refmodel.Variant) (*Result, error) {
	tick := opt.Progress
	if tick != nil {
		pieces := pieces(m)
		opt.Progress = func(done, total int) { tick(done, total+pieces) }
	}
	p, err := Run(ctx, m, w, opt, append([]*refmodel.Variant{base}, variants...)...)
	if err != nil {
		return nil, err
	}
	return Measure(ctx, w, func(done, total int) {
		if layers := len(m.Config.Layers); tick != nil {
			tick(layers+done, layers+total)
		}
	}, p[0], p[1:]...)
}

// Part returns the positions of the first n of the windows w.
func (s Positions) Part(w *Windows, n int) Positions {
	return Positions{s.Model, s.Normed[:n*w.PerWindow()*s.Model.Config.Hidden]}
}

// Perplexity is the result of one stream.
type Perplexity struct {
	PPL    float64 // exp of the mean negative log-likelihood
	Err    float64 // standard error of PPL, as llama-perplexity computes it
	NLL    []float64
	Tokens int
}

// Divergence compares a stream with the base stream, token by token.
type Divergence struct {
	KLD []float64 // KL(base || stream) in nats, per scored token

	Mean, MeanErr              float64
	Median, P90, P95, P99, Max float64
	// SameTop is the share of tokens with the same most likely prediction.
	SameTop, SameTopErr float64
	// Ratio is PPL(stream)/PPL(base); RatioErr its standard error, with the
	// covariance of the two taken into account.
	Ratio, RatioErr float64
	// MaxAbsDLogit is the largest difference of any logit.
	MaxAbsDLogit float64
	// DeltaP statistics: change of the probability of the correct token.
	DeltaPMean, DeltaPRMS float64
}

// Better says whether a has a lower mean than b, and that not by chance: the mean
// difference of the roots, token by token, is so many standard errors below 0. Roots go
// with the errors of scores. A few tokens carry most of a mean divergence, so the
// differences themselves are three times less sure: on SmolLM2-135M a balance that
// lowers q4_0's divergence by 16 % is 2.5 errors away by those, and 7 by roots.
func Better(a, b Divergence, errs float64) bool {
	diff := make([]float64, len(a.KLD))
	for i, v := range a.KLD {
		// Rounding may leave a divergence of 0 just below 0.
		diff[i] = math.Sqrt(max(v, 0)) - math.Sqrt(max(b.KLD[i], 0))
	}
	mean, err := MeanErr(diff)
	return a.Mean < b.Mean && mean+float64(errs*err) < 0
}

// Result of Measure; Divergences[i] belongs to streams[i].
type Result struct {
	Base        Perplexity
	Streams     []Perplexity
	Divergences []Divergence
}

// Append adds the streams of another result on the same windows.
func (r *Result) Append(o *Result) {
	r.Base = o.Base
	r.Streams, r.Divergences = append(r.Streams, o.Streams...), append(r.Divergences, o.Divergences...)
}

// Check returns an error when a result is no number: predictions of infinite or undefined
// logits, or keys beyond what F16 scales can store.
func (r *Result) Check() error {
	bad := func(x float64) bool { return math.IsNaN(x) || math.IsInf(x, 0) }
	if bad(r.Base.PPL) {
		return fmt.Errorf("the perplexity is %g: weights of this model are so large that its predictions cannot be measured",
			r.Base.PPL)
	}
	for i, s := range r.Streams {
		if bad(s.PPL) || bad(r.Divergences[i].Mean) {
			return fmt.Errorf("the perplexity with coded keys is %g and %g without: keys of this model are larger than "+
				"scales in F16 can be", s.PPL, r.Base.PPL)
		}
	}
	return nil
}

// pieces returns in how many pieces the vocabulary of a model is looked at.
func pieces(m *refmodel.Model) int { return (m.Config.Vocab + vocabPiece - 1) / vocabPiece }

// Measure computes perplexities of base and streams, and how the streams
// diverge from base. Logits exist only for a piece of the vocabulary and some rows at a time, in
// memory that grows with neither; nothing is sampled. tick, if not nil, is told how many pieces
// of the vocabulary are done.
func Measure(ctx context.Context, w *Windows, tick func(done, total int), base Positions,
	streams ...Positions) (*Result, error) {
	return measure(ctx, w, rowsAtOnce, tick, append([]Positions{base}, streams...))
}

// measure is Measure with so many rows at a time, on which no result depends. all[0] is the base.
func measure(ctx context.Context, w *Windows, rows int, tick func(done, total int), all []Positions) (*Result, error) {
	c, err := newComparison(w, rows, all)
	if err != nil {
		return nil, err
	}
	for v0 := 0; v0 < c.vocab; v0 += vocabPiece {
		if err := c.piece(ctx, v0, min(c.vocab, v0+vocabPiece)); err != nil {
			return nil, err
		}
		if tick != nil {
			tick(v0/vocabPiece+1, pieces(all[0].Model))
		}
	}
	return Combine(c.scores())
}

// A comparison is Measure on its way through the vocabulary. Stream 0 is the base.
type comparison struct {
	*tally
	w     *Windows
	all   []Positions
	n     int // scored tokens
	rows  int // of them at a time
	vocab int
	bufs  [][]float32 // [stream], the logits of a piece for some tokens, [rows, piece]
}

func newComparison(w *Windows, rows int, all []Positions) (*comparison, error) {
	c := &comparison{tally: newTally(w.Targets, len(all)), w: w, all: all, n: len(w.Targets),
		rows: min(rows, len(w.Targets)), vocab: all[0].Model.Config.Vocab, bufs: make([][]float32, len(all))}
	for _, s := range all {
		if s.Model.Config.Vocab != c.vocab {
			return nil, fmt.Errorf("vocabularies of %d and %d tokens cannot be compared", c.vocab, s.Model.Config.Vocab)
		}
		if len(s.Normed) != c.n*s.Model.Config.Hidden {
			return nil, fmt.Errorf("%d hidden values for %d scored tokens", len(s.Normed), c.n)
		}
	}
	for i := range all {
		c.bufs[i] = make([]float32, c.rows*min(c.vocab, vocabPiece))
	}
	return c, nil
}

// piece takes in the logits of tokens from v0 to v1 of the vocabulary.
func (c *comparison) piece(ctx context.Context, v0, v1 int) error {
	if err := packHeads(ctx, c.all, v0, v1); err != nil {
		return err
	}
	for from := 0; from < c.n; from += c.rows {
		if err := c.part(ctx, from, min(c.n, from+c.rows), v0, v1-v0); err != nil {
			return err
		}
	}
	return nil
}

// part takes in the logits of the packed piece, width tokens from v0 on, for scored tokens
// [from, to).
func (c *comparison) part(ctx context.Context, from, to, v0, width int) error {
	for i, s := range c.all {
		d := s.Model.Config.Hidden
		if err := s.Model.HeadLogits(ctx, c.bufs[i], s.Normed[from*d:to*d]); err != nil {
			return err
		}
	}
	return parallel.For(ctx, c.all[0].Model.Threads, (to-from+rowsPerTask-1)/rowsPerTask, func(task int) error {
		scratch, z := make([]float32, width), make([][]float32, len(c.all))
		for at := task * rowsPerTask; at < min(to-from, (task+1)*rowsPerTask); at++ {
			for i := range z {
				z[i] = c.bufs[i][at*width : (at+1)*width]
			}
			c.token(from+at, z, v0, scratch)
		}
		return nil
	})
}

// packHeads packs the heads of the streams' models, each once.
func packHeads(ctx context.Context, all []Positions, v0, v1 int) error {
	var done []*refmodel.Model
	for _, s := range all {
		if slices.Contains(done, s.Model) {
			continue
		}
		if err := s.Model.PackHead(ctx, v0, v1); err != nil {
			return err
		}
		done = append(done, s.Model)
	}
	return nil
}

// MeanErr returns the mean and its standard error, sqrt(var/(n-1)).
func MeanErr(x []float64) (mean, err float64) {
	n := float64(len(x))
	for _, v := range x {
		mean += v / n
	}
	if len(x) < 2 {
		return mean, 0
	}
	var ss float64
	for _, v := range x {
		ss += float64((v - mean) * (v - mean))
	}
	return mean, math.Sqrt(ss / n / (n - 1))
}

func (d *Divergence) summarise(base, p Perplexity, same int) {
	n := len(d.KLD)
	d.Mean, d.MeanErr = MeanErr(d.KLD)
	s := append([]float64(nil), d.KLD...)
	sort.Float64s(s)
	d.Median, d.P90, d.P95, d.P99, d.Max = Quantile(s, .5), Quantile(s, .9), Quantile(s, .95), Quantile(s, .99), s[n-1]
	d.SameTop = float64(same) / float64(n)
	if n > 1 {
		d.SameTopErr = math.Sqrt(d.SameTop * (1 - d.SameTop) / float64(n-1))
	}
	// The log ratio is a mean of differences, so its error needs no covariance formula.
	diff := make([]float64, n)
	dp := make([]float64, n)
	var rms float64
	for i := range diff {
		diff[i] = p.NLL[i] - base.NLL[i]
		dp[i] = fmath.Exp(-p.NLL[i]) - fmath.Exp(-base.NLL[i])
		rms += float64(dp[i] * dp[i])
	}
	m, e := MeanErr(diff)
	d.Ratio = fmath.Exp(m)
	d.RatioErr = d.Ratio * e
	d.DeltaPMean, _ = MeanErr(dp)
	d.DeltaPRMS = math.Sqrt(rms / float64(n))
}

// Quantile interpolates linearly in sorted values, as llama-perplexity does.
func Quantile(sorted []float64, q float64) float64 {
	p := float64(q * float64(len(sorted)-1))
	i := int(p)
	f := p - float64(i)
	return float64((1-f)*sorted[i]) + float64(f*sorted[min(i+1, len(sorted)-1)])
}
