package convert

import (
	"context"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/convert/plan"
	"github.com/phaseconv/phaseconv/convert/write"
	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/internal/tiny"
	"github.com/phaseconv/phaseconv/rotations/sidecar"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/contract"
	"github.com/phaseconv/phaseconv/verify/kvcache"
)

// TestApply: export and apply give the publisher's bytes, for every family, for
// both containers and for all kinds of edits.
func TestApply(t *testing.T) {
	type recipe struct {
		name, family string
		tiny         tiny.Options
		gguf         bool // the source
		edit         func(o *Options)
	}
	var all []recipe
	for _, f := range tiny.Families {
		x := recipe{name: f, family: f, tiny: tiny.Options{Seed: 1, DType: "BF16", Shards: 2}}
		if f == "olmoe" {
			x.tiny.KVHeads = 4 // stock GGUF readers demand it
		}
		all = append(all, x)
	}
	all = append(all,
		recipe{name: "gguf", family: "llama", gguf: true, edit: func(o *Options) { o.OutType = "q8_0" }},
		recipe{name: "nothing folded", family: "llama", edit: func(o *Options) { o.Balance = false }},
		recipe{name: "for a cache", family: "qwen2", tiny: tiny.Options{HeadDim: 32, Hidden: 128}, edit: func(o *Options) {
			o.Cache, o.WeightEdits = &kvcache.CacheTypes{K: gguf.TypeQ8_0, V: gguf.TypeF16}, plan.EditsApproximate
			o.TargetCtx, o.CacheTokens = 32, 256
		}},
		recipe{name: "one container", family: "llama", edit: func(o *Options) { o.Formats = o.Formats[1:] }},
	)
	for _, x := range all {
		t.Run(x.name, func(t *testing.T) {
			dir := t.TempDir()
			at := func(s string) string { return filepath.Join(dir, s) }
			src := at("src")
			if x.gguf {
				src += ".gguf"
				tiny.GGUF(t, src, x.family, x.tiny)
			} else {
				tiny.HF(t, src, x.family, x.tiny)
			}
			o := small(src, at("out"))
			o.Code, o.Report = "srht", false
			if x.gguf {
				o.Formats = o.Formats[:1]
			}
			if x.edit != nil {
				x.edit(&o)
			}
			converted(t, o)
			if _, err := Export(t.Context(), o.Out, at("published"), nil, nil); err != nil {
				t.Fatal(err)
			}
			for _, n := range left(t, at("published")) {
				if strings.HasPrefix(n, "model.") && n != "model.phase.gguf" || strings.HasPrefix(n, "token") {
					t.Errorf("%s was published", n)
				}
			}
			// A file that the publisher had not does not get in.
			if !x.gguf {
				if err := os.WriteFile(filepath.Join(src, "notes.txt"), []byte("x"), 0o666); err != nil {
					t.Fatal(err)
				}
			}
			// Whoever applies them has the model under another name.
			elsewhere := at("elsewhere")
			if err := os.Rename(src, elsewhere); err != nil {
				t.Fatal(err)
			}
			_, checks, err := Apply(context.Background(), ApplyOptions{Dir: at("published"), Base: elsewhere, Out: at("again"),
				Tool: "test"})
			if err != nil {
				t.Fatal(err)
			}
			if len(checks) < 10 {
				t.Errorf("only %d checks", len(checks))
			}
			sameTrees(t, o.Out, at("again"))
		})
	}
}

// TestApplyRefuses: nothing but the publisher's bytes comes out.
func TestApplyRefuses(t *testing.T) {
	dir := t.TempDir()
	at := func(s string) string { return filepath.Join(dir, s) }
	tiny.HF(t, at("src"), "llama", tiny.Options{Seed: 1, DType: "BF16"})
	tiny.HF(t, at("sibling"), "llama", tiny.Options{Seed: 2, DType: "BF16"})
	o := small(at("src"), at("out"))
	o.Code, o.Report = "srht", false
	converted(t, o)
	if _, err := Export(t.Context(), o.Out, at("good"), nil, nil); err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		name   string
		breaks func(p string) // changes the published folder, or src
		base   string
		says   string
	}{
		{"sibling", func(string) {}, "sibling", "take that very model"},
		{"fold of another", func(p string) {
			f, err := sidecar.ReadFold(t.Context(), filepath.Join(p, spec.FoldName))
			if err != nil {
				t.Fatal(err)
			}
			f.Edits["blk.0.attn_k.weight"].Scale[3] *= 2
			if err := f.Write(filepath.Join(p, spec.FoldName)); err != nil {
				t.Fatal(err)
			}
		}, "src", spec.FoldName},
		{"fold of another, recorded", func(p string) {
			f, err := sidecar.ReadFold(t.Context(), filepath.Join(p, spec.FoldName))
			if err != nil {
				t.Fatal(err)
			}
			f.Edits["blk.0.attn_k.weight"].Scale[3] *= 2
			if err := f.Write(filepath.Join(p, spec.FoldName)); err != nil {
				t.Fatal(err)
			}
			rerecord(t, p, spec.FoldName)
		}, "src", "the result is not the publisher's (the publisher used test, this is another): files: "},
		{"fold for another shape, recorded", func(p string) {
			f, err := sidecar.ReadFold(t.Context(), filepath.Join(p, spec.FoldName))
			if err != nil {
				t.Fatal(err)
			}
			f.Edits["blk.0.attn_k.weight"].Scale = make([]float32, 5)
			if err := f.Write(filepath.Join(p, spec.FoldName)); err != nil {
				t.Fatal(err)
			}
			rerecord(t, p, spec.FoldName)
		}, "src", "fold fits source"},
		{"no fold", func(p string) { os.Remove(filepath.Join(p, spec.FoldName)) }, "src", "missing"},
		{"other tokenizer", func(string) {
			path := at("src/tokenizer.json")
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, append(b, '\n'), 0o666); err != nil {
				t.Fatal(err)
			}
		}, "src", "tokenizer.json"}, // last, because it changes the source
	} {
		p := filepath.Join(t.TempDir(), "p")
		if err := os.CopyFS(p, os.DirFS(at("good"))); err != nil {
			t.Fatal(err)
		}
		x.breaks(p)
		_, _, err := Apply(context.Background(), ApplyOptions{Dir: p, Base: at(x.base), Out: at("new/again"),
			Tool: "another"})
		if err == nil || !strings.Contains(err.Error(), x.says) {
			t.Errorf("%s: %v, want %q", x.name, err, x.says)
		}
		if got := left(t, dir); !reflect.DeepEqual(got, []string{"good", "out", "sibling", "src"}) {
			t.Errorf("%s left %v", x.name, got)
		}
	}
}

// rerecord makes the manifest agree with a changed file.
func rerecord(t *testing.T, dir, name string) {
	t.Helper()
	m, err := contract.ReadManifest(dir)
	if err != nil {
		t.Fatal(err)
	}
	files := m.Files
	m.Files = nil
	for _, f := range files {
		if f.Name != name {
			m.Files = append(m.Files, f)
		}
	}
	f, err := write.Describe(t.Context(), dir, name)
	if err != nil {
		t.Fatal(err)
	}
	m.Files = append(m.Files, f)
	if err := write.Manifest(dir, m); err != nil {
		t.Fatal(err)
	}
}
