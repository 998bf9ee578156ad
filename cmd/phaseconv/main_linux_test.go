package main

import (
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/rogpeppe/go-internal/testscript"
)

const posix = true

// limitFiles lets no file of this process grow beyond n bytes. Writes then fail
// as on a full disk, only with another error.
func limitFiles(n uint64) {
	signal.Ignore(syscall.SIGXFSZ)
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: n, Max: n}); err != nil {
		panic(err)
	}
}

func fifo(ts *testscript.TestScript, path string) { ts.Check(syscall.Mkfifo(path, 0o600)) }

// canMount tries it: containers differ.
var canMount = sync.OnceValue(func() bool {
	dir, err := os.MkdirTemp("", "mount")
	if err != nil {
		return false
	}
	defer os.Remove(dir)
	if syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k") != nil {
		return false
	}
	return syscall.Unmount(dir, 0) == nil
})

// mountfs mounts a file system of SIZE in memory, or one that is read-only ("ro").
func mountfs(ts *testscript.TestScript, _ bool, args []string) {
	dir, flags, data := ts.MkAbs(args[0]), uintptr(0), "size="+args[1]
	if args[1] == "ro" {
		flags, data = syscall.MS_RDONLY, ""
	}
	ts.Check(os.MkdirAll(dir, 0o777))
	ts.Check(syscall.Mount("tmpfs", dir, "tmpfs", flags, data))
	ts.Defer(func() { syscall.Unmount(dir, 0) })
}
