package kvcache

import (
	"testing"

	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/format/gguf"
)

// TestBytes: sizes as llama.cpp allocates them, worked out by hand from its rules.
func TestBytes(t *testing.T) {
	// Heads of 64, one KV head: 128 bytes a side and token in F16, 36 in Q4_0, 68 in Q8_0.
	model := func(windowInGGUF bool, windows ...int) *family.Config {
		c := &family.Config{Family: &family.Family{Window: family.Window{InGGUF: windowInGGUF}}}
		for l, w := range windows {
			y := family.Layer{Attention: family.Attention{Owner: l, Window: w}}
			y.HeadShape = family.HeadShape{Heads: 2, KVHeads: 1, HeadDim: 64, ValueDim: 64}
			y.Rope.Dim = 64
			c.Layers = append(c.Layers, y)
		}
		return c
	}
	shared := model(false, 0, 0)
	shared.Layers[1].Owner = 0
	for _, x := range []struct {
		name  string
		c     *family.Config
		types CacheTypes
		ctx   int
		cells []int
		bytes int64
	}{
		{"whole cells", model(false, 0, 0), F16, 512, []int{512, 512}, 2 * 512 * 256},
		{"padded", model(false, 0), F16, 513, []int{768}, 768 * 256},
		{"mixed types", model(false, 0), CacheTypes{K: gguf.TypeQ8_0, V: gguf.TypeQ4_0}, 256, []int{256}, 256 * (68 + 36)},
		// A window of 1024 keeps 1024 + 512 tokens, one of 100 is padded: 612 to 768.
		{"windows", model(true, 0, 1024, 100), F16, 32768, []int{32768, 1536, 768}, (32768 + 1536 + 768) * 256},
		{"a context shorter than window and batch", model(true, 0, 1024), F16, 1024, []int{1024, 1024}, 2 * 1024 * 256},
		{"a window that stock runtimes do not apply", model(false, 0, 1024), F16, 8192, []int{8192, 8192}, 2 * 8192 * 256},
		{"a layer that reads another's", shared, F16, 256, []int{256, 256}, 256 * 256},
	} {
		s := &LlamaCpp{CacheTypes: x.types, cfg: x.c}
		for l, want := range x.cells {
			if got := s.Cells(l, x.ctx); got != want {
				t.Errorf("%s: layer %d has %d cells, want %d", x.name, l, got, want)
			}
		}
		if got := s.Bytes(x.ctx); got != x.bytes {
			t.Errorf("%s: %d bytes, want %d", x.name, got, x.bytes)
		}
	}
}
