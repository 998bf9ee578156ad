// Package bench times benchmark bodies on machines that do other work meanwhile.
package bench

import (
	"testing"
	"time"
)

// Best runs f as the body of a benchmark and returns the time of the fastest
// call: the mean that package testing prints also counts what other processes
// took, the best of many calls hardly does. f should take a microsecond or more.
func Best(b *testing.B, f func()) time.Duration {
	best := time.Duration(1<<63 - 1)
	for b.Loop() {
		start := time.Now()
		f()
		best = min(best, time.Since(start))
	}
	return best
}
