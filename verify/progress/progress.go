// Package progress has the function type through which long computations report.
package progress

import "sync"

// A Func receives the steps of a long computation: done counts up to total within a step.
// It is called from one goroutine at a time.
type Func func(step string, done, total int)

// Of returns a function that reports one step; it is never nil, and does nothing if p is nil.
func (p Func) Of(step string) func(done, total int) {
	return func(done, total int) {
		if p != nil {
			p(step, done, total)
		}
	}
}

// Count reports to tick, which may be nil, that total things are to be done, and returns a
// function that reports one more of them as done. Tasks that run side by side may call it.
func Count(tick func(done, total int), total int) func() {
	if tick == nil {
		return func() {}
	}
	var mu sync.Mutex
	done := 0
	tick(0, total)
	return func() {
		mu.Lock()
		defer mu.Unlock()
		done++
		tick(done, total)
	}
}
