package release

import (
	"io"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/dtype"
	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/rotations/sidecar"
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
		code   spec.CodeInfo
		want   string
	}{
		{"Qwen2.5-Coder-0.5B-Instruct", 2, fusion("q4_0", "q4_0", 8192), spec.CodeInfo{Bits: 1}, "Qwen2.5-Coder-0.5B-Instruct-KVq4_0-8k-Q4_0"},
		{"Qwen2.5-Coder-0.5B-Instruct-Q4_K_M.gguf", 15, fusion("q8_0", "q4_0", 500), spec.CodeInfo{Bits: 1},
			"Qwen2.5-Coder-0.5B-Instruct-Kq8_0-Vq4_0-500-Q4_K_M"},
		{"left", 1, &spec.Fusion{KType: "q4_0", VType: "q4_0", Tried: []spec.FusionTry{{Name: "as published"}}, Chosen: "as published"},
			spec.CodeInfo{Bits: 1}, "left-2K-K1bit-F16"},
		{"mixtral-8x7b", 32, nil, spec.CodeInfo{Bits: 1}, "mixtral-8x7b-K1bit-BF16"},
		{"my model!", 1, nil, spec.CodeInfo{Bits: 1.469, Parts: "kv"}, "my-model-2K-KV1.5bit-F16"},
		{"smollm2-135m.q8_0.gguf", 7, nil, spec.CodeInfo{Bits: 2, Parts: "v"}, "smollm2-135m-V2bit-Q8_0"},
	} {
		m := &spec.Manifest{Fusion: x.f, Code: x.code}
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
	o := Options{BaseModel: "Org/Name", QuantizedBy: "me", License: "other", LicenseName: "mine", LicenseLink: "LICENSE"}
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
		"general.quantized_by": "me", "general.license": "other",
		"general.license.name": "mine", "general.license.link": "LICENSE", "general.dataset.0.name": "embedded:northanger-abbey"} {
		if got[k] != want {
			t.Errorf("%s is %q, want %q", k, got[k], want)
		}
	}
	if _, ok := got["general.base_model.1.name"]; ok || !strings.Contains(got["general.tags"], "text-generation") {
		t.Errorf("got %v", got)
	}
}

// TestImatrix: mean squares of inputs follow what was moved, multiplied and mixed.
func TestImatrix(t *testing.T) {
	path := filepath.Join(t.TempDir(), "imatrix.gguf")
	const n = 4
	entries := []gguf.TensorSpec{
		{Name: "blk.0.attn_q.weight.in_sum2", Dims: []int{n}},
		{Name: "blk.0.attn_output.weight.in_sum2", Dims: []int{n}},
		{Name: "blk.0.attn_output.weight.counts", Dims: []int{1}},
		{Name: "blk.1.attn_qkv.weight.in_sum2", Dims: []int{n}},
		{Name: "blk.1.attn_output.weight.in_sum2", Dims: []int{n}},
		{Name: "blk.1.ffn_down_exps.weight.in_sum2", Dims: []int{n, 2}},
		{Name: "output.weight.in_sum2", Dims: []int{n}},
	}
	squares := []float32{1, 2, 3, 4, 5, 6, 7, 8}
	for i := range entries {
		entries[i].Type = gguf.TypeF32
	}
	w, err := gguf.Create(path, []gguf.KV{gguf.Value("general.type", "imatrix")}, entries)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		size := 1
		for _, d := range e.Dims {
			size *= d
		}
		if err := w.WriteTensor(e.Name, func(o io.Writer) error {
			_, err := o.Write(dtype.AppendF32(nil, squares[:size]))
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}

	dir := t.TempDir()
	edits := checkpoint.Edits{}
	if err := edits.MixColumns("blk.0.attn_output.weight", "G2", []checkpoint.RowMix{{Rows: []int{0, 1},
		Matrix: []float32{2, 0, 1, 1}}}); err != nil {
		t.Fatal(err)
	}
	if err := edits.Reorder("blk.1.ffn_down_exps.weight", "G4", true, []int{3, 2, 1, 0, 0, 1, 2, 3}); err != nil {
		t.Fatal(err)
	}
	edits.ScaleColumns("blk.1.ffn_down_exps.weight", "G4", []float32{1, 2, 1, 1, 1, 1, 1, 0.5})
	fold := &sidecar.Fold{SourceSHA256: strings.Repeat("0", 64), Edits: edits}
	if err := fold.Write(filepath.Join(dir, spec.FoldName)); err != nil {
		t.Fatal(err)
	}
	manifest := func(ids ...string) *spec.Manifest {
		m := &spec.Manifest{Identities: []spec.Identity{{ID: "G1", Applied: false}}}
		for _, id := range ids {
			m.Identities = append(m.Identities, spec.Identity{ID: id, Applied: true})
		}
		return m
	}
	o := Options{Imatrix: path, Dir: dir}
	if _, err := o.imatrix(t.Context(), manifest("G1"), t.TempDir()); err == nil {
		t.Error("after G1 an importance matrix was taken")
	}
	out := t.TempDir()
	made, err := o.imatrix(t.Context(), manifest("G2", "G4", "G10"), out)
	if err != nil {
		t.Fatal(err)
	}
	f, err := gguf.Open(filepath.Join(out, made.Name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	want := map[string][]float32{
		"blk.0.attn_q.weight.in_sum2": squares[:n],
		// y = (2 0; 1 1) of columns, so inputs are (x0 - x1)/2 and x1.
		"blk.0.attn_output.weight.in_sum2":   {3. / 4, 2, 3, 4},
		"blk.0.attn_output.weight.counts":    squares[:1],
		"blk.1.attn_output.weight.in_sum2":   squares[:n],
		"blk.1.ffn_down_exps.weight.in_sum2": {4, 3. / 4, 2, 1, 5, 6, 7, 8 * 4},
		"output.weight.in_sum2":              squares[:n],
	}
	if len(f.Tensors) != len(want) {
		t.Errorf("%d entries, want %d", len(f.Tensors), len(want))
	}
	for i := range f.Tensors {
		x := &f.Tensors[i]
		got := make([]float32, x.Rows()*x.RowLen())
		if err := f.ReadRows(x, 0, x.Rows(), got); err != nil || !slices.Equal(got, want[x.Name]) {
			t.Errorf("%s: %v, want %v, %v", x.Name, got, want[x.Name], err)
		}
	}
	if _, err := (&Options{Imatrix: file(t).Path, Dir: dir}).imatrix(t.Context(), manifest(), t.TempDir()); err == nil {
		t.Error("a model was taken for an importance matrix")
	}
}
