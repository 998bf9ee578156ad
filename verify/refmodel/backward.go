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

// A tape is what the backward pass keeps of the forward pass of one batch.
type tape struct {
	inputs [][]float32 // of each layer
	// middle, with embeddings per layer, is the hidden states behind each layer's FFN, to which the
	// layer's part of the token is added.
	middle [][]float32
	// shared holds the keys and values that layers read of others; grads their gradients so far.
	shared Shared
	grads  map[int]*sharedGrads
}

type sharedGrads struct{ k, v []float32 }

// normInputs are the inputs of the norms between the projections and attention.
type normInputs struct{ q, k, v []float32 }

// sum adds the gradients of keys and values that layer l has of them to those of the layers behind it,
// and returns all together when l is their owner.
func (t *tape) sum(owner, l int, dk, dv []float32, threads int) (k, v []float32) {
	if g := t.grads[owner]; g != nil {
		addTo(dk, g.k, threads)
		addTo(dv, g.v, threads)
	}
	if owner != l {
		t.grads[owner] = &sharedGrads{dk, dv}
		return nil, nil
	}
	delete(t.grads, l)
	return dk, dv
}

// attended is what the attention of one layer computed.
type attended struct {
	*Attention
	w             layerAttention
	o, out        []float32 // in front of the output projection, [rows, heads*head_dim], and behind it
	behind, input []float32 // hidden states, [rows, hidden]
}

// attentionAgain computes a layer's attention from its input once more.
func (m *Model) attentionAgain(ctx context.Context, l int, b *batch, t *tape) (*attended, error) {
	c, y, n := m.Config, &m.Config.Layers[l], b.rows()
	w, err := m.loadAttention(ctx, l)
	if err != nil {
		return nil, err
	}
	x := &attended{w: w, input: t.inputs[l], o: make([]float32, n*y.Heads*y.HeadDim), out: make([]float32, n*c.Hidden),
		Attention: &Attention{Layer: l, T: b.T, Windows: b.windows, X: t.inputs[l], Rope: m.ropeTable(l, b.T), Sinks: w.sinks,
			norms: &normInputs{}}}
	if w.gain != nil {
		x.X = linalg.Grow(&b.norm, n*c.Hidden)
		m.norm(x.X, x.input, w.gain)
	}
	if err := m.project(ctx, x.Attention, b, &w, &Variant{Shared: t.shared}, false); err != nil {
		return nil, err
	}
	if err := m.attend(ctx, x.o, x.Attention, nil, nil); err != nil {
		return nil, err
	}
	if err := m.linear(ctx, x.out, x.o, n, &m.mats[3], w.oBias); err != nil {
		return nil, err
	}
	x.behind = slices.Clone(x.out)
	if w.postGain != nil {
		m.norm(x.behind, x.out, w.postGain)
	}
	scaleBy(x.behind, y.ResidualScale)
	addTo(x.behind, x.input, m.Threads)
	return x, nil
}

// layerBack takes dx, the gradient behind layer l, to the gradient in front of it, in place, and
// calls visit on the way if the layer has keys and values of its own. What lies between the layer's
// input and its output is computed again.
func (m *Model) layerBack(ctx context.Context, l int, b *batch, t *tape, dx []float32,
	visit func(g *Gradient) error) error {
	y, n := &m.Config.Layers[l], b.rows()
	if err := m.finishBack(ctx, l, b, t, dx); err != nil {
		return err
	}
	x, err := m.attentionAgain(ctx, l, b, t)
	if err != nil {
		return err
	}
	din := make([]float32, len(dx)) // of the normed input
	if err := m.ffnBack(ctx, l, b, x.X, x.behind, dx, din); err != nil {
		return err
	}
	dout := scaledCopy(dx, y.ResidualScale)
	if x.w.postGain != nil {
		before := make([]float32, len(dx))
		m.normBack(before, dout, x.out, x.w.postGain)
		dout = before
	}
	var back gemm.Weights
	do := make([]float32, len(x.o))
	if err := m.through(ctx, do, dout, n, &back, family.Name(l, "attn_output.weight")); err != nil {
		return err
	}
	dq, dk, dv, err := m.attendBack(ctx, x.Attention, x.o, do)
	if err != nil {
		return err
	}
	if dk, dv = t.sum(y.Owner, l, dk, dv, m.Threads); y.Owner == l {
		err := visit(&Gradient{Layer: l, T: b.T, Windows: b.windows, K: x.K, V: x.V, DK: dk, DV: dv})
		if err != nil || l == 0 {
			return err
		}
	}
	if err := m.projectBack(ctx, x.Attention, b, &x.w, dq, dk, dv, din); err != nil {
		return err
	}
	if x.w.gain == nil {
		addTo(dx, din, m.Threads)
		return nil
	}
	m.normBack(dx, din, x.input, x.w.gain)
	return nil
}

// scaleBy multiplies x by a factor, which most families do not have.
func scaleBy(x []float32, factor float64) {
	if factor != 1 {
		fmath.Scale(x, float32(factor))
	}
}

// scaledCopy returns x times a factor, x itself if that is 1.
func scaledCopy(x []float32, factor float64) []float32 {
	if factor == 1 {
		return x
	}
	x = slices.Clone(x)
	scaleBy(x, factor)
	return x
}

// projectBack adds to din, the gradient of the normed input of layer a.Layer, what those of its
// queries and, if it has its own, of its keys and values are there. It changes dq, dk and dv.
func (m *Model) projectBack(ctx context.Context, a *Attention, b *batch, w *layerAttention,
	dq, dk, dv, din []float32) error {
	c, y, n := m.Config, &m.Config.Layers[a.Layer], b.rows()
	own := y.Owner == a.Layer
	if y.Temperature.Beta != 0 {
		width := y.Heads * y.HeadDim
		for r := range n {
			fmath.Scale(dq[r*width:(r+1)*width], float32(y.Temperature.At(b.position(r))))
		}
	}
	norms := func() {
		if w.qNorm != nil {
			dqIn := make([]float32, len(dq))
			rmsNormBack(dqIn, dq, a.norms.q, w.qNorm, c.NormEps, m.Threads)
			dq = dqIn
		}
		if w.kNorm != nil && own {
			dkIn := make([]float32, len(dk))
			rmsNormBack(dkIn, dk, a.norms.k, w.kNorm, c.NormEps, m.Threads)
			dk = dkIn
		}
	}
	if y.NormAfterRoPE {
		norms()
	}
	// RoPE's transpose turns back; a magnitude multiplies both ways.
	turnBack(dq, n, y.Heads, y.HeadDim, b.T, a, m)
	if own {
		turnBack(dk, n, y.KVHeads, y.HeadDim, b.T, a, m)
	}
	if !y.NormAfterRoPE {
		norms()
	}
	if own && y.ValueNorm {
		dvIn := make([]float32, len(dv))
		rmsNormBack(dvIn, dv, a.norms.v, unitGains(y.HeadDim), c.NormEps, m.Threads)
		dv = dvIn
	}
	if own && y.ValuesAreKeys {
		addTo(dk, dv, m.Threads)
	}
	var back gemm.Weights
	for i, g := range [][]float32{dq, dk, dv} {
		if i > 0 && !own || i == 2 && y.ValuesAreKeys {
			continue
		}
		name := []string{"attn_q.weight", "attn_k.weight", "attn_v.weight"}[i]
		if err := m.through(ctx, din, g, n, &back, family.Name(a.Layer, name)); err != nil {
			return err
		}
	}
	return nil
}

// turnBack is the transpose of turnHeads.
func turnBack(x []float32, rows, heads, d, T int, a *Attention, m *Model) {
	if a.Rope == nil {
		return
	}
	parallel.Rows(m.Threads, rows, func(r0, r1 int) {
		for r := r0; r < r1; r++ {
			for h := range heads {
				a.Rope.ApplyInverse(x[(r*heads+h)*d:][:d], r%T, m.Config.Pairs)
			}
		}
	})
}

// finishBack is the transpose of finish.
func (m *Model) finishBack(ctx context.Context, l int, b *batch, t *tape, dx []float32) error {
	c, y := m.Config, &m.Config.Layers[l]
	if y.OutputScale {
		scale, err := m.vector(family.Name(l, "layer_output_scale.weight"), false)
		if err != nil {
			return err
		}
		fmath.Scale(dx, scale[0])
	}
	n, rows := c.PerLayerInput, b.rows()
	if n == 0 {
		return nil
	}
	gain, err := m.vector(family.Name(l, "post_norm.weight"), false)
	if err != nil {
		return err
	}
	for i, name := range []string{"inp_gate.weight", "proj.weight"} {
		if err := m.packAll(ctx, &m.mats[i], family.Name(l, name)); err != nil {
			return err
		}
	}
	g, act, slope := make([]float32, rows*n), make([]float32, rows*n), make([]float32, rows*n)
	out := make([]float32, rows*c.Hidden)
	if err := m.mul(ctx, g, t.middle[l], rows, &m.mats[0]); err != nil {
		return err
	}
	activate(y.FFN.Activation, act, slope, g)
	for i := range act {
		own := b.perLayer[(i/n*len(c.Layers)+l)*n+i%n]
		act[i] *= own
		slope[i] *= own
	}
	if err := m.mul(ctx, out, act, rows, &m.mats[1]); err != nil {
		return err
	}
	dout, dh := make([]float32, len(out)), make([]float32, rows*n)
	m.normBack(dout, dx, out, gain)
	var back gemm.Weights
	if err := m.through(ctx, dh, dout, rows, &back, family.Name(l, "proj.weight")); err != nil {
		return err
	}
	for i, v := range slope {
		dh[i] *= v
	}
	return m.through(ctx, dx, dh, rows, &back, family.Name(l, "inp_gate.weight"))
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
			softmaxBack(p[r:r+i1+1], ds[r:r+i1], j0, FirstSeen(y, i), i+1, y, a.Sinks, head,
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

// softmaxBack replaces scores p of keys [lo, end) of a query head by their probabilities, and ds, the
// gradients of these, by those of the scores before scale and cap. dot is the sum of probabilities
// times their gradients; a sink, for which p has room behind the keys, has none. What lies from j0
// on outside of [lo, end) becomes 0.
func softmaxBack(p, ds []float32, j0, lo, end int, y *family.Layer, sinks []float32, head int, dot float32) {
	clear(p[j0:lo])
	clear(ds[j0:lo])
	clear(ds[end:])
	var slope []float32 // of the cap
	for _, s := range p[lo:end] {
		if y.SoftCap > 0 {
			t := fmath.Tanh(float64(s) * y.Scale / y.SoftCap)
			slope = append(slope, float32(1-float64(t*t)))
		}
	}
	Softmax(p, lo, end, y, sinks, head)
	clear(p[end:])
	g := ds[lo:end]
	for j, v := range p[lo:end] {
		g[j] = float32(float32(v*(g[j]-dot)) * float32(y.Scale))
		if slope != nil {
			g[j] *= slope[j]
		}
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

// normBack adds to dx the gradient that dy, behind norm of x, has in front of it.
func (m *Model) normBack(dx, dy, x, gain []float32) {
	if m.Config.LayerNorm {
		layerNormBack(dx, dy, x, gain, m.Config.NormEps, m.Threads)
		return
	}
	rmsNormBack(dx, dy, x, gain, m.Config.NormEps, m.Threads)
}

// layerNormBack is normBack of layerNorm: s (t - mean(t) - z mean(t z)) for t = dy * gain, s = 1/std(x) and
// z = (x - mean(x)) s.
func layerNormBack(dx, dy, x, gain []float32, eps float64, threads int) {
	d := len(gain)
	parallel.Rows(threads, len(x)/d, func(r0, r1 int) {
		t, z := make([]float64, d), make([]float64, d)
		for r := r0; r < r1; r++ {
			var mean, square, tMean, tz float64
			for i, v := range x[r*d : (r+1)*d] {
				z[i] = float64(v)
				mean += z[i] / float64(d)
			}
			for i := range z {
				z[i] -= mean
				square += float64(z[i]*z[i]) / float64(d)
			}
			s := 1 / math.Sqrt(square+eps)
			for i, v := range dy[r*d : (r+1)*d] {
				z[i] *= s
				t[i] = float64(v) * float64(gain[i])
				tMean += t[i] / float64(d)
				tz += float64(t[i]*z[i]) / float64(d)
			}
			for i, v := range t {
				dx[r*d+i] += float32(s * (v - tMean - float64(z[i]*tz)))
			}
		}
	})
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
