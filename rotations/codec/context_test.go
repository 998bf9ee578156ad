package codec_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/phaseconv/phaseconv/internal/keydata"
	"github.com/phaseconv/phaseconv/rotations/codec"
)

func measure(t testing.TB, c *codec.Code, keys []float32) codec.Beta {
	t.Helper()
	b, err := c.Measure(t.Context(), keys)
	if err != nil {
		t.Error(err)
	}
	return b
}

func encode(t testing.TB, c *codec.Code, keys []float32, words []uint32, alpha []float32) {
	t.Helper()
	if err := c.EncodeKeys(t.Context(), keys, words, alpha); err != nil {
		t.Error(err)
	}
}

// TestEnds: many keys are not coded to the end when nobody waits for them.
func TestEnds(t *testing.T) {
	const d, n = 16, 2*codec.EncodeBatch + 1
	c, err := codec.DataFree("srht", d, 1, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	keys := keydata.Normal(rand.New(rand.NewPCG(1, 1)), n*d)
	seen := 0
	err = codec.Batches(ctx, n, 1, func(k0, k1 int) error {
		seen += k1 - k0
		cancel(cause)
		return nil
	})
	if !errors.Is(err, cause) || seen != codec.EncodeBatch {
		t.Errorf("Batches: %v after %d keys", err, seen)
	}
	if err := c.EncodeKeys(ctx, keys, make([]uint32, n*c.Words()), make([]float32, n)); !errors.Is(err, cause) {
		t.Errorf("EncodeKeys: %v", err)
	}
	if _, err := c.Measure(ctx, keys); !errors.Is(err, cause) {
		t.Errorf("Measure: %v", err)
	}
}
