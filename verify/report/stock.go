package report

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/phaseconv/phaseconv/spec"
)

// stockView is what was measured of a stock runtime's cache types, and how the weights
// were changed for them.
type stockView struct {
	Note string
	// Runtime that has these cache types: llama.cpp, mlx-lm, or both.
	Runtime string
	Rows    []stockRow
	// Chart puts loss against the bytes of the whole cache at context ChartCtx.
	Chart    pair
	ChartCtx int
	// Runs: rows say whether they run on the backend that was asked for.
	Runs bool
	// Texts: rows name what they were measured on, and pictures show the worst text.
	Texts bool
	// Of the change; Tried is empty where there was none.
	Tried  []stockTry
	Why    string
	Chosen string
	Heads  []spec.FusionHead
}

type stockRow struct {
	spec.AdviseRow
	Weights string
}

// Bytes is what keys and values of a token take.
func (r stockRow) Bytes() string { return comma(int64(math.Round(r.BytesPerToken))) }

// cache is the size of the whole cache at the row's context: as llama.cpp allocates it, or, of
// data that older programs wrote, that of its tokens alone.
func cache(r spec.AdviseRow) float64 {
	if r.CacheBytes > 0 {
		return float64(r.CacheBytes)
	}
	return r.BytesPerToken * float64(r.Ctx)
}

// Cache is the size of the whole cache in words, CacheSize in bytes.
func (r stockRow) Cache() string { return size(int64(cache(r.AdviseRow))) }

func (r stockRow) CacheSize() float64 { return cache(r.AdviseRow) }

// settled gives rows without a text that of the artifact's own measurements, and leaves the last of
// those that measure the same on the same: the conversion measured some, advise perhaps more of it.
func settled(rows []spec.AdviseRow, own string) (out []spec.AdviseRow) {
	for _, r := range rows {
		if r.Text == "" {
			r.Text = own
		}
		same := func(x spec.AdviseRow) bool {
			return x.KType == r.KType && x.VType == r.VType && x.Ctx == r.Ctx && x.Converted == r.Converted && x.Text == r.Text
		}
		if i := slices.IndexFunc(out, same); i >= 0 {
			out[i] = r
			continue
		}
		out = append(out, r)
	}
	return out
}

// noise is below every divergence that a cache type makes: a model against itself has this much
// by the order of its sums.
const noise = 1e-9

// cachePoints are the pairs measured at one context, and our code beside values in F16 where it
// was measured there: bytes of the whole cache and loss. f16 is the size with F16 caches, 0
// where that is not known.
func cachePoints(v *view) (out []qualityPoint, ctx int, f16 float64) {
	rows := worstText(v.Advise)
	if v.PPL != nil {
		rows = sameContext(rows, v.PPL.Ctx)
	}
	for _, r := range rows {
		ctx = max(ctx, r.Ctx)
	}
	rows = sameContext(rows, ctx) // the longest of several
	for _, r := range rows {
		if !coded(r.KType) && !coded(r.VType) && f16 == 0 {
			f16 = cache(r)
		}
		if !(r.KLD > noise) || !(cache(r) > 0) {
			continue
		}
		name, kind := r.KType+", "+r.VType+", as published", "published"
		if r.Converted {
			name, kind = r.KType+", "+r.VType+", this file", "stock"
		}
		out = append(out, qualityPoint{
			Name: name, Label: r.KType + "/" + r.VType, Bytes: cache(r), KLD: r.KLD, Ratio: fix(r.PPLRatio, 3), Kind: kind,
		})
	}
	if v.PPL != nil && v.PPL.Ctx == ctx && v.KLD != nil && v.Bytes != nil && v.KLD.Mean > noise {
		own, all := v.wholeBytes(ctx)
		if f16 == 0 {
			f16 = all
		}
		name, label := v.Code+" keys (this file), F16 values", v.Code+"/f16"
		if v.Whole() {
			what, left := v.coded()
			name, label = v.Code+" "+what+" (this file)", v.Code
			if left != "" {
				name, label = name+", "+left, v.Code+" "+what
			}
		}
		out = append(out, qualityPoint{
			Name: name, Label: label, Bytes: own, KLD: v.KLD.Mean,
			Ratio: fix(v.PPL.Ratio, 3), Kind: "own",
		})
	}
	return out, ctx, f16
}

type stockTry struct {
	spec.FusionTry
	Kind, Cost string
	Chosen     bool
}

// runtimes names what has the cache types of rows and of the change of weights: F16 is in all.
func runtimes(rows []spec.AdviseRow, f *spec.Fusion) string {
	var llama, mlx bool
	look := func(k, v string) {
		switch {
		case strings.Contains(k+v, "mlx"):
			mlx = true
		case k != "f16" || v != "f16":
			llama = true
		}
	}
	for _, r := range rows {
		look(r.KType, r.VType)
	}
	if f != nil {
		look(f.KType, f.VType)
	}
	switch {
	case !mlx:
		return "llama.cpp"
	case llama:
		return "llama.cpp and mlx-lm"
	}
	return "mlx-lm"
}

func newStock(v *view) *stockView {
	var f *spec.Fusion
	if v.Manifest != nil {
		f = v.Manifest.Fusion
	}
	if len(v.Advise) == 0 && f == nil {
		return nil
	}
	s := &stockView{Runtime: runtimes(v.Advise, f)}
	s.Note = "Each pair of K and V cache types of " + s.Runtime + " against the source as published with F16 caches, which tells what a user of that runtime gets today. The rows with F16 caches and this file’s weights are what the change of weights costs those who do not quantise."
	if v.Rounded {
		s.Note += " " + roundedNote
	}
	for _, r := range v.Advise {
		x := stockRow{r, "as published"}
		if r.Converted {
			x.Weights = "this file"
		}
		s.Rows, s.Runs = append(s.Rows, x), s.Runs || r.Runs != ""
		s.Texts = s.Texts || r.Text != v.Advise[0].Text
	}
	if points, ctx, f16 := cachePoints(v); len(points) > 1 {
		s.ChartCtx = ctx
		s.Chart = lossChart(points, "Loss against size of the whole cache",
			fmt.Sprintf("bytes of keys and values at a context of %s", comma(ctx)), f16)
	}
	if f == nil {
		return s
	}
	s.Chosen, s.Heads = f.Chosen, f.Heads
	s.Why = fmt.Sprintf("The weights were changed for K %s and V %s at a context of %s. Candidates were fitted to %d windows of %s and compared on %d later ones, against the unchanged model with F16 caches.",
		f.KType, f.VType, comma(f.TargetCtx), f.FitWindows, f.Text.Name, f.Text.Windows)
	if f.Refused != "" {
		s.Why += " Key biases were not shifted: " + f.Refused + "."
	}
	for _, t := range f.Tried {
		x := stockTry{FusionTry: t, Kind: "exact", Cost: missing, Chosen: t.Name == f.Chosen}
		if t.Near {
			x.Kind = "approximate"
		}
		if t.F16KLD != nil {
			x.Cost = sig(*t.F16KLD)
		}
		s.Tried = append(s.Tried, x)
	}
	return s
}

// roundedNote tells what stands under every divergence of a quantised file.
const roundedNote = "Inputs of matrix products are rounded as llama.cpp’s CPU backend does for the types of the file. Where its matrices are quantised, whatever moves a number draws these errors anew, so even a harmless change shows as a small divergence."
