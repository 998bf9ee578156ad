package main

import (
	"github.com/mmcloughlin/avo/attr"
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// sums emits the kernel that adds tokens times weights to 64 numbers in registers.
// values says where a token's numbers are: it multiplies and adds them, given the
// token's weight in all lanes. stride is the distance of tokens in bytes.
func sums(name, element string, lanes int, newReg func() reg.VecVirtual, body func(values reg.Register, weight reg.VecVirtual, acc []reg.VecVirtual)) {
	TEXT(name, NOSPLIT, "func(n, stride int, w *float32, values *"+element+", out *float32)")
	Pragma("noescape")
	n := Load(Param("n"), GP64())
	stride := Load(Param("stride"), GP64())
	w := Load(Param("w"), GP64())
	values := Load(Param("values"), GP64())
	out := Load(Param("out"), GP64())
	acc := make([]reg.VecVirtual, partial/lanes)
	for i := range acc {
		acc[i] = newReg()
		VMOVUPS(Mem{Base: out, Disp: 4 * lanes * i}, acc[i])
	}
	Label("token")
	weight := newReg()
	VBROADCASTSS(Mem{Base: w}, weight)
	body(values, weight, acc)
	ADDQ(Imm(4), w)
	ADDQ(stride, values)
	DECQ(n)
	JNZ(LabelRef("token"))
	for i, a := range acc {
		VMOVUPS(a, Mem{Base: out, Disp: 4 * lanes * i})
	}
	VZEROUPPER()
	RET()
}

func sumsF16(name string, lanes int, newReg func() reg.VecVirtual) {
	sums(name, "uint16", lanes, newReg, func(values reg.Register, weight reg.VecVirtual, acc []reg.VecVirtual) {
		for i, a := range acc {
			v := newReg()
			VCVTPH2PS(Mem{Base: values, Disp: 2 * lanes * i}, v)
			VFMADD231PS(weight, v, a)
		}
	})
}

// factor emits the product of a block's binary16 factor and the token's weight.
func factor(block Mem, weight reg.VecVirtual, lanes int, newReg func() reg.VecVirtual) reg.VecVirtual {
	h, f := YMM(), newReg()
	if lanes == 16 {
		VPBROADCASTW(block, h)
		VCVTPH2PS(h, f)
	} else {
		VPBROADCASTW(block, h.AsX())
		VCVTPH2PS(h.AsX(), f)
	}
	VMULPS(weight, f, f)
	return f
}

func sumsQ8(name string, lanes int, newReg func() reg.VecVirtual) {
	sums(name, "byte", lanes, newReg, func(values reg.Register, weight reg.VecVirtual, acc []reg.VecVirtual) {
		for b := range 2 {
			f := factor(Mem{Base: values, Disp: 34 * b}, weight, lanes, newReg)
			for i := range 32 / lanes {
				v := newReg()
				VPMOVSXBD(Mem{Base: values, Disp: 34*b + 2 + lanes*i}, v)
				VCVTDQ2PS(v, v)
				VFMADD231PS(f, v, acc[b*32/lanes+i])
			}
		}
	})
}

func sumsQ4(name string, lanes int, newReg func() reg.VecVirtual, nibbles Mem) {
	sums(name, "byte", lanes, newReg, func(values reg.Register, weight reg.VecVirtual, acc []reg.VecVirtual) {
		mask, eight := newReg(), newReg()
		VPBROADCASTD(nibbles, mask)
		VPBROADCASTD(nibbles.Offset(4), eight)
		for b := range 2 {
			f := factor(Mem{Base: values, Disp: 18 * b}, weight, lanes, newReg)
			for i := range 16 / lanes {
				lo, hi := newReg(), newReg()
				VPMOVZXBD(Mem{Base: values, Disp: 18*b + 2 + lanes*i}, lo)
				VPSRLD(Imm(4), lo, hi)
				if lanes == 16 {
					VPANDD(mask, lo, lo)
				} else {
					VPAND(mask, lo, lo)
				}
				for half, v := range []reg.VecVirtual{lo, hi} { // numbers 0 to 15, and 16 to 31
					VPSUBD(eight, v, v)
					VCVTDQ2PS(v, v)
					VFMADD231PS(f, v, acc[(b*32+half*16)/lanes+i])
				}
			}
		}
	})
}

func allSums() {
	nibbles := GLOBL("nibbles", attr.RODATA|attr.NOPTR)
	DATA(0, U32(15))
	DATA(4, U32(8))
	sumsF16("avx2SumF16", 8, YMM)
	sumsF16("avx512SumF16", 16, ZMM)
	sumsQ8("avx2SumQ8", 8, YMM)
	sumsQ8("avx512SumQ8", 16, ZMM)
	sumsQ4("avx2SumQ4", 8, YMM, nibbles)
	sumsQ4("avx512SumQ4", 16, ZMM, nibbles)
}
