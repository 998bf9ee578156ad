//go:build (!amd64 && !arm64) || !gc || noasm

package halfdot

func vectorised() bool { return false }

func scoreRows(out, q []float32, keys []uint16) {}

func scoreQ8(out []float32, q []block, keys []byte) bool { return false }

func scoreQ4(out []float32, q []block, keys []byte) bool { return false }
