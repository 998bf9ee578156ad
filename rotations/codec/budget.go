package codec

import (
	"fmt"
	"math"
)

// SignStep is the least difference between numbers of signs, and the least number.
const SignStep = 8

// MaxSigns returns the largest number of signs of a code for keys of d numbers.
func MaxSigns(d int) int { return min(MaxBits, MaxBitsPerNumber*d) / SignStep * SignStep }

// Budget returns how many signs all heads of a token have together at bits per
// number on average: bits d heads, rounded to a multiple of 8.
func Budget(bits float64, d, heads int) (int, error) {
	if d < 1 || heads < 1 || !(bits > 0 && bits <= MaxBitsPerNumber) {
		return 0, fmt.Errorf("%g bits per number for %d heads of %d numbers: it must be above 0 and at most %d", bits, heads,
			d, MaxBitsPerNumber)
	}
	total := int(math.Round(bits*float64(d)*float64(heads)/SignStep)) * SignStep
	if total < SignStep*heads || total > MaxSigns(d)*heads {
		return 0, fmt.Errorf("%g bits per number make %d signs for %d heads of %d numbers; every head needs %d to %d", bits,
			total, heads, d, SignStep, MaxSigns(d))
	}
	return total, nil
}
