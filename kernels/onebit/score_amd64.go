//go:build gc && !noasm

package onebit

import (
	"golang.org/x/sys/cpu"

	"phaseconv/kernels/internal/impl"
)

// The gates name everything that the functions of a tier execute. AVX-512 asks
// for AVX2 too, so that GODEBUG=cpu.avx2=off takes both tiers away.
var (
	useAVX2   = cpu.X86.HasAVX && cpu.X86.HasAVX2 && cpu.X86.HasF16C
	useAVX512 = cpu.X86.HasAVX512F && cpu.X86.HasAVX && cpu.X86.HasAVX2
)

func init() {
	impl.Register("onebit", "avx512", &useAVX512)
	impl.Register("onebit", "avx2", &useAVX2)
}

func vectorised() bool { return useAVX512 || useAVX2 }

// stackNodes is the most sums of subtrees that wait for their neighbour: one per
// bit of the number of quads, and the rest of a key that is no whole quad.
const stackNodes = 6

// chunkWords is how many words of keys are scored for one group of heads before
// the next group takes them: they stay in the first-level cache meanwhile.
const chunkWords = 4096

func scoreBlocks(out []float32, ostride int, t *Tables, bits []uint32, scales []uint16, blocks int, offsets []float32) {
	if !vectorised() {
		scoreGeneric(out, ostride, t, bits, scales, blocks, offsets)
		return
	}
	most := 2 // heads per pass that fit in the registers
	if useAVX512 {
		most = 4
	}
	chunk := blocks
	if t.heads > most {
		chunk = max(1, chunkWords/(t.words*BlockKeys))
	}
	var stack [stackNodes * 4 * BlockKeys]float32
	for b := 0; b < blocks; b += chunk {
		n := min(chunk, blocks-b)
		for h := 0; h < t.heads; {
			// Direct calls: through a variable, all these pointers would count as
			// escaping to the heap.
			tab, words := &t.nibbles[h*t.words*tableWord], &bits[b*BlockKeys*t.words]
			sc, off, o := &scales[b*BlockKeys], &offsets[h], &out[h*ostride+b*BlockKeys]
			switch left := t.heads - h; {
			case useAVX512 && left >= 4:
				avx512Score4(n, t.words, tab, words, sc, off, o, ostride, &stack[0])
				h += 4
			case useAVX512 && left >= 2:
				avx512Score2(n, t.words, tab, words, sc, off, o, ostride, &stack[0])
				h += 2
			case useAVX512:
				avx512Score1(n, t.words, tab, words, sc, off, o, ostride, &stack[0])
				h++
			case left >= 2:
				avx2Score2(n, t.words, tab, words, sc, off, o, ostride, &stack[0])
				h += 2
			default:
				avx2Score1(n, t.words, tab, words, sc, off, o, ostride, &stack[0])
				h++
			}
		}
	}
}
