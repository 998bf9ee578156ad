package checkpoint_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/internal/tiny"
)

// TestName: a folder or file that is named by a digest has the name of its
// repository, or the one that it carries.
func TestName(t *testing.T) {
	commit, blob := strings.Repeat("0a1b2c3d", 5), strings.Repeat("9f", 32)
	for _, x := range []struct {
		path   string
		config any // _name_or_path
		gguf   bool
		want   string
	}{
		{"SmolLM2-135M", nil, false, "SmolLM2-135M"},
		{"SmolLM2-135M", "Other/Name", false, "SmolLM2-135M"},
		{"models--Qwen--Qwen2.5-0.5B/snapshots/" + commit, nil, false, "Qwen2.5-0.5B"},
		{"models--Qwen--Qwen2.5-0.5B/snapshots/" + commit, "x/y", false, "Qwen2.5-0.5B"},
		{"models--gpt2/snapshots/" + commit, nil, false, "gpt2"},
		{"models--a--b--c/snapshots/" + commit, nil, false, "b--c"},
		{"models--Qwen--Qwen2.5-0.5B/snapshots/main", nil, false, "main"},
		{commit, "Org/Model-1B", false, "Model-1B"},
		{commit, "Model-1B", false, "Model-1B"},
		{commit, "/home/me/models/Model-1B", false, "model"},
		{commit, "snapshots/" + commit, false, "model"},
		{commit, nil, false, "model"},
		{"deadbeef", nil, false, "deadbeef"},
		{"m.gguf", nil, true, "m.gguf"},
		{"sha256-" + blob, nil, true, "tiny qwen2"},
		{"blobs/" + blob, nil, true, "tiny qwen2"},
	} {
		path := filepath.Join(t.TempDir(), filepath.FromSlash(x.path))
		m := tiny.New(t, "qwen2", tiny.Options{Config: map[string]any{"_name_or_path": x.config}})
		if x.gguf {
			if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
				t.Fatal(err)
			}
			m.GGUF(t, path)
		} else {
			m.HF(t, path)
		}
		if got := open(t, path).Name(); got != x.want {
			t.Errorf("%s with %v: %q, want %q", x.path, x.config, got, x.want)
		}
	}
}
