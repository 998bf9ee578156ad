package engine

import (
	"context"
	"fmt"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/verify/kvcache"
	"github.com/phaseconv/phaseconv/verify/ppl"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// OwnPass is the own forward pass as an engine. Its results depend on nothing but model, text and
// options.
type OwnPass struct {
	// Model computes; its RoundInputs and Threads may be set.
	Model *refmodel.Model
	// HalfSums reproduces the F16 sums of llama.cpp's CPU backend, see kvcache.LlamaCpp.
	HalfSums bool
	// MaxHidden bounds the hidden states of one pass, in bytes, so that long contexts are computed with
	// few lanes at a time; 0 takes 512 MiB.
	MaxHidden int

	c *checkpoint.Checkpoint
}

const maxHidden = 512 << 20

// maxStreams bounds how many streams of logits are held at a time, see ppl.Measure.
const maxStreams = 6

// NewOwn returns the own pass of a checkpoint.
func NewOwn(c *checkpoint.Checkpoint, threads int) *OwnPass {
	return &OwnPass{Model: refmodel.New(c.Config, c, threads), c: c}
}

// Config is the model's configuration.
func (o *OwnPass) Config() *family.Config { return o.Model.Config }

// Windows cuts a text with the checkpoint's tokenizer.
func (o *OwnPass) Windows(ctx context.Context, t ppl.Text, n, chunks int) (*ppl.Windows, error) {
	return ppl.Tokenize(ctx, o.c, t, n, chunks)
}

func (o *OwnPass) stock(t kvcache.CacheTypes) (*kvcache.LlamaCpp, error) {
	s, err := kvcache.NewLlamaCpp(o.Model.Config, t)
	if err != nil {
		return nil, err
	}
	s.FloatSums = !o.HalfSums
	return s, nil
}

// Fits refuses types that the emulation does not have for the model.
func (o *OwnPass) Fits(t kvcache.CacheTypes) error { _, err := o.stock(t); return err }

// Size is what the caches take; of types that Fits refuses nothing.
func (o *OwnPass) Size(t kvcache.CacheTypes, ctx int) (token int, all int64) {
	s, err := o.stock(t)
	if err != nil {
		return 0, 0
	}
	return s.BytesPerToken(), s.Bytes(ctx)
}

// Identity says that it is the own pass.
func (o *OwnPass) Identity() Identity { return Identity{Engine: Own} }

// Tap shows the activations of all windows, layer by layer.
func (o *OwnPass) Tap(ctx context.Context, windows [][]int32, h refmodel.Hooks, p func(done, total int)) error {
	return o.Model.Run(ctx, windows, []*refmodel.Variant{{}}, refmodel.Options{Hooks: h, Progress: p})
}

// cache stands for a lane's caches, for windows of n tokens.
func (o *OwnPass) cache(l Lane, n int) (refmodel.Cache, error) {
	if l.Edits != nil {
		edits := l.Edits
		l.Edits = nil
		inner, err := o.cache(l, n)
		if err != nil {
			return nil, err
		}
		return kvcache.NewEditedKeys(o.Model.Config, edits, inner, n)
	}
	switch {
	case l.Keys != nil && l.Keys.Cache == nil:
		return nil, fmt.Errorf("the own pass replaces keys by codes that it is given, and got none")
	case l.Keys != nil:
		return l.Keys.Cache, nil
	case l.Types == nil:
		return nil, nil
	}
	return o.stock(*l.Types)
}

// With is the own pass with other weights.
func (o *OwnPass) With(_ context.Context, w checkpoint.Weights) (Engine, error) {
	e := *o
	e.Model = refmodel.New(o.Model.Config, w, o.Model.Threads)
	e.Model.RoundInputs = o.Model.RoundInputs
	return &e, nil
}

// Compare measures lanes against a reference. One of this engine runs along in the first pass.
func (o *OwnPass) Compare(ctx context.Context, w *ppl.Windows, ref *Reference, lanes []Lane, opt Options) (*ppl.Result,
	error) {
	theirs, ok := ref.Engine.(*OwnPass)
	if !ok {
		return nil, fmt.Errorf("the own pass compares with itself, not with %s", ref.Engine.Identity().Engine)
	}
	if theirs != o && (opt.Hooks.Attention != nil || opt.Hooks.FFN != nil) {
		return nil, fmt.Errorf("hooks on a reference of another model")
	}
	most := o.MaxHidden
	if most == 0 {
		most = maxHidden
	}
	perPass := max(1, most/(4*len(w.Tokens)*w.Ctx*o.Model.Config.Hidden))
	out := &ppl.Result{}
	for at := 0; at < len(lanes); at += perPass {
		if err := o.pass(ctx, w, ref, theirs, lanes[at:min(len(lanes), at+perPass)], opt, out); err != nil {
			return nil, err
		}
		opt.Hooks = refmodel.Hooks{}
	}
	return out, nil
}

// again returns what is kept of a lane that is a reference, and computes it if need be.
func again(ctx context.Context, w *ppl.Windows, ref *Reference, opt Options) (ppl.Positions, error) {
	if ref.kept == nil {
		theirs, ok := ref.Engine.(*OwnPass)
		if !ok {
			return ppl.Positions{}, fmt.Errorf("a reference of another engine, %s", ref.Engine.Identity().Engine)
		}
		opt.Hooks = refmodel.Hooks{}
		kept, err := theirs.run(ctx, w, []Lane{ref.Lane}, opt)
		if err != nil {
			return ppl.Positions{}, err
		}
		ref.kept = kept[0]
	}
	p, ok := ref.kept.(ppl.Positions)
	if !ok {
		return p, fmt.Errorf("a reference of another engine")
	}
	return p, nil
}

// pass computes lanes at once and appends what they measure.
func (o *OwnPass) pass(ctx context.Context, w *ppl.Windows, ref *Reference, theirs *OwnPass, lanes []Lane, opt Options,
	out *ppl.Result) error {
	var run []Lane
	first := ref.kept == nil && theirs == o
	if first {
		run = append(run, ref.Lane)
	}
	for _, l := range lanes {
		if l.Again == nil {
			run = append(run, l)
		}
	}
	base, err := ppl.Positions{}, error(nil)
	if !first {
		if base, err = again(ctx, w, ref, opt); err != nil {
			return err
		}
	}
	var ran []ppl.Positions
	if len(run) > 0 {
		if ran, err = o.run(ctx, w, run, opt); err != nil {
			return err
		}
	}
	if first {
		base, ran = ran[0], ran[1:]
		ref.kept = base
	}
	var streams []ppl.Positions
	for _, l := range lanes {
		if l.Again == nil {
			streams, ran = append(streams, ran[0]), ran[1:]
			continue
		}
		p, err := again(ctx, w, l.Again, opt)
		if err != nil {
			return err
		}
		streams = append(streams, p)
	}
	for at := 0; at < len(streams); at += maxStreams {
		res, err := ppl.Measure(ctx, w, opt.Compare, base, streams[at:min(len(streams), at+maxStreams)]...)
		if err != nil {
			return err
		}
		out.Append(res)
	}
	return nil
}

// variants returns what the forward pass stores for lanes at a context of ctx tokens.
func (o *OwnPass) variants(lanes []Lane, ctx int) (out []*refmodel.Variant, err error) {
	for _, l := range lanes {
		c, err := o.cache(l, ctx)
		if err != nil {
			return nil, err
		}
		out = append(out, &refmodel.Variant{Cache: c})
	}
	return out, nil
}

// run sends windows through the model once for all lanes; hooks see the first.
func (o *OwnPass) run(ctx context.Context, w *ppl.Windows, lanes []Lane, opt Options) ([]ppl.Positions, error) {
	variants, err := o.variants(lanes, w.Ctx)
	if err != nil {
		return nil, err
	}
	return ppl.Run(ctx, o.Model, w, refmodel.Options{Hooks: opt.Hooks, Progress: opt.Run}, variants...)
}
