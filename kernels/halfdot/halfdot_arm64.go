//go:build gc && !noasm

package halfdot

import (
	"golang.org/x/sys/cpu"

	"github.com/phaseconv/phaseconv/kernels/internal/impl"
)

var useNEON = cpu.ARM64.HasASIMD

func init() { impl.Register("halfdot", "neon", &useNEON) }

//go:noescape
func neonScore(n, strips int, q *float32, keys *uint16, out *float32)

//go:noescape
func neonQ8(n, blocks int, q *int8, keys *byte, out *float32)

//go:noescape
func neonQ4(n, blocks int, q *int8, keys *byte, out *float32)

func vectorised() bool { return useNEON }

// scoreRows scores len(out) > 0 keys of len(q) numbers, a multiple of partial.
func scoreRows(out, q []float32, keys []uint16) {
	neonScore(len(out), len(q)/partial, &q[0], &keys[0], &out[0])
}

// scoreQ8 and scoreQ4 report whether this machine has a kernel for blocks.
func scoreQ8(out []float32, q []block, keys []byte) bool {
	if useNEON {
		neonQ8(len(out), len(q), &q[0].q[0], &keys[0], &out[0])
	}
	return useNEON
}

func scoreQ4(out []float32, q []block, keys []byte) bool {
	if useNEON {
		neonQ4(len(out), len(q), &q[0].q[0], &keys[0], &out[0])
	}
	return useNEON
}

// Sums are what package onebit's are compared with on amd64; here they are plain Go.
func sumF16([]float32, []float32, []uint16) bool { return false }
func sumQ8([]float32, []float32, []byte) bool    { return false }
func sumQ4([]float32, []float32, []byte) bool    { return false }
