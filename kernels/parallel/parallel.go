package parallel

import (
	"sync"
	"sync/atomic"
)

// parallel runs f(0..tasks-1) on up to threads goroutines and returns the error
// of the lowest task that failed. Tasks must not depend on each other's order.
func For(threads, tasks int, f func(i int) error) error {
	if threads <= 1 || tasks <= 1 {
		for i := range tasks {
			if err := f(i); err != nil {
				return err
			}
		}
		return nil
	}
	var (
		wg    sync.WaitGroup
		next  atomic.Int64
		mu    sync.Mutex
		first = tasks
		err   error
	)
	for range min(threads, tasks) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for {
				i := int(next.Add(1)) - 1
				if i >= tasks {
					return
				}
				if e := f(i); e != nil {
					mu.Lock()
					if i < first {
						first, err = i, e
					}
					mu.Unlock()
				}
			}
		}()
	}
	wg.Wait()
	return err
}

// rowsParallel runs f on ranges of rows.
func Rows(threads, rows int, f func(r0, r1 int)) {
	const step = 64
	_ = For(threads, (rows+step-1)/step, func(i int) error {
		f(i*step, min(rows, (i+1)*step))
		return nil
	})
}

// Parallel runs f(0..tasks-1) on up to threads goroutines.
func Do(threads, tasks int, f func(i int)) {
	_ = For(threads, tasks, func(i int) error { f(i); return nil })
}
