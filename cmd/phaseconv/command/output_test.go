package command

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/spec"
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

// TestVerifySays: what is printed names what is coded, and the code that a user chose.
func TestVerifySays(t *testing.T) {
	for parts, want := range map[string][2]string{
		"":   {"code frame, anchor 0, sink 0, recent 0, decoded keys\n", "   coded keys\n"},
		"kv": {"code joint, anchor 0, sink 0, recent 0, decoded keys and values\n", "   coded keys and values\n"},
		"v":  {"code joint, anchor 0, sink 0, recent 0, decoded values of a layer\n", "   coded values of a layer\n"},
	} {
		var b strings.Builder
		printVerify(&b, &spec.VerifyJSON{Text: &spec.Text{}, PPL: &spec.PPLJSON{Code: "frame"}, KLD: &spec.KLDJSON{},
			Bytes: &spec.BytesJSON{Parts: parts}})
		for _, w := range want {
			if !strings.Contains(b.String(), w) {
				t.Errorf("parts %q: no %q in\n%s", parts, w, b.String())
			}
		}
	}
}
