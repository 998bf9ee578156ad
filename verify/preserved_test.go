package verify

import (
	"testing"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/contract"
	"github.com/phaseconv/phaseconv/verify/ppl"
)

// TestPreserved: the bounds of the proof of function. Numbers of models that jump are
// those of random models in BF16 with one weight of 1e5.
func TestPreserved(t *testing.T) {
	d := func(mean float64) *ppl.Divergence { return &ppl.Divergence{Mean: mean, Median: mean} }
	for _, x := range []struct {
		what, outtype string
		mean, floor   float64
		coarse        *ppl.Divergence
		good          bool
	}{
		{"near", "f16", 1e-5, 1e-6, nil, true},
		{"30 floors", "bf16", 3e-4, 1e-5, nil, true},
		{"no floor to speak of", "f32", 9e-5, 0, nil, true},
		{"another function", "f16", 0.01, 1e-5, nil, false},
		{"another function, smooth", "f16", 0.01, 1e-5, d(64e-5), false},
		{"jumps, by the first window", "bf16", 0.0643, 1.1e-4, nil, false},
		{"jumps", "bf16", 0.0643, 1.1e-4, d(0.05), true},
		{"much more than it jumps", "bf16", 0.3, 1.1e-4, d(0.05), false},
		{"q8_0", "q8_0", 1.3e-3, 1e-5, nil, true},
		{"q8_0, jumps", "q8_0", 0.05, 1e-5, d(0.006), true},
		{"q8_0, another function", "q8_0", 0.05, 1e-5, d(64e-5), false},
	} {
		a := &contract.Artifact{
			Manifest: &spec.Manifest{}, Entry: spec.Artifact{OutType: x.outtype},
			Model: &checkpoint.Checkpoint{Config: &family.Config{}},
		}
		if _, err := preserved(a, d(x.mean), d(x.floor), x.coarse); (err == nil) != x.good {
			t.Errorf("%s: %v", x.what, err)
		}
	}
}

// TestRoundCoarse: five significant bits, to nearest.
func TestRoundCoarse(t *testing.T) {
	x := []float32{1, 1.03, 1.04, -1.96875, -1.97, 3.1, 0}
	roundCoarse(x)
	for i, want := range []float32{1, 1, 1.0625, -2, -2, 3.125, 0} {
		if x[i] != want {
			t.Errorf("number %d is %g, want %g", i, x[i], want)
		}
	}
}
