package fit

import (
	"math/rand/v2"
	"testing"

	"github.com/phaseconv/phaseconv/internal/keydata"
	"github.com/phaseconv/phaseconv/rotations/codec"
)

// BenchmarkFit fits each code to the keys of one head as a default calibration
// has them: 6,096 keys of 64 dimensions.
func BenchmarkFit(b *testing.B) {
	const d, n = 64, 6096
	r := rand.New(rand.NewPCG(1, 1))
	c, _ := keydata.Metric(r, 2000, d)
	s := &Sample{D: d, Keys: keydata.Keyish(r, n, d), Metric: c, Threads: 1}
	for _, kind := range []codec.Kind{"srht", "learned", "frame"} {
		b.Run(string(kind), func(b *testing.B) {
			b.SetBytes(n * d * 4)
			for b.Loop() {
				fit(b, kind, d, s)
			}
		})
	}
}

// BenchmarkEncode codes keys with a fitted frame.
func BenchmarkEncode(b *testing.B) {
	const d, n = 64, 4096
	r := rand.New(rand.NewPCG(1, 1))
	keys := keydata.Keyish(r, n, d)
	c, _ := fit(b, "frame", d, &Sample{D: d, Keys: keys, Threads: 1})
	words, alpha := make([]uint32, n*c.Words()), make([]float32, n)
	b.SetBytes(n * d * 4)
	for b.Loop() {
		encode(b, c, keys, words, alpha)
	}
}

// BenchmarkGroup fits a joint code to the keys and values of a layer as SmolLM2 has them: 12,192
// tokens of 384 numbers, 576 signs.
func BenchmarkGroup(b *testing.B) {
	const d, n, signs = 64, 12192, 576
	r := rand.New(rand.NewPCG(1, 1))
	parts := []codec.Part{{Head: 0}, {Head: 1}, {Head: 2}, {Head: 0, Value: true}, {Head: 1, Value: true},
		{Head: 2, Value: true}}
	s := &GroupSample{Parts: parts, KeyDim: d, ValueDim: d, Rows: keydata.Keyish(r, n, len(parts)*d), Threads: 1}
	b.SetBytes(int64(len(s.Rows) * 4))
	for b.Loop() {
		if _, _, err := Group(b.Context(), signs, s); err != nil {
			b.Fatal(err)
		}
	}
}
