package gemm

import (
	"syscall"
	"unsafe"
)

const (
	hugePage       = 2 << 20
	adviseHugePage = 14 // MADV_HUGEPAGE
)

// preferHugePages asks for large pages behind a fresh buffer: a product that reads
// weights once otherwise spends a fifth of its time on looking pages up, where
// the system gives large pages only to those who ask. A refusal changes nothing.
func preferHugePages(x []float32) {
	size := len(x) * 4
	if size < 2*hugePage {
		return
	}
	p := unsafe.Pointer(unsafe.SliceData(x))
	skip := -int(uintptr(p)) & (hugePage - 1)
	whole := (size - skip) &^ (hugePage - 1)
	_ = syscall.Madvise(unsafe.Slice((*byte)(unsafe.Add(p, skip)), whole), adviseHugePage)
}
