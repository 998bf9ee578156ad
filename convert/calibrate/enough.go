package calibrate

import (
	"fmt"
	"math"

	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/verify/kvcache"
	"github.com/phaseconv/phaseconv/verify/option"
)

// Enough refuses windows that hold too few keys to fit codes of so many bits per
// number to: with fewer keys than a key has numbers, or signs, whatever is fitted fits.
func Enough(c *family.Config, windows [][]int32, p kvcache.Policy, bits float64) error {
	headDim := 0 // the largest
	for l := range c.Layers {
		headDim = max(headDim, c.Layers[l].HeadDim)
	}
	return enough(fmt.Sprintf("codes of %g bits per number for head_dim %d", bits, headDim),
		int(math.Ceil(float64(headDim)*max(1, bits))), windows, p)
}

// EnoughFor is Enough for joint codes of so many signs for vectors of so many numbers.
func EnoughFor(numbers, signs int, windows [][]int32, p kvcache.Policy) error {
	return enough(fmt.Sprintf("joint codes of %d signs for vectors of %d numbers", signs, numbers),
		max(numbers, signs), windows, p)
}

func enough(what string, need int, windows [][]int32, p kvcache.Policy) error {
	keys, tokens := 0, 0
	for _, w := range windows {
		keys += max(0, len(w)-p.Sink)
		tokens += len(w)
	}
	if keys >= need {
		return nil
	}
	sinks := ""
	if p.Sink > 0 {
		sinks = fmt.Sprintf(" (%d at the start of each are not coded)", p.Sink)
	}
	return option.Bad("CalibrationTokens", tokens, "in %d windows they leave each head %d keys%s, and %s need at least "+
		"%d; take more tokens, or a longer text",
		len(windows), keys, sinks, what, need)
}
