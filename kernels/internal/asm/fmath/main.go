// Command fmath generates the amd64 row functions of package kernels/fmath. The
// order of operations is that of vec.go there, which explains it.
package main

import (
	"math"

	"github.com/mmcloughlin/avo/attr"
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// block is how many numbers one loop iteration takes: one AVX-512 register or
// two of AVX2, and the number of partial sums.
const block = 16

// An isa is a vector width.
type isa struct {
	name  string
	lanes int
	reg   func() reg.VecVirtual
}

var (
	avx2   = isa{"avx2", 8, YMM}
	avx512 = isa{"avx512", 16, ZMM}
)

// The constants of vec.go, each eight times, so that AVX2 can take them as
// memory operands; it has too few registers to keep them.
type constants struct {
	mem   Mem
	index map[string]int
}

var table constants

func defineConstants() {
	table = constants{GLOBL("constants", attr.RODATA|attr.NOPTR), map[string]int{}}
	sqrt2OverPi := 0.79788456080286535588
	for i, c := range []struct {
		name string
		v    float32
	}{
		{"min", -104}, {"max", 89}, {"log2e", math.Log2E}, {"magic", 0x1.8p23},
		{"ln2hi", 0x1.63p-1}, {"ln2lo", -0x1.bd0106p-13},
		{"c0", 0x1.fffffcp-2}, {"c1", 0x1.555492p-3}, {"c2", 0x1.5558f2p-5}, {"c3", 0x1.123a20p-7}, {"c4", 0x1.6a23d0p-10},
		{"one", 1}, {"sign", float32(math.Copysign(0, -1))}, {"-inf", float32(math.Inf(-1))},
		{"geluA", float32(2 * sqrt2OverPi)}, {"geluB", float32(2 * sqrt2OverPi * 0.044715)},
	} {
		table.index[c.name] = i
		for j := range 8 {
			DATA(32*i+4*j, U32(math.Float32bits(c.v)))
		}
	}
}

// A function under construction.
type function struct {
	isa
	loaded map[string]reg.VecVirtual
}

// constant returns an operand: a register that AVX-512 loads once, before the
// loop, or the place in memory for AVX2.
func (f *function) constant(name string) Op {
	if r, ok := f.loaded[name]; ok {
		return r
	}
	return table.mem.Offset(32 * table.index[name])
}

// load puts constants into registers before the loop. always is for those that
// AVX2 cannot take from memory because of the operand order.
func (f *function) load(always bool, names ...string) {
	if f.lanes == 8 && !always {
		return
	}
	for _, n := range names {
		f.loaded[n] = f.reg()
		VBROADCASTSS(table.mem.Offset(32*table.index[n]), f.loaded[n])
	}
}

func (f *function) loadExp() {
	// If an operand is NaN, MAX and MIN return the second source, which is the
	// first here: x has to stand there, so the bounds cannot be in memory.
	f.load(true, "min", "max")
	f.load(false, "log2e", "magic", "ln2hi", "ln2lo", "c0", "c1", "c2", "c3", "c4", "one")
}

// exp emits e^x in place.
func (f *function) exp(x reg.VecVirtual) {
	c := f.constant
	VMAXPS(x, c("min"), x)
	VMINPS(x, c("max"), x)
	t, n, p, y := f.reg(), f.reg(), f.reg(), f.reg()
	VMULPS(c("log2e"), x, t)
	VADDPS(c("magic"), t, t)
	VSUBPS(c("magic"), t, n)
	VMULPS(c("ln2hi"), n, p)
	VSUBPS(p, x, x)
	VMULPS(c("ln2lo"), n, p)
	VSUBPS(p, x, x) // r
	VMULPS(c("c4"), x, p)
	VADDPS(c("c3"), p, p)
	for _, k := range []string{"c2", "c1", "c0"} {
		VMULPS(x, p, p)
		VADDPS(c(k), p, p)
	}
	VMULPS(x, x, y)
	VMULPS(y, p, p)
	VADDPS(x, p, p)
	VADDPS(c("one"), p, p)
	if f.lanes == 16 {
		VSCALEFPS(n, p, x) // p * 2^n, rounded once, as the two factors do it
		return
	}
	// Two powers of two, as in vec.go.
	h := f.reg()
	VPSUBD(c("magic"), t, t)
	VPSRAD(Imm(1), t, h)
	VPSUBD(h, t, t)
	for _, v := range []reg.VecVirtual{h, t} {
		VPSLLD(Imm(23), v, v)
		VPADDD(c("one"), v, v)
	}
	VMULPS(h, p, p)
	VMULPS(t, p, x)
}

// neg emits -x.
func (f *function) neg(x, out reg.VecVirtual) {
	if f.lanes == 16 {
		VPXORD(f.constant("sign"), x, out) // VXORPS would need AVX512DQ
	} else {
		VXORPS(f.constant("sign"), x, out)
	}
}

func (f *function) zero(r reg.VecVirtual) {
	if f.lanes == 16 {
		VPXORD(r, r, r)
	} else {
		VXORPS(r, r, r)
	}
}

// logistic emits g / (1 + e^-v), destroying v.
func (f *function) logistic(g, v reg.VecVirtual) reg.VecVirtual {
	f.neg(v, v)
	f.exp(v)
	VADDPS(f.constant("one"), v, v)
	VDIVPS(v, g, v)
	return v
}

// emit makes a function over n numbers, a multiple of block, at the pointers
// given by name. before loads what the loop needs, body does one vector at a
// displacement, after stores results.
func (x isa) emit(name, signature string, pointers []string, before func(f *function), body func(f *function, p map[string]reg.Register, disp, part int), after func(f *function)) {
	TEXT(x.name+name, NOSPLIT, signature)
	Pragma("noescape")
	f := &function{x, map[string]reg.VecVirtual{}}
	n := Load(Param("n"), GP64())
	p := map[string]reg.Register{}
	for _, name := range pointers {
		p[name] = Load(Param(name), GP64())
	}
	if before != nil {
		before(f)
	}
	Label("loop")
	for part := range block / x.lanes {
		body(f, p, part*x.lanes*4, part)
	}
	for _, name := range pointers {
		ADDQ(Imm(block*4), p[name])
	}
	SUBQ(Imm(block), n)
	JNZ(LabelRef("loop"))
	if after != nil {
		after(f)
	}
	VZEROUPPER()
	RET()
}

func at(p reg.Register, disp int) Mem { return Mem{Base: p, Disp: disp} }

// broadcast loads a float32 parameter into all lanes.
func (f *function) broadcast(param string) reg.VecVirtual {
	r := f.reg()
	s, err := Param(param).Resolve()
	if err != nil {
		panic(err)
	}
	VBROADCASTSS(s.Addr, r)
	return r
}

// sums are the partial sums of one function, in float64 registers.
type sums []reg.VecVirtual

func (f *function) newSums() sums {
	s := make(sums, 2*block/f.lanes)
	p := Load(Param("part"), GP64())
	for i := range s {
		s[i] = f.reg()
		VMOVUPD(at(p, i*f.lanes*4), s[i])
	}
	return s
}

// widen converts the lower and upper half of a float32 register to float64.
func (f *function) widen(v reg.VecVirtual) [2]reg.VecVirtual {
	lo, hi := f.reg(), f.reg()
	if f.lanes == 16 {
		VCVTPS2PD(v.AsY(), lo)
		half := YMM()
		VEXTRACTF64X4(Imm(1), v, half)
		VCVTPS2PD(half, hi)
	} else {
		VCVTPS2PD(v.AsX(), lo)
		half := XMM()
		VEXTRACTF128(Imm(1), v, half)
		VCVTPS2PD(half, hi)
	}
	return [2]reg.VecVirtual{lo, hi}
}

func (f *function) storeSums(s sums) {
	p := Load(Param("part"), GP64())
	for i := range s {
		VMOVUPD(s[i], at(p, i*f.lanes*4))
	}
}

func (x isa) functions() {
	x.emit("Exp", "func(n int, dst, src *float32)", []string{"dst", "src"},
		func(f *function) { f.loadExp() },
		func(f *function, p map[string]reg.Register, disp, _ int) {
			v := f.reg()
			VMOVUPS(at(p["src"], disp), v)
			f.exp(v)
			VMOVUPS(v, at(p["dst"], disp))
		}, nil)

	x.emit("SiLU", "func(n int, dst, gate, up *float32)", []string{"dst", "gate", "up"},
		func(f *function) { f.loadExp(); f.load(false, "sign") },
		func(f *function, p map[string]reg.Register, disp, _ int) {
			g, v := f.reg(), f.reg()
			VMOVUPS(at(p["gate"], disp), g)
			VMOVUPS(g, v)
			v = f.logistic(g, v)
			VMULPS(at(p["up"], disp), v, v)
			VMOVUPS(v, at(p["dst"], disp))
		}, nil)

	x.emit("GELU", "func(n int, dst, gate, up *float32)", []string{"dst", "gate", "up"},
		func(f *function) { f.loadExp(); f.load(false, "sign", "geluA", "geluB") },
		func(f *function, p map[string]reg.Register, disp, _ int) {
			g, v := f.reg(), f.reg()
			VMOVUPS(at(p["gate"], disp), g)
			VMULPS(g, g, v)
			VMULPS(f.constant("geluB"), v, v)
			VADDPS(f.constant("geluA"), v, v)
			VMULPS(g, v, v)
			v = f.logistic(g, v)
			VMULPS(at(p["up"], disp), v, v)
			VMOVUPS(v, at(p["dst"], disp))
		}, nil)

	var acc []reg.VecVirtual
	x.emit("Max", "func(n int, x *float32, part *float32)", []string{"x"},
		func(f *function) {
			acc = nil
			for range block / f.lanes {
				r := f.reg()
				VBROADCASTSS(table.mem.Offset(32*table.index["-inf"]), r)
				acc = append(acc, r)
			}
		},
		func(f *function, p map[string]reg.Register, disp, part int) {
			v := f.reg()
			VMOVUPS(at(p["x"], disp), v)
			VMAXPS(acc[part], v, acc[part]) // keeps acc unless v > acc
		},
		func(f *function) {
			p := Load(Param("part"), GP64())
			for i, r := range acc {
				VMOVUPS(r, at(p, i*f.lanes*4))
			}
		})

	var s sums
	var shift, factor reg.VecVirtual
	x.emit("ExpSum", "func(n int, dst, x *float32, shift, scale float32, part *float64)", []string{"dst", "x"},
		func(f *function) {
			f.loadExp()
			shift, factor = f.broadcast("shift"), f.broadcast("scale")
			s = f.newSums()
		},
		func(f *function, p map[string]reg.Register, disp, part int) {
			v := f.reg()
			VMOVUPS(at(p["x"], disp), v)
			VSUBPS(shift, v, v)
			VMULPS(factor, v, v)
			f.exp(v)
			VMOVUPS(v, at(p["dst"], disp))
			for i, w := range f.widen(v) {
				VADDPD(w, s[2*part+i], s[2*part+i])
			}
		},
		func(f *function) { f.storeSums(s) })

	for _, name := range []string{"Sum", "SumSq"} {
		x.emit(name, "func(n int, x *float32, part *float64)", []string{"x"},
			func(f *function) { s = f.newSums() },
			func(f *function, p map[string]reg.Register, disp, part int) {
				v := f.reg()
				VMOVUPS(at(p["x"], disp), v)
				for i, w := range f.widen(v) {
					if name == "SumSq" {
						VMULPD(w, w, w)
					}
					VADDPD(w, s[2*part+i], s[2*part+i])
				}
			},
			func(f *function) { f.storeSums(s) })
	}

	x.emit("Scale", "func(n int, x *float32, s float32)", []string{"x"},
		func(f *function) { factor = f.broadcast("s") },
		func(f *function, p map[string]reg.Register, disp, _ int) {
			v := f.reg()
			VMULPS(at(p["x"], disp), factor, v)
			VMOVUPS(v, at(p["x"], disp))
		}, nil)

	x.emit("ScaleMul", "func(n int, dst, x *float32, s float32, w *float32)", []string{"dst", "x", "w"},
		func(f *function) { factor = f.broadcast("s") },
		func(f *function, p map[string]reg.Register, disp, _ int) {
			v := f.reg()
			VMULPS(at(p["x"], disp), factor, v)
			VMULPS(at(p["w"], disp), v, v)
			VMOVUPS(v, at(p["dst"], disp))
		}, nil)

	x.emit("AddScaled", "func(n int, y, x *float32, s float32)", []string{"y", "x"},
		func(f *function) { factor = f.broadcast("s") },
		func(f *function, p map[string]reg.Register, disp, _ int) {
			v := f.reg()
			VMULPS(at(p["x"], disp), factor, v)
			VADDPS(at(p["y"], disp), v, v)
			VMOVUPS(v, at(p["y"], disp))
		}, nil)
}

func main() {
	ConstraintExpr("amd64,gc,!noasm")
	defineConstants()
	avx2.functions()
	avx512.functions()
	Generate()
}
