package write

import (
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/convert/plan"
	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/safetensors"
)

// wrap makes a multimodal checkpoint of a tiny model: its tensors under another prefix, one of a
// vision tower and others beside them, and its configuration inside another.
func wrap(t *testing.T, model, prefix, modelType, class string, others ...string) string {
	t.Helper()
	dir, src := t.TempDir(), filepath.Join("../../verify/refmodel/testdata", model)
	set, err := safetensors.OpenDir(src)
	if err != nil {
		t.Fatal(err)
	}
	defer set.Close()
	vision := safetensors.Tensor{Name: "model.vision_tower.patch.weight", DType: "BF16", Shape: []int{2, 3}}
	specs := []safetensors.Tensor{vision}
	for _, name := range others {
		specs = append(specs, safetensors.Tensor{Name: name, DType: vision.DType, Shape: vision.Shape})
	}
	from := map[string]safetensors.Ref{}
	for _, n := range set.Names() {
		r, _ := set.Find(n)
		name := strings.Replace(n, "model.", prefix, 1)
		from[name] = r
		specs = append(specs, safetensors.Tensor{Name: name, DType: r.Tensor.DType, Shape: r.Tensor.Shape})
	}
	w, err := safetensors.Create(filepath.Join(dir, safetensors.SingleName), specs, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range specs {
		err := w.WriteTensor(s.Name, func(o io.Writer) error {
			r, ok := from[s.Name]
			if !ok {
				_, err := o.Write([]byte("vision tower"))
				return err
			}
			_, err := io.Copy(o, r.File.Reader(r.Tensor))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(src, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	var text map[string]any
	if err := json.Unmarshal(raw, &text); err != nil {
		t.Fatal(err)
	}
	delete(text, "architectures")
	raw, err = json.Marshal(map[string]any{"model_type": modelType, "architectures": []string{class}, "text_config": text,
		"tie_word_embeddings": text["tie_word_embeddings"], "vision_config": map[string]any{"model_type": "some_vision"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), raw, 0o666); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestMultimodal: of a multimodal checkpoint the language model is read, under either spelling of
// its names; tensors beside it are copied, or left out of a GGUF file, and the plan says so.
func TestMultimodal(t *testing.T) {
	for _, x := range []struct{ model, prefix, modelType, class string }{
		{"gemma4", "model.language_model.", "gemma4", "Gemma4ForConditionalGeneration"},
		{"ministral3", "language_model.model.", "mistral3", "Mistral3ForConditionalGeneration"},
	} {
		dir := wrap(t, x.model, x.prefix, x.modelType, x.class)
		c, err := checkpoint.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		m := openTiny(t, x.model)
		if !slices.Equal(logitsOf(t, c.Config, c, m.Tokens), logitsOf(t, m.Config, m.Checkpoint, m.Tokens)) {
			t.Errorf("%s: the wrapped model computes something else", x.model)
		}
		for to, says := range map[checkpoint.Container]string{checkpoint.Safetensors: "copied as it is",
			checkpoint.GGUF: "left out"} {
			p, err := plan.Make(c, to, "f32", plan.NoChanges(c))
			if err != nil {
				t.Fatal(err)
			}
			i := slices.IndexFunc(p.Tensors, func(y plan.TensorPlan) bool { return y.Name == "model.vision_tower.patch.weight" })
			if i < 0 || (p.Tensors[i].Action == plan.Copy) != (to == checkpoint.Safetensors) ||
				!strings.Contains(strings.Join(p.Warnings, "\n"),
					"what is outside it, such as a vision tower (tensors: 1), is "+says) {
				t.Errorf("%s to %s: tensor %d, warnings %q", x.model, to, i, p.Warnings)
			}
		}
	}
	// A tensor of the language model that its graph has no use for is refused as ever.
	for _, prefix := range []string{"model.language_model.", "language_model.model."} {
		sinks := prefix + "layers.0.self_attn.sinks"
		dir := wrap(t, "ministral3", prefix, "mistral3", "Mistral3ForConditionalGeneration", sinks)
		if _, err := checkpoint.Open(dir); err == nil || !strings.Contains(err.Error(), sinks) {
			t.Errorf("an unknown tensor of the language model: %v", err)
		}
	}
	for _, class := range []string{"Mistral3Model", "LlavaForConditionalGeneration"} {
		if _, err := checkpoint.Open(wrap(t, "ministral3", "model.language_model.", "mistral3", class)); err == nil ||
			!strings.Contains(err.Error(), class) {
			t.Errorf("class %s: %v", class, err)
		}
	}
	if _, err := checkpoint.Open(wrap(t, "phi3", "model.", "llava", "LlavaForConditionalGeneration")); err == nil ||
		!strings.Contains(err.Error(), "llava") {
		t.Error(err)
	}
}
