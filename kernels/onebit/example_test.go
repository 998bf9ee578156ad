package onebit_test

import (
	"fmt"

	"github.com/phaseconv/phaseconv/kernels/onebit"
)

func Example() {
	const b = 8
	keys := []float32{
		1, 1, 1, 1, 1, 1, 1, 1,
		-1, 1, -1, 1, -1, 1, -1, 1,
	}
	bits := make([]uint32, onebit.Len(2, b))
	onebit.Pack(bits, b, 2, keys, b)
	scales := []uint16{0x3c00, 0x4000} // 1 and 2 in binary16

	q := []float32{1, 2, 3, 4, 5, 6, 7, 8}
	var t onebit.Tables
	t.Build(q, b, 1, b)
	scores := make([]float32, 2)
	onebit.Score(scores, 2, &t, bits, scales, 2, nil)
	fmt.Printf("%.1f\n", scores)
	// Output: [36.0 8.0]
}
