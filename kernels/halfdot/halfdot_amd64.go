//go:build gc && !noasm

package halfdot

import (
	"golang.org/x/sys/cpu"

	"github.com/phaseconv/phaseconv/kernels/internal/impl"
)

// The gates name everything that the functions of a tier execute. AVX-512 asks
// for AVX2 too, so that GODEBUG=cpu.avx2=off takes both tiers away.
var (
	useAVX2   = cpu.X86.HasAVX && cpu.X86.HasAVX2 && cpu.X86.HasFMA && cpu.X86.HasF16C
	useAVX512 = cpu.X86.HasAVX512F && useAVX2
	hasVNNI   = cpu.X86.HasAVX512VL && cpu.X86.HasAVX512VNNI && useAVX2
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

// scoreQ8 and scoreQ4 report whether this machine has a kernel for blocks. The tier
// avx512 asks for VNNI on top; without it, AVX2 serves.
func scoreQ8(out []float32, q []block, keys []byte) bool {
	switch {
	case useAVX512 && hasVNNI:
		avx512vnniQ8(len(out), len(q), &q[0].q[0], &keys[0], &out[0])
	case vectorised():
		avx2Q8(len(out), len(q), &q[0].q[0], &keys[0], &out[0])
	default:
		return false
	}
	return true
}

func scoreQ4(out []float32, q []block, keys []byte) bool {
	switch {
	case useAVX512 && hasVNNI:
		avx512vnniQ4(len(out), len(q), &q[0].q[0], &keys[0], &out[0])
	case vectorised():
		avx2Q4(len(out), len(q), &q[0].q[0], &keys[0], &out[0])
	default:
		return false
	}
	return true
}

// sumF16, sumQ8 and sumQ4 report whether this machine has a kernel. Values have a
// multiple of partial numbers, and there is at least one.
func sumF16(out, w []float32, values []uint16) bool {
	for i := 0; i < len(out); i += partial {
		v := &values[i]
		switch {
		case useAVX512:
			avx512SumF16(len(w), 2*len(out), &w[0], v, &out[i])
		case useAVX2:
			avx2SumF16(len(w), 2*len(out), &w[0], v, &out[i])
		default:
			return false
		}
	}
	return true
}

func sumQ8(out, w []float32, values []byte) bool {
	stride := len(out) / BlockLen * BytesQ8
	for i := 0; i < len(out); i += partial {
		v := &values[i/BlockLen*BytesQ8]
		switch {
		case useAVX512:
			avx512SumQ8(len(w), stride, &w[0], v, &out[i])
		case useAVX2:
			avx2SumQ8(len(w), stride, &w[0], v, &out[i])
		default:
			return false
		}
	}
	return true
}

func sumQ4(out, w []float32, values []byte) bool {
	stride := len(out) / BlockLen * BytesQ4
	for i := 0; i < len(out); i += partial {
		v := &values[i/BlockLen*BytesQ4]
		switch {
		case useAVX512:
			avx512SumQ4(len(w), stride, &w[0], v, &out[i])
		case useAVX2:
			avx2SumQ4(len(w), stride, &w[0], v, &out[i])
		default:
			return false
		}
	}
	return true
}
