package bits

import (
	"math"

	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/verify/option"
)

// scaleBits is what the scale of a token takes in a group.
const scaleBits = 16

// Groups is which keys and values of a model are coded together, and with how many signs.
type Groups struct {
	Parts [][][]codec.Part // of each group, [layer][group]
	Signs [][]int          // of a token, [layer][group]
}

// JointGroups spreads bits per pair of numbers, one of K and one of V, over groups of the keys and
// values of neighbouring heads, of at most span numbers each. Scales are counted. Signs come in
// words of 32, spread in proportion to the numbers of a group, so that all together take as much as
// the bits allow and no more.
func JointGroups(c *family.Config, bits float64, span int) (*Groups, error) {
	g := &Groups{}
	numbers, count := 0, 0
	for l := range c.Layers {
		y := &c.Layers[l]
		parts, err := codec.Spans(y.KVHeads, y.HeadDim, y.ValueDim, span, true, true)
		if err != nil {
			return nil, option.Bad("Span", span, "%v", err)
		}
		g.Parts = append(g.Parts, parts)
		numbers, count = numbers+y.KVHeads*(y.HeadDim+y.ValueDim), count+len(parts)
	}
	if !(bits > 0 && bits <= 2*codec.MaxBitsPerNumber) {
		return nil, option.Bad("BitsKV", bits, "it must be above 0 and at most %d", 2*codec.MaxBitsPerNumber)
	}
	words := int(math.Floor((bits*float64(numbers)/2 - float64(scaleBits*count)) / wordSigns))
	before, given := 0, 0 // numbers and words of the groups so far
	for l, parts := range g.Parts {
		y := &c.Layers[l]
		var signs []int
		for _, group := range parts {
			d := groupDim(y, group)
			before += d
			n := before*words/numbers - given
			given += n
			if n < 1 || n*wordSigns > codec.MaxSigns(d)/wordSigns*wordSigns {
				return nil, option.Bad("BitsKV", bits, "groups of %d numbers would have %d signs; 32 to %d can be, their scales taken off",
					d, max(0, n)*wordSigns, codec.MaxSigns(d)/wordSigns*wordSigns)
			}
			signs = append(signs, n*wordSigns)
		}
		g.Signs = append(g.Signs, signs)
	}
	return g, nil
}

// Largest returns the most numbers, and the most signs, that a group has.
func (g *Groups) Largest(c *family.Config) (numbers, signs int) {
	for l, parts := range g.Parts {
		y := &c.Layers[l]
		for i, group := range parts {
			d := groupDim(y, group)
			numbers, signs = max(numbers, d), max(signs, g.Signs[l][i])
		}
	}
	return numbers, signs
}

// Total returns the signs and the bytes of a token in all groups.
func (g *Groups) Total() (signs, bytes int) {
	for _, layer := range g.Signs {
		for _, n := range layer {
			signs, bytes = signs+n, bytes+n/8+scaleBits/8
		}
	}
	return signs, bytes
}

func groupDim(y *family.Layer, parts []codec.Part) (d int) {
	for _, p := range parts {
		if d += y.HeadDim; p.Value {
			d += y.ValueDim - y.HeadDim
		}
	}
	return d
}
