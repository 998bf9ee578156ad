package kvcache

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/kernels/rope"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// codedConfig is a model with one head of d numbers.
func codedConfig(layers, d int) *family.Config {
	params := rope.Params{Theta: 10000, Dim: d}
	c := &family.Config{Family: &family.Family{}, Pairs: rope.Half}
	for l := range layers {
		c.Layers = append(c.Layers, family.Layer{Attention: family.Attention{
			HeadShape: family.HeadShape{Heads: 1, KVHeads: 1, HeadDim: d, ValueDim: d}, Owner: l, Rope: params,
		}})
	}
	return c
}

func normals(r *rand.Rand, n int) []float32 {
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(r.NormFloat64())
	}
	return x
}

// TestExceptions: scores of a cache with exceptions are those of a runtime, which
// adds what exceptions give, in the frame of each key's block, to what signs give;
// more exceptions lose less; one layer alone can be coded.
func TestExceptions(t *testing.T) {
	const d, T, sink, anchor = 32, 70, 3, 16
	cfg := codedConfig(2, d)
	r := rand.New(rand.NewPCG(1, 2))
	code, err := codec.DataFree("srht", d, 1, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	keys, q := normals(r, T*d), normals(r, d)
	table := rope.NewTable(cfg.Layers[0].Rope, T)
	last := math.Inf(1)
	for _, per := range []int{0, 1, 4, 16} {
		cache, err := NewCodes(cfg, [][]*codec.Code{{code}, {code}}, Policy{Anchor: anchor, Sink: sink, Exceptions: per})
		if err != nil {
			t.Fatal(err)
		}
		s, err := cache.Keys(0, 0, append([]float32(nil), keys...))
		if err != nil {
			t.Fatal(err)
		}
		got := make([]float32, T)
		s.Score(refmodel.Tile{Dst: got, LD: T, Q: q, LDQ: d, Rows: 1, Pos: T - 1, To: T})
		var lost float64
		for n := sink; n < T; n++ {
			k, turned := append([]float32(nil), keys[n*d:(n+1)*d]...), append([]float32(nil), q...)
			table.ApplyInverse(k, n-n%anchor, cfg.Pairs)
			table.ApplyInverse(turned, n-n%anchor, cfg.Pairs)
			words, hat := make([]uint32, code.Words()), make([]float32, d)
			alpha := code.EncodeKey(k, words)
			code.DecodeKey(hat, words, alpha)
			x, err := codec.Except(k, hat, d, per)
			if err != nil {
				t.Fatal(err)
			}
			x.Add(hat, d)
			var want, exact float64
			for j, v := range turned {
				want += float64(v) * float64(hat[j])
				exact += float64(v) * float64(k[j])
			}
			// The cache turns decoded keys forth again, in float32.
			if math.Abs(float64(got[n])-want) > 1e-4 {
				t.Fatalf("%d exceptions, key %d: score %g, want %g", per, n, got[n], want)
			}
			lost += (want - exact) * (want - exact)
		}
		if lost >= last {
			t.Errorf("%d exceptions: squared error of scores %g, with fewer %g", per, lost, last)
		}
		last = lost
		if s, err := cache.Only(1).Keys(0, 0, append([]float32(nil), keys...)); s != nil || err != nil {
			t.Errorf("a layer that is not coded has a scorer (%v)", err)
		}
		if s, err := cache.Only(1).Keys(1, 0, append([]float32(nil), keys...)); s == nil || err != nil {
			t.Errorf("the layer that is coded has none (%v)", err)
		}
		if b := cache.Policy.KeyBytes(code); b != 4+2+3*per {
			t.Errorf("%d exceptions: %d bytes a key", per, b)
		}
	}
	for _, bad := range []Policy{{Exceptions: 17}, {Exceptions: -1}, {Sink: -1}} {
		if _, err := NewCodes(cfg, [][]*codec.Code{{code}, {code}}, bad); err == nil {
			t.Errorf("%+v is accepted", bad)
		}
	}
}
