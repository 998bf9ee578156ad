package linalg

import (
	"context"
	"errors"
	"testing"
)

// must unwraps what fails only when a context ends.
func must[T any](x T, err error) T {
	if err != nil {
		panic(err)
	}
	return x
}

func eigen(a []float64, n int) (values, v []float64) {
	values, v, err := Eigen(context.Background(), a, n)
	if err != nil {
		panic(err)
	}
	return values, v
}

func polar(c []float32, n, threads int) []float32 {
	return must(Polar(context.Background(), c, n, threads))
}

func byEigen(c []float32, n int) []float32 { return must(polarByEigen(context.Background(), c, n)) }

func cholesky(a []float64, n int) ([]float64, error) { return Cholesky(context.Background(), a, n) }

func solveRight(a []float64, m int, l []float64, n int) []float64 {
	return must(SolveRight(context.Background(), a, m, l, n))
}

func minimize(x, curvature []float64, f func([]float64) (float64, []float64), steps int, gain float64) ([]float64,
	float64, int) {
	x, v, n, err := Minimize(context.Background(), x, curvature, f, steps, gain)
	if err != nil {
		panic(err)
	}
	return x, v, n
}

// asks is a context that ends when it has been asked so many times.
type asks struct {
	context.Context
	left int
}

func (c *asks) Err() error {
	if c.left--; c.left < 0 {
		return context.Canceled
	}
	return nil
}

// TestEnds: what takes long returns the cause of a context that ends while it works,
// and asks often enough: Eigen once a row, whose rotations cost n^2 each way, SolveRight once a
// panel of rows.
func TestEnds(t *testing.T) {
	const n = 32
	a := make([]float64, n*n)
	for i := range n {
		for j := range n {
			a[i*n+j] = 1 / float64(i+j+1)
		}
		a[i*n+i] += 1
	}
	cause := errors.New("enough")
	for _, left := range []int{0, 1, n - 1} {
		parent, cancel := context.WithCancelCause(context.Background())
		cancel(cause)
		ctx := &asks{parent, left}
		if _, _, err := Eigen(ctx, a, n); !errors.Is(err, cause) {
			t.Errorf("Eigen, after %d: %v", left, err)
		}
		ctx.left = left
		if _, err := Cholesky(ctx, a, n); !errors.Is(err, cause) {
			t.Errorf("Cholesky, after %d: %v", left, err)
		}
		ctx.left = left
		if _, err := SolveRight(ctx, make([]float64, panel*n*n), panel*n, Identity(n), n); !errors.Is(err, cause) {
			t.Errorf("SolveRight, after %d: %v", left, err)
		}
		ctx.left = min(left, 2)
		if _, err := Polar(ctx, Float32(a), n, 1); !errors.Is(err, cause) {
			t.Errorf("Polar, after %d: %v", left, err)
		}
		ctx.left = min(left, 2)
		calls := 0
		_, _, _, err := Minimize(ctx, constant(2, 3), constant(2, 1), func(x []float64) (float64, []float64) {
			calls++
			return x[0]*x[0] + 30*x[1]*x[1], []float64{2 * x[0], 60 * x[1]}
		}, 100, 0)
		if !errors.Is(err, cause) || calls != min(left, 2)+1 {
			t.Errorf("Minimize, after %d: %v, %d calls", left, err, calls)
		}
	}
}
