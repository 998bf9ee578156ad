package gguf

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/phaseconv/phaseconv/format/dtype"
)

// quantizers convert whole blocks of finite numbers, the inverse of dequantizers.
var quantizers = [numTypes]func(dst []byte, src []float32){
	TypeF32:    func(dst []byte, src []float32) { dtype.EncodeF32(dst, src) },
	TypeF16:    func(dst []byte, src []float32) { dtype.EncodeF16(dst, src) },
	TypeBF16:   func(dst []byte, src []float32) { dtype.EncodeBF16(dst, src) },
	TypeQ8_0:   quantQ8_0,
	TypeQ4_0:   quantQ4_0,
	TypeQ4_1:   quantQ4_1,
	TypeQ5_0:   quantQ5_0,
	TypeQ5_1:   quantQ5_1,
	TypeIQ4_NL: quantIQ4_NL,
	TypeQ1_0:   quantQ1_0,
	TypeQ2_0:   quantQ2_0,
	TypeQ2_K:   quantQ2_K,
	TypeQ3_K:   quantQ3_K,
	TypeQ4_K:   quantQ4_K,
	TypeQ5_K:   quantQ5_K,
	TypeQ6_K:   quantQ6_K,
	TypeMXFP4:  quantMXFP4,
}

// CanQuantize reports whether QuantizeRow handles t: F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0,
// Q5_1, IQ4_NL, Q1_0, Q2_0, Q2_K to Q6_K and MXFP4.
func CanQuantize(t Type) bool { return t < numTypes && quantizers[t] != nil }

// WritableType returns the type that edited rows of n numbers are stored in, which were of type t: t
// where it can be written, else Q8_0, or F16 where blocks of Q8_0 do not divide them.
func WritableType(t Type, n int) Type {
	if CanQuantize(t) {
		return t
	}
	if block, _ := TypeQ8_0.Block(); n%block != 0 {
		return TypeF16
	}
	return TypeQ8_0
}

// QuantizeRow converts src to its stored form of type t. The result has the bits
// of ggml's quantize_row_*_ref functions on x86-64, which llama-quantize uses
// without an importance matrix and llama.cpp's CPU backend for writing its cache,
// with three exceptions. For IQ4_NL llama-quantize searches longer than the cache
// does; this is the cache's rule. A block of IQ4_NL that is all but zero has
// undefined codes in ggml, here those of zero. And the Q8_0 rows of a cache are
// rounded differently: see QuantizeCacheRow.
//
// dst must have exactly RowBytes(t, len(src)) bytes (ErrLength). Block types take
// finite numbers only (ErrNotFinite); as in ggml the scale of large ones overflows
// F16, from 65,520 on for Q1_0, Q4_1 and Q5_1, from 8 million on for Q8_0. F32,
// F16 and BF16 take all numbers. A type that cannot be written gives an
// *UnsupportedError.
func QuantizeRow(t Type, dst []byte, src []float32) error {
	if !CanQuantize(t) {
		return &UnsupportedError{Msg: noQuantizer(t)}
	}
	return quantizeRow(quantizers[t], t, dst, src)
}

// QuantizeCacheRow is QuantizeRow with the bits that llama.cpp's CPU backend gives
// a row of its K or V cache on x86-64 with AVX. It differs for Q8_0 alone: the
// inverse scale is 127/max instead of 1/(max/127), and ties round to even instead
// of away from zero. The scale itself is the same.
func QuantizeCacheRow(t Type, dst []byte, src []float32) error {
	if t.CacheOnly() {
		return quantizeRow(func(dst []byte, src []float32) { quantMLX(t, dst, src) }, t, dst, src)
	}
	if t == TypeQ8_0 {
		return quantizeRow(quantQ8_0AVX, t, dst, src)
	}
	return QuantizeRow(t, dst, src)
}

func quantizeRow(q func([]byte, []float32), t Type, dst []byte, src []float32) error {
	n, err := RowBytes(t, len(src))
	if err != nil {
		return err
	}
	if len(dst) != n {
		return fmt.Errorf("gguf: %d numbers as %s take %d bytes, got room for %d: %w", len(src), t, n, len(dst), ErrLength)
	}
	if t.Quantized() {
		for i, x := range src {
			if math.Float32bits(x)&0x7f800000 == 0x7f800000 {
				return fmt.Errorf("gguf: number %d of a row is %g, which %s cannot hold: %w", i, x, t, ErrNotFinite)
			}
		}
	}
	q(dst, src)
	return nil
}

func noQuantizer(t Type) string {
	if !t.Known() {
		return unknownType(t)
	}
	return fmt.Sprintf("tensors of type %s can be copied but not written from float32; choose F16, BF16, Q8_0 or another type that can", t)
}

func putHalf(b []byte, x float32) { binary.LittleEndian.PutUint16(b, dtype.F32ToF16(x)) }

// toByte is the low byte of C's (int)x on x86: truncated, and 0 for whatever does
// not fit an int32. Go leaves such conversions to the machine.
func toByte(x float32) byte {
	if x > -0x1p31 && x < 0x1p31 {
		return byte(int32(x))
	}
	return 0
}

// inverse is 1/d, and 0 for a scale of 0.
func inverse(d float32) float32 {
	if d == 0 {
		return 0
	}
	return 1 / d
}

func magnitude(x float32) float32 { return math.Float32frombits(math.Float32bits(x) &^ (1 << 31)) }

// absMax returns the number of largest magnitude, the first of several, and that
// magnitude.
func absMax(x []float32) (extreme, abs float32) {
	for _, v := range x {
		if a := magnitude(v); a > abs {
			extreme, abs = v, a
		}
	}
	return extreme, abs
}

// minMax returns the smallest and largest number of x.
func minMax(x []float32) (lo, hi float32) {
	lo, hi = math.MaxFloat32, -math.MaxFloat32
	for _, v := range x {
		if v < lo {
			lo = v
		}
		if v > hi {
			hi = v
		}
	}
	return lo, hi
}

// roundAway is the low byte of C's (int)roundf(x): the nearest integer, ties away
// from zero. It adds the largest float below a half and truncates: with a half
// itself, 0.49999997 would round up to 1 in the addition.
func roundAway(x float32) byte {
	const belowHalf = 0x3effffff
	return toByte(x + math.Float32frombits(belowHalf|math.Float32bits(x)&(1<<31)))
}

func quantQ8_0(dst []byte, src []float32) {
	for len(src) >= 32 && len(dst) >= 34 {
		x, y := src[:32:32], dst[:34:34]
		_, amax := absMax(x)
		d := amax / 127
		id := inverse(d)
		putHalf(y, d)
		for j, v := range x {
			y[2+j] = roundAway(float32(v * id))
		}
		src, dst = src[32:], dst[34:]
	}
}

func quantQ8_0AVX(dst []byte, src []float32) {
	for len(src) >= 32 && len(dst) >= 34 {
		x, y := src[:32:32], dst[:34:34]
		_, amax := absMax(x)
		var id float32
		if amax != 0 {
			id = 127 / amax
		}
		putHalf(y, amax/127)
		for j, v := range x {
			y[2+j] = toEven(float32(v * id))
		}
		src, dst = src[32:], dst[34:]
	}
}

// toEven rounds to the nearest integer, ties to even, and saturates to an int8 as
// the packing instructions do. What does not fit an int32, NaN included, converts
// to the smallest int32 and so to -128.
func toEven(x float32) byte {
	switch {
	case x >= -0x1p22 && x <= 0x1p22:
		// Adding 1.5 * 2^23 leaves no bits for a fraction, so the adder rounds.
		i := int32(math.Float32bits(x+0x1.8p23)) - 0x4b400000
		return byte(min(max(i, -128), 127))
	case x > 0 && x < 0x1p31:
		return 127
	}
	return 0x80
}

// The four types below keep d = extreme/-8 (or -16), or d and a minimum, and
// round by adding half a step and truncating.

func quantQ4_0(dst []byte, src []float32) {
	for len(src) >= 32 && len(dst) >= 18 {
		lo, hi, y := src[:16:16], src[16:32:32], dst[:18:18]
		m, _ := absMax(src[:32])
		d := m / -8
		id := inverse(d)
		putHalf(y, d)
		for j := range lo {
			a := nibble(toByte(float32(lo[j]*id) + 8.5))
			b := nibble(toByte(float32(hi[j]*id) + 8.5))
			y[2+j] = a | b<<4
		}
		src, dst = src[32:], dst[18:]
	}
}

// nibble is C's MIN(15, (int8_t)b).
func nibble(b byte) byte { return byte(min(15, int8(b))) }

func quantQ4_1(dst []byte, src []float32) {
	for len(src) >= 32 && len(dst) >= 20 {
		lo, hi, y := src[:16:16], src[16:32:32], dst[:20:20]
		least, most := minMax(src[:32])
		d := (most - least) / 15
		id := inverse(d)
		putHalf(y, d)
		putHalf(y[2:], least)
		for j := range lo {
			a := nibble(toByte(float32((lo[j]-least)*id) + 0.5))
			b := nibble(toByte(float32((hi[j]-least)*id) + 0.5))
			y[4+j] = a | b<<4
		}
		src, dst = src[32:], dst[20:]
	}
}

func quantQ5_0(dst []byte, src []float32) {
	for len(src) >= 32 && len(dst) >= 22 {
		lo, hi, y := src[:16:16], src[16:32:32], dst[:22:22]
		m, _ := absMax(src[:32])
		d := m / -16
		id := inverse(d)
		putHalf(y, d)
		var high uint32
		for j := range lo {
			a := byte(min(31, int8(toByte(float32(lo[j]*id)+16.5))))
			b := byte(min(31, int8(toByte(float32(hi[j]*id)+16.5))))
			y[6+j] = a&15 | b<<4
			high |= uint32(a>>4&1)<<j | uint32(b>>4&1)<<(j+16)
		}
		binary.LittleEndian.PutUint32(y[2:], high)
		src, dst = src[32:], dst[22:]
	}
}

func quantQ5_1(dst []byte, src []float32) {
	for len(src) >= 32 && len(dst) >= 24 {
		lo, hi, y := src[:16:16], src[16:32:32], dst[:24:24]
		least, most := minMax(src[:32])
		d := (most - least) / 31
		id := inverse(d)
		putHalf(y, d)
		putHalf(y[2:], least)
		var high uint32
		for j := range lo {
			a := toByte(float32((lo[j]-least)*id) + 0.5)
			b := toByte(float32((hi[j]-least)*id) + 0.5)
			y[8+j] = a&15 | b<<4
			high |= uint32(a>>4&1)<<j | uint32(b>>4&1)<<(j+16)
		}
		binary.LittleEndian.PutUint32(y[4:], high)
		src, dst = src[32:], dst[24:]
	}
}

// iq4Tiny is the magnitude below which ggml takes an IQ4_NL block for zero.
const iq4Tiny = 1e-15

// quantIQ4_NL sets the scale so that the extreme number falls on the level -127,
// picks the nearest levels, and refits the scale to them by least squares with
// the squared numbers as weights. The codes are not picked again for that scale.
func quantIQ4_NL(dst []byte, src []float32) {
	for len(src) >= 32 && len(dst) >= 18 {
		x, y := src[:32:32], dst[:18:18]
		m, amax := absMax(x)
		var d float32
		var codes [32]byte
		if amax < iq4Tiny {
			for j := range codes {
				codes[j] = 8 // the level 1, the one nearest to zero
			}
		} else {
			id := 1 / (m / float32(iq4Values[0]))
			var sumqx, sumq2 float32
			for j, v := range x {
				codes[j] = iq4Nearest(float32(id * v))
				q := float32(iq4Values[codes[j]])
				wq := float32(v*v) * q
				sumqx += float32(wq * v)
				sumq2 += float32(wq * q)
			}
			if sumq2 > 0 {
				d = sumqx / sumq2
			}
		}
		putHalf(y, d)
		if d != d {
			// Beyond 1e18 or so both sums overflow. The sign of Inf/Inf depends on the
			// machine; this is the NaN of x86.
			binary.LittleEndian.PutUint16(y, 0xfe00)
		}
		for j := range 16 {
			y[2+j] = codes[j] | codes[j+16]<<4
		}
		src, dst = src[32:], dst[18:]
	}
}

// iq4Nearest returns the index of the level nearest to x, the upper one on a tie.
func iq4Nearest(x float32) byte {
	if x <= float32(iq4Values[0]) {
		return 0
	}
	if x >= float32(iq4Values[15]) {
		return 15
	}
	// The levels are integers, so the integer part tells between which two x lies.
	// Should x+128 round up to a level, that level is the nearest one anyway.
	lo := iq4Below[byte(int32(x+128))]
	if x-float32(iq4Values[lo&15]) < float32(iq4Values[(lo+1)&15])-x {
		return lo
	}
	return lo + 1
}

// iq4Below[n] is the index of the largest level but the last up to n-128.
var iq4Below = func() (t [256]byte) {
	for n := range t {
		for i, v := range iq4Values[:15] {
			if int(v) <= n-128 {
				t[n] = byte(i)
			}
		}
	}
	return t
}()

// quantQ1_0 keeps the mean magnitude, summed in order, and the signs; both zeros
// count as plus.
func quantQ1_0(dst []byte, src []float32) {
	for len(src) >= 128 && len(dst) >= 18 {
		x, y := src[:128:128], dst[:18:18]
		var sum float32
		for _, v := range x {
			sum += magnitude(v)
		}
		putHalf(y, sum/128)
		for j := range 16 {
			var b byte
			for k, v := range x[8*j : 8*j+8] {
				var plus byte
				if v >= 0 {
					plus = 1
				}
				b |= plus << k
			}
			y[2+j] = b
		}
		src, dst = src[128:], dst[18:]
	}
}
