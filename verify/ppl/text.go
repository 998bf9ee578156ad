package ppl

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/tokenizer"
	"github.com/phaseconv/phaseconv/spec"
)

// A Text is what is calibrated on or measured.
type Text struct {
	Name string
	Data []byte
}

// SHA256 returns the text's digest in hex.
func (t Text) SHA256() string {
	h := sha256.Sum256(t.Data)
	return hex.EncodeToString(h[:])
}

// Tokenize encodes a text with a checkpoint's own tokenizer and cuts it into at most chunks
// windows (0: all) of ctx tokens, the first of each replaced by BOS where the tokenizer adds
// one. It fails where the tokenizer is not supported and where the text does not fill a window.
func Tokenize(c *checkpoint.Checkpoint, t Text, ctx, chunks int) (*Windows, error) {
	tk, err := c.Tokenizer()
	if err != nil {
		return nil, err
	}
	v := tk.Vocab()
	bos := int32(-1)
	if v.AddBOS {
		bos = v.BOS
	}
	w, err := Cut(tk.Encode(string(t.Data), tokenizer.AddSpecial), ctx, chunks, bos)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", t.Name, err)
	}
	return w, nil
}

// Info describes a text that was cut into w, for manifests and reports.
func (t Text) Info(w *Windows) spec.Text {
	return spec.Text{Name: t.Name, SHA256: t.SHA256(), Tokens: len(w.Tokens) * w.Ctx, Context: w.Ctx, Windows: len(w.Tokens)}
}

// Longer returns what cuts one window of n tokens from a text, nil from a text
// that is too short.
func Longer(c *checkpoint.Checkpoint, t Text) func(n int) [][]int32 {
	return func(n int) [][]int32 {
		w, err := Tokenize(c, t, n, 1)
		if err != nil {
			return nil
		}
		return w.Tokens
	}
}
