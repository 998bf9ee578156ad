package main

import (
	"bytes"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"time"

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

// cpuTime returns the processor time that a process has used so far, in user and system mode.
func cpuTime(pid int) (time.Duration, bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, false
	}
	// After the name in parentheses: state, ten numbers, then both times in ticks of 10 ms.
	f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(f) < 13 {
		return 0, false
	}
	user, err1 := strconv.Atoi(string(f[11]))
	system, err2 := strconv.Atoi(string(f[12]))
	return time.Duration(user+system) * 10 * time.Millisecond, err1 == nil && err2 == nil
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
