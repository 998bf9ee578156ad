// Package guard makes buffers for tests that lie right beside memory which may
// not be touched: a kernel that reads or writes one byte too far faults, instead
// of finding some other live memory there and going unnoticed.
package guard

import "unsafe"

// A Side says which end of the buffer touches forbidden memory. The other end is
// followed by less than a page of slack and then by forbidden memory too.
type Side int

// AtEnd catches accesses past the end, AtStart those before the start.
const (
	AtEnd Side = iota
	AtStart
)

// Sides lists both, for loops.
var Sides = []Side{AtEnd, AtStart}

// A Cleaner is the part of testing.TB that the package needs.
type Cleaner interface {
	Helper()
	Cleanup(func())
	Fatalf(format string, args ...any)
}

// Slice returns n zero values in guarded memory, which lives as long as the
// test. T must not hold pointers. Where the system has no page protection the
// slice is an ordinary one with nothing spare behind it.
func Slice[T any](t Cleaner, n int, side Side) []T {
	t.Helper()
	var zero T
	size := n * int(unsafe.Sizeof(zero))
	b, free, err := alloc(size, side)
	if err != nil {
		t.Fatalf("guard: no protected memory of %d bytes: %v", size, err)
	}
	t.Cleanup(free)
	return unsafe.Slice((*T)(unsafe.Pointer(unsafe.SliceData(b))), n)[:n:n]
}

// Copy returns a guarded copy of s.
func Copy[T any](t Cleaner, s []T, side Side) []T {
	t.Helper()
	g := Slice[T](t, len(s), side)
	copy(g, s)
	return g
}
