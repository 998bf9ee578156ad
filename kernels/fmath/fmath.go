// Package fmath has the elementary functions of package math, and the row
// functions of a transformer, with results that do not depend on the machine.
//
// Package math computes Exp, Log and others in assembly on some architectures
// and in Go on others, and the compiler fuses x*y+z into one rounding where the
// CPU can. Both change last bits. Here every function is made of additions,
// multiplications, divisions and math.FMA in a fixed order, each rounded once:
// a conversion around a product, float64(x*y)+z, forbids fusing. So the bits are
// the same on every architecture, with every instruction set and build tag.
//
// The errors stated are the largest found by the tests, in units in the last
// place (ulp) of the exact result; 0.5 would be perfect.
package fmath

import "math"

const (
	// ln 2 in two parts. The first has 21 trailing zero bits, so that its product
	// with an exponent is exact.
	ln2Hi = 0x1.62e42fee00000p-1
	ln2Lo = 0x1.a39ef35793c76p-33
	log2e = 1 / math.Ln2
)

// expTail returns (e^r - 1 - r) / r^2 for |r| <= 0.36: the Taylor series, cut
// where the next term is below 2^-57, in pairs so that multiplications overlap.
func expTail(r float64) float64 {
	r2 := float64(r * r)
	r4 := float64(r2 * r2)
	a := (1.0/2 + float64(r*(1.0/6))) + float64(r2*(1.0/24+float64(r*(1.0/120))))
	b := (1.0/720 + float64(r*(1.0/5040))) + float64(r2*(1.0/40320+float64(r*(1.0/362880))))
	c := (1.0/3628800 + float64(r*(1.0/39916800))) + float64(r2*(1.0/479001600+float64(r*(1.0/6227020800))))
	return a + float64(r4*(b+float64(r4*c)))
}

// reduceExp writes x+lo as k ln 2 + hi + tail with |hi| <= 0.35 and tail tiny.
func reduceExp(x, lo float64) (k int, hi, tail float64) {
	n := math.Floor(float64(x*log2e) + 0.5)
	a := x - float64(n*ln2Hi) // exact: both are multiples of a small power of two
	b := lo - float64(n*ln2Lo)
	hi = a + b
	return int(n), hi, (a - hi) + b
}

// Exp returns e to the x. Error at most 0.65 ulp; results below 2^-1022
// lose bits as subnormals do.
func Exp(x float64) float64 { return expSum(x, 0) }

// expSum returns e to the x+lo, where |lo| is at most an ulp or so of x.
func expSum(x, lo float64) float64 {
	switch {
	case x != x:
		return x
	case x > 709.79:
		return math.Inf(1)
	case x < -745.14:
		return 0
	}
	k, hi, tail := reduceExp(x, lo)
	// 1+hi, and what that sum loses goes to the small terms.
	y := 1 + hi
	tail += hi - (y - 1)
	return scale(y+(float64(float64(hi*hi)*expTail(hi))+tail), k)
}

// scale returns y * 2^k for y in [0.5,2) and |k| < 1100. It is exact but for
// the last step into subnormals or infinity.
func scale(y float64, k int) float64 {
	half := k / 2
	return y * powerOfTwo(half) * powerOfTwo(k-half)
}

func powerOfTwo(k int) float64 { return math.Float64frombits(uint64(k+1023) << 52) }

// split writes positive, finite x as 2^e * (1+f) with 1+f in [0.7,1.42).
func split(x float64) (e int, f float64) {
	m, e := math.Frexp(x) // bits only: no rounding
	if m < math.Sqrt2/2 {
		m, e = 2*m, e-1
	}
	return e, m - 1
}

// Log returns the natural logarithm of x: -Inf for 0, NaN for x < 0. Error at
// most 0.8 ulp.
func Log(x float64) float64 {
	switch {
	case x != x || x > math.MaxFloat64:
		return x
	case x < 0:
		return math.NaN()
	case x == 0:
		return math.Inf(-1)
	}
	k, f := split(x)
	// With s = f/(2+f), log(1+f) = 2 artanh(s) = 2s + s R(s^2), and
	// 2s = f - f^2/2 + s f^2/2 moves the rounding errors behind the exact f.
	s := f / (2 + f)
	z := float64(s * s)
	r := float64(z * (2.0/3 + float64(z*artanhTail(z))))
	half := float64(0.5 * float64(f*f))
	e := float64(k)
	low := float64(s*(half+r)) + float64(e*ln2Lo)
	return float64(e*ln2Hi) - ((half - low) - f)
}

// artanhTail returns (2 artanh(s)/s - 2 - 2/3 s^2) / s^4 for z = s^2 <= 0.03.
func artanhTail(z float64) float64 {
	p := 2.0 / 25
	for _, c := range [...]float64{
		2.0 / 23, 2.0 / 21, 2.0 / 19, 2.0 / 17, 2.0 / 15, 2.0 / 13,
		2.0 / 11, 2.0 / 9, 2.0 / 7, 2.0 / 5,
	} {
		p = float64(p*z) + c
	}
	return p
}

// Pow returns x to the y for x > 0 (and 0 to the y > 0); a negative x gives NaN.
// Error at most 0.65 ulp for results between 1e-100 and 1e100, 1 ulp elsewhere.
func Pow(x, y float64) float64 {
	switch {
	case y == 0 || x == 1:
		return 1
	case x != x || y != y || x < 0:
		return math.NaN()
	case x == 0:
		if y < 0 {
			return math.Inf(1)
		}
		return 0
	case x > math.MaxFloat64:
		if y < 0 {
			return 0
		}
		return x
	case math.Abs(y) > math.MaxFloat64:
		if (x > 1) == (y > 0) {
			return math.Inf(1)
		}
		return 0
	}
	hi, lo := logSum(x)
	// The product with y, again as a sum of two.
	p := float64(y * hi)
	if math.Abs(p) > 800 {
		return expSum(p, 0)
	}
	return expSum(p, math.FMA(y, hi, -p)+float64(y*lo))
}

// logSum returns log x as an unevaluated sum with about 64 correct bits.
func logSum(x float64) (hi, lo float64) {
	k, f := split(x)
	// s = f/(2+f) as s0+s1; the divisor is d0+d1 without error.
	d0 := 2 + f
	d1 := f - (d0 - 2)
	s0 := f / d0
	s1 := (math.FMA(-s0, d0, f) - float64(s0*d1)) / d0
	// 2 artanh(s) = 2s + 2/3 s^3 + s^5 (2/5 + ...): the first two terms as sums,
	// the rest, at most 2^-12 of the result, as one number.
	z0, z1 := mulSum(s0, s1, s0, s1)
	c0, c1 := mulSum(z0, z1, s0, s1)
	t0, t1 := mulSum(c0, c1, 2.0/3, twoThirdsLo)
	rest := float64(float64(c0*z0) * artanhTail(z0))
	e := float64(k)
	hi, lo = addSum(float64(e*ln2Hi), float64(e*ln2Lo), 2*s0, 2*s1)
	return addSum(hi, lo, t0, t1+rest)
}

// twoThirdsLo is what the float64 2.0/3 lacks.
const twoThirdsLo = 0x1.5555555555555p-55

// mulSum multiplies two unevaluated sums.
func mulSum(a0, a1, b0, b1 float64) (hi, lo float64) {
	p := float64(a0 * b0)
	e := math.FMA(a0, b0, -p) + (float64(a0*b1) + float64(a1*b0))
	hi = p + e
	return hi, e - (hi - p)
}

// addSum adds two unevaluated sums.
func addSum(a0, a1, b0, b1 float64) (hi, lo float64) {
	s := a0 + b0
	t := s - a0
	e := ((a0 - (s - t)) + (b0 - t)) + (a1 + b1)
	hi = s + e
	return hi, e - (hi - s)
}

// Tanh returns the hyperbolic tangent of x. Error at most 2.5 ulp.
func Tanh(x float64) float64 {
	a := math.Abs(x)
	switch {
	case x != x:
		return x
	case a > 22:
		return math.Copysign(1, x)
	case a < 0x1p-28:
		return x // the cubic term is below half an ulp
	}
	// t = e^2a - 1 without cancellation: 2^k (e^r - 1) + (2^k - 1).
	k, r, tail := reduceExp(2*a, 0)
	t := r + (float64(float64(r*r)*expTail(r)) + tail)
	if k > 0 {
		p := powerOfTwo(k)
		t = (p - 1) + float64(p*t)
	}
	return math.Copysign(t/(t+2), x)
}
