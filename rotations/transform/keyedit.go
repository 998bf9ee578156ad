// Package transform holds the changes of weights that leave a model's function as it is, or
// nearly so, and make keys and values easier to store: each is checked against a model's
// architecture, fitted to samples, and folded into a view of the checkpoint.
package transform

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/kernels/linalg"
)

// IDValueTransform is identity G2 between W_V and W_O.
const IDValueTransform = "G2"

// A KeyEdit is what a change of weights does to the keys of one KV head before
// RoPE: k becomes T A (k - delta), and the queries that meet it change inversely;
// and to its values.
type KeyEdit struct {
	// Turn is T, identity G3; nil for none.
	Pairs *PairRotation
	// Mix is A, near-identity G8; nil for none.
	Transform *KeyTransform
	// Removal holds delta, near-identity G7; nil for none.
	Shift *BiasShift
	// Values multiplies values by its Key, and what leaves the head by the inverse,
	// identity G2; nil for none.
	Values *KeyTransform
}

// ModelEdits are the edits of a model, [layer][KV head]. A layer without any may be nil.
type ModelEdits [][]KeyEdit

// ErrNoKeyBias is why a model's keys cannot be shifted.
var ErrNoKeyBias = errors.New("keys take no bias")

// CheckKeyBias says whether a constant can be taken out of the keys of a model,
// through the key bias it has or one that stock readers of its family accept.
func CheckKeyBias(c *family.Config) error {
	for l := range c.Layers {
		if err := checkKeyBias(c, &c.Layers[l]); err != nil {
			return err
		}
	}
	return nil
}

func checkKeyBias(c *family.Config, y *family.Layer) error {
	switch {
	case y.FixedKeys != "":
		return fmt.Errorf("%w: %s", ErrNoKeyBias, y.FixedKeys)
	case y.QKNorm != family.NoQKNorm:
		return fmt.Errorf("%w: family %s normalises keys after their projection (QK-norm), and nothing can be added behind the norm", ErrNoKeyBias, c.Family.Name)
	case !c.Family.AttnBias.K && !c.Family.GGUFBias.K:
		return fmt.Errorf("%w: stock readers of family %s know no bias of the key projection", ErrNoKeyBias, c.Family.Name)
	}
	return nil
}

// CheckValueTransform says whether a matrix can pass from W_V to W_O in any layer of a model.
func CheckValueTransform(c *family.Config) (err error) {
	for l := range c.Layers {
		if c.Layers[l].Owner != l {
			continue
		}
		if err = CheckLayerValues(c, l); err == nil {
			return nil
		}
	}
	return err
}

// CheckLayerValues says whether a matrix can pass from W_V to W_O in layer l, and in those that
// read its values: an orthogonal one where values are normalised.
func CheckLayerValues(c *family.Config, l int) error { return checkValueTransform(c, &c.Layers[l]) }

func checkValueTransform(c *family.Config, y *family.Layer) error {
	switch {
	case y.FixedValues != "":
		return errors.New(y.FixedValues)
	case y.ValuesAreKeys:
		return fmt.Errorf("family %s makes values of the keys' projection, so a matrix on values would change keys too",
			c.Family.Name)
	}
	if y.Gate == family.GateChannel {
		return fmt.Errorf("family %s multiplies the output of attention by a gate per dimension, and no matrix passes through it",
			c.Family.Name)
	}
	return nil
}

// FoldKeys adds the edits of one layer's KV heads to a view of the checkpoint:
// delta to the key bias, which becomes a new tensor of the view where the model
// has none, mixes, scales and angles to the rows of W_K and W_Q and to their biases, or
// with QK-norm scales alone to the norms' gains; mixes of values to the rows of W_V
// and its bias, and inversely to the columns of W_O that each query head of the group meets.
// Every layer that reads the keys and values takes the inverse.
func FoldKeys(v *checkpoint.Edited, layer int, heads []KeyEdit) error {
	cfg, y := v.Config(), &v.Config().Layers[layer]
	if len(heads) != y.KVHeads {
		return fmt.Errorf("layer %d: key edits for %d of %d KV heads", layer, len(heads), y.KVHeads)
	}
	if err := cfg.RequireLayer(layer, "an edit of keys", family.OwnHeads); err != nil {
		return err
	}
	var has KeyEdit // the parts that any head has
	for h := range heads {
		if err := heads[h].check(cfg, y); err != nil {
			return fmt.Errorf("layer %d, KV head %d: %w", layer, h, err)
		}
		has.Shift, has.Transform = cmp.Or(has.Shift, heads[h].Shift), cmp.Or(has.Transform, heads[h].Transform)
		has.Values, has.Pairs = cmp.Or(has.Values, heads[h].Values), cmp.Or(has.Pairs, heads[h].Pairs)
	}
	if v.Edits == nil {
		v.Edits = checkpoint.Edits{}
	}
	if has.Shift != nil {
		foldShift(v, layer, heads)
	}
	if has.Transform != nil {
		if err := foldMixes(v, layer, heads); err != nil {
			return fmt.Errorf("layer %d: %w", layer, err)
		}
	}
	if has.Values != nil {
		if err := foldValues(v, layer, heads); err != nil {
			return fmt.Errorf("layer %d: %w", layer, err)
		}
	}
	if has.Pairs == nil {
		return nil
	}
	if y.QKNorm != family.NoQKNorm {
		return foldGains(v, layer, heads)
	}
	foldTurns(v, layer, heads)
	return nil
}

// check refuses an edit that a KV head of layer y cannot have.
func (e *KeyEdit) check(cfg *family.Config, y *family.Layer) error {
	if y.ValuesAreKeys && y.QKNorm == family.NoQKNorm && (e.Pairs != nil || e.Shift != nil || e.Transform != nil) {
		return fmt.Errorf("family %s makes values of the keys' projection, so an edit of keys would change values too",
			cfg.Family.Name)
	}
	if e.Pairs != nil {
		if err := CheckPairScale(y); err != nil {
			return err
		}
		if err := e.Pairs.Check(y.HeadDim); err != nil {
			return err
		}
		if e.Pairs.Angle != nil && y.QKNorm != family.NoQKNorm {
			return errors.New("angles do not pass through the gain of a QK-norm")
		}
	}
	if e.Transform != nil {
		if err := checkKeyTransform(cfg, y); err != nil && (!e.Transform.Exact || !e.Transform.diagonal(y.HeadDim)) {
			return err
		}
		if err := e.Transform.Check(y.HeadDim); err != nil {
			return err
		}
		if e.Transform.Exact && !e.Transform.keepsTurned(cfg, y) {
			return errors.New("a transform that is called exact mixes dimensions that RoPE turns")
		}
	}
	if e.Values != nil {
		if err := checkValueTransform(cfg, y); err != nil {
			return err
		}
		if err := e.Values.Check(y.HeadDim); err != nil {
			return err
		}
		if y.ValueNorm && !e.Values.orthogonal() {
			return errors.New("values are normalised, and a matrix that is not orthogonal does not pass through the norm")
		}
	}
	if e.Shift != nil {
		return e.Shift.check(cfg, y)
	}
	return nil
}

// check refuses a shift that a KV head of layer y cannot have.
func (s *BiasShift) check(cfg *family.Config, y *family.Layer) error {
	if err := checkKeyBias(cfg, y); err != nil {
		return err
	}
	if len(s.Delta) != y.HeadDim {
		return fmt.Errorf("%d shifts for head_dim %d", len(s.Delta), y.HeadDim)
	}
	for _, x := range s.Delta {
		if math.IsNaN(x) || math.IsInf(x, 0) {
			return fmt.Errorf("shift of %g", x)
		}
	}
	if s.Exact {
		if y.Sinks {
			return errors.New("a shift that is called exact moves scores against attention sinks")
		}
		if y.SoftCap != 0 {
			return errors.New("a shift that is called exact moves scores under a soft cap")
		}
		still, _ := StillPairs(y)
		for p, on := range still {
			i, j := cfg.Pairs.Part(y.Rope.Dim).Dims(p, y.HeadDim)
			if !on && (s.Delta[i] != 0 || s.Delta[j] != 0) {
				return errors.New("a shift that is called exact moves dimensions that RoPE turns")
			}
		}
	}
	return nil
}

func foldShift(v *checkpoint.Edited, layer int, heads []KeyEdit) {
	d := v.Config().Layers[layer].HeadDim
	shift := make([]float32, len(heads)*d)
	for h, e := range heads {
		if e.Shift != nil {
			for i, x := range e.Shift.Delta {
				shift[h*d+i] = float32(-x)
			}
		}
	}
	name := family.Name(layer, "attn_k.bias")
	if _, ok := v.Find(name); !ok {
		if v.Added == nil {
			v.Added = map[string]*checkpoint.Tensor{}
		}
		v.Added[name] = &checkpoint.Tensor{Name: name, Layer: layer, Shape: []int{len(shift)}, Type: "F32"}
	}
	id := IDStillShift
	for _, e := range heads {
		if e.Shift != nil && !e.Shift.Exact {
			id = IDBiasShift
		}
	}
	v.Edits.Shift(name, id, shift)
}

// sides are the projections that meet in scores of layer's keys: the layer they are in, their
// tensors, how many of their heads share a KV head, and whether they are the queries'.
func sides(c *family.Config, layer int) []side {
	out := []side{{layer, []string{"attn_k.weight", "attn_k.bias"}, 1, false}}
	for _, l := range c.Readers(layer) {
		out = append(out, side{l, []string{"attn_q.weight", "attn_q.bias"}, c.Layers[l].Group(), true})
	}
	return out
}

type side struct {
	layer int
	names []string
	times int
	query bool
}

// rowMixes returns the mixes of the rows, or columns, that the heads of a
// projection have: times of them for each KV head. of picks a KV head's matrix, nil for none.
func rowMixes(heads []KeyEdit, times, d int, of func(e KeyEdit) []float64) []checkpoint.RowMix {
	var out []checkpoint.RowMix
	for h := range len(heads) * times {
		m := of(heads[h/times])
		if m == nil {
			continue
		}
		x := checkpoint.RowMix{Rows: make([]int, d), Matrix: linalg.Float32(m)}
		for i := range x.Rows {
			x.Rows[i] = h*d + i
		}
		out = append(out, x)
	}
	return out
}

func foldMixes(v *checkpoint.Edited, layer int, heads []KeyEdit) error {
	y := &v.Config().Layers[layer]
	id := IDStillTransform
	for _, e := range heads {
		if e.Transform != nil && !e.Transform.Exact {
			id = IDKeyTransform
		}
	}
	if y.QKNorm != family.NoQKNorm {
		return foldDiagonals(v, layer, heads, id)
	}
	for _, side := range sides(v.Config(), layer) {
		mixes := rowMixes(heads, side.times, y.HeadDim, func(e KeyEdit) []float64 {
			switch {
			case e.Transform == nil:
				return nil
			case side.query:
				return e.Transform.Query
			}
			return e.Transform.Key
		})
		if err := mixRows(v, side.layer, side.names, id, mixes); err != nil {
			return err
		}
	}
	return nil
}

// foldDiagonals folds transforms that only scale into the gains of a QK-norm.
func foldDiagonals(v *checkpoint.Edited, layer int, heads []KeyEdit, id string) error {
	y := &v.Config().Layers[layer]
	d := y.HeadDim
	scale := func(h int, query bool) []float32 {
		out := make([]float32, d)
		for i := range out {
			switch t := heads[h].Transform; {
			case t == nil:
				out[i] = 1
			case query:
				out[i] = float32(t.Query[i*d+i])
			default:
				out[i] = float32(t.Key[i*d+i])
			}
		}
		return out
	}
	var k []float32
	for h := range heads {
		one := scale(h, false)
		if y.QKNorm == family.NormHead && h > 0 && !slices.Equal(one, k[:d]) {
			return fmt.Errorf("KV head %d: one gain vector serves all heads, so the transform must be one for all heads too", h)
		}
		k = append(k, one...)
	}
	foldScale(v, layer, id, k, func(h int) []float32 { return scale(h, true) })
	return nil
}

// mixRows mixes rows of those of a layer's tensors that are there.
func mixRows(v *checkpoint.Edited, layer int, parts []string, id string, mixes []checkpoint.RowMix) error {
	for _, part := range parts {
		name := family.Name(layer, part)
		if _, ok := v.Find(name); !ok {
			continue
		}
		if err := v.Edits.Mix(name, id, mixes); err != nil {
			return err
		}
	}
	return nil
}

// foldValues mixes values. With W_V x replaced by A W_V x, W_O must meet A^-1: its row w
// over a head becomes w A^-1, whose entry i is the sum over j of (A^-T)_ij w_j.
func foldValues(v *checkpoint.Edited, layer int, heads []KeyEdit) error {
	y := &v.Config().Layers[layer]
	d := y.HeadDim
	rows := rowMixes(heads, 1, d, func(e KeyEdit) []float64 {
		if e.Values == nil {
			return nil
		}
		return e.Values.Key
	})
	if err := mixRows(v, layer, []string{"attn_v.weight", "attn_v.bias"}, IDValueTransform, rows); err != nil {
		return err
	}
	for _, l := range v.Config().Readers(layer) {
		cols := rowMixes(heads, v.Config().Layers[l].Group(), d, func(e KeyEdit) []float64 {
			if e.Values == nil {
				return nil
			}
			return e.Values.Query
		})
		if err := v.Edits.MixColumns(family.Name(l, "attn_output.weight"), IDValueTransform, cols); err != nil {
			return err
		}
	}
	return nil
}

// foldGains folds scales into the gains of a QK-norm.
func foldGains(v *checkpoint.Edited, layer int, heads []KeyEdit) error {
	y := &v.Config().Layers[layer]
	b := &PairScale{PerLayer: y.QKNorm == family.NormHead}
	for h, e := range heads {
		s := make([]float32, y.HeadDim/2)
		for p := range s {
			s[p] = 1
			if e.Pairs != nil {
				s[p] = e.Pairs.Scale[p]
			}
			if b.PerLayer && s[p] != b.first(p, s[p]) {
				return fmt.Errorf("layer %d, KV head %d: one gain vector serves all heads, so the balance must be one for all heads too", layer, h)
			}
		}
		b.Scale = append(b.Scale, s)
	}
	return FoldPairScale(v, layer, b)
}

// first returns the scale of pair p in the first head, or s where there is none yet.
func (b *PairScale) first(p int, s float32) float32 {
	if len(b.Scale) == 0 {
		return s
	}
	return b.Scale[0][p]
}

func foldTurns(v *checkpoint.Edited, layer int, heads []KeyEdit) {
	pairs, y := v.Config().PairsIn(layer), &v.Config().Layers[layer]
	d := y.HeadDim
	angles := false
	for _, e := range heads {
		angles = angles || e.Pairs != nil && e.Pairs.Angle != nil
	}
	for _, side := range sides(v.Config(), layer) {
		n := len(heads) * side.times * d
		partner, own, cross := make([]int, n), make([]float32, n), make([]float32, n)
		for h := range len(heads) * side.times {
			e := heads[h/side.times]
			for p := range d / 2 {
				i, j := pairs.Dims(p, d)
				i, j = h*d+i, h*d+j
				re, im := 1.0, 0.0
				if e.Pairs != nil {
					re, im = e.Pairs.factor(p, side.query)
				}
				partner[i], partner[j] = j, i
				own[i], own[j] = float32(re), float32(re)
				cross[i], cross[j] = float32(-im), float32(im)
			}
		}
		for _, part := range side.names {
			name := family.Name(side.layer, part)
			if _, ok := v.Find(name); !ok {
				continue
			}
			if angles {
				v.Edits.Turn(name, IDPairScale, partner, own, cross)
			} else {
				v.Edits.Scale(name, IDPairScale, own)
			}
		}
	}
}
