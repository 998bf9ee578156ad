package tokenizer

import (
	"fmt"
	"maps"
	"slices"
	"sort"

	"github.com/phaseconv/phaseconv/format/jsonx"
)

// collectAdded gathers the added tokens with the ids that Hugging Face gives them.
//
// Beside tokenizer.json the ids that files state do not count there: each token that
// model.vocab does not have gets the next id after all tokens so far. First come the
// tokens of tokenizer.json in their order; then, by stated id, those of
// added_tokens_decoder in tokenizer_config.json, or where that is missing of
// added_tokens.json; then the special tokens that a config names and that no file has.
// A token that tokenizer_config.json describes again is as it says there.
//
// Without tokenizer.json the stated ids are the ids.
func (r *hfReader) collectAdded() error {
	var plain map[string]int64
	if r.tok == nil || r.config.Added == nil {
		if _, err := r.readJSON("added_tokens.json", MaxConfigSize, &plain); err != nil {
			return err
		}
	}
	stated := make(map[int64]hfAdded)
	named, _ := r.named()
	for content, id := range plain {
		// Of two texts with one id the smaller wins: any, but always the same.
		if a, ok := stated[id]; !ok || content < a.Content {
			special := r.tok != nil && slices.Contains(named, hfToken(content))
			stated[id] = hfAdded{ID: id, Content: content, Special: special}
		}
	}
	for key, a := range r.config.Added {
		id, err := parseID(key)
		if err != nil {
			return &FormatError{File: r.path("tokenizer_config.json"), Key: "added_tokens_decoder", Offset: -1,
				Msg: err.Error()}
		}
		a.ID = id
		stated[id] = a
	}
	if r.tok != nil {
		if err := r.countOn(stated); err != nil {
			return err
		}
	} else {
		for _, a := range stated {
			if a.Content != "" {
				r.added = append(r.added, a)
			}
		}
	}
	if len(r.added) > MaxAddedTokens {
		return r.badAdded("%d added tokens, at most %d are read", len(r.added), MaxAddedTokens)
	}
	sort.Slice(r.added, func(i, j int) bool { return r.added[i].ID < r.added[j].ID })
	for _, a := range r.added {
		if a.ID < 0 || a.ID >= MaxVocab {
			return r.badAdded("added token %q has id %d; 0 to %d are read", clip(a.Content, 40), a.ID, MaxVocab-1)
		}
	}
	return nil
}

func (r *hfReader) badAdded(format string, args ...any) error {
	return &FormatError{File: r.path("tokenizer.json"), Key: "added_tokens", Offset: -1,
		Msg: fmt.Sprintf(format, args...)}
}

// named lists the special tokens that configs name, in the order in which Hugging
// Face adds those that it does not have. special_tokens_map.json counts only where
// tokenizer_config.json does not list added tokens, and before it there. The first
// roles of them have a role, such as the end of a text.
func (r *hfReader) named() (all []hfToken, roles int) {
	c, m := &r.config, &r.more
	if c.Added != nil {
		m = &hfConfig{}
	}
	var out []hfToken
	for _, p := range [][2]hfToken{{m.BOS, c.BOS}, {m.EOS, c.EOS}, {m.UNK, c.UNK}, {m.SEP, c.SEP}, {m.PAD, c.PAD},
		{m.CLS, c.CLS}, {m.MASK, c.MASK}} {
		if p[0] != "" {
			out = append(out, p[0])
		} else {
			out = append(out, p[1])
		}
	}
	none := func(t hfToken) bool { return t == "" }
	out = slices.DeleteFunc(out, none)
	roles = len(out)
	for _, list := range []hfTokens{slices.Concat(c.Extra, m.Extra), m.Additional, c.Additional} {
		if len(list) > 0 {
			out = append(out, list...)
			break
		}
	}
	return slices.DeleteFunc(out, none), roles
}

// countOn gives the added tokens of a folder with tokenizer.json their ids. stated
// are the tokens of the other files, by the ids that these state.
func (r *hfReader) countOn(stated map[int64]hfAdded) error {
	if r.config.Added == nil {
		// What tokenizer.json states for an id comes before the older places, and
		// where both describe a token the higher id counts.
		for _, a := range r.tok.AddedTokens {
			id := a.ID
			a.ID = -1 // said already
			stated[id] = a
		}
	}
	c := newIDCounter(r)
	for _, a := range r.tok.AddedTokens {
		if a.ID < 0 || a.ID >= MaxVocab {
			return r.badAdded("added token %q has id %d; 0 to %d are read", clip(a.Content, 40), a.ID, MaxVocab-1)
		}
		if err := c.add(a, "tokenizer.json"); err != nil {
			return err
		}
	}
	file := "tokenizer_config.json"
	if r.config.Added == nil {
		file = "added_tokens.json"
	}
	for _, id := range slices.Sorted(maps.Keys(stated)) {
		if err := c.add(stated[id], file); err != nil {
			return err
		}
	}
	listed := map[string]bool{}
	for _, a := range r.config.Added {
		listed[a.Content] = true
	}
	named, roles := r.named()
	for i, t := range named {
		if k, ok := c.at[string(t)]; ok {
			// Where tokenizer_config.json lists added tokens, it says which are special
			// but for those that it lists and names.
			if i < roles && (r.config.Added == nil || listed[string(t)]) {
				r.added[k].Special = true
			}
			continue
		}
		if err := c.add(hfAdded{ID: -1, Content: string(t), Special: true}, ""); err != nil {
			return err
		}
	}
	if c.moved > 0 {
		r.note("%s", c.first)
	}
	if c.moved > 1 {
		r.note("So it is with %d more added tokens.", c.moved-1)
	}
	return nil
}

// An idCounter gives ids to added tokens as Hugging Face does, which counts on from the vocabulary.
type idCounter struct {
	r     *hfReader
	taken map[int64]string // ids of model.vocab that counting can meet
	at    map[string]int   // place in r.added
	next  int64
	moved int    // tokens that a file gives another id than they get
	first string // what is said about the first of them
}

func newIDCounter(r *hfReader) *idCounter {
	c := &idCounter{r: r, taken: map[int64]string{}, at: map[string]int{}, next: int64(len(r.vocab))}
	for text, id := range r.vocab {
		if id >= c.next {
			c.taken[id] = text
		}
	}
	return c
}

// add adds a token that file states, or one that is known again.
func (c *idCounter) add(a hfAdded, file string) error {
	if a.Content == "" {
		return nil
	}
	r, said := c.r, a.ID
	k, again := c.at[a.Content]
	id, own := r.vocab[a.Content]
	switch {
	case again:
		id = r.added[k].ID
	case !own:
		id = c.next
		if text, ok := c.taken[id]; ok {
			return r.badAdded("Hugging Face would give added token %q the id %d, which %q has in model.vocab; "+
				"number the vocabulary without gaps", clip(a.Content, 40), id, clip(text, 40))
		}
	}
	c.next = max(c.next, id+1)
	if said >= 0 && said != id {
		if c.moved++; c.moved == 1 {
			c.first = fmt.Sprintf("%s gives added token %q the id %d, but Hugging Face counts on from the vocabulary "+
				"to %d, which is used.", file, clip(a.Content, 40), said, id)
		}
	}
	a.ID = id
	if again {
		r.added[k] = a
		return nil
	}
	c.at[a.Content] = len(r.added)
	r.added = append(r.added, a)
	return nil
}

func parseID(s string) (int64, error) {
	var id int64
	if err := jsonx.Unmarshal([]byte(s), &id); err != nil {
		return 0, fmt.Errorf("%q is no token id", clip(s, 40))
	}
	return id, nil
}
