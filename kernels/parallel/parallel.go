// Package parallel runs independent pieces of a computation on several goroutines. What
// they compute must not depend on which of them runs first: results of this project are the
// same for every number of threads.
package parallel

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
)

// Threads returns n, or for 0 and less as many threads as the machine offers.
func Threads(n int) int {
	if n <= 0 {
		return runtime.GOMAXPROCS(0)
	}
	return n
}

// For runs f(0..tasks-1) on up to threads goroutines and returns the error of the lowest
// task that failed. Once ctx has ended, or a task has failed, no further task begins; when
// ctx has ended, For returns its cause unless a task returned an error of its own.
func For(ctx context.Context, threads, tasks int, f func(i int) error) error {
	var (
		next  atomic.Int64
		stop  atomic.Bool
		mu    sync.Mutex
		first = tasks
		err   error
	)
	work := func() {
		for {
			if stop.Load() || ctx.Err() != nil {
				return
			}
			i := int(next.Add(1)) - 1
			if i >= tasks {
				return
			}
			if e := f(i); e != nil {
				stop.Store(true)
				mu.Lock()
				if i < first {
					first, err = i, e
				}
				mu.Unlock()
			}
		}
	}
	spread(min(threads, tasks), work)
	if err != nil {
		return err
	}
	return context.Cause(ctx)
}

// Do runs f(0..tasks-1) on up to threads goroutines. It is for work that takes well below a
// second in all: it cannot be stopped.
func Do(threads, tasks int, f func(i int)) {
	var next atomic.Int64
	spread(min(threads, tasks), func() {
		for i := int(next.Add(1)) - 1; i < tasks; i = int(next.Add(1)) - 1 {
			f(i)
		}
	})
}

// Rows runs f on ranges [r0, r1) that make up rows, on up to threads goroutines. It is for
// work that takes well below a second in all: it cannot be stopped.
func Rows(threads, rows int, f func(r0, r1 int)) {
	const step = 64
	Do(threads, (rows+step-1)/step, func(i int) { f(i*step, min(rows, (i+1)*step)) })
}

// spread runs work n times side by side, once in the calling goroutine.
func spread(n int, work func()) {
	var wg sync.WaitGroup
	for range n - 1 {
		wg.Go(work)
	}
	work()
	wg.Wait()
}
