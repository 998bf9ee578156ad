// Package rope computes rotary position embeddings (RoPE): the frequencies with
// the context-extension rules in use (linear, llama3, YaRN, explicit divisors),
// tables of cosines and sines, and the rotation of rows of heads.
//
// Pair p of a head turns by position * InvFreq()[p] radians.
package rope

import (
	"fmt"
	"math"

	"github.com/phaseconv/phaseconv/kernels/fmath"
)

// A Layout says which two dimensions of a head of length d form pair p, for p < d/2. Where
// RoPE turns a part of the head only, pairs beyond it stand still; see Part.
type Layout struct {
	interleaved bool
	turned      int // how many dimensions form pairs by the layout, 0: all
}

var (
	// Half pairs (p, p + d/2): Hugging Face files, and GGUF files of "NeoX" architectures.
	Half = Layout{}
	// Interleaved pairs (2p, 2p + 1): GGUF files of the llama architecture.
	Interleaved = Layout{interleaved: true}
)

// Part returns the layout of heads of which RoPE turns the first n dimensions, 0 for all: those
// form pairs as if they were the head, and each two that follow, (2p, 2p + 1), are a pair that
// stands still. So a head of length d always has d/2 pairs.
func (l Layout) Part(n int) Layout { return Layout{l.interleaved, n} }

// String returns the name used in sidecars and manifests.
func (l Layout) String() string {
	if l.interleaved {
		return "interleaved"
	}
	return "half"
}

// ParseLayout is the inverse of String.
func ParseLayout(s string) (Layout, error) {
	switch s {
	case "half":
		return Half, nil
	case "interleaved":
		return Interleaved, nil
	}
	return Half, fmt.Errorf("pair layout %q is not known (half, interleaved)", s)
}

// whole returns how many of d dimensions form pairs by the layout.
func (l Layout) whole(d int) int {
	if l.turned > 0 && l.turned < d {
		return l.turned
	}
	return d
}

// Dims returns the two dimensions of pair p in a head of length d.
func (l Layout) Dims(p, d int) (i, j int) {
	n := l.whole(d)
	if l.interleaved || 2*p >= n {
		return 2 * p, 2*p + 1
	}
	return p, p + n/2
}

// Index returns where dimension i of a head of length d in layout l lies in layout to. Where one
// of them has a Part, it holds for both.
func (l Layout) Index(to Layout, i, d int) int {
	l.turned = max(l.turned, to.turned)
	n := l.whole(d)
	if l.interleaved == to.interleaved || i >= n {
		return i
	}
	if to.interleaved {
		return i%(n/2)*2 + i/(n/2)
	}
	return i/2 + i%2*(n/2)
}

// Scaling names a context-extension rule.
type Scaling string

// The rules that are known.
const (
	None    Scaling = ""
	Linear  Scaling = "linear"  // all frequencies divided by Factor
	Llama3  Scaling = "llama3"  // slow pairs divided, fast ones kept, a ramp between
	YaRN    Scaling = "yarn"    // ramp by rotations within the original context; scores scaled too
	Divisor Scaling = "divisor" // explicit divisor per pair (GGUF rope_freqs tensor)
	// LongRoPE has two lists of divisors: Short for contexts up to OriginalContext, Divisors for
	// longer ones.
	LongRoPE Scaling = "longrope"
)

// Limits on numbers read from a file. They are far beyond every published model,
// and inside them all angles are ordinary numbers.
const (
	MaxTheta  = 1e15
	MaxFactor = 1e6 // of a scaling; 1/MaxFactor is the least
)

// Still is the divisor of a pair that does not turn, in GGUF files.
const Still = 1e30

// Params is everything that determines the angles of one kind of layer.
type Params struct {
	Theta float64 // rope_theta, the base
	Dim   int     // rotated dimensions per head (even)

	Scaling Scaling
	Factor  float64
	// OriginalContext is original_max_position_embeddings (llama3, yarn).
	OriginalContext int
	LowFreqFactor   float64 // llama3
	HighFreqFactor  float64 // llama3
	BetaFast        float64 // yarn, rotations; usual value 32
	BetaSlow        float64 // yarn, rotations; usual value 1
	// Smooth: the ends of yarn's ramp are not rounded to whole pairs (truncate = false).
	Smooth bool
	// Divisors holds Dim/2 divisors of the frequencies for Scaling Divisor, and those of long
	// contexts for LongRoPE, which has Short for others.
	Divisors, Short []float64
	// Attention, if not 0, is the Magnitude instead of the scaling's own (attention_factor).
	Attention float64
}

// Check refuses parameters with which no angle can be computed.
func (p Params) Check() error {
	bad := func(name string, v float64) error {
		return fmt.Errorf("RoPE %s is %g, expected a positive number of usual size", name, v)
	}
	pos := func(v float64) bool { return v >= 1/MaxFactor && v <= MaxFactor }
	if !(p.Attention == 0 || pos(p.Attention)) {
		return bad("attention_factor", p.Attention)
	}
	if p.Dim < 2 || p.Dim%2 != 0 {
		return fmt.Errorf("RoPE dimension is %d, expected a positive even number", p.Dim)
	}
	if !(p.Theta > 1 && p.Theta <= MaxTheta) {
		return bad("theta", p.Theta)
	}
	switch p.Scaling {
	case None:
	case Linear:
		if !pos(p.Factor) {
			return bad("factor", p.Factor)
		}
	case Llama3, YaRN:
		if !pos(p.Factor) {
			return bad("factor", p.Factor)
		}
		if p.OriginalContext < 1 {
			return bad("original_max_position_embeddings", float64(p.OriginalContext))
		}
		if p.Scaling == Llama3 && (!pos(p.LowFreqFactor) || !pos(p.HighFreqFactor) || p.HighFreqFactor <= p.LowFreqFactor) {
			return fmt.Errorf("RoPE low_freq_factor %g and high_freq_factor %g, expected 0 < low < high", p.LowFreqFactor,
				p.HighFreqFactor)
		}
		if p.Scaling == YaRN && (!pos(p.BetaFast) || !pos(p.BetaSlow)) {
			return fmt.Errorf("RoPE beta_fast %g and beta_slow %g, expected positive numbers", p.BetaFast, p.BetaSlow)
		}
	case Divisor:
		return p.checkDivisors(p.Divisors)
	case LongRoPE:
		if p.OriginalContext < 1 {
			return bad("original_max_position_embeddings", float64(p.OriginalContext))
		}
		if err := p.checkDivisors(p.Short); err != nil {
			return err
		}
		return p.checkDivisors(p.Divisors)
	default:
		return fmt.Errorf("RoPE scaling %q is not supported (linear, llama3, yarn, longrope)", p.Scaling)
	}
	return nil
}

func (p Params) checkDivisors(list []float64) error {
	if len(list) != p.Dim/2 {
		return fmt.Errorf("%d RoPE frequency divisors for %d pairs", len(list), p.Dim/2)
	}
	for _, d := range list {
		// A huge divisor is how files say that a pair does not turn.
		if !(d >= 1e-9) || math.IsInf(d, 1) {
			return fmt.Errorf("RoPE frequency divisor is %g, expected a positive number of usual size", d)
		}
	}
	return nil
}

// At returns the parameters in a context of n positions: itself, unless they depend on its length.
func (p Params) At(n int) Params {
	if p.Scaling != LongRoPE {
		return p
	}
	q := Params{Theta: p.Theta, Dim: p.Dim, Scaling: Divisor, Divisors: p.Short, Attention: p.Magnitude()}
	if n > p.OriginalContext {
		q.Divisors = p.Divisors
	}
	return q
}

// InvFreq returns the angle per position of each pair, in radians, fastest first. Where it
// depends on the length of the context (see At), it is that of a short one.
//
// Sources: the base frequencies are theta^(-2p/d) (RoFormer); llama3 and YaRN
// follow the formulas of the Hugging Face reference (modeling_rope_utils).
func (p Params) InvFreq() []float64 {
	h := p.Dim / 2
	f := make([]float64, h)
	for i := range f {
		f[i] = 1 / fmath.Pow(p.Theta, float64(2*i)/float64(p.Dim))
	}
	switch p.Scaling {
	case Linear:
		for i := range f {
			f[i] /= p.Factor
		}
	case LongRoPE:
		for i := range f {
			f[i] /= p.Short[i]
		}
	case Divisor:
		for i := range f {
			f[i] /= p.Divisors[i]
		}
	case Llama3:
		for i, d := range p.llama3Divisors(f) {
			f[i] /= d
		}
	case YaRN:
		lo, hi := p.yarnRange()
		for i := range f {
			// keep is 1 for fast pairs, which already see whole turns in the
			// original context, and 0 for slow ones, which are interpolated.
			keep := 1 - clamp01((float64(i)-lo)/(hi-lo))
			f[i] = float64(f[i]/p.Factor*(1-keep)) + float64(f[i]*keep)
		}
	}
	return f
}

// FreqDivisors returns the per-pair divisors that turn the base frequencies into
// the scaled ones, for containers that store them (GGUF rope_freqs), and whether
// the scaling can be written that way.
func (p Params) FreqDivisors() ([]float64, bool) {
	switch p.Scaling {
	case Divisor:
		return p.Divisors, true
	case Llama3:
		base := p
		base.Scaling = None
		return p.llama3Divisors(base.InvFreq()), true
	}
	return nil, false
}

func (p Params) llama3Divisors(base []float64) []float64 {
	old := float64(p.OriginalContext)
	out := make([]float64, len(base))
	for i, f := range base {
		wavelen := 2 * math.Pi / f
		switch {
		case wavelen < old/p.HighFreqFactor:
			out[i] = 1
		case wavelen > old/p.LowFreqFactor:
			out[i] = p.Factor
		default:
			smooth := (old/wavelen - p.LowFreqFactor) / (p.HighFreqFactor - p.LowFreqFactor)
			out[i] = 1 / (float64((1-smooth)/p.Factor) + smooth)
		}
	}
	return out
}

// yarnRange returns the pair indices between which YaRN ramps from keeping a
// frequency to interpolating it.
func (p Params) yarnRange() (lo, hi float64) {
	dim := func(turns float64) float64 {
		return float64(p.Dim) * fmath.Log(float64(p.OriginalContext)/(turns*2*math.Pi)) / (2 * fmath.Log(p.Theta))
	}
	lo, hi = dim(p.BetaFast), dim(p.BetaSlow)
	if !p.Smooth {
		lo, hi = math.Floor(lo), math.Ceil(hi)
	}
	lo, hi = max(lo, 0), min(hi, float64(p.Dim-1))
	if lo == hi {
		hi += 0.001 // as the reference does, to avoid dividing by zero
	}
	return lo, hi
}

// Magnitude returns the factor that multiplies both cosines and sines: Attention if that is
// set, otherwise YaRN's attention temperature 0.1 ln(factor) + 1, or 1.
func (p Params) Magnitude() float64 {
	if p.Attention != 0 {
		return p.Attention
	}
	if p.Scaling == YaRN && p.Factor > 1 {
		return float64(0.1*fmath.Log(p.Factor)) + 1
	}
	return 1
}

func clamp01(x float64) float64 { return min(max(x, 0), 1) }

// A Table holds cosines and sines for positions [0, n) of one Params.
type Table struct {
	n, half  int
	cos, sin []float32 // [n, half]
}

// NewTable computes a table for a context of n positions; without a Dim it turns nothing. Angles
// are formed in float64, so long contexts lose nothing; the entries are rounded once to float32.
func NewTable(p Params, n int) *Table {
	p = p.At(n)
	f, m := p.InvFreq(), p.Magnitude()
	h := len(f)
	t := &Table{n: n, half: h, cos: make([]float32, n*h), sin: make([]float32, n*h)}
	for pos := range n {
		for i, w := range f {
			s, c := fmath.SinCos(float64(pos) * w)
			t.cos[pos*h+i], t.sin[pos*h+i] = float32(c*m), float32(s*m)
		}
	}
	return t
}

// Positions returns how many positions the table covers.
func (t *Table) Positions() int { return t.n }

// Row returns the cosines and sines of one position, shape [d/2] each.
func (t *Table) Row(pos int) (cos, sin []float32) {
	return t.cos[pos*t.half : (pos+1)*t.half], t.sin[pos*t.half : (pos+1)*t.half]
}

// Apply turns the first Dim dimensions of the head x by position pos, in place.
func (t *Table) Apply(x []float32, pos int, l Layout) {
	c, s := t.Row(pos)
	turn(x, c, s, l, 1)
}

// ApplyInverse turns the head x back by pos positions, in place. With a
// Magnitude other than 1 it is the inverse rotation times the magnitude; callers
// that need a pure rotation use a table of Params.Pure.
func (t *Table) ApplyInverse(x []float32, pos int, l Layout) {
	c, s := t.Row(pos)
	turn(x, c, s, l, -1)
}

// Pure returns the same angles without a magnitude.
func (p Params) Pure() Params {
	if p.Dim == 0 {
		return p
	}
	if p.Scaling == LongRoPE {
		p.Attention = 1
		return p
	}
	q := Params{Theta: p.Theta, Dim: p.Dim, Scaling: Divisor}
	base := q
	base.Scaling = None
	b := base.InvFreq()
	for i, f := range p.InvFreq() {
		q.Divisors = append(q.Divisors, b[i]/f)
	}
	return q
}

func turn(x, cos, sin []float32, l Layout, sign float32) {
	h := len(cos)
	if l.interleaved {
		for p := range h {
			a, b, c, s := x[2*p], x[2*p+1], cos[p], sign*sin[p]
			x[2*p] = float32(a*c) - float32(b*s)
			x[2*p+1] = float32(a*s) + float32(b*c)
		}
		return
	}
	lo, hi := x[:h], x[h:2*h]
	sin, hi = sin[:len(lo)], hi[:len(lo)] // so that the compiler checks no index below
	cos = cos[:len(lo)]
	for p := range lo {
		a, b, c, s := lo[p], hi[p], cos[p], sign*sin[p]
		lo[p] = float32(a*c) - float32(b*s)
		hi[p] = float32(a*s) + float32(b*c)
	}
}
