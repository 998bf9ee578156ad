// Command linalg generates the amd64 kernel of package kernels/linalg.
package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// panel is how many sums run side by side, as in panel.go there.
const panel = 32

// subProducts emits y[j] -= coef[i] * x[i][j] for i in order, for vectors of the given number of
// lanes. Products are rounded by themselves, as the plain code does it.
func subProducts(name string, lanes int, newReg func() reg.VecVirtual) {
	TEXT(name, NOSPLIT, "func(n int, y, coef, x *float64)")
	Pragma("noescape")
	n := Load(Param("n"), GP64())
	y := Load(Param("y"), GP64())
	coef := Load(Param("coef"), GP64())
	x := Load(Param("x"), GP64())
	sums := make([]reg.VecVirtual, panel/lanes)
	for i := range sums {
		sums[i] = newReg()
		VMOVUPD(Mem{Base: y, Disp: i * lanes * 8}, sums[i])
	}
	c, p := newReg(), newReg()
	Label("loop")
	VBROADCASTSD(Mem{Base: coef}, c)
	for i, s := range sums {
		VMULPD(Mem{Base: x, Disp: i * lanes * 8}, c, p)
		VSUBPD(p, s, s)
	}
	ADDQ(Imm(8), coef)
	ADDQ(U32(panel*8), x)
	DECQ(n)
	JNZ(LabelRef("loop"))
	for i, s := range sums {
		VMOVUPD(s, Mem{Base: y, Disp: i * lanes * 8})
	}
	VZEROUPPER()
	RET()
}

func main() {
	ConstraintExpr("amd64,gc,!noasm")
	subProducts("avx2SubProducts", 4, YMM)
	subProducts("avx512SubProducts", 8, ZMM)
	Generate()
}
