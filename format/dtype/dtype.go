// Package dtype converts between float32 and the 16-bit float formats of model
// files: F16 (IEEE 754 binary16) and BF16 (the upper half of a float32).
//
// Narrowing rounds to nearest, ties to even, in one step; nothing is truncated.
// NaN stays NaN, infinities stay infinite, signs of zero are kept, and values
// that overflow become infinite. Every function is plain integer and float32
// arithmetic, so results are the same on every machine.
//
// The bulk functions work like copy: they convert as many values as both sides
// hold and return that number. Byte slices are little-endian, the order of
// safetensors and GGUF.
package dtype

import (
	"encoding/binary"
	"math"
	"slices"
)

// F16ToF32 widens a binary16 value. It is exact. A signalling NaN becomes a
// quiet one with the same payload, as the conversion instructions of x86 and
// ARM do.
func F16ToF32(h uint16) float32 {
	abs := uint32(h & 0x7fff)
	// The fields lie at the right places after the shift, with an exponent that
	// is 112 too small. Multiplying corrects it for normal and subnormal values
	// alike, exactly; infinities and NaN need the largest exponent instead.
	bits := math.Float32bits(math.Float32frombits(abs<<13)*0x1p112) | uint32(h&0x8000)<<16
	if abs >= 0x7c00 {
		bits |= 0x7f800000
		if abs > 0x7c00 {
			bits |= 0x00400000
		}
	}
	return math.Float32frombits(bits)
}

// F32ToF16 narrows f to binary16, rounding to nearest even. Magnitudes of 65520
// and more become infinite. A NaN becomes a quiet NaN that keeps the sign and
// the upper payload bits.
func F32ToF16(f float32) uint16 {
	bits := math.Float32bits(f)
	sign := uint16(bits>>16) & 0x8000
	abs := bits & 0x7fffffff
	switch {
	case abs-0x38800000 < 0x47800000-0x38800000: // 2^-14 <= |f| < 2^16
		// Rebias the exponent from 127 to 15 and add half a unit less one, plus
		// one more when the kept part is odd. A carry runs into the exponent,
		// and from 65504 up to infinity, as it should.
		abs += 0xfff + abs>>13&1
		abs -= 112 << 23
		return sign | uint16(abs>>13)
	case abs < 0x38800000:
		// Adding 0.5, whose unit in the last place is 2^-24, makes the float
		// adder round to the subnormal grid (nearest even).
		r := math.Float32frombits(abs) + 0.5
		return sign | uint16(math.Float32bits(r)-0x3f000000)
	case abs > 0x7f800000:
		return sign | 0x7e00 | uint16(abs>>13)&0x03ff
	}
	return sign | 0x7c00
}

// BF16ToF32 widens a bfloat16 value. It is exact, NaN payloads included.
func BF16ToF32(b uint16) float32 { return math.Float32frombits(uint32(b) << 16) }

// F32ToBF16 narrows f to bfloat16, rounding to nearest even. A NaN becomes a
// quiet NaN that keeps the sign and the upper payload bits (rounding its bits
// could carry into infinity or into a number).
func F32ToBF16(f float32) uint16 {
	bits := math.Float32bits(f)
	if bits&0x7fffffff > 0x7f800000 {
		return uint16(bits>>16) | 0x0040
	}
	return uint16((bits + 0x7fff + bits>>16&1) >> 16)
}

// F16Round returns f rounded to the nearest value that F16 can hold.
func F16Round(f float32) float32 { return F16ToF32(F32ToF16(f)) }

// BF16Round returns f rounded to the nearest value that BF16 can hold.
func BF16Round(f float32) float32 { return BF16ToF32(F32ToBF16(f)) }

// DecodeF16 widens the little-endian binary16 values of src into dst. An odd
// last byte of src is not read.
func DecodeF16(dst []float32, src []byte) int {
	n := min(len(dst), len(src)/2)
	dst, src = dst[:n], src[:2*n]
	// Four at a time: weights are nearly always normal numbers, which need only
	// a shift and an exponent of 127 instead of 15. This is twice as fast as a
	// loop over F16ToF32 and as fast as a table of 256 KiB.
	const exponents, rebias = 0x7c00_7c00_7c00_7c00, 112 << 23
	for len(dst) >= 4 && len(src) >= 8 {
		d, w := dst[:4:4], binary.LittleEndian.Uint64(src)
		// Bit 15 of a lane of e+0x7c00 is set unless the exponent is 0, that of
		// e+0x0400 only if it is 31. No lane carries into the next.
		e := w & exponents
		if (e+exponents)&^(e+0x0400_0400_0400_0400)&0x8000_8000_8000_8000 == 0x8000_8000_8000_8000 {
			d[0] = math.Float32frombits(uint32(w)<<16&0x80000000 | (uint32(w)&0x7fff<<13 + rebias))
			d[1] = math.Float32frombits(uint32(w)&0x80000000 | (uint32(w>>16)&0x7fff<<13 + rebias))
			d[2] = math.Float32frombits(uint32(w>>16)&0x80000000 | (uint32(w>>32)&0x7fff<<13 + rebias))
			d[3] = math.Float32frombits(uint32(w>>32)&0x80000000 | (uint32(w>>48)&0x7fff<<13 + rebias))
		} else {
			d[0], d[1] = F16ToF32(uint16(w)), F16ToF32(uint16(w>>16))
			d[2], d[3] = F16ToF32(uint16(w>>32)), F16ToF32(uint16(w>>48))
		}
		dst, src = dst[4:], src[8:]
	}
	for i := range dst {
		dst[i] = F16ToF32(binary.LittleEndian.Uint16(src[2*i:]))
	}
	return n
}

// EncodeF16 narrows src to little-endian binary16 in dst.
func EncodeF16(dst []byte, src []float32) int {
	n := min(len(dst)/2, len(src))
	dst, src = dst[:2*n], src[:n]
	// Four at a time with one branch for the common case, the first of F32ToF16.
	const low, span = 0x38800000, 0x47800000 - 0x38800000
	const rebias = 0xfff - 112<<23 + 1<<32 // modulo 2^32
	for len(src) >= 4 && len(dst) >= 8 {
		s := src[:4:4]
		b0, b1, b2, b3 := math.Float32bits(s[0]), math.Float32bits(s[1]), math.Float32bits(s[2]), math.Float32bits(s[3])
		a0, a1, a2, a3 := b0&0x7fffffff, b1&0x7fffffff, b2&0x7fffffff, b3&0x7fffffff
		var w uint64
		if a0-low < span && a1-low < span && a2-low < span && a3-low < span {
			w = uint64(b0>>16&0x8000 | (a0+rebias+a0>>13&1)>>13)
			w |= uint64(b1>>16&0x8000|(a1+rebias+a1>>13&1)>>13) << 16
			w |= uint64(b2>>16&0x8000|(a2+rebias+a2>>13&1)>>13) << 32
			w |= uint64(b3>>16&0x8000|(a3+rebias+a3>>13&1)>>13) << 48
		} else {
			w = uint64(F32ToF16(s[0])) | uint64(F32ToF16(s[1]))<<16 |
				uint64(F32ToF16(s[2]))<<32 | uint64(F32ToF16(s[3]))<<48
		}
		binary.LittleEndian.PutUint64(dst, w)
		dst, src = dst[8:], src[4:]
	}
	for i, f := range src {
		binary.LittleEndian.PutUint16(dst[2*i:], F32ToF16(f))
	}
	return n
}

// DecodeBF16 widens the little-endian bfloat16 values of src into dst. An odd
// last byte of src is not read.
func DecodeBF16(dst []float32, src []byte) int {
	n := min(len(dst), len(src)/2)
	for i := range dst[:n] {
		dst[i] = BF16ToF32(binary.LittleEndian.Uint16(src[2*i:]))
	}
	return n
}

// EncodeBF16 narrows src to little-endian bfloat16 in dst.
func EncodeBF16(dst []byte, src []float32) int {
	n := min(len(dst)/2, len(src))
	for i, f := range src[:n] {
		binary.LittleEndian.PutUint16(dst[2*i:], F32ToBF16(f))
	}
	return n
}

// DecodeF32 copies the little-endian float32 values of src into dst, bit for
// bit. Up to three last bytes of src are not read.
func DecodeF32(dst []float32, src []byte) int {
	n := min(len(dst), len(src)/4)
	for i := range dst[:n] {
		dst[i] = math.Float32frombits(binary.LittleEndian.Uint32(src[4*i:]))
	}
	return n
}

// EncodeF32 copies src to little-endian float32 in dst, bit for bit.
func EncodeF32(dst []byte, src []float32) int {
	n := min(len(dst)/4, len(src))
	for i, f := range src[:n] {
		binary.LittleEndian.PutUint32(dst[4*i:], math.Float32bits(f))
	}
	return n
}

// AppendF32 appends src to b as little-endian float32, bit for bit.
func AppendF32(b []byte, src []float32) []byte {
	b = slices.Grow(b, 4*len(src))
	for _, f := range src {
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(f))
	}
	return b
}
