// gemm prints the best rate of C = A W^T, in GFLOP/s, for shapes "M,N,K" given as
// arguments, each tried for SECONDS; it is one side of scripts/bench/blas.py.
package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"time"

	"github.com/phaseconv/phaseconv/kernels/gemm"
)

func main() {
	if len(os.Args) < 4 {
		fmt.Fprintln(os.Stderr, "gemm THREADS SECONDS M,N,K...")
		os.Exit(2)
	}
	threads, err := strconv.Atoi(os.Args[1])
	if err != nil || threads < 1 {
		fmt.Fprintf(os.Stderr, "gemm: %q is no number of threads\n", os.Args[1])
		os.Exit(2)
	}
	seconds, err := time.ParseDuration(os.Args[2] + "s")
	if err != nil {
		fmt.Fprintln(os.Stderr, "gemm:", err)
		os.Exit(2)
	}
	r := rand.New(rand.NewPCG(1, 1))
	fill := func(n int) []float32 {
		x := make([]float32, n)
		for i := range x {
			x[i] = float32(r.NormFloat64())
		}
		return x
	}
	for _, arg := range os.Args[3:] {
		var m, n, k int
		if _, err := fmt.Sscanf(arg, "%d,%d,%d", &m, &n, &k); err != nil || m < 1 || n < 1 || k < 1 {
			fmt.Fprintf(os.Stderr, "gemm: %q is not M,N,K\n", arg)
			os.Exit(2)
		}
		a, c := fill(m*k), make([]float32, m*n)
		var w gemm.Weights
		w.PackRows(n, k, fill(n*k), k, threads)
		best := time.Duration(1 << 62)
		for end := time.Now().Add(seconds); time.Now().Before(end); {
			t := time.Now()
			gemm.Mul(c, n, a, k, m, &w, threads)
			best = min(best, time.Since(t))
		}
		fmt.Printf("%s %s %.2f\n", gemm.Tier(), arg, 2*float64(m)*float64(n)*float64(k)/best.Seconds()/1e9)
	}
}
