//go:build gc && !noasm

package onebit

import (
	"golang.org/x/sys/cpu"

	"github.com/phaseconv/phaseconv/kernels/internal/impl"
)

var useNEON = cpu.ARM64.HasASIMD

func init() { impl.Register("onebit", "neon", &useNEON) }

func vectorised() bool { return useNEON }

//go:noescape
func neonScore(blocks, words, stride int, tab *byte, bits *uint32, scales *uint16, head *uint32, out *float32)

//go:noescape
func neonProject(blocks, pairs int, q, m *int16, factor, out *float32)

// chunkWords is how many words of keys are scored for one head before the next
// takes them: they stay in the first-level cache meanwhile.
const chunkWords = 4096

func buildDigits(digits []byte, quads [][4]int16) { digitsGeneric(digits, quads) }

func largest(q []float32) uint32 { return largestGeneric(q) }

func roundInts(quads [][4]int16, q []float32, inverse float32) { roundIntsGeneric(quads, q, inverse) }

func roundInt16(dst []int16, q []float32, scale float32) { roundInt16Generic(dst, q, scale) }

func applyRows(out []float32, ldo int, q, rows []int16, factors []float32, blocks, pairs int) int {
	if useNEON {
		neonProject(blocks, pairs, &q[0], &rows[0], &factors[0], &out[0])
	} else {
		applyGeneric(out, q, rows, factors[0], blocks, pairs)
	}
	return 1
}

func transposeTokens(dst, bits []uint32, words, stride int) {
	transposePairs(dst, bits, words, stride, transposeGeneric)
}

func addTokens([]float32, int, *Tables, []uint32, int, int) bool { return false }

func weigh(out, p []float32, scales []uint16) { weighGeneric(out, p, scales) }

func scoreBlocks(out []float32, ostride int, t *Tables, bits []uint32, scales []uint16, blocks int,
	consts [][4]uint32) {
	switch {
	case !useNEON:
		scoreGeneric(out, ostride, t, bits, scales, blocks, consts)
	case scales == nil:
		addNEON(out, ostride, t, bits, blocks, consts)
	default:
		scoreNEON(out, ostride, t, bits, scales, blocks, consts)
	}
}

func scoreNEON(out []float32, ostride int, t *Tables, bits []uint32, scales []uint16, blocks int, consts [][4]uint32) {
	chunk := max(2, chunkWords/(t.words*BlockKeys))
	for b := 0; b < blocks; b += chunk {
		for h := range t.heads {
			neonScore(min(chunk, blocks-b), t.words, t.stride, &t.digits[h*t.words*tableWord], &bits[b*BlockKeys*t.stride],
				&scales[b*BlockKeys], &consts[h][0], &out[h*ostride+b*BlockKeys])
		}
	}
}

// addNEON takes scores with scales of 1, which changes no bit, and adds them.
func addNEON(out []float32, ostride int, t *Tables, bits []uint32, blocks int, consts [][4]uint32) {
	const few = 16
	var scales [few * BlockKeys]uint16
	for i := range scales {
		scales[i] = 0x3c00
	}
	var x [few * BlockKeys]float32
	for b := 0; b < blocks; b += few {
		n := min(few, blocks-b)
		for h := range t.heads {
			neonScore(n, t.words, t.stride, &t.digits[h*t.words*tableWord], &bits[b*BlockKeys*t.stride], &scales[0], &consts[h][0],
				&x[0])
			row := out[h*ostride+b*BlockKeys:]
			for i, v := range x[:n*BlockKeys] {
				row[i] += v
			}
		}
	}
}
