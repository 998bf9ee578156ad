//go:build gc && !noasm

package onebit

import (
	"sync"

	"golang.org/x/sys/cpu"

	"github.com/phaseconv/phaseconv/kernels/internal/impl"
)

// The gates name everything that the functions of a tier execute. AVX-512 asks
// for AVX2 too, so that GODEBUG=cpu.avx2=off takes both tiers away. Without VBMI
// and VNNI (Skylake-X, Cascade Lake), AVX2 serves.
var (
	useAVX2   = cpu.X86.HasAVX && cpu.X86.HasAVX2 && cpu.X86.HasF16C
	useAVX512 = cpu.X86.HasAVX512F && cpu.X86.HasAVX512BW && cpu.X86.HasAVX512VBMI && cpu.X86.HasAVX512VNNI && useAVX2
	hasGFNI   = cpu.X86.HasAVX512GFNI // of the tier avx512vbmi; without it, AVX2 transposes
)

func init() {
	impl.Register("onebit", "avx512vbmi", &useAVX512)
	impl.Register("onebit", "avx2", &useAVX2)
}

func vectorised() bool { return useAVX512 || useAVX2 }

func buildDigits(digits []byte, quads [][4]int16) {
	switch {
	case useAVX512:
		avx512vbmiDigits(len(quads)/8, &quads[0][0], &digits[0])
	case useAVX2:
		avx2Digits(len(quads)/8, &quads[0][0], &digits[0])
	default:
		digitsGeneric(digits, quads)
	}
}

// largest and roundInts take a multiple of eight numbers, at least eight.
func largest(q []float32) uint32 {
	switch {
	case useAVX512:
		return avx512vbmiLargest(len(q)/8, &q[0])
	case useAVX2:
		return avx2Largest(len(q)/8, &q[0])
	}
	return largestGeneric(q)
}

func roundInts(quads [][4]int16, q []float32, inverse float32) {
	switch {
	case useAVX512:
		avx512vbmiInts(len(q)/8, &q[0], inverse, &quads[0][0])
	case useAVX2:
		avx2Ints(len(q)/8, &q[0], inverse, &quads[0][0])
	default:
		roundIntsGeneric(quads, q, inverse)
	}
}

// roundInt16 rounds a multiple of eight numbers, at least eight.
func roundInt16(dst []int16, q []float32, scale float32) {
	switch {
	case useAVX512:
		avx512vbmiInts(len(q)/8, &q[0], scale, &dst[0])
	case useAVX2:
		avx2Ints(len(q)/8, &q[0], scale, &dst[0])
	default:
		roundInt16Generic(dst, q, scale)
	}
}

// applyRows computes some blocks of signs of the next queries, and returns of how many.
func applyRows(out []float32, ldo int, q, rows []int16, factors []float32, blocks, pairs int) int {
	switch {
	case useAVX512 && len(factors) >= projectRows:
		avx512vbmiProject8(blocks, pairs, &q[0], &rows[0], &factors[0], &out[0], ldo)
		return projectRows
	case useAVX512:
		avx512vbmiProject1(blocks, pairs, &q[0], &rows[0], &factors[0], &out[0], ldo)
	case useAVX2 && len(factors) >= 4:
		avx2Project4(blocks, pairs, &q[0], &rows[0], &factors[0], &out[0], ldo)
		return 4
	case useAVX2:
		avx2Project1(blocks, pairs, &q[0], &rows[0], &factors[0], &out[0], ldo)
	default:
		applyGeneric(out, q, rows, factors[0], blocks, pairs)
	}
	return 1
}

func transposeTokens(dst, bits []uint32, words, stride int) {
	switch {
	case useAVX512 && hasGFNI:
		for w := 0; w < sumWords; w += 2 {
			avx512gfniTranspose(words, stride, &bits[2*w*BlockKeys*stride], &dst[w*BlockKeys])
		}
	case vectorised():
		transposePairs(dst, bits, words, stride, func(dst, first, second []uint32, words int) {
			avx2Transpose(words, &first[0], &second[0], &dst[0])
		})
	default:
		transposePairs(dst, bits, words, stride, transposeGeneric)
	}
}

// addTokens adds sums over SumTokens tokens to t, if the tier has a way without transposed signs: what
// avx2SumAdd would read of these, nibbles of four tokens, is made of the words of tokens at once.
func addTokens(t []float32, ldt int, weights *Tables, bits []uint32, b, stride int) bool {
	if useAVX512 || !useAVX2 {
		return false
	}
	const chunk = planeChunk / (planeBytes * sumWords) // words of signs
	p := planesPool.Get().(*planes)
	defer planesPool.Put(p)
	ahead := &bits[min(SumTokens*stride, len(bits)-1)]
	for w := 0; w*wordBits < b; w += chunk {
		at, n := w*wordBits, min(chunk, Words(b)-w)
		avx2Tokens(n, stride, &bits[w*BlockKeys], &p.nibbles[0])
		signs := min(b-at, n*wordBits)
		groups, rest := signs/groupKeys, signs%groupKeys
		for h := range weights.heads {
			tab, c, row := &weights.digits[h*weights.words*tableWord], &weights.consts[h][0], t[h*ldt+at:]
			if groups > 0 {
				avx2SumAdd(groups, sumWords, tab, &p.nibbles[0], c, &row[0], ahead)
			}
			if rest > 0 {
				row = row[groups*groupKeys:][:rest]
				copy(p.out[:], row)
				avx2SumAdd(1, sumWords, tab, &p.nibbles[groups*2*sumWords*planeBytes], c, &p.out[0], ahead)
				copy(row, p.out[:])
			}
		}
	}
	return true
}

func weigh(out, p []float32, scales []uint16) {
	n := 0
	if n = len(out) &^ 7; n > 0 && vectorised() {
		avx2Weigh(n/8, &p[0], &scales[0], &out[0])
	} else {
		n = 0
	}
	weighGeneric(out[n:], p[n:], scales[n:])
}

// scoreBlocks scores whole blocks, or adds to out where there are no scales. AVX2 has addTokens for that.
func scoreBlocks(out []float32, ostride int, t *Tables, bits []uint32, scales []uint16, blocks int,
	consts [][4]uint32) {
	switch {
	case useAVX512:
		scoreVBMI(out, ostride, t, bits, scales, blocks, consts)
	case useAVX2 && scales != nil:
		scoreAVX2(out, ostride, t, bits, scales, blocks, consts)
	default:
		scoreGeneric(out, ostride, t, bits, scales, blocks, consts)
	}
}

// chunkWords is how many words of keys are scored for one group of heads before
// the next group takes them: they stay in the first-level cache meanwhile.
const chunkWords = 4096

func scoreVBMI(out []float32, ostride int, t *Tables, bits []uint32, scales []uint16, blocks int, consts [][4]uint32) {
	chunk := blocks
	if t.heads > 4 {
		chunk = max(4, chunkWords/(t.words*BlockKeys))
	}
	for b := 0; b < blocks; b += chunk {
		n := min(chunk, blocks-b)
		for h := 0; h < t.heads; {
			// Direct calls: through a variable, all these pointers would count as
			// escaping to the heap.
			tab, words := &t.digits[h*t.words*tableWord], &bits[b*BlockKeys*t.stride]
			c, o := &consts[h][0], &out[h*ostride+b*BlockKeys]
			group := headsAtOnce(t.heads - h)
			if scales == nil {
				switch group {
				case 4:
					avx512vbmiAdd4(n, t.words, t.stride, tab, words, c, o, ostride)
				case 3:
					avx512vbmiAdd3(n, t.words, t.stride, tab, words, c, o, ostride)
				case 2:
					avx512vbmiAdd2(n, t.words, t.stride, tab, words, c, o, ostride)
				default:
					avx512vbmiAdd1(n, t.words, t.stride, tab, words, c, o, ostride)
				}
			} else {
				sc := &scales[b*BlockKeys]
				switch group {
				case 4:
					avx512vbmiScore4(n, t.words, t.stride, tab, words, sc, c, o, ostride)
				case 3:
					avx512vbmiScore3(n, t.words, t.stride, tab, words, sc, c, o, ostride)
				case 2:
					avx512vbmiScore2(n, t.words, t.stride, tab, words, sc, c, o, ostride)
				default:
					avx512vbmiScore1(n, t.words, t.stride, tab, words, sc, c, o, ostride)
				}
			}
			h += group
		}
	}
}

// headsAtOnce is how many of the heads that are left a kernel takes: 4, and 3 where 4 would
// leave 1 or 2, so that no pass over the keys serves few heads.
func headsAtOnce(left int) int {
	switch left {
	case 5, 6, 9:
		return 3
	}
	return min(left, 4)
}

// The AVX2 tier works on groups of four blocks. Their nibbles are spread out once,
// to planeBytes bytes a word and pair of blocks, and then serve all heads.
const (
	groupBlocks = 4
	groupKeys   = groupBlocks * BlockKeys
	planeBytes  = 256
	maxPlanes   = 1 << 15 // at least one group of the longest keys
)

type planes struct {
	nibbles [maxPlanes]byte
	// A group that is not full is worked on in copies.
	bits   [groupKeys * maxWords]uint32
	scales [groupKeys]uint16
	out    [groupKeys]float32
}

var planesPool = sync.Pool{New: func() any { return new(planes) }}

func scoreAVX2(out []float32, ostride int, t *Tables, bits []uint32, scales []uint16, blocks int, consts [][4]uint32) {
	if t.heads == 1 && blocks >= 2 {
		n := blocks / 2
		avx2Single(n, t.words, t.stride, &t.digits[0], &bits[0], &scales[0], &consts[0][0], &out[0])
		if blocks%2 == 0 {
			return
		}
		key := 2 * n * BlockKeys
		out, bits, scales, blocks = out[key:], bits[key*t.stride:], scales[key:], 1
	}
	p := planesPool.Get().(*planes)
	defer planesPool.Put(p)
	groups := blocks / groupBlocks
	chunk := max(1, planeChunk/(2*planeBytes*t.words))
	for g := 0; g < groups; g += chunk {
		n, key := min(chunk, groups-g), g*groupKeys
		avx2Split(2*n, t.words, t.stride, &bits[key*t.stride], &p.nibbles[0])
		// The first head fetches the next chunk, as long as there is one.
		ahead := &bits[min(g+chunk, max(0, groups-chunk))*groupKeys*t.stride]
		for h := range t.heads {
			avx2Sum(n, t.words, &t.digits[h*t.words*tableWord], &p.nibbles[0], &scales[key], &consts[h][0], &out[h*ostride+key],
				ahead)
		}
	}
	rest := blocks % groupBlocks * BlockKeys
	if rest == 0 {
		return
	}
	key := groups * groupKeys
	// From the first word of these keys that is read to the last: the rest is as it was.
	copy(p.bits[:rest*t.stride], bits[key*t.stride:])
	copy(p.scales[:], scales[key:key+rest])
	avx2Split(2, t.words, t.stride, &p.bits[0], &p.nibbles[0])
	for h := range t.heads {
		avx2Sum(1, t.words, &t.digits[h*t.words*tableWord], &p.nibbles[0], &p.scales[0], &consts[h][0], &p.out[0], &p.bits[0])
		copy(out[h*ostride+key:][:rest], p.out[:])
	}
}

// planeChunk is how many bytes of nibbles are made before the heads use them.
const planeChunk = 16 << 10
