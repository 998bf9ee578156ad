package checkpoint

import (
	"context"
	"math"
	"sync"

	"github.com/phaseconv/phaseconv/kernels/parallel"
)

// piece bounds how many numbers of a tensor are in memory at a time.
const piece = 1 << 20

// A Reader reads rows of tensors: a Checkpoint, or a View of one.
type Reader interface {
	ReadRows(t *Tensor, row0, n int, dst []float32) error
}

// Largest returns the largest magnitude in a tensor. Numbers that are not finite in the
// source are an error; edits of a View can make them, and then the result is infinite.
func Largest(ctx context.Context, r Reader, t *Tensor) (float32, error) {
	step := max(1, piece/t.Cols())
	buf := make([]float32, min(step, t.Rows())*t.Cols())
	var largest float32
	for row := 0; row < t.Rows(); row += step {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		n := min(step, t.Rows()-row)
		if err := r.ReadRows(t, row, n, buf); err != nil {
			return 0, err
		}
		for _, v := range buf[:n*t.Cols()] {
			if v < 0 {
				v = -v
			}
			if v != v {
				v = float32(math.Inf(1))
			}
			if v > largest {
				largest = v
			}
		}
	}
	return largest, nil
}

// Ranges reads all weights once and returns the largest magnitude of each tensor. A number
// that is not finite is an error that names the source's tensor. progress, if not nil, is
// called after each tensor.
func (c *Checkpoint) Ranges(ctx context.Context, threads int, progress func(done, total int)) (map[string]float32,
	error) {
	all := c.Tensors()
	largest := make([]float32, len(all))
	var mu sync.Mutex
	done := 0
	err := parallel.For(ctx, threads, len(all), func(i int) (err error) {
		if largest[i], err = Largest(ctx, c, all[i]); err == nil && progress != nil {
			mu.Lock()
			defer mu.Unlock()
			done++
			progress(done, len(all))
		}
		return err
	})
	out := make(map[string]float32, len(all))
	for i, t := range all {
		out[t.Name] = largest[i]
	}
	return out, err
}
