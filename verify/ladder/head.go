package ladder

import (
	"context"
	"math"

	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/kernels/fmath"
	"github.com/phaseconv/phaseconv/kernels/gemm"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// activations are what the attention of one layer works on, fit windows first.
type activations struct {
	layer   int
	y       *family.Layer
	hidden  int
	T       int
	windows int
	X       []float32 // normed input, [windows*T, hidden]; nil where nobody asks for it
	Q, K, V []float32 // after RoPE, [windows*T, heads*head_dim]
	fit     int       // the first windows were fitted to, the others are held out
}

// capture copies what a hook of the forward pass is shown.
func capture(c *family.Config, a *refmodel.Attention, fit int, input bool) *activations {
	x := &activations{layer: a.Layer, y: &c.Layers[a.Layer], hidden: c.Hidden, T: a.T, windows: a.Windows, fit: fit}
	clone := func(s []float32) []float32 { return append([]float32(nil), s...) }
	x.Q, x.K, x.V = clone(a.Q), clone(a.K), clone(a.V)
	if input {
		x.X = clone(a.X)
	}
	return x
}

// A head is the attention of the query heads that share one KV head, in one window.
type head struct {
	T, d, G int
	Q       []float32 // [G*T, d], times the scale of scores
	K, V    []float32 // [T, d]

	e []float32 // exp(q.k - c) for keys up to the query's own, [G*T, T]
	c []float32 // largest score of each query, [G*T]
	Z []float64 // sum of e over keys, [G*T]
	O []float32 // exact outputs, [G*T, d]
}

// head gathers window w of KV head h and computes its exact attention.
func (a *activations) head(w, h int) *head {
	y, T, d := a.y, a.T, a.y.HeadDim
	x := &head{T: T, d: d, G: y.Group()}
	x.Q, x.K, x.V = make([]float32, x.G*T*d), make([]float32, T*d), make([]float32, T*d)
	qw, kw := y.Heads*d, y.KVHeads*d
	scale := float32(y.Scale)
	for t := range T {
		row := w*T + t
		copy(x.K[t*d:(t+1)*d], a.K[row*kw+h*d:])
		copy(x.V[t*d:(t+1)*d], a.V[row*kw+h*d:])
		for g := range x.G {
			dst := x.Q[(g*T+t)*d : (g*T+t+1)*d]
			for i, q := range a.Q[row*qw+(h*x.G+g)*d:][:d] {
				dst[i] = q * scale
			}
		}
	}
	x.exact()
	return x
}

func (x *head) exact() {
	T, d, rows := x.T, x.d, x.G*x.T
	var kw, vw gemm.Weights
	kw.PackRows(T, d, x.K, d, 1)
	vw.PackT(d, T, x.V, d, 1)
	x.e, x.c, x.Z, x.O = make([]float32, rows*T), make([]float32, rows), make([]float64, rows), make([]float32, rows*d)
	gemm.Mul(x.e, T, x.Q, d, rows, &kw, 1)
	for r := range rows {
		row := x.e[r*T : (r+1)*T]
		n := r%T + 1
		x.c[r] = fmath.Max(row[:n])
		x.Z[r] = fmath.ExpSum(row[:n], row[:n], x.c[r], 1)
		clear(row[n:])
	}
	gemm.Mul(x.O, d, x.e, T, rows, &vw, 1)
	for r := range rows {
		divide(x.O[r*d:(r+1)*d], x.Z[r])
	}
}

func divide(x []float32, z float64) {
	for i := range x {
		x[i] = float32(float64(x[i]) / z)
	}
}

// near splits the sums of softmax: N [G*T, d] and D [G*T] are numerator and denominator over
// the last W keys and the first S, relative to exp(c).
func (x *head) near(W, S int) (N []float32, D []float64) {
	T, d, rows := x.T, x.d, x.G*x.T
	e := make([]float32, rows*T)
	N, D = make([]float32, rows*d), make([]float64, rows)
	for r := range rows {
		t := r % T
		from, to := r*T, r*T+t+1
		first := min(S, t+1)
		last := max(first, t+1-W)
		copy(e[from:from+first], x.e[from:from+first])
		copy(e[from+last:to], x.e[from+last:to])
		for _, v := range e[from:to] {
			D[r] += float64(v)
		}
	}
	var vw gemm.Weights
	vw.PackT(d, T, x.V, d, 1)
	gemm.Mul(N, d, e, T, rows, &vw, 1)
	return N, D
}

// tinyZ stands for estimated weights that are all 0.
const tinyZ = 1e-30

// far adds estimated weights of the keys between sinks and window, P [G*T, T] relative to
// exp(c), to the exact sums, and returns the outputs. It changes P.
func (x *head) far(P, N []float32, D []float64, W, S int) []float32 {
	T, d, rows := x.T, x.d, x.G*x.T
	O, sum := make([]float32, rows*d), make([]float64, rows)
	for r := range rows {
		t := r % T
		row := P[r*T : (r+1)*T]
		first := min(S, t+1)
		last := max(first, t+1-W)
		clear(row[:first])
		clear(row[last:])
		sum[r] = D[r]
		for _, v := range row[first:last] {
			sum[r] += float64(v)
		}
	}
	var vw gemm.Weights
	vw.PackT(d, T, x.V, d, 1)
	gemm.Mul(O, d, P, T, rows, &vw, 1)
	for r := range rows {
		o := O[r*d : (r+1)*d]
		for i := range o {
			o[i] = float32((float64(N[r*d+i]) + float64(o[i])) / max(sum[r], tinyZ))
		}
	}
	return O
}

// windowOnly returns the outputs without anything between sinks and window.
func (x *head) windowOnly(N []float32, D []float64) []float32 {
	O := append([]float32(nil), N...)
	for r := range D {
		divide(O[r*x.d:(r+1)*x.d], D[r])
	}
	return O
}

// squares holds sums over the scored positions, the second half of a window: of the squared
// difference from the exact outputs, and of those.
type squares struct{ diff, norm float64 }

func (s *squares) add(o squares) { s.diff += o.diff; s.norm += o.norm }

// rel is the relative L2 error.
func (s squares) rel() float64 {
	if s.norm == 0 {
		return 0
	}
	return math.Sqrt(s.diff / s.norm)
}

// compare measures outputs against the exact ones.
func (x *head) compare(O []float32) (s squares) {
	for r := range x.G * x.T {
		if r%x.T < x.T/2 {
			continue
		}
		for i, want := range x.O[r*x.d : (r+1)*x.d] {
			diff := float64(O[r*x.d+i]) - float64(want)
			s.diff += float64(diff * diff)
			s.norm += float64(float64(want) * float64(want))
		}
	}
	return s
}

// stop returns the reason why ctx ended, nil if it did not.
func stop(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}
