package fmath

import (
	"fmt"
	"hash/fnv"
	"math"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/phaseconv/phaseconv/kernels/internal/asmcheck"
	"github.com/phaseconv/phaseconv/kernels/internal/guard"
	"github.com/phaseconv/phaseconv/kernels/internal/impl"
)

func TestRequires(t *testing.T) {
	asm, err := os.ReadFile("fmath_amd64.s")
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range asmcheck.Requires(string(asm), asmcheck.AMD64) {
		t.Error(err)
	}
}

// same reports whether a and b have the same bits or are both NaN.
func same(a, b float32) bool {
	return math.Float32bits(a) == math.Float32bits(b) || a != a && b != b
}

// specials stand in the way of vector code.
var specials = []float32{
	0, float32(math.Copysign(0, -1)), 1, -1, float32(math.Inf(1)), float32(math.Inf(-1)), float32(math.NaN()),
	88.7, 88.73, 88.38, -87.3, -87.4, -103.9, -104.1, 1e-30, -1e-30, math.MaxFloat32, -math.MaxFloat32,
	math.SmallestNonzeroFloat32, 0x1p-126, 0x1p63, 0.34657, -0.34658,
}

// values fills guarded memory with numbers of the given size, some special.
func values(t *testing.T, r *rand.Rand, n int, size float64, special bool, side guard.Side) []float32 {
	x := guard.Slice[float32](t, n, side)
	for i := range x {
		x[i] = float32(r.NormFloat64() * size)
		if special && r.IntN(6) == 0 {
			x[i] = specials[r.IntN(len(specials))]
		}
	}
	return x
}

// TestTiers runs every row function in guarded memory at many lengths, with and
// without special values, and wants the bits of the plain Go definition.
func TestTiers(t *testing.T) {
	impl.TestAll(t, "fmath", func(t *testing.T) {
		r := rand.New(rand.NewPCG(2, 1))
		for n := range 131 {
			for trial := range 4 {
				special, side := trial >= 2, guard.Sides[trial%2]
				x := values(t, r, n, 10, special, side)
				y := values(t, r, n, 1, special, side)
				dst := guard.Slice[float32](t, n, side)
				check := func(name string, want func(i int) float32) {
					t.Helper()
					for i := range dst {
						if w := want(i); !same(dst[i], w) {
							t.Fatalf("%s of %d: element %d, x %v, y %v: got %x, want %x", name, n, i, x[i], y[i], dst[i], w)
						}
					}
				}
				ExpSlice(dst, x)
				check("ExpSlice", func(i int) float32 { return exp32(x[i]) })
				SiLUMul(dst, x, y)
				check("SiLUMul", func(i int) float32 { return float32(x[i]/(1+exp32(-x[i]))) * y[i] })
				GELUTanhMul(dst, x, y)
				check("GELUTanhMul", func(i int) float32 {
					v := float32(x[i] * (float32(geluB*float32(x[i]*x[i])) + geluA))
					return float32(x[i]/(1+exp32(-v))) * y[i]
				})
				ScaleMul(dst, x, 1.7, y)
				check("ScaleMul", func(i int) float32 { return float32(x[i]*1.7) * y[i] })
				copy(dst, x)
				Scale(dst, -0.3)
				check("Scale", func(i int) float32 { return x[i] * -0.3 })
				copy(dst, y)
				AddScaled(dst, x, -1.3)
				check("AddScaled", func(i int) float32 { return y[i] + float32(x[i]*-1.3) })
				// In place over either operand.
				copy(dst, x)
				SiLUMul(dst, dst, y)
				check("SiLUMul over gate", func(i int) float32 { return float32(x[i]/(1+exp32(-x[i]))) * y[i] })
				copy(dst, y)
				SiLUMul(dst, x, dst)
				check("SiLUMul over up", func(i int) float32 { return float32(x[i]/(1+exp32(-x[i]))) * y[i] })

				most := float32(math.Inf(-1))
				var sums, squares, exps [16]float64
				for i, v := range x {
					sums[i%16] += float64(v)
					if v > most {
						most = v
					}
					squares[i%16] += float64(v) * float64(v)
				}
				if got := Max(x); got != most || math.Signbit(float64(got)) && got == 0 {
					t.Fatalf("Max of %d: got %v, want %v", n, got, most)
				}
				if got, want := Sum(x), tree(sums[:]); math.Float64bits(got) != math.Float64bits(want) &&
					(got == got || want == want) {
					t.Fatalf("Sum of %d: got %x, want %x", n, got, want)
				}
				if got, want := SumSq(x), tree(squares[:]); math.Float64bits(got) != math.Float64bits(want) &&
					(got == got || want == want) {
					t.Fatalf("SumSq of %d: got %x, want %x", n, got, want)
				}
				sum := ExpSum(dst, x, 1.25, 0.125)
				check("ExpSum", func(i int) float32 { return exp32(float32((x[i] - 1.25) * 0.125)) })
				for i, v := range dst {
					exps[i%16] += float64(v)
				}
				if want := tree(exps[:]); math.Float64bits(sum) != math.Float64bits(want) && (sum == sum || want == want) {
					t.Fatalf("ExpSum of %d: got %x, want %x", n, sum, want)
				}
			}
		}
	})
}

// tree adds pairwise: the lower half plus the upper half.
func tree(s []float64) float64 {
	if len(s) == 1 {
		return s[0]
	}
	half := make([]float64, len(s)/2)
	for i := range half {
		half[i] = s[i] + s[i+len(half)]
	}
	return tree(half)
}

// TestExp32 goes through the whole range in small steps. The step is coprime to
// powers of two, so that all patterns of low bits occur.
func TestExp32(t *testing.T) {
	step := uint32(4999)
	if testing.Short() {
		step = 99991
	}
	most, at := 0.0, float32(0)
	for _, sign := range []uint32{0, 1 << 31} {
		for u := uint32(0); u < math.Float32bits(104.5); u += step {
			x := math.Float32frombits(u | sign)
			want := math.Exp(float64(x))
			_, e := math.Frexp(want)
			ulp := math.Ldexp(1, max(e-24, -149))
			got := float64(exp32(x))
			if want > math.MaxFloat32 {
				if r := float32(want); float64(r) != got {
					t.Fatalf("exp32(%v) = %v, want %v", x, got, r)
				}
				continue
			}
			if d := math.Abs(got-want) / ulp; d > most {
				most, at = d, x
			}
		}
	}
	t.Logf("largest error %.3f ulp, at %v", most, at)
	if most > 1 {
		t.Errorf("error of %.3f ulp at %v, more than the promised 1", most, at)
	}
}

func TestActivations(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 4))
	const n = 10000
	g, one, s, e := make([]float32, n), make([]float32, n), make([]float32, n), make([]float32, n)
	for i := range g {
		g[i] = float32(r.NormFloat64() * math.Ldexp(1, r.IntN(6)-2))
		one[i] = 1
	}
	SiLUMul(s, g, one)
	GELUTanhMul(e, g, one)
	for i := range g {
		x := float64(g[i])
		silu := x / (1 + math.Exp(-x))
		v := math.Sqrt(2/math.Pi) * (x + 0.044715*x*x*x)
		gelu := x / (1 + math.Exp(-2*v)) // = x/2 (1 + tanh v), without cancellation
		// A few roundings of 2^-24 each; the argument of the exponential carries
		// its own relative error into the result, times its size.
		if d := math.Abs(float64(s[i]) - silu); d > 5*0x1p-24*math.Abs(silu)+1e-37 {
			t.Fatalf("silu(%v) = %v, want %v, relative error %g", x, s[i], silu, d/math.Abs(silu))
		}
		tol := (4 + 3*math.Abs(2*v)) * 0x1p-24
		if d := math.Abs(float64(e[i]) - gelu); d > tol*math.Abs(gelu)+1e-37 {
			t.Fatalf("gelu(%v) = %v, want %v, relative error %g > %g", x, e[i], gelu, d/math.Abs(gelu), tol)
		}
	}
}

func TestSoftmax(t *testing.T) {
	impl.TestAll(t, "fmath", func(t *testing.T) {
		r := rand.New(rand.NewPCG(6, 6))
		for _, n := range []int{1, 2, 15, 16, 17, 100, 512, 1000} {
			row := make([]float32, n)
			for i := range row {
				row[i] = float32(r.NormFloat64()*50 + 1000)
			}
			const scale = 0.125
			most, sum := math.Inf(-1), 0.0
			for _, v := range row {
				most = max(most, float64(v))
			}
			want := make([]float64, n)
			for i, v := range row {
				want[i] = math.Exp((float64(v) - most) * scale)
				sum += want[i]
			}
			Softmax(row, scale)
			total := 0.0
			for i, v := range row {
				total += float64(v)
				// The argument, up to 40 here, is rounded to 2^-24 of itself.
				if d := math.Abs(float64(v) - want[i]/sum); d > 50*0x1p-24*want[i]/sum+1e-37 {
					t.Fatalf("n %d: element %d is %v, want %v", n, i, v, want[i]/sum)
				}
			}
			if math.Abs(total-1) > 4*0x1p-24 {
				t.Errorf("n %d: sum %v", n, total)
			}
		}
		inf, nan := float32(math.Inf(1)), float32(math.NaN())
		masked := []float32{-inf, 3, -inf, 3}
		Softmax(masked, 1)
		if masked[0] != 0 || masked[1] != 0.5 || masked[2] != 0 || masked[3] != 0.5 {
			t.Errorf("masked row: %v", masked)
		}
		Softmax(nil, 1)
		for _, bad := range [][]float32{{-inf, -inf}, {1, nan, 2}, {1, inf}} {
			for _, pad := range []int{0, 30} {
				row := append(append([]float32(nil), bad...), make([]float32, pad)...)
				if pad > 0 && bad[0] == -inf {
					continue // no longer all masked
				}
				Softmax(row, 1)
				for i, v := range row {
					if v == v {
						t.Fatalf("softmax of %v: element %d is %v, want NaN", bad, i, v)
					}
				}
			}
		}
	})
}

// TestSameBits32 is TestSameBits for the row functions, on every tier.
func TestSameBits32(t *testing.T) {
	impl.TestAll(t, "fmath", func(t *testing.T) {
		r := rand.New(rand.NewPCG(9, 9))
		h := fnv.New64a()
		for range 200 {
			x, y := make([]float32, 77), make([]float32, 77)
			for i := range x {
				x[i], y[i] = float32(r.NormFloat64()*20), float32(r.NormFloat64())
			}
			SiLUMul(x, x, y)
			GELUTanhMul(y, y, x)
			fmt.Fprintf(h, "%x %x %x", x, y, SumSq(x))
			Softmax(x, 0.5)
			fmt.Fprintf(h, "%x %x", x, ExpSum(y, y, 0.25, 1))
		}
		const want = 0xce96db966b11d60a
		if got := h.Sum64(); got != want {
			t.Errorf("digest of the results is %#x, want %#x", got, uint64(want))
		}
	})
}

func TestLengths(t *testing.T) {
	a, b := make([]float32, 3), make([]float32, 4)
	for name, f := range map[string]func(){
		"ExpSlice":    func() { ExpSlice(a, b) },
		"SiLUMul":     func() { SiLUMul(a, a, b) },
		"GELUTanhMul": func() { GELUTanhMul(a, b, a) },
		"ExpSum":      func() { ExpSum(a, b, 0, 1) },
		"ScaleMul":    func() { ScaleMul(a, a, 1, b) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s takes slices of different lengths", name)
				}
			}()
			f()
		}()
	}
}

func FuzzTiers(f *testing.F) {
	f.Add(uint32(0x42b17218), uint32(0xc2ce8ed0), uint32(0x7fc00000))
	f.Add(uint32(0x3eb17218), uint32(0x80000000), uint32(1))
	f.Fuzz(func(t *testing.T, a, b, c uint32) {
		x := make([]float32, 48)
		y := make([]float32, 48)
		for i := range x {
			x[i] = math.Float32frombits(a + uint32(i)*c)
			y[i] = math.Float32frombits(b ^ uint32(i)<<16)
		}
		run := func() (out [3][48]float32, sums [2]float64) {
			ExpSlice(out[0][:], x)
			SiLUMul(out[1][:], x, y)
			GELUTanhMul(out[2][:], x, y)
			return out, [2]float64{SumSq(x), float64(Max(x))}
		}
		defer impl.Reset("fmath")
		impl.Select("fmath", "")
		want, wantSums := run()
		for _, name := range impl.List("fmath") {
			if !impl.Select("fmath", name) {
				continue
			}
			got, sums := run()
			for i := range got {
				for j := range got[i] {
					if !same(got[i][j], want[i][j]) {
						t.Fatalf("%s, function %d: x %x, y %x: got %x, want %x", name, i, x[j], y[j], got[i][j], want[i][j])
					}
				}
			}
			for i := range sums {
				if math.Float64bits(sums[i]) != math.Float64bits(wantSums[i]) && sums[i] == sums[i] {
					t.Fatalf("%s, sum %d: got %x, want %x", name, i, sums[i], wantSums[i])
				}
			}
		}
	})
}

func BenchmarkRows(b *testing.B) {
	const n = 1536
	r := rand.New(rand.NewPCG(1, 1))
	x, y, dst := make([]float32, n), make([]float32, n), make([]float32, n)
	for i := range x {
		x[i], y[i] = float32(r.NormFloat64()), float32(r.NormFloat64())
	}
	impl.TestAll(b, "fmath", func(b *testing.B) {
		for _, c := range []struct {
			name string
			f    func()
		}{
			{"ExpSlice", func() { ExpSlice(dst, x) }},
			{"SiLUMul", func() { SiLUMul(dst, x, y) }},
			{"GELUTanhMul", func() { GELUTanhMul(dst, x, y) }},
			{"Softmax", func() { copy(dst, x); Softmax(dst, 0.125) }},
			{"SumSq", func() { sink = SumSq(x) }},
			{"ScaleMul", func() { ScaleMul(dst, x, 0.3, y) }},
		} {
			b.Run("f="+c.name, func(b *testing.B) {
				b.SetBytes(4 * n)
				for b.Loop() {
					c.f()
				}
			})
		}
	})
}

var sink float64
