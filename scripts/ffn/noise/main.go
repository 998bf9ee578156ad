// Command noise prints what L1-max fits reach on Gaussian noise: rows per
// dimension, mean cosine on the fitted rows and on others. For docs/ffn.md.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/rotations/fit"
)

// measure cannot fail: nobody stops it.
func measure(r *fit.BlockRotation, rows []float32, d, threads int) codec.Beta {
	b, _ := r.Measure(context.Background(), rows, d, threads)
	return b
}

func main() {
	const d = 128 // results depend on rows per dimension, hardly on d
	fmt.Println("| rows per dimension | fitted rows | other rows |\n|---|---|---|")
	for _, r := range []float64{0.5, 0.75, 1, 4.0 / 3, 2, 4, 8, 16, 32, 64, 128} {
		x := fit.NoiseRows(int(r*d), d, 1)
		q, err := fit.FitRows(context.Background(), x, d, d, 1, 0, 0, 0)
		if err != nil {
			fmt.Fprintln(os.Stderr, "noise:", err)
			os.Exit(1)
		}
		other := fit.NoiseRows(2000, d, 2)
		fmt.Printf("| %.2f | %.3f | %.3f |\n", r, measure(q, x, d, 0).Cos1bit, measure(q, other, d, 0).Cos1bit)
	}
}
