package safetensors

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// FuzzIndex: whatever an index says, OpenDir returns; what it accepts lies in the
// folder, and every tensor that the index names is in the shard that it names.
func FuzzIndex(f *testing.F) {
	dir := f.TempDir() // one per worker process
	for shard, names := range map[string][]string{"1.safetensors": {"a", "b"}, "2.safetensors": {"c"}} {
		var ts []Tensor
		for _, n := range names {
			ts = append(ts, Tensor{Name: n, DType: "U8", Shape: []int{1}})
		}
		w, err := Create(filepath.Join(dir, shard), ts, nil)
		if err != nil {
			f.Fatal(err)
		}
		for _, n := range names {
			if err := w.WriteTensor(n, func(o io.Writer) error { _, err := o.Write([]byte(n)); return err }); err != nil {
				f.Fatal(err)
			}
		}
		if err := w.Commit(); err != nil {
			f.Fatal(err)
		}
	}
	for _, s := range []string{
		`{"metadata":{"total_size":3},"weight_map":{"a":"1.safetensors","b":"1.safetensors","c":"2.safetensors"}}`,
		`{"weight_map":{"a":"1.safetensors"}}`, `{"weight_map":{"a":"2.safetensors"}}`,
		`{"weight_map":{"a":"3.safetensors"}}`,
		`{"weight_map":{"a":"../1.safetensors"}}`, `{"weight_map":{"a":".."}}`, `{"weight_map":{"a":""}}`,
		`{"weight_map":{"a":"model.safetensors.index.json"}}`,
		`{"weight_map":{"a":1}}`, `{"weight_map":[]}`, `{"weight_map":{}}`, `{"WEIGHT_MAP":{"a":"1.safetensors"}}`, `[]`, ``,
		`{`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if err := os.WriteFile(filepath.Join(dir, IndexName), raw, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := OpenDir(dir)
		if err != nil {
			if !strings.Contains(err.Error(), dir) {
				t.Fatalf("the error names no file: %v", err)
			}
			return
		}
		defer s.Close()
		index, err := parseIndex(raw)
		if err != nil || len(index) == 0 {
			t.Fatalf("accepted: %v, %v", index, err)
		}
		for name, shard := range index {
			r, ok := s.Find(name)
			if !ok || r.File.Path != filepath.Join(dir, shard) {
				t.Fatalf("%q is not in %q", name, shard)
			}
		}
	})
}
