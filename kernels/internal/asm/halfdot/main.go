// Command halfdot generates the amd64 kernels of package kernels/halfdot.
package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// partial is the number of partial sums, and of numbers per strip of a key.
const partial = 64

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
	four, t := XMM(), XMM()
	VEXTRACTF128(Imm(1), eight, four)
	VADDPS(four, eight.AsX(), four)
	VMOVHLPS(four, four, t)
	VADDPS(t, four, four)
	VMOVSHDUP(four, t)
	VADDSS(t, four, four)
	VMOVSS(four, Mem{Base: out})
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
	Generate()
}
