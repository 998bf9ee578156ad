package tokenizer

import (
	"os"
	"strings"
	"testing"
)

// benchText is English of about 1 MB, or PHASECONV_TEXT.
func benchText(b *testing.B) string {
	b.Helper()
	if path := os.Getenv("PHASECONV_TEXT"); path != "" {
		data, err := os.ReadFile(path)
		if err != nil {
			b.Fatal(err)
		}
		return string(data)
	}
	texts, short := hostile(b)
	var prose []string
	for _, s := range texts[:short] {
		if len(s) > 150 && isASCII(strings.NewReplacer("“", "", "”", "").Replace(s)) {
			prose = append(prose, s)
		}
	}
	one := strings.Join(prose, "\n")
	return strings.Repeat(one, 1<<20/len(one))
}

// BenchmarkEncode measures the test vocabularies, and the real ones if
// PHASECONV_MODELS is set.
func BenchmarkEncode(b *testing.B) {
	toks := make(map[string]*Tokenizer)
	names := append([]string(nil), folders...)
	for _, name := range folders {
		toks[name] = readFolder(b, name)
	}
	if folder := os.Getenv("PHASECONV_MODELS"); folder != "" {
		for _, name := range modelNames {
			for from, tok := range modelTokenizers(b, folder, name) {
				if from == "gguf" {
					toks[name] = tok
					names = append(names, name)
				}
			}
		}
	}
	text := benchText(b)
	for _, name := range names {
		b.Run("vocab="+name, func(b *testing.B) {
			b.SetBytes(int64(len(text)))
			var ids []int32
			for b.Loop() {
				ids = toks[name].AppendEncode(ids[:0], text, Plain)
			}
		})
	}
}

// BenchmarkLongWord is the worst case of merging: one word of 100,000 letters.
func BenchmarkLongWord(b *testing.B) {
	text := strings.Repeat("the", 33333)
	for _, name := range []string{"qwen2", "spm"} {
		tok := readFolder(b, name)
		b.Run("vocab="+name, func(b *testing.B) {
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				tok.Encode(text, Plain)
			}
		})
	}
}

func BenchmarkDecode(b *testing.B) {
	tok := readFolder(b, "qwen2")
	text := benchText(b)
	ids := tok.Encode(text, Plain)
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		tok.Decode(ids)
	}
}

func BenchmarkReadHF(b *testing.B) {
	for b.Loop() {
		if _, err := ReadHF("testdata/qwen2"); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkNew(b *testing.B) {
	v := readFolder(b, "qwen2").Vocab()
	for b.Loop() {
		if _, err := New(v); err != nil {
			b.Fatal(err)
		}
	}
}
