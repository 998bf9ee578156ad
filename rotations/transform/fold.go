package transform

import (
	"fmt"
	"math"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/family"
)

// IDPairScale is the identity that FoldPairScale folds.
const IDPairScale = "G3"

// FoldPairScale adds the K/Q pair balance of one layer to the edits of v: without QK-norm
// to the rows of W_K and W_Q and to their biases, per KV head; with QK-norm to
// the norm gains, which act after the projections.
func FoldPairScale(v *checkpoint.Edited, layer int, b *PairScale) error {
	cfg, y := v.Config(), &v.Config().Layers[layer]
	d := y.HeadDim
	if err := checkLayer(cfg, layer, "a scale of rotary pairs"); err != nil {
		return err
	}
	if err := b.Check(y.KVHeads, d); err != nil {
		return fmt.Errorf("layer %d: %w", layer, err)
	}
	var k, q []float32
	for h := range y.KVHeads {
		k = append(k, b.KeyScale(h, d, cfg.PairsIn(layer))...)
		for range y.Group() {
			q = append(q, b.QueryScale(h, d, cfg.PairsIn(layer))...)
		}
	}
	if v.Edits == nil {
		v.Edits = checkpoint.Edits{}
	}
	fold := func(part string, scale []float32) {
		name := family.Name(layer, part)
		if _, ok := v.Find(name); ok {
			v.Edits.Scale(name, IDPairScale, scale)
		}
	}
	switch y.QKNorm {
	case family.NormHead:
		if !b.PerLayer {
			return fmt.Errorf("layer %d: one gain vector serves all heads, so the balance must be one for all heads too", layer)
		}
		fold("attn_k_norm.weight", k[:d])
		fold("attn_q_norm.weight", q[:d])
	case family.NormLayers:
		fold("attn_k_norm.weight", k)
		fold("attn_q_norm.weight", q)
	default:
		fold("attn_k.weight", k)
		fold("attn_k.bias", k)
		fold("attn_q.weight", q)
		fold("attn_q.bias", q)
	}
	return nil
}

// checkLayer refuses layers whose keys a fold into weights cannot change: those with
// keys of another kind, and those whose keys other layers read, which would have to
// change their queries too.
func checkLayer(c *family.Config, layer int, what string) error {
	if err := c.RequireLayer(layer, what, family.OwnHeads); err != nil {
		return err
	}
	for l := range c.Layers {
		if l != layer && c.Layers[l].Owner == layer {
			return fmt.Errorf("%s in layer %d: layer %d reads its keys and values too, which is not supported", what, layer, l)
		}
	}
	return nil
}

// FloorPairScale is a balance that means nothing: every scale is the square root
// of two. Folding it changes no score but rounds every touched weight, so what it
// costs is the floor below which the cost of a real fold says nothing.
func FloorPairScale(y *family.Layer) *PairScale {
	b := &PairScale{PerLayer: y.QKNorm == family.NormHead}
	for range y.KVHeads {
		s := make([]float32, y.HeadDim/2)
		for p := range s {
			s[p] = math.Sqrt2
		}
		b.Scale = append(b.Scale, s)
	}
	return b
}
