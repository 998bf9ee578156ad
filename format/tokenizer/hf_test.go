package tokenizer

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

// object is a JSON object under construction.
type object = map[string]any

// smallFolder is a sound byte-level BPE folder of 256 bytes, the token "ab" and
// one added token; tests change it.
func smallFolder() map[string]object {
	vocab := object{}
	for b, r := range spelling {
		vocab[string(r)] = b
	}
	vocab["ab"] = 256
	return map[string]object{
		"tokenizer.json": {
			"added_tokens":  []any{object{"id": 257, "content": "<|x|>", "special": true}},
			"normalizer":    nil,
			"pre_tokenizer": object{"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
			"model":         object{"type": "BPE", "vocab": vocab, "merges": []any{"a b"}},
		},
		"tokenizer_config.json": {"add_bos_token": false, "eos_token": "<|x|>"},
		"config.json":           {"vocab_size": 260},
	}
}

func (o objectFS) fs(t testing.TB) fstest.MapFS {
	files := make(fstest.MapFS)
	for name, content := range o {
		data, err := json.Marshal(content)
		if err != nil {
			t.Fatal(err)
		}
		files[name] = &fstest.MapFile{Data: data}
	}
	return files
}

type objectFS map[string]object

func split(regex string) object {
	return object{"type": "Split", "pattern": object{"Regex": regex}, "behavior": "Isolated", "invert": false}
}

func sequence(kind string, steps ...any) object { return object{"type": "Sequence", kind: steps} }

var digits = object{"type": "Digits", "individual_digits": true}

var rawBytes = object{"type": "ByteLevel", "add_prefix_space": false, "use_regex": false}

func TestReadHFSmall(t *testing.T) {
	v, err := readHF(objectFS(smallFolder()).fs(t), "x")
	if err != nil {
		t.Fatal(err)
	}
	if v.Model != ModelBPE || v.Pre != "gpt-2" || v.EOS != 257 || v.BOS != -1 || v.AddBOS || len(v.Tokens) != 260 ||
		v.Tokens[259] != "[PAD259]" || v.Types[259] != TypeUnused || v.Types[257] != TypeControl ||
		!slices.Equal(v.Merges, []string{"a b"}) {
		t.Errorf("%+v", v)
	}
}

func TestDetectPre(t *testing.T) {
	unfold := func(s string) string { return strings.Replace(s, reFold, reUnfold, 1) }
	for i, c := range []struct {
		pre          any
		ignoreMerges bool
		want         string // or what the error says
	}{
		{object{"type": "ByteLevel", "use_regex": true}, false, "gpt-2"},
		{object{"type": "ByteLevel"}, false, "gpt-2"},
		{sequence("pretokenizers", split(reGPT2), rawBytes), false, "gpt-2"},
		{sequence("pretokenizers", object{"type": "Digits", "individual_digits": true}, object{"type": "ByteLevel"}), false,
			"smollm"},
		{sequence("pretokenizers", split(`\p{N}`), object{"type": "ByteLevel"}), false, "smollm"},
		{sequence("pretokenizers", split(reLlama3), rawBytes), true, "llama-bpe"},
		{sequence("pretokenizers", split(unfold(reLlama3)), rawBytes), true, "llama-bpe"},
		{sequence("pretokenizers", split(reLlama3), rawBytes), false, "smaug-bpe"},
		{sequence("pretokenizers", split(reQwen2), rawBytes), false, "qwen2"},
		{sequence("pretokenizers", sequence("pretokenizers", split(reQwen2)), rawBytes), false, "qwen2"},
		{sequence("pretokenizers", split(reQwen35), rawBytes), false, "qwen35"},
		{sequence("pretokenizers", split(reTekken), rawBytes), true, "tekken"},
		{sequence("pretokenizers", split(reGPT4o), rawBytes), false, "gpt-4o"},
		{sequence("pretokenizers", object{"type": "Split", "pattern": object{"Regex": reGPT4o}, "behavior": "Removed",
			"invert": true}, rawBytes), false, "gpt-4o"},
		{sequence("pretokenizers", split(`\p{N}{1,3}`), split(reDSKana), split(reDSWords), rawBytes), false, "deepseek-v3"},
		// DeepSeek-Coder, with newlines as such and escaped, and DeepSeek LLM.
		{sequence("pretokenizers", split("[\r\n]"), split(`\s?\p{L}+`), split(`\s?\p{P}+`), split("[一-龥ࠀ-一가-\U0000d7ff]+"), digits, rawBytes), false, "deepseek-coder"},
		{sequence("pretokenizers", split(`[\r\n]`), split(`\s?\p{L}+`), split(`\s?\p{P}+`), split("[一-龥ࠀ-一가-\U0000d7ff]+"), split(`\p{N}`), rawBytes), false, "deepseek-coder"},
		{sequence("pretokenizers", split("[\r\n]"), split(`\s?`+ranges(casedLetters)), split("\\s?[!-/:-~！-／：-～‘-‟　-。]+"), split(`\s+$`), split("[一-龥ࠀ-一가-\U0000d7ff]+"), digits, rawBytes), false, "deepseek-llm"},
		{sequence("pretokenizers", split(reSeed), rawBytes), false, "seed-coder"},
		{sequence("pretokenizers", split(strings.NewReplacer(`\r`, "\r", `\n`, "\n", `{1}`, "").Replace(reSeed)), rawBytes), false, "seed-coder"},
		{sequence("pretokenizers", split(strings.NewReplacer(`\r`, "\r", `\n`, "\n").Replace(reQwen2)), rawBytes), false, "qwen2"},

		{sequence("pretokenizers", split("[\r\n]"), split(`\s?\p{L}+`), split(`\s?\p{P}+`), rawBytes), false, `\\s?\\p{P}+`},
		{sequence("pretokenizers", split(`\w+`), rawBytes), false, `\w+`},
		{sequence("pretokenizers", object{"type": "Digits", "individual_digits": false}, object{"type": "ByteLevel"}), false,
			`\\p{N}+`},
		{object{"type": "Whitespace"}, false, "Whitespace"},
		{sequence("pretokenizers", rawBytes, object{"type": "Digits"}), false, "after ByteLevel"},
		{sequence("pretokenizers", split(reQwen2)), false, "without a ByteLevel"},
		{nil, false, "without a ByteLevel"},
		{sequence("pretokenizers", object{"type": "Split", "pattern": object{"Regex": reQwen2}, "behavior": "Removed"},
			rawBytes), false, "Removed"},
		{sequence("pretokenizers", object{"type": "Split", "pattern": object{"String": " "}, "behavior": "Isolated"},
			rawBytes), false, "Split"},
	} {
		f := smallFolder()
		f["tokenizer.json"]["pre_tokenizer"] = c.pre
		f["tokenizer.json"]["model"].(object)["ignore_merges"] = c.ignoreMerges
		v, err := readHF(objectFS(f).fs(t), "x")
		var unsupported *UnsupportedError
		switch {
		case err == nil && v.Pre == c.want:
			if _, err := New(v); err != nil {
				t.Errorf("%d: %v", i, err)
			}
		case err != nil && errors.As(err, &unsupported) && strings.Contains(err.Error(), c.want):
		default:
			t.Errorf("%d: %v, want %s", i, err, c.want)
		}
	}
}

func TestReadHFErrors(t *testing.T) {
	model := func(f map[string]object) object { return f["tokenizer.json"]["model"].(object) }
	for name, c := range map[string]struct {
		change func(map[string]object)
		kind   any // *FormatError or *UnsupportedError
		say    string
	}{
		"no files": {func(f map[string]object) { clear(f) }, new(*FormatError), "neither"},
		"unigram": {func(f map[string]object) {
			model(f)["type"] = "Unigram"
			model(f)["vocab"] = []any{[]any{"a",
				-1.5}}
		}, new(*UnsupportedError), "Unigram"},
		"no model": {func(f map[string]object) { delete(f["tokenizer.json"], "model") }, new(*UnsupportedError),
			"model"},
		"no vocab": {func(f map[string]object) { delete(model(f), "vocab") }, new(*FormatError), "model.vocab"},
		"vocab id": {func(f map[string]object) { model(f)["vocab"].(object)["zz"] = -1 }, new(*FormatError), "zz"},
		"vocab id max": {func(f map[string]object) { model(f)["vocab"].(object)["zz"] = int64(1<<63 - 1) },
			new(*FormatError), "zz"},
		"vocab id float": {func(f map[string]object) { model(f)["vocab"].(object)["zz"] = 1.5 }, new(*FormatError), "1.5"},
		"vocab id twice": {func(f map[string]object) { model(f)["vocab"].(object)["zz"] = 5 }, new(*FormatError), "id 5"},
		"merge unknown":  {func(f map[string]object) { model(f)["merges"] = []any{"a c"} }, new(*FormatError), "ac"},
		"merge text":     {func(f map[string]object) { model(f)["merges"] = []any{"ab"} }, new(*FormatError), "ab"},
		"merge triple": {func(f map[string]object) { model(f)["merges"] = []any{[]any{"a", "b", "c"}} }, new(*FormatError),
			"pair"},
		"merge number": {func(f map[string]object) { model(f)["merges"] = []any{5} }, new(*FormatError), "5"},
		"suffix": {func(f map[string]object) { model(f)["end_of_word_suffix"] = "</w>" }, new(*UnsupportedError),
			"suffix"},
		"dropout": {func(f map[string]object) { model(f)["dropout"] = 0.1 }, new(*UnsupportedError), "dropout"},
		"normalizer": {func(f map[string]object) { f["tokenizer.json"]["normalizer"] = object{"type": "Lowercase"} },
			new(*UnsupportedError), "Lowercase"},
		"fallback": {func(f map[string]object) { model(f)["byte_fallback"] = true }, new(*UnsupportedError),
			"byte fallback"},
		"added id": {func(f map[string]object) {
			f["tokenizer.json"]["added_tokens"].([]any)[0].(object)["id"] = int64(1 << 62)
		}, new(*FormatError), "<|x|>"},
		"added id < 0": {func(f map[string]object) { f["tokenizer.json"]["added_tokens"].([]any)[0].(object)["id"] = -5 },
			new(*FormatError), "<|x|>"},
		"gap under added": {func(f map[string]object) { model(f)["vocab"].(object)["zz"] = 258 }, new(*FormatError),
			`which "zz" has`},
		"small": {func(f map[string]object) { f["config.json"]["vocab_size"] = 100 }, new(*FormatError),
			"vocab_size"},
		"negative": {func(f map[string]object) { f["config.json"]["vocab_size"] = -1 }, new(*FormatError),
			"vocab_size"},
		"huge": {func(f map[string]object) { f["config.json"]["vocab_size"] = int64(1) << 60 }, new(*FormatError),
			"vocab_size"},
		"config": {func(f map[string]object) { f["config.json"]["vocab_size"] = "many" }, new(*FormatError),
			"config.json"},
	} {
		f := smallFolder()
		c.change(f)
		v, err := readHF(objectFS(f).fs(t), "x")
		if err == nil || !errors.As(err, c.kind) || !strings.Contains(err.Error(), c.say) {
			t.Errorf("%s: %v, %v", name, v != nil, err)
		}
	}
	files := objectFS(smallFolder()).fs(t)
	files["tokenizer.json"].Data = files["tokenizer.json"].Data[:1000]
	var format *FormatError
	if _, err := readHF(files, "x"); !errors.As(err, &format) || format.Offset != 1000 {
		t.Errorf("truncated: %v", err)
	}
}

func TestReadHFVariants(t *testing.T) {
	bos := object{"id": 258, "content": "<b>", "special": true}
	template := func(first, last string) object {
		parts := []any{object{"Sequence": object{"id": "A"}}}
		if first != "" {
			parts = append([]any{object{"SpecialToken": object{"id": first}}}, parts...)
		}
		if last != "" {
			parts = append(parts, object{"SpecialToken": object{"id": last}})
		}
		return sequence("processors", object{"type": "ByteLevel"}, object{"type": "TemplateProcessing", "single": parts})
	}
	for name, c := range map[string]struct {
		change func(f map[string]object)
		check  func(v *Vocab) bool
	}{
		"template adds BOS": {func(f map[string]object) {
			f["tokenizer.json"]["added_tokens"] = append(f["tokenizer.json"]["added_tokens"].([]any), bos)
			f["tokenizer.json"]["post_processor"] = template("<b>", "")
			delete(f["tokenizer_config.json"], "add_bos_token")
		}, func(v *Vocab) bool { return v.AddBOS && v.BOS == 258 && !v.AddEOS }},
		"Roberta": {func(f map[string]object) {
			f["tokenizer.json"]["added_tokens"] = append(f["tokenizer.json"]["added_tokens"].([]any), bos)
			f["tokenizer.json"]["post_processor"] = object{"type": "RobertaProcessing", "cls": []any{"<b>", 258},
				"sep": []any{"<|x|>", 257}}
			delete(f["tokenizer_config.json"], "add_bos_token")
		}, func(v *Vocab) bool { return v.AddBOS && v.BOS == 258 && v.AddEOS && v.EOS == 257 }},
		"template starts otherwise": {func(f map[string]object) {
			f["tokenizer.json"]["added_tokens"] = append(f["tokenizer.json"]["added_tokens"].([]any), bos)
			f["tokenizer.json"]["post_processor"] = template("<b>", "")
			f["tokenizer_config.json"] = object{"bos_token": "<|x|>"}
		}, func(v *Vocab) bool { return !v.AddBOS && v.BOS == 257 && strings.Contains(fmt.Sprint(v.Notes), "<b>") }},
		"config overrules it": {func(f map[string]object) {
			f["tokenizer.json"]["added_tokens"] = append(f["tokenizer.json"]["added_tokens"].([]any), bos)
			f["tokenizer.json"]["post_processor"] = template("<b>", "")
		}, func(v *Vocab) bool { return !v.AddBOS && v.BOS == 258 }},
		"template ends otherwise": {func(f map[string]object) {
			f["tokenizer.json"]["added_tokens"] = append(f["tokenizer.json"]["added_tokens"].([]any), bos)
			f["tokenizer.json"]["post_processor"] = template("", "<b>")
		}, func(v *Vocab) bool { return v.AddEOS && v.EOS == 258 && v.Extra[keyEOT] == 257 }},
		"llama pattern without BOS": {func(f map[string]object) {
			f["tokenizer.json"]["pre_tokenizer"] = sequence("pretokenizers", split(reLlama3), rawBytes)
			f["tokenizer.json"]["model"].(object)["ignore_merges"] = true
			delete(f["tokenizer_config.json"], "add_bos_token")
		}, func(v *Vocab) bool { return !v.AddBOS && strings.Contains(fmt.Sprint(v.Notes), "BOS") }},
		"a BOS that is nowhere": {func(f map[string]object) { f["tokenizer_config.json"]["add_bos_token"] = true },
			func(v *Vocab) bool { return !v.AddBOS && strings.Contains(fmt.Sprint(v.Notes), "BOS") }},
		"list of EOS": {func(f map[string]object) {
			delete(f["tokenizer_config.json"], "eos_token")
			f["config.json"]["eos_token_id"] = []any{256, 257}
		}, func(v *Vocab) bool { return v.EOS == 256 }},
		"generation_config": {func(f map[string]object) {
			delete(f["tokenizer_config.json"], "eos_token")
			f["generation_config.json"] = object{"eos_token_id": 257, "pad_token_id": 3}
		}, func(v *Vocab) bool { return v.EOS == 257 && v.PAD == 3 }},
		"special_tokens_map": {func(f map[string]object) {
			f["special_tokens_map.json"] = object{"pad_token": object{"content": "<|x|>"}, "unk_token": nil}
		}, func(v *Vocab) bool { return v.PAD == 257 && v.UNK == -1 }},
		"text_config": {func(f map[string]object) {
			f["config.json"] = object{"text_config": object{"vocab_size": 300, "bos_token_id": 1}}
		},
			func(v *Vocab) bool { return len(v.Tokens) == 300 && v.BOS == 1 }},
		"no config.json": {func(f map[string]object) { delete(f, "config.json") },
			func(v *Vocab) bool { return len(v.Tokens) == 258 }},
		"added beyond the model": {func(f map[string]object) { f["config.json"]["vocab_size"] = 257 },
			func(v *Vocab) bool { return len(v.Tokens) == 257 && strings.Contains(fmt.Sprint(v.Notes), "<|x|>") }},
		"user-defined": {func(f map[string]object) {
			f["tokenizer.json"]["added_tokens"] = []any{object{"id": 257, "content": "▁▁t"},
				object{"id": 258, "content": "<|y|>"}, object{"id": 259, "content": ""}}
			delete(f["tokenizer_config.json"], "eos_token")
		}, func(v *Vocab) bool {
			return v.Tokens[257] == "  t" && v.Types[257] == TypeUserDefined && v.Types[258] == TypeControl &&
				v.Types[259] == TypeUnused
		}},
		"flags": {func(f map[string]object) { f["tokenizer.json"]["added_tokens"].([]any)[0].(object)["lstrip"] = true },
			func(v *Vocab) bool { return strings.Contains(fmt.Sprint(v.Notes), "lstrip") }},
		"space in a merge": {func(f map[string]object) {
			m := f["tokenizer.json"]["model"].(object)
			m["vocab"].(object)[" b"] = 257
			m["vocab"].(object)["a b"] = 258
			f["tokenizer.json"]["added_tokens"].([]any)[0].(object)["id"] = 259
			m["merges"] = []any{[]any{"a", " b"}}
		}, func(v *Vocab) bool { return v.Merges[0] == "a Ġb" }},
		"DeepSeek LLM with merged digits": {func(f map[string]object) {
			f["tokenizer.json"]["pre_tokenizer"] = sequence("pretokenizers", split("[\r\n]"), split(`\s?`+ranges(casedLetters)), split(`\s?`+ranges(llmPunctuation)),
				split(`\s+$`), split(ranges(cjk)), digits, rawBytes)
			m := f["tokenizer.json"]["model"].(object)
			m["vocab"].(object)["12"] = 257
			f["tokenizer.json"]["added_tokens"].([]any)[0].(object)["id"] = 258
			m["merges"] = []any{"1 2"}
		}, func(v *Vocab) bool {
			return v.Pre == "deepseek-llm" && strings.Contains(fmt.Sprint(v.Notes), "join digits")
		}},
		"NFC": {func(f map[string]object) {
			f["tokenizer.json"]["normalizer"] = sequence("normalizers", object{"type": "NFC"})
		},
			func(v *Vocab) bool { return strings.Contains(fmt.Sprint(v.Notes), "NFC") }},
		"templates": {func(f map[string]object) {
			f["tokenizer_config.json"]["chat_template"] = []any{object{"name": "default", "template": "A"},
				object{"name": "rag/x", "template": "B"}}
		}, func(v *Vocab) bool { return v.ChatTemplate == "A" && v.ChatTemplates["rag_x"] == "B" }},
		"template in a file": {func(f map[string]object) { f["chat_template.json"] = object{"chat_template": "C"} },
			func(v *Vocab) bool { return v.ChatTemplate == "C" }},
	} {
		f := smallFolder()
		c.change(f)
		v, err := readHF(objectFS(f).fs(t), "x")
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !c.check(v) {
			v.Tokens, v.Types, v.Merges = v.Tokens[256:], v.Types[256:], v.Merges[:min(3, len(v.Merges))]
			t.Errorf("%s: %+v", name, v)
		}
	}
}

// TestSentencePieceOnly reads a folder that has tokenizer.model alone.
func TestSentencePieceOnly(t *testing.T) {
	whole := readFolder(t, "spm").Vocab()
	files := testFiles(t, "spm", "tokenizer.model", "tokenizer_config.json", "config.json")
	v, err := readHF(files, "spm")
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(v.Tokens, whole.Tokens) || !slices.Equal(v.Types, whole.Types) ||
		!slices.Equal(v.Scores, whole.Scores) ||
		v.BOS != whole.BOS || v.EOS != whole.EOS || v.AddSpacePrefix != whole.AddSpacePrefix || v.AddBOS != whole.AddBOS {
		t.Error("tokenizer.json makes a difference")
	}
	// The oldest layout: names of added tokens in a file of their own.
	files = testFiles(t, "spm", "tokenizer.model")
	files["added_tokens.json"] = &fstest.MapFile{Data: []byte(`{"<|new|>": 900}`)}
	v, err = readHF(files, "spm")
	if err != nil {
		t.Fatal(err)
	}
	if v.Tokens[900] != "<|new|>" || v.Types[900] != TypeControl || v.BOS != 1 || v.EOS != 2 || !v.AddBOS {
		t.Errorf("%q %d %d %d %t", v.Tokens[900], v.Types[900], v.BOS, v.EOS, v.AddBOS)
	}
}

// TestSentencePieceSpec reads what only tokenizer.model says when it is alone.
func TestSentencePieceSpec(t *testing.T) {
	v, err := readHF(testFiles(t, "gemma", "tokenizer.model"), "gemma")
	if err != nil {
		t.Fatal(err)
	}
	if v.UNK != 3 || v.BOS != 2 || v.EOS != 1 || v.PAD != 0 || v.AddSpacePrefix || v.RemoveExtraWhitespaces || !v.AddBOS {
		v.Tokens, v.Scores, v.Types = nil, nil, nil
		t.Errorf("%+v", v)
	}
	kinds := map[string]int32{"<unk>": TypeUnknown, "<bos>": TypeControl, "<0x00>": TypeByte, "\n\n": TypeUserDefined,
		"  ": TypeUserDefined, "e": TypeNormal}
	for i, text := range v.Tokens {
		if want, ok := kinds[text]; ok && v.Types[i] != want {
			t.Errorf("%q has type %d, want %d", text, v.Types[i], want)
		}
		delete(kinds, text)
	}
	if len(kinds) > 0 {
		t.Errorf("no tokens %v", kinds)
	}
}

func TestBadSentencePiece(t *testing.T) {
	good := testFiles(t, "spm", "tokenizer.model")["tokenizer.model"].Data
	for name, data := range map[string][]byte{
		"empty": nil, "text": []byte("hello world, this is not it"), "truncated": good[:len(good)/2+3],
		"type": {0x0A, 4, 0x0A, 0, 0x18, 9}, "length": {0x0A, 0xFF, 0xFF, 0xFF, 0xFF, 0x0F}, "group": {0x0B},
	} {
		var format *FormatError
		if _, err := parseSentencePiece("x", data); !errors.As(err, &format) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A piece and trainer_spec.model_type 1.
	unigram := []byte{0x0A, 3, 0x0A, 1, 'a', 0x12, 2, 0x18, 1}
	var unsupported *UnsupportedError
	if _, err := readHF(fstest.MapFS{"tokenizer.model": {Data: unigram}}, "x"); !errors.As(err, &unsupported) {
		t.Errorf("unigram: %v", err)
	}
}

// TestMetaspace: what says whether a space is put before the text.
func TestMetaspace(t *testing.T) {
	replace := object{"type": "Replace", "pattern": object{"String": " "}, "content": metaspace}
	prepend := object{"type": "Prepend", "prepend": metaspace}
	meta := func(more object) object {
		o := object{"type": "Metaspace", "replacement": metaspace}
		for k, v := range more {
			o[k] = v
		}
		return o
	}
	for i, c := range []struct {
		normalizer, pre any
		config          any // add_prefix_space
		want            any // bool, or what the error says
	}{
		{replace, nil, nil, false},
		{sequence("normalizers", prepend, replace), nil, nil, true},
		{sequence("normalizers", prepend, replace), nil, false, false},
		{sequence("normalizers", object{"type": "NFC"}, replace), nil, true, true},
		{nil, meta(object{"prepend_scheme": "always"}), nil, true},
		{nil, meta(object{"prepend_scheme": "first", "split": false}), nil, true},
		{nil, meta(object{"prepend_scheme": "never"}), nil, false},
		{nil, meta(object{"add_prefix_space": true}), nil, true},
		{nil, meta(object{"add_prefix_space": false}), nil, false},
		{replace, object{"type": "Split", "pattern": object{"String": " "}, "behavior": "MergedWithPrevious"}, nil, false},
		{nil, nil, nil, "U+2581"},
		{object{"type": "NFKC"}, meta(nil), nil, "NFKC"},
		{replace, object{"type": "Whitespace"}, nil, "Whitespace"},
	} {
		f := smallFolder()
		f["tokenizer.json"]["normalizer"], f["tokenizer.json"]["pre_tokenizer"] = c.normalizer, c.pre
		f["tokenizer.json"]["model"].(object)["byte_fallback"] = true
		f["tokenizer_config.json"]["add_prefix_space"] = c.config
		v, err := readHF(objectFS(f).fs(t), "x")
		if say, ok := c.want.(string); ok {
			if err == nil || !strings.Contains(err.Error(), say) {
				t.Errorf("%d: %v, want %s", i, err, say)
			}
		} else if err != nil || v.AddSpacePrefix != c.want {
			t.Errorf("%d: %v, want %v", i, err, c.want)
		}
	}
}

// TestIncompleteMerges: where merges leave out a way to make a token, scores
// cannot say so, and a note has to.
func TestIncompleteMerges(t *testing.T) {
	f := smallFolder()
	f["tokenizer.json"]["normalizer"] = object{"type": "Replace", "pattern": object{"String": " "}, "content": metaspace}
	f["tokenizer.json"]["pre_tokenizer"] = nil
	f["tokenizer.json"]["model"] = object{"type": "BPE", "byte_fallback": true, "unk_token": "<unk>",
		"vocab":  object{"<unk>": 0, "a": 1, "b": 2, "c": 3, "ab": 4, "bc": 5, "abc": 6, "<0x41>": 7},
		"merges": []any{"b c", "a b", "ab c"}}
	f["tokenizer.json"]["added_tokens"].([]any)[0].(object)["id"] = 8
	delete(f, "config.json")
	v, err := readHF(objectFS(f).fs(t), "x")
	if err != nil {
		t.Fatal(err)
	}
	if len(v.Notes) != 1 || !strings.HasPrefix(v.Notes[0], "1 pairs") {
		t.Errorf("notes %q", v.Notes)
	}
	if v.AddSpacePrefix || v.UNK != 0 || v.Types[0] != TypeUnknown || v.Types[7] != TypeByte ||
		v.Scores[5] <= v.Scores[4] || v.Scores[4] <= v.Scores[6] || v.Scores[6] <= v.Scores[1] {
		t.Errorf("%+v", v)
	}
}
