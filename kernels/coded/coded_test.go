package coded

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/phaseconv/phaseconv/kernels/onebit"
	"github.com/phaseconv/phaseconv/kernels/rope"
)

func normals(r *rand.Rand, n int) []float32 {
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(r.NormFloat64())
	}
	return x
}

// group is a random code over heads, and tokens in it.
type group struct {
	b, d         int
	heads        []int
	keys, values []Matrix
	signs        [][]uint32
	alpha        []uint16
}

func random(r *rand.Rand, b, d int, heads []int, n int) *group {
	g := &group{b: b, d: d, heads: heads}
	for _, h := range heads {
		g.keys = append(g.keys, Matrix{h, normals(r, d), normals(r, b*d)})
		g.values = append(g.values, Matrix{h, normals(r, d), normals(r, b*d)})
	}
	for range n {
		w := make([]uint32, onebit.Words(b))
		for i := range w {
			w[i] = r.Uint32()
		}
		g.signs = append(g.signs, w)
		g.alpha = append(g.alpha, uint16(0x2c00+r.IntN(0x400))) // 1/16 to 1/8
	}
	return g
}

func (g *group) cache(t *testing.T, anchor int, table *rope.Table, pairs rope.Layout) *Cache {
	t.Helper()
	code, err := NewCode(g.b, g.keys, g.values)
	if err != nil {
		t.Fatal(err)
	}
	c, err := NewCache(code, anchor, table, pairs)
	if err != nil {
		t.Fatal(err)
	}
	for i, w := range g.signs {
		c.Append(w, g.alpha[i])
	}
	return c
}

// decode returns what token n stands for in a part, exactly but for float64.
func (g *group) decode(m Matrix, n int) []float64 {
	x := make([]float64, g.d)
	for i := range g.b {
		s := float64(2*int(g.signs[n][i/32]>>(i%32)&1) - 1)
		for j := range x {
			x[j] += s * float64(m.Decode[i*g.d+j])
		}
	}
	alpha := math.Ldexp(float64(g.alpha[n]&0x3ff|0x400), int(g.alpha[n]>>10)-25)
	for j := range x {
		x[j] = float64(m.Mean[j]) + alpha*x[j]
	}
	return x
}

// TestExact holds scores and sums against decoded tokens in float64. What remains is the
// rounding of queries and weights, see package onebit.
func TestExact(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	params := rope.Params{Theta: 10000, Dim: 32}
	for _, x := range []struct {
		b, anchor, group int
		heads            []int
		n                int
	}{
		{96, 64, 3, []int{0, 1, 2}, 700},
		{40, 16, 1, []int{0, 2, 3}, 130},
		{192, 0, 2, []int{1}, 257},
		{64, 128, 4, []int{0, 1}, 1},
	} {
		const d = 32
		g := random(r, x.b, d, x.heads, x.n)
		table := rope.NewTable(params, x.n)
		c := g.cache(t, x.anchor, table, rope.Half)
		H := (slices.Max(x.heads) + 1) * x.group
		q, ld := normals(r, H*d), x.n+3
		dst := make([]float32, H*ld)
		var w Worker
		w.Scores(dst, ld, c, q, x.group, 0, x.n)
		p := make([]float32, H*ld)
		for i := range p {
			p[i] = float32(math.Exp(2 * r.NormFloat64()))
		}
		out := make([]float32, H*d)
		w.Sums(out, c, p, ld, x.group, 0, x.n)
		for i, k := range x.heads {
			var off, all float64
			sums, sizes := make([][]float64, x.group), 0.0
			for a := range sums {
				sums[a] = make([]float64, d)
			}
			for n := range x.n {
				key, value := g.decode(g.keys[i], n), g.decode(g.values[i], n)
				for a := range x.group {
					h := k*x.group + a
					turned := slices.Clone(q[h*d : (h+1)*d])
					if x.anchor > 0 {
						table.ApplyInverse(turned, n-n%x.anchor, rope.Half)
					}
					var want float64
					for j, v := range turned {
						want += float64(v) * key[j]
						sums[a][j] += float64(p[h*ld+n]) * value[j]
					}
					e := float64(dst[h*ld+n]) - want
					off, all = off+e*e, all+want*want
				}
			}
			if e := math.Sqrt(off / all); !(e < 1.5e-3) {
				t.Errorf("%+v, head %d: scores off by %.2g of their size", x, k, e)
			}
			off, all = 0, 0
			for a := range x.group {
				for j, want := range sums[a] {
					e := float64(out[(k*x.group+a)*d+j]) - want
					off, all, sizes = off+e*e, all+want*want, sizes+1
				}
			}
			if e := math.Sqrt(off / all); !(e < 1.5e-3) {
				t.Errorf("%+v, head %d: sums off by %.2g of their size", x, k, e)
			}
		}
		// Heads that the group does not have are not touched.
		for h := range H {
			if !slices.Contains(x.heads, h/x.group) &&
				slices.ContainsFunc(dst[h*ld:(h+1)*ld], func(v float32) bool { return v != 0 }) {
				t.Errorf("%+v: scores of head %d", x, h)
			}
		}
	}
}

// TestRanges: ranges give the bits of one call, scores at any block of 16.
func TestRanges(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 1))
	const d, n, group, heads = 32, 500, 3, 2
	g := random(r, 96, d, []int{0, 1}, n)
	c := g.cache(t, 64, rope.NewTable(rope.Params{Theta: 10000, Dim: d}, n), rope.Half)
	q := normals(r, heads*group*d)
	one, parts := make([]float32, heads*group*n), make([]float32, heads*group*n)
	var w Worker
	w.Scores(one, n, c, q, group, 0, n)
	for from := 0; from < n; from += 48 {
		w.Scores(parts, n, c, q, group, from, min(n, from+48))
	}
	if !slices.Equal(one, parts) {
		t.Error("ranges give other scores")
	}
}

// TestUnused: signs whose rows are zero for all keys, or all values, are left out, and not a bit changes.
func TestUnused(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 1))
	const d, n, group, heads, b = 32, 500, 3, 2, 200
	g := random(r, b, d, []int{0, 1}, n)
	for h := range heads {
		clear(g.keys[h].Decode[130*d:])
		clear(g.values[h].Decode[:70*d])
	}
	code, err := NewCode(b, g.keys, g.values)
	if err != nil {
		t.Fatal(err)
	}
	keys, values := onebit.Range{B: b, To: 160}, onebit.Range{B: b, From: 64, To: b}
	if code.keySigns != keys || code.valueSigns != values {
		t.Fatalf("signs %v of keys, %v of values; want %v and %v", code.keySigns, code.valueSigns, keys, values)
	}
	whole := newCode(g.keys, g.values, onebit.All(b), onebit.All(b))
	table := rope.NewTable(rope.Params{Theta: 10000, Dim: d}, n)
	q := normals(r, heads*group*d)
	var scores, sums [2][]float32
	for i, code := range []*Code{code, whole} {
		c, err := NewCache(code, 64, table, rope.Half)
		if err != nil {
			t.Fatal(err)
		}
		for i, w := range g.signs {
			c.Append(w, g.alpha[i])
		}
		scores[i], sums[i] = make([]float32, heads*group*n), make([]float32, heads*group*d)
		var w Worker
		w.Scores(scores[i], n, c, q, group, 0, n)
		w.Sums(sums[i], c, scores[i], n, group, 0, n)
	}
	if !slices.Equal(scores[0], scores[1]) || !slices.Equal(sums[0], sums[1]) {
		t.Error("other scores or sums than with all signs")
	}
	// Nothing of a matrix but zeros: no scores but the mean's, and no fault.
	for h := range heads {
		clear(g.keys[h].Decode)
	}
	c := g.cache(t, 64, table, rope.Half)
	new(Worker).Scores(scores[0], n, c, q, group, 0, n)
}

func TestCacheBytes(t *testing.T) {
	g := random(rand.New(rand.NewPCG(3, 1)), 40, 32, []int{0}, 17)
	c := g.cache(t, 0, nil, rope.Half)
	if c.Len() != 17 || c.Bytes() != 4*2*16*2+2*17 {
		t.Errorf("%d tokens, %d bytes", c.Len(), c.Bytes())
	}
}

func TestRefusals(t *testing.T) {
	m := func(head int) Matrix { return Matrix{head, make([]float32, 8), make([]float32, 16*8)} }
	if _, err := NewCode(16, []Matrix{m(0), m(1)}, []Matrix{m(1)}); err != nil {
		t.Error(err)
	}
	for name, f := range map[string]func() error{
		"12 signs":       func() error { _, err := NewCode(12, nil, nil); return err },
		"too many signs": func() error { _, err := NewCode(onebit.MaxBits+8, nil, nil); return err },
		"order":          func() error { _, err := NewCode(16, []Matrix{m(1), m(1)}, nil); return err },
		"matrix":         func() error { _, err := NewCode(24, nil, []Matrix{m(0)}); return err },
		"anchor":         func() error { _, err := NewCache(new(Code), 24, new(rope.Table), rope.Half); return err },
		"no table":       func() error { _, err := NewCache(new(Code), 16, nil, rope.Half); return err },
	} {
		if f() == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
