package refmodel

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/phaseconv/phaseconv/format/family"
)

// randomAttention returns queries, keys and values with scores of several units,
// so that softmax is neither flat nor a choice of one key.
func randomAttention(c *family.Config, T, windows int) *Attention {
	r := rand.New(rand.NewPCG(uint64(T), uint64(windows)))
	fill := func(heads int) []float32 {
		x := make([]float32, T*windows*heads*c.Layers[0].HeadDim)
		for i := range x {
			x[i] = float32(1.5 * r.NormFloat64())
		}
		return x
	}
	return &Attention{T: T, Windows: windows, Q: fill(c.Layers[0].Heads), K: fill(c.Layers[0].KVHeads),
		V: fill(c.Layers[0].KVHeads)}
}

// plain returns a layer of query and KV heads, with a window if not 0.
func plain(heads, kvHeads, d, window int) *family.Config {
	y := family.Layer{Attention: family.Attention{
		HeadShape: family.HeadShape{Heads: heads, KVHeads: kvHeads, HeadDim: d, ValueDim: d},
		Scale:     1 / math.Sqrt(float64(d)), Window: window,
	}}
	return &family.Config{Layers: []family.Layer{y}}
}

func attentionConfig(sliding bool) *family.Config {
	if sliding {
		return plain(6, 2, 32, 37)
	}
	return plain(6, 2, 32, 0)
}

// exactAttention is attention in float64, row by row as in a textbook.
func exactAttention(c *family.Config, a *Attention, window, head, i int) (p, o []float64, lo int) {
	d := c.Layers[0].HeadDim
	at := func(x []float32, heads, row, h int) []float32 {
		return x[((window*a.T+row)*heads+h)*d:][:d]
	}
	if w := c.Layers[a.Layer].Window; w > 0 {
		lo = max(0, i-w+1)
	}
	kv := head / c.Layers[0].Group()
	q := at(a.Q, c.Layers[0].Heads, i, head)
	var sum float64
	for j := lo; j <= i; j++ {
		var s float64
		for k, v := range at(a.K, c.Layers[0].KVHeads, j, kv) {
			s += float64(q[k]) * float64(v)
		}
		p = append(p, math.Exp(s*c.Layers[0].Scale))
		sum += p[len(p)-1]
	}
	o = make([]float64, d)
	for j := range p {
		p[j] /= sum
		for k, v := range at(a.V, c.Layers[0].KVHeads, lo+j, kv) {
			o[k] += p[j] * float64(v)
		}
	}
	return p, o, lo
}

func TestAttend(t *testing.T) {
	for _, sliding := range []bool{false, true} {
		c := attentionConfig(sliding)
		// One query; less, as many and more than a block of queries; many windows.
		for _, size := range [][2]int{{1, 1}, {63, 1}, {64, 2}, {65, 1}, {200, 1}, {100, 9}} {
			T, windows := size[0], size[1]
			a := randomAttention(c, T, windows)
			var first []float32
			for _, threads := range []int{1, 2, 3, 7, 40} {
				m := &Model{Config: c, Threads: threads}
				o := make([]float32, len(a.Q))
				if err := m.attend(t.Context(), o, a, nil, nil); err != nil {
					t.Fatal(err)
				}
				if first == nil {
					first = o
				}
				for i := range o {
					if math.Float32bits(o[i]) != math.Float32bits(first[i]) {
						t.Fatalf("T %d, %d windows: %d threads change number %d from %v to %v", T, windows, threads, i, first[i], o[i])
					}
				}
			}
			d := c.Layers[0].HeadDim
			for w := range windows {
				for h := range c.Layers[0].Heads {
					a.Probabilities(c, w, h, func(i, lo int, p []float32) {
						wantP, wantO, wantLo := exactAttention(c, a, w, h, i)
						if lo != wantLo || len(p) != len(wantP) {
							t.Fatalf("T %d, query %d: probabilities of keys %d to %d, want %d to %d", T, i, lo, lo+len(p), wantLo,
								wantLo+len(wantP))
						}
						for j := range p {
							// Scores below 30 in magnitude, each sum and exponential good to 2^-20.
							if math.Abs(float64(p[j])-wantP[j]) > 3e-5*wantP[j]+1e-12 {
								t.Fatalf("T %d, window %d, head %d, query %d, key %d: probability %v, want %v", T, w, h, i, lo+j, p[j],
									wantP[j])
							}
						}
						for k, v := range first[((w*T+i)*c.Layers[0].Heads+h)*d:][:d] {
							if math.Abs(float64(v)-wantO[k]) > 1e-4 {
								t.Fatalf("T %d, window %d, head %d, query %d: output %v, want %v", T, w, h, i, v, wantO[k])
							}
						}
					})
				}
			}
		}
	}
}

// TestScoreBlock: a block of scores does not grow with the square of the context
// and always has whole rows.
func TestScoreBlock(t *testing.T) {
	for _, T := range []int{1, 64, 511, 512, 2048, 8176, 8192, 1 << 17} {
		rows, ld := queryRows(T), scoreStride(T)
		if rows < minQueryRows || rows > maxQueryRows || ld < T {
			t.Errorf("T %d: %d rows at distance %d", T, rows, ld)
		}
		if ld/16%2 == 0 {
			t.Errorf("T %d: rows at distance %d share a set of the cache", T, ld)
		}
		if rows > minQueryRows && rows*T > scoreFloats {
			t.Errorf("T %d: %d rows of scores", T, rows)
		}
	}
}

// BenchmarkAttend gives the speed of attention in GFLOP/s, with the multiplications
// that a causal mask leaves.
func BenchmarkAttend(b *testing.B) {
	for _, T := range []int{512, 2048, 8192} {
		b.Run(fmt.Sprintf("T=%d", T), func(b *testing.B) {
			c := plain(3, 1, 64, 0)
			a := randomAttention(c, T, 1)
			m := &Model{Config: c, Threads: 1}
			o := make([]float32, len(a.Q))
			for b.Loop() {
				if err := m.attend(b.Context(), o, a, nil, nil); err != nil {
					b.Fatal(err)
				}
			}
			flop := 2 * float64(T) * float64(T) * float64(c.Layers[0].HeadDim*c.Layers[0].Heads)
			b.ReportMetric(flop*float64(b.N)/b.Elapsed().Seconds()/1e9, "GFLOP/s")
		})
	}
}
