package safetensors_test

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	nlp "github.com/nlpodyssey/safetensors"

	"github.com/phaseconv/phaseconv/format/safetensors"
)

// compare holds our view of a file against nlpodyssey's.
func compare(t *testing.T, f *safetensors.File, o nlp.SafeTensors) {
	t.Helper()
	if o.Len() != len(f.Tensors) {
		t.Errorf("nlpodyssey finds %d tensors, here %d", o.Len(), len(f.Tensors))
	}
	for i := range f.Tensors {
		x := &f.Tensors[i]
		v, ok := o.Tensor(x.Name)
		if !ok {
			t.Errorf("%q: not found by nlpodyssey", x.Name)
			continue
		}
		shape := make([]int, len(v.Shape()))
		for j, d := range v.Shape() {
			shape[j] = int(d)
		}
		data, err := io.ReadAll(f.Reader(x))
		if err != nil {
			t.Fatal(err)
		}
		if v.DType().String() != x.DType || !slices.Equal(shape, x.Shape) || !bytes.Equal(v.Data(), data) {
			t.Errorf("%q: nlpodyssey has %v %v and %d bytes, here %s %v and %d", x.Name, v.DType(), shape, len(v.Data()),
				x.DType, x.Shape, len(data))
		}
	}
}

// The types that nlpodyssey knows, and their bytes.
var types = map[nlp.DType]int{nlp.BOOL: 1, nlp.U8: 1, nlp.I8: 1, nlp.I16: 2, nlp.U16: 2, nlp.F16: 2, nlp.BF16: 2,
	nlp.I32: 4, nlp.U32: 4, nlp.F32: 4, nlp.F64: 8, nlp.I64: 8, nlp.U64: 8}

// TestNLPRandomFiles writes random tensors with one side and reads them with the other.
func TestNLPRandomFiles(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(1, 2))
	dts := make([]nlp.DType, 0, len(types))
	for dt := range types {
		dts = append(dts, dt)
	}
	slices.Sort(dts)
	for range 200 {
		views := map[string]nlp.TensorView{}
		var ours []safetensors.Tensor
		for i := range r.IntN(12) {
			dt := dts[r.IntN(len(dts))]
			n, shape, dims := types[dt], []uint64{}, []int{}
			// Not 0 dimensions: nlpodyssey's NewTensorView takes a scalar for empty.
			for range 1 + r.IntN(3) {
				d := r.IntN(5)
				n *= d
				shape, dims = append(shape, uint64(d)), append(dims, d)
			}
			data := make([]byte, n)
			for j := range data {
				data[j] = byte(r.Uint32())
			}
			name := fmt.Sprintf("t%d/%c\"\\%d", r.IntN(1e6), rune(0x4e00+i), i)
			v, err := nlp.NewTensorView(dt, shape, data)
			if err != nil {
				t.Fatal(err)
			}
			views[name] = v
			ours = append(ours, safetensors.Tensor{Name: name, DType: dt.String(), Shape: dims})
		}
		meta := map[string]string{"format": "pt", "k\n": "<&>"}
		path := filepath.Join(t.TempDir(), "x.safetensors")

		raw, err := nlp.Serialize(views, meta)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := safetensors.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		o, err := nlp.Deserialize(raw)
		if err != nil {
			t.Fatal(err)
		}
		compare(t, f, o)
		if len(f.Metadata) != 2 || f.Metadata["k\n"] != "<&>" {
			t.Errorf("metadata %v", f.Metadata)
		}
		f.Close()

		w, err := safetensors.Create(path, ours, meta)
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range ours {
			if err := w.WriteTensor(x.Name,
				func(out io.Writer) error { _, err := out.Write(views[x.Name].Data()); return err }); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Commit(); err != nil {
			t.Fatal(err)
		}
		if f, err = safetensors.Open(path); err != nil {
			t.Fatal(err)
		}
		if raw, err = os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
		if o, err = nlp.Deserialize(raw); err != nil {
			t.Fatal(err)
		}
		compare(t, f, o)
		f.Close()
	}
}

// stricter lists what nlpodyssey refuses and we accept: keys that it does not
// know inside an entry, and element types that it does not know.
var stricter = []string{
	"text dtype", "other case dtype", "other case shape", "other case data_offsets",
	"type F4 (4,) 2", "type F6_E2M3 (4,) 3", "type F6_E3M2 (4,) 3", "type F8_E4M3 (3,) 3", "type F8_E5M2 (3,) 3",
	"type F8_E8M0 (3,) 3",
	"type F8_E4M3FNUZ (3,) 3", "type F8_E5M2FNUZ (3,) 3", "type C64 (1,) 8", "type F128 (1,) 16", "type f32 (1,) 4",
	"type  (1,) 4", "type I4 (8,) 4",
	"unknown key", "unknown key twice",
}

// TestNLPVerdicts compares the two on the headers of testdata/verdicts.json
// that we accept.
func TestNLPVerdicts(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile("testdata/verdicts.json")
	if err != nil {
		t.Fatal(err)
	}
	var all []struct {
		Name, Header string
		Data         int
	}
	if err := json.Unmarshal(raw, &all); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "x.safetensors")
	both, only := 0, []string{}
	for _, v := range all {
		header, err := base64.StdEncoding.DecodeString(v.Header)
		if err != nil {
			t.Fatal(err)
		}
		b := append(binary.LittleEndian.AppendUint64(nil, uint64(len(header))), header...)
		for i := range v.Data {
			b = append(b, byte(i))
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := safetensors.Open(path)
		if err != nil {
			continue
		}
		o, err := nlp.Deserialize(b)
		if err != nil {
			only = append(only, v.Name)
		} else {
			compare(t, f, o)
			both++
		}
		f.Close()
	}
	if !slices.Equal(only, stricter) {
		t.Errorf("accepted only here: %q", only)
	}
	if both < 30 {
		t.Errorf("only %d headers are accepted by both", both)
	}
}
