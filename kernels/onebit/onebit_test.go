package onebit

import (
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"github.com/phaseconv/phaseconv/kernels/internal/asmcheck"
	"github.com/phaseconv/phaseconv/kernels/internal/bench"
	"github.com/phaseconv/phaseconv/kernels/internal/guard"
	"github.com/phaseconv/phaseconv/kernels/internal/impl"
)

func TestRequires(t *testing.T) {
	asm, err := os.ReadFile("onebit_amd64.s")
	if err != nil {
		t.Fatal(err)
	}
	features := map[string][]string{}
	for tier, f := range asmcheck.AMD64 {
		features[tier] = f
	}
	features["avx2"] = append(slices.Clone(features["avx2"]), "F16C")
	features["avx512vbmi"] = append(slices.Clone(features["avx512"]), "AVX512BW", "AVX512VBMI", "AVX512VNNI")
	features["avx512gfni"] = append(slices.Clone(features["avx512vbmi"]), "GFNI")
	for _, err := range asmcheck.Requires(string(asm), features) {
		t.Error(err)
	}
}

// define computes one score as the package comment says it, with nothing shared
// with the code under test.
func define(q []float32, signs []bool, scale, offset float32) float32 {
	Q, step := integers(q)
	sum := 0
	for i, v := range Q {
		if signs[i] {
			sum += v
		} else {
			sum -= v
		}
	}
	return (offset + 0) + float32(float32(float32(sum)*step)*scale)
}

// integers rounds a query as the package comment says it.
func integers(q []float32) (Q []int, step float32) {
	abs := func(i int) float32 { return float32(math.Abs(float64(q[i]))) }
	var s float32
	for i := 0; i < len(q); i += 4 {
		quad := (abs(i) + abs(i+1)) + (abs(i+2) + abs(i+3))
		if quad > s || quad != quad {
			s = quad
		}
		if s != s {
			break
		}
	}
	Q = make([]int, len(q))
	switch {
	case s != s || math.IsInf(float64(s), 0):
		return Q, float32(math.NaN())
	case s < 0x1p-100:
		return Q, 0
	}
	for i, v := range q {
		Q[i] = int(math.RoundToEven(float64(float32(v * float32(2012/s)))))
	}
	return Q, s / 2012
}

// half returns binary16 numbers: normal, subnormal, zero, of both signs.
func half(r *rand.Rand) uint16 {
	h := uint16(r.Uint32())
	if h&0x7c00 == 0x7c00 {
		h &^= 0x4000
	}
	return h
}

func TestScore(t *testing.T) {
	sizes := []int{8, 16, 24, 32, 40, 64, 72, 96, 104, 128, 136, 160, 192, 224, 256, 288, 320, 384, 416, 512, 640, 1000,
		1024, 1056, MaxBits}
	impl.TestAll(t, "onebit", func(t *testing.T) {
		r := rand.New(rand.NewPCG(1, 1))
		var tab Tables
		for trial, b := range sizes {
			for _, heads := range []int{1, 2, 3, 4, 5, 7, 8, 9, 24} {
				if heads > 8 && b%64 != 0 {
					continue
				}
				n := 1 + r.IntN(70)
				if b == 128 && heads == 8 {
					n = 1000 // several chunks
				}
				side := guard.Sides[(trial+heads)%2]
				signs := make([][]bool, n)
				bits := guard.Slice[uint32](t, Len(n, b), side)
				for i := range bits {
					bits[i] = r.Uint32() // Pack and Set must overwrite it
				}
				Pack(bits, b, n, make([]float32, n*b), b)
				for i := range signs {
					words := make([]uint32, Words(b))
					for w := range words {
						words[w] = r.Uint32() // with rubbish beyond bit b
					}
					signs[i] = make([]bool, b)
					for j := range signs[i] {
						signs[i][j] = words[j/32]>>(j%32)&1 == 1
					}
					Set(bits, b, i, words)
				}
				scales := guard.Slice[uint16](t, n, side)
				for i := range scales {
					scales[i] = half(r)
				}
				ldq := b + r.IntN(3)
				q := guard.Slice[float32](t, (heads-1)*ldq+b, side)
				for i := range q {
					q[i] = float32(r.NormFloat64())
				}
				offsets := make([]float32, heads)
				for h := range offsets {
					offsets[h] = float32(r.NormFloat64())
				}
				if trial%3 == 0 {
					offsets = nil
				}
				stride := n + r.IntN(5)
				out := guard.Slice[float32](t, (heads-1)*stride+n, side)
				for i := range out {
					out[i] = 12345
				}
				tab.Build(q, ldq, heads, b)
				if tab.Heads() != heads || tab.Signs() != All(b) {
					t.Fatalf("tables of %d heads, %d bits", tab.Heads(), tab.Signs().Len())
				}
				Score(out, stride, &tab, bits, scales, n, offsets)
				for i, got := range out {
					h, key := i/stride, i%stride
					if key >= n {
						if got != 12345 {
							t.Fatalf("b %d heads %d: wrote beyond the %d keys of head %d", b, heads, n, h)
						}
						continue
					}
					var offset float32
					if offsets != nil {
						offset = offsets[h]
					}
					want := define(q[h*ldq:h*ldq+b], signs[key], widen(scales[key]), offset)
					if math.Float32bits(got) != math.Float32bits(want) {
						t.Fatalf("b %d, head %d of %d, key %d of %d: got %x, want %x", b, h, heads, key, n, got, want)
					}
				}
			}
		}
	})
}

// TestExact checks the meaning, not the rounding: a query of integers whose largest
// quad adds up to quadScale is its own Q with step 1, so the score is the plain dot
// product.
func TestExact(t *testing.T) {
	impl.TestAll(t, "onebit", func(t *testing.T) {
		r := rand.New(rand.NewPCG(2, 2))
		const n, b = 137, 96
		keys, q := make([]float32, n*b), make([]float32, b)
		for i := range keys {
			keys[i] = float32(r.IntN(5) - 2)
		}
		for i := range q {
			q[i] = float32(r.IntN(1001) - 500)
		}
		copy(q[48:], []float32{-1900, 100, 0, 12})
		bits := make([]uint32, Len(n, b))
		Pack(bits, b, n, keys, b)
		scales := slices.Repeat([]uint16{0x3800}, n) // 0.5
		var tab Tables
		tab.Build(q, b, 1, b)
		if tab.Step(0) != 1 {
			t.Fatalf("step %v", tab.Step(0))
		}
		out := make([]float32, n)
		Score(out, n, &tab, bits, scales, n, []float32{-3})
		for i, got := range out {
			sum := 0
			for j := range q {
				if keys[i*b+j] >= 0 {
					sum += int(q[j])
				} else {
					sum -= int(q[j])
				}
			}
			if want := float32(sum)/2 - 3; got != want {
				t.Errorf("key %d: got %v, want %v", i, got, want)
			}
		}
	})
}

// TestExtremes: the digits hold the largest sums there can be, in the longest keys.
func TestExtremes(t *testing.T) {
	impl.TestAll(t, "onebit", func(t *testing.T) {
		for _, b := range []int{8, 128, MaxBits} {
			q := make([]float32, b)
			for i := range q {
				q[i] = 1
				if b == 128 && i%4 != 1 {
					q[i] = 0
				}
			}
			keys := make([]float32, 3*b)
			for i := range b {
				keys[b+i] = -1
				keys[2*b+i] = float32(1 - 2*(i/4%2))
			}
			bits := make([]uint32, Len(3, b))
			Pack(bits, b, 3, keys, b)
			var tab Tables
			tab.Build(q, b, 1, b)
			out := make([]float32, 3)
			Score(out, 3, &tab, bits, []uint16{0x3c00, 0x3c00, 0x3c00}, 3, nil)
			sum := float32(b) * 503 * tab.Step(0)
			if b == 128 {
				sum = 32 * 2012 * tab.Step(0)
			}
			if out[0] != sum || out[1] != -sum || out[2] != 0 {
				t.Errorf("b %d: %v, want %v, %v, 0", b, out, sum, -sum)
			}
		}
	})
}

// TestErrorBound holds scores against exact arithmetic with the query as it was:
// always within the bound of the package comment, and near its mean.
func TestErrorBound(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 4))
	const n = 2000
	for _, b := range []int{64, 128, 256} {
		for _, outlier := range []float32{1, 100} {
			q := make([]float32, b)
			for i := range q {
				q[i] = float32(r.NormFloat64())
			}
			q[5] *= outlier
			bits := make([]uint32, Len(n, b))
			for i := range bits {
				bits[i] = r.Uint32()
			}
			var tab Tables
			tab.Build(q, b, 1, b)
			step := float64(tab.Step(0))
			out := make([]float32, n)
			Score(out, n, &tab, bits, slices.Repeat([]uint16{0x3c00}, n), n, nil)
			var errs, scores float64
			signs := make([]uint32, Words(b))
			for key, got := range out {
				Get(signs, bits, b, key)
				var want float64
				for i, v := range q {
					want += float64(v) * float64(2*int(signs[i/32]>>(i%32)&1)-1)
				}
				e := float64(got) - want
				if math.Abs(e) > float64(b)/2*step*(1+1e-4) {
					t.Fatalf("b %d, key %d: error %v with a step of %v", b, key, e, step)
				}
				errs += e * e
				scores += want * want
			}
			rms := math.Sqrt(errs / n)
			// Over queries the mean square is b/12; for one query the roundings differ.
			if expect := math.Sqrt(float64(b)/12) * step; rms > 1.5*expect {
				t.Errorf("b %d: error %v, expected about %v", b, rms, expect)
			}
			if outlier == 1 && rms/math.Sqrt(scores/n) > 1e-3 {
				t.Errorf("b %d: error %v of scores of %v", b, rms, math.Sqrt(scores/n))
			}
		}
	}
}

// TestOddQueries: what cannot be scaled does not end in rubbish.
func TestOddQueries(t *testing.T) {
	inf, nan := float32(math.Inf(-1)), float32(math.NaN())
	impl.TestAll(t, "onebit", func(t *testing.T) {
		for _, c := range []struct {
			odd  float32
			want func(float32) bool
		}{
			{inf, func(v float32) bool { return v != v }},
			{nan, func(v float32) bool { return v != v }},
			{math.MaxFloat32, func(v float32) bool { return v == v }},
			{1e-40, func(v float32) bool { return v == 2 }},
			{0, func(v float32) bool { return v == 2 }},
		} {
			q := make([]float32, 64)
			q[17] = c.odd
			var tab Tables
			tab.Build(q, 64, 1, 64)
			out := make([]float32, 20)
			Score(out, 20, &tab, make([]uint32, Len(20, 64)), make([]uint16, 20), 20, []float32{2})
			for _, v := range out {
				if !c.want(v) {
					t.Fatalf("query with %v: score %v", c.odd, v)
				}
			}
		}
	})
}

// TestZeros: no tier and no combination of signs makes a score of -0.
func TestZeros(t *testing.T) {
	impl.TestAll(t, "onebit", func(t *testing.T) {
		r := rand.New(rand.NewPCG(3, 3))
		const n, b = 64, 64
		q := make([]float32, b)
		for i := range q {
			q[i] = float32(r.IntN(2)) // many ties and zeros
		}
		bits := make([]uint32, Len(n, b))
		for i := range bits {
			bits[i] = r.Uint32()
		}
		scales := make([]uint16, n)
		for i := range scales {
			scales[i] = []uint16{0, 0x8000, 0xbc00, 0x3c00}[r.IntN(4)]
		}
		var tab Tables
		tab.Build(q, b, 1, b)
		out := make([]float32, n)
		for _, offsets := range [][]float32{nil, {0}, {float32(math.Copysign(0, -1))}} {
			Score(out, n, &tab, bits, scales, n, offsets)
			for i, v := range out {
				if v == 0 && math.Signbit(float64(v)) {
					t.Fatalf("offsets %v: score %d is -0", offsets, i)
				}
			}
		}
	})
}

// TestLayout spells out where the bits of a key are.
func TestLayout(t *testing.T) {
	const n, b = 18, 40
	if Words(b) != 2 || Len(n, b) != 2*16*2 || Len(16, b) != 32 || Len(0, b) != 0 {
		t.Fatalf("Words %d, Len %d %d %d", Words(b), Len(n, b), Len(16, b), Len(0, b))
	}
	keys := make([]float32, n*b)
	for i := range keys {
		keys[i] = -1
	}
	keys[17*b+33] = 1 // key 17, bit 33
	keys[3*b+0] = 0   // zero counts as positive
	keys[4*b+1] = float32(math.NaN())
	bits := make([]uint32, Len(n, b))
	for i := range bits {
		bits[i] = math.MaxUint32
	}
	Pack(bits, b, n, keys, b)
	for i, w := range bits {
		want := map[int]uint32{32 + 16 + 1: 1 << 1, 3: 1}[i]
		if w != want {
			t.Errorf("word %d is %#x, want %#x", i, w, want)
		}
	}
	Set(bits, b, 17, []uint32{0x89abcdef, 0xffffffff})
	got := make([]uint32, 2)
	Get(got, bits, b, 17)
	if got[0] != 0x89abcdef || got[1] != 0xff {
		t.Errorf("key 17 reads %x", got)
	}
	if bits[32+1] != 0x89abcdef || bits[32+16+1] != 0xff {
		t.Errorf("key 17 is not at its place: %x", bits[32:])
	}
}

func TestWiden(t *testing.T) {
	for h := range 1 << 16 {
		exp, man := h>>10&31, h&1023
		want := math.Ldexp(float64(1024+man), exp-25)
		switch {
		case exp == 0:
			want = math.Ldexp(float64(man), -24)
		case exp == 31 && man == 0:
			want = math.Inf(1)
		case exp == 31:
			want = math.NaN()
		}
		if h&0x8000 != 0 {
			want = -want
		}
		got := widen(uint16(h))
		if math.Float32bits(got) != math.Float32bits(float32(want)) && (got == got || want == want) {
			t.Fatalf("widen(%#04x) = %v, want %v", h, got, want)
		}
	}
}

func TestMisuse(t *testing.T) {
	var tab Tables
	tab.Build(make([]float32, 128), 64, 2, 64)
	bits, scales, out := make([]uint32, Len(20, 64)), make([]uint16, 20), make([]float32, 40)
	for name, f := range map[string]func(){
		"0 bits":         func() { Words(0) },
		"12 bits":        func() { Words(12) },
		"too many bits":  func() { Words(MaxBits + 8) },
		"no heads":       func() { new(Tables).Build(nil, 0, 0, 64) },
		"query short":    func() { new(Tables).Build(make([]float32, 127), 64, 2, 64) },
		"bits short":     func() { Score(out, 20, &tab, bits[:len(bits)-1], scales, 20, nil) },
		"scales short":   func() { Score(out, 20, &tab, bits, scales[:19], 20, nil) },
		"out short":      func() { Score(out[:39], 20, &tab, bits, scales, 20, nil) },
		"rows overlap":   func() { Score(out, 19, &tab, bits, scales, 20, nil) },
		"offsets short":  func() { Score(out, 20, &tab, bits, scales, 20, []float32{1}) },
		"key out of set": func() { Set(bits, 64, 32, []uint32{1, 2}) },
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
	for i, v := range out {
		if v != 0 {
			t.Fatalf("score %d was written before the panic", i)
		}
	}
	Score(nil, 0, &tab, nil, nil, 0, nil)
	Score(out, 20, new(Tables), bits, scales, 20, nil)
}

func FuzzTiers(f *testing.F) {
	f.Add(uint64(1), uint8(4), uint8(3), uint8(40), []byte{1, 2, 3, 4, 5})
	f.Add(uint64(2), uint8(16), uint8(1), uint8(16), []byte{0xff, 0x7f, 0, 0x80})
	f.Fuzz(func(t *testing.T, seed uint64, b8, heads8, n8 uint8, raw []byte) {
		b, heads, n := (int(b8)%40+1)*8, int(heads8)%9+1, int(n8)+1
		r := rand.New(rand.NewPCG(seed, 1))
		q := make([]float32, heads*b)
		for i := range q {
			q[i] = math.Float32frombits(r.Uint32() &^ (1 << 30)) // finite, below 2
			if len(raw) > 0 && raw[i%len(raw)]&1 == 1 {
				q[i] = float32(int8(raw[i%len(raw)]))
			}
		}
		bits := make([]uint32, Len(n, b))
		for i := range bits {
			bits[i] = r.Uint32()
		}
		scales := make([]uint16, n)
		for i := range scales {
			scales[i] = half(r)
		}
		run := func() []float32 {
			var tab Tables
			tab.Build(q, b, heads, b)
			out := make([]float32, heads*n)
			Score(out, n, &tab, bits, scales, n, nil)
			return out
		}
		defer impl.Reset("onebit")
		impl.Select("onebit", "")
		want := run()
		for _, name := range impl.List("onebit") {
			if !impl.Select("onebit", name) {
				continue
			}
			for i, got := range run() {
				if math.Float32bits(got) != math.Float32bits(want[i]) {
					t.Fatalf("%s: b %d heads %d: score %d is %x, want %x", name, b, heads, i, got, want[i])
				}
			}
		}
	})
}

func BenchmarkScore(b *testing.B) {
	impl.TestAll(b, "onebit", func(b *testing.B) {
		for _, keys := range []int{8 << 10, 1 << 20} {
			for _, dim := range []int{64, 128, 256} {
				for _, heads := range []int{1, 2, 4, 8} {
					b.Run(fmt.Sprintf("keys=%d/dim=%d/heads=%d", keys, dim, heads), func(b *testing.B) {
						r := rand.New(rand.NewPCG(1, 1))
						q := make([]float32, heads*dim)
						for i := range q {
							q[i] = float32(r.NormFloat64())
						}
						bits := make([]uint32, Len(keys, dim))
						for i := range bits {
							bits[i] = r.Uint32()
						}
						scales := slices.Repeat([]uint16{0x3c00}, keys)
						out := make([]float32, keys*heads)
						var tab Tables
						tab.Build(q, dim, heads, dim)
						b.SetBytes(int64(keys * (dim/8 + 2)))
						best := bench.Best(b, func() { Score(out, keys, &tab, bits, scales, keys, nil) })
						b.ReportMetric(float64(best.Nanoseconds())/float64(keys)/float64(heads), "best-ns/key/head")
					})
				}
			}
		}
	})
}

func BenchmarkBuild(b *testing.B) {
	impl.TestAll(b, "onebit", func(b *testing.B) {
		for _, signs := range []int{128, 576} {
			b.Run(fmt.Sprintf("signs=%d", signs), func(b *testing.B) {
				q := make([]float32, signs)
				for i := range q {
					q[i] = float32(i%7) - 3
				}
				var tab Tables
				best := bench.Best(b, func() {
					for range 16 {
						tab.Build(q, signs, 1, signs)
					}
				})
				b.ReportMetric(float64(best.Nanoseconds())/16, "best-ns")
			})
		}
	})
}
