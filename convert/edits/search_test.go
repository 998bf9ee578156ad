package edits

import (
	"context"
	"encoding/json"
	"math"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/internal/tiny"
	"github.com/phaseconv/phaseconv/rotations/transform"
	"github.com/phaseconv/phaseconv/verify/kvcache"
	"github.com/phaseconv/phaseconv/verify/ppl"
	"github.com/phaseconv/phaseconv/verify/texts"
)

// biased opens a random model whose keys are nearly all bias in their slowest
// pairs (size 0: as it is), as some published models have them.
func biased(t *testing.T, headDim int, size float32) *checkpoint.Checkpoint {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "model")
	tiny.New(t, "llama", tiny.Options{Seed: 5, HeadDim: headDim, Bias: true, Edit: func(name string, x []float32) {
		if !strings.HasSuffix(name, "k_proj.bias") {
			return
		}
		for i := range x {
			if p := i % (headDim / 2); size > 0 && p >= headDim*13/32 { // the last pairs of the half layout are the slowest
				x[i] += size
			}
		}
	}}).HF(t, dir)
	c, err := checkpoint.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func chooseOptions() Options {
	return Options{
		Cache: kvcache.CacheTypes{K: gguf.TypeQ4_0, V: gguf.TypeF16, Rotation: true}, Ctx: 32,
		Text: ppl.Text{Name: "fit", Data: texts.Calibration[:8000]}, Approximate: true, Seed: 1, Threads: 2, Tokens: 512,
	}
}

// TestChoose: a constant that swallows 4-bit keys is taken out, because the
// divergence falls by more than ten times what that costs; without leave for
// near-identities it stays, and the model is the same function.
func TestChoose(t *testing.T) {
	c := biased(t, 32, 60)
	near, err := Search(context.Background(), c, chooseOptions())
	if err != nil {
		t.Fatal(err)
	}
	r := near.Report
	find := func(name string) int {
		for i, x := range r.Tried {
			if x.Name == name {
				return i
			}
		}
		t.Fatalf("%q was not tried: %+v", name, r.Tried)
		return 0
	}
	chosen := r.Tried[find(r.Chosen)]
	if !chosen.Near || chosen.F16KLD == nil || !near.Changed() {
		t.Fatalf("chosen is %+v of %+v", chosen, r.Tried)
	}
	for _, x := range r.Tried {
		if !x.Near && x.KLD-chosen.KLD < approximateGain**chosen.F16KLD {
			t.Errorf("%s has %.3g, the choice %.3g at a cost of %.3g", x.Name, x.KLD, chosen.KLD, *chosen.F16KLD)
		}
	}
	if len(r.Heads) != len(c.Config.Layers)*c.Config.Layers[0].KVHeads || r.Heads[0].Removed < 0.5 {
		t.Errorf("removed %+v", r.Heads)
	}
	// What the variants promised is what the edited weights do.
	view := checkpoint.NewEdited(c, nil)
	for l, heads := range near.Edits {
		if err := transform.FoldKeys(view, l, heads); err != nil {
			t.Fatal(err)
		}
	}
	if e := view.Edits["blk.0.attn_k.bias"]; e == nil || len(e.Shift) == 0 {
		t.Error("the key bias is not shifted")
	}

	o := chooseOptions()
	o.Approximate = false
	exact, err := Search(context.Background(), c, o)
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range exact.Report.Tried {
		if x.Near {
			t.Errorf("%s was tried", x.Name)
		}
	}
	o.Approximate, o.NoKeyBias = true, "no room for a bias"
	refused, err := Search(context.Background(), c, o)
	if err != nil || refused.Report.Refused != o.NoKeyBias {
		t.Fatalf("refused: %+v, %v", refused, err)
	}
	for _, heads := range refused.Edits {
		for _, e := range heads { // mixes need no bias
			if e.Shift != nil {
				t.Errorf("a removal where there is no room for a bias: %+v", refused.Report)
			}
		}
	}
}

// TestChooseNothing: with F16 caches there is nothing to gain, so nothing is changed.
func TestChooseNothing(t *testing.T) {
	o := chooseOptions()
	o.Cache.K = gguf.TypeF16
	got, err := Search(context.Background(), biased(t, 32, 0), o)
	if err != nil {
		t.Fatal(err)
	}
	if got.Changed() {
		t.Errorf("chosen is %s of %+v", got.Report.Chosen, got.Report.Tried)
	}
}

// lopsided opens the GGUF file of a random model, matrices in typ, of whose keys or
// values, as the name says, an eighth is by a factor larger.
func lopsided(t *testing.T, typ, matrix string, factor float32) *checkpoint.Checkpoint {
	t.Helper()
	path := filepath.Join(t.TempDir(), "model.gguf")
	tiny.New(t, "llama", tiny.Options{Seed: 5, HeadDim: 64, DType: typ, Edit: func(name string, x []float32) {
		if !strings.HasSuffix(name, matrix+".weight") {
			return
		}
		for i := range x {
			if i*8/len(x)%4 == 0 { // in each of the two heads
				x[i] *= factor
			}
		}
	}}).GGUF(t, path)
	c, err := checkpoint.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// TestChooseValues: values of which a few numbers are large lose the small ones in
// blocks; mixed for their type they lose less, and the function stays as it is.
func TestChooseValues(t *testing.T) {
	c := lopsided(t, "F32", "v_proj", 8)
	o := chooseOptions()
	o.Cache, o.Approximate = kvcache.CacheTypes{K: gguf.TypeF16, V: gguf.TypeQ4_0, Rotation: false}, false
	got, err := Search(context.Background(), c, o)
	if err != nil {
		t.Fatal(err)
	}
	tried := got.Report.Tried
	if last := tried[len(tried)-1]; got.Report.Chosen != valuesTransformed || last.Name != valuesTransformed ||
		last.Near || !(last.KLD < 0.8*tried[0].KLD) {
		t.Fatalf("chosen is %q of %+v", got.Report.Chosen, tried)
	}
	view := checkpoint.NewEdited(c, nil)
	for l, heads := range got.Edits {
		if err := transform.FoldKeys(view, l, heads); err != nil {
			t.Fatal(err)
		}
	}
	if view.Edits["blk.0.attn_v.weight"] == nil || view.Edits["blk.0.attn_output.weight"] == nil ||
		view.Edits["blk.0.attn_k.weight"] != nil {
		t.Errorf("edited are %v", view.Edits.Names())
	}
}

// TestChooseQuantized: where matrices are quantised, a change of digits that gains less
// than half is left alone, and powers of two are taken instead.
func TestChooseQuantized(t *testing.T) {
	o := chooseOptions()
	o.Approximate, o.Tokens, o.Text.Data = false, 4096, texts.Calibration[:40000]
	for typ, digits := range map[string]bool{"F32": true, "Q8_0": false} {
		got, err := Search(context.Background(), lopsided(t, typ, "k_proj", 11), o)
		if err != nil {
			t.Fatal(err)
		}
		tried, chosen := got.Report.Tried, got.Report.Chosen
		if last := tried[len(tried)-1]; chosen == tried[0].Name || digits == (chosen == tried[1].Name) ||
			!(last.KLD < 0.9*tried[1].KLD) || !(tried[1].KLD < tried[0].KLD) {
			t.Errorf("%s: chosen is %q of %+v", typ, chosen, tried)
		}
	}
}

// TestBetter: a few tokens with large divergences hide a difference that all others
// show, but not from a comparison of roots; chance is not mistaken for a difference,
// and neither is a lower divergence of most tokens with a higher mean.
func TestBetter(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	draw := func(scale float64) ppl.Divergence {
		var d ppl.Divergence
		for i := range 2000 {
			x := scale * math.Exp(2*r.NormFloat64()) // heavy tails, as divergences have
			if i == 0 {
				x = -1e-9 // 0, rounded
			}
			d.KLD = append(d.KLD, x)
			d.Mean += x / 2000
		}
		return d
	}
	a, b, c := draw(0.01), draw(0.01), draw(0.007)
	if ppl.Better(a, b, 3) || ppl.Better(b, a, 3) {
		t.Error("equal distributions differ")
	}
	if !ppl.Better(c, a, 3) || ppl.Better(a, c, 3) {
		t.Error("a difference of 30 % is not seen")
	}
	worst := draw(0.007)
	worst.KLD[7] += 2000 * a.Mean
	worst.Mean += a.Mean
	if ppl.Better(worst, a, 1) {
		t.Error("a higher mean is better")
	}
}

// TestBackOff: what costs too much with F16 caches is tried with larger drift weights and
// on the heads where it promises most, and the first that pays is taken.
func TestBackOff(t *testing.T) {
	ctx := context.Background()
	start := func(typ gguf.Type, size float32) *search {
		o := chooseOptions()
		o.Cache.K = typ
		h, err := newSearch(ctx, biased(t, 64, size), o)
		if err != nil {
			t.Fatal(err)
		}
		row := h.target.KeyRow()
		if err := h.try(ctx, append(Candidates(row), Shift(2, row))...); err != nil {
			t.Fatal(err)
		}
		return h
	}
	// Against the balance that is tuned to q8_0 nothing pays: all is tried.
	h := start(gguf.TypeQ8_0, 20)
	tuned, removal := 3, 4
	if got, err := h.relax(ctx, tuned, removal); err != nil || got != tuned {
		t.Fatalf("taken is candidate %d: %v", got, err)
	}
	var names []string
	for i, c := range h.candidates[removal+1:] {
		if i += removal + 1; h.costOf(i) == nil || !(*h.costOf(i) > 0) {
			t.Errorf("what %s costs was not measured", c.Name)
		}
		names = append(names, c.Name)
	}
	all := h.candidates[removal].Name
	want := []string{strings.Replace(all, "penalty 2)", "penalty 8)", 1), strings.Replace(all, "penalty 2)", "penalty 32)",
		1), all + ", half of the heads", all + ", a quarter of the heads"}
	if !slices.Equal(names, want) {
		t.Errorf("tried %q, expected %q", names, want)
	}
	changed := func(i int) (n int) {
		for l, heads := range h.edits[i] {
			for k, e := range heads {
				if e.Shift != nil {
					n++
				} else if e.Pairs != h.edits[tuned][l][k].Pairs {
					t.Errorf("layer %d, head %d has neither the one change nor the other", l, k)
				}
			}
		}
		return n
	}
	n := len(h.candidates)
	if half, quarter := changed(n-2), changed(n-1); half != 2 || quarter != 1 {
		t.Errorf("%d and %d of 4 heads are changed", half, quarter)
	}
	// Against nothing at all a larger weight pays, and the search ends.
	h = start(gguf.TypeQ4_0, 60)
	if got, err := h.relax(ctx, 0, removal); err != nil || got != removal+1 || h.candidates[got].Name != want[0] {
		t.Errorf("taken is candidate %d of %d: %v", got, len(h.candidates), err)
	}
}

// TestWorthwhile: heads come in the order of what they promise for their price.
func TestWorthwhile(t *testing.T) {
	head := func(gain, cost float64) transform.KeyEdit {
		return transform.KeyEdit{Shift: &transform.BiasShift{Before: 1 + gain/2, After: 1, Cost: cost},
			Transform: &transform.KeyTransform{Before: 1, After: 1 - gain/2}}
	}
	got := worthwhile(transform.ModelEdits{{head(1, 0.5), head(3, 0.5), {}}, {head(1, 0.1), head(-1, 0.1), head(2, 0)}})
	want := [][2]int{{1, 2}, {1, 0}, {0, 1}, {0, 0}, {0, 2}, {1, 1}}
	if !slices.Equal(got, want) {
		t.Errorf("order %v, expected %v", got, want)
	}
}

// TestChooseThreads: the choice does not depend on the number of threads.
func TestChooseThreads(t *testing.T) {
	c := biased(t, 32, 60)
	var want string
	for _, n := range []int{1, 3} {
		o := chooseOptions()
		o.Threads = n
		got, err := Search(context.Background(), c, o)
		if err != nil {
			t.Fatal(err)
		}
		b, err := json.Marshal(got)
		if err != nil {
			t.Fatal(err)
		}
		if want == "" {
			want = string(b)
		} else if string(b) != want {
			t.Errorf("%d threads choose otherwise", n)
		}
	}
}

// TestChooseRefuses: texts that are too short and types that do not fit.
func TestChooseRefuses(t *testing.T) {
	c := biased(t, 32, 0)
	o := chooseOptions()
	o.Text.Data = o.Text.Data[:500]
	if _, err := Search(context.Background(), c, o); err == nil || !strings.Contains(err.Error(), "longer text") {
		t.Errorf("short text: %v", err)
	}
	o = chooseOptions()
	o.Cache.K = gguf.TypeQ1_0
	if _, err := Search(context.Background(), c, o); err == nil || !strings.Contains(err.Error(), "head_dim 32") {
		t.Errorf("q1_0: %v", err)
	}
}
