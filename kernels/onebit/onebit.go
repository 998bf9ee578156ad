// Package onebit computes attention scores against keys that are stored as signs:
//
//	score[n] = offset + scale[n] * sum_i q[i] * s_i[n],   s_i[n] in {-1, +1}
//
// where q is the query in the basis of the code (for a code k = mu + alpha M s it
// is M^T q, with offset q.mu and scale alpha) and i runs over the b bits of a key.
//
// # Storage
//
// A key has b bits, a multiple of 8, in W = ceil(b/32) words of 32 bits. Bit i of
// a key is bit i mod 32, counted from the least significant, of word i div 32. A
// set bit stands for +1, a clear one for -1. The bits from b to 32 W are clear
// and stand for nothing.
//
// Keys lie in blocks of 16. A block is 16 W words, first word 0 of its 16 keys,
// then word 1 of them, and so on: word w of key n is number
//
//	(n div 16) * 16 W + 16 w + n mod 16
//
// of the whole array. In files the words are little endian, so a block of 128-bit
// keys takes 256 bytes, and one aligned load of 64 bytes fetches a word of all 16
// keys. Bits of keys that do not exist, in the last block, are clear.
//
// The scales are IEEE binary16 numbers, one per key in the order of the keys, in
// an array of their own. They are widened to float32 without rounding.
//
// # Order of summation
//
// All arithmetic is float32, each operation rounded to nearest even, none fused.
// A key is summed as a binary tree, so that every vector width can follow it:
//
//   - Four bits i..i+3 (i a multiple of 4): (t0 + t1) + (t2 + t3), where tj is
//     q[i+j] for a set bit and -q[i+j] for a clear one.
//   - A byte: its lower four bits plus its upper four bits.
//   - A word: (byte 0 + byte 1) + (byte 2 + byte 3).
//   - A key: neighbours are added, word 0 + word 1, word 2 + word 3, ...; a last one
//     without a neighbour stays as it is; the same again with the results, until
//     one is left. Six words give ((w0+w1) + (w2+w3)) + (w4+w5).
//
// Bits from b on have q = 0. The score is offset + (scale * sum), where an offset
// of -0 or none counts as +0, so no score is -0. The tiers AVX-512, AVX2 and plain Go give the
// same bits, whatever the number of heads.
package onebit

import (
	"fmt"
	"math"
)

// BlockKeys is the number of keys in a block.
const BlockKeys = 16

// MaxBits bounds the bits of a key: eight times the largest head_dim in use.
const MaxBits = 2048

const (
	wordBits   = 32
	maxWords   = MaxBits / wordBits
	tableWord  = 8 * 16  // entries of one word: 8 tables of 4 bits
	tableWordB = 4 * 256 // the same for tables of a byte
)

// Words returns the number W of 32-bit words that a key of b bits takes. It
// panics unless b is a positive multiple of 8 up to MaxBits.
func Words(b int) int {
	if b <= 0 || b%8 != 0 || b > MaxBits {
		panic(fmt.Sprintf("onebit: %d bits: want a multiple of 8 from 8 to %d", b, MaxBits))
	}
	return (b + wordBits - 1) / wordBits
}

// Len returns the number of words that n keys of b bits take in whole blocks.
func Len(n, b int) int {
	return (n + BlockKeys - 1) / BlockKeys * BlockKeys * Words(b)
}

// Set stores the signs of key number key, Words(b) words with bit i of the key at
// bit i mod 32 of word i div 32. Bits of signs from b on are ignored.
func Set(bits []uint32, b, key int, signs []uint32) {
	w := Words(b)
	block := bits[key/BlockKeys*BlockKeys*w:][:BlockKeys*w]
	for i, s := range signs[:w] {
		if i == w-1 && b%wordBits != 0 {
			s &= 1<<(b%wordBits) - 1
		}
		block[i*BlockKeys+key%BlockKeys] = s
	}
}

// Get is the inverse of Set: it copies the Words(b) words of a key to signs.
func Get(signs, bits []uint32, b, key int) {
	w := Words(b)
	block := bits[key/BlockKeys*BlockKeys*w:][:BlockKeys*w]
	for i := range signs[:w] {
		signs[i] = block[i*BlockKeys+key%BlockKeys]
	}
}

// Pack sets every word of Len(n, b) words in bits from n keys of b floats, ld
// apart: a bit is set where the number is >= 0 (and clear for NaN).
func Pack(bits []uint32, b, n int, keys []float32, ld int) {
	var signs [maxWords]uint32
	clear(bits[:Len(n, b)])
	for key := range n {
		clear(signs[:])
		for i, v := range keys[key*ld : key*ld+b] {
			if v >= 0 {
				signs[i/wordBits] |= 1 << (i % wordBits)
			}
		}
		Set(bits, b, key, signs[:])
	}
}

// Tables hold the sums of all combinations of four signs, for the queries of one
// or more heads that share the keys. The zero value is ready for Build, which may
// be called again and then reuses the memory. Concurrent calls of Score may share
// Tables.
type Tables struct {
	heads, bits, words int
	// nibbles[((h*words+w)*8+i)*16+x] is the sum of bits 4i..4i+3 of word w for
	// head h when they read x.
	nibbles []float32
	// bytes[((h*words+w)*4+i)*256+x], the same for whole bytes: the generic tier
	// looks these up. Empty when another tier was in use.
	bytes []float32
}

// Heads returns the number of queries in t.
func (t *Tables) Heads() int { return t.heads }

// Bits returns the number of bits per key that t was built for.
func (t *Tables) Bits() int { return t.bits }

// Build makes the tables of heads queries of b numbers each; query h is
// q[h*ldq : h*ldq+b]. Building costs about as much as scoring a few hundred keys.
func (t *Tables) Build(q []float32, ldq, heads, b int) {
	words := Words(b)
	if heads < 1 {
		panic(fmt.Sprintf("onebit: tables for %d heads", heads))
	}
	t.heads, t.bits, t.words = heads, b, words
	t.nibbles = grow(t.nibbles, heads*words*tableWord)
	var quad [4]float32
	for h := range heads {
		row := q[h*ldq : h*ldq+b]
		for g := range words * 8 {
			quad = [4]float32{}
			if 4*g < b {
				quad = [4]float32(row[4*g:])
			}
			fillNibble((*[16]float32)(t.nibbles[(h*words*8+g)*16:]), quad)
		}
	}
	t.bytes = t.bytes[:0]
	if !vectorised() {
		t.bytes = grow(t.bytes, heads*words*tableWordB)
		for g := range heads * words * 4 {
			lo, hi := t.nibbles[g*32:][:16], t.nibbles[g*32+16:][:16]
			row := t.bytes[g*256:][:256]
			for x := range row {
				row[x] = lo[x&15] + hi[x>>4]
			}
		}
	}
}

func grow(s []float32, n int) []float32 {
	if cap(s) < n {
		return make([]float32, n)
	}
	return s[:n]
}

// fillNibble makes the table of four numbers. Turning all signs turns the sum and
// nothing else, which the AVX2 kernel relies on: it looks up half of the table.
func fillNibble(t *[16]float32, q [4]float32) {
	var lo, hi [4]float32
	for x := range 4 {
		lo[x] = signed(q[0], x&1) + signed(q[1], x>>1)
		hi[x] = signed(q[2], x&1) + signed(q[3], x>>1)
	}
	for x := range 8 {
		s := lo[x&3] + hi[x>>2]
		t[x], t[15-x] = s, -s
	}
}

func signed(v float32, bit int) float32 {
	if bit == 0 {
		return -v
	}
	return v
}

// Score computes the scores of keys 0..n-1 for every head of t: out[h*ostride+i]
// is that of head h and key i. bits holds Len(n, t.Bits()) words, scales at least
// n binary16 numbers. offsets has one number per head or is nil.
//
// For a range of keys that starts at a multiple of 16, pass the parts of bits and
// scales that start there. Callers who want threads split the keys.
func Score(out []float32, ostride int, t *Tables, bits []uint32, scales []uint16, n int, offsets []float32) {
	if n <= 0 || t.heads == 0 {
		return
	}
	// All checks come before the first write.
	if len(bits) < Len(n, t.bits) || len(scales) < n {
		panic(fmt.Sprintf("onebit: %d words and %d scales are too few for %d keys of %d bits", len(bits), len(scales), n, t.bits))
	}
	if t.heads > 1 && ostride < n || len(out) < (t.heads-1)*ostride+n {
		panic(fmt.Sprintf("onebit: %d numbers at distance %d do not hold %d scores of %d heads", len(out), ostride, n, t.heads))
	}
	if offsets != nil && len(offsets) != t.heads {
		panic(fmt.Sprintf("onebit: %d offsets for %d heads", len(offsets), t.heads))
	}
	var few [8]float32
	off := append(few[:0], make([]float32, t.heads)...)
	if offsets != nil {
		for h := range off {
			off[h] = offsets[h] + 0 // -0 becomes +0
		}
	}

	full := n / BlockKeys
	if full > 0 {
		scoreBlocks(out, ostride, t, bits, scales, full, off)
	}
	if rest := n % BlockKeys; rest > 0 {
		// The kernels write whole blocks; the last one goes through buffers.
		var sc [BlockKeys]uint16
		copy(sc[:], scales[full*BlockKeys:])
		tail := make([]float32, t.heads*BlockKeys)
		scoreBlocks(tail, BlockKeys, t, bits[full*BlockKeys*t.words:], sc[:], 1, off)
		for h := range t.heads {
			copy(out[h*ostride+full*BlockKeys:][:rest], tail[h*BlockKeys:])
		}
	}
}

// scoreGeneric scores whole blocks and is the reference for the other tiers.
func scoreGeneric(out []float32, ostride int, t *Tables, bits []uint32, scales []uint16, blocks int, offsets []float32) {
	var nodes [maxWords]float32
	for b := range blocks {
		block := bits[b*BlockKeys*t.words:][:BlockKeys*t.words]
		for h := range t.heads {
			row := out[h*ostride+b*BlockKeys:][:BlockKeys]
			for j := range row {
				var n int
				if len(t.bytes) > 0 {
					n = quadsByBytes(&nodes, t.bytes[h*t.words*tableWordB:], block[j:], t.words)
				} else {
					tab := t.nibbles[h*t.words*tableWord:]
					for n = range t.words {
						nodes[n] = wordByNibbles((*[tableWord]float32)(tab[n*tableWord:]), block[n*BlockKeys+j])
					}
					n = t.words
				}
				sum := nodes[0]
				if n > 1 {
					sum = tree(nodes[:n])
				}
				row[j] = offsets[h] + float32(widen(scales[b*BlockKeys+j])*sum)
			}
		}
	}
}

// quadsByBytes puts the sums of four words each into nodes and returns their
// number; the last may be of fewer words. Four words are a whole subtree, so the
// tree over the nodes is that of the key.
func quadsByBytes(nodes *[maxWords]float32, tab []float32, block []uint32, words int) int {
	n := 0
	w := 0
	for ; w+4 <= words; w += 4 {
		t := (*[4 * tableWordB]float32)(tab[w*tableWordB:])
		s0 := wordByBytes((*[tableWordB]float32)(t[0:]), block[w*BlockKeys])
		s1 := wordByBytes((*[tableWordB]float32)(t[tableWordB:]), block[w*BlockKeys+BlockKeys])
		s2 := wordByBytes((*[tableWordB]float32)(t[2*tableWordB:]), block[w*BlockKeys+2*BlockKeys])
		s3 := wordByBytes((*[tableWordB]float32)(t[3*tableWordB:]), block[w*BlockKeys+3*BlockKeys])
		nodes[n] = (s0 + s1) + (s2 + s3)
		n++
	}
	if w == words {
		return n
	}
	rest := nodes[n:]
	for i := range words - w {
		rest[i] = wordByBytes((*[tableWordB]float32)(tab[(w+i)*tableWordB:]), block[(w+i)*BlockKeys])
	}
	rest[0] = tree(rest[:words-w])
	return n + 1
}

// wordByBytes sums a word with one lookup per byte, in four tables of 256.
func wordByBytes(t *[tableWordB]float32, w uint32) float32 {
	return (t[w&255] + t[256+w>>8&255]) + (t[512+w>>16&255] + t[768+w>>24])
}

// wordByNibbles sums a word with eight tables of 16.
func wordByNibbles(t *[tableWord]float32, w uint32) float32 {
	b0 := t[w&15] + t[16+w>>4&15]
	b1 := t[32+w>>8&15] + t[48+w>>12&15]
	b2 := t[64+w>>16&15] + t[80+w>>20&15]
	b3 := t[96+w>>24&15] + t[112+w>>28]
	return (b0 + b1) + (b2 + b3)
}

// tree adds neighbours until one number is left. It overwrites s.
func tree(s []float32) float32 {
	for n := len(s); n > 1; n = (n + 1) / 2 {
		for i := range n / 2 {
			s[i] = s[2*i] + s[2*i+1]
		}
		if n%2 == 1 {
			s[n/2] = s[n-1]
		}
	}
	return s[0]
}

// widen converts an IEEE binary16 number to float32, which is exact.
func widen(h uint16) float32 {
	sign, abs := uint32(h&0x8000)<<16, uint32(h&0x7fff)
	if abs >= 0x7c00 {
		// Infinity or NaN.
		return math.Float32frombits(sign | 0x7f800000 | abs<<13)
	}
	// The exponent bias grows by 112; as a product, subnormals need no case.
	return math.Float32frombits(sign|abs<<13) * 0x1p112
}
