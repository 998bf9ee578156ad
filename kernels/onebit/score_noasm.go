//go:build !amd64 || !gc || noasm

package onebit

func vectorised() bool { return false }

func scoreBlocks(out []float32, ostride int, t *Tables, bits []uint32, scales []uint16, blocks int, offsets []float32) {
	scoreGeneric(out, ostride, t, bits, scales, blocks, offsets)
}
