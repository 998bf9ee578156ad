package gguf

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// A file of gguf-py, read and written again, has the same bytes.
func TestRewriteGolden(t *testing.T) {
	for _, name := range []string{"kinds.gguf", "dequant.gguf", "quant.gguf"} {
		f, err := Open("testdata/" + name)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), name)
		if err := rewrite(f, path); err != nil {
			t.Fatal(err)
		}
		f.Close()
		want, _ := os.ReadFile("testdata/" + name)
		got, _ := os.ReadFile(path)
		if !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, the original has %d, or others", name, len(got), len(want))
		}
	}
}

// everyKind is metadata of each kind, scalar and array.
func everyKind() []KV {
	return []KV{
		Value("general.architecture", "test"),
		Value("general.alignment", uint32(128)),
		Value("k.u8", uint8(200)), Value("k.i8", int8(-100)), Value("k.u16", uint16(60000)), Value("k.i16", int16(-30000)),
		Value("k.u32", uint32(4e9)), Value("k.i32", int32(-2e9)), Value("k.u64", uint64(18e18)), Value("k.i64", int64(-9e18)),
		Value("k.f32", float32(0.1)), Value("k.f64", 0.1), Value("k.yes", true), Value("k.no", false),
		Value("k.s", "grüße\n"),
		Array("a.u8", []uint8{0, 255}), Array("a.i8", []int8{-128, 127}), Array("a.u16", []uint16{1, 65535}),
		Array("a.i16", []int16{-32768}), Array("a.u32", []uint32{math.MaxUint32}), Array("a.i32", []int32{math.MinInt32}),
		Array("a.u64", []uint64{math.MaxUint64}), Array("a.i64", []int64{math.MinInt64}),
		Array("a.f32", []float32{1.5, -0.1}),
		Array("a.f64", []float64{1e300}), Array("a.b", []bool{true, false}),
		Array("a.s", []string{"a", "", strings.Repeat("x", 300)}),
		Array("a.none", []string{}),
	}
}

// writeTest writes a file with every kind of metadata and a tensor of every type
// that can be written, and returns its path and the tensors' bytes.
func writeTest(t *testing.T, without ...Type) (string, []TensorSpec, [][]byte, *Writer) {
	t.Helper()
	rng := rand.New(rand.NewPCG(9, 9))
	specs := []TensorSpec{{"scalar", TypeF32, nil}, {"one", TypeI8, []int{1}}, {"f64", TypeF64, []int{3, 1, 1, 2}}}
	data := [][]byte{{0, 0, 0x80, 0x3f}, {7}, bytes.Repeat([]byte{0, 0, 0, 0, 0, 0, 4, 0x40}, 6)}
	for id := range Type(numTypes) {
		if !CanQuantize(id) || slices.Contains(without, id) {
			continue
		}
		x := make([]float32, 3*256)
		for i := range x {
			x[i] = float32(rng.NormFloat64())
		}
		size, _ := RowBytes(id, len(x))
		b := make([]byte, size)
		if err := QuantizeRow(id, b, x); err != nil {
			t.Fatal(err)
		}
		specs = append(specs, TensorSpec{strings.ToLower(id.String()) + ".weight", id, []int{256, 3}})
		data = append(data, b)
	}
	path := filepath.Join(t.TempDir(), "out.gguf")
	w, err := Create(path, everyKind(), specs)
	if err != nil {
		t.Fatal(err)
	}
	for i, s := range specs {
		err := w.WriteTensor(s.Name, func(out io.Writer) error {
			for part := range slices.Chunk(data[i], 100) { // many small writes
				if _, err := out.Write(part); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	return path, specs, data, w
}

func TestWriter(t *testing.T) {
	path, specs, data, w := writeTest(t)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if w.Size() != int64(len(whole)) || len(whole)%128 != 0 {
		t.Errorf("announced %d bytes, wrote %d", w.Size(), len(whole))
	}
	if sum, err := w.SHA256(); err != nil || sum != fmt.Sprintf("%x", sha256.Sum256(whole)) {
		t.Errorf("digest %s, %v", sum, err)
	}
	f, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if f.Version != 3 || f.Alignment != 128 || !reflect.DeepEqual(f.KVs, everyKind()) {
		t.Errorf("version %d, alignment %d, pairs %v", f.Version, f.Alignment, f.KVs)
	}
	end := int64(0)
	for i, s := range specs {
		tensor := &f.Tensors[i]
		b, err := io.ReadAll(f.Reader(tensor))
		if got := tensor.Spec(); err != nil || !bytes.Equal(b, data[i]) || got.Name != s.Name || got.Type != s.Type ||
			!slices.Equal(got.Dims, s.Dims) {
			t.Errorf("tensor %v came back as %v, %v", s, got, err)
		}
		// llama.cpp wants tensors without gaps but padding; padding is zero.
		if i > 0 && tensor.Offset != align(end, 128) {
			t.Errorf("%s is at %d, the one before ends at %d", s.Name, tensor.Offset, end)
		}
		end = tensor.Offset + tensor.Size
		for _, p := range whole[end:min(align(end, 128), int64(len(whole)))] {
			if p != 0 {
				t.Errorf("padding behind %s is not zero", s.Name)
			}
		}
	}
	if w.Abort(); !exists(path) {
		t.Error("Abort after Commit removed the file")
	}
}

func exists(path string) bool { _, err := os.Stat(path); return err == nil }

// Values larger than the reader's window, and arrays that run across its edges.
func TestLargeMetadata(t *testing.T) {
	tokens, scores := make([]string, 20_000), make([]float32, 50_000)
	for i := range tokens {
		tokens[i] = strings.Repeat("t", i%37) + fmt.Sprint(i)
	}
	for i := range scores {
		scores[i] = float32(i)
	}
	kvs := []KV{Value("a", strings.Repeat("long", 50_000)), Array("b", tokens), Value("c", uint8(1)), Array("d", scores),
		Value("e", strings.Repeat("x", window)), Value("f", int64(-5)), Array("g", make([]bool, window+1)),
		Value("h", strings.Repeat("y", window-1)), Value("i", strings.Repeat("y", window+1)), Value("j", true)}
	path := filepath.Join(t.TempDir(), "large.gguf")
	w, err := Create(path, kvs, []TensorSpec{{"t", TypeF32, []int{1}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.WriteTensor("t", func(out io.Writer) error {
		_,
			err := out.Write([]byte{1, 2, 3, 4})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	f, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if !reflect.DeepEqual(f.KVs, kvs) {
		t.Error("the metadata changed")
	}
	if got, err := f.Strings("b"); err != nil || !slices.Equal(got, tokens) {
		t.Errorf("tokens: %v", err)
	}
}

// A file without tensors is padded to the alignment, as llama.cpp writes it.
func TestWriteMetadataOnly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "meta.gguf")
	w, err := Create(path, []KV{Value("general.architecture", "x")}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.SHA256(); err == nil {
		t.Error("a digest that was not asked for")
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	f, err := Open(path)
	if err != nil || len(f.Tensors) != 0 || len(f.KVs) != 1 {
		t.Fatalf("%+v, %v", f, err)
	}
	f.Close()
	if info, _ := os.Stat(path); info.Size() != 96 {
		t.Errorf("%d bytes", info.Size())
	}
}

func TestCreateRefuses(t *testing.T) {
	t.Parallel()
	ok := []TensorSpec{{"t", TypeF32, []int{4}}}
	long := strings.Repeat("n", 64)
	for _, c := range []struct {
		name, want string
		kvs        []KV
		tensors    []TensorSpec
		uns        bool
	}{
		{"empty key", "empty", []KV{Value("", true)}, ok, false},
		{"key twice", "twice", []KV{Value("a", true), Value("a", true)}, ok, false},
		{"key too long", "at most", []KV{Value(strings.Repeat("k", 1<<16), true)}, ok, false},
		{"key not UTF-8", "UTF-8", []KV{Value("\xff", true)}, ok, false},
		{"pair without value", "no value", []KV{{Key: "a"}}, ok, false},
		{"alignment 24", "power of two", []KV{Value("general.alignment", uint32(24))}, ok, false},
		{"alignment as int", "expected uint32", []KV{Value("general.alignment", int32(32))}, ok, false},
		{"tensor twice", "twice", nil, []TensorSpec{ok[0], ok[0]}, false},
		{"name of 64 bytes", "at most 63", nil, []TensorSpec{{long, TypeF32, []int{4}}}, false},
		{"no name", "empty", nil, []TensorSpec{{"", TypeF32, []int{4}}}, false},
		{"name with a zero byte", "zero byte", nil, []TensorSpec{{"a\x00", TypeF32, []int{4}}}, false},
		{"5 dimensions", "5 dimensions", nil, []TensorSpec{{"t", TypeF32, []int{1, 1, 1, 1, 1}}}, false},
		{"dimension 0", "below 1", nil, []TensorSpec{{"t", TypeF32, []int{4, 0}}}, false},
		{"negative dimension", "below 1", nil, []TensorSpec{{"t", TypeF32, []int{-4}}}, false},
		{"part of a block", "block of 32", nil, []TensorSpec{{"t", TypeQ8_0, []int{16, 2}}}, false},
		{"too large", "too many", nil, []TensorSpec{{"t", TypeF32, []int{math.MaxInt, 2}}}, false},
		{"too large together", "too large", nil, []TensorSpec{{"t", TypeI8, []int{math.MaxInt / 2}},
			{"u", TypeI8, []int{math.MaxInt / 2}}}, false},
		{"unknown type", "143", nil, []TensorSpec{{"t", Type(143), []int{32}}}, true},
	} {
		if strconv.IntSize == 32 && c.name == "too large together" {
			continue // two tensors of 1 GB are fine
		}
		dir := t.TempDir()
		w, err := Create(filepath.Join(dir, "x.gguf"), c.kvs, c.tensors)
		if err == nil || !strings.Contains(err.Error(), c.want) || c.uns != errorIs[*UnsupportedError](err) ||
			c.uns == errorIs[*FormatError](err) {
			t.Errorf("%s: %v (%T)", c.name, err, err)
		}
		if w != nil {
			w.Abort()
		}
		if left, _ := os.ReadDir(dir); len(left) > 0 {
			t.Errorf("%s: left %v", c.name, left)
		}
	}
	w, err := Create(filepath.Join(t.TempDir(), "x.gguf"), nil, []TensorSpec{{long[:63], TypeF32, []int{4}}})
	if err != nil {
		t.Fatalf("a name of 63 bytes: %v", err)
	}
	w.Abort()
	if _, err := Create(filepath.Join(t.TempDir(), "no", "folder", "x.gguf"), nil, ok); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a folder that is not there: %v", err)
	}
}

// Whatever goes wrong between Create and Commit, no file appears.
func TestWriterMisuse(t *testing.T) {
	put := func(n int) func(io.Writer) error {
		return func(w io.Writer) error { _, err := w.Write(make([]byte, n)); return err }
	}
	boom := errors.New("boom")
	for _, c := range []struct {
		name, want string
		use        func(*Writer) error
	}{
		{"missing tensor", `"u"`, func(w *Writer) error { return w.WriteTensor("t", put(16)) }},
		{"wrong order", `"t" is to be written next`, func(w *Writer) error { return w.WriteTensor("u", put(34)) }},
		{"unknown name", "written next", func(w *Writer) error { return w.WriteTensor("x", put(1)) }},
		{"too few bytes", "15 bytes were written", func(w *Writer) error { return w.WriteTensor("t", put(15)) }},
		{"too many bytes", "1 bytes more", func(w *Writer) error { return w.WriteTensor("t", put(17)) }},
		{"too many bytes, unnoticed", "more than the 16 bytes", func(w *Writer) error {
			return w.WriteTensor("t", func(w io.Writer) error { put(16)(w); put(1)(w); return nil })
		}},
		{"the source fails", "boom", func(w *Writer) error {
			return w.WriteTensor("t",
				func(io.Writer) error { return boom })
		}},
		{"one too many", "all tensors", func(w *Writer) error {
			return errors.Join(w.WriteTensor("t", put(16)), w.WriteTensor("u", put(34)), w.WriteTensor("v", put(1)))
		}},
		{"writing on after an error", "15 bytes",
			func(w *Writer) error { w.WriteTensor("t", put(15)); return w.WriteTensor("t", put(16)) }},
		{"copy of another size", "more than", func(w *Writer) error {
			f, err := open(small())
			if err != nil {
				t.Fatal(err)
			}
			return w.CopyTensor(f, &Tensor{Name: "t", Type: TypeF32, Size: 48, src: f.Tensors[0].src})
		}},
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, "x.gguf")
		w, err := Create(path, nil, []TensorSpec{{"t", TypeF32, []int{4}}, {"u", TypeQ8_0, []int{32}}})
		if err != nil {
			t.Fatal(err)
		}
		useErr := c.use(w)
		err = w.Commit()
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: Commit: %v", c.name, err)
		}
		if c.name != "missing tensor" && useErr == nil {
			t.Errorf("%s: no error before Commit", c.name)
		}
		if _, err := w.SHA256(); err == nil {
			t.Errorf("%s: a digest of nothing", c.name)
		}
		if left, _ := os.ReadDir(dir); len(left) > 0 {
			t.Errorf("%s: left %v", c.name, left)
		}
	}
	if w, err := Create(filepath.Join(t.TempDir(), "x.gguf"), nil, []TensorSpec{{"t", TypeF32, []int{4}}}); err != nil {
		t.Fatal(err)
	} else {
		var kept io.Writer
		w.WriteTensor("t", func(out io.Writer) error { kept = out; _, err := out.Write(make([]byte, 16)); return err })
		if _, err := kept.Write([]byte{1}); err == nil {
			t.Error("a tensor's writer works on after the tensor")
		}
		if err := w.Commit(); err != nil {
			t.Error(err)
		}
		if err := w.Commit(); err == nil {
			t.Error("second Commit")
		}
		if err := w.WriteTensor("t", nil); err == nil {
			t.Error("WriteTensor after Commit")
		}
	}
	// An abandoned file is removed, and an existing one stays as it is until Commit.
	path := filepath.Join(t.TempDir(), "x.gguf")
	if err := os.WriteFile(path, []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	w, err := Create(path, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	w.Abort()
	if _, err := w.SHA256(); err == nil {
		t.Error("a digest after Abort")
	}
	if b, _ := os.ReadFile(path); string(b) != "old" {
		t.Errorf("the old file became %q", b)
	}
}

// The copies in a File's metadata and tensors are independent of what a caller
// does with the results.
func TestSpecIsACopy(t *testing.T) {
	f, err := open(small())
	if err != nil {
		t.Fatal(err)
	}
	f.Tensors[0].Spec().Dims[0] = 99
	f.Tensors[0].Shape()[0] = 99
	if f.Tensors[0].Dims[0] != 4 || f.Tensors[0].Rows() != 3 {
		t.Error("the tensor changed")
	}
}

// python returns a Python that has gguf-py, or skips the test.
func python(t *testing.T) string {
	t.Helper()
	p := os.Getenv("PHASECONV_PYTHON")
	if p == "" {
		t.Skip("set PHASECONV_PYTHON to a Python with the package gguf to compare with gguf-py")
	}
	return p
}

type pyFile struct {
	Alignment int `json:"alignment"`
	KV        map[string]struct {
		Kinds []string `json:"kinds"`
		Value any      `json:"value"`
	} `json:"kv"`
	Tensors []struct {
		Name    string `json:"name"`
		Type    string `json:"type"`
		Dims    []int  `json:"dims"`
		Offset  int64  `json:"offset"`
		SHA256  string `json:"sha256"`
		Float32 string `json:"float32"`
	} `json:"tensors"`
}

func readWithPython(t *testing.T, py, path string, stride int) pyFile {
	t.Helper()
	cmd := exec.Command(py, "testdata/roundtrip.py", path, fmt.Sprint(stride))
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var p pyFile
	if err := json.Unmarshal(out, &p); err != nil {
		t.Fatal(err)
	}
	return p
}

// pyValue is a value in the form that roundtrip.py prints.
func pyValue(v any) any {
	switch v := v.(type) {
	case bool, string:
		return v
	case float32:
		return pyValue(float64(v))
	case float64:
		return fmt.Sprintf("%016x", math.Float64bits(v))
	}
	if r := reflect.ValueOf(v); r.Kind() == reflect.Slice {
		list := make([]any, r.Len())
		for i := range list {
			list[i] = pyValue(r.Index(i).Interface())
		}
		return list
	}
	return fmt.Sprint(v)
}

// compareWithPython checks that this package and gguf-py read the same in path.
func compareWithPython(t *testing.T, py, path string, stride int) (tensors, dequantized int) {
	t.Helper()
	p := readWithPython(t, py, path, stride)
	f, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if p.Alignment != f.Alignment || len(p.KV) != len(f.KVs) || len(p.Tensors) != len(f.Tensors) {
		t.Fatalf("gguf-py: alignment %d, %d pairs, %d tensors; here %d, %d, %d",
			p.Alignment, len(p.KV), len(p.Tensors), f.Alignment, len(f.KVs), len(f.Tensors))
	}
	for _, kv := range f.KVs {
		kinds := []string{strings.ToUpper(kv.Kind().String())}
		if elem, ok := kv.Elem(); ok && kv.Len() > 0 {
			kinds = append(kinds, strings.ToUpper(elem.String()))
		}
		got := p.KV[kv.Key]
		if !slices.Equal(got.Kinds, kinds) || !reflect.DeepEqual(got.Value, pyValue(kv.Value())) {
			t.Errorf("%s: gguf-py has %v %v", kv, got.Kinds, got.Value)
		}
	}
	for i, got := range p.Tensors {
		tensor := &f.Tensors[i]
		dims := tensor.Dims
		if got.Name != tensor.Name || got.Type != tensor.Type.String() || !slices.Equal(got.Dims, dims) ||
			got.Offset != tensor.Offset {
			t.Errorf("tensor %d: gguf-py has %+v, here %+v", i, got, tensor)
		}
		h := sha256.New()
		if _, err := io.Copy(h, f.Reader(tensor)); err != nil {
			t.Fatal(err)
		}
		if hex.EncodeToString(h.Sum(nil)) != got.SHA256 {
			t.Errorf("%s: gguf-py reads other bytes", tensor.Name)
		}
		if got.Float32 == "" || !CanDequantize(tensor.Type) {
			continue
		}
		h.Reset()
		x, buf := make([]float32, tensor.RowLen()), []byte{}
		for row := range tensor.Rows() {
			if err := f.ReadRows(tensor, row, 1, x); err != nil {
				t.Fatal(err)
			}
			buf = buf[:0]
			for _, v := range x {
				if v != v {
					v = math.Float32frombits(0x7fc00000)
				}
				buf = binary.LittleEndian.AppendUint32(buf, math.Float32bits(v))
			}
			h.Write(buf)
		}
		if hex.EncodeToString(h.Sum(nil)) != got.Float32 {
			t.Errorf("%s (%s): gguf-py dequantises to other bits", tensor.Name, tensor.Type)
		}
		dequantized++
	}
	return len(f.Tensors), dequantized
}

// gguf-py reads in our files what we put in. It has no Q2_0; stock llama.cpp is what that is held
// against (verify/quantweights).
func TestPythonReadsOurs(t *testing.T) {
	py := python(t)
	path, _, _, _ := writeTest(t, TypeQ2_0)
	tensors, dequantized := compareWithPython(t, py, path, 1)
	if dequantized < 10 {
		t.Errorf("only %d of %d tensors were dequantised", dequantized, tensors)
	}
}

// Real models, if the environment variable PHASECONV_MODELS names a folder with
// some: rewriting gives the same bytes, and gguf-py reads the same.
func TestRealModels(t *testing.T) {
	dir := os.Getenv("PHASECONV_MODELS")
	if dir == "" {
		t.Skip("set PHASECONV_MODELS to a folder with GGUF files to test with real models")
	}
	paths, _ := filepath.Glob(filepath.Join(dir, "*.gguf"))
	if len(paths) == 0 {
		t.Fatalf("no GGUF file in %s", dir)
	}
	for _, path := range paths {
		t.Run(filepath.Base(path), func(t *testing.T) {
			f, err := Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			out := filepath.Join(t.TempDir(), "copy.gguf")
			if err := rewrite(f, out); err != nil {
				t.Fatal(err)
			}
			if a, b := fileSum(t, path), fileSum(t, out); a != b {
				t.Errorf("the copy has other bytes: %s, %s", a, b)
			}
			if py := os.Getenv("PHASECONV_PYTHON"); py != "" {
				tensors, dequantized := compareWithPython(t, py, path, 16)
				t.Logf("gguf-py agrees on %d tensors, dequantised %d of them", tensors, dequantized)
			}
		})
	}
}

func fileSum(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}

func BenchmarkOpen(b *testing.B) {
	tokens := make([]string, 150_000) // a vocabulary of common size
	for i := range tokens {
		tokens[i] = fmt.Sprintf("token%d", i)
	}
	path := filepath.Join(b.TempDir(), "vocab.gguf")
	w, err := Create(path, []KV{Array("tokenizer.ggml.tokens", tokens)}, nil)
	if err != nil {
		b.Fatal(err)
	}
	if err := w.Commit(); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(w.Size())
	for b.Loop() {
		f, err := Open(path)
		if err != nil {
			b.Fatal(err)
		}
		if s, err := f.Strings("tokenizer.ggml.tokens"); err != nil || len(s) != len(tokens) {
			b.Fatal(err)
		}
		f.Close()
	}
}
