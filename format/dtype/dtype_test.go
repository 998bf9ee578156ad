package dtype

import (
	"math"
	"math/big"
	"math/rand/v2"
	"testing"
)

// f16Value is the definition of binary16, in float64 (exact for every finite value).
func f16Value(h uint16) float64 {
	s, e, m := 1.0, int(h>>10&31), float64(h&0x3ff)
	if h&0x8000 != 0 {
		s = -1
	}
	switch {
	case e == 0:
		return s * math.Ldexp(m, -24) // keeps the sign of zero
	case e < 31:
		return s * math.Ldexp(1024+m, e-25)
	case m == 0:
		return math.Inf(int(s))
	}
	return math.NaN()
}

func bf16Value(b uint16) float64 {
	s, e, m := 1.0, int(b>>7&255), float64(b&0x7f)
	if b&0x8000 != 0 {
		s = -1
	}
	switch {
	case e == 0:
		return s * math.Ldexp(m, -133)
	case e < 255:
		return s * math.Ldexp(128+m, e-134)
	case m == 0:
		return math.Inf(int(s))
	}
	return math.NaN()
}

var formats = []struct {
	name   string
	value  func(uint16) float64
	widen  func(uint16) float32
	narrow func(float32) uint16
	round  func(float32) float32
	quiet  uint16 // the bit that makes a NaN quiet
	inf    uint16
}{
	{"F16", f16Value, F16ToF32, F32ToF16, F16Round, 0x0200, 0x7c00},
	{"BF16", bf16Value, BF16ToF32, F32ToBF16, BF16Round, 0x0040, 0x7f80},
}

// All 65,536 values: widening matches the definition, and narrowing brings
// every value back (a signalling NaN as the quiet NaN of the same payload).
func TestExhaustive(t *testing.T) {
	for _, f := range formats {
		t.Run(f.name, func(t *testing.T) {
			for i := range 1 << 16 {
				h := uint16(i)
				want, got := f.value(h), f.widen(h)
				back := f.narrow(got)
				if math.IsNaN(want) {
					if got == got || math.Signbit(float64(got)) != (h&0x8000 != 0) || back != h|f.quiet {
						t.Fatalf("NaN %#04x: widened to %#08x, back %#04x", h, math.Float32bits(got), back)
					}
					continue
				}
				if math.Float64bits(float64(got)) != math.Float64bits(want) || back != h {
					t.Fatalf("%#04x: got %g want %g, back %#04x", h, got, want, back)
				}
				if f.round(got) != got {
					t.Fatalf("%#04x: rounding moved %g", h, got)
				}
			}
		})
	}
}

// nearest rounds x by search in the definition: the candidate with the smaller
// exact distance, the even one on a tie, infinity from half a step past the
// largest finite value on.
func nearest(value func(uint16) float64, inf uint16, x float32) uint16 {
	var sign uint16
	if math.Signbit(float64(x)) {
		sign, x = 0x8000, -x
	}
	if math.IsInf(float64(x), 0) {
		return sign | inf
	}
	lo, hi := uint16(0), inf // value(lo) <= x < value(hi)
	for hi-lo > 1 {
		if mid := lo + (hi-lo)/2; value(mid) <= float64(x) {
			lo = mid
		} else {
			hi = mid
		}
	}
	upper := value(hi)
	if hi == inf { // the step goes on as if the exponent range did
		upper = 2*value(lo) - value(lo-1)
	}
	exact := new(big.Float).SetPrec(300).SetFloat64(float64(x))
	below := new(big.Float).Sub(exact, big.NewFloat(value(lo)))
	above := new(big.Float).Sub(big.NewFloat(upper), exact)
	switch c := below.Cmp(above); {
	case c < 0, c == 0 && lo&1 == 0:
		return sign | lo
	}
	return sign | hi
}

// Around every boundary that a rounding decision can have: each value, each
// midpoint between neighbours, and one float32 step to both sides of them.
func TestRoundingAroundEveryMidpoint(t *testing.T) {
	t.Parallel()
	for _, f := range formats {
		t.Run(f.name, func(t *testing.T) {
			check := func(x float32) {
				for _, x := range []float32{x, -x} {
					if got, want := f.narrow(x), nearest(f.value, f.inf, x); got != want {
						t.Fatalf("%g (%#08x): got %#04x want %#04x", x, math.Float32bits(x), got, want)
					}
				}
			}
			step := uint16(1)
			if testing.Short() {
				step = 61
			}
			for h := uint16(0); h < f.inf; h += step {
				v := float32(f.value(h))
				// The float32 bits of neighbouring narrow values are an equal
				// distance apart inside a binade, so the midpoint is in the middle;
				// below the narrow formats' normal range compute it as a number.
				next := f.value(h + 1)
				if h+1 == f.inf {
					next = 2*f.value(h) - f.value(h-1)
				}
				mid := float32((f.value(h) + next) / 2)
				for _, x := range []float32{v, mid} {
					check(x)
					check(math.Nextafter32(x, 0))
					check(math.Nextafter32(x, float32(math.Inf(1))))
				}
			}
		})
	}
}

func TestRoundingCases(t *testing.T) {
	for _, c := range []struct {
		name     string
		x        float32
		f16, b16 uint16
	}{
		{"zero", 0, 0, 0},
		{"negative zero", float32(math.Copysign(0, -1)), 0x8000, 0x8000},
		{"one", 1, 0x3c00, 0x3f80},
		{"largest F16", 65504, 0x7bff, 0x4780},
		{"last below the F16 overflow tie", 65519.996, 0x7bff, 0x4780},
		{"F16 overflow tie goes to even, infinity", 65520, 0x7c00, 0x4780},
		{"half of the smallest F16 ties to zero", 0x1p-25, 0, 0x3300},
		{"just above it", 0x1.000002p-25, 1, 0x3300},
		{"three halves of it tie to even", 0x1.8p-24, 2, 0x33c0},
		{"largest F16 subnormal rounds up to normal", 0x1.ffep-15, 0x0400, 0x3880},
		{"F16 tie to even, down", 1 + 0x1p-11, 0x3c00, 0x3f80},
		{"F16 tie to even, up", 1 + 0x3p-11, 0x3c02, 0x3f80},
		{"BF16 tie to even, down", 1 + 0x1p-8, 0x3c04, 0x3f80},
		{"BF16 tie to even, up", 1 + 0x3p-8, 0x3c0c, 0x3f82},
		{"truncation would keep 0x3f80", 1 + 0x1.8p-8, 0x3c06, 0x3f81},
		{"largest float32 overflows", math.MaxFloat32, 0x7c00, 0x7f80},
		{"smallest float32", math.SmallestNonzeroFloat32, 0, 0},
		{"infinity", float32(math.Inf(1)), 0x7c00, 0x7f80},
		{"NaN whose payload lies in the cut bits", math.Float32frombits(0xff800001), 0xfe00, 0xffc0},
		{"NaN of all ones does not carry over", math.Float32frombits(0x7fffffff), 0x7fff, 0x7fff},
	} {
		if got := F32ToF16(c.x); got != c.f16 {
			t.Errorf("%s: F16 %#04x, want %#04x", c.name, got, c.f16)
		}
		if got := F32ToBF16(c.x); got != c.b16 {
			t.Errorf("%s: BF16 %#04x, want %#04x", c.name, got, c.b16)
		}
	}
}

func TestRandomAgainstNearest(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 100_000 {
		x := math.Float32frombits(rng.Uint32())
		if x != x {
			continue
		}
		for _, f := range formats {
			if got, want := f.narrow(x), nearest(f.value, f.inf, x); got != want {
				t.Fatalf("%s %g (%#08x): got %#04x want %#04x", f.name, x, math.Float32bits(x), got, want)
			}
		}
	}
}

// The bulk forms equal the scalar ones at odd sizes, stop at the shorter side
// and leave the rest alone.
func TestBulk(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for _, n := range []int{0, 1, 2, 3, 7, 8, 9, 31, 64, 1000} {
		src := make([]float32, n)
		halves := make([]uint16, n)
		for i := range src {
			src[i] = math.Float32frombits(rng.Uint32())
			halves[i] = uint16(rng.Uint32())
			if i/4%2 == 0 { // the fast paths need four ordinary values in a row
				src[i] = float32(rng.NormFloat64())
				halves[i] = F32ToF16(src[i])
			}
		}
		for _, f := range []struct {
			name   string
			narrow func(float32) uint16
			widen  func(uint16) float32
			encode func([]byte, []float32) int
			decode func([]float32, []byte) int
		}{
			{"F16", F32ToF16, F16ToF32, EncodeF16, DecodeF16},
			{"BF16", F32ToBF16, BF16ToF32, EncodeBF16, DecodeBF16},
		} {
			enc := make([]byte, 2*n+3)
			for i := range enc {
				enc[i] = 0xaa
			}
			if got := f.encode(enc, src); got != n {
				t.Fatalf("%s: encoded %d of %d", f.name, got, n)
			}
			for i, x := range src {
				if h := f.narrow(x); enc[2*i] != byte(h) || enc[2*i+1] != byte(h>>8) {
					t.Fatalf("%s: narrow differs at %d of %d", f.name, i, n)
				}
			}
			if enc[2*n] != 0xaa {
				t.Fatalf("%s: wrote past %d values", f.name, n)
			}
			dec := make([]float32, n+1)
			raw := make([]byte, 2*n+1)
			for i, h := range halves {
				raw[2*i], raw[2*i+1] = byte(h), byte(h>>8)
			}
			if got := f.decode(dec, raw); got != n {
				t.Fatalf("%s: decoded %d of %d", f.name, got, n)
			}
			for i, h := range halves {
				if math.Float32bits(dec[i]) != math.Float32bits(f.widen(h)) {
					t.Fatalf("%s: widen differs at %d of %d", f.name, i, n)
				}
			}
			if n > 0 {
				if got := f.decode(dec[:n-1], raw); got != n-1 {
					t.Fatalf("%s: a short destination took %d", f.name, got)
				}
			}
		}
		raw, back := make([]byte, 4*n+3), make([]float32, n+1)
		if a, b := EncodeF32(raw, src), DecodeF32(back, raw[:4*n+3]); a != n || b != n {
			t.Fatalf("F32: encoded %d, decoded %d of %d", a, b, n)
		}
		for i := range src {
			if math.Float32bits(src[i]) != math.Float32bits(back[i]) {
				t.Fatalf("F32: bits changed at %d", i)
			}
		}
	}
}

// The loops over four values decide by group: every binary16 value goes through
// each place of a group whose other members are ordinary numbers.
func TestDecodeF16EveryPlace(t *testing.T) {
	raw, out := make([]byte, 8), make([]float32, 4)
	for h := range 1 << 16 {
		for place := range 4 {
			for i := range 4 {
				raw[2*i], raw[2*i+1] = 0x34, 0x3c
			}
			raw[2*place], raw[2*place+1] = byte(h), byte(h>>8)
			DecodeF16(out, raw)
			for i, got := range out {
				want := F16ToF32(0x3c34)
				if i == place {
					want = F16ToF32(uint16(h))
				}
				if math.Float32bits(got) != math.Float32bits(want) {
					t.Fatalf("%#04x in place %d: value %d is %g, want %g", h, place, i, got, want)
				}
			}
			if h&0x7c00 == 0x7c00 && h&0x3ff != 0 {
				continue
			}
			enc := make([]byte, 8)
			if EncodeF16(enc, out); string(enc) != string(raw) {
				t.Fatalf("%#04x in place %d: % x encoded as % x", h, place, raw, enc)
			}
		}
	}
}

func BenchmarkBulk(b *testing.B) {
	const n = 1 << 16
	rng := rand.New(rand.NewPCG(5, 6))
	wide := make([]float32, n)
	for i := range wide {
		wide[i] = float32(rng.NormFloat64() * 0.02) // the spread of model weights
	}
	f16, bf16 := make([]byte, 2*n), make([]byte, 2*n)
	EncodeF16(f16, wide)
	EncodeBF16(bf16, wide)
	out := make([]float32, n)
	for _, c := range []struct {
		name string
		run  func()
	}{
		{"DecodeF16", func() { DecodeF16(out, f16) }},
		{"DecodeBF16", func() { DecodeBF16(out, bf16) }},
		{"EncodeF16", func() { EncodeF16(f16, wide) }},
		{"EncodeBF16", func() { EncodeBF16(bf16, wide) }},
		{"F16Round", func() {
			for i, x := range wide {
				out[i] = F16Round(x)
			}
		}},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.SetBytes(4 * n) // bytes on the float32 side
			for b.Loop() {
				c.run()
			}
		})
	}
}
