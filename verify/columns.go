package verify

import (
	"github.com/phaseconv/phaseconv/rotations"
	"github.com/phaseconv/phaseconv/verify/audit"
)

// perNumber returns the signs per number of a code.
func perNumber(c *rotations.Code) float64 { return float64(c.B) / float64(c.D) }

// columns collects the codes of one head's audit: the one in use, those that
// were fitted beside it, and the data-free ones.
func columns(inUse *rotations.Code, fitted map[string]*rotations.Code, seed uint64, layer, head int) (audit.Codes, error) {
	x := audit.Codes{"code": inUse}
	for _, kind := range []string{"cen", "learned"} {
		if c := fitted[kind]; c != nil {
			x[kind] = c
		} else if inUse.Kind == kind {
			x[kind] = inUse
		}
	}
	for _, kind := range []string{"raw", "srht", "random"} {
		c, err := rotations.DataFree(kind, inUse.D, seed, layer, head)
		if err != nil {
			return nil, err
		}
		x[kind] = c
	}
	return x, nil
}
