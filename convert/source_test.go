package convert

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/internal/tiny"
)

// TestArtifactAsSource: what was converted is not converted again, and the error
// says that it is an artifact, before anything is fitted.
func TestArtifactAsSource(t *testing.T) {
	dir := t.TempDir()
	at := func(s string) string { return filepath.Join(dir, s) }
	tiny.HF(t, at("src"), "llama", tiny.Options{Seed: 1})
	for out, to := range map[string]checkpoint.Container{"hf": checkpoint.Safetensors, "gguf": checkpoint.GGUF} {
		if _, err := quick(at("src"), at(out), to, "f32"); err != nil {
			t.Fatal(err)
		}
	}
	for _, src := range []string{at("hf"), at("gguf"), filepath.Join(at("gguf"), "model.gguf")} {
		_, err := quick(src, at("again"), checkpoint.GGUF, "f32")
		o := DefaultOptions()
		o.Source, o.OutType = src, "f32"
		_, planErr := Plans(t.Context(), o)
		for _, err := range []error{err, planErr} {
			if err == nil || !strings.Contains(err.Error(), src) || !strings.Contains(err.Error(), "artifact of phaseconv") {
				t.Errorf("%s: %v", src, err)
			}
		}
	}
	if n := left(t, dir); len(n) != 3 {
		t.Errorf("left behind: %v", n)
	}
}
