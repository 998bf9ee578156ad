package gemm_test

import (
	"fmt"

	"github.com/phaseconv/phaseconv/kernels/gemm"
)

func Example() {
	// A linear layer of 2 outputs and 3 inputs, its rows decoded on the fly.
	rows := [][]float32{{1, 2, 3}, {10, 20, 30}}
	var w gemm.Weights
	err := w.Pack(2, 3, func(row int, dst []float32) error {
		copy(dst, rows[row])
		return nil
	}, 0)
	if err != nil {
		fmt.Println(err)
		return
	}
	x := []float32{
		1, 0, 0,
		1, 1, 1,
	}
	y := make([]float32, 2*2)
	gemm.Mul(y, 2, x, 3, 2, &w, 0)
	fmt.Println(y)
	// Output: [1 10 6 60]
}

func ExampleMulRange() {
	// Probabilities of the first two of three keys, times their values.
	values := []float32{
		1, 10,
		2, 20,
		3, 30,
	}
	var w gemm.Weights
	w.PackT(2, 3, values, 2, 0)
	p := []float32{0.5, 0.5, 99}
	y := make([]float32, 2)
	gemm.MulRange(y, 2, p, 3, 1, &w, 0, 2, 0, 2, false, 0)
	fmt.Println(y)
	// Output: [1.5 15]
}
