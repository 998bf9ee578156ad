package convert

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/internal/tiny"
	"github.com/phaseconv/phaseconv/kernels/parallel"
	"github.com/phaseconv/phaseconv/rotations/sidecar"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/generate"
	"github.com/phaseconv/phaseconv/verify/kvcache"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// gemma is a conversion of a tiny Gemma 4 with keys of 8 and of 16 numbers.
func gemma(t *testing.T, name, out string) Options {
	o := small(tiny.Folder(t, "../verify/refmodel/testdata/"+name), out)
	o.Ctx, o.CalibrationTokens = 32, 480
	return o
}

// TestKindsOfLayers: a model whose layers differ in their heads, and share keys and values, gets codes
// per head in a sidecar of version 2: none for a layer that reads another's. Units give what one
// run gives, and a session decodes with the codes.
func TestKindsOfLayers(t *testing.T) {
	dir := t.TempDir()
	at := func(s string) string { return filepath.Join(dir, s) }
	o := gemma(t, "gemma4", at("one/out"))
	res, err := Convert(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	if m := res.Manifest; m.Version != spec.VersionGroups || m.Code.Parts != "k" || m.Code.GroupDim != 16 ||
		m.Code.Bits != 1 {
		t.Errorf("%+v", m.Code)
	}
	if b := res.Verify.Bytes; b.KF16 != 2*48 || b.KVF16 != 4*48 || !res.Verify.OK || len(res.Verify.Layers) != 4 {
		t.Errorf("%+v, %d rows of the audit", b, len(res.Verify.Layers))
	}
	s, err := sidecar.Read(t.Context(), at("one/out/model.phase.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	codes, ok := s.HeadCodes()
	if !ok || len(codes) != 7 || codes[0][0].D != 8 || codes[1][0].D != 16 || len(codes[4]) != 0 {
		t.Fatalf("codes %v", codes)
	}
	c, err := checkpoint.Open(at("one/out/model.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	groups, err := generate.KeyGroups(codes)
	if err != nil {
		t.Fatal(err)
	}
	storage := generate.Storage{Groups: groups, Policy: kvcache.Policy{Anchor: s.Anchor, Sink: s.Sink, Recent: s.Recent}}
	window := tiny.Windows(c.Config, 1, 40)[0]
	x, err := generate.NewSession(refmodel.New(c.Config, c, 1), storage, len(window))
	if err != nil {
		t.Fatal(err)
	}
	cache, err := kvcache.NewCodes(c.Config, codes, storage.Policy)
	if err != nil {
		t.Fatal(err)
	}
	cache.Kernels = true
	want := &refmodel.Variant{Cache: cache}
	m := refmodel.New(c.Config, c, 1)
	if err := m.Run(t.Context(), [][]int32{window}, []*refmodel.Variant{want}, refmodel.Options{}); err != nil {
		t.Fatal(err)
	}
	var got []float32
	for _, id := range window {
		if got, err = x.Feed(t.Context(), []int32{id}); err != nil {
			t.Fatal(err)
		}
	}
	logits := make([]float32, c.Config.Vocab)
	normed, err := m.FinalNorm(want.Hidden[len(want.Hidden)-c.Config.Hidden:])
	if err != nil {
		t.Fatal(err)
	}
	if err := m.PackHead(t.Context(), 0, c.Config.Vocab); err != nil {
		t.Fatal(err)
	}
	if err := m.HeadLogits(t.Context(), logits, normed); err != nil {
		t.Fatal(err)
	}
	for i, v := range logits {
		if v != got[i] {
			t.Fatalf("logit %d is %g token by token, %g in the forward pass", i, got[i], v)
		}
	}

	byUnits(t, gemma(t, "gemma4", at("two/out")))
	sameTrees(t, at("one/out"), at("two/out"))
}

// TestKindsLong: joint codes, with heads of some layers beyond the span, values that are keys, experts
// beside an FFN, and both containers.
func TestKindsLong(t *testing.T) {
	if os.Getenv("PHASECONV_LONG") == "" {
		t.Skip("PHASECONV_LONG is not set")
	}
	for _, name := range []string{"gemma4", "gemma4-kv", "gemma4-moe"} {
		for span, parts := range map[int]string{0: "k", 64: "kv", 16: "mixed"} {
			o := gemma(t, name, filepath.Join(t.TempDir(), "out"))
			o.Formats = []checkpoint.Container{checkpoint.GGUF, checkpoint.Safetensors}
			o.Report, o.ReportDetail, o.Threads = true, true, parallel.Threads(0)
			if span > 0 {
				o.Joint, o.Policy.Recent = jointOf(8, span), 4
			}
			res, err := Convert(context.Background(), o)
			if err != nil {
				t.Fatalf("%s, span %d: %v", name, span, err)
			}
			if !res.Verify.OK || !(res.Verify.KLD.Mean > 0) || res.Manifest.Code.Parts != parts ||
				span > 0 && string(res.Plans[0].Keys.Parts) != parts {
				t.Errorf("%s, span %d: %+v of %+v", name, span, res.Verify.KLD, res.Manifest.Code)
			}
		}
	}
}

// TestDrafterIsKept: the keys and values that a drafter reads stay as they are, and the plan says so,
// unless it is to be broken.
func TestDrafterIsKept(t *testing.T) {
	for _, broken := range []bool{false, true} {
		o := gemma(t, "gemma4", filepath.Join(t.TempDir(), "out"))
		o.BreakDrafter, o.Report = broken, false
		o.Formats = o.Formats[:1]
		res, err := Convert(context.Background(), o)
		if err != nil {
			t.Fatal(err)
		}
		fold, err := sidecar.ReadFold(t.Context(), filepath.Join(o.Out, spec.FoldName))
		if err != nil {
			t.Fatal(err)
		}
		edited := map[int]bool{}
		for name := range fold.Edits {
			edited[family.LayerOf(name)] = true
		}
		// Layers 2 and 3 are the last with keys of their own; 4 to 6 read those.
		for l := range 7 {
			if want := broken || l < 2; edited[l] != want {
				t.Errorf("broken %v: layer %d edited: %v", broken, l, edited[l])
			}
		}
		says := "stay as they are"
		if broken {
			says = "no longer fits its drafter"
		}
		if w := strings.Join(res.Plans[0].Warnings, "\n"); !strings.Contains(w, says) {
			t.Errorf("broken %v: warnings %q", broken, w)
		}
	}
}
