package convert

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/convert/write"
	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/internal/tiny"
)

// TestF64: a checkpoint of doubles is read as float32, which the notes say, and
// written in its own type or that of the GGUF file.
func TestF64(t *testing.T) {
	dir := t.TempDir()
	m := tiny.New(t, "llama", tiny.Options{Seed: 2, DType: "F64", Untied: true})
	src := filepath.Join(dir, "src")
	m.HF(t, src)
	for i, to := range []checkpoint.Container{checkpoint.Safetensors, checkpoint.GGUF} {
		res, err := quick(src, filepath.Join(dir, string(to)), to, "f32")
		if err != nil {
			t.Fatal(err)
		}
		if !res.Verify.OK || res.Verify.Function.KLDMean > 1e-6 || !strings.Contains(strings.Join(res.Manifest.Notes, " "),
			"stored as F64: ") {
			t.Errorf("to %s: %+v, notes %q", to, res.Verify.Function, res.Manifest.Notes)
		}
		c, err := write.Open(filepath.Join(dir, string(to)), res.Manifest.Artifacts[0], nil)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		x, _ := c.Find("output.weight")
		if got, err := c.ReadAll(x); err != nil || x.Type != []string{"F64", "F32"}[i] || !slices.Equal(got,
			m.Find("lm_head.weight").Values) {
			t.Errorf("to %s: head of type %s (%v)", to, x.Type, err)
		}
	}
}
