package fmath

import (
	"hash/fnv"
	"math"
	"math/big"
	"math/rand/v2"
	"testing"
)

// The oracle: Taylor series in math/big with 300 bits.

const prec = 300

func bf(x float64) *big.Float { return new(big.Float).SetPrec(prec).SetFloat64(x) }
func nf() *big.Float          { return new(big.Float).SetPrec(prec) }

var ln2Big = func() *big.Float {
	// ln 2 = 2 artanh(1/3)
	sum, pow := nf(), nf().Quo(bf(2), bf(3))
	for i := 1; i < 400; i += 2 {
		sum.Add(sum, nf().Quo(pow, bf(float64(i))))
		pow.Quo(pow, bf(9))
	}
	return sum
}()

var halfPiBig = func() *big.Float {
	f, _, err := big.ParseFloat("1.57079632679489661923132169163975144209858469968755291048747229615390820314310449931401741267105853399107404325664115332354692230477529", 10, prec, big.ToNearestEven)
	if err != nil {
		panic(err)
	}
	return f
}()

func expBig(x *big.Float) *big.Float {
	// e^x = 2^k e^r, and e^r = (e^(r/256))^256.
	q, _ := nf().Quo(x, ln2Big).Float64()
	k := math.Round(q)
	r := nf().Sub(x, nf().Mul(bf(k), ln2Big))
	r.SetMantExp(r, -8)
	sum, term := bf(1), bf(1)
	for i := 1; i < 60; i++ {
		term.Mul(term, r)
		term.Quo(term, bf(float64(i)))
		sum.Add(sum, term)
	}
	for range 8 {
		sum.Mul(sum, sum)
	}
	return sum.SetMantExp(sum, int(k))
}

func logBig(x *big.Float) *big.Float {
	// Newton's method doubles the bits of math.Log each time.
	e := x.MantExp(nil)
	m := nf().SetMantExp(x, -e)
	v, _ := m.Float64()
	y := bf(math.Log(v))
	for range 4 {
		t := expBig(nf().Neg(y))
		t.Mul(t, m)
		y.Add(y, t.Sub(t, bf(1)))
	}
	return y.Add(y, nf().Mul(bf(float64(e)), ln2Big))
}

// sinCosBig is for |x| < 2^40.
func sinCosBig(x float64) (sin, cos *big.Float) {
	q, _ := nf().Quo(bf(x), halfPiBig).Float64()
	k := math.Round(q)
	r := nf().Sub(bf(x), nf().Mul(bf(k), halfPiBig))
	s, c := nf(), nf()
	term := bf(1)
	for i := range 80 {
		t := nf().Set(term)
		if i&2 != 0 {
			t.Neg(t)
		}
		if i&1 == 0 {
			c.Add(c, t)
		} else {
			s.Add(s, t)
		}
		term.Mul(term, r)
		term.Quo(term, bf(float64(i+1)))
	}
	switch int64(k) & 3 {
	case 1:
		s, c = c, s.Neg(s)
	case 2:
		s, c = s.Neg(s), c.Neg(c)
	case 3:
		s, c = c.Neg(c), s
	}
	return s, c
}

// ulps returns the distance of got from want in ulp of want.
func ulps(got float64, want *big.Float) float64 {
	w, _ := want.Float64()
	if math.IsInf(w, 0) || math.IsInf(got, 0) {
		if got == w {
			return 0
		}
		return math.Inf(1)
	}
	_, e := math.Frexp(w)
	ulp := math.Ldexp(1, max(e-53, -1074))
	d, _ := nf().Quo(nf().Sub(bf(got), want), bf(ulp)).Float64()
	return math.Abs(d)
}

// worst runs f on many arguments and fails above the bound that the doc comment
// of the function promises.
func worst(t *testing.T, name string, n int, bound float64, f func(r *rand.Rand) (arg, ulp float64)) {
	t.Helper()
	r := rand.New(rand.NewPCG(1, 2))
	most, at := 0.0, 0.0
	for range n {
		if x, u := f(r); u > most || u != u {
			most, at = u, x
		}
	}
	t.Logf("%s: largest error %.3f ulp, at %v", name, most, at)
	if !(most <= bound) {
		t.Errorf("%s: error of %.3f ulp at %v (%x), more than the promised %.2f", name, most, at, at, bound)
	}
}

func TestAccuracy(t *testing.T) {
	t.Parallel()
	n := 1500
	if testing.Short() {
		n = 200
	}
	worst(t, "Exp", n, 0.65, func(r *rand.Rand) (float64, float64) {
		x := (r.Float64()*2 - 1) * math.Ldexp(708, -r.IntN(20))
		return x, ulps(Exp(x), expBig(bf(x)))
	})
	worst(t, "Exp, subnormal", n/10, 1.5, func(r *rand.Rand) (float64, float64) {
		x := -708 - 37*r.Float64()
		return x, ulps(Exp(x), expBig(bf(x)))
	})
	worst(t, "Log", n, 0.8, func(r *rand.Rand) (float64, float64) {
		x := math.Ldexp(r.Float64()+0.5, r.IntN(20)-10)
		if r.IntN(2) == 0 {
			x = 1 + (r.Float64()*2-1)*math.Ldexp(0.5, -r.IntN(40))
		}
		return x, ulps(Log(x), logBig(bf(x)))
	})
	worst(t, "Pow", n, 0.65, func(r *rand.Rand) (float64, float64) {
		x := math.Ldexp(r.Float64()+0.5, r.IntN(20)-10)
		y := (r.Float64()*2 - 1) * math.Ldexp(32, -r.IntN(10))
		return x, ulps(Pow(x, y), expBig(nf().Mul(bf(y), logBig(bf(x)))))
	})
	worst(t, "Pow, extremes", n/4, 1, func(r *rand.Rand) (float64, float64) {
		x := math.Ldexp(r.Float64()+0.5, r.IntN(60)-30)
		y := (r.Float64()*2 - 1) * 32
		return x, ulps(Pow(x, y), expBig(nf().Mul(bf(y), logBig(bf(x)))))
	})
	worst(t, "Pow, rotary frequencies", n/4, 0.65, func(r *rand.Rand) (float64, float64) {
		x := []float64{10000, 500000, 1e6, 1e7, 150000}[r.IntN(5)]
		d := 32 << r.IntN(4)
		y := float64(2*r.IntN(d/2)) / float64(d)
		return y, ulps(Pow(x, y), expBig(nf().Mul(bf(y), logBig(bf(x)))))
	})
	worst(t, "Tanh", n, 2.5, func(r *rand.Rand) (float64, float64) {
		x := (r.Float64()*2 - 1) * math.Ldexp(20, -r.IntN(30))
		e := expBig(bf(2 * x))
		return x, ulps(Tanh(x), nf().Quo(nf().Sub(e, bf(1)), nf().Add(e, bf(1))))
	})
	worst(t, "SinCos", n, 0.8, func(r *rand.Rand) (float64, float64) {
		x := (r.Float64()*2 - 1) * math.Ldexp(1, r.IntN(60)-20)
		switch r.IntN(4) {
		case 0: // positions times frequencies
			x = float64(r.IntN(1<<20)) * Pow(10000, -r.Float64())
		case 1: // close to a multiple of pi/2
			x = math.Nextafter(float64(r.IntN(1<<28))*(math.Pi/2), x)
		}
		s, c := SinCos(x)
		sb, cb := sinCosBig(x)
		return x, max(ulps(s, sb), ulps(c, cb))
	})
}

// TestLargeAngles takes arguments with known results: published hard cases of
// argument reduction, and the two paths against each other.
func TestLargeAngles(t *testing.T) {
	for _, c := range []struct{ x, sin, cos float64 }{
		{1e22, -0.8522008497671888, 0.5232147853951389},
		{math.MaxFloat64, 0.004961954789184062, -0.9999876894265599},
		{0x1.6ac5b262ca1ffp+849, 1, -4.687165924254628e-19},
	} {
		s, co := SinCos(c.x)
		if math.Abs(s-c.sin) > 1e-16 || math.Abs(co-c.cos) > 1e-16*math.Abs(c.cos)*4 {
			t.Errorf("SinCos(%v) = %v, %v, want %v, %v", c.x, s, co, c.sin, c.cos)
		}
		s2, co2 := SinCos(-c.x)
		if s2 != -s || co2 != co {
			t.Errorf("SinCos(-%v) = %v, %v: not the mirror image", c.x, s2, co2)
		}
	}
	r := rand.New(rand.NewPCG(5, 5))
	for range 2000 {
		x := (r.Float64() + 1e-3) * (1 << 30)
		n, r0, t0 := reduceTrig(x)
		m, r1, t1 := reduceLarge(x)
		if n != m || r0 != r1 || math.Abs(t0-t1) > 1e-32 {
			t.Fatalf("reduction of %v: %d %v %v, in integers %d %v %v", x, n, r0, t0, m, r1, t1)
		}
	}
}

func TestSpecialValues(t *testing.T) {
	inf, nan := math.Inf(1), math.NaN()
	for name, c := range map[string]struct{ got, want float64 }{
		"Exp(0)":          {Exp(0), 1},
		"Exp(inf)":        {Exp(inf), inf},
		"Exp(-inf)":       {Exp(-inf), 0},
		"Exp(710)":        {Exp(710), inf},
		"Exp(-746)":       {Exp(-746), 0},
		"Exp(nan)":        {Exp(nan), nan},
		"Log(1)":          {Log(1), 0},
		"Log(0)":          {Log(0), -inf},
		"Log(-1)":         {Log(-1), nan},
		"Log(inf)":        {Log(inf), inf},
		"Log(nan)":        {Log(nan), nan},
		"Pow(2,10)":       {Pow(2, 10), 1024},
		"Pow(10,-0)":      {Pow(10, 0), 1},
		"Pow(0,2)":        {Pow(0, 2), 0},
		"Pow(0,-2)":       {Pow(0, -2), inf},
		"Pow(-1,2)":       {Pow(-1, 2), nan},
		"Pow(inf,-1)":     {Pow(inf, -1), 0},
		"Pow(2,inf)":      {Pow(2, inf), inf},
		"Pow(2,-inf)":     {Pow(2, -inf), 0},
		"Pow(.5,inf)":     {Pow(0.5, inf), 0},
		"Pow(1e300,2)":    {Pow(1e300, 2), inf},
		"Pow(1e300,-2)":   {Pow(1e300, -2), 0},
		"Pow(1e300,1e10)": {Pow(1e300, 1e10), inf},
		"Tanh(0)":         {Tanh(0), 0},
		"Tanh(100)":       {Tanh(100), 1},
		"Tanh(-inf)":      {Tanh(-inf), -1},
		"Tanh(nan)":       {Tanh(nan), nan},
		"Sin(0)":          {sine(0), 0},
		"Cos(0)":          {Cos(0), 1},
		"Sin(inf)":        {sine(inf), nan},
		"Cos(nan)":        {Cos(nan), nan},
	} {
		if c.got != c.want && (c.got == c.got || c.want == c.want) {
			t.Errorf("%s = %v, want %v", name, c.got, c.want)
		}
	}
	if !math.Signbit(Tanh(math.Copysign(0, -1))) || !math.Signbit(sine(math.Copysign(0, -1))) {
		t.Error("odd functions must keep the sign of zero")
	}
}

// TestSameBits compares a digest of many results with the committed one, which
// every architecture, build tag and GOAMD64 level must give.
func TestSameBits(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	h := fnv.New64a()
	add := func(xs ...float64) {
		for _, x := range xs {
			u := math.Float64bits(x)
			if x != x {
				u = 0x7ff8000000000000
			}
			for i := range 8 {
				h.Write([]byte{byte(u >> (8 * i))})
			}
		}
	}
	for range 20000 {
		x := (r.Float64()*2 - 1) * math.Ldexp(1, r.IntN(40)-20)
		s, c := SinCos(x)
		add(Exp(x), Log(math.Abs(x)), s, c, Tanh(x), Pow(math.Abs(x), r.Float64()*8-4))
	}
	const want = 0xdcdb8aa276aaf2d4
	if got := h.Sum64(); got != want {
		t.Errorf("digest of the results is %#x, want %#x", got, uint64(want))
	}
}

func BenchmarkScalar(b *testing.B) {
	for name, f := range map[string]func(float64) float64{
		"Exp": Exp, "Log": Log, "Sin": sine, "Tanh": Tanh,
		"Pow":     func(x float64) float64 { return Pow(x, 0.3) },
		"mathExp": math.Exp, "mathLog": math.Log, "mathSin": math.Sin,
	} {
		b.Run(name, func(b *testing.B) {
			x, sum := 0.1, 0.0
			for b.Loop() {
				sum += f(x)
				x += 1e-3
				if x > 30 {
					x = 0.1
				}
			}
			_ = sum
		})
	}
}

func sine(x float64) float64 {
	s, _ := SinCos(x)
	return s
}

// TestAcos: the angle of math.Acos. Near 1 and -1 the cosine hardly moves with the angle, so
// half of its digits is what there is.
func TestAcos(t *testing.T) {
	for x := -1.0; x <= 1; x += 1.0 / 64 {
		within := 1e-15 / max(1e-8, math.Sqrt(1-x*x))
		if got, want := Acos(x), math.Acos(x); math.Abs(got-want) > within {
			t.Errorf("Acos(%v) = %v, want %v", x, got, want)
		}
	}
	if a, b := Acos(1.5), Acos(-1.5); a > 1e-7 || math.Pi-b > 1e-7 {
		t.Errorf("beyond the ends: %v, %v", a, b)
	}
	if !math.IsNaN(Acos(math.NaN())) {
		t.Error("Acos(NaN) is a number")
	}
}
