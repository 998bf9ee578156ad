package spec_test

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestPython runs the decoder of spec/example, which was written from the text
// alone, on the golden vectors and on an artifact made for it.
func TestPython(t *testing.T) {
	python := os.Getenv("PHASECONV_PYTHON")
	if python == "" {
		t.Skip("PHASECONV_PYTHON names no Python interpreter with numpy")
	}
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	command := func(name string, args ...string) *exec.Cmd {
		c := exec.Command(name, args...)
		c.Dir = root
		return c
	}
	run := func(c *exec.Cmd) []byte {
		t.Helper()
		var stderr bytes.Buffer
		c.Stderr = &stderr
		out, err := c.Output()
		if err != nil {
			t.Fatalf("%v: %v\n%s%s", c.Args, err, out, stderr.Bytes())
		}
		return out
	}
	dir := t.TempDir()
	source, artifact := filepath.Join(root, "testdata", "austen-moe"), filepath.Join(dir, "artifact")
	groups := filepath.Join(dir, "groups")
	// Of few signs, fitted to little: what matters is the file.
	for _, x := range []struct {
		out, prefix string
		code        []string
	}{
		{artifact, "", []string{"--bits", "0.5"}},
		{groups, "groups.", []string{"--code", "joint", "--bits-kv", "1", "--span", "256"}}, // a group for each head
	} {
		run(command("go", append([]string{"run", "./cmd/phaseconv", "convert", source, "-o", x.out, "--format", "both",
			"--calib-tokens", "320", "--ctx", "64", "--chunks", "1", "--recent", "0", "--json"}, x.code...)...))
		for container, name := range map[string]string{"gguf": "model.phase.gguf", "safetensors": "phaseconv.sidecar"} {
			out := run(command("go", "run", "./rotations/internal/vectors", "-sidecar", filepath.Join(x.out, name)))
			if !json.Valid(out) {
				t.Fatalf("vectors of %s: %s", name, out)
			}
			if err := os.WriteFile(filepath.Join(dir, x.prefix+container+".json"), out, 0o666); err != nil {
				t.Fatal(err)
			}
		}
	}
	c := command(python, "spec/example/test_decode.py", "-v")
	c.Env = append(os.Environ(), "PYTHONDONTWRITEBYTECODE=1", "PHASECONV_ARTIFACT="+artifact, "PHASECONV_GROUPS="+groups,
		"PHASECONV_SOURCE="+source,
		"PHASECONV_VECTORS="+dir)
	out, err := c.CombinedOutput()
	if err != nil || bytes.Contains(out, []byte("skipped")) {
		t.Errorf("%v\n%s", err, out)
	}
}
