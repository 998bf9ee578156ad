package command

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
)

// full fails as standard output on a full disk does.
type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("no space left") }

// TestLostOutput: a result that could not be written is a failure, whatever prints it.
func TestLostOutput(t *testing.T) {
	for _, args := range []string{"claims", "version", "version --json", "help", "convert --help"} {
		var stderr bytes.Buffer
		code := Run(context.Background(), append([]string{"phaseconv"}, strings.Fields(args)...), full{}, &stderr)
		if code != exitFailed || !strings.Contains(stderr.String(), "no space left") {
			t.Errorf("%s: exit code %d, %q", args, code, stderr.String())
		}
	}
}
