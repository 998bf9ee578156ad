// Package chat renders conversations as a model's own chat template writes them.
package chat

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/phaseconv/phaseconv/format/jinja"
	"github.com/phaseconv/phaseconv/format/tokenizer"
)

// maxLine is how many bytes a conversation may have.
const maxLine = 4 << 20

// A Conversation is what a template is given: messages and, where tools may be called, their
// descriptions, each as transformers' apply_chat_template takes them.
type Conversation struct {
	Messages []any
	Tools    []any // nil for none
}

// Parse reads conversations, one JSON object a line: {"messages": [...], "tools": [...]}. A line may
// also be the array of messages alone. Empty lines are skipped.
func Parse(data []byte) ([]Conversation, error) {
	var out []Conversation
	n := 0
	for line := range bytes.Lines(bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))) {
		if n++; len(bytes.TrimSpace(line)) == 0 {
			continue
		}
		c, err := parseLine(line)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, errors.New(`no conversation; expected lines such as {"messages": [{"role": "user", "content": "..."}]}`)
	}
	return out, nil
}

func parseLine(line []byte) (c Conversation, err error) {
	if len(line) > maxLine {
		return c, fmt.Errorf("%d bytes; a conversation has at most %d", len(line), maxLine)
	}
	v, err := jinja.ParseJSON(line)
	if err != nil {
		return c, err
	}
	if d, ok := v.(*jinja.Dict); ok {
		v, _ = d.Get("messages")
		switch tools, _ := d.Get("tools"); tools := tools.(type) {
		case nil:
		case []any:
			c.Tools = tools
		default:
			return c, errors.New("tools is not an array")
		}
	}
	var ok bool
	if c.Messages, ok = v.([]any); !ok || len(c.Messages) == 0 {
		return c, errors.New("messages is not an array with messages in it")
	}
	for i, m := range c.Messages {
		d, ok := m.(*jinja.Dict)
		if !ok {
			return c, fmt.Errorf("message %d is not an object", i+1)
		}
		role, _ := d.Get("role")
		if s, ok := role.(string); !ok || s == "" {
			return c, fmt.Errorf("message %d has no role", i+1)
		}
	}
	return c, nil
}

// A Template renders conversations for one model.
type Template struct {
	plain, tools *jinja.Template
	vars         map[string]any
}

// ErrNone says that a model comes without a chat template.
var ErrNone = errors.New("the model has no chat template, so it is none to chat with: measure it on plain text")

// Of returns the template of a vocabulary: the default one, and the one named tool_use for
// conversations with tools where there is one.
func Of(v *tokenizer.Vocab) (*Template, error) {
	if v.ChatTemplate == "" {
		return nil, ErrNone
	}
	t := &Template{vars: map[string]any{}}
	var err error
	if t.plain, err = jinja.Parse(v.ChatTemplate); err != nil {
		return nil, fmt.Errorf("chat template: %w", err)
	}
	t.tools = t.plain
	if s := v.ChatTemplates["tool_use"]; s != "" {
		if t.tools, err = jinja.Parse(s); err != nil {
			return nil, fmt.Errorf("chat template tool_use: %w", err)
		}
	}
	for name, id := range map[string]int32{
		"bos_token": v.BOS, "eos_token": v.EOS, "unk_token": v.UNK, "pad_token": v.PAD,
	} {
		if id >= 0 && int(id) < len(v.Tokens) {
			t.vars[name] = v.Tokens[id]
		}
	}
	return t, nil
}

// day is what templates take for today, so that a rendering does not change from day to day.
var day = time.Date(2026, time.January, 1, 12, 0, 0, 0, time.UTC)

// Render writes a conversation as the template does, without the opening of a further answer.
func (t *Template) Render(ctx context.Context, c Conversation) (string, error) {
	vars := map[string]any{"messages": c.Messages, "tools": nil, "documents": nil, "add_generation_prompt": false}
	for k, v := range t.vars {
		vars[k] = v
	}
	which := t.plain
	if c.Tools != nil {
		vars["tools"], which = c.Tools, t.tools
	}
	return which.Render(ctx, vars, day)
}

// RenderAll writes conversations one after the other. Those that the template refuses, as some do
// with roles that they do not know, are left out and counted; if that leaves none, the last
// refusal is the error.
func (t *Template) RenderAll(ctx context.Context, all []Conversation) (text string, refused int, err error) {
	var b strings.Builder
	var last error
	for i, c := range all {
		s, err := t.Render(ctx, c)
		var e *jinja.Error
		switch {
		case errors.As(err, &e) && e.Raised:
			refused, last = refused+1, err
		case err != nil:
			return "", 0, fmt.Errorf("conversation %d: %w", i+1, err)
		default:
			b.WriteString(s)
		}
	}
	if refused == len(all) {
		return "", refused, fmt.Errorf("the chat template takes none of the conversations: %w", last)
	}
	return b.String(), refused, nil
}
