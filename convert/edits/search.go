package edits

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/kernels/parallel"
	"github.com/phaseconv/phaseconv/rotations/transform"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/engine"
	"github.com/phaseconv/phaseconv/verify/kvcache"
	"github.com/phaseconv/phaseconv/verify/option"
	"github.com/phaseconv/phaseconv/verify/ppl"
	"github.com/phaseconv/phaseconv/verify/progress"
)

// Options of the search.
type Options struct {
	// Cache is the pair of cache types that the weights are changed for.
	Cache kvcache.CacheTypes
	// Ctx is the context at which they will be used.
	Ctx int
	// Text is fitted to in its first windows; candidates are compared on later ones.
	Text ppl.Text
	// Tokens to fit to, at least one window; 0 takes ChooseTokens. Half as many are compared on.
	Tokens int
	// Approximate admits near-identities too; NoKeyBias rules out those that need a key
	// bias, and says why.
	Approximate bool
	NoKeyBias   string
	Seed        uint64
	Threads     int
	Progress    progress.Func
	// Engine computes the source; nil is the own pass.
	Engine engine.Engine
}

// A Result is the change of keys that measured best.
type Result struct {
	Edits transform.ModelEdits
	// Report tells what was tried and what it measured.
	Report *spec.Fusion
}

// Changed says whether the result is to change anything.
func (c *Result) Changed() bool { return c.Report.Changed() }

// approximateGain is how many times the cost of a near-identity with F16 caches the
// divergence with the target types must fall by before it is used.
const approximateGain = 10

// How many standard errors of the difference make one edit better than another, see Search.
const (
	exactErrors       = 3.0
	approximateErrors = 1.0
	valueErrors       = 2.0
)

// requantGain is how many times the divergence must fall before the digits of weights
// are changed in a file with quantised matrices. There runtimes round the inputs of
// products too, and whatever moves a number draws these errors anew. Quantised caches do
// that anyway, but who stays with F16 caches is 0.001 to 0.005 nats away from the published
// file then (docs/slowmean.md). Powers of two move no digit.
const requantGain = 2

// ChooseTokens is how many tokens are fitted to unless said otherwise.
const ChooseTokens = 8192

// chooseBatch is how many run at a time.
const chooseBatch = 4096

// raceTokens are how many positions candidates are computed at: all at the first number, and
// those that it cannot tell apart at the last. earlyErrors is how many standard errors of the
// difference tell them apart before that, lateErrors how many end the race of a candidate that
// does worse.
var raceTokens = []int{256, 1024}

const (
	earlyErrors = 3.0
	lateErrors  = 1.0
)

// Search fits the edits of weights that might help a pair of cache types, measures each on text
// that it was not fitted to, and returns the one to make.
//
// Candidates are measured on blocks of positions (ppl.Windows.Block) of later windows, at which
// everything is the candidate's own, while the keys and values before the block are those of the
// unedited model in the candidate's cache (refmodel.Model.Probes). So a prediction costs as much
// as a token does at every context. Divergences are compared prediction by prediction, by their
// roots; errors are standard errors of the difference. Candidates that raceTokens[0] positions
// cannot tell apart are compared at more. The rules:
//
//  1. An edit is exact or approximate. Exact ones are tried first: pair scaling in closed form,
//     rounded to powers of two, and tuned for the type. Then approximate ones, with several
//     penalties on what they change.
//  2. Of two edits the one that changes less is taken, unless the other beats it by more than
//     chance: by exactErrors standard errors against an exact edit, by approximateErrors among
//     approximate ones.
//  3. What an approximate edit costs with F16 caches beyond a cheaper one must make the
//     divergence with the target types fall by approximateGain times that.
//  4. If no approximate edit passes rule 3, the one that gains most for its cost is tried with larger
//     penalties, then on half and on a quarter of the heads.
//  5. In a file with quantised matrices an edit that changes digits of weights must make the
//     divergence fall by a factor of requantGain.
//  6. Values are transformed for their type on top of that if it beats not doing so by
//     valueErrors standard errors beside F16 keys, and does not hurt beside keys in their type.
func Search(ctx context.Context, c *checkpoint.Checkpoint, o Options) (*Result, error) {
	h, err := newSearch(ctx, c, o)
	if err != nil {
		return nil, err
	}
	return h.choose(ctx)
}

// newChooser takes the statistics that changes are fitted to.
func newSearch(ctx context.Context, c *checkpoint.Checkpoint, o Options) (*search, error) {
	cfg := c.Config
	target, err := kvcache.NewLlamaCpp(cfg, o.Cache)
	if err != nil {
		return nil, &option.Error{Err: err}
	}
	o.Threads = parallel.Threads(o.Threads)
	if o.Engine == nil {
		o.Engine = engine.NewOwn(c, o.Threads)
	}
	if o.Tokens == 0 {
		o.Tokens = ChooseTokens
	}
	fit, compare := max(1, o.Tokens/o.Ctx), max(1, o.Tokens/2/o.Ctx)
	w, err := ppl.Tokenize(ctx, c, o.Text, o.Ctx, fit+compare)
	if err != nil {
		return nil, err
	}
	if len(w.Tokens) < fit+compare {
		return nil, option.Bad("CacheTokens", o.Tokens, "%s has %d windows of %d tokens, and %d are needed to fit changes "+
			"for this context and to compare them; take a longer text or a shorter context",
			o.Text.Name, len(w.Tokens), o.Ctx, fit+compare)
	}
	held := w.Part(fit, len(w.Tokens))
	stats, err := NewKeyStats(cfg, StatsOptions{
		Queries: min(mostQueries, each(statQueries, fit)), Samples: each(statSamples, fit), Meetings: min(mostMeetings,
			each(statMeetings, fit)), Weights: c,
		Seed: o.Seed, Threads: o.Threads,
	})
	if err != nil {
		return nil, err
	}
	tick := func(done, total int) {
		if o.Progress != nil {
			o.Progress(fmt.Sprintf("statistics of keys at context %d", o.Ctx), done, total)
		}
	}
	if err := stats.take(ctx, o.Engine, w.Tokens[:fit], tick); err != nil {
		return nil, err
	}
	f16 := kvcache.F16
	f16.Rotation = o.Cache.Rotation
	base := &engine.Reference{Engine: o.Engine, Lane: engine.Stock(f16)}
	h := &search{o: o, c: c, held: held, target: target, half: f16, base: base, stats: stats, fitted: fit,
		measured: map[measurement]*ppl.Divergence{}, requantises: quantized(c)}
	for _, n := range raceTokens {
		h.rounds = append(h.rounds, held.Block(n))
	}
	if _, ok := o.Engine.(engine.Prober); !ok {
		h.rounds = h.rounds[:1] // every round would be whole windows
	}
	return h, nil
}

// What is looked at in all windows together, so that fits cost the same at every context: queries of
// each query head and keys of each KV head for moments, and queries that meet keys in the fit of a
// transform, of all query heads that share a KV head. A transform has as many numbers as a thousand of
// them can tell. With a quarter of the queries shifts of the bias cost half as much again
// (docs/slowmean.md). In one window there are at most so many as stand below, for each meets all keys.
const (
	statQueries  = 512
	mostQueries  = 128
	statSamples  = 1536
	statMeetings = 1152
	mostMeetings = 576
)

// each is a window's share of n.
func each(n, windows int) int { return max(16, n/windows) }

// quantized says whether any matrix of a checkpoint has a quantised type.
func quantized(c *checkpoint.Checkpoint) bool {
	return slices.ContainsFunc(c.Tensors(), func(t *checkpoint.Tensor) bool {
		typ, err := gguf.ParseType(t.Type)
		return err == nil && typ.Quantized()
	})
}

// search holds what the steps of Search share.
type search struct {
	o           Options
	c           *checkpoint.Checkpoint
	held        *ppl.Windows
	target      *kvcache.LlamaCpp
	half        kvcache.CacheTypes // what costs are measured with
	stats       *KeyStats
	fitted      int               // windows
	base        *engine.Reference // the unedited model with half
	rounds      []*ppl.Block      // of raceTokens
	requantises bool              // a change of digits costs what is not measured, see requantGain

	candidates []Candidate            // that were tried
	edits      []transform.ModelEdits // of the candidates; other edits that are compared stand behind them
	measured   map[measurement]*ppl.Divergence
}

// A measurement is an edit by its number, a cache, and a round of the race.
type measurement struct {
	edit  int
	cache kvcache.CacheTypes
	round int
}

func (h *search) choose(ctx context.Context) (*Result, error) {
	row := h.target.KeyRow()
	out := &Result{Report: &spec.Fusion{
		KType: kvcache.TypeName(h.target.K), VType: kvcache.TypeName(h.target.V), Rotation: h.target.Rotation,
		TargetCtx: h.o.Ctx,
		Text:      h.o.Text.Info(h.held), FitWindows: h.fitted,
	}}
	if err := transform.CheckKeyBias(h.c.Config); h.o.Approximate && err != nil {
		out.Report.Refused = err.Error()
	} else if h.o.Approximate {
		out.Report.Refused = h.o.NoKeyBias
	}
	candidates := Candidates(row)
	if matrix, _ := transform.CheckStill(h.c.Config); matrix == nil && row.Type.Quantized() {
		candidates = append(candidates, Still(h.o.NoKeyBias != "", transform.HasLateGains(h.c.Config), row))
	}
	if err := h.try(ctx, candidates...); err != nil {
		return nil, err
	}
	if err := h.near(ctx, row); err != nil {
		return nil, err
	}
	// Mixes are for the type as they are.
	if i := h.leader(true); i > 0 && h.candidates[i].Fit.Transform == 0 && !h.candidates[i].Fit.Still {
		if err := h.try(ctx, h.candidates[i].Tuned()); err != nil {
			return nil, err
		}
	}
	best, err := h.decide(ctx, out.Report)
	if err != nil {
		return nil, err
	}
	out.Edits, out.Report.Chosen = h.edits[best], h.candidates[best].Name
	if err := h.values(ctx, best, out); err != nil {
		return nil, err
	}
	h.heads(out)
	return out, nil
}

// values tries to mix values for their cache type on top of what was chosen for keys,
// and takes that if it is better by more than chance beside keys in F16 (beside
// quantised keys, which err much more, chance would decide) and no worse beside keys in
// their type: where keys drown the gain, W_V and W_O had better stay as they are.
func (h *search) values(ctx context.Context, best int, c *Result) error {
	if !h.target.V.Quantized() || transform.CheckValueTransform(h.c.Config) != nil {
		return nil
	}
	edits, err := h.stats.FitValues(ctx, c.Edits, h.target.ValueRow(), h.o.Progress.Of("fitting changes of values"))
	if err != nil {
		return err
	}
	mixed := len(h.edits)
	h.edits = append(h.edits, edits)
	alone := h.target.CacheTypes
	alone.K = gguf.TypeF16
	const step = "comparing changes of values"
	wins, err := h.wins(ctx, mixed, best, alone, valueErrors, step)
	if err != nil {
		return err
	}
	round := h.round(best, h.target.CacheTypes)
	if err := h.measure(ctx, h.target.CacheTypes, round, step, mixed); err != nil {
		return err
	}
	try := h.tried(best, mixed)
	if try.Name = valuesTransformed; best > 0 {
		try.Name = h.candidates[best].Name + ", " + valuesTransformed
	}
	try.F16KLD = h.costOf(best) // an exact change costs nothing more
	c.Report.Tried = append(c.Report.Tried, try)
	gain := h.gain(true, h.candidates[best].PowersOfTwoOnly())
	if wins && gain*h.kld(mixed).Mean <= h.kld(best).Mean {
		c.Edits, c.Report.Chosen = edits, try.Name
	}
	return nil
}

const valuesTransformed = "values transformed for the type"

// tried describes candidate i with what edit number e measured.
func (h *search) tried(i, e int) spec.FusionTry {
	d := h.kld(e)
	return spec.FusionTry{Name: h.candidates[i].Name, Near: h.candidates[i].Approximate, KLD: d.Mean, KLDErr: d.MeanErr,
		PPLRatio: d.Ratio, SameTop: d.SameTop}
}

// round returns the last round in which an edit was measured with a cache.
func (h *search) round(edit int, cache kvcache.CacheTypes) int {
	r := 0
	for h.measured[measurement{edit, cache, r + 1}] != nil {
		r++
	}
	return r
}

// kld returns what an edit measured with the target types, on the most predictions.
func (h *search) kld(edit int) *ppl.Divergence {
	return h.measured[measurement{edit, h.target.CacheTypes, h.round(edit, h.target.CacheTypes)}]
}

// first returns what it measured in the first round, in which all were.
func (h *search) first(edit int) *ppl.Divergence {
	return h.measured[measurement{edit, h.target.CacheTypes, 0}]
}

// costOf returns the divergence of candidate i with F16 caches, nil where it was not measured.
func (h *search) costOf(i int) *float64 {
	if d := h.measured[measurement{i, h.half, 0}]; d != nil {
		return &d.Mean
	}
	return nil
}

// costs measures what candidates cost with F16 caches.
func (h *search) costs(ctx context.Context, candidates ...int) error {
	return h.measure(ctx, h.half, 0, "measuring what changes cost", candidates...)
}

// wins says whether edit i does better than j with a cache, by so many standard errors: on the
// first round's predictions where they show it beyond doubt, or show that it does not, else on
// those of the last.
func (h *search) wins(ctx context.Context, i, j int, cache kvcache.CacheTypes, errs float64,
	step string) (bool, error) {
	for round := range h.rounds {
		if err := h.measure(ctx, cache, round, step, i, j); err != nil {
			return false, err
		}
		a, b := h.measured[measurement{i, cache, round}], h.measured[measurement{j, cache, round}]
		if round == len(h.rounds)-1 {
			return ppl.Better(*a, *b, errs), nil
		}
		if ppl.Better(*a, *b, max(errs, earlyErrors)) {
			return true, nil
		}
		if ppl.Better(*b, *a, lateErrors) || slices.Equal(a.KLD, b.KLD) {
			return false, nil
		}
	}
	return false, nil
}

// near tries near-identities: removals, then mixes on top of the best one.
func (h *search) near(ctx context.Context, row transform.CacheRow) error {
	if !h.o.Approximate || !h.target.K.Quantized() {
		return nil
	}
	base := h.candidates[h.leader(false)]
	base.Name, base.Fit.Pairs = "pair scaling", ClosedForm
	var less *Candidate // what drifts less than the base of the mixes
	if transform.CheckKeyBias(h.c.Config) == nil && h.o.NoKeyBias == "" {
		removals := []float64{128, 32, 8, 2}
		at, err := h.descend(ctx, removals, 1, func(k float64) Candidate { return Shift(k, row) })
		if err != nil {
			return err
		}
		base = Shift(removals[at], row)
		if at > 0 {
			x := Shift(removals[at-1], row)
			less = &x
		}
	}
	if transform.CheckKeyTransform(h.c.Config) != nil {
		return nil
	}
	mixes := []float64{64, 16, 4, 1}
	at, err := h.descend(ctx, mixes, 1, base.Transformed)
	if err != nil || less == nil {
		return err
	}
	// In case the best removal costs too much.
	return h.try(ctx, less.Transformed(mixes[at]))
}

// descend tries two neighbours of a list of weights, from index start on, and goes
// on towards the better one until things get worse. It returns where the best is.
func (h *search) descend(ctx context.Context, weights []float64, start int, of func(weight float64) Candidate) (int,
	error) {
	first := len(h.candidates)
	if err := h.try(ctx, of(weights[start]), of(weights[start+1])); err != nil {
		return 0, err
	}
	at, step, best := start, -1, h.first(first).Mean
	if second := h.first(first + 1).Mean; second < best {
		at, step, best = start+1, 1, second
	}
	for next := at + step; next >= 0 && next < len(weights); next += step {
		i := len(h.candidates)
		if err := h.try(ctx, of(weights[next])); err != nil {
			return 0, err
		}
		if h.first(i).Mean >= best {
			break
		}
		at, best = next, h.first(i).Mean
	}
	return at, nil
}

// decide fills in the report and returns the candidate to take.
func (h *search) decide(ctx context.Context, report *spec.Fusion) (int, error) {
	order := h.byDrift()
	exact := order[0]
	for _, i := range order {
		if h.candidates[i].Approximate {
			continue
		}
		if ok, err := h.beats(ctx, i, exact); err != nil {
			return 0, err
		} else if ok {
			exact = i
		}
	}
	best, err := h.cheapest(ctx, exact, order)
	if err != nil {
		return 0, err
	}
	for _, i := range h.byDrift() {
		try := h.tried(i, i)
		try.F16KLD = h.costOf(i)
		report.Tried = append(report.Tried, try)
	}
	return best, nil
}

// byDrift lists the candidates, those that may change the function less before others.
func (h *search) byDrift() []int {
	order := make([]int, len(h.candidates))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return h.candidates[a].Drift(h.candidates[b]) })
	return order
}

// cheapest measures what near-identities cost with F16 caches, and takes them in the
// order of their costs as long as each gains enough on the one before. Those that
// something with less drift beats are left out, and are not measured.
func (h *search) cheapest(ctx context.Context, exact int, order []int) (int, error) {
	var near []int
	for _, i := range order {
		if !h.candidates[i].Approximate || slices.ContainsFunc(near, func(j int) bool {
			return h.first(j).Mean <= h.first(i).Mean && h.candidates[j].NoMoreThan(h.candidates[i])
		}) {
			continue
		}
		if ok, err := h.beats(ctx, i, exact); err != nil {
			return 0, err
		} else if ok {
			near = append(near, i)
		}
	}
	if err := h.costs(ctx, near...); err != nil {
		return 0, err
	}
	slices.SortStableFunc(near, func(a, b int) int { return cmp.Compare(*h.costOf(a), *h.costOf(b)) })
	best, paid := exact, 0.0
	for _, i := range near {
		// At the margin: so the gain over exact changes is ten times the whole cost.
		cost := *h.costOf(i)
		if h.first(best).Mean-h.first(i).Mean < approximateGain*(cost-paid) {
			continue
		}
		if ok, err := h.wins(ctx, i, best, h.target.CacheTypes, approximateErrors, comparing); err != nil {
			return 0, err
		} else if ok {
			best, paid = i, cost
		}
	}
	if best == exact && len(near) > 0 {
		// Less of what comes nearest to paying: most often a mix, which gains more for its price than a
		// shift alone.
		worth := func(i int) float64 {
			return (h.first(exact).Mean - h.first(i).Mean) / max(*h.costOf(i), math.SmallestNonzeroFloat32)
		}
		return h.relax(ctx, exact, slices.MaxFunc(near, func(a, b int) int { return cmp.Compare(worth(a), worth(b)) }))
	}
	return best, nil
}

// comparing is the name of the step that measures changes of keys.
const comparing = "comparing changes of keys"

// backOff makes less of a near-identity that costs too much: it tries larger drift
// weights, then half and a quarter of the heads, those where it promises most for its
// price, the others with the best exact change. It returns the first that gains enough,
// or the exact change.
func (h *search) relax(ctx context.Context, exact, near int) (int, error) {
	pays := func(c Candidate, edits transform.ModelEdits) (bool, error) {
		i := len(h.candidates)
		if err := h.compare(ctx, []Candidate{c}, []transform.ModelEdits{edits}); err != nil {
			return false, err
		}
		if err := h.costs(ctx, i); err != nil {
			return false, err
		}
		if h.first(exact).Mean-h.first(i).Mean < approximateGain**h.costOf(i) {
			return false, nil
		}
		return h.beats(ctx, i, exact)
	}
	for _, factor := range []float64{4, 16} {
		c := h.candidates[near].WithPenalty(factor)
		if slices.ContainsFunc(h.candidates, func(x Candidate) bool { return x.Name == c.Name }) {
			continue // and did not pay
		}
		c.Fit.Start = h.mixed(c, nil, nil)
		edits, err := h.stats.Fit(ctx, c.Fit, h.o.Progress.Of("fitting changes of keys"))
		if err != nil {
			return 0, fmt.Errorf("%s: %w", c.Name, err)
		}
		if ok, err := pays(c, edits); ok || err != nil {
			return len(h.candidates) - 1, err
		}
	}
	heads := worthwhile(h.edits[near])
	for _, part := range []struct {
		of   int
		name string
	}{{2, "half of the heads"}, {4, "a quarter of the heads"}} {
		edits := make(transform.ModelEdits, len(h.edits[exact]))
		for l := range edits {
			edits[l] = slices.Clone(h.edits[exact][l])
		}
		for _, x := range heads[:(len(heads)+part.of-1)/part.of] {
			edits[x[0]][x[1]] = h.edits[near][x[0]][x[1]]
		}
		c := h.candidates[near]
		c.Name += ", " + part.name
		if ok, err := pays(c, edits); ok || err != nil {
			return len(h.candidates) - 1, err
		}
	}
	return exact, nil
}

// worthwhile lists layers and KV heads, those first whose near-identities are predicted
// to gain most for what they cost.
func worthwhile(edits transform.ModelEdits) [][2]int {
	var out [][2]int
	for l := range edits {
		for i := range edits[l] {
			out = append(out, [2]int{l, i})
		}
	}
	ratio := func(x [2]int) float64 {
		gain, cost := 0.0, 0.0
		e := edits[x[0]][x[1]]
		if e.Shift != nil {
			gain, cost = e.Shift.Before-e.Shift.After, e.Shift.Cost
		}
		if e.Transform != nil {
			gain, cost = gain+e.Transform.Before-e.Transform.After, cost+e.Transform.Cost
		}
		return gain / max(cost, math.SmallestNonzeroFloat32) // heads without a change cost nothing
	}
	slices.SortStableFunc(out, func(a, b [2]int) int { return cmp.Compare(ratio(b), ratio(a)) })
	return out
}

// beats says whether candidate i, which changes more than j, does better by more than
// chance and enough for what cannot be measured.
func (h *search) beats(ctx context.Context, i, j int) (bool, error) {
	gain := h.gain(!h.candidates[i].PowersOfTwoOnly(), h.candidates[j].PowersOfTwoOnly())
	if i == j || gain*h.first(i).Mean > h.first(j).Mean {
		return false, nil
	}
	return h.wins(ctx, i, j, h.target.CacheTypes, exactErrors, comparing)
}

// gain is how many times the divergence must fall at least on the way from weights
// with the published digits to others: once, if chance is all that speaks against it.
func (h *search) gain(changes, kept bool) float64 {
	if h.requantises && changes && kept {
		return requantGain
	}
	return 1
}

// leader returns the candidate of a kind that measured best, 0 if there is none.
func (h *search) leader(near bool) int {
	best := 0
	for i, x := range h.candidates {
		if i > 0 && x.Approximate == near && (best == 0 || h.first(i).Mean < h.first(best).Mean) {
			best = i
		}
	}
	return best
}

// try fits and measures more candidates.
func (h *search) try(ctx context.Context, more ...Candidate) error {
	var edits []transform.ModelEdits
	for i, x := range more {
		tick := h.o.Progress.Of("fitting changes of keys")
		x.Fit.Start = h.mixed(x, more[:i], edits)
		e, err := h.stats.Fit(ctx, x.Fit, func(done, total int) { tick(i*total+done, len(more)*total) })
		if err != nil {
			return fmt.Errorf("%s: %w", x.Name, err)
		}
		edits = append(edits, e)
	}
	return h.compare(ctx, more, edits)
}

// mixed returns the edits of the last candidate with a mix, nil for none: of those tried and of
// the next ones, as far as they have been fitted. One with the same shift of the bias comes first.
func (h *search) mixed(c Candidate, next []Candidate, fitted []transform.ModelEdits) transform.ModelEdits {
	removal, _ := c.penalties()
	var other transform.ModelEdits
	candidates, edits := slices.Concat(h.candidates, next), slices.Concat(h.edits, fitted)
	for i := len(candidates) - 1; i >= 0 && c.Fit.Transform != 0; i-- {
		if candidates[i].Fit.Transform == 0 {
			continue
		}
		if r, _ := candidates[i].penalties(); r == removal {
			return edits[i]
		}
		if other == nil {
			other = edits[i]
		}
	}
	return other
}

// compare measures candidates with the edits that were fitted for them, in the first round.
func (h *search) compare(ctx context.Context, more []Candidate, edits []transform.ModelEdits) error {
	var numbers []int
	for i := range more {
		numbers = append(numbers, len(h.candidates)+i)
	}
	h.candidates, h.edits = append(h.candidates, more...), append(h.edits, edits...)
	return h.measure(ctx, h.target.CacheTypes, 0, comparing, numbers...)
}

// maxTries bounds how many candidates run side by side: each holds its hidden
// states, and its logits while they are compared.
const maxTries = 8

// measure makes sure that edits were measured with cache types in a round: the divergence of each,
// on top of the unedited model, from the unedited model with F16 caches.
func (h *search) measure(ctx context.Context, cache kvcache.CacheTypes, round int, step string, edits ...int) error {
	var missing []int
	for _, i := range edits {
		if h.measured[measurement{i, cache, round}] == nil && !slices.Contains(missing, i) {
			missing = append(missing, i)
		}
	}
	for part := range slices.Chunk(missing, maxTries) {
		var lanes []engine.Lane
		for _, i := range part {
			l := engine.Stock(cache)
			l.Edits = h.edits[i]
			lanes = append(lanes, l)
		}
		res, err := engine.Probe(ctx, h.o.Engine, h.held, h.rounds[round], h.base, lanes, engine.Options{
			Run: h.o.Progress.Of(step), Compare: h.o.Progress.Of("comparing predictions")})
		if err != nil {
			return err
		}
		for k, i := range part {
			h.measured[measurement{i, cache, round}] = &res.Divergences[k]
		}
	}
	return nil
}

// heads lists what was done to each head.
func (h *search) heads(c *Result) {
	for l, heads := range c.Edits {
		for i, e := range heads {
			x := spec.FusionHead{Layer: l, Head: i}
			if m := e.Shift; m != nil {
				x.Removed, x.Before, x.After, x.Cost = m.Removed, m.Before, m.After, m.Cost
			}
			if m := e.Transform; m != nil {
				if e.Shift == nil {
					x.Before = m.Before
				}
				x.After = m.After
				x.Cost += m.Cost
			}
			if e.Shift != nil || e.Transform != nil {
				c.Report.Heads = append(c.Report.Heads, x)
			}
		}
	}
}
