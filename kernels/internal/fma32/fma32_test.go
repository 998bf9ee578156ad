package fma32

import (
	"math"
	"math/big"
	"math/rand/v2"
	"testing"
)

// fmaBig is the oracle of the oracle: a*b+c without any rounding in math/big,
// then rounded once. Only for finite arguments.
func fmaBig(a, b, c float32) float32 {
	exact := func(x float32) *big.Float { return new(big.Float).SetPrec(1000).SetFloat64(float64(x)) }
	s := new(big.Float).SetPrec(1000).Mul(exact(a), exact(b))
	s.Add(s, exact(c))
	if s.Sign() == 0 {
		// math/big has no rule for the sign of an exact zero that IEEE 754 shares.
		return float32(float64(a)*float64(b) + float64(c))
	}
	f, _ := s.Float32()
	return f
}

// naive is the wrong way, which rounds twice.
func naive(a, b, c float32) float32 {
	return float32(math.FMA(float64(a), float64(b), float64(c)))
}

func TestFMATable(t *testing.T) {
	inf, nan := float32(math.Inf(1)), float32(math.NaN())
	zero, negZero := float32(0), float32(math.Copysign(0, -1))
	const tiny, huge, eps = 0x1p-149, math.MaxFloat32, 0x1p-23
	for _, c := range []struct {
		a, b, c float32
		want    uint32
	}{
		// The witness: the exact sum lies just below a tie, the sum in float64 on it.
		{1 + eps, (1 - eps) * 0x1p-24, 1 + eps, 0x3f800001},
		{-1 - eps, (1 - eps) * 0x1p-24, -1 - eps, 0xbf800001},
		// And just above one: 1 + 2^-24 + 2^-70.
		{1, 0x1p-24, 1, 0x3f800000},
		{0x1p-24 + 0x1p-47, 1, 1, 0x3f800001},
		// Results that are subnormal, where float32 has fewer bits.
		{0x1p-75, 0x1p-75, 0, 0},
		{0x1p-75, 0x1p-75, tiny, 2},
		{0x1p-75, 0x1.fffffep-76, tiny, 1},
		{0x1.8p-75, 0x1p-75, 0, 1},
		{0x1p-75, 0x1p-75 * (1 + eps), 0, 1},
		{0x1.000002p-75, 0x1p-75, tiny, 2},
		{-0x1p-75, 0x1p-75, tiny, 0},
		{0x1p-126, 0.5, -tiny, 0x003fffff},
		// Overflow, and not quite.
		{huge, 2, -huge, 0x7f7fffff},
		{huge, 1, huge, 0x7f800000},
		{huge, -2, 0, 0xff800000},
		{huge, 1, 0x1p103, 0x7f800000},
		{huge, 1, 0x1.fffffep102, 0x7f7fffff},
		// Zeros keep the signs of IEEE 754.
		{1, zero, negZero, 0},
		{1, negZero, negZero, 0x80000000},
		{1, -1, 1, 0},
		{inf, 1, 1, 0x7f800000},
		{-inf, 1, huge, 0xff800000},
		{1, 1, -inf, 0xff800000},
		{inf, 1, -inf, 0x7fc00000},
		{inf, 0, 1, 0x7fc00000},
		{nan, 1, 1, 0x7fc00000},
	} {
		for name, f := range map[string]func(a, b, c float32) float32{
			"FMA": FMA,
			"Odd": func(a, b, c float32) float32 {
				return Odd(float64(a)*float64(b), float64(c))
			},
		} {
			got := f(c.a, c.b, c.c)
			want := math.Float32frombits(c.want)
			if got != got && want != want {
				continue
			}
			if math.Float32bits(got) != c.want {
				t.Errorf("%s(%v, %v, %v) = %08x, want %08x", name, c.a, c.b, c.c, math.Float32bits(got), c.want)
			}
		}
	}
	if math.Float32bits(naive(1+eps, (1-eps)*0x1p-24, 1+eps)) != 0x3f800002 {
		t.Error("the witness no longer shows that rounding twice is wrong")
	}
}

// TestFMARandom mixes random triples with constructed ones whose sum lies at a
// tie or one part in 2^46 beside it, which random triples never hit.
func TestFMARandom(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	wrong := 0
	for range 200_000 {
		a, b, c := anyFloat(r), anyFloat(r), anyFloat(r)
		if r.IntN(2) == 0 {
			// c + ulp(c)/2 * (1 +- 2^-k): p is a power of two times nearly one.
			e := r.IntN(200) - 100
			c = float32(math.Ldexp(1+float64(r.IntN(1<<23))*0x1p-23, e))
			a = float32(math.Ldexp(1+float64(r.IntN(5)-2)*0x1p-23, e))
			b = float32(math.Ldexp(1+float64(r.IntN(5)-2)*0x1p-23, -24))
		}
		if bad := func(x float32) bool { return x != x || x-x != 0 }; bad(a) || bad(b) || bad(c) {
			continue
		}
		want := fmaBig(a, b, c)
		if got := FMA(a, b, c); math.Float32bits(got) != math.Float32bits(want) {
			t.Fatalf("FMA(%x, %x, %x) = %x, want %x", a, b, c, got, want)
		}
		if math.Float32bits(naive(a, b, c)) != math.Float32bits(want) {
			wrong++
		}
	}
	if wrong == 0 {
		t.Error("no triple told a correct fma from one that rounds twice: the test has lost its teeth")
	}
}

// anyFloat returns any bit pattern, with the extremes more often than chance.
func anyFloat(r *rand.Rand) float32 {
	u := r.Uint32()
	if r.IntN(4) == 0 {
		u = u&0x807fffff | uint32(r.IntN(4)*84+r.IntN(3))<<23
	}
	return math.Float32frombits(u)
}

func FuzzFMA(f *testing.F) {
	f.Add(uint32(0x3f800001), uint32(0x337ffffe), uint32(0x3f800001))
	f.Add(uint32(1), uint32(1), uint32(1))
	f.Fuzz(func(t *testing.T, a, b, c uint32) {
		x, y, z := math.Float32frombits(a), math.Float32frombits(b), math.Float32frombits(c)
		got := FMA(x, y, z)
		for _, v := range []float32{x, y, z} {
			if v-v != 0 {
				// Not finite: the float64 sum has the right class.
				want := float32(float64(x)*float64(y) + float64(z))
				if got != want && (got == got || want == want) {
					t.Fatalf("FMA(%v, %v, %v) = %v, want %v", x, y, z, got, want)
				}
				return
			}
		}
		if want := fmaBig(x, y, z); math.Float32bits(got) != math.Float32bits(want) {
			t.Fatalf("FMA(%x, %x, %x) = %x, want %x", x, y, z, got, want)
		}
	})
}
