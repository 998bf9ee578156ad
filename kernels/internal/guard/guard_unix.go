//go:build linux || darwin || freebsd || netbsd || openbsd

package guard

import (
	"os"

	"golang.org/x/sys/unix"
)

// Protected tells whether Slice really guards on this system.
const Protected = true

func alloc(size int, side Side) (b []byte, free func(), err error) {
	page := os.Getpagesize()
	inner := (size + page - 1) / page * page
	if inner == 0 {
		inner = page
	}
	m, err := unix.Mmap(-1, 0, inner+2*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return nil, nil, err
	}
	free = func() { _ = unix.Munmap(m) }
	for _, edge := range [][]byte{m[:page], m[page+inner:]} {
		if err := unix.Mprotect(edge, unix.PROT_NONE); err != nil {
			free()
			return nil, nil, err
		}
	}
	b = m[page : page+inner]
	if side == AtEnd {
		return b[inner-size:], free, nil
	}
	return b[:size], free, nil
}
