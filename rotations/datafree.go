package rotations

import (
	"fmt"

	"github.com/phaseconv/phaseconv/rotations/internal/linalg"
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
		m = srht(d, stream(seed, layer, head, purposeSRHT))
	case "random":
		m = randomOrthogonal(d, stream(seed, layer, head, purposeRandom))
	default:
		return nil, fmt.Errorf("code %q needs calibration", kind)
	}
	return New(kind, d, d, make([]float32, d), toFloat32(m), nil)
}
