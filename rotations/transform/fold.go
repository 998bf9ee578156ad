package transform

import (
	"errors"
	"fmt"
	"math"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/family"
)

// IDPairScale is the identity that FoldPairScale folds.
const IDPairScale = "G3"

// IDPairAngle is the same with angles.
const IDPairAngle = "G3-angle"

// FoldPairScale adds the K/Q pair balance of one layer to the edits of v: without QK-norm
// to the rows of W_K and W_Q and to their biases, per KV head; with QK-norm to
// the norm gains, which act after the projections. Every layer that reads the keys takes the
// inverse to its queries.
func FoldPairScale(v *checkpoint.Edited, layer int, b *PairScale) error {
	cfg, y := v.Config(), &v.Config().Layers[layer]
	d := y.HeadDim
	if err := cfg.RequireLayer(layer, "a scale of rotary pairs", family.OwnHeads); err != nil {
		return err
	}
	if err := CheckPairScale(y); err != nil {
		return fmt.Errorf("layer %d: %w", layer, err)
	}
	if err := b.Check(y.KVHeads, d); err != nil {
		return fmt.Errorf("layer %d: %w", layer, err)
	}
	if y.QKNorm == family.NormHead && !b.PerLayer {
		return fmt.Errorf("layer %d: one gain vector serves all heads, so the balance must be one for all heads too", layer)
	}
	var k []float32
	for h := range y.KVHeads {
		k = append(k, b.KeyScale(h, d, cfg.PairsIn(layer))...)
	}
	if v.Edits == nil {
		v.Edits = checkpoint.Edits{}
	}
	foldScale(v, layer, IDPairScale, k, func(h int) []float32 { return b.QueryScale(h, d, cfg.PairsIn(layer)) })
	return nil
}

// foldScale multiplies the keys of a layer by a number for each dimension of all KV heads, and the
// queries that meet head h, in every layer that reads the keys, by those of query.
func foldScale(v *checkpoint.Edited, layer int, id string, keys []float32, query func(h int) []float32) {
	cfg := v.Config()
	scalePart(v, layer, "attn_k", id, keys)
	for _, l := range cfg.Readers(layer) {
		var q []float32
		for h := range cfg.Layers[l].KVHeads {
			for range cfg.Layers[l].Group() {
				q = append(q, query(h)...)
			}
		}
		scalePart(v, l, "attn_q", id, q)
	}
}

// CheckPairScale says whether a scale passes between the keys and queries of a layer.
func CheckPairScale(y *family.Layer) error {
	if y.FixedKeys != "" {
		return errors.New(y.FixedKeys)
	}
	return nil
}

// scalePart multiplies what a layer's projection attn_q or attn_k gives, by a number for each
// dimension of all its heads: in its rows and bias, or in the gains of the norm behind it.
func scalePart(v *checkpoint.Edited, layer int, part, id string, scale []float32) {
	y := &v.Config().Layers[layer]
	names := []string{part + ".weight", part + ".bias"}
	switch y.QKNorm {
	case family.NormHead:
		names, scale = []string{part + "_norm.weight"}, scale[:y.HeadDim]
	case family.NormLayers:
		names = []string{part + "_norm.weight"}
	}
	for _, n := range names {
		if name := family.Name(layer, n); exists(v, name) {
			v.Edits.Scale(name, id, scale)
		}
	}
}

func exists(v *checkpoint.Edited, name string) bool { _, ok := v.Find(name); return ok }

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
