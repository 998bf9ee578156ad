package llama

import (
	"context"
	"fmt"
	"slices"

	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/verify/engine"
	"github.com/phaseconv/phaseconv/verify/kvcache"
	"github.com/phaseconv/phaseconv/verify/ppl"
)

// size is what caches of a pair of types took at a context.
type size struct {
	token int
	all   int64
}

type sizeKey struct {
	k, v gguf.Type
	ctx  int
}

// Config describes the model's caches, see Facts.Caches.
func (m *Model) Config() *family.Config { return m.caches }

// Identity is what results depend on.
func (m *Model) Identity() engine.Identity { return m.w.Identity(m.place) }

// Fits refuses cache types that llama.cpp makes no cache of, for the sizes of heads that the graph
// has.
func (m *Model) Fits(t kvcache.CacheTypes) error {
	for _, a := range m.Facts.Owners() {
		v := a.ValueDim
		if v == 0 {
			if t.K != t.V {
				return fmt.Errorf("values of this model are a part of its keys (MLA): K %s, V %s must be one type",
					kvcache.TypeName(t.K), kvcache.TypeName(t.V))
			}
			v = a.HeadDim
		}
		for _, x := range []struct {
			side string
			t    gguf.Type
			n    int
		}{{"K", t.K, a.HeadDim}, {"V", t.V, v}} {
			if block, _ := x.t.Block(); block == 0 || x.n%block != 0 {
				return fmt.Errorf("%s cache of type %s: its blocks of %d do not divide head_dim %d; take another "+
					"type", x.side,
					kvcache.TypeName(x.t), block, x.n)
			}
		}
	}
	return nil
}

// cellPad is what llama.cpp rounds the cells of a cache up to.
const cellPad = 256

// Size is what the caches took where they were measured at this context, else what their rows take
// for all of it.
func (m *Model) Size(t kvcache.CacheTypes, ctx int) (token int, all int64) {
	if s, ok := m.sizes[sizeKey{t.K, t.V, ctx}]; ok {
		return s.token, s.all
	}
	for _, a := range m.Facts.Owners() {
		for _, x := range []struct {
			t gguf.Type
			n int
		}{{t.K, a.KVHeads * a.HeadDim}, {t.V, a.KVHeads * a.ValueDim}} {
			if block, bytes := x.t.Block(); block > 0 {
				token += x.n / block * bytes
			}
		}
	}
	return token, int64(token) * int64((ctx+cellPad-1)/cellPad*cellPad)
}

// keep names a reference, whose logits the worker then keeps.
func (w *Worker) keep(r *engine.Reference) string {
	name, _ := r.Keep(func() any { w.references++; return fmt.Sprint("reference ", w.references) }).(string)
	return name // "" keeps nothing: another engine has something of its own there
}

// lane is an engine's lane as a job of the worker.
func (m *Model) lane(l engine.Lane) (Lane, error) {
	x := m.Lane(int32(gguf.TypeF16), int32(gguf.TypeF16))
	x.Patch = m.patched
	if l.Types != nil {
		x.K, x.V = int32(l.Types.K), int32(l.Types.V)
	}
	if k := l.Keys; k != nil {
		x.Keys = &Keys{Sidecar: k.Sidecar, Kind: k.Kind, Seed: k.Seed}
		p := k.Policy
		x.Keys.Anchor, x.Keys.Sink, x.Keys.Recent, x.Keys.Exceptions = p.Anchor, p.Sink, p.Recent, p.Exceptions
	}
	return x, nil
}

// Probe implements engine.Prober, so that a search goes through the same rounds on the same windows as in
// the own pass. llama.cpp has no cache in which a lane could find the reference's keys and values, so the
// windows of the block run whole, and all of what they score counts.
func (m *Model) Probe(ctx context.Context, w *ppl.Windows, b *ppl.Block, ref *engine.Reference, lanes []engine.Lane,
	o engine.Options) (*ppl.Result, error) {
	return m.Compare(ctx, w.Part(0, b.Windows), ref, lanes, o)
}

// Compare measures lanes against a reference, which may be of another model in the same worker. The
// worker keeps the reference's logits if they fit into KeptBytes, else it computes them again with every
// group of lanes.
func (m *Model) Compare(ctx context.Context, w *ppl.Windows, ref *engine.Reference, lanes []engine.Lane,
	o engine.Options) (*ppl.Result, error) {
	of, ok := ref.Engine.(*Model)
	if !ok || of.w != m.w {
		return nil, fmt.Errorf("llama.cpp compares with a model in the same worker, not with "+
			"%s", ref.Engine.Identity().Engine)
	}
	base, err := of.lane(ref.Lane)
	if err != nil {
		return nil, err
	}
	edited := m
	if slices.ContainsFunc(lanes, func(l engine.Lane) bool { return l.Edits != nil }) {
		if edited, err = m.editable(ctx); err != nil {
			return nil, err
		}
	}
	names, forget, err := edited.patches(ctx, lanes)
	defer forget()
	if err != nil {
		return nil, err
	}
	out, group := &ppl.Result{}, MaxLanes(m.Facts.Vocab)-1
	for at := 0; at < len(lanes); at += group {
		part := lanes[at:min(len(lanes), at+group)]
		job := Measure{Lanes: []Lane{base}, Threads: m.place.Threads, Base: m.w.keep(ref)}
		for i, l := range part {
			of, what := m, l
			if l.Edits != nil {
				of = edited
			}
			if l.Again != nil {
				if of, ok = l.Again.Engine.(*Model); !ok || of.w != m.w {
					return nil, fmt.Errorf("llama.cpp compares with a model in the same worker")
				}
				what = l.Again.Lane
			}
			x, err := of.lane(what)
			if err != nil {
				return nil, err
			}
			if name := names[at+i]; name != "" {
				if m.patched != "" {
					return nil, fmt.Errorf("edits of weights that are edited already")
				}
				x.Patch = name
			}
			job.Lanes = append(job.Lanes, x)
		}
		scores, took, err := m.w.Measure(ctx, w, job, func(done, total int) {
			if o.Run != nil {
				o.Run(at*total/len(job.Lanes)+done, total*(len(lanes)+(len(lanes)+group-1)/group)/len(job.Lanes))
			}
		})
		if err != nil {
			return nil, err
		}
		for i, l := range slices.Concat([]engine.Lane{ref.Lane}, part) {
			if l.Keys == nil && l.Types != nil {
				m.sizes[sizeKey{l.Types.K, l.Types.V, w.Ctx}] = size{int(took[i].TokenBytes), took[i].CacheBytes}
			}
		}
		res, err := ppl.Combine(scores)
		if err != nil {
			return nil, err
		}
		out.Append(res)
	}
	if o.Hooks.Attention != nil || o.Hooks.FFN != nil {
		if of != m {
			return nil, fmt.Errorf("hooks on a reference of another model")
		}
		return out, m.Tap(ctx, w.Tokens, o.Hooks, nil)
	}
	return out, nil
}
