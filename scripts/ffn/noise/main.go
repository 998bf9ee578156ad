// Command noise prints what L1-max fits reach on Gaussian noise: rows per
// dimension, mean cosine on the fitted rows and on others. For docs/ffn.md.
package main

import (
	"fmt"
	"os"

	"github.com/phaseconv/phaseconv/rotations/fit"
)

func main() {
	const d = 128 // results depend on rows per dimension, hardly on d
	fmt.Println("| rows per dimension | fitted rows | other rows |\n|---|---|---|")
	for _, r := range []float64{0.5, 0.75, 1, 4.0 / 3, 2, 4, 8, 16, 32, 64, 128} {
		x := fit.NoiseRows(int(r*d), d, 1)
		q, err := fit.FitRows(x, d, d, 1, 0, 0, 0, nil)
		if err != nil {
			fmt.Fprintln(os.Stderr, "noise:", err)
			os.Exit(1)
		}
		other := fit.NoiseRows(2000, d, 2)
		fmt.Printf("| %.2f | %.3f | %.3f |\n", r, q.Measure(x, d, 0).Cos1bit, q.Measure(other, d, 0).Cos1bit)
	}
}
