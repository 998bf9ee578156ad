package tokenizer

import (
	"errors"
	"fmt"
	"math"
	"math/rand"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"unicode/utf8"
)

// letters is a byte-level vocabulary of all bytes and the given merges.
func letters(merges ...string) *Vocab {
	v := &Vocab{Model: ModelBPE, Pre: "gpt-2", BOS: -1, EOS: -1, UNK: -1, PAD: -1, Merges: merges}
	for _, r := range spelling {
		v.Tokens = append(v.Tokens, string(r))
	}
	for _, m := range merges {
		v.Tokens = append(v.Tokens, strings.ReplaceAll(m, " ", ""))
	}
	v.Types = slices.Repeat([]int32{TypeNormal}, len(v.Tokens))
	return v
}

func (v *Vocab) add(text string, kind int32) int32 {
	v.Tokens = append(v.Tokens, text)
	v.Types = append(v.Types, kind)
	return int32(len(v.Tokens) - 1)
}

func mustNew(t testing.TB, v *Vocab) *Tokenizer {
	t.Helper()
	tok, err := New(v)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

// randomRanker makes pairs of small symbols merge at random; several pairs
// share a rank, as scores of SentencePiece may.
type randomRanker map[[2]int32]pair

func (r randomRanker) pair(left, right int32, _ string) pair {
	if p, ok := r[[2]int32{left, right}]; ok {
		return p
	}
	return pair{noRank, -1}
}

// naiveMerge is the definition: the lowest rank, and of those the leftmost.
func naiveMerge(r ranker, ids []int32) []int32 {
	ids = slices.Clone(ids)
	for {
		best, at := pair{noRank, -1}, -1
		for i := 0; i+1 < len(ids); i++ {
			if p := r.pair(ids[i], ids[i+1], ""); p.rank < best.rank {
				best, at = p, i
			}
		}
		if at < 0 {
			return ids
		}
		ids[at] = best.id
		ids = slices.Delete(ids, at+1, at+2)
	}
}

func TestMergeOrder(t *testing.T) {
	rnd := rand.New(rand.NewSource(1))
	for round := range 3000 {
		symbols := int32(2 + rnd.Intn(5))
		r := make(randomRanker)
		for range rnd.Intn(20) {
			r[[2]int32{rnd.Int31n(symbols), rnd.Int31n(symbols)}] = pair{uint32(rnd.Intn(6)), rnd.Int31n(symbols)}
		}
		n := 1 + rnd.Intn(60)
		word := strings.Repeat("x", n)
		var w [2]work
		for k := range w {
			for i := range n {
				w[k].ids = append(w[k].ids, 0)
				w[k].off = append(w[k].off, int32(i))
			}
			w[k].off = append(w[k].off, int32(n))
		}
		for i := range n {
			id := rnd.Int31n(symbols)
			w[0].ids[i], w[1].ids[i] = id, id
		}
		want := naiveMerge(r, w[0].ids)
		w[0].mergeScan(r, word)
		w[1].mergeHeap(r, word)
		for k, name := range []string{"scan", "heap"} {
			if !slices.Equal(w[k].ids, want) {
				t.Fatalf("round %d, %s: %v, want %v", round, name, w[k].ids, want)
			}
			if len(w[k].off) != len(want)+1 || !slices.IsSorted(w[k].off) || w[k].off[len(want)] != int32(n) {
				t.Fatalf("round %d, %s: offsets %v of %d symbols", round, name, w[k].off, len(want))
			}
		}
		if !slices.Equal(w[0].off, w[1].off) {
			t.Fatalf("round %d: offsets %v and %v", round, w[0].off, w[1].off)
		}
	}
}

func TestLeftmostMerge(t *testing.T) {
	// Equal ranks must go left to right whatever the length of the word.
	tok := mustNew(t, letters("! !", "!! !!"))
	two, four := int32(256), int32(257)
	for n := 1; n <= 3*maxSmallMerge; n++ {
		want := slices.Repeat([]int32{four}, n/4)
		if n%4 >= 2 {
			want = append(want, two)
		}
		if n%2 == 1 {
			want = append(want, '!')
		}
		if got := tok.Encode(strings.Repeat("!", n), Plain); !slices.Equal(got, want) {
			t.Errorf("%d: %v, want %v", n, got, want)
		}
	}
}

// naivePartition is llama.cpp's procedure, token by token over all fragments.
func naivePartition(tokens []special, text string, parse bool) []span {
	tokens = slices.Clone(tokens)
	slices.SortStableFunc(tokens, func(a, b special) int { return len(b.text) - len(a.text) })
	spans := []span{{0, len(text), -1}}
	for _, tok := range tokens {
		if !parse && !tok.always {
			continue
		}
		var next []span
		for _, s := range spans {
			for s.id < 0 {
				k := strings.Index(text[s.start:s.end], tok.text)
				if k < 0 {
					break
				}
				if k > 0 {
					next = append(next, span{s.start, s.start + k, -1})
				}
				next = append(next, span{s.start + k, s.start + k + len(tok.text), tok.id})
				s.start += k + len(tok.text)
			}
			if s.start < s.end {
				next = append(next, s)
			}
		}
		spans = next
	}
	return spans
}

func TestPartition(t *testing.T) {
	rnd := rand.New(rand.NewSource(2))
	word := func(n int) string {
		b := make([]byte, n)
		for i := range b {
			b[i] = "ab\n"[rnd.Intn(3)]
		}
		return string(b)
	}
	matched := 0
	for range 3000 {
		var tokens []special
		seen := map[string]bool{}
		for range rnd.Intn(8) {
			if s := word(1 + rnd.Intn(4)); !seen[s] {
				seen[s] = true
				tokens = append(tokens, special{s, int32(len(tokens)), rnd.Intn(2) == 0})
			}
		}
		text := word(1 + rnd.Intn(40))
		m := newMatcher(slices.Clone(tokens))
		for _, parse := range []bool{false, true} {
			got, want := m.partition(text, parse), naivePartition(tokens, text, parse)
			if !slices.Equal(got, want) {
				t.Fatalf("%v, %q, %t:\ngot  %v\nwant %v", tokens, text, parse, got, want)
			}
			matched += len(got) - 1
		}
	}
	if matched < 10000 {
		t.Errorf("only %d cuts: the test texts match too little", matched)
	}
}

func TestSpecialTokens(t *testing.T) {
	v := letters("h i")
	hi := int32(256)
	ctl := v.add("<|x|>", TypeControl)
	usr := v.add("<t>", TypeUserDefined)
	unk := v.add("<unk>", TypeUnknown)
	eos := v.add("</s>", TypeNormal) // llama.cpp takes it for a control token by its text
	tok := mustNew(t, v)
	spell := func(s string) []int32 {
		var ids []int32
		for _, b := range []byte(s) {
			ids = append(ids, int32(b))
		}
		return ids
	}
	join := slices.Concat[[]int32]
	for _, c := range []struct {
		text  string
		parse bool
		want  []int32
	}{
		{"hi<|x|>hi", true, []int32{hi, ctl, hi}},
		{"hi<|x|>hi", false, join([]int32{hi}, spell("<|x|>"), []int32{hi})},
		{"hi<t>hi", false, []int32{hi, usr, hi}},
		{"<unk></s>", true, []int32{unk, eos}},
		{"<unk>", false, spell("<unk>")},
		{"</s>", false, spell("</s>")},
		{"<|x|<|x|>", true, join(spell("<|x|"), []int32{ctl})},
		{"<t><t>", true, []int32{usr, usr}},
		{"", true, nil},
	} {
		if got := tok.Encode(c.text, specials(false, c.parse)); !slices.Equal(got, c.want) {
			t.Errorf("%q, %t: %v, want %v", c.text, c.parse, got, c.want)
		}
	}
	if got := string(tok.Decode(tok.Encode("hi <|x|></s> hi", ParseSpecial))); got != "hi <|x|></s> hi" {
		t.Errorf("decoded %q", got)
	}
	for id, want := range map[int32]string{hi: "hi", ctl: "<|x|>", -1: "", 1 << 30: ""} {
		if got := tok.Piece(id); got != want {
			t.Errorf("piece %d is %q, want %q", id, got, want)
		}
	}
	if id, ok := tok.ID("<t>"); !ok || id != usr {
		t.Errorf("ID gives %d, %t", id, ok)
	}
}

// TestTypesByText: llama.cpp changes the type of some tokens by their text, and
// with it what is matched: without parsing, only user-defined tokens are.
func TestTypesByText(t *testing.T) {
	for i, c := range []struct {
		kind        int32 // the type of all tokens
		tokens      []string
		extra       string // a key that names token 0
		whole       string
		parse, want bool // is whole one token?
	}{
		{TypeNormal, []string{"<|im_end|>"}, "", "<|im_end|>", true, true},
		{TypeNormal, []string{"<|im_end|>"}, "", "<|im_end|>", false, false},
		{TypeNormal, []string{"<|other|>"}, "", "<|other|>", true, false},
		{TypeControl, []string{"<|start|>"}, "", "<|start|>", false, true},
		{TypeControl, []string{"<|end|>", "<|call|>"}, "", "<|end|>", false, false},
		{TypeControl, []string{"<|end|>", "<|call|>", "<|return|>"}, "", "<|end|>", false, true},
		{TypeControl, []string{"<|end|>", "<|calls|>", "<|flush|>"}, "", "<|end|>", false, true},
		{TypeControl, []string{"</s>", "<|tool_response>"}, "", "</s>", true, false},
		{TypeNormal, []string{"x", "<fim_prefix>"}, "", "<fim_prefix>", true, true},
		{TypeNormal, []string{"x", "<fim_prefix>"}, "tokenizer.ggml.fim_pre_token_id", "<fim_prefix>", true, false},
		{TypeNormal, []string{"x", "<fim_prefix>"}, "tokenizer.ggml.prefix_token_id", "<fim_prefix>", true, false},
	} {
		v := &Vocab{Model: ModelSPM, BOS: -1, EOS: -1, UNK: -1, PAD: -1}
		for _, s := range c.tokens {
			v.add(s, c.kind)
		}
		v.Scores = make([]float32, len(v.Tokens))
		if c.extra != "" {
			v.setExtra(c.extra, 0)
		}
		tok := mustNew(t, v)
		id, _ := tok.ID(c.whole)
		if got := slices.Equal(tok.Encode(c.whole, specials(false, c.parse)), []int32{id}); got != c.want {
			t.Errorf("%d: %v: %t, want %t", i, c, got, c.want)
		}
	}
}

func TestAddSpecial(t *testing.T) {
	v := letters()
	v.BOS = v.add("<b>", TypeControl)
	v.EOS = v.add("<e>", TypeControl)
	v.AddBOS, v.AddEOS = true, true
	tok := mustNew(t, v)
	if got := tok.Encode("!", AddSpecial); !slices.Equal(got, []int32{256, '!', 257}) {
		t.Errorf("%v", got)
	}
	if got := tok.Encode("", AddSpecial); !slices.Equal(got, []int32{256, 257}) {
		t.Errorf("%v", got)
	}
	if got := tok.AppendEncode([]int32{7}, "!", Plain); !slices.Equal(got, []int32{7, '!'}) {
		t.Errorf("%v", got)
	}
}

// TestMissingBytes: a byte without a token vanishes, yet it keeps its
// neighbours from merging (Hugging Face would merge across it).
func TestMissingBytes(t *testing.T) {
	v := letters("a b")
	v.Tokens[0x16] = "unused"
	tok := mustNew(t, v)
	if got := tok.Encode("\x01\x16\x02", Plain); !slices.Equal(got, []int32{1, 2}) {
		t.Errorf("%v", got)
	}
	v = letters("! !")
	v.Tokens['?'] = "unused"
	if got := mustNew(t, v).Encode("!?!", Plain); !slices.Equal(got, []int32{'!', '!'}) {
		t.Errorf("%v", got)
	}
}

// TestNoByteTokens: SentencePiece without byte tokens falls back to the byte as a
// text, then to the unknown token, then to nothing.
func TestNoByteTokens(t *testing.T) {
	v := &Vocab{Model: ModelSPM, BOS: -1, EOS: -1, UNK: 0, PAD: -1, Tokens: []string{"<unk>", "a", "\xc3"},
		Scores: make([]float32, 3)}
	if got := mustNew(t, v).Encode("aéa", Plain); !slices.Equal(got, []int32{1, 2, 0, 1}) {
		t.Errorf("%v", got)
	}
	w := *v
	w.UNK = -1
	if got := mustNew(t, &w).Encode("aéa", Plain); !slices.Equal(got, []int32{1, 2, 1}) {
		t.Errorf("%v", got)
	}
}

// TestRepeatedMerge: of two equal merges the first gives the rank.
func TestRepeatedMerge(t *testing.T) {
	v := letters("a b", "b c")
	v.Merges = append(v.Merges, "a b")
	if got := mustNew(t, v).Encode("abc", Plain); !slices.Equal(got, []int32{256, 'c'}) {
		t.Errorf("%v", got)
	}
}

// TestUnreachableWord: a token that merging does not make is used only by
// pre-tokenizers that ignore merges.
func TestUnreachableWord(t *testing.T) {
	v := letters("a b")
	abc := v.add("abc", TypeNormal)
	for pre, want := range map[string][]int32{"gpt-2": {256, 'c'}, "smaug-bpe": {256, 'c'}, "tekken": {abc},
		"llama-bpe": {abc}} {
		v.Pre = pre
		tok := mustNew(t, v)
		for range 2 { // the second time, what merging makes of the word is known
			if got := tok.Encode("abc", Plain); !slices.Equal(got, want) {
				t.Errorf("%s: %v, want %v", pre, got, want)
			}
		}
	}
}

func TestSanitize(t *testing.T) {
	for in, want := range map[string]string{
		"":                 "",
		"aé中😀":             "aé中😀",
		"\xff":             "\uFFFD",
		"a\x80\x80b":       "a\uFFFD\uFFFDb",
		"\xe2\x82":         "\uFFFD\uFFFD",
		"\xe2\x28\xa1":     "\uFFFD(\uFFFD",
		"\xf0\x9f\x98x":    "\uFFFD\uFFFD\uFFFDx",
		"\xc0\x80":         "\x00",         // overlong
		"\xe0\x80\xaf":     "/",            // overlong
		"\xed\xa0\x80":     "\xed\xa0\x80", // surrogate
		"\xf4\x90\x80\x80": "\uFFFD\uFFFD\uFFFD\uFFFD",
		"\xf8\x88\x80":     "\uFFFD\uFFFD\uFFFD",
	} {
		if got := sanitize(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

// randomText mixes what tokenizers trip over. Not all of it is UTF-8 if broken is set.
func randomText(rnd *rand.Rand, broken bool) string {
	some := []string{" ", "  ", "    ", "\n", "\r\n", "\t", "\u00a0", "\u3000", "'s", "'RE", "''", "!", "!!!!", "...",
		"```", "=>", "/*", "1", "12345", "٣", "½",
		"the", " of the", "Hello", "camelCase", "ÉAB", "é", "e\u0301", "日本", "한국어", "नमस्ते", "مرحبا", "😀", "👨‍👩‍👧", "\x00",
		"\x1b", "\ufffd", "▁", "▁▁", "Ġ",
		"<|im_start|>", "<s>", "</s>", "<0x41>", "<tool>", "<unk>"}
	var b strings.Builder
	for range 1 + rnd.Intn(12) {
		switch k := rnd.Intn(10); {
		case k < 7:
			b.WriteString(some[rnd.Intn(len(some))])
		case k < 8:
			b.WriteRune(rune(rnd.Intn(0x3000)))
		case k < 9:
			b.WriteString(strings.Repeat(some[rnd.Intn(len(some))], rnd.Intn(30)))
		case broken:
			b.WriteByte(byte(rnd.Intn(256)))
		}
	}
	return b.String()
}

// TestSPMCuts compares words cut at U+2581 with one merge over the whole text.
func TestSPMCuts(t *testing.T) {
	for _, name := range []string{"spm", "gemma"} {
		tok := readFolder(t, name)
		v := *tok.Vocab()
		// A token with a blank inside forbids some of the cuts.
		v.Tokens = append(slices.Clone(v.Tokens), "e▁t", "▁e▁t")
		v.Types = append(slices.Clone(v.Types), TypeNormal, TypeNormal)
		v.Scores = append(slices.Clone(v.Scores), 3, 4)
		inner := mustNew(t, &v)
		if !inner.inner["e"] || tok.inner["e"] {
			t.Fatalf("%s: units before an inner U+2581: %v", name, inner.inner)
		}
		rnd := rand.New(rand.NewSource(3))
		for range 2000 {
			text := strings.ReplaceAll(randomText(rnd, true)+"e te t e  tee t", "\n", " ")
			for _, tok := range []*Tokenizer{tok, inner} {
				var w work
				got := tok.encodeSPM(nil, &w, text, true)
				whole := strings.ReplaceAll(" "+text, " ", metaspace)
				w.reset()
				for i := 0; i < len(whole); i += unitLen(whole, i) {
					w.ids = append(w.ids, -1)
					w.off = append(w.off, int32(i))
				}
				if want := tok.encodeSPMWord(nil, &w, whole); !slices.Equal(got, want) {
					t.Fatalf("%s: %q: %v, want %v", name, text, got, want)
				}
			}
		}
	}
}

func TestRoundTrip(t *testing.T) {
	rnd := rand.New(rand.NewSource(4))
	for _, name := range folders {
		tok := readFolder(t, name)
		for range 3000 {
			text := randomText(rnd, false)
			if tok.Vocab().Model == ModelSPM {
				text = strings.ReplaceAll(text, metaspace, "") // it decodes to a space
			}
			for _, parse := range []bool{false, true} {
				if got := string(tok.Decode(tok.Encode(text, specials(false, parse)))); got != text {
					t.Fatalf("%s, parse %t: %q came back as %q", name, parse, text, got)
				}
			}
		}
	}
}

func TestPieces(t *testing.T) {
	// SentencePiece: the pieces of byte tokens are bytes, blanks are spaces.
	tok := readFolder(t, "spm")
	for text, want := range map[string]string{"<0x0A>": "\n", "<0xFF>": "\xff", "▁the": " the", "<s>": "<s>"} {
		id, ok := tok.ID(text)
		if got := tok.Piece(id); !ok || got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
	if id, ok := tok.ID("[PAD905]"); !ok || tok.Piece(id) != "" {
		t.Errorf("padding: %t, %q", ok, tok.Piece(id))
	}
}

// TestConcurrent is for the race detector, and checks that what one goroutine
// learns about words does not change another's ids.
func TestConcurrent(t *testing.T) {
	t.Parallel()
	texts, short := hostile(t)
	texts = texts[:short]
	for _, name := range []string{"qwen2", "gemma"} {
		var want [][]int32
		first := readFolder(t, name)
		for _, s := range texts {
			want = append(want, first.Encode(s, AddSpecial|ParseSpecial))
		}
		tok := readFolder(t, name)
		var wg sync.WaitGroup
		for g := range 4 {
			wg.Add(1)
			go func() {
				defer wg.Done()
				for k := range texts {
					i := (k + g*len(texts)/4) % len(texts)
					if got := tok.Encode(texts[i], AddSpecial|ParseSpecial); !slices.Equal(got, want[i]) {
						t.Errorf("%s: %q: %v, want %v", name, texts[i], got, want[i])
					}
				}
			}()
		}
		wg.Wait()
	}
}

func TestKeyValues(t *testing.T) {
	for _, name := range folders {
		want := *readFolder(t, name).Vocab()
		want.Notes = nil
		m := make(metadata)
		for _, kv := range want.KeyValues() {
			if _, ok := m[kv.Key]; ok {
				t.Errorf("%s: %s twice", name, kv.Key)
			}
			m[kv.Key] = kv.Value
		}
		got, err := FromGGUF(m)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(*got, want) {
			t.Errorf("%s: %+v came back as %+v", name, want, *got)
		}
	}
}

func TestBadVocab(t *testing.T) {
	var format *FormatError
	var unsupported *UnsupportedError
	for name, c := range map[string]struct {
		change func(*Vocab)
		as     any
		say    string
	}{
		"model":     {func(v *Vocab) { v.Model = "bert" }, &unsupported, "bert"},
		"pre":       {func(v *Vocab) { v.Pre = "deepseek-none" }, &unsupported, "deepseek-none"},
		"empty":     {func(v *Vocab) { v.Tokens = nil }, &format, "no tokens"},
		"duplicate": {func(v *Vocab) { v.Tokens[5] = v.Tokens[6] }, &format, "tokens 5 and 6"},
		"types":     {func(v *Vocab) { v.Types = v.Types[:3] }, &format, "token types"},
		"merge":     {func(v *Vocab) { v.Merges = []string{"ab"} }, &format, "merge 0"},
		"merge end": {func(v *Vocab) { v.Merges = []string{"ab "} }, &format, "merge 0"},
		"merge ''":  {func(v *Vocab) { v.Merges = []string{""} }, &format, "merge 0"},
		"bos":       {func(v *Vocab) { v.BOS = 1 << 20 }, &format, "bos_token_id"},
		"eos":       {func(v *Vocab) { v.EOS = -2 }, &format, "eos_token_id"},
		"extra":     {func(v *Vocab) { v.setExtra(keyEOT, 999) }, &format, "eot_token_id"},
		"no bos":    {func(v *Vocab) { v.AddBOS = true }, &format, "BOS"},
		"no eos":    {func(v *Vocab) { v.AddEOS = true }, &format, "EOS"},
		"no scores": {func(v *Vocab) { v.Model = ModelSPM }, &format, "scores"},
		"nan": {func(v *Vocab) {
			v.Model = ModelSPM
			v.Scores = make([]float32, 300)
			v.Scores[9] = float32(math.NaN())
		}, &format, "score 9"},
		"long token": {func(v *Vocab) { v.Tokens[5] = strings.Repeat("x", MaxTokenLen+1) }, &format, "token 5"},
		"many":       {func(v *Vocab) { v.Tokens = make([]string, MaxVocab+1) }, &format, fmt.Sprint(MaxVocab)},
	} {
		v := letters("a b")
		c.change(v)
		_, err := New(v)
		if err == nil || !errors.As(err, c.as) || !strings.Contains(err.Error(), c.say) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// An empty token and one without types are fine.
	v := letters()
	v.Tokens[3], v.Types = "", nil
	if id, ok := mustNew(t, v).ID("[EMPTY_3]"); !ok || id != 3 {
		t.Errorf("empty token: %d, %t", id, ok)
	}
}

func TestFromGGUFErrors(t *testing.T) {
	base := func() metadata {
		m := make(metadata)
		for _, kv := range letters("a b").KeyValues() {
			m[kv.Key] = kv.Value
		}
		return m
	}
	if _, err := FromGGUF(base()); err != nil {
		t.Fatal(err)
	}
	for key, value := range map[string]any{keyModel: nil, keyTokens: nil, keyMerges: 7, keyTypes: []int32{1},
		keyPre: "x", keyAddBOS: true} {
		m := base()
		m[key] = value
		if _, err := FromGGUF(m); err == nil || !strings.Contains(err.Error(), key) {
			t.Errorf("%s: %v", key, err)
		}
	}
	m := base()
	m[keyModel] = ModelSPM
	if _, err := FromGGUF(m); err == nil || !strings.Contains(err.Error(), keyScores) {
		t.Errorf("no scores: %v", err)
	}
	// What llama.cpp assumes for ids and flags that a file leaves out.
	m[keyScores] = make([]float32, 257)
	delete(m, keyAddBOS)
	delete(m, keyAddEOS)
	delete(m, keySpacePrefix)
	v, err := FromGGUF(m)
	if err != nil || v.BOS != 1 || v.EOS != 2 || v.UNK != 0 || v.PAD != -1 || !v.AddBOS || v.AddEOS || !v.AddSpacePrefix {
		t.Errorf("defaults: %+v, %v", v, err)
	}
	m[keyBOS] = uint32(4000) // as if it were absent
	if v, err := FromGGUF(m); err != nil || v.BOS != 1 {
		t.Errorf("BOS %+v, %v", v, err)
	}
}

func TestUTF8Widths(t *testing.T) {
	table := newClassTable()
	for c := rune(0); c <= utf8.MaxRune; c++ {
		if 0xD800 <= c && c <= 0xDFFF {
			continue
		}
		s := string(c)
		got, n := decode(s, 0)
		if k, w := table.at(s, 0); got != c || n != len(s) || w != n || k != table.of(c) {
			t.Fatalf("U+%04X: U+%04X, %d bytes", c, got, n)
		}
	}
	if c, n := decode("\xed\xa0\x80", 0); c != 0xD800 || n != 3 {
		t.Errorf("surrogate: U+%04X, %d bytes", c, n)
	}
}

// specials returns the flags of a test's table.
func specials(add, parse bool) Specials {
	s := Plain
	if add {
		s |= AddSpecial
	}
	if parse {
		s |= ParseSpecial
	}
	return s
}
