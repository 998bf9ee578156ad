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
	"github.com/phaseconv/phaseconv/internal/tiny"
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
	for _, family := range tiny.Families {
		t.Run(family, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "model.gguf")
			o := tiny.Options{Seed: 3}
			if family == "olmoe" {
				o.KVHeads = 4 // as many as heads, which stock readers demand
			}
			tiny.New(t, family, o).GGUF(t, path)
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
	type key struct{ window, layer int }
	own := map[key]map[string][]float32{}
	part := func(x []float32, i int) []float32 { n := len(x) / len(windows); return slices.Clone(x[i*n : (i+1)*n]) }
	at := func(i, layer int) map[string][]float32 {
		k := key{i, layer}
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
	err = refmodel.New(c.Config, c, 2).Run(ctx, windows, []*refmodel.Variant{{}}, refmodel.Options{Hooks: hooks})
	if err != nil {
		t.Fatal(err)
	}
	seen, largest := 0, map[string]float64{}
	all := llama.Wants{Pre: true, QKV: true, In: true, FFN: true}
	err = m.Activations(ctx, windows, llama.Tap{Threads: 1, Wants: all}, nil,
		func(a *llama.Activation) error {
			seen++
			for name, x := range a.Values {
				largest[name] = max(largest[name], worst(x, own[key{a.Window, a.Layer}][name]))
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
	for name, d := range largest {
		// Float32 sums in another order; the library's GELU is a table of F16 numbers.
		if !(d < 1e-3) && !(strings.HasPrefix(c.Config.Family.Name, "gemma") && d < 2e-2) {
			t.Errorf("%s: largest difference %g of the rms", name, d)
		}
	}
	t.Log(m.Facts.Attention[0].K, largest)
}
