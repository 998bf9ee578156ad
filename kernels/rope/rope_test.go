package rope

import (
	"encoding/json"
	"math"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
)

// Frequencies and magnitudes of Hugging Face transformers, made by
// scripts/oracles/rope_golden.py.
type goldenCase struct {
	Dim    int
	Theta  float64
	Params struct {
		Type     string  `json:"rope_type"`
		Factor   float64 `json:"factor"`
		Original int     `json:"original_max_position_embeddings"`
		Low      float64 `json:"low_freq_factor"`
		High     float64 `json:"high_freq_factor"`
		Fast     float64 `json:"beta_fast"`
		Slow     float64 `json:"beta_slow"`
	}
	Magnitude float64
	Freq      []float64
}

func (g *goldenCase) params() Params {
	p := Params{Theta: g.Theta, Dim: g.Dim, Factor: g.Params.Factor, OriginalContext: g.Params.Original,
		LowFreqFactor: g.Params.Low, HighFreqFactor: g.Params.High, BetaFast: g.Params.Fast, BetaSlow: g.Params.Slow}
	if g.Params.Type != "default" {
		p.Scaling = Scaling(g.Params.Type)
	}
	if p.Scaling == YaRN && p.BetaFast == 0 {
		p.BetaFast, p.BetaSlow = 32, 1
	}
	return p
}

func golden(t *testing.T) []goldenCase {
	t.Helper()
	raw, err := os.ReadFile("testdata/golden.json")
	if err != nil {
		t.Fatal(err)
	}
	var out []goldenCase
	if err := json.Unmarshal(raw, &out); err != nil {
		t.Fatal(err)
	}
	if len(out) < 50 {
		t.Fatalf("%d golden cases", len(out))
	}
	return out
}

func TestGoldenFrequencies(t *testing.T) {
	for _, g := range golden(t) {
		p := g.params()
		if err := p.Check(); err != nil {
			t.Errorf("%+v: %v", p, err)
			continue
		}
		// The oracle works in float32: half a unit in the exponent of theta, at
		// most 8 ln 10 of it, and a few operations more.
		const tolerance = 2e-6
		f := p.InvFreq()
		if len(f) != len(g.Freq) {
			t.Fatalf("%+v: %d frequencies, the oracle has %d", p, len(f), len(g.Freq))
		}
		for i := range f {
			if d := math.Abs(f[i]/g.Freq[i] - 1); !(d <= tolerance) {
				t.Errorf("%+v: frequency %d is %.9g, the oracle's %.9g", p, i, f[i], g.Freq[i])
				break
			}
		}
		if d := math.Abs(p.Magnitude()/g.Magnitude - 1); !(d <= 1e-12) {
			t.Errorf("%+v: magnitude %.15g, the oracle's %.15g", p, p.Magnitude(), g.Magnitude)
		}
	}
}

func TestFreqDivisors(t *testing.T) {
	for _, g := range golden(t) {
		p := g.params()
		d, ok := p.FreqDivisors()
		if ok != (p.Scaling == Llama3) {
			t.Errorf("%s can be written as divisors: %v", p.Scaling, ok)
		}
		if !ok {
			continue
		}
		q := Params{Theta: p.Theta, Dim: p.Dim, Scaling: Divisor, Divisors: d}
		if err := q.Check(); err != nil {
			t.Error(err)
		}
		a, b := p.InvFreq(), q.InvFreq()
		for i := range a {
			if a[i] != b[i] {
				t.Errorf("%+v: frequency %d is %g, by divisors %g", p, i, a[i], b[i])
			}
		}
		if got, ok := q.FreqDivisors(); !ok || len(got) != len(d) {
			t.Error("divisors cannot be written as divisors")
		}
	}
}

// Pure keeps every angle and drops the magnitude.
func TestPure(t *testing.T) {
	for _, g := range golden(t) {
		p := g.params()
		q := p.Pure()
		if err := q.Check(); err != nil {
			t.Errorf("%+v: %v", p, err)
			continue
		}
		if q.Magnitude() != 1 {
			t.Errorf("magnitude %g", q.Magnitude())
		}
		a, b := p.InvFreq(), q.InvFreq()
		for i := range a {
			// A quotient and its division: two roundings of float64.
			if math.Abs(a[i]/b[i]-1) > 4e-16 {
				t.Errorf("%+v: frequency %d is %g, pure %g", p, i, a[i], b[i])
			}
		}
	}
}

func TestTable(t *testing.T) {
	const n = 5000
	p := Params{Theta: 10000, Dim: 64, Scaling: YaRN, Factor: 4, OriginalContext: 1024, BetaFast: 32, BetaSlow: 1}
	table := NewTable(p, n)
	if table.Positions() != n {
		t.Errorf("%d positions", table.Positions())
	}
	f, m := p.InvFreq(), p.Magnitude()
	for _, pos := range []int{0, 1, 63, 1023, n - 1} {
		cos, sin := table.Row(pos)
		for i := range f {
			// Entries are rounded once to float32, and lie below 2 in size.
			a := float64(pos) * f[i]
			if math.Abs(float64(cos[i])-m*math.Cos(a)) > 1.2e-7 || math.Abs(float64(sin[i])-m*math.Sin(a)) > 1.2e-7 {
				t.Errorf("position %d, pair %d: (%g, %g), expected (%g, %g)", pos, i, cos[i], sin[i], m*math.Cos(a), m*math.Sin(a))
			}
		}
	}
	if NewTable(p, 0).Positions() != 0 {
		t.Error("an empty table has positions")
	}
}

func TestLayout(t *testing.T) {
	for _, l := range []Layout{Half, Interleaved} {
		if got, err := ParseLayout(l.String()); err != nil || got != l {
			t.Errorf("ParseLayout(%q) = %v, %v", l.String(), got, err)
		}
	}
	if _, err := ParseLayout("neox"); err == nil || !strings.Contains(err.Error(), "neox") {
		t.Errorf("ParseLayout of an unknown name: %v", err)
	}
	for _, d := range []int{2, 4, 6, 64, 80, 128} {
		for _, from := range []Layout{Half, Interleaved} {
			for _, to := range []Layout{Half, Interleaved} {
				seen := make([]bool, d)
				for i := range d {
					j := from.Index(to, i, d)
					if j < 0 || j >= d || seen[j] {
						t.Fatalf("%s to %s, length %d: %d goes to %d", from, to, d, i, j)
					}
					seen[j] = true
					if to.Index(from, j, d) != i {
						t.Errorf("%s to %s and back, length %d: %d comes back as %d", from, to, d, i, to.Index(from, j, d))
					}
				}
				// Pair p stays pair p, its first member first.
				for p := range d / 2 {
					a, b := from.Dims(p, d)
					x, y := to.Dims(p, d)
					if from.Index(to, a, d) != x || from.Index(to, b, d) != y {
						t.Errorf("%s to %s, length %d: pair %d is torn", from, to, d, p)
					}
				}
			}
		}
	}
}

func random(rng *rand.Rand, n int) []float32 {
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(rng.NormFloat64())
	}
	return x
}

func reorder(x []float32, from, to Layout) []float32 {
	out := make([]float32, len(x))
	for i, v := range x {
		out[from.Index(to, i, len(x))] = v
	}
	return out
}

func dot(a, b []float32) (s float64) {
	for i := range a {
		s += float64(a[i]) * float64(b[i])
	}
	return s
}

// Apply is the rotation of the definition, the same for both layouts up to the
// order of dimensions, and undone by ApplyInverse.
func TestApply(t *testing.T) {
	const d, n = 80, 300
	rng := rand.New(rand.NewPCG(1, 2))
	for _, p := range []Params{
		{Theta: 10000, Dim: d},
		{Theta: 10000, Dim: d, Scaling: YaRN, Factor: 8, OriginalContext: 64, BetaFast: 32, BetaSlow: 1},
	} {
		table, f, m := NewTable(p, n), p.InvFreq(), p.Magnitude()
		for _, pos := range []int{0, 1, 17, n - 1} {
			x := random(rng, d)
			y := append([]float32(nil), x...)
			table.Apply(y, pos, Half)
			for i := range d / 2 {
				a := float64(pos) * f[i]
				lo := m * (float64(x[i])*math.Cos(a) - float64(x[i+d/2])*math.Sin(a))
				hi := m * (float64(x[i])*math.Sin(a) + float64(x[i+d/2])*math.Cos(a))
				// Two products and a sum in float32, of numbers below 8.
				if math.Abs(float64(y[i])-lo) > 2e-6 || math.Abs(float64(y[i+d/2])-hi) > 2e-6 {
					t.Fatalf("%s, position %d, pair %d: (%g, %g), expected (%g, %g)", p.Scaling, pos, i, y[i], y[i+d/2], lo, hi)
				}
			}
			z := reorder(x, Half, Interleaved)
			table.Apply(z, pos, Interleaved)
			if got := reorder(z, Interleaved, Half); dot(got, got) != dot(y, y) || got[3] != y[3] {
				t.Errorf("%s, position %d: the layouts compute different rotations", p.Scaling, pos)
			}
			for _, l := range []Layout{Half, Interleaved} {
				back := append([]float32(nil), x...)
				table.Apply(back, pos, l)
				table.ApplyInverse(back, pos, l)
				for i := range x {
					if math.Abs(float64(back[i])-m*m*float64(x[i])) > 4e-6 {
						t.Fatalf("%s, %s, position %d: %g comes back as %g, expected %g", p.Scaling, l, pos, x[i], back[i],
							m*m*float64(x[i]))
					}
				}
			}
		}
		// Scores depend on the distance alone.
		q, k := random(rng, d), random(rng, d)
		score := func(i, j int) float64 {
			a, b := append([]float32(nil), q...), append([]float32(nil), k...)
			table.Apply(a, i, Half)
			table.Apply(b, j, Half)
			return dot(a, b)
		}
		if a, b := score(20, 13), score(290, 283); math.Abs(a-b) > 1e-4 {
			t.Errorf("%s: scores %g and %g at the same distance", p.Scaling, a, b)
		}
		if a, b := score(20, 13), score(20, 14); math.Abs(a-b) < 1e-2 {
			t.Errorf("%s: scores %g and %g at different distances: this test sees nothing", p.Scaling, a, b)
		}
	}
}

func TestCheck(t *testing.T) {
	inf := math.Inf(1)
	good := Params{Theta: 10000, Dim: 4}
	l3 := Params{Theta: 10000, Dim: 4, Scaling: Llama3, Factor: 8, OriginalContext: 8192, LowFreqFactor: 1,
		HighFreqFactor: 4}
	yarn := Params{Theta: 10000, Dim: 4, Scaling: YaRN, Factor: 8, OriginalContext: 8192, BetaFast: 32, BetaSlow: 1}
	for _, p := range []Params{good, l3, yarn, {Theta: 1.5, Dim: 2}} {
		if err := p.Check(); err != nil {
			t.Errorf("%+v: %v", p, err)
		}
	}
	with := func(p Params, f func(*Params)) Params { f(&p); return p }
	for _, c := range []struct {
		p    Params
		want string
	}{
		{with(good, func(p *Params) { p.Dim = 0 }), "dimension"},
		{with(good, func(p *Params) { p.Dim = 5 }), "dimension"},
		{with(good, func(p *Params) { p.Dim = -2 }), "dimension"},
		{with(good, func(p *Params) { p.Theta = 1 }), "theta"},
		{with(good, func(p *Params) { p.Theta = math.NaN() }), "theta"},
		{with(good, func(p *Params) { p.Theta = inf }), "theta"},
		{with(good, func(p *Params) { p.Theta = 1e300 }), "theta"},
		{with(good, func(p *Params) { p.Scaling, p.Factor = Linear, 0 }), "factor"},
		{with(good, func(p *Params) { p.Scaling, p.Factor = Linear, 1e300 }), "factor"},
		{with(good, func(p *Params) { p.Scaling = "dynamic" }), "dynamic"},
		{with(good, func(p *Params) { p.Scaling, p.Divisors = Divisor, []float64{1} }), "1 RoPE frequency divisors for 2"},
		{with(good, func(p *Params) { p.Scaling, p.Divisors = Divisor, []float64{1, 0} }), "divisor"},
		{with(good, func(p *Params) { p.Scaling, p.Divisors = Divisor, []float64{1, inf} }), "divisor"},
		{with(l3, func(p *Params) { p.Factor = -1 }), "factor"},
		{with(l3, func(p *Params) { p.OriginalContext = 0 }), "original_max_position_embeddings"},
		{with(l3, func(p *Params) { p.LowFreqFactor = 0 }), "low_freq_factor"},
		{with(l3, func(p *Params) { p.HighFreqFactor = 1 }), "high_freq_factor"},
		{with(l3, func(p *Params) { p.HighFreqFactor = inf }), "high_freq_factor"},
		{with(yarn, func(p *Params) { p.Factor = inf }), "factor"},
		{with(yarn, func(p *Params) { p.OriginalContext = -1 }), "original_max_position_embeddings"},
		{with(yarn, func(p *Params) { p.BetaFast = 0 }), "beta_fast"},
		{with(yarn, func(p *Params) { p.BetaSlow = math.NaN() }), "beta_slow"},
	} {
		if err := c.p.Check(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: error %v should name %s", c.p, err, c.want)
		}
	}
}

func BenchmarkApply(b *testing.B) {
	table := NewTable(Params{Theta: 10000, Dim: 128}, 512)
	x := random(rand.New(rand.NewPCG(1, 2)), 128)
	for _, l := range []Layout{Half, Interleaved} {
		b.Run(l.String(), func(b *testing.B) {
			b.SetBytes(4 * 128)
			for b.Loop() {
				table.Apply(x, 1, l)
			}
		})
	}
}
