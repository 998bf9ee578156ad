package kvcache

import (
	"math"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/rotations/transform"
)

// TestOtherLayers: caches refuse layers that they would store wrongly, and take what
// does not touch a cache.
func TestOtherLayers(t *testing.T) {
	const d = 32
	code, err := codec.DataFree("srht", d, 1, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	makers := map[string]func(c *family.Config) error{
		"codes": func(c *family.Config) error {
			_, err := NewCodes(c, [][]*codec.Code{{code}, {code}}, Policy{Anchor: 16})
			return err
		},
		"llama.cpp": func(c *family.Config) error { _, err := NewLlamaCpp(c, F16); return err },
		"edited": func(c *family.Config) error {
			_, err := NewEditedKeys(c, transform.ModelEdits{{{}}, {{}}}, nil, 8)
			return err
		},
	}
	for _, x := range []struct {
		change func(y *family.Layer)
		says   string // "" if it is taken
	}{
		{func(y *family.Layer) { y.Sinks, y.Gate = true, family.GateHead }, ""},
		{func(y *family.Layer) { y.FFN.Shared = 1 }, ""},
		{func(y *family.Layer) { y.Kind = family.Latent }, "latent attention"},
		{func(y *family.Layer) { y.ValueDim = 2 * d }, "values of another length"},
	} {
		for name, of := range makers {
			c := codedConfig(2, d)
			x.change(&c.Layers[1])
			if err := of(c); (err == nil) != (x.says == "") || err != nil &&
				(!strings.Contains(err.Error(), x.says) || !strings.Contains(err.Error(), "layer 1")) {
				t.Errorf("%s: %v, want %q", name, err, x.says)
			}
		}
	}
	// A layer that reads another's has no code and no edit of its own.
	c := codedConfig(2, d)
	c.Layers[1].Owner = 0
	for name, of := range makers {
		if err := of(c); (err == nil) != (name == "llama.cpp") || err != nil && !strings.Contains(err.Error(), "1 of 0 KV heads") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := NewCodes(c, [][]*codec.Code{{code}, nil}, Policy{Anchor: 16}); err != nil {
		t.Error(err)
	}
	if _, err := NewEditedKeys(c, transform.ModelEdits{{{}}, nil}, nil, 8); err != nil {
		t.Error(err)
	}
}

// TestTurnedLayers: layers with a window and those without have a cache each, turned by the largest
// matrix for its heads; in a cache whose layers differ nothing is turned.
func TestTurnedLayers(t *testing.T) {
	c := codedConfig(4, 64)
	for l, d := range []int{64, 128, 64, 128} {
		c.Layers[l].HeadDim, c.Layers[l].ValueDim = d, d
		if d == 64 {
			c.Layers[l].Window = 16
		}
	}
	s, err := NewLlamaCpp(c, CacheTypes{K: gguf.TypeQ4_0, V: gguf.TypeQ4_0, Rotation: true})
	if err != nil {
		t.Fatal(err)
	}
	if s.RotationK() != 128 || s.RotationV() != 64 || !s.turns[0] || !s.turns[1] {
		t.Errorf("matrices of %d and %d, %v", s.RotationK(), s.RotationV(), s.turns)
	}
	row := s.KeyRow()
	for _, d := range []int{64, 128} {
		x := make([]float32, d)
		x[0] = 1
		row.ToCacheBasis(x, d, c.Pairs)
		if want := float32(1 / math.Sqrt(float64(d))); math.Abs(float64(x[d-1])) != float64(want) {
			t.Errorf("heads of %d: the last number is %g, want %g", d, x[d-1], want)
		}
	}
	c.Layers[3].HeadDim, c.Layers[3].ValueDim = 256, 256
	if s, err = NewLlamaCpp(c, s.CacheTypes); err != nil {
		t.Fatal(err)
	}
	if s.turns[1] || s.turns[3] || !s.turns[0] || s.RotationK() != 64 {
		t.Errorf("turned layers %v, matrix of %d", s.turns, s.RotationK())
	}
}
