package gguf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/phaseconv/phaseconv/format/dtype"
)

// mlxRows are rows of several kinds, in F16 as a model of that type has them.
func mlxRows() []float32 {
	r := rand.New(rand.NewPCG(3, 4))
	x := make([]float32, 64*64)
	for i := range x {
		g := i / 64
		v := r.NormFloat64() * math.Pow(4, float64(g%9-4))
		switch {
		case g%7 == 1:
			v += 30 // a constant, as slow pairs have
		case g%7 == 2:
			v = math.Abs(v)
		case g%7 == 3:
			v = -math.Abs(v)
		case g == 60:
			v = 0
		case g == 61:
			v = 2.5
		}
		x[i] = dtype.F16Round(float32(v))
	}
	return x
}

// TestMLX: what comes back is within half a step, and exact at the edge that is larger.
func TestMLX(t *testing.T) {
	src := mlxRows()
	for _, typ := range []Type{TypeMLX4, TypeMLX8} {
		n, err := RowBytes(typ, len(src))
		if err != nil || n != len(src)/64*map[Type]int{TypeMLX4: 36, TypeMLX8: 68}[typ] {
			t.Fatal(n, err)
		}
		buf, got := make([]byte, n), make([]float32, len(src))
		if err := QuantizeCacheRow(typ, buf, src); err != nil {
			t.Fatal(err)
		}
		if err := DequantizeRow(typ, got, buf); err != nil {
			t.Fatal(err)
		}
		for at := 0; at < len(src); at += 64 {
			low, high := src[at], src[at]
			for _, v := range src[at : at+64] {
				low, high = min(low, v), max(high, v)
			}
			// Half a step, and what rounding the scale to F16 adds at the far end of the range; the
			// edge's multiple of the step moves the far end by up to half a step more.
			most := float64(high-low)/float64(typ.mlxBins())*1.01 + float64(high-low)/2048 + 1e-6
			for i, v := range src[at : at+64] {
				if d := math.Abs(float64(got[at+i] - v)); d > most {
					t.Fatalf("%s group %d: %g came back as %g, range %g", typ, at/64, v, got[at+i], high-low)
				}
			}
		}
		// No file has it.
		if typ.Known() || CanQuantize(typ) {
			t.Errorf("%s may stand in files", typ)
		}
		var unsupported *UnsupportedError
		_, err = Create(filepath.Join(t.TempDir(), "x.gguf"), nil, []TensorSpec{{Name: "a", Type: typ, Dims: []int{64}}})
		if !errors.As(err, &unsupported) {
			t.Errorf("%s was written: %v", typ, err)
		}
	}
}

// TestMLXOracle: mlx itself gives the same scales, biases and numbers.
func TestMLXOracle(t *testing.T) {
	python := os.Getenv("PHASECONV_PYTHON")
	if python == "" || exec.Command(python, "-c", "import mlx.core").Run() != nil {
		t.Skip("PHASECONV_PYTHON is not set, or has no mlx")
	}
	src := mlxRows()
	var in bytes.Buffer
	binary.Write(&in, binary.LittleEndian, src)
	for typ, bits := range map[Type]string{TypeMLX4: "4", TypeMLX8: "8"} {
		cmd := exec.CommandContext(t.Context(), python, "-c", `import sys, numpy as np, mlx.core as mx
w = mx.array(np.frombuffer(sys.stdin.buffer.read(), "<f4").reshape(-1, 64).astype("float16"))
q, s, b = mx.quantize(w, group_size=64, bits=int(sys.argv[1]))
f = mx.float32
out = mx.dequantize(q, s.astype(f), b.astype(f), group_size=64, bits=int(sys.argv[1]))
sys.stdout.buffer.write(np.array(out).astype("<f4").tobytes())`, bits)
		cmd.Stdin, cmd.Stderr = bytes.NewReader(in.Bytes()), os.Stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		want := make([]float32, len(src))
		if err := binary.Read(bytes.NewReader(out), binary.LittleEndian, want); err != nil {
			t.Fatal(err)
		}
		n, _ := RowBytes(typ, len(src))
		buf, got := make([]byte, n), make([]float32, len(src))
		if QuantizeCacheRow(typ, buf, src) != nil || DequantizeRow(typ, got, buf) != nil {
			t.Fatal("not stored")
		}
		differ := 0
		for i := range src {
			// mlx may fuse the product and the sum: the last bit of the larger part.
			if d := math.Abs(float64(got[i] - want[i])); d > 1e-6*(math.Abs(float64(want[i]))+math.Abs(float64(src[i]))+1e-3) {
				differ++
				if differ < 4 {
					t.Errorf("%s: number %d of group %d, %g: got %g, mlx has %g", typ, i%64, i/64, src[i], got[i], want[i])
				}
			}
		}
		if differ > 0 {
			t.Errorf("%s: %d of %d numbers differ", typ, differ, len(src))
		}
	}
}
