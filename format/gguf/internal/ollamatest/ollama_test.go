package ollamatest

import (
	"bytes"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/ollama/ollama/fs/ggml"
	ollama "github.com/ollama/ollama/fs/gguf"

	"github.com/phaseconv/phaseconv/format/gguf"
)

// compare reads path with this module's reader and ollama's two.
func compare(t *testing.T, path string) (tensors int) {
	t.Helper()
	f, err := gguf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()

	// fs/gguf: metadata by value, tensors with their bytes.
	o, err := ollama.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	if o.NumKeyValues() != len(f.KVs) || o.NumTensors() != len(f.Tensors) {
		t.Errorf("ollama finds %d pairs and %d tensors, here %d and %d", o.NumKeyValues(), o.NumTensors(), len(f.KVs),
			len(f.Tensors))
	}
	byKey := map[string]ollama.KeyValue{}
	for _, kv := range o.KeyValues() {
		byKey[kv.Key] = kv
	}
	for _, kv := range f.KVs {
		if got, ok := byKey[kv.Key]; !ok || !sameValue(got.Value, kv.Value()) {
			t.Errorf("%s: ollama has %+v", kv, got)
		}
	}
	for i := range f.Tensors {
		tensor := &f.Tensors[i]
		info, r, err := o.TensorReader(tensor.Name)
		if err != nil {
			t.Errorf("%s: %v", tensor.Name, err)
			continue
		}
		dims := make([]uint64, len(tensor.Dims))
		for j, d := range tensor.Dims {
			dims[j] = uint64(d)
		}
		if !slices.Equal(info.Shape, dims) || uint32(info.Type) != uint32(tensor.Type) || info.NumBytes() != tensor.Size {
			t.Errorf("%s: ollama has %+v with %d bytes, here %v %s with %d", tensor.Name, info, info.NumBytes(), dims,
				tensor.Type, tensor.Size)
		}
		if !sameBytes(t, r, f.Reader(tensor)) {
			t.Errorf("%s: ollama reads other bytes", tensor.Name)
		}
	}

	// fs/ggml: sizes and offsets. It adds general.parameter_count to the metadata.
	osFile, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer osFile.Close()
	g, err := ggml.Decode(osFile, -1)
	if err != nil {
		t.Fatal(err)
	}
	items := g.Tensors().Items()
	if len(items) != len(f.Tensors) {
		t.Fatalf("ggml.Decode finds %d tensors", len(items))
	}
	base := uint64(g.Tensors().Offset)
	for i, item := range items {
		tensor := f.Tensors[i]
		if item.Name != tensor.Name || item.Kind != uint32(tensor.Type) || item.Size() != uint64(tensor.Size) ||
			base+item.Offset != uint64(tensor.Offset) {
			t.Errorf("ggml.Decode has %+v of %d bytes at %d, here %+v", item, item.Size(), base+item.Offset, tensor)
		}
	}
	return len(f.Tensors)
}

// sameValue compares by content; ollama's Value hides its field.
func sameValue(v ollama.Value, want any) bool {
	w := reflect.ValueOf(want)
	switch w.Kind() {
	case reflect.Slice:
		switch w.Type().Elem().Kind() {
		case reflect.String:
			return slices.Equal(v.Strings(), want.([]string))
		case reflect.Bool:
			return slices.Equal(v.Bools(), want.([]bool))
		case reflect.Float32, reflect.Float64:
			return each(v.Floats(), w, reflect.Value.Float)
		case reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
			return each(v.Ints(), w, reflect.Value.Int)
		}
		return each(v.Uints(), w, reflect.Value.Uint)
	case reflect.String:
		return v.String() == w.String()
	case reflect.Bool:
		return v.Bool() == w.Bool()
	case reflect.Float32, reflect.Float64:
		return v.Float() == w.Float()
	case reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return v.Int() == w.Int()
	}
	return v.Uint() == w.Uint()
}

func each[T comparable](got []T, want reflect.Value, get func(reflect.Value) T) bool {
	if len(got) != want.Len() {
		return false
	}
	for i, g := range got {
		if g != get(want.Index(i)) {
			return false
		}
	}
	return true
}

func sameBytes(t *testing.T, a, b io.Reader) bool {
	t.Helper()
	bufA, bufB := make([]byte, 1<<16), make([]byte, 1<<16)
	for {
		n, errA := io.ReadFull(a, bufA)
		m, errB := io.ReadFull(b, bufB)
		if n != m || !bytes.Equal(bufA[:n], bufB[:m]) || (errA == nil) != (errB == nil) {
			return false
		}
		if errA != nil {
			return true
		}
	}
}

// Types that ollama's tables know with the right size.
var types = []gguf.Type{gguf.TypeF32, gguf.TypeF16, gguf.TypeBF16, gguf.TypeQ8_0, gguf.TypeQ4_0, gguf.TypeQ4_1,
	gguf.TypeQ5_0, gguf.TypeQ5_1, gguf.TypeQ2_K, gguf.TypeQ3_K, gguf.TypeQ4_K, gguf.TypeQ5_K, gguf.TypeQ6_K}

func randomTensors() ([]gguf.TensorSpec, [][]byte) {
	rng := rand.New(rand.NewPCG(1, 2))
	var specs []gguf.TensorSpec
	var data [][]byte
	for i, id := range types {
		dims := []int{256 * (1 + i%2), 1 + i%3, 1 + i%2}[:1+i%3]
		n := 1
		for _, d := range dims {
			n *= d
		}
		size, _ := gguf.RowBytes(id, n)
		b := make([]byte, size)
		for j := range b {
			b[j] = byte(rng.Uint32())
		}
		specs = append(specs, gguf.TensorSpec{Name: "blk.0." + strings.ToLower(id.String()), Type: id, Dims: dims})
		data = append(data, b)
	}
	return specs, data
}

func TestOllamaReadsOurs(t *testing.T) {
	specs, data := randomTensors()
	path := filepath.Join(t.TempDir(), "ours.gguf")
	w, err := gguf.Create(path, []gguf.KV{
		gguf.Value("general.architecture", "llama"),
		gguf.Value("general.alignment", uint32(32)),
		gguf.Value("llama.u8", uint8(7)), gguf.Value("llama.i8", int8(-7)), gguf.Value("llama.u16", uint16(7)),
		gguf.Value("llama.i16", int16(-7)),
		gguf.Value("llama.u32", uint32(7)), gguf.Value("llama.i32", int32(-7)), gguf.Value("llama.u64", uint64(1<<63)),
		gguf.Value("llama.i64", int64(-1)),
		gguf.Value("llama.f32", float32(0.1)), gguf.Value("llama.f64", 0.1), gguf.Value("llama.b", true),
		gguf.Value("llama.s", "grüße"),
		gguf.Array("llama.u8s", []uint8{1, 2}), gguf.Array("llama.i8s", []int8{-1}),
		gguf.Array("llama.u32s", []uint32{1, 2, 3}),
		gguf.Array("llama.i64s", []int64{-1}), gguf.Array("llama.f32s", []float32{0.5, -0.1}),
		gguf.Array("llama.bs", []bool{true, false}),
		gguf.Array("tokenizer.ggml.tokens", []string{"a", "", "ü"}),
	}, specs)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	for i, s := range specs {
		if err := w.WriteTensor(s.Name, func(out io.Writer) error { _, err := out.Write(data[i]); return err }); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	if n := compare(t, path); n != len(types) {
		t.Errorf("compared %d tensors", n)
	}
}

func TestWeReadOllamas(t *testing.T) {
	specs, data := randomTensors()
	path := filepath.Join(t.TempDir(), "ollama.gguf")
	out, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	var tensors []*ggml.Tensor
	for i, s := range specs {
		var shape []uint64 // ollama too takes ggml order
		for _, d := range s.Dims {
			shape = append(shape, uint64(d))
		}
		tensors = append(tensors, &ggml.Tensor{Name: s.Name, Kind: uint32(s.Type), Shape: shape,
			WriterTo: bytes.NewReader(data[i])})
	}
	if err := ggml.WriteGGUF(out, ggml.KV{
		"general.architecture": "llama", "llama.block_count": uint32(1), "llama.rope.freq_base": float32(10000),
		"llama.flags": []bool{true, false}, "llama.big": uint64(1 << 40), "llama.ints": []int32{-1, 2}, "general.name": "x",
		"tokenizer.ggml.tokens": []string{"a", "b"}, "tokenizer.ggml.scores": []float32{0, -1},
	}, tensors); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	if n := compare(t, path); n != len(types) {
		t.Errorf("compared %d tensors", n)
	}
	f, err := gguf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for i, s := range specs {
		tensor, ok := f.Tensor(s.Name)
		if !ok {
			t.Fatalf("%s is missing", s.Name)
		}
		if b, err := io.ReadAll(f.Reader(tensor)); err != nil || !bytes.Equal(b, data[i]) {
			t.Errorf("%s: other bytes than were written: %v", s.Name, err)
		}
	}
	if s, err := f.Floats("tokenizer.ggml.scores"); err != nil || !slices.Equal(s, []float64{0, -1}) {
		t.Errorf("scores %v, %v", s, err)
	}
}

func TestRealModels(t *testing.T) {
	dir := os.Getenv("PHASECONV_MODELS")
	if dir == "" {
		t.Skip("set PHASECONV_MODELS to a folder with GGUF files to compare on them")
	}
	paths, _ := filepath.Glob(filepath.Join(dir, "*.gguf"))
	if len(paths) == 0 {
		t.Fatalf("no GGUF file in %s", dir)
	}
	for _, path := range paths {
		t.Run(filepath.Base(path), func(t *testing.T) { t.Logf("%d tensors agree", compare(t, path)) })
	}
}
