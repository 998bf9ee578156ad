package kvcache

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// TestKernels: the kernels score as products with decoded keys do, but for the
// rounding of queries, whatever is kept beside the signs and wherever a call begins.
func TestKernels(t *testing.T) {
	const d, T, rows, ldq = 64, 150, 5, 70
	cfg := codedConfig(1, d)
	r := rand.New(rand.NewPCG(3, 1))
	code, err := codec.DataFree("random", d, 1, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	if code, err = codec.New("cen", d, d, normals(r, d), code.Decode, nil); err != nil {
		t.Fatal(err)
	}
	keys, q, scale := normals(r, T*d), normals(r, rows*ldq), normals(r, d)
	for i, v := range scale {
		scale[i] = float32(math.Exp(float64(v)))
	}
	scorer := func(p Policy, scaled, kernels bool) refmodel.Scorer {
		t.Helper()
		cache, err := NewCodes(cfg, [][]*codec.Code{{code}}, p)
		if err != nil {
			t.Fatal(err)
		}
		if scaled {
			cache.Scale = func(int, int) []float32 { return scale }
		}
		cache.Kernels = kernels
		s, err := cache.Keys(0, 0, append([]float32(nil), keys...))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	for _, p := range []Policy{{}, {Anchor: 16}, {Anchor: 64, Sink: 4}, {Anchor: 32, Sink: 3, Recent: 9, Exceptions: 4},
		{Sink: 200}, {Recent: 40}} {
		for _, scaled := range []bool{false, true} {
			a, b := scorer(p, scaled, false), scorer(p, scaled, true)
			for _, n0 := range []int{0, 7, 70} {
				pos := T - rows
				want, got := make([]float32, rows*T), make([]float32, rows*T)
				tile := refmodel.Tile{Dst: want, LD: T, Q: q, LDQ: ldq, Rows: rows, Pos: pos, From: n0, To: T}
				a.Score(tile)
				tile.Dst = got
				b.Score(tile)
				var off, all float64
				for i := range rows {
					for j := n0; j <= pos+i; j++ {
						w, g := float64(want[i*T+j]), float64(got[i*T+j])
						off, all = off+(g-w)*(g-w), all+w*w
					}
				}
				// The rounding of normal queries, see package onebit; scales spread them.
				most := 1.5e-3
				if scaled {
					most = 5e-3
				}
				if e := math.Sqrt(off / all); e > most {
					t.Errorf("%+v, scaled %v, from key %d: scores differ by %.2g of their size", p, scaled, n0, e)
				}
			}
		}
	}
	cache, err := NewCodes(cfg, [][]*codec.Code{{code}}, Policy{Anchor: 24})
	if err != nil {
		t.Fatal(err)
	}
	cache.Kernels = true
	if _, err := cache.Keys(0, 0, append([]float32(nil), keys...)); err == nil {
		t.Error("anchors that divide blocks of keys are taken")
	}
}
