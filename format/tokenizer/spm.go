package tokenizer

import "strings"

// spmRanker merges two neighbours if their joint text is a token, the highest
// score first.
type spmRanker struct {
	ids   map[string]int32
	ranks []uint32
}

func (r *spmRanker) pair(_, _ int32, text string) pair {
	if id, ok := r.ids[text]; ok {
		return pair{r.ranks[id], id}
	}
	return pair{noRank, -1}
}

// buildSPM prepares the scores, the byte tokens, and the cuts of encodeSPM.
func (t *Tokenizer) buildSPM() {
	v := t.vocab
	t.merges = &spmRanker{t.ids, denseRanks(v.Scores[:len(v.Tokens)])}
	t.words = t.ids
	for b := range t.byteIDs {
		id, ok := t.ids[byteTokenText(byte(b))]
		if !ok {
			id, ok = t.ids[string([]byte{byte(b)})]
		}
		if !ok && v.UNK >= 0 {
			id, ok = v.UNK, true
		}
		if ok {
			t.byteIDs[b] = []int32{id}
		}
	}
	t.inner = make(map[string]bool)
	for text := range t.ids {
		last := ""
		for i := 0; i < len(text); {
			n := unitLen(text, i)
			if last != "" && text[i:i+n] == metaspace {
				t.inner[last] = true
			}
			last = text[i : i+n]
			i += n
		}
	}
}

// encodeSPM encodes text between special tokens.
func (t *Tokenizer) encodeSPM(dst []int32, w *work, text string, prefix bool) []int32 {
	if prefix {
		text = " " + text
	}
	text = strings.ReplaceAll(text, " ", metaspace)
	// Merging the whole text at once would mean a heap of its size. Cutting
	// it where no token reaches across gives the same ids from short words.
	// Symbols have no ids yet: merging goes by text, and most units merge.
	w.reset()
	start := 0
	for i := 0; i < len(text); {
		n := unitLen(text, i)
		unit := text[i : i+n]
		if i > start && unit == metaspace && !t.inner[text[start+int(w.off[len(w.off)-1]):i]] || i-start >= maxWordLen {
			dst = t.encodeSPMWord(dst, w, text[start:i])
			start = i
			w.reset()
		}
		w.ids = append(w.ids, -1)
		w.off = append(w.off, int32(i-start))
		i += n
	}
	return t.encodeSPMWord(dst, w, text[start:])
}

// encodeSPMWord merges the units in w, which are those of word.
func (t *Tokenizer) encodeSPMWord(dst []int32, w *work, word string) []int32 {
	id, known := t.words[word]
	if known && t.reached[id].Load() == wordReached {
		return append(dst, id)
	}
	w.off = append(w.off, int32(len(word)))
	w.merge(t.merges, word)
	for i, id := range w.ids {
		unit := word[w.off[i]:w.off[i+1]]
		if id < 0 { // a unit that merged with nothing
			var ok bool
			if id, ok = t.ids[unit]; !ok {
				for _, b := range []byte(unit) {
					dst = append(dst, t.byteIDs[b]...)
				}
				continue
			}
		}
		w.ids[i] = id
		dst = append(dst, id)
	}
	if known {
		t.noteWord(id, w)
	}
	return dst
}
