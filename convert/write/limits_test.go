package write

import (
	"math"
	"testing"

	"github.com/phaseconv/phaseconv/format/dtype"
	"github.com/phaseconv/phaseconv/format/gguf"
)

// TestLimits: the limits are where the encoders make infinities.
func TestLimits(t *testing.T) {
	for name, l := range limits {
		typ, err := gguf.ParseType(name)
		if err != nil {
			t.Fatal(err)
		}
		decoded := func(v float32) float64 {
			src := make([]float32, 32)
			src[3] = v
			size, _ := gguf.RowBytes(typ, 32)
			b := make([]byte, size)
			if err := gguf.QuantizeRow(typ, b, src); err != nil {
				t.Fatal(err)
			}
			if name == "Q8_0" { // the scale comes first
				return float64(dtype.F16ToF32(uint16(b[0]) | uint16(b[1])<<8))
			}
			if err := gguf.DequantizeRow(typ, src, b); err != nil {
				t.Fatal(err)
			}
			return float64(src[3])
		}
		below := float32(l.first)
		if float64(below) >= l.first {
			below = math.Nextafter32(below, 0)
		}
		if v := decoded(below); math.IsInf(v, 0) || l.over([]float32{0, -below}) >= 0 {
			t.Errorf("%s: %g is stored as %g, over: %d", name, below, v, l.over([]float32{0, -below}))
		}
		if name == "F32" {
			continue
		}
		if v := decoded(float32(l.first)); !math.IsInf(v, 0) || l.over([]float32{0, -float32(l.first)}) != 1 {
			t.Errorf("%s: %g is stored as %g", name, l.first, v)
		}
		if v := decoded(float32(l.max)); math.IsInf(v, 0) {
			t.Errorf("%s: %g is stored as %g", name, l.max, v)
		}
		if l.over([]float32{float32(math.NaN())}) != 0 {
			t.Errorf("%s: NaN fits", name)
		}
	}
}
