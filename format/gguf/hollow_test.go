package gguf

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"
)

// TestWriteHollow: a hollow file has the shapes and the numbers that were given, zeros elsewhere, and as many
// bytes as a whole one; too many bytes are an error that leaves no file.
func TestWriteHollow(t *testing.T) {
	path := filepath.Join(t.TempDir(), "h.gguf")
	kvs := []KV{Value("general.architecture", "x")}
	specs := []TensorSpec{{Name: "a", Type: TypeQ4_0, Dims: []int{64, 3}}, {Name: "b", Type: TypeF32, Dims: []int{2}},
		{Name: "c", Type: TypeF32, Dims: []int{5}}}
	two := []byte{0, 0, 128, 63, 0, 0, 0, 64} // 1 and 2
	fill := func(name string) io.Reader {
		if name == "b" {
			return bytes.NewReader(two)
		}
		return nil
	}
	if err := WriteHollow(path, kvs, specs, fill); err != nil {
		t.Fatal(err)
	}
	f, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for name, want := range map[string][]float32{"a": make([]float32, 192), "b": {1, 2}, "c": make([]float32, 5)} {
		x, ok := f.Tensor(name)
		if !ok {
			t.Fatalf("no tensor %s", name)
		}
		got := make([]float32, len(want))
		if err := f.ReadRows(x, 0, x.Rows(), got); err != nil {
			t.Fatal(err)
		}
		for i := range got {
			if got[i] != want[i] {
				t.Errorf("%s[%d] is %g, expected %g", name, i, got[i], want[i])
			}
		}
	}
	specs[1].Dims = []int{1}
	other := filepath.Join(t.TempDir(), "other.gguf")
	if err := WriteHollow(other, kvs, specs, fill); err == nil {
		t.Error("eight bytes passed for a tensor of four")
	}
	if _, err := os.Stat(other); err == nil {
		t.Error("a file was left")
	}
}
