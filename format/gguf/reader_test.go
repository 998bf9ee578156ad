package gguf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/phaseconv/phaseconv/format"
)

// enc builds files by hand: integers little-endian, strings with their length,
// []byte as it is.
func enc(parts ...any) []byte {
	var b []byte
	for _, p := range parts {
		switch p := p.(type) {
		case string:
			b = append(binary.LittleEndian.AppendUint64(b, uint64(len(p))), p...)
		case []byte:
			b = append(b, p...)
		case Kind:
			b = binary.LittleEndian.AppendUint32(b, uint32(p))
		case Type:
			b = binary.LittleEndian.AppendUint32(b, uint32(p))
		default:
			b = appendScalar(b, p)
		}
	}
	return b
}

// header is a version 3 file of the given counts up to the first pair.
func header(tensors, kvs uint64) []byte { return enc([]byte("GGUF"), uint32(3), tensors, kvs) }

// tensorInfo describes a tensor; dims are ggml order.
func tensorInfo(name string, t Type, offset uint64, dims ...uint64) []byte {
	b := enc(name, uint32(len(dims)))
	for _, d := range dims {
		b = enc(b, d)
	}
	return enc(b, t, offset)
}

// withData pads header parts to a and appends n bytes of data.
func withData(a, n int, parts ...any) []byte {
	b := enc(parts...)
	b = append(b, make([]byte, int(align(int64(len(b)), a))-len(b))...)
	return append(b, make([]byte, n)...)
}

func open(b []byte) (*File, error) { return NewFile(bytes.NewReader(b), int64(len(b)), "test.gguf") }

// small is a valid file with a bit of everything.
func small() []byte {
	return withData(32, 64+34, header(2, 5),
		"general.architecture", KindString, "llama",
		"a.nested", KindArray, KindArray, uint64(2), KindUint8, uint64(2), uint8(1), uint8(2), KindString, uint64(1), "x",
		"a.bools", KindArray, KindBool, uint64(2), true, false,
		"a.float", KindFloat64, 2.5,
		"a.strings", KindArray, KindString, uint64(3), "tok", "", "en",
		tensorInfo("a", TypeF32, 0, 4, 3), tensorInfo("b", TypeQ8_0, 64, 32))
}

var hostile = []struct {
	name string
	file []byte
	want string // part of the message
	uns  bool   // an *UnsupportedError
}{
	{"empty", nil, "ends inside the magic", false},
	{"other magic", []byte("ABCD" + strings.Repeat("\x00", 40)), "not a GGUF file", false},
	{"version 1", enc([]byte("GGUF"), uint32(1), uint64(0), uint64(0)), "version 1", true},
	{"version 4", enc([]byte("GGUF"), uint32(4), uint64(0), uint64(0)), "version 4", true},
	{"version 0", enc([]byte("GGUF"), uint32(0), uint64(0), uint64(0)), "version 0", true},
	{"big-endian", enc([]byte("GGUF"), uint32(0x03000000), uint64(0), uint64(0)), "big-endian", true},
	{"too many tensors", header(1<<62, 0), "at most", false},
	{"one tensor too many", header(MaxTensors+1, 0), "at most", false},
	{"one pair too many", header(0, MaxKVs+1), "at most", false},
	{"key one byte too long", enc(header(0, 1), uint64(MaxKeyLength+1), make([]byte, MaxKeyLength+9)), "at most", false},
	{"string one byte too long", enc(header(0, 1), "k", KindString, uint64(MaxStringLength+1)), "at most", false},
	{"array one element too long", enc(header(0, 1), "k", KindArray, KindUint8, uint64(MaxArrayLength+1)), "at most",
		false},
	{"tensors beyond the file", header(MaxTensors, 0), "do not fit", false},
	{"too many pairs", header(0, 1<<62), "at most", false},
	{"pairs beyond the file", header(0, 1000), "do not fit", false},
	{"key of 2^62 bytes", enc(header(0, 1), uint64(1<<62), make([]byte, 64)), "a key of", false},
	{"empty key", enc(header(0, 1), "", KindUint8, uint8(1), uint8(0)), "key is empty", false},
	{"key that is not UTF-8", enc(header(0, 1), "a\xff", KindUint8, uint8(1)), "UTF-8", false},
	{"key with a zero byte", enc(header(0, 1), "a\x00b", KindUint8, uint8(1)), "zero byte", false},
	{"key twice", enc(header(0, 2), "k", KindUint8, uint8(1), "k", KindUint8, uint8(1)), "occurs twice", false},
	{"unknown kind", enc(header(0, 1), "k", Kind(13), uint64(0)), "kind 13", false},
	{"string of 2^62 bytes", enc(header(0, 1), "k", KindString, uint64(1<<62), uint64(0)), "at most", false},
	{"string of 2^64-1 bytes", enc(header(0, 1), "k", KindString, uint64(math.MaxUint64)), "at most", false},
	{"string beyond the file", enc(header(0, 1), "k", KindString, uint64(1000)), "do not fit", false},
	{"bool of 2", enc(header(0, 1), "k", KindBool, uint8(2)), "bool", false},
	{"array with a bool of 255", enc(header(0, 1), "k", KindArray, KindBool, uint64(3), uint8(0), uint8(1), uint8(255)),
		"bool", false},
	{"array of unknown kind", enc(header(0, 1), "k", KindArray, Kind(77), uint64(0)), "kind 77", false},
	{"array of 2^62", enc(header(0, 1), "k", KindArray, KindUint8, uint64(1<<62)), "at most", false},
	{"array whose size overflows", enc(header(0, 1), "k", KindArray, KindUint64, uint64(1<<61)), "at most", false},
	{"array beyond the file", enc(header(0, 1), "k", KindArray, KindUint32, uint64(100), make([]byte, 399)), "do not fit",
		false},
	{"array of strings beyond the file", enc(header(0, 1), "k", KindArray, KindString, uint64(2), "a", uint64(9),
		[]byte("12345678")), "do not fit", false},
	{"arrays nested too deep", enc(header(0, 1), "k", KindArray, bytes.Repeat(enc(KindArray, uint64(1)), 100)), "nested",
		false},
	{"alignment 0", enc(header(0, 1), "general.alignment", KindUint32, uint32(0)), "power of two", false},
	{"alignment 48", enc(header(0, 1), "general.alignment", KindUint32, uint32(48)), "power of two", false},
	{"alignment 2^31", enc(header(0, 1), "general.alignment", KindUint32, uint32(1<<31)), "power of two", false},
	{"alignment of another kind", enc(header(0, 1), "general.alignment", KindUint64, uint64(32)), "expected uint32",
		false},
	{"tensor name of 2^62 bytes", enc(header(1, 0), uint64(1<<62), make([]byte, 64)), "at most", false},
	{"tensor name of 65 bytes", withData(32, 32, header(1, 0), tensorInfo(strings.Repeat("n", 65), TypeF32, 0, 4)),
		"at most", false},
	{"tensor without name", withData(32, 32, header(1, 0), tensorInfo("", TypeF32, 0, 4)), "empty", false},
	{"0xffffffff dimensions", withData(32, 32, header(1, 0), "t", uint32(math.MaxUint32), make([]byte, 64)), "dimensions",
		false},
	{"5 dimensions", withData(32, 32, header(1, 0), tensorInfo("t", TypeF32, 0, 1, 1, 1, 1, 1)), "5 dimensions", false},
	{"dimension 0", withData(32, 32, header(1, 0), tensorInfo("t", TypeF32, 0, 4, 0)), "dimension 1 is 0", false},
	{"dimension 2^63", withData(32, 32, header(1, 0), tensorInfo("t", TypeF32, 0, 1<<63)), "dimension 0", false},
	{"shape that overflows", withData(32, 32, header(1, 0), tensorInfo("t", TypeF32, 0, 1<<32, 1<<32)),
		"too many elements", false},
	{"shape whose product wraps to a small number",
		withData(32, 32, header(1, 0), tensorInfo("t", TypeF32, 0, 1<<62, 4, 1, 1)), "too many elements", false},
	{"shape whose bytes overflow", withData(32, 32, header(1, 0), tensorInfo("t", TypeF64, 0, 1<<61)), "does not fit",
		false},
	{"part of a block", withData(32, 64, header(1, 0), tensorInfo("t", TypeQ8_0, 0, 33)), "block of 32", false},
	{"rows that are parts of a block", withData(32, 64, header(1, 0), tensorInfo("t", TypeQ8_0, 0, 16, 2)), "block of 32",
		false},
	{"removed type", withData(32, 64, header(1, 0), tensorInfo("t", Type(31), 0, 32)), "removed", true},
	{"unknown type", withData(32, 64, header(1, 0), tensorInfo("t", Type(143), 0, 32)), "143", true},
	{"type 2^32-1", withData(32, 64, header(1, 0), tensorInfo("t", Type(math.MaxUint32), 0, 32)), "4294967295", true},
	{"misaligned", withData(32, 64, header(1, 0), tensorInfo("t", TypeF32, 8, 4)), "alignment", false},
	{"offset 2^64-32", withData(32, 64, header(1, 0), tensorInfo("t", TypeF32, math.MaxUint64-31, 4)), "outside", false},
	{"data beyond the file", withData(32, 15, header(1, 0), tensorInfo("t", TypeF32, 0, 4)), "cut short", false},
	{"data after the end", withData(32, 64, header(1, 0), tensorInfo("t", TypeF32, 96, 4)), "cut short", false},
	{"no room for the padding", enc(header(1, 0), tensorInfo("t", TypeI8, 0, 1)), "cut short", false},
	{"tensor twice", withData(32, 64, header(2, 0), tensorInfo("t", TypeF32, 0, 4), tensorInfo("t", TypeF32, 32, 4)),
		"occurs twice", false},
	{"overlap by one number", withData(32, 128, header(2, 0), tensorInfo("t", TypeF32, 0, 9),
		tensorInfo("u", TypeF32, 32, 4)), "overlaps", false},
	{"overlap in another order", withData(32, 128, header(3, 0), tensorInfo("t", TypeF32, 32, 4),
		tensorInfo("u", TypeF32, 64, 4), tensorInfo("v", TypeF32, 0, 24)), "overlaps", false},
	{"same place", withData(32, 128, header(2, 0), tensorInfo("t", TypeF32, 32, 4), tensorInfo("u", TypeF32, 32, 4)),
		"overlaps", false},
}

func TestHostile(t *testing.T) {
	for _, version := range []byte{3, 2} {
		b := small()
		b[4] = version
		f, err := open(b)
		if err != nil || f.Version != uint32(version) || len(f.KVs) != 5 || len(f.Tensors) != 2 {
			t.Fatalf("the valid file as version %d: %+v, %v", version, f, err)
		}
	}
	for _, c := range hostile {
		if strconv.IntSize == 32 && strings.HasPrefix(c.name, "shape ") {
			c.want = "dimension 0" // a single dimension overflows there
		}
		_, err := open(c.file)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want one with %q", c.name, err, c.want)
			continue
		}
		if c.uns != errorIs[*UnsupportedError](err) || c.uns == errorIs[*FormatError](err) {
			t.Errorf("%s: error of type %T", c.name, err)
		}
		if !strings.HasPrefix(err.Error(), "test.gguf: ") {
			t.Errorf("%s: error without the file: %v", c.name, err)
		}
	}
	if _, err := NewFile(bytes.NewReader(nil), -1, "x"); !errorIs[*FormatError](err) {
		t.Errorf("negative size: %v", err)
	}
	if _, err := NewFile(bytes.NewReader(nil), math.MaxInt64, "x"); !errorIs[*FormatError](err) {
		t.Errorf("size of 2^63-1: %v", err)
	}
	// A reader that has less than it promised.
	if _, err := NewFile(bytes.NewReader(small()[:100]), 1000, "x"); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("short reader: %v", err)
	}
}

// Lying counts must cost no memory: each hostile file is refused within a few
// hundred KB (the read window and the error).
func TestHostileMemory(t *testing.T) {
	var before, after runtime.MemStats
	for _, c := range hostile {
		runtime.ReadMemStats(&before)
		open(c.file)
		runtime.ReadMemStats(&after)
		if got := after.TotalAlloc - before.TotalAlloc; got > 400<<10 {
			t.Errorf("%s: allocated %d bytes for a file of %d", c.name, got, len(c.file))
		}
	}
}

// A file cut at any byte gives an error, or, if only padding is gone, reads the same.
func TestTruncation(t *testing.T) {
	kinds, err := os.ReadFile("testdata/kinds.gguf")
	if err != nil {
		t.Fatal(err)
	}
	for _, whole := range [][]byte{small(), kinds} {
		f, err := open(whole)
		if err != nil {
			t.Fatal(err)
		}
		end := int64(0)
		for _, tensor := range f.Tensors {
			end = max(end, tensor.Offset+tensor.Size)
		}
		for n := range whole {
			got, err := open(whole[:n])
			if int64(n) >= end {
				if err != nil || len(got.Tensors) != len(f.Tensors) {
					t.Fatalf("cut to %d of %d bytes behind the data: %v", n, len(whole), err)
				}
				continue
			}
			if !errorIs[*FormatError](err) {
				t.Fatalf("cut to %d of %d bytes: %v", n, len(whole), err)
			}
		}
	}
}

// What gguf-py wrote, value by value.
func TestGoldenKinds(t *testing.T) {
	f, err := Open("testdata/kinds.gguf")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if f.Version != 3 || f.Alignment != 64 || f.Shards != 1 {
		t.Errorf("version %d, alignment %d, shards %d", f.Version, f.Alignment, f.Shards)
	}
	want := []struct {
		key   string
		value any
	}{
		{"general.architecture", "golden"},
		{"general.alignment", uint32(64)},
		{"golden.uint8", uint8(200)},
		{"golden.int8", int8(-100)},
		{"golden.uint16", uint16(60000)},
		{"golden.int16", int16(-30000)},
		{"golden.uint32", uint32(4000000000)},
		{"golden.int32", int32(-2000000000)},
		{"golden.uint64", uint64(18000000000000000000)},
		{"golden.int64", int64(-9000000000000000000)},
		{"golden.float32", float32(0.1)},
		{"golden.float64", 0.1},
		{"golden.bool", true},
		{"golden.string", "grüße\n"},
		{"golden.array.uint8", []uint8{0, 255}},
		{"golden.array.int8", []int8{-128, 127}},
		{"golden.array.uint16", []uint16{1, 65535}},
		{"golden.array.int16", []int16{-32768, 5}},
		{"golden.array.uint32", []uint32{7, 4294967295}},
		{"golden.array.int32", []int32{-5, 6}},
		{"golden.array.uint64", []uint64{1, 18446744073709551615}},
		{"golden.array.int64", []int64{-9223372036854775808, 3}},
		{"golden.array.float32", []float32{1.5, -0.1}},
		{"golden.array.float64", []float64{1e300, -0.1}},
		{"golden.array.bool", []bool{true, false, true}},
		{"golden.array.string", []string{"a", "", "ü", strings.Repeat("x", 300)}},
	}
	if len(f.KVs) != len(want) {
		t.Errorf("%d pairs, want %d", len(f.KVs), len(want))
	}
	for i, w := range want[:min(len(want), len(f.KVs))] {
		kv := f.KVs[i]
		if kv.Key != w.key || !reflect.DeepEqual(kv.Value(), w.value) {
			t.Errorf("pair %d is %s (%T), want %s = %v (%T)", i, kv, kv.Value(), w.key, w.value, w.value)
		}
	}

	wantTensors := []struct {
		name string
		typ  Type
		dims []int
	}{
		{"f32", TypeF32, []int{64, 3, 2}}, {"f16", TypeF16, []int{64, 3}}, {"f64", TypeF64, []int{64, 3}},
		{"bf16", TypeBF16, []int{64, 3, 2}}, {"q8_0", TypeQ8_0, []int{64, 3, 2}}, {"q4_0", TypeQ4_0, []int{64}},
		{"i32", TypeI32, []int{5}}, {"scalar", TypeF32, nil},
	}
	for i, w := range wantTensors {
		tensor := &f.Tensors[i]
		if tensor.Name != w.name || tensor.Type != w.typ || !slices.Equal(tensor.Dims, w.dims) {
			t.Errorf("tensor %d is %s %s %v, want %v", i, tensor.Name, tensor.Type, tensor.Dims, w)
		}
		shape := slices.Clone(w.dims)
		slices.Reverse(shape)
		if !slices.Equal(tensor.Shape(), shape) {
			t.Errorf("%s: shape %v, want %v", w.name, tensor.Shape(), shape)
		}
		if tensor.Offset%64 != 0 || tensor.RowLen()*tensor.Rows() != tensor.Elements() {
			t.Errorf("%s: offset %d, %d rows of %d", w.name, tensor.Offset, tensor.Rows(), tensor.RowLen())
		}
	}

	// Row reads of each type: numbers are k/8-20, within the type's step.
	for _, c := range []struct {
		name string
		tol  float64
		at   int // index of the first number of the tensor in the sequence
	}{{"f32", 0, 0}, {"f16", 0, 0}, {"f64", 0, 192}, {"bf16", 0.0625, 0}, {"q8_0", 28.0 / 127 / 2 * 1.01, 0},
		{"q4_0", 2.6, 0}} {
		tensor, _ := f.Tensor(c.name)
		n := tensor.RowLen()
		for row := range tensor.Rows() {
			got := make([]float32, n)
			if err := f.ReadRows(tensor, row, 1, got); err != nil {
				t.Fatal(err)
			}
			for j, x := range got {
				want := float64(c.at+row*n+j)/8 - 20
				if math.Abs(float64(x)-want) > c.tol {
					t.Fatalf("%s: row %d number %d is %g, want %g", c.name, row, j, x, want)
				}
			}
		}
	}
	scalar, _ := f.Tensor("scalar")
	one := make([]float32, 1)
	if err := f.ReadRows(scalar, 0, 1, one); err != nil || one[0] != 2.5 {
		t.Errorf("scalar: %v, %v", one, err)
	}
	ints, _ := f.Tensor("i32")
	if err := f.ReadRows(ints, 0, 1, make([]float32, 5)); !errorIs[*UnsupportedError](err) ||
		!strings.Contains(err.Error(), `"i32"`) {
		t.Errorf("rows of integers: %v", err)
	}
}

func TestReadRowsErrors(t *testing.T) {
	f, err := open(small())
	if err != nil {
		t.Fatal(err)
	}
	a, _ := f.Tensor("a")
	for _, c := range []struct{ row0, nrows, room int }{
		{0, 4, 16}, {3, 1, 4}, {4, 0, 0}, {-1, 1, 4}, {0, -1, 4}, {0, 1, 3}, {1, math.MaxInt, 100}, {math.MinInt, 1, 4},
	} {
		if err := f.ReadRows(a, c.row0, c.nrows, make([]float32, c.room)); !errors.Is(err, ErrLength) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	if err := f.ReadRows(a, 3, 0, nil); err != nil {
		t.Errorf("no rows: %v", err)
	}
	other := &Tensor{Name: "made by hand", Type: TypeF32, Dims: []int{4}}
	if err := f.ReadRows(other, 0, 1, make([]float32, 4)); err == nil {
		t.Error("rows of a tensor that is in no file were read")
	}
	if b, err := io.ReadAll(f.Reader(other)); len(b) != 0 || err != nil {
		t.Errorf("reader of a tensor that is in no file: %d bytes, %v", len(b), err)
	}
}

// Rows in any partition and from many goroutines equal the whole, also across
// the chunks of ReadRows.
func TestReadRowsPartition(t *testing.T) {
	const rows, n = 400, 1024
	data := make([]byte, rows*n/32*34)
	for i := range data {
		data[i] = byte(uint32(i) * 2654435761 >> 13)
		if i%34 == 1 { // the upper byte of a scale: no infinities
			data[i] &= 0x3f
		}
	}
	if len(data) < chunkBytes+chunkBytes/2 {
		t.Fatalf("%d bytes do not span chunks", len(data))
	}
	b := withData(32, 0, header(1, 0), tensorInfo("t", TypeQ8_0, 0, n, rows/4, 4))
	f, err := open(append(b, data...))
	if err != nil {
		t.Fatal(err)
	}
	tensor, _ := f.Tensor("t")
	want, whole := make([]float32, rows*n), make([]float32, rows*n)
	if err := DequantizeRow(TypeQ8_0, want, data); err != nil {
		t.Fatal(err)
	}
	if err := f.ReadRows(tensor, 0, rows, whole); err != nil || !slices.Equal(whole, want) {
		t.Fatalf("whole: %v", err)
	}
	var wg sync.WaitGroup
	for _, step := range []int{1, 3, 7, 399} {
		wg.Go(func() {
			part := make([]float32, step*n)
			for r := 0; r < rows; r += step {
				k := min(step, rows-r)
				if err := f.ReadRows(tensor, r, k, part); err != nil || !slices.Equal(part[:k*n], want[r*n:(r+k)*n]) {
					t.Errorf("rows %d to %d: %v", r, r+k, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func TestGetters(t *testing.T) {
	kvs := []KV{
		Value("u8", uint8(5)), Value("i32", int32(-7)), Value("u64", uint64(1<<63)), Value("f32", float32(0.1)),
		Value("f64", 0.1), Value("b", true), Value("s", "text"), Array("ss", []string{"x", ""}),
		Array("bs", []bool{true, false}),
		Array("i8s", []int8{-1, 1}), Array("u64s", []uint64{1 << 63}), Array("f32s", []float32{0.5}),
		Array("f64s", []float64{0.25}),
		Array("empty", []int32{}),
	}
	f := &File{Path: "m.gguf", KVs: kvs, kvIndex: map[string]int{}}
	for i, kv := range kvs {
		f.kvIndex[kv.Key] = i
	}
	getters := map[string]func(string) (any, error){
		"String":  func(k string) (any, error) { return f.String(k) },
		"Bool":    func(k string) (any, error) { return f.Bool(k) },
		"Uint":    func(k string) (any, error) { return f.Uint(k) },
		"Int":     func(k string) (any, error) { return f.Int(k) },
		"Float":   func(k string) (any, error) { return f.Float(k) },
		"Strings": func(k string) (any, error) { return f.Strings(k) },
		"Bools":   func(k string) (any, error) { return f.Bools(k) },
		"Uints":   func(k string) (any, error) { return f.Uints(k) },
		"Ints":    func(k string) (any, error) { return f.Ints(k) },
		"Floats":  func(k string) (any, error) { return f.Floats(k) },
	}
	want := map[string]map[string]any{ // everything not listed is an error
		"String":  {"s": "text"},
		"Bool":    {"b": true},
		"Uint":    {"u8": uint64(5), "u64": uint64(1 << 63)},
		"Int":     {"u8": int64(5), "i32": int64(-7)},
		"Float":   {"f32": float64(float32(0.1)), "f64": 0.1},
		"Strings": {"ss": []string{"x", ""}},
		"Bools":   {"bs": []bool{true, false}},
		"Uints":   {"u64s": []uint64{1 << 63}, "empty": []uint64{}},
		"Ints":    {"i8s": []int64{-1, 1}, "empty": []int64{}},
		"Floats":  {"f32s": []float64{0.5}, "f64s": []float64{0.25}},
	}
	for name, get := range getters {
		for _, kv := range kvs {
			got, err := get(kv.Key)
			if w, ok := want[name][kv.Key]; ok {
				if err != nil || !reflect.DeepEqual(got, w) {
					t.Errorf("%s(%q) = %v, %v; want %v", name, kv.Key, got, err, w)
				}
				continue
			}
			var fe *FormatError
			if !errors.As(err, &fe) || fe.Key != kv.Key || fe.File != "m.gguf" || errors.Is(err, ErrKeyNotFound) {
				t.Errorf("%s(%q) = %v, %v; want a FormatError", name, kv.Key, got, err)
			}
		}
		if _, err := get("missing"); !errors.Is(err, ErrKeyNotFound) || !strings.Contains(err.Error(), `"missing"`) {
			t.Errorf("%s of a missing key: %v", name, err)
		}
	}
}

func TestKVString(t *testing.T) {
	for _, c := range []struct {
		kv   KV
		want string
	}{
		{Value("a", uint32(3)), "a = 3"},
		{Value("a", "x\ny"), `a = "x\ny"`},
		{Array("a", []int32{1, 2}), "a = int32[2] 1, 2"},
		{Array("a", []string{"p", "q"}), `a = string[2] "p", "q"`},
		{Array("a", make([]uint8, 7)), "a = uint8[7] 0, 0, 0, 0, 0, ..."},
		{Value("a", strings.Repeat("x", 100)), `a = "` + strings.Repeat("x", 60) + `"...`},
		{KV{Key: "a"}, "a (invalid)"},
	} {
		if got := c.kv.String(); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
	if v := (KV{Key: "a"}).Value(); v != nil {
		t.Errorf("value of an empty pair: %v", v)
	}
}

func TestSplit(t *testing.T) {
	check := func(f *File, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if f.Shards != 3 || len(f.Tensors) != 5 {
			t.Errorf("%d shards with %d tensors", f.Shards, len(f.Tensors))
		}
		if name, err := f.String("general.name"); name != "split" || err != nil {
			t.Errorf("general.name = %q, %v", name, err)
		}
		if _, ok := f.KV("split.count"); ok {
			t.Error("the whole still has the keys of its parts")
		}
		for i := range 5 {
			tensor, ok := f.Tensor(fmt.Sprintf("blk.%d.weight", i))
			if !ok {
				t.Fatalf("tensor %d is missing", i)
			}
			x := make([]float32, 16)
			if err := f.ReadRows(tensor, 0, 2, x); err != nil || x[0] != float32(i) || x[15] != float32(i) ||
				tensor.Shard != i/2 {
				t.Errorf("tensor %d in shard %d: %v, %v", i, tensor.Shard, x, err)
			}
		}
	}
	for i := range 3 {
		check(Open(ShardPath("testdata/split", i, 3)))
	}
	one, err := OpenShard(ShardPath("testdata/split", 1, 3))
	if err != nil || len(one.Tensors) != 2 || one.Shards != 1 {
		t.Errorf("one shard: %+v, %v", one, err)
	}
	if n, err := one.Uint("split.no"); n != 1 || err != nil {
		t.Errorf("split.no = %d, %v", n, err)
	}
	one.Close()

	// What can go wrong between files.
	shards := make([][]byte, 3)
	for i := range shards {
		if shards[i], err = os.ReadFile(ShardPath("testdata/split", i, 3)); err != nil {
			t.Fatal(err)
		}
	}
	replace := func(b []byte, old, with []byte) []byte {
		if bytes.Count(b, old) != 1 {
			t.Fatalf("%q occurs %d times", old, bytes.Count(b, old))
		}
		return bytes.Replace(b, old, with, 1)
	}
	key := func(name string, kind Kind, v any) []byte { return enc(name, kind, v) }
	for _, c := range []struct {
		name, want string
		files      map[string][]byte
		open       string
	}{
		{"missing shard", "file 2 of a split of 3", map[string][]byte{"m-00001-of-00003.gguf": shards[0],
			"m-00003-of-00003.gguf": shards[2]}, "m-00001-of-00003.gguf"},
		{"renamed", "restore the original names", map[string][]byte{"m.gguf": shards[0]}, "m.gguf"},
		{"name of another count", "restore the original names", map[string][]byte{"m-00001-of-00002.gguf": shards[0]},
			"m-00001-of-00002.gguf"},
		{"shards swapped", "split.no", map[string][]byte{"m-00001-of-00003.gguf": shards[0],
			"m-00002-of-00003.gguf": shards[2], "m-00003-of-00003.gguf": shards[1]}, "m-00001-of-00003.gguf"},
		{"shard 0 by name", "file 0 of 3", map[string][]byte{"m-00000-of-00003.gguf": shards[0]}, "m-00000-of-00003.gguf"},
		{"same tensor in two shards", "two files", map[string][]byte{"m-00001-of-00003.gguf": shards[0],
			"m-00002-of-00003.gguf": replace(shards[1], []byte("blk.3.weight"), []byte("blk.1.weight")),
			"m-00003-of-00003.gguf": shards[2]}, "m-00001-of-00003.gguf"},
		{"other number of tensors", "hold 5 tensors", map[string][]byte{
			"m-00001-of-00003.gguf": replace(shards[0], key("split.tensors.count", KindInt32, int32(5)),
				key("split.tensors.count", KindInt32, int32(6))),
			"m-00002-of-00003.gguf": shards[1], "m-00003-of-00003.gguf": shards[2]}, "m-00002-of-00003.gguf"},
		{"too many shards", "at most", map[string][]byte{
			"m-00001-of-00003.gguf": replace(shards[0], key("split.count", KindUint16, uint16(3)),
				key("split.count", KindUint16, uint16(60000)))}, "m-00001-of-00003.gguf"},
		{"count of another kind", "split.count", map[string][]byte{
			"m-00001-of-00003.gguf": replace(shards[0], key("split.count", KindUint16, uint16(3)),
				key("split.count", KindArray, enc(KindUint8, uint64(0))))}, "m-00001-of-00003.gguf"},
	} {
		dir := t.TempDir()
		for name, b := range c.files {
			if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if f, err := Open(filepath.Join(dir, c.open)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, %v", c.name, f, err)
		}
	}
}

func TestOpenErrors(t *testing.T) {
	if _, err := Open(filepath.Join(t.TempDir(), "none.gguf")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	if _, err := Open(t.TempDir()); !errors.Is(err, format.ErrBroken) {
		t.Errorf("a folder: %v", err)
	}
	path := filepath.Join(t.TempDir(), "cut.gguf")
	if err := os.WriteFile(path, small(), 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := os.Truncate(path, int64(len(small())-20)); err != nil {
		t.Fatal(err)
	}
	tensor, _ := f.Tensor("b")
	err = f.ReadRows(tensor, 0, 1, make([]float32, 32))
	if !errors.Is(err, io.ErrUnexpectedEOF) || !strings.Contains(err.Error(), path) {
		t.Errorf("a file cut after Open: %v", err)
	}
}

// FuzzOpen opens any bytes, reads every value and some rows of every tensor, and
// writes what it opened again: the copy must read the same.
func FuzzOpen(f *testing.F) {
	f.Add(small())
	for _, c := range hostile {
		f.Add(c.file)
	}
	for _, name := range []string{"kinds.gguf", "split-00001-of-00003.gguf", "split-00003-of-00003.gguf"} {
		b, err := os.ReadFile("testdata/" + name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, b []byte) {
		file, err := open(b)
		if err != nil {
			if !errorIs[*FormatError](err) && !errorIs[*UnsupportedError](err) {
				t.Fatalf("error of type %T: %v", err, err)
			}
			return
		}
		for _, kv := range file.KVs {
			_ = kv.String()
			if kv.Value() == nil {
				t.Fatalf("%s has no value", kv.Key)
			}
			file.String(kv.Key)
			file.Uint(kv.Key)
			file.Ints(kv.Key)
			file.Floats(kv.Key)
			file.Strings(kv.Key)
			file.Bools(kv.Key)
		}
		for i := range file.Tensors {
			tensor := &file.Tensors[i]
			if CanDequantize(tensor.Type) {
				if err := file.ReadRows(tensor, 0, tensor.Rows(), make([]float32, tensor.Elements())); err != nil {
					t.Fatal(err)
				}
			}
			if n, err := io.Copy(io.Discard, file.Reader(tensor)); n != tensor.Size || err != nil {
				t.Fatalf("%s: read %d of %d bytes: %v", tensor.Name, n, tensor.Size, err)
			}
		}
		path := filepath.Join(dir, fmt.Sprintf("%d.gguf", os.Getpid()))
		if err := rewrite(file, path); err != nil {
			if len(b) < 1<<10 && !slices.ContainsFunc(file.Tensors,
				func(t Tensor) bool { return len(t.Name) > MaxTensorNameWritten }) {
				t.Fatalf("what was read cannot be written: %v", err)
			}
			return
		}
		again, err := Open(path)
		if err != nil {
			// A split's file stands alone here.
			if _, ok := file.KV("split.count"); ok {
				return
			}
			t.Fatal(err)
		}
		defer again.Close()
		if !reflect.DeepEqual(again.KVs, file.KVs) || len(again.Tensors) != len(file.Tensors) {
			t.Fatal("the copy differs")
		}
		for i := range file.Tensors {
			x, _ := io.ReadAll(file.Reader(&file.Tensors[i]))
			y, _ := io.ReadAll(again.Reader(&again.Tensors[i]))
			if !bytes.Equal(x, y) || !reflect.DeepEqual(file.Tensors[i].Spec(), again.Tensors[i].Spec()) {
				t.Fatalf("tensor %d differs in the copy", i)
			}
		}
	})
}

// rewrite copies a file through the writer.
func rewrite(f *File, path string) error {
	specs := make([]TensorSpec, len(f.Tensors))
	for i := range f.Tensors {
		specs[i] = f.Tensors[i].Spec()
	}
	w, err := Create(path, f.KVs, specs)
	if err != nil {
		return err
	}
	defer w.Abort()
	for i := range f.Tensors {
		if err := w.CopyTensor(f, &f.Tensors[i]); err != nil {
			return err
		}
	}
	return w.Commit()
}
