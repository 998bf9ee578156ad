// Command gemm generates the amd64 tiles of package kernels/gemm.
package main

import (
	"fmt"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// An isa is a vector width with the tile that fills its registers: rows x
// vectors accumulators, one register per vector of weights and one broadcast.
type isa struct {
	name    string
	lanes   int
	rows    int // most rows of a tile
	vectors int // most vectors in a row of a tile, the panel width
	reg     func() reg.VecVirtual
}

var (
	avx2   = isa{"avx2", 8, 4, 3, YMM}
	avx512 = isa{"avx512", 16, 8, 3, ZMM}
)

// unroll is how many k are computed per loop iteration; 4 is the most that the
// addressing of narrow tiles allows (b, b+ldb, b+2ldb, b+3ldb).
const unroll = 4

const cacheLine = 64

// streamAhead is how many bytes ahead of its loads a single row prefetches the
// weights of each panel, of which it reads streams at a time.
const (
	streamAhead = 4096
	streams     = 4
)

// zero clears a register. VXORPS on ZMM would need AVX512DQ.
func (x isa) zero(r reg.VecVirtual) {
	if x.lanes == 16 {
		VPXORD(r, r, r)
	} else {
		VXORPS(r, r, r)
	}
}

// tile emits C[rows, vectors*lanes] (+)= A[rows, kc] B[kc, vectors*lanes].
// A is read where it lies, row by row: packing it costs more than it gains.
func (x isa) tile(rows, vectors int) {
	TEXT(fmt.Sprintf("%sTile%dx%d", x.name, rows, vectors*x.lanes), NOSPLIT,
		"func(kc int, a *float32, lda int, b *float32, ldb int, c *float32, ldc int, add bool)")
	Pragma("noescape")
	kc := Load(Param("kc"), GP64())
	a := Load(Param("a"), GP64())
	b := Load(Param("b"), GP64())
	c := Load(Param("c"), GP64())
	var lda, ldc reg.Register
	if rows > 1 {
		lda = Load(Param("lda"), GP64())
		ldc = Load(Param("ldc"), GP64())
		SHLQ(Imm(2), lda)
		SHLQ(Imm(2), ldc)
	}

	// One base register per three rows: base, base+lda, base+2*lda.
	bases := []reg.Register{a}
	if rows > 3 {
		lda3 := GP64()
		LEAQ(Mem{Base: lda, Index: lda, Scale: 2}, lda3)
		for i := 3; i < rows; i += 3 {
			p := GP64()
			LEAQ(Mem{Base: bases[len(bases)-1], Index: lda3, Scale: 1}, p)
			bases = append(bases, p)
		}
	}
	aMem := func(i, k int) Mem {
		m := Mem{Base: bases[i/3], Disp: k * 4}
		if i%3 > 0 {
			m.Index, m.Scale = lda, uint8(i%3)
		}
		return m
	}

	// A tile as wide as the panel knows the row distance of b; a narrower one may
	// be a part of any panel.
	var bMem func(j, k int) Mem
	var bNext func(k int)
	if vectors == x.vectors {
		bMem = func(j, k int) Mem { return Mem{Base: b, Disp: (k*vectors + j) * x.lanes * 4} }
		bNext = func(k int) { ADDQ(U32(uint32(k*vectors*x.lanes*4)), b) }
	} else {
		ldb := Load(Param("ldb"), GP64())
		SHLQ(Imm(2), ldb)
		ldb3 := GP64()
		LEAQ(Mem{Base: ldb, Index: ldb, Scale: 2}, ldb3)
		bMem = func(j, k int) Mem {
			m := Mem{Base: b, Disp: j * x.lanes * 4}
			switch k {
			case 1, 2:
				m.Index, m.Scale = ldb, uint8(k)
			case 3:
				m.Index, m.Scale = ldb3, 1
			}
			return m
		}
		bNext = func(k int) {
			if k == 1 {
				ADDQ(ldb, b)
			} else {
				LEAQ(Mem{Base: b, Index: ldb, Scale: 4}, b)
			}
		}
	}

	// The chains start from C or from zero.
	acc := make([][]reg.VecVirtual, rows)
	for i := range acc {
		acc[i] = make([]reg.VecVirtual, vectors)
		for j := range acc[i] {
			acc[i][j] = x.reg()
			x.zero(acc[i][j])
		}
	}
	add := Load(Param("add"), GP8())
	TESTB(add, add)
	JZ(LabelRef("start"))
	row := GP64()
	MOVQ(c, row)
	for i := range acc {
		for j := range acc[i] {
			VMOVUPS(Mem{Base: row, Disp: j * x.lanes * 4}, acc[i][j])
		}
		if i+1 < rows {
			ADDQ(ldc, row)
		}
	}
	Label("start")
	if rows == x.rows {
		// The tile below this one comes next; its part of C may be far away.
		next := GP64()
		LEAQ(Mem{Base: c, Index: ldc, Scale: uint8(rows)}, next)
		for i := range rows {
			for d := 0; d < vectors*x.lanes*4; d += cacheLine {
				PREFETCHT0(Mem{Base: next, Disp: d})
			}
			if i+1 < rows {
				ADDQ(ldc, next)
			}
		}
	}

	step := func(k int) {
		bv := make([]reg.VecVirtual, vectors)
		for j := range bv {
			bv[j] = x.reg()
			VMOVUPS(bMem(j, k), bv[j])
		}
		for i := range rows {
			t := x.reg()
			VBROADCASTSS(aMem(i, k), t)
			for j := range bv {
				VFMADD231PS(bv[j], t, acc[i][j])
			}
		}
	}
	next := func(k int) {
		for _, p := range bases {
			ADDQ(Imm(uint64(k*4)), p)
		}
		bNext(k)
	}
	SUBQ(Imm(unroll), kc)
	JLT(LabelRef("rest"))
	Label("loop")
	for k := range unroll {
		step(k)
	}
	next(unroll)
	SUBQ(Imm(unroll), kc)
	JGE(LabelRef("loop"))
	Label("rest")
	ADDQ(Imm(unroll), kc)
	JZ(LabelRef("done"))
	Label("single")
	step(0)
	next(1)
	DECQ(kc)
	JNZ(LabelRef("single"))
	Label("done")
	for i := range acc {
		for j := range acc[i] {
			VMOVUPS(acc[i][j], Mem{Base: c, Disp: j * x.lanes * 4})
		}
		if i+1 < rows {
			ADDQ(ldc, c)
		}
	}
	VZEROUPPER()
	RET()
}

// stream emits C[1, streams*panel] (+)= A[1, kc] B for so many panels that lie
// distance apart. One row reads every weight once, so nothing but memory counts,
// and memory delivers more to several readers than to one.
func (x isa) stream() {
	TEXT(x.name+"Stream", NOSPLIT, "func(kc int, a *float32, b *float32, distance int, c *float32, add bool)")
	Pragma("noescape")
	kc := Load(Param("kc"), GP64())
	a := Load(Param("a"), GP64())
	b := Load(Param("b"), GP64())
	distance := Load(Param("distance"), GP64())
	c := Load(Param("c"), GP64())
	SHLQ(Imm(2), distance)
	distance3 := GP64()
	LEAQ(Mem{Base: distance, Index: distance, Scale: 2}, distance3)
	width := x.vectors * x.lanes * 4
	bMem := func(s, disp int) Mem {
		m := Mem{Base: b, Disp: disp}
		switch s {
		case 1, 2:
			m.Index, m.Scale = distance, uint8(s)
		case 3:
			m.Index, m.Scale = distance3, 1
		}
		return m
	}
	var acc [streams][]reg.VecVirtual
	for s := range acc {
		for range x.vectors {
			r := x.reg()
			x.zero(r)
			acc[s] = append(acc[s], r)
		}
	}
	each := func(f func(r reg.VecVirtual, m Mem)) {
		for s := range acc {
			for j, r := range acc[s] {
				f(r, Mem{Base: c, Disp: s*width + j*x.lanes*4})
			}
		}
	}
	add := Load(Param("add"), GP8())
	TESTB(add, add)
	JZ(LabelRef("loop"))
	each(func(r reg.VecVirtual, m Mem) { VMOVUPS(m, r) })
	Label("loop")
	t := x.reg()
	VBROADCASTSS(Mem{Base: a}, t)
	for s := range acc {
		for d := 0; d < width; d += cacheLine {
			PREFETCHT0(bMem(s, streamAhead+d))
		}
		for j, r := range acc[s] {
			VFMADD231PS(bMem(s, j*x.lanes*4), t, r)
		}
	}
	ADDQ(Imm(4), a)
	ADDQ(U32(uint32(width)), b)
	DECQ(kc)
	JNZ(LabelRef("loop"))
	each(func(r reg.VecVirtual, m Mem) { VMOVUPS(r, m) })
	VZEROUPPER()
	RET()
}

// interleave emits the transposition of 8 rows of k numbers, ld apart, to k rows
// of 8, width apart; k is a multiple of 8. Half rows are joined while loading,
// which leaves two rounds of shuffles for an 8 x 8 block.
func interleave() {
	TEXT("avx2Interleave8", NOSPLIT, "func(k int, src *float32, ld int, dst *float32, width int)")
	Pragma("noescape")
	k := Load(Param("k"), GP64())
	src := Load(Param("src"), GP64())
	ld := Load(Param("ld"), GP64())
	dst := Load(Param("dst"), GP64())
	width := Load(Param("width"), GP64())
	SHLQ(Imm(2), ld)
	SHLQ(Imm(2), width)
	ld3, width3 := GP64(), GP64()
	LEAQ(Mem{Base: ld, Index: ld, Scale: 2}, ld3)
	LEAQ(Mem{Base: width, Index: width, Scale: 2}, width3)
	far, out := GP64(), GP64()
	row := func(base, ld, ld3 reg.Register, i, disp int) Mem {
		m := Mem{Base: base, Disp: disp}
		switch i {
		case 1, 2:
			m.Index, m.Scale = ld, uint8(i)
		case 3:
			m.Index, m.Scale = ld3, 1
		}
		return m
	}
	Label("loop")
	LEAQ(Mem{Base: src, Index: ld, Scale: 4}, far)
	for half := range 2 {
		// Numbers 4*half..4*half+3 of rows i and i+4 share register i.
		var r [4]reg.VecVirtual
		for i := range r {
			r[i] = YMM()
			VMOVUPS(row(src, ld, ld3, i, 16*half), r[i].AsX())
			VINSERTF128(Imm(1), row(far, ld, ld3, i, 16*half), r[i], r[i])
		}
		a, b, c, d := YMM(), YMM(), YMM(), YMM()
		VUNPCKLPS(r[1], r[0], a)
		VUNPCKHPS(r[1], r[0], b)
		VUNPCKLPS(r[3], r[2], c)
		VUNPCKHPS(r[3], r[2], d)
		base := dst
		if half == 1 {
			LEAQ(Mem{Base: dst, Index: width, Scale: 4}, out)
			base = out
		}
		for i, p := range [][2]reg.VecVirtual{{a, c}, {a, c}, {b, d}, {b, d}} {
			v := YMM()
			VSHUFPS(Imm([]uint64{0x44, 0xee}[i%2]), p[1], p[0], v)
			VMOVUPS(v, row(base, width, width3, i, 0))
		}
	}
	ADDQ(Imm(32), src)
	LEAQ(Mem{Base: dst, Index: width, Scale: 8}, dst)
	SUBQ(Imm(8), k)
	JNZ(LabelRef("loop"))
	VZEROUPPER()
	RET()
}

// peakChains independent chains hide the latency of the multiply-add with room
// to spare: 12 registers are free on AVX2 too.
const peakChains = 12

// peak emits a loop of nothing but multiply-adds.
func (x isa) peak() {
	TEXT(x.name+"Peak", NOSPLIT, "func(iterations int)")
	n := Load(Param("iterations"), GP64())
	factor := x.reg()
	x.zero(factor)
	var acc [peakChains]reg.VecVirtual
	for i := range acc {
		acc[i] = x.reg()
		x.zero(acc[i])
	}
	Label("loop")
	for i := range acc {
		VFMADD231PS(factor, factor, acc[i])
	}
	DECQ(n)
	JNZ(LabelRef("loop"))
	VZEROUPPER()
	RET()
}

func main() {
	ConstraintExpr("amd64,gc,!noasm")
	for _, x := range []isa{avx2, avx512} {
		for rows := 1; rows <= x.rows; rows++ {
			for v := 1; v <= x.vectors; v++ {
				x.tile(rows, v)
			}
		}
		x.stream()
		x.peak()
	}
	interleave()
	Generate()
}
