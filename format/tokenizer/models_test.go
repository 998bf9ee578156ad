package tokenizer

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The tests below need what is too large to be in the repository:
//
//	PHASECONV_MODELS          folder with NAME.gguf and, for two of the models, NAME/
//	PHASECONV_TEXT            wikitext-2-test.txt
//	PHASECONV_LLAMA_TOKENIZE  llama-tokenize of stock llama.cpp, for TestLlamaTokenize
var modelNames = []string{"smollm2-135m", "qwen2.5-coder-0.5b", "gemma3-270m"}

func env(t testing.TB, name string) string {
	t.Helper()
	v := os.Getenv(name)
	if v == "" {
		t.Skipf("NOT CHECKED: %s is not set", name)
	}
	return v
}

// modelTokenizers returns the tokenizers of one model, by where they come from.
func modelTokenizers(t testing.TB, folder, name string) map[string]*Tokenizer {
	t.Helper()
	toks := make(map[string]*Tokenizer)
	if path := filepath.Join(folder, name+".gguf"); exists(path) {
		v, err := FromGGUF(readGGUF(t, path))
		if err != nil {
			t.Fatal(err)
		}
		toks["gguf"] = mustNew(t, v)
	}
	if path := filepath.Join(folder, name); exists(path) {
		v, err := ReadHF(path)
		if err != nil {
			t.Fatal(err)
		}
		toks["hf"] = mustNew(t, v)
	}
	if len(toks) == 0 {
		t.Skipf("NOT CHECKED: %s is not in %s", name, folder)
	}
	return toks
}

func exists(path string) bool { _, err := os.Stat(path); return err == nil }

// TestModels compares hashes of ids: of the whole text, and of each hostile text.
func TestModels(t *testing.T) {
	folder := env(t, "PHASECONV_MODELS")
	text, err := os.ReadFile(env(t, "PHASECONV_TEXT"))
	if err != nil {
		t.Fatal(err)
	}
	var golden map[string]json.RawMessage
	loadJSON(t, "models.json", &golden)
	var sum string
	if err := json.Unmarshal(golden["text_sha256"], &sum); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprintf("%x", sha256.Sum256(text)); got != sum {
		t.Fatalf("PHASECONV_TEXT is another text: SHA-256 %s, want %s", got, sum)
	}
	texts, _ := hostile(t)
	for _, name := range modelNames {
		t.Run(name, func(t *testing.T) {
			var g struct {
				LlamaText   goldenIDs `json:"llama_text"`
				HFText      goldenIDs `json:"hf_text"`
				LlamaPlain  []string  `json:"llama_plain"`
				LlamaParsed []string  `json:"llama_parsed"`
				LlamaAdded  []string  `json:"llama_added"`
				// Where Hugging Face differs from llama.cpp.
				HFPlain  map[int]string `json:"hf_plain"`
				HFParsed map[int]string `json:"hf_parsed"`
			}
			if err := json.Unmarshal(golden[name], &g); err != nil {
				t.Fatal(err)
			}
			if g.HFText.n > 0 && g.HFText.digest != g.LlamaText.digest {
				t.Error("llama.cpp and Hugging Face differ on the text")
			}
			for i := range g.HFPlain {
				if explained(texts[i]) == "" {
					t.Errorf("unexplained difference from Hugging Face for %s", quote(texts[i]))
				}
			}
			for i := range g.HFParsed {
				// llama.cpp takes "</s>" for a special token wherever it is one token.
				if explained(texts[i]) == "" && !strings.Contains(texts[i], "</s>") {
					t.Errorf("unexplained difference from Hugging Face for %s", quote(texts[i]))
				}
			}
			for from, tok := range modelTokenizers(t, folder, name) {
				ids := tok.Encode(string(text), Plain)
				if !g.LlamaText.equal(ids) {
					t.Errorf("%s: the text gives %d ids, not the %d of llama.cpp", from, len(ids), g.LlamaText.n)
				}
				compared := len(ids)
				for _, m := range []struct {
					want           []string
					special, parse bool
				}{{g.LlamaPlain, false, false}, {g.LlamaParsed, false, true}, {g.LlamaAdded, true, true}} {
					for i, s := range texts {
						got := tok.Encode(s, specials(m.special, m.parse))
						compared += len(got)
						if digest(got)[:16] != m.want[i] {
							t.Errorf("%s: %t, %t, %s: %v", from, m.special, m.parse, quote(s), got[:min(100, len(got))])
						}
					}
				}
				t.Logf("%s: %d ids compared", from, compared)
			}
		})
	}
}

// TestLlamaTokenize asks llama.cpp itself.
func TestLlamaTokenize(t *testing.T) {
	program := env(t, "PHASECONV_LLAMA_TOKENIZE")
	folder, text := env(t, "PHASECONV_MODELS"), env(t, "PHASECONV_TEXT")
	data, err := os.ReadFile(text)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range modelNames {
		for _, parse := range []bool{false, true} {
			args := []string{"-m", filepath.Join(folder, name+".gguf"), "--file", text, "--ids", "--no-bos", "--no-escape",
				"--log-disable"}
			if !parse {
				args = append(args, "--no-parse-special")
			}
			out, err := exec.Command(program, args...).Output()
			if err != nil {
				t.Fatal(err)
			}
			var want []int32
			if err := json.Unmarshal(bytes.TrimSpace(out), &want); err != nil {
				t.Fatalf("%v: %.200s", err, out)
			}
			for from, tok := range modelTokenizers(t, folder, name) {
				got := tok.Encode(string(data), specials(false, parse))
				if !slices.Equal(got, want) {
					t.Errorf("%s, %s, parse %t: %d ids differ from the %d of llama-tokenize", name, from, parse, len(got), len(want))
				}
				t.Logf("%s, %s, parse %t: %d ids compared", name, from, parse, len(want))
			}
		}
	}
}
