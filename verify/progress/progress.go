// Package progress has the function type through which long computations report.
package progress

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
