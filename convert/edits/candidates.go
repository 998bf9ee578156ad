// Package edits finds which changes of weights make the KV cache survive a stock cache type: it
// fits candidates to activations, compares them on later text, and keeps the best.
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
	// Approximate: the model's function changes a little, see transform.IDBiasShift.
	Approximate bool
	Fit         KeyFit
}

// Candidates lists the exact changes worth measuring for a cache, the least first.
// The first changes nothing, and types without blocks need nothing.
func Candidates(cache transform.CacheRow) []Candidate {
	out := []Candidate{{Name: "as published"}}
	if cache.Type.Quantized() {
		balance := Candidate{Name: "pair scaling", Fit: KeyFit{Pairs: ClosedForm, Cache: cache}}
		out = append(out, Candidate{Name: "pair scaling, powers of two", Fit: KeyFit{Pairs: PowerOfTwo, Cache: cache}},
			balance, balance.Tuned())
	}
	return out
}

// Still returns the candidate that makes exact changes on the pairs that RoPE does not turn and
// scales the others; noBias leaves the key bias alone. late: all is done behind RoPE.
func Still(noBias, late bool, cache transform.CacheRow) Candidate {
	out := Candidate{Name: "keys transformed where RoPE does not turn, pair scaling",
		Fit: KeyFit{Still: true, NoBias: noBias, Pairs: ClosedForm, Cache: cache}}
	if late {
		out.Name = "channel scaling behind RoPE"
	}
	return out
}

// Shift returns the candidate that takes the low-frequency mean out of the key bias, with this
// penalty on what that changes, and scales pairs. Models whose keys take no bias cannot have it.
func Shift(penalty float64, cache transform.CacheRow) Candidate {
	return Candidate{
		Name: fmt.Sprintf("key bias shifted (penalty %g), pair scaling", penalty), Approximate: true,
		Fit: KeyFit{Shift: &transform.BiasShiftOptions{Penalty: penalty}, Pairs: ClosedForm, Cache: cache},
	}
}

// WithPenalty returns the candidate with its penalties, at least one, multiplied by factor.
func (c Candidate) WithPenalty(factor float64) Candidate {
	removal, mix := c.penalties()
	out := Candidate{Name: "pair scaling", Fit: KeyFit{Pairs: ClosedForm, Cache: c.Fit.Cache}}
	if !math.IsInf(removal, 1) {
		out = Shift(factor*removal, c.Fit.Cache)
	}
	if !math.IsInf(mix, 1) {
		return out.Transformed(factor * mix)
	}
	return out
}

// Transformed returns the candidate with keys transformed for the cache type, with this penalty
// on what that changes.
func (c Candidate) Transformed(penalty float64) Candidate {
	c.Name, c.Approximate = fmt.Sprintf("%s, keys transformed (penalty %g)", c.Name, penalty), true
	c.Fit.Transform, c.Fit.Pairs = penalty, ForType
	return c
}

// penalties returns the weights of drift in a removal and in a mix, infinite
// where there is none.
func (c Candidate) penalties() (removal, mix float64) {
	removal, mix = math.Inf(1), math.Inf(1)
	if c.Fit.Shift != nil {
		removal = c.Fit.Shift.Penalty
	}
	if c.Fit.Transform != 0 {
		mix = c.Fit.Transform
	}
	return removal, mix
}

// NoMoreThan says whether both of c's changes drift no more than d's.
func (c Candidate) NoMoreThan(d Candidate) bool {
	r, m := c.penalties()
	r2, m2 := d.penalties()
	return r >= r2 && m >= m2
}

// PowersOfTwoOnly says whether the candidate changes no digit of a weight but its exponent.
func (c Candidate) PowersOfTwoOnly() bool {
	return !c.Approximate && (c.Fit.Pairs == NoPairScaling || c.Fit.Pairs == PowerOfTwo)
}

// Drift compares candidates by how much they may change the model's function: it
// is negative where c may change less than d.
func (c Candidate) Drift(d Candidate) int {
	r, m := c.penalties()
	r2, m2 := d.penalties()
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
