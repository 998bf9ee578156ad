// Package figures measures what a report shows beyond the totals: where errors
// arise, and small samples of real keys and scores that a reader can handle. All
// of it is measured on text that no code was fitted to, and bounded in time and
// size whatever the model.
package figures

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/kernels/parallel"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/engine"
	"github.com/phaseconv/phaseconv/verify/kvcache"
	"github.com/phaseconv/phaseconv/verify/option"
	"github.com/phaseconv/phaseconv/verify/ppl"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// Bounds of what is measured.
const (
	quickTokens = 512  // of held-out text, but at least one window
	maxTokens   = 1024 // the same with Detail
	maxContext  = 4096 // longest context, in the detailed part
	cloudPoints = 240
	fitKeys     = 2048 // calibration keys of the one head that codes are fitted to
	heldKeys    = 2048
)

// Options of Run.
type Options struct {
	Config  *family.Config
	Weights checkpoint.Weights
	// Engine, if set, computes in place of the own pass, and Coded is the lane of the codes in use in it. Detail
	// takes the own pass.
	Engine engine.Engine
	Coded  engine.Lane
	// Codes in use, [layer][head], and their name.
	Codes [][]*codec.Code
	Kind  codec.Kind
	// Groups, if set, are the joint codes in use instead, [layer][group]. They have no figures of
	// single heads and no other codes beside them.
	Groups [][]*codec.Group
	// Fitted holds other codes fitted to the same calibration text, if there are any.
	Fitted [][]map[codec.Kind]*codec.Code
	Policy kvcache.Policy
	// Scale is what keys are multiplied by before they are coded; see kvcache.Codes.
	Scale func(layer, head int) []float32
	// Windows of held-out text, and what is said about that text.
	Windows [][]int32
	Text    spec.Text
	// Calibration windows, for codes of other sizes of one head; nil leaves them out.
	Calibration     [][]int32
	CalibrationName string
	// Long, if set, returns a held-out window of n tokens for long contexts, nil
	// when the text has none.
	Long func(n int) [][]int32
	// Rows of the beta audit select the head that is shown.
	Rows []spec.Layer
	// Detail also measures each layer alone, other codes, and other context
	// lengths: about as many forward passes over one window as there are layers.
	Detail   bool
	Seed     uint64
	Threads  int
	Progress func(step string, done, total int)
}

type measurer struct {
	o   Options
	m   *refmodel.Model
	out *spec.Detail

	layer, head int // shown by the probes
}

// Run measures. It fails on what refmodel fails on, and on contexts that are too
// short to be cut.
func Run(ctx context.Context, o Options) (*spec.Detail, error) {
	o.Threads = parallel.Threads(o.Threads)
	if n := max(len(o.Codes), len(o.Groups)); len(o.Windows) == 0 || n != len(o.Config.Layers) {
		return nil, fmt.Errorf("probe: %d windows and codes for %d of %d layers", len(o.Windows), n, len(o.Config.Layers))
	}
	if o.Engine != nil && o.Detail {
		return nil, option.Bad("ReportDetail", nil, "each layer alone, other codes and other contexts take --engine own")
	}
	p := &measurer{o: o, m: refmodel.New(o.Config, o.Weights, o.Threads), out: &spec.Detail{
		Code: string(o.Kind), Bits: codec.MeanBits(o.Codes), Anchor: o.Policy.Anchor, Sink: o.Policy.Sink,
		Recent: o.Policy.Recent,
	}}
	if o.Groups != nil {
		p.out.Bits = codec.Summarize(slices.Concat(o.Groups...)).Bits
	}
	p.layer, p.head = choose(o.Config, o.Rows)
	T := len(o.Windows[0])
	budget := quickTokens
	if o.Detail {
		budget = maxTokens
	}
	n := min(len(o.Windows), max(1, budget/T))
	p.out.Text = o.Text
	p.out.Text.Windows, p.out.Text.Tokens, p.out.Text.Context = n, n*T, T
	tap, err := p.quick(ctx, o.Windows[:n])
	if err != nil {
		return nil, err
	}
	if o.Groups == nil {
		if err := p.shown(ctx, tap); err != nil {
			return nil, err
		}
	}
	if o.Detail {
		err = p.detail(ctx)
	}
	return p.out, err
}

// choose returns the head of median gain of a learned over a Hadamard rotation,
// neither the best nor the worst to show; without an audit, the first head of the
// middle layer.
func choose(c *family.Config, rows []spec.Layer) (layer, head int) {
	var known []spec.Layer
	for _, r := range rows {
		if r.Delta != nil && r.Layer >= 0 && r.Layer < len(c.Layers) && r.Head >= 0 && r.Head < c.Layers[r.Layer].KVHeads {
			known = append(known, r)
		}
	}
	if len(known) == 0 {
		return c.Layers[len(c.Layers)/2].Owner, 0
	}
	slices.SortStableFunc(known, func(a, b spec.Layer) int { return cmp.Compare(*a.Delta, *b.Delta) })
	r := known[len(known)/2]
	return r.Layer, r.Head
}

func (p *measurer) step(name string) func(done, total int) {
	if p.o.Progress == nil {
		return nil
	}
	return func(done, total int) { p.o.Progress(name, done, total) }
}

// codedCache is a cache as a whole, or of one layer alone.
type codedCache interface {
	refmodel.Cache
	ppl.LayerCoder
}

// own returns the cache of the codes in use.
func (p *measurer) own() (codedCache, error) {
	if p.o.Groups == nil {
		return p.cache(p.o.Codes, p.o.Policy)
	}
	c, err := kvcache.NewGroups(p.o.Config, p.o.Groups, p.o.Policy)
	if err != nil {
		return nil, err
	}
	c.Scale = p.o.Scale
	return c, nil
}

func (p *measurer) cache(codes [][]*codec.Code, policy kvcache.Policy) (*kvcache.Codes, error) {
	c, err := kvcache.NewCodes(p.o.Config, codes, policy)
	if err != nil {
		return nil, err
	}
	c.Scale = p.o.Scale
	return c, nil
}

// quick runs float and coded caches side by side, and sees every layer's keys where heads have
// codes of their own.
func (p *measurer) quick(ctx context.Context, windows [][]int32) (*tap, error) {
	t, hooks := &tap{p: p}, refmodel.Hooks{NoPre: true, NoValues: true}
	if p.o.Groups == nil {
		hooks.Attention = func(a *refmodel.Attention) error { return t.attention(ctx, a) }
	}
	res, err := p.beside(ctx, windows, hooks)
	if err != nil {
		return nil, err
	}
	p.out.Angles = t.angles
	p.out.Positions = bands(res.Divergences[0].KLD, len(windows[0])-1)
	return t, nil
}

// beside measures the codes in use beside floats, whose activations hooks see.
func (p *measurer) beside(ctx context.Context, windows [][]int32, hooks refmodel.Hooks) (*ppl.Result, error) {
	step := p.step("probing keys and scores")
	cache, err := p.own()
	if err != nil {
		return nil, err
	}
	var meter groupMeter
	groups, joint := cache.(*kvcache.Groups)
	if joint {
		groups.Observe = meter.observe
	}
	var res *ppl.Result
	if e := p.o.Engine; e != nil {
		if joint { // the engine codes elsewhere, so groups are measured on what floats give
			hooks = refmodel.Hooks{NoPre: true, Attention: func(a *refmodel.Attention) error { return p.groups(ctx, groups, a) }}
		}
		res, err = e.Compare(ctx, ppl.From(windows, 0), &engine.Reference{Engine: e}, []engine.Lane{p.o.Coded},
			engine.Options{Hooks: hooks, Run: step})
	} else {
		res, err = p.compare(ctx, windows, 0, refmodel.Options{Hooks: hooks, Progress: step}, &refmodel.Variant{},
			&refmodel.Variant{Cache: cache})
	}
	if err == nil {
		p.out.Groups = meter.rows(len(p.o.Config.Layers), len(windows))
	}
	return res, err
}

// groups codes the keys and values of a layer, which the cache's observer sees.
func (p *measurer) groups(ctx context.Context, cache *kvcache.Groups, a *refmodel.Attention) error {
	k, v := len(a.K)/a.Windows, len(a.V)/a.Windows
	for w := range a.Windows {
		keys, values := slices.Clone(a.K[w*k:(w+1)*k]), slices.Clone(a.V[w*v:(w+1)*v])
		if _, err := cache.Window(ctx, a.Layer, w, keys, values); err != nil {
			return err
		}
	}
	return nil
}

// compare measures variants against base, at positions from on of each window.
func (p *measurer) compare(ctx context.Context, windows [][]int32, from int, opt refmodel.Options,
	base *refmodel.Variant, variants ...*refmodel.Variant) (*ppl.Result, error) {
	return ppl.Compare(ctx, p.m, ppl.From(windows, from), opt, base, variants...)
}

// bands sums the divergence of tokens over ranges of positions that double.
func bands(kld []float64, per int) []spec.PositionBand {
	var out []spec.PositionBand
	for from, to := 0, 8; from < per; from, to = to, 2*to {
		if 2*to > per { // a last band shorter than its predecessor says little
			to = per
		}
		out = append(out, ppl.Band(kld, 0, per, from, min(to, per)))
	}
	return out
}

// detail measures one layer at a time, other codes and other contexts.
func (p *measurer) detail(ctx context.Context) error {
	cache, err := p.own()
	if err != nil {
		return err
	}
	kld, err := ppl.LayerKLD(ctx, p.m, p.o.Windows[:1], len(p.o.Windows[0])/2, cache, p.step("coding one layer at a time"))
	if err != nil {
		return err
	}
	for l, d := range kld {
		p.out.Layers = append(p.out.Layers, spec.LayerKLD{Layer: l, KLD: d.Mean, KLDErr: d.MeanErr})
	}
	if p.o.Groups == nil {
		if err := p.codes(ctx); err != nil {
			return err
		}
	}
	return p.contexts(ctx, cache)
}

// codes measures other codes on the windows of the quick part.
func (p *measurer) codes(ctx context.Context) error {
	cfg := p.o.Config
	windows := p.o.Windows[:p.out.Text.Windows]
	kinds := []codec.Kind{codec.Raw, codec.SRHT, codec.Random}
	for _, k := range []codec.Kind{codec.Cen, codec.Learned} {
		if p.o.Fitted != nil && p.o.Fitted[0][0][k] != nil && k != p.o.Kind {
			kinds = append(kinds, k)
		}
	}
	var variants []*refmodel.Variant
	var points []spec.ParetoPoint
	add := func(kind codec.Kind, codes [][]*codec.Code, policy kvcache.Policy) error {
		c, err := p.cache(codes, policy)
		if err != nil {
			return err
		}
		variants = append(variants, &refmodel.Variant{Cache: c})
		size := 0
		for _, heads := range codes {
			for _, c := range heads {
				size += policy.KeyBytes(c)
			}
		}
		points = append(points, spec.ParetoPoint{Code: string(kind), Bits: codec.MeanBits(codes),
			BytesPerToken: float64(size)})
		return nil
	}
	for _, kind := range kinds {
		codes := make([][]*codec.Code, len(cfg.Layers))
		policy := p.o.Policy
		for l := range codes {
			for h := range cfg.OwnKVHeads(l) {
				var c *codec.Code
				if p.o.Fitted != nil {
					c = p.o.Fitted[l][h][kind]
				}
				if c == nil {
					var err error
					if c, err = codec.DataFree(kind, cfg.Layers[l].HeadDim, p.o.Seed, l, h); err != nil {
						return err
					}
				}
				codes[l] = append(codes[l], c)
			}
		}
		if err := add(kind, codes, policy); err != nil {
			return err
		}
	}
	if err := add(p.o.Kind, p.o.Codes, p.o.Policy); err != nil {
		return err
	}
	opt := refmodel.Options{Progress: p.step("measuring other codes")}
	res, err := p.compare(ctx, windows, len(windows[0])/2, opt, &refmodel.Variant{}, variants...)
	if err != nil {
		return err
	}
	for i, d := range res.Divergences {
		x := &points[i]
		x.PPLRatio, x.KLD, x.KLDErr, x.SameTop = d.Ratio, d.Mean, d.MeanErr, d.SameTop
	}
	p.out.Codes = points
	return nil
}

// contexts measures a quarter of the context, the context, and four times it.
func (p *measurer) contexts(ctx context.Context, cache refmodel.Cache) error {
	T := len(p.o.Windows[0])
	for _, n := range []int{T / 4, T, 4 * T} {
		if n < 32 || n > min(maxContext, p.o.Config.Context) || p.o.Policy.CheckContext(n) != nil {
			continue
		}
		var windows [][]int32
		switch {
		case n <= T:
			for _, w := range p.o.Windows[:p.out.Text.Windows] {
				for at := 0; at+n <= T; at += n {
					windows = append(windows, w[at:at+n])
				}
			}
		case p.o.Long != nil:
			windows = p.o.Long(n)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if len(windows) == 0 {
			continue
		}
		opt := refmodel.Options{Progress: p.step(fmt.Sprintf("measuring context %d", n))}
		res, err := p.compare(ctx, windows, n/2, opt, &refmodel.Variant{}, &refmodel.Variant{Cache: cache})
		if err != nil {
			return err
		}
		d := &res.Divergences[0]
		p.out.Contexts = append(p.out.Contexts, spec.ContextRow{Ctx: n, Windows: len(windows), Tokens: len(d.KLD),
			PPLRatio: d.Ratio, RatioErr: d.RatioErr, KLD: d.Mean, KLDErr: d.MeanErr})
	}
	return nil
}
