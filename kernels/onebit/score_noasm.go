//go:build (!amd64 && !arm64) || !gc || noasm

package onebit

func vectorised() bool { return false }

func buildDigits(digits []byte, quads [][4]int16) { digitsGeneric(digits, quads) }

func scoreBlocks(out []float32, ostride int, t *Tables, bits []uint32, scales []uint16, blocks int,
	consts [][4]uint32) {
	scoreGeneric(out, ostride, t, bits, scales, blocks, consts)
}

func largest(q []float32) uint32 { return largestGeneric(q) }

func roundInts(quads [][4]int16, q []float32, inverse float32) { roundIntsGeneric(quads, q, inverse) }

func roundInt16(dst []int16, q []float32, scale float32) { roundInt16Generic(dst, q, scale) }

func applyRows(out []float32, ldo int, q, rows []int16, factors []float32, blocks, pairs int) int {
	applyGeneric(out, q, rows, factors[0], blocks, pairs)
	return 1
}

func transposeTokens(dst, bits []uint32, words, stride int) {
	transposePairs(dst, bits, words, stride, transposeGeneric)
}

func addTokens([]float32, int, *Tables, []uint32, int, int) bool { return false }

func weigh(out, p []float32, scales []uint16) { weighGeneric(out, p, scales) }
