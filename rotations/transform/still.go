package transform

import (
	"errors"
	"fmt"
	"slices"

	"github.com/phaseconv/phaseconv/format/family"
)

// Exact identities on the dimensions of keys that RoPE does not turn: in layers without RoPE all
// of them, with partial rotary those behind the turned ones, and all where keys are changed behind
// RoPE, in the gain of a norm there (LateGains).
const (
	// IDStillTransform is a matrix on them, its inverse transposed on the queries.
	IDStillTransform = "G5"
	// IDStillShift takes a constant on them out of the key bias: it moves all scores of a query by
	// the same amount, which softmax drops.
	IDStillShift = "G9"
)

// ErrAllTurn is why a model has no exact changes of that kind.
var ErrAllTurn = errors.New("RoPE turns all dimensions of all heads")

// stillFreq is an angle per position that is none: over every context it is less than what
// float64 tells from zero. Files say by a divisor of 1e30 that a pair does not turn.
const stillFreq = 1e-20

// LateGains says whether the keys of a layer are changed in the gain of a norm behind RoPE (Hunyuan).
// Then no change has to pass through RoPE.
func LateGains(y *family.Layer) bool { return y.NormAfterRoPE && y.QKNorm != family.NoQKNorm }

// HasLateGains says whether a model has such layers.
func HasLateGains(c *family.Config) bool {
	return slices.ContainsFunc(c.Layers, func(y family.Layer) bool { return LateGains(&y) })
}

// StillPairs says which pairs of a layer's heads RoPE does not turn after they were changed,
// [HeadDim/2], and whether there are any.
func StillPairs(y *family.Layer) (still []bool, some bool) {
	still = make([]bool, y.HeadDim/2)
	if LateGains(y) {
		for p := range still {
			still[p] = true
		}
		return still, true
	}
	turned := 0
	if y.Rope.Dim > 0 {
		for p, f := range y.Rope.InvFreq() {
			still[p] = f <= stillFreq
			some = some || still[p]
			turned++
		}
	}
	for p := turned; p < len(still); p++ {
		still[p], some = true, true
	}
	return still, some
}

// CheckStill says whether a model has layers where a matrix can pass between keys and queries on
// dimensions that RoPE does not turn, and whether a constant can leave the keys there too; else
// why not.
func CheckStill(c *family.Config) (matrix, shift error) {
	matrix = ErrAllTurn
	var fixed error
	for l := range c.Layers {
		y := &c.Layers[l]
		if _, some := StillPairs(y); !some || y.Kind != family.Softmax || y.Owner != l {
			continue
		}
		if err := CheckPairScale(y); err != nil {
			fixed = err
			continue
		}
		if matrix = CheckStillTransform(c, l); matrix != nil {
			break
		}
	}
	if matrix == ErrAllTurn && fixed != nil {
		matrix = fixed
	}
	if shift = matrix; shift != nil {
		return matrix, shift
	}
	for l := range c.Layers {
		if _, some := StillPairs(&c.Layers[l]); some && c.Layers[l].Owner == l && CheckPairScale(&c.Layers[l]) == nil {
			if shift = CheckStillShift(c, l); shift != nil {
				break
			}
		}
	}
	return matrix, shift
}

// CheckStillTransform says why no matrix passes between keys and queries of layer l on the
// dimensions of StillPairs. Through the gains of a QK-norm only scales pass.
func CheckStillTransform(c *family.Config, l int) error {
	y := &c.Layers[l]
	if y.ValuesAreKeys && y.QKNorm == family.NoQKNorm {
		return fmt.Errorf("family %s makes values of the keys' projection", c.Family.Name)
	}
	return CheckPairScale(y)
}

// CheckStillShift says why a constant cannot leave the keys of layer l on the dimensions that RoPE
// does not turn without changing the model.
func CheckStillShift(c *family.Config, l int) error {
	y := &c.Layers[l]
	if y.Sinks {
		return fmt.Errorf("%w: family %s has attention sinks, against which a constant in the keys moves all scores",
			ErrNoKeyBias, c.Family.Name)
	}
	if y.SoftCap != 0 {
		return fmt.Errorf("%w: family %s caps scores, and a constant in the keys moves them out of the range where all move alike",
			ErrNoKeyBias, c.Family.Name)
	}
	return checkKeyBias(c, y)
}

// StillShift returns the shift that takes the mean of a head's keys out on the pairs that stand
// still, and nothing else.
func StillShift(s *KeyStats, still []bool) *BiasShift {
	out := &BiasShift{Exact: true, Delta: make([]float64, s.D)}
	var removed float64
	for p, on := range still {
		i, j := s.Pairs.Dims(p, s.D)
		out.Energy += s.Var[p] + float64(s.Mean[i]*s.Mean[i]) + float64(s.Mean[j]*s.Mean[j])
		if on {
			out.Delta[i], out.Delta[j] = s.Mean[i], s.Mean[j]
			removed += float64(s.Mean[i]*s.Mean[i]) + float64(s.Mean[j]*s.Mean[j])
		}
	}
	if out.Energy > 0 {
		out.Removed = removed / out.Energy
	}
	return out
}

// keepsTurned says whether a transform of layer y's heads only scales the pairs that RoPE turns,
// both dimensions alike, and mixes none of them.
func (m *KeyTransform) keepsTurned(c *family.Config, y *family.Layer) bool {
	still, _ := StillPairs(y)
	d := y.HeadDim
	for p, on := range still {
		if on {
			continue
		}
		i, j := c.Pairs.Part(y.Rope.Dim).Dims(p, d)
		if m.Key[i*d+i] != m.Key[j*d+j] {
			return false
		}
		for k := range d {
			if k != i && (m.Key[i*d+k] != 0 || m.Key[k*d+i] != 0) || k != j && (m.Key[j*d+k] != 0 || m.Key[k*d+j] != 0) {
				return false
			}
		}
	}
	return true
}
