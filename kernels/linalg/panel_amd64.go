//go:build gc && !noasm

package linalg

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
	impl.Register("linalg", "avx512", &useAVX512)
	impl.Register("linalg", "avx2", &useAVX2)
}

func vectorised() bool { return useAVX2 || useAVX512 }

func subProductsBlock(y, coef, x []float64) {
	if useAVX512 {
		avx512SubProducts(len(coef), &y[0], &coef[0], &x[0])
	} else {
		avx2SubProducts(len(coef), &y[0], &coef[0], &x[0])
	}
}
