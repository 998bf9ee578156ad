package tokenizer

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"unicode/utf8"
)

// checkError fails for errors that are not of this package's types.
func checkError(t *testing.T, err error) {
	t.Helper()
	var format *FormatError
	var unsupported *UnsupportedError
	if !errors.As(err, &format) && !errors.As(err, &unsupported) {
		t.Fatalf("%T: %v", err, err)
	}
}

// FuzzEncode: any bytes are encoded, to ids of the vocabulary, and valid text
// comes back, for each of the test vocabularies.
func FuzzEncode(f *testing.F) {
	texts, short := hostile(f)
	for _, s := range texts[:short] {
		f.Add(s, true)
	}
	var toks []*Tokenizer
	for _, name := range folders {
		toks = append(toks, readFolder(f, name))
	}
	f.Fuzz(func(t *testing.T, text string, parse bool) {
		for _, tok := range toks {
			ids := tok.Encode(text, specials(false, parse))
			for _, id := range ids {
				if id < 0 || int(id) >= len(tok.Vocab().Tokens) {
					t.Fatalf("id %d", id)
				}
			}
			want := text
			if tok.Vocab().Model == ModelSPM {
				if strings.Contains(text, metaspace) {
					continue // decodes to a space
				}
			} else {
				want = sanitize(text)
			}
			if tok.Vocab().Model == ModelSPM && !utf8.ValidString(text) {
				continue // a stray lead byte can swallow the start of U+2581
			}
			if parse && !utf8.ValidString(text) {
				continue // special tokens are cut out before text is sanitized
			}
			if got := string(tok.Decode(ids)); got != want {
				t.Fatalf("%q came back as %q", want, got)
			}
		}
	})
}

// FuzzSplit: all splitters cut text into pieces that cover it, and leave none empty.
func FuzzSplit(f *testing.F) {
	texts, short := hostile(f)
	for _, s := range texts[:short] {
		f.Add(s)
	}
	table := newClassTable()
	f.Fuzz(func(t *testing.T, text string) {
		text = sanitize(text)
		for name, p := range preTokenizers {
			var pieces []string
			p.splitter.split(table, text, func(s string) { pieces = append(pieces, s) })
			if got := strings.Join(pieces, ""); got != text {
				t.Fatalf("%s: %q is not %q", name, got, text)
			}
			if slices.Contains(pieces, "") {
				t.Fatalf("%s: %q has an empty piece", name, pieces)
			}
		}
	})
}

// FuzzReadHF: no tokenizer.json and no configuration beside it makes the reader
// or the tokenizer it leads to panic.
func FuzzReadHF(f *testing.F) {
	small := objectFS(smallFolder()).fs(f)
	f.Add(small["tokenizer.json"].Data, small["tokenizer_config.json"].Data, small["config.json"].Data)
	for _, tok := range []string{
		`{"model":{"type":"BPE","vocab":{"a":0,"b":1,"ab":2},"merges":[["a","b"]]},"pre_tokenizer":{"type":"ByteLevel"}}`,
		`{"model":{"type":"BPE","byte_fallback":true,"vocab":{"▁":0,"a":1,"▁a":2,"<0x00>":3},"merges":["▁ a"]},"normalizer":{"type":"Replace","pattern":{"String":" "},"content":"▁"}}`,
		`{"model":{"type":"BPE","byte_fallback":true,"vocab":{"":0}},"pre_tokenizer":{"type":"Metaspace","replacement":"▁"},"added_tokens":[{"id":3,"content":"x"}]}`,
	} {
		f.Add([]byte(tok), []byte(`{"add_bos_token":true,"bos_token":{"content":"a"},"chat_template":[{"name":"default","template":"x"}]}`), []byte(`{"vocab_size":8,"eos_token_id":[1,2]}`))
	}
	f.Fuzz(func(t *testing.T, tokenizer, tokenizerConfig, config []byte) {
		v, err := readHF(fstest.MapFS{"tokenizer.json": {Data: tokenizer}, "tokenizer_config.json": {Data: tokenizerConfig},
			"config.json": {Data: config}}, "x")
		if err != nil {
			checkError(t, err)
			return
		}
		tok, err := New(v)
		if err != nil {
			checkError(t, err)
			return
		}
		tok.Decode(tok.Encode("a ab\xff<s> 12\n\x00é", AddSpecial|ParseSpecial))
		v.KeyValues()
	})
}

// FuzzSentencePiece: the same for tokenizer.model.
func FuzzSentencePiece(f *testing.F) {
	good := testFiles(f, "spm", "tokenizer.model")["tokenizer.model"].Data
	f.Add(good[:2000])
	f.Add([]byte{0x0A, 3, 0x0A, 1, 'a', 0x12, 2, 0x18, 2, 0x1A, 2, 0x18, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		v, err := readHF(fstest.MapFS{"tokenizer.model": {Data: data}}, "x")
		if err != nil {
			checkError(t, err)
			return
		}
		tok, err := New(v)
		if err != nil {
			checkError(t, err)
			return
		}
		tok.Decode(tok.Encode("a ab\xff<s> 12\n\x00é", AddSpecial|ParseSpecial))
	})
}

// FuzzMerges: any vocabulary of the three models encodes, with both ways to merge.
func FuzzMerges(f *testing.F) {
	f.Add("a\nb\nab\nabc\n▁a\n<0x41>", "a b\nab c\n▁ a", "abcab c", uint8(0))
	f.Add("!\n!!\n!!!!", "! !\n!! !!", strings.Repeat("!", 50), uint8(1))
	f.Fuzz(func(t *testing.T, tokens, merges, text string, kind uint8) {
		v := &Vocab{Model: []string{ModelBPE, ModelGemma4, ModelSPM}[kind%3], Pre: "gpt-2", BOS: -1, EOS: -1, UNK: -1,
			PAD:    -1,
			Tokens: strings.Split(tokens, "\n"), AddSpacePrefix: kind&4 != 0}
		if v.Model == ModelGemma4 {
			v.Pre = "gemma4"
		}
		if v.Model == ModelSPM {
			for i := range v.Tokens {
				v.Scores = append(v.Scores, float32(-(i % 7)))
			}
		} else if merges != "" {
			v.Merges = strings.Split(merges, "\n")
		}
		tok, err := New(v)
		if err != nil {
			checkError(t, err)
			return
		}
		tok.Decode(tok.Encode(text, ParseSpecial))
		tok.Encode(strings.Repeat(text, 40)[:min(40*len(text), 2000)], AddSpecial)
	})
}
