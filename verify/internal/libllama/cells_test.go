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

// TestCells holds the sizes of caches against those that llama.cpp logs when it makes them.
func TestCells(t *testing.T) {
	l := library(t)
	cache := regexp.MustCompile(`size = +([\d.]+) MiB \( *(\d+) cells, +(\d+) layers`)
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
		c, err := checkpoint.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		ours, err := kvcache.NewLlamaCpp(c.Config, kvcache.CacheTypes{K: x.k, V: x.v, Rotation: true})
		if err != nil {
			t.Fatal(err)
		}
		m, err := l.Load(path)
		if err != nil {
			t.Fatal(err)
		}
		s, err := m.Context(Options{Ctx: x.ctx, K: x.k, V: x.v, Flash: true, Windows: true, Threads: 1})
		if err != nil {
			t.Fatal(err)
		}
		var mib float64
		var theirs, cells []int // of each layer, sorted
		for _, f := range cache.FindAllStringSubmatch(s.Log, -1) {
			size, _ := strconv.ParseFloat(f[1], 64)
			n, _ := strconv.Atoi(f[2])
			layers, _ := strconv.Atoi(f[3])
			mib += size
			for range layers {
				theirs = append(theirs, n)
			}
		}
		for layer := range c.Config.Layers {
			cells = append(cells, ours.Cells(layer, x.ctx))
		}
		slices.Sort(theirs)
		slices.Sort(cells)
		if !slices.Equal(cells, theirs) {
			t.Errorf("%+v: cells %v, llama.cpp has %v\n%s", x, cells, theirs, s.Log)
		}
		// The log has two digits of each cache.
		if got := float64(ours.Bytes(x.ctx)) / (1 << 20); math.Abs(got-mib) > 0.0101 {
			t.Errorf("%+v: %.4f MiB, llama.cpp has %.2f", x, got, mib)
		}
		s.Close()
		m.Close()
	}
}
