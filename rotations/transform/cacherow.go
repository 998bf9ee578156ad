package transform

import (
	"fmt"
	"math"
	"math/bits"

	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/kernels/linalg"
	"github.com/phaseconv/phaseconv/kernels/rope"
)

// A CacheRow is what a runtime does to a key before it stores it.
type CacheRow struct {
	Type gguf.Type
	// Hadamard is the size of the orthonormal Hadamard matrix that turns each
	// stretch of so many numbers of a head first; 0 for none. Heads that it does not divide
	// are turned by the largest that does.
	Hadamard int
	// Pairs is the order of a head's numbers in the runtime, which decides what stands
	// in a stretch and in a block: that of the GGUF file, whatever the checkpoint's is.
	Pairs rope.Layout
}

// ToCacheBasis brings heads of d numbers in layout from, in place, to what is stored: in
// the runtime's order, turned.
func (c CacheRow) ToCacheBasis(x []float32, d int, from rope.Layout) {
	reorder(x, d, from, c.Pairs)
	linalg.Hadamard(x, c.size(d))
}

// size returns that of the Hadamard matrix for heads of d numbers, 0 for none.
func (c CacheRow) size(d int) int {
	if c.Hadamard == 0 {
		return 0
	}
	return min(c.Hadamard, d&-d)
}

// FromCacheBasis is the inverse of ToCacheBasis, and as that is orthogonal, its transpose.
func (c CacheRow) FromCacheBasis(x []float32, d int, to rope.Layout) {
	linalg.Hadamard(x, c.size(d))
	reorder(x, d, c.Pairs, to)
}

// reorder moves the numbers of heads from one layout to another.
func reorder(x []float32, d int, from, to rope.Layout) {
	if from == to {
		return
	}
	old := make([]float32, d)
	for at := 0; at+d <= len(x); at += d {
		copy(old, x[at:at+d])
		for i, v := range old {
			x[at+from.Index(to, i, d)] = v
		}
	}
}

// check refuses rows that no cache has.
func (c CacheRow) check(d int) error {
	if block, _ := c.Type.Block(); !gguf.CanCache(c.Type) || d%max(block, 1) != 0 {
		return fmt.Errorf("no cache rows of type %v for head_dim %d", c.Type, d)
	}
	if c.Hadamard < 0 || bits.OnesCount(uint(c.Hadamard)) > 1 {
		return fmt.Errorf("a Hadamard matrix of size %d: it must be a power of two", c.Hadamard)
	}
	return nil
}

// matrix returns the d x d transform before storing, of heads in layout from: Enter
// as an orthogonal matrix.
func (c CacheRow) matrix(d int, from rope.Layout) []float64 {
	m := make([]float64, d*d)
	n := max(c.size(d), 1)
	f := 1 / math.Sqrt(float64(n))
	for k := range d { // a number, and where the runtime has it
		j := from.Index(c.Pairs, k, d)
		for i := j - j%n; i < j-j%n+n; i++ {
			m[i*d+k] = f
			if bits.OnesCount(uint(i%n&(j%n)))%2 == 1 {
				m[i*d+k] = -f
			}
		}
	}
	return m
}

// errors stores numbers and returns how far what comes back is off.
func (c CacheRow) errors(x []float32) ([]float32, error) {
	size, err := gguf.RowBytes(c.Type, len(x))
	if err != nil {
		return nil, err
	}
	buf, e := make([]byte, size), make([]float32, len(x))
	if err := gguf.QuantizeCacheRow(c.Type, buf, x); err != nil {
		return nil, err
	}
	if err := gguf.DequantizeRow(c.Type, e, buf); err != nil {
		return nil, err
	}
	for i, v := range x {
		e[i] -= v
	}
	return e, nil
}
