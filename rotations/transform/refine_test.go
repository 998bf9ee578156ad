package transform

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/kernels/linalg"
	"github.com/phaseconv/phaseconv/kernels/rope"
)

// shapeCase is a head of d numbers, the mix of FitKeyTransform, and two samples of the same
// distribution, of n keys each that lie in two windows and meet some queries.
func shapeCase(t *testing.T, r *rand.Rand, d, n, queries int, pairs rope.Layout) (*KeyTransform, [2]*RefineSample) {
	t.Helper()
	params := rope.Params{Dim: d, Theta: 10000}
	s := mixStats(r, d, params.InvFreq(), 5, pairs)
	s.Scale = 2e-6 // each query looks at many keys, so that 1,000 of them tell what a mix of 4,096 numbers does
	table := rope.NewTable(params, 64)
	key, keyRoot := secondMoment(r, d)
	query, queryRoot := secondMoment(r, d)
	s.Keys[0].Moment, s.Queries = key, query
	m, err := FitKeyTransform(t.Context(), s, KeyTransformOptions{Noise: 0.007, Penalty: 1})
	if err != nil {
		t.Fatal(err)
	}
	row := func(root []float64) []float32 {
		z := make([]float32, d)
		for i := range z {
			z[i] = float32(r.NormFloat64())
		}
		return multiply32(root, z, d)
	}
	var out [2]*RefineSample
	for i := range out {
		x := &RefineSample{KeySample: KeySample{D: d, Pairs: pairs, Metric: query}, Table: table, Scale: s.Scale}
		for w := range 2 {
			at := QueryWindow{From: w * n / 2, To: (w + 1) * n / 2, Span: 50 * w}
			for j := at.From; j < at.To; j++ {
				k, p := row(keyRoot), (j-at.From)*64/(at.To-at.From)
				table.Apply(k, p, pairs)
				x.Keys, x.Pos = append(x.Keys, k...), append(x.Pos, p)
				x.Weights, at.Counts = append(x.Weights, 0.1+r.Float64()), append(at.Counts, 1+r.Float64())
			}
			for q := range queries / 2 {
				at.Queries, at.Pos = append(at.Queries, row(queryRoot)...), append(at.Pos, (7*q+w)%64)
			}
			x.Windows = append(x.Windows, at)
		}
		out[i] = x
	}
	return m, out
}

// TestShapeGradient: the gradient is what differences give, of both terms.
func TestShapeGradient(t *testing.T) {
	const d = 64
	for _, pairs := range []rope.Layout{rope.Half, rope.Interleaved} {
		r := rand.New(rand.NewPCG(7, 1))
		m, x := shapeCase(t, r, d, 300, 300, pairs)
		for _, kappa := range []float64{1e-9, 1, 1e3} {
			p, err := newBlockObjective(t.Context(), m, x[0], RefineOptions{Cache: CacheRow{Type: gguf.TypeQ4_0, Hadamard: 64},
				Penalty: kappa})
			if err != nil {
				t.Fatal(err)
			}
			c := linalg.Identity(d)
			for i := range c {
				c[i] += 0.02 * r.NormFloat64()
			}
			_, g := p.value(t.Context(), c)
			if share := p.drift / (p.drift + p.noise); kappa > 1 && share < 0.9 || kappa < 1 && share > 0.1 {
				t.Errorf("drift weight %g: drift is %.3g of the objective", kappa, share)
			}
			for range 20 {
				dir := make([]float64, d*d)
				for i := range dir {
					dir[i] = r.NormFloat64()
				}
				const h = 1e-3 // products with keys are float32
				up, down := append([]float64(nil), c...), append([]float64(nil), c...)
				for i, v := range dir {
					up[i] += h * v
					down[i] -= h * v
				}
				fu, _ := p.value(t.Context(), up)
				fd, _ := p.value(t.Context(), down)
				got, want := (fu-fd)/(2*h), linalg.Dot(g, dir)
				// A random direction has about the norm of g as its slope.
				if math.Abs(got-want) > 0.02*linalg.Norm(g) {
					t.Errorf("%v, drift weight %g: slope %g, differences give %g", pairs, kappa, want, got)
				}
			}
		}
	}
}

// TestShapeMix: the error that a type makes in scores falls, also of keys that were
// not fitted; what RoPE makes of the mix is kept small by its weight; and the matrices of keys and
// queries are inverse.
func TestShapeMix(t *testing.T) {
	const d, n, queries = 64, 1000, 1000
	for _, row := range []CacheRow{{Type: gguf.TypeQ4_0, Hadamard: 64}, {Type: gguf.TypeQ5_1, Hadamard: 32}} {
		r := rand.New(rand.NewPCG(5, 9))
		m, x := shapeCase(t, r, d, n, queries, rope.Half)
		loss := func(m *KeyTransform, x *RefineSample) (noise, drift float64) {
			p, err := newBlockObjective(t.Context(), m, x, RefineOptions{Cache: row, Penalty: 1})
			if err != nil {
				t.Fatal(err)
			}
			p.value(t.Context(), linalg.Identity(d))
			return p.noise, p.drift // noise is the real error, at C = 1
		}
		var costs []float64
		for _, kappa := range []float64{0.1, 10} {
			got, err := RefineKeyTransform(t.Context(), m, x[0], RefineOptions{Cache: row, Penalty: kappa})
			if err != nil {
				t.Fatal(err)
			}
			n0, d0 := loss(m, x[0])
			n1, d1 := loss(got, x[0])
			h0, e0 := loss(m, x[1])
			h1, e1 := loss(got, x[1])
			t.Logf("%v, drift weight %g: fitted %.4g to %.4g, others %.4g to %.4g; drift %.4g to %.4g, others %.4g to %.4g", row,
				kappa, n0, n1, h0, h1, d0, d1, e0, e1)
			if !(n1+kappa*d1 < n0+kappa*d0) || !(h1+kappa*e1 < h0+kappa*e0) {
				t.Errorf("%v: error of fitted keys %g to %g, of others %g to %g; drift %g to %g and %g to %g", row, n0, n1, h0, h1,
					d0, d1, e0, e1)
			}
			costs = append(costs, got.Cost)
			id := linalg.Product(linalg.Transpose(got.Query, d), got.Key, d)
			for i := range d {
				id[i*d+i]--
			}
			if e := linalg.Norm(id); !(e < 1e-8) {
				t.Errorf("%v: keys' and queries' matrices are %g from inverse", row, e)
			}
		}
		if !(costs[1] < costs[0]/2) {
			t.Errorf("%v: drift of %g with a small weight, %g with a hundred times as much", row, costs[0], costs[1])
		}
	}
}

// TestShapeGolden: the same bits on every tier of the kernels and every machine.
func TestShapeGolden(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 1))
	m, x := shapeCase(t, r, 64, 200, 100, rope.Half)
	got, err := RefineKeyTransform(t.Context(), m, x[0], RefineOptions{Cache: CacheRow{Type: gguf.TypeQ4_0, Hadamard: 64},
		Penalty: 1})
	if err != nil {
		t.Fatal(err)
	}
	ones := &PairRotation{Scale: slices.Repeat([]float32{1}, 32)}
	tuned, err := TunePairScale(t.Context(), []*KeySample{&x[0].KeySample, &x[1].KeySample}, ones,
		CacheRow{Type: gguf.TypeQ4_0, Hadamard: 64, Pairs: rope.Interleaved}, true)
	if err != nil {
		t.Fatal(err)
	}
	scales := make([]float64, 32)
	for i, v := range tuned.Turn.Scale {
		scales[i] = float64(v)
	}
	h := sha256.New()
	for _, part := range [][]float64{got.Key, got.Query, {got.Before, got.After, got.Cost}, scales, tuned.Turn.Angle,
		{tuned.Before, tuned.After}} {
		if err := binary.Write(h, binary.LittleEndian, part); err != nil {
			t.Fatal(err)
		}
	}
	if got := fmt.Sprintf("%x", h.Sum(nil)[:8]); got != "fbcf1a2cf256650e" {
		t.Errorf("the digest is %s", got)
	}
}

// valueError is the error behind W_O that a cache makes of the values of a sample, mixed by m.
func valueError(t *testing.T, m *KeyTransform, x *RefineSample, row CacheRow) float64 {
	t.Helper()
	p, err := newBlockObjective(t.Context(), m, x.withoutRoPE(), RefineOptions{Cache: row, Penalty: 1})
	if err != nil {
		t.Fatal(err)
	}
	return p.noise
}

// TestMixValues: the error that a type makes of values falls behind W_O, more than
// with the best scales alone, and also on values that were not fitted.
func TestMixValues(t *testing.T) {
	const d, n = 64, 1000
	row := CacheRow{Type: gguf.TypeQ4_0, Hadamard: 64}
	r := rand.New(rand.NewPCG(8, 8))
	_, x := shapeCase(t, r, d, n, 20, rope.Half)
	m, err := FitValueTransform(t.Context(), &x[0].KeySample, row)
	if err != nil {
		t.Fatal(err)
	}
	loss := func(m *KeyTransform) float64 { return valueError(t, m, x[1], row) }
	none := &KeyTransform{Key: linalg.Identity(d), Query: linalg.Identity(d)}
	before, after := loss(none), loss(m)
	if !(after < before/2) { // these moments are far from round
		t.Errorf("error of values that were not fitted: %g, mixed %g", before, after)
	}
	id := linalg.Product(linalg.Transpose(m.Query, d), m.Key, d)
	for i := range d {
		id[i*d+i]--
	}
	if e := linalg.Norm(id); !(e < 1e-8) {
		t.Errorf("the matrices are %g from inverse", e)
	}
	bad := x[0].KeySample
	bad.Weights = make([]float64, n)
	if _, err := FitValueTransform(t.Context(), &bad, row); err == nil {
		t.Error("values that no query looks at were accepted")
	}
}

// TestValueRotation: an orthogonal matrix lowers the error that a type makes of values behind W_O, less
// than any matrix could, and it is orthogonal.
func TestValueRotation(t *testing.T) {
	const d, n = 64, 600
	row := CacheRow{Type: gguf.TypeQ4_0, Hadamard: 64}
	r := rand.New(rand.NewPCG(8, 8))
	_, x := shapeCase(t, r, d, n, 20, rope.Half)
	m, err := FitValueRotation(t.Context(), &x[0].KeySample, row)
	if err != nil {
		t.Fatal(err)
	}
	loss := func(m *KeyTransform) float64 { return valueError(t, m, x[1], row) }
	before, after := loss(&KeyTransform{Key: linalg.Identity(d), Query: linalg.Identity(d)}), loss(m)
	if !(after < 0.95*before) || !(m.After < m.Before) {
		t.Errorf("error of values that were not fitted: %g, rotated %g", before, after)
	}
	t.Logf("error of values that were not fitted: %g, rotated %g", before, after)
	id := linalg.Product(linalg.Transpose(m.Key, d), m.Key, d)
	for i := range d {
		id[i*d+i]--
	}
	if e := linalg.Norm(id); !(e < 1e-9) || !m.orthogonal() {
		t.Errorf("the matrix is %g from orthogonal", e)
	}
}

// TestShapeMixRefuses: no types without blocks, no samples that fit nothing.
func TestShapeMixRefuses(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 9))
	m, samples := shapeCase(t, r, 64, 10, 20, rope.Half)
	o := RefineOptions{Cache: CacheRow{Type: gguf.TypeQ4_0}, Penalty: 1}
	for what, change := range map[string]func(x *RefineSample, o *RefineOptions){
		"a type without blocks":       func(_ *RefineSample, o *RefineOptions) { o.Cache.Type = gguf.TypeF16 },
		"no drift weight":             func(_ *RefineSample, o *RefineOptions) { o.Penalty = 0 },
		"keys without positions":      func(x *RefineSample, _ *RefineOptions) { x.Pos = x.Pos[:9] },
		"a position beyond the table": func(x *RefineSample, _ *RefineOptions) { x.Pos = append([]int{64}, x.Pos[1:]...) },
		"keys that no query looks at": func(x *RefineSample, _ *RefineOptions) {
			x.Weights = make([]float64,
				len(x.Weights))
		},
		"a window beyond the keys": func(x *RefineSample, _ *RefineOptions) {
			x.Windows = append([]QueryWindow(nil), x.Windows...)
			x.Windows[1].To++
		},
		"a window without counts": func(x *RefineSample, _ *RefineOptions) {
			x.Windows = append([]QueryWindow(nil), x.Windows...)
			x.Windows[0].Counts = nil
		},
		"queries beyond the table": func(x *RefineSample,
			_ *RefineOptions) {
			x.Table = rope.NewTable(rope.Params{Dim: 64, Theta: 1e4}, 62)
		},
		"scores without a positive scale": func(x *RefineSample, _ *RefineOptions) { x.Scale = math.NaN() },
	} {
		x, o := *samples[0], o
		change(&x, &o)
		if _, err := RefineKeyTransform(t.Context(), m, &x, o); err == nil {
			t.Errorf("%s: accepted", what)
		}
	}
	if _, err := RefineKeyTransform(t.Context(), m, samples[0], o); err != nil {
		t.Errorf("as it is: %v", err)
	}
}
