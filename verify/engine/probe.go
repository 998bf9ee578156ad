package engine

import (
	"context"

	"github.com/phaseconv/phaseconv/verify/ppl"
)

// A Prober is an engine that can compute lanes for a block of positions alone.
type Prober interface {
	// Probe is Compare for what a block scores, or for all of its windows: in the own pass keys and
	// values in front of it are the reference's, in a lane's caches, see refmodel.Model.Probes. Windows
	// are those that the reference is first used with.
	Probe(ctx context.Context, w *ppl.Windows, b *ppl.Block, ref *Reference, lanes []Lane, o Options) (*ppl.Result,
		error)
}

// Probe measures lanes on a block of windows, where the engine can, or on whole windows.
func Probe(ctx context.Context, e Engine, w *ppl.Windows, b *ppl.Block, ref *Reference, lanes []Lane,
	o Options) (*ppl.Result, error) {
	if p, ok := e.(Prober); ok && ref.Engine == e {
		return p.Probe(ctx, w, b, ref, lanes, o)
	}
	return e.Compare(ctx, w, ref, lanes, o)
}

// Probe implements Prober. The reference's keys and values are kept, 2 x n_kv_heads x head_dim
// numbers a token and layer.
func (o *OwnPass) Probe(ctx context.Context, w *ppl.Windows, b *ppl.Block, ref *Reference, lanes []Lane,
	opt Options) (*ppl.Result, error) {
	if ref.context == nil {
		seen, err := o.Model.NewContext(w.Tokens)
		if err != nil {
			return nil, err
		}
		run := opt
		run.Hooks = seen.Hooks()
		kept, err := o.run(ctx, w, []Lane{ref.Lane}, run)
		if err != nil {
			return nil, err
		}
		ref.kept, ref.context = kept[0], seen
	}
	base, err := again(ctx, w, ref, opt)
	if err != nil {
		return nil, err
	}
	out := &ppl.Result{}
	for at := 0; at < len(lanes); at += maxStreams {
		variants, err := o.variants(lanes[at:min(len(lanes), at+maxStreams)], w.Ctx)
		if err != nil {
			return nil, err
		}
		streams, err := b.Probe(ctx, o.Model, ref.context, opt.Run, variants...)
		if err != nil {
			return nil, err
		}
		res, err := ppl.Measure(ctx, b.Of(w), opt.Compare, b.Base(w, base), streams...)
		if err != nil {
			return nil, err
		}
		out.Append(res)
	}
	return out, nil
}
