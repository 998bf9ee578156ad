package command

import (
	"bytes"
	"context"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/spec"
)

// TestPrintable: names of a file do not reach the terminal as commands, whether
// they are shown or complained about.
func TestPrintable(t *testing.T) {
	t.Parallel()
	hostile := "a\x1b[2J\u009b31m\u202eb\tc"
	if got, want := printable(hostile), `a\x1b[2J\u009b31m\u202eb\tc`; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if s := "two\nlines, grüße, 日本"; printable(s) != s {
		t.Errorf("%q", printable(s))
	}
	var line bytes.Buffer
	say(&line, "%s: %d\n", "x\n"+hostile, 1)
	if got, want := line.String(), `x\na\x1b[2J\u009b31m\u202eb\tc: 1`+"\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	line.Reset()
	printLadder(&line, &spec.LadderJSON{Verdicts: []string{hostile}, Records: []spec.LadderRecord{
		{Rung: spec.Rung{ID: hostile, Method: hostile}, Status: hostile, Reason: hostile}}})
	if strings.ContainsFunc(line.String(), hidden) {
		t.Errorf("the ladder drives the terminal: %q", line.String())
	}
	name := `a\u001b[2J\u009b31m`
	for header, code := range map[string]int{
		`{"__metadata__":{"` + name + `":"` + name + `"},"` + name +
			`":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}`: exitGood,
		`{"` + name + `":{"dtype":"U8","shape":[2],"data_offsets":[0,1]}}`: exitFailed,
	} {
		path := filepath.Join(t.TempDir(), "x.safetensors")
		raw := append(binary.LittleEndian.AppendUint64(nil, uint64(len(header))), header...)
		if err := os.WriteFile(path, append(raw, 0), 0o600); err != nil {
			t.Fatal(err)
		}
		var stdout, stderr bytes.Buffer
		if got := Run(context.Background(), []string{"phaseconv", "inspect", path}, &stdout, &stderr); got != code {
			t.Errorf("exit code %d, want %d", got, code)
		}
		out := stdout.String() + stderr.String()
		if strings.ContainsFunc(out, hidden) || !strings.Contains(out, `[2J`) {
			t.Errorf("%q", out)
		}
	}
	var stdout, stderr bytes.Buffer
	Run(context.Background(), []string{"phaseconv", "inspect", "none\x1b[2J"}, &stdout, &stderr)
	if out := stderr.String(); strings.ContainsFunc(out, hidden) || !strings.Contains(out, `\x1b[2J`) {
		t.Errorf("%q", out)
	}
}
