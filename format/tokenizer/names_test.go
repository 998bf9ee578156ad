package tokenizer

import (
	"reflect"
	"strings"
	"testing"
	"testing/fstest"
)

// A member of a file counts under its own name only, and NaN or Infinity where
// nothing asks for a number, as Python writes them, do not matter.
func TestNamesInAnotherCase(t *testing.T) {
	folder := func() map[string]object {
		f := smallFolder()
		f["generation_config.json"] = object{"eos_token_id": 257}
		f["special_tokens_map.json"] = object{"pad_token": "<|x|>"}
		f["added_tokens.json"] = object{"<|x|>": 257}
		return f
	}
	want, err := readHF(objectFS(folder()).fs(t), "x")
	if err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]func(f map[string]object){
		"vocab size":         func(f map[string]object) { f["config.json"]["VOCAB_SIZE"] = 300 },
		"bos":                func(f map[string]object) { f["config.json"]["BOS_token_id"] = 5 },
		"text_config":        func(f map[string]object) { f["config.json"]["Text_Config"] = object{"bos_token_id": 5} },
		"generation":         func(f map[string]object) { f["generation_config.json"]["Bos_Token_Id"] = 5 },
		"bos token":          func(f map[string]object) { f["tokenizer_config.json"]["Bos_Token"] = "ab" },
		"add bos":            func(f map[string]object) { f["tokenizer_config.json"]["ADD_BOS_TOKEN"] = true },
		"template":           func(f map[string]object) { f["tokenizer_config.json"]["Chat_Template"] = "hello" },
		"added":              func(f map[string]object) { f["tokenizer.json"]["Added_Tokens"] = []any{} },
		"normalizer":         func(f map[string]object) { f["tokenizer.json"]["Normalizer"] = object{"type": "Lowercase"} },
		"pre-tokenizer":      func(f map[string]object) { f["tokenizer.json"]["PRE_TOKENIZER"] = object{"type": "Whitespace"} },
		"merges":             func(f map[string]object) { f["tokenizer.json"]["model"].(object)["MERGES"] = []any{"b a"} },
		"byte_fallback":      func(f map[string]object) { f["tokenizer.json"]["model"].(object)["Byte_Fallback"] = true },
		"vocab":              func(f map[string]object) { f["tokenizer.json"]["model"].(object)["Vocab"] = object{} },
		"flag of a token":    func(f map[string]object) { f["tokenizer.json"]["added_tokens"].([]any)[0].(object)["Special"] = false },
		"content of a token": func(f map[string]object) { f["tokenizer.json"]["added_tokens"].([]any)[0].(object)["CONTENT"] = "y" },
		"special map":        func(f map[string]object) { f["special_tokens_map.json"]["PAD_TOKEN"] = "ab" },
		"prefix space":       func(f map[string]object) { f["tokenizer.json"]["pre_tokenizer"].(object)["Use_Regex"] = false },
	} {
		f := folder()
		change(f)
		if got, err := readHF(objectFS(f).fs(t), "x"); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v, %+v", what, err, got)
		}
	}
	for name := range folder() {
		files := objectFS(folder()).fs(t)
		text := strings.TrimSuffix(string(files[name].Data), "}")
		if name == "added_tokens.json" {
			continue // every member is a token
		}
		files[name] = &fstest.MapFile{Data: []byte(text + `, "model_max_length": Infinity, "x": [NaN, -Infinity]}`)}
		if got, err := readHF(files, "x"); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("NaN in %s: %v, %+v", name, err, got)
		}
	}
	files := objectFS(folder()).fs(t)
	files["config.json"] = &fstest.MapFile{Data: []byte(`{"vocab_size": NaN}`)}
	if _, err := readHF(files, "x"); err == nil || !strings.Contains(err.Error(), "vocab_size: NaN") {
		t.Errorf("vocab_size NaN: %v", err)
	}
	files = objectFS(folder()).fs(t)
	files["generation_config.json"] = &fstest.MapFile{Data: []byte(`{"eos_token_id": -Infinity}`)}
	if _, err := readHF(files, "x"); err == nil || !strings.Contains(err.Error(), "eos_token_id: -Infinity") {
		t.Errorf("eos_token_id -Infinity: %v", err)
	}
	// Of two equal names the last counts, as in the reference readers.
	files = objectFS(folder()).fs(t)
	files["config.json"] = &fstest.MapFile{Data: []byte(`{"vocab_size": 300, "vocab_size": 260}`)}
	if got, err := readHF(files, "x"); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("vocab_size twice: %v", err)
	}
}
