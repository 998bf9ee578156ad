package kvcache

import (
	"github.com/phaseconv/phaseconv/format/gguf"
)

// CacheTypes names a pair of llama.cpp's cache types.
type CacheTypes struct {
	K, V gguf.Type
	// Rotation: llama.cpp's attention rotation is on, its default.
	Rotation bool
}

// F16 is the pair that everything is compared with, llama.cpp's default.
var F16 = CacheTypes{gguf.TypeF16, gguf.TypeF16, true}
