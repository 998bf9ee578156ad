package kvcache

import (
	"math"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// TestFork: forks score the same keys side by side with the bits of the scorer that they
// come from, and sum values if it does.
func TestFork(t *testing.T) {
	const d, T, rows, passes = 64, 300, 20, 90
	r := rand.New(rand.NewPCG(8, 1))
	code, err := codec.DataFree("random", d, 1, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	coded := func(kernels bool) refmodel.Cache {
		c, err := NewCodes(codedConfig(1, d), [][]*codec.Code{{code}}, Policy{Anchor: 32, Sink: 3, Recent: 60, Exceptions: 4})
		if err != nil {
			t.Fatal(err)
		}
		c.Kernels = kernels
		return c
	}
	halved := stock(t, d, "q4_0", "f16", true)
	halved.FloatSums = false
	keys, values, q := normals(r, T*d), normals(r, T*d), normals(r, T*d)
	for name, cache := range map[string]refmodel.Cache{
		"q4_0": stock(t, d, "q4_0", "q4_0", true), "q5_1": stock(t, d, "q5_1", "q8_0", true), "half sums": halved,
		"codes": coded(false), "kernels": coded(true),
	} {
		s, err := cache.Keys(0, 0, append([]float32(nil), keys...))
		if err != nil {
			t.Fatal(err)
		}
		_, sums := s.(refmodel.Summer)
		if sums != (name == "half sums") {
			t.Fatalf("%s: sums values: %v", name, sums)
		}
		// The scores of rows of queries that end at one position, and what they sum up.
		pass := func(s refmodel.Scorer, end int) []float32 {
			pos := end - rows
			out, sum := make([]float32, rows*T), make([]float32, rows*d)
			s.Score(refmodel.Tile{Dst: out, LD: T, Q: q[pos*d:], LDQ: d, Rows: rows, Pos: pos, To: end})
			for i := range rows {
				clear(out[i*T+pos+i+1 : (i+1)*T]) // out of sight, and anything may be there
			}
			if x, ok := s.(refmodel.Summer); ok {
				p := make([]float32, len(out))
				for i, v := range out {
					p[i] = v * v
				}
				x.Sum(sum, d, p, T, values, rows, pos, 0)
			}
			return append(out, sum...)
		}
		var want [passes][]float32
		for i := range want {
			want[i] = pass(s, rows+i*3)
		}
		var wg sync.WaitGroup
		for i := range want {
			wg.Go(func() {
				got := pass(s.Fork(), rows+i*3)
				for j, v := range got {
					if math.Float32bits(v) != math.Float32bits(want[i][j]) {
						t.Errorf("%s: number %d of pass %d is %v in a fork, expected %v", name, j, i, v, want[i][j])
						return
					}
				}
			})
		}
		wg.Wait()
	}
}
