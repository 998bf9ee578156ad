//go:build unix

package llama_test

import (
	"syscall"
	"testing"
	"time"
)

// ownCPU is what this process has taken of CPU, in seconds.
func ownCPU(t *testing.T) float64 {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return (time.Duration(u.Utime.Nano()) + time.Duration(u.Stime.Nano())).Seconds()
}
