package fmath

import (
	"math"
	"math/big"
	"sync"
)

// pi/2 in three parts of 53 bits.
const (
	halfPi0 = 0x1.921fb54442d18p+0
	halfPi1 = 0x1.1a62633145c07p-54
	halfPi2 = -0x1.f1976b7ed8fbcp-110
)

// Cos returns the cosine of x radians. Error at most 0.8 ulp, however large x is.
func Cos(x float64) float64 {
	_, c := SinCos(x)
	return c
}

// Acos returns the angle in radians, 0 to pi, whose cosine is x, to within 1e-15 of what Cos
// can tell apart. What rounding brought beyond 1 or -1 counts as 1 or -1.
func Acos(x float64) float64 {
	if x != x {
		return x
	}
	x = max(-1, min(1, x))
	lo, hi := 0.0, math.Pi
	for range 60 { // bisection: slow, but it has no case of its own near the ends
		if mid := (lo + hi) / 2; Cos(mid) > x {
			lo = mid
		} else {
			hi = mid
		}
	}
	return (lo + hi) / 2
}

// SinCos returns the sine and the cosine of x radians, NaN for infinities. Errors are at most
// 0.8 ulp, however large x is.
func SinCos(x float64) (sin, cos float64) {
	if x-x != 0 {
		return math.NaN(), math.NaN()
	}
	if x == 0 {
		return x, 1
	}
	n, r, tail := reduceTrig(x)
	s, c := sinSmall(r, tail), cosSmall(r, tail)
	switch n & 3 {
	case 0:
		return s, c
	case 1:
		return c, -s
	case 2:
		return -s, -c
	}
	return -c, s
}

// reduceTrig writes x as n pi/2 + r + tail with |r| <= pi/4 (a little more when
// x*2/pi rounds up) and tail at most half an ulp of r; n counts modulo 4.
func reduceTrig(x float64) (n int, r, tail float64) {
	if math.Abs(x) <= math.Pi/4 {
		return 0, x, 0
	}
	if math.Abs(x) >= 1<<30 {
		return reduceLarge(x)
	}
	k := math.Floor(float64(x*(2/math.Pi)) + 0.5)
	// x - k pi/2 with k of 30 bits. The first difference is exact, so what is
	// left of x is known to about 2^-130; no float64 in range comes closer to a
	// multiple of pi/2 than about 2^-61.
	p0 := float64(k * halfPi0)
	e0 := math.FMA(k, halfPi0, -p0)
	p1 := float64(k * halfPi1)
	e1 := math.FMA(k, halfPi1, -p1)
	p2 := float64(k * halfPi2)
	r, tail = addSum(x-p0, 0, -e0, 0)
	r, tail = addSum(r, tail, -p1, 0)
	r, tail = addSum(r, tail, -e1, -p2)
	return int(int64(k) & 3), r, tail
}

// halfPiBits is the precision of the integer below: the exponent of the largest
// float64, its 53 bits, 64 bits for numbers close to a multiple of pi/2 and 120
// bits for r and tail.
const halfPiBits = 1280

// bigHalfPi returns pi/2 * 2^halfPiBits, by Machin's formula
// pi/4 = 4 arctan(1/5) - arctan(1/239).
var bigHalfPi = sync.OnceValue(func() *big.Int {
	const guard = 32
	arctan := func(inverse int64) *big.Int {
		term := new(big.Int).Lsh(big.NewInt(1), halfPiBits+guard)
		term.Quo(term, big.NewInt(inverse))
		sum := new(big.Int).Set(term)
		for i, square := int64(3), big.NewInt(inverse*inverse); term.Sign() != 0; i += 2 {
			term.Quo(term, square)
			term.Neg(term)
			sum.Add(sum, new(big.Int).Quo(term, big.NewInt(i)))
		}
		return sum
	}
	sum := new(big.Int).Lsh(arctan(5), 2)
	sum.Sub(sum, arctan(239))
	sum.Lsh(sum, 1)
	return sum.Rsh(sum, guard)
})

// reduceLarge is reduceTrig for arguments that no rotary embedding has: slow, in
// integers.
func reduceLarge(x float64) (n int, r, tail float64) {
	m, e := math.Frexp(math.Abs(x))
	z := big.NewInt(int64(m * (1 << 53)))
	z.Lsh(z, uint(e-53+halfPiBits)) // e > 30, so the shift is positive
	half := bigHalfPi()
	k, rest := new(big.Int).QuoRem(z, half, new(big.Int))
	if new(big.Int).Lsh(rest, 1).Cmp(half) > 0 {
		k.Add(k, big.NewInt(1))
		rest.Sub(rest, half)
	}
	// One part in float64, and what it leaves in another.
	part := func(v *big.Int) float64 {
		f := new(big.Float).SetInt(v)
		f.SetMantExp(f, -halfPiBits)
		d, _ := f.Float64()
		return d
	}
	r = part(rest)
	b, _ := new(big.Float).SetMantExp(big.NewFloat(r), halfPiBits).Int(nil)
	tail = part(rest.Sub(rest, b))
	n = int(new(big.Int).And(k, big.NewInt(3)).Int64())
	if x < 0 {
		return (4 - n) & 3, -r, -tail
	}
	return n, r, tail
}

// sinSmall returns the sine of r+tail: the Taylor series, cut below 2^-60.
func sinSmall(r, tail float64) float64 {
	z := float64(r * r)
	p := 1.0 / 355687428096000
	for _, c := range [...]float64{
		-1.0 / 1307674368000, 1.0 / 6227020800, -1.0 / 39916800,
		1.0 / 362880, -1.0 / 5040, 1.0 / 120, -1.0 / 6,
	} {
		p = float64(p*z) + c
	}
	// The tail moves the sine by tail * cos r; its share is below an ulp, so two
	// terms of the cosine do.
	t := float64(tail * (1 - float64(0.5*z)))
	return r + (float64(float64(r*z)*p) + t)
}

// cosSmall returns the cosine of r+tail.
func cosSmall(r, tail float64) float64 {
	z := float64(r * r)
	p := -1.0 / 6402373705728000
	for _, c := range [...]float64{
		1.0 / 20922789888000, -1.0 / 87178291200, 1.0 / 479001600,
		-1.0 / 3628800, 1.0 / 40320, -1.0 / 720, 1.0 / 24,
	} {
		p = float64(p*z) + c
	}
	// 1 - z/2 loses at most half an ulp, which is put back before the last sum.
	half := float64(0.5 * z)
	w := 1 - half
	return w + (((1 - w) - half) + (float64(float64(z*z)*p) - float64(r*tail)))
}
