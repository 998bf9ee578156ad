//go:build linux && (amd64 || arm64)

package libllama

import (
	"math"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"testing"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/internal/tiny"
	"github.com/phaseconv/phaseconv/verify/kvcache"
)

// cacheLog is what llama.cpp logs of a cache that it makes: MiB, cells, and layers that have one.
var cacheLog = regexp.MustCompile(`size = +([\d.]+) MiB \( *(\d+) cells, +(\d+) layers`)

// compareCells holds the sizes of a file's caches against those that llama.cpp logs when it makes them.
func compareCells(t *testing.T, l *Library, path string, ctx int, types kvcache.CacheTypes) {
	t.Helper()
	c, err := checkpoint.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ours, err := kvcache.NewLlamaCpp(c.Config, types)
	if err != nil {
		t.Fatal(err)
	}
	m, err := l.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	s, err := m.Context(Options{Ctx: ctx, K: types.K, V: types.V, Flash: true, Windows: true, Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var mib, slack float64
	var theirs, cells []int // of each layer that has a cache of its own, sorted
	for _, f := range cacheLog.FindAllStringSubmatch(s.Log, -1) {
		size, _ := strconv.ParseFloat(f[1], 64)
		n, _ := strconv.Atoi(f[2])
		layers, _ := strconv.Atoi(f[3])
		mib, slack = mib+size, slack+0.00501 // two digits of each cache
		for range layers {
			theirs = append(theirs, n)
		}
	}
	for layer := range c.Config.Layers {
		if c.Config.Layers[layer].Owner == layer {
			cells = append(cells, ours.Cells(layer, ctx))
		}
	}
	slices.Sort(theirs)
	slices.Sort(cells)
	if !slices.Equal(cells, theirs) {
		t.Errorf("%s at %d: cells %v, llama.cpp has %v\n%s", path, ctx, cells, theirs, s.Log)
	}
	if got := float64(ours.Bytes(ctx)) / (1 << 20); math.Abs(got-mib) > slack {
		t.Errorf("%s at %d: %.4f MiB, llama.cpp has %.2f", path, ctx, got, mib)
	}
}

// TestCells: windows of several lengths, quantised types, contexts that are padded.
func TestCells(t *testing.T) {
	l := library(t)
	for _, x := range []struct {
		family string
		window int
		ctx    int
		k, v   gguf.Type
	}{
		{"llama", 0, 1000, gguf.TypeF16, gguf.TypeF16},
		{"qwen2", 0, 4096, gguf.TypeQ8_0, gguf.TypeQ4_0},
		{"gemma3_text", 100, 4096, gguf.TypeF16, gguf.TypeF16},
		{"gemma3_text", 600, 4000, gguf.TypeQ5_1, gguf.TypeQ5_0},
		{"gemma3_text", 1024, 1025, gguf.TypeQ8_0, gguf.TypeF16},
		{"gemma3_text", 512, 256, gguf.TypeF16, gguf.TypeF16},
	} {
		path := filepath.Join(t.TempDir(), "m.gguf")
		tiny.GGUF(t, path, x.family, tiny.Options{
			Layers: 4, HeadDim: 64, Heads: 4, KVHeads: 4, Hidden: 256, Context: 8192, Window: x.window,
		})
		compareCells(t, l, path, x.ctx, kvcache.CacheTypes{K: x.k, V: x.v, Rotation: true})
	}
}

// TestCellsOfFamilies: the models that transformers made, of all families: windows in some layers, keys
// of other layers, heads of several lengths.
func TestCellsOfFamilies(t *testing.T) {
	l := library(t)
	for _, path := range files(t) {
		compareCells(t, l, path, 3000, kvcache.F16)
	}
}
