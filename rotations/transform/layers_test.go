package transform_test

import (
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/internal/tiny"
	"github.com/phaseconv/phaseconv/kernels/rope"
	"github.com/phaseconv/phaseconv/rotations/transform"
)

// TestOtherLayers: folds refuse layers in which they would not be exact.
func TestOtherLayers(t *testing.T) {
	c := tiny.Open(t, "llama", tiny.Options{Layers: 2, Bias: true})
	y := c.Config.Layers[0]
	scale := make([]float32, y.HeadDim/2)
	matrix := make([]float64, y.HeadDim*y.HeadDim)
	for i := range scale {
		scale[i] = 2
	}
	inverse := make([]float64, len(matrix))
	for i := range y.HeadDim {
		matrix[i*y.HeadDim+i], inverse[i*y.HeadDim+i] = 2, 0.5
	}
	edits := map[string]transform.KeyEdit{
		"scale":  {Pairs: &transform.PairRotation{Scale: scale}},
		"shift":  {Shift: &transform.BiasShift{Delta: make([]float64, y.HeadDim)}},
		"values": {Values: &transform.KeyTransform{Key: matrix, Query: inverse}},
	}
	all := map[string]bool{"scale": true, "shift": true, "values": true}
	for _, x := range []struct {
		change func(c *family.Config)
		says   string
		stops  map[string]bool
	}{
		{func(c *family.Config) {}, "", nil},
		// A shift moves all keys against the sink; what that costs is the search's to price.
		{func(c *family.Config) { c.Layers[0].Sinks = true }, "", nil},
		{func(c *family.Config) { c.Layers[0].Gate = family.GateChannel }, "a gate per dimension",
			map[string]bool{"values": true}},
		{func(c *family.Config) { c.Layers[0].Gate = family.GateHead }, "", nil},
		{func(c *family.Config) { c.Layers[0].Owner = 1 }, "keys and values of another layer", all},
		{func(c *family.Config) { c.Layers[0].Rope.Dim /= 2 }, "", nil},
		{func(c *family.Config) { c.Layers[0].Rope = rope.Params{} }, "", nil},
		{func(c *family.Config) { c.Layers[0].ValueNorm = true }, "values are normalised", map[string]bool{"values": true}},
		{func(c *family.Config) { c.Layers[0].ValuesAreKeys = true }, "makes values of the keys' projection", all},
		{func(c *family.Config) { c.Layers[0].Kind = family.Latent }, "latent attention", all},
	} {
		for name, e := range edits {
			was := c.Config
			c.Config = was.Clone()
			x.change(c.Config)
			v := checkpoint.NewEdited(c, checkpoint.Edits{})
			heads := make([]transform.KeyEdit, y.KVHeads)
			for h := range heads {
				heads[h] = e
			}
			err := transform.FoldKeys(v, 0, heads)
			c.Config = was
			if (err != nil) != x.stops[name] || err != nil && (!strings.Contains(err.Error(), x.says) || len(v.Edits) > 0) {
				t.Errorf("%s: %v, want %q", name, err, x.says)
			}
		}
	}
}
