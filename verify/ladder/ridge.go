package ladder

import (
	"context"
	"math"

	"github.com/phaseconv/phaseconv/kernels/gemm"
	"github.com/phaseconv/phaseconv/kernels/linalg"
	"github.com/phaseconv/phaseconv/kernels/parallel"
)

// A ridge corrects a layer's outputs by a linear map of [outputs, layer input, 1], fitted to
// what the outputs lack on fit text. It needs no state.
type ridge struct {
	l       *layer
	skip    int         // first positions of a window, which are exact or nearly so
	exact   [][]float32 // outputs, [T, heads*d], of each window
	oScale  float32     // one over the size of outputs and inputs
	xScale  float32
	columns int
}

func newRidge(l *layer) *ridge {
	width := l.y.Heads * l.y.HeadDim
	r := &ridge{l: l, skip: l.T / 4, columns: width + l.hidden + 1}
	sum, n := 0.0, 0
	for w := range l.windows {
		o := make([]float32, l.T*width)
		for h := range l.y.KVHeads {
			x := l.head(w, h)
			place(o, x.O, x, h, l.y.Heads)
		}
		r.exact = append(r.exact, o)
		if w < l.fit {
			sum += linalg.Dot64(o, o)
			n += len(o)
		}
	}
	inverse := func(sum float64, n int) float32 { return float32(1 / math.Sqrt(sum/float64(n)+1e-30)) }
	r.oScale = inverse(sum, n)
	x := l.X[:l.fit*l.T*l.hidden]
	r.xScale = inverse(linalg.Dot64(x, x), len(x))
	return r
}

// rows appends the regression's inputs for window w.
func (r *ridge) rows(dst []float32, o []float32, w int) []float32 {
	width, H := r.l.y.Heads*r.l.y.HeadDim, r.l.hidden
	for t := r.skip; t < r.l.T; t++ {
		for _, v := range o[t*width : (t+1)*width] {
			dst = append(dst, v*r.oScale)
		}
		for _, v := range r.l.X[(w*r.l.T+t)*H:][:H] {
			dst = append(dst, v*r.xScale)
		}
		dst = append(dst, 1)
	}
	return dst
}

// penalties are what is added to the diagonal, times the number of rows.
var penalties = []float64{0.003, 0.03, 0.3, 3}

// correct measures outputs of all windows after correction. A negative penalty is chosen: the
// one with the smallest error on the last quarter of the fit windows, when fitted to the others.
func (r *ridge) correct(ctx context.Context, outputs [][]float32, penalty float64) (
	e fitAndHeld, chosen float64, err error,
) {
	l := r.l
	if penalty < 0 {
		if penalty, err = r.choose(ctx, outputs); err != nil {
			return e, 0, err
		}
	}
	A, B, n := r.normal(outputs, l.fit)
	m, err := r.solve(ctx, A, B, float64(penalty*n))
	if err != nil {
		return e, 0, err
	}
	for w := range l.windows {
		switch s := r.compare(outputs[w], m, w); {
		case w >= l.fit:
			e.out.add(s)
		case w < l.eval:
			e.fit.add(s)
		}
	}
	return e, penalty, nil
}

// choose returns the best of the penalties, the largest where one window is all there is.
func (r *ridge) choose(ctx context.Context, outputs [][]float32) (float64, error) {
	penalty, best := penalties[len(penalties)-1], math.Inf(1)
	train := max(1, r.l.fit*3/4)
	if train == r.l.fit {
		return penalty, nil
	}
	A, B, n := r.normal(outputs, train)
	for _, p := range penalties {
		m, err := r.solve(ctx, A, B, float64(p*n))
		if err != nil {
			return 0, err
		}
		var s squares
		for w := train; w < r.l.fit; w++ {
			s.add(r.compare(outputs[w], m, w))
		}
		if s.rel() < best {
			best, penalty = s.rel(), p
		}
	}
	return penalty, nil
}

// normal returns X^T X, what is missing times X, [outputs, columns], and the number of rows, for
// windows [0, to).
func (r *ridge) normal(outputs [][]float32, to int) (A, B []float32, n float64) {
	width := r.l.y.Heads * r.l.y.HeadDim
	var x, y []float32
	for w := range to {
		x = r.rows(x, outputs[w], w)
		for i := r.skip * width; i < r.l.T*width; i++ {
			y = append(y, r.exact[w][i]-outputs[w][i])
		}
	}
	rows := len(x) / r.columns
	xt, yt := gemm.Transpose(nil, x, rows, r.columns), gemm.Transpose(nil, y, rows, width)
	var p gemm.Weights
	p.PackRows(r.columns, rows, xt, rows, r.l.threads)
	A, B = make([]float32, r.columns*r.columns), make([]float32, width*r.columns)
	gemm.Mul(A, r.columns, xt, rows, r.columns, &p, r.l.threads)
	gemm.Mul(B, r.columns, yt, rows, width, &p, r.l.threads)
	return A, B, float64(rows)
}

// solve returns the map, [outputs, columns].
func (r *ridge) solve(ctx context.Context, A, B []float32, penalty float64) ([]float32, error) {
	n := r.columns
	a := make([]float64, n*n)
	for i := range a {
		a[i] = (float64(A[i]) + float64(A[i%n*n+i/n])) / 2
	}
	for i := range n {
		a[i*n+i] += penalty
	}
	root, err := linalg.Cholesky(ctx, a, n)
	if err != nil {
		return nil, err
	}
	// SolveRight solves X L L^T = B, row by row.
	out := make([]float32, len(B))
	const step = 16
	rows := len(B) / n
	err = parallel.For(ctx, r.l.threads, (rows+step-1)/step, func(i int) error {
		from, to := i*step*n, min(rows, (i+1)*step)*n
		b := make([]float64, to-from)
		linalg.AddTo32(b, B[from:to])
		m, err := linalg.SolveRight(ctx, b, len(b)/n, root, n)
		copy(out[from:to], linalg.Float32(m))
		return err
	})
	return out, err
}

// compare measures the corrected outputs of window w at its scored positions.
func (r *ridge) compare(o, m []float32, w int) (s squares) {
	width := r.l.y.Heads * r.l.y.HeadDim
	add := product(r.rows(nil, o, w), m, r.columns)
	for t := r.l.T / 2; t < r.l.T; t++ {
		for i, want := range r.exact[w][t*width : (t+1)*width] {
			got := float64(o[t*width+i]) + float64(add[(t-r.skip)*width+i])
			diff := got - float64(want)
			s.diff += float64(diff * diff)
			s.norm += float64(float64(want) * float64(want))
		}
	}
	return s
}
