package jinja

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

type renderCase struct {
	Name     string          `json:"name"`
	Template string          `json:"template"`
	Vars     json.RawMessage `json:"vars"`
	Want     string          `json:"want"`
	Fails    bool            `json:"fails,omitempty"`
}

func renderVars(t testing.TB, template string, raw []byte) (string, error) {
	v, err := ParseJSON(raw)
	if err != nil {
		t.Fatal(err)
	}
	tm, err := Parse(template)
	if err != nil {
		return "", err
	}
	vars := map[string]any{}
	d := v.(*Dict)
	for _, k := range d.Keys() {
		vars[k.(string)], _ = d.Get(k)
	}
	return tm.Render(t.Context(), vars, time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC))
}

func check(t *testing.T, raw []byte) {
	var cases []renderCase
	if err := json.Unmarshal(raw, &cases); err != nil {
		t.Fatal(err)
	}
	for _, c := range cases {
		got, err := renderVars(t, c.Template, c.Vars)
		if c.Fails {
			if err == nil {
				t.Errorf("%s: rendered %q; transformers refuses it", c.Name, got)
			}
			continue
		}
		if err != nil || got != c.Want {
			t.Errorf("%s: got  %q, %v\nwant %q", c.Name, got, err, c.Want)
		}
	}
	if len(cases) == 0 {
		t.Error("no case")
	}
}

// TestGolden compares with what transformers renders (scripts/oracles/jinja_golden.py).
func TestGolden(t *testing.T) {
	raw, err := os.ReadFile("testdata/cases.json")
	if err != nil {
		t.Fatal(err)
	}
	check(t, raw)
}

// otherwise are the templates that come with llama.cpp and are not rendered as transformers does, on purpose.
var otherwise = map[string]string{
	"meetkai-functionary-medium-v3.1.jinja": "it joins text marked as safe with other text, which is refused",
	"llama-cpp-deepseek-r1.jinja":           "transformers cannot write what map gives as JSON, and refuses it",
}

// TestOracle renders with transformers itself, where PHASECONV_PYTHON has it: the golden cases, and
// the templates in the folder PHASECONV_TEMPLATES, which are of models and not ours to keep.
func TestOracle(t *testing.T) {
	python := os.Getenv("PHASECONV_PYTHON")
	if python == "" || exec.Command(python, "-c", "import jinja2, transformers").Run() != nil {
		t.Skip("PHASECONV_PYTHON is not set, or has no transformers and jinja2")
	}
	golden, err := os.ReadFile("testdata/cases.json")
	if err != nil {
		t.Fatal(err)
	}
	var cases, chats []renderCase
	if err := json.Unmarshal(golden, &cases); err != nil {
		t.Fatal(err)
	}
	for _, c := range cases {
		if strings.Contains(string(c.Vars), `"messages"`) {
			chats = append(chats, c)
		}
	}
	var files []string
	if dir := os.Getenv("PHASECONV_TEMPLATES"); dir != "" {
		if files, _ = filepath.Glob(filepath.Join(dir, "*.jinja")); len(files) == 0 {
			t.Fatalf("no template in %s", dir)
		}
	}
	templates := 0
	for _, f := range files {
		if why, ok := otherwise[filepath.Base(f)]; ok {
			t.Logf("%s is left out: %s", filepath.Base(f), why)
			continue
		}
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		templates++
		for _, c := range chats {
			c.Name, c.Template = filepath.Base(f)+" with the messages of "+c.Name, string(text)
			cases = append(cases, c)
		}
	}
	in, err := json.Marshal(cases)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), python, "../../scripts/oracles/jinja_golden.py", "-")
	cmd.Stdin, cmd.Stderr = bytes.NewReader(in), os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	check(t, out)
	t.Logf("%d renderings compared with those of transformers, of %d templates of models", len(cases), templates)
}

// TestLimits: templates that would run forever or fill the memory end with an error, soon.
func TestLimits(t *testing.T) {
	nested := "1"
	for range 5000 {
		nested = "(" + nested + ")"
	}
	for name, text := range map[string]string{
		"loops":        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
		"range":        "{{ range(10000000000)|list }}",
		"repeat":       "{{ 'a' * 10000000000 }}",
		"repeat list":  "{{ [1] * 10000000000 }}",
		"doubling":     "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
		"double lists": "{% set ns = namespace(s=[1]) %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
		"replace":      "{% set s = 'a' * 100000 %}{{ s|replace('a', s) }}",
		"join":         "{% set s = 'a' * 100000 %}{{ range(99999)|join(s) }}",
		"indent":       "{% set s = '\n' * 1000000 %}{{ s|indent(900, true, true) }}",
		"tojson":       "{% set ns = namespace(d=1) %}{% for i in range(90) %}{% set ns.d = [ns.d, ns.d] %}{% endfor %}{{ ns.d|tojson }}",
		"text":         "{% set ns = namespace(d=1) %}{% for i in range(90) %}{% set ns.d = [ns.d, ns.d] %}{% endfor %}{{ ns.d }}",
		"equal":        "{% set a = namespace(d=1) %}{% for i in range(90) %}{% set a.d = [a.d, a.d] %}{% endfor %}{{ a.d == a.d }}",
		"recursion":    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
		"branching":    "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(60) }}",
		"brackets":     "{{ " + nested + " }}",
		"nots":         "{{ " + strings.Repeat("not ", 5000) + "1 }}",
		"minuses":      "{{ " + strings.Repeat("- ", 5000) + "1 }}",
		"ifs":          strings.Repeat("{% if 1 %}", 5000) + strings.Repeat("{% endif %}", 5000),
		"pluses":       "{{ 1" + strings.Repeat(" + 1", 50000) + " }}",
		"dots":         "{{ a" + strings.Repeat(".a", 50000) + " }}",
		"filters":      "{{ 1" + strings.Repeat("|string", 50000) + " }}",
		"size":         strings.Repeat(" ", MaxSource+1),
		"power":        "{{ 9 ** 999999999 }}",
		"include":      "{% include '/etc/passwd' %}",
		"import":       "{% import 'x' as y %}",
		"attributes":   "{{ ''.__class__.__mro__ }}",
		"safe":         "{{ 'a'|safe + '<' }}", // Jinja escapes the second
	} {
		// What has no limit runs for years, and the test with it.
		out, err := renderVars(t, text, []byte("{}"))
		if err == nil {
			t.Errorf("%s: no error, %d bytes", name, len(out))
		}
	}
}

// TestRaised: a template's own refusal can be told from a fault of the template.
func TestRaised(t *testing.T) {
	_, err := renderVars(t, "a\n{{ raise_exception('only ' ~ 1) }}", []byte("{}"))
	var e *Error
	if !errors.As(err, &e) || !e.Raised || e.Line != 2 || !strings.Contains(e.Text, "only 1") {
		t.Errorf("got %#v", err)
	}
}

func TestStrftime(t *testing.T) {
	got, err := renderVars(t, "{{ strftime_now('%d %b %Y, %A %-d %H:%M:%S 100%%') }}", []byte("{}"))
	if want := "04 Mar 2026, Wednesday 4 05:06:07 100%"; err != nil || got != want {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
}

func FuzzRender(f *testing.F) {
	raw, err := os.ReadFile("testdata/cases.json")
	if err != nil {
		f.Fatal(err)
	}
	var cases []renderCase
	if err := json.Unmarshal(raw, &cases); err != nil {
		f.Fatal(err)
	}
	for _, c := range cases {
		f.Add(c.Template)
	}
	vars := []byte(cases[2].Vars)
	f.Fuzz(func(t *testing.T, template string) {
		out, err := renderVars(t, template, vars) // it must return
		if err == nil && len(out) > maxBytes {
			t.Errorf("%d bytes", len(out))
		}
	})
}
