package kvcache

import (
	"slices"
	"strconv"

	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/spec"
)

// contexts at which effective bits are stated.
var contexts = []int{4096, 32768, 131072}

// GroupBytes computes what keys and values cost with these groups, [layer][group]. What no group
// codes is counted as F16 in KVF16 and KVCode, and nowhere else.
func GroupBytes(cfg *family.Config, groups [][]*codec.Group, p Policy) *spec.BytesJSON {
	b := &spec.BytesJSON{KVF16: 2 * cacheNumbers(cfg), Parts: codec.Summarize(slices.Concat(groups...)).Parts}
	numbers := 0
	for _, layer := range groups {
		for _, g := range layer {
			numbers += g.D()
			b.KCode += g.TokenBytes()
			c := g.Code
			b.Sidecar += int64(4 * (len(c.Mean) + len(c.Decode) + len(c.Encode) + len(g.Below)))
		}
	}
	b.KF16 = 2 * numbers
	b.KVCode = b.KVF16 - b.KF16 + b.KCode
	b.EffectiveBits = effectiveBits(b, numbers, p)
	return b
}

// cacheNumbers returns the numbers of a token's keys and values.
func cacheNumbers(cfg *family.Config) (n int) {
	for l := range cfg.Layers {
		y := &cfg.Layers[l]
		n += cfg.OwnKVHeads(l) * (y.HeadDim + y.ValueDim)
	}
	return n
}

// effectiveBits returns bits per number that is coded, of numbers a token, at some contexts.
func effectiveBits(b *spec.BytesJSON, numbers int, p Policy) map[string]float64 {
	out := map[string]float64{}
	for _, n := range contexts {
		exact := min(n, p.Sink+p.Recent)
		total := float64(exact*b.KF16 + (n-exact)*b.KCode)
		out[strconv.Itoa(n)] = 8 * total / (float64(n) * float64(numbers))
	}
	return out
}

// Bytes computes what keys cost with these codes.
func Bytes(cfg *family.Config, codes [][]*codec.Code, p Policy) *spec.BytesJSON {
	numbers := 0
	for _, d := range cfg.CachedDims() {
		numbers += d
	}
	b := &spec.BytesJSON{KF16: 2 * numbers, KVF16: 2 * cacheNumbers(cfg)}
	for _, heads := range codes {
		for _, c := range heads {
			b.KCode += p.KeyBytes(c)
			b.Sidecar += int64(4 * (len(c.Mean) + len(c.Decode) + len(c.Encode)))
		}
	}
	b.KVCode = b.KVF16 - b.KF16 + b.KCode
	b.EffectiveBits = effectiveBits(b, numbers, p)
	return b
}
