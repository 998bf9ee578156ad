package convert

import (
	"context"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/convert/plan"
	"github.com/phaseconv/phaseconv/convert/write"
	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/internal/tiny"
	"github.com/phaseconv/phaseconv/verify/quantweights"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// forWeights are the options of a small conversion for a weight type.
func forWeights(src, out string, mode plan.FFN, weights string) Options {
	o := quickOptions(src, out, checkpoint.GGUF, "f32")
	o.FFN, o.CacheTokens = mode, 64
	for i, f := range quantweights.FileTypes {
		if f.Name == weights {
			o.Weights = &quantweights.FileTypes[i]
		}
	}
	return o
}

// TestFFN: whatever is folded for a weight type, the files written compute the source's function, in
// both containers; published rotations make them again.
func TestFFN(t *testing.T) {
	for _, x := range []struct {
		family, weights string
		mode            plan.FFN
		formats         []checkpoint.Container
		folded          string // identities that must be, with spaces
	}{
		// Tied embeddings: the head gets numbers of its own, in both containers.
		{"llama", "q4_0", plan.FFNRotate, []checkpoint.Container{checkpoint.GGUF, checkpoint.Safetensors}, "G1"},
		{"mixtral", "q3_k", plan.FFNScale, []checkpoint.Container{checkpoint.GGUF}, ""},
	} {
		dir := t.TempDir()
		src, out := filepath.Join(dir, "src"), filepath.Join(dir, "out")
		tiny.HF(t, src, x.family, tiny.Options{Seed: 3})
		o := forWeights(src, out, x.mode, x.weights)
		o.Formats = x.formats
		res, err := Convert(context.Background(), o)
		if err != nil {
			t.Fatal(err)
		}
		if !res.Verify.OK {
			t.Errorf("%s: %+v", x.family, res.Verify.Contract)
		}
		f := res.Manifest.FFN
		if f == nil || f.Chosen == f.Tried[0].Name || len(f.Measured) != 2 {
			t.Fatalf("%s: %+v", x.family, f)
		}
		var ids []string
		for _, id := range res.Manifest.Identities {
			if id.Applied && id.ID != "G3" {
				ids = append(ids, id.ID)
			}
		}
		if len(ids) == 0 || x.folded != "" && !slices.Contains(ids, x.folded) {
			t.Errorf("%s: folded are %v", x.family, ids)
		}
		want := tinyLogits(t, src)
		for _, a := range res.Manifest.Artifacts {
			c, err := write.Open(out, a, nil)
			if err != nil {
				t.Fatal(err)
			}
			if tied := c.Config.TiedEmbeddings; tied && x.folded == "G1" {
				t.Errorf("%s: the embeddings are still tied", a.Container)
			}
			path := c.Path
			c.Close()
			var worst, size float32
			for i, v := range tinyLogits(t, path) {
				worst, size = max(worst, v-want[i], want[i]-v), max(size, want[i])
			}
			// float32 rounding of the folded weights: see preserved in rotations/transform.
			if !(worst < 1e-5*size) {
				t.Errorf("%s %s: logits up to %g change by %g", x.family, a.Container, size, worst)
			}
		}
		if x.folded == "" {
			continue
		}
		published, again := filepath.Join(dir, "published"), filepath.Join(dir, "again")
		if _, err := Export(context.Background(), out, published, nil, nil); err != nil {
			t.Fatal(err)
		}
		if _, _, err := Apply(context.Background(), ApplyOptions{Dir: published, Base: src, Out: again, Tool: "test"}); err != nil {
			t.Errorf("%s: %v", x.family, err)
		}
	}
}

// tinyLogits are those of a tiny model for one window.
func tinyLogits(t *testing.T, path string) []float32 {
	t.Helper()
	c, err := checkpoint.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	window := make([]int32, 32)
	for i := range window {
		window[i] = int32(i * 37 % 256)
	}
	m, v := refmodel.New(c.Config, c, 1), &refmodel.Variant{}
	if err := m.Run(context.Background(), [][]int32{window}, []*refmodel.Variant{v}, refmodel.Options{}); err != nil {
		t.Fatal(err)
	}
	x, err := m.FinalNorm(v.Hidden)
	if err != nil {
		t.Fatal(err)
	}
	out := make([]float32, len(window)*c.Config.Vocab)
	if err := m.Logits(context.Background(), [][]float32{out}, [][]float32{x}, 0, c.Config.Vocab); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestFFNRefuses: what cannot be folded, or not be quantised, is refused before any work, with the reason.
func TestFFNRefuses(t *testing.T) {
	for says, change := range map[string]func(o *Options, src *string, m *tiny.Options){
		"before they are added": func(o *Options, fam *string, _ *tiny.Options) { *fam, o.FFN = "gemma3_text", plan.FFNRotate },
		"name the type":         func(o *Options, _ *string, _ *tiny.Options) { o.Weights = nil },
		"goes with --ffn":       func(o *Options, _ *string, _ *tiny.Options) { o.FFN = plan.FFNNone },
		"expected none, scale":  func(o *Options, _ *string, _ *tiny.Options) { o.FFN = "all" },
		"takes f32, f16":        func(o *Options, _ *string, _ *tiny.Options) { o.OutType = "q8_0" },
		"no whole blocks of Q1_0": func(o *Options, _ *string, _ *tiny.Options) {
			o.Weights = &quantweights.FileType{Name: "q1_0", Label: "Q1_0", Type: 41}
		},
	} {
		dir := t.TempDir()
		src := filepath.Join(dir, "src")
		o, fam, m := forWeights(src, filepath.Join(dir, "out"), plan.FFNAuto, "q4_0"), "llama", tiny.Options{Seed: 3,
			Layers: 1}
		change(&o, &fam, &m)
		tiny.HF(t, src, fam, m)
		if _, err := Plans(t.Context(), o); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, want %q", err, says)
		}
	}
}

// TestImatrix: with an importance matrix rotations are not tried, the matrix follows what is folded, and
// the emulation of what was written is that of its own weights; a matrix of another model is refused.
func TestImatrix(t *testing.T) {
	dir := t.TempDir()
	src, out, imatrix := filepath.Join(dir, "src"), filepath.Join(dir, "out"), filepath.Join(dir, "imatrix.gguf")
	tiny.HF(t, src, "mixtral", tiny.Options{Seed: 3, Layers: 1})
	c, err := checkpoint.Open(src)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	tiny.Imatrix(t, c, imatrix)
	o := forWeights(src, out, plan.FFNScale, "q4_0")
	o.Imatrix = imatrix
	j, err := open(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer j.source.Close()
	o = j.o
	of := o.Weights.Importance
	if types, err := o.Weights.Types(c.Config, c, true); err != nil || len(of) == 0 {
		t.Fatalf("%v %v %v", types, of, err)
	}
	_, s, err := j.search(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if len(s.ffn.Imatrix) != 64 || s.ffn.Chosen == s.ffn.Tried[0].Name || len(j.edits) == 0 {
		t.Errorf("%+v", s.ffn)
	}
	// What G4 moves in down moves in its importances, and what multiplies a column divides its input.
	const down = "blk.0.ffn_down_exps.weight"
	moved := of.Edited(j.edits)
	in := j.edits[down].InnerCols
	x, y := of[down], moved[down]
	for i, v := range y.Mean {
		want := x.Mean[i]
		if in.Order != nil {
			want = x.Mean[i/x.N*x.N+in.Order[i]]
		}
		if in.Factor != nil {
			want /= in.Factor[i] * in.Factor[i]
		}
		if v != want {
			t.Fatalf("input %d: %g, want %g", i, v, want)
		}
	}
	if slices.Equal(x.Mean, y.Mean) {
		t.Error("nothing moved in down")
	}
	o.FFN, o.Weights = plan.FFNRotate, &quantweights.FileTypes[0]
	if _, err := open(context.Background(), o); err == nil || !strings.Contains(err.Error(), "rotated stream") {
		t.Errorf("with rotate: %v", err)
	}
	other := filepath.Join(dir, "other")
	tiny.HF(t, other, "mixtral", tiny.Options{Seed: 3, Layers: 1, Hidden: 128})
	o.FFN, o.Source = plan.FFNScale, other
	if _, err := open(context.Background(), o); err == nil ||
		!strings.Contains(err.Error(), "importance matrix of this model") {
		t.Errorf("of another model: %v", err)
	}
}
