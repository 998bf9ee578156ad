package family

import (
	"fmt"

	"github.com/phaseconv/phaseconv/format"
	"github.com/phaseconv/phaseconv/kernels/rope"
	"github.com/phaseconv/phaseconv/spec"
)

// FromGraph makes the configuration of a model that the table has no entry for, of what llama.cpp's
// graph says: one layer for each cache, in their order, whatever the number of its block is. Canonical
// names count by these layers. It describes what is cached and what makes it, and nothing else: no
// forward pass can be made of it.
func FromGraph(g *spec.Graph) (*Config, error) {
	c, err := fromGraph(g)
	if err != nil {
		return nil, format.Brokenf("graph of architecture %s: %w", g.Architecture, err)
	}
	return c, nil
}

func fromGraph(g *spec.Graph) (*Config, error) {
	pairs, err := rope.ParseLayout(g.PairLayout)
	if err != nil {
		return nil, err
	}
	f := &Family{Name: g.Architecture, GGUFArch: g.Architecture, GGUFPairs: pairs, HFPairs: pairs}
	f.AttnBias.K, f.GGUFBias.K = len(g.Caches) > 0, len(g.Caches) > 0
	c := &Config{Family: f, Pairs: pairs, Hidden: g.Hidden, Vocab: g.Vocab, Context: g.Context, BOS: -1, EOS: -1,
		NormEps: 1e-6, EmbeddingScale: 1, LogitScale: 1}
	for i := range g.Caches {
		x := &g.Caches[i]
		y := Layer{ResidualScale: 1, FFN: FFN{Size: 1}} // what nothing asks of it
		y.HeadShape = HeadShape{Heads: x.Heads, KVHeads: x.KVHeads, HeadDim: x.HeadDim, ValueDim: x.ValueDim}
		if x.ValueDim == 0 { // a code sees rows of numbers, whatever values are made of
			y.ValueDim = x.HeadDim
		}
		y.Owner, y.Scale, y.Sinks, y.NormAfterRoPE = i, x.Scale, x.Sinks, x.LateNorm
		y.FixedKeys, y.FixedValues = x.FixedKeys, x.FixedValues
		if y.QKNorm, err = parseQKNorm(x.Norm); err != nil {
			return nil, err
		}
		if r := x.Rope; r != nil {
			y.Rope = rope.Params{Theta: r.Theta, Dim: r.Dim, Scaling: rope.Scaling(r.Scaling), Factor: r.Factor,
				OriginalContext: r.OriginalContext, BetaFast: r.BetaFast, BetaSlow: r.BetaSlow, Divisors: r.Divisors}
		}
		has, takes := false, false
		for _, t := range x.Tensors {
			takes = takes || t.Role == "attn_k.bias"
			has = has || t.Role == "attn_k.bias" && !t.Optional
		}
		f.AttnBias.K, f.GGUFBias.K = f.AttnBias.K && has, f.GGUFBias.K && takes
		c.Layers = append(c.Layers, y)
	}
	return c, c.check()
}

// parseQKNorm is the inverse of QKNorm.String.
func parseQKNorm(s string) (QKNorm, error) {
	for _, q := range []QKNorm{NoQKNorm, NormHead, NormLayers} {
		if q.String() == s {
			return q, nil
		}
	}
	return 0, fmt.Errorf("qk_norm is %q, expected none, head or projection", s)
}

// GraphShape returns the shape of a tensor by its role in a layer, and whether there is a role with a
// shape of its own. Matrices have in columns, the output has in rows.
func (y *Layer) GraphShape(role string, in int) ([]int, bool) {
	switch role {
	case "attn_q.weight", "attn_k.weight", "attn_v.weight", "attn_output.weight", "attn_q.bias", "attn_k.bias", "attn_v.bias":
		return y.shape(role, in), true
	case "attn_q_norm.weight", "attn_k_norm.weight":
		return y.shape(role, in), y.QKNorm != NoQKNorm
	}
	return nil, false
}
