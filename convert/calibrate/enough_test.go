package calibrate

import (
	"testing"

	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/verify/kvcache"
)

// TestEnough: as many keys as signs, at least as many as numbers; sinks are not keys.
func TestEnough(t *testing.T) {
	for _, x := range []struct {
		windows, ctx, sink int
		bits               float64
		good               bool
	}{
		{1, 64, 0, 1, true}, {1, 64, 1, 1, false}, {2, 36, 4, 1, true}, {2, 36, 5, 1, false},
		{100, 4, 4, 1, false}, {100, 4, 40, 1, false}, {1, 64, 0, 0.25, true}, {1, 63, 0, 0.25, false},
		{1, 64, 0, 1.01, false}, {1, 128, 0, 2, true}, {1, 511, 0, 8, false}, {1, 512, 0, 8, true},
	} {
		var w [][]int32
		for range x.windows {
			w = append(w, make([]int32, x.ctx))
		}
		layer := family.Layer{Attention: family.Attention{HeadShape: family.HeadShape{HeadDim: 64}}}
		err := Enough(&family.Config{Layers: []family.Layer{layer}}, w, kvcache.Policy{Sink: x.sink}, x.bits)
		if (err == nil) != x.good {
			t.Errorf("%+v: %v", x, err)
		}
	}
}
