package codec

import (
	"fmt"
	"slices"
	"strings"

	"github.com/phaseconv/phaseconv/kernels/linalg"
	"github.com/phaseconv/phaseconv/rotations/internal/seeded"
)

// A Kind names how a code was made. Its text stands in sidecars, manifests and options.
type Kind string

// The kinds that there are. Raw, SRHT and Random need no keys, the others are fitted to some.
const (
	Raw     Kind = "raw"     // signs of the key as it stands
	Cen     Kind = "cen"     // signs of the key minus the mean key
	SRHT    Kind = "srht"    // signs after a Hadamard rotation with random signs
	Random  Kind = "random"  // signs after a random rotation
	Learned Kind = "learned" // signs after a rotation that raises the mean cosine
	Frame   Kind = "frame"   // signs in a learned frame of any size, chosen with the error of scores
)

// Kinds lists the kinds of codes that Fit knows.
var Kinds = []Kind{Raw, Cen, SRHT, Random, Learned, Frame}

// KindNames returns the texts of Kinds, with commas between.
func KindNames() string {
	var b strings.Builder
	for i, k := range Kinds {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(string(k))
	}
	return b.String()
}

// ParseKind returns the kind that a text names. The error says which there are.
func ParseKind(text string) (Kind, error) {
	if slices.Contains(Kinds, Kind(text)) {
		return Kind(text), nil
	}
	return "", fmt.Errorf("expected %s", KindNames())
}

// DataFree returns a code that needs no calibration: Raw, SRHT or Random,
// without a mean.
func DataFree(kind Kind, d int, seed uint64, layer, head int) (*Code, error) {
	var m []float64
	switch kind {
	case Raw:
		m = linalg.Identity(d)
	case SRHT:
		m = seeded.SRHT(d, seeded.Stream(seed, layer, head, seeded.PurposeSRHT))
	case Random:
		m = seeded.RandomOrthogonal(d, seeded.Stream(seed, layer, head, seeded.PurposeRandom))
	default:
		return nil, fmt.Errorf("code %q needs calibration", kind)
	}
	return New(kind, d, d, make([]float32, d), linalg.Float32(m), nil)
}
