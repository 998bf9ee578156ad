package tokenizer

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"unicode"
	"unicode/utf8"
)

// Folders below testdata with a tokenizer each; testdata/gen.py made them and
// what llama.cpp, Hugging Face and SentencePiece say about them.
var folders = []string{"austen-moe", "llama3", "qwen2", "smollm", "spm", "gemma"}

func loadJSON(t testing.TB, name string, to any) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", "golden", name))
	if err == nil {
		err = json.Unmarshal(data, to)
	}
	if err != nil {
		t.Fatal(name, err)
	}
}

// hostile returns the texts that all golden files are about. The first of them
// are short, the rest are long runs of one unit.
func hostile(t testing.TB) (texts []string, short int) {
	t.Helper()
	var list []struct {
		Text, Hex string
		Repeat    int
	}
	loadJSON(t, "texts.json", &list)
	for _, x := range list {
		s := x.Text
		if x.Hex != "" {
			b, err := hex.DecodeString(x.Hex)
			if err != nil {
				t.Fatal(err)
			}
			s = string(b)
		}
		if x.Repeat > 0 {
			s = strings.Repeat(s, x.Repeat)
		} else {
			short++
		}
		texts = append(texts, s)
	}
	if short < 200 || len(texts)-short < 10 {
		t.Fatalf("only %d short and %d long texts", short, len(texts)-short)
	}
	return texts, short
}

// goldenIDs are token ids, or for long lists their number and digest.
type goldenIDs struct {
	ids    []int32
	n      int
	digest string
}

func (g *goldenIDs) UnmarshalJSON(data []byte) error {
	if json.Unmarshal(data, &g.ids) == nil {
		g.n, g.digest = len(g.ids), digest(g.ids)
		return nil
	}
	var o struct {
		N      int
		SHA256 string
	}
	err := json.Unmarshal(data, &o)
	g.n, g.digest = o.N, o.SHA256
	return err
}

func (g *goldenIDs) equal(ids []int32) bool { return g.n == len(ids) && g.digest == digest(ids) }

func (g *goldenIDs) String() string {
	if g.ids != nil {
		return fmt.Sprint(g.ids)
	}
	return fmt.Sprintf("%d ids", g.n)
}

func digest(ids []int32) string {
	var b bytes.Buffer
	binary.Write(&b, binary.LittleEndian, ids)
	return fmt.Sprintf("%x", sha256.Sum256(b.Bytes()))
}

func quote(s string) string { return fmt.Sprintf("%.80q (%d bytes)", s, len(s)) }

func readFolder(t testing.TB, name string) *Tokenizer {
	t.Helper()
	v, err := ReadHF(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	tok, err := New(v)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

// modes are the keys of an ids.json file.
var modes = []struct {
	key            string
	special, parse bool
}{{"plain", false, false}, {"parsed", false, true}, {"added", true, true}}

type goldenMode struct {
	Llama         []goldenIDs
	HF            map[int]goldenIDs // where Hugging Face differs from llama.cpp
	SentencePiece map[int]goldenIDs
}

// TestIDs compares with llama.cpp on the GGUF files that its own converter made
// of the folders, from the folder and from the metadata of those files.
func TestIDs(t *testing.T) {
	t.Parallel()
	texts, short := hostile(t)
	for _, name := range append([]string{"gemma4"}, folders...) {
		t.Run(name, func(t *testing.T) {
			var golden map[string]goldenMode
			loadJSON(t, name+".ids.json", &golden)
			v, err := FromGGUF(stockMetadata(t, name))
			if err != nil {
				t.Fatal(err)
			}
			toks := map[string]*Tokenizer{"gguf": mustNew(t, v)}
			if name != "gemma4" { // no folder is read as this model
				toks["folder"] = readFolder(t, name)
			}
			for from, tok := range toks {
				compared := 0
				for _, m := range modes {
					if len(golden[m.key].Llama) != len(texts) {
						t.Fatalf("%d golden entries for %d texts", len(golden[m.key].Llama), len(texts))
					}
					for i, text := range texts {
						if i >= short && (m.key != "plain" || from == "gguf" && len(toks) > 1) {
							continue // the long runs take time, and say no more here
						}
						want := golden[m.key].Llama[i]
						got := tok.Encode(text, specials(m.special, m.parse))
						compared += len(got)
						if !want.equal(got) {
							t.Errorf("%s, %s: %s\ngot  %v\nwant %v", from, m.key, quote(text), got[:min(len(got), 300)], &want)
						}
					}
				}
				t.Logf("%s: %d ids compared", from, compared)
			}
		})
	}
}

// explained says why Hugging Face may treat a text otherwise, whatever the
// vocabulary: "" if there is no reason.
func explained(text string) string {
	switch {
	case strings.ContainsAny(text, "\u1c89\U00013460"):
		return "letters of Unicode 16.0"
	case strings.Contains(text, "'ſ"):
		return "case folding beyond ASCII"
	case strings.Contains(text, "<|a|>bcdef"):
		return "overlapping special tokens"
	}
	return ""
}

// TestDifferencesFromHuggingFace holds the list of reasons for which ids differ
// from Hugging Face's: a difference without a reason fails.
func TestDifferencesFromHuggingFace(t *testing.T) {
	texts, _ := hostile(t)
	reasons := map[string]struct {
		note string
		is   func(string) bool
	}{
		"qwen2": {"NFC", func(s string) bool { return !isASCII(s) }},
		// User-defined runs of spaces are cut out first by llama.cpp and by
		// SentencePiece; Hugging Face's are spelled U+2581 and never match.
		"gemma": {"", func(s string) bool { return strings.Contains(s, "  ") || strings.Contains(s, "▁▁") }},
	}
	general := make(map[string]int)
	for _, name := range folders {
		var golden map[string]goldenMode
		loadJSON(t, name+".ids.json", &golden)
		tok := readFolder(t, name)
		for _, m := range modes {
			for i := range golden[m.key].HF {
				if why := explained(texts[i]); why != "" {
					general[why]++
					continue
				}
				r, ok := reasons[name]
				if !ok || !r.is(texts[i]) {
					t.Errorf("%s, %s: unexplained difference for %s", name, m.key, quote(texts[i]))
				} else if r.note != "" && !strings.Contains(strings.Join(tok.Vocab().Notes, " "), r.note) {
					t.Errorf("%s: no note about %s in %q", name, r.note, tok.Vocab().Notes)
				}
			}
			for i := range golden[m.key].SentencePiece {
				if name != "gemma" || !strings.Contains(texts[i], "▁▁") {
					t.Errorf("%s: unexplained difference from SentencePiece for %s", name, quote(texts[i]))
				}
			}
		}
	}
	// A reason that explains nothing any more has to go (the third is for splits).
	if len(general) != 2 {
		t.Errorf("differences by reason: %v", general)
	}
}

func isASCII(s string) bool {
	return strings.IndexFunc(s, func(c rune) bool { return c >= utf8.RuneSelf }) < 0
}

// TestSplitters compares the pieces with those of llama.cpp's own code and
// with Hugging Face's pre-tokenizers.
func TestSplitters(t *testing.T) {
	all, short := hostile(t)
	var golden struct {
		Llama map[string][][]int
		HF    map[string]map[int][]int
	}
	loadJSON(t, "splits.json", &golden)
	texts := all[:short]
	general := make(map[string]int)
	for _, name := range slices.Sorted(maps.Keys(golden.Llama)) {
		p := preTokenizers[name]
		pieces := 0
		for i, text := range texts {
			clean := sanitize(text)
			if got := pieceLengths(p.splitter, clean); !slices.Equal(got, golden.Llama[name][i]) {
				t.Errorf("%s: %s\ngot  %v\nwant %v", name, quote(text), got, golden.Llama[name][i])
			}
			pieces += len(golden.Llama[name][i])
		}
		hf, ok := golden.HF[name]
		t.Logf("%-14s %d pieces as llama.cpp; Hugging Face known: %t, differs on %d texts", name, pieces, ok, len(hf))
		for i := range hf {
			// The case-splitting patterns may differ everywhere beyond ASCII.
			cased := (name == "tekken" || name == "gpt-4o") && !isASCII(texts[i])
			why := explained(texts[i])
			if strings.HasPrefix(name, "deepseek-") && strings.ContainsFunc(texts[i], blankBelowHan) {
				why = "blanks in a range of ideographs"
			}
			if !cased && why == "" {
				t.Errorf("%s: Hugging Face splits %s otherwise", name, quote(texts[i]))
			}
			general[why]++
		}
	}
	if general["case folding beyond ASCII"] == 0 || general["blanks in a range of ideographs"] == 0 || general["letters of Unicode 16.0"] == 0 {
		t.Errorf("differences by reason: %v", general)
	}
	if len(golden.Llama) < 14 {
		t.Errorf("only %d splitters", len(golden.Llama))
	}
}

// blankBelowHan: DeepSeek's ideographs begin at U+0800, and among what lies from there
// to the first of them are blanks. llama.cpp takes no blank for anything else.
func blankBelowHan(c rune) bool { return c >= 0x0800 && c < 0x4E00 && unicode.IsSpace(c) }

func pieceLengths(sp splitter, s string) []int {
	n := []int{}
	sp.split(newClassTable(), s, func(p string) {
		k := 0
		for i := 0; i < len(p); i += unitLen(p, i) {
			k++
		}
		n = append(n, k)
	})
	return n
}

// TestClasses compares the class of every code point with Hugging Face's regex
// engine, which has Unicode 16.0: it may know more, never otherwise.
func TestClasses(t *testing.T) {
	var golden map[string][][2]rune
	loadJSON(t, "classes.json", &golden)
	names := map[string]uint8{"L": classLetter, "N": classNumber, "M": classMark, "P": classPunct, "S": classSymbol,
		"space": classSpace}
	want := make([]uint8, unicode.MaxRune+1)
	for name, runs := range golden {
		for _, r := range runs {
			for c := r[0]; c <= r[1]; c++ {
				want[c] = names[name]
			}
		}
	}
	table := newClassTable()
	newer := 0
	for c := rune(0); c <= unicode.MaxRune; c++ {
		switch got := table.of(c); {
		case got == want[c]:
		case got != classOther:
			t.Fatalf("U+%04X has class %d, want %d", c, got, want[c])
		default:
			newer++
		}
	}
	if newer != 5185 {
		t.Errorf("%d code points have no class here; Unicode 16.0 added 5185", newer)
	}
}

func stockMetadata(t testing.TB, name string) metadata {
	t.Helper()
	var raw map[string]json.RawMessage
	loadJSON(t, name+".stock.json", &raw)
	m := make(metadata)
	for key, data := range raw {
		var to any
		switch {
		case data[0] == '"':
			to = new(string)
		case data[0] == 't' || data[0] == 'f':
			to = new(bool)
		case key == keyTypes:
			to = new([]int32)
		case key == keyScores:
			to = new([]float32)
		case data[0] == '[':
			to = new([]string)
		default:
			to = new(uint64)
		}
		if err := json.Unmarshal(data, to); err != nil {
			t.Fatal(key, err)
		}
		m[key] = reflect.ValueOf(to).Elem().Interface()
	}
	return m
}

// TestStockConversion compares what ReadHF makes of a folder with what the
// stock converter writes for it, field by field.
func TestStockConversion(t *testing.T) {
	for _, name := range folders {
		t.Run(name, func(t *testing.T) {
			got := readFolder(t, name).Vocab()
			want, err := FromGGUF(stockMetadata(t, name))
			if err != nil {
				t.Fatal(err)
			}
			g, w := *got, *want
			g.Notes = nil
			gv, wv := reflect.ValueOf(g), reflect.ValueOf(w)
			for i := range gv.NumField() {
				a, b := gv.Field(i).Interface(), wv.Field(i).Interface()
				if !reflect.DeepEqual(a, b) {
					t.Errorf("%s is %.300v, want %.300v", gv.Type().Field(i).Name, a, b)
				}
			}
		})
	}
}

// testFiles returns a folder with some of the files of testdata/name.
func testFiles(t testing.TB, name string, files ...string) fstest.MapFS {
	t.Helper()
	m := make(fstest.MapFS)
	for _, f := range files {
		data, err := os.ReadFile(filepath.Join("testdata", name, f))
		if err != nil {
			t.Fatal(err)
		}
		m[f] = &fstest.MapFile{Data: data}
	}
	return m
}

// TestDerivedScores takes tokenizer.model away: scores then come from the order
// of the merges, and ids must stay those of Hugging Face and SentencePiece.
func TestDerivedScores(t *testing.T) {
	files := testFiles(t, "spm", "tokenizer.json", "tokenizer_config.json", "config.json")
	v, err := readHF(files, "spm")
	if err != nil {
		t.Fatal(err)
	}
	if len(v.Notes) > 0 {
		t.Errorf("notes %q", v.Notes)
	}
	tok, err := New(v)
	if err != nil {
		t.Fatal(err)
	}
	texts, _ := hostile(t)
	var golden map[string]goldenMode
	loadJSON(t, "spm.ids.json", &golden)
	for _, m := range modes {
		for i, text := range texts {
			want, ok := golden[m.key].HF[i]
			if !ok {
				want = golden[m.key].Llama[i]
			}
			if got := tok.Encode(text, specials(m.special, m.parse)); !want.equal(got) {
				t.Errorf("%s: %s\ngot  %v\nwant %v", m.key, quote(text), got[:min(len(got), 300)], &want)
			}
		}
	}
}
