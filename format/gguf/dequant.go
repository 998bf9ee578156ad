package gguf

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/phaseconv/phaseconv/format/dtype"
)

// dequantizers convert whole blocks; len(dst) is a multiple of the block and src
// has exactly the matching size. A product that a later sum or difference takes
// is wrapped in float32(...), which keeps compilers from fusing the two (variables
// and calls do not), so each machine gives the bits of ggml's to_float.
var dequantizers = [numTypes]func(dst []float32, src []byte){
	TypeF32:     func(dst []float32, src []byte) { dtype.DecodeF32(dst, src) },
	TypeF16:     func(dst []float32, src []byte) { dtype.DecodeF16(dst, src) },
	TypeBF16:    func(dst []float32, src []byte) { dtype.DecodeBF16(dst, src) },
	TypeF64:     dequantF64,
	TypeQ8_0:    dequantQ8_0,
	TypeQ4_0:    dequantQ4_0,
	TypeQ4_1:    dequantQ4_1,
	TypeQ5_0:    dequantQ5_0,
	TypeQ5_1:    dequantQ5_1,
	TypeQ2_K:    dequantQ2_K,
	TypeQ3_K:    dequantQ3_K,
	TypeQ4_K:    dequantQ4_K,
	TypeQ5_K:    dequantQ5_K,
	TypeQ6_K:    dequantQ6_K,
	TypeQ8_K:    dequantQ8_K,
	TypeIQ1_S:   dequantIQ1_S,
	TypeIQ1_M:   dequantIQ1_M,
	TypeIQ2_XXS: dequantIQ2_XXS,
	TypeIQ2_XS:  dequantIQ2_XS,
	TypeIQ2_S:   dequantIQ2_S,
	TypeIQ3_XXS: dequantIQ3_XXS,
	TypeIQ3_S:   dequantIQ3_S,
	TypeIQ4_NL:  dequantIQ4_NL,
	TypeIQ4_XS:  dequantIQ4_XS,
	TypeTQ1_0:   dequantTQ1_0,
	TypeTQ2_0:   dequantTQ2_0,
	TypeMXFP4:   dequantMXFP4,
	TypeNVFP4:   dequantNVFP4,
	TypeQ1_0:    dequantQ1_0,
	TypeQ2_0:    dequantQ2_0,
}

// CanDequantize reports whether DequantizeRow and File.ReadRows handle t. The
// integer types and Q8_1 can only be copied.
func CanDequantize(t Type) bool { return t < numTypes && dequantizers[t] != nil }

func noDequantizer(t Type) string {
	if !t.Known() {
		return unknownType(t)
	}
	return fmt.Sprintf("tensors of type %s can be copied but not converted to float32; start from a file in another type, best F16 or BF16", t)
}

// DequantizeRow converts src, the stored form of len(dst) numbers of type t, to
// float32. The result has the bits of ggml's to_float function; only the sign of a
// NaN, which an infinite scale times zero gives, is the machine's. src must have
// exactly RowBytes(t, len(dst)) bytes (ErrLength); a type that can only be
// copied gives an *UnsupportedError.
func DequantizeRow(t Type, dst []float32, src []byte) error {
	if !CanDequantize(t) && !t.CacheOnly() {
		return &UnsupportedError{Msg: noDequantizer(t)}
	}
	n, err := RowBytes(t, len(dst))
	if err != nil {
		return err
	}
	if len(src) != n {
		return fmt.Errorf("gguf: %d numbers as %s take %d bytes, got %d: %w", len(dst), t, n, len(src), ErrLength)
	}
	if t.CacheOnly() {
		dequantMLX(t, dst, src)
		return nil
	}
	dequantizers[t](dst, src)
	return nil
}

// half reads the F16 at the start of b.
func half(b []byte) float32 { return dtype.F16ToF32(binary.LittleEndian.Uint16(b)) }

func dequantF64(dst []float32, src []byte) {
	for i := range dst {
		dst[i] = float32(math.Float64frombits(binary.LittleEndian.Uint64(src[8*i:])))
	}
}

// The 32-number types keep number j and number j+16 in the two nibbles of byte
// j, low nibble first.

func dequantQ8_0(dst []float32, src []byte) {
	for len(dst) >= 32 && len(src) >= 34 {
		d, q, y := half(src), src[2:34:34], dst[:32:32]
		for j := range y {
			y[j] = float32(int8(q[j])) * d
		}
		dst, src = dst[32:], src[34:]
	}
}

func dequantQ4_0(dst []float32, src []byte) {
	for len(dst) >= 32 && len(src) >= 18 {
		d, q, lo, hi := half(src), src[2:18:18], dst[:16:16], dst[16:32:32]
		for j := range lo {
			lo[j] = float32(int32(q[j]&15)-8) * d
			hi[j] = float32(int32(q[j]>>4)-8) * d
		}
		dst, src = dst[32:], src[18:]
	}
}

func dequantQ4_1(dst []float32, src []byte) {
	for len(dst) >= 32 && len(src) >= 20 {
		d, m, q, lo, hi := half(src), half(src[2:]), src[4:20:20], dst[:16:16], dst[16:32:32]
		for j := range lo {
			lo[j] = float32(float32(q[j]&15)*d) + m
			hi[j] = float32(float32(q[j]>>4)*d) + m
		}
		dst, src = dst[32:], src[20:]
	}
}

// Q5: the fifth bit of number j is bit j of a 32-bit word.

func dequantQ5_0(dst []float32, src []byte) {
	for len(dst) >= 32 && len(src) >= 22 {
		d, qh, q := half(src), binary.LittleEndian.Uint32(src[2:]), src[6:22:22]
		lo, hi := dst[:16:16], dst[16:32:32]
		for j := range lo {
			lo[j] = float32(int32(uint32(q[j]&15)|qh>>j<<4&16)-16) * d
			hi[j] = float32(int32(uint32(q[j]>>4)|qh>>(j+16)<<4&16)-16) * d
		}
		dst, src = dst[32:], src[22:]
	}
}

func dequantQ5_1(dst []float32, src []byte) {
	for len(dst) >= 32 && len(src) >= 24 {
		d, m, qh, q := half(src), half(src[2:]), binary.LittleEndian.Uint32(src[4:]), src[8:24:24]
		lo, hi := dst[:16:16], dst[16:32:32]
		for j := range lo {
			lo[j] = float32(float32(uint32(q[j]&15)|qh>>j<<4&16)*d) + m
			hi[j] = float32(float32(uint32(q[j]>>4)|qh>>(j+16)<<4&16)*d) + m
		}
		dst, src = dst[32:], src[24:]
	}
}

// iq4Values are the 16 levels of the IQ4 types, in units of the scale.
var iq4Values = [16]int8{-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113}

// iq4Block converts 16 bytes to 32 numbers with scale d.
func iq4Block(y []float32, q []byte, d float32) {
	lo, hi, q := y[:16:16], y[16:32:32], q[:16:16]
	for j := range lo {
		lo[j] = d * float32(iq4Values[q[j]&15])
		hi[j] = d * float32(iq4Values[q[j]>>4])
	}
}

func dequantIQ4_NL(dst []float32, src []byte) {
	for len(dst) >= 32 && len(src) >= 18 {
		iq4Block(dst, src[2:], half(src))
		dst, src = dst[32:], src[18:]
	}
}

// IQ4_XS: F16 scale, the upper 2 bits of eight 6-bit scales, their lower 4 bits,
// then eight groups of 32 numbers.
func dequantIQ4_XS(dst []float32, src []byte) {
	for len(dst) >= 256 && len(src) >= 136 {
		d, high := half(src), binary.LittleEndian.Uint16(src[2:])
		for g := range 8 {
			scale := int32(src[4+g/2]>>(g%2*4)&15 | byte(high>>(2*g))&3<<4)
			iq4Block(dst[32*g:], src[8+16*g:], d*float32(scale-32))
		}
		dst, src = dst[256:], src[136:]
	}
}

// fp4Values are twice the values of the E2M1 format, the numbers of MXFP4 and NVFP4.
var fp4Values = [16]int8{0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12}

// MXFP4: one power of two (E8M0) for 32 numbers.
func dequantMXFP4(dst []float32, src []byte) {
	for len(dst) >= 32 && len(src) >= 17 {
		d, q, lo, hi := halfE8M0(src[0]), src[1:17:17], dst[:16:16], dst[16:32:32]
		for j := range lo {
			lo[j] = float32(fp4Values[q[j]&15]) * d
			hi[j] = float32(fp4Values[q[j]>>4]) * d
		}
		dst, src = dst[32:], src[17:]
	}
}

// halfE8M0 returns 2^(e-128), half of what E8M0 means, because fp4Values are
// doubled. Like ggml it takes 255, which E8M0 reserves for NaN, for a number.
func halfE8M0(e byte) float32 {
	if e < 2 {
		return math.Float32frombits(0x00200000 << e) // subnormal
	}
	return math.Float32frombits(uint32(e-1) << 23)
}

// NVFP4: four scales (E4M3 without sign) for 16 numbers each.
func dequantNVFP4(dst []float32, src []byte) {
	for len(dst) >= 64 && len(src) >= 36 {
		for g := range 4 {
			d, q, lo, hi := halfUE4M3(src[g]), src[4+8*g:12+8*g], dst[16*g:16*g+8], dst[16*g+8:16*g+16]
			for j := range lo {
				lo[j] = float32(fp4Values[q[j]&15]) * d
				hi[j] = float32(fp4Values[q[j]>>4]) * d
			}
		}
		dst, src = dst[64:], src[36:]
	}
}

// halfUE4M3 returns half of what the unsigned E4M3 number x means. ggml reads the
// NaN pattern 0x7f as 0 and ignores bit 7, and so does this.
func halfUE4M3(x byte) float32 {
	if x == 0x7f {
		return 0
	}
	exp, man := uint32(x>>3&15), uint32(x&7)
	if exp == 0 {
		return float32(man) * 0x1p-10
	}
	return math.Float32frombits((exp+119)<<23 | man<<20)
}

// Q1_0: one sign for each of 128 numbers, lowest bit first, 1 for plus.
func dequantQ1_0(dst []float32, src []byte) {
	for len(dst) >= 128 && len(src) >= 18 {
		d := math.Float32bits(half(src))
		for j, b := range src[2:18:18] {
			y := dst[8*j : 8*j+8 : 8*j+8]
			for k := range y {
				y[k] = math.Float32frombits(d ^ uint32(^b>>k&1)<<31)
			}
		}
		dst, src = dst[128:], src[18:]
	}
}

// Q2_0: the levels -1, 0, 1 and 2, four to a byte, lowest bits first.
func dequantQ2_0(dst []float32, src []byte) {
	for len(dst) >= 64 && len(src) >= 18 {
		d := half(src)
		for j, b := range src[2:18:18] {
			y := dst[4*j : 4*j+4 : 4*j+4]
			for k := range y {
				y[k] = float32(int32(b>>(2*k)&3)-1) * d
			}
		}
		dst, src = dst[64:], src[18:]
	}
}

// TQ2_0: the levels -1, 0 and 1 of 256 numbers in 2 bits each; bits 2l and 2l+1
// of 32 bytes hold 32 numbers in a row.
func dequantTQ2_0(dst []float32, src []byte) {
	for len(dst) >= 256 && len(src) >= 66 {
		d := half(src[64:])
		for j := range 256 {
			q := src[j/128*32+j%32] >> (j / 32 % 4 * 2) & 3
			dst[j] = float32(int32(q)-1) * d
		}
		dst, src = dst[256:], src[66:]
	}
}

// TQ1_0: the same levels, five to a byte: a byte is a fixed-point fraction whose
// digits in base 3 come off at the top, most significant first. 32 bytes hold
// 160 numbers, 16 hold 80, and the last 4, with four digits each, hold 16.
func dequantTQ1_0(dst []float32, src []byte) {
	pow3 := [5]byte{1, 3, 9, 27, 81}
	for len(dst) >= 256 && len(src) >= 54 {
		d, y := half(src[52:]), dst[:256]
		for _, part := range [3]struct{ from, n, digits int }{{0, 32, 5}, {32, 16, 5}, {48, 4, 4}} {
			for _, p := range pow3[:part.digits] {
				for j, b := range src[part.from : part.from+part.n] {
					y[j] = float32(int32(uint16(b*p)*3>>8)-1) * d
				}
				y = y[part.n:]
			}
		}
		dst, src = dst[256:], src[54:]
	}
}
