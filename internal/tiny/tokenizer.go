package tiny

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/phaseconv/phaseconv/format/gguf"
)

// merges of the byte-level tokenizer, best first; Ġ is a space.
var merges = [][2]string{{"Ġ", "t"}, {"h", "e"}, {"Ġ", "a"}, {"i", "n"}, {"e", "r"}, {"Ġt", "he"}, {"o", "n"},
	{"r", "e"}}

// EndOfText is the id of the one special token, "<|endoftext|>"; ids below it
// are bytes and merges.
var EndOfText = 256 + len(merges)

// MinVocab is the number of tokens with a meaning; larger vocabularies are padded.
var MinVocab = EndOfText + 1

const endOfText = "<|endoftext|>"

// spelling returns how byte-level BPE spells a byte: printable Latin-1 bytes as
// themselves, the others from U+0100 on.
func spelling(b int) string {
	printable := func(b int) bool { return b >= '!' && b <= '~' || b >= 0xa1 && b <= 0xac || b >= 0xae }
	if printable(b) {
		return string(rune(b))
	}
	n := 0
	for c := range b {
		if !printable(c) {
			n++
		}
	}
	return string(rune(256 + n))
}

// tokens returns the vocabulary without padding.
func tokens() []string {
	var out []string
	for b := range 256 {
		out = append(out, spelling(b))
	}
	for _, m := range merges {
		out = append(out, m[0]+m[1])
	}
	return append(out, endOfText)
}

func writeTokenizer(t testing.TB, dir string) {
	t.Helper()
	vocab, all := map[string]int{}, tokens()
	for i, s := range all[:EndOfText] {
		vocab[s] = i
	}
	var list []string
	for _, m := range merges {
		list = append(list, m[0]+" "+m[1])
	}
	type object = map[string]any
	writeJSON(t, filepath.Join(dir, "tokenizer.json"), object{
		"version": "1.0",
		"added_tokens": []object{{"id": EndOfText, "content": endOfText, "special": true, "single_word": false,
			"lstrip": false, "rstrip": false, "normalized": false}},
		"normalizer":    nil,
		"pre_tokenizer": object{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
		"decoder":       object{"type": "ByteLevel"},
		"model":         object{"type": "BPE", "vocab": vocab, "merges": list},
	})
	writeJSON(t, filepath.Join(dir, "tokenizer_config.json"), object{"add_bos_token": false, "bos_token": endOfText,
		"eos_token": endOfText, "tokenizer_class": "GPT2Tokenizer"})
}

// tokenizerKVs describes the same tokenizer in GGUF metadata.
func tokenizerKVs(vocab int) []gguf.KV {
	all := tokens()
	types := make([]int32, vocab)
	for i := range types {
		types[i] = 1
	}
	types[EndOfText] = 3
	for i := len(all); i < vocab; i++ {
		all, types[i] = append(all, fmt.Sprintf("[PAD%d]", i)), 5
	}
	var list []string
	for _, m := range merges {
		list = append(list, m[0]+" "+m[1])
	}
	return []gguf.KV{
		gguf.Value("tokenizer.ggml.model", "gpt2"), gguf.Value("tokenizer.ggml.pre", "gpt-2"),
		gguf.Array("tokenizer.ggml.tokens", all), gguf.Array("tokenizer.ggml.token_type", types),
		gguf.Array("tokenizer.ggml.merges", list),
		gguf.Value("tokenizer.ggml.bos_token_id", uint32(EndOfText)),
		gguf.Value("tokenizer.ggml.eos_token_id", uint32(EndOfText)),
		gguf.Value("tokenizer.ggml.add_bos_token", false),
	}
}
