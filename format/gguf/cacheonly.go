package gguf

import (
	"encoding/binary"
	"math"

	"github.com/phaseconv/phaseconv/format/dtype"
)

// Types that rows of a KV cache have in other runtimes than llama.cpp. No file has them: they are not
// Known, and readers and writers of files refuse them.
//
// TypeMLX8 and TypeMLX4 are those of MLX (mlx-lm's --kv-bits 8 and 4 with groups of 64): affine, each
// group with a scale and a bias of its own in the model's type, here F16.
const (
	TypeMLX4 Type = 1<<16 | 4
	TypeMLX8 Type = 1<<16 | 8
)

const mlxGroup = 64

// CacheOnly says that no file has this type.
func (t Type) CacheOnly() bool { return t == TypeMLX4 || t == TypeMLX8 }

// CanCache reports whether QuantizeCacheRow and DequantizeRow handle t.
func CanCache(t Type) bool { return CanQuantize(t) || t.CacheOnly() }

// cacheTraits is typeTraits for cache-only types. Codes are kept in a byte each; bytes counts them
// as MLX packs them.
func (t Type) cacheTraits() traits {
	if t == TypeMLX4 {
		return traits{"MLX4", mlxGroup, mlxGroup/2 + 4}
	}
	return traits{"MLX8", mlxGroup, mlxGroup + 4}
}

// mlxBins is the largest code.
func (t Type) mlxBins() float32 { return float32(int(1)<<(t&0xff) - 1) }

// quantMLX stores rows as mlx.core.quantize does (mlx/backend/cpu/quantized.cpp, mode affine): scale
// and bias in F16, then the codes, those of 4 bits two to a byte, the first in the low one.
func quantMLX(t Type, dst []byte, src []float32) {
	bits := int(t & 0xff)
	size := t.cacheTraits().bytes
	for ; len(src) >= mlxGroup; src, dst = src[mlxGroup:], dst[size:] {
		x := src[:mlxGroup]
		low, high := x[0], x[0]
		for _, v := range x {
			low, high = min(low, v), max(high, v)
		}
		bins := t.mlxBins()
		scale, edge := max((high-low)/bins, 1e-7), low
		if abs32(low) <= abs32(high) {
			scale, edge = -scale, high
		}
		bias := float32(0)
		if q0 := float32(math.RoundToEven(float64(edge / scale))); q0 != 0 {
			scale, bias = edge/q0, edge
		}
		putHalf(dst, scale)
		putHalf(dst[2:], bias)
		codes := dst[4:size]
		clear(codes)
		for i, v := range x {
			q := uint(min(max(float32(math.RoundToEven(float64((v-bias)/scale))), 0), bins))
			codes[i*bits/8] |= byte(q << (i * bits % 8))
		}
	}
}

func dequantMLX(t Type, dst []float32, src []byte) {
	bits := int(t & 0xff)
	size := t.cacheTraits().bytes
	for ; len(dst) >= mlxGroup; src, dst = src[size:], dst[mlxGroup:] {
		scale := dtype.F16ToF32(binary.LittleEndian.Uint16(src))
		bias := dtype.F16ToF32(binary.LittleEndian.Uint16(src[2:]))
		for i := range dst[:mlxGroup] {
			q := src[4+i*bits/8] >> (i * bits % 8) & byte(t.mlxBins())
			dst[i] = float32(scale*float32(q)) + bias
		}
	}
}

func abs32(x float32) float32 { return float32(math.Abs(float64(x))) }
