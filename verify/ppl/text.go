package ppl

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"github.com/phaseconv/phaseconv/format/chat"
	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/format/tokenizer"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/option"
)

// A Text is what is calibrated on or measured.
type Text struct {
	Name string
	Data []byte
	// Chat: Data holds conversations, see chat.Parse, which are rendered with the model's own chat
	// template.
	Chat bool
	// Kind is what the text is, such as "chat" or "code"; "" for any.
	Kind string
}

// SHA256 returns the text's digest in hex.
func (t Text) SHA256() string {
	h := sha256.Sum256(t.Data)
	return hex.EncodeToString(h[:])
}

// Tokenize encodes a text with a checkpoint's own tokenizer and cuts it into at most chunks
// windows (0: all) of n tokens, the first of each replaced by BOS where the tokenizer adds
// one. It fails where the tokenizer is not supported, where the text does not fill a window, and
// when ctx ends.
//
// It refuses what is no text, and windows longer than the context that the model was made for.
func Tokenize(ctx context.Context, c *checkpoint.Checkpoint, t Text, n, chunks int) (*Windows, error) {
	return tokenize(ctx, c, t, n, chunks, Cut)
}

// TokenizeSpread is Tokenize with windows spread evenly over the whole text, as CutSpread takes
// them: for what is fitted.
func TokenizeSpread(ctx context.Context, c *checkpoint.Checkpoint, t Text, n, chunks int) (*Windows, error) {
	return tokenize(ctx, c, t, n, chunks, CutSpread)
}

func tokenize(ctx context.Context, c *checkpoint.Checkpoint, t Text, n, chunks int,
	cut func(ids []int32, ctx, chunks int, bos int32) (*Windows, error)) (*Windows, error) {
	tk, err := c.Tokenizer()
	if err != nil {
		return nil, err
	}
	if err := CheckContext(c.Config, n); err != nil {
		return nil, err
	}
	if err := t.Check(); err != nil {
		return nil, err
	}
	if chunks < 0 {
		return nil, option.Bad("Chunks", chunks, "it cannot be negative")
	}
	v := tk.Vocab()
	bos := int32(-1)
	if v.AddBOS {
		bos = v.BOS
	}
	// Encoding cannot be stopped, and a text of 100 MB takes half a minute: nobody waits for
	// what is not wanted any more.
	ids := make(chan []int32, 1)
	words, specials := "", tokenizer.AddSpecial
	if t.Chat {
		specials = tokenizer.ParseSpecial
		if words, err = t.Render(ctx, v); err != nil {
			return nil, err
		}
	} else {
		words = string(t.Data)
	}
	go func() { ids <- tk.Encode(words, specials) }()
	var all []int32
	select {
	case all = <-ids:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	w, err := cut(all, n, chunks, bos)
	if err != nil {
		return nil, option.Errorf("%s: %w", t.Name, err)
	}
	return w, nil
}

// Render writes the text's conversations with the chat template of a vocabulary, which names special
// tokens itself.
func (t Text) Render(ctx context.Context, v *tokenizer.Vocab) (string, error) {
	all, err := chat.Parse(t.Data)
	if err != nil {
		return "", option.Errorf("%s: %w", t.Name, err)
	}
	template, err := chat.Of(v)
	if err != nil {
		return "", fmt.Errorf("%s: %w", t.Name, err)
	}
	words, _, err := template.RenderAll(ctx, all)
	if err != nil {
		return "", fmt.Errorf("%s: %w", t.Name, err)
	}
	return words, nil
}

// CheckContext refuses windows of ctx tokens in which nothing can be scored, or which are
// longer than the context that the model was made for.
func CheckContext(c *family.Config, ctx int) error {
	switch own := c.Context; {
	case ctx < minWindow:
		return option.Bad("Ctx", ctx, "expected at least %d tokens", minWindow)
	case own > 0 && ctx > own:
		return option.Bad("Ctx", ctx, "the model's own context is %d, and beyond it nothing that is measured means much", own)
	}
	return nil
}

// Info describes a text that was cut into w, for manifests and reports.
func (t Text) Info(w *Windows) spec.Text {
	return spec.Text{Name: t.Name, Kind: t.Kind, SHA256: t.SHA256(), Tokens: len(w.Tokens) * w.Ctx, Context: w.Ctx,
		Windows: len(w.Tokens)}
}

// Longer returns what cuts one window of n tokens from a text, nil from a text
// that is too short.
func Longer(ctx context.Context, c *checkpoint.Checkpoint, t Text) func(n int) [][]int32 {
	return func(n int) [][]int32 {
		w, err := Tokenize(ctx, c, t, n, 1)
		if err != nil {
			return nil
		}
		return w.Tokens
	}
}
