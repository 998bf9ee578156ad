package codec_test

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/phaseconv/phaseconv/internal/keydata"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/rotations/fit"
)

// codes returns one code of every kind (or of those given), and frames of several sizes.
func codes(t testing.TB, r *rand.Rand, d int, kinds ...codec.Kind) map[string]*codec.Code {
	t.Helper()
	if len(kinds) == 0 {
		kinds = codec.Kinds
	}
	c, _ := keydata.Metric(r, 4*d, d)
	s := &fit.Sample{D: d, Keys: keydata.Keyish(r, 12*d, d), Metric: c, Seed: 5, Threads: 1}
	out := map[string]*codec.Code{}
	for _, kind := range kinds {
		sizes := []int{d}
		if kind == "frame" {
			sizes = []int{max(8, d/2&^7), (d + 7) &^ 7, d + 8&^7, (2*d + 7) &^ 7}
		}
		for _, b := range sizes {
			if kind != "frame" && b%8 != 0 {
				continue
			}
			code, _, err := fit.Fit(t.Context(), kind, b, s)
			if err != nil {
				t.Fatal(err)
			}
			out[fmt.Sprintf("%s d=%d b=%d", kind, d, b)] = code
		}
	}
	return out
}

// signOf returns sign i of a key as +1 or -1.
func signOf(words []uint32, i int) float64 {
	if words[i/32]>>(i%32)&1 != 0 {
		return 1
	}
	return -1
}

// encoded writes out what a code makes of keys: words, scales and decoded keys.
func encoded(t testing.TB, c *codec.Code, keys []float32) string {
	n := len(keys) / c.D
	words, alpha, hat := make([]uint32, n*c.Words()), make([]float32, n), make([]float32, n*c.D)
	encode(t, c, keys, words, alpha)
	c.DecodeKeys(hat, words, alpha)
	return fmt.Sprint(words, alpha, hat)
}
