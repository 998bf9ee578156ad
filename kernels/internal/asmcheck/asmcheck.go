// Package asmcheck holds generated assembly against the CPU features that the
// code asks for before it calls it. For tests only.
package asmcheck

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

var (
	textLine     = regexp.MustCompile(`^TEXT ·(\w+)\(SB\)`)
	requiresLine = regexp.MustCompile(`^// Requires: (.*)$`)
)

// Requires reads assembly that avo generated and reports, as one error per
// function, every CPU feature that a function executes but its tier does not ask
// for. A function belongs to the tier whose name it starts with; features are in
// avo's spelling. This is what catches a VXORPS on a 512-bit register (AVX512DQ)
// behind a gate that tests for AVX512F only: no machine at hand would.
func Requires(asm string, features map[string][]string) []error {
	var errs []error
	var needs []string
	for line := range strings.Lines(asm) {
		line = strings.TrimRight(line, "\r\n")
		if m := requiresLine.FindStringSubmatch(line); m != nil {
			needs = strings.Split(m[1], ", ")
		}
		m := textLine.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		tier := ""
		for name := range features {
			if strings.HasPrefix(m[1], name) && len(name) > len(tier) {
				tier = name
			}
		}
		if tier == "" {
			errs = append(errs, fmt.Errorf("%s belongs to no tier", m[1]))
		}
		for _, n := range needs {
			if tier != "" && !slices.Contains(features[tier], n) {
				errs = append(errs, fmt.Errorf("%s executes %s, which tier %s does not ask for", m[1], n, tier))
			}
		}
		needs = nil
	}
	return errs
}

// AMD64 names, in avo's spelling, what the gates of the amd64 tiers test. Every
// machine with AVX2 has the SSE family ("MMX+" is avo's name for prefetching).
var AMD64 = map[string][]string{
	"avx2":   {"MMX+", "SSE", "SSE2", "SSE3", "SSE4.1", "SSE4.2", "AVX", "AVX2", "FMA3"},
	"avx512": {"MMX+", "SSE", "SSE2", "SSE3", "SSE4.1", "SSE4.2", "AVX", "AVX2", "FMA3", "AVX512F"},
}
