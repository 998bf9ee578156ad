package bits

import (
	"math"

	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/verify/option"
)

// Shares are the parts of a group's signs that its keys, and its values, are decoded from: the first
// ones and the last ones. A runtime scores the former and sums the latter; those in the middle serve
// both. 1 is all of them, and the zero value is all for both.
type Shares struct{ Key, Value float64 }

// Of returns the signs of either side of a group of so many, in whole words; 0 and 0 where all serve
// both, as in groups that hold one side alone.
func (s Shares) Of(parts []codec.Part, signs int) (key, value int) {
	words := signs / wordSigns
	if s.Whole() || words < 2 || parts[0].Value || !parts[len(parts)-1].Value {
		return 0, 0
	}
	of := func(share float64) int { return max(1, min(words, int(math.Round(share*float64(words))))) }
	k, v := of(s.Key), of(s.Value)
	v = max(v, words-k) // rounding leaves no sign without use
	if k == words && v == words {
		return 0, 0
	}
	return k * wordSigns, v * wordSigns
}

// used is Of with all signs where it says 0.
func (s Shares) used(parts []codec.Part, signs int) (key, value int) {
	if key, value = s.Of(parts, signs); key == 0 {
		return signs, signs
	}
	return key, value
}

// Used returns how many signs of a token, in all groups, keys and values are decoded from; all for both
// where the shares are.
func (g *Groups) Used() (keys, values int) {
	for l, parts := range g.Parts {
		for i, group := range parts {
			k, v := g.Shares.used(group, g.Signs[l][i])
			keys, values = keys+k, values+v
		}
	}
	return keys, values
}

// Whole says whether all signs serve keys and values.
func (s Shares) Whole() bool { return s == Shares{} || s == Shares{1, 1} }

// check refuses shares that leave signs without use.
func (s Shares) check(p Parts) error {
	in := func(x float64) bool { return x > 0 && x <= 1 }
	switch {
	case s.Whole():
		return nil
	case !in(s.Key):
		return option.Bad("KeyShare", s.Key, "it must be above 0 and at most 1")
	case !in(s.Value):
		return option.Bad("ValueShare", s.Value, "it must be above 0 and at most 1")
	case s.Key+s.Value < 1:
		return option.Bad("KeyShare", s.Key, "with %g for values some signs would serve neither: the two must add up to 1 at least",
			s.Value)
	case p != PartsBoth:
		return option.Bad("KeyShare", s.Key, "groups of %s have no signs that keys and values could share; it goes with %s", p,
			PartsBoth)
	}
	return nil
}
