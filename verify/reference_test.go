package verify

import (
	"path/filepath"
	"slices"
	"testing"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/internal/tiny"
)

// blind is a checkpoint that has lost its head, as if it had been taken for tied.
type blind struct{ *checkpoint.Checkpoint }

func (b blind) Find(name string) (*checkpoint.Tensor, bool) {
	if name == headName {
		return nil, false
	}
	return b.Checkpoint.Find(name)
}

// TestReferenceHead: the reference reads the head that the source's files store,
// also where whoever opened them dropped it, and has none where none is stored.
func TestReferenceHead(t *testing.T) {
	for _, gguf := range []bool{false, true} {
		for _, stored := range []bool{false, true} {
			path := filepath.Join(t.TempDir(), "m")
			m := tiny.New(t, "llama", tiny.Options{Untied: stored, Config: map[string]any{"tie_word_embeddings": true}})
			if gguf {
				m.GGUF(t, path)
			} else {
				m.HF(t, path)
			}
			c, err := checkpoint.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			r, err := storedHead(c, blind{c})
			if err != nil {
				t.Fatal(err)
			}
			h, ok := r.Find(headName)
			if ok != stored {
				t.Fatalf("gguf %v: head stored %v, found %v", gguf, stored, ok)
			}
			embd, _ := r.Find("token_embd.weight")
			x := make([]float32, embd.Elements())
			if err := r.ReadRows(embd, 0, embd.Rows(), x); err != nil || !slices.Equal(x,
				m.Find("model.embed_tokens.weight").Values) {
				t.Errorf("gguf %v: other tensors are not read as before (%v)", gguf, err)
			}
			if !stored {
				continue
			}
			if err := r.ReadRows(h, 3, 5, x); err != nil || !slices.Equal(x[:5*64], m.Find("lm_head.weight").Values[3*64:8*64]) {
				t.Errorf("gguf %v: the head has other numbers (%v)", gguf, err)
			}
		}
	}
}
