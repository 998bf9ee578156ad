package gguf

import (
	_ "embed"
	"encoding/binary"
	"math"
	"math/bits"
	"sync"

	"github.com/phaseconv/phaseconv/format/dtype"
)

// The IQ1, IQ2 and IQ3 types store 256 numbers as indices into tables of points ("grids") of
// 8 or 4 small numbers, with signs and scales beside them. The tables belong to the format.

// gridData holds the tables, one after the other, as testdata/gen.py packs them: each
// number as an index into the table's levels, in 2 bits (4 for IQ3), lowest bits first.
//
//go:embed grids.bin
var gridData []byte

// A gridSet holds the points of the tables: 8 numbers each, 4 in those of IQ3.
type gridSet struct {
	iq2xxs, iq2xs, iq2s [][8]float32
	iq1                 [][8]float32
	iq3xxs, iq3s        [][4]float32
}

var grids = sync.OnceValue(func() *gridSet {
	iq2 := []float32{8, 25, 43}
	g, b := &gridSet{}, gridData
	g.iq2xxs, b = points8(b, 256, iq2)
	g.iq2xs, b = points8(b, 512, iq2)
	g.iq2s, b = points8(b, 1024, iq2)
	g.iq1, b = points8(b, 2048, []float32{-1, 0, 1})
	g.iq3xxs, b = points4(b, 256, []float32{4, 12, 20, 28, 36, 44, 52, 62})
	g.iq3s, _ = points4(b, 512, []float32{1, 3, 5, 7, 9, 11, 13, 15})
	return g
})

func points8(b []byte, n int, levels []float32) ([][8]float32, []byte) {
	out := make([][8]float32, n)
	for i := range out {
		for j := range 8 {
			out[i][j] = levels[b[2*i+j/4]>>(2*(j%4))&3]
		}
	}
	return out, b[2*n:]
}

func points4(b []byte, n int, levels []float32) ([][4]float32, []byte) {
	out := make([][4]float32, n)
	for i := range out {
		for j := range 4 {
			out[i][j] = levels[b[2*i+j/2]>>(4*(j%2))&15]
		}
	}
	return out, b[2*n:]
}

// signBits returns the signs of 8 numbers from 7 bits: the number of minus signs is even.
func signBits(x byte) byte { return x&127 | byte(bits.OnesCount8(x&127)&1)<<7 }

// signed sets y to d times the point, number j with a minus where bit j of signs is set.
func signed(y, point []float32, d float32, signs byte) {
	for j, v := range point {
		y[j] = math.Float32frombits(math.Float32bits(d*v) ^ uint32(signs>>j&1)<<31)
	}
}

// IQ2_XXS: scale, then for each 32 numbers four indices in a byte each and a word of four
// times 7 sign bits with a 4-bit scale above.
func dequantIQ2_XXS(dst []float32, src []byte) {
	grid := grids().iq2xxs
	for len(dst) >= 256 && len(src) >= 66 {
		d := half(src)
		for g := range 8 {
			q := src[2+8*g:][:8]
			word := binary.LittleEndian.Uint32(q[4:])
			db := d * (0.5 + float32(word>>28)) * 0.25
			for k := range 4 {
				signed(dst[32*g+8*k:], grid[q[k]][:], db, signBits(byte(word>>(7*k))))
			}
		}
		dst, src = dst[256:], src[66:]
	}
}

// IQ2_XS: scale, 32 words of a 9-bit index and 7 sign bits, then a 4-bit scale for each 16
// numbers.
func dequantIQ2_XS(dst []float32, src []byte) {
	grid := grids().iq2xs
	for len(dst) >= 256 && len(src) >= 74 {
		d := half(src)
		for i := range 32 {
			word := binary.LittleEndian.Uint16(src[2+2*i:])
			db := d * (0.5 + float32(src[66+i/4]>>(i/2%2*4)&15)) * 0.25
			signed(dst[8*i:], grid[word&511][:], db, signBits(byte(word>>9)))
		}
		dst, src = dst[256:], src[74:]
	}
}

// IQ2_S: scale, the low 8 bits of 32 indices, 32 bytes of signs, the high 2 bits of the
// indices, then scales as in IQ2_XS.
func dequantIQ2_S(dst []float32, src []byte) {
	grid := grids().iq2s
	for len(dst) >= 256 && len(src) >= 82 {
		d := half(src)
		for i := range 32 {
			index := int(src[2+i]) | int(src[66+i/4]>>(i%4*2)&3)<<8
			db := d * (0.5 + float32(src[74+i/4]>>(i/2%2*4)&15)) * 0.25
			signed(dst[8*i:], grid[index][:], db, src[34+i])
		}
		dst, src = dst[256:], src[82:]
	}
}

// IQ3_XXS: scale, 64 indices in a byte each, then for each 32 numbers a word as in IQ2_XXS.
func dequantIQ3_XXS(dst []float32, src []byte) {
	grid := grids().iq3xxs
	for len(dst) >= 256 && len(src) >= 98 {
		d := half(src)
		for g := range 8 {
			word := binary.LittleEndian.Uint32(src[66+4*g:])
			db := d * (0.5 + float32(word>>28)) * 0.5
			for k := range 8 {
				signs := signBits(byte(word>>(7*(k/2)))) >> (k % 2 * 4)
				signed(dst[32*g+4*k:], grid[src[2+8*g+k]][:], db, signs)
			}
		}
		dst, src = dst[256:], src[98:]
	}
}

// IQ3_S: scale, the low 8 bits of 64 indices, their ninth bits, 32 bytes of signs, then a
// 4-bit scale for each 32 numbers.
func dequantIQ3_S(dst []float32, src []byte) {
	grid := grids().iq3s
	for len(dst) >= 256 && len(src) >= 110 {
		d := half(src)
		for i := range 64 {
			index := int(src[2+i]) | int(src[66+i/8]>>(i%8)&1)<<8
			db := d * float32(1+2*int32(src[106+i/16]>>(i/8%2*4)&15))
			signed(dst[4*i:], grid[index][:], db, src[74+i/2]>>(i%2*4))
		}
		dst, src = dst[256:], src[110:]
	}
}

// iq1Delta is what IQ1 types add to or take from every number of a point.
const iq1Delta = 0.125

// shifted sets y to d times the point, each number moved by delta before.
func shifted(y []float32, point *[8]float32, d float32, minus bool) {
	delta := float32(iq1Delta)
	if minus {
		delta = -delta
	}
	for j, v := range point {
		y[j] = d * (v + delta)
	}
}

// IQ1_S: scale, the low 8 bits of 32 indices, then for each 32 numbers a word: four times
// the high 3 bits, a 3-bit scale, the sign of delta.
func dequantIQ1_S(dst []float32, src []byte) {
	grid := grids().iq1
	for len(dst) >= 256 && len(src) >= 50 {
		d := half(src)
		for i := range 32 {
			word := binary.LittleEndian.Uint16(src[34+i/4*2:])
			index := int(src[2+i]) | int(word>>(i%4*3)&7)<<8
			shifted(dst[8*i:], &grid[index], d*float32(2*int32(word>>12&7)+1), word>>15 != 0)
		}
		dst, src = dst[256:], src[50:]
	}
}

// IQ1_M: the low 8 bits of 32 indices, a nibble for each with its high 3 bits and the sign of
// delta, then four words: of each the top 4 bits are a part of the F16 scale, lowest
// first, and below lie four 3-bit scales for 16 numbers each.
func dequantIQ1_M(dst []float32, src []byte) {
	grid := grids().iq1
	for len(dst) >= 256 && len(src) >= 56 {
		var words [4]uint16
		var scale uint16
		for k := range words {
			words[k] = binary.LittleEndian.Uint16(src[48+2*k:])
			scale |= words[k] >> 12 << (4 * k)
		}
		d := dtype.F16ToF32(scale)
		for i := range 32 {
			nibble := src[32+i/2] >> (i % 2 * 4)
			index := int(src[i]) | int(nibble&7)<<8
			s := words[i/8] >> (i / 2 % 4 * 3) & 7
			shifted(dst[8*i:], &grid[index], d*float32(2*int32(s)+1), nibble&8 != 0)
		}
		dst, src = dst[256:], src[56:]
	}
}
