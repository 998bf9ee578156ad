package bits

import (
	"testing"

	"github.com/phaseconv/phaseconv/rotations/codec"
)

// TestShares: words of signs for either side, no sign without use, and all for both where a group holds one
// side or shares say so.
func TestShares(t *testing.T) {
	both := []codec.Part{{Head: 0}, {Head: 0, Value: true}}
	for _, x := range []struct {
		s          Shares
		parts      []codec.Part
		signs      int
		key, value int
	}{
		{Shares{}, both, 576, 0, 0},
		{Shares{1, 1}, both, 576, 0, 0},
		{Shares{0.75, 0.875}, both, 576, 448, 512},
		{Shares{0.75, 0.875}, both, 384, 288, 352}, // 10.5 words
		{Shares{0.5, 0.5}, both, 96, 64, 64},       // 1.5 words
		{Shares{0.4, 0.6}, both, 96, 32, 64},
		{Shares{0.01, 0.99}, both, 64, 32, 64},
		{Shares{0.75, 0.875}, both, 64, 0, 0}, // rounded to all
		{Shares{0.9, 0.9}, both, 64, 0, 0},
		{Shares{0.5, 0.5}, both, 32, 0, 0},
		{Shares{0.5, 0.5}, both[:1], 576, 0, 0},
		{Shares{0.5, 0.5}, both[1:], 576, 0, 0},
	} {
		k, v := x.s.Of(x.parts, x.signs)
		if k != x.key || v != x.value {
			t.Errorf("%v of %d signs of %v: %d and %d, want %d and %d", x.s, x.signs, x.parts, k, v, x.key, x.value)
		}
	}
	for _, x := range []struct {
		s  Shares
		p  Parts
		ok bool
	}{
		{Shares{}, PartsKeys, true}, {Shares{1, 1}, PartsApart, true}, {Shares{0.5, 0.5}, PartsBoth, true},
		{Shares{0.5, 0.5}, PartsApart, false}, {Shares{0.4, 0.5}, PartsBoth, false}, {Shares{0, 1}, PartsBoth, false},
		{Shares{1, 1.1}, PartsBoth, false}, {Shares{-1, 1}, PartsBoth, false},
	} {
		if err := x.s.check(x.p); (err == nil) != x.ok {
			t.Errorf("%v of %s: %v", x.s, x.p, err)
		}
	}
}
