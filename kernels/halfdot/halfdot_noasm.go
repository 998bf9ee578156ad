//go:build (!amd64 && !arm64) || !gc || noasm

package halfdot

func vectorised() bool { return false }

func scoreRows(out, q []float32, keys []uint16) {}

func scoreQ8(out []float32, q []block, keys []byte) bool { return false }

func scoreQ4(out []float32, q []block, keys []byte) bool { return false }

func sumF16([]float32, []float32, []uint16) bool { return false }
func sumQ8([]float32, []float32, []byte) bool    { return false }
func sumQ4([]float32, []float32, []byte) bool    { return false }
