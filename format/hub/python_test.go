package hub

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/internal/hubtest"
)

// TestPython: huggingface_hub finds what was downloaded here, and what it downloads is found here.
func TestPython(t *testing.T) {
	python := os.Getenv("PHASECONV_PYTHON")
	if python == "" || exec.Command(python, "-c", "import huggingface_hub").Run() != nil {
		t.Skip("PHASECONV_PYTHON is not set, or has no huggingface_hub")
	}
	h := hubtest.New(t)
	files := model(h)
	c, _ := client(t, h)
	run := func(offline, script string) string {
		cmd := exec.CommandContext(t.Context(), python, "-c", script, repo)
		cmd.Env = append(os.Environ(), "HF_ENDPOINT="+h.URL, "HF_HUB_CACHE="+c.Cache, "HF_HUB_OFFLINE="+offline,
			"HF_HUB_DISABLE_XET=1", "HF_TOKEN=")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		return lines[len(lines)-1]
	}
	dir, err := c.Fetch(t.Context(), ref(t, repo))
	if err != nil {
		t.Fatal(err)
	}
	const load = `import sys, huggingface_hub as h
print(h.hf_hub_download(sys.argv[1], "%"))`
	got := run("1", strings.Replace(load, "%", "model-00001-of-00002.safetensors", 1))
	if want := filepath.Join(dir, "model-00001-of-00002.safetensors"); got != want {
		t.Errorf("huggingface_hub finds %s, want %s", got, want)
	}
	c.Cache = t.TempDir()
	for n := range files {
		run("0", strings.Replace(load, "%", n, 1))
	}
	sent := h.Sent
	if dir, err = c.Fetch(t.Context(), ref(t, repo)); err != nil || h.Sent != sent {
		t.Errorf("after huggingface_hub %d bytes were sent, %v", h.Sent-sent, err)
	}
	compare(t, dir, files)
}
