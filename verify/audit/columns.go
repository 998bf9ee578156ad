package audit

import (
	"github.com/phaseconv/phaseconv/rotations/codec"
)

// BitsPerNumber returns the signs per number of a code.
func BitsPerNumber(c *codec.Code) float64 { return float64(c.B) / float64(c.D) }

// Columns collects the codes of one head's audit: the one in use, those that
// were fitted beside it, and the data-free ones.
func Columns(inUse *codec.Code, fitted map[codec.Kind]*codec.Code, seed uint64, layer, head int) (Codes, error) {
	x := Codes{"code": inUse}
	for _, kind := range []codec.Kind{codec.Cen, codec.Learned} {
		if c := fitted[kind]; c != nil {
			x[string(kind)] = c
		} else if inUse.Kind == kind {
			x[string(kind)] = inUse
		}
	}
	for _, kind := range []codec.Kind{codec.Raw, codec.SRHT, codec.Random} {
		c, err := codec.DataFree(kind, inUse.D, seed, layer, head)
		if err != nil {
			return nil, err
		}
		x[string(kind)] = c
	}
	return x, nil
}
