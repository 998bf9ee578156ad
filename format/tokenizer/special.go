package tokenizer

import (
	"sort"
	"strings"
)

// A span is a part of the input: text still to be tokenized, or one special
// token (id >= 0).
type span struct {
	start, end int
	id         int32
}

// matcher finds special tokens in raw text before anything else happens to it.
type matcher struct {
	tokens []special        // longest first, then by id: the order in which they claim text
	edges  map[uint64]int32 // trie: node<<8 | byte -> node
	final  []int32          // trie node -> index in tokens, or -1
	first  [256]bool
}

type special struct {
	text   string
	id     int32
	always bool // user-defined: matched even when special tokens are not parsed
}

func newMatcher(tokens []special) *matcher {
	m := &matcher{tokens: tokens, edges: make(map[uint64]int32), final: []int32{-1}}
	sort.SliceStable(tokens, func(i, j int) bool { return len(tokens[i].text) > len(tokens[j].text) })
	for i, tok := range tokens {
		node := int32(0)
		for _, b := range []byte(tok.text) {
			key := uint64(node)<<8 | uint64(b)
			next, ok := m.edges[key]
			if !ok {
				next = int32(len(m.final))
				m.edges[key] = next
				m.final = append(m.final, -1)
			}
			node = next
		}
		m.final[node] = int32(i) // texts differ, so no node ends two tokens
		m.first[tok.text[0]] = true
	}
	return m
}

// partition cuts text at special tokens as llama.cpp does: the longest token
// claims its occurrences from left to right, then the next one in what is left.
// (Hugging Face takes the leftmost occurrence of any token, then the longest
// there; the two differ only where occurrences of two tokens overlap.)
func (m *matcher) partition(text string, parseSpecial bool) []span {
	whole := []span{{0, len(text), -1}}
	if text == "" {
		return nil
	}
	// One pass over the text finds which tokens occur at all, and where first
	// and last: of thousands of special tokens few do.
	type found struct{ token, first, last int }
	var hits []found
	index := make(map[int32]int)
	for i := 0; i < len(text); i++ {
		if !m.first[text[i]] {
			continue
		}
		node, ok := int32(0), false
		for j := i; j < len(text); j++ {
			if node, ok = m.edges[uint64(node)<<8|uint64(text[j])]; !ok {
				break
			}
			n := m.final[node]
			if n < 0 || !parseSpecial && !m.tokens[n].always {
				continue
			}
			if h, seen := index[n]; seen {
				hits[h].last = i
			} else {
				index[n] = len(hits)
				hits = append(hits, found{int(n), i, i})
			}
		}
	}
	sort.Slice(hits, func(i, j int) bool { return hits[i].token < hits[j].token })
	spans := whole
	for _, h := range hits {
		tok := m.tokens[h.token]
		var next []span
		for _, s := range spans {
			if s.id >= 0 || s.end <= h.first || s.start > h.last {
				next = append(next, s)
				continue
			}
			// What lies before a match is free for shorter tokens; what lies
			// behind it may hold further matches of this one.
			for {
				k := strings.Index(text[s.start:s.end], tok.text)
				if k < 0 {
					break
				}
				k += s.start
				if k > s.start {
					next = append(next, span{s.start, k, -1})
				}
				next = append(next, span{k, k + len(tok.text), tok.id})
				s.start = k + len(tok.text)
			}
			if s.start < s.end {
				next = append(next, s)
			}
		}
		spans = next
	}
	return spans
}
