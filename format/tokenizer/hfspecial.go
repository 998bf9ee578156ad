package tokenizer

import (
	"encoding/json"
	"strings"
)

// noteFlags reports added tokens whose flags llama.cpp has no place for.
func (r *hfReader) noteFlags() {
	count := func(what string, has func(hfAdded) bool) {
		n, first := 0, ""
		for _, a := range r.added {
			if has(a) {
				if n == 0 {
					first = a.Content
				}
				n++
			}
		}
		if n > 0 {
			r.note("%s is set for %d added tokens (%q ...); llama.cpp does not know it.", what, n, clip(first, 40))
		}
	}
	count("lstrip", func(a hfAdded) bool { return a.LStrip })
	count("rstrip", func(a hfAdded) bool { return a.RStrip })
	count("single_word", func(a hfAdded) bool { return a.SingleWord })
}

// specialIDs finds the special tokens and whether they are added to text.
func (r *hfReader) specialIDs() error {
	v, c := r.v, &r.config
	var more hfConfig
	if _, err := r.readJSON("special_tokens_map.json", MaxConfigSize, &more); err != nil {
		return err
	}
	var generation hfModelConfig
	if _, err := r.readJSON("generation_config.json", MaxConfigSize, &generation); err != nil {
		return err
	}
	r.model.inherit(&generation)
	r.ids = make(map[string]int32, len(v.Tokens))
	for i, t := range v.Tokens {
		r.ids[t] = int32(i)
	}
	// What tokenizer_config.json names comes before the ids of config.json, and
	// the post_processor, which acts on text, overrules both: the order of the
	// stock converter.
	first, last := r.template()
	if c.BOS == "" {
		c.BOS = c.CLS // encoders name their first and last token so
	}
	if c.EOS == "" {
		c.EOS = c.SEP
	}
	if c.BOS == "" {
		c.BOS = hfToken(first)
	}
	if last != "" && c.EOS != "" && hfToken(last) != c.EOS {
		// Text ends with another token than turns do.
		if id, ok := r.ids[string(c.EOS)]; ok {
			v.setExtra(keyEOT, id)
		}
	}
	if last != "" {
		c.EOS = hfToken(last)
	}
	r.nameIDs(&more)
	r.addsBOS(first)
	r.addsEOS(last)
	return nil
}

// nameIDs sets the ids of the special tokens: those that the tokenizer's own files
// or more name by text, else those that the model's files name by number.
func (r *hfReader) nameIDs(more *hfConfig) {
	v, c := r.v, &r.config
	// set takes the first name that is a token, else the id.
	set := func(to *int32, id hfID, names ...hfToken) {
		for _, n := range names {
			if x, ok := r.ids[string(n)]; ok && n != "" {
				*to = x
				return
			}
		}
		if id.id != nil && *id.id >= 0 && *id.id < int64(len(v.Tokens)) {
			*to = int32(*id.id)
		}
	}
	set(&v.BOS, r.model.BOS, c.BOS, more.BOS)
	set(&v.EOS, r.model.EOS, c.EOS, more.EOS)
	set(&v.UNK, hfID{}, c.UNK, more.UNK)
	set(&v.PAD, r.model.PAD, c.PAD, more.PAD)
	for _, e := range []struct {
		key   string
		names []hfToken
	}{{keySEP, []hfToken{c.SEP, more.SEP}}, {keyMASK, []hfToken{c.MASK, more.MASK}}} {
		id := int32(-1)
		if set(&id, hfID{}, e.names...); id >= 0 {
			v.setExtra(e.key, id)
		}
	}
}

// addsBOS decides whether a BOS token is put before text; first is what the
// post_processor puts there.
func (r *hfReader) addsBOS(first string) {
	v, c := r.v, &r.config
	firstID, ok := r.ids[first]
	switch {
	case c.AddBOS != nil:
		v.AddBOS = *c.AddBOS
	case first != "":
		if v.AddBOS = ok && firstID == v.BOS; !v.AddBOS {
			r.note("Hugging Face puts %q before the text, which is not the BOS token; llama.cpp cannot.", clip(first, 40))
		}
	case v.Model == ModelSPM:
		// The tokenizer classes for SentencePiece add a BOS unless told not
		// to; the class that takes tokenizer.json as it is does not.
		v.AddBOS = r.tok == nil || c.Class != "PreTrainedTokenizerFast" && c.Class != "TokenizersBackend"
	case preTokenizers[v.Pre].addBOS:
		r.note("Nothing in the files asks for a BOS token; llama.cpp would add one for %s unless add_bos_token says false.",
			v.Pre)
	}
	if v.AddBOS && v.BOS < 0 {
		r.note("A BOS token is to be added but none is named; none is added.")
		v.AddBOS = false
	}
}

// addsEOS decides the same for an EOS token after text.
func (r *hfReader) addsEOS(last string) {
	v := r.v
	v.AddEOS = last != ""
	if r.config.AddEOS != nil {
		v.AddEOS = *r.config.AddEOS
	}
	if v.AddEOS && v.EOS < 0 {
		r.note("An EOS token is to be added but none is named; none is added.")
		v.AddEOS = false
	}
}

// template returns the special tokens that the post_processor puts around a
// single text, "" for none.
func (r *hfReader) template() (first, last string) {
	if r.tok == nil {
		return "", ""
	}
	name := func(list []any) string {
		if len(list) > 0 {
			if s, ok := list[0].(string); ok {
				return s
			}
		}
		return ""
	}
	for _, s := range r.tok.PostProcessor.flatten() {
		switch s.Type {
		case "RobertaProcessing", "BertProcessing":
			first, last = name(s.Cls), name(s.Sep)
		case "TemplateProcessing":
			if n := len(s.Single); n > 1 {
				if t := s.Single[0].SpecialToken; t != nil {
					first = t.ID
				}
				if t := s.Single[n-1].SpecialToken; t != nil {
					last = t.ID
				}
			}
		}
	}
	return first, last
}

// chatTemplate finds the chat template. Like the stock converter it prefers the
// one in tokenizer_config.json.
func (r *hfReader) chatTemplate() error {
	raw, key, file := r.config.Template, "chat_template", "tokenizer_config.json"
	if len(raw) == 0 || string(raw) == "null" {
		text, found, err := r.read("chat_template.jinja", MaxTemplateSize)
		if err != nil {
			return err
		}
		if found {
			r.v.ChatTemplate = string(text)
			return nil
		}
		var old struct {
			Template json.RawMessage `json:"chat_template"`
		}
		file = "chat_template.json"
		if _, err := r.readJSON(file, MaxConfigSize, &old); err != nil {
			return err
		}
		raw = old.Template
	}
	if len(raw) == 0 || string(raw) == "null" {
		return nil
	}
	if raw[0] == '"' {
		return r.parseJSON(file, key, raw, &r.v.ChatTemplate)
	}
	var list []struct{ Name, Template string }
	if err := r.parseJSON(file, key, raw, &list); err != nil {
		return err
	}
	for _, t := range list {
		// Names become part of GGUF keys.
		name := strings.Map(func(c rune) rune {
			if 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' {
				return c
			}
			return '_'
		}, t.Name)
		switch name {
		case "":
		case "default":
			r.v.ChatTemplate = t.Template
		default:
			r.v.setTemplate(name, t.Template)
		}
	}
	return nil
}
