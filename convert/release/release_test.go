package release

import (
	"io"
	"path/filepath"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/spec"
)

// file writes a small GGUF file with these keys.
func file(t *testing.T, kvs ...gguf.KV) *gguf.File {
	path := filepath.Join(t.TempDir(), "x.gguf")
	w, err := gguf.Create(path, append([]gguf.KV{gguf.Value("general.architecture", "llama")}, kvs...),
		[]gguf.TensorSpec{
			{Name: "a", Type: gguf.TypeF32, Dims: []int{1200}},
			{Name: "b", Type: gguf.TypeF32, Dims: []int{1000}},
		})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"a", "b"} {
		size := map[string]int{"a": 4800, "b": 4000}[n]
		if err := w.WriteTensor(n, func(o io.Writer) error {
			_, err := o.Write(make([]byte, size))
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	f, err := gguf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestName(t *testing.T) {
	fusion := func(k, v string, n int) *spec.Fusion { return &spec.Fusion{KType: k, VType: v, TargetCtx: n} }
	for _, x := range []struct {
		source string
		typ    uint32
		f      *spec.Fusion
		want   string
	}{
		{"Qwen2.5-Coder-0.5B-Instruct", 2, fusion("q4_0", "q4_0", 8192), "Qwen2.5-Coder-0.5B-Instruct-KVq4_0-8k-Q4_0"},
		{"Qwen2.5-Coder-0.5B-Instruct-Q4_K_M.gguf", 15, fusion("q8_0", "q4_0", 500), "Qwen2.5-Coder-0.5B-Instruct-Kq8_0-Vq4_0-500-Q4_K_M"},
		{"mixtral-8x7b", 32, nil, "mixtral-8x7b-KV1bit-BF16"},
		{"my model!", 1, nil, "my-model-2K-KV1bit-F16"},
		{"smollm2-135m.q8_0.gguf", 7, nil, "smollm2-135m-KV1bit-Q8_0"},
	} {
		m := &spec.Manifest{Fusion: x.f}
		m.Source.Name = x.source
		got := Name(file(t, gguf.Value("general.file_type", x.typ)), m)
		if got != x.want {
			t.Errorf("%s: %s, want %s", x.source, got, x.want)
		}
	}
}

func TestSplit(t *testing.T) {
	f := file(t)
	for size, want := range map[int64]int{0: 1, 5000: 2, 4000: 2, 8800: 1, 8799: 2} {
		if got := split(f, size); len(got) != want {
			t.Errorf("%d bytes: %d files, want %d", size, len(got), want)
		}
	}
}

// TestKeys: what a key of the source says of its own source does not stay.
func TestKeys(t *testing.T) {
	f := file(t, gguf.Value("general.base_model.count", uint32(2)), gguf.Value("general.base_model.1.name", "old"),
		gguf.Array("general.tags", []string{"text-generation", "kv-cache"}), gguf.Value("general.dataset.0.name", "old"))
	o := Options{BaseModel: "Org/Name", QuantizedBy: "me", License: "apache-2.0"}
	m := &spec.Manifest{Tool: "phaseconv x"}
	m.Calibration.Name = "embedded:northanger-abbey"
	got := map[string]string{}
	for _, kv := range o.keys(f, m) {
		if _, twice := got[kv.Key]; twice {
			t.Errorf("%s is there twice", kv.Key)
		}
		got[kv.Key] = strings.Trim(kv.Text(), `"`)
	}
	for k, want := range map[string]string{"general.base_model.count": "1", "general.base_model.0.name": "Name",
		"general.base_model.0.organization": "Org", "general.base_model.0.repo_url": "https://huggingface.co/Org/Name",
		"general.quantized_by": "me", "general.license": "apache-2.0", "general.dataset.0.name": "embedded:northanger-abbey"} {
		if got[k] != want {
			t.Errorf("%s is %q, want %q", k, got[k], want)
		}
	}
	if _, ok := got["general.base_model.1.name"]; ok || !strings.Contains(got["general.tags"], "text-generation") {
		t.Errorf("got %v", got)
	}
}

// TestImatrix: entries of matrices whose inputs changed are left out, no others.
func TestImatrix(t *testing.T) {
	path := filepath.Join(t.TempDir(), "imatrix.gguf")
	names := []string{"blk.0.attn_q.weight.in_sum2", "blk.0.attn_output.weight.in_sum2", "blk.0.attn_output.weight.counts",
		"blk.1.ffn_down.weight.in_sum2", "output.weight.in_sum2"}
	var specs []gguf.TensorSpec
	for _, n := range names {
		specs = append(specs, gguf.TensorSpec{Name: n, Type: gguf.TypeF32, Dims: []int{8}})
	}
	w, err := gguf.Create(path, []gguf.KV{gguf.Value("general.type", "imatrix")}, specs)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		if err := w.WriteTensor(n, func(o io.Writer) error { _, err := o.Write(make([]byte, 32)); return err }); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	for id, want := range map[string]int{"G3": 5, "G2": 3, "G4": 4, "G1": 0} {
		o := Options{Imatrix: path}
		dir := t.TempDir()
		file, err := o.imatrix(t.Context(), &spec.Manifest{Identities: []spec.Identity{{ID: id, Applied: true},
			{ID: "G1", Applied: false}}}, dir)
		if want == 0 {
			if err == nil {
				t.Errorf("%s: an importance matrix was taken", id)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		f, err := gguf.Open(filepath.Join(dir, file.Name))
		if err != nil {
			t.Fatal(err)
		}
		if len(f.Tensors) != want {
			t.Errorf("%s: %d entries, want %d", id, len(f.Tensors), want)
		}
		f.Close()
	}
	if _, err := (&Options{Imatrix: file(t).Path}).imatrix(t.Context(), &spec.Manifest{}, t.TempDir()); err == nil {
		t.Error("a model was taken for an importance matrix")
	}
}
