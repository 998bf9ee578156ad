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
func neonScore(blocks, words int, tab *byte, bits *uint32, scales *uint16, head *uint32, out *float32)

// chunkWords is how many words of keys are scored for one head before the next
// takes them: they stay in the first-level cache meanwhile.
const chunkWords = 4096

func buildDigits(digits []byte, quads [][4]int16) { digitsGeneric(digits, quads) }

func scoreBlocks(out []float32, ostride int, t *Tables, bits []uint32, scales []uint16, blocks int,
	consts [][4]uint32) {
	if !useNEON {
		scoreGeneric(out, ostride, t, bits, scales, blocks, consts)
		return
	}
	chunk := max(2, chunkWords/(t.words*BlockKeys))
	for b := 0; b < blocks; b += chunk {
		for h := range t.heads {
			neonScore(min(chunk, blocks-b), t.words, &t.digits[h*t.words*tableWord], &bits[b*BlockKeys*t.words],
				&scales[b*BlockKeys], &consts[h][0], &out[h*ostride+b*BlockKeys])
		}
	}
}
