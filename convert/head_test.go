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

// TestStoredHead: a head that is stored and differs from the embedding is in the
// artifact, whatever the configuration says of it, and the manifest says so. A
// copy of the embedding leaves a tied model tied.
func TestStoredHead(t *testing.T) {
	for _, x := range []struct {
		what   string
		gguf   bool // the source
		same   bool
		tied   any // of config.json
		to     checkpoint.Container
		fam    string
		own    bool // the written model has a head of its own
		noting bool
	}{
		{"tied, differs", false, false, true, checkpoint.GGUF, "llama", true, true},
		{"tied, differs", false, false, true, checkpoint.Safetensors, "llama", true, true},
		{"tied, differs, stock readers need a head", false, false, true, checkpoint.GGUF, "olmoe", true, true},
		{"tied, same", false, true, true, checkpoint.GGUF, "llama", false, false},
		{"tied, same", false, true, true, checkpoint.Safetensors, "llama", false, false},
		{"untied, same", false, true, false, checkpoint.GGUF, "llama", true, false},
		{"in a GGUF file, differs", true, false, nil, checkpoint.GGUF, "llama", true, false},
		{"in a GGUF file, same", true, true, nil, checkpoint.GGUF, "llama", true, false},
	} {
		var embd []float32
		o := tiny.Options{Seed: 3, Untied: true, Config: map[string]any{"tie_word_embeddings": x.tied},
			Edit: func(name string, v []float32) {
				if name == "model.embed_tokens.weight" {
					embd = v
				} else if name == "lm_head.weight" && x.same {
					copy(v, embd)
				}
			}}
		if x.fam == "olmoe" { // stock readers demand it
			o.KVHeads = 4
		}
		m := tiny.New(t, x.fam, o)
		src, out := filepath.Join(t.TempDir(), "src"), filepath.Join(t.TempDir(), "out")
		if x.gguf {
			m.GGUF(t, src)
		} else {
			m.HF(t, src)
		}
		res, err := quick(src, out, x.to, "f32")
		if err != nil {
			t.Errorf("%s to %s: %v", x.what, x.to, err)
			continue
		}
		if !res.Verify.OK || res.Verify.Function == nil || res.Verify.Function.KLDMean > 1e-6 {
			t.Errorf("%s to %s: %+v", x.what, x.to, res.Verify.Function)
		}
		if noted := strings.Contains(strings.Join(res.Manifest.Notes, " "), "lm_head.weight"); noted != x.noting {
			t.Errorf("%s to %s: notes %q", x.what, x.to, res.Manifest.Notes)
		}
		c, err := write.Open(out, res.Manifest.Artifacts[0], nil)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		h, own := c.Find("output.weight")
		if own != x.own {
			t.Errorf("%s to %s: own head %v", x.what, x.to, own)
			continue
		}
		if !own {
			continue
		}
		if got, err := c.ReadAll(h); err != nil || !slices.Equal(got, m.Find("lm_head.weight").Values) {
			t.Errorf("%s to %s: another head (%v)", x.what, x.to, err)
		}
	}
}
