package linalg

import (
	"math"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/phaseconv/phaseconv/kernels/internal/asmcheck"
	"github.com/phaseconv/phaseconv/kernels/internal/guard"
	"github.com/phaseconv/phaseconv/kernels/internal/impl"
)

func TestRequires(t *testing.T) {
	asm, err := os.ReadFile("linalg_amd64.s")
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range asmcheck.Requires(string(asm), asmcheck.AMD64) {
		t.Error(err)
	}
}

func sameBits(t *testing.T, name string, n int, got, want []float64) {
	t.Helper()
	for i, w := range want {
		if math.Float64bits(got[i]) != math.Float64bits(w) {
			t.Fatalf("%s, n = %d: number %d is %x, in index order %x", name, n, i, got[i], w)
		}
	}
}

// TestPanels: every tier gives the bits of sums in index order, in guarded memory.
func TestPanels(t *testing.T) {
	impl.TestAll(t, "linalg", func(t *testing.T) {
		r := rand.New(rand.NewPCG(3, 8))
		for _, n := range []int{0, 1, 2, 3, 17, 64} {
			for _, side := range guard.Sides {
				y, x := guard.Copy(t, gaussians(r, panel), side), guard.Copy(t, gaussians(r, n*panel), side)
				coef, want := guard.Copy(t, gaussians(r, n), side), append([]float64(nil), y...)
				for i, c := range coef {
					for j := range want {
						want[j] -= float64(c * x[i*panel+j])
					}
				}
				subProducts(y, coef, x)
				sameBits(t, "subProducts", n, y, want)
			}
		}
		for _, n := range []int{1, 2, 5, 31, 32, 33, 70, 96} {
			const d = 37
			x, y := Float32(gaussians(r, n*d)), Float32(gaussians(r, n*d))
			inner, gram := make([]float64, n*n), make([]float64, n*n)
			for i := range n {
				for j := range n {
					inner[i*n+j] = Dot64(x[i*d:(i+1)*d], y[j*d:(j+1)*d])
					gram[i*n+j] = Dot64(x[i*d:(i+1)*d], x[j*d:(j+1)*d])
				}
			}
			sameBits(t, "InnerProducts", n, InnerProducts(x, y, n, d), inner)
			sameBits(t, "Gram", n, Gram(x, n, d), gram)
			b := gaussians(r, n*n)
			product, single := make([]float64, n*n), make([]float64, d*n)
			bt, xs := Transpose(b, n), Float32(gaussians(r, d*n))
			for i := range n {
				DotRows(product[i*n:(i+1)*n], b[i*n:(i+1)*n], bt)
			}
			sameBits(t, "Product", n, Product(b, b, n), product)
			for i := range d {
				for j := range n {
					for k := range n {
						single[i*n+j] += float64(float64(xs[i*n+k]) * b[k*n+j])
					}
					single[i*n+j] = float64(float32(single[i*n+j]))
				}
			}
			sameBits(t, "Multiply", n, Float64(Multiply(xs, b, d, n)), single)
			a := append([]float64(nil), gram...)
			for i := range n {
				a[i*n+i] += d
			}
			l, err := cholesky(a, n)
			if err != nil {
				t.Fatal(err)
			}
			sameBits(t, "Cholesky", n, l, plainCholesky(a, n))
			for _, m := range []int{1, 3, 4, 32, 33, 39, 64} {
				rhs := gaussians(r, m*n)
				sameBits(t, "SolveRight", n, solveRight(rhs, m, l, n), plainSolve(rhs, m, l, n))
			}
		}
	})
}

// plainCholesky and plainSolve are the definitions, every sum in index order.
func plainCholesky(a []float64, n int) []float64 {
	l := make([]float64, n*n)
	for i := range n {
		for j := range i + 1 {
			s := a[i*n+j]
			for k := range j {
				s -= float64(l[i*n+k] * l[j*n+k])
			}
			if l[i*n+j] = math.Sqrt(s); i != j {
				l[i*n+j] = s / l[j*n+j]
			}
		}
	}
	return l
}

func plainSolve(a []float64, m int, l []float64, n int) []float64 {
	x := append([]float64(nil), a...)
	for r := range m {
		row := x[r*n : (r+1)*n]
		for i := range n {
			for k := range i {
				row[i] -= float64(l[i*n+k] * row[k])
			}
			row[i] /= l[i*n+i]
		}
		for i := n - 1; i >= 0; i-- {
			for k := i + 1; k < n; k++ {
				row[i] -= float64(l[k*n+i] * row[k])
			}
			row[i] /= l[i*n+i]
		}
	}
	return x
}

func BenchmarkSolve(b *testing.B) {
	impl.TestAll(b, "linalg", func(b *testing.B) {
		const n, m = 576, 384
		r := rand.New(rand.NewPCG(1, 1))
		a := Gram(Float32(gaussians(r, n*n)), n, n)
		for i := range n {
			a[i*n+i] += n
		}
		rhs := gaussians(r, m*n)
		b.Run("cholesky", func(b *testing.B) {
			for b.Loop() {
				if _, err := cholesky(a, n); err != nil {
					b.Fatal(err)
				}
			}
		})
		l, err := cholesky(a, n)
		if err != nil {
			b.Fatal(err)
		}
		b.Run("solve", func(b *testing.B) {
			for b.Loop() {
				solveRight(rhs, m, l, n)
			}
		})
		x := Float32(rhs)
		b.Run("gram", func(b *testing.B) {
			for b.Loop() {
				Gram(x, n, m)
			}
		})
	})
}
