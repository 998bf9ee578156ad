package llama

import (
	"fmt"
	"strings"
)

// Folds says which edits of weights a layer's graph admits, or why none.
type Folds struct {
	Layer int `json:"layer"`
	// Keys are the edits of keys and queries: "pair scale and angle", "pair scale", "dense".
	Keys string `json:"keys,omitempty"`
	Bias bool   `json:"bias,omitempty"` // a constant can be taken out of the keys, through a bias
	// Refused names the operation that no edit passes, "" where some do.
	Refused string `json:"refused,omitempty"`
}

// Edits of keys.
const (
	foldPairs = "pair scale and angle"
	foldGains = "pair scale, through the gains"
	foldDense = "dense"
)

// Folds judges a chain of operations: a matrix product, perhaps with a scale, a bias, a norm with gains,
// RoPE and a scale behind. Everything else is refused by the operation's name, never guessed.
func (a *Attention) Folds() Folds {
	f := Folds{Layer: a.Layer}
	k, err := readChain(a.K)
	if err != nil {
		f.Refused = "keys: " + err.Error()
		return f
	}
	q, err := readChain(a.Q)
	switch {
	case err != nil:
		f.Refused = "queries: " + err.Error()
	case k.norm != q.norm || k.late != q.late:
		f.Refused = "only one of keys and queries is normed"
	case k.late && !k.gain:
		f.Refused = "a norm without gains behind RoPE"
	case a.Rope != nil && a.Rope.Mode != ropePairs && a.Rope.Mode != ropeHalves:
		f.Refused = fmt.Sprintf("RoPE of mode %d, whose sections turn by positions of several kinds", a.Rope.Mode)
	case k.norm && (!k.gain || !q.gain):
		f.Refused = "a norm without gains"
	case k.norm:
		f.Keys = foldGains
	case a.Rope == nil:
		f.Keys, f.Bias = foldDense, true
	default:
		f.Keys, f.Bias = foldPairs, true
	}
	return f
}

// chainParts is what readChain found.
type chainParts struct {
	norm, gain, late bool // late: behind RoPE
}

// readChain refuses chains that are not on the list.
func readChain(c Chain) (p chainParts, err error) {
	rope := false
	for i, s := range c {
		switch {
		case i == 0 && s.Op == matrixProduct && strings.HasSuffix(s.Weight, ".weight"):
		case i == 0 && s.Op == "(":
			return p, fmt.Errorf("CONCAT of parts, as in latent attention (MLA)")
		case i == 0:
			return p, fmt.Errorf("%s instead of a product with a weight begins them", s.Op)
		case s.Op == "VIEW" && s.Gaps:
			return p, fmt.Errorf("VIEW with gaps between the heads")
		case s.Op == "VIEW" && (rope || p.norm):
			return p, fmt.Errorf("VIEW of a part behind %s", c[i-1].Op)
		case s.Op == "VIEW", s.Op == "SCALE", s.Op == "CONT":
		case s.Op == "ADD" && strings.HasSuffix(s.Weight, ".bias") && !p.norm && !rope:
		case s.Op == "MUL" && strings.HasSuffix(s.Weight, ".scale"):
		case s.Op == "RMS_NORM" || s.Op == "NORM":
			p.norm, p.late = true, rope
		case s.Op == "MUL" && p.norm && strings.HasSuffix(s.Weight, "_norm.weight"):
			p.gain = true
		case s.Op == "ROPE" && !rope:
			rope = true
		default:
			return p, fmt.Errorf("%s behind the product", strings.TrimSpace(s.Op+" "+s.Weight))
		}
	}
	if len(c) == 0 {
		return p, fmt.Errorf("what they are made of was not found in the graph")
	}
	return p, nil
}
