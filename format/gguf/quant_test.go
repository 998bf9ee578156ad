package gguf

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/format/dtype"
)

// Every type that can be written, against libggml's reference functions.
func TestQuantizeGolden(t *testing.T) {
	raw, floats := golden(t, "quant.gguf")
	check := func(name string, id Type, quantize func(Type, []byte, []float32) error, src []float32) {
		want := raw(name)
		got := make([]byte, len(want))
		if err := quantize(id, got, src); err != nil {
			t.Fatal(err)
		}
		block, size := id.Block()
		bad := 0
		for i := 0; i < len(want); i += size {
			if string(got[i:i+size]) != string(want[i:i+size]) {
				if n := i / size * block; bad == 0 {
					t.Errorf("%s: block at number %d (row %d):\n got % x\nwant % x\n src %v", name, n, n/256, got[i:i+size],
						want[i:i+size], src[n:n+block])
				}
				bad++
			}
		}
		if bad > 0 {
			t.Errorf("%s: %d of %d blocks differ", name, bad, len(want)/size)
		}
	}
	src := floats("src")
	for id := range Type(numTypes) {
		if CanQuantize(id) && id.Quantized() {
			check(strings.ToLower(id.String()), id, QuantizeRow, src)
		}
	}
	check("q8_0.cache", TypeQ8_0, QuantizeCacheRow, src)
	check("f16", TypeF16, QuantizeRow, floats("halves.src"))
	check("bf16", TypeBF16, QuantizeRow, floats("halves.src"))
}

// For ordinary numbers a block's error stays within half a step of its scale,
// or within what the type's rule allows beyond that (commented below).
func TestQuantizeError(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for id := range Type(numTypes) {
		if !CanQuantize(id) {
			continue
		}
		block, size := id.Block()
		block, size = max(block, 32), max(size, 32*size/block)
		worst := 0.0
		for range 2000 {
			src, dst, back := make([]float32, block), make([]byte, size), make([]float32, block)
			var amax, lo, hi float64
			for i := range src {
				src[i] = float32(rng.NormFloat64())
				amax, lo, hi = max(amax, math.Abs(float64(src[i]))), min(lo, float64(src[i])), max(hi, float64(src[i]))
			}
			if err := QuantizeRow(id, dst, src); err != nil {
				t.Fatal(err)
			}
			if err := DequantizeRow(id, back, dst); err != nil {
				t.Fatal(err)
			}
			var limit float64
			switch id {
			case TypeF32:
			case TypeF16:
				limit = amax * 0x1p-11
			case TypeBF16:
				limit = amax * 0x1p-8
			case TypeQ8_0:
				limit = amax / 127 / 2
			case TypeQ4_0, TypeQ5_0: // the end opposite to the extreme lacks a level
				limit = amax / map[Type]float64{TypeQ4_0: 8, TypeQ5_0: 16}[id]
			case TypeQ4_1:
				limit = (hi - lo) / 15 / 2
			case TypeQ5_1:
				limit = (hi - lo) / 31 / 2
			case TypeIQ4_NL: // half the widest gap of 24, and 14 lacking at the end, of 127, and the refit
				limit = amax * 0.2
			case TypeQ1_0: // one magnitude for all
				limit = amax
			case TypeQ2_0: // levels at none and the largest
				limit = amax / 2
			case TypeQ2_K, TypeQ3_K, TypeQ4_K, TypeQ5_K, TypeQ6_K:
				// About a step, not half of one: scales and minima of groups have few bits.
				limit = (hi - lo) / map[Type]float64{TypeQ2_K: 4, TypeQ3_K: 8, TypeQ4_K: 15, TypeQ5_K: 31, TypeQ6_K: 63}[id]
			case TypeMXFP4: // half the widest gap, of 2 in 8, and 2 lacking at the end
				limit = amax / 4
			}
			// Beside that, the scale's own rounding to F16 moves each number.
			if id.Quantized() {
				limit += amax * 0x1p-10
			}
			for i := range src {
				if e := math.Abs(float64(src[i]) - float64(back[i])); e > limit {
					t.Fatalf("%s: %g came back as %g, limit %g", id, src[i], back[i], limit)
				} else if limit > 0 {
					worst = max(worst, e/limit)
				}
			}
		}
		if id != TypeF32 && worst < 0.49 { // a limit far above the errors would test nothing
			t.Errorf("%s: the largest error is only %.2f of the limit", id, worst)
		}
	}
}

// Rounding helpers against the definitions in float64, over all interesting numbers.
func TestRoundingHelpers(t *testing.T) {
	for i := -300 * 4; i <= 300*4; i++ {
		for _, x := range []float32{float32(i) / 4, math.Nextafter32(float32(i)/4, 1e9),
			math.Nextafter32(float32(i)/4, -1e9)} {
			if got, want := int8(roundAway(x)), int8(int(math.Round(float64(x)))); got != want {
				t.Fatalf("roundAway(%g) = %d, want %d", x, got, want)
			}
			if got, want := int8(toEven(x)), int8(max(-128, min(127, math.RoundToEven(float64(x))))); got != want {
				t.Fatalf("toEven(%g) = %d, want %d", x, got, want)
			}
		}
	}
	// All float32 numbers about the smallest tie, where the addition rounds.
	for bits := uint32(0x3efff000); bits < 0x3f001000; bits++ {
		x := math.Float32frombits(bits)
		if got, want := roundAway(x), byte(math.Round(float64(x))); got != want {
			t.Fatalf("roundAway(%g) = %d, want %d", x, got, want)
		}
	}
	for i := -130 * 8; i <= 130*8; i++ {
		for _, x := range []float32{float32(i) / 8, math.Nextafter32(float32(i)/8, 1e9),
			math.Nextafter32(float32(i)/8, -1e9)} {
			best := 0
			for j, v := range iq4Values {
				if math.Abs(float64(x)-float64(v)) <= math.Abs(float64(x)-float64(iq4Values[best])) {
					best = j
				}
			}
			if got := iq4Nearest(x); int(got) != best {
				t.Fatalf("iq4Nearest(%g) = %d, want %d", x, got, best)
			}
		}
	}
	inf, nan := float32(math.Inf(1)), float32(math.NaN())
	for _, c := range []struct {
		x          float32
		byte, even byte
	}{{inf, 0, 0x80}, {-inf, 0, 0x80}, {nan, 0, 0x80}, {0x1p31, 0, 0x80}, {1e6, 0x40, 127}, {-1e6, 0xc0, 0x80},
		{0x1p30, 0, 127}} {
		if got := toByte(c.x); got != c.byte {
			t.Errorf("toByte(%g) = %#x, want %#x", c.x, got, c.byte)
		}
		if got := roundAway(c.x); got != c.byte {
			t.Errorf("roundAway(%g) = %#x, want %#x", c.x, got, c.byte)
		}
		if got := toEven(c.x); got != c.even {
			t.Errorf("toEven(%g) = %#x, want %#x", c.x, got, c.even)
		}
	}
}

// FuzzDequantize feeds any bytes to every type: no panic, the same bits again
// from a second call, and a type that can be written takes back what it gave
// wherever that is finite.
func FuzzDequantize(f *testing.F) {
	for id := range Type(numTypes) {
		_, size := id.Block()
		f.Add(uint32(id), make([]byte, size))
		b := make([]byte, 3*size)
		for i := range b {
			b[i] = byte(i * 89)
		}
		f.Add(uint32(id), b)
		f.Add(uint32(id), b[:max(0, len(b)-1)])
	}
	f.Fuzz(func(t *testing.T, id uint32, src []byte) {
		block, size := Type(id).Block()
		n := 32
		if size > 0 {
			n = len(src) / size * block
		}
		dst := make([]float32, n+1)
		dst[n] = 42
		err := DequantizeRow(Type(id), dst[:n], src)
		if ok := CanDequantize(Type(id)) && len(src)%max(size, 1) == 0; ok != (err == nil) {
			t.Fatalf("type %d with %d bytes: %v", id, len(src), err)
		}
		if dst[n] != 42 {
			t.Fatal("wrote past the end")
		}
		if err != nil || !CanQuantize(Type(id)) {
			return
		}
		finite := true
		for _, x := range dst[:n] {
			finite = finite && !math.IsNaN(float64(x)) && !math.IsInf(float64(x), 0)
		}
		out := make([]byte, len(src))
		if err := QuantizeRow(Type(id), out, dst[:n]); (err == nil) != (finite || !Type(id).Quantized()) {
			t.Fatalf("type %d, finite %v: %v", id, finite, err)
		}
	})
}

func BenchmarkRows(b *testing.B) {
	const n = 1 << 15
	rng := rand.New(rand.NewPCG(7, 7))
	src, back := make([]float32, n), make([]float32, n)
	for i := range src {
		src[i] = float32(rng.NormFloat64() * 0.02)
	}
	for id := range Type(numTypes) {
		if !CanDequantize(id) {
			continue
		}
		size, _ := RowBytes(id, n)
		enc := make([]byte, size)
		if CanQuantize(id) {
			b.Run(fmt.Sprintf("quantize/type=%s", id), func(b *testing.B) {
				b.SetBytes(4 * n)
				for b.Loop() {
					if err := QuantizeRow(id, enc, src); err != nil {
						b.Fatal(err)
					}
				}
			})
		} else { // any bytes do, with ordinary scales
			for i := range enc {
				enc[i] = byte(rng.Uint32())
			}
			_, step := id.Block()
			for i := 0; i+step <= size; i += step {
				binary.LittleEndian.PutUint16(enc[i:], dtype.F32ToF16(0.01))
				binary.LittleEndian.PutUint16(enc[i+step-2:], dtype.F32ToF16(0.01))
			}
		}
		b.Run(fmt.Sprintf("dequantize/type=%s", id), func(b *testing.B) {
			b.SetBytes(4 * n)
			for b.Loop() {
				if err := DequantizeRow(id, back, enc); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
