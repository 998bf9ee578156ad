// Command halfdot generates the amd64 kernels of package kernels/halfdot.
package main

import (
	"github.com/mmcloughlin/avo/attr"
	. "github.com/mmcloughlin/avo/build"
	"github.com/mmcloughlin/avo/ir"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// partial is the number of partial sums, and of numbers per strip of a key.
const partial = 64

// store emits the sum of eight numbers: the upper half to the lower half, until one
// is left, which goes to *out.
func store(eight reg.VecVirtual, out reg.Register) {
	four, t := XMM(), XMM()
	VEXTRACTF128(Imm(1), eight, four)
	VADDPS(four, eight.AsX(), four)
	VMOVHLPS(four, four, t)
	VADDPS(t, four, four)
	VMOVSHDUP(four, t)
	VADDSS(t, four, four)
	VMOVSS(four, Mem{Base: out})
}

// score emits the kernel for vectors of the given number of lanes.
func score(name string, lanes int, newReg func() reg.VecVirtual) {
	TEXT(name, NOSPLIT, "func(n, strips int, q *float32, keys *uint16, out *float32)")
	Pragma("noescape")
	n := Load(Param("n"), GP64())
	strips := Load(Param("strips"), GP64())
	query := Load(Param("q"), GP64())
	keys := Load(Param("keys"), GP64())
	out := Load(Param("out"), GP64())
	q, left := GP64(), GP64()
	acc := make([]reg.VecVirtual, partial/lanes)
	for i := range acc {
		acc[i] = newReg()
	}
	Label("key")
	MOVQ(query, q)
	MOVQ(strips, left)
	for _, a := range acc {
		if lanes == 16 {
			VPXORD(a, a, a)
		} else {
			VXORPS(a, a, a)
		}
	}
	Label("strip")
	for i, a := range acc {
		k := newReg()
		VCVTPH2PS(Mem{Base: keys, Disp: i * lanes * 2}, k)
		VFMADD231PS(Mem{Base: q, Disp: i * lanes * 4}, k, a)
	}
	ADDQ(U32(partial*2), keys)
	ADDQ(U32(partial*4), q)
	DECQ(left)
	JNZ(LabelRef("strip"))

	// s[j]+s[j+16] and s[j+32]+s[j+48], then their sum: 16 numbers in one register
	// of AVX-512 or two of AVX2.
	per := 16 / lanes
	for i := range per {
		VADDPS(acc[per+i], acc[i], acc[i])
		VADDPS(acc[3*per+i], acc[2*per+i], acc[2*per+i])
		VADDPS(acc[2*per+i], acc[i], acc[i])
	}
	eight := YMM()
	if lanes == 16 {
		VEXTRACTF64X4(Imm(1), acc[0], eight)
		VADDPS(eight, acc[0].AsY(), eight)
	} else {
		VADDPS(acc[1], acc[0], eight)
	}
	store(eight, out)
	ADDQ(Imm(4), out)
	DECQ(n)
	JNZ(LabelRef("key"))
	VZEROUPPER()
	RET()
}

// Offsets in a block of 32 numbers of a query, see type block of the package.
const (
	atQ     = 0
	atInit8 = 32
	atInit4 = 64
	atD     = 96
	atEnd   = 128
)

// vpdpbusd adds to each number of sum the products of four unsigned bytes of u
// with signed bytes of s. avo 0.5.0 does not know the instruction.
func vpdpbusd(s Op, u, sum reg.VecVirtual) {
	Instruction(&ir.Instruction{
		Opcode: "VPDPBUSD", Operands: []Op{s, u, sum},
		Inputs: []Op{s, u, sum}, Outputs: []Op{sum}, ISA: []string{"AVX512VNNI", "AVX512VL"},
	})
}

// blocks emits a kernel for keys in Q8_0 or Q4_0.
func blocks(name string, four, vnni bool, consts Mem) {
	size := 34
	if four {
		size = 18
	}
	TEXT(name, NOSPLIT, "func(n, blocks int, q *int8, keys *byte, out *float32)")
	Pragma("noescape")
	n := Load(Param("n"), GP64())
	count := Load(Param("blocks"), GP64())
	query := Load(Param("q"), GP64())
	keys := Load(Param("keys"), GP64())
	out := Load(Param("out"), GP64())
	q, left := GP64(), GP64()
	mask, ones, flip := YMM(), YMM(), YMM()
	if four {
		VPBROADCASTD(consts.Offset(0), mask)
	}
	if !vnni {
		VPBROADCASTD(consts.Offset(4), ones)
	} else if !four {
		VPBROADCASTD(consts.Offset(8), flip)
	}
	one := func(i int, acc reg.VecVirtual) {
		k, s, d := YMM(), YMM(), YMM()
		at := func(disp int) Mem { return Mem{Base: q, Disp: i*atEnd + disp} }
		VPBROADCASTW(Mem{Base: keys, Disp: i * size}, d.AsX())
		VCVTPH2PS(d.AsX(), d)
		VMULPS(at(atD), d, d)
		switch data := (Mem{Base: keys, Disp: i*size + 2}); {
		case four:
			// The lower nibbles of 16 bytes are numbers 0 to 15, the upper ones 16 to 31.
			VMOVDQU(data, k.AsX())
			VPSRLW(Imm(4), k.AsX(), s.AsX())
			VINSERTI128(Imm(1), s.AsX(), k, k)
			VPAND(mask, k, k)
			if vnni {
				VMOVDQU(at(atInit4), s)
				vpdpbusd(at(atQ), k, s)
			} else {
				VPMADDUBSW(at(atQ), k, s)
				VPMADDWD(ones, s, s)
				VPADDD(at(atInit4), s, s)
			}
		case vnni:
			// Key + 128 is unsigned; the start of the sum takes 128 * q back.
			VPXOR(data, flip, k)
			VMOVDQU(at(atInit8), s)
			vpdpbusd(at(atQ), k, s)
		default:
			// |key| times the query with the sign of the key: no pair of products
			// exceeds 16 bits.
			t := YMM()
			VMOVDQU(data, k)
			VMOVDQU(at(atQ), t)
			VPSIGNB(k, t, t)
			VPABSB(k, k)
			VPMADDUBSW(t, k, s)
			VPMADDWD(ones, s, s)
		}
		VCVTDQ2PS(s, s)
		VFMADD231PS(d, s, acc)
	}
	acc := YMM()
	Label("key")
	MOVQ(query, q)
	VXORPS(acc, acc, acc)
	MOVQ(count, left)
	SUBQ(Imm(2), left)
	JL(LabelRef("last"))
	Label("two")
	one(0, acc)
	one(1, acc)
	ADDQ(Imm(uint64(2*size)), keys)
	ADDQ(U32(2*atEnd), q)
	SUBQ(Imm(2), left)
	JGE(LabelRef("two"))
	Label("last")
	CMPQ(left, I8(-1))
	JNE(LabelRef("store"))
	one(0, acc)
	ADDQ(Imm(uint64(size)), keys)
	Label("store")
	store(acc, out)
	ADDQ(Imm(4), out)
	DECQ(n)
	JNZ(LabelRef("key"))
	VZEROUPPER()
	RET()
}

func main() {
	ConstraintExpr("amd64,gc,!noasm")
	score("avx2Score", 8, YMM)
	score("avx512Score", 16, ZMM)
	consts := GLOBL("constants", attr.RODATA|attr.NOPTR)
	for i, c := range []uint32{0x0f0f0f0f, 0x00010001, 0x80808080} {
		DATA(4*i, U32(c))
	}
	blocks("avx2Q8", false, false, consts)
	blocks("avx2Q4", true, false, consts)
	blocks("avx512vnniQ8", false, true, consts)
	blocks("avx512vnniQ4", true, true, consts)
	allSums()
	Generate()
}
