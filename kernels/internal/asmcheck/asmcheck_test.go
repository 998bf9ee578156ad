package asmcheck

import (
	"slices"
	"testing"
)

func TestRequires(t *testing.T) {
	const asm = `
// func avx2Good(n int)
// Requires: AVX, FMA3
TEXT ·avx2Good(SB), NOSPLIT, $0-8
// Requires: AVX, AVX512F
TEXT ·avx2Bad(SB), NOSPLIT, $0-8
TEXT ·avx2Plain(SB), NOSPLIT, $0-8
// Requires: AVX512F, AVX512DQ
TEXT ·avx512Bad(SB), NOSPLIT, $0-8
TEXT ·stray(SB), NOSPLIT, $0-8
`
	want := []string{
		"avx2Bad executes AVX512F, which tier avx2 does not ask for",
		"avx512Bad executes AVX512DQ, which tier avx512 does not ask for",
		"stray belongs to no tier",
	}
	var got []string
	for _, err := range Requires(asm, AMD64) {
		got = append(got, err.Error())
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
