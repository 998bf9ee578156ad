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
	return !slices.ContainsFunc(models, func(c *checkpoint.Checkpoint) bool {
		return c != nil &&
			c.Container != checkpoint.GGUF
	})
}

// runCaches runs a model over the windows once, with one variant per cache.
func runCaches(ctx context.Context, m *refmodel.Model, w *ppl.Windows, caches []*kvcache.LlamaCpp,
	progress func(done, total int)) ([]ppl.Positions, error) {
	var variants []*refmodel.Variant
	for _, c := range caches {
		variants = append(variants, &refmodel.Variant{Cache: c})
	}
	return ppl.Run(ctx, m, w, refmodel.Options{Progress: progress}, variants...)
}

// measureCacheTypes measures an artifact with stock cache types: against its source
// with F16 caches if that is at hand, else against itself with F16 caches.
func measureCacheTypes(ctx context.Context, model *checkpoint.Checkpoint, o Options, w *ppl.Windows) (*spec.StockJSON,
	error) {
	cache, err := kvcache.NewLlamaCpp(model.Config, *o.CacheTypes)
	if err != nil {
		return nil, err
	}
	float := func(c *checkpoint.Checkpoint) (*kvcache.LlamaCpp, error) {
		return kvcache.NewLlamaCpp(c.Config, kvcache.F16)
	}
	own, err := float(model)
	if err != nil {
		return nil, err
	}
	caches := []*kvcache.LlamaCpp{cache}
	if o.Source == nil {
		caches = append(caches, own)
	}
	m := refmodel.New(model.Config, model, o.Threads)
	m.RoundInputs = runAsTheyAre(model, o.Source)
	streams, err := runCaches(ctx, m, w, caches, o.Progress.Of("measuring stock cache types"))
	if err != nil {
		return nil, err
	}
	out := &spec.StockJSON{
		KType: kvcache.TypeName(cache.K), VType: kvcache.TypeName(cache.V), Rotation: cache.Rotation,
		RotationK: cache.RotationK(), RotationV: cache.RotationV(), RoundedInputs: m.RoundInputs,
		BytesPerToken: cache.BytesPerToken(), Base: "artifact",
	}
	if o.Source != nil {
		out.Base = "source"
		theirs, err := float(o.Source)
		if err != nil {
			return nil, err
		}
		src := refmodel.New(o.Source.Config, o.Source, o.Threads)
		src.RoundInputs = m.RoundInputs
		base, err := runCaches(ctx, src, w, []*kvcache.LlamaCpp{theirs}, o.Progress.Of("running the source with F16 caches"))
		if err != nil {
			return nil, err
		}
		streams = append(streams, base...)
	}
	res, err := ppl.Measure(ctx, w, o.Progress.Of("comparing stock cache types"), streams[1], streams[0])
	if err != nil {
		return nil, err
	}
	d := &res.Divergences[0]
	out.PPL, out.PPLErr = res.Streams[0].PPL, res.Streams[0].Err
	out.PPLRatio, out.PPLRatioErr, out.KLD = d.Ratio, d.RatioErr, ppl.KLDJSON(d)
	return out, nil
}
