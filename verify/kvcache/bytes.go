package kvcache

import (
	"strconv"

	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/spec"
)

// contexts at which effective bits are stated.
var contexts = []int{4096, 32768, 131072}

// Bytes computes what keys cost with these codes.
func Bytes(cfg *family.Config, codes [][]*codec.Code, p Policy) *spec.BytesJSON {
	numbers := cfg.Layers * cfg.KVHeads * cfg.HeadDim
	b := &spec.BytesJSON{KF16: 2 * numbers, EffectiveBits: map[string]float64{}}
	for _, heads := range codes {
		for _, c := range heads {
			b.KCode += p.KeyBytes(c)
			b.Sidecar += int64(4 * (len(c.Mean) + len(c.Decode) + len(c.Encode)))
		}
	}
	for _, n := range contexts {
		exact := min(n, p.Sink+p.Recent)
		total := float64(exact*b.KF16 + (n-exact)*b.KCode)
		b.EffectiveBits[strconv.Itoa(n)] = 8 * total / (float64(n) * float64(numbers))
	}
	return b
}
