package chat

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/format/tokenizer"
)

const turns = `{{ bos_token }}{% for m in messages %}` +
	`{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}
<{{ m.role }}>{{ m.content }}{{ eos_token }}
{% endfor %}`

// vocab is a vocabulary with two special tokens.
func vocab(template string, more map[string]string) *tokenizer.Vocab {
	return &tokenizer.Vocab{Model: "gpt2", Pre: "gpt-2", Tokens: []string{"<s>", "</s>", "a"},
		Types: []int32{3, 3, 1}, BOS: 0, EOS: 1, UNK: -1, PAD: -1, ChatTemplate: template, ChatTemplates: more}
}

func TestRender(t *testing.T) {
	all, err := Parse([]byte(`{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}

[{"role":"tool","content":"x"}]
{"messages":[{"role":"user","content":"c"}],"tools":[{"name":"f"}]}` + "\n"))
	if err != nil || len(all) != 3 {
		t.Fatal(len(all), err)
	}
	tm, err := Of(vocab(turns, map[string]string{"tool_use": "{{ tools|tojson }}"}))
	if err != nil {
		t.Fatal(err)
	}
	got, refused, err := tm.RenderAll(t.Context(), all)
	want := "<s><user>a</s>\n<assistant>b</s>\n" + `[{"name": "f"}]`
	if err != nil || refused != 1 || got != want {
		t.Errorf("got %q, %d refused, %v; want %q", got, refused, err, want)
	}
	if _, _, err := tm.RenderAll(t.Context(), all[1:2]); err == nil || !strings.Contains(err.Error(), "no tools") {
		t.Errorf("all refused: %v", err)
	}
}

func TestNone(t *testing.T) {
	if _, err := Of(vocab("", nil)); !errors.Is(err, ErrNone) {
		t.Error(err)
	}
	if _, err := Of(vocab("{% import 'x' %}", nil)); err == nil || !strings.Contains(err.Error(), "import") {
		t.Error(err)
	}
}

func TestParseRefuses(t *testing.T) {
	for _, s := range []string{"", "\n", "{", "3", `{"messages":[]}`, `{"messages":[1]}`, `{"messages":[{"content":"x"}]}`,
		`{"messages":[{"role":"u"}],"tools":{}}`, "plain text", `{"messages":[{"role":"u"}]} x`} {
		if _, err := Parse([]byte(s)); err == nil {
			t.Errorf("%q was taken", s)
		}
	}
}

// TestOwn: the chats that come with the program are conversations, tools among them.
func TestOwn(t *testing.T) {
	raw, err := os.ReadFile("../../verify/texts/chat.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	all, err := Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	with := 0
	for _, c := range all {
		if c.Tools != nil {
			with++
		}
	}
	if len(all) < 10 || with < 4 {
		t.Errorf("%d conversations, %d with tools", len(all), with)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"messages":[{"role":"user","content":"a"}],"tools":[]}`))
	f.Add([]byte("[{\"role\":\"user\"}]\n\n"))
	f.Fuzz(func(_ *testing.T, data []byte) { _, _ = Parse(data) })
}
