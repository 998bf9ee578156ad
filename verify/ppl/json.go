package ppl

import (
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/kvcache"
)

// PPLJSON returns what reports say about the perplexities of a result with one stream.
func PPLJSON(r *Result, w *Windows, p kvcache.Policy, kind string) *spec.PPLJSON {
	d := &r.Divergences[0]
	return &spec.PPLJSON{
		Float: r.Base.PPL, FloatErr: r.Base.Err, OneBit: r.Streams[0].PPL, OneBitErr: r.Streams[0].Err,
		Ratio: d.Ratio, RatioErr: d.RatioErr, Tokens: len(w.Targets), Ctx: w.Ctx, Chunks: len(w.Tokens),
		Sink: p.Sink, Recent: p.Recent, Anchor: p.Anchor, Code: kind,
	}
}

// KLDJSON returns what reports say about a divergence.
func KLDJSON(d *Divergence) *spec.KLDJSON {
	return &spec.KLDJSON{
		Mean: d.Mean, MeanErr: d.MeanErr, Median: d.Median, P90: d.P90, P95: d.P95, P99: d.P99, Max: d.Max,
		SameTop: d.SameTop, SameTopErr: d.SameTopErr, DeltaPMean: d.DeltaPMean, DeltaPRMS: d.DeltaPRMS,
	}
}
