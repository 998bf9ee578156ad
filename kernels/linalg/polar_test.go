package linalg

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"testing"
)

func floats32(x []float64) []float32 {
	out := make([]float32, len(x))
	for i, v := range x {
		out[i] = float32(v)
	}
	return out
}

func floats64(x []float32) []float64 {
	out := make([]float64, len(x))
	for i, v := range x {
		out[i] = float64(v)
	}
	return out
}

func trace(r, c []float64) (s float64) { return Dot(r, c) }

// nuclear returns the sum of the singular values of c, the largest trace that an
// orthogonal matrix can reach: the square roots of the eigenvalues of c^T c.
func nuclear(c []float64, n int) (sum float64) {
	sq := make([]float64, n*n)
	for i := range n {
		for j := range n {
			for k := range n {
				sq[i*n+j] += c[k*n+i] * c[k*n+j]
			}
		}
	}
	values, _ := eigen(sq, n)
	for _, v := range values {
		sum += math.Sqrt(max(v, 0))
	}
	return sum
}

// polarCases are matrices with what makes them hard.
func polarCases() map[string][]float64 {
	r := rand.New(rand.NewPCG(9, 10))
	cases := map[string][]float64{}
	for _, n := range []int{1, 2, 3, 8, 31, 64} {
		cases[fmt.Sprint("random ", n)] = gaussians(r, n*n)
	}
	ones := make([]float64, 64)
	for i := range ones {
		ones[i] = 1
	}
	cases["all ones"] = ones // exactly of rank 1: nothing that the iteration could grow
	// The largest singular vector is at right angles to (1, ..., 1), where the
	// power steps begin.
	trap := Identity(4)
	trap[0], trap[1], trap[4], trap[5] = 100, -100, -100, 100
	cases["hidden top"] = trap
	alone := make([]float64, 4)
	alone[0], alone[1], alone[2], alone[3] = 1, -1, -1, 1
	cases["only a hidden top"] = alone
	half := gaussians(r, 256)
	clear(half[128:])
	cases["rows of zero"] = half
	cols := gaussians(r, 256)
	for i := range cols {
		if i%16 > 9 {
			cols[i] = 0
		}
	}
	cases["columns of zero"] = cols
	few := make([]float64, 256) // rank 5 of 16
	for range 5 {
		u, v := gaussians(r, 16), gaussians(r, 16)
		for i := range few {
			few[i] += u[i/16] * v[i%16]
		}
	}
	cases["rank 5"] = few
	graded := symmetric(r, []float64{1, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, -1})
	cases["graded"] = graded
	cases["-1"] = []float64{-2}
	for _, s := range []float64{1e30, 1e-30} {
		x := gaussians(r, 64)
		for i := range x {
			x[i] *= s
		}
		cases[fmt.Sprint("scale ", s)] = x
	}
	q := gaussians(r, 400)
	Orthonormalize(q, 20)
	cases["orthogonal"] = q
	return cases
}

// polarError returns how far r is from orthogonal, and by how much its trace
// misses the maximum, as a share of it.
func polarError(r, c []float64, n int) (ortho, gap float64) {
	best := nuclear(c, n)
	return orthoError(r, n), 1 - trace(r, c)/best
}

// Float32 entries err by 6e-8; an inner product of n of them that ended the
// iteration may be off by 4e-6 (its threshold), and the threshold leaves as much
// of the trace.
const (
	polarOrtho = 8e-6
	polarGap   = 1e-5
)

func TestPolar(t *testing.T) {
	rnd := rand.New(rand.NewPCG(11, 12))
	for name, c := range polarCases() {
		n := int(math.Sqrt(float64(len(c))))
		c32 := floats32(c)
		c = floats64(c32)
		r := floats64(polar(c32, n, 1))
		ortho, gap := polarError(r, c, n)
		if !(ortho < polarOrtho) || !(gap < polarGap) {
			t.Errorf("%s: off orthogonal by %.2g, below the largest trace by %.2g of it", name, ortho, gap)
		}
		// No other orthogonal matrix does better: random ones, and ones nearby.
		best := trace(r, c)
		for i := range 30 {
			g := gaussians(rnd, n*n)
			if i%2 == 1 {
				for j := range g {
					g[j] = r[j] + 0.05*g[j]
				}
			}
			Orthonormalize(g, n)
			if v := trace(g, c); v > best+1e-5*math.Abs(best) {
				t.Errorf("%s: a competitor has the trace %g, Polar %g", name, v, best)
			}
		}
		// Orthogonal takes the float32 rounding out, up to that of its result.
		o := floats64(Orthogonal(polar(c32, n, 1), n))
		if e := orthoError(o, n); !(e < 3e-7) {
			t.Errorf("%s: after Orthogonal off by %.2g", name, e)
		}
		if _, gap := polarError(o, c, n); !(gap < polarGap) {
			t.Errorf("%s: Orthogonal lost %.2g of the trace", name, gap)
		}
		// The checks can fail.
		if n > 1 {
			r[0] += 1e-4
			if e := orthoError(r, n); e < polarOrtho {
				t.Errorf("%s: the check does not see a wrong entry (%.2g)", name, e)
			}
			worse := gaussians(rnd, n*n)
			Orthonormalize(worse, n)
			if _, gap := polarError(worse, c, n); gap < polarGap {
				t.Errorf("%s: the check takes a random matrix for the best", name)
			}
		}
	}
}

// TestPolarReference compares entry by entry with c (c^T c)^-1/2 in float64, on
// matrices of full rank, for which there is just one answer.
func TestPolarReference(t *testing.T) {
	r := rand.New(rand.NewPCG(13, 14))
	for _, n := range []int{2, 5, 16, 64} {
		c32 := floats32(gaussians(r, n*n))
		for i := range n {
			c32[i*n+i] += float32(math.Sqrt(float64(n))) // singular values away from zero
		}
		c := floats64(c32)
		sq := make([]float64, n*n)
		for i := range n {
			for j := range n {
				for k := range n {
					sq[i*n+j] += c[k*n+i] * c[k*n+j]
				}
			}
		}
		values, v := eigen(sq, n)
		condition := math.Sqrt(values[0] / values[n-1])
		inv := SymmetricPower(values, v, n, func(x float64) float64 { return 1 / math.Sqrt(x) })
		want := make([]float64, n*n)
		for i := range n {
			for k := range n {
				for j := range n {
					want[i*n+j] += c[i*n+k] * inv[k*n+j]
				}
			}
		}
		var worst float64
		for name, got := range map[string][]float32{"iteration": polar(c32, n, 1), "eigenvectors": byEigen(c32, n)} {
			for i, x := range got {
				worst = max(worst, math.Abs(float64(x)-want[i]))
			}
			// The factor's sensitivity is the condition number.
			if tol := 2e-6 * condition; !(worst < tol) {
				t.Errorf("n %d, %s: off by %.2g, allowed %.2g", n, name, worst, tol)
			}
		}
	}
}

// TestPolarReturns: what has no answer gets an end.
func TestPolarReturns(t *testing.T) {
	if r := polar(make([]float32, 9), 3, 1); !slices.Equal(r, floats32(Identity(3))) {
		t.Errorf("zero: %v", r)
	}
	for _, x := range []float64{math.NaN(), math.Inf(1), math.MaxFloat32} {
		if r := polar([]float32{1, 2, float32(x), 4}, 2, 1); len(r) != 4 {
			t.Error("length")
		}
	}
}

// digest covers the bits of everything that a fit uses.
func digest(threads int) string {
	h := sha256.New()
	put := func(x any) { binary.Write(h, binary.LittleEndian, x) }
	r := rand.New(rand.NewPCG(15, 16))
	uniform := func(n int) []float64 { // no NormFloat64: its tails use math.Log and math.Exp
		x := make([]float64, n)
		for i := range x {
			x[i] = r.Float64()*2 - 1
		}
		return x
	}
	for _, n := range []int{7, 64, 96} {
		c := floats32(uniform(n * n))
		p := polar(c, n, threads)
		put(p)
		put(Orthogonal(p, n))
		clear(c[3*n : 4*n])
		put(byEigen(c, n))
		a := uniform(n * n)
		Orthonormalize(a, n)
		put(a)
		for i := range n {
			for j := range i {
				a[i*n+j] = a[j*n+i]
			}
		}
		values, v := eigen(a, n)
		put(values)
		put(v)
		pos := SymmetricPower(values, v, n, func(x float64) float64 { return math.Sqrt(1 + math.Abs(x)) })
		put(pos)
		l, err := cholesky(pos, n)
		if err != nil {
			panic(err)
		}
		put(solveRight(uniform(3*n), 3, l, n))
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

// The bits on every machine, whatever instructions it has.
const golden = "47ca875678aaa12d27862a44581d059ae9cbfcfefcbaa007f014c5c7e50dc9fb"

func TestGolden(t *testing.T) {
	for _, threads := range []int{1, 4} {
		got := digest(threads)
		if got != golden {
			t.Errorf("%d threads: digest %s, want %s", threads, got, golden)
		}
	}
}

// TestTiers runs TestGolden in processes that hide instruction sets from the
// matrix kernels.
func TestTiers(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("tiers are switched off by GODEBUG on amd64 only")
	}
	for _, off := range []string{"cpu.avx512f=off", "cpu.avx512f=off,cpu.avx2=off"} {
		cmd := exec.Command(os.Args[0], "-test.run=^TestGolden$", "-test.v")
		cmd.Env = append(os.Environ(), "GODEBUG="+off)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("GODEBUG=%s: %v\n%s", off, err, out)
		}
	}
}
