// Package tokenizer turns text into token ids and back, from the vocabulary of
// a Hugging Face checkpoint or of a GGUF file.
//
// Two models are implemented: byte-level BPE (GGUF model "gpt2") and
// SentencePiece BPE with scores ("llama"), and as a third BPE over raw UTF-8
// with byte fallback ("gpt2" with the pre-tokenizer "gemma4").
//
// The reference is stock llama.cpp: ids equal what it makes of the GGUF file
// that its own converter writes. Hugging Face's tokenizers library gives the
// same ids except where llama.cpp differs from it:
//
//   - Normalizers of byte-level BPE (NFC in Qwen and OLMoE) are not applied.
//   - The added-token flags lstrip, rstrip and single_word have no effect, and
//     where special tokens overlap the longest wins, not the leftmost.
//   - User-defined tokens that are runs of spaces (Gemma) are cut out first.
//   - Some tokens are special by their text whatever their type: "</s>" is one
//     token in Qwen when special tokens are parsed.
//   - Character classes follow Unicode 15.1; Hugging Face is at 16.0.
//   - (?i:'s) knows ASCII only; Hugging Face's also takes U+017F (long s).
//   - tekken and GPT-4o patterns tell case in ASCII only and leave marks out.
//   - A byte that the vocabulary cannot spell gives no id in either, but
//     Hugging Face merges its neighbours across it.
//   - A space is put before the text after every special token, not only at
//     the start, where the vocabulary asks for a space prefix.
//   - Equal scores of SentencePiece models merge leftmost first, whatever the
//     order of the merges in tokenizer.json.
//
// Vocab.Notes lists those that concern a given vocabulary. One thing that
// llama.cpp does is left out: in models whose name contains "phi-3" it drops
// blanks after special tokens.
package tokenizer

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
)

// Token types, the values of the GGUF array tokenizer.ggml.token_type.
const (
	TypeNormal      = 1
	TypeUnknown     = 2
	TypeControl     = 3 // special, matched in text only on request
	TypeUserDefined = 4 // matched in text always
	TypeUnused      = 5
	TypeByte        = 6 // "<0xXX>", one byte
)

// Names for Vocab.Model.
const (
	ModelBPE    = "gpt2"   // byte-level BPE
	ModelSPM    = "llama"  // SentencePiece BPE
	ModelGemma4 = "gemma4" // BPE over raw UTF-8, as ModelBPE with Pre "gemma4"
)

// A Vocab is the neutral description of a tokenizer, close to what GGUF stores.
type Vocab struct {
	// Model is "gpt2", "llama" or "gemma4".
	Model string
	// Pre is llama.cpp's name of the pre-tokenizer (tokenizer.ggml.pre).
	Pre string

	Tokens []string  // by id; byte-level BPE spells bytes as GPT-2 does ("Ġ" for a space)
	Scores []float32 // as long as Tokens for "llama", else nil
	Types  []int32   // as long as Tokens, or nil for all TypeNormal
	Merges []string  // "left right", in order of rank; nil for "llama"

	BOS, EOS, UNK, PAD int32 // -1 for none
	// Extra holds other special ids by GGUF key, such as
	// "tokenizer.ggml.eot_token_id". It may be nil.
	Extra map[string]int32

	AddBOS, AddEOS         bool // what Encode adds when asked for special tokens
	AddSpacePrefix         bool // "llama": text begins with a space that is not in it
	RemoveExtraWhitespaces bool // carried along; llama.cpp ignores it for these models

	// ChatTemplate is the Jinja text, "" for none. ChatTemplates holds further
	// named ones and may be nil.
	ChatTemplate  string
	ChatTemplates map[string]string

	// Notes say, one sentence each, where ids may differ from those of the
	// Hugging Face tokenizer that the vocabulary was read from.
	Notes []string
}

// GGUF metadata keys.
const (
	keyModel         = "tokenizer.ggml.model"
	keyPre           = "tokenizer.ggml.pre"
	keyTokens        = "tokenizer.ggml.tokens"
	keyScores        = "tokenizer.ggml.scores"
	keyTypes         = "tokenizer.ggml.token_type"
	keyMerges        = "tokenizer.ggml.merges"
	keyBOS           = "tokenizer.ggml.bos_token_id"
	keyEOS           = "tokenizer.ggml.eos_token_id"
	keyUNK           = "tokenizer.ggml.unknown_token_id"
	keyPAD           = "tokenizer.ggml.padding_token_id"
	keySEP           = "tokenizer.ggml.seperator_token_id" // sic
	keyMASK          = "tokenizer.ggml.mask_token_id"
	keyEOT           = "tokenizer.ggml.eot_token_id"
	keyAddBOS        = "tokenizer.ggml.add_bos_token"
	keyAddEOS        = "tokenizer.ggml.add_eos_token"
	keySpacePrefix   = "tokenizer.ggml.add_space_prefix"
	keyRemoveExtra   = "tokenizer.ggml.remove_extra_whitespaces"
	keyTemplate      = "tokenizer.chat_template"
	keyTemplateNames = "tokenizer.chat_templates"
)

// extraKeys are the special ids that go to Vocab.Extra.
var extraKeys = []string{
	keyEOT,
	"tokenizer.ggml.eom_token_id",
	keySEP,
	keyMASK,
	"tokenizer.ggml.fim_pre_token_id",
	"tokenizer.ggml.fim_suf_token_id",
	"tokenizer.ggml.fim_mid_token_id",
	"tokenizer.ggml.fim_pad_token_id",
	"tokenizer.ggml.fim_rep_token_id",
	"tokenizer.ggml.fim_sep_token_id",
	// Old names of the first three fim_* keys.
	"tokenizer.ggml.prefix_token_id",
	"tokenizer.ggml.suffix_token_id",
	"tokenizer.ggml.middle_token_id",
}

// A preTokenizer is what llama.cpp derives from a name of tokenizer.ggml.pre.
type preTokenizer struct {
	splitter     splitter
	ignoreMerges bool // a word that is a token is that token, merges or not
	addBOS       bool // default of add_bos_token
	rawUTF8      bool // BPE over UTF-8 with U+2581 for spaces instead of over bytes
}

var preTokenizers = func() map[string]preTokenizer {
	m := make(map[string]preTokenizer)
	set := func(p preTokenizer, names ...string) {
		for _, n := range names {
			m[n] = p
		}
	}
	llama := preTokenizer{splitter: splitter{llama3(3, false)}}
	set(llama, "dbrx", "smaug-bpe", "chatglm-bpe", "glm4")
	llama.ignoreMerges, llama.addBOS = true, true
	set(llama, "llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano")
	set(preTokenizer{splitter: splitter{llama3(1, false)}},
		"qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "stablelm2", "hunyuan", "solar-open", "megrez", "grok-2")
	set(preTokenizer{splitter: splitter{llama3(1, true)}}, "qwen35")
	set(preTokenizer{splitter: splitter{gpt2}},
		"gpt-2", "phi-2", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de", "jina-v1-en", "jina-v2-code", "roberta-bpe",
		"gigachat", "a.x-4.0", "mellum", "modern-bert", "exaone4", "mpt", "olmo", "jais", "trillion", "granite-docling")
	set(preTokenizer{splitter: splitter{digitAlone, gpt2}},
		"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2")
	set(preTokenizer{splitter: splitter{punctRun("$+<=>^~|"), gpt2, digitRun, threeDigits}}, "default")
	set(preTokenizer{splitter: splitter{punctRun("$+<=>^~|`"), gpt2, threeDigits}}, "falcon")
	set(preTokenizer{splitter: splitter{tekken(1, false)}, ignoreMerges: true, addBOS: true}, "tekken")
	set(preTokenizer{splitter: splitter{tekken(3, true)}}, "gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2")
	set(preTokenizer{splitter: splitter{oneNewline, spacedRun(classLetter), spacedRun(classPunct),
		runeRun(cjk...), digitAlone}}, "deepseek-coder")
	set(preTokenizer{splitter: splitter{oneNewline, spacedRange(casedLetters...), spacedRange(llmPunctuation...),
		lastSpaces, runeRun(cjk...), digitRun}}, "deepseek-llm")
	set(preTokenizer{splitter: splitter{llama3Like(1, false, false)}}, "seed-coder")
	set(preTokenizer{splitter: splitter{digitGroup, runeRun(0x4E00, 0x9FA5, 0x3040, 0x30FF), deepseek3}},
		"deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4")
	// llama.cpp adds a BOS here even when the file says not to.
	set(preTokenizer{splitter: splitter{lines}, rawUTF8: true, addBOS: true}, "gemma4", "granite-embed-multi-311m")
	return m
}()

// A Source yields GGUF metadata. Each getter reports false when the key is
// absent or holds another type. Uint takes any integer type.
type Source interface {
	String(key string) (string, bool)
	Uint(key string) (uint64, bool)
	Bool(key string) (bool, bool)
	Strings(key string) ([]string, bool)
	Float32s(key string) ([]float32, bool)
	Int32s(key string) ([]int32, bool)
}

// FromGGUF reads the vocabulary from GGUF metadata. What a file leaves out gets
// llama.cpp's default, except that byte-level BPE has no BOS and EOS unless the
// file names them (llama.cpp assumes id 11). The result shares the source's slices.
// Errors are *FormatError and *UnsupportedError, with the key.
func FromGGUF(src Source) (*Vocab, error) {
	v := &Vocab{BOS: -1, EOS: -1, UNK: -1, PAD: -1}
	var ok bool
	if v.Model, ok = src.String(keyModel); !ok {
		return nil, &FormatError{Key: keyModel, Offset: -1, Msg: "missing", Hint: "the GGUF file holds no tokenizer"}
	}
	v.Pre, ok = src.String(keyPre)
	if !ok {
		v.Pre = "default"
	}
	switch v.Model {
	case ModelBPE:
	case ModelGemma4:
		v.Pre = "gemma4"
	case ModelSPM:
		v.BOS, v.EOS, v.UNK = 1, 2, 0
		v.AddSpacePrefix = true
	default:
		return nil, &UnsupportedError{Key: keyModel, What: fmt.Sprintf("tokenizer model %q", v.Model),
			Hint: "gpt2 and llama are"}
	}
	p, err := v.preTokenizer()
	if err != nil {
		return nil, err
	}
	v.AddBOS = p.addBOS || v.Model == ModelSPM
	if v.Tokens, ok = src.Strings(keyTokens); !ok {
		return nil, &FormatError{Key: keyTokens, Offset: -1, Msg: "missing or no array of strings"}
	}
	if v.Model == ModelSPM {
		if v.Scores, ok = src.Float32s(keyScores); !ok {
			return nil, &FormatError{Key: keyScores, Offset: -1, Msg: "missing or no array of float32",
				Hint: "a llama vocabulary merges by score"}
		}
	} else if v.Merges, ok = src.Strings(keyMerges); !ok {
		return nil, &FormatError{Key: keyMerges, Offset: -1, Msg: "missing or no array of strings"}
	}
	if types, ok := src.Int32s(keyTypes); ok {
		v.Types = types
	}
	n := uint64(len(v.Tokens))
	id := func(key string, to *int32) {
		// Like llama.cpp: an id outside the vocabulary counts as absent.
		if x, ok := src.Uint(key); ok && x < n {
			*to = int32(x)
		} else if *to >= 0 && uint64(*to) >= n {
			*to = -1
		}
	}
	id(keyBOS, &v.BOS)
	id(keyEOS, &v.EOS)
	id(keyUNK, &v.UNK)
	id(keyPAD, &v.PAD)
	for _, key := range extraKeys {
		x := int32(-1)
		if id(key, &x); x >= 0 {
			v.setExtra(key, x)
		}
	}
	flag := func(key string, to *bool) {
		if b, ok := src.Bool(key); ok {
			*to = b
		}
	}
	flag(keyAddBOS, &v.AddBOS)
	flag(keyAddEOS, &v.AddEOS)
	flag(keySpacePrefix, &v.AddSpacePrefix)
	flag(keyRemoveExtra, &v.RemoveExtraWhitespaces)
	v.AddBOS = v.AddBOS || p.rawUTF8
	v.ChatTemplate, _ = src.String(keyTemplate)
	names, _ := src.Strings(keyTemplateNames)
	for _, name := range names {
		if t, ok := src.String(keyTemplate + "." + name); ok {
			v.setTemplate(name, t)
		}
	}
	return v, v.validate("")
}

func (v *Vocab) setExtra(key string, id int32) {
	if v.Extra == nil {
		v.Extra = make(map[string]int32)
	}
	v.Extra[key] = id
}

func (v *Vocab) setTemplate(name, text string) {
	if v.ChatTemplates == nil {
		v.ChatTemplates = make(map[string]string)
	}
	v.ChatTemplates[name] = text
}

func (v *Vocab) preTokenizer() (preTokenizer, error) {
	if v.Model == ModelSPM {
		return preTokenizer{}, nil // llama.cpp ignores the name
	}
	p, ok := preTokenizers[v.Pre]
	if !ok {
		return p, &UnsupportedError{Key: keyPre, What: fmt.Sprintf("pre-tokenizer %q", v.Pre)}
	}
	return p, nil
}

// validate checks everything that New and Encode rely on.
func (v *Vocab) validate(file string) error {
	bad := func(key, format string, args ...any) error {
		return &FormatError{File: file, Key: key, Offset: -1, Msg: fmt.Sprintf(format, args...)}
	}
	n := len(v.Tokens)
	switch {
	case v.Model != ModelBPE && v.Model != ModelSPM && v.Model != ModelGemma4:
		return &UnsupportedError{File: file, Key: keyModel, What: fmt.Sprintf("tokenizer model %q", v.Model)}
	case n == 0:
		return bad(keyTokens, "no tokens")
	case n > MaxVocab:
		return bad(keyTokens, "%d tokens, at most %d are read", n, MaxVocab)
	case len(v.Merges) > MaxMerges:
		return bad(keyMerges, "%d merges, at most %d are read", len(v.Merges), MaxMerges)
	case v.Types != nil && len(v.Types) < n:
		return bad(keyTypes, "%d token types for %d tokens", len(v.Types), n)
	case v.Model == ModelSPM && len(v.Scores) < n:
		return bad(keyScores, "%d scores for %d tokens", len(v.Scores), n)
	case len(v.ChatTemplate) > MaxTemplateSize:
		return bad(keyTemplate, "%d bytes, at most %d are read", len(v.ChatTemplate), MaxTemplateSize)
	}
	if err := v.validateEntries(bad); err != nil {
		return err
	}
	return v.validateIDs(bad)
}

// A complaint makes an error about one key.
type complaint func(key, format string, args ...any) error

// validateEntries checks tokens, scores and merges one by one.
func (v *Vocab) validateEntries(bad complaint) error {
	for i, t := range v.Tokens {
		if len(t) > MaxTokenLen {
			return bad(keyTokens, "token %d has %d bytes, at most %d are read", i, len(t), MaxTokenLen)
		}
	}
	if v.Model == ModelSPM {
		for i, s := range v.Scores {
			if math.IsNaN(float64(s)) {
				return bad(keyScores, "score %d is not a number", i)
			}
		}
	}
	for i, m := range v.Merges {
		if _, _, ok := cutMerge(m); !ok {
			return bad(keyMerges, "merge %d, %q, is not two texts with a space between", i, clip(m, 40))
		}
	}
	return nil
}

// validateIDs checks the ids of special tokens.
func (v *Vocab) validateIDs(bad complaint) error {
	n := len(v.Tokens)
	ids := map[string]int32{keyBOS: v.BOS, keyEOS: v.EOS, keyUNK: v.UNK, keyPAD: v.PAD}
	for _, key := range append([]string{keyBOS, keyEOS, keyUNK, keyPAD}, extraKeys...) {
		id, ok := ids[key]
		if !ok {
			id, ok = v.Extra[key]
		}
		if ok && (id < -1 || int(id) >= n) {
			return bad(key, "id %d is outside the vocabulary of %d tokens", id, n)
		}
	}
	if v.AddBOS && v.BOS < 0 {
		return bad(keyAddBOS, "a BOS token is to be added but none is named")
	}
	if v.AddEOS && v.EOS < 0 {
		return bad(keyAddEOS, "an EOS token is to be added but none is named")
	}
	return nil
}

// cutMerge splits "left right". Neither side is empty; left may begin with a space.
func cutMerge(m string) (left, right string, ok bool) {
	if m == "" {
		return "", "", false
	}
	k := strings.IndexByte(m[1:], ' ')
	if k < 0 || k+2 == len(m) {
		return "", "", false
	}
	return m[:k+1], m[k+2:], true
}

// A KeyValue is one entry of GGUF metadata. Value is a string, uint32, bool,
// []string, []int32 or []float32.
type KeyValue struct {
	Key   string
	Value any
}

// KeyValues returns the tokenizer's GGUF metadata under the keys that the stock
// converter uses, in its order. add_bos_token, add_eos_token and
// add_space_prefix are always written, so that no reader's default matters.
func (v *Vocab) KeyValues() []KeyValue {
	kv := []KeyValue{{keyModel, v.Model}, {keyPre, v.Pre}, {keyTokens, v.Tokens}}
	if v.Scores != nil {
		kv = append(kv, KeyValue{keyScores, v.Scores})
	}
	if v.Types != nil {
		kv = append(kv, KeyValue{keyTypes, v.Types})
	}
	if v.Merges != nil {
		kv = append(kv, KeyValue{keyMerges, v.Merges})
	}
	id := func(key string, x int32) {
		if x >= 0 {
			kv = append(kv, KeyValue{key, uint32(x)})
		}
	}
	id(keyBOS, v.BOS)
	id(keyEOS, v.EOS)
	id(keyUNK, v.UNK)
	id(keyPAD, v.PAD)
	for _, key := range extraKeys {
		if x, ok := v.Extra[key]; ok {
			id(key, x)
		}
	}
	kv = append(kv, KeyValue{keyAddBOS, v.AddBOS}, KeyValue{keyAddEOS, v.AddEOS},
		KeyValue{keySpacePrefix, v.AddSpacePrefix})
	if v.RemoveExtraWhitespaces {
		kv = append(kv, KeyValue{keyRemoveExtra, true})
	}
	if names := slices.Sorted(maps.Keys(v.ChatTemplates)); len(names) > 0 {
		for _, name := range names {
			kv = append(kv, KeyValue{keyTemplate + "." + name, v.ChatTemplates[name]})
		}
		kv = append(kv, KeyValue{keyTemplateNames, names})
	}
	if v.ChatTemplate != "" {
		kv = append(kv, KeyValue{keyTemplate, v.ChatTemplate})
	}
	return kv
}
