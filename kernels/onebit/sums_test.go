package onebit

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/phaseconv/phaseconv/kernels/internal/bench"
	"github.com/phaseconv/phaseconv/kernels/internal/guard"
	"github.com/phaseconv/phaseconv/kernels/internal/impl"
)

// sign returns sign i of a token as -1 or +1.
func sign(bits []uint32, b, token, i int) int {
	w := bits[token/BlockKeys*BlockKeys*Words(b)+i/32*BlockKeys+token%BlockKeys]
	return 2*int(w>>(i%32)&1) - 1
}

// defineSums follows the comment of sums.go, with nothing shared with the code under test.
func defineSums(t, w []float32, b int, bits []uint32, scales []uint16, n int) {
	for at := 0; at < n; at += 128 {
		x := make([]float32, 128)
		for j := range min(128, n-at) {
			x[j] = float32(w[at+j] * widen(scales[at+j]))
		}
		Q, step := integers(x)
		for i := range b {
			sum := 0
			for j := range min(128, n-at) {
				sum += Q[j] * sign(bits, b, at+j, i)
			}
			t[i] += float32(float32(sum) * step)
		}
	}
}

func randomSigns(t *testing.T, r *rand.Rand, n, b int, side guard.Side) []uint32 {
	bits := guard.Slice[uint32](t, Len(n, b), side)
	for i := range n {
		words := make([]uint32, Words(b))
		for w := range words {
			words[w] = r.Uint32()
		}
		Set(bits, b, i, words)
	}
	return bits
}

func TestTranspose(t *testing.T) {
	impl.TestAll(t, "onebit", func(t *testing.T) {
		r := rand.New(rand.NewPCG(11, 1))
		for trial, b := range []int{8, 16, 32, 40, 64, 192, 576, 1000, 1024, MaxBits} {
			for _, n := range []int{0, 1, 15, 16, 17, 32, 33, 63, 64, 100, 127, 128} {
				if b > 192 && n%33 != 0 && n != 128 {
					continue
				}
				side := guard.Sides[(trial+n)%2]
				bits := randomSigns(t, r, n, b, side)
				dst := guard.Slice[uint32](t, TransposedLen(b), side)
				for i := range dst {
					dst[i] = r.Uint32()
				}
				Transpose(dst, bits, All(b), n)
				for i := range Words(b) * 32 {
					for j := range 128 {
						want := uint32(0)
						if i < b && j < n && sign(bits, b, j, i) > 0 {
							want = 1
						}
						if got := dst[i/16*64+16*(j/32)+i%16] >> (j % 32) & 1; got != want {
							t.Fatalf("b %d, n %d: sign %d of token %d is %d, want %d", b, n, i, j, got, want)
						}
					}
				}
			}
		}
	})
}

// Some signs of a key are scored and summed as all are whose other numbers are zero: the same bits, for
// a sign without a number adds an exact zero.
func TestRange(t *testing.T) {
	impl.TestAll(t, "onebit", func(t *testing.T) {
		r := rand.New(rand.NewPCG(14, 1))
		var part, whole Tables
		var s Sums
		for trial, x := range []Range{{40, 0, 32}, {40, 32, 40}, {96, 32, 64}, {104, 64, 104}, {576, 0, 384}, {576, 128, 576},
			{1000, 960, 1000}, {1024, 512, 768}} {
			for i, heads := range []int{1, 2, 3, 4, 5, 9} {
				n := []int{1, 16, 31, 64, 100, 128, 129, 200, 300}[(trial*5+i)%9]
				side := guard.Sides[(trial+heads)%2]
				bits := randomSigns(t, r, n, x.B, side)
				scales := make([]uint16, n)
				for i := range scales {
					scales[i] = half(r)
				}
				q, p := make([]float32, heads*x.B), make([]float32, heads*n)
				for i := range q {
					if at := i % x.B; at >= x.From && at < x.To {
						q[i] = float32(r.NormFloat64())
					}
				}
				for i := range p {
					p[i] = float32(r.ExpFloat64())
				}
				whole.Build(q, x.B, heads, x.B)
				part.Reset(heads, x)
				for h := range heads {
					part.Set(h, q[h*x.B+x.From:h*x.B+x.To])
				}
				want, got := make([]float32, heads*n), make([]float32, heads*n)
				Score(want, n, &whole, bits, scales, n, nil)
				Score(got, n, &part, bits, scales, n, nil)
				if !slices.Equal(got, want) {
					t.Fatalf("%+v, %d keys, %d heads: other scores", x, n, heads)
				}
				want, got = make([]float32, heads*x.B), make([]float32, heads*x.Len())
				s.Add(want, x.B, p, n, heads, All(x.B), bits, scales, n)
				s.Add(got, x.Len(), p, n, heads, x, bits, scales, n)
				for h := range heads {
					if !slices.Equal(got[h*x.Len():][:x.Len()], want[h*x.B+x.From:h*x.B+x.To]) {
						t.Fatalf("%+v, %d tokens, head %d of %d: other sums", x, n, h, heads)
					}
				}
			}
		}
	})
}

func TestSums(t *testing.T) {
	impl.TestAll(t, "onebit", func(t *testing.T) {
		r := rand.New(rand.NewPCG(12, 1))
		var s Sums
		for trial, b := range []int{8, 16, 24, 40, 64, 96, 104, 192, 208, 288, 384, 576, 768, 1000, 1024} {
			for i, heads := range []int{1, 2, 3, 4, 5, 9, 12} {
				if b > 104 && (trial+i)%3 > 0 {
					continue
				}
				n := []int{1, 7, 16, 31, 64, 100, 128, 129, 200, 256, 300}[(trial*5+i)%11]
				side := guard.Sides[(trial+heads)%2]
				bits := randomSigns(t, r, n, b, side)
				scales := guard.Slice[uint16](t, n, side)
				for i := range scales {
					scales[i] = half(r)
				}
				ldw, ldt := n+r.IntN(3), b+r.IntN(3)
				w := guard.Slice[float32](t, (heads-1)*ldw+n, side)
				for i := range w {
					w[i] = float32(math.Exp(3 * r.NormFloat64()))
				}
				got := guard.Slice[float32](t, (heads-1)*ldt+b, side)
				for i := range got {
					got[i] = float32(r.NormFloat64())
				}
				want := slices.Clone(got)
				for h := range heads {
					defineSums(want[h*ldt:][:b], w[h*ldw:], b, bits, scales, n)
				}
				s.Add(got, ldt, w, ldw, heads, All(b), bits, scales, n)
				for i, v := range want {
					if math.Float32bits(got[i]) != math.Float32bits(v) {
						t.Fatalf("b %d, n %d, head %d of %d, sign %d: got %v, want %v", b, n, i/ldt, heads, i%ldt, got[i], v)
					}
				}
			}
		}
	})
}

// TestSumsParts: successive parts of a cache give the bits of one call.
func TestSumsParts(t *testing.T) {
	r := rand.New(rand.NewPCG(13, 1))
	const n, b, heads = 3*SumTokens + 50, 96, 3
	bits, scales := randomSigns(t, r, n, b, guard.AtEnd), make([]uint16, n)
	w := make([]float32, heads*n)
	for i := range w {
		w[i] = r.Float32()
	}
	for i := range scales {
		scales[i] = half(r)
	}
	var s Sums
	one, parts := make([]float32, heads*b), make([]float32, heads*b)
	s.Add(one, b, w, n, heads, All(b), bits, scales, n)
	for at := 0; at < n; at += 2 * SumTokens {
		s.Add(parts, b, w[at:], n, heads, All(b), bits[at*Words(b):], scales[at:], min(2*SumTokens, n-at))
	}
	if !slices.Equal(one, parts) {
		t.Error("parts give other bits")
	}
}

// TestSumsError holds sums against exact arithmetic: within the bound of the comment in
// sums.go, for weights as softmax makes them, and near its mean.
func TestSumsError(t *testing.T) {
	r := rand.New(rand.NewPCG(14, 1))
	const n, b = 2048, 192
	bits := randomSigns(t, r, n, b, guard.AtEnd)
	scales := make([]uint16, n)
	for i := range scales {
		scales[i] = uint16(0x3800 + r.IntN(0x400)) // from 0.5 to 1
	}
	for _, sharp := range []float64{0, 1, 4} {
		w, total := make([]float32, n), 0.0
		for i := range w {
			w[i] = float32(math.Exp(sharp * r.NormFloat64()))
			total += float64(w[i])
		}
		got := make([]float32, b)
		var s Sums
		s.Add(got, b, w, n, 1, All(b), bits, scales, n)
		var bound, square float64
		for at := 0; at < n; at += SumTokens {
			x := make([]float32, SumTokens)
			for j := range x {
				x[j] = w[at+j] * widen(scales[at+j])
			}
			_, step := integers(x)
			bound += SumTokens / 2 * float64(step)
			square += SumTokens / 12. * float64(step) * float64(step)
		}
		var errs, sums float64
		for i, v := range got {
			var want float64
			for j := range n {
				want += float64(w[j]) * float64(widen(scales[j])) * float64(sign(bits, b, j, i))
			}
			e := float64(v) - want
			// float32 additions of 16 parts add a little.
			if math.Abs(e) > bound+1e-6*total {
				t.Fatalf("sharpness %v, sign %d: error %v, bound %v", sharp, i, e, bound)
			}
			errs, sums = errs+e*e, sums+want*want
		}
		if rms := math.Sqrt(errs / b); rms > 1.3*math.Sqrt(square)+1e-6*total {
			t.Errorf("sharpness %v: error %v, expected %v", sharp, rms, math.Sqrt(square))
		}
		if share := math.Sqrt(errs / sums); share > 3e-3 {
			t.Errorf("sharpness %v: error %v of the sums", sharp, share)
		}
	}
}

func TestSumsMisuse(t *testing.T) {
	const b, n = 64, 20
	bits, scales, w, out := make([]uint32, Len(n, b)), make([]uint16, n), make([]float32, 2*n), make([]float32, 2*b)
	var s Sums
	var tab Tables
	tab.Build(make([]float32, SumTokens), SumTokens, 1, SumTokens)
	var short Tables
	short.Build(make([]float32, 64), 64, 1, 64)
	for name, f := range map[string]func(){
		"bits short":       func() { s.Add(out, b, w, n, 2, All(b), bits[1:], scales, n) },
		"scales short":     func() { s.Add(out, b, w, n, 2, All(b), bits, scales[1:], n) },
		"weights short":    func() { s.Add(out, b, w[1:], n, 2, All(b), bits, scales, n) },
		"weights overlap":  func() { s.Add(out, b, w, n-1, 2, All(b), bits, scales, n) },
		"out short":        func() { s.Add(out[1:], b, w, n, 2, All(b), bits, scales, n) },
		"rows overlap":     func() { s.Add(out, b-1, w, n, 2, All(b), bits, scales, n) },
		"no signs":         func() { s.Add(out, b, w, n, 2, Range{B: b, From: 32, To: 32}, bits, scales, n) },
		"in a word":        func() { s.Add(out, b, w, n, 2, Range{B: b, From: 8, To: b}, bits, scales, n) },
		"ends in a word":   func() { s.Add(out, b, w, n, 2, Range{B: b, To: b - 8}, bits, scales, n) },
		"too many signs":   func() { s.Add(out, b, w, n, 2, Range{B: b, To: b + 32}, bits, scales, n) },
		"too many tokens":  func() { Transpose(make([]uint32, TransposedLen(b)), make([]uint32, Len(129, b)), All(b), 129) },
		"dst short":        func() { Transpose(make([]uint32, TransposedLen(b)-1), bits, All(b), n) },
		"other tables":     func() { addSums(out, b, &short, make([]uint32, TransposedLen(b)), b) },
		"transposed short": func() { addSums(out, b, &tab, make([]uint32, TransposedLen(b)-1), b) },
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
	if slices.ContainsFunc(out, func(v float32) bool { return v != 0 }) {
		t.Error("written before the panic")
	}
	s.Add(nil, 0, nil, 0, 0, All(b), nil, nil, 0)
}

func BenchmarkSums(b *testing.B) {
	impl.TestAll(b, "onebit", func(b *testing.B) {
		for _, signs := range []int{192, 384, 576, 768} {
			for _, heads := range []int{1, 3, 9} {
				b.Run(fmt.Sprintf("signs=%d/heads=%d", signs, heads), func(b *testing.B) {
					const n = 4096
					r := rand.New(rand.NewPCG(1, 1))
					bits := make([]uint32, Len(n, signs))
					for i := range bits {
						bits[i] = r.Uint32()
					}
					w := make([]float32, heads*n)
					for i := range w {
						w[i] = r.Float32()
					}
					scales := slices.Repeat([]uint16{0x3c00}, n)
					out := make([]float32, heads*signs)
					var s Sums
					best := bench.Best(b, func() { s.Add(out, signs, w, n, heads, All(signs), bits, scales, n) })
					b.ReportMetric(float64(best.Nanoseconds())/n/float64(heads), "best-ns/token/head")
				})
			}
		}
	})
}
