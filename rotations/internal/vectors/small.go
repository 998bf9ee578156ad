package main

import (
	"fmt"
	"math"

	"github.com/phaseconv/phaseconv/format/dtype"
	"github.com/phaseconv/phaseconv/kernels/onebit"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/spec"
)

// generatorVector lets authors check their number generator first.
type generatorVector struct {
	Version int               `json:"version"`
	Numbers []generatorNumber `json:"numbers"`
	Arrays  []*array          `json:"arrays"` // with a formula and the numbers it makes
}

type generatorNumber struct {
	Seed  uint64 `json:"seed"`
	I     uint64 `json:"i"`
	Value string `json:"value"`
}

func generatorVectors() *generatorVector {
	g := &generatorVector{Version: spec.Version}
	for _, x := range [][2]uint64{{0, 0}, {0, 1}, {1, 0}, {42, 1000}, {math.MaxUint64, 7}} {
		g.Numbers = append(g.Numbers, generatorNumber{x[0], x[1], fmt.Sprintf("%016x", number(x[0], x[1]))})
	}
	const d = 8
	add := func(f formula, base *array) *array {
		a := generate(f, d, d, base)
		a.Hex = written(a.data, d).Hex
		g.Arrays = append(g.Arrays, a)
		return a
	}
	add(formula{Rule: "identity"}, nil)
	u := add(formula{Rule: "uniform", Seed: 5, Exponent: 1, ColumnMod: 3, RowStep: 2}, nil)
	add(formula{Rule: "hadamard", Seed: 6}, nil)
	add(formula{Rule: "reflector", Seed: 7}, nil)
	add(formula{Rule: "weighted"}, u) // of the array "uniform" above
	return g
}

// scoreVector is the score alone, from the transformed query on.
type scoreVector struct {
	Signs  int      `json:"signs"`
	Keys   int      `json:"keys"`
	Query  string   `json:"query"` // transformed: M^T q
	Offset string   `json:"offset"`
	Words  []string `json:"words"`  // per key
	Stored []string `json:"stored"` // 16 words a line
	Scales string   `json:"scales"` // binary16
	Scores string   `json:"scores"`
}

type scoreFile struct {
	Version int            `json:"version"`
	Cases   []*scoreVector `json:"cases"`
}

// scoreVectors covers sign counts that fill bytes, words and trees in part, and
// scales of every class: zero, subnormal, ordinary, largest.
func scoreVectors() *scoreFile {
	out := &scoreFile{Version: spec.Version}
	for k, b := range []int{8, 24, 32, 40, 64, 96, 128, 160, 192, 256, 512} {
		n := []int{3, 17}[k%2]
		seed := uint64(7000 + 10*k)
		w := onebit.Words(b)
		q := generate(formula{Rule: "uniform", Seed: seed, Exponent: 3, ColumnMod: 7}, 1, b, nil).data
		offset := generate(formula{Rule: "uniform", Seed: seed + 1}, 1, 1, nil).data
		scales := make([]uint16, n)
		special := []uint16{0, 1, 0x03ff, 0x0400, 0x3c00, 0x7bff}
		stored := make([]uint32, onebit.Len(n, b))
		v := &scoreVector{Signs: b, Keys: n, Query: floats(q), Offset: floats(offset)}
		words := make([]uint32, w)
		for i := range n {
			if scales[i] = special[(i+k)%len(special)]; i >= len(special) {
				scales[i] = uint16(number(seed+2, uint64(i)) % 0x7c00)
			}
			for j := range words {
				words[j] = uint32(number(seed+3, uint64(i*w+j)))
			}
			if r := b % 32; r != 0 {
				words[w-1] &= 1<<r - 1
			}
			v.Words = append(v.Words, hexWords(words))
			onebit.Set(stored, b, i, words)
		}
		for i := 0; i < len(stored); i += onebit.BlockKeys {
			v.Stored = append(v.Stored, hexWords(stored[i:i+onebit.BlockKeys]))
		}
		v.Scales = hexScales(scales)
		scores := make([]float32, n)
		for i := range scores {
			onebit.Get(words, stored, b, i)
			var sum float64 // of few numbers of 24 bits: exact
			for j, x := range q {
				if words[j/32]>>(j%32)&1 == 0 {
					x = -x
				}
				sum += float64(x)
			}
			scores[i] = float32(float64(offset[0]) + float64(float64(dtype.F16ToF32(scales[i]))*sum))
		}
		v.Scores = floats(scores)
		out.Cases = append(out.Cases, v)
	}
	return out
}

// edgeVector is a key at the edge of what a code can hold.
type edgeVector struct {
	Why   string `json:"why"`
	Key   string `json:"key"`
	Words string `json:"words"`
	Alpha string `json:"alpha"`
}

type edgeFile struct {
	Version int          `json:"version"`
	HeadDim int          `json:"head_dim"` // code raw: no mean, M the identity
	Keys    []edgeVector `json:"keys"`
}

func edgeVectors() (*edgeFile, error) {
	const d = 8
	id := generate(formula{Rule: "identity"}, d, d, nil)
	code, err := codec.New(codec.Raw, d, d, make([]float32, d), id.data, nil)
	if err != nil {
		return nil, err
	}
	same := func(v float64) []float32 {
		k := make([]float32, d)
		for i := range k {
			if k[i] = float32(v); i%3 == 1 {
				k[i] = -k[i]
			}
		}
		return k
	}
	out := &edgeFile{Version: spec.Version, HeadDim: d}
	negative := float32(math.Copysign(0, -1))
	for _, x := range []struct {
		why string
		key []float32
	}{
		{"zeros: signs +1, scale 0", make([]float32, d)},
		{"a negative zero counts as +1", []float32{negative, -1, 1, negative, -1, 1, -1, negative}},
		{"asymmetric signs: bit 0 is the least significant", []float32{1, -2, -3, -4, -5, -6, -7, -8}},
		{"halfway between two binary16 numbers, down to the even one", same(1 + 0x1p-11)},
		{"halfway, up to the even one", same(1 + 3*0x1p-11)},
		{"just above halfway", same(1 + 0x1p-11 + 0x1p-23)},
		{"the least subnormal scale", same(0x1p-24)},
		{"half of it becomes 0", same(0x1p-25)},
		{"one and a half of it becomes two", same(0x1.8p-24)},
		{"a subnormal scale", same(0x1.234p-16)},
		{"largest scale", same(65504)},
		{"scales above 65504 are 65504", same(65519.9)},
		{"far above", same(1e30)},
	} {
		words := make([]uint32, code.Words())
		alpha := code.EncodeKey(x.key, words)
		out.Keys = append(out.Keys, edgeVector{x.why, floats(x.key), hexWords(words),
			hexScales([]uint16{dtype.F32ToF16(alpha)})})
	}
	return out, nil
}
