package tokenizer

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestAddedTokens: added tokens have the ids and the flag that transformers gives
// them, whatever files they stand in, and where a file states another id a note
// says so.
func TestAddedTokens(t *testing.T) {
	var cases []struct {
		Name  string
		Added []any
		Files map[string]object
	}
	raw, err := os.ReadFile(filepath.Join("testdata", "added.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &cases); err != nil {
		t.Fatal(err)
	}
	var golden map[string]map[string][2]any
	loadJSON(t, "added.json", &golden)
	moved := []string{"a gap", "two gaps, not in order", "an id of the vocabulary", "a token of the vocabulary by another id", "one text twice", "one id twice", "an empty text",
		"only in tokenizer_config.json, with a gap", "only in tokenizer_config.json, two, not in order", "another id in tokenizer_config.json",
		"another text in tokenizer_config.json", "only in added_tokens.json, with a gap",
		"described by both older places, lower id", "described by both older places, higher id"}
	for _, c := range cases {
		f := smallFolder()
		f["tokenizer.json"]["added_tokens"] = c.Added
		f["tokenizer_config.json"] = object{"tokenizer_class": "PreTrainedTokenizerFast"}
		for name, doc := range c.Files {
			f[name] = doc
		}
		f["config.json"]["vocab_size"] = 320
		v, err := readHF(objectFS(f).fs(t), "x")
		if err != nil {
			t.Errorf("%s: %v", c.Name, err)
			continue
		}
		want := golden[c.Name]
		if want == nil {
			t.Fatalf("%s: no golden values", c.Name)
		}
		n := 0
		for id, typ := range v.Types {
			if typ != TypeControl && typ != TypeUserDefined {
				continue
			}
			n++
			w, ok := want[v.Tokens[id]]
			special := typ == TypeControl
			// The stock converter takes some for special that are not marked so.
			if !ok || w[0] != float64(id) || w[1] != special && !looksSpecial(v.Tokens[id]) {
				t.Errorf("%s: token %q has id %d and special %v, want %v", c.Name, v.Tokens[id], id, special, w)
			}
		}
		if n != len(want) {
			t.Errorf("%s: %d added tokens, want %v", c.Name, n, want)
		}
		noted := slices.ContainsFunc(v.Notes, func(s string) bool { return strings.Contains(s, "counts on") })
		if noted != slices.Contains(moved, c.Name) {
			t.Errorf("%s: notes %q", c.Name, v.Notes)
		}
	}
}
