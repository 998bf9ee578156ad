//go:build gc && !noasm

package fmath

import (
	"golang.org/x/sys/cpu"

	"github.com/phaseconv/phaseconv/kernels/internal/impl"
)

// The gates name everything that the functions of a tier execute. AVX-512 asks
// for AVX2 too, so that GODEBUG=cpu.avx2=off takes both tiers away.
var (
	useAVX2   = cpu.X86.HasAVX && cpu.X86.HasAVX2
	useAVX512 = cpu.X86.HasAVX512F && cpu.X86.HasAVX && cpu.X86.HasAVX2
)

func init() {
	impl.Register("fmath", "avx512", &useAVX512)
	impl.Register("fmath", "avx2", &useAVX2)
}

// vectorised returns how many of n elements the functions below take, a multiple
// of the block of the assembly; vec.go does the others.
func vectorised(n int) int {
	if !useAVX2 && !useAVX512 {
		return 0
	}
	return n &^ (lanes - 1)
}

func expBlocks(dst, src []float32) {
	if useAVX512 {
		avx512Exp(len(dst), &dst[0], &src[0])
	} else {
		avx2Exp(len(dst), &dst[0], &src[0])
	}
}

func siluBlocks(dst, gate, up []float32) {
	if useAVX512 {
		avx512SiLU(len(dst), &dst[0], &gate[0], &up[0])
	} else {
		avx2SiLU(len(dst), &dst[0], &gate[0], &up[0])
	}
}

func geluBlocks(dst, gate, up []float32) {
	if useAVX512 {
		avx512GELU(len(dst), &dst[0], &gate[0], &up[0])
	} else {
		avx2GELU(len(dst), &dst[0], &gate[0], &up[0])
	}
}

func maxBlocks(x []float32, part *[lanes]float32) {
	if useAVX512 {
		avx512Max(len(x), &x[0], &part[0])
	} else {
		avx2Max(len(x), &x[0], &part[0])
	}
}

func expSumBlocks(dst, x []float32, shift, scale float32, part *[lanes]float64) {
	if useAVX512 {
		avx512ExpSum(len(dst), &dst[0], &x[0], shift, scale, &part[0])
	} else {
		avx2ExpSum(len(dst), &dst[0], &x[0], shift, scale, &part[0])
	}
}

func scaleBlocks(x []float32, s float32) {
	if useAVX512 {
		avx512Scale(len(x), &x[0], s)
	} else {
		avx2Scale(len(x), &x[0], s)
	}
}

func sumBlocks(x []float32, part *[lanes]float64) {
	if useAVX512 {
		avx512Sum(len(x), &x[0], &part[0])
	} else {
		avx2Sum(len(x), &x[0], &part[0])
	}
}

func sumSqBlocks(x []float32, part *[lanes]float64) {
	if useAVX512 {
		avx512SumSq(len(x), &x[0], &part[0])
	} else {
		avx2SumSq(len(x), &x[0], &part[0])
	}
}

func scaleMulBlocks(dst, x []float32, s float32, w []float32) {
	if useAVX512 {
		avx512ScaleMul(len(dst), &dst[0], &x[0], s, &w[0])
	} else {
		avx2ScaleMul(len(dst), &dst[0], &x[0], s, &w[0])
	}
}

func addScaledBlocks(y, x []float32, s float32) {
	if useAVX512 {
		avx512AddScaled(len(y), &y[0], &x[0], s)
	} else {
		avx2AddScaled(len(y), &y[0], &x[0], s)
	}
}
