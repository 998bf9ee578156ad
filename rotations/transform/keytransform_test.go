package transform

import (
	"errors"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/phaseconv/phaseconv/internal/keydata"
	"github.com/phaseconv/phaseconv/kernels/fmath"
	"github.com/phaseconv/phaseconv/kernels/gemm"
	"github.com/phaseconv/phaseconv/kernels/linalg"
	"github.com/phaseconv/phaseconv/kernels/rope"
)

// secondMoment returns that of random rows whose dimensions are correlated and
// differ in size, and a root of it.
func secondMoment(r *rand.Rand, d int) (moment, root []float64) {
	root = make([]float64, d*d)
	for i := range root {
		root[i] = r.NormFloat64() * math.Exp2(float64(i%d%5)-2)
	}
	return linalg.Product(root, linalg.Transpose(root, d), d), root
}

// mixStats are statistics with keys of one group and a distance of n positions.
func mixStats(r *rand.Rand, d int, freq []float64, n float64, pairs rope.Layout) *KeyTransformStats {
	k, _ := secondMoment(r, d)
	q, _ := secondMoment(r, d)
	return &KeyTransformStats{D: d, Pairs: pairs, Queries: q, Freq: freq, Curvature: 0.5, Scale: 0.25,
		Keys: []DistanceBucket{{Moment: k, Share: 1, Distances: []Distance{{n, 1}}}}}
}

// energy returns tr(a m a^T).
func energy(a, m []float64, d int) (sum float64) {
	x := linalg.Product(linalg.Product(a, m, d), linalg.Transpose(a, d), d)
	for i := range d {
		sum += x[i*d+i]
	}
	return sum
}

func constant(n int, v float64) []float64 {
	out := make([]float64, n)
	for i := range out {
		out[i] = v
	}
	return out
}

// TestFindMix: where RoPE stands still, the product of energies falls to the
// squared nuclear norm of K^1/2 Q^1/2; where all pairs turn fast at speeds of
// their own, nothing is mixed; no score changes without RoPE.
func TestFindMix(t *testing.T) {
	const d = 16
	r := rand.New(rand.NewPCG(1, 1))
	for _, pairs := range []rope.Layout{rope.Half, rope.Interleaved} {
		s := mixStats(r, d, make([]float64, d/2), 100, pairs)
		m, err := FitKeyTransform(t.Context(), s, KeyTransformOptions{Noise: 0.01, Penalty: 1})
		if err != nil {
			t.Fatal(err)
		}
		k := s.Keys[0].Moment
		values, vectors := eigen(t, k, d)
		root := linalg.SymmetricPower(values, vectors, d, func(x float64) float64 { return math.Sqrt(max(x, 0)) })
		values, _ = eigen(t, linalg.Product(root, linalg.Product(s.Queries, root, d), d), d)
		var nuclear, scales float64
		for _, v := range values {
			nuclear += math.Sqrt(max(v, 0))
		}
		for p := range d / 2 {
			i, j := pairs.Dims(p, d)
			scales += math.Sqrt((k[i*d+i] + k[j*d+j]) * (s.Queries[i*d+i] + s.Queries[j*d+j]))
		}
		got := energy(m.Key, k, d) * energy(m.Query, s.Queries, d)
		// mixShrink keeps it off the optimum by a few per cent.
		if got < 0.999*nuclear*nuclear || got > 1.15*nuclear*nuclear || got > 0.8*scales*scales {
			t.Errorf("%v: energies multiply to %g; scales alone reach %g, the optimum is %g", pairs, got, scales*scales,
				nuclear*nuclear)
		}
		factor := 0.5 * s.Curvature * s.Scale * 0.01 / d
		if want := factor * scales * scales; math.Abs(m.Before-want) > 1e-6*want {
			t.Errorf("predicted before %g, want %g", m.Before, want)
		}
		if want := factor * got; math.Abs(m.After-want) > 0.15*want || m.Cost != 0 {
			t.Errorf("predicted after %g at a cost of %g, want %g", m.After, m.Cost, want)
		}
		inverse := linalg.Product(linalg.Transpose(m.Query, d), m.Key, d)
		for i, v := range inverse {
			want := 0.0
			if i%(d+1) == 0 {
				want = 1
			}
			if math.Abs(v-want) > 1e-8 { // condition numbers here are below 1e6
				t.Fatalf("A^-1 A has %g at %d", v, i)
			}
		}
		x := keydata.Uniform(r, d)
		y := append([]float32(nil), x...)
		m.KeyWeights(d)
		for i := range y {
			y[i] = 0
			for j, v := range x {
				y[i] += float32(m.Key[i*d+j]) * v
			}
		}
		back := make([]float32, d)
		gemm.Mul(back, d, y, d, 1, m.UndoWeights(d), 1)
		y = back
		for i := range y {
			if math.Abs(float64(y[i]-x[i])) > 1e-3 {
				t.Errorf("undone: %g for %g", y[i], x[i])
			}
		}
		var sum float64
		after := m.Metric(s.Queries, d)
		for i := range d {
			sum += after[i*d+i]
		}
		if want := energy(m.Query, s.Queries, d); math.Abs(sum-want) > 1e-9*want {
			t.Errorf("mixed queries have energy %g, want %g", sum, want)
		}

		for i := range s.Freq {
			s.Freq[i] = float64(i+1) * 0.71
		}
		s.Keys[0].Distances = nil
		for n := range 64 {
			s.Keys[0].Distances = append(s.Keys[0].Distances, Distance{float64(n), 1.0 / 64})
		}
		if m, err = FitKeyTransform(t.Context(), s, KeyTransformOptions{Noise: 0.01, Penalty: 1e4}); err != nil ||
			m.After < 0.97*m.Before || m.After > m.Before {
			t.Errorf("fast pairs: %g from %g, %v", m.After, m.Before, err)
		}
	}
}

// TestMixEqualSpeed: pairs that turn alike, however fast, mix as complex numbers,
// and no score changes at any distance.
func TestMixEqualSpeed(t *testing.T) {
	const d = 12
	r := rand.New(rand.NewPCG(2, 1))
	s := mixStats(r, d, constant(d/2, 1.3), 0, rope.Half)
	// Correlations that RoPE leaves: K and Q are complex-linear themselves.
	for _, m := range [][]float64{s.Keys[0].Moment, s.Queries} {
		for a := range d / 2 {
			for b := range d / 2 {
				i, j := rope.Half.Dims(a, d)
				k, l := rope.Half.Dims(b, d)
				re, im := 0.5*(m[i*d+k]+m[j*d+l]), 0.5*(m[j*d+k]-m[i*d+l])
				m[i*d+k], m[j*d+l], m[j*d+k], m[i*d+l] = re, re, im, -im
			}
		}
	}
	s.Keys[0].Distances = nil
	for n := range 32 {
		s.Keys[0].Distances = append(s.Keys[0].Distances, Distance{float64(n), 1.0 / 32})
	}
	m, err := FitKeyTransform(t.Context(), s, KeyTransformOptions{Noise: 0.01, Penalty: 100})
	if err != nil {
		t.Fatal(err)
	}
	if m.After > 0.8*m.Before || m.Cost > 1e-9*m.Before {
		t.Errorf("noise %g from %g at a cost of %g", m.After, m.Before, m.Cost)
	}
	table := rope.NewTable(rope.Params{Theta: 1 + 1e-9, Dim: d}, 8) // all pairs turn by 1 per position
	for range 20 {
		k, q := keydata.Uniform(r, d), keydata.Uniform(r, d)
		for n := range 8 {
			plain := append([]float32(nil), k...)
			table.Apply(plain, n, rope.Half)
			mixed, query := multiply32(m.Key, k, d), multiply32(m.Query, q, d)
			table.Apply(mixed, n, rope.Half)
			var want, got, size float64
			for i := range d {
				want += float64(q[i]) * float64(plain[i])
				got += float64(query[i]) * float64(mixed[i])
				size += math.Abs(float64(query[i]) * float64(mixed[i]))
			}
			if math.Abs(got-want) > 1e-5*size {
				t.Fatalf("distance %d: score %g becomes %g", n, want, got)
			}
		}
	}
}

func multiply32(a []float64, x []float32, d int) []float32 {
	out := make([]float32, d)
	for i := range out {
		var sum float64
		for j, v := range x {
			sum += a[i*d+j] * float64(v)
		}
		out[i] = float32(sum)
	}
	return out
}

// TestMixCost: the predicted cost is what random queries and keys at random
// distances see, to the order that it promises.
func TestMixCost(t *testing.T) {
	const d = 8
	r := rand.New(rand.NewPCG(3, 1))
	params := rope.Params{Theta: 50, Dim: d}
	distances := []Distance{{0, 0.2}, {1, 0.3}, {3, 0.3}, {7, 0.2}}
	s := &KeyTransformStats{D: d, Pairs: rope.Half, Freq: params.InvFreq(), Curvature: 0.3, Scale: 0.5}
	var kr, qr []float64
	// Nearly independent dimensions: the formula takes phases for random.
	moment := func() (m, root []float64) {
		root = make([]float64, d*d)
		for i := range d {
			for j := range d {
				root[i*d+j] = 0.15 * r.NormFloat64()
			}
			root[i*d+i] += 1
		}
		return linalg.Product(root, linalg.Transpose(root, d), d), root
	}
	x := DistanceBucket{Share: 1, Distances: distances}
	x.Moment, kr = moment()
	s.Queries, qr = moment()
	s.Keys = []DistanceBucket{x}
	m, err := FitKeyTransform(t.Context(), s, KeyTransformOptions{Noise: 0.1, Penalty: 1})
	if err != nil {
		t.Fatal(err)
	}
	table := rope.NewTable(params, 8)
	draw := func(root []float64) []float32 {
		z := make([]float32, d)
		for i := range z {
			z[i] = float32(r.NormFloat64())
		}
		return multiply32(root, z, d)
	}
	var sum float64
	const n = 20000
	for range n {
		k, q := draw(kr), draw(qr)
		mixed, query := multiply32(m.Key, k, d), multiply32(m.Query, q, d)
		at, u := 0, r.Float64()
		for u > distances[at].Weight {
			u -= distances[at].Weight
			at++
		}
		pos := int(distances[at].Positions)
		table.Apply(k, pos, rope.Half)
		table.Apply(mixed, pos, rope.Half)
		var e float64
		for i := range d {
			e += float64(query[i])*float64(mixed[i]) - float64(q[i])*float64(k[i])
		}
		sum += e * e / n
	}
	got := 0.5 * s.Curvature * s.Scale * sum
	if m.Cost == 0 || got < 0.6*m.Cost || got > 1.6*m.Cost {
		t.Errorf("cost %g, predicted %g", got, m.Cost)
	}
}

// TestMixGradient: the gradient is that of finite differences, and no step makes
// the sum worse.
func TestMixGradient(t *testing.T) {
	const d = 6
	r := rand.New(rand.NewPCG(4, 1))
	s := mixStats(r, d, []float64{0.3, 0.1, 0.02}, 5, rope.Half)
	p, _, err := newTransformProgram(s, KeyTransformOptions{Noise: 0.01, Penalty: 1})
	if err != nil {
		t.Fatal(err)
	}
	x := make([]float64, d*d)
	for i := range d {
		for j := range i + 1 {
			x[i*d+j] = 0.3 * r.NormFloat64()
			x[j*d+i] = x[i*d+j]
		}
	}
	m := point(t, p, x)
	for sign, a := range map[float64][]float64{1: p.k, -1: p.q} {
		g := p.traceGradient(m, a, sign)
		trace := func(x []float64) float64 {
			values, vectors := eigen(t, x, d)
			return linalg.Dot(a, linalg.SymmetricPower(values, vectors, d,
				func(l float64) float64 { return fmath.Exp(2 * sign * l) }))
		}
		for i := range d {
			for j := range i + 1 {
				const h = 1e-5
				up, down := append([]float64(nil), x...), append([]float64(nil), x...)
				up[i*d+j] += h
				down[i*d+j] -= h
				want := g[i*d+j]
				if i != j {
					up[j*d+i] += h
					down[j*d+i] -= h
					want += g[j*d+i]
				}
				if got := (trace(up) - trace(down)) / (2 * h); math.Abs(got-want) > 1e-5*linalg.Norm(g) {
					t.Errorf("sign %g, entry %d, %d: gradient %g, differences give %g", sign, i, j, want, got)
				}
			}
		}
	}
	dir, slope := p.direction(m)
	const h = 1e-6
	near := append([]float64(nil), x...)
	for i, v := range dir {
		near[i] += h * v
	}
	if got := (point(t, p, near).value() - m.value()) / h; !(slope < 0) || math.Abs(got-slope) > 1e-3*math.Abs(slope) {
		t.Errorf("slope %g, differences give %g", slope, got)
	}
	for at := point(t, p, make([]float64, d*d)); ; {
		next, err := p.search(t.Context(), at)
		if err != nil {
			t.Fatal(err)
		}
		if next == nil || at.value()-next.value() < 1e-9*at.value() {
			break
		}
		if next.value() >= at.value() {
			t.Fatalf("a step from %g to %g", at.value(), next.value())
		}
		at = next
	}
}

// TestFindMixRefuses: statistics that say nothing.
func TestFindMixRefuses(t *testing.T) {
	const d = 8
	good := func() *KeyTransformStats {
		return mixStats(rand.New(rand.NewPCG(5, 1)), d, constant(d/2, 0.1), 3, rope.Half)
	}
	options := KeyTransformOptions{Noise: 0.01, Penalty: 1}
	for what, spoil := range map[string]func(s *KeyTransformStats){
		"no energy":    func(s *KeyTransformStats) { s.Keys[0].Moment = make([]float64, d*d) },
		"no keys":      func(s *KeyTransformStats) { s.Keys = nil },
		"short keys":   func(s *KeyTransformStats) { s.Keys[0].Moment = s.Keys[0].Moment[1:] },
		"queries":      func(s *KeyTransformStats) { s.Queries = nil },
		"frequencies":  func(s *KeyTransformStats) { s.Freq = s.Freq[1:] },
		"not a number": func(s *KeyTransformStats) { s.Queries[0] = math.NaN() },
	} {
		s := good()
		spoil(s)
		_, err := FitKeyTransform(t.Context(), s, options)
		if err == nil {
			t.Errorf("%s: accepted", what)
		}
		// Of these, what a model can bring about leaves a head as it is.
		if head := what == "no energy" || what == "no keys" || what == "not a number"; errors.Is(err,
			ErrNoTransform) != head {
			t.Errorf("%s: %v", what, err)
		}
	}
	for _, o := range []KeyTransformOptions{
		{Penalty: 1}, {Noise: 1}, {Noise: math.NaN(), Penalty: 1}, {Noise: 1, Penalty: math.Inf(1)},
	} {
		if _, err := FitKeyTransform(t.Context(), good(), o); err == nil {
			t.Errorf("%+v accepted", o)
		}
	}
	if (&KeyTransform{Key: make([]float64, 4), Query: []float64{1, 0, 0, math.Inf(1)}}).Check(2) == nil {
		t.Error("an infinite mix")
	}
}
