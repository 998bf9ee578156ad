package tokenizer

import (
	"math"
	"slices"
)

// noRank marks a pair that does not merge.
const noRank = math.MaxUint32

// A pair is the outcome of joining two neighbouring symbols: how early the
// merge is made (lower ranks first) and the symbol it makes.
type pair struct {
	rank uint32
	id   int32
}

// A ranker knows the merges of a vocabulary. left and right are symbol ids (-1
// for a unit without one) and text is both symbols' text.
type ranker interface {
	pair(left, right int32, text string) pair
}

// work holds the symbols of one word and the scratch space of the merge loop.
// Symbol i has id ids[i] and text word[off[i]:off[i+1]].
type work struct {
	ids   []int32
	off   []int32
	pairs []pair

	// heap path
	prev, next []int32
	heap       []uint64
}

func (w *work) reset() {
	w.ids, w.off = w.ids[:0], w.off[:0]
}

// merge joins neighbouring symbols until no pair is left that merges. The pair
// of lowest rank goes first, and of equal ranks the leftmost. That order is
// the definition of BPE; without the second half "!!!!!!" comes out wrong.
func (w *work) merge(r ranker, word string) {
	if len(w.ids) <= maxSmallMerge {
		w.mergeScan(r, word)
	} else {
		w.mergeHeap(r, word)
	}
}

// mergeScan looks through all pairs for each merge: quadratic, and the fastest
// for the words of ordinary text.
func (w *work) mergeScan(r ranker, word string) {
	ids, off := w.ids, w.off
	p := w.pairs[:0]
	for i := 0; i+1 < len(ids); i++ {
		p = append(p, r.pair(ids[i], ids[i+1], word[off[i]:off[i+2]]))
	}
	w.pairs = p
	for {
		best, rank := -1, uint32(noRank)
		for i := range p {
			if p[i].rank < rank {
				best, rank = i, p[i].rank
			}
		}
		if best < 0 {
			break
		}
		ids[best] = p[best].id
		ids = append(ids[:best+1], ids[best+2:]...)
		off = append(off[:best+1], off[best+2:]...)
		p = append(p[:best], p[best+1:]...)
		if best > 0 {
			p[best-1] = r.pair(ids[best-1], ids[best], word[off[best-1]:off[best+1]])
		}
		if best < len(p) {
			p[best] = r.pair(ids[best], ids[best+1], word[off[best]:off[best+2]])
		}
	}
	w.ids, w.off = ids, off
}

// mergeHeap keeps the pairs in a heap ordered by (rank, position): O(n log n).
// A heap entry is stale when the pair at its position has another rank by now.
func (w *work) mergeHeap(r ranker, word string) {
	// Symbols form a list by position; a merge keeps the left one and unlinks
	// the right one, so positions, and with them the order, stay what they were.
	n := int32(len(w.ids))
	ids, off := w.ids, w.off
	w.prev, w.next = slices.Grow(w.prev[:0], int(n))[:int(n)], slices.Grow(w.next[:0], int(n))[:int(n)]
	if cap(w.pairs) < int(n) {
		w.pairs = make([]pair, n)
	}
	prev, next, p := w.prev, w.next, w.pairs[:n]
	h := w.heap[:0]
	for i := range n {
		prev[i], next[i] = i-1, i+1
		p[i] = pair{noRank, -1}
		if i+1 < n {
			p[i] = r.pair(ids[i], ids[i+1], word[off[i]:off[i+2]])
		}
		if p[i].rank != noRank {
			h = append(h, uint64(p[i].rank)<<32|uint64(i))
		}
	}
	for i := len(h)/2 - 1; i >= 0; i-- { // heapify, linear time
		siftDown(h, i)
	}
	// end returns where symbol i stops: off holds starts of live symbols only.
	end := func(i int32) int32 {
		if j := next[i]; j < n {
			return off[j]
		}
		return off[n]
	}
	update := func(i int32) {
		p[i] = pair{noRank, -1}
		if j := next[i]; j < n {
			p[i] = r.pair(ids[i], ids[j], word[off[i]:end(j)])
		}
		if p[i].rank != noRank {
			h = append(h, uint64(p[i].rank)<<32|uint64(i))
			siftUp(h, len(h)-1)
		}
	}
	for len(h) > 0 {
		top := h[0]
		h[0] = h[len(h)-1]
		h = h[:len(h)-1]
		siftDown(h, 0)
		i := int32(top & math.MaxUint32)
		if p[i].rank != uint32(top>>32) {
			continue
		}
		j := next[i]
		ids[i] = p[i].id
		p[j] = pair{noRank, -1} // symbol j is gone; its entries are stale now
		next[i] = next[j]
		if next[i] < n {
			prev[next[i]] = i
		}
		update(i)
		if prev[i] >= 0 {
			update(prev[i])
		}
	}
	w.heap = h
	k := 0
	for i := int32(0); i < n; i = next[i] {
		ids[k], off[k] = ids[i], off[i]
		k++
	}
	off[k] = off[n]
	w.ids, w.off = ids[:k], off[:k+1]
}

func siftDown(h []uint64, i int) {
	for {
		c := 2*i + 1
		if c >= len(h) {
			return
		}
		if c+1 < len(h) && h[c+1] < h[c] {
			c++
		}
		if h[i] <= h[c] {
			return
		}
		h[i], h[c] = h[c], h[i]
		i = c
	}
}

func siftUp(h []uint64, i int) {
	for i > 0 {
		up := (i - 1) / 2
		if h[up] <= h[i] {
			return
		}
		h[i], h[up] = h[up], h[i]
		i = up
	}
}
