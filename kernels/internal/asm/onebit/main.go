// Command onebit generates the amd64 kernels of package kernels/onebit, whose
// documentation has the storage and the meaning of the tables.
package main

import (
	"fmt"

	"github.com/mmcloughlin/avo/attr"
	. "github.com/mmcloughlin/avo/build"
	"github.com/mmcloughlin/avo/ir"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

const (
	wordBytes  = 64   // one word of 16 keys
	tableBytes = 256  // tables of one word: [nibble of the byte][digit][byte of the word][16]
	planeBytes = 256  // indices of one word of 32 keys: [nibble of the word][32]
	aheadBytes = 4096 // how far before their use signs are fetched
	constBytes = 16   // one head's step, offset and initial counters
	radix      = 64   // of digits
	wordBias   = 8 * (radix/2*radix + radix/2)
)

// tableAt is where the table of a nibble and digit starts.
func tableAt(byteOfWord, nibble, digit int) int {
	return nibble*128 + digit*64 + byteOfWord*16
}

// Offsets into the constants of a head.
const (
	atStep   = 0
	atOffset = 4
	atAll    = 8 // initial counters of sum: 16 bits, twice
	atOdd    = 12
)

const rodata = attr.RODATA | attr.NOPTR

func constants(name string, quads ...[4]uint32) Mem {
	m := GLOBL(name, rodata)
	for i, q := range quads {
		for j, v := range q {
			DATA(16*i+4*j, U32(v))
		}
	}
	return m
}

// byPlace emits the loads of a word of 32 keys, two blocks, and calls use for each
// byte of the word with the low and the high nibbles of it. Byte 2i of a lane of 128
// bits is a key of the first block, byte 2i+1 (i < 4) the key eight further on, and
// so on for the second block in bytes 8 to 15: then the even bytes of all lanes, in
// order, are eight keys in order, and no permutation is needed at the end.
func byPlace(bits, block reg.Register, order, mask reg.VecVirtual, use func(j int, lo, hi reg.VecVirtual)) {
	v := []reg.VecVirtual{YMM(), YMM(), YMM(), YMM()}
	for i, m := range []Mem{{Base: bits}, {Base: bits, Disp: 32}, {Base: bits, Index: block, Scale: 1}, {Base: bits, Index: block, Scale: 1, Disp: 32}} {
		VMOVDQU(m, v[i])
		VPSHUFB(order, v[i], v[i])
	}
	ab, cd := []reg.VecVirtual{YMM(), YMM()}, []reg.VecVirtual{YMM(), YMM()}
	for i, s := range [][]reg.VecVirtual{ab, cd} {
		VPUNPCKLBW(v[2*i+1], v[2*i], s[0])
		VPUNPCKHBW(v[2*i+1], v[2*i], s[1])
	}
	for j := range 4 {
		hi, lo := YMM(), YMM()
		if j%2 == 0 {
			VPUNPCKLQDQ(cd[j/2], ab[j/2], hi)
		} else {
			VPUNPCKHQDQ(cd[j/2], ab[j/2], hi)
		}
		VPAND(mask, hi, lo)
		VPSRLW(Imm(4), hi, hi)
		VPAND(mask, hi, hi)
		use(j, lo, hi)
	}
}

// count adds bytes, sums of four digits below 64, to the counters of 16 bits. One
// takes even and odd bytes together, the other the odd ones, and the difference is left
// to the end. It overwrites a.
func count(a, all, odd reg.VecVirtual) {
	VPADDW(a, all, all)
	VPSRLW(Imm(8), a, a)
	VPADDW(a, odd, odd)
}

// store emits the scores of 32 keys, from number at of scales and out on, from their
// counters, one of each for the low and the high digits. Without scales it adds the sums
// to what is in out.
func store(all, odd [2]reg.VecVirtual, head, scales, out reg.Register, at int) {
	for d := range 2 {
		t := YMM()
		VPSLLW(Imm(8), odd[d], t)
		VPSUBW(t, all[d], all[d]) // the even bytes
	}
	for i, pick := range []func(ops ...Op){VPUNPCKLWD, VPUNPCKHWD} {
		for o, s := range [][2]reg.VecVirtual{all, odd} {
			at := at + 16*i + 8*o
			x, w, f := YMM(), YMM(), YMM()
			pick(s[1], s[0], x)
			VPBROADCASTD(digitWeights, w)
			VPMADDWD(w, x, x)
			VCVTDQ2PS(x, x)
			VBROADCASTSS(Mem{Base: head, Disp: atStep}, w)
			VMULPS(w, x, x)
			if scales == nil {
				VADDPS(Mem{Base: out, Disp: 4 * at}, x, x)
			} else {
				VCVTPH2PS(Mem{Base: scales, Disp: 2 * at}, f)
				VMULPS(f, x, x)
				VBROADCASTSS(Mem{Base: head, Disp: atOffset}, w)
				VADDPS(w, x, x)
			}
			VMOVUPS(x, Mem{Base: out, Disp: 4 * at})
		}
	}
}

// split emits avx2Split: the keys of two blocks, word by word, become vectors of
// nibbles, each of one place in the word.
func split() {
	TEXT("avx2Split", NOSPLIT, "func(pairs, words, stride int, bits *uint32, planes *byte)")
	Pragma("noescape")
	pairs := Load(Param("pairs"), GP64())
	words := Load(Param("words"), GP64())
	bits := Load(Param("bits"), GP64())
	planes := Load(Param("planes"), GP64())
	order, mask := YMM(), YMM()
	VBROADCASTI128(transpose, order)
	VPBROADCASTD(lowNibbles, mask)
	block, skip := distances(words)
	left := GP64()
	Label("pair")
	MOVQ(words, left)
	Label("word")
	byPlace(bits, block, order, mask, func(j int, lo, hi reg.VecVirtual) {
		VMOVDQU(lo, Mem{Base: planes, Disp: 64 * j})
		VMOVDQU(hi, Mem{Base: planes, Disp: 64*j + 32})
	})
	ADDQ(Imm(wordBytes), bits)
	ADDQ(U32(planeBytes), planes)
	DECQ(left)
	JNZ(LabelRef("word"))
	ADDQ(skip, bits)
	DECQ(pairs)
	JNZ(LabelRef("pair"))
	VZEROUPPER()
	RET()
}

// distances emits the bytes from a block of keys, which has stride words of them, to the next,
// and those from behind the words of a block that are read to the first of the block after the
// next one.
func distances(words reg.Register) (block, skip reg.Register) {
	block, skip = GP64(), GP64()
	Load(Param("stride"), block)
	LEAQ(Mem{Base: block, Index: block, Scale: 1}, skip)
	SUBQ(words, skip)
	SHLQ(Imm(6), block)
	SHLQ(Imm(6), skip)
	return block, skip
}

// tokens emits avx2Tokens: words of signs of 128 tokens, eight blocks, become nibbles of four tokens
// each, in the places where avx2Sum wants those of 128 bits of 32 keys. Of eight tokens a register
// has the bits
//
//	lane t2, byte (t1 t0 k1 k0), bit (s2 s1 s0)
//
// where t is the number of the token, 8 k + s that of the sign. A shuffle makes the byte
// (k1 t1 t0 k0); then t0 changes places with s0 and t1 with s1, and what differs by s2 and t2 alone
// are nibbles that trade lanes.
func tokens() {
	order := constants("tokenorder", [4]uint32{0x05040100, 0x0d0c0908, 0x07060302, 0x0f0e0b0a})
	// Bits with s0 clear in bytes with t0 set, and with s1 clear in those with t1 set, moved down to
	// where they change places with.
	swaps := constants("tokenswaps", [4]uint32{0x0000aaaa, 0x0000aaaa, 0x0000aaaa, 0x0000aaaa},
		[4]uint32{0xcccccccc, 0, 0xcccccccc, 0})
	TEXT("avx2Tokens", NOSPLIT, "func(words, stride int, bits *uint32, planes *byte)")
	Pragma("noescape")
	words := Load(Param("words"), GP64())
	stride := Load(Param("stride"), GP64())
	bits := Load(Param("bits"), GP64())
	planes := Load(Param("planes"), GP64())
	SHLQ(Imm(6), stride)
	shuffle, nibbles := YMM(), YMM()
	VBROADCASTI128(order, shuffle)
	VPBROADCASTD(lowNibbles, nibbles)
	var mask [2]reg.VecVirtual
	for i := range mask {
		mask[i] = YMM()
		VBROADCASTI128(swaps.Offset(16*i), mask[i])
	}
	at, left := GP64(), GP64()
	Label("word")
	MOVQ(bits, at)
	MOVQ(U32(8), left)
	Label("block")
	for half := range 2 {
		v, x := YMM(), YMM()
		VMOVDQU(Mem{Base: at, Disp: 32 * half}, v)
		VPSHUFB(shuffle, v, v)
		for i, by := range []uint64{15, 30} {
			VPSRLQ(Imm(by), v, x)
			VPXOR(v, x, x)
			VPAND(mask[i], x, x)
			VPXOR(x, v, v)
			VPSLLQ(Imm(by), x, x)
			VPXOR(x, v, v)
		}
		lo, hi := YMM(), YMM()
		VPAND(nibbles, v, lo)
		VPSRLQ(Imm(4), v, hi)
		VPAND(nibbles, hi, hi)
		VPERM2I128(Imm(0x20), hi, lo, x)
		VMOVDQU(x, Mem{Base: planes, Disp: 64 * half})
		VPERM2I128(Imm(0x31), hi, lo, x)
		VMOVDQU(x, Mem{Base: planes, Disp: 64*half + 32})
	}
	PREFETCHT0(Mem{Base: at, Disp: aheadBytes})
	ADDQ(stride, at)
	ADDQ(U32(128), planes)
	DECQ(left)
	JNZ(LabelRef("block"))
	ADDQ(Imm(wordBytes), bits)
	DECQ(words)
	JNZ(LabelRef("word"))
	VZEROUPPER()
	RET()
}

// sum emits avx2Sum: the scores of one head for groups of 64 keys that avx2Split
// has prepared, in twice the counters of avx2Single. Signs of as many keys are fetched
// from ahead meanwhile: the bursts in which avx2Split reads them leave the machine's
// own prefetching behind. With add it emits avx2SumAdd, which adds to what is in out.
func sum(add bool) {
	if add {
		TEXT("avx2SumAdd", NOSPLIT, "func(groups, words int, tab, planes *byte, head *uint32, out *float32, ahead *uint32)")
	} else {
		TEXT("avx2Sum", NOSPLIT, "func(groups, words int, tab, planes *byte, scales *uint16, head *uint32, out *float32, ahead *uint32)")
	}
	Pragma("noescape")
	groups := Load(Param("groups"), GP64())
	words := Load(Param("words"), GP64())
	tables := Load(Param("tab"), GP64())
	planes := Load(Param("planes"), GP64())
	scales := loadScales(add)
	head := Load(Param("head"), GP64())
	out := Load(Param("out"), GP64())
	ahead := Load(Param("ahead"), GP64())
	second := GP64() // distance of the second 32 keys
	MOVQ(words, second)
	SHLQ(Imm(8), second)
	tab, left := GP64(), GP64()

	Label("group")
	var all, odd [2][2]reg.VecVirtual // [keys][digit]
	for v := range 2 {
		for d := range 2 {
			all[v][d], odd[v][d] = YMM(), YMM()
			VPBROADCASTD(Mem{Base: head, Disp: atAll}, all[v][d])
			VPBROADCASTD(Mem{Base: head, Disp: atOdd}, odd[v][d])
		}
	}
	MOVQ(tables, tab)
	MOVQ(words, left)
	Label("word")
	for j := 0; j < 4; j += 2 {
		for d := range 2 {
			PREFETCHT0(Mem{Base: ahead, Disp: wordBytes * (j + d)})
			var t [4]reg.VecVirtual
			for n := range t {
				t[n] = YMM()
				VBROADCASTI128(Mem{Base: tab, Disp: tableAt(j+n/2, n%2, d)}, t[n])
			}
			for v := range 2 {
				m := Mem{Base: planes, Disp: 64 * j}
				if v == 1 {
					m.Index, m.Scale = second, 1
				}
				a, b := YMM(), YMM()
				VPSHUFB(m, t[0], a)
				for n, t := range t[1:] {
					VPSHUFB(m.Offset(32*(n+1)), t, b)
					VPADDB(b, a, a)
				}
				count(a, all[v][d], odd[v][d])
			}
		}
	}
	ADDQ(U32(planeBytes), planes)
	ADDQ(U32(tableBytes), tab)
	ADDQ(U32(4*wordBytes), ahead)
	DECQ(left)
	JNZ(LabelRef("word"))
	ADDQ(second, planes)

	for v := range 2 {
		store(all[v], odd[v], head, scales, out, 32*v)
	}
	if !add {
		ADDQ(U32(128), scales)
	}
	ADDQ(U32(256), out)
	DECQ(groups)
	JNZ(LabelRef("group"))
	VZEROUPPER()
	RET()
}

// loadScales loads the parameter that kernels which add do not have.
func loadScales(add bool) reg.Register {
	if add {
		return nil
	}
	return Load(Param("scales"), GP64())
}

// single emits avx2Single: what avx2Split and avx2Sum do, for one head and pairs of
// blocks. The nibbles stay in registers, for no other head wants them.
func single() {
	TEXT("avx2Single", NOSPLIT, "func(pairs, words, stride int, tab *byte, bits *uint32, scales *uint16, head *uint32, out *float32)")
	Pragma("noescape")
	pairs := Load(Param("pairs"), GP64())
	words := Load(Param("words"), GP64())
	tables := Load(Param("tab"), GP64())
	bits := Load(Param("bits"), GP64())
	scales := Load(Param("scales"), GP64())
	head := Load(Param("head"), GP64())
	out := Load(Param("out"), GP64())
	block, skip := distances(words)
	tab, left := GP64(), GP64()
	order, mask := YMM(), YMM()
	VBROADCASTI128(transpose, order)
	VPBROADCASTD(lowNibbles, mask)

	Label("pair")
	var all, odd [2]reg.VecVirtual // [digit]
	for d := range 2 {
		all[d], odd[d] = YMM(), YMM()
		VPBROADCASTD(Mem{Base: head, Disp: atAll}, all[d])
		VPBROADCASTD(Mem{Base: head, Disp: atOdd}, odd[d])
	}
	MOVQ(tables, tab)
	MOVQ(words, left)
	Label("word")
	PREFETCHT0(Mem{Base: bits, Disp: aheadBytes})
	PREFETCHT0(Mem{Base: bits, Index: block, Scale: 1, Disp: aheadBytes})
	var sums [2]reg.VecVirtual
	byPlace(bits, block, order, mask, func(j int, lo, hi reg.VecVirtual) {
		for d, s := range sums {
			a, b := YMM(), YMM()
			VBROADCASTI128(Mem{Base: tab, Disp: tableAt(j, 0, d)}, a)
			VBROADCASTI128(Mem{Base: tab, Disp: tableAt(j, 1, d)}, b)
			VPSHUFB(lo, a, a)
			VPSHUFB(hi, b, b)
			VPADDB(b, a, a)
			if j%2 == 0 {
				sums[d] = a
				continue
			}
			VPADDB(s, a, a)
			count(a, all[d], odd[d])
		}
	})
	ADDQ(Imm(wordBytes), bits)
	ADDQ(U32(tableBytes), tab)
	DECQ(left)
	JNZ(LabelRef("word"))
	ADDQ(skip, bits)
	store(all, odd, head, scales, out, 0)
	ADDQ(Imm(64), scales)
	ADDQ(U32(128), out)
	DECQ(pairs)
	JNZ(LabelRef("pair"))
	VZEROUPPER()
	RET()
}

// digits emits avx2Digits: the tables of whole words from queries rounded to
// integers, eight quads of int16 a word. A lane has the eight sums of three numbers of a quad; the
// fourth is taken off for the first half of its table and added for the second.
func digits() {
	// In lane l, number i of quad l of two fills the places.
	fill := GLOBL("fill", rodata)
	for i := range 4 {
		for lane := range 2 {
			at := uint64(8*lane + 2*i)
			for half := range 2 {
				DATA(32*i+16*lane+8*half, U64(((at+1)<<8|at)*0x0001000100010001))
			}
		}
	}
	// Sign i of place x is bit i of x.
	signs := constants("signs", [4]uint32{0x0001ffff, 0x0001ffff, 0x0001ffff, 0x0001ffff},
		[4]uint32{0xffffffff, 0x00010001, 0xffffffff, 0x00010001}, [4]uint32{0xffffffff, 0xffffffff, 0x00010001, 0x00010001})
	bias := constants("bias", [4]uint32{0x08200820})

	TEXT("avx2Digits", NOSPLIT, "func(words int, quads *int16, digits *byte)")
	Pragma("noescape")
	words := Load(Param("words"), GP64())
	quads := Load(Param("quads"), GP64())
	out := Load(Param("digits"), GP64())
	var place [4]reg.VecVirtual
	var sign [3]reg.VecVirtual
	for i := range place {
		place[i] = YMM()
		VMOVDQU(fill.Offset(32*i), place[i])
	}
	for i := range sign {
		sign[i] = YMM()
		VBROADCASTI128(signs.Offset(16*i), sign[i])
	}
	zero, mask := YMM(), YMM()
	VPBROADCASTD(bias, zero)
	VPBROADCASTD(digitMask, mask)
	Label("word")
	for g := 0; g < 8; g += 2 {
		two, sum, last := YMM(), YMM(), YMM()
		VBROADCASTI128(Mem{Base: quads, Disp: 8 * g}, two)
		for i, s := range sign {
			x := YMM()
			if i == 0 {
				x = sum
			}
			VPSHUFB(place[i], two, x)
			VPSIGNW(s, x, x)
			if i > 0 {
				VPADDW(x, sum, sum)
			}
		}
		VPADDW(zero, sum, sum)
		VPSHUFB(place[3], two, last)
		low, high := YMM(), YMM()
		VPSUBW(last, sum, low)
		VPADDW(last, sum, high)
		for d := range 2 {
			a, b := YMM(), YMM()
			if d == 0 {
				VPAND(mask, low, a)
				VPAND(mask, high, b)
			} else {
				VPSRLW(Imm(6), low, a)
				VPSRLW(Imm(6), high, b)
			}
			VPACKUSWB(b, a, a)
			VMOVDQU(a.AsX(), Mem{Base: out, Disp: tableAt(g/2, 0, d)})
			VEXTRACTI128(Imm(1), a, Mem{Base: out, Disp: tableAt(g/2, 1, d)})
		}
	}
	ADDQ(Imm(64), quads)
	ADDQ(U32(tableBytes), out)
	DECQ(words)
	JNZ(LabelRef("word"))
	VZEROUPPER()
	RET()
}

// vpdpbusd adds to each number of sum the products of four unsigned bytes of u
// with signed bytes of s. avo 0.5.0 does not know the instruction.
func vpdpbusd(s, u, sum reg.VecVirtual) {
	Instruction(&ir.Instruction{
		Opcode: "VPDPBUSD", Operands: []Op{s, u, sum},
		Inputs: []Op{s, u, sum}, Outputs: []Op{sum}, ISA: []string{"AVX512VNNI"},
	})
}

// wide emits the kernel of AVX-512 with VBMI and VNNI for a number of heads. A
// register holds a word of 16 keys, and the four tables of its low or high nibbles
// fill a register too: VPERMB looks up the byte of each place in its own table,
// and VPDPBUSD adds the four bytes of a key. With add, sums go to what is in out
// instead of becoming scores.
func wide(heads, most int, add bool) {
	if add {
		TEXT(fmt.Sprintf("avx512vbmiAdd%d", heads), NOSPLIT, "func(blocks, words, stride int, tab *byte, bits *uint32, head *uint32, out *float32, ostride int)")
	} else {
		TEXT(fmt.Sprintf("avx512vbmiScore%d", heads), NOSPLIT, "func(blocks, words, stride int, tab *byte, bits *uint32, scales *uint16, head *uint32, out *float32, ostride int)")
	}
	Pragma("noescape")
	count := Load(Param("blocks"), GP64())
	words := Load(Param("words"), GP64())
	bits := Load(Param("bits"), GP64())
	scales := loadScales(add)
	head := Load(Param("head"), GP64())
	out := Load(Param("out"), GP64())
	ostride := Load(Param("ostride"), GP64())
	SHLQ(Imm(2), ostride)
	tables := GP64() // distance between heads
	MOVQ(words, tables)
	SHLQ(Imm(8), tables)
	block := GP64() // distance between blocks
	Load(Param("stride"), block)
	SHLQ(Imm(6), block)
	mask, places := ZMM(), ZMM()
	VPBROADCASTD(lowNibbles, mask)
	VPBROADCASTD(tablePlaces, places)
	weights := []reg.VecVirtual{ZMM(), ZMM()}
	for d := range weights {
		VPBROADCASTD(byteWeights.Offset(4*d), weights[d])
	}
	tab, left, t, o := GP64(), GP64(), GP64(), GP64()
	start := ZMM()
	IMUL3Q(I32(-wordBias), words, t)
	VPBROADCASTD(t.As32(), start)

	for _, g := range []int{most, 1} {
		loop, word, end := fmt.Sprintf("blocks%d", g), fmt.Sprintf("word%d", g), fmt.Sprintf("end%d", g)
		Label(loop)
		CMPQ(count, Imm(uint64(g)))
		JLT(LabelRef(end))
		acc := make([][]reg.VecVirtual, heads)
		for h := range acc {
			for range g {
				a := ZMM()
				VMOVDQA32(start, a)
				acc[h] = append(acc[h], a)
			}
		}
		Load(Param("tab"), tab)
		MOVQ(words, left)
		Label(word)
		index := make([][2]reg.VecVirtual, g)
		MOVQ(bits, t)
		for i := range index {
			lo, hi := ZMM(), ZMM()
			VMOVDQU32(Mem{Base: t}, lo)
			PREFETCHT0(Mem{Base: t, Disp: aheadBytes})
			if i+1 < g {
				ADDQ(block, t)
			}
			VPSRLD(Imm(4), lo, hi)
			// (x AND mask) OR places; what is above bit 5 of a byte does not count.
			VPTERNLOGD(U8(0xea), places, mask, lo)
			VPTERNLOGD(U8(0xea), places, mask, hi)
			index[i] = [2]reg.VecVirtual{lo, hi}
		}
		MOVQ(tab, t)
		for h := range heads {
			for n := range 2 {
				for d := range 2 {
					table := ZMM()
					VMOVDQU8(Mem{Base: t, Disp: tableAt(0, n, d)}, table)
					for i := range index {
						x := ZMM()
						VPERMB(table, index[i][n], x)
						vpdpbusd(x, weights[d], acc[h][i])
					}
				}
			}
			if h+1 < heads {
				ADDQ(tables, t)
			}
		}
		ADDQ(Imm(wordBytes), bits)
		ADDQ(U32(tableBytes), tab)
		DECQ(left)
		JNZ(LabelRef(word))
		MOVQ(words, t)
		SHLQ(Imm(6), t)
		SUBQ(t, bits)
		for range g {
			ADDQ(block, bits)
		}
		scale := make([]reg.VecVirtual, g)
		for i := range scale {
			if !add {
				scale[i] = ZMM()
				VCVTPH2PS(Mem{Base: scales, Disp: 32 * i}, scale[i])
			}
		}
		MOVQ(out, o)
		for h := range heads {
			for i, a := range acc[h] {
				VCVTDQ2PS(a, a)
				VMULPS_BCST(Mem{Base: head, Disp: constBytes*h + atStep}, a, a)
				if add {
					VADDPS(Mem{Base: o, Disp: 64 * i}, a, a)
				} else {
					VMULPS(scale[i], a, a)
					VADDPS_BCST(Mem{Base: head, Disp: constBytes*h + atOffset}, a, a)
				}
				VMOVUPS(a, Mem{Base: o, Disp: 64 * i})
			}
			if h+1 < heads {
				ADDQ(ostride, o)
			}
		}
		if !add {
			ADDQ(U32(uint32(32*g)), scales)
		}
		ADDQ(U32(uint32(64*g)), out)
		SUBQ(Imm(uint64(g)), count)
		JMP(LabelRef(loop))
		Label(end)
	}
	VZEROUPPER()
	RET()
}

// What kernels share.
var transpose, lowNibbles, digitWeights, tablePlaces, byteWeights, digitMask, magnitudes Mem

func main() {
	ConstraintExpr("amd64,gc,!noasm")
	transpose = constants("transpose", [4]uint32{0x0c080400, 0x0d090501, 0x0e0a0602, 0x0f0b0703})
	lowNibbles = constants("lownibbles", [4]uint32{0x0f0f0f0f})
	digitWeights = constants("radix", [4]uint32{radix<<16 | 1})
	tablePlaces = constants("place", [4]uint32{0x30201000})
	byteWeights = constants("weight", [4]uint32{0x01010101, 0x40404040})
	digitMask = constants("digit", [4]uint32{0x003f003f})
	magnitudes = constants("magnitudes", [4]uint32{0x7fffffff})
	largest("avx2", YMM)
	largest("avx512vbmi", ZMM)
	ints("avx2", YMM)
	ints("avx512vbmi", ZMM)
	digits()
	wideDigits()
	transposeTokens()
	wideTranspose()
	weigh()
	projections()
	split()
	tokens()
	single()
	for _, add := range []bool{false, true} {
		sum(add)
		wide(1, 4, add)
		wide(2, 4, add)
		wide(3, 4, add)
		wide(4, 2, add)
	}
	Generate()
}
