package bits

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/phaseconv/phaseconv/rotations/codec"
)

// exponential is a convex DamageCurve, scale 2^(-2 signs/d).
func exponential(scale, d float64) DamageCurve {
	return func(signs int) float64 { return scale * math.Exp2(-2*float64(signs)/d) }
}

func total(signs []int) (n int) {
	for _, b := range signs {
		n += b
	}
	return n
}

// TestBudgetExact: whatever is asked for, the signs of all heads sum up to the
// budget, and each head has a number of signs that a code can have.
func TestBudgetExact(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		d, heads := []int{16, 64, 80, 128, 256}[r.IntN(5)], 1+r.IntN(40)
		bits := 0.5 + 2.5*r.Float64()
		dims := slices.Repeat([]int{d}, heads)
		want, err := codec.Budget(bits, dims...)
		if err != nil {
			t.Fatal(err)
		}
		if e := float64(want) - bits*float64(d*heads); want%8 != 0 || math.Abs(e) > 4 {
			t.Fatalf("%g bits of %d heads of %d: %d signs", bits, heads, d, want)
		}
		var weights []float64
		var damage []DamageCurve
		for range heads {
			weights = append(weights, float64(1+r.IntN(3)))
			damage = append(damage, exponential(math.Exp2(8*r.Float64()), float64(d)))
		}
		even := EvenSigns(want, dims)
		lo, hi := even[0], even[0]
		for _, b := range even {
			lo, hi = min(lo, b), max(hi, b)
		}
		if hi-lo > 8 {
			t.Fatalf("even signs from %d to %d", lo, hi)
		}
		for name, signs := range map[string][]int{"even": even, "weighted": WeightedSigns(want, dims, weights),
			"allot": AllotSigns(want, dims, damage)} {
			if len(signs) != heads || total(signs) != want {
				t.Fatalf("%s: %d signs to %d heads, want %d to %d", name, total(signs), len(signs), want, heads)
			}
			for _, b := range signs {
				if b < 8 || b%8 != 0 || b > codec.MaxSigns(d) {
					t.Fatalf("%s: a head of %d numbers has %d signs", name, d, b)
				}
			}
		}
	}
	for _, x := range []struct {
		bits     float64
		d, heads int
	}{{0, 64, 1}, {-1, 64, 1}, {math.NaN(), 64, 1}, {math.Inf(1), 64, 1}, {8.1, 64, 3}, {0.1, 64, 3}, {1, 0, 1},
		{1, 64, 0}, {1, 4, 3}} {
		if n, err := codec.Budget(x.bits, slices.Repeat([]int{x.d}, x.heads)...); err == nil {
			t.Errorf("%g bits for %d heads of %d: %d signs", x.bits, x.heads, x.d, n)
		}
	}
}

// TestFull: a budget that fills all heads, with words that do not.
func TestFull(t *testing.T) {
	const d = 10
	dims := []int{d, d, d} // 80 signs at most, two words and a half
	for n := 3 * 64; n <= 3*80; n += 8 {
		f := exponential(1, d)
		for _, signs := range [][]int{AllotSigns(n, dims, []DamageCurve{f, f, f}),
			WeightedSigns(n, dims, []float64{1, 3, 2})} {
			if total(signs) != n || max(signs[0], signs[1], signs[2]) > 80 {
				t.Errorf("%d signs: %v", n, signs)
			}
		}
	}
}

// TestWholeWords: where there is a word for each head, heads get whole words, so
// equal budgets are equal bytes.
func TestWholeWords(t *testing.T) {
	damage := []DamageCurve{exponential(1, 64), exponential(30, 64), exponential(4, 64), exponential(100, 64)}
	signs := AllotSigns(4*64, []int{64, 64, 64, 64}, damage)
	for _, b := range signs {
		if b%32 != 0 {
			t.Errorf("signs %v", signs)
		}
	}
	if signs[0] >= signs[3] {
		t.Errorf("signs %v, but the last head costs most", signs)
	}
	// A budget that words do not divide leaves one head with a part of one.
	odd := 0
	for _, b := range AllotSigns(4*64+8, []int{64, 64, 64, 64}, damage) {
		if b%32 != 0 {
			odd++
		}
	}
	if odd != 1 {
		t.Errorf("%d heads with a part of a word", odd)
	}
}

// TestAllotOptimum: no other way of spreading the same words costs less, for
// convex damage; every way is tried.
func TestAllotOptimum(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	const d, heads, words = 64, 3, 9
	for range 50 {
		var damage []DamageCurve
		for range heads {
			damage = append(damage, exponential(math.Exp2(8*r.Float64()), d*(0.5+r.Float64())))
		}
		cost := func(a, b, c int) float64 { return damage[0](32*a) + damage[1](32*b) + damage[2](32*c) }
		least := math.Inf(1)
		for a := 1; a < words-1; a++ {
			for b := 1; a+b < words; b++ {
				least = min(least, cost(a, b, words-a-b))
			}
		}
		got := AllotSigns(32*words, slices.Repeat([]int{d}, len(damage)), damage)
		if c := cost(got[0]/32, got[1]/32, got[2]/32); c > least*(1+1e-12) {
			t.Errorf("%v costs %g, the best costs %g", got, c, least)
		}
	}
	// A curve that falls late: the hull looks ahead.
	late := func(signs int) float64 {
		if signs >= 128 {
			return 0
		}
		return 100
	}
	if got := AllotSigns(6*32, []int{d, d}, []DamageCurve{late, exponential(1, d)}); got[0] != 128 {
		t.Errorf("signs %v", got)
	}
}

// TestWaterfill: known optima, and a curve that falls and is convex.
func TestWaterfill(t *testing.T) {
	flat := make([]float64, 64)
	for i := range flat {
		flat[i] = 3
	}
	for _, b := range []float64{0, 8, 64, 128} {
		if got, want := Waterfill(flat, b), 64*3*math.Exp2(-2*b/64); math.Abs(got-want) > 1e-9*want {
			t.Errorf("flat spectrum, %g bits: %g, want %g", b, got, want)
		}
	}
	// One strong number takes all bits until it is as weak as the others.
	if got, want := Waterfill([]float64{16, 1, 1}, 1), 4.0+2; math.Abs(got-want) > 1e-9 {
		t.Errorf("%g, want %g", got, want)
	}
	if got := Waterfill([]float64{0, 0}, 8); got != 0 {
		t.Errorf("nothing to describe costs %g", got)
	}
	steep := make([]float64, 64)
	for i := range steep {
		steep[i] = math.Exp2(-float64(i) / 6)
	}
	last, slope := Waterfill(steep, 0), math.Inf(1)
	for b := 8.0; b <= 256; b += 8 {
		v := Waterfill(steep, b)
		if fall := last - v; fall <= 0 || fall > slope*(1+1e-9) {
			t.Errorf("%g bits: %g after %g, falls by %g after %g", b, v, last, fall, slope)
		} else {
			slope = fall
		}
		last = v
	}
}
