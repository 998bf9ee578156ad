package edits

import (
	"cmp"
	"fmt"
	"math"

	"github.com/phaseconv/phaseconv/rotations/transform"
)

// A Candidate is a named KeyFit.
type Candidate struct {
	Name string
	// Near: the model's function changes a little, see transform.IDBiasShift.
	Approximate bool
	Fit         KeyFit
}

// Candidates lists the exact changes worth measuring for a cache, the least first.
// The first changes nothing, and types without blocks need nothing.
func Candidates(cache transform.CacheRow) []Candidate {
	out := []Candidate{{Name: "as published"}}
	if cache.Type.Quantized() {
		balance := Candidate{Name: "balance", Fit: KeyFit{Pairs: ClosedForm, Cache: cache}}
		out = append(out, Candidate{Name: "balance, powers of two", Fit: KeyFit{Pairs: PowerOfTwo, Cache: cache}}, balance, balance.Tuned())
	}
	return out
}

// Removal returns the candidate that takes slow means out, with this weight of the
// drift, and balances what is left. Models whose keys take no bias cannot have it.
func Shift(kappa float64, cache transform.CacheRow) Candidate {
	return Candidate{
		Name: fmt.Sprintf("slow means removed (drift weight %g), balance", kappa), Approximate: true,
		Fit: KeyFit{Shift: &transform.BiasShiftOptions{Penalty: kappa}, Pairs: ClosedForm, Cache: cache},
	}
}

// WithPenalty returns the candidate with its drift weights, at least one, so many times larger.
func (c Candidate) WithPenalty(factor float64) Candidate {
	removal, mix := c.driftWeights()
	out := Candidate{Name: "balance", Fit: KeyFit{Pairs: ClosedForm, Cache: c.Fit.Cache}}
	if !math.IsInf(removal, 1) {
		out = Shift(factor*removal, c.Fit.Cache)
	}
	if !math.IsInf(mix, 1) {
		return out.Transformed(factor * mix)
	}
	return out
}

// Mixed returns the candidate with pairs mixed for the cache type, with this weight
// of the drift.
func (c Candidate) Transformed(kappa float64) Candidate {
	c.Name, c.Approximate = fmt.Sprintf("%s, pairs mixed (drift weight %g)", c.Name, kappa), true
	c.Fit.Transform, c.Fit.Pairs = kappa, ForType
	return c
}

// driftWeights returns the weights of drift in a removal and in a mix, infinite
// where there is none.
func (c Candidate) driftWeights() (removal, mix float64) {
	removal, mix = math.Inf(1), math.Inf(1)
	if c.Fit.Shift != nil {
		removal = c.Fit.Shift.Penalty
	}
	if c.Fit.Transform != 0 {
		mix = c.Fit.Transform
	}
	return removal, mix
}

// Below says whether both of c's changes drift no more than d's.
func (c Candidate) NoMoreThan(d Candidate) bool {
	r, m := c.driftWeights()
	r2, m2 := d.driftWeights()
	return r >= r2 && m >= m2
}

// KeepsDigits says whether the candidate changes no digit of a weight but its exponent.
func (c Candidate) PowersOfTwoOnly() bool {
	return !c.Approximate && (c.Fit.Pairs == NoPairScaling || c.Fit.Pairs == PowerOfTwo)
}

// Drift compares candidates by how much they may change the model's function: it
// is negative where c may change less than d.
func (c Candidate) Drift(d Candidate) int {
	r, m := c.driftWeights()
	r2, m2 := d.driftWeights()
	// A mix moves more than any removal.
	if mixed, mixed2 := !math.IsInf(m, 1), !math.IsInf(m2, 1); mixed != mixed2 {
		if mixed {
			return 1
		}
		return -1
	}
	return cmp.Or(cmp.Compare(r2, r), cmp.Compare(m2, m), cmp.Compare(c.Fit.Pairs, d.Fit.Pairs))
}

// Tuned returns the candidate with its balance tuned to the cache type: scales
// and, where there is no QK-norm, angles.
func (c Candidate) Tuned() Candidate {
	c.Name += " for the type"
	c.Fit.Pairs = ForType
	return c
}

// nearestPower rounds t > 0 to the power of two with the nearest logarithm.
func nearestPower(t float32) float32 {
	frac, exp := math.Frexp(float64(t))
	if frac < math.Sqrt2/2 {
		exp--
	}
	return float32(math.Ldexp(1, exp))
}
