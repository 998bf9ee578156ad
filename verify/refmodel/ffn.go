package refmodel

import (
	"context"
	"sort"

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
		return m.mixture(ctx, l, b, variants, hooks, gain)
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
		if err := m.gated(ctx, &y.FFN, out, x, b.rows(), b, m.mats[:3]); err != nil {
			return err
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

// gated computes y = down(act(gate(x)) * up(x)) for rows of x.
func (m *Model) gated(ctx context.Context, ffn *family.FFN, y, x []float32, rows int, b *batch, w []matrix) error {
	f := w[0].N()
	g, u := linalg.Grow(&b.gate, rows*f), linalg.Grow(&b.up, rows*f)
	if err := m.mul(ctx, g, x, rows, &w[0]); err != nil {
		return err
	}
	if err := m.mul(ctx, u, x, rows, &w[1]); err != nil {
		return err
	}
	parallel.Rows(m.Threads, rows, func(r0, r1 int) {
		actMul(ffn.Activation, g[r0*f:r1*f], u[r0*f:r1*f])
	})
	return m.mul(ctx, y, g, rows, &w[2])
}

// A route is one token's share in one expert.
type route struct {
	row    int
	weight float32
}

// mixture is ffn for a mixture of experts. Each expert is loaded once for all
// variants. A token's expert outputs are added in the order of the experts.
func (m *Model) mixture(ctx context.Context, l int, b *batch, variants []*Variant, hooks Hooks, gain []float32) error {
	c, ffn, n := m.Config, &m.Config.Layers[l].FFN, b.rows()
	if err := m.packAll(ctx, &m.mats[3], family.Name(l, "ffn_gate_inp.weight")); err != nil {
		return err
	}
	xs := make([][]float32, len(variants))
	ys := make([][]float32, len(variants))
	routes := make([][][]route, len(variants))
	for i, variant := range variants {
		xs[i], ys[i] = make([]float32, n*c.Hidden), make([]float32, n*c.Hidden)
		xs[i] = m.ffnInput(&c.Layers[l], xs[i], variant, gain)
		if hooks.FFN != nil && i == 0 {
			if err := hooks.FFN(l, xs[i]); err != nil {
				return err
			}
		}
		logits := make([]float32, n*ffn.Experts)
		if err := m.mul(ctx, logits, xs[i], n, &m.mats[3]); err != nil {
			return err
		}
		routes[i] = chooseExperts(ffn, logits)
	}
	names := []string{"ffn_gate_exps.weight", "ffn_up_exps.weight", "ffn_down_exps.weight"}
	var in, out []float32
	for e := range ffn.Experts {
		used := false
		for i := range variants {
			used = used || len(routes[i][e]) > 0
		}
		if !used {
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
		}
		for i := range variants {
			rs := routes[i][e]
			if len(rs) == 0 {
				continue
			}
			in, out = linalg.Grow(&in, len(rs)*c.Hidden), linalg.Grow(&out, len(rs)*c.Hidden)
			for r, t := range rs {
				copy(in[r*c.Hidden:(r+1)*c.Hidden], xs[i][t.row*c.Hidden:])
			}
			if err := m.gated(ctx, ffn, out, in, len(rs), b, m.mats[:3]); err != nil {
				return err
			}
			for r, t := range rs {
				y := ys[i][t.row*c.Hidden : (t.row+1)*c.Hidden]
				for k, v := range out[r*c.Hidden : (r+1)*c.Hidden] {
					y[k] += float32(v * t.weight)
				}
			}
		}
	}
	for i, variant := range variants {
		addScaled(variant.Hidden, ys[i], c.Layers[l].ResidualScale, m.Threads)
	}
	return nil
}

// chooseExperts turns router logits, [rows, experts], into the rows and weights
// of each expert. Equal probabilities go to the expert with the lower number.
func chooseExperts(f *family.FFN, logits []float32) [][]route {
	out := make([][]route, f.Experts)
	order := make([]int, f.Experts)
	for row := range len(logits) / f.Experts {
		p := logits[row*f.Experts : (row+1)*f.Experts]
		fmath.Softmax(p, 1)
		for i := range order {
			order[i] = i
		}
		sort.SliceStable(order, func(a, b int) bool { return p[order[a]] > p[order[b]] })
		best := order[:f.Used]
		sum := float32(1)
		if f.Renorm {
			sum = 0
			for _, e := range best {
				sum += p[e]
			}
		}
		for _, e := range best {
			out[e] = append(out[e], route{row, p[e] / sum})
		}
	}
	return out
}
