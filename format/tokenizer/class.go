package tokenizer

import (
	"sort"
	"strings"
	"sync"
	"unicode/utf8"
)

//go:generate go run gen_class.go

// The classes the splitters tell apart. Whitespace wins over the category, so
// that U+0020 is classSpace and not a separator; the rest of Z and C is classOther.
const (
	classOther = iota
	classLetter
	classNumber
	classMark
	classPunct
	classSymbol
	classSpace
)

// bmpClass holds the class of every code point below U+10000, so that only the
// rare rest needs a binary search.
var bmpClass = sync.OnceValue(func() *[1 << 16]uint8 {
	t := new([1 << 16]uint8)
	for i, r := range classRanges {
		end := uint32(1 << 16)
		if i+1 < len(classRanges) {
			end = min(end, classRanges[i+1]>>3)
		}
		for c := r >> 3; c < end; c++ {
			t[c] = uint8(r & 7)
		}
	}
	return t
})

// classTable is what a splitter carries: the BMP table, fetched once.
type classTable struct {
	bmp *[1 << 16]uint8
}

func newClassTable() classTable { return classTable{bmpClass()} }

func (t classTable) of(c rune) uint8 {
	if uint32(c) < 1<<16 {
		return t.bmp[c]
	}
	i := sort.Search(len(classRanges), func(i int) bool { return classRanges[i]>>3 > uint32(c) })
	return uint8(classRanges[i-1] & 7)
}

// at returns the class and the length in bytes of the code point at s[i:].
// s comes from sanitize.
func (t classTable) at(s string, i int) (uint8, int) {
	if b := s[i]; b < utf8.RuneSelf {
		return t.bmp[b], 1
	}
	c, w := decode(s, i)
	return t.of(c), w
}

// run returns the end of the run of code points of class k that starts at s[i:].
func (t classTable) run(s string, i int, k uint8) int {
	for i < len(s) {
		c, w := t.at(s, i)
		if c != k {
			break
		}
		i += w
	}
	return i
}

// leadLen is the length that a UTF-8 lead byte announces, by its high nibble.
// A continuation byte counts as 1.
var leadLen = [16]int{1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 3, 4}

// unitLen returns the length of the unit at s[i:] as its first byte announces
// it, cut at the end of s. Nothing is validated: SPM works on such units.
func unitLen(s string, i int) int {
	return min(leadLen[s[i]>>4], len(s)-i)
}

// decode reads one code point of sanitized text. Surrogates, which
// unicode/utf8 refuses, come out as their own value.
func decode(s string, i int) (rune, int) {
	switch b := s[i]; unitLen(s, i) {
	case 2:
		return rune(b&0x1F)<<6 | rune(s[i+1]&0x3F), 2
	case 3:
		return rune(b&0x0F)<<12 | rune(s[i+1]&0x3F)<<6 | rune(s[i+2]&0x3F), 3
	case 4:
		return rune(b&0x07)<<18 | rune(s[i+1]&0x3F)<<12 | rune(s[i+2]&0x3F)<<6 | rune(s[i+3]&0x3F), 4
	default:
		return rune(b), 1
	}
}

// sanitize makes text fit for the splitters in the way llama.cpp does: a byte
// that begins no complete sequence becomes U+FFFD (one per byte), an overlong
// form becomes the short form of the same code point, and a surrogate in three
// bytes stays as it is. Values above U+10FFFF, on which llama.cpp aborts, are
// replaced byte by byte too. Valid UTF-8 is returned unchanged.
func sanitize(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	var b strings.Builder
	b.Grow(len(s) + len(s)/2)
	for i := 0; i < len(s); {
		n := leadLen[s[i]>>4]
		ok := i+n <= len(s) && (s[i] < 0x80 || s[i] >= 0xC0 && s[i] < 0xF8)
		for j := 1; ok && j < n; j++ {
			ok = s[i+j]&0xC0 == 0x80
		}
		if ok {
			c, _ := decode(s, i)
			switch {
			case c > utf8.MaxRune:
				ok = false
			case 0xD800 <= c && c <= 0xDFFF:
				b.WriteString(s[i : i+n])
			default:
				b.WriteRune(c)
			}
		}
		if !ok {
			b.WriteRune(utf8.RuneError)
			n = 1
		}
		i += n
	}
	return b.String()
}
