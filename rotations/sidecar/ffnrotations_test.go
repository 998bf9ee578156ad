package sidecar_test

import (
	"bytes"
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/format/safetensors"
	"github.com/phaseconv/phaseconv/rotations/fit"
	"github.com/phaseconv/phaseconv/rotations/sidecar"
	"github.com/phaseconv/phaseconv/spec"
)

// ffnLayer has rotations of n experts, of 16 numbers in blocks of 8 and of 12 in blocks of 4.
func ffnLayer(layer, n int) *sidecar.FFNLayer {
	x := &sidecar.FFNLayer{}
	for e := range n {
		x[0] = append(x[0], fit.HadamardRows(16, 8, uint64(e), layer, 0))
		x[1] = append(x[1], fit.HadamardRows(12, 4, uint64(e), layer, 1))
	}
	return x
}

// writeFFN writes layers 0 and 2 of three.
func writeFFN(t *testing.T, path string, h *sidecar.FFNRotations, layers map[int]*sidecar.FFNLayer) {
	t.Helper()
	shapes := []sidecar.FFNShape{sidecar.ShapeOf(0, layers[0]), sidecar.ShapeOf(2, layers[2])}
	err := h.Write(context.Background(), path, shapes,
		func(s sidecar.FFNShape) (*sidecar.FFNLayer, error) { return layers[s.Layer], nil })
	if err != nil {
		t.Fatal(err)
	}
}

func ffnHeader() *sidecar.FFNRotations {
	half := 0.5
	return &sidecar.FFNRotations{SourceSHA256: strings.Repeat("0a", 32), Tool: "test", Layers: 3, Basis: spec.FFNOwn,
		Block: 8, Rows: 64, Seed: math.MaxUint64,
		Measured: []spec.FFNRow{{Matrix: "up", Rotation: "own", Expert: 1, Cos1bit: 0.8, TrainCos1bit: &half}}}
}

// TestFFNRotations: both containers give back what was written.
func TestFFNRotations(t *testing.T) {
	layers := map[int]*sidecar.FFNLayer{0: ffnLayer(0, 1), 2: ffnLayer(2, 3)}
	for _, name := range []string{"a.gguf", "a.ffn"} {
		path := filepath.Join(t.TempDir(), name)
		h := ffnHeader()
		writeFFN(t, path, h, layers)
		f, err := sidecar.OpenFFN(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if !reflect.DeepEqual(&f.FFNRotations, h) || len(f.Shapes) != 2 || f.Shapes[1].Layer != 2 {
			t.Errorf("%s: read %+v, %v", name, f.FFNRotations, f.Shapes)
		}
		for _, s := range f.Shapes {
			x, err := f.Layer(context.Background(), s)
			if err != nil || !reflect.DeepEqual(x, layers[s.Layer]) {
				t.Errorf("%s: layer %d: %v", name, s.Layer, err)
			}
		}
		if _, err := sidecar.Read(context.Background(), path); err == nil {
			t.Errorf("%s: taken for a sidecar of keys", name)
		}
		ctx, stop := context.WithCancelCause(context.Background())
		stop(errors.New("enough"))
		if _, err := f.Layer(ctx, f.Shapes[0]); err == nil || err.Error() != "enough" {
			t.Errorf("%s: after the end of ctx: %v", name, err)
		}
	}
}

// TestFFNRefuses: what the version does not define is refused by the name of the key or tensor.
func TestFFNRefuses(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "good")
	writeFFN(t, path, ffnHeader(), map[int]*sidecar.FFNLayer{0: ffnLayer(0, 1), 2: ffnLayer(2, 3)})
	good, err := safetensors.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer good.Close()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct{ old, new, says string }{
		{`ffn.version":"1"`, `ffn.version":"2"`, spec.KeyFFNVersion},
		{`ffn.basis":"own"`, `ffn.basis":"one"`, spec.KeyFFNBasis},
		{`ffn.layers":"3"`, `ffn.layers":"2"`, "there must be some, and no others"},
		{`ffn.layers":"3"`, `ffn.layers":"0"`, spec.KeyFFNLayers},
		{`ffn.block":"8"`, `ffn.block":"4"`, "blk.0.ffn_input.rotation"},
		{`ffn.seed":"18446744073709551615"`, `ffn.seed":"18446744073709551616"`, spec.KeyFFNSeed},
		{`"matrix\":`, `"matrux\":`, spec.KeyFFNMeasured},
		{`phaseconv.tool`, `phaseconv.took`, "phaseconv.took"},
		{`blk.2.ffn_neurons`, `blk.2.ffn_neurone`, "blk.2.ffn_neurons.rotation"},
		{`blk.2.ffn_`, `blk.1.ffn_`, "blk.1.ffn_"},
		{`"shape":[3,3,4,4]`, `"shape":[9,1,4,4]`, "blk.2.ffn_neurons.rotation"},
	} {
		if !bytes.Contains(raw, []byte(x.old)) {
			t.Fatalf("the file has no %s", x.old)
		}
		bad := filepath.Join(dir, "bad")
		if err := os.WriteFile(bad, bytes.Replace(raw, []byte(x.old), []byte(x.new), 1), 0o666); err != nil {
			t.Fatal(err)
		}
		f, err := sidecar.OpenFFN(bad)
		if err == nil {
			f.Close()
		}
		if err == nil || !strings.Contains(err.Error(), x.says) {
			t.Errorf("%s instead of %s: %v", x.new, x.old, err)
		}
	}
	// A number of the last tensor of the file that is off by a thousandth, and one that is none.
	for _, v := range []uint32{math.Float32bits(0.501), math.Float32bits(float32(math.NaN()))} {
		bad := append([]byte{}, raw...)
		for i := range 4 {
			bad[len(bad)-4+i] = byte(v >> (8 * i))
		}
		name := filepath.Join(dir, "number")
		if err := os.WriteFile(name, bad, 0o666); err != nil {
			t.Fatal(err)
		}
		f, err := sidecar.OpenFFN(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		_, err = f.Layer(context.Background(), f.Shapes[1])
		if err == nil || !strings.Contains(err.Error(), "ffn_neurons.rotation") {
			t.Errorf("a number %v: %v", math.Float32frombits(v), err)
		}
	}
}

// FuzzOpenFFN: whatever is opened as rotations of FFN inputs gives the same again when it is written.
func FuzzOpenFFN(f *testing.F) {
	dir := f.TempDir()
	for _, name := range []string{"ffn.gguf", "ffn.sidecar"} {
		raw, err := os.ReadFile(filepath.Join("..", "..", "spec", "vectors", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		path, again := filepath.Join(dir, "x"), filepath.Join(dir, "again")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		x, err := sidecar.OpenFFN(path)
		if err != nil {
			return
		}
		defer x.Close()
		err = x.Write(t.Context(), again, x.Shapes,
			func(s sidecar.FFNShape) (*sidecar.FFNLayer, error) { return x.Layer(t.Context(), s) })
		if err != nil {
			return // numbers that are no rotation
		}
		y, err := sidecar.OpenFFN(again)
		if err != nil {
			t.Fatal(err)
		}
		defer y.Close()
		if !reflect.DeepEqual(x.FFNRotations, y.FFNRotations) || !reflect.DeepEqual(x.Shapes, y.Shapes) {
			t.Errorf("%+v became %+v", x.FFNRotations, y.FFNRotations)
		}
	})
}
