package codec

import (
	"fmt"
	"math"
	"slices"
)

// SignStep is the least difference between numbers of signs, and the least number.
const SignStep = 8

// MaxSigns returns the largest number of signs of a code for keys of d numbers.
func MaxSigns(d int) int { return min(MaxBits, MaxBitsPerNumber*d) / SignStep * SignStep }

// Budget returns how many signs all heads of a token, whose keys have so many numbers each, have
// together at bits per number on average: rounded to a multiple of 8.
func Budget(bits float64, dims ...int) (int, error) {
	numbers, most := 0, 0
	for _, d := range dims {
		numbers, most = numbers+d, most+MaxSigns(d)
	}
	if len(dims) == 0 || slices.Min(dims) < 1 || !(bits > 0 && bits <= MaxBitsPerNumber) {
		return 0, fmt.Errorf("%g bits per number for %d heads of together %d numbers: it must be above 0 and at most %d", bits,
			len(dims), numbers, MaxBitsPerNumber)
	}
	total := int(math.Round(bits*float64(numbers)/SignStep)) * SignStep
	if total < SignStep*len(dims) || total > most {
		return 0, fmt.Errorf("%g bits per number make %d signs for %d heads of together %d numbers; they need %d to %d", bits,
			total, len(dims), numbers, SignStep*len(dims), most)
	}
	return total, nil
}
