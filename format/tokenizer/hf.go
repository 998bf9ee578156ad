package tokenizer

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
)

// ReadHF reads the tokenizer of a Hugging Face checkpoint folder into the form
// that the stock converter writes to GGUF. It looks at tokenizer.json,
// tokenizer.model, tokenizer_config.json, added_tokens.json,
// special_tokens_map.json, chat_template.jinja, chat_template.json, config.json
// and generation_config.json; of the first two one must be there.
//
// The pre-tokenizer is recognized by its patterns. BPE with byte fallback is
// read as SentencePiece BPE; where tokenizer.model is missing, scores come from
// the order of the merges.
// The vocabulary is padded to vocab_size of config.json with unused tokens.
// Errors are *FormatError, *UnsupportedError, or come from the file system.
func ReadHF(dir string) (*Vocab, error) {
	return readHF(os.DirFS(dir), dir)
}

// hfTokenizer is tokenizer.json.
type hfTokenizer struct {
	AddedTokens   []hfAdded `json:"added_tokens"`
	Normalizer    *hfStep
	PreTokenizer  *hfStep `json:"pre_tokenizer"`
	PostProcessor *hfStep `json:"post_processor"`
	Model         struct {
		Type         string
		Vocab        json.RawMessage // an object for BPE, an array for Unigram
		Merges       []hfMerge
		UnkToken     *string  `json:"unk_token"`
		Prefix       *string  `json:"continuing_subword_prefix"`
		Suffix       *string  `json:"end_of_word_suffix"`
		Dropout      *float64 `json:"dropout"`
		ByteFallback bool     `json:"byte_fallback"`
		IgnoreMerges bool     `json:"ignore_merges"`
	}
}

// hfAdded is an added token, in tokenizer.json and in tokenizer_config.json.
type hfAdded struct {
	ID         int64
	Content    string
	SingleWord bool `json:"single_word"`
	LStrip     bool
	RStrip     bool
	Special    bool
}

// hfMerge is a merge, written "left right" or ["left", "right"].
type hfMerge struct{ left, right string }

func (m *hfMerge) UnmarshalJSON(data []byte) error {
	if len(data) > 0 && data[0] == '[' {
		var p []string
		if json.Unmarshal(data, &p) != nil || len(p) != 2 || p[0] == "" || p[1] == "" {
			return fmt.Errorf("merge %s is not a pair of texts", clip(string(data), 60))
		}
		m.left, m.right = p[0], p[1]
		return nil
	}
	var s string
	err := json.Unmarshal(data, &s)
	var ok bool
	if m.left, m.right, ok = cutMerge(s); err != nil || !ok {
		return fmt.Errorf("merge %s is not two texts with a space between", clip(string(data), 60))
	}
	return nil
}

// hfToken is a special token in a config file: a text or an object with one.
type hfToken string

func (t *hfToken) UnmarshalJSON(data []byte) error {
	var o struct{ Content *string }
	switch {
	case len(data) > 0 && data[0] == '"':
		return json.Unmarshal(data, (*string)(t))
	case len(data) > 0 && data[0] == '{':
		if json.Unmarshal(data, &o) != nil {
			// The error itself would give an offset that counts from here.
			return fmt.Errorf("%s is no token", clip(string(data), 60))
		}
		if o.Content != nil {
			*t = hfToken(*o.Content)
		}
	}
	return nil // null and false mean none
}

// hfConfig is tokenizer_config.json, and special_tokens_map.json as far as it goes.
type hfConfig struct {
	BOS            hfToken            `json:"bos_token"`
	EOS            hfToken            `json:"eos_token"`
	UNK            hfToken            `json:"unk_token"`
	PAD            hfToken            `json:"pad_token"`
	SEP            hfToken            `json:"sep_token"`
	MASK           hfToken            `json:"mask_token"`
	CLS            hfToken            `json:"cls_token"`
	AddBOS         *bool              `json:"add_bos_token"`
	AddEOS         *bool              `json:"add_eos_token"`
	AddPrefixSpace *bool              `json:"add_prefix_space"`
	Class          string             `json:"tokenizer_class"`
	Template       json.RawMessage    `json:"chat_template"`
	Added          map[string]hfAdded `json:"added_tokens_decoder"`
}

// hfModelConfig is what config.json and generation_config.json say of tokens.
type hfModelConfig struct {
	VocabSize  *int64         `json:"vocab_size"`
	BOS        hfID           `json:"bos_token_id"`
	EOS        hfID           `json:"eos_token_id"`
	PAD        hfID           `json:"pad_token_id"`
	TextConfig *hfModelConfig `json:"text_config"`
}

// hfID is a token id, a list of which the first counts, or nothing.
type hfID struct{ id *int64 }

func (d *hfID) UnmarshalJSON(data []byte) error {
	var one int64
	if json.Unmarshal(data, &one) == nil {
		if string(data) != "null" {
			d.id = &one
		}
		return nil
	}
	var list []int64
	if json.Unmarshal(data, &list) == nil && len(list) > 0 {
		d.id = &list[0]
	}
	return nil
}

// hfReader gathers a Vocab from the files of one folder: first the tokens, by
// one of fromBPE, fromPieces and fromMerges, then what refers to them.
type hfReader struct {
	fsys fs.FS
	dir  string

	tok    *hfTokenizer     // nil if there is no tokenizer.json
	vocab  map[string]int64 // model.vocab of tokenizer.json
	config hfConfig
	model  hfModelConfig
	added  []hfAdded        // by id
	ids    map[string]int32 // of all tokens
	v      *Vocab
}

func readHF(fsys fs.FS, dir string) (*Vocab, error) {
	r := &hfReader{fsys: fsys, dir: dir, v: &Vocab{BOS: -1, EOS: -1, UNK: -1, PAD: -1}}
	var tok hfTokenizer
	found, err := r.readJSON("tokenizer.json", MaxFileSize, &tok)
	if err != nil {
		return nil, err
	}
	if found {
		r.tok = &tok
	}
	if _, err := r.readJSON("tokenizer_config.json", MaxConfigSize, &r.config); err != nil {
		return nil, err
	}
	if _, err := r.readJSON("config.json", MaxConfigSize, &r.model); err != nil {
		return nil, err
	}
	if r.model.TextConfig != nil {
		r.model.inherit(r.model.TextConfig)
	}
	if err := r.collectAdded(); err != nil {
		return nil, err
	}
	switch {
	case r.tok == nil:
		err = r.fromSentencePiece(true)
	case r.tok.Model.Type != "BPE":
		err = &UnsupportedError{File: r.path("tokenizer.json"), Key: "model.type",
			What: fmt.Sprintf("tokenizer model %q", r.tok.Model.Type),
			Hint: "BPE is"}
	case r.tok.Model.ByteFallback:
		err = r.fromSentencePiece(false)
	default:
		err = r.fromBPE()
	}
	if err != nil {
		return nil, err
	}
	r.noteFlags()
	if err := r.specialIDs(); err != nil {
		return nil, err
	}
	if err := r.chatTemplate(); err != nil {
		return nil, err
	}
	if err := r.v.validate(dir); err != nil {
		return nil, err
	}
	return r.v, nil
}

// inherit takes from another configuration what c does not say. Multimodal
// models keep the language model's part in text_config.
func (c *hfModelConfig) inherit(from *hfModelConfig) {
	if c.VocabSize == nil {
		c.VocabSize = from.VocabSize
	}
	for _, p := range [][2]*hfID{{&c.BOS, &from.BOS}, {&c.EOS, &from.EOS}, {&c.PAD, &from.PAD}} {
		if p[0].id == nil {
			*p[0] = *p[1]
		}
	}
}

func (r *hfReader) path(name string) string { return filepath.Join(r.dir, name) }

func (r *hfReader) note(format string, args ...any) {
	r.v.Notes = append(r.v.Notes, fmt.Sprintf(format, args...))
}

// read returns a file of the folder, and false if there is none of that name.
func (r *hfReader) read(name string, limit int64) ([]byte, bool, error) {
	// Looked at before it is opened: opening a named pipe would wait for a writer.
	st, err := fs.Stat(r.fsys, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	if !st.Mode().IsRegular() {
		return nil, false, &FormatError{File: r.path(name), Offset: -1, Msg: "not a regular file"}
	}
	f, err := r.fsys.Open(name)
	if err != nil {
		return nil, false, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, false, err
	}
	if int64(len(data)) > limit {
		return nil, false, &FormatError{File: r.path(name), Offset: -1,
			Msg: fmt.Sprintf("larger than the %d bytes that are read", limit)}
	}
	return data, true, nil
}

// readJSON decodes a file of the folder, and reports whether it is there.
func (r *hfReader) readJSON(name string, limit int64, to any) (bool, error) {
	data, ok, err := r.read(name, limit)
	if !ok || err != nil {
		return false, err
	}
	return true, r.parseJSON(name, "", data, to)
}

// parseJSON decodes data from the named file; key says which value of it, "" all.
func (r *hfReader) parseJSON(name, key string, data []byte, to any) error {
	err := json.Unmarshal(data, to)
	if err == nil {
		return nil
	}
	e := &FormatError{File: r.path(name), Key: key, Offset: -1, Msg: err.Error(), Hint: "is the file complete?"}
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		e.Offset = syntax.Offset
	case errors.As(err, &kind):
		e.Offset, e.Hint = kind.Offset, ""
	default:
		e.Hint = ""
	}
	if key != "" {
		e.Offset = -1 // it would count from the key's value
	}
	return e
}

// collectAdded gathers the added tokens. tokenizer.json knows them best; the
// two older places count where it does not exist.
func (r *hfReader) collectAdded() error {
	byID := make(map[int64]hfAdded)
	if r.tok != nil {
		for _, a := range r.tok.AddedTokens {
			byID[a.ID] = a
		}
	} else {
		var plain map[string]int64
		if _, err := r.readJSON("added_tokens.json", MaxConfigSize, &plain); err != nil {
			return err
		}
		for content, id := range plain {
			// Of two texts with one id the smaller wins: any, but always the same.
			if a, ok := byID[id]; !ok || content < a.Content {
				byID[id] = hfAdded{ID: id, Content: content}
			}
		}
		for key, a := range r.config.Added {
			id, err := parseID(key)
			if err != nil {
				return &FormatError{File: r.path("tokenizer_config.json"), Key: "added_tokens_decoder", Offset: -1,
					Msg: err.Error()}
			}
			a.ID = id
			byID[id] = a
		}
	}
	if len(byID) > MaxAddedTokens {
		return &FormatError{File: r.path("tokenizer.json"), Key: "added_tokens", Offset: -1,
			Msg: fmt.Sprintf("%d added tokens, at most %d are read", len(byID), MaxAddedTokens)}
	}
	for _, a := range byID {
		if a.ID < 0 || a.ID >= MaxVocab {
			return &FormatError{File: r.path("tokenizer.json"), Key: "added_tokens", Offset: -1,
				Msg: fmt.Sprintf("added token %q has id %d; 0 to %d are read", clip(a.Content, 40), a.ID, MaxVocab-1)}
		}
		if a.Content != "" {
			r.added = append(r.added, a)
		}
	}
	sort.Slice(r.added, func(i, j int) bool { return r.added[i].ID < r.added[j].ID })
	return nil
}

func parseID(s string) (int64, error) {
	var id int64
	if err := json.Unmarshal([]byte(s), &id); err != nil {
		return 0, fmt.Errorf("%q is no token id", clip(s, 40))
	}
	return id, nil
}

// parseVocab reads model.vocab of tokenizer.json.
func (r *hfReader) parseVocab() error {
	m := &r.tok.Model
	if err := r.parseJSON("tokenizer.json", "model.vocab", m.Vocab, &r.vocab); err != nil {
		return err
	}
	m.Vocab = nil
	for _, o := range []struct {
		key string
		set bool
	}{
		{"continuing_subword_prefix", m.Prefix != nil && *m.Prefix != ""},
		{"end_of_word_suffix", m.Suffix != nil && *m.Suffix != ""},
		{"dropout", m.Dropout != nil && *m.Dropout != 0},
	} {
		if o.set {
			return &UnsupportedError{File: r.path("tokenizer.json"), Key: "model." + o.key, What: "BPE with " + o.key}
		}
	}
	for i, g := range m.Merges {
		if _, ok := r.vocab[g.left+g.right]; !ok {
			return &FormatError{File: r.path("tokenizer.json"), Key: "model.merges", Offset: -1,
				Msg: fmt.Sprintf("merge %d makes %q, which is not in the vocabulary", i, clip(g.left+g.right, 40))}
		}
	}
	return nil
}

// layout makes room for base tokens with ids below n and for the added tokens,
// all as padding, and returns the size. vocab_size of config.json decides it,
// since the embedding has that many rows. Base tokens beyond it are an error;
// added ones are left out, for many fine-tunes name a padding token that their
// embedding has no row for.
func (r *hfReader) layout(n int64) (int, error) {
	size := n
	if len(r.added) > 0 {
		size = max(size, r.added[len(r.added)-1].ID+1)
	}
	if want := r.model.VocabSize; want != nil {
		if *want < n {
			return 0, &FormatError{File: r.path("config.json"), Key: "vocab_size", Offset: -1,
				Msg: fmt.Sprintf("%d, but the tokenizer has tokens up to id %d", *want, n-1), Hint: "do the files belong together?"}
		}
		for k, a := range r.added {
			if a.ID >= *want {
				r.note("Added token %q has id %d, beyond vocab_size %d, and is left out.", clip(a.Content, 40), a.ID, *want)
				if len(r.added)-k > 1 {
					r.note("So are the %d added tokens after it.", len(r.added)-k-1)
				}
				r.added = r.added[:k]
				break
			}
		}
		size = *want
	}
	if size < 1 || size > MaxVocab {
		return 0, &FormatError{File: r.path("config.json"), Key: "vocab_size", Offset: -1,
			Msg: fmt.Sprintf("a vocabulary of %d tokens; 1 to %d are read", size, MaxVocab)}
	}
	v := r.v
	v.Tokens = make([]string, size)
	v.Types = make([]int32, size)
	for i := range v.Tokens {
		v.Tokens[i] = fmt.Sprintf("[PAD%d]", i)
		v.Types[i] = TypeUnused
	}
	return int(size), nil
}

// placeVocab enters the tokens of tokenizer.json.
func (r *hfReader) placeVocab() error {
	var n int64
	for text, id := range r.vocab {
		if id < 0 || id >= MaxVocab {
			return &FormatError{File: r.path("tokenizer.json"), Key: "model.vocab", Offset: -1,
				Msg: fmt.Sprintf("token %q has id %d; 0 to %d are read", clip(text, 40), id, MaxVocab-1)}
		}
		n = max(n, id+1)
	}
	if _, err := r.layout(n); err != nil {
		return err
	}
	for text, id := range r.vocab {
		if r.v.Types[id] != TypeUnused {
			return &FormatError{File: r.path("tokenizer.json"), Key: "model.vocab", Offset: -1,
				Msg: fmt.Sprintf("two tokens have id %d", id)}
		}
		r.v.Tokens[id], r.v.Types[id] = text, TypeNormal
	}
	for _, a := range r.added {
		if id, ok := r.vocab[a.Content]; ok && id != a.ID {
			return &FormatError{File: r.path("tokenizer.json"), Key: "added_tokens", Offset: -1,
				Msg: fmt.Sprintf("%q has id %d here and %d in model.vocab", clip(a.Content, 40), a.ID, id)}
		}
	}
	return nil
}

// placeAdded enters the added tokens over whatever stands at their ids.
func (r *hfReader) placeAdded() {
	for _, a := range r.added {
		text, kind := a.Content, int32(TypeControl)
		if !a.Special && !looksSpecial(text) {
			// User-defined tokens are matched in raw text, where spaces are spaces.
			text, kind = strings.ReplaceAll(text, metaspace, " "), TypeUserDefined
		}
		r.v.Tokens[a.ID], r.v.Types[a.ID] = text, kind
		if r.v.Scores != nil {
			r.v.Scores[a.ID] = -1000
		}
	}
}

// looksSpecial tells added tokens that models forgot to mark as special, by the
// rule of the stock converter.
func looksSpecial(s string) bool {
	around := func(a, b string) bool { return strings.HasPrefix(s, a) && strings.HasSuffix(s, b) }
	switch s {
	case "<pad>", "<mask>", "<2mass>", "[@BOS@]":
		return true
	}
	return around("<|", "|>") || around("<｜", "｜>") || around("<unused", ">")
}

// fromBPE builds a byte-level BPE vocabulary from tokenizer.json.
func (r *hfReader) fromBPE() error {
	v, m := r.v, &r.tok.Model
	v.Model = ModelBPE
	if err := r.parseVocab(); err != nil {
		return err
	}
	for _, s := range r.tok.Normalizer.flatten() {
		if s.Type != "NFC" {
			return &UnsupportedError{File: r.path("tokenizer.json"), Key: "normalizer",
				What: fmt.Sprintf("normalizer %q with byte-level BPE", s.Type)}
		}
		r.note("Hugging Face brings text to NFC first; llama.cpp does not.")
	}
	name, notes, err := detectPre(r.path("tokenizer.json"), r.tok.PreTokenizer, m.IgnoreMerges)
	if err != nil {
		return err
	}
	v.Pre = name
	v.Notes = append(v.Notes, notes...)
	if err := r.placeVocab(); err != nil {
		return err
	}
	r.placeAdded()
	v.Merges = make([]string, len(m.Merges))
	for i, g := range m.Merges {
		// A space inside a part would be taken for the one between the parts.
		// The stock converter writes U+0120 for it, GPT-2's spelling of a space.
		v.Merges[i] = strings.ReplaceAll(g.left, " ", "Ġ") + " " + strings.ReplaceAll(g.right, " ", "Ġ")
	}
	return nil
}

// fromSentencePiece builds a SentencePiece vocabulary from tokenizer.model, or
// from a tokenizer.json that describes one.
func (r *hfReader) fromSentencePiece(modelOnly bool) error {
	v := r.v
	v.Model, v.Pre = ModelSPM, "default"
	v.AddSpacePrefix = true
	if !modelOnly {
		if err := r.parseVocab(); err != nil {
			return err
		}
		if err := r.checkMetaspace(); err != nil {
			return err
		}
	}
	const name = "tokenizer.model"
	data, found, err := r.read(name, MaxFileSize)
	switch {
	case err != nil:
		return err
	case found:
		err = r.fromPieces(name, data)
	case modelOnly:
		return &FormatError{File: r.dir, Offset: -1, Msg: "neither tokenizer.json nor tokenizer.model is there",
			Hint: "save the tokenizer with transformers to get tokenizer.json"}
	default:
		err = r.fromMerges()
	}
	if err != nil {
		return err
	}
	if r.config.AddPrefixSpace != nil {
		v.AddSpacePrefix = *r.config.AddPrefixSpace
	}
	return nil
}

// checkMetaspace reads off whether text gets a space prefix, and refuses steps
// that SentencePiece BPE does not have.
func (r *hfReader) checkMetaspace() error {
	file := r.path("tokenizer.json")
	replaced, prefix := false, false
	for _, s := range r.tok.Normalizer.flatten() {
		switch {
		case s.Type == "Prepend" && s.Prepend == metaspace:
			prefix = true
		case s.Type == "Replace" && s.Pattern.String != nil && *s.Pattern.String == " " && s.Content == metaspace:
			replaced = true
		case s.Type == "NFC":
			r.note("Hugging Face brings text to NFC first; llama.cpp does not.")
		default:
			return &UnsupportedError{File: file, Key: "normalizer", What: fmt.Sprintf("normalizer %q with byte fallback",
				s.Type)}
		}
	}
	for _, s := range r.tok.PreTokenizer.flatten() {
		switch {
		case s.Type == "Metaspace" && s.Replacement == metaspace:
			replaced = true
			scheme := "always"
			if s.PrependScheme != nil {
				scheme = *s.PrependScheme
			} else if !s.AddPrefixSpace {
				scheme = "never"
			}
			prefix = prefix || scheme != "never"
			if scheme == "first" {
				r.note("Hugging Face puts a space prefix at the start of the text only; llama.cpp also after each special token.")
			}
		case s.Type == "Split" && s.Pattern.String != nil && *s.Pattern.String == " " && replaced:
			// No spaces are left to split at (Gemma).
		default:
			return &UnsupportedError{File: file, Key: "pre_tokenizer",
				What: fmt.Sprintf("pre-tokenizer step %q with byte fallback", s.Type)}
		}
	}
	if !replaced {
		return &UnsupportedError{File: file, Key: "normalizer", What: "byte fallback without U+2581 for spaces"}
	}
	r.v.AddSpacePrefix = prefix
	return nil
}

// fromPieces takes tokens, scores and types from tokenizer.model.
func (r *hfReader) fromPieces(name string, data []byte) error {
	v := r.v
	m, err := parseSentencePiece(r.path(name), data)
	if err != nil {
		return err
	}
	if m.modelType != 2 {
		return &UnsupportedError{File: r.path(name), Key: "trainer_spec.model_type",
			What: fmt.Sprintf("SentencePiece model type %d", m.modelType),
			Hint: "BPE (2) is"}
	}
	if m.charsMap {
		r.note("SentencePiece normalizes characters first (precompiled_charsmap); llama.cpp does not.")
	}
	if r.tok == nil {
		v.AddSpacePrefix = m.addDummyPrefix
	}
	v.RemoveExtraWhitespaces = m.removeExtraWhitespace
	if m.removeExtraWhitespace {
		r.note("SentencePiece drops extra spaces; llama.cpp keeps them.")
	}
	size, err := r.layout(int64(len(m.pieces)))
	if err != nil {
		return err
	}
	v.Scores = make([]float32, size)
	for i := range v.Scores {
		v.Scores[i] = -10000
	}
	for i, p := range m.pieces {
		v.Tokens[i], v.Scores[i], v.Types[i] = p.text, p.score, spTypes[p.kind]
		if p.kind == 4 {
			v.Tokens[i] = strings.ReplaceAll(p.text, metaspace, " ")
		}
	}
	r.placeAdded()
	inside := func(id int32) int32 {
		if id < 0 || int(id) >= len(m.pieces) {
			return -1
		}
		return id
	}
	v.UNK, v.BOS, v.EOS, v.PAD = inside(m.unk), inside(m.bos), inside(m.eos), inside(m.pad)
	return nil
}

// fromMerges gives the tokens of tokenizer.json scores in the order in which
// merges first make them. Merging by such scores equals merging by rank when
// every way to split a token into two tokens is among the merges, as it is in
// files that were converted from SentencePiece.
func (r *hfReader) fromMerges() error {
	v, m := r.v, &r.tok.Model
	if err := r.placeVocab(); err != nil {
		return err
	}
	v.Scores = make([]float32, len(v.Tokens))
	order := make(map[string]int)
	pairs := make(map[hfMerge]bool, len(m.Merges))
	for _, g := range m.Merges {
		text := g.left + g.right
		if _, ok := order[text]; !ok {
			order[text] = len(order)
		}
		pairs[g] = true
	}
	missing := 0
	for text, id := range r.vocab {
		// Tokens that no merge makes come last; they are single characters,
		// byte tokens or special ones, so their score does not matter.
		v.Scores[id] = float32(-len(order) - 1)
		if k, ok := order[text]; ok {
			v.Scores[id] = float32(-k - 1)
		}
		if _, ok := byteToken(text); ok {
			v.Types[id] = TypeByte
			continue
		}
		for i := 0; i < len(text); i += unitLen(text, i) {
			_, left := r.vocab[text[:i]]
			_, right := r.vocab[text[i:]]
			if i > 0 && left && right && !pairs[hfMerge{text[:i], text[i:]}] {
				missing++
			}
		}
	}
	if missing > 0 {
		r.note("%d pairs of tokens join to a token but are not among the merges; by score they merge too.", missing)
	}
	if t := m.UnkToken; t != nil {
		if id, ok := r.vocab[*t]; ok {
			v.Types[id], v.UNK = TypeUnknown, int32(id)
		}
	}
	r.placeAdded()
	return nil
}
