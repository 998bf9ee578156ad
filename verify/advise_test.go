package verify

import (
	"context"
	"encoding/json"
	"math"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/internal/tiny"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/audit"
	"github.com/phaseconv/phaseconv/verify/backends"
	"github.com/phaseconv/phaseconv/verify/engine"
	"github.com/phaseconv/phaseconv/verify/kvcache"
	"github.com/phaseconv/phaseconv/verify/ppl"
	"github.com/phaseconv/phaseconv/verify/texts"
)

// tinyModel has heads of 64, so that blocks of 32 and the rotation apply.
func tinyModel(t testing.TB, headDim int, seed uint64) *checkpoint.Checkpoint {
	t.Helper()
	path := filepath.Join(t.TempDir(), "m.gguf")
	tiny.GGUF(t, path, "llama", tiny.Options{HeadDim: headDim, Heads: 2, KVHeads: 1, Hidden: 2 * headDim, Seed: seed})
	c, err := checkpoint.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func adviseOptions() AdviseOptions {
	return AdviseOptions{
		Texts: []ppl.Text{{Name: "text", Data: texts.Evaluation[:4000]}}, Ctx: []int{64, 32}, Chunks: 4, MaxKLD: 1,
		Rotation: true,
		Types:    []gguf.Type{gguf.TypeQ8_0, gguf.TypeQ4_0},
	}
}

func TestAdvise(t *testing.T) {
	c := tinyModel(t, 64, 1)
	o := adviseOptions()
	o.Threads = 1
	res, err := Advise(context.Background(), c, nil, o)
	if err != nil {
		t.Fatal(err)
	}
	find := func(k, v string, ctx int) *spec.AdviseRow {
		for i, r := range res.Rows {
			if r.KType == k && r.VType == v && r.Ctx == ctx {
				return &res.Rows[i]
			}
		}
		t.Fatalf("no row %s/%s at %d in %+v", k, v, ctx, res.Rows)
		return nil
	}
	for _, ctx := range o.Ctx {
		// The base against itself.
		if r := find("f16", "f16", ctx); math.Abs(r.KLD) > 1e-12 || r.PPLRatio != 1 || r.SameTop != 1 ||
			r.BytesPerToken != 2*2*64*2 {
			t.Errorf("F16 row: %+v", r)
		}
		// Each type alone costs something, and the coarser one more.
		for _, x := range [][4]string{{"q8_0", "f16", "q4_0", "f16"}, {"f16", "q8_0", "f16", "q4_0"}} {
			fine, coarse := find(x[0], x[1], ctx), find(x[2], x[3], ctx)
			if !(0 < fine.KLD && fine.KLD < coarse.KLD && coarse.BytesPerToken < fine.BytesPerToken && coarse.KLDErr > 0) {
				t.Errorf("%v: %+v, %+v", x, fine, coarse)
			}
		}
	}
	if len(res.Choices) != 1 {
		t.Fatal(res.Choices)
	}
	// With a gate that all pass the smallest pair is found.
	want := spec.AdviseChoice{KType: "q4_0", VType: "q4_0", BytesPerToken: 2 * 2 * 36,
		Flags: "--cache-type-k q4_0 --cache-type-v q4_0 --flash-attn on",
		Worst: max(find("q4_0", "q4_0", 32).KLD, find("q4_0", "q4_0", 64).KLD), Ctx: 64, CacheBytes: 256 * 2 * 2 * 36,
		Lines: res.Choices[0].Lines}
	if !reflect.DeepEqual(res.Choices[0], want) {
		t.Errorf("chose %+v, want %+v", res.Choices[0], want)
	}
	if l := want.Lines; len(l) != 5 || l[0].Text != "llama-server -m MODEL.gguf -c 64 --parallel 1 "+want.Flags {
		t.Errorf("lines %+v", l)
	}
	// Without a backend no row says whether it runs, and all are in question.
	for _, r := range res.Rows {
		if r.Runs != "" || r.Reason != "" || res.Backend != "" || res.Facts != "" {
			t.Errorf("without a backend: %+v", r)
		}
		// The bands of positions are a partition of what the mean is of.
		var sum float64
		tokens := 0
		for i, b := range r.Positions {
			if b.From != r.Ctx/2 && i == 0 || i > 0 && b.From != r.Positions[i-1].To {
				t.Errorf("bands %+v", r.Positions)
			}
			sum += b.KLD * float64(b.Tokens)
			tokens += b.Tokens
		}
		if n := len(r.Positions); n < 5 || r.Positions[n-1].To != r.Ctx-1 || math.Abs(sum/float64(tokens)-r.KLD) > 1e-12 {
			t.Errorf("K %s, V %s at %d: bands %+v, mean %v", r.KType, r.VType, r.Ctx, r.Positions, r.KLD)
		}
	}
	if len(res.Texts) != 2 || res.Texts[0].Context != 32 || res.Texts[0].Windows != 4 || res.Texts[1].Windows != 2 {
		t.Errorf("texts %+v", res.Texts)
	}

	t.Run("threads", func(t *testing.T) {
		o := o
		o.Threads = 3
		again, err := Advise(context.Background(), c, nil, o)
		if err != nil {
			t.Fatal(err)
		}
		a, _ := json.Marshal(res)
		b, _ := json.Marshal(again)
		if string(a) != string(b) {
			t.Errorf("another number of threads gave\n%s\nnot\n%s", b, a)
		}
	})
	t.Run("gate", func(t *testing.T) {
		o := o
		// Between V and K in q4_0: V alone passes.
		k, v := max(find("q4_0", "f16", 32).KLD, find("q4_0", "f16", 64).KLD), max(find("f16", "q4_0", 32).KLD,
			find("f16", "q4_0", 64).KLD)
		q8 := max(find("q8_0", "f16", 32).KLD, find("q8_0", "f16", 64).KLD)
		if k == v {
			t.Fatal("K and V cost the same")
		}
		o.MaxKLD = min(k, v) * 1.01
		res, err := Advise(context.Background(), c, nil, o)
		if err != nil {
			t.Fatal(err)
		}
		c := res.Choices[0]
		if c.Worst > o.MaxKLD || c.KType == "q4_0" && c.VType == "q4_0" || q8 < o.MaxKLD/100 && (c.KType != "q4_0" &&
			c.VType != "q4_0") {
			t.Errorf("gate %g: chose %+v", o.MaxKLD, c)
		}
		for _, r := range res.Rows {
			if r.BytesPerToken < c.BytesPerToken && r.KLD <= o.MaxKLD {
				other := slices.IndexFunc(res.Rows, func(x spec.AdviseRow) bool {
					return x.KType == r.KType && x.VType == r.VType && x.KLD > o.MaxKLD
				})
				if other < 0 {
					t.Errorf("chose %+v, but %+v is smaller and passes", c, r)
				}
			}
		}
		o.MaxKLD = 0
		if res, err = Advise(context.Background(), tinyModel(t, 64, 1), nil, o); err != nil {
			t.Fatal(err)
		}
		if len(res.Choices) != 1 || res.Choices[0].KType != "f16" ||
			res.Choices[0].Flags != "--cache-type-k f16 --cache-type-v f16" {
			t.Errorf("gate 0: %+v", res.Choices)
		}
	})
	t.Run("backends", func(t *testing.T) {
		// All pairs pass; what is chosen is the smallest that runs there.
		o := o
		o.Ctx, o.Types = []int{32}, []gguf.Type{gguf.TypeQ8_0, gguf.TypeQ4_1, gguf.TypeIQ4_NL}
		for _, x := range []struct {
			where                  backends.Setup
			k, v, slow, no, reason string
		}{
			{backends.Setup{Backend: backends.CPU}, "iq4_nl", "iq4_nl", "", "", ""},
			{backends.Setup{Backend: backends.Metal}, "q4_1", "q4_1", "q8_0/f16", "iq4_nl/iq4_nl", "flash attention"},
			{backends.Setup{Backend: backends.CUDA}, "q8_0", "q8_0", "q4_1/q4_1", "iq4_nl/iq4_nl", "flash attention"},
			{backends.Setup{Backend: backends.Any}, "q8_0", "q8_0", "q4_1/q4_1", "f16/q8_0", "Metal"},
			{backends.Setup{Backend: backends.Vulkan, TensorSplit: true}, "f16", "f16", "", "q8_0/q8_0", "tensor"},
		} {
			o.Where = x.where
			got, err := Advise(context.Background(), c, nil, o)
			if err != nil {
				t.Fatal(err)
			}
			if len(got.Choices) != 1 || got.Choices[0].KType != x.k || got.Choices[0].VType != x.v ||
				got.Backend != string(x.where.Backend) || got.Facts != backends.Source {
				t.Errorf("%+v: chose %+v", x.where, got.Choices)
			}
			for _, r := range got.Rows {
				pair := r.KType + "/" + r.VType
				want := map[string]string{x.slow: "slow", x.no: "no", x.k + "/" + x.v: "yes"}[pair]
				if want != "" && (r.Runs != want || pair == x.no && !strings.Contains(r.Reason, x.reason)) {
					t.Errorf("%+v: %s runs %q (%s), want %s", x.where, pair, r.Runs, r.Reason, want)
				}
			}
		}
		// Pairs of different types are measured only where they run.
		mixed := func(b backends.Backend) int {
			o := o
			o.Where, o.MaxKLD = backends.Setup{Backend: b}, find("q4_0", "q4_0", 32).KLD/2
			o.Types = []gguf.Type{gguf.TypeQ8_0, gguf.TypeQ4_0}
			got, err := Advise(context.Background(), c, nil, o)
			if err != nil {
				t.Fatal(err)
			}
			n := 0
			for _, r := range got.Rows {
				if r.KType != r.VType && r.KType != "f16" && r.VType != "f16" {
					n++
				}
			}
			return n
		}
		if cpu, all := mixed(backends.CPU), mixed(backends.Any); cpu == 0 || all != 0 {
			t.Errorf("mixed pairs measured: %d for the CPU, %d for all backends", cpu, all)
		}
	})
	t.Run("improve", func(t *testing.T) {
		o := o
		o.Ctx, o.Where, o.Source = []int{32}, backends.Setup{Backend: backends.Any}, "a model"
		q8, q4 := find("q8_0", "q8_0", 32).KLD, find("q4_0", "q4_0", 32).KLD
		o.MaxKLD = (q8 + q4) / 2
		got, err := Advise(context.Background(), c, nil, o)
		if err != nil {
			t.Fatal(err)
		}
		g, err := audit.ReadGains(context.Background(), c, 32)
		if err != nil || g.Removable == nil {
			t.Fatalf("%+v, %v", g, err)
		}
		want := &spec.AdviseImprove{KType: "q4_0", VType: "q4_0", Worst: q4, Saved: 256 * 2 * 2 * (68 - 36),
			Command: "phaseconv convert 'a model' -o OUT --cache-type-k q4_0 --cache-type-v q4_0 --target-ctx 32"}
		expect(want, g)
		if got.Choices[0].KType != "q8_0" || !reflect.DeepEqual(got.Improve, want) {
			t.Errorf("chose %+v, improve %+v, want %+v", got.Choices, got.Improve, want)
		}
		// Nothing to win: the smallest passes, or the model is converted already.
		o.MaxKLD = 2 * q4
		if got, err = Advise(context.Background(), c, nil, o); err != nil || got.Improve != nil {
			t.Errorf("%+v, %v", got.Improve, err)
		}
		o.MaxKLD = 0
		if got, err = Advise(context.Background(), nil, c, o); err != nil || got.Improve != nil {
			t.Errorf("%+v, %v", got.Improve, err)
		}
	})
	t.Run("texts", func(t *testing.T) {
		// Each text as if it were alone, and a gate that the worse one decides.
		o := o
		o.Ctx, o.Types = []int{32}, []gguf.Type{gguf.TypeQ4_0}
		o.Texts = append(o.Texts, ppl.Text{Name: "other", Data: texts.Calibration[:4000]})
		both, err := Advise(context.Background(), c, nil, o)
		if err != nil {
			t.Fatal(err)
		}
		worst := 0.0
		for i, text := range o.Texts {
			one := o
			one.Texts = []ppl.Text{text}
			want, err := Advise(context.Background(), c, nil, one)
			if err != nil {
				t.Fatal(err)
			}
			var got []spec.AdviseRow
			for _, r := range both.Rows {
				if r.Text == text.Name {
					r.Text = ""
					got = append(got, r)
				}
			}
			if !reflect.DeepEqual(got, want.Rows) || !reflect.DeepEqual(both.Texts[i], want.Texts[0]) ||
				both.BasePPL[i] != want.BasePPL[0] {
				t.Errorf("%s: %+v, alone %+v", text.Name, got, want.Rows)
			}
			worst = max(worst, want.Choices[0].Worst)
		}
		if c := both.Choices[0]; len(both.Rows) != 8 || c.KType != "q4_0" || c.VType != "q4_0" || c.Worst != worst {
			t.Errorf("chose %+v, worst %v", c, worst)
		}
	})
	t.Run("passes", func(t *testing.T) {
		// Where hidden states would take too much, pairs are run one by one, with the same result.
		own := engine.NewOwn(c, 1)
		own.MaxHidden, own.Model.RoundInputs = 1, true
		a := &adviser{o: o, worst: map[adviseKey]float64{}, models: []adviseModel{{Engine: own}}}
		if err := a.checkTypes(); err != nil {
			t.Fatal(err)
		}
		w, err := ppl.Tokenize(t.Context(), c, o.Texts[0], 32, 4)
		if err != nil {
			t.Fatal(err)
		}
		a.texts = []adviseText{{"text", w}}
		a.base = []*engine.Reference{{Engine: own, Lane: engine.Stock(kvcache.F16)}}
		if err := a.search(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, r := range a.rows {
			if !reflect.DeepEqual(r, *find(r.KType, r.VType, 32)) {
				t.Errorf("alone %+v, with others %+v", r, *find(r.KType, r.VType, 32))
			}
		}
	})
	t.Run("pairs", func(t *testing.T) {
		o := o
		o.Pairs = []kvcache.CacheTypes{{K: gguf.TypeQ4_0, V: gguf.TypeQ4_0}, {K: gguf.TypeQ8_0, V: gguf.TypeF16}}
		only, err := Advise(context.Background(), c, nil, o)
		if err != nil {
			t.Fatal(err)
		}
		if len(only.Rows) != 4 {
			t.Fatal(only.Rows)
		}
		for _, r := range only.Rows {
			if !reflect.DeepEqual(r, *find(r.KType, r.VType, r.Ctx)) {
				t.Errorf("alone %+v, in the search %+v", r, *find(r.KType, r.VType, r.Ctx))
			}
		}
		// Each option that changes the arithmetic changes a result.
		turned, halved := o, o
		turned.Rotation, halved.HalfSums = false, true
		for i, x := range []AdviseOptions{turned, halved} {
			r, err := Advise(context.Background(), c, nil, x)
			if err != nil {
				t.Fatal(err)
			}
			if reflect.DeepEqual(r.Rows, only.Rows) {
				t.Errorf("option %d changes nothing", i)
			}
		}
	})
	t.Run("inputs", func(t *testing.T) {
		// Of quantised GGUF files alone the inputs of products are rounded, unless told otherwise.
		dir := t.TempDir()
		options := tiny.Options{HeadDim: 64, Seed: 1, DType: "Q8_0"}
		tiny.GGUF(t, filepath.Join(dir, "m.gguf"), "llama", options)
		options.DType = "F32"
		tiny.HF(t, filepath.Join(dir, "hf"), "llama", options)
		file, err := checkpoint.Open(filepath.Join(dir, "m.gguf"))
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		folder, err := checkpoint.Open(filepath.Join(dir, "hf"))
		if err != nil {
			t.Fatal(err)
		}
		defer folder.Close()
		o := o
		o.Pairs = []kvcache.CacheTypes{{K: gguf.TypeQ8_0, V: gguf.TypeF16}}
		advise := func(published, converted *checkpoint.Checkpoint, float bool) *spec.AdviseJSON {
			o.FloatInputs = float
			r, err := Advise(context.Background(), published, converted, o)
			if err != nil {
				t.Fatal(err)
			}
			return r
		}
		rounded, float := advise(file, nil, false), advise(file, nil, true)
		if !rounded.RoundedInputs || float.RoundedInputs || !(rounded.Rows[0].KLD > float.Rows[0].KLD) ||
			rounded.BasePPL[0] == float.BasePPL[0] {
			t.Errorf("rounded %+v, float %+v", rounded, float)
		}
		if r := advise(folder, file, false); r.RoundedInputs {
			t.Error("inputs are rounded for a file beside a folder that no stock runtime runs")
		}
	})
	t.Run("verify", func(t *testing.T) {
		// verify measures the same thing, with the CPU backend's sums.
		o := o
		o.Pairs, o.HalfSums, o.Ctx = []kvcache.CacheTypes{{K: gguf.TypeQ4_0, V: gguf.TypeF16}}, true, []int{32}
		want, err := Advise(context.Background(), c, nil, o)
		if err != nil {
			t.Fatal(err)
		}
		w, err := ppl.Tokenize(t.Context(), c, o.Texts[0], 32, 4)
		if err != nil {
			t.Fatal(err)
		}
		for _, source := range []*checkpoint.Checkpoint{nil, tinyModel(t, 64, 1)} {
			got, err := measureCacheTypes(context.Background(), c,
				Options{CacheTypes: &kvcache.CacheTypes{K: gguf.TypeQ4_0, V: gguf.TypeF16, Rotation: true}, Source: source}, w)
			if err != nil {
				t.Fatal(err)
			}
			if r := want.Rows[0]; got.KLD.Mean != r.KLD || got.PPLRatio != r.PPLRatio || got.RotationK != 64 ||
				got.RotationV != 0 || (got.Base == "source") != (source != nil) {
				t.Errorf("verify %+v %+v, advise %+v", got, got.KLD, r)
			}
		}
		if _, err := measureCacheTypes(context.Background(), c,
			Options{CacheTypes: &kvcache.CacheTypes{K: gguf.TypeQ1_0, V: gguf.TypeF16, Rotation: true}}, w); err == nil {
			t.Error("q1_0 with head_dim 64 was accepted")
		}
	})
	t.Run("converted", func(t *testing.T) {
		// The same weights twice: the same rows twice.
		both, err := Advise(context.Background(), c, tinyModel(t, 64, 1), o)
		if err != nil {
			t.Fatal(err)
		}
		var published, converted []spec.AdviseRow
		for _, r := range both.Rows {
			if r.Converted {
				r.Converted = false
				converted = append(converted, r)
			} else {
				published = append(published, r)
			}
		}
		if !reflect.DeepEqual(published, res.Rows) || !reflect.DeepEqual(converted, published) ||
			len(both.Choices) != 2 || !both.Choices[1].Converted {
			t.Errorf("published %+v\nconverted %+v\nchoices %+v", published, converted, both.Choices)
		}
		// Other weights: their F16 row shows what the change costs.
		other, err := Advise(context.Background(), c, tinyModel(t, 64, 2), o)
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(other.Rows, func(r spec.AdviseRow) bool {
			return r.Converted && r.KType == "f16" &&
				r.VType == "f16"
		})
		if i < 0 || other.Rows[i].KLD < 1e-3 {
			t.Errorf("other weights: %+v", other.Rows)
		}
		alone, err := Advise(context.Background(), nil, c, o)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(alone.Base, "converted") || len(alone.Rows) != len(res.Rows) || alone.Rows[0].KLD > 1e-12 {
			t.Errorf("an artifact alone: base %q, rows %+v", alone.Base, alone.Rows)
		}
	})
}

func TestAdviseRefuses(t *testing.T) {
	c16, c64 := tinyModel(t, 16, 1), tinyModel(t, 64, 1)
	for _, x := range []struct {
		name   string
		c      *checkpoint.Checkpoint
		change func(*AdviseOptions)
		want   string
	}{
		{"no model", nil, func(*AdviseOptions) {}, "no model"},
		{"no quantised type fits", c16, func(o *AdviseOptions) { o.Types = nil }, "head_dim 16 is not a multiple of 32"},
		{"a type does not fit", c16, func(*AdviseOptions) {}, "K cache of type q8_0"},
		{"a pair does not fit", c64, func(o *AdviseOptions) {
			o.Pairs = []kvcache.CacheTypes{{K: gguf.TypeF16,
				V: gguf.TypeQ1_0}}
		}, "V cache of type q1_0"},
		{"no text", c64, func(o *AdviseOptions) { o.Texts = nil }, "no text"},
		{"two texts of a name", c64, func(o *AdviseOptions) { o.Texts = append(o.Texts, o.Texts[0]) },
			"two texts have the name text"},
		{"no context", c64, func(o *AdviseOptions) { o.Ctx = nil }, "no context"},
		{"a context beyond the text", c64, func(o *AdviseOptions) { o.Ctx = []int{1 << 20} }, "the model's own context"},
	} {
		o := adviseOptions()
		x.change(&o)
		if _, err := Advise(context.Background(), x.c, nil, o); err == nil || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%s: %v", x.name, err)
		}
	}
}
