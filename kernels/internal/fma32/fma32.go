// Package fma32 is the fused multiply-add of float32 without the instruction,
// which Go does not offer: the definition that the vector kernels are held to,
// and what they fall back to on other CPUs.
package fma32

import "math"

// FMA returns a*b+c rounded once to float32, on any CPU.
//
// The product of two float32 is exact in float64. The sum is rounded to 53 bits
// and then to 24, which goes wrong only where the first rounding may have landed
// half way between two float32: see Doubtful and Odd.
//
// float32(math.FMA(float64(a), float64(b), float64(c))) has that very fault: it
// rounds twice. fma32_test.go keeps a witness.
func FMA(a, b, c float32) float32 {
	p := float64(a) * float64(b)
	s := p + float64(c)
	if Doubtful(s) {
		return Odd(p, float64(c))
	}
	return float32(s)
}

// Doubtful reports whether rounding s, itself a rounded sum, to float32 might
// differ from rounding the exact sum: where the 29 bits that go read 100..0, or
// where s is so small that float32 has fewer than 24 bits.
func Doubtful(s float64) bool {
	u := math.Float64bits(s)
	return u&(1<<29-1) == 1<<28 || u<<1 < minNormal<<1
}

// minNormal is the smallest normal float32, 2^-126, as bits of a float64.
const minNormal = (1023 - 126) << 52

// Odd returns p+c rounded once to float32. The sum is first rounded to odd in
// float64: when it is inexact, the last bit is set towards the true value. With
// two or more spare bits the second rounding then sees on which side of a tie
// the value lies.
//
//go:noinline
func Odd(p, c float64) float32 {
	s := p + c
	// The exact error of the sum (TwoSum). Infinities make it NaN: not inexact.
	t := s - p
	e := (p - (s - t)) + (c - t)
	if e > 0 || e < 0 {
		if u := math.Float64bits(s); u&1 == 0 {
			if (e > 0) == (s > 0) {
				u++
			} else {
				u--
			}
			s = math.Float64frombits(u)
		}
	}
	return float32(s)
}
