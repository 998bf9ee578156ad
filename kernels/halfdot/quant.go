package halfdot

import (
	"fmt"
	"math"

	"github.com/phaseconv/phaseconv/kernels/internal/fma32"
)

// Sizes of GGML's blocks of 32 numbers: a binary16 factor d, then the numbers divided
// by d. Q8_0 holds them as int8. Q4_0 holds them plus 8 in nibbles: byte j has
// number j below and number j+16 above.
const (
	BlockLen = 32
	BytesQ8  = 2 + BlockLen
	BytesQ4  = 2 + BlockLen/2
)

// A Query is a query rounded for keys in Q8_0 or Q4_0, as GGML rounds it: per block
// of 32 numbers, q = x * (127 / max|x|) as an integer, ties to even, and
// d = max|x| / 127 (which GGML rounds to binary16, and this package does not).
type Query struct {
	blocks []block
}

// A block is read by the kernels.
type block struct {
	q [BlockLen]int8
	// What keys that have 128 or 8 added to them give too much, per four numbers.
	init8, init4 [8]int32
	d            [8]float32 // eight times the same
}

// Set rounds x, whose length is a multiple of 32. The memory of earlier calls is
// used again. Blocks with an infinity or NaN make every score NaN.
func (q *Query) Set(x []float32) {
	if len(x)%BlockLen != 0 {
		panic(fmt.Sprintf("halfdot: a query of %d numbers: want a multiple of %d", len(x), BlockLen))
	}
	q.blocks = append(q.blocks[:0], make([]block, len(x)/BlockLen)...)
	for i := range q.blocks {
		q.blocks[i].set(x[i*BlockLen:][:BlockLen])
	}
}

func (b *block) set(x []float32) {
	var most uint32 // as bits, infinity and NaN are above all numbers
	for _, v := range x {
		most = max(most, math.Float32bits(v)&^(1<<31))
	}
	d, inverse := float32(0), float32(0)
	switch m := math.Float32frombits(most); {
	case most >= 0x7f800000:
		d = float32(math.NaN())
	case m >= 0x1p-100:
		d, inverse = m/127, 127/m
	}
	for i, v := range x {
		if inverse != 0 {
			b.q[i] = int8(math.RoundToEven(float64(float32(v * inverse))))
		}
		b.init8[i/4] -= 128 * int32(b.q[i])
		b.init4[i/4] -= 8 * int32(b.q[i])
	}
	for i := range b.d {
		b.d[i] = d
	}
}

// ScoreQ8 sets out[i] to the product of the query with key i, for n keys in Q8_0,
// one after another in keys.
//
// For l < 8 let s[l] be the exact product over numbers 4l to 4l+3 of a block, and
// f the product of the factors of key and query, a float32. Block after block,
// r[l] = fma(s[l], f, r[l]) from +0, in float32; then the upper half of r is added
// to the lower half until one number is left. All tiers give these bits.
func ScoreQ8(out []float32, q *Query, keys []byte, n int) {
	if !checkBlocks(out, q, keys, n, BytesQ8) {
		return
	}
	if scoreQ8(out[:n], q.blocks, keys) {
		return
	}
	for i := range n {
		var r [8]float32
		for j := range q.blocks {
			b, k := &q.blocks[j], keys[(i*len(q.blocks)+j)*BytesQ8:][:BytesQ8]
			var s [8]int32
			for l, v := range k[2:] {
				s[l/4] += int32(int8(v)) * int32(b.q[l])
			}
			b.add(&r, &s, k)
		}
		out[i] = sum8(&r)
	}
}

// ScoreQ4 is ScoreQ8 for keys in Q4_0.
func ScoreQ4(out []float32, q *Query, keys []byte, n int) {
	if !checkBlocks(out, q, keys, n, BytesQ4) {
		return
	}
	if scoreQ4(out[:n], q.blocks, keys) {
		return
	}
	for i := range n {
		var r [8]float32
		for j := range q.blocks {
			b, k := &q.blocks[j], keys[(i*len(q.blocks)+j)*BytesQ4:][:BytesQ4]
			s := b.init4
			for l, v := range k[2:] {
				s[l/4] += int32(v&15) * int32(b.q[l])
				s[4+l/4] += int32(v>>4) * int32(b.q[16+l])
			}
			b.add(&r, &s, k)
		}
		out[i] = sum8(&r)
	}
}

// checkBlocks reports whether there is anything to do; it panics when slices are
// too short.
func checkBlocks(out []float32, q *Query, keys []byte, n, size int) bool {
	if n < 0 || len(out) < n || len(keys) < n*len(q.blocks)*size {
		panic(fmt.Sprintf("halfdot: %d keys of %d blocks do not fit in slices of %d scores and %d bytes", n, len(q.blocks),
			len(out), len(keys)))
	}
	if len(q.blocks) == 0 {
		clear(out[:n])
	}
	return n > 0 && len(q.blocks) > 0
}

// add adds the sums of a block with the factor at the start of key.
func (b *block) add(r *[8]float32, s *[8]int32, key []byte) {
	f := float32(widen(uint16(key[0])|uint16(key[1])<<8) * b.d[0])
	for l := range r {
		r[l] = fma32.FMA(float32(s[l]), f, r[l])
	}
}

func sum8(r *[8]float32) float32 {
	for half := 4; half > 0; half /= 2 {
		for i := range half {
			r[i] += r[i+half]
		}
	}
	return r[0]
}
