package verify

import (
	"context"
	"fmt"

	"phaseconv/format/checkpoint"
	"phaseconv/rotations"
	"phaseconv/spec"
	"phaseconv/verify/calibrate"
	"phaseconv/verify/kvcache"
	"phaseconv/verify/ppl"
	"phaseconv/verify/refmodel"
)

// ChooseOptions of Choose.
type ChooseOptions struct {
	// Cache is the pair of cache types that the weights are changed for.
	Cache StockTypes
	// Ctx is the context at which they will be used.
	Ctx int
	// Text is fitted to in its first windows; candidates are compared on later ones.
	Text Text
	// Tokens to fit to; 0 takes 8192. Half as many are compared on.
	Tokens int
	// Near admits near-identities too; NoKeyBias rules out those that need a key
	// bias, and says why.
	Near      bool
	NoKeyBias string
	Seed      uint64
	Threads   int
	Progress  Progress
}

// A Choice is the change of keys that measured best.
type Choice struct {
	Edits [][]rotations.KeyEdit // [layer][KV head]
	// Report tells what was tried and what it measured.
	Report *spec.Fusion
}

// Changed says whether the choice is to change anything.
func (c *Choice) Changed() bool { return c.Report.Chosen != c.Report.Tried[0].Name }

// nearGain is how many times the cost of a near-identity with F16 caches the
// divergence with the target types must fall by before it is used.
const nearGain = 10

// chooseTokens is how many tokens are fitted to unless said otherwise, and
// chooseBatch how many run at a time.
const (
	chooseTokens = 8192
	chooseBatch  = 4096
)

// Choose fits the changes of weights that might help a pair of stock cache types,
// measures each on text it was not fitted to, and returns the best that is worth
// it: one that changes more is taken only if it beats what changes less by more
// than three standard errors of the difference, and a near-identity only if the divergence
// falls by ten times what the change costs with F16 caches.
func Choose(ctx context.Context, c *checkpoint.Checkpoint, o ChooseOptions) (*Choice, error) {
	cfg := c.Config
	target, err := kvcache.NewStock(cfg, o.Cache.K, o.Cache.V, o.Cache.Rotation)
	if err != nil {
		return nil, &UsageError{err}
	}
	target.FloatSums = true
	half, err := kvcache.NewStock(cfg, halves.K, halves.V, true)
	if err != nil {
		return nil, err
	}
	if o.Tokens == 0 {
		o.Tokens = chooseTokens
	}
	fit, compare := max(2, o.Tokens/o.Ctx), max(1, o.Tokens/2/o.Ctx)
	w, err := Tokens(c, o.Text, o.Ctx, fit+compare)
	if err != nil {
		return nil, err
	}
	if len(w.Tokens) < fit+compare {
		return nil, fmt.Errorf("%s has %d windows of %d tokens; %d are needed to fit changes for this context and to compare them; take a longer text or a shorter --target-ctx",
			o.Text.Name, len(w.Tokens), o.Ctx, fit+compare)
	}
	held := &ppl.Windows{Ctx: w.Ctx, Tokens: w.Tokens[fit:], Targets: w.Targets[fit*w.PerWindow():]}
	m := refmodel.New(cfg, c, o.Threads)
	stats, err := calibrate.NewKeyStats(cfg, calibrate.StatsOptions{
		Queries: chooseQueries(o.Ctx), Samples: chooseSamples(o.Ctx), Weights: c, Seed: o.Seed, Threads: m.Threads,
	})
	if err != nil {
		return nil, err
	}
	// In small batches: the statistics need no more, and activations take memory.
	batch := max(1, chooseBatch/o.Ctx)
	for i := 0; i < fit; i += batch {
		opt := refmodel.Options{Tap: stats}
		n := min(batch, fit-i)
		if o.Progress != nil {
			opt.Progress = func(done, total int) {
				o.Progress(fmt.Sprintf("statistics of keys at context %d", o.Ctx), i*total+n*done, fit*total)
			}
		}
		if err := m.Run(ctx, w.Tokens[i:i+n], []*refmodel.Lane{{}}, opt); err != nil {
			return nil, err
		}
	}
	ch := &chooser{o: o, c: c, m: m, held: held, target: target, half: half, stats: stats}
	return ch.choose(ctx, len(w.Tokens[:fit]))
}

// chooseQueries and chooseSamples keep the work of the statistics in bounds at
// every context: so many queries and keys of each window and head are looked at.
func chooseQueries(n int) int { return min(48, max(8, n/16)) }
func chooseSamples(n int) int { return min(1024, max(16, n/4)) }

// chooser holds what the steps of Choose share.
type chooser struct {
	o            ChooseOptions
	c            *checkpoint.Checkpoint
	m            *refmodel.Model
	held         *ppl.Windows
	target, half *kvcache.Stock
	stats        *calibrate.KeyStats
	base         ppl.Stream

	candidates []calibrate.Candidate
	edits      [][][]rotations.KeyEdit // of the candidates, as far as they were tried
	kld        []ppl.Divergence
}

func (h *chooser) choose(ctx context.Context, windows int) (*Choice, error) {
	row := rotations.CacheRow{Type: h.target.K, Hadamard: h.target.RotationK()}
	out := &Choice{Report: &spec.Fusion{
		KType: kvcache.StockName(h.target.K), VType: kvcache.StockName(h.target.V), Rotation: h.target.Rotation, TargetCtx: h.o.Ctx,
		Text: *TextInfo(h.o.Text, h.held), FitWindows: windows,
	}}
	if err := rotations.CheckKeyBias(h.c.Config); h.o.Near && err != nil {
		out.Report.Refused = err.Error()
	} else if h.o.Near {
		out.Report.Refused = h.o.NoKeyBias
	}
	for _, x := range calibrate.Candidates(h.c.Config, row) {
		if !x.Near || h.o.Near && h.o.NoKeyBias == "" {
			h.candidates = append(h.candidates, x)
		}
	}
	if err := h.try(ctx); err != nil {
		return nil, err
	}
	if mixed := h.mixes(); len(mixed) > 0 {
		h.candidates = append(h.candidates, mixed...)
		if err := h.try(ctx); err != nil {
			return nil, err
		}
	}
	// Tuning takes long: only the best of each kind is worth it.
	for _, near := range []bool{false, true} {
		i := h.leader(near)
		if i == 0 {
			continue
		}
		x := h.candidates[i]
		if !near { // powers of two are no start for finer scales
			x.Name, x.Fit.Balance = "balance", calibrate.ClosedForm
		}
		h.candidates = append(h.candidates, x.Tuned(h.o.Seed))
	}
	if err := h.try(ctx); err != nil {
		return nil, err
	}
	kld, candidates, edits := h.kld, h.candidates, h.edits
	for i, x := range candidates {
		out.Report.Tried = append(out.Report.Tried, spec.FusionTry{
			Name: x.Name, Near: x.Near, KLD: kld[i].Mean, KLDErr: kld[i].MeanErr, PPLRatio: kld[i].Ratio, SameTop: kld[i].SameTop,
		})
	}
	best := 0
	for i, x := range candidates {
		if !x.Near && better(kld[i], kld[best]) {
			best = i
		}
	}
	exact := best
	for i, x := range candidates {
		if !x.Near || !better(kld[i], kld[best]) {
			continue
		}
		cost, err := h.measure(ctx, edits[i:i+1], h.half, "measuring what the change costs")
		if err != nil {
			return nil, err
		}
		out.Report.Tried[i].F16KLD = &cost[0].Mean
		if kld[exact].Mean-kld[i].Mean >= nearGain*cost[0].Mean {
			best = i
		}
	}
	out.Edits, out.Report.Chosen = edits[best], candidates[best].Name
	h.heads(out)
	return out, nil
}

// mixes returns candidates that mix pairs too, on top of the best removal and of the
// one that drifts less, in case the best one costs too much; or of the balance
// where nothing can be removed.
func (h *chooser) mixes() []calibrate.Candidate {
	if !h.o.Near || rotations.CheckMix(h.c.Config) != nil {
		return nil
	}
	i := h.leader(true)
	if i == 0 {
		x := h.candidates[h.leader(false)]
		x.Name, x.Fit.Balance = "balance", calibrate.ClosedForm
		return x.Mixed(16, 4, 1)
	}
	var out []calibrate.Candidate
	if less := h.candidates[i-1]; less.Near {
		out = less.Mixed(16, 4)
	}
	return append(out, h.candidates[i].Mixed(16, 4, 1)...)
}

// leader returns the candidate of a kind that measured best, 0 if there is none.
func (h *chooser) leader(near bool) int {
	best := 0
	for i, x := range h.candidates[:len(h.kld)] {
		if i > 0 && x.Near == near && (best == 0 || h.kld[i].Mean < h.kld[best].Mean) {
			best = i
		}
	}
	return best
}

// try fits and measures the candidates that were not tried yet.
func (h *chooser) try(ctx context.Context) error {
	from := len(h.edits)
	for i, x := range h.candidates[from:] {
		if err := ctx.Err(); err != nil {
			return err
		}
		e, err := h.stats.Fit(x.Fit)
		if err != nil {
			return fmt.Errorf("%s: %w", x.Name, err)
		}
		h.edits = append(h.edits, e)
		if h.o.Progress != nil {
			h.o.Progress("fitting changes of keys", i+1, len(h.candidates)-from)
		}
	}
	kld, err := h.measure(ctx, h.edits[from:], h.target, "comparing changes of keys")
	h.kld = append(h.kld, kld...)
	return err
}

// better says whether a beats b by more than chance: by three standard errors of
// the mean difference, token by token, because several candidates are tried and
// tokens differ more than candidates do.
func better(a, b ppl.Divergence) bool {
	diff := make([]float64, len(a.KLD))
	for i, v := range a.KLD {
		diff[i] = v - b.KLD[i]
	}
	mean, err := ppl.MeanErr(diff)
	return mean+3*err < 0
}

// maxTries bounds how many candidates run side by side: each holds its hidden
// states, and its logits while they are compared.
const maxTries = 4

// measure returns the divergence of each candidate with a cache, on top of the
// unedited model, from the unedited model with F16 caches.
func (h *chooser) measure(ctx context.Context, edits [][][]rotations.KeyEdit, inner refmodel.Cache, step string) ([]ppl.Divergence, error) {
	var out []ppl.Divergence
	for at := 0; at < len(edits); at += maxTries {
		part := edits[at:min(len(edits), at+maxTries)]
		var lanes []*refmodel.Lane
		first := h.base.Normed == nil
		if first {
			lanes = append(lanes, &refmodel.Lane{Cache: h.half})
		}
		for _, e := range part {
			cache, err := calibrate.NewEditedKeys(h.c.Config, e, inner, h.held.Ctx)
			if err != nil {
				return nil, err
			}
			lanes = append(lanes, &refmodel.Lane{Cache: cache})
		}
		if err := h.m.Run(ctx, h.held.Tokens, lanes, refmodel.Options{Progress: h.o.Progress.of(step)}); err != nil {
			return nil, err
		}
		var streams []ppl.Stream
		for _, l := range lanes {
			s, err := ppl.Scored(h.m, h.held, l)
			if err != nil {
				return nil, err
			}
			streams = append(streams, s)
		}
		if first {
			h.base, streams = streams[0], streams[1:]
		}
		res, err := ppl.Measure(ctx, h.held, h.base, streams...)
		if err != nil {
			return nil, err
		}
		out = append(out, res.Divergences...)
	}
	return out, nil
}

// heads lists what was done to each head.
func (h *chooser) heads(c *Choice) {
	for l, heads := range c.Edits {
		for i, e := range heads {
			x := spec.FusionHead{Layer: l, Head: i}
			if m := e.Removal; m != nil {
				x.Removed, x.Before, x.After, x.Cost = m.Removed, m.Before, m.After, m.Cost
			}
			if m := e.Mix; m != nil {
				if e.Removal == nil {
					x.Before = m.Before
				}
				x.After = m.After
				x.Cost += m.Cost
			}
			if e.Removal != nil || e.Mix != nil {
				c.Report.Heads = append(c.Report.Heads, x)
			}
		}
	}
}
