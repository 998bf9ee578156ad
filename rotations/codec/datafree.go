package codec

import (
	"fmt"

	"github.com/phaseconv/phaseconv/kernels/linalg"
	"github.com/phaseconv/phaseconv/rotations/internal/seeded"
)

// Kinds lists the codes that Fit knows.
var Kinds = []string{"raw", "cen", "srht", "random", "learned", "frame"}

// DataFree returns a code that needs no calibration: raw, srht or random,
// without a mean.
func DataFree(kind string, d int, seed uint64, layer, head int) (*Code, error) {
	var m []float64
	switch kind {
	case "raw":
		m = linalg.Identity(d)
	case "srht":
		m = seeded.SRHT(d, seeded.Stream(seed, layer, head, seeded.PurposeSRHT))
	case "random":
		m = seeded.RandomOrthogonal(d, seeded.Stream(seed, layer, head, seeded.PurposeRandom))
	default:
		return nil, fmt.Errorf("code %q needs calibration", kind)
	}
	return New(kind, d, d, make([]float32, d), linalg.Float32(m), nil)
}
