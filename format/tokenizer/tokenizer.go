package tokenizer

import (
	"fmt"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
)

// metaspace stands for a space inside SentencePiece tokens (U+2581).
const metaspace = "▁"

// What llama.cpp knows about a token beside its text. A token can have several.
const (
	attrNormal = 1 << iota
	attrUnknown
	attrControl
	attrUser
	attrUnused
	attrByte
)

// A Tokenizer encodes and decodes text. It is safe for concurrent use.
type Tokenizer struct {
	vocab   *Vocab
	attrs   []uint8
	pieces  []string         // by id, what Decode writes
	ids     map[string]int32 // token text -> id
	special *matcher

	pre     preTokenizer
	classes classTable
	byteIDs [256][]int32 // tokens for a byte that belongs to no token
	merges  ranker
	byteSym [256]int32       // byte-level BPE: the symbol of a byte
	symbols map[string]int32 // raw UTF-8 BPE: the symbol of a code point

	// words maps a word to the token that spells it. Merging need not arrive
	// there; reached remembers, per token, whether it does (0: not tried).
	words   map[string]int32
	reached []atomic.Uint32

	// SPM: units that stand before U+2581 inside some token. Behind any other
	// unit, text can be cut at U+2581 since no merge reaches across.
	inner map[string]bool

	pool sync.Pool // *work
}

const (
	wordReached = 1 + iota
	wordNotReached
)

// New builds a tokenizer. It keeps v, which must not be changed afterwards.
// Errors are *FormatError and *UnsupportedError.
func New(v *Vocab) (*Tokenizer, error) {
	if err := v.validate(""); err != nil {
		return nil, err
	}
	t := &Tokenizer{vocab: v, classes: newClassTable(), ids: make(map[string]int32, len(v.Tokens))}
	t.pool.New = func() any { return new(work) }
	var err error
	if t.pre, err = v.preTokenizer(); err != nil {
		return nil, err
	}
	for i, text := range v.Tokens {
		if text == "" {
			text = emptyToken(i)
		}
		if j, ok := t.ids[text]; ok {
			return nil, &FormatError{Key: keyTokens, Offset: -1,
				Msg: fmt.Sprintf("tokens %d and %d are both %q", j, i, clip(text, 40))}
		}
		t.ids[text] = int32(i)
	}
	t.setAttrs()
	var matched []special
	for i, a := range t.attrs {
		if a&(attrControl|attrUser|attrUnknown) != 0 {
			matched = append(matched, special{t.text(int32(i)), int32(i), a&(attrControl|attrUnknown) == 0})
		}
	}
	t.special = newMatcher(matched)
	t.setPieces()
	t.reached = make([]atomic.Uint32, len(v.Tokens))
	if v.Model == ModelSPM {
		t.buildSPM()
	} else {
		t.buildBPE()
	}
	return t, nil
}

// emptyToken is llama.cpp's name for a token without text.
func emptyToken(id int) string { return fmt.Sprintf("[EMPTY_%d]", id) }

// text returns the text of a token as it is matched, never empty.
func (t *Tokenizer) text(id int32) string {
	if s := t.vocab.Tokens[id]; s != "" {
		return s
	}
	return emptyToken(int(id))
}

// Vocab returns the vocabulary that t was made from. It must not be changed.
func (t *Tokenizer) Vocab() *Vocab { return t.vocab }

// ID returns the id of the token with the given text, as it stands in
// Vocab.Tokens.
func (t *Tokenizer) ID(token string) (int32, bool) {
	id, ok := t.ids[token]
	return id, ok
}

// Piece returns the bytes that a token stands for: text for special tokens, ""
// for unused tokens and ids outside the vocabulary. A piece need not be valid
// UTF-8 on its own.
func (t *Tokenizer) Piece(id int32) string {
	if id < 0 || int(id) >= len(t.pieces) {
		return ""
	}
	return t.pieces[id]
}

// Decode joins the pieces of ids. It is the inverse of Encode without special
// tokens added: the space prefix that Encode put in is taken off again. Byte-level
// BPE gives back every valid UTF-8 text if the vocabulary spells all 256 bytes.
func (t *Tokenizer) Decode(ids []int32) []byte {
	var out []byte
	start := t.vocab.Model == ModelSPM && t.vocab.AddSpacePrefix
	strip := start
	for _, id := range ids {
		p := t.Piece(id)
		switch {
		case p == "":
		case t.attrs[id]&(attrControl|attrUser|attrUnknown) != 0:
			strip = start // Encode puts a space before the text after it
		case strip:
			p = strings.TrimPrefix(p, " ")
			strip = false
		}
		out = append(out, p...)
	}
	return out
}

// Specials says what Encode does about special tokens; the flags can be added up.
type Specials uint8

const (
	// AddSpecial adds the BOS and EOS tokens that the vocabulary asks for.
	AddSpecial Specials = 1 << iota
	// ParseSpecial lets the text of control tokens ("<|im_end|>") stand for these
	// tokens; without it only user-defined tokens are matched.
	ParseSpecial
	// Plain does neither.
	Plain Specials = 0
)

// Encode returns the token ids of text.
//
// Any bytes are accepted. Byte-level BPE sees each byte that begins no complete
// UTF-8 sequence as U+FFFD; SentencePiece falls back to byte tokens. Bytes for
// which the vocabulary has no token at all give the unknown token (SentencePiece)
// or nothing (BPE), the latter as llama.cpp and Hugging Face do.
func (t *Tokenizer) Encode(text string, s Specials) []int32 {
	return t.AppendEncode(nil, text, s)
}

// AppendEncode appends the token ids of text to dst. See Encode.
func (t *Tokenizer) AppendEncode(dst []int32, text string, specials Specials) []int32 {
	w := t.pool.Get().(*work)
	defer t.pool.Put(w)
	if specials&AddSpecial != 0 && t.vocab.AddBOS {
		dst = append(dst, t.vocab.BOS)
	}
	prefix := t.vocab.Model == ModelSPM && t.vocab.AddSpacePrefix
	for _, s := range t.special.partition(text, specials&ParseSpecial != 0) {
		if s.id >= 0 {
			dst = append(dst, s.id)
			prefix = t.vocab.Model == ModelSPM && t.vocab.AddSpacePrefix
			continue
		}
		part := text[s.start:s.end]
		switch {
		case t.vocab.Model == ModelSPM:
			dst = t.encodeSPM(dst, w, part, prefix)
		case t.pre.rawUTF8:
			part = strings.ReplaceAll(sanitize(part), " ", metaspace)
			t.pre.splitter.split(t.classes, part, func(word string) { dst = t.encodeRaw(dst, w, word) })
		default:
			t.pre.splitter.split(t.classes, sanitize(part), func(word string) { dst = t.encodeBytes(dst, w, word) })
		}
		prefix = false
	}
	if specials&AddSpecial != 0 && t.vocab.AddEOS {
		dst = append(dst, t.vocab.EOS)
	}
	return dst
}

// setAttrs derives the attributes of all tokens. llama.cpp overrides some types
// by the text of the token, and so changes which texts are matched as special.
func (t *Tokenizer) setAttrs() {
	v := t.vocab
	t.attrs = make([]uint8, len(v.Tokens))
	for i := range t.attrs {
		t.attrs[i] = attrNormal
		if v.Types != nil {
			t.attrs[i] = typeAttr(v.Types[i])
		}
	}
	for _, text := range endOfGeneration {
		if id, ok := t.ids[text]; ok {
			t.attrs[id] |= attrControl
		}
	}
	// Of the fill-in-the-middle names llama.cpp takes one per role, unless the
	// file names the token itself.
	for _, role := range fillInMiddle {
		named := false
		for _, key := range role.keys {
			_, ok := v.Extra[key]
			named = named || ok
		}
		first := int32(-1)
		for _, text := range role.names {
			if id, ok := t.ids[text]; ok && (first < 0 || id < first) {
				first = id
			}
		}
		if !named && first >= 0 {
			t.attrs[first] |= attrControl
		}
	}
	for _, text := range []string{"<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"} {
		if id, ok := t.ids[text]; ok {
			t.attrs[id] = attrUser
		}
	}
	has := func(names ...string) bool {
		for _, n := range names {
			if _, ok := t.ids[n]; ok {
				return true
			}
		}
		return false
	}
	if call := has("<|call|>", "<|calls|>"); call && has("<|return|>", "<|flush|>") && has("<|end|>") {
		t.attrs[t.ids["<|end|>"]] = attrUser
	}
	if has("<|tool_response>") && has("</s>") {
		t.attrs[t.ids["</s>"]] = attrNormal
	}
}

// typeAttr is the attribute that stands for a token type of a file, 0 for types that
// llama.cpp does not know.
func typeAttr(typ int32) uint8 {
	switch typ {
	case TypeNormal:
		return attrNormal
	case TypeUnknown:
		return attrUnknown
	case TypeControl:
		return attrControl
	case TypeUserDefined:
		return attrUser
	case TypeUnused:
		return attrUnused
	case TypeByte:
		return attrByte
	}
	return 0
}

// endOfGeneration lists texts that llama.cpp treats as control tokens whatever
// their type says.
var endOfGeneration = []string{
	"<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
	"<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>",
	"<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~[",
}

var fillInMiddle = []struct{ keys, names []string }{
	{[]string{"tokenizer.ggml.fim_pre_token_id", "tokenizer.ggml.prefix_token_id"},
		[]string{"<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>", "<|code_prefix|>",
			"<|prefix|>"}},
	{[]string{"tokenizer.ggml.fim_suf_token_id", "tokenizer.ggml.suffix_token_id"},
		[]string{"<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>", "<|code_suffix|>",
			"<|suffix|>"}},
	{[]string{"tokenizer.ggml.fim_mid_token_id", "tokenizer.ggml.middle_token_id"},
		[]string{"<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>", "<|code_middle|>",
			"<|middle|>"}},
	{[]string{"tokenizer.ggml.fim_pad_token_id"}, []string{"<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"}},
	{[]string{"tokenizer.ggml.fim_rep_token_id"}, []string{"<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>",
		"<reponame>"}},
	{[]string{"tokenizer.ggml.fim_sep_token_id"}, []string{"<|file_sep|>"}},
}

// setPieces computes what each token decodes to.
func (t *Tokenizer) setPieces() {
	t.pieces = make([]string, len(t.vocab.Tokens))
	for i := range t.pieces {
		text := t.text(int32(i))
		switch a := t.attrs[i]; {
		case a&(attrUnknown|attrControl|attrUser) != 0:
		case a&attrNormal != 0 && (t.vocab.Model == ModelSPM || t.pre.rawUTF8):
			text = strings.ReplaceAll(text, metaspace, " ")
		case a&attrNormal != 0:
			text, _ = unspell(text)
		case a&attrByte != 0:
			if b, ok := byteToken(text); ok {
				text = string([]byte{b})
			}
		default:
			text = ""
		}
		t.pieces[i] = text
	}
}

// byteToken parses "<0xXX>".
func byteToken(s string) (byte, bool) {
	if len(s) != 6 || s[:3] != "<0x" || s[5] != '>' {
		return 0, false
	}
	n, err := strconv.ParseUint(s[3:5], 16, 8)
	return byte(n), err == nil
}

func byteTokenText(b byte) string { return fmt.Sprintf("<0x%02X>", b) }

// denseRanks maps each score to its place among the distinct scores, highest first.
func denseRanks(scores []float32) []uint32 {
	order := make([]int32, len(scores))
	for i := range order {
		order[i] = int32(i)
	}
	sort.SliceStable(order, func(i, j int) bool { return scores[order[i]] > scores[order[j]] })
	ranks := make([]uint32, len(scores))
	rank := uint32(0)
	for k, i := range order {
		if k > 0 && scores[i] != scores[order[k-1]] {
			rank++
		}
		ranks[i] = rank
	}
	return ranks
}
