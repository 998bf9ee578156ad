package parallel

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
)

// TestFor: every task runs once, and the error is that of the lowest task that failed.
func TestFor(t *testing.T) {
	for _, threads := range []int{0, 1, 3, 100} {
		for _, n := range []int{0, 1, 7, 1000} {
			seen := make([]atomic.Int32, n)
			if err := For(t.Context(), threads, n, func(i int) error { seen[i].Add(1); return nil }); err != nil {
				t.Fatal(err)
			}
			Do(threads, n, func(i int) { seen[i].Add(1) })
			Rows(threads, n, func(r0, r1 int) {
				for i := r0; i < r1; i++ {
					seen[i].Add(1)
				}
			})
			for i := range seen {
				if c := seen[i].Load(); c != 3 {
					t.Fatalf("%d threads: task %d of %d ran %d times, want 3", threads, i, n, c)
				}
			}
		}
		// Tasks begin in order, so task 5 has begun when a later one fails.
		err := For(t.Context(), threads, 100, func(i int) error {
			if i >= 5 {
				return fmt.Errorf("task %d", i)
			}
			return nil
		})
		if err == nil || err.Error() != "task 5" {
			t.Errorf("%d threads: %v, want the error of task 5", threads, err)
		}
	}
}

// TestForStops: no task begins after the context has ended, and its cause is returned.
func TestForStops(t *testing.T) {
	for _, threads := range []int{1, 4} {
		cause := errors.New("enough")
		ctx, cancel := context.WithCancelCause(t.Context())
		var began atomic.Int32
		err := For(ctx, threads, 1000, func(int) error {
			if began.Add(1) == 10 {
				cancel(cause)
			}
			return nil
		})
		if !errors.Is(err, cause) || int(began.Load()) > 10+threads {
			t.Errorf("%d threads: %v after %d tasks", threads, err, began.Load())
		}
	}
}
