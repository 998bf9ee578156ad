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

// Bands cuts the scored positions of windows into at most n bands of equal length, the last one
// shorter where they do not divide, and returns the divergence of each.
func Bands(d *Divergence, w *Windows, n int) []spec.PositionBand {
	per := w.PerWindow()
	step := (per + n - 1) / n
	var out []spec.PositionBand
	for from := 0; from < per; from += step {
		out = append(out, Band(d.KLD, w.First(), per, from, min(from+step, per)))
	}
	return out
}

// Band is the divergence of positions [from, to) of the per scored ones of each window, the first
// of which stands at position first of the window.
func Band(kld []float64, first, per, from, to int) spec.PositionBand {
	var x []float64
	for at := 0; at < len(kld); at += per {
		x = append(x, kld[at+from:at+to]...)
	}
	mean, err := MeanErr(x)
	return spec.PositionBand{From: first + from, To: first + to, Tokens: len(x), KLD: mean, KLDErr: err}
}
