package kvcache

import (
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/format/family"
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
		{func(y *family.Layer) { y.Owner = 0 }, "keys and values of another layer"},
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
	c := codedConfig(2, d)
	c.Layers[1].HeadDim, c.Layers[1].ValueDim = 2*d, 2*d
	if err := makers["llama.cpp"](c); err == nil || !strings.Contains(err.Error(), "layer 1 has 1 and 1 of 64") {
		t.Error(err)
	}
}
