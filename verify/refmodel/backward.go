package refmodel

import (
	"context"
	"math"
	"slices"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/kernels/fmath"
	"github.com/phaseconv/phaseconv/kernels/gemm"
	"github.com/phaseconv/phaseconv/kernels/linalg"
	"github.com/phaseconv/phaseconv/kernels/parallel"
)

// layerBack takes dx, the gradient behind layer l, to the gradient in front of it, in place, and
// calls visit on the way. x is the layer's input; what lies between is computed again.
func (m *Model) layerBack(ctx context.Context, l int, b *batch, x, dx []float32, visit func(g *Gradient) error) error {
	c, y := m.Config, &m.Config.Layers[l]
	n, d := b.rows(), y.HeadDim
	qw, kw := y.Heads*d, y.KVHeads*d
	w, err := m.loadAttention(ctx, l)
	if err != nil {
		return err
	}
	// Forward, as in attention. With a QK-norm its inputs are kept.
	in := linalg.Grow(&b.norm, n*c.Hidden)
	rmsNorm(in, x, w.gain, c.NormEps, m.Threads)
	q, k, v := make([]float32, n*qw), make([]float32, n*kw), make([]float32, n*kw)
	for i, p := range []struct{ dst, bias []float32 }{{q, w.qBias}, {k, w.kBias}, {v, w.vBias}} {
		if err := m.linear(ctx, p.dst, in, n, &m.mats[i], p.bias); err != nil {
			return err
		}
	}
	var qIn, kIn []float32
	if w.qNorm != nil {
		qIn, kIn = slices.Clone(q), slices.Clone(k)
		rmsNorm(q, q, w.qNorm, c.NormEps, m.Threads)
		rmsNorm(k, k, w.kNorm, c.NormEps, m.Threads)
	}
	table := m.ropeTable(l, b.T)
	turnHeads(q, n, y.Heads, d, b, table, c.Pairs, m.Threads)
	turnHeads(k, n, y.KVHeads, d, b, table, c.Pairs, m.Threads)
	a := &Attention{Layer: l, T: b.T, Windows: b.windows, X: in, Q: q, K: k, V: v, Rope: table}
	o := make([]float32, n*qw)
	if err := m.attend(ctx, o, a, nil, nil); err != nil {
		return err
	}
	out := make([]float32, n*c.Hidden)
	if err := m.linear(ctx, out, o, n, &m.mats[3], w.oBias); err != nil {
		return err
	}
	mid := slices.Clone(x) // behind attention
	if w.postGain != nil {
		normed := make([]float32, len(out))
		rmsNorm(normed, out, w.postGain, c.NormEps, m.Threads)
		addTo(mid, normed, m.Threads)
	} else {
		addTo(mid, out, m.Threads)
	}
	// Backward.
	if err := m.ffnBack(ctx, l, b, mid, dx); err != nil {
		return err
	}
	dout := dx
	if w.postGain != nil {
		dout = make([]float32, len(dx))
		rmsNormBack(dout, dx, out, w.postGain, c.NormEps, m.Threads)
	}
	var back gemm.Weights
	do := make([]float32, n*qw)
	if err := m.through(ctx, do, dout, n, &back, family.Name(l, "attn_output.weight")); err != nil {
		return err
	}
	dq, dk, dv, err := m.attendBack(ctx, a, o, do)
	if err != nil {
		return err
	}
	if err := visit(&Gradient{Layer: l, T: b.T, Windows: b.windows, K: k, V: v, DK: dk, DV: dv}); err != nil || l == 0 {
		return err
	}
	// RoPE's transpose turns back; a magnitude multiplies both ways.
	turnBack(dq, n, y.Heads, d, b.T, a, m)
	turnBack(dk, n, y.KVHeads, d, b.T, a, m)
	if w.qNorm != nil {
		dqIn, dkIn := make([]float32, len(dq)), make([]float32, len(dk))
		rmsNormBack(dqIn, dq, qIn, w.qNorm, c.NormEps, m.Threads)
		rmsNormBack(dkIn, dk, kIn, w.kNorm, c.NormEps, m.Threads)
		dq, dk = dqIn, dkIn
	}
	din := out
	clear(din)
	for i, g := range [][]float32{dq, dk, dv} {
		name := []string{"attn_q.weight", "attn_k.weight", "attn_v.weight"}[i]
		if err := m.through(ctx, din, g, n, &back, family.Name(l, name)); err != nil {
			return err
		}
	}
	rmsNormBack(dx, din, x, w.gain, c.NormEps, m.Threads)
	return nil
}

// turnBack is the transpose of turnHeads.
func turnBack(x []float32, rows, heads, d, T int, a *Attention, m *Model) {
	parallel.Rows(m.Threads, rows, func(r0, r1 int) {
		for r := r0; r < r1; r++ {
			for h := range heads {
				a.Rope.ApplyInverse(x[(r*heads+h)*d:][:d], r%T, m.Config.Pairs)
			}
		}
	})
}

// attendBack returns the gradients of queries, keys and values of softmax attention, of whose
// outputs o the gradient is do; shapes as in Attention.
func (m *Model) attendBack(ctx context.Context, a *Attention, o, do []float32) (dq, dk, dv []float32, err error) {
	y := &m.Config.Layers[a.Layer]
	rows, d := a.T*a.Windows, y.HeadDim
	qw, kw, group := y.Heads*d, y.KVHeads*d, y.Group()
	// Each query head has sums of its own, so that heads can run side by side; a group's are
	// added in the order of its heads.
	dq, dk, dv = make([]float32, rows*qw), make([]float32, rows*kw), make([]float32, rows*kw)
	keys, values := make([]float32, rows*qw), make([]float32, rows*qw)
	err = parallel.For(ctx, m.Threads, a.Windows*y.Heads, func(i int) error {
		return m.headBack(ctx, a, i/y.Heads, i%y.Heads, o, do, dq, keys, values)
	})
	if err != nil {
		return nil, nil, nil, err
	}
	parallel.Rows(m.Threads, rows, func(r0, r1 int) {
		for r := r0; r < r1; r++ {
			for h := range y.Heads {
				at, to := r*qw+h*d, r*kw+h/group*d
				for i := range d {
					dk[to+i] += keys[at+i]
					dv[to+i] += values[at+i]
				}
			}
		}
	})
	return dq, dk, dv, nil
}

// headBack is attendBack for one window and query head. dk and dv are shaped as queries are.
func (m *Model) headBack(ctx context.Context, a *Attention, window, head int, o, do, dq, dk, dv []float32) error {
	y, T := &m.Config.Layers[a.Layer], a.T
	d, qw, kw := y.HeadDim, y.Heads*y.HeadDim, y.KVHeads*y.HeadDim
	from := window*T*kw + head/y.Group()*d
	var keys, keysT, vals, qT, doT gemm.Weights
	keys.PackRows(T, d, a.K[from:], kw, 1)
	keysT.PackT(d, T, a.K[from:], kw, 1)
	vals.PackRows(T, d, a.V[from:], kw, 1)
	ld, step := scoreStride(T), queryRows(T)
	p, ds, turned := make([]float32, step*ld), make([]float32, step*ld), make([]float32, step*T)
	for i0 := 0; i0 < T; i0 += step {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		i1 := min(T, i0+step)
		n, at, j0 := i1-i0, (window*T+i0)*qw+head*d, FirstSeen(y, i0)
		gemm.MulRange(p, ld, a.Q[at:], qw, n, &keys, j0, i1, 0, d, false, 1)
		gemm.MulRange(ds, ld, do[at:], qw, n, &vals, j0, i1, 0, d, false, 1)
		for i := i0; i < i1; i++ {
			r := (i - i0) * ld
			softmaxBack(p[r:r+i1], ds[r:r+i1], j0, FirstSeen(y, i), i+1, float32(y.Scale),
				float32(linalg.Dot64(do[at+(i-i0)*qw:][:d], o[at+(i-i0)*qw:][:d])))
		}
		gemm.MulRange(dq[at:], qw, ds, ld, n, &keysT, 0, d, j0, i1, false, 1)
		qT.PackT(d, n, a.Q[at:], qw, 1)
		doT.PackT(d, n, do[at:], qw, 1)
		to := (window*T+j0)*qw + head*d
		transposeTile(turned, ds, ld, n, j0, i1)
		gemm.MulRange(dk[to:], qw, turned, n, i1-j0, &qT, 0, d, 0, n, true, 1)
		transposeTile(turned, p, ld, n, j0, i1)
		gemm.MulRange(dv[to:], qw, turned, n, i1-j0, &doT, 0, d, 0, n, true, 1)
	}
	return nil
}

// FirstSeen is the first position that a query at i sees.
func FirstSeen(y *family.Layer, i int) int {
	if y.Window > 0 {
		return max(0, i-y.Window+1)
	}
	return 0
}

// softmaxBack replaces scores p of keys [lo, end) by their probabilities, and ds, the gradients of
// these, by those of the scores before scale. dot is the sum of probabilities times their
// gradients. What lies from j0 on outside of [lo, end) becomes 0.
func softmaxBack(p, ds []float32, j0, lo, end int, scale, dot float32) {
	clear(p[j0:lo])
	clear(ds[j0:lo])
	clear(p[end:])
	clear(ds[end:])
	fmath.Softmax(p[lo:end], scale)
	g := ds[lo:end]
	for j, v := range p[lo:end] {
		g[j] = float32(float32(v*(g[j]-dot)) * scale)
	}
}

// transposeTile sets dst, [j1-j0, rows], to the transpose of columns [j0, j1) of src.
func transposeTile(dst, src []float32, ld, rows, j0, j1 int) {
	const side = 16
	for j := j0; j < j1; j += side {
		for r := 0; r < rows; r += side {
			for i := r; i < min(rows, r+side); i++ {
				row := src[i*ld+j : i*ld+min(j1, j+side)]
				to := dst[(j-j0)*rows+i:]
				for k, v := range row {
					to[k*rows] = v
				}
			}
		}
	}
}

// ffnBack adds to dx, the gradient behind layer l, what it is in front of the layer's FFN, whose
// input is mid.
func (m *Model) ffnBack(ctx context.Context, l int, b *batch, mid, dx []float32) error {
	c, y := m.Config, &m.Config.Layers[l]
	n := b.rows()
	gain, err := m.vector(family.Name(l, "ffn_norm.weight"), false)
	if err != nil {
		return err
	}
	x := make([]float32, n*c.Hidden)
	rmsNorm(x, mid, gain, c.NormEps, m.Threads)
	din := make([]float32, n*c.Hidden)
	if y.FFN.Experts > 0 {
		err = m.mixtureBack(ctx, l, b, x, dx, din)
	} else {
		err = m.denseBack(ctx, l, b, x, dx, din)
	}
	if err != nil {
		return err
	}
	rmsNormBack(dx, din, mid, gain, c.NormEps, m.Threads)
	return nil
}

// denseBack adds to din, the gradient of the normed input x of a dense FFN, what dout is behind
// it and its norm.
func (m *Model) denseBack(ctx context.Context, l int, b *batch, x, dout, din []float32) error {
	y, n := &m.Config.Layers[l], b.rows()
	names := []string{"ffn_gate.weight", "ffn_up.weight", "ffn_down.weight"}
	for i, name := range names {
		if err := m.packAll(ctx, &m.mats[i], family.Name(l, name)); err != nil {
			return err
		}
	}
	if y.PostNorms {
		post, err := m.vector(family.Name(l, "post_ffw_norm.weight"), false)
		if err != nil {
			return err
		}
		out := make([]float32, len(x))
		if err := m.gated(ctx, &y.FFN, out, x, n, b, m.mats[:3], &noBiases); err != nil {
			return err
		}
		before := make([]float32, len(x))
		rmsNormBack(before, dout, out, post, m.Config.NormEps, m.Threads)
		dout = before
	}
	var back [3]gemm.Weights
	for i, name := range names {
		t, err := m.find(family.Name(l, name))
		if err != nil {
			return err
		}
		if err := m.transposed(ctx, &back[i], t, 0, t.Rows()); err != nil {
			return err
		}
	}
	return m.gatedBack(ctx, &y.FFN, x, dout, din, n, b, &back, nil)
}

// gatedBack adds to din the gradient of the input x of gated, whose matrices m.mats holds and
// back their transposes, for that of its output, dout. used, if not nil, are shares of the output:
// dout is multiplied by them, and they are replaced by the gradient of the share.
func (m *Model) gatedBack(ctx context.Context, ffn *family.FFN, x, dout, din []float32, rows int, b *batch,
	back *[3]gemm.Weights, used []float32) error {
	f := m.mats[0].N()
	g, u := linalg.Grow(&b.gate, rows*f), linalg.Grow(&b.up, rows*f)
	if err := m.mul(ctx, g, x, rows, &m.mats[0]); err != nil {
		return err
	}
	if err := m.mul(ctx, u, x, rows, &m.mats[1]); err != nil {
		return err
	}
	dm := make([]float32, rows*f)
	if err := m.addProduct(ctx, dm, dout, rows, &back[2]); err != nil {
		return err
	}
	parallel.Rows(m.Threads, rows, func(r0, r1 int) {
		act, slope := make([]float32, f), make([]float32, f)
		for r := r0; r < r1; r++ {
			gr, ur, dr := g[r*f:(r+1)*f], u[r*f:(r+1)*f], dm[r*f:(r+1)*f]
			activate(ffn.Activation, act, slope, gr)
			if used != nil {
				var share float64
				for i, v := range act {
					share += float64(float64(float32(v*ur[i])) * float64(dr[i]))
				}
				fmath.Scale(dr, used[r])
				used[r] = float32(share)
			}
			for i, v := range dr {
				gr[i] = float32(float32(v*ur[i]) * slope[i])
				ur[i] = float32(v * act[i])
			}
		}
	})
	if err := m.addProduct(ctx, din, g, rows, &back[0]); err != nil {
		return err
	}
	return m.addProduct(ctx, din, u, rows, &back[1])
}

// activate sets act to the activation of x and slope to its derivative. Both are x s(v) for the
// logistic function s: SiLU with v = x, GELU's tanh form with v = x (a + b x^2). So the
// derivative is s + x s (1 - s) dv/dx.
func activate(kind family.Activation, act, slope, x []float32) {
	// As in kernels/fmath.
	const a, b = float32(2 * 0.79788456080286535588), float32(2 * 0.79788456080286535588 * 0.044715)
	gelu := kind == family.GELUTanh
	for i, v := range x {
		if gelu {
			v = float32(v * (float32(b*float32(v*v)) + a))
		}
		act[i] = -v
	}
	fmath.ExpSlice(act, act)
	for i, v := range x {
		s, dv := 1/(1+act[i]), float32(1)
		if gelu {
			dv = float32(3*b*float32(v*v)) + a
		}
		act[i] = float32(v * s)
		slope[i] = s + float32(float32(act[i]*(1-s))*dv)
	}
}

// mixtureBack is denseBack for a mixture of experts: also through the weights of the chosen
// experts. The choice itself has no gradient.
func (m *Model) mixtureBack(ctx context.Context, l int, b *batch, x, dout, din []float32) error {
	c, ffn, n := m.Config, &m.Config.Layers[l].FFN, b.rows()
	const router = "ffn_gate_inp.weight"
	if err := m.packAll(ctx, &m.mats[3], family.Name(l, router)); err != nil {
		return err
	}
	p := make([]float32, n*ffn.Experts)
	if err := m.mul(ctx, p, x, n, &m.mats[3]); err != nil {
		return err
	}
	routes := chooseExperts(ffn, p, nil) // and p are probabilities
	weights, dp := make([]float32, len(p)), make([]float32, len(p))
	names := []string{"ffn_gate_exps.weight", "ffn_up_exps.weight", "ffn_down_exps.weight"}
	var back [3]gemm.Weights
	var in, dy, dx, used []float32
	for e, rs := range routes {
		if len(rs) == 0 {
			continue
		}
		for i, name := range names {
			t, err := m.find(family.Name(l, name))
			if err != nil {
				return err
			}
			per := t.Rows() / ffn.Experts
			if err := m.pack(ctx, &m.mats[i], t, e*per, per); err != nil {
				return err
			}
			if err := m.transposed(ctx, &back[i], t, e*per, per); err != nil {
				return err
			}
		}
		size := len(rs) * c.Hidden
		in, dy, dx = linalg.Grow(&in, size), linalg.Grow(&dy, size), linalg.Grow(&dx, size)
		clear(dx)
		used = used[:0]
		for r, t := range rs {
			copy(in[r*c.Hidden:(r+1)*c.Hidden], x[t.row*c.Hidden:])
			copy(dy[r*c.Hidden:(r+1)*c.Hidden], dout[t.row*c.Hidden:])
			used = append(used, t.weight)
		}
		if err := m.gatedBack(ctx, ffn, in, dy, dx, len(rs), b, &back, used); err != nil {
			return err
		}
		for r, t := range rs {
			weights[t.row*ffn.Experts+e], dp[t.row*ffn.Experts+e] = t.weight, used[r]
			to := din[t.row*c.Hidden : (t.row+1)*c.Hidden]
			for i, v := range dx[r*c.Hidden : (r+1)*c.Hidden] {
				to[i] += v
			}
		}
	}
	for r := range n {
		routerBack(ffn, p[r*ffn.Experts:(r+1)*ffn.Experts], weights[r*ffn.Experts:], dp[r*ffn.Experts:])
	}
	return m.through(ctx, din, p, n, &back[0], family.Name(l, router))
}

// routerBack replaces the probabilities of one token's experts by the gradients of the router's
// logits, for those of the weights, dw; both are 0 for experts that are not used.
func routerBack(f *family.FFN, p, w, dw []float32) {
	// A weight is p_e or p_e / S: then dp_e = (dw_e - sum_j w_j dw_j) / S for those in use.
	var sum, mean float64
	for e, v := range p {
		if w[e] != 0 {
			sum += float64(v)
			mean += float64(float64(w[e]) * float64(dw[e]))
		}
	}
	g := make([]float64, len(p))
	var dot float64
	for e, v := range p {
		if w[e] != 0 {
			g[e] = float64(dw[e])
			if f.Renorm {
				g[e] = (g[e] - mean) / sum
			}
			dot += float64(float64(v) * g[e])
		}
	}
	for e, v := range p {
		p[e] = float32(float64(v) * (g[e] - dot))
	}
}

// transposed packs rows [row0, row0+n) of a matrix so that products with it go backward: from
// gradients of its outputs to those of its inputs.
func (m *Model) transposed(ctx context.Context, w *gemm.Weights, t *checkpoint.Tensor, row0, n int) error {
	buf, err := m.decode(ctx, t, row0, n)
	if err != nil {
		return err
	}
	w.PackT(t.Cols(), n, buf, t.Cols(), m.Threads)
	return nil
}

// through adds to dst, the gradient of a product's inputs, what g is behind the named matrix.
func (m *Model) through(ctx context.Context, dst, g []float32, rows int, w *gemm.Weights, name string) error {
	t, err := m.find(name)
	if err != nil {
		return err
	}
	if err := m.transposed(ctx, w, t, 0, t.Rows()); err != nil {
		return err
	}
	return m.addProduct(ctx, dst, g, rows, w)
}

// addProduct adds to dst the products of rows of x with a matrix. It fails only when ctx ends.
func (m *Model) addProduct(ctx context.Context, dst, x []float32, rows int, w *gemm.Weights) error {
	n, k := w.N(), w.K()
	step := max(64, productsAtOnce/max(1, n*k))
	for r := 0; r < rows; r += step {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		gemm.MulAdd(dst[r*n:], n, x[r*k:], k, min(step, rows-r), w, m.Threads)
	}
	return nil
}

// rmsNormBack adds to dx the gradient that dy, behind rmsNorm of x, has in front of it:
// r (t - x (t.x) r^2/d) for t = dy * gain and r = 1/rms(x).
func rmsNormBack(dx, dy, x, gain []float32, eps float64, threads int) {
	d := len(gain)
	parallel.Rows(threads, len(x)/d, func(r0, r1 int) {
		t := make([]float64, d)
		for r := r0; r < r1; r++ {
			row, g, out := x[r*d:(r+1)*d], dy[r*d:(r+1)*d], dx[r*d:(r+1)*d]
			inverse := 1 / math.Sqrt(fmath.SumSq(row)/float64(d)+eps)
			var dot float64
			for i, v := range g {
				t[i] = float64(v) * float64(gain[i])
				dot += float64(t[i] * float64(row[i]))
			}
			dot *= inverse * inverse / float64(d)
			for i, v := range t {
				out[i] += float32(inverse * (v - float64(dot*float64(row[i]))))
			}
		}
	})
}
