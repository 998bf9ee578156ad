package tokenizer

import (
	"math/bits"
	"strings"
	"unicode/utf8"
)

// spelling holds GPT-2's printable spelling of every byte: bytes that print
// stand for themselves, the others for U+0100 and up, in order.
var spelling = func() (s [256]rune) {
	n := rune(256)
	for b := range s {
		switch {
		case '!' <= b && b <= '~', 0xA1 <= b && b <= 0xAC, 0xAE <= b:
			s[b] = rune(b)
		default:
			s[b] = n
			n++
		}
	}
	return s
}()

// spelled is the inverse of spelling, -1 where a character spells no byte.
var spelled = func() (m [256 + 68]int16) {
	for r := range m {
		m[r] = -1
	}
	for b, r := range spelling {
		m[r] = int16(b)
	}
	return m
}()

// unspell returns the bytes that a token of byte-level BPE stands for, and
// whether it consists of spelled bytes only. Other characters are kept.
func unspell(token string) (string, bool) {
	b, all := make([]byte, 0, len(token)), true
	for i := 0; i < len(token); {
		r, n := utf8.DecodeRuneInString(token[i:])
		if int(r) < len(spelled) && spelled[r] >= 0 {
			b = append(b, byte(spelled[r]))
		} else {
			b = append(b, token[i:i+n]...)
			all = false
		}
		i += n
	}
	return string(b), all
}

// A pairTable is a hash table from a pair of symbols to its merge, with open
// addressing: the lookup that byte-level BPE spends its time in.
type pairTable struct {
	slots []pairSlot
	shift uint
}

type pairSlot struct {
	key uint64 // left<<32 | right, or noKey
	pair
}

const noKey = 1<<64 - 1

// newPairTable makes a table for n pairs, at most two thirds full.
func newPairTable(n int) *pairTable {
	log := max(4, bits.Len(uint(n*3/2)))
	t := &pairTable{slots: make([]pairSlot, 1<<log), shift: uint(64 - log)}
	for i := range t.slots {
		t.slots[i].key = noKey
	}
	return t
}

// find returns the slot of key, or the empty slot where it belongs.
func (t *pairTable) find(key uint64) *pairSlot {
	mask := uint64(len(t.slots) - 1)
	// The top bits of a product with 2^64/phi spread keys that are near each other.
	for i := key * 0x9E3779B97F4A7C15 >> t.shift; ; i = (i + 1) & mask {
		if s := &t.slots[i]; s.key == key || s.key == noKey {
			return s
		}
	}
}

func pairKey(left, right int32) uint64 {
	return uint64(uint32(left))<<32 | uint64(uint32(right))
}

func (t *pairTable) pair(left, right int32, _ string) pair {
	if left < 0 || right < 0 {
		return pair{noRank, -1}
	}
	if s := t.find(pairKey(left, right)); s.key != noKey {
		return s.pair
	}
	return pair{noRank, -1}
}

// buildBPE prepares the merges. Symbols are named by token id; what is no token
// but occurs in a merge, or spells a byte, gets an id above the vocabulary.
func (t *Tokenizer) buildBPE() {
	others := make(map[string]int32)
	symbol := func(s string) int32 {
		if id, ok := t.ids[s]; ok {
			return id
		}
		id, ok := others[s]
		if !ok {
			id = int32(len(t.vocab.Tokens) + len(others))
			others[s] = id
		}
		return id
	}
	table := newPairTable(len(t.vocab.Merges))
	for rank, m := range t.vocab.Merges {
		left, right, _ := cutMerge(m)
		l, r := symbol(left), symbol(right)
		// Of equal merges the first counts, as in llama.cpp (Hugging Face: the last).
		if s := table.find(pairKey(l, r)); s.key == noKey {
			*s = pairSlot{pairKey(l, r), pair{uint32(rank), symbol(left + right)}}
		}
	}
	t.merges = table
	if t.pre.rawUTF8 {
		t.symbols = others
		for text, id := range t.ids {
			if unitLen(text, 0) == len(text) {
				others[text] = id
			}
		}
		for b := range t.byteIDs {
			if id, ok := t.ids[byteTokenText(byte(b))]; ok {
				t.byteIDs[b] = []int32{id}
			}
		}
		return
	}
	for b, r := range spelling {
		t.byteSym[b] = symbol(string(r))
		// The fallback of llama.cpp looks the spelling up byte by byte.
		for _, x := range []byte(string(r)) {
			if id, ok := t.ids[string([]byte{x})]; ok {
				t.byteIDs[b] = append(t.byteIDs[b], id)
			}
		}
	}
	t.words = make(map[string]int32, len(t.ids))
	for text, id := range t.ids {
		if s, ok := unspell(text); ok {
			t.words[s] = id
		}
	}
}

// encodeBytes encodes one word with byte-level BPE.
func (t *Tokenizer) encodeBytes(dst []int32, w *work, word string) []int32 {
	for len(word) > maxWordLen {
		dst = t.encodeBytes(dst, w, word[:maxWordLen])
		word = word[maxWordLen:]
	}
	id, known := t.words[word]
	if known && (t.pre.ignoreMerges || t.reached[id].Load() == wordReached) {
		return append(dst, id)
	}
	// One symbol per byte, since a spelled byte is one character.
	w.reset()
	for i := range len(word) {
		w.ids = append(w.ids, t.byteSym[word[i]])
		w.off = append(w.off, int32(i))
	}
	w.off = append(w.off, int32(len(word)))
	w.merge(t.merges, word)
	if known {
		t.noteWord(id, w)
	}
	for i, id := range w.ids {
		if int(id) < len(t.vocab.Tokens) {
			dst = append(dst, id)
			continue
		}
		for _, b := range []byte(word[w.off[i]:w.off[i+1]]) {
			dst = append(dst, t.byteIDs[b]...)
		}
	}
	return dst
}

// noteWord records whether merging a word has led to its token. The answer is
// the same whoever finds it, so concurrent writers do not matter.
func (t *Tokenizer) noteWord(id int32, w *work) {
	state := uint32(wordNotReached)
	if len(w.ids) == 1 && w.ids[0] == id {
		state = wordReached
	}
	t.reached[id].Store(state)
}

// encodeRaw encodes one line with BPE over UTF-8. A run of newlines that is a
// token is that token without merging, as in llama.cpp.
func (t *Tokenizer) encodeRaw(dst []int32, w *work, word string) []int32 {
	if strings.Trim(word, "\n") == "" {
		if id, ok := t.ids[word]; ok {
			return append(dst, id)
		}
	}
	for len(word) > 0 {
		w.reset()
		i := 0
		for i < len(word) && i < maxWordLen {
			n := unitLen(word, i)
			id, ok := t.symbols[word[i:i+n]]
			if !ok {
				id = -1
			}
			w.ids = append(w.ids, id)
			w.off = append(w.off, int32(i))
			i += n
		}
		w.off = append(w.off, int32(i))
		w.merge(t.merges, word)
		for k, id := range w.ids {
			if id >= 0 && int(id) < len(t.vocab.Tokens) {
				dst = append(dst, id)
				continue
			}
			for _, b := range []byte(word[w.off[k]:w.off[k+1]]) {
				dst = append(dst, t.byteIDs[b]...)
			}
		}
		word = word[i:]
	}
	return dst
}
