package gguf

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"strings"
	"testing"
)

// The table agrees with libggml in both directions.
func TestTypeTable(t *testing.T) {
	text, err := os.ReadFile("testdata/types.txt")
	if err != nil {
		t.Fatal(err)
	}
	golden := map[Type]bool{}
	for line := range strings.Lines(string(text)) {
		var id Type
		var name string
		var block, size int
		if _, err := fmt.Sscan(line, &id, &name, &block, &size); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		golden[id] = true
		if b, s := id.Block(); b != block || s != size || !strings.EqualFold(id.String(), name) {
			t.Errorf("type %d is %s with blocks of %d in %d bytes, libggml has %s, %d, %d", uint32(id), id, b, s, name, block,
				size)
		}
		if p, err := ParseType(name); err != nil || p != id {
			t.Errorf("ParseType(%q) = %v, %v", name, p, err)
		}
	}
	for id := range Type(100) {
		if id.Known() != golden[id] {
			t.Errorf("type %d: known is %v, libggml knows it: %v", uint32(id), id.Known(), golden[id])
		}
		if CanQuantize(id) && !CanDequantize(id) || CanDequantize(id) && !id.Known() {
			t.Errorf("type %d: quantize %v, dequantize %v, known %v", uint32(id), CanQuantize(id), CanDequantize(id), id.Known())
		}
	}
	if _, err := ParseType("Q9_9"); !errorIs[*UnsupportedError](err) {
		t.Errorf("ParseType of an unknown name: %v", err)
	}
}

func errorIs[T error](err error) bool {
	var target T
	return errors.As(err, &target)
}

func TestRowBytes(t *testing.T) {
	for _, c := range []struct {
		t       Type
		n, want int
	}{{TypeF32, 0, 0}, {TypeF32, 7, 28}, {TypeQ8_0, 64, 68}, {TypeQ4_K, 512, 288}, {TypeQ1_0, 128, 18}} {
		if got, err := RowBytes(c.t, c.n); err != nil || got != c.want {
			t.Errorf("RowBytes(%s, %d) = %d, %v; want %d", c.t, c.n, got, err, c.want)
		}
	}
	for _, c := range []struct {
		t Type
		n int
	}{{TypeQ8_0, 33}, {TypeQ4_K, 32}, {TypeF32, -1}, {TypeF64, math.MaxInt / 4}} {
		if _, err := RowBytes(c.t, c.n); !errors.Is(err, ErrLength) {
			t.Errorf("RowBytes(%s, %d): %v", c.t, c.n, err)
		}
	}
	for _, id := range []Type{4, 31, 43, 1 << 31} {
		if _, err := RowBytes(id, 32); !errorIs[*UnsupportedError](err) {
			t.Errorf("RowBytes of type %d: %v", uint32(id), err)
		}
	}
}

// golden opens a golden file and returns access to its tensors.
func golden(t testing.TB, name string) (raw func(string) []byte, floats func(string) []float32) {
	t.Helper()
	f, err := Open("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	raw = func(name string) []byte {
		t.Helper()
		tensor, ok := f.Tensor(name)
		if !ok {
			t.Fatalf("no tensor %q", name)
		}
		b := make([]byte, tensor.Size)
		if _, err := f.Reader(tensor).ReadAt(b, 0); err != nil {
			t.Fatal(err)
		}
		return b
	}
	floats = func(name string) []float32 {
		t.Helper()
		tensor, ok := f.Tensor(name)
		if !ok {
			t.Fatalf("no tensor %q", name)
		}
		x := make([]float32, tensor.Elements())
		if err := f.ReadRows(tensor, 0, tensor.Rows(), x); err != nil {
			t.Fatal(err)
		}
		return x
	}
	return raw, floats
}

// sameFloat is equality of bits, with all NaN equal.
func sameFloat(a, b float32) bool {
	return math.Float32bits(a) == math.Float32bits(b) || a != a && b != b
}

// Every block type that can be read, against libggml's to_float.
func TestDequantizeGolden(t *testing.T) {
	for id := range Type(numTypes) {
		if !CanDequantize(id) || !id.Quantized() {
			continue
		}
		file := "dequant.gguf"
		if n := id.String(); strings.HasPrefix(n, "IQ") && !strings.HasPrefix(n, "IQ4") {
			file = "dequant_iq.gguf"
		}
		raw, floats := golden(t, file)
		name := strings.Replace(strings.ToLower(id.String()), "_k", "_K", 1)
		src, want := raw(name+".in"), floats(name+".out")
		got := make([]float32, len(want))
		if err := DequantizeRow(id, got, src); err != nil {
			t.Fatal(err)
		}
		for i := range want {
			if !sameFloat(got[i], want[i]) {
				t.Errorf("%s: number %d is %g (%#08x), want %g (%#08x)", id, i,
					got[i], math.Float32bits(got[i]), want[i], math.Float32bits(want[i]))
				break
			}
		}
	}
}

// The row functions refuse what does not fit and write nothing then.
func TestRowFunctionErrors(t *testing.T) {
	for id := range Type(numTypes + 1) {
		block, size := id.Block()
		if CanDequantize(id) {
			for _, c := range [][2]int{{block, size - 1}, {block, size + 1}, {block, 0}, {2 * block, size}} {
				if err := DequantizeRow(id, make([]float32, c[0]), make([]byte, c[1])); !errors.Is(err, ErrLength) {
					t.Errorf("%s: %d numbers from %d bytes: %v", id, c[0], c[1], err)
				}
			}
			if block > 1 {
				if err := DequantizeRow(id, make([]float32, block-1), make([]byte, size)); !errors.Is(err, ErrLength) {
					t.Errorf("%s: part of a block: %v", id, err)
				}
			}
		} else if err := DequantizeRow(id, make([]float32, block), make([]byte, size)); !errorIs[*UnsupportedError](err) {
			t.Errorf("%s: %v", id, err)
		}
		if !CanQuantize(id) {
			if err := QuantizeRow(id, make([]byte, size), make([]float32, block)); !errorIs[*UnsupportedError](err) {
				t.Errorf("%s: %v", id, err)
			}
			continue
		}
		for _, quantize := range []func(Type, []byte, []float32) error{QuantizeRow, QuantizeCacheRow} {
			if err := quantize(id, make([]byte, size+1), make([]float32, block)); !errors.Is(err, ErrLength) {
				t.Errorf("%s: %v", id, err)
			}
			for _, bad := range []float32{float32(math.NaN()), float32(math.Inf(1)), float32(math.Inf(-1))} {
				src, dst := make([]float32, 2*block), bytes.Repeat([]byte{0xaa}, 2*size)
				src[2*block-1] = bad
				err := quantize(id, dst, src)
				if id.Quantized() != errors.Is(err, ErrNotFinite) {
					t.Errorf("%s of %g: %v", id, bad, err)
				}
				if err != nil && dst[0] != 0xaa {
					t.Errorf("%s of %g: wrote in spite of the error", id, bad)
				}
			}
		}
	}
}
