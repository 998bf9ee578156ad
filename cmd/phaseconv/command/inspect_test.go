package command

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/format/gguf"
)

// TestInspectLoneShard: one file of a split can be looked at without the others; with
// them the whole split is shown.
func TestInspectLoneShard(t *testing.T) {
	dir := t.TempDir()
	for i := range 2 {
		kvs := []gguf.KV{gguf.Value("split.no", uint16(i)), gguf.Value("split.count", uint16(2)),
			gguf.Value("split.tensors.count", int32(2))}
		name := []string{"a", "b"}[i]
		w, err := gguf.Create(gguf.ShardPath(filepath.Join(dir, "m"), i, 2), kvs, []gguf.TensorSpec{{Name: name,
			Type: gguf.TypeF32, Dims: []int{1}}})
		if err != nil {
			t.Fatal(err)
		}
		if err := w.WriteTensor(name, func(o io.Writer) error {
			_, err := o.Write(make([]byte,
				4))
			return err
		}); err != nil {
			t.Fatal(err)
		}
		if err := w.Commit(); err != nil {
			t.Fatal(err)
		}
	}
	second := gguf.ShardPath(filepath.Join(dir, "m"), 1, 2)
	info, err := inspect(t.Context(), second)
	if err != nil || len(info.Tensors) != 2 || !strings.Contains(info.Container, "2 shards") {
		t.Errorf("%+v, %v", info, err)
	}
	if all, err := inspectLocal(t.Context(), dir); err != nil || len(all) != 1 || len(all[0].Tensors) != 2 {
		t.Errorf("a split is one of %d models in its folder, %v", len(all), err)
	}
	if err := os.Remove(gguf.ShardPath(filepath.Join(dir, "m"), 0, 2)); err != nil {
		t.Fatal(err)
	}
	info, err = inspect(t.Context(), second)
	if err != nil || len(info.Tensors) != 1 || info.Tensors[0].Name != "b" || !strings.Contains(info.Container,
		"alone") || len(info.Keys) != 3 {
		t.Errorf("%+v, %v", info, err)
	}
	renamed := filepath.Join(dir, "other.gguf") // split keys left over
	if err := os.Rename(second, renamed); err != nil {
		t.Fatal(err)
	}
	if info, err = inspect(t.Context(), renamed); err != nil || len(info.Tensors) != 1 {
		t.Errorf("%+v, %v", info, err)
	}
	if err := os.WriteFile(renamed, []byte("GGUF"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err = inspect(t.Context(), renamed); err == nil {
		t.Error("a file that ends in its header")
	}
}

// TestInspectGroups: of a sidecar with groups, inspect says how many there are and what they code.
func TestInspectGroups(t *testing.T) {
	for _, name := range []string{"groups.phase.gguf", "groups.sidecar"} {
		info, err := inspect(t.Context(), filepath.Join("..", "..", "..", "spec", "vectors", name))
		if err != nil {
			t.Fatal(err)
		}
		s := info.Sidecar
		if s == nil || s.Layers != 4 || s.Heads != 3 || s.HeadDim != 8 || s.Groups != 6 || s.Parts != "mixed" ||
			s.GroupDim != 32 || s.Bits != 112./108 || s.Recent != 64 {
			t.Errorf("%s: %+v", name, s)
		}
		var b strings.Builder
		info.print(&b)
		if !strings.Contains(b.String(), "groups: 6, mixed, of at most 32 numbers") ||
			!strings.Contains(b.String(), "sidecar: code joint, ") || strings.Contains(b.String(), "outliers") {
			t.Errorf("%s: %s", name, b.String())
		}
	}
}
