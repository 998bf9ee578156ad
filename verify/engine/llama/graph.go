package llama

import (
	"cmp"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/kernels/rope"
	"github.com/phaseconv/phaseconv/spec"
)

// Graph describes the model for conversions, see spec.Graph: which tensors make and meet the keys and
// values of each cache, and which edits pass through what stands behind them.
func (f *Facts) Graph() *spec.Graph {
	g := &spec.Graph{Architecture: f.Arch, Hidden: f.Hidden, Vocab: f.Vocab, Context: f.Context,
		PairLayout: f.Caches().Pairs.String()}
	for _, a := range f.Owners() {
		g.Caches = append(g.Caches, f.cache(a, g.PairLayout))
	}
	alone(g)
	return g
}

// cache describes one cache.
func (f *Facts) cache(a *Attention, pairs string) spec.GraphCache {
	c := spec.GraphCache{Block: a.Layer, Heads: a.Heads, KVHeads: a.KVHeads, HeadDim: a.HeadDim, ValueDim: a.ValueDim,
		Scale: float64(a.Scale * a.QueryScale), Sinks: a.Sinks, Norm: family.NoQKNorm.String(), FixedKeys: a.Folds().Refused}
	if a.Rope != nil {
		p, layout, ok := a.Rope.Params()
		if ok = ok && layout.String() == pairs && a.K[0].Op == matrixProduct; !ok && c.FixedKeys == "" {
			c.FixedKeys = "RoPE of a kind that has no parameters here"
		}
		if c.RopeUnknown = !ok; ok {
			c.Rope = ropeJSON(p)
		}
	}
	f.keys(a, &c)
	f.values(a, &c)
	var readers []string
	for i := range f.Attention {
		if x := &f.Attention[i]; x.Owner == a.Owner && x.Layer != a.Layer {
			readers = append(readers, fmt.Sprint(x.Layer))
		}
	}
	if readers != nil {
		c.FixedKeys = fmt.Sprintf("layers %s read the keys of layer %d too", strings.Join(readers, ", "), a.Layer)
		c.FixedValues = strings.Replace(c.FixedKeys, "keys", "values", 1)
	}
	return c
}

const matrixProduct = "MUL_MAT"

func ropeJSON(p rope.Params) *spec.GraphRope {
	return &spec.GraphRope{Dim: p.Dim, Theta: p.Theta, Scaling: string(p.Scaling), Factor: p.Factor,
		OriginalContext: p.OriginalContext, BetaFast: p.BetaFast, BetaSlow: p.BetaSlow, Divisors: p.Divisors}
}

// keys adds the tensors of keys and queries: by their roles where edits pass, else just those that the
// chains name.
func (f *Facts) keys(a *Attention, c *spec.GraphCache) {
	var tensors []spec.GraphTensor
	var norms []string
	for _, x := range []struct {
		role  string
		chain Chain
		heads int
	}{{"attn_q", a.Q, a.Heads}, {"attn_k", a.K, a.KVHeads}} {
		list, norm, err := f.roles(x.role, x.chain, x.heads, a.HeadDim)
		if err != nil && c.FixedKeys == "" {
			c.FixedKeys = err.Error()
		}
		tensors, norms = append(tensors, list...), append(norms, norm)
	}
	if norms[0] != norms[1] && c.FixedKeys == "" {
		c.FixedKeys = fmt.Sprintf("queries are normed over the %s, keys over the %s", norms[0], norms[1])
	}
	if c.FixedKeys == "" {
		c.Norm, c.Tensors = norms[1], tensors
		p, _ := readChain(a.K)
		c.LateNorm = p.late
		return
	}
	seen := map[string]bool{}
	for _, x := range []struct {
		role  string
		chain Chain
	}{{"queries", a.Q}, {"keys", a.K}} {
		for _, w := range x.chain.Weights() {
			if t, ok := f.Weights[w]; ok && !seen[w] {
				seen[w] = true
				c.Tensors = append(c.Tensors, spec.GraphTensor{Role: fmt.Sprintf("%s.%d", x.role, len(seen)), Name: w,
					Rows: rows(t)})
			}
		}
	}
}

// rows is the length of a tensor's outermost dimension.
func rows(t Weight) int {
	for i := len(t.NE) - 1; i > 0; i-- {
		if t.NE[i] > 1 {
			return int(t.NE[i])
		}
	}
	return int(t.NE[0])
}

// roles names the tensors of a chain: the matrix, its bias, the gains of a norm. norm is over what a norm
// is taken.
func (f *Facts) roles(role string, chain Chain, heads, d int) (out []spec.GraphTensor, norm string, err error) {
	row := 0
	for _, s := range chain {
		if s.Op == "VIEW" {
			row = int(s.Offset)
		}
	}
	norm = family.NoQKNorm.String()
	for i, s := range chain {
		t := f.Weights[s.Weight]
		x := spec.GraphTensor{Name: s.Weight, Row: row, Rows: heads * d}
		switch {
		case s.Weight == "" || strings.HasSuffix(s.Weight, ".scale"):
			continue
		case i == 0 && s.Op == matrixProduct && t.NE[2] == 1 && t.NE[3] == 1:
			x.Role = role + ".weight"
		case s.Op == "ADD" && t.NE[1] == 1:
			x.Role = role + ".bias"
		case s.Op == "MUL" && t.NE[1] == 1 && (t.NE[0] == int64(d) || t.NE[0] == int64(heads*d)):
			x.Role, x.Row, x.Rows = role+"_norm.weight", 0, int(t.NE[0])
			norm = family.NormHead.String()
			if x.Rows != d {
				norm = family.NormLayers.String()
			}
		default:
			return nil, norm, fmt.Errorf("%s %s of shape %v", s.Op, s.Weight, t.NE)
		}
		out = append(out, x)
	}
	return out, norm, nil
}

// values adds the tensors between which a matrix on values could pass, if it can.
func (f *Facts) values(a *Attention, c *spec.GraphCache) {
	o, ok := f.Weights[a.O]
	for _, s := range a.V {
		switch {
		case s.Op == matrixProduct, s.Op == "CONT", s.Op == "VIEW" && !s.Gaps, s.Op == "ADD" && s.Weight != "",
			s.Op == "MUL" && strings.HasSuffix(s.Weight, ".scale"):
		default:
			c.FixedValues = fmt.Sprintf("values: %s behind the product", strings.TrimSpace(s.Op+" "+s.Weight))
			return
		}
	}
	list, _, err := f.roles("attn_v", a.V, a.KVHeads, a.ValueDim)
	switch {
	case a.ValueDim == 0:
		c.FixedValues = "values are a part of the keys (MLA)"
	case err != nil:
		c.FixedValues = "values: " + err.Error()
	case len(list) == 0:
		c.FixedValues = "what values are made of was not found in the graph"
	case !ok || o.NE[2] != 1 || o.NE[0] != int64(a.Heads*a.ValueDim):
		c.FixedValues = "an operation stands between attention and its output matrix"
	case a.ValueDim != a.HeadDim:
		c.FixedValues = fmt.Sprintf("values of %d numbers beside keys of %d", a.ValueDim, a.HeadDim)
	default:
		c.Tensors = append(append(c.Tensors, list...), spec.GraphTensor{Role: "attn_output.weight", Name: a.O, Rows: int(o.NE[1])})
	}
}

// alone refuses edits of tensors that do two things: rows that several caches share, or that make keys
// and values at once. The later roles go, so that each row has one.
func alone(g *spec.Graph) {
	type user struct {
		spec.GraphTensor
		cache int
	}
	byName := map[string][]user{}
	for i := range g.Caches {
		for _, t := range g.Caches[i].Tensors {
			byName[t.Name] = append(byName[t.Name], user{t, i})
		}
	}
	drop := map[user]bool{}
	for _, list := range byName {
		for i, a := range list {
			for _, b := range list[:i] {
				if a.Row >= b.Row+b.Rows || b.Row >= a.Row+a.Rows {
					continue
				}
				drop[a] = true
				why := fmt.Sprintf("tensor %s does two things (%s of layer %d, %s of layer %d)", a.Name, b.Role,
					g.Caches[b.cache].Block, a.Role, g.Caches[a.cache].Block)
				for _, c := range []*spec.GraphCache{&g.Caches[a.cache], &g.Caches[b.cache]} {
					if c.FixedKeys == "" {
						c.FixedKeys = why
					}
					if c.FixedValues == "" {
						c.FixedValues = why
					}
				}
			}
		}
	}
	for i := range g.Caches {
		c := &g.Caches[i]
		c.Tensors = slices.DeleteFunc(c.Tensors, func(t spec.GraphTensor) bool { return drop[user{t, i}] })
	}
}

// CheckGraph says whether the file's graph still is what a manifest says of it.
func (f *Facts) CheckGraph(g *spec.Graph) error {
	now := f.Graph()
	there := func(t spec.GraphTensor) bool { _, ok := f.Weights[t.Name]; return ok }
	if len(now.Caches) != len(g.Caches) {
		return fmt.Errorf("the graph has %d caches, %d were recorded", len(now.Caches), len(g.Caches))
	}
	for i := range g.Caches {
		if !reflect.DeepEqual(normal(now.Caches[i], there), normal(g.Caches[i], there)) {
			return fmt.Errorf("llama.cpp computes layer %d otherwise than was recorded: %+v, recorded %+v", g.Caches[i].Block,
				now.Caches[i], g.Caches[i])
		}
	}
	return nil
}

// normal makes descriptions of one cache alike: it leaves out optional tensors that are not there, and
// sorts.
func normal(c spec.GraphCache, there func(spec.GraphTensor) bool) spec.GraphCache {
	var out []spec.GraphTensor
	for _, t := range c.Tensors {
		if t.Optional && !there(t) {
			continue
		}
		t.Optional = false
		out = append(out, t)
	}
	slices.SortFunc(out, func(a, b spec.GraphTensor) int { return cmp.Compare(a.Role, b.Role) })
	c.Tensors = out
	return c
}
