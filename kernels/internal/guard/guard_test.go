package guard

import (
	"runtime/debug"
	"testing"
	"unsafe"
)

// faults reports whether reading the byte at p faults.
func faults(p unsafe.Pointer) (fault bool) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() { fault = recover() != nil }()
	sink = *(*byte)(p)
	return false
}

var sink byte

func TestEdges(t *testing.T) {
	if !Protected {
		t.Skip("no page protection on this system")
	}
	for _, n := range []int{1, 3, 1023, 1024, 1025, 5000} {
		for _, side := range Sides {
			s := Slice[float32](t, n, side)
			if len(s) != n || cap(s) != n {
				t.Fatalf("len %d, cap %d, want %d", len(s), cap(s), n)
			}
			for i := range s {
				s[i] = float32(i)
			}
			first, last := unsafe.Pointer(&s[0]), unsafe.Pointer(&s[n-1])
			if faults(first) || faults(unsafe.Add(last, 3)) {
				t.Fatalf("n %d side %d: the buffer itself faults", n, side)
			}
			if side == AtEnd && !faults(unsafe.Add(last, 4)) {
				t.Errorf("n %d: reading past the end does not fault", n)
			}
			if side == AtStart && !faults(unsafe.Add(first, -1)) {
				t.Errorf("n %d: reading before the start does not fault", n)
			}
		}
	}
}
