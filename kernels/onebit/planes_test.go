package onebit

import (
	"math/rand/v2"
	"testing"

	"github.com/phaseconv/phaseconv/kernels/internal/impl"
)

// sample returns n random keys of b bits with their scales, and heads queries.
func sample(r *rand.Rand, n, b, heads int) (bits []uint32, scales []uint16, q []float32) {
	bits, scales, q = make([]uint32, Len(n, b)), make([]uint16, n), make([]float32, heads*b)
	for i := range bits {
		bits[i] = r.Uint32()
	}
	for i := range scales {
		scales[i] = half(r)
	}
	for i := range q {
		q[i] = float32(r.NormFloat64())
	}
	return bits, scales, q
}

func TestAdd(t *testing.T) {
	impl.TestAll(t, "onebit", func(t *testing.T) {
		r := rand.New(rand.NewPCG(5, 5))
		for _, n := range []int{1, 16, 255, 256, 257, 700} {
			const b, heads = 96, 3
			bits, scales, q := sample(r, n, b, heads)
			var tab Tables
			tab.Build(q, b, heads, b)
			stride := n + 1
			plane, got := make([]float32, heads*stride), make([]float32, heads*stride)
			Score(plane, stride, &tab, bits, scales, n, nil)
			for i := range got {
				got[i] = float32(i)
			}
			Add(got, stride, &tab, bits, scales, n)
			for i, v := range got {
				want := float32(i)
				if i%stride < n {
					want += plane[i]
				}
				if v != want {
					t.Fatalf("n %d, number %d: got %v, want %v", n, i, v, want)
				}
			}
		}
	})
}

func TestScoreAnchored(t *testing.T) {
	impl.TestAll(t, "onebit", func(t *testing.T) {
		r := rand.New(rand.NewPCG(6, 6))
		for _, anchor := range []int{16, 64, 112} {
			for _, n := range []int{1, 64, 200} {
				const b, heads = 64, 2
				blocks := (n + anchor - 1) / anchor
				bits, scales, q := sample(r, n, b, blocks*heads)
				offsets := make([]float32, blocks*heads)
				for i := range offsets {
					offsets[i] = float32(i)
				}
				var tab Tables
				got := make([]float32, heads*n)
				ScoreAnchored(got, n, &tab, q, heads, b, anchor, bits, scales, n, offsets)
				one := make([]float32, n)
				for h := range heads {
					for k := range blocks {
						i := k*heads + h
						tab.Build(q[i*b:], b, 1, b)
						Score(one, n, &tab, bits, scales, n, offsets[i:i+1])
						for j := k * anchor; j < min(n, (k+1)*anchor); j++ {
							if got[h*n+j] != one[j] {
								t.Fatalf("anchor %d, n %d, head %d, key %d: got %v, want %v", anchor, n, h, j, got[h*n+j], one[j])
							}
						}
					}
				}
			}
		}
	})
}

func TestAddExceptions(t *testing.T) {
	q := []float32{1, 2, 4, 8}
	out := []float32{100, 200, 300}
	// 0x3c00 is 1, 0xc000 is -2, 0x3800 is 0.5.
	AddExceptions(out, q, []uint8{0, 3, 2, 2}, []uint16{0x3c00, 0xc000, 0x3800, 0x3c00}, 2, 2)
	if want := []float32{100 + 1 - 16, 200 + 2 + 4, 300}; out[0] != want[0] || out[1] != want[1] || out[2] != want[2] {
		t.Errorf("got %v, want %v", out, want)
	}
	for name, f := range map[string]func(){
		"coordinate":   func() { AddExceptions(out, q, []uint8{0, 4}, make([]uint16, 2), 1, 2) },
		"short values": func() { AddExceptions(out, q, []uint8{0, 0}, make([]uint16, 1), 1, 2) },
		"anchor":       func() { ScoreAnchored(out, 3, new(Tables), q, 1, 8, 24, nil, nil, 1, nil) },
		"few queries": func() {
			ScoreAnchored(out, 3, new(Tables), q, 1, 8, 16, make([]uint32, 16), make([]uint16, 3), 3,
				nil)
		},
		"planes short": func() {
			var tab Tables
			tab.Build(make([]float32, 8), 8, 1, 8)
			Add(out, 3, &tab, make([]uint32, 16), make([]uint16, 2), 3)
		},
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			f()
		}()
	}
	if out[1] != 206 {
		t.Error("written before the panic")
	}
}
