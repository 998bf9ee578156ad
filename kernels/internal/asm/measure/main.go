// Command measure generates the amd64 code of package kernels/measure.
package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// read emits a loop that does nothing but load, 512 bytes at a time.
func read() {
	TEXT("avx2Read", NOSPLIT, "func(chunks int, p *byte) uint64")
	Pragma("noescape")
	chunks := Load(Param("chunks"), GP64())
	p := Load(Param("p"), GP64())
	acc := []reg.VecVirtual{YMM(), YMM(), YMM(), YMM()}
	for _, a := range acc {
		VPXOR(a, a, a)
	}
	Label("chunk")
	for i := range 16 {
		VPXOR(Mem{Base: p, Disp: 32 * i}, acc[i%len(acc)], acc[i%len(acc)])
	}
	ADDQ(U32(512), p)
	DECQ(chunks)
	JNZ(LabelRef("chunk"))
	VPXOR(acc[1], acc[0], acc[0])
	VPXOR(acc[3], acc[2], acc[2])
	VPXOR(acc[2], acc[0], acc[0])
	x := GP64()
	VMOVQ(acc[0].AsX(), x)
	Store(x, ReturnIndex(0))
	VZEROUPPER()
	RET()
}

func main() {
	ConstraintExpr("amd64,gc,!noasm")
	read()
	Generate()
}
