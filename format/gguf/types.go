package gguf

import (
	"fmt"
	"math"
	"strings"
)

// A Type is a ggml tensor type: how the numbers of a row are stored. The values
// are the ids in files.
type Type uint32

// The tensor types of ggml. Forks have given other meanings to ids above
// TypeMXFP4; here they mean what upstream llama.cpp writes (with TypeQ2_0 in
// blocks of 64).
const (
	TypeF32     Type = 0
	TypeF16     Type = 1
	TypeQ4_0    Type = 2
	TypeQ4_1    Type = 3
	TypeQ5_0    Type = 6
	TypeQ5_1    Type = 7
	TypeQ8_0    Type = 8
	TypeQ8_1    Type = 9
	TypeQ2_K    Type = 10
	TypeQ3_K    Type = 11
	TypeQ4_K    Type = 12
	TypeQ5_K    Type = 13
	TypeQ6_K    Type = 14
	TypeQ8_K    Type = 15
	TypeIQ2_XXS Type = 16
	TypeIQ2_XS  Type = 17
	TypeIQ3_XXS Type = 18
	TypeIQ1_S   Type = 19
	TypeIQ4_NL  Type = 20
	TypeIQ3_S   Type = 21
	TypeIQ2_S   Type = 22
	TypeIQ4_XS  Type = 23
	TypeI8      Type = 24
	TypeI16     Type = 25
	TypeI32     Type = 26
	TypeI64     Type = 27
	TypeF64     Type = 28
	TypeIQ1_M   Type = 29
	TypeBF16    Type = 30
	TypeTQ1_0   Type = 34
	TypeTQ2_0   Type = 35
	TypeMXFP4   Type = 39
	TypeNVFP4   Type = 40
	TypeQ1_0    Type = 41
	TypeQ2_0    Type = 42
)

// numTypes is one more than the largest known id.
const numTypes = 43

// traits describes how a type is stored: blocks of block numbers in bytes bytes.
type traits struct {
	name  string
	block int
	bytes int
}

var typeTraits = [numTypes]traits{
	TypeF32:     {"F32", 1, 4},
	TypeF16:     {"F16", 1, 2},
	TypeQ4_0:    {"Q4_0", 32, 18},
	TypeQ4_1:    {"Q4_1", 32, 20},
	TypeQ5_0:    {"Q5_0", 32, 22},
	TypeQ5_1:    {"Q5_1", 32, 24},
	TypeQ8_0:    {"Q8_0", 32, 34},
	TypeQ8_1:    {"Q8_1", 32, 36},
	TypeQ2_K:    {"Q2_K", 256, 84},
	TypeQ3_K:    {"Q3_K", 256, 110},
	TypeQ4_K:    {"Q4_K", 256, 144},
	TypeQ5_K:    {"Q5_K", 256, 176},
	TypeQ6_K:    {"Q6_K", 256, 210},
	TypeQ8_K:    {"Q8_K", 256, 292},
	TypeIQ2_XXS: {"IQ2_XXS", 256, 66},
	TypeIQ2_XS:  {"IQ2_XS", 256, 74},
	TypeIQ3_XXS: {"IQ3_XXS", 256, 98},
	TypeIQ1_S:   {"IQ1_S", 256, 50},
	TypeIQ4_NL:  {"IQ4_NL", 32, 18},
	TypeIQ3_S:   {"IQ3_S", 256, 110},
	TypeIQ2_S:   {"IQ2_S", 256, 82},
	TypeIQ4_XS:  {"IQ4_XS", 256, 136},
	TypeI8:      {"I8", 1, 1},
	TypeI16:     {"I16", 1, 2},
	TypeI32:     {"I32", 1, 4},
	TypeI64:     {"I64", 1, 8},
	TypeF64:     {"F64", 1, 8},
	TypeIQ1_M:   {"IQ1_M", 256, 56},
	TypeBF16:    {"BF16", 1, 2},
	TypeTQ1_0:   {"TQ1_0", 256, 54},
	TypeTQ2_0:   {"TQ2_0", 256, 66},
	TypeMXFP4:   {"MXFP4", 32, 17},
	TypeNVFP4:   {"NVFP4", 64, 36},
	TypeQ1_0:    {"Q1_0", 128, 18},
	TypeQ2_0:    {"Q2_0", 64, 18},
}

// Known reports whether the storage of t is known, so that tensors of type t can
// be copied. Reading their numbers needs CanDequantize.
func (t Type) Known() bool { return t < numTypes && typeTraits[t].block > 0 }

// String returns the name as gguf-py spells it, for example "Q4_K".
func (t Type) String() string {
	if t.Known() {
		return typeTraits[t].name
	}
	if t.CacheOnly() {
		return t.cacheTraits().name
	}
	return fmt.Sprintf("type %d", uint32(t))
}

// ParseType is the inverse of Type.String. Letter case does not matter.
func ParseType(name string) (Type, error) {
	for t, tr := range typeTraits {
		if tr.block > 0 && strings.EqualFold(name, tr.name) {
			return Type(t), nil
		}
	}
	return 0, &UnsupportedError{Msg: fmt.Sprintf("tensor type %q is not known", name)}
}

// Block returns how many numbers form a block, the unit of storage, and how many
// bytes it takes: 1 and 2 for F16, 32 and 34 for Q8_0. Both are 0 for an unknown type.
func (t Type) Block() (numbers, bytes int) {
	if t.CacheOnly() {
		return t.cacheTraits().block, t.cacheTraits().bytes
	}
	if !t.Known() {
		return 0, 0
	}
	return typeTraits[t].block, typeTraits[t].bytes
}

// Quantized reports whether t stores numbers in blocks that share a scale.
func (t Type) Quantized() bool { return t.CacheOnly() || t.Known() && typeTraits[t].block > 1 }

// RowBytes returns the stored size of a row of n numbers. It fails if t is
// unknown (*UnsupportedError), or if n is negative, not a whole number of
// blocks, or too large for an int (ErrLength).
func RowBytes(t Type, n int) (int, error) {
	if !t.Known() && !t.CacheOnly() {
		return 0, &UnsupportedError{Msg: unknownType(t)}
	}
	block, bytes := t.Block()
	if n < 0 || n%block != 0 {
		return 0, fmt.Errorf("gguf: a row of %d numbers is no multiple of the %s block of %d: %w", n, t, block, ErrLength)
	}
	if n/block > math.MaxInt/bytes {
		return 0, fmt.Errorf("gguf: a row of %d numbers as %s: %w", n, t, ErrLength)
	}
	return n / block * bytes, nil
}

// unknownType explains an id that is not in the table.
func unknownType(t Type) string {
	switch t {
	case 4, 5:
		return fmt.Sprintf("tensor type %d (Q4_2 or Q4_3) was removed from ggml", uint32(t))
	case 31, 32, 33, 36, 37, 38:
		return fmt.Sprintf("tensor type %d (a repacked Q4_0 or IQ4_NL) was removed from ggml; convert the model again without repacking", uint32(t))
	}
	return fmt.Sprintf("tensor type %d is not known; the file may come from a newer or forked llama.cpp", uint32(t))
}
