package refmodel

import (
	"context"
	"slices"

	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/kernels/fmath"
	"github.com/phaseconv/phaseconv/kernels/gemm"
	"github.com/phaseconv/phaseconv/kernels/linalg"
	"github.com/phaseconv/phaseconv/kernels/parallel"
)

// ffnBack adds to dx, the gradient behind layer l's FFN, what it is in front of it: mid are the hidden
// states there. Where the FFN reads what attention reads, in, it adds to din instead, in's gradient.
func (m *Model) ffnBack(ctx context.Context, l int, b *batch, in, mid, dx, din []float32) error {
	y := &m.Config.Layers[l]
	dout := scaledCopy(dx, y.ResidualScale)
	if y.FFN.Beside > 0 {
		return m.besideBack(ctx, l, b, mid, dout, dx)
	}
	x := in
	var gain []float32
	switch {
	case y.BareInputs:
		x = mid
	case !y.Parallel:
		var err error
		if gain, err = m.vector(family.Name(l, "ffn_norm.weight"), false); err != nil {
			return err
		}
		x = make([]float32, len(mid))
		m.norm(x, mid, gain)
	}
	if !y.Parallel {
		din = make([]float32, len(mid))
	}
	back := m.denseBack
	if y.FFN.Experts > 0 {
		back = m.mixtureBack
	}
	err := back(ctx, l, b, x, dout, din)
	switch {
	case err != nil || y.Parallel:
	case y.BareInputs:
		addTo(dx, din, m.Threads)
	default:
		m.normBack(dx, din, mid, gain)
	}
	return err
}

// ffnBackMatrices packs gate, up and down of a dense FFN into m.mats, and their transposes.
func (m *Model) ffnBackMatrices(ctx context.Context, l int, kind string) (back *[3]gemm.Weights, err error) {
	back = &[3]gemm.Weights{}
	for i, name := range []string{"ffn_gate", "ffn_up", "ffn_down"} {
		t, err := m.find(family.Name(l, name+kind+".weight"))
		if err != nil {
			return nil, err
		}
		if err := m.pack(ctx, &m.mats[i], t, 0, t.Rows()); err != nil {
			return nil, err
		}
		if err := m.transposed(ctx, &back[i], t, 0, t.Rows()); err != nil {
			return nil, err
		}
	}
	return back, nil
}

// denseBack adds to din, the gradient of the input x of a dense FFN, what dout is behind it and its norm.
func (m *Model) denseBack(ctx context.Context, l int, b *batch, x, dout, din []float32) error {
	y, n := &m.Config.Layers[l], b.rows()
	back, err := m.ffnBackMatrices(ctx, l, "")
	if err != nil {
		return err
	}
	if y.PostNorms {
		post, err := m.vector(family.Name(l, "post_ffw_norm.weight"), false)
		if err != nil {
			return err
		}
		if dout, err = m.normedBack(ctx, &y.FFN, x, dout, post, b); err != nil {
			return err
		}
	}
	return m.gatedBack(ctx, &y.FFN, x, dout, din, n, b, back, &noBiases, nil)
}

// normedBack returns the gradient of the output of the FFN whose matrices m.mats holds, for that behind
// its norm.
func (m *Model) normedBack(ctx context.Context, ffn *family.FFN, x, dout, gain []float32, b *batch) ([]float32, error) {
	out, before := make([]float32, len(x)), make([]float32, len(x))
	if err := m.gated(ctx, ffn, out, x, b.rows(), b, m.mats[:3], &noBiases); err != nil {
		return nil, err
	}
	m.normBack(before, dout, out, gain)
	return before, nil
}

// gatedBack adds to din the gradient of the input x of gated, whose matrices m.mats holds and
// back their transposes, for that of its output, dout. used, if not nil, are shares of the output:
// dout is multiplied by them, and they are replaced by the gradient of the share.
func (m *Model) gatedBack(ctx context.Context, ffn *family.FFN, x, dout, din []float32, rows int, b *batch,
	back *[3]gemm.Weights, biases *[3][]float32, used []float32) error {
	f := m.mats[0].N()
	g, u := linalg.Grow(&b.gate, rows*f), linalg.Grow(&b.up, rows*f)
	if err := m.linear(ctx, g, x, rows, &m.mats[0], biases[0]); err != nil {
		return err
	}
	if err := m.linear(ctx, u, x, rows, &m.mats[1], biases[1]); err != nil {
		return err
	}
	dm := make([]float32, rows*f)
	if err := m.addProduct(ctx, dm, dout, rows, &back[2]); err != nil {
		return err
	}
	hidden := len(x) / rows
	parallel.Rows(m.Threads, rows, func(r0, r1 int) {
		act, slope := make([]float32, f), make([]float32, f)
		for r := r0; r < r1; r++ {
			gr, ur, dr := g[r*f:(r+1)*f], u[r*f:(r+1)*f], dm[r*f:(r+1)*f]
			activate(ffn.Activation, act, slope, gr)
			upSlopes := clampUp(ffn.Activation, ur)
			if used != nil {
				var share float64
				for i, v := range act {
					share += float64(float64(float32(v*ur[i])) * float64(dr[i]))
				}
				if biases[2] != nil {
					share += linalg.Dot64(biases[2], dout[r*hidden:(r+1)*hidden])
				}
				fmath.Scale(dr, used[r])
				used[r] = float32(share)
			}
			for i, v := range dr {
				gr[i] = float32(float32(v*ur[i]) * slope[i])
				ur[i] = float32(v * act[i])
			}
			for _, i := range upSlopes {
				ur[i] = 0
			}
		}
	})
	if err := m.addProduct(ctx, din, g, rows, &back[0]); err != nil {
		return err
	}
	return m.addProduct(ctx, din, u, rows, &back[1])
}

// clampUp replaces up by what the gate is multiplied with, and returns where up was beyond the limits,
// so that it has no slope. Only ClampedSwiGLU does anything.
func clampUp(kind family.Activation, up []float32) (flat []int) {
	if kind != family.ClampedSwiGLU {
		return nil
	}
	for i, v := range up {
		up[i] = min(max(v, -family.ClampLimit), family.ClampLimit) + 1
		if v > family.ClampLimit || v < -family.ClampLimit {
			flat = append(flat, i)
		}
	}
	return flat
}

// activate sets act to the activation of x and slope to its derivative. All are x s(v) for the
// logistic function s: SiLU with v = x, ClampedSwiGLU with v = a x, GELU's tanh form with
// v = x (a + b x^2). So the derivative is s + x s (1 - s) dv/dx.
func activate(kind family.Activation, act, slope, x []float32) {
	// As in kernels/fmath.
	const a, b = float32(2 * 0.79788456080286535588), float32(2 * 0.79788456080286535588 * 0.044715)
	gelu, clamped := kind == family.GELUTanh, kind == family.ClampedSwiGLU
	for i, v := range x {
		switch {
		case gelu:
			v = float32(v * (float32(b*float32(v*v)) + a))
		case clamped:
			v = min(v, family.ClampLimit) * family.ClampAlpha
		}
		act[i] = -v
	}
	fmath.ExpSlice(act, act)
	for i, v := range x {
		s, dv := 1/(1+act[i]), float32(1)
		switch {
		case gelu:
			dv = float32(3*b*float32(v*v)) + a
		case clamped:
			v, dv = min(v, family.ClampLimit), family.ClampAlpha
		}
		act[i] = float32(v * s)
		slope[i] = s + float32(float32(act[i]*(1-s))*dv)
		if clamped && x[i] > family.ClampLimit {
			slope[i] = 0
		}
	}
}

// A mixtureBackward is the way back through the experts of one layer and their router.
type mixtureBackward struct {
	l       int
	x       []float32 // what the experts read, [rows, hidden]
	p       []float32 // what chooseExperts leaves, [rows, experts]
	routes  [][]route
	scale   []float32 // of each expert's weight, nil for none
	dout    []float32 // behind the experts
	dx      []float32 // to which their gradient of x is added
	weights []float32 // of the routes, [rows, experts], before scale; 0 where there is none
	dw      []float32 // their gradients
}

// mixtureBack is denseBack for a mixture of experts: also through the weights of the chosen
// experts. The choice itself has no gradient.
func (m *Model) mixtureBack(ctx context.Context, l int, b *batch, x, dout, din []float32) error {
	g := &mixtureBackward{l: l, x: x, dout: dout, dx: din}
	if err := m.routes(ctx, g, x); err != nil {
		return err
	}
	for e := range g.routes {
		if err := m.expertBack(ctx, g, e, b); err != nil {
			return err
		}
	}
	if err := m.sharedBack(ctx, l, b, x, dout, din); err != nil {
		return err
	}
	return m.routerBack(ctx, g, din)
}

// routes fills in which experts tokens take, by what the router reads.
func (m *Model) routes(ctx context.Context, g *mixtureBackward, x []float32) error {
	ffn, n := &m.Config.Layers[g.l].FFN, len(x)/m.Config.Hidden
	if err := m.packAll(ctx, &m.mats[3], family.Name(g.l, "ffn_gate_inp.weight")); err != nil {
		return err
	}
	bias, err := m.vectorIf(ffn.RouterBias, family.Name(g.l, "ffn_gate_inp.bias"))
	if err != nil {
		return err
	}
	choice, err := m.vectorIf(ffn.ChoiceBias, family.Name(g.l, "exp_probs_b.bias"))
	if err != nil {
		return err
	}
	g.p = make([]float32, n*ffn.Experts)
	if err := m.linear(ctx, g.p, x, n, &m.mats[3], bias); err != nil {
		return err
	}
	g.routes = chooseExperts(ffn, g.p, choice)
	g.weights, g.dw = make([]float32, len(g.p)), make([]float32, len(g.p))
	return nil
}

// expertBack goes back through one expert.
func (m *Model) expertBack(ctx context.Context, g *mixtureBackward, e int, b *batch) error {
	rs := g.routes[e]
	if len(rs) == 0 {
		return nil
	}
	hidden, ffn := m.Config.Hidden, &m.Config.Layers[g.l].FFN
	var back [3]gemm.Weights
	var biases [3][]float32
	for i, name := range []string{"ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"} {
		t, err := m.find(family.Name(g.l, name+".weight"))
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
		if biases[i], err = m.expertBias(ffn, g.l, e, name); err != nil {
			return err
		}
	}
	size := len(rs) * hidden
	in, dy, dx, used := make([]float32, size), make([]float32, size), make([]float32, size), make([]float32, len(rs))
	factor := float32(1)
	if g.scale != nil {
		factor = g.scale[e]
	}
	for r, t := range rs {
		copy(in[r*hidden:(r+1)*hidden], g.x[t.row*hidden:])
		copy(dy[r*hidden:(r+1)*hidden], g.dout[t.row*hidden:])
		used[r] = t.weight * factor
	}
	if err := m.gatedBack(ctx, ffn, in, dy, dx, len(rs), b, &back, &biases, used); err != nil {
		return err
	}
	for r, t := range rs {
		g.weights[t.row*ffn.Experts+e], g.dw[t.row*ffn.Experts+e] = t.weight, used[r]*factor
		to := g.dx[t.row*hidden : (t.row+1)*hidden]
		for i, v := range dx[r*hidden : (r+1)*hidden] {
			to[i] += v
		}
	}
	return nil
}

// sharedBack adds to din what the experts that every token goes through have there.
func (m *Model) sharedBack(ctx context.Context, l int, b *batch, x, dout, din []float32) error {
	ffn, hidden, n := &m.Config.Layers[l].FFN, m.Config.Hidden, b.rows()
	if ffn.Shared == 0 {
		return nil
	}
	back, err := m.ffnBackMatrices(ctx, l, "_shexp")
	if err != nil {
		return err
	}
	gate, err := m.vectorIf(ffn.SharedGate, family.Name(l, "ffn_gate_inp_shexp.weight"))
	if err != nil || gate == nil {
		if err == nil {
			err = m.gatedBack(ctx, ffn, x, dout, din, n, b, back, &noBiases, nil)
		}
		return err
	}
	used, slope := make([]float32, n), make([]float32, n)
	for r := range used {
		s := sigmoid(linalg.Dot64(x[r*hidden:(r+1)*hidden], gate))
		used[r], slope[r] = float32(s), float32(s*(1-s))
	}
	if err := m.gatedBack(ctx, ffn, x, dout, din, n, b, back, &noBiases, used); err != nil {
		return err
	}
	for r, share := range used {
		for i, v := range gate {
			din[r*hidden+i] += float32(float32(share*slope[r]) * v)
		}
	}
	return nil
}

// routerBack adds to dx, the gradient of what the router reads, what the weights of the experts have there.
func (m *Model) routerBack(ctx context.Context, g *mixtureBackward, dx []float32) error {
	ffn := &m.Config.Layers[g.l].FFN
	n := len(g.p) / ffn.Experts
	for r := range n {
		at := r * ffn.Experts
		routerBack(ffn, g.p[at:at+ffn.Experts], g.weights[at:], g.dw[at:])
	}
	var back gemm.Weights
	return m.through(ctx, dx, g.p, n, &back, family.Name(g.l, "ffn_gate_inp.weight"))
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
			g[e] = float64(float64(dw[e]) * f.Scale())
			if f.Renorm {
				g[e] = (g[e] - mean) / sum
			}
			dot += float64(float64(v) * g[e])
		}
	}
	for e, v := range p {
		switch {
		case f.Router == family.SigmoidTopK:
			p[e] = float32(float64(float64(v)*(1-float64(v))) * g[e])
		case f.Router == family.TopKSoftmax && w[e] == 0:
			p[e] = 0 // it takes no part in the softmax
		default:
			p[e] = float32(float64(v) * (g[e] - dot))
		}
	}
}

// A beside is what a mixture and the plain FFN beside it computed (see addBeside).
type beside struct {
	*besideFFN
	gain           []float32        // of the norm of what the plain FFN reads
	way            *mixtureBackward // the way back through the experts
	plainIn        []float32        // what the plain FFN reads
	plain, mixture []float32        // what both give, before their norms
	back           *[3]gemm.Weights // of the plain FFN, whose matrices m.mats holds
}

// besideAgain computes a mixture and the FFN beside it once more, for hidden states mid.
func (m *Model) besideAgain(ctx context.Context, l int, b *batch, mid []float32) (*beside, error) {
	w, err := m.loadBeside(l)
	if err != nil {
		return nil, err
	}
	x := &beside{besideFFN: w, plain: make([]float32, len(mid)), mixture: make([]float32, len(mid))}
	if x.gain, err = m.vector(family.Name(l, "ffn_norm.weight"), false); err != nil {
		return nil, err
	}
	normed := func(gain []float32) []float32 {
		out := make([]float32, len(mid))
		m.norm(out, mid, gain)
		return out
	}
	x.way = &mixtureBackward{l: l, x: normed(w.experts), scale: w.scale, dx: make([]float32, len(mid)),
		dout: make([]float32, len(mid))}
	if err := m.routes(ctx, x.way, normed(w.router)); err != nil {
		return nil, err
	}
	taken := make([][]route, len(x.way.routes)) // with the scales of the experts
	for e, rs := range x.way.routes {
		taken[e] = slices.Clone(rs)
		for r := range taken[e] {
			taken[e][r].weight *= w.scale[e]
		}
	}
	for e := range taken {
		if err := m.expert(ctx, l, e, b, []branch{{x: x.way.x, y: x.mixture, routes: taken}}, Hooks{}); err != nil {
			return nil, err
		}
	}
	x.plainIn = normed(x.gain)
	if x.back, err = m.ffnBackMatrices(ctx, l, ""); err != nil {
		return nil, err
	}
	return x, m.gated(ctx, &m.Config.Layers[l].FFN, x.plain, x.plainIn, b.rows(), b, m.mats[:3], &noBiases)
}

// besideBack is ffnBack for a mixture beside a plain FFN: dout is behind both and their norm, and dx,
// to which it adds, the gradient of mid.
func (m *Model) besideBack(ctx context.Context, l int, b *batch, mid, dout, dx []float32) error {
	y := &m.Config.Layers[l]
	x, err := m.besideAgain(ctx, l, b, mid)
	if err != nil {
		return err
	}
	if y.PostNorms {
		post, err := m.vector(family.Name(l, "post_ffw_norm.weight"), false)
		if err != nil {
			return err
		}
		sum, other, before := make([]float32, len(mid)), make([]float32, len(mid)), make([]float32, len(mid))
		m.norm(sum, x.mixture, x.afterExperts)
		m.norm(other, x.plain, x.afterPlain)
		addTo(sum, other, m.Threads)
		m.normBack(before, dout, sum, post)
		dout = before
	}
	dplain, din := make([]float32, len(mid)), make([]float32, len(mid))
	m.normBack(dplain, dout, x.plain, x.afterPlain)
	if err := m.gatedBack(ctx, &y.FFN, x.plainIn, dplain, din, b.rows(), b, x.back, &noBiases, nil); err != nil {
		return err
	}
	m.normBack(dx, din, mid, x.gain)
	g := x.way
	m.normBack(g.dout, dout, x.mixture, x.afterExperts)
	for e := range g.routes {
		if err := m.expertBack(ctx, g, e, b); err != nil {
			return err
		}
	}
	m.normBack(dx, g.dx, mid, x.experts)
	clear(din)
	if err := m.routerBack(ctx, g, din); err != nil {
		return err
	}
	m.normBack(dx, din, mid, x.router)
	return nil
}
