package report

import (
	"fmt"
	"math"
	"sort"
	"strings"

	"github.com/phaseconv/phaseconv/spec"
)

// A verdict is what stands on top of the page.
type verdict struct {
	Headline string
	Text     string
	// Advice on stock cache types.
	Advice string
	Tiles  []tile
	// Alarm is set when a check failed.
	Alarm string
}

type tile struct{ Label, Value, Unit, Err, Note string }

// goodEnough is the KL divergence, in nats per token, under which the smaller of
// two stock cache types is preferred. It is a convention of this page.
const goodEnough = 0.05

func newVerdict(v *view) verdict {
	var out verdict
	stores := "stores its keys"
	if v.Manifest == nil {
		stores = "would store its keys"
	}
	b, p, k := v.Bytes, v.PPL, v.KLD
	switch {
	case p == nil || b == nil || k == nil:
		out.Headline = v.Name + " has not been measured yet."
		out.Text = "No held-out measurement is part of the data that this report was made from."
	case v.Whole():
		out.whole(v)
	default:
		bits := 16 * float64(b.KCode) / float64(b.KF16)
		out.Headline = fmt.Sprintf("%s %s in %s bits a number%s.", v.Name, stores, trim(fix(bits, 3)), cost(p, k))
		out.Text = fmt.Sprintf("Keys take %s instead of %s bytes per token. On %s tokens of %s, which nothing was fitted to, the prediction moves by %s nats (KLD) and the most likely token stays the same %s of the time.",
			comma(b.KCode), comma(b.KF16), comma(p.Tokens), v.Text.Name, sig(k.Mean), pct(k.SameTop, 1))
		out.Tiles = []tile{
			{Label: "Key bytes per token", Value: comma(b.KCode), Unit: "B", Note: fmt.Sprintf("%s× smaller than F16 (%s B)",
				fix(float64(b.KF16)/float64(b.KCode), 1), comma(b.KF16))},
			{Label: "Perplexity ratio", Value: fix(p.Ratio, 3), Unit: "×", Err: "± " + fix(p.RatioErr, 3),
				Note: fmt.Sprintf("%s with float keys, %s coded", fix(p.Float, 2), fix(p.OneBit, 2))},
			{Label: "KL divergence", Value: sig(k.Mean), Unit: "nats", Err: "± " + pm(k.Mean, k.MeanErr),
				Note: fmt.Sprintf("per token; median %s, 99 %% below %s", sig(k.Median), sig(k.P99))},
		}
	}
	if out.Advice = advice(v); v.Whole() {
		out.Advice = adviceWhole(v)
	}
	var failed []string
	for _, c := range v.Contract {
		if !c.OK {
			failed = append(failed, c.Check+": "+c.Detail)
		}
	}
	if len(failed) > 0 {
		out.Alarm = "Not verified. " + strings.Join(failed, "; ") + "."
	}
	return out
}

// whole is the verdict on codes of keys and values.
func (out *verdict) whole(v *view) {
	const long = 4096
	b, p, k := v.Bytes, v.PPL, v.KLD
	coded, f16 := v.wholeBytes(long)
	exact := fmt.Sprintf("the first %d tokens", p.Sink)
	if p.Recent > 0 {
		exact = fmt.Sprintf("the first %d and the last %d tokens", p.Sink, p.Recent)
	}
	out.Headline = fmt.Sprintf("The cache of %s is %s times smaller%s.", v.Name,
		fix(float64(b.KVF16)/float64(b.KVCode), 1), cost(p, k))
	out.Text = fmt.Sprintf("Keys and values take %s instead of %s bytes per token; %s stay F16, with which a cache of %s tokens is %s times smaller. On %s tokens of %s, which nothing was fitted to, the prediction moves by %s nats (KLD) and the most likely token stays the same %s of the time.",
		comma(b.KVCode), comma(b.KVF16), exact, comma(long), fix(f16/coded, 1), comma(p.Tokens),
		v.Text.Name, sig(k.Mean), pct(k.SameTop, 1))
	out.Tiles = []tile{
		{Label: "Cache bytes per token", Value: comma(b.KVCode), Unit: "B", Note: fmt.Sprintf("%s× smaller than F16 (%s B)",
			fix(float64(b.KVF16)/float64(b.KVCode), 1), comma(b.KVF16))},
		{Label: "Perplexity ratio", Value: fix(p.Ratio, 3), Unit: "×", Err: "± " + fix(p.RatioErr, 3),
			Note: fmt.Sprintf("%s with a float cache, %s coded", fix(p.Float, 2), fix(p.OneBit, 2))},
		{Label: "KL divergence", Value: sig(k.Mean), Unit: "nats", Err: "± " + pm(k.Mean, k.MeanErr),
			Note: fmt.Sprintf("per token; median %s, 99 %% below %s", sig(k.Median), sig(k.P99))},
	}
}

// adviceWhole puts the stock pair of equal quality beside codes of keys and values: of those that
// are as faithful the smallest, or, where none is, the most faithful. Pairs on the source as
// published tell what users have today; those on this file what they can have without the codes.
func adviceWhole(v *view) string {
	var rows []spec.AdviseRow
	for _, r := range worstText(v.Advise) {
		if coded(r.KType) || coded(r.VType) {
			rows = append(rows, r)
		}
	}
	if len(rows) == 0 || v.PPL == nil || v.KLD == nil {
		return "Stock cache types were not measured in this run, so nothing here says which of them is as faithful."
	}
	rows = sameContext(rows, v.PPL.Ctx)
	r, file := best(rows, v.KLD.Mean)
	what := fmt.Sprintf("%s keys and %s values of a stock runtime, with %s at context %s, take %s bytes per token and cost a KLD of %s (perplexity %s×)",
		r.KType, r.VType, file, comma(r.Ctx), comma(int64(math.Round(r.BytesPerToken))), sig(r.KLD), fix(r.PPLRatio, 3))
	own := float64(v.Bytes.KVCode)
	if r.KLD <= v.KLD.Mean {
		return fmt.Sprintf("The smallest stock pair measured here that is as faithful: %s. A coded token takes %s, %s of that.", what,
			comma(v.Bytes.KVCode), pct(own/r.BytesPerToken, 0))
	}
	return fmt.Sprintf("No stock pair measured here is as faithful; the best: %s.", what)
}

// trim drops trailing zeros of decimals.
func trim(s string) string {
	if strings.Contains(s, ".") {
		s = strings.TrimRight(strings.TrimRight(s, "0"), ".")
	}
	return s
}

// plainKLD is the divergence from which on a headline does not rest on a
// perplexity that its error hides: some predictions got better by chance, as many
// got worse, and all have changed.
const plainKLD = 0.01

// cost says in words what the keys cost.
func cost(p *spec.PPLJSON, k *spec.KLDJSON) string {
	switch {
	case !(p.Ratio > 0) || math.IsInf(p.Ratio, 0):
		return ", and no longer predicts text"
	case math.Abs(p.Ratio-1) <= 2*p.RatioErr && math.Abs(p.Ratio-1) < 0.05:
		if k.Mean >= plainKLD {
			return fmt.Sprintf(" at a KLD of %s nats, a cost that perplexity on this text does not resolve", sig(k.Mean))
		}
		return ", with no change in perplexity beyond the error of measurement"
	case p.Ratio >= 2:
		return fmt.Sprintf(" at %s times the perplexity", sig(p.Ratio))
	case p.Ratio >= 1:
		return fmt.Sprintf(" at %s %% more perplexity", trim(fix(100*(p.Ratio-1), 1)))
	}
	return fmt.Sprintf(" at %s %% less perplexity", trim(fix(100*(1-p.Ratio), 1)))
}

// coded says whether a cache type is smaller than F16.
func coded(typ string) bool {
	t := strings.ToLower(typ)
	return t != "f32" && t != "f16" && t != "bf16"
}

// sameContext keeps the rows of one context length where there are any.
func sameContext(rows []spec.AdviseRow, ctx int) []spec.AdviseRow {
	var out []spec.AdviseRow
	for _, r := range rows {
		if r.Ctx == ctx {
			out = append(out, r)
		}
	}
	if len(out) > 0 {
		return out
	}
	return rows
}

// worstText keeps, of rows that differ in the text alone, the one with the largest divergence.
func worstText(rows []spec.AdviseRow) []spec.AdviseRow {
	type key struct {
		k, v      string
		ctx       int
		converted bool
	}
	at := map[key]int{}
	var out []spec.AdviseRow
	for _, r := range rows {
		k := key{r.KType, r.VType, r.Ctx, r.Converted}
		if i, ok := at[k]; !ok {
			at[k], out = len(out), append(out, r)
		} else if r.Text != out[i].Text && r.KLD > out[i].KLD {
			out[i] = r
		}
	}
	return out
}

// advice compares the code with the stock K cache types that were measured.
func advice(v *view) string {
	const none = "Stock K cache types were not measured in this run, so nothing here says whether one of them serves better."
	var rows []spec.AdviseRow
	for _, r := range worstText(v.Advise) {
		if coded(r.KType) && !coded(r.VType) {
			rows = append(rows, r)
		}
	}
	if len(rows) == 0 {
		return none
	}
	if v.PPL == nil || v.KLD == nil || v.Bytes == nil {
		return ""
	}
	rows = sameContext(rows, v.PPL.Ctx)
	r, file := best(rows, goodEnough)
	own := float64(v.Bytes.KCode + v.Bytes.KF16)
	what := fmt.Sprintf("%s keys of a stock runtime, with %s at context %s, cost a KLD of %s (perplexity %s×) at %s bytes per token of keys and values",
		r.KType, file, comma(r.Ctx), sig(r.KLD), fix(r.PPLRatio, 3), comma(int64(math.Round(r.BytesPerToken))))
	code := fmt.Sprintf("the %s code costs %s at %s", v.Code, sig(v.KLD.Mean), comma(int64(own)))
	switch {
	case r.KLD < v.KLD.Mean && r.BytesPerToken <= own:
		return fmt.Sprintf("Better choice: %s; %s. Smaller and more faithful, so use it instead.", what, code)
	case r.KLD < v.KLD.Mean:
		return fmt.Sprintf("Better choice unless memory forbids it: %s; %s, %s times smaller (the keys alone %s times).",
			what, code,
			fix(r.BytesPerToken/own, 2), fix((r.BytesPerToken-float64(v.Bytes.KF16))/float64(v.Bytes.KCode), 1))
	}
	return fmt.Sprintf("No stock K cache type measured here is more faithful: the best, %s; %s.", what, code)
}

// best returns the row of the smallest cache whose KLD is within enough, of all rows the one of the
// least KLD where none is, and which file it measured.
func best(rows []spec.AdviseRow, enough float64) (r spec.AdviseRow, file string) {
	sort.SliceStable(rows, func(i, j int) bool {
		gi, gj := rows[i].KLD <= enough, rows[j].KLD <= enough
		switch {
		case gi != gj:
			return gi
		case gi && rows[i].BytesPerToken != rows[j].BytesPerToken:
			return rows[i].BytesPerToken < rows[j].BytesPerToken
		}
		return rows[i].KLD < rows[j].KLD
	})
	if rows[0].Converted {
		return rows[0], "this file"
	}
	return rows[0], "the source as published"
}
