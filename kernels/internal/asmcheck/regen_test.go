package asmcheck

import (
	"os"
	"os/exec"
	"testing"
)

// TestGenerated generates all assembly anew and compares it with what is
// committed. It does not use the network: without avo in the module cache it is
// skipped, and regen.sh -check, which may download, is the step for CI.
func TestGenerated(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("compiles the generators: not in short mode")
	}
	run := func(name string, args ...string) ([]byte, error) {
		cmd := exec.Command(name, args...)
		cmd.Dir = "../asm"
		cmd.Env = append(os.Environ(), "GOPROXY=off", "GOFLAGS=", "GOOS=", "GOARCH=")
		return cmd.CombinedOutput()
	}
	if out, err := run("go", "list", "./..."); err != nil {
		t.Skipf("the avo module is not in the module cache (run regen.sh -check where it can be downloaded): %v\n%s", err,
			out)
	}
	if out, err := run("sh", "./regen.sh", "-check"); err != nil {
		t.Errorf("regen.sh -check: %v\n%s", err, out)
	}
}
