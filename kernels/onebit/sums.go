package onebit

import (
	"fmt"
	"slices"
	"sync"
)

// Sums over values want the other direction: for a code of values v = mu + alpha M s
// the weighted sum of n tokens is (sum_j w_j) mu + M t with
//
//	t[i] = sum_j w_j alpha_j s_i[j],
//
// a sum over tokens j for every sign i. It is what Score computes when signs and tokens
// change places: sign i is a "key" whose bits are the tokens. So the same kernels serve,
// once the bits of SumTokens tokens have been transposed, and the same rounding:
// of every SumTokens tokens, from the first on, the weights x[j] = w_j alpha_j (rounded
// to float32; 0 for tokens that do not exist) become the integers Q[j] and the step of
// the package comment, and in float32, rounded after each operation,
//
//	t[i] = t[i] + ((sum_j Q[j] s_i[j]) * step),
//
// with an exact integer sum. So all instruction sets give the same bits here too. Against
// real numbers t is off by at most SumTokens/2 steps for every SumTokens tokens, and by
// sqrt(SumTokens/12) steps in the root mean square: with a step of at most 4/2012 of the
// largest weight, 0.7 % of it.

// SumTokens is the number of tokens whose signs are transposed, and whose weights are
// rounded, together.
const SumTokens = 128

const sumWords = SumTokens / wordBits

// TransposedLen returns the words that SumTokens tokens of b signs take when transposed.
func TransposedLen(b int) int { return Words(b) * wordBits * sumWords }

// Transpose sets dst, TransposedLen(signs.Len()) words, from some signs of n tokens, at most
// SumTokens, in blocks of 16 as the package comment has them. In dst, bit j of sign
// signs.From + i is that of token j: it is bit j mod 32 of word
//
//	(i div 16) * 64 + 16 (j div 32) + i mod 16,
//
// the layout of keys of SumTokens bits. Bits of tokens that do not exist are clear.
func Transpose(dst, bits []uint32, signs Range, n int) {
	stride := signs.check()
	if n < 0 || n > SumTokens || len(bits) < Len(n, signs.B) || len(dst) < TransposedLen(signs.Len()) {
		panic(fmt.Sprintf("onebit: %d tokens of %d bits in %d words do not fit into %d words", n, signs.B, len(bits), len(dst)))
	}
	if n < SumTokens {
		whole := tokensPool.Get().(*wholeTokens)
		defer tokensPool.Put(whole)
		bits = whole.fill(bits[:Len(n, signs.B)], stride)
	}
	transposeTokens(dst, bits[signs.From/wordBits*BlockKeys:], Words(signs.Len()), stride)
}

// wholeTokens has room for SumTokens tokens, of which not all are there.
type wholeTokens [SumTokens * maxWords]uint32

var tokensPool = sync.Pool{New: func() any { return new(wholeTokens) }}

// fill returns the bits of SumTokens tokens of stride words, the first of which are given.
func (w *wholeTokens) fill(bits []uint32, stride int) []uint32 {
	used := copy(w[:], bits)
	clear(w[used : SumTokens*stride])
	return w[:SumTokens*stride]
}

// transposePairs transposes SumTokens tokens with a function for two blocks of 16 tokens.
func transposePairs(dst, bits []uint32, words, stride int, pair func(dst, first, second []uint32, words int)) {
	block := BlockKeys * stride
	for w := range sumWords {
		pair(dst[w*BlockKeys:], bits[2*w*block:], bits[(2*w+1)*block:], words)
	}
}

// transposeGeneric makes one word of every sign from two blocks of 16 tokens.
func transposeGeneric(dst, first, second []uint32, words int) {
	const group = sumWords * BlockKeys
	for w := range words {
		var a [wordBits]uint32
		copy(a[:BlockKeys], first[w*BlockKeys:])
		copy(a[BlockKeys:], second[w*BlockKeys:])
		// Squares of half the size change places, five times.
		mask := uint32(0xffff)
		for half := 16; half > 0; half /= 2 {
			for i := 0; i < wordBits; i = (i + half + 1) &^ half {
				x := (a[i]>>half ^ a[i+half]) & mask
				a[i+half] ^= x
				a[i] ^= x << half
			}
			mask ^= mask << (half / 2)
		}
		copy(dst[2*w*group:][:BlockKeys], a[:BlockKeys])
		copy(dst[(2*w+1)*group:][:BlockKeys], a[BlockKeys:])
	}
}

func weighGeneric(out, p []float32, scales []uint16) {
	for i := range out {
		out[i] = p[i] * widen(scales[i])
	}
}

// addSums adds to t[h*ldt+i], for every head h of weights and sign i below b, the sum
// over SumTokens tokens. weights are tables of SumTokens weights x[j] a head, see above;
// transposed is what Transpose made.
func addSums(t []float32, ldt int, weights *Tables, transposed []uint32, b int) {
	if weights.heads == 0 {
		return
	}
	if weights.signs != All(SumTokens) || len(transposed) < TransposedLen(b) {
		panic(fmt.Sprintf("onebit: sums over %d tokens, %d words for %d signs: want %d and %d",
			weights.signs.Len(), len(transposed), b, SumTokens, TransposedLen(b)))
	}
	checkSums(t, ldt, weights.heads, b)
	full := b / BlockKeys
	if full > 0 {
		scoreBlocks(t, ldt, weights, transposed, nil, full, weights.consts)
	}
	rest := b % BlockKeys
	if rest == 0 {
		return
	}
	var few [8 * BlockKeys]float32
	tail := append(few[:0], make([]float32, weights.heads*BlockKeys)...)
	for h := range weights.heads {
		copy(tail[h*BlockKeys:], t[h*ldt+full*BlockKeys:][:rest])
	}
	scoreBlocks(tail, BlockKeys, weights, transposed[full*BlockKeys*sumWords:], nil, 1, weights.consts)
	for h := range weights.heads {
		copy(t[h*ldt+full*BlockKeys:][:rest], tail[h*BlockKeys:])
	}
}

func checkSums(t []float32, ldt, heads, b int) {
	if heads > 1 && ldt < b || len(t) < (heads-1)*ldt+b {
		panic(fmt.Sprintf("onebit: %d numbers at distance %d do not hold %d sums of %d heads", len(t), ldt, b, heads))
	}
}

// Sums holds the memory that Add uses again. The zero value is ready; one serves one
// goroutine.
type Sums struct {
	transposed []uint32
	weights    []float32
	tables     Tables
}

// Add adds the sums over n tokens to t: for every head h and sign signs.From + i of a range
//
//	t[h*ldt+i] += sum_j w[h*ldw+j] scale[j] s_(signs.From+i)[j],
//
// rounded as is written above. bits and scales are what Score takes. Calls for successive
// parts of a cache, each but the last of a multiple of SumTokens tokens, give the bits of one.
func (s *Sums) Add(t []float32, ldt int, w []float32, ldw, heads int, signs Range, bits []uint32,
	scales []uint16, n int) {
	if n <= 0 || heads <= 0 {
		return
	}
	stride, b := signs.check(), signs.Len()
	if len(bits) < Len(n, signs.B) || len(scales) < n {
		panic(fmt.Sprintf("onebit: %d words and %d scales are too few for %d tokens of %d bits",
			len(bits), len(scales), n, signs.B))
	}
	if heads > 1 && ldw < n || len(w) < (heads-1)*ldw+n {
		panic(fmt.Sprintf("onebit: %d numbers at distance %d are no weights of %d tokens for %d heads", len(w), ldw, n, heads))
	}
	checkSums(t, ldt, heads, b)
	s.weights = slices.Grow(s.weights[:0], heads*SumTokens)[:heads*SumTokens]
	for at := 0; at < n; at += SumTokens {
		m := min(SumTokens, n-at)
		for h := range heads {
			row := s.weights[h*SumTokens:][:SumTokens]
			weigh(row[:m], w[h*ldw+at:][:m], scales[at:][:m])
			clear(row[m:])
		}
		s.tables.Build(s.weights, SumTokens, heads, SumTokens)
		s.add(t, ldt, bits[at*stride:], signs, m)
	}
}

// add adds the sums over the tokens whose tables have been made, n of them.
func (s *Sums) add(t []float32, ldt int, bits []uint32, signs Range, n int) {
	b, stride := signs.Len(), Words(signs.B)
	if n < SumTokens {
		whole := tokensPool.Get().(*wholeTokens)
		defer tokensPool.Put(whole)
		bits, n = whole.fill(bits[:Len(n, signs.B)], stride), SumTokens
	}
	if addTokens(t, ldt, &s.tables, bits[signs.From/wordBits*BlockKeys:], b, stride) {
		return
	}
	s.transposed = slices.Grow(s.transposed[:0], TransposedLen(b))[:TransposedLen(b)]
	Transpose(s.transposed, bits, signs, n)
	addSums(t, ldt, &s.tables, s.transposed, b)
}
