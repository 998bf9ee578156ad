//go:build gc && !noasm

package halfdot

import (
	"golang.org/x/sys/cpu"

	"phaseconv/kernels/internal/impl"
)

// The gates name everything that the functions of a tier execute. AVX-512 asks
// for AVX2 too, so that GODEBUG=cpu.avx2=off takes both tiers away.
var (
	useAVX2   = cpu.X86.HasAVX && cpu.X86.HasAVX2 && cpu.X86.HasFMA && cpu.X86.HasF16C
	useAVX512 = cpu.X86.HasAVX512F && cpu.X86.HasAVX && cpu.X86.HasAVX2
)

func init() {
	impl.Register("halfdot", "avx512", &useAVX512)
	impl.Register("halfdot", "avx2", &useAVX2)
}

func vectorised() bool { return useAVX512 || useAVX2 }

// scoreRows scores len(out) > 0 keys of len(q) numbers, a multiple of partial.
func scoreRows(out, q []float32, keys []uint16) {
	if useAVX512 {
		avx512Score(len(out), len(q)/partial, &q[0], &keys[0], &out[0])
	} else {
		avx2Score(len(out), len(q)/partial, &q[0], &keys[0], &out[0])
	}
}
