package quantweights

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/internal/tiny"
)

// TestStockQuantize compares types and bytes with what stock llama-quantize makes of small random
// models: PHASECONV_LIBLLAMA names a folder with libllama, and python3 calls it.
func TestStockQuantize(t *testing.T) {
	lib := os.Getenv("PHASECONV_LIBLLAMA")
	if lib == "" {
		t.Skip("PHASECONV_LIBLLAMA names no folder with libllama")
	}
	for _, x := range []struct {
		name, family string
		o            tiny.Options
	}{
		{"tied, rows of 256", "llama", tiny.Options{Seed: 1, Layers: 16, Hidden: 256, Heads: 4, KVHeads: 1, HeadDim: 64, FFN: 256}},
		{"untied, rows of 96", "qwen2", tiny.Options{Seed: 2, Layers: 3, Hidden: 96, Heads: 3, KVHeads: 3, FFN: 256, Untied: true}},
		{"experts", "mixtral", tiny.Options{Seed: 3, Layers: 2, Hidden: 256, Heads: 4, KVHeads: 2, FFN: 256, Experts: 8, Untied: true}},
		{"four experts", "qwen3_moe", tiny.Options{Seed: 4, Layers: 3, Hidden: 128, Heads: 4, KVHeads: 2, FFN: 256, Untied: true}},
	} {
		t.Run(x.name, func(t *testing.T) {
			dir := t.TempDir()
			model := filepath.Join(dir, "model.gguf")
			tiny.New(t, x.family, x.o).GGUF(t, model)
			c, err := checkpoint.Open(model)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			imatrix := filepath.Join(dir, "imatrix.gguf")
			tiny.Imatrix(t, c, imatrix)
			importance, err := ReadImportance(imatrix, c.Config, c)
			if err != nil {
				t.Fatal(err)
			}
			types := slices.Clone(FileTypes)
			for _, f := range FileTypes {
				f.Importance = importance
				types = append(types, f)
			}
			for _, f := range types {
				to := filepath.Join(dir, f.Label+".gguf")
				args := []string{"../../scripts/oracles/stock_quantize.py", lib, model, to, f.Label}
				if f.Importance != nil {
					args = append(args, imatrix)
				}
				out, err := exec.Command("python3", args...).CombinedOutput()
				_, refused := f.Types(c.Config, c, x.o.Untied)
				if (err != nil) != (refused != nil) {
					t.Errorf("%s: stock %v, here %v\n%s", f.Name, err, refused, out)
				}
				if err == nil && refused == nil {
					compareFile(t, c, f, to)
				}
			}
		})
	}
}

func compareFile(t *testing.T, c *checkpoint.Checkpoint, f FileType, path string) {
	stock, err := gguf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer stock.Close()
	_, head := stock.Tensor("output.weight")
	types, err := f.Types(c.Config, c, head)
	if err != nil {
		t.Fatal(err)
	}
	stacked := storedNames(c.Config, c)
	for i := range stock.Tensors {
		x := &stock.Tensors[i]
		src, ok := c.Find(x.Name)
		if !ok || stacked[src.Name].name != x.Name {
			continue // part of a stack: types are compared by its parts' name below
		}
		want, ok := types[src.Name]
		if !ok {
			want = gguf.TypeF32
		}
		if want != x.Type {
			t.Errorf("%s: %s, stock %s", x.Name, want, x.Type)
			continue
		}
		if ok {
			compareBytes(t, c, f.Importance, src, stock, x)
		}
	}
	for name, want := range types {
		if x, ok := stock.Tensor(stacked[name].name); !ok || x.Type != want {
			t.Errorf("%s in %s: %s, stock %v", name, stacked[name].name, want, x)
		}
	}
}

// compareBytes quantises a tensor and compares it with a stock file's.
func compareBytes(t *testing.T, c *checkpoint.Checkpoint, importance Importance, src *checkpoint.Tensor,
	stock *gguf.File, x *gguf.Tensor) {
	t.Helper()
	row, err := gguf.RowBytes(x.Type, src.Cols())
	if err != nil {
		t.Fatal(err)
	}
	want, err := io.ReadAll(stock.Reader(x))
	if err != nil {
		t.Fatal(err)
	}
	numbers, got := make([]float32, src.Cols()), make([]byte, row)
	for r := range src.Rows() {
		if err := c.ReadRows(src, r, 1, numbers); err != nil {
			t.Fatal(err)
		}
		of := importance.Of(src.Name, r/src.Shape[len(src.Shape)-2])
		if err := gguf.QuantizeRowWeighted(x.Type, got, numbers, of); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want[r*row:(r+1)*row]) {
			t.Errorf("%s, %s: row %d differs from stock", x.Name, x.Type, r)
			return
		}
	}
}
