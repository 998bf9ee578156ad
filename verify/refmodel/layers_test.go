package refmodel_test

import (
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/internal/tiny"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// TestUnknownLayers: a layer with something that the forward pass does not compute is
// refused by name before anything is computed, and not run as if it had not.
func TestUnknownLayers(t *testing.T) {
	c := tiny.Open(t, "mixtral", tiny.Options{Layers: 2})
	windows := tiny.Windows(c.Config, 1, 8)
	for says, change := range map[string]func(y *family.Layer){
		"latent attention":    func(y *family.Layer) { y.Kind = family.Latent },
		"a recurrent block":   func(y *family.Layer) { y.Kind = family.Recurrent },
		"of another length":   func(y *family.Layer) { y.ValueDim /= 2 },
		"a gate":              func(y *family.Layer) { y.Gate = family.GateChannel },
		"an FFN without gate": func(y *family.Layer) { y.FFN.Kind = family.Ungated },
	} {
		cfg := c.Config.Clone()
		change(&cfg.Layers[1])
		err := refmodel.New(cfg, c, 1).Run(t.Context(), windows, []*refmodel.Variant{{}}, refmodel.Options{})
		if err == nil || !strings.Contains(err.Error(), "layer 1") || !strings.Contains(err.Error(), says) ||
			!strings.Contains(err.Error(), "the forward pass does not support") {
			t.Errorf("%s: %v", says, err)
		}
	}
}
