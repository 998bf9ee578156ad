package verify

import (
	"context"
	"slices"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/kvcache"
	"github.com/phaseconv/phaseconv/verify/ppl"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// runAsTheyAre says whether a stock runtime takes all of the models (nil for none) as
// they are, so that the types of their matrices are those it computes with.
func runAsTheyAre(models ...*checkpoint.Checkpoint) bool {
	return !slices.ContainsFunc(models, func(c *checkpoint.Checkpoint) bool { return c != nil && c.Container != checkpoint.GGUF })
}

// runStock runs a model over the windows once, with one lane per cache.
func runStock(ctx context.Context, m *refmodel.Model, w *ppl.Windows, caches []*kvcache.Stock, progress func(done, total int)) ([]ppl.Stream, error) {
	var lanes []*refmodel.Lane
	for _, c := range caches {
		lanes = append(lanes, &refmodel.Lane{Cache: c})
	}
	if err := m.Run(ctx, w.Tokens, lanes, refmodel.Options{Progress: progress}); err != nil {
		return nil, err
	}
	var out []ppl.Stream
	for _, l := range lanes {
		s, err := ppl.Scored(m, w, l)
		if err != nil {
			return nil, err
		}
		l.Hidden = nil
		out = append(out, s)
	}
	return out, nil
}

// measureStock measures an artifact with stock cache types: against its source
// with F16 caches if that is at hand, else against itself with F16 caches.
func measureStock(ctx context.Context, model *checkpoint.Checkpoint, o Options, w *ppl.Windows) (*spec.StockJSON, error) {
	cache, err := kvcache.NewStock(model.Config, o.Stock.K, o.Stock.V, o.Stock.Rotation)
	if err != nil {
		return nil, err
	}
	float := func(c *checkpoint.Checkpoint) (*kvcache.Stock, error) {
		return kvcache.NewStock(c.Config, kvcache.F16.K, kvcache.F16.V, true)
	}
	own, err := float(model)
	if err != nil {
		return nil, err
	}
	caches := []*kvcache.Stock{cache}
	if o.Source == nil {
		caches = append(caches, own)
	}
	m := refmodel.New(model.Config, model, o.Threads)
	m.RoundInputs = runAsTheyAre(model, o.Source)
	streams, err := runStock(ctx, m, w, caches, o.Progress.Of("measuring stock cache types"))
	if err != nil {
		return nil, err
	}
	out := &spec.StockJSON{
		KType: kvcache.StockName(cache.K), VType: kvcache.StockName(cache.V), Rotation: cache.Rotation,
		RotationK: cache.RotationK(), RotationV: cache.RotationV(), RoundedInputs: m.RoundInputs, BytesPerToken: cache.BytesPerToken(), Base: "artifact",
	}
	if o.Source != nil {
		out.Base = "source"
		theirs, err := float(o.Source)
		if err != nil {
			return nil, err
		}
		src := refmodel.New(o.Source.Config, o.Source, o.Threads)
		src.RoundInputs = m.RoundInputs
		base, err := runStock(ctx, src, w, []*kvcache.Stock{theirs}, o.Progress.Of("running the source with F16 caches"))
		if err != nil {
			return nil, err
		}
		streams = append(streams, base...)
	}
	res, err := ppl.Measure(ctx, w, streams[1], streams[0])
	if err != nil {
		return nil, err
	}
	d := &res.Divergences[0]
	out.PPL, out.PPLErr = res.Streams[0].PPL, res.Streams[0].Err
	out.PPLRatio, out.PPLRatioErr, out.KLD = d.Ratio, d.RatioErr, ppl.KLDJSON(d)
	return out, nil
}
