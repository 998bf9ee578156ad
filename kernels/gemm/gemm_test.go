package gemm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/phaseconv/phaseconv/kernels/internal/fma32"
	"github.com/phaseconv/phaseconv/kernels/internal/guard"
	"github.com/phaseconv/phaseconv/kernels/internal/impl"
)

// reference is the definition of the package comment, one chain after another.
func reference(c []float32, ldc int, a []float32, lda, m int, w func(j, p int) float32, n0, n1, k0, k1 int, add bool) {
	for i := range m {
		for j := n0; j < n1; j++ {
			var s float32
			if add {
				s = c[i*ldc+j]
			}
			for p := k0; p < k1; p++ {
				s = fma32.FMA(a[i*lda+p], w(j, p), s)
			}
			c[i*ldc+j] = s
		}
	}
}

func random(r *rand.Rand, n int) []float32 {
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(r.NormFloat64())
	}
	return x
}

// equalBits fails the test at the first number that differs.
func equalBits(t *testing.T, what string, got, want []float32) {
	t.Helper()
	for i := range want {
		if math.Float32bits(got[i]) != math.Float32bits(want[i]) {
			t.Fatalf("%s: number %d: got %x (%v), want %x (%v)", what, i,
				math.Float32bits(got[i]), got[i], math.Float32bits(want[i]), want[i])
		}
	}
}

// sizes to combine: around the tile sizes of all tiers and their multiples.
var awkward = []int{1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 15, 16, 17, 23, 24, 25, 31, 33, 47, 48, 49, 63, 64, 65, 95, 96,
	97}

func TestMulSizes(t *testing.T) {
	impl.TestAll(t, "gemm", func(t *testing.T) {
		r := rand.New(rand.NewPCG(1, 2))
		check := func(m, n, k, threads int) {
			t.Helper()
			lda, ldb, ldc := k+r.IntN(5), k+r.IntN(5), n+r.IntN(5)
			a, b, c := random(r, m*lda), random(r, n*ldb), random(r, m*ldc)
			want := append([]float32(nil), c...)
			reference(want, ldc, a, lda, m, func(j, p int) float32 { return b[j*ldb+p] }, 0, n, 0, k, false)
			var w Weights
			w.PackRows(n, k, b, ldb, threads)
			Mul(c, ldc, a, lda, m, &w, threads)
			equalBits(t, fmt.Sprintf("Mul %dx%dx%d threads %d", m, n, k, threads), c, want)
			reference(want, ldc, a, lda, m, func(j, p int) float32 { return b[j*ldb+p] }, 0, n, 0, k, true)
			MulAdd(c, ldc, a, lda, m, &w, threads)
			equalBits(t, fmt.Sprintf("MulAdd %dx%dx%d threads %d", m, n, k, threads), c, want)
		}
		for m := range 18 {
			for _, n := range awkward {
				check(m, n, 1+r.IntN(20), 1)
			}
		}
		for _, n := range awkward {
			for _, k := range []int{1, 2, 3, 4, 5, 7, 8, 9} {
				check(1+r.IntN(20), n, k, 1)
			}
		}
		// One row takes several panels at a time where that many are whole.
		for _, n := range []int{95, 96, 97, 120, 191, 192, 193, 240, 385, 431} {
			for _, k := range []int{1, 2, 3, 577, 2*current().kc + 1} {
				check(1, n, k, 1+r.IntN(3))
			}
		}
		for threads := range 6 {
			check(67, 97, 131, threads)
			check(3, 575, 131, threads)
			check(301, 17, 65, threads)
		}
		kc := current().kc
		for _, k := range []int{kc - 1, kc, kc + 1, 2*kc - 1, 2 * kc, 2*kc + 1, 577} {
			check(9, 49, k, 2)
		}
		if !testing.Short() {
			mc := current().mc
			check(mc+1, 50, 19, 1)
			check(33, 575, 577, 2)
		}
	})
}

// TestMulRange takes random parts of a product. NaN all around the parts shows
// that nothing outside is read, a pattern in C that nothing outside is written,
// and operands in guarded memory that not even unused lanes stray.
func TestMulRange(t *testing.T) {
	impl.TestAll(t, "gemm", func(t *testing.T) {
		r := rand.New(rand.NewPCG(3, 4))
		nan := float32(math.NaN())
		cases := 150
		if testing.Short() {
			cases = 40
		}
		for i := range cases {
			m, n, k := 1+r.IntN(40), 1+r.IntN(200), 1+r.IntN(150)
			if i%4 == 0 {
				m, n = 1, 1+r.IntN(700)
			}
			n0, k0 := r.IntN(n), r.IntN(k)
			n1, k1 := n0+r.IntN(n-n0+1), k0+r.IntN(k-k0+1)
			lda, ldc := k+r.IntN(9), n+r.IntN(9)
			side := guard.Sides[i%2]
			// The last row ends where the last used number ends.
			a := guard.Slice[float32](t, max((m-1)*lda+k1, 1), side)
			for j := range a {
				a[j] = nan
				if p := j % lda; p >= k0 && p < k1 {
					a[j] = float32(r.NormFloat64())
				}
			}
			b := random(r, n*k)
			c := guard.Copy(t, random(r, max((m-1)*ldc+n1, 1)), side)
			want := append([]float32(nil), c...)
			var w Weights
			w.PackRows(n, k, b, k, 0)
			w.data = guard.Copy(t, w.data, side)
			add := r.IntN(2) == 0
			reference(want, ldc, a, lda, m, func(j, p int) float32 { return b[j*k+p] }, n0, n1, k0, k1, add)
			MulRange(c, ldc, a, lda, m, &w, n0, n1, k0, k1, add, 1+r.IntN(5))
			equalBits(t, fmt.Sprintf("case %d: %dx%dx%d n [%d,%d) k [%d,%d) add %v", i, m, n, k, n0, n1, k0, k1, add), c, want)
		}
	})
}

// TestSplitK computes one product in pieces of k, which must not change a bit.
func TestSplitK(t *testing.T) {
	impl.TestAll(t, "gemm", func(t *testing.T) {
		r := rand.New(rand.NewPCG(5, 6))
		const m, n, k = 13, 70, 1300
		a, b := random(r, m*k), random(r, n*k)
		var w Weights
		w.PackRows(n, k, b, k, 0)
		want, c := make([]float32, m*n), make([]float32, m*n)
		Mul(want, n, a, k, m, &w, 1)
		for i, k0 := 0, 0; k0 < k; i++ {
			k1 := min(k0+1+r.IntN(300), k)
			MulRange(c, n, a, k, m, &w, 0, n, k0, k1, i > 0, 1)
			k0 = k1
		}
		equalBits(t, "pieces of k", c, want)
	})
}

// TestTierChange multiplies with weights that were packed under another tier.
func TestTierChange(t *testing.T) {
	r := rand.New(rand.NewPCG(8, 9))
	const m, n, k = 5, 61, 33
	a, b := random(r, m*k), random(r, n*k)
	want := make([]float32, m*n)
	reference(want, n, a, k, m, func(j, p int) float32 { return b[j*k+p] }, 0, n, 0, k, false)
	names := append(impl.List("gemm"), "")
	t.Cleanup(func() { impl.Reset("gemm") })
	for _, from := range names {
		for _, to := range names {
			if !impl.Select("gemm", from) {
				continue
			}
			var w Weights
			w.PackRows(n, k, b, k, 0)
			if !impl.Select("gemm", to) {
				continue
			}
			c := make([]float32, m*n)
			Mul(c, n, a, k, m, &w, 2)
			equalBits(t, fmt.Sprintf("packed under %q, used under %q", from, to), c, want)
		}
	}
}

func TestPack(t *testing.T) {
	impl.TestAll(t, "gemm", func(t *testing.T) {
		r := rand.New(rand.NewPCG(10, 11))
		var reused Weights
		for _, n := range []int{0, 1, 15, 16, 17, 24, 40, 47, 48, 49, 96, 100, 300, 3} {
			for _, k := range []int{0, 1, 7, 64, 577} {
				ld := max(n, k) + 3
				b := random(r, ld*max(n, k))
				var rows, fromT Weights
				rows.PackRows(n, k, b, ld, 3)
				// The transpose of b, packed as a transpose.
				bt := make([]float32, k*n)
				for j := range n {
					for p := range k {
						bt[p*n+j] = b[j*ld+p]
					}
				}
				fromT.PackT(n, k, bt, n, 3)
				reused.data = reused.data[:cap(reused.data)]
				for i := range reused.data {
					reused.data[i] = float32(math.NaN())
				}
				if err := reused.Pack(n, k, func(row int, dst []float32) error {
					copy(dst, b[row*ld:row*ld+k])
					return nil
				}, 3); err != nil {
					t.Fatal(err)
				}
				if reused.N() != n || reused.K() != k {
					t.Fatalf("N, K = %d, %d, want %d, %d", reused.N(), reused.K(), n, k)
				}
				if len(reused.data) != len(rows.data) || len(fromT.data) != len(rows.data) {
					t.Fatalf("%dx%d: packed sizes %d, %d, %d", n, k, len(rows.data), len(fromT.data), len(reused.data))
				}
				what := fmt.Sprintf("%d x %d", n, k)
				equalBits(t, "Pack "+what, reused.data, rows.data)
				equalBits(t, "PackT "+what, fromT.data, rows.data)
			}
		}
	})
}

func TestPackErrors(t *testing.T) {
	var w Weights
	bad := errors.New("bad block")
	for threads := range 6 {
		err := w.Pack(500, 8, func(row int, dst []float32) error {
			if row == 123 || row == 124 || row > 300 {
				return bad
			}
			return nil
		}, threads)
		if !errors.Is(err, bad) || err.Error() != "row 123 of 500: bad block" {
			t.Fatalf("error %v, want that of row 123", err)
		}
		if w.N() != 0 || w.K() != 0 {
			t.Fatalf("after an error the weights are %d x %d, want empty", w.N(), w.K())
		}
	}
	never := func(int, []float32) error { t.Error("row function called"); return nil }
	for _, s := range [][2]int{{-1, 1}, {1, -1}, {maxElements, 1}, {math.MaxInt >> 9, 1 << 9}, {math.MaxInt, math.MaxInt},
		{1, math.MaxInt}, {math.MaxInt, 1}} {
		if err := w.Pack(s[0], s[1], never, 1); err == nil {
			t.Errorf("Pack of %d x %d gives no error", s[0], s[1])
		}
	}
}

// TestMisuse checks that wrong sizes panic in the caller, before C is written.
func TestMisuse(t *testing.T) {
	var w Weights
	w.PackRows(10, 20, make([]float32, 200), 20, 1)
	a, c := make([]float32, 100), make([]float32, 50)
	c[0] = 7
	for name, f := range map[string]func(){
		"A short":     func() { Mul(c, 10, a[:99], 20, 5, &w, 2) },
		"C short":     func() { Mul(c[:49], 10, a, 20, 5, &w, 2) },
		"lda small":   func() { Mul(c, 10, a, 19, 5, &w, 2) },
		"ldc small":   func() { Mul(c, 9, a, 20, 5, &w, 2) },
		"m negative":  func() { Mul(c, 10, a, 20, -1, &w, 2) },
		"lda overflo": func() { Mul(c, 10, a, math.MaxInt, 5, &w, 2) },
		"n1 large":    func() { MulRange(c, 10, a, 20, 5, &w, 0, 11, 0, 20, false, 1) },
		"n0 > n1":     func() { MulRange(c, 10, a, 20, 5, &w, 3, 2, 0, 20, false, 1) },
		"k1 large":    func() { MulRange(c, 10, a, 20, 5, &w, 0, 10, 0, 21, false, 1) },
		"k0 negative": func() { MulRange(c, 10, a, 20, 5, &w, 0, 10, -1, 20, false, 1) },
		"pack short":  func() { new(Weights).PackRows(10, 20, a, 20, 1) },
		"packT short": func() { new(Weights).PackT(20, 10, a, 20, 1) },
	} {
		func() {
			defer func() {
				msg, ok := recover().(string)
				if !ok || !strings.HasPrefix(msg, "gemm: ") {
					t.Errorf("%s: recovered %v, want a message of this package", name, msg)
				}
			}()
			f()
		}()
	}
	if c[0] != 7 {
		t.Error("C was written before the panic")
	}
	// Empty products are fine.
	Mul(nil, 0, nil, 0, 0, &w, 1)
	var empty Weights
	Mul(nil, 0, a, 20, 5, &empty, 1)
	var flat Weights
	flat.PackRows(10, 0, nil, 0, 1)
	Mul(c, 10, nil, 0, 5, &flat, 1)
	if c[0] != 0 {
		t.Error("a product over no k must be zero")
	}
}

// TestDispatch starts this test binary anew with CPU features switched off.
func TestDispatch(t *testing.T) {
	if os.Getenv("GEMM_PRINT_TIER") != "" {
		fmt.Printf("tier=%s\n", Tier())
		return
	}
	full := Tier()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ off, from, to string }{
		{"cpu.avx512f=off", "avx512", "avx2"},
		{"cpu.avx2=off", "avx512", "generic"},
		{"cpu.fma=off", "avx512", "generic"},
		{"cpu.avx2=off", "avx2", "generic"},
		{"cpu.all=off", "avx512", "generic"},
		{"cpu.all=off", "avx2", "generic"},
		{"cpu.asimd=off", "neon", "generic"},
	} {
		t.Run(c.from+"/"+c.off, func(t *testing.T) {
			if full != c.from {
				t.Skipf("this machine uses %s", full)
			}
			cmd := exec.Command(self, "-test.run=^TestDispatch$")
			cmd.Env = append(os.Environ(), "GODEBUG="+c.off, "GEMM_PRINT_TIER=1")
			out, err := cmd.CombinedOutput()
			if errors.Is(err, syscall.ENOEXEC) {
				t.Skip("the system cannot start this binary by itself (user-mode emulation)")
			}
			if err != nil || !strings.Contains(string(out), "tier="+c.to+"\n") {
				t.Errorf("GODEBUG=%s: %v, want tier=%s in\n%s", c.off, err, c.to, out)
			}
		})
	}
}

// anyFloat returns any bit pattern, with the extremes more often than chance.
func anyFloat(r *rand.Rand) float32 {
	u := r.Uint32()
	if r.IntN(4) == 0 {
		u = u&0x807fffff | uint32(r.IntN(4)*84+r.IntN(3))<<23
	}
	return math.Float32frombits(u)
}

// FuzzTiers multiplies arbitrary bit patterns on every tier.
func FuzzTiers(f *testing.F) {
	f.Add(uint64(1), uint8(5), uint8(50), uint8(9), []byte{0, 0, 0x80, 0x7f, 1, 0, 0, 0, 0xff, 0xff, 0x7f, 0x7f})
	f.Add(uint64(2), uint8(9), uint8(97), uint8(40), []byte("sixteen or more bytes"))
	f.Fuzz(func(t *testing.T, seed uint64, m8, n8, k8 uint8, special []byte) {
		m, n, k := int(m8%20), int(n8), int(k8)
		r := rand.New(rand.NewPCG(seed, 0))
		fill := func(size int) []float32 {
			x := make([]float32, size)
			for i := range x {
				if len(special) >= 4 && r.IntN(8) == 0 {
					at := r.IntN(len(special) - 3)
					x[i] = math.Float32frombits(binary.LittleEndian.Uint32(special[at:]))
				} else {
					x[i] = anyFloat(r)
				}
			}
			return x
		}
		a, b, c0 := fill(m*k), fill(n*k), fill(m*n)
		want := append([]float32(nil), c0...)
		reference(want, n, a, k, m, func(j, p int) float32 { return b[j*k+p] }, 0, n, 0, k, true)
		defer impl.Reset("gemm")
		for _, name := range append(impl.List("gemm"), "") {
			if !impl.Select("gemm", name) {
				continue
			}
			var w Weights
			w.PackRows(n, k, b, k, 2)
			c := append([]float32(nil), c0...)
			MulAdd(c, n, a, k, m, &w, 2)
			for i, x := range c {
				if math.Float32bits(x) != math.Float32bits(want[i]) && (x == x || want[i] == want[i]) {
					t.Fatalf("tier %q, %dx%dx%d: number %d is %x, want %x", name, m, n, k, i, x, want[i])
				}
			}
		}
	})
}

// TestPeak only looks for nonsense: the rate itself is the machine's affair.
func TestPeak(t *testing.T) {
	impl.TestAll(t, "gemm", func(t *testing.T) {
		if rate := Peak(1, time.Millisecond); !(rate > 1e6 && rate < 1e14) {
			t.Errorf("peak of %g operations per second", rate)
		}
	})
}

// TestTranspose also reuses a buffer, of another size.
func TestTranspose(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	var dst []float32
	for _, s := range [][2]int{{1, 1}, {17, 33}, {16, 16}, {0, 5}, {5, 0}, {64, 15}, {3, 100}} {
		x := random(r, s[0]*s[1])
		dst = Transpose(dst, x, s[0], s[1])
		for i := range s[0] {
			for j := range s[1] {
				if dst[j*s[0]+i] != x[i*s[1]+j] {
					t.Fatalf("%d x %d: wrong number at %d, %d", s[0], s[1], i, j)
				}
			}
		}
	}
}
