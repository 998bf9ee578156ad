package refmodel

import (
	"context"
	"math"
	"slices"
	"sort"

	"github.com/phaseconv/phaseconv/format/dtype"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/kernels/fmath"
	"github.com/phaseconv/phaseconv/kernels/linalg"
	"github.com/phaseconv/phaseconv/kernels/parallel"
)

// ffn adds layer l's feed-forward network to the hidden states of every variant.
func (m *Model) ffn(ctx context.Context, l int, b *batch, variants []*Variant, hooks Hooks) error {
	c, y := m.Config, &m.Config.Layers[l]
	var gain []float32
	var err error
	if !y.BareInputs && !y.Parallel {
		if gain, err = m.vector(family.Name(l, "ffn_norm.weight"), false); err != nil {
			return err
		}
	}
	var post []float32
	if y.PostNorms {
		if post, err = m.vector(family.Name(l, "post_ffw_norm.weight"), false); err != nil {
			return err
		}
	}
	if y.FFN.Experts > 0 {
		return m.mixture(ctx, l, b, variants, hooks, gain, post)
	}
	for i, n := range []string{"ffn_gate.weight", "ffn_up.weight", "ffn_down.weight"} {
		if err := m.packAll(ctx, &m.mats[i], family.Name(l, n)); err != nil {
			return err
		}
	}
	for i, variant := range variants {
		x := m.ffnInput(y, linalg.Grow(&b.norm, b.rows()*c.Hidden), variant, gain)
		if hooks.FFN != nil && i == 0 {
			if err := hooks.FFN(l, x); err != nil {
				return err
			}
		}
		out := linalg.Grow(&b.proj, b.rows()*c.Hidden)
		if err := m.gated(ctx, &y.FFN, out, x, b.rows(), b, m.mats[:3], &noBiases); err != nil {
			return err
		}
		if hooks.Neurons != nil && i == 0 {
			if err := hooks.Neurons(l, 0, b.gate[:b.rows()*y.FFN.Size], nil); err != nil {
				return err
			}
		}
		if post != nil {
			m.norm(out, out, post)
		}
		addScaled(variant.Hidden, out, y.ResidualScale, m.Threads)
	}
	return nil
}

// ffnInput returns what layer y's FFN reads, in x or where it stands already.
func (m *Model) ffnInput(y *family.Layer, x []float32, variant *Variant, gain []float32) []float32 {
	switch {
	case y.Parallel:
		return variant.beside
	case y.BareInputs:
		return variant.Hidden
	}
	m.norm(x, variant.Hidden, gain)
	return x
}

// gated computes y = down(act(gate(x)) * up(x)) for rows of x; biases are of gate, up and down,
// or nil.
func (m *Model) gated(ctx context.Context, ffn *family.FFN, y, x []float32, rows int, b *batch, w []matrix,
	biases *[3][]float32) error {
	f := w[0].N()
	g, u := linalg.Grow(&b.gate, rows*f), linalg.Grow(&b.up, rows*f)
	if err := m.linear(ctx, g, x, rows, &w[0], biases[0]); err != nil {
		return err
	}
	if err := m.linear(ctx, u, x, rows, &w[1], biases[1]); err != nil {
		return err
	}
	parallel.Rows(m.Threads, rows, func(r0, r1 int) {
		m.actMul(ffn.Activation, g[r0*f:r1*f], u[r0*f:r1*f])
	})
	return m.linear(ctx, y, g, rows, &w[2], biases[2])
}

// noBiases is for FFNs without.
var noBiases [3][]float32

// actMul sets gate = act(gate) * up. It may change up.
func (m *Model) actMul(a family.Activation, gate, up []float32) {
	switch a {
	case family.GELUTanh:
		if m.HalfGELU {
			halfGELUMul(gate, up)
			return
		}
		fmath.GELUTanhMul(gate, gate, up)
	case family.ClampedSwiGLU:
		// g sigmoid(a g) = SiLU(a g) / a
		for i, g := range gate {
			gate[i] = min(g, family.ClampLimit) * family.ClampAlpha
			up[i] = (min(max(up[i], -family.ClampLimit), family.ClampLimit) + 1) / family.ClampAlpha
		}
		fmath.SiLUMul(gate, gate, up)
	default:
		fmath.SiLUMul(gate, gate, up)
	}
}

// halfGELUMul is actMul for HalfGELU. The table covers arguments up to 10; beyond, GELU is 0 or the argument.
func halfGELUMul(gate, up []float32) {
	const covered = 10
	g, one := make([]float32, len(gate)), make([]float32, len(gate))
	for i, x := range gate {
		g[i], one[i] = dtype.F16ToF32(dtype.F32ToF16(x)), 1
	}
	fmath.GELUTanhMul(g, g, one)
	for i, x := range gate {
		switch {
		case x >= covered:
			g[i] = x
		case x > -covered:
			g[i] = dtype.F16ToF32(dtype.F32ToF16(g[i]))
		default:
			g[i] = 0
		}
		gate[i] = g[i] * up[i]
	}
}

// A route is one token's share in one expert.
type route struct {
	row    int
	weight float32
}

// A branch is one variant's way through a mixture.
type branch struct {
	x, y   []float32 // [rows, hidden]: what the experts read, and their sum
	routes [][]route // by expert
	plain  []float32 // what the FFN beside reads
}

// A besideFFN holds the vectors of a mixture with a plain FFN beside it.
type besideFFN struct {
	router, experts          []float32 // gains of what the router and the experts read
	scale                    []float32 // of each expert's weight
	afterPlain, afterExperts []float32 // gains of the norms of both results
}

// loadBeside returns nil for other layers.
func (m *Model) loadBeside(l int) (*besideFFN, error) {
	if m.Config.Layers[l].FFN.Beside == 0 {
		return nil, nil
	}
	x := &besideFFN{}
	for _, v := range []struct {
		dst  *[]float32
		name string
	}{{&x.router, "ffn_gate_inp.scale"}, {&x.experts, "pre_ffw_norm_2.weight"}, {&x.scale, "ffn_down_exps.scale"},
		{&x.afterPlain, "post_ffw_norm_1.weight"}, {&x.afterExperts, "post_ffw_norm_2.weight"}} {
		var err error
		if *v.dst, err = m.vector(family.Name(l, v.name), false); err != nil {
			return nil, err
		}
	}
	// The router divides by the root of the hidden size. A resident model keeps the vector as it is.
	x.router = slices.Clone(x.router)
	fmath.Scale(x.router, float32(1/math.Sqrt(float64(m.Config.Hidden))))
	return x, nil
}

// addBeside norms what the experts gave and adds the plain FFN's normed output.
func (m *Model) addBeside(ctx context.Context, l int, b *batch, branches []branch, w *besideFFN) error {
	ffn, n := &m.Config.Layers[l].FFN, b.rows()
	for i, name := range []string{"ffn_gate.weight", "ffn_up.weight", "ffn_down.weight"} {
		if err := m.packAll(ctx, &m.mats[i], family.Name(l, name)); err != nil {
			return err
		}
	}
	for i := range branches {
		out := linalg.Grow(&b.proj, n*m.Config.Hidden)
		if err := m.gated(ctx, ffn, out, branches[i].plain, n, b, m.mats[:3], &noBiases); err != nil {
			return err
		}
		m.norm(out, out, w.afterPlain)
		m.norm(branches[i].y, branches[i].y, w.afterExperts)
		addTo(branches[i].y, out, m.Threads)
	}
	return nil
}

// mixture is ffn for a mixture of experts. Each expert is loaded once for all
// variants. A token's expert outputs are added in the order of the experts, those of shared
// experts last.
func (m *Model) mixture(ctx context.Context, l int, b *batch, variants []*Variant, hooks Hooks,
	gain, post []float32) error {
	c, ffn, n := m.Config, &m.Config.Layers[l].FFN, b.rows()
	beside, err := m.loadBeside(l)
	if err != nil {
		return err
	}
	if err := m.packAll(ctx, &m.mats[3], family.Name(l, "ffn_gate_inp.weight")); err != nil {
		return err
	}
	bias, err := m.vectorIf(ffn.RouterBias, family.Name(l, "ffn_gate_inp.bias"))
	if err != nil {
		return err
	}
	choice, err := m.vectorIf(ffn.ChoiceBias, family.Name(l, "exp_probs_b.bias"))
	if err != nil {
		return err
	}
	branches := make([]branch, len(variants))
	for i, variant := range variants {
		x := m.ffnInput(&c.Layers[l], make([]float32, n*c.Hidden), variant, gain)
		if hooks.FFN != nil && i == 0 {
			if err := hooks.FFN(l, x); err != nil {
				return err
			}
		}
		branches[i] = branch{x: x, y: make([]float32, n*c.Hidden)}
		route := x
		if beside != nil {
			route = make([]float32, n*c.Hidden)
			m.norm(route, variant.Hidden, beside.router)
			branches[i].plain, branches[i].x = x, make([]float32, n*c.Hidden)
			m.norm(branches[i].x, variant.Hidden, beside.experts)
		}
		logits := make([]float32, n*ffn.Experts)
		if err := m.linear(ctx, logits, route, n, &m.mats[3], bias); err != nil {
			return err
		}
		branches[i].routes = chooseExperts(ffn, logits, choice)
		if beside != nil {
			for e, rs := range branches[i].routes {
				for r := range rs {
					rs[r].weight *= beside.scale[e]
				}
			}
		}
	}
	for e := range ffn.Experts {
		if err := m.expert(ctx, l, e, b, branches, hooks); err != nil {
			return err
		}
	}
	if err := m.shared(ctx, l, b, branches); err != nil {
		return err
	}
	if beside != nil {
		if err := m.addBeside(ctx, l, b, branches, beside); err != nil {
			return err
		}
	}
	for i, variant := range variants {
		if post != nil {
			m.norm(branches[i].y, branches[i].y, post)
		}
		addScaled(variant.Hidden, branches[i].y, c.Layers[l].ResidualScale, m.Threads)
	}
	return nil
}

// expert adds expert e's part of a mixture, for the tokens that chose it.
func (m *Model) expert(ctx context.Context, l, e int, b *batch, branches []branch, hooks Hooks) error {
	used := false
	for i := range branches {
		used = used || len(branches[i].routes[e]) > 0
	}
	if !used {
		return nil
	}
	ffn, hidden := &m.Config.Layers[l].FFN, m.Config.Hidden
	var biases [3][]float32
	for i, name := range []string{"ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"} {
		t, err := m.find(family.Name(l, name+".weight"))
		if err != nil {
			return err
		}
		per := t.Rows() / ffn.Experts
		if err := m.pack(ctx, &m.mats[i], t, e*per, per); err != nil {
			return err
		}
		if biases[i], err = m.expertBias(ffn, l, e, name); err != nil {
			return err
		}
	}
	var in, out []float32
	for i := range branches {
		rs := branches[i].routes[e]
		if len(rs) == 0 {
			continue
		}
		in, out = linalg.Grow(&in, len(rs)*hidden), linalg.Grow(&out, len(rs)*hidden)
		for r, t := range rs {
			copy(in[r*hidden:(r+1)*hidden], branches[i].x[t.row*hidden:])
		}
		if err := m.gated(ctx, ffn, out, in, len(rs), b, m.mats[:3], &biases); err != nil {
			return err
		}
		if hooks.Neurons != nil && i == 0 {
			weights := make([]float32, len(rs))
			for r, t := range rs {
				weights[r] = t.weight
			}
			if err := hooks.Neurons(l, e, b.gate[:len(rs)*ffn.Size], weights); err != nil {
				return err
			}
		}
		for r, t := range rs {
			y := branches[i].y[t.row*hidden : (t.row+1)*hidden]
			for k, v := range out[r*hidden : (r+1)*hidden] {
				y[k] += float32(v * t.weight)
			}
		}
	}
	return nil
}

// expertBias returns the bias of one of expert e's matrices, nil where there are none.
func (m *Model) expertBias(ffn *family.FFN, l, e int, matrix string) ([]float32, error) {
	if !ffn.Biases {
		return nil, nil
	}
	t, err := m.find(family.Name(l, matrix+".bias"))
	if err != nil {
		return nil, err
	}
	bias := make([]float32, t.Cols())
	return bias, m.w.ReadRows(t, e, 1, bias)
}

// shared adds the experts that every token goes through.
func (m *Model) shared(ctx context.Context, l int, b *batch, branches []branch) error {
	ffn, hidden, n := &m.Config.Layers[l].FFN, m.Config.Hidden, b.rows()
	if ffn.Shared == 0 {
		return nil
	}
	for i, name := range []string{"ffn_gate_shexp.weight", "ffn_up_shexp.weight", "ffn_down_shexp.weight"} {
		if err := m.packAll(ctx, &m.mats[i], family.Name(l, name)); err != nil {
			return err
		}
	}
	gate, err := m.vectorIf(ffn.SharedGate, family.Name(l, "ffn_gate_inp_shexp.weight"))
	if err != nil {
		return err
	}
	for i := range branches {
		x, y := branches[i].x, branches[i].y
		out := linalg.Grow(&b.proj, n*hidden)
		if err := m.gated(ctx, ffn, out, x, n, b, m.mats[:3], &noBiases); err != nil {
			return err
		}
		parallel.Rows(m.Threads, n, func(r0, r1 int) {
			for r := r0; r < r1; r++ {
				weight := float32(1)
				if gate != nil {
					logit := 0.0
					for k, v := range x[r*hidden : (r+1)*hidden] {
						logit += float64(float64(v) * float64(gate[k]))
					}
					weight = float32(sigmoid(logit))
				}
				for k, v := range out[r*hidden : (r+1)*hidden] {
					y[r*hidden+k] += float32(v * weight)
				}
			}
		})
	}
	return nil
}

func sigmoid(x float64) float64 { return 1 / (1 + fmath.Exp(-x)) }

// chooseExperts turns router logits, [rows, experts], into the rows and weights
// of each expert, and leaves the experts' probabilities in their place. choice is added
// to those for choosing the best, if it is not nil. Equal ones go to the expert with the
// lower number.
func chooseExperts(f *family.FFN, logits, choice []float32) [][]route {
	out := make([][]route, f.Experts)
	order, score := make([]int, f.Experts), make([]float32, f.Experts)
	for row := range len(logits) / f.Experts {
		p := logits[row*f.Experts : (row+1)*f.Experts]
		switch f.Router {
		case family.SoftmaxTopK:
			fmath.Softmax(p, 1)
		case family.SigmoidTopK:
			for i, v := range p {
				p[i] = float32(sigmoid(float64(v)))
			}
		}
		copy(score, p)
		for i, v := range choice {
			score[i] += v
		}
		for i := range order {
			order[i] = i
		}
		eligible := order
		if f.Groups > 1 {
			eligible = inGroups(f, score)
		}
		sort.SliceStable(eligible, func(a, b int) bool { return score[eligible[a]] > score[eligible[b]] })
		best := eligible[:f.Used]
		if f.Router == family.TopKSoftmax {
			chosen := make([]float32, f.Used)
			for i, e := range best {
				chosen[i] = p[e]
			}
			fmath.Softmax(chosen, 1)
			for i, e := range best {
				p[e] = chosen[i]
			}
		}
		sum := float32(1)
		if f.Renorm {
			sum = 0
			for _, e := range best {
				sum += p[e]
			}
			sum = max(sum, math.SmallestNonzeroFloat32)
		}
		for _, e := range best {
			w := p[e] / sum
			if s := f.Scale(); s != 1 {
				w *= float32(s)
			}
			out[e] = append(out[e], route{row, w})
		}
	}
	return out
}

// inGroups returns the experts of the groups that take part, in order.
func inGroups(f *family.FFN, score []float32) []int {
	per := f.Experts / f.Groups
	group, sums := make([]int, f.Groups), make([]float32, f.Groups)
	for g := range group {
		group[g] = g
		first, second := float32(math.Inf(-1)), float32(math.Inf(-1))
		for _, v := range score[g*per : (g+1)*per] {
			if v > first {
				first, second = v, first
			} else if v > second {
				second = v
			}
		}
		sums[g] = first + second
	}
	sort.SliceStable(group, func(a, b int) bool { return sums[group[a]] > sums[group[b]] })
	var out []int
	for _, g := range group[:f.GroupsUsed] {
		for e := range per {
			out = append(out, g*per+e)
		}
	}
	sort.Ints(out)
	return out
}
