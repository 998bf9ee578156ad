package gguf

import (
	"encoding/binary"
	"math"
)

// The K types store 256 numbers as groups of 16 or 32 with integer scales (and,
// for Q2_K, Q4_K and Q5_K, integer minima), which an F16 (two F16) multiplies.

// Q2_K: 16 bytes of scale (low nibble) and minimum (high nibble) per 16 numbers,
// 64 bytes of 2-bit numbers, scale, scale of the minima. Within each half of 128,
// bits 2s and 2s+1 of 32 bytes hold 32 numbers in a row.
func dequantQ2_K(dst []float32, src []byte) {
	for len(dst) >= 256 && len(src) >= 84 {
		d, dmin := half(src[80:]), half(src[82:])
		for g := range 16 {
			scale := d * float32(src[g]&15)
			minimum := float32(dmin * float32(src[g]>>4)) // else arm64 fuses it below
			shift := g / 2 % 4 * 2
			q := src[16+g/8*32+g%2*16:][:16:16]
			y := dst[16*g:][:16:16]
			for j := range y {
				y[j] = float32(scale*float32(q[j]>>shift&3)) - minimum
			}
		}
		dst, src = dst[256:], src[84:]
	}
}

// Q3_K: 32 bytes of high bits (bit g/2 of byte j is for number j of a pair of
// groups; 0 subtracts 4), 64 bytes of low bits laid out as in Q2_K, 12 bytes of
// 6-bit scales, scale.
func dequantQ3_K(dst []float32, src []byte) {
	for len(dst) >= 256 && len(src) >= 110 {
		d, packed := half(src[108:]), src[96:108:108]
		for g := range 16 {
			// Low 4 bits in the nibbles of bytes 0 to 7, high 2 bits in bytes 8 to 11.
			scale := int32(packed[g%8]>>(g/8*4)&15 | packed[8+g%4]>>(g/4*2)&3<<4)
			dl := d * float32(scale-32)
			shift := g / 2 % 4 * 2
			q := src[32+g/8*32+g%2*16:][:16:16]
			h := src[g%2*16:][:16:16]
			y := dst[16*g:][:16:16]
			for j := range y {
				y[j] = dl * float32(int32(q[j]>>shift&3)+int32(h[j]>>(g/2)&1)*4-4)
			}
		}
		dst, src = dst[256:], src[110:]
	}
}

// scaleMin unpacks the 6-bit scale and minimum of group g of Q4_K and Q5_K from
// 12 bytes: groups 0 to 3 lie whole in bytes 0 to 7, groups 4 to 7 in the nibbles
// of bytes 8 to 11 and the top bits of the others.
func scaleMin(b []byte, g int) (scale, minimum float32) {
	if g < 4 {
		return float32(b[g] & 63), float32(b[g+4] & 63)
	}
	return float32(b[g+4]&15 | b[g-4]>>6<<4), float32(b[g+4]>>4 | b[g]>>6<<4)
}

// Q4_K: scale, scale of the minima, 12 bytes of scales and minima, 128 bytes of
// numbers: of each 64 numbers the first 32 are the low nibbles of 32 bytes.
func dequantQ4_K(dst []float32, src []byte) {
	for len(dst) >= 256 && len(src) >= 144 {
		d, dmin := half(src), half(src[2:])
		for g := 0; g < 8; g += 2 {
			s1, m1 := scaleMin(src[4:16], g)
			s2, m2 := scaleMin(src[4:16], g+1)
			s1, m1, s2, m2 = d*s1, float32(dmin*m1), d*s2, float32(dmin*m2)
			q := src[16+16*g:][:32:32]
			lo, hi := dst[32*g:][:32:32], dst[32*g+32:][:32:32]
			for j := range lo {
				lo[j] = float32(s1*float32(q[j]&15)) - m1
				hi[j] = float32(s2*float32(q[j]>>4)) - m2
			}
		}
		dst, src = dst[256:], src[144:]
	}
}

// Q5_K: as Q4_K, with 32 bytes of fifth bits before the numbers: bit g of byte j
// is for number j of group g.
func dequantQ5_K(dst []float32, src []byte) {
	for len(dst) >= 256 && len(src) >= 176 {
		d, dmin := half(src), half(src[2:])
		h := src[16:48:48]
		for g := 0; g < 8; g += 2 {
			s1, m1 := scaleMin(src[4:16], g)
			s2, m2 := scaleMin(src[4:16], g+1)
			s1, m1, s2, m2 = d*s1, float32(dmin*m1), d*s2, float32(dmin*m2)
			q := src[48+16*g:][:32:32]
			lo, hi := dst[32*g:][:32:32], dst[32*g+32:][:32:32]
			for j := range lo {
				lo[j] = float32(s1*float32(q[j]&15|h[j]>>g<<4&16)) - m1
				hi[j] = float32(s2*float32(q[j]>>4|h[j]>>(g+1)<<4&16)) - m2
			}
		}
		dst, src = dst[256:], src[176:]
	}
}

// Q6_K: 128 bytes of low nibbles, 64 bytes of high bit pairs, 16 signed scales
// for 16 numbers each, scale. In each half of 128, number l+32k takes a nibble of
// byte l+32(k%2) and bit pair k of byte l.
func dequantQ6_K(dst []float32, src []byte) {
	for len(dst) >= 256 && len(src) >= 210 {
		d := half(src[208:])
		for g := range 16 {
			k, l := g/2%4, g%2*16
			ds := d * float32(int8(src[192+g]))
			ql := src[g/8*64+k%2*32+l:][:16:16]
			qh := src[128+g/8*32+l:][:16:16]
			low, high := k/2*4, 2*k
			y := dst[16*g:][:16:16]
			for j := range y {
				y[j] = ds * float32(int32(ql[j]>>low&15|qh[j]>>high&3<<4)-32)
			}
		}
		dst, src = dst[256:], src[210:]
	}
}

// Q8_K: a float32 scale, 256 numbers, and sums that only dot products need.
func dequantQ8_K(dst []float32, src []byte) {
	for len(dst) >= 256 && len(src) >= 292 {
		d := math.Float32frombits(binary.LittleEndian.Uint32(src))
		for j, q := range src[4:260] {
			dst[j] = d * float32(int8(q))
		}
		dst, src = dst[256:], src[292:]
	}
}
