package verify

import (
	"context"
	"slices"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/engine"
	"github.com/phaseconv/phaseconv/verify/kvcache"
	"github.com/phaseconv/phaseconv/verify/ppl"
)

// runAsTheyAre says whether a stock runtime takes all of the models (nil for none) as
// they are, so that the types of their matrices are those it computes with.
func runAsTheyAre(models ...*checkpoint.Checkpoint) bool {
	return !slices.ContainsFunc(models, func(c *checkpoint.Checkpoint) bool {
		return c != nil &&
			c.Container != checkpoint.GGUF
	})
}

// measureCacheTypes measures an artifact with stock cache types: against its source
// with F16 caches if that is at hand, else against itself with F16 caches.
func measureCacheTypes(ctx context.Context, model *checkpoint.Checkpoint, o Options, w *ppl.Windows) (*spec.StockJSON,
	error) {
	cache, err := kvcache.NewLlamaCpp(model.Config, *o.CacheTypes)
	if err != nil {
		return nil, err
	}
	engines, round := o.Engines, false
	if engine.IsOwn(engines) {
		round = runAsTheyAre(model, o.Source)
		engines = engine.OwnEngines{Threads: o.Threads, RoundInputs: round, HalfSums: true}
	}
	e, err := engines.Open(ctx, model)
	if err != nil {
		return nil, err
	}
	out := &spec.StockJSON{
		KType: kvcache.TypeName(cache.K), VType: kvcache.TypeName(cache.V), Rotation: cache.Rotation,
		RotationK: cache.RotationK(), RotationV: cache.RotationV(), RoundedInputs: round,
		BytesPerToken: cache.BytesPerToken(), Base: "artifact",
	}
	ref := &engine.Reference{Engine: e, Lane: engine.Stock(kvcache.F16)}
	if o.Source != nil {
		out.Base = "source"
		if ref.Engine, err = engines.Open(ctx, o.Source); err != nil {
			return nil, err
		}
	}
	res, err := e.Compare(ctx, w, ref, []engine.Lane{engine.Stock(*o.CacheTypes)}, engine.Options{
		Run: o.Progress.Of("measuring stock cache types"), Compare: o.Progress.Of("comparing stock cache types")})
	if err != nil {
		return nil, err
	}
	d := &res.Divergences[0]
	out.PPL, out.PPLErr = res.Streams[0].PPL, res.Streams[0].Err
	out.PPLRatio, out.PPLRatioErr, out.KLD = d.Ratio, d.RatioErr, ppl.KLDJSON(d)
	return out, nil
}
