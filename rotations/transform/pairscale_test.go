package transform

import (
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/internal/keydata"
	"github.com/phaseconv/phaseconv/kernels/linalg"
	"github.com/phaseconv/phaseconv/kernels/rope"
)

var layouts = []rope.Layout{rope.Half, rope.Interleaved}

// energyOf sums random tokens of two KV heads with three query heads each.
func energyOf(r *rand.Rand, d int, pairs rope.Layout) (e *PairEnergy, q, k []float32) {
	const heads, group, n = 2, 3, 200
	e = NewPairEnergy(heads, d)
	for range n {
		tq, tk := keydata.Normal(r, heads*group*d), keydata.Normal(r, heads*d)
		for p := range d / 2 {
			i, j := pairs.Dims(p, d)
			for h := range heads {
				s := float32(math.Exp2(float64(p%7 - 3 + h)))
				tk[h*d+i] *= s
				tk[h*d+j] *= s
			}
		}
		e.Add(tq, tk, group, pairs)
		q, k = append(q, tq...), append(k, tk...)
	}
	return e, q, k
}

// TestBalanceScores: keys times the scale and queries over it give the scores of
// before, in both pair layouts and for every query head of a group, and RoPE does
// not mind, because both numbers of a pair are scaled alike.
func TestBalanceScores(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	const d, heads, group = 16, 2, 3
	for _, pairs := range layouts {
		e, q, k := energyOf(r, d, pairs)
		table := rope.NewTable(rope.Params{Theta: 10000, Dim: d}, 50)
		b := e.PairScale(false)
		if err := b.Check(heads, d); err != nil {
			t.Fatal(err)
		}
		moved := false
		for tok := range 40 {
			for h := range heads {
				ks, qs := b.KeyScale(h, d, pairs), b.QueryScale(h, d, pairs)
				for g := range group {
					x := append([]float32(nil), q[(tok*heads*group+h*group+g)*d:][:d]...)
					y := append([]float32(nil), k[(tok*heads+h)*d:][:d]...)
					xs, ys := append([]float32(nil), x...), append([]float32(nil), y...)
					for i := range d {
						xs[i] *= qs[i]
						ys[i] *= ks[i]
						moved = moved || ks[i] != 1
					}
					for _, v := range [][]float32{x, xs} {
						table.Apply(v, tok+5, pairs)
					}
					for _, v := range [][]float32{y, ys} {
						table.Apply(v, tok, pairs)
					}
					a, s := linalg.Dot64(x, y), linalg.Dot64(xs, ys)
					// The scale, its inverse and each product round once; RoPE too.
					tol := 8e-7 * math.Sqrt(linalg.Dot64(x, x)*linalg.Dot64(y, y)) * 4
					if !(math.Abs(a-s) <= tol) {
						t.Errorf("%v, head %d, query %d: score %g becomes %g", pairs, h, g, a, s)
					}
					// The check can fail: with the other layout's scales the scores differ.
					wrong := b.KeyScale(h, d, other(pairs))
					for i := range d {
						ys[i] = k[(tok*heads+h)*d+i] * wrong[i]
					}
					table.Apply(ys, tok, pairs)
					if tok == 0 && math.Abs(a-linalg.Dot64(xs, ys)) <= tol {
						t.Errorf("%v: scales of the other layout change nothing", pairs)
					}
				}
			}
		}
		if !moved {
			t.Error("all scales are one")
		}
	}
}

// TestBalanceOptimum: the scales minimise E|k|^2 E|q|^2 of each head: no change of
// one scale, nor of all, makes it smaller.
func TestBalanceOptimum(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 2))
	const d = 16
	for _, perLayer := range []bool{false, true} {
		e, _, _ := energyOf(r, d, rope.Half)
		b := e.PairScale(perLayer)
		// cost of a head, or of the sum of heads that share a scale.
		cost := func(h int, s []float32) float64 {
			var k, q float64
			for p := range d / 2 {
				t2 := float64(s[p]) * float64(s[p])
				for head := range e.Heads {
					if head == h || perLayer {
						k += e.k[head*d/2+p] / e.nk * t2
						q += e.q[head*d/2+p] / e.nq / t2
					}
				}
			}
			return k * q
		}
		for h, s := range b.Scale {
			best := cost(h, s)
			one := make([]float32, d/2)
			for p := range one {
				one[p] = 1
			}
			if !(best < 0.9*cost(h, one)) {
				t.Errorf("per layer %v, head %d: balanced %g, as it was %g", perLayer, h, best, cost(h, one))
			}
			for p := range s {
				for _, f := range []float32{0.5, 0.9, 0.99, 1.01, 1.1, 2} {
					o := append([]float32(nil), s...)
					o[p] *= f
					if c := cost(h, o); !(c > best*(1+1e-9)) {
						t.Errorf("per layer %v, head %d: pair %d times %g lowers the cost from %g to %g", perLayer, h, p, f, best, c)
					}
				}
			}
			for range 200 {
				o := append([]float32(nil), s...)
				for p := range o {
					o[p] *= float32(math.Exp2(float64(keydata.Normal(r, 1)[0]) / 4))
				}
				if c := cost(h, o); !(c > best*(1-1e-6)) {
					t.Errorf("per layer %v, head %d: scales %v cost %g, the balance %g", perLayer, h, o, c, best)
				}
			}
			if perLayer && h > 0 {
				for p := range s {
					if s[p] != b.Scale[0][p] {
						t.Errorf("pair %d: heads have scales %g and %g", p, b.Scale[0][p], s[p])
					}
				}
			}
		}
		if b.PerLayer != perLayer {
			t.Error("PerLayer is not what was asked for")
		}
	}
}

// TestBalanceEdges: pairs without energy on one side stay as they are, and no
// scale leaves the bounds.
func TestBalanceEdges(t *testing.T) {
	e := NewPairEnergy(1, 8)
	e.Add([]float32{1, 0, 1e-20, 1e18, 0, 0, 0, 0}, []float32{0, 1, 1e18, 1e-20, 0, 0, 0, 0}, 1, rope.Half)
	b := e.PairScale(false)
	if s := b.Scale[0]; s[0] != 1 || s[1] != 1 || s[2] != 1.0/maxBalance || s[3] != maxBalance {
		t.Errorf("scales %v", s)
	}
	if err := b.Check(1, 8); err != nil {
		t.Error(err)
	}
	empty := NewPairEnergy(2, 8).PairScale(true) // no tokens
	for _, s := range empty.Scale {
		for _, v := range s {
			if v != 1 {
				t.Errorf("without tokens the scale is %g", v)
			}
		}
	}
	for says, b := range map[string]*PairScale{
		"for 1 of 2 KV heads":    {Scale: [][]float32{{1, 1, 1, 1}}},
		"3 scales for 4 pairs":   {Scale: [][]float32{{1, 1, 1, 1}, {1, 1, 1}}},
		"head 1 has scale 0":     {Scale: [][]float32{{1, 1, 1, 1}, {1, 0, 1, 1}}},
		"head 0 has scale -1":    {Scale: [][]float32{{-1, 1, 1, 1}, {1, 1, 1, 1}}},
		"head 0 has scale NaN":   {Scale: [][]float32{{1, 1, float32(math.NaN()), 1}, {1, 1, 1, 1}}},
		"head 1 has scale +Inf":  {Scale: [][]float32{{1, 1, 1, 1}, {1, 1, 1, float32(math.Inf(1))}}},
		"balance for 0 of 2 KV ": {},
	} {
		if err := b.Check(2, 8); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, want %q", err, says)
		}
	}
}

func other(pairs rope.Layout) rope.Layout {
	if pairs == rope.Half {
		return rope.Interleaved
	}
	return rope.Half
}
