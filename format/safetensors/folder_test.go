package safetensors

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/format/placeholder"
)

func shardOf(i, n int) string {
	return fmt.Sprintf("model-%05d-of-%05d.safetensors", i, n)
}

// TestFolders: files that lie beside each other, as downloads and conversions leave
// them. Transformers reads model.safetensors before the index, others the index,
// others all files; where they would read different ones we must not choose.
func TestFolders(t *testing.T) {
	both := map[string][]string{shardOf(1, 2): {"a"}, shardOf(2, 2): {"b"}}
	with := func(more map[string][]string) map[string][]string {
		out := map[string][]string{}
		for _, m := range []map[string][]string{both, more} {
			for k, v := range m {
				out[k] = v
			}
		}
		return out
	}
	index := `{"weight_map":{"a":"` + shardOf(1, 2) + `","b":"` + shardOf(2, 2) + `"}}`
	single := map[string][]string{SingleName: {"a", "b"}}
	for name, x := range map[string]struct {
		index string
		files map[string][]string
		read  []string // nil: refused
		says  string   // in the error or the notes
	}{
		"shards without index": {"", both, []string{shardOf(1, 2), shardOf(2, 2)}, IndexName + " is missing"},
		"one shard of one, without index": {"", map[string][]string{shardOf(1, 1): {"a"}}, []string{shardOf(1, 1)},
			"1 shards are complete"},
		"a shard and the index missing": {"", map[string][]string{shardOf(2, 2): {"b"}}, nil, "shard " + shardOf(1,
			2) + " is missing"},
		"two splits without index":     {"", with(map[string][]string{shardOf(1, 3): {"c"}}), nil, "shards of 2 and of 3"},
		"single and shards, no index":  {"", with(single), nil, "remove what is not the model"},
		"single beside indexed shards": {index, with(single), nil, "remove what is not the model"},
		"stale index":                  {index, single, []string{SingleName}, "stale"},
		"half-stale index": {index, map[string][]string{SingleName: {"a", "b"}, shardOf(1, 2): {"a"}}, nil,
			"1 of its 2 shards are missing, and model.safetensors is there"},
		"index that names the single": {`{"weight_map":{"a":"model.safetensors","b":"model.safetensors"}}`, single,
			[]string{SingleName}, ""},
		"shards of another split beside": {index, with(map[string][]string{shardOf(3, 3): {"c"}}), []string{shardOf(1, 2),
			shardOf(2, 2)}, shardOf(3, 3)},
		"consolidated beside shards": {index, with(map[string][]string{"consolidated.safetensors": {"x"}}),
			[]string{shardOf(1, 2), shardOf(2, 2)}, ""},
		"an adapter": {"", map[string][]string{"adapter_model.safetensors": {"x"}}, nil,
			"is an adapter"},
		"another name": {"", map[string][]string{"weights.safetensors": {"x"}}, nil,
			"there is weights.safetensors"},
		"shard 1 of 0": {"", map[string][]string{shardOf(1, 0): {"x"}}, nil, "is not one of"},
	} {
		dir := writeSet(t, x.index, x.files)
		s, err := OpenDir(dir)
		if x.read == nil {
			if err == nil || !strings.Contains(err.Error(), x.says) || strings.Contains(err.Error(), ".bin") {
				t.Errorf("%s: %v, want %q", name, err, x.says)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var read []string
		for _, f := range s.Files {
			read = append(read, filepath.Base(f.Path))
		}
		if notes := strings.Join(s.Notes, "\n"); !reflect.DeepEqual(read, x.read) || !strings.Contains(notes,
			x.says) || (x.says == "") != (notes == "") {
			t.Errorf("%s: read %v, notes %q", name, read, notes)
		}
		s.Close()
	}
}

// TestMadeIndex: shards without an index get the one that they should have had.
func TestMadeIndex(t *testing.T) {
	s, err := OpenDir(writeSet(t, "", map[string][]string{shardOf(1, 2): {"a", "c"}, shardOf(2, 2): {"b"}}))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var got any
	if err := json.Unmarshal(s.Index, &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{"metadata": map[string]any{"total_size": 3.0},
		"weight_map": map[string]any{"a": shardOf(1, 2), "c": shardOf(1, 2), "b": shardOf(2, 2)}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s", s.Index)
	}
}

// TestPointers: a Git LFS pointer instead of a shard or of the index is called that,
// and a PyTorch file what it is.
func TestPointers(t *testing.T) {
	pointer := "version https://git-lfs.github.com/spec/v1\noid sha256:" + strings.Repeat("0", 64) + "\nsize 10\n"
	for _, name := range []string{SingleName, IndexName} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(pointer), 0o600); err != nil {
			t.Fatal(err)
		}
		var e *placeholder.Error
		if _, err := OpenDir(dir); !errors.As(err, &e) || filepath.Base(e.File) != name {
			t.Errorf("%s: %v", name, err)
		}
	}
	refused(t, []byte("PK\x03\x04\x00\x00\x08\x08rest"), "PyTorch")
	refused(t, []byte("\x80\x02\x8a\nl\xfc\x9cF\xf9"), "PyTorch")
	refused(t, []byte("GGUF\x03\x00\x00\x00rest"), "GGUF file")
}
