//go:build !unix

package llama

import "os/exec"

func detach(*exec.Cmd) {}
