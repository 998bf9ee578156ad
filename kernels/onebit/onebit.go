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
// # Arithmetic
//
// The query is rounded to integers once, and everything after that is exact up to
// the last few operations, so that every instruction set gives the same bits. With
// all numbers float32, rounded to nearest even and never fused:
//
//	S     = max over i = 0, 4, 8, ... of (|q[i]|+|q[i+1]|) + (|q[i+2]|+|q[i+3]|)
//	step  = S / 2012
//	Q[i]  = round(q[i] * (2012 / S)), ties to even
//	score = offset + ((sum_i Q[i] s_i) * step) * scale
//
// where the sum is an exact integer below 2^20 in magnitude. The magnitudes of a
// quad of Q add up to at most 2015, which two digits of 6 bits hold: the form in
// which table lookups by bytes give them. An offset of -0 or none counts as +0, so
// no score is -0. S below 2^-100 gives Q = 0 and step = 0; an S that is infinite
// or NaN gives NaN for every key. The result does not depend on the number of
// heads.
//
// Against real numbers the sum is off by at most b/2 * step, and with signs that
// know nothing of the rounding by sqrt(b/12) * step in the root mean square: for
// normal q and b = 128 that is 8e-4 of the standard deviation of a score, a five
// hundredth of what the signs themselves lose where they are as good as can be
// (0.4 of it at a cosine of 0.92). Four lookups then fit in a byte, two with digits
// of 7 bits, and lookups and their sums are what scores spend their time on.
package onebit

import (
	"fmt"
	"math"
	"slices"
)

// BlockKeys is the number of keys in a block.
const BlockKeys = 16

// MaxBits bounds the bits of a key: eight times the largest head_dim in use.
const MaxBits = 2048

const (
	wordBits   = 32
	maxWords   = MaxBits / wordBits
	tableWord  = 256     // bytes of the digit tables of one word
	tableWordB = 4 * 256 // numbers of the byte tables of one word

	// Sums of quads are at most quadMax; quadScale leaves room for the rounding of
	// four numbers and of the scale itself.
	quadMax   = 63*radix + 63 - digitBias
	quadScale = quadMax - 3
	// A sum T of a quad is held as the digits of T + digitBias in base radix, each
	// from 0 to 63.
	radix     = 64
	digitZero = 32
	digitBias = digitZero*radix + digitZero
	// What tables of words without queries add up to.
	wordBias = 8 * digitBias
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

// A Range is the signs From <= i < To of keys of B signs, the only ones that count: the rows
// of a decode matrix that belong to the others are zero. From is a multiple of 32, and so is
// To unless it is B.
type Range struct{ B, From, To int }

// All returns all signs of keys of b.
func All(b int) Range { return Range{b, 0, b} }

// Len returns the number of signs.
func (r Range) Len() int { return r.To - r.From }

// check returns the words of a key, and panics unless r is a range of one.
func (r Range) check() (stride int) {
	stride = Words(r.B)
	if r.From < 0 || r.From >= r.To || r.To > r.B || r.From%wordBits != 0 || r.To%wordBits != 0 && r.To != r.B {
		panic(fmt.Sprintf("onebit: signs %d to %d of keys of %d: want multiples of %d", r.From, r.To, r.B, wordBits))
	}
	return stride
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
	heads, words int
	signs        Range
	stride       int // words of a key
	// digits[(h*words+w)*256 + n*128 + d*64 + 16*i + x] is digit d (0 the lower) of
	// T + digitBias, where T is the sum of bits 8i+4n..8i+4n+3 of word w for head h
	// when they read x.
	digits []byte
	// bytes[((h*words+w)*4+i)*256+x] is the sum of bits 8i..8i+7 when they read x:
	// the generic tier looks these up. Empty when another tier was in use.
	bytes []int16
	quads [][4]int16 // of one head, while its tables are made
	// Per head, as the kernels read it: step and offset (float32), and twice the 16
	// bits that the counters of avx2Sum start from.
	consts [][4]uint32
}

// Heads returns the number of queries in t.
func (t *Tables) Heads() int { return t.heads }

// Signs returns which signs of a key t was built for.
func (t *Tables) Signs() Range { return t.signs }

// Step returns the unit that the query of a head was rounded to.
func (t *Tables) Step(head int) float32 { return math.Float32frombits(t.consts[head][0]) }

// Build makes the tables of heads queries of b numbers each; query h is
// q[h*ldq : h*ldq+b].
func (t *Tables) Build(q []float32, ldq, heads, b int) {
	if ldq < 0 || len(q) < (heads-1)*ldq+b {
		panic(fmt.Sprintf("onebit: %d numbers are too few for %d queries of %d at distance %d", len(q), heads, b, ldq))
	}
	t.Reset(heads, All(b))
	for h := range heads {
		t.Set(h, q[h*ldq:][:b])
	}
}

// Reset makes room for the tables of heads queries with a number for each of the signs of a
// range; what the other signs of a key are does not count. Each wants a Set before t is used.
func (t *Tables) Reset(heads int, signs Range) {
	stride := signs.check()
	if heads < 1 {
		panic(fmt.Sprintf("onebit: tables for %d heads", heads))
	}
	words := Words(signs.Len())
	t.heads, t.signs, t.words, t.stride = heads, signs, words, stride
	t.digits = slices.Grow(t.digits[:0], heads*words*tableWord)[:heads*words*tableWord]
	t.consts = slices.Grow(t.consts[:0], heads)[:heads]
	t.bytes = t.bytes[:0]
	if !vectorised() {
		t.bytes = slices.Grow(t.bytes[:0], heads*words*tableWordB)[:heads*words*tableWordB]
	}
}

// Set makes the tables of the query of head h, a number for each sign of t.Signs().
func (t *Tables) Set(h int, q []float32) {
	words := t.words
	t.quads = slices.Grow(t.quads[:0], words*8)[:words*8]
	quads := t.quads
	step := roundQuery(quads, q[:t.signs.Len()])
	// Where sums of even and odd bytes are told apart only at the end, see avx2Sum,
	// all - 256*odd and odd must both start from minus the bias of the digits.
	odd := -uint32(words * 8 * digitZero)
	t.consts[h] = [4]uint32{math.Float32bits(step), 0, (odd * 257 & 0xffff) * 0x10001, (odd & 0xffff) * 0x10001}
	buildDigits(t.digits[h*words*tableWord:][:words*tableWord], quads)
	if len(t.bytes) > 0 {
		buildBytes(t.bytes[h*words*tableWordB:][:words*tableWordB], quads)
	}
}

// roundQuery rounds q to integers, see the package comment, and returns their unit.
func roundQuery(quads [][4]int16, q []float32) (step float32) {
	most := largest(q)
	clear(quads)
	S := math.Float32frombits(most)
	if most >= 0x7f800000 {
		return float32(math.NaN())
	}
	if S < 0x1p-100 {
		return 0
	}
	roundInts(quads, q, quadScale/S)
	return S / quadScale
}

// largestGeneric returns S of the package comment, as bits. Negated comparisons would
// lose a NaN; as bits, magnitudes order like integers with infinity and NaN above all
// numbers.
func largestGeneric(q []float32) (most uint32) {
	for i := 0; i+4 <= len(q); i += 4 {
		v := (*[4]float32)(q[i:])
		s := (magnitude(v[0]) + magnitude(v[1])) + (magnitude(v[2]) + magnitude(v[3]))
		most = max(most, math.Float32bits(s))
	}
	return most
}

func roundIntsGeneric(quads [][4]int16, q []float32, inverse float32) {
	for i := 0; i+4 <= len(q); i += 4 {
		v := (*[4]float32)(q[i:])
		quads[i/4] = [4]int16{roundInt(v[0] * inverse), roundInt(v[1] * inverse), roundInt(v[2] * inverse),
			roundInt(v[3] * inverse)}
	}
}

func roundInt16Generic(dst []int16, q []float32, scale float32) {
	for i, v := range q {
		dst[i] = roundInt(v * scale)
	}
}

func magnitude(x float32) float32 { return math.Float32frombits(math.Float32bits(x) &^ (1 << 31)) }

// roundInt rounds |x| < 2^15 to an integer, ties to even: adding 1.5 * 2^23 leaves
// it in the low bits.
func roundInt(x float32) int16 {
	const magic = 0x1.8p23
	return int16(math.Float32bits(float32(x) + magic))
}

// nibbleSums returns the 16 sums of four numbers with signs.
func nibbleSums(q *[4]int16) (t [16]int32) {
	a, b, c, d := int32(q[0]), int32(q[1]), int32(q[2]), int32(q[3])
	lo := [4]int32{-a - b, a - b, b - a, a + b}
	hi := [4]int32{-c - d, c - d, d - c, c + d}
	for x := range t {
		t[x] = lo[x&3] + hi[x>>2]
	}
	return t
}

func digitsGeneric(digits []byte, quads [][4]int16) {
	for g := range quads {
		// Nibble g%8 of word g/8 is nibble g%2 of byte g/2%4.
		at := digits[g/8*tableWord+g%2*128+g/2%4*16:]
		lo, hi := (*[16]byte)(at), (*[16]byte)(at[64:])
		for x, s := range nibbleSums(&quads[g]) {
			u := uint32(s + digitBias)
			lo[x], hi[x] = byte(u%radix), byte(u/radix)
		}
	}
}

func buildBytes(bytes []int16, quads [][4]int16) {
	for g := 0; g < len(quads); g += 2 {
		lo, hi := nibbleSums(&quads[g]), nibbleSums(&quads[g+1])
		row := (*[256]int16)(bytes[g/2*256:])
		for x := range row {
			row[x] = int16(lo[x&15] + hi[x>>4])
		}
	}
}

// Score computes the scores of keys 0..n-1 for every head of t: out[h*ostride+i]
// is that of head h and key i. bits holds Len(n, t.Signs().B) words, scales at least
// n binary16 numbers. offsets has one number per head or is nil.
//
// For a range of keys that starts at a multiple of 16, pass the parts of bits and
// scales that start there. Callers who want threads split the keys.
func Score(out []float32, ostride int, t *Tables, bits []uint32, scales []uint16, n int, offsets []float32) {
	if n <= 0 || t.heads == 0 {
		return
	}
	check(out, ostride, t, bits, scales, n, offsets)
	// Offsets are part of what kernels read, and t may be in use elsewhere.
	var few [8][4]uint32
	consts := append(few[:0], t.consts...)
	for h := range consts {
		if offsets != nil {
			consts[h][1] = math.Float32bits(offsets[h] + 0) // -0 becomes +0
		}
	}

	full := n / BlockKeys
	bits = bits[t.signs.From/wordBits*BlockKeys:]
	if full > 0 {
		scoreBlocks(out, ostride, t, bits, scales, full, consts)
	}
	if rest := n % BlockKeys; rest > 0 {
		// The kernels write whole blocks; the last one goes through buffers.
		var sc [BlockKeys]uint16
		copy(sc[:], scales[full*BlockKeys:])
		var few [8 * BlockKeys]float32
		tail := append(few[:0], make([]float32, t.heads*BlockKeys)...)
		scoreBlocks(tail, BlockKeys, t, bits[full*BlockKeys*t.stride:], sc[:], 1, consts)
		for h := range t.heads {
			copy(out[h*ostride+full*BlockKeys:][:rest], tail[h*BlockKeys:])
		}
	}
}

// check panics, before anything is written, when slices are too short.
func check(out []float32, ostride int, t *Tables, bits []uint32, scales []uint16, n int, offsets []float32) {
	if len(bits) < Len(n, t.signs.B) || len(scales) < n {
		panic(fmt.Sprintf("onebit: %d words and %d scales are too few for %d keys of %d bits", len(bits), len(scales), n,
			t.signs.B))
	}
	if t.heads > 1 && ostride < n || len(out) < (t.heads-1)*ostride+n {
		panic(fmt.Sprintf("onebit: %d numbers at distance %d do not hold %d scores of %d heads", len(out), ostride, n,
			t.heads))
	}
	if offsets != nil && len(offsets) != t.heads {
		panic(fmt.Sprintf("onebit: %d offsets for %d heads", len(offsets), t.heads))
	}
}

// scoreGeneric scores whole blocks and is the reference for the other tiers. Without
// scales it adds sums times their step to out instead.
func scoreGeneric(out []float32, ostride int, t *Tables, bits []uint32, scales []uint16, blocks int,
	consts [][4]uint32) {
	for b := range blocks {
		block := bits[b*BlockKeys*t.stride:][:BlockKeys*t.words]
		for h := range t.heads {
			step, offset := math.Float32frombits(consts[h][0]), math.Float32frombits(consts[h][1])
			row := out[h*ostride+b*BlockKeys:][:BlockKeys]
			for j := range row {
				var sum int32
				if len(t.bytes) > 0 {
					sum = sumByBytes(t.bytes[h*t.words*tableWordB:], block[j:], t.words)
				} else {
					sum = sumByDigits(t.digits[h*t.words*tableWord:], block[j:], t.words)
				}
				x := float32(float32(sum) * step)
				if scales == nil {
					row[j] += x
				} else {
					row[j] = offset + float32(x*widen(scales[b*BlockKeys+j]))
				}
			}
		}
	}
}

// sumByBytes sums a key with one lookup per byte.
func sumByBytes(tab []int16, block []uint32, words int) int32 {
	var s0, s1 int32
	for i := range words {
		t := (*[tableWordB]int16)(tab[i*tableWordB:])
		w := block[i*BlockKeys]
		s0 += int32(t[w&255]) + int32(t[256+w>>8&255])
		s1 += int32(t[512+w>>16&255]) + int32(t[768+w>>24])
	}
	return s0 + s1
}

// sumByDigits sums a key with the tables of the other tiers.
func sumByDigits(tab []byte, block []uint32, words int) int32 {
	sum := int32(-wordBias * words)
	for i := range words {
		t := (*[tableWord]byte)(tab[i*tableWord:])
		w := block[i*BlockKeys]
		for at := 0; at < 64; at += 16 {
			lo, hi := at+int(w&15), 128+at+int(w>>4&15)
			sum += int32(t[lo]) + int32(t[hi]) + radix*(int32(t[64+lo])+int32(t[64+hi]))
			w >>= 8
		}
	}
	return sum
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
