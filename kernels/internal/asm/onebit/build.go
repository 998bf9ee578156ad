package main

import (
	. "github.com/mmcloughlin/avo/build"
	"github.com/mmcloughlin/avo/ir"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// Kernels that make tables. Where a cache has anchors, each block of 64 keys wants its
// own, and then they cost as much as the scores.

// lanes is how many numbers of four bytes a register holds.
func lanes(newReg func() reg.VecVirtual) int { return int(newReg().Size()) / 4 }

// byLanes emits a loop over eights numbers of eight floats each, as many at a time as
// registers of newReg hold, and then, where these are 16, over a last eight. step
// advances pointers by a number of floats.
func byLanes(eights reg.Register, newReg func() reg.VecVirtual, body func(newReg func() reg.VecVirtual), step func(floats int)) {
	if lanes(newReg) == 16 {
		SUBQ(Imm(2), eights)
		JL(LabelRef("tail"))
		Label("wide")
		body(newReg)
		step(16)
		SUBQ(Imm(2), eights)
		JGE(LabelRef("wide"))
		Label("tail")
		CMPQ(eights, I8(-1))
		JNE(LabelRef("end"))
		body(YMM)
		Label("end")
		return
	}
	Label("loop")
	body(newReg)
	step(8)
	DECQ(eights)
	JNZ(LabelRef("loop"))
}

// largest emits the largest sum of the magnitudes of four numbers, as bits.
func largest(tier string, newReg func() reg.VecVirtual) {
	TEXT(tier+"Largest", NOSPLIT, "func(eights int, q *float32) uint32")
	Pragma("noescape")
	eights := Load(Param("eights"), GP64())
	q := Load(Param("q"), GP64())
	most, abs := newReg(), newReg()
	VPBROADCASTD(magnitudes, abs)
	if lanes(newReg) == 16 {
		VPXORD(most, most, most)
	} else {
		VPXOR(most, most, most)
	}
	sized := func(r reg.VecVirtual, n int) reg.Register {
		if n == 8 {
			return r.AsY()
		}
		return r
	}
	byLanes(eights, newReg, func(newReg func() reg.VecVirtual) {
		x, y := newReg(), newReg()
		n := lanes(newReg)
		if lanes(newReg) == 16 {
			VPANDD(Mem{Base: q}, abs, x)
		} else {
			VPAND(Mem{Base: q}, sized(abs, n), x)
		}
		for _, swap := range []uint64{0xb1, 0x4e} { // neighbours, then pairs
			VPERMILPS(Imm(swap), x, y)
			VADDPS(y, x, x)
		}
		if n == 16 {
			VPMAXUD(x, most, most)
		} else if most.Size() == 64 {
			// The upper half of most stays: a narrower instruction would clear it.
			VPMAXUD(x.AsZ(), most, most)
		} else {
			VPMAXUD(x, most, most)
		}
	}, func(floats int) { ADDQ(Imm(uint64(4*floats)), q) })
	y := most
	if lanes(newReg) == 16 {
		h := YMM()
		VEXTRACTI64X4(Imm(1), most, h)
		VPMAXUD(most.AsY(), h, h)
		y = h
	}
	x := XMM()
	VEXTRACTI128(Imm(1), y.AsY(), x)
	VPMAXUD(y.AsX(), x, x)
	r := GP32()
	VMOVD(x, r)
	Store(r, ReturnIndex(0))
	VZEROUPPER()
	RET()
}

// ints emits the rounding of numbers times inverse to int16, ties to even.
func ints(tier string, newReg func() reg.VecVirtual) {
	TEXT(tier+"Ints", NOSPLIT, "func(eights int, q *float32, inverse float32, quads *int16)")
	Pragma("noescape")
	eights := Load(Param("eights"), GP64())
	q := Load(Param("q"), GP64())
	one := Load(Param("inverse"), XMM())
	quads := Load(Param("quads"), GP64())
	inverse := newReg()
	VBROADCASTSS(one, inverse)
	byLanes(eights, newReg, func(newReg func() reg.VecVirtual) {
		x := newReg()
		if lanes(newReg) == 16 {
			VMULPS(Mem{Base: q}, inverse, x)
			VCVTPS2DQ(x, x)
			VPMOVDW(x, Mem{Base: quads})
			return
		}
		h := XMM()
		VMULPS(Mem{Base: q}, inverse.AsY(), x)
		VCVTPS2DQ(x, x)
		VEXTRACTI128(Imm(1), x, h)
		VPACKSSDW(h, x.AsX(), h)
		VMOVDQU(h, Mem{Base: quads})
	}, func(floats int) {
		ADDQ(Imm(uint64(4*floats)), q)
		ADDQ(Imm(uint64(2*floats)), quads)
	})
	VZEROUPPER()
	RET()
}

// vpdpwssd adds to each number of sum the products of two signed words of a and b. avo
// 0.5.0 does not know the instruction.
func vpdpwssd(a, b, sum reg.VecVirtual) {
	Instruction(&ir.Instruction{
		Opcode: "VPDPWSSD", Operands: []Op{a, b, sum},
		Inputs: []Op{a, b, sum}, Outputs: []Op{sum}, ISA: []string{"AVX512VNNI"},
	})
}

// wideDigits emits avx512vbmiDigits, which does what avx2Digits does: the 16 sums of a
// quad in a register, four quads packed into one of bytes for each digit.
func wideDigits() {
	signs := GLOBL("pairsigns", rodata)
	for half := range 2 {
		for x := range 16 {
			var c uint32
			for bit := range 2 {
				v := uint32(0xffff)
				if x>>(2*half+bit)&1 == 1 {
					v = 1
				}
				c |= v << (16 * bit)
			}
			DATA(64*half+4*x, U32(c))
		}
	}
	// Packing works in lanes of 128 bits: dword 4l+i then has quad i's sums 4l to 4l+3.
	order := GLOBL("quadorder", rodata)
	for i := range 4 {
		for l := range 4 {
			DATA(4*(4*i+l), U32(uint32(4*l+i)))
		}
	}
	zero := constants("bias32", [4]uint32{wordBias / 8})
	TEXT("avx512vbmiDigits", NOSPLIT, "func(words int, quads *int16, digits *byte)")
	Pragma("noescape")
	words := Load(Param("words"), GP64())
	quads := Load(Param("quads"), GP64())
	out := Load(Param("digits"), GP64())
	low, high, bias, mask, perm := ZMM(), ZMM(), ZMM(), ZMM(), ZMM()
	VMOVDQU32(signs, low)
	VMOVDQU32(signs.Offset(64), high)
	VMOVDQU32(order, perm)
	VPBROADCASTD(zero, bias)
	VPBROADCASTD(digitMask, mask)
	Label("word")
	for n := range 2 { // nibble of a byte
		var t [4]reg.VecVirtual
		for i := range t { // byte of the word
			t[i] = ZMM()
			a, b := ZMM(), ZMM()
			VMOVDQA32(bias, t[i])
			VPBROADCASTD(Mem{Base: quads, Disp: 8 * (2*i + n)}, a)
			VPBROADCASTD(Mem{Base: quads, Disp: 8*(2*i+n) + 4}, b)
			vpdpwssd(a, low, t[i])
			vpdpwssd(b, high, t[i])
		}
		VPACKSSDW(t[1], t[0], t[0])
		VPACKSSDW(t[3], t[2], t[2])
		a, b := ZMM(), ZMM()
		VPANDD(mask, t[0], a)
		VPANDD(mask, t[2], b)
		VPACKUSWB(b, a, a)
		VPERMD(a, perm, a)
		VMOVDQU8(a, Mem{Base: out, Disp: tableAt(0, n, 0)})
		VPSRLW(Imm(6), t[0], t[0])
		VPSRLW(Imm(6), t[2], t[2])
		VPACKUSWB(t[2], t[0], t[0])
		VPERMD(t[0], perm, t[0])
		VMOVDQU8(t[0], Mem{Base: out, Disp: tableAt(0, n, 1)})
	}
	ADDQ(Imm(64), quads)
	ADDQ(U32(tableBytes), out)
	DECQ(words)
	JNZ(LabelRef("word"))
	VZEROUPPER()
	RET()
}

const groupBytes = 4 * wordBytes // four words of 32 tokens, of 16 signs

// transposeTokens emits avx2Transpose: 32 tokens, two blocks, become one word of every
// sign. A word of theirs makes two blocks of 16 signs, which are groupBytes apart.
func transposeTokens() {
	TEXT("avx2Transpose", NOSPLIT, "func(words int, bits, second, out *uint32)")
	Pragma("noescape")
	words := Load(Param("words"), GP64())
	bits := Load(Param("bits"), GP64())
	second := Load(Param("second"), GP64())
	out := Load(Param("out"), GP64())
	order := YMM()
	VBROADCASTI128(transpose, order)
	Label("word")
	PREFETCHT0(Mem{Base: bits, Disp: aheadBytes})
	PREFETCHT0(Mem{Base: second, Disp: aheadBytes})
	var v [4]reg.VecVirtual
	for i := range v {
		// Four tokens of the first block and four of the second: bytes of one place in the
		// word come together, then those of four registers.
		v[i] = YMM()
		VMOVDQU(Mem{Base: bits, Disp: 16 * i}, v[i].AsX())
		VINSERTI128(Imm(1), Mem{Base: second, Disp: 16 * i}, v[i], v[i])
		VPSHUFB(order, v[i], v[i])
	}
	var pairs [4]reg.VecVirtual
	for i := range 2 {
		pairs[2*i], pairs[2*i+1] = YMM(), YMM()
		VPUNPCKLDQ(v[2*i+1], v[2*i], pairs[2*i])
		VPUNPCKHDQ(v[2*i+1], v[2*i], pairs[2*i+1])
	}
	r := GP32()
	for j := range 4 {
		x := YMM()
		if j%2 == 0 {
			VPUNPCKLQDQ(pairs[2+j/2], pairs[j/2], x)
		} else {
			VPUNPCKHQDQ(pairs[2+j/2], pairs[j/2], x)
		}
		for bit := 7; bit >= 0; bit-- {
			VPMOVMSKB(x, r)
			MOVL(r, Mem{Base: out, Disp: j/2*groupBytes + 4*(j%2*8+bit)})
			if bit > 0 {
				VPADDB(x, x, x)
			}
		}
	}
	ADDQ(Imm(wordBytes), bits)
	ADDQ(Imm(wordBytes), second)
	ADDQ(U32(2*groupBytes), out)
	DECQ(words)
	JNZ(LabelRef("word"))
	VZEROUPPER()
	RET()
}

// weigh emits avx2Weigh: numbers times binary16 scales, eight at a time.
func weigh() {
	TEXT("avx2Weigh", NOSPLIT, "func(eights int, p *float32, scales *uint16, out *float32)")
	Pragma("noescape")
	eights := Load(Param("eights"), GP64())
	p := Load(Param("p"), GP64())
	scales := Load(Param("scales"), GP64())
	out := Load(Param("out"), GP64())
	Label("loop")
	x := YMM()
	VCVTPH2PS(Mem{Base: scales}, x)
	VMULPS(Mem{Base: p}, x, x)
	VMOVUPS(x, Mem{Base: out})
	ADDQ(Imm(32), p)
	ADDQ(Imm(16), scales)
	ADDQ(Imm(32), out)
	DECQ(eights)
	JNZ(LabelRef("loop"))
	VZEROUPPER()
	RET()
}

// affine sets dst to the products of the bit matrices of m, one in eight bytes, with the
// bytes of x. avo 0.5.0 does not know the instruction.
func affine(m, x, dst reg.VecVirtual) {
	Instruction(&ir.Instruction{
		Opcode: "VGF2P8AFFINEQB", Operands: []Op{Imm(0), m, x, dst},
		Inputs: []Op{m, x}, Outputs: []Op{dst}, ISA: []string{"GFNI", "AVX512F"},
	})
}

// bytesOf emits a constant of 64 bytes.
func bytesOf(name string, at func(i int) int) Mem {
	m := GLOBL(name, rodata)
	for i := 0; i < 64; i += 8 {
		var v uint64
		for j := range 8 {
			v |= uint64(at(i+j)) << (8 * j)
		}
		DATA(i, U64(v))
	}
	return m
}

// wideTranspose emits avx512gfniTranspose: 64 tokens, four blocks, become two words of
// every sign.
func wideTranspose() {
	// Byte 16k+8g+7-i is byte k of token 8g+i: eight tokens are a matrix of bits, whose rows
	// the instruction counts from the last.
	planes := bytesOf("tokenplanes", func(at int) int { return 4*(at%16/8*8+7-at%8) + at/16 })
	// The bytes of a sign come together: dword j of the first half has tokens 0 to 31.
	collect := bytesOf("signbytes", func(at int) int { return 8*(at/32*4+at%4) + at%32/4 })
	unit := bytesOf("unitrows", func(at int) int { return 1 << (at % 8) })
	TEXT("avx512gfniTranspose", NOSPLIT, "func(words, stride int, bits *uint32, out *uint32)")
	Pragma("noescape")
	words := Load(Param("words"), GP64())
	bits := Load(Param("bits"), GP64())
	out := Load(Param("out"), GP64())
	toPlanes, toSigns, rows := ZMM(), ZMM(), ZMM()
	VMOVDQU8(planes, toPlanes)
	VMOVDQU8(collect, toSigns)
	VMOVDQU8(unit, rows)
	block, three, left := GP64(), GP64(), GP64()
	Load(Param("stride"), block)
	SHLQ(Imm(6), block)
	LEAQ(Mem{Base: block, Index: block, Scale: 2}, three)
	MOVQ(words, left)
	Label("word")
	var z [4]reg.VecVirtual
	for i := range z {
		m := Mem{Base: bits}
		switch i {
		case 1:
			m.Index, m.Scale = block, 1
		case 2:
			m.Index, m.Scale = block, 2
		case 3:
			m.Index, m.Scale = three, 1
		}
		z[i] = ZMM()
		VPERMB(m, toPlanes, z[i])
		m.Disp = aheadBytes
		PREFETCHT0(m)
	}
	var t [4]reg.VecVirtual
	for i := range t {
		t[i] = ZMM()
		VSHUFI64X2(Imm([]uint64{0x44, 0xee}[i%2]), z[i/2*2+1], z[i/2*2], t[i])
	}
	for k := range 4 {
		x := ZMM()
		VSHUFI64X2(Imm([]uint64{0x88, 0xdd}[k%2]), t[2+k/2], t[k/2], x)
		affine(x, rows, x)
		VPERMB(x, toSigns, x)
		at := k/2*groupBytes + k%2*32
		VMOVDQU(x.AsY(), Mem{Base: out, Disp: at})
		VEXTRACTI64X4(Imm(1), x, Mem{Base: out, Disp: at + wordBytes})
	}
	ADDQ(Imm(wordBytes), bits)
	ADDQ(U32(2*groupBytes), out)
	DECQ(left)
	JNZ(LabelRef("word"))
	VZEROUPPER()
	RET()
}
