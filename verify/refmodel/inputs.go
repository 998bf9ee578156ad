package refmodel

import (
	"context"
	"math"

	"github.com/phaseconv/phaseconv/format/dtype"
	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/kernels/gemm"
	"github.com/phaseconv/phaseconv/kernels/linalg"
	"github.com/phaseconv/phaseconv/kernels/parallel"
)

// matrix is a packed matrix and what ggml's CPU backend rounds its inputs to.
type matrix struct {
	gemm.Weights
	input gguf.Type
}

// inputType is the type that ggml's CPU backend rounds the inputs of a product to
// (vec_dot_type), by the name of the matrix's type. Matrices with minima (Q4_1, Q5_1) get the
// codes of Q8_0 too; that their blocks also carry a rounded sum is left out here.
func inputType(matrix string) gguf.Type {
	t, err := gguf.ParseType(matrix)
	if err != nil {
		return gguf.TypeF32
	}
	switch t {
	case gguf.TypeF16, gguf.TypeBF16:
		return t
	}
	switch block, _ := t.Block(); {
	case block == 256: // the K, IQ and TQ types
		return gguf.TypeQ8_K
	case t.Quantized():
		return gguf.TypeQ8_0
	}
	return gguf.TypeF32
}

// productsAtOnce bounds how many multiplications pass between two looks at the context:
// some tenths of a second on one core.
const productsAtOnce = 1 << 32

// mul sets dst to the products of rows of x with a matrix. It fails only when ctx ends.
func (m *Model) mul(ctx context.Context, dst, x []float32, rows int, w *matrix) error {
	k := w.K()
	if m.RoundInputs && w.input != gguf.TypeF32 {
		y := linalg.Grow(&m.rounded, rows*k)
		parallel.Rows(m.Threads, rows, func(r0, r1 int) {
			copy(y[r0*k:r1*k], x[r0*k:])
			for r := r0; r < r1; r++ {
				roundInputs(w.input, y[r*k:(r+1)*k])
			}
		})
		x = y
	}
	n := w.N()
	step := max(64, productsAtOnce/max(1, n*k))
	for r := 0; r < rows; r += step {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		gemm.Mul(dst[r*n:], n, x[r*k:], k, min(step, rows-r), &w.Weights, m.Threads)
	}
	return nil
}

// roundInputs replaces a row, a whole number of blocks, by what a type leaves of it: NaN
// where it cannot hold the numbers.
func roundInputs(t gguf.Type, x []float32) {
	switch t {
	case gguf.TypeF16:
		for i, v := range x {
			x[i] = dtype.F16Round(v)
		}
	case gguf.TypeBF16:
		for i, v := range x {
			x[i] = dtype.BF16Round(v)
		}
	case gguf.TypeQ8_0:
		// The CPU backend rounds inputs and rows of a cache alike.
		b := make([]byte, len(x)/32*34)
		if gguf.QuantizeCacheRow(t, b, x) != nil || gguf.DequantizeRow(t, x, b) != nil {
			for i := range x {
				x[i] = float32(math.NaN())
			}
		}
	case gguf.TypeQ8_K:
		for ; len(x) >= 256; x = x[256:] {
			b := x[:256:256]
			if largest := extreme(b); largest != 0 {
				inverse := -127 / largest
				roundBlock(b, inverse, 1/inverse)
			}
		}
	}
}

// extreme returns the number of largest magnitude, the first of several.
func extreme(x []float32) float32 {
	var e, abs float32
	for _, v := range x {
		if a := float32(math.Abs(float64(v))); a > abs {
			e, abs = v, a
		}
	}
	return e
}

// roundBlock rounds numbers to multiples of a scale, ties to even, at most 127 of them.
// Adding 1.5 * 2^23 leaves no bits for a fraction, so the adder rounds.
func roundBlock(x []float32, inverse, scale float32) {
	for i, v := range x {
		code := float32(v*inverse) + 0x1.8p23
		x[i] = float32(min(code-0x1.8p23, 127) * scale)
	}
}
