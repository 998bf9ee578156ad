package transform

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/internal/keydata"
	"github.com/phaseconv/phaseconv/kernels/linalg"
	"github.com/phaseconv/phaseconv/kernels/rope"
)

// slowStats makes statistics like those of a model with large key biases: the
// drift of pair p is worth its frequency, and some pairs hardly vary.
func slowStats(r *rand.Rand, d int, pairs rope.Layout) *KeyStats {
	h := d / 2
	s := &KeyStats{D: d, Pairs: pairs, Curvature: 0.5, Scale: 1 / float64(d), Group: 3,
		Mean: make([]float64, d), Var: make([]float64, h), Query: make([]float64, h), Drift: make([]float64, d*d)}
	w := make([]float64, d)
	for p := range h {
		i, j := pairs.Dims(p, d)
		w[i] = math.Pow(1e-4, float64(p)/float64(h))
		w[j] = w[i]
		s.Mean[i], s.Mean[j] = 100*r.NormFloat64()*(1-w[i]), 100*r.NormFloat64()*(1-w[i])
		s.Var[p] = math.Pow(10, -3+4*r.Float64())
		s.Query[p] = math.Pow(10, -1+4*r.Float64())
	}
	for range 2 * d { // a sum of so many outer products has full rank
		x := make([]float64, d)
		for i := range x {
			x[i] = w[i] * r.NormFloat64()
		}
		for i := range d {
			for j := range d {
				s.Drift[i*d+j] += x[i] * x[j] / float64(d)
			}
		}
	}
	return s
}

// left returns what a removal leaves of the mean.
func left(s *KeyStats, m *BiasShift) []float64 {
	r := make([]float64, s.D)
	for i := range r {
		r[i] = s.Mean[i] - m.Delta[i]
	}
	return r
}

// TestSlowMeanOptimum: the answer is where the gradient is zero and no point
// around it is better; the gradient is that of the value; the report adds up.
func TestSlowMeanOptimum(t *testing.T) {
	for seed := range uint64(12) {
		r := rand.New(rand.NewPCG(seed, 3))
		d := []int{8, 32, 64}[seed%3]
		s := slowStats(r, d, layouts[seed%2])
		o := BiasShiftOptions{Noise: 0.005, Penalty: []float64{0.1, 1, 8}[seed/4]}
		m, err := FitBiasShift(t.Context(), s, o)
		if err != nil {
			t.Fatal(err)
		}
		// Rounding of the value stops Newton some digits before the gradient is gone.
		if !(m.Gradient < 1e-6) || m.Steps == newtonSteps {
			t.Errorf("seed %d: gradient %.2g of the first is left after %d steps", seed, m.Gradient, m.Steps)
		}
		p := newProgram(s, o)
		x := left(s, m)
		best := p.value(x)
		for range 200 {
			y := append([]float64(nil), x...)
			size := math.Pow(10, -6*r.Float64())
			for i := range y {
				y[i] += size * r.NormFloat64() * (1 + math.Abs(x[i]))
			}
			if v := p.value(y); v < best*(1-1e-12) {
				t.Errorf("seed %d: %.12g at the answer, %.12g beside it", seed, best, v)
			}
		}
		if first := p.value(s.Mean); !(best < first) {
			t.Errorf("seed %d: %g before, %g after", seed, first, best)
		}
		n, dr := p.terms(x)
		if off(n/2, m.After) > 1e-12 || off(dr/2/o.Penalty, m.Cost) > 1e-12 || !(m.After < m.Before) || m.Removed <= 0 ||
			m.Removed >= 1 {
			t.Errorf("seed %d: report %+v for terms %g and %g", seed, m, n, dr)
		}
	}
}

func off(a, b float64) float64 { return math.Abs(a-b) / max(math.Abs(a), math.Abs(b), 1e-300) }

// TestSlowMeanDerivatives: gradient and Hessian are those of the value, and the
// value is convex.
func TestSlowMeanDerivatives(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 4))
	for _, pairs := range layouts {
		s := slowStats(r, 16, pairs)
		p := newProgram(s, BiasShiftOptions{Noise: 0.005, Penalty: 1})
		point := func() []float64 {
			x := make([]float64, s.D)
			for i := range x {
				x[i] = s.Mean[i] + 30*r.NormFloat64()
			}
			return x
		}
		for range 20 {
			x, y := point(), point()
			g, h := p.derivatives(x)
			mid := make([]float64, s.D)
			for i := range mid {
				mid[i] = (x[i] + y[i]) / 2
			}
			if a, b := p.value(mid), (p.value(x)+p.value(y))/2; a > b*(1+1e-12) {
				t.Errorf("not convex: %g in the middle of %g", a, b)
			}
			for i := range x {
				const e = 1e-4
				up, down := append([]float64(nil), x...), append([]float64(nil), x...)
				up[i] += e
				down[i] -= e
				// Central differences err by e^2 and by the rounding of the value over e.
				tol := 1e-6*math.Abs(g[i]) + 1e-11*p.value(x)/e
				if n := (p.value(up) - p.value(down)) / (2 * e); !(math.Abs(n-g[i]) <= tol) {
					t.Errorf("gradient %d is %g, differences say %g", i, g[i], n)
				}
				gu, _ := p.derivatives(up)
				gd, _ := p.derivatives(down)
				for j := range x {
					n := (gu[j] - gd[j]) / (2 * e)
					if !(math.Abs(n-h[i*s.D+j]) <= 1e-5*math.Abs(h[i*s.D+i])+1e-11*math.Abs(g[j])/e) {
						t.Errorf("Hessian %d,%d is %g, differences say %g", i, j, h[i*s.D+j], n)
					}
				}
			}
		}
	}
}

// TestSlowMeanMonotone: more weight on the drift means less drift and more noise,
// a better cache type removes less, and a drift that costs everything removes
// nothing.
func TestSlowMeanMonotone(t *testing.T) {
	s := slowStats(rand.New(rand.NewPCG(5, 5)), 32, rope.Half)
	fit := func(noise, kappa float64) *BiasShift {
		m, err := FitBiasShift(t.Context(), s, BiasShiftOptions{Noise: noise, Penalty: kappa})
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	last := fit(NoiseQ4_0, 1e-3)
	for _, k := range []float64{1e-2, 0.1, 1, 10, 100} {
		m := fit(NoiseQ4_0, k)
		if !(m.Cost < last.Cost) || !(m.After > last.After) {
			t.Errorf("kappa %g: cost %g after %g, noise %g after %g", k, m.Cost, last.Cost, m.After, last.After)
		}
		last = m
	}
	if a, b := fit(NoiseQ8_0, 1), fit(NoiseBit, 1); !(a.Cost < b.Cost) {
		t.Errorf("q8_0 costs %g, 1 bit %g", a.Cost, b.Cost)
	}
	if m := fit(1e-12, 1e12); !(math.Abs(m.Removed) < 1e-6) {
		t.Errorf("a priceless drift: %g removed", m.Removed)
	}
}

// TestSlowMeanRefusals: nothing that is not a number comes out as a model.
func TestSlowMeanRefusals(t *testing.T) {
	good := func() *KeyStats { return slowStats(rand.New(rand.NewPCG(6, 6)), 8, rope.Half) }
	for what, change := range map[string]func(s *KeyStats, o *BiasShiftOptions){
		"NaN mean":     func(s *KeyStats, _ *BiasShiftOptions) { s.Mean[3] = math.NaN() },
		"infinite":     func(s *KeyStats, _ *BiasShiftOptions) { s.Query[0] = math.Inf(1) },
		"short":        func(s *KeyStats, _ *BiasShiftOptions) { s.Var = s.Var[:3] },
		"odd head_dim": func(s *KeyStats, _ *BiasShiftOptions) { s.D = 7 },
		"no noise":     func(_ *KeyStats, o *BiasShiftOptions) { o.Noise = 0 },
		"kappa":        func(_ *KeyStats, o *BiasShiftOptions) { o.Penalty = math.NaN() },
	} {
		s, o := good(), BiasShiftOptions{Noise: 0.005, Penalty: 1}
		change(s, &o)
		if _, err := FitBiasShift(t.Context(), s, o); err == nil {
			t.Errorf("%s: accepted", what)
		}
	}
	// Dead heads are no mistake: nothing to gain, nothing removed or broken.
	s := good()
	clear(s.Query)
	clear(s.Drift)
	m, err := FitBiasShift(t.Context(), s, BiasShiftOptions{Noise: 0.005, Penalty: 1})
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range m.Delta {
		if math.IsNaN(v) {
			t.Errorf("a head without queries has delta %v", m.Delta)
			break
		}
	}
}

// keySample draws keys with unequal pairs, a few of which come again and again.
func keySample(r *rand.Rand, n, d int, pairs rope.Layout) *KeySample {
	s := &KeySample{D: d, Pairs: pairs, Keys: make([]float32, n*d), Weights: make([]float64, n),
		Metric: make([]float64, d*d)}
	sink := keydata.Normal(r, d)
	for i := range n {
		x := s.Keys[i*d : (i+1)*d]
		copy(x, keydata.Normal(r, d))
		s.Weights[i] = r.Float64()
		if i%8 == 0 {
			copy(x, sink)
			s.Weights[i] = 4
		}
		for p := range d / 2 {
			a, b := pairs.Dims(p, d)
			x[a] *= float32(p%5) + 0.1
			x[b] *= float32(p%5) + 0.1
		}
	}
	for range 3 * d {
		q := keydata.Normal(r, d)
		for i := range d {
			for j := range d {
				s.Metric[i*d+j] += float64(q[i]) * float64(q[j]) / float64(3*d)
			}
		}
	}
	return s
}

// bruteLoss stores keys and compares scores, one at a time.
func bruteLoss(t *testing.T, s *KeySample, turn *PairRotation, row CacheRow) float64 {
	t.Helper()
	d := s.D
	h := row.matrix(d, s.Pairs)
	times := func(x []float32, back bool) {
		y := make([]float32, d)
		for i := range y {
			var v float64
			for j, w := range x {
				at := i*d + j
				if back {
					at = j*d + i
				}
				v += h[at] * float64(w)
			}
			y[i] = float32(v)
		}
		copy(x, y)
	}
	n, err := gguf.RowBytes(row.Type, d)
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, n)
	var sum, total float64
	for i, w := range s.Weights {
		x := append([]float32(nil), s.Keys[i*d:(i+1)*d]...)
		turn.ApplyKey(x, s.Pairs)
		times(x, false)
		if err := gguf.QuantizeCacheRow(row.Type, buf, x); err != nil {
			t.Fatal(err)
		}
		if err := gguf.DequantizeRow(row.Type, x, buf); err != nil {
			t.Fatal(err)
		}
		times(x, true)
		turn.Undo(x, s.Pairs)
		e := make([]float64, d)
		for j := range e {
			e[j] = float64(x[j]) - float64(s.Keys[i*d+j])
		}
		for a := range d {
			for b := range d {
				sum += w * e[a] * s.Metric[a*d+b] * e[b]
			}
		}
		total += w
	}
	return sum / total
}

// TestTuneBalance: the loss that is searched is that of keys stored one by one,
// and it falls, on keys that were not searched too.
func TestTuneBalance(t *testing.T) {
	for i, row := range []CacheRow{{gguf.TypeQ4_0, 64, rope.Half}, {gguf.TypeQ4_0, 0, rope.Half},
		{gguf.TypeIQ4_NL, 32, rope.Interleaved}} {
		pairs := layouts[i%2]
		s := keySample(rand.New(rand.NewPCG(7, 7)), 96, 64, pairs)
		start := &PairRotation{Scale: make([]float32, 32)}
		for p := range start.Scale {
			start.Scale[p] = 1
		}
		got, err := TunePairScale(t.Context(), []*KeySample{s}, start, row, true)
		if err != nil {
			t.Fatal(err)
		}
		if err := got.Turn.Check(64); err != nil {
			t.Error(err)
		}
		// The loss is that of float32 keys and a few numbers that round the other way.
		if b := bruteLoss(t, s, start, row); off(b, got.Before) > 2e-3 {
			t.Errorf("%v: loss %g before, one by one %g", row, got.Before, b)
		}
		if a := bruteLoss(t, s, got.Turn, row); off(a, got.After) > 2e-3 {
			t.Errorf("%v: loss %g after, one by one %g", row, got.After, a)
		}
		if !(got.After < 0.9*got.Before) {
			t.Errorf("%v: loss %g before, %g after", row, got.Before, got.After)
		}
		other := keySample(rand.New(rand.NewPCG(8, 8)), 96, 64, pairs)
		if b, a := bruteLoss(t, other, start, row), bruteLoss(t, other, got.Turn, row); !(a < b) {
			t.Errorf("%v: on other keys loss %g before, %g after", row, b, a)
		}
		again, err := TunePairScale(t.Context(), []*KeySample{s}, start, row, true)
		if err != nil || again.After != got.After || again.Turn.Scale[3] != got.Turn.Scale[3] ||
			again.Turn.Angle[3] != got.Turn.Angle[3] {
			t.Errorf("%v: a second run differs (%v)", row, err)
		}
		scales, err := TunePairScale(t.Context(), []*KeySample{s}, start, row, false)
		if err != nil || scales.Turn.Angle != nil || !(scales.After < scales.Before) {
			t.Errorf("%v: scales alone give %+v, %v", row, scales, err)
		}
	}
}

// TestTurnGradient: the gradient that the search follows is that of its objective.
func TestTurnGradient(t *testing.T) {
	const d = 32
	for i, angles := range []bool{false, true} {
		r := rand.New(rand.NewPCG(11, uint64(i)))
		pairs := layouts[i]
		start := &PairRotation{Scale: make([]float32, d/2)}
		for p := range start.Scale {
			start.Scale[p] = float32(math.Exp(r.NormFloat64()))
		}
		s := &pairSearch{d: d, pairs: pairs, angles: angles}
		for range 2 {
			k := keySample(r, 60, d, pairs)
			p, err := newBlockObjective(t.Context(), start.mix(d, pairs), k.withoutRoPE(),
				RefineOptions{Cache: CacheRow{gguf.TypeQ4_0, 32, rope.Interleaved}, Penalty: 1})
			if err != nil {
				t.Fatal(err)
			}
			s.heads = append(s.heads, p)
		}
		x := make([]float64, s.size())
		for j := range x {
			x[j] = 0.3 * r.NormFloat64()
		}
		_, g := s.value(t.Context(), x)
		for j := range x {
			const h = 3e-3
			at := func(step float64) float64 {
				y := slices.Clone(x)
				y[j] += step
				v, _ := s.value(t.Context(), y)
				return v
			}
			// Numbers are float32, and the largest of a block may change along the way.
			if want := (at(h) - at(-h)) / (2 * h); math.Abs(g[j]-want) > 2e-3*linalg.Norm(g) {
				t.Errorf("angles %v: derivative %d is %g, by differences %g", angles, j, g[j], want)
			}
		}
	}
}

// TestTuneRefusals: impossible caches and samples are errors.
func TestTuneRefusals(t *testing.T) {
	s := keySample(rand.New(rand.NewPCG(9, 9)), 8, 64, rope.Half)
	ones := &PairRotation{Scale: make([]float32, 32)}
	for p := range ones.Scale {
		ones.Scale[p] = 1
	}
	for what, f := range map[string]func() error{
		"size": func() error {
			_, err := TunePairScale(t.Context(), []*KeySample{s}, ones, CacheRow{gguf.TypeQ4_0, 48, rope.Interleaved}, true)
			return err
		},
		"type": func() error {
			_, err := TunePairScale(t.Context(), []*KeySample{s}, ones, CacheRow{gguf.TypeQ4_K, 0, rope.Interleaved}, true)
			return err
		},
		"none": func() error {
			_, err := TunePairScale(t.Context(), nil, ones, CacheRow{gguf.TypeQ4_0, 0, rope.Interleaved}, true)
			return err
		},
		"scales": func() error {
			_, err := TunePairScale(t.Context(), []*KeySample{s}, &PairRotation{Scale: ones.Scale[:3]},
				CacheRow{gguf.TypeQ4_0, 0, rope.Interleaved}, true)
			return err
		},
		"sample": func() error {
			x := *s
			x.Weights = x.Weights[:5]
			_, err := TunePairScale(t.Context(), []*KeySample{&x}, ones, CacheRow{gguf.TypeQ4_0, 0, rope.Interleaved}, true)
			return err
		},
	} {
		if f() == nil {
			t.Errorf("%s: accepted", what)
		}
	}
}

// TestPairTurn: turned keys and queries have the scores of before, after RoPE
// too, and Undo undoes.
func TestPairTurn(t *testing.T) {
	r := rand.New(rand.NewPCG(10, 10))
	const d = 16
	for _, pairs := range layouts {
		table := rope.NewTable(rope.Params{Theta: 10000, Dim: d}, 50)
		turn := &PairRotation{Scale: make([]float32, d/2), Angle: make([]float64, d/2)}
		for p := range turn.Scale {
			turn.Scale[p], turn.Angle[p] = float32(math.Exp(r.NormFloat64())), 6*r.Float64()
		}
		for range 20 {
			q, k := keydata.Normal(r, d), keydata.Normal(r, d)
			q2, k2 := append([]float32(nil), q...), append([]float32(nil), k...)
			turn.ApplyQuery(q2, pairs)
			turn.ApplyKey(k2, pairs)
			back := append([]float32(nil), k2...)
			turn.Undo(back, pairs)
			for i := range back {
				if math.Abs(float64(back[i]-k[i])) > 1e-6 {
					t.Errorf("%v: %g becomes %g", pairs, k[i], back[i])
				}
			}
			for _, x := range [][]float32{q, q2} {
				table.Apply(x, 7, pairs)
			}
			for _, x := range [][]float32{k, k2} {
				table.Apply(x, 3, pairs)
			}
			tol := 1e-6 * math.Sqrt(linalg.Dot64(q2, q2)*linalg.Dot64(k2, k2))
			if a, b := linalg.Dot64(q, k), linalg.Dot64(q2, k2); !(math.Abs(a-b) <= tol) {
				t.Errorf("%v: score %g becomes %g", pairs, a, b)
			}
		}
	}
}
