package figures

import (
	"context"
	"math"

	"github.com/phaseconv/phaseconv/kernels/gemm"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/rotations/fit"
	"github.com/phaseconv/phaseconv/spec"
)

// Settings of the shown iteration.
const (
	convergeSteps = 40
	// polarSteps of Newton-Schulz; from a well-conditioned matrix of norm 1 it
	// needs about 10, each further step squares the error.
	polarSteps = 40
	polarDone  = 1e-6
)

// converge runs the plain L1-max fixed point R <- polar(sum sign(R x) x^T) from
// the identity, on centred unit keys, and measures it at every step on keys that
// it does not see as well.
func (p *measurer) converge(ctx context.Context, s *fit.Sample, held []float32) (*spec.Convergence, error) {
	d := s.D
	srht, err := codec.DataFree("srht", d, p.o.Seed, p.layer, p.head)
	if err != nil {
		return nil, err
	}
	mean := make([]float64, d)
	for i, v := range s.Keys {
		mean[i%d] += float64(v) / float64(s.N())
	}
	train, test := unit(s.Keys, mean), unit(held[:min(len(held), heldKeys*d)], mean)
	if len(train) == 0 || len(test) == 0 {
		return nil, nil
	}
	out := &spec.Convergence{Layer: p.layer, Head: p.head, Keys: len(train) / d, HeldOut: len(test) / d,
		TokensPerDim: float64(len(train)/d) / float64(d)}
	f, g := newL1(train, d, p.o.Threads), newL1(test, d, p.o.Threads)
	out.SRHT = round(g.value(srht.Decode))
	r := make([]float32, d*d)
	for i := range d {
		r[i*d+i] = 1
	}
	for step := range convergeSteps + 1 {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		out.Points = append(out.Points, [3]float64{float64(step), round(f.value(r)), round(g.value(r))})
		next, ok := polar(f.correlate(), d, p.o.Threads)
		if !ok {
			break // too few keys to span the space: the iteration has no unique next step
		}
		r = next
	}
	return out, nil
}

// unit returns keys minus a mean, with length one; those equal to it are left out.
func unit(keys []float32, mean []float64) []float32 {
	d := len(mean)
	var out []float32
	x := make([]float64, d)
	for i := 0; i+d <= len(keys); i += d {
		var ss float64
		for j := range x {
			x[j] = float64(keys[i+j]) - mean[j]
			ss += float64(x[j] * x[j])
		}
		if ss > 0 {
			for _, v := range x {
				out = append(out, float32(v/math.Sqrt(ss)))
			}
		}
	}
	return out
}

// l1 evaluates the mean of |R x|_1 / sqrt(d) over unit vectors x.
type l1 struct {
	d, n, threads int
	rows, cols    gemm.Weights
	y             []float32 // (R x)^T, [d, n]
}

func newL1(x []float32, d, threads int) *l1 {
	f := &l1{d: d, n: len(x) / d, threads: threads, y: make([]float32, len(x))}
	f.rows.PackRows(f.n, d, x, d, threads)
	f.cols.PackT(d, f.n, x, d, threads)
	return f
}

func (f *l1) value(r []float32) float64 {
	gemm.Mul(f.y, f.n, r, f.d, f.d, &f.rows, f.threads)
	var sum float64
	for _, v := range f.y {
		sum += math.Abs(float64(v))
	}
	return sum / float64(f.n) / math.Sqrt(float64(f.d))
}

// correlate returns sum sign(R x) x^T for the R of the last value, [d, d].
func (f *l1) correlate() []float32 {
	for i, v := range f.y {
		f.y[i] = float32(math.Copysign(1, float64(v)))
	}
	c := make([]float32, f.d*f.d)
	gemm.Mul(c, f.d, f.y, f.n, f.d, &f.cols, f.threads)
	return c
}

// polar returns the orthogonal factor of a square matrix by Newton-Schulz,
// X <- 1.5 X - 0.5 X X^T X; ok is false when it does not converge, which means
// that the matrix is close to singular.
func polar(x []float32, d, threads int) (out []float32, ok bool) {
	var norm float64
	for _, v := range x {
		norm += float64(v) * float64(v)
	}
	if norm = math.Sqrt(norm); norm == 0 {
		return nil, false
	}
	for i := range x {
		x[i] = float32(float64(x[i]) / norm)
	}
	gram, prod := make([]float32, d*d), make([]float32, d*d)
	for range polarSteps {
		var w, v gemm.Weights
		w.PackRows(d, d, x, d, threads)
		gemm.Mul(gram, d, x, d, d, &w, threads) // X X^T
		v.PackT(d, d, x, d, threads)
		gemm.Mul(prod, d, gram, d, d, &v, threads) // X X^T X
		worst := 0.0
		for i := range d {
			for j := range d {
				e := float64(gram[i*d+j])
				if i == j {
					e--
				}
				worst = max(worst, math.Abs(e))
			}
		}
		if worst < polarDone*float64(d) {
			return x, true
		}
		for i, p := range prod {
			x[i] = float32(1.5*x[i]) - float32(0.5*p)
		}
	}
	return nil, false
}
