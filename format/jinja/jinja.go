// Package jinja renders the Jinja templates that come with chat models.
//
// A template is part of a model, so it comes from a stranger. It sees only the values it is given,
// and cannot change them; it has no files, no network and no clock; and it runs within Limits of
// steps, bytes and depth, so that none can run forever or fill the memory.
//
// The language is what chat templates use, with the environment that transformers gives them:
// blocks are trimmed (trim_blocks, lstrip_blocks), tojson is json.dumps without escapes for HTML,
// and raise_exception, strftime_now, break, continue and generation blocks are known. Anything
// else is refused by name: blocks when the template is parsed, filters and tests where they are reached.
package jinja

import (
	"context"
	"fmt"
	"time"
)

// Limits of parsing and rendering.
const (
	MaxSource = 1 << 20 // bytes of a template
	maxDepth  = 100     // of nested expressions, statements, calls and values
	maxSteps  = 1e6     // expressions evaluated, and items of lists made
	maxBytes  = 16 << 20
	// interruptEvery is how many steps lie between two looks at the context.
	interruptEvery = 1024
)

// A Template is a parsed template. It may be rendered by several goroutines at once.
type Template struct {
	body []node
}

// An Error says where in a template something is wrong.
type Error struct {
	Line int // from 1
	Text string
	// Raised: the template itself refused the input with raise_exception.
	Raised bool
}

func (e *Error) Error() string { return fmt.Sprintf("template line %d: %s", e.Line, e.Text) }

func fail(line int, format string, args ...any) error {
	return &Error{Line: line, Text: fmt.Sprintf(format, args...)}
}

// Parse reads a template. It refuses what this package cannot render, with the line and the name.
func Parse(source string) (*Template, error) {
	if len(source) > MaxSource {
		return nil, fail(1, "%d bytes; at most %d are read", len(source), MaxSource)
	}
	tokens, err := lex(source)
	if err != nil {
		return nil, err
	}
	p := &parser{tokens: tokens}
	body, _, err := p.body()
	if err != nil {
		return nil, err
	}
	return &Template{body}, nil
}

// Render renders the template with variables. Values are nil, bool, int64, float64, string, []any
// and *Dict, as ParseJSON makes them. now is what strftime_now tells.
func (t *Template) Render(ctx context.Context, vars map[string]any, now time.Time) (text string, err error) {
	r := &renderer{ctx: ctx, now: now}
	globals := &scope{vars: map[string]any{}}
	for name, f := range globalFuncs {
		globals.vars[name] = f
	}
	for k, v := range vars {
		globals.vars[k] = v
	}
	r.out = &output{}
	defer func() {
		switch p := recover().(type) {
		case nil:
		case tooMuch:
			text, err = "", errTooMuch
		default:
			panic(p)
		}
	}()
	if _, err := r.run(t.body, &scope{parent: globals, vars: map[string]any{}}); err != nil {
		return "", err
	}
	return r.out.String(), nil
}
