//go:build gc && !noasm

package measure

import (
	"golang.org/x/sys/cpu"

	"github.com/phaseconv/phaseconv/kernels/internal/impl"
)

var useAVX2 = cpu.X86.HasAVX && cpu.X86.HasAVX2

func init() { impl.Register("measure", "avx2", &useAVX2) }

func read(b []byte) uint64 {
	if n := len(b) / chunk; useAVX2 && n > 0 {
		return avx2Read(n, &b[0])
	}
	return readGeneric(b)
}
