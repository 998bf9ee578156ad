package main

import (
	"fmt"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// Products of queries with a decode matrix, both rounded to 16 bits. A matrix is stored
// in blocks of 16 signs: for each pair of dimensions 64 bytes with the two numbers of
// every sign.

// rowsOf returns registers that point to every fourth row from base on, and the operand
// of a row, so many bytes from its start.
func rowsOf(base, ld reg.Register, rows int) (at []reg.Register, row func(r, disp int) Mem) {
	for r := 0; r < rows; r += 4 {
		p := GP64()
		if r == 0 {
			MOVQ(base, p)
		} else {
			LEAQ(Mem{Base: at[len(at)-1], Index: ld, Scale: 4}, p)
		}
		at = append(at, p)
	}
	three := GP64()
	if rows > 3 {
		LEAQ(Mem{Base: ld, Index: ld, Scale: 2}, three)
	}
	return at, func(r, disp int) Mem {
		m := Mem{Base: at[r/4], Disp: disp}
		switch r % 4 {
		case 1:
			m.Index, m.Scale = ld, 1
		case 2:
			m.Index, m.Scale = ld, 2
		case 3:
			m.Index, m.Scale = three, 1
		}
		return m
	}
}

// project emits a kernel for a number of rows: first many blocks of signs at a time, as long
// as there are so many, then one. A block of a row takes 16/lanes registers.
func project(tier string, rows, many int, newReg func() reg.VecVirtual, multiply func(q, m, acc reg.VecVirtual)) {
	per := 16 / lanes(newReg)
	TEXT(fmt.Sprintf("%sProject%d", tier, rows), NOSPLIT,
		"func(blocks, pairs int, q *int16, m *int16, factors *float32, out *float32, ldo int)")
	Pragma("noescape")
	count := Load(Param("blocks"), GP64())
	matrix := Load(Param("m"), GP64())
	out := Load(Param("out"), GP64())
	ldq, block := GP64(), GP64()
	Load(Param("pairs"), block)
	MOVQ(block, ldq)
	SHLQ(Imm(2), ldq)
	SHLQ(Imm(6), block)
	zero := newReg()
	if lanes(newReg) == 16 {
		VPXORD(zero, zero, zero)
	} else {
		VPXOR(zero, zero, zero)
	}
	sizes := []int{many, 1}
	if many == 1 {
		sizes = sizes[:1]
	}
	for _, g := range sizes {
		loop, pair, end := fmt.Sprintf("blocks%d", g), fmt.Sprintf("pair%d", g), fmt.Sprintf("end%d", g)
		Label(loop)
		CMPQ(count, Imm(uint64(g)))
		JLT(LabelRef(end))
		acc := make([][]reg.VecVirtual, rows)
		for r := range acc {
			for range g * per {
				a := newReg()
				VMOVAPS(zero, a)
				acc[r] = append(acc[r], a)
			}
		}
		m, left, query := GP64(), GP64(), GP64()
		MOVQ(matrix, m)
		Load(Param("pairs"), left)
		Load(Param("q"), query)
		pointers, row := rowsOf(query, ldq, rows)
		Label(pair)
		var w []reg.VecVirtual
		for i := range g * per {
			x := newReg()
			at := Mem{Base: m, Disp: i % per * 4 * lanes(newReg)}
			if b := i / per; b > 0 {
				at.Index, at.Scale = block, uint8(b)
			}
			VMOVUPS(at, x)
			w = append(w, x)
		}
		for r := range rows {
			q := newReg()
			VPBROADCASTD(row(r, 0), q)
			for i, x := range w {
				multiply(q, x, acc[r][i])
			}
		}
		ADDQ(Imm(64), m)
		for _, p := range pointers {
			ADDQ(Imm(4), p)
		}
		DECQ(left)
		JNZ(LabelRef(pair))

		ldo, factors := GP64(), GP64()
		Load(Param("ldo"), ldo)
		SHLQ(Imm(2), ldo)
		Load(Param("factors"), factors)
		_, dst := rowsOf(out, ldo, rows)
		for r := range rows {
			f := newReg()
			VBROADCASTSS(Mem{Base: factors, Disp: 4 * r}, f)
			for i, a := range acc[r] {
				VCVTDQ2PS(a, a)
				VMULPS(f, a, a)
				VMOVUPS(a, dst(r, 4*lanes(newReg)*i))
			}
		}
		ADDQ(U32(uint32(64*g)), out)
		for range g {
			ADDQ(block, matrix)
		}
		SUBQ(Imm(uint64(g)), count)
		JMP(LabelRef(loop))
		Label(end)
	}
	VZEROUPPER()
	RET()
}

func projections() {
	madd := func(q, m, acc reg.VecVirtual) {
		t := YMM()
		VPMADDWD(m, q, t)
		VPADDD(t, acc, acc)
	}
	project("avx2", 4, 1, YMM, madd)
	project("avx2", 1, 2, YMM, madd)
	project("avx512vbmi", 8, 3, ZMM, vpdpwssd)
	project("avx512vbmi", 1, 3, ZMM, vpdpwssd)
}
