package generate

import (
	"fmt"
	"math"
	"math/rand/v2"

	"github.com/phaseconv/phaseconv/kernels/fmath"
	"github.com/phaseconv/phaseconv/verify/option"
)

// A Sampler chooses tokens. The same seed and logits give the same choices everywhere.
type Sampler struct {
	temperature float64
	random      *rand.Rand
	weights     []float64
}

// NewSampler returns a sampler; a temperature of 0 always takes the most likely token. It
// refuses negative and infinite ones.
func NewSampler(temperature float64, seed uint64) (*Sampler, error) {
	if !(temperature >= 0 && temperature <= 100) {
		return nil, option.Bad("Temperature", temperature, "expected 0 to 100")
	}
	return &Sampler{temperature: temperature, random: rand.New(rand.NewPCG(seed, 0))}, nil
}

// Next chooses a token: of equally likely ones the first. It fails where a logit is not a
// number.
func (s *Sampler) Next(logits []float32) (int32, error) {
	best := 0
	for i, v := range logits {
		if v != v || math.IsInf(float64(v), 1) {
			return 0, fmt.Errorf("the logit of token %d is %v", i, v)
		}
		if v > logits[best] {
			best = i
		}
	}
	if s.temperature == 0 {
		return int32(best), nil
	}
	s.weights = append(s.weights[:0], make([]float64, len(logits))...)
	var total float64
	for i, v := range logits {
		s.weights[i] = fmath.Exp(float64(v-logits[best]) / s.temperature)
		total += s.weights[i]
	}
	at := float64(s.random.Float64() * total)
	for i, w := range s.weights {
		if at -= w; at < 0 {
			return int32(i), nil
		}
	}
	return int32(best), nil // rounding of the sum
}
