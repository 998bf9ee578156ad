package llama_test

import (
	"errors"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/convert"
	"github.com/phaseconv/phaseconv/convert/plan"
	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/internal/tiny"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/verify"
	"github.com/phaseconv/phaseconv/verify/contract"
	"github.com/phaseconv/phaseconv/verify/engine/llama"
	"github.com/phaseconv/phaseconv/verify/engine/sample"
	"github.com/phaseconv/phaseconv/verify/kvcache"
	"github.com/phaseconv/phaseconv/verify/option"
	"github.com/phaseconv/phaseconv/verify/ppl"
	"github.com/phaseconv/phaseconv/verify/texts"
)

// sampleText writes a sample with the tokenizer of tiny models, so that texts can be measured.
func sampleText(t *testing.T, name string) string {
	t.Helper()
	dir := t.TempDir()
	path, plain := filepath.Join(dir, name+".gguf"), filepath.Join(dir, "plain.gguf")
	if err := sample.Write(plain, name); err != nil {
		t.Fatal(err)
	}
	tiny.New(t, "llama", tiny.Options{}).GGUF(t, path)
	words, err := gguf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer words.Close()
	f, err := gguf.Open(plain)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	isTokenizer := func(k gguf.KV) bool { return strings.HasPrefix(k.Key, "tokenizer.") }
	kvs := slices.DeleteFunc(slices.Clone(f.KVs), isTokenizer)
	for _, k := range words.KVs {
		if isTokenizer(k) {
			kvs = append(kvs, k)
		}
	}
	rewrite(t, f, path, kvs, nil)
	return path
}

// rewrite writes the tensors of a file into another one; other gives the type and the bytes of those that
// it changes.
func rewrite(t *testing.T, f *gguf.File, path string, kvs []gguf.KV, other func(x *gguf.Tensor) (gguf.Type, []byte)) {
	t.Helper()
	some(t, f, f.Tensors, path, kvs, other)
}

// some is rewrite for some of the tensors.
func some(t *testing.T, f *gguf.File, tensors []gguf.Tensor, path string, kvs []gguf.KV,
	other func(x *gguf.Tensor) (gguf.Type, []byte)) {
	t.Helper()
	var specs []gguf.TensorSpec
	bytes := make([][]byte, len(tensors))
	for i := range tensors {
		s := tensors[i].Spec()
		if other != nil {
			s.Type, bytes[i] = other(&tensors[i])
		}
		specs = append(specs, s)
	}
	w, err := gguf.Create(path, kvs, specs)
	if err != nil {
		t.Fatal(err)
	}
	for i := range tensors {
		err := w.WriteTensor(tensors[i].Name, func(o io.Writer) error {
			if bytes[i] != nil {
				_, err := o.Write(bytes[i])
				return err
			}
			_, err := io.Copy(o, f.Reader(&tensors[i]))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
}

// unknownOptions convert a sample for q4_0 keys and values, or with anchors for 1-bit keys alone.
func unknownOptions(src, out string, e *llama.Engines) convert.Options {
	o := convert.DefaultOptions()
	o.Source, o.Out, o.Report, o.Threads = src, out, false, 1
	o.Formats = []checkpoint.Container{checkpoint.GGUF}
	o.Code, o.Alloc, o.Ctx, o.Chunks, o.CalibrationTokens = codec.Cen, "uniform", 128, 4, 1024
	o.Calibration = ppl.Text{Name: texts.CalibrationName, Data: texts.Calibration}
	o.Evaluation = ppl.Text{Name: texts.EvaluationName, Data: texts.Evaluation}
	o.Engines, o.Tool = e, "test"
	return o
}

// unknown are the samples of architectures that the table of families lacks, and what may be edited.
var unknown = map[string]string{
	"gptneox": "", "gpt2": "", "falcon": "", "lfm2": "", "afmoe": "",
	"olmo": "CLAMP behind the product", "deepseek2": "MLA",
}

// TestUnknown converts models of architectures that the table of families does not have: what keys are
// made of is read from llama.cpp's graph. The artifact passes its contract and the proof that its
// function is the source's; all tensors but the edited ones are the source's, byte for byte; where an
// operation stands in the way, its name is the error, and 1-bit keys still work.
func TestUnknown(t *testing.T) {
	w := start(t, llama.Start{})
	for name, refused := range unknown {
		t.Run(name, func(t *testing.T) {
			e := &llama.Engines{Worker: w, Place: llama.Place{Threads: 1}}
			src, dir := sampleText(t, name), t.TempDir()
			o := unknownOptions(src, filepath.Join(dir, "out"), e)
			o.Cache, o.TargetCtx, o.CacheTokens = &kvcache.CacheTypes{K: gguf.TypeQ4_0, V: gguf.TypeQ4_0,
				Rotation: true}, 128, 1024
			if refused != "" {
				for _, k := range []gguf.Type{gguf.TypeQ4_0, gguf.TypeF16} { // F16: values alone
					o.Cache.K = k
					var bad *option.Error
					if _, err := convert.Convert(t.Context(), o); !errors.As(err, &bad) || !strings.Contains(err.Error(), refused) {
						t.Fatalf("keys %s: error %v, expected one that names %s", k, err, refused)
					}
				}
				o.Cache, o.TargetCtx = nil, 0
				if name == "deepseek2" {
					if _, err := convert.Convert(t.Context(), o); err == nil || !strings.Contains(err.Error(), "no parameters") {
						t.Fatalf("anchors: error %v", err)
					}
					o.Policy.Anchor = 0
				}
			}
			plans, err := convert.Plans(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			r, err := convert.Convert(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			if !r.Verify.OK || r.Manifest.Graph == nil {
				t.Errorf("verified: %+v", r.Verify.Contract)
			}
			if refused == "" {
				t.Logf("chosen: %s", r.Manifest.Fusion.Chosen)
				for _, x := range r.Manifest.Fusion.Tried {
					t.Logf("%-50s KLD %.5f ± %.5f", x.Name, x.KLD, x.KLDErr)
				}
			}
			t.Logf("1-bit keys: KLD %.3f; function: %+v", r.Verify.KLD.Mean, *r.Verify.Function)
			edited := sameBut(t, src, filepath.Join(o.Out, "model.gguf"))
			if refused != "" && len(edited) > 0 {
				t.Errorf("%v changed", edited)
			}
			t.Log("edited:", edited)
			planned := planned(plans[0])
			for _, n := range edited {
				if !slices.Contains(planned, n) {
					t.Errorf("%s was edited, which the plan does not say", n)
				}
			}
			if len(planned) > 0 != (refused == "") || plans[0].Bytes == 0 || plans[0].Bytes > plans[0].SourceBytes {
				t.Errorf("the plan edits %v, %d bytes of %d", planned, plans[0].Bytes, plans[0].SourceBytes)
			}
			again(t, w, src, o.Out)
		})
	}
}

// planned lists the tensors that a plan edits.
func planned(p *plan.Plan) (out []string) {
	for _, x := range p.Tensors {
		if x.Action == plan.Fold {
			out = append(out, x.Name)
		}
	}
	return out
}

// sameBut lists the tensors of two files that differ; all others must have the same bytes.
func sameBut(t *testing.T, a, b string) (differ []string) {
	t.Helper()
	f, err := gguf.Open(a)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	g, err := gguf.Open(b)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if len(f.Tensors) != len(g.Tensors) {
		t.Fatalf("%d and %d tensors", len(f.Tensors), len(g.Tensors))
	}
	for i := range f.Tensors {
		x, y := &f.Tensors[i], &g.Tensors[i]
		p, err := io.ReadAll(f.Reader(x))
		if err != nil {
			t.Fatal(err)
		}
		q, err := io.ReadAll(g.Reader(y))
		if err != nil {
			t.Fatal(err)
		}
		if x.Name != y.Name {
			t.Fatalf("tensors %s and %s", x.Name, y.Name)
		}
		if x.Type != y.Type || !slices.Equal(p, q) {
			differ = append(differ, x.Name)
		}
	}
	return differ
}

// again verifies an artifact as the command does, in a worker that knows nothing of the conversion.
func again(t *testing.T, w *llama.Worker, src, dir string) {
	t.Helper()
	checks := &contract.Checker{}
	a, err := contract.Open(t.Context(), dir, "", checks)
	if err != nil || a == nil {
		t.Fatalf("%v, checks %+v", err, checks.Checks)
	}
	defer a.Close()
	c, err := checkpoint.OpenAs(src, a.Manifest.Graph)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	o := verify.Options{Text: ppl.Text{Name: texts.EvaluationName, Data: texts.Evaluation}, Ctx: 128, Chunks: 1, Sink: -1,
		Recent: -1, Threads: 1, Source: c, Engines: &llama.Engines{Worker: w, Place: llama.Place{Threads: 1}}}
	v, err := verify.Artifact(t.Context(), a, checks, o)
	if err != nil {
		t.Fatal(err)
	}
	if !v.OK {
		t.Errorf("verified again: %+v", v.Contract)
	}
	o.Engines = nil
	if _, err := verify.Artifact(t.Context(), a, &contract.Checker{}, o); err == nil ||
		!strings.Contains(err.Error(), "--engine llama") {
		t.Errorf("the own pass: %v", err)
	}
}

// TestShared converts a model whose later layers read the keys and values of earlier ones: codes are of
// the layers that have caches, and edits of keys reach the queries of all that read them.
func TestShared(t *testing.T) {
	w := start(t, llama.Start{})
	src, dir := sampleText(t, "gemma4"), t.TempDir()
	o := unknownOptions(src, filepath.Join(dir, "out"), &llama.Engines{Worker: w, Place: llama.Place{Threads: 1}})
	o.OutType, o.Balance = plan.OutTypeSource, true
	o.BreakDrafter = true // it reads the same keys and values
	r, err := convert.Convert(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if !r.Verify.OK || r.Manifest.Graph != nil {
		t.Errorf("verified: %+v", r.Verify.Contract)
	}
	edited := sameBut(t, src, filepath.Join(o.Out, "model.gguf"))
	t.Logf("1-bit keys: KLD %.3f; function %+v; edited %v", r.Verify.KLD.Mean, *r.Verify.Function, edited)
	for _, n := range []string{"blk.0.attn_k_norm.weight", "blk.0.attn_q_norm.weight", "blk.2.attn_q_norm.weight",
		"blk.3.attn_q_norm.weight"} {
		if !slices.Contains(edited, n) {
			t.Errorf("%s was not edited", n)
		}
	}
	if n := len(r.Verify.Layers); n != 4 { // two layers of two KV heads
		t.Errorf("the audit has %d rows", n)
	}
}
