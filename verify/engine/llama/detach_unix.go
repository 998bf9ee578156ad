//go:build unix

package llama

import (
	"os/exec"
	"syscall"
)

// detach keeps Ctrl-C away from the worker: it ends when its pipe does, in order.
func detach(c *exec.Cmd) { c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }
