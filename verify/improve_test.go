package verify

import (
	"math"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/audit"
)

// TestExpect: what is foretold of the three measured models holds what their conversions left
// (docs/advise.md): KLD of q4_0 as published and converted.
func TestExpect(t *testing.T) {
	share := func(x float64) *float64 { return &x }
	for _, x := range []struct {
		model     string
		gains     audit.Gains
		published float64
		converted []float64
	}{
		{"Qwen", audit.Gains{Removable: share(0.36)}, 0.9161, []float64{0.0163, 0.033}},
		{"Gemma", audit.Gains{Balance: share(0.626)}, 0.0806, []float64{0.0266, 0.0268}},
		{"SmolLM2", audit.Gains{Removable: share(0)}, 0.0365, []float64{0.0185, 0.0207, 0.029}},
		{"SmolLM2", audit.Gains{}, 0.0365, []float64{0.0185}},
		{"SmolLM2", audit.Gains{}, 0.0933, []float64{0.0298}}, // mlx4
	} {
		i := &spec.AdviseImprove{Worst: x.published}
		expect(i, &x.gains)
		e := i.Expected
		for _, c := range x.converted {
			if !(e.Low <= c && c <= e.High) {
				t.Errorf("%s: %g is not in %+v", x.model, c, e)
			}
		}
		if !strings.HasPrefix(e.Like, x.model) || e.High > x.published {
			t.Errorf("%s: %+v", x.model, e)
		}
	}
	// Gains that are balanced already foretell nothing.
	i := &spec.AdviseImprove{Worst: 1}
	if expect(i, &audit.Gains{Balance: share(1)}); i.Expected.High != 1 || math.Abs(i.Expected.Low-0.6) > 1e-9 {
		t.Errorf("balanced gains: %+v", i.Expected)
	}
}
