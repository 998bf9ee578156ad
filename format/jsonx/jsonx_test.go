package jsonx

import (
	"encoding/json"
	"errors"
	"os/exec"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"
)

type inner struct {
	Factor *float64 `json:"factor"`
	Kind   string   `json:"type"`
}

type target struct {
	Theta  *float64           `json:"rope_theta"`
	Eps    float64            `json:"rms_norm_eps"`
	Layers int                `json:"num_hidden_layers"`
	Tied   *bool              `json:"tie_word_embeddings"`
	Scale  *inner             `json:"rope_scaling"`
	Raw    json.RawMessage    `json:"raw"`
	List   []inner            `json:"list"`
	Pair   [2]int             `json:"pair"`
	Map    map[string]float64 `json:"map"`
	Any    any                `json:"any"`
	Upper  json.Number        `json:"-"`
}

func decode(t *testing.T, text string) target {
	t.Helper()
	var v target
	if err := Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return v
}

// A name in another case is another name.
func TestExactNames(t *testing.T) {
	v := decode(t, `{"rope_theta": 1e4, "ROPE_THETA": 77, "Rope_Theta": "x", "Tie_Word_Embeddings": true,
		"rope_scaling": {"factor": 2, "FACTOR": 8, "Type": "yarn"}, "RMS_NORM_EPS": 1, "num_hidden_layerſ": 9}`)
	if *v.Theta != 1e4 || v.Tied != nil || *v.Scale.Factor != 2 || v.Scale.Kind != "" || v.Eps != 0 || v.Layers != 0 {
		t.Errorf("names in another case count: %+v, %+v", v, v.Scale)
	}
}

// The last of two equal names counts, and nothing of the first stays.
func TestDuplicates(t *testing.T) {
	const text = `{"rope_theta": 3, "rope_scaling": {"factor": 2, "type": "yarn"}, "rope_theta": 5, "rope_scaling": {"type": "linear"},
		"num_hidden_layers": 4, "num_hidden_layers": null, "map": {"a": 1, "b": 2, "a": 3}, "map": {"c": 1, "c": 2}}`
	v := decode(t, text)
	if *v.Theta != 5 || v.Scale.Factor != nil || v.Scale.Kind != "linear" || v.Layers != 0 || !reflect.DeepEqual(v.Map, map[string]float64{"c": 2}) {
		t.Errorf("got %+v, %+v", v, v.Scale)
	}
	var w target
	if err := UnmarshalStrict([]byte(text), &w); err == nil || !strings.Contains(err.Error(), "twice") {
		t.Errorf("strictly: %v", err)
	}
	if err := UnmarshalStrict([]byte(`{"map": {"a": 1, "a": 1}}`), &w); err == nil || !strings.Contains(err.Error(), "map.a") {
		t.Errorf("strictly, in a map: %v", err)
	}
	if err := UnmarshalStrict([]byte(`{"rope_scaling": {"Factor": 1}}`), &w); err == nil || !strings.Contains(err.Error(), "rope_scaling.Factor") {
		t.Errorf("strictly, a name that is not known: %v", err)
	}
}

// Python's literals are read over where nothing asks for them.
func TestNotFinite(t *testing.T) {
	v := decode(t, `{"time_step_limit": [0.0, Infinity, {"x": -Infinity}], "raw": {"y": [NaN]}, "rope_theta": 2, "z": NaN}`)
	if *v.Theta != 2 || string(v.Raw) != `{"y": [NaN]}` {
		t.Errorf("got %+v", v)
	}
	for text, want := range map[string]string{
		`{"rms_norm_eps": NaN}`:                  "rms_norm_eps: NaN",
		`{"rope_scaling": {"factor": Infinity}}`: "rope_scaling.factor: Infinity",
		`{"list": [{}, {"factor": -Infinity}]}`:  "list[1].factor: -Infinity",
		`{"num_hidden_layers": Infinity}`:        "num_hidden_layers",
		`{"map": {"a": NaN}}`:                    "map.a",
		`{"any": [NaN]}`:                         "any[0]",
		`{"rms_norm_eps": 1e999}`:                "out of range",
		`{"rope_scaling": {"type": NaN}}`:        "rope_scaling.type",
		`{"tie_word_embeddings": NaN}`:           "tie_word_embeddings",
		`{"unused": nan}`:                        "value is expected",
		`{"unused": +Infinity}`:                  "value is expected",
		`{"unused": -infinity}`:                  "digit is expected",
		`{"num_hidden_layers": 1.5}`:             "num_hidden_layers: a whole number",
		`{"num_hidden_layers": "2"}`:             "found a text",
		`{"rope_scaling": []}`:                   "rope_scaling: an object",
		`{"list": {}}`:                           "list: a list",
		`{"pair": [1]}`:                          "pair",
		`{"pair": [1, 2, 3]}`:                    "pair",
		`{"rope_theta": 1} {}`:                   "follows",
		"\xef\xbb\xbf{}":                         "byte order mark",
		"{\"a\": \"\xff\"}":                      "UTF-8",
		`{"x": ` + strings.Repeat("[", 2000):     "deeper",
		`{"a": ` + strings.Repeat(`{"a":`, 2000): "deeper",
		`{"a" 1}`:                                "colon",
		`{"a": "` + "\n" + `"}`:                  "control character",
		`{"a": "\q"}`:                            "escape",
		`{"a": 01}`:                              "comma",
		`{"rope_theta": 1`:                       "text ends",
		``:                                       "text ends",
	} {
		var v target
		var e *Error
		if err := Unmarshal([]byte(text), &v); !errors.As(err, &e) || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60s: %v, expected an error with %q", text, err, want)
		}
	}
	var w target
	if err := UnmarshalStrict([]byte(`{"raw": NaN}`), &w); err == nil {
		t.Error("our own files may hold NaN")
	}
}

// A field without a name in its tag would be looked up by its Go name.
func TestTagNeeded(t *testing.T) {
	var v struct{ Type string }
	if err := Unmarshal([]byte(`{"type": "x"}`), &v); err == nil || !strings.Contains(err.Error(), "tag") {
		t.Errorf("%+v, %v", v, err)
	}
}

var samples = []string{
	`{}`, `[]`, ` null `, `-0.5e-3`, `"a\u00e9\n\"\\\ud83d\ude00"`, `{"a": [1, 2.5, {"b": null}], "c": true, "a": false}`,
	`[1,]`, `{"a":1,}`, `{,}`, `[1 2]`, `"\ud800"`, `1e400`, `--1`, `1.`, `.5`, `tru`, `nullx`, `[[[[]]]]`, "\"\u007f\"", `{"":0}`, `"\`,
}

// FuzzAgainstStandard: what encoding/json reads we read to the same values, and what
// it refuses we refuse, but for Python's three literals.
func FuzzAgainstStandard(f *testing.F) {
	for _, s := range samples {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var want, got any
		wantErr, gotErr := json.Unmarshal(data, &want), Unmarshal(data, &got)
		s := string(data)
		if !utf8.Valid(data) || strings.Count(s, "[")+strings.Count(s, "{") > maxDepth {
			return
		}
		if (wantErr == nil) != (gotErr == nil) || wantErr == nil && !reflect.DeepEqual(want, got) {
			t.Errorf("%q: %v, %v; encoding/json has %v, %v", data, got, gotErr, want, wantErr)
		}
		var raw json.RawMessage
		odd := strings.Contains(s, "NaN") || strings.Contains(s, "Infinity")
		if err := Unmarshal(data, &raw); !odd && (err == nil) != json.Valid(data) {
			t.Errorf("%q: %v, but valid is %t", data, err, json.Valid(data))
		}
	})
}

// Python's own module takes the same texts, and the same value of two.
func TestAgainstPython(t *testing.T) {
	if _, err := exec.LookPath("python3"); err != nil {
		t.Skip("no python3")
	}
	for text, want := range map[string]bool{
		`{"a": 1, "A": 2, "a": 3}`: true, `{"a": 3, "x": NaN}`: true, `{"x": -Infinity, "a": 3}`: true, `{"a": 3, "x": +Infinity}`: false,
		`{"a": 3, "x": nan}`: false, "\xef\xbb\xbf{\"a\": 3}": false, `{"a": 3,}`: false, `{"a": 3} x`: false, "{\"a\": 3, \"x\": \"\t\"}": false,
		"{\"a\": 3, \"x\": \"\xff\"}": false,
	} {
		cmd := exec.Command("python3", "-c", "import json,sys; assert json.loads(sys.stdin.buffer.read().decode('utf-8'))['a'] == 3")
		cmd.Stdin = strings.NewReader(text)
		var v struct {
			A int `json:"a"`
		}
		python, err := cmd.Run() == nil, Unmarshal([]byte(text), &v)
		if python != want || (err == nil && v.A == 3) != want {
			t.Errorf("%q: Python reads it: %t; we: %v, %+v; expected %t", text, python, err, v, want)
		}
	}
}
