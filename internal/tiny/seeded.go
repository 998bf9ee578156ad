package tiny

import (
	"encoding/json"
	"hash/fnv"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/phaseconv/phaseconv/format/safetensors"
)

// weightsName is what a folder has in place of weights that are computed; see Folder.
const weightsName = "weights.json"

// Folder returns dir, the folder of a tiny model, as it is if it has its weights. Otherwise it
// makes a folder for the time of the test with dir's configuration, the weights that
// scripts/oracles/make_seeded.py describes, and the tokenizer of a folder beside it.
func Folder(t testing.TB, dir string) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(dir, weightsName))
	if os.IsNotExist(err) {
		return dir
	}
	if err != nil {
		t.Fatal(err)
	}
	var spec map[string][4]json.RawMessage
	if err := json.Unmarshal(raw, &spec); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), filepath.Base(dir))
	if err := os.Mkdir(out, 0o777); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{filepath.Join(dir, "config.json"), filepath.Join(dir, "..", "llama", "tokenizer.json"),
		filepath.Join(dir, "..", "llama", "tokenizer_config.json")} {
		b, err := os.ReadFile(name)
		if err == nil {
			err = os.WriteFile(filepath.Join(out, filepath.Base(name)), b, 0o666)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	var tensors []safetensors.Tensor
	spread := map[string][2]float64{}
	for name, x := range spec {
		s := safetensors.Tensor{Name: name}
		var mean, width float64
		for i, p := range []any{&s.DType, &s.Shape, &mean, &width} {
			if err := json.Unmarshal(x[i], p); err != nil {
				t.Fatal(err)
			}
		}
		tensors = append(tensors, s)
		spread[name] = [2]float64{mean, width}
	}
	slices.SortFunc(tensors, func(a, b safetensors.Tensor) int {
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
	w, err := safetensors.Create(filepath.Join(out, safetensors.SingleName), tensors, map[string]string{"format": "pt"})
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range tensors {
		b := seeded(filepath.Base(dir)+"/"+x.Name, x, spread[x.Name])
		if err := w.WriteTensor(x.Name, func(o io.Writer) error { _, err := o.Write(b); return err }); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	return out
}

// seeded returns a tensor's bytes.
func seeded(name string, x safetensors.Tensor, spread [2]float64) []byte {
	h := fnv.New64a()
	h.Write([]byte(name))
	seed, n := h.Sum64(), 1
	for _, d := range x.Shape {
		n *= d
	}
	u := func(i int) float64 {
		z := seed + uint64(i+1)*0x9e3779b97f4a7c15
		z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		return float64((z^z>>31)>>40) / (1 << 24)
	}
	if x.DType == "U8" {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(spread[0] + float64(int(u(i)*spread[1])))
		}
		return b
	}
	values := make([]float32, n)
	for i := range values {
		values[i] = float32(spread[0] + float64(spread[1]*(2*u(i)-1)))
	}
	b := make([]byte, n*safetensors.ElementBytes(x.DType))
	safetensors.Encode(x.DType, b, values)
	return b
}
