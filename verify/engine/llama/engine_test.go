package llama_test

import (
	"context"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/internal/tiny"
	"github.com/phaseconv/phaseconv/verify/engine"
	"github.com/phaseconv/phaseconv/verify/engine/llama"
	"github.com/phaseconv/phaseconv/verify/engine/sample"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// libraryEnv names the folder with llama.cpp's libraries; tests that need them skip without.
const libraryEnv = "PHASECONV_LIBLLAMA"

var builtWorker string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "engine")
	if err != nil {
		panic(err)
	}
	if builtWorker = os.Getenv("PHASECONV_WORKER"); builtWorker == "" && os.Getenv(libraryEnv) != "" {
		builtWorker = filepath.Join(dir, llama.WorkerName)
		out, err := exec.Command("go", "build", "-o", builtWorker, "../../../cmd/"+llama.WorkerName).CombinedOutput()
		if err != nil {
			fmt.Fprintf(os.Stderr, "%s%v\n", out, err)
			os.Exit(1)
		}
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// place is where models are loaded: on the CPU, or on the devices in PHASECONV_DEVICES.
func place() llama.Place {
	p := llama.Place{Threads: 1}
	if d := os.Getenv("PHASECONV_DEVICES"); d != "" {
		p.Devices, p.GPULayers = strings.Split(d, ","), -1
	}
	return p
}

// start starts a worker on the library under test.
func start(t *testing.T, s llama.Start) *llama.Worker {
	t.Helper()
	s.Dir, s.Program = os.Getenv(libraryEnv), builtWorker
	if s.Dir == "" {
		t.Skip("NOT TESTED: " + libraryEnv + " names no folder with libllama")
	}
	w, err := llama.NewWorker(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	return w
}

// opened opens a file and its engine, until the test ends.
func opened(t *testing.T, engines engine.Engines, path string) (*checkpoint.Checkpoint, engine.Engine) {
	t.Helper()
	c, err := engines.Source(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	e, err := engines.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return c, e
}

// ids are token ids that tiny models have.
func ids(n, seed int) []int32 {
	x := make([]int32, n)
	for i := range x {
		x[i] = int32((i*i*7 + i*31 + seed*13 + 5) % 256)
	}
	return x
}

// rms returns the largest difference of two activations, in units of the second's rms.
func worst(a, b []float32) float64 {
	if len(a) != len(b) {
		return math.Inf(1)
	}
	var s, m float64
	for i := range a {
		s += float64(b[i]) * float64(b[i])
		m = max(m, math.Abs(float64(a[i])-float64(b[i])))
	}
	return m / math.Sqrt(s/float64(len(b)))
}

// TestTaps: what is read at the nodes of llama.cpp's graph is what the own pass computes, in every
// family that it has.
func TestTaps(t *testing.T) {
	w := start(t, llama.Start{})
	for _, name := range tiny.Families {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "model.gguf")
			o := tiny.Options{Seed: 3}
			if name == "olmoe" {
				o.KVHeads = 4 // as many as heads, which stock readers demand
			}
			tiny.New(t, name, o).GGUF(t, path)
			compareTaps(t, w, path, [][]int32{ids(96, 1), ids(96, 2)})
		})
	}
}

// TestSampleTaps is TestTaps for the samples of families that the own pass has.
func TestSampleTaps(t *testing.T) {
	w := start(t, llama.Start{})
	known := 0
	for _, name := range sample.Names() {
		path := filepath.Join(t.TempDir(), name+".gguf")
		if err := sample.Write(path, name); err != nil {
			t.Fatal(err)
		}
		c, err := checkpoint.Open(path)
		if err != nil {
			t.Logf("%s: %v", name, err)
			continue
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		known++
		t.Run(name, func(t *testing.T) { compareTaps(t, w, path, [][]int32{ids(96, 1), ids(96, 2)}) })
	}
	if known < 3 {
		t.Errorf("%d samples are of known families", known)
	}
}

func compareTaps(t *testing.T, w *llama.Worker, path string, windows [][]int32) {
	ctx := t.Context()
	m, err := w.Load(ctx, path, place())
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close(context.WithoutCancel(ctx)) //nolint:errcheck // the worker ends with the test
	c, err := checkpoint.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	own := ownTaps(t, c, c, windows)
	seen, largest := 0, map[string]float64{}
	all := llama.Wants{Pre: true, QKV: true, In: true, FFN: true}
	err = m.Activations(ctx, windows, llama.Tap{Threads: 1, Wants: all}, nil,
		func(a *llama.Activation) error {
			seen++
			for name, x := range a.Values {
				largest[name] = max(largest[name], worst(x, own[tapped{a.Window, a.Layer}][name]))
			}
			want := 7
			of := func(x llama.Attention) bool { return x.Layer == a.Layer }
			switch x := m.Facts.Attention[slices.IndexFunc(m.Facts.Attention, of)]; {
			case x.Rope == nil:
				want = 5 // nothing is in front of RoPE
			case x.Owner != x.Layer:
				want = 4 // keys and values are another layer's
			}
			if len(a.Values) != want {
				return fmt.Errorf("layer %d: %d activations", a.Layer, len(a.Values))
			}
			return nil
		})
	if err != nil {
		t.Fatal(err)
	}
	if seen != len(own) {
		t.Errorf("%d layers and windows were seen, %d were expected", seen, len(own))
	}
	most := 1e-4 // float32 sums in another order
	if c.Config.Layers[0].FFN.Activation == family.GELUTanh {
		// And the few numbers that fall on another step of the table for that.
		floor := stepFloor(t, c, own, windows)
		most = max(1e-3, 3*floor)
		t.Log("last bits of the embeddings move activations by", floor)
	}
	for name, d := range largest {
		if !(d < most) {
			t.Errorf("%s: largest difference %g of the rms, at most %g", name, d, most)
		}
	}
	t.Log(m.Facts.Attention[0].K, largest)
}

// A tapped is a layer in a window.
type tapped struct{ window, layer int }

// ownTaps are the activations of the own pass, which computes GELU as the library does.
func ownTaps(t *testing.T, c *checkpoint.Checkpoint, weights checkpoint.Weights,
	windows [][]int32) map[tapped]map[string][]float32 {
	t.Helper()
	own := map[tapped]map[string][]float32{}
	part := func(x []float32, i int) []float32 { n := len(x) / len(windows); return slices.Clone(x[i*n : (i+1)*n]) }
	at := func(i, layer int) map[string][]float32 {
		k := tapped{i, layer}
		if own[k] == nil {
			own[k] = map[string][]float32{}
		}
		return own[k]
	}
	hooks := refmodel.Hooks{
		Attention: func(a *refmodel.Attention) error {
			for i := range windows {
				x := at(i, a.Layer)
				x[llama.TapQ], x[llama.TapQPre], x[llama.TapIn] = part(a.Q, i), part(a.QPre, i), part(a.X, i)
				if c.Config.Layers[a.Layer].Owner == a.Layer {
					x[llama.TapK], x[llama.TapV], x[llama.TapKPre] = part(a.K, i), part(a.V, i), part(a.KPre, i)
				}
			}
			return nil
		},
		FFN: func(layer int, h []float32) error {
			for i := range windows {
				at(i, layer)[llama.TapFFN] = part(h, i)
			}
			return nil
		},
	}
	ref := refmodel.New(c.Config, weights, 2)
	ref.HalfGELU = true
	if err := ref.Run(t.Context(), windows, []*refmodel.Variant{{}}, refmodel.Options{Hooks: hooks}); err != nil {
		t.Fatal(err)
	}
	return own
}

// lastBits moves each number of the embeddings by its last bit or not.
type lastBits struct{ checkpoint.Weights }

func (w lastBits) ReadRows(x *checkpoint.Tensor, row0, n int, dst []float32) error {
	err := w.Weights.ReadRows(x, row0, n, dst)
	if x.Name == "token_embd.weight" {
		for i := range dst[:n*x.Cols()] {
			dst[i] = math.Float32frombits(math.Float32bits(dst[i]) ^ uint32((row0+i)*0x9e3779b1>>31&1))
		}
	}
	return err
}

// stepFloor is how far activations of the own pass move when last bits of the embeddings do, in units of their
// rms: nothing to speak of, but where GELU is a table of F16 numbers, for a number that passes to the next step
// moves by a two-thousandth of itself, and later layers spread that.
func stepFloor(t *testing.T, c *checkpoint.Checkpoint, own map[tapped]map[string][]float32,
	windows [][]int32) (most float64) {
	t.Helper()
	for k, taps := range ownTaps(t, c, lastBits{c}, windows) {
		for name, x := range taps {
			most = max(most, worst(x, own[k][name]))
		}
	}
	return most
}
