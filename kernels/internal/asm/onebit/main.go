// Command onebit generates the amd64 kernels of package kernels/onebit, whose
// documentation has the storage and the order of summation.
package main

import (
	"fmt"

	"github.com/mmcloughlin/avo/attr"
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

const (
	wordBytes  = 64  // one word of 16 keys
	tableBytes = 512 // tables of one word: 8 of 16 float32
	quad       = 4   // words whose tree is unrolled
)

const signature = "func(blocks, words int, tab *float32, bits *uint32, scales *uint16, offsets *float32, out *float32, ostride int, stack *float32)"

// A kernel scores keys for a number of heads. AVX-512 takes the 16 keys of a
// block at once, AVX2 the lower eight and then the upper eight.
type kernel struct {
	wide  bool
	heads int

	tab, bits reg.Register
	tabs      func(head, disp int) Mem // tables of a head, from tab on
}

func (k *kernel) reg() reg.VecVirtual {
	if k.wide {
		return ZMM()
	}
	return YMM()
}

// lanes is the number of keys at once.
func (k *kernel) lanes() int {
	if k.wide {
		return 16
	}
	return 8
}

var consts Mem

func defineConstants() {
	consts = GLOBL("constants", attr.RODATA|attr.NOPTR)
	for i, c := range []uint32{0x11111111, 0x80000000} {
		for j := range 8 {
			DATA(32*i+4*j, U32(c))
		}
	}
}

// word emits the sums of one word for all heads.
func (k *kernel) word(w int) []reg.VecVirtual {
	out := make([]reg.VecVirtual, k.heads)
	if k.wide {
		// VPERMPS looks up 16 entries by the low 4 bits of each index.
		var index [8]reg.VecVirtual
		for i := range index {
			index[i] = k.reg()
			if i == 0 {
				VMOVDQU32(Mem{Base: k.bits, Disp: w * wordBytes}, index[0])
			} else {
				VPSRLD(Imm(uint64(4*i)), index[0], index[i])
			}
		}
		for h := range out {
			out[h] = treeOf(8, func(i int) reg.VecVirtual {
				t := k.reg()
				VPERMPS(k.tabs(h, w*tableBytes+i*64), index[i], t)
				return t
			})
		}
		return out
	}
	// VPERMPS looks up 8 entries. The entry of x >= 8 is that of 15-x with its
	// sign turned: where bit 3 of a nibble is set, bits 0..2 are inverted, and bit
	// 3 becomes the sign.
	word, t, folded := k.reg(), k.reg(), k.reg()
	VMOVDQU(Mem{Base: k.bits, Disp: w * wordBytes}, word)
	VPSRLD(Imm(3), word, folded)
	VPAND(consts.Offset(0), folded, folded)
	VPSLLD(Imm(3), folded, t)
	VPSUBD(folded, t, t) // 7 in the nibbles with bit 3
	VPXOR(t, word, folded)
	// Nibble by nibble with all heads, so that index and sign are made once.
	partial := make([][]reg.VecVirtual, k.heads)
	for i := range 8 {
		index, sign := k.reg(), k.reg()
		if i == 0 {
			index = folded
		} else {
			VPSRLD(Imm(uint64(4*i)), folded, index)
		}
		if i == 7 {
			VPAND(consts.Offset(32), word, sign)
		} else {
			VPSLLD(Imm(uint64(28-4*i)), word, sign)
			VPAND(consts.Offset(32), sign, sign)
		}
		for h := range k.heads {
			t := k.reg()
			VPERMPS(k.tabs(h, w*tableBytes+i*64), index, t)
			VXORPS(sign, t, t)
			partial[h] = pushNode(partial[h], i, t)
		}
	}
	for h := range out {
		out[h] = partial[h][0]
	}
	return out
}

// pushNode adds leaf number i to the stack of nodes that wait for a neighbour.
func pushNode(stack []reg.VecVirtual, i int, v reg.VecVirtual) []reg.VecVirtual {
	for ; i&1 == 1; i >>= 1 {
		left := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		VADDPS(v, left, left)
		v = left
	}
	return append(stack, v)
}

// treeOf emits the tree of n leaves, a power of two.
func treeOf(n int, leaf func(i int) reg.VecVirtual) reg.VecVirtual {
	var stack []reg.VecVirtual
	for i := range n {
		stack = pushNode(stack, i, leaf(i))
	}
	return stack[0]
}

// sum emits the tree of n words, at most a quad, into acc.
func (k *kernel) sum(n int, acc []reg.VecVirtual) {
	stacks := make([][]reg.VecVirtual, k.heads)
	for w := range n {
		for h, v := range k.word(w) {
			stacks[h] = pushNode(stacks[h], w, v)
		}
	}
	for h, s := range stacks {
		// What is left has no neighbour at its level; right to left is the tree.
		for len(s) > 1 {
			VADDPS(s[len(s)-1], s[len(s)-2], s[len(s)-2])
			s = s[:len(s)-1]
		}
		VMOVAPS(s[0], acc[h])
	}
}

// emit writes the kernel. Nodes of whole quads that wait for a neighbour go to
// the stack in memory, as a binary counter: after quad number q as many nodes are
// merged as q has trailing ones.
func (k *kernel) emit() {
	name, step := fmt.Sprintf("avx2Score%d", k.heads), 32
	if k.wide {
		name, step = fmt.Sprintf("avx512Score%d", k.heads), 64
	}
	TEXT(name, NOSPLIT, signature)
	Pragma("noescape")
	count := Load(Param("blocks"), GP64())
	words := Load(Param("words"), GP64())
	k.bits = Load(Param("bits"), GP64())
	scales := Load(Param("scales"), GP64())
	out := Load(Param("out"), GP64())
	k.tab = GP64()
	var stride reg.Register
	if k.heads > 1 {
		stride = GP64()
		MOVQ(words, stride)
		SHLQ(Imm(9), stride) // tableBytes
	}
	var stride3 reg.Register
	if k.heads > 2 {
		stride3 = GP64()
		LEAQ(Mem{Base: stride, Index: stride, Scale: 2}, stride3)
	}
	k.tabs = func(head, disp int) Mem {
		m := Mem{Base: k.tab, Disp: disp}
		switch head {
		case 1, 2:
			m.Index, m.Scale = stride, uint8(head)
		case 3:
			m.Index, m.Scale = stride3, 1
		}
		return m
	}
	if !k.wide {
		ADDQ(count, count) // halves of blocks
	}
	acc := make([]reg.VecVirtual, k.heads)
	for h := range acc {
		acc[h] = k.reg()
	}
	top, q, t := GP64(), GP64(), GP64()

	Label("block")
	Load(Param("tab"), k.tab)
	Load(Param("stack"), top)
	XORQ(q, q)

	Label("quads")
	LEAQ(Mem{Base: q, Disp: quad}, t)
	CMPQ(t, words)
	JGT(LabelRef("rest"))
	k.sum(quad, acc)
	ADDQ(U32(quad*wordBytes), k.bits)
	ADDQ(U32(quad*tableBytes), k.tab)
	ADDQ(Imm(quad), q)
	CMPQ(q, words)
	JEQ(LabelRef("collapse"))
	// Merge with as many waiting nodes as q/quad has trailing zeros, now that it
	// has been counted up.
	MOVQ(q, t)
	Label("merge")
	TESTQ(U32(quad), t)
	JNZ(LabelRef("push"))
	SUBQ(U32(uint32(k.heads*step)), top)
	for h := range acc {
		VADDPS(Mem{Base: top, Disp: h * step}, acc[h], acc[h])
	}
	SHRQ(Imm(1), t)
	JMP(LabelRef("merge"))
	Label("push")
	for h := range acc {
		VMOVUPS(acc[h], Mem{Base: top, Disp: h * step})
	}
	ADDQ(U32(uint32(k.heads*step)), top)
	JMP(LabelRef("quads"))

	Label("rest")
	MOVQ(words, t)
	SUBQ(q, t)
	CMPQ(t, Imm(2))
	JEQ(LabelRef("rest2"))
	JGT(LabelRef("rest3"))
	for n := 1; n < quad; n++ {
		if n > 1 {
			Label(fmt.Sprintf("rest%d", n))
		}
		k.sum(n, acc)
		ADDQ(U32(uint32(n*wordBytes)), k.bits)
		if n < quad-1 {
			JMP(LabelRef("collapse"))
		}
	}

	// The last node of the key takes in all that wait, right to left.
	Label("collapse")
	Load(Param("stack"), t)
	Label("collapsing")
	CMPQ(top, t)
	JEQ(LabelRef("finish"))
	SUBQ(U32(uint32(k.heads*step)), top)
	for h := range acc {
		VADDPS(Mem{Base: top, Disp: h * step}, acc[h], acc[h])
	}
	JMP(LabelRef("collapsing"))

	Label("finish")
	scale := k.reg()
	VCVTPH2PS(Mem{Base: scales}, scale)
	Load(Param("offsets"), t)
	Load(Param("ostride"), q)
	MOVQ(out, top)
	for h := range acc {
		offset := k.reg()
		VBROADCASTSS(Mem{Base: t, Disp: 4 * h}, offset)
		VMULPS(scale, acc[h], acc[h])
		VADDPS(offset, acc[h], acc[h])
		VMOVUPS(acc[h], Mem{Base: top})
		if h+1 < k.heads {
			LEAQ(Mem{Base: top, Index: q, Scale: 4}, top)
		}
	}
	ADDQ(Imm(uint64(2*k.lanes())), scales)
	ADDQ(Imm(uint64(4*k.lanes())), out)
	if !k.wide {
		// From the lower half to the upper half of the same block and on to the next
		// block: bits has run one block ahead.
		TESTQ(U32(1), count)
		JNZ(LabelRef("next"))
		ADDQ(Imm(32+32), k.bits)
		MOVQ(words, t)
		SHLQ(Imm(6), t) // wordBytes
		SUBQ(t, k.bits)
		Label("next")
		SUBQ(Imm(32), k.bits)
	}
	DECQ(count)
	JNZ(LabelRef("block"))
	VZEROUPPER()
	RET()
}

func main() {
	ConstraintExpr("amd64,gc,!noasm")
	defineConstants()
	for _, heads := range []int{1, 2} {
		(&kernel{heads: heads}).emit()
	}
	for _, heads := range []int{1, 2, 4} {
		(&kernel{wide: true, heads: heads}).emit()
	}
	Generate()
}
