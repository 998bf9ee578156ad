package safetensors

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

// FuzzOpen: whatever the bytes, Open returns; what it accepts keeps the rules
// that callers rely on, and survives being written again.
func FuzzOpen(f *testing.F) {
	raw, err := os.ReadFile("testdata/kinds.safetensors")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	var all []verdict
	if raw, err = os.ReadFile("testdata/verdicts.json"); err != nil {
		f.Fatal(err)
	}
	if err := json.Unmarshal(raw, &all); err != nil {
		f.Fatal(err)
	}
	for i := range all {
		if len(all[i].Runs) == 0 {
			f.Add(all[i].bytes(f))
		}
	}
	dir := f.TempDir() // one per worker process
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(dir, "x.safetensors")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := Open(path)
		if err != nil {
			return
		}
		defer f.Close()
		total := int64(0)
		var values []float32
		for i := range f.Tensors {
			x := &f.Tensors[i]
			if x.Begin != total || x.Size() < 0 || len(x.Shape) > MaxDims || x.Rows() < 0 || x.Cols() < 0 {
				t.Fatalf("%+v after %d bytes", x, total)
			}
			total = x.End
			if got, ok := f.Find(x.Name); !ok || got != x {
				t.Fatalf("%q is not found", x.Name)
			}
			if n, err := io.Copy(io.Discard, f.Reader(x)); err != nil || n != x.Size() {
				t.Fatalf("%q: %d bytes, %v", x.Name, n, err)
			}
			if Readable(x.DType) {
				values = make([]float32, x.Rows()*x.Cols())
				if err := f.ReadRows(x, 0, x.Rows(), values); err != nil {
					t.Fatal(err)
				}
				if int64(len(values)*ElementBytes(x.DType)) != x.Size() {
					t.Fatalf("%q: %d values in %d bytes", x.Name, len(values), x.Size())
				}
			}
		}
		if f.data+total != int64(len(data)) {
			t.Fatalf("%d bytes are described, the file has %d", f.data+total, len(data))
		}
		out := filepath.Join(dir, "y.safetensors")
		copyFile(t, f, out, f.Metadata)
		again, err := Open(out)
		if err != nil {
			t.Fatal(err)
		}
		defer again.Close()
		if !reflect.DeepEqual(f.Tensors, again.Tensors) || len(f.Metadata) > 0 &&
			!reflect.DeepEqual(f.Metadata, again.Metadata) {
			t.Fatalf("written again: %+v, %v; was %+v, %v", again.Tensors, again.Metadata, f.Tensors, f.Metadata)
		}
		a, _ := io.ReadAll(io.NewSectionReader(f.f, f.data, total))
		b, _ := io.ReadAll(io.NewSectionReader(again.f, again.data, total))
		if !bytes.Equal(a, b) {
			t.Fatal("the data changed")
		}
	})
}
