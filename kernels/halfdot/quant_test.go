package halfdot

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/phaseconv/phaseconv/kernels/internal/bench"
	"github.com/phaseconv/phaseconv/kernels/internal/fma32"
	"github.com/phaseconv/phaseconv/kernels/internal/guard"
	"github.com/phaseconv/phaseconv/kernels/internal/impl"
)

// A format is one of the two of blocks.
type format struct {
	name  string
	size  int
	score func(out []float32, q *Query, keys []byte, n int)
	// number returns number i of a block, divided by its factor.
	number func(block []byte, i int) int
}

var formats = []format{
	{"Q8_0", BytesQ8, ScoreQ8, func(b []byte, i int) int { return int(int8(b[2+i])) }},
	{"Q4_0", BytesQ4, ScoreQ4, func(b []byte, i int) int { return int(b[2+i%16]>>(i/16*4)&15) - 8 }},
}

// randomKeys fills blocks with any bytes and finite factors.
func randomKeys(r *rand.Rand, keys []byte, size int) {
	for i := range keys {
		keys[i] = byte(r.Uint32())
	}
	for i := 0; i < len(keys); i += size {
		binary.LittleEndian.PutUint16(keys[i:], randomHalf(r)&^0x4000) // at most 2
	}
}

// define follows the documentation of ScoreQ8 and nothing else.
func (f *format) define(q []float32, key []byte) float32 {
	r := make([]float32, 8)
	for b := 0; b < len(q)/32; b++ {
		x, k := q[b*32:b*32+32], key[b*f.size:(b+1)*f.size]
		var most float64
		for _, v := range x {
			most = math.Max(most, math.Abs(float64(v)))
		}
		d := widen(binary.LittleEndian.Uint16(k)) * (float32(most) / 127)
		for l := range r {
			s := 0
			for i := 4 * l; i < 4*l+4; i++ {
				if most > 0 {
					s += f.number(k, i) * int(math.RoundToEven(float64(float32(x[i]*(127/float32(most))))))
				}
			}
			r[l] = fma32.FMA(float32(s), d, r[l])
		}
	}
	for len(r) > 1 {
		for i := range r[:len(r)/2] {
			r[i] += r[i+len(r)/2]
		}
		r = r[:len(r)/2]
	}
	return r[0]
}

func TestScoreBlocks(t *testing.T) {
	impl.TestAll(t, "halfdot", func(t *testing.T) {
		r := rand.New(rand.NewPCG(3, 3))
		var query Query
		for _, f := range formats {
			for trial, d := range []int{32, 64, 96, 128, 160, 256, 512} {
				for _, n := range []int{0, 1, 2, 19} {
					side := guard.Sides[trial%2]
					q := make([]float32, d)
					for i := range q {
						q[i] = float32(r.NormFloat64())
						if trial == 3 && i/32 == 1 {
							q[i] = 0 // a block of nothing
						}
					}
					keys := guard.Slice[byte](t, n*d/32*f.size, side)
					randomKeys(r, keys, f.size)
					out := guard.Slice[float32](t, n, side)
					query.Set(q)
					f.score(out, &query, keys, n)
					for i, got := range out {
						key := keys[i*d/32*f.size : (i+1)*d/32*f.size]
						if want := f.define(q, key); math.Float32bits(got) != math.Float32bits(want) {
							t.Fatalf("%s: d %d, key %d of %d: got %x, want %x", f.name, d, i, n, got, want)
						}
						// The query is off by at most half a step per number, the rest is rounding.
						var exact, bound float64
						for j, v := range q {
							b := key[j/32*f.size:]
							k := float64(f.number(b, j%32)) * float64(widen(binary.LittleEndian.Uint16(b)))
							exact += float64(v) * k
							bound += math.Abs(k) * (float64(query.blocks[j/32].d[0])*0.5001 + math.Abs(float64(v))*0x1p-20)
						}
						if math.Abs(float64(got)-exact) > bound {
							t.Fatalf("%s: d %d, key %d: got %v, exact %v, bound %v", f.name, d, i, got, exact, bound)
						}
					}
				}
			}
		}
	})
}

// TestExtremeBlocks: the most negative key and the largest query do not saturate,
// and what is not a number shows.
func TestExtremeBlocks(t *testing.T) {
	impl.TestAll(t, "halfdot", func(t *testing.T) {
		for _, f := range formats {
			for _, fill := range []byte{0x80, 0xff, 0x7f, 0x00, 0x88, 0xf0} {
				for _, sign := range []float32{1, -1} {
					q := make([]float32, 32)
					for i := range q {
						q[i] = sign * 127
					}
					key := make([]byte, f.size)
					sum := 0
					for i := range key {
						key[i] = fill
					}
					copy(key, []byte{0, 0x3c})
					for i := range q {
						sum += f.number(key, i)
					}
					var query Query
					query.Set(q)
					out := make([]float32, 1)
					f.score(out, &query, key, 1)
					if want := float32(sum*127) * sign; out[0] != want {
						t.Errorf("%s: keys of %#x, query of %v: got %v, want %v", f.name, fill, q[0], out[0], want)
					}
					q[3] = float32(math.Inf(1))
					query.Set(q)
					if f.score(out, &query, key, 1); out[0] == out[0] {
						t.Errorf("%s: infinite query: %v", f.name, out[0])
					}
				}
			}
		}
	})
}

func TestBlockMisuse(t *testing.T) {
	var q Query
	q.Set(make([]float32, 64))
	for name, f := range map[string]func(){
		"query":      func() { new(Query).Set(make([]float32, 33)) },
		"out short":  func() { ScoreQ8(make([]float32, 1), &q, make([]byte, 4*BytesQ8), 2) },
		"keys short": func() { ScoreQ4(make([]float32, 2), &q, make([]byte, 4*BytesQ4-1), 2) },
		"negative":   func() { ScoreQ8(nil, &q, nil, -1) },
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
}

func FuzzBlocks(f *testing.F) {
	f.Add(uint64(1), uint8(4), uint8(3))
	f.Add(uint64(2), uint8(1), uint8(20))
	f.Fuzz(func(t *testing.T, seed uint64, blocks, n8 uint8) {
		r := rand.New(rand.NewPCG(seed, 1))
		d, n := (int(blocks)%9+1)*32, int(n8)
		q := make([]float32, d)
		for i := range q {
			q[i] = math.Float32frombits(r.Uint32() &^ (1 << 30)) // finite, below 2
		}
		var query Query
		query.Set(q)
		defer impl.Reset("halfdot")
		for _, f := range formats {
			keys := make([]byte, n*d/32*f.size)
			randomKeys(r, keys, f.size)
			run := func() []float32 {
				out := make([]float32, n)
				f.score(out, &query, keys, n)
				return out
			}
			impl.Select("halfdot", "")
			want := run()
			for _, name := range impl.List("halfdot") {
				if !impl.Select("halfdot", name) {
					continue
				}
				for i, got := range run() {
					if math.Float32bits(got) != math.Float32bits(want[i]) {
						t.Fatalf("%s, %s: d %d, score %d is %x, want %x", f.name, name, d, i, got, want[i])
					}
				}
			}
		}
	})
}

func BenchmarkScoreBlocks(b *testing.B) {
	impl.TestAll(b, "halfdot", func(b *testing.B) {
		for _, f := range formats {
			for _, n := range []int{8 << 10, 1 << 20} {
				b.Run(fmt.Sprintf("format=%s/keys=%d/dim=128", f.name, n), func(b *testing.B) {
					r := rand.New(rand.NewPCG(1, 1))
					q, out := make([]float32, 128), make([]float32, n)
					for i := range q {
						q[i] = float32(r.NormFloat64())
					}
					var query Query
					query.Set(q)
					keys := make([]byte, n*4*f.size)
					b.SetBytes(int64(len(keys)))
					best := bench.Best(b, func() { f.score(out, &query, keys, n) })
					b.ReportMetric(float64(best.Nanoseconds())/float64(n), "best-ns/key")
				})
			}
		}
	})
}
