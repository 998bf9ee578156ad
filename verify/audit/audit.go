// Package audit measures beta, in both units, for every layer and KV head on
// text that nothing was fitted to.
package audit

import (
	"context"

	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/kernels/parallel"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/activations"
	"github.com/phaseconv/phaseconv/verify/kvcache"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// Codes holds the codes of one KV head by column name: raw, cen, srht, random,
// learned, and code for the one in use.
type Codes map[string]*codec.Code

// A Meter measures codes on the activations that pass. Rows is filled layer by layer.
type Meter struct {
	Config *family.Config
	// Codes of each layer and KV head; Policy says which keys are coded, and how.
	Codes  [][]Codes
	Policy kvcache.Policy
	// Scale, if set, is applied to the keys first: the balance of each layer, for
	// auditing a source as its conversion would be.
	Scale   func(layer, head int) []float32
	Threads int

	Rows [][]Row
}

// Row is what was measured for one head.
type Row map[string]codec.Beta

// Hooks returns what measures along with a forward pass, until ctx ends.
func (t *Meter) Hooks(ctx context.Context) refmodel.Hooks {
	return refmodel.Hooks{Attention: func(a *refmodel.Attention) error { return t.attention(ctx, a) }, NoPre: true,
		NoValues: true}
}

func (t *Meter) attention(ctx context.Context, a *refmodel.Attention) error {
	rows := make([]Row, t.Config.OwnKVHeads(a.Layer))
	err := parallel.For(ctx, t.Threads, len(rows), func(h int) error {
		var scale []float32
		if t.Scale != nil {
			scale = t.Scale(a.Layer, h)
		}
		keys := activations.Keys(t.Config, a, h, scale, t.Policy)
		rows[h] = Row{}
		for name, code := range t.Codes[a.Layer][h] {
			var err error
			if rows[h][name], err = code.Measure(ctx, keys); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	t.Rows = append(t.Rows, rows)
	return nil
}

// Head describes the code in use of one head, for Layers.
type Head struct {
	Code   string
	Bits   float64
	Anchor int
	Tokens int // calibration keys, 0 when unknown
	// Train holds the measures on the fitted keys by column name, nil when unknown.
	Train Row
}

// Layers turns measurements into rows of the report.
func Layers(c *family.Config, rows [][]Row, head func(layer, head int) Head) []spec.Layer {
	var out []spec.Layer
	for l, heads := range rows {
		for h, row := range heads {
			x := head(l, h)
			r := spec.Layer{
				Layer: l, Head: h, Code: x.Code, Bits: x.Bits, Anchor: x.Anchor,
				Tokens: x.Tokens, TokensPerDim: float64(x.Tokens) / float64(c.Layers[l].HeadDim),
			}
			for name, b := range row {
				r.Cos1bit.Set(name, b.Cos1bit)
				r.MomentRatio.Set(name, b.MomentRatio)
			}
			if x.Train != nil {
				r.Train = &spec.Columns{}
				for name, b := range x.Train {
					r.Train.Set(name, b.Cos1bit)
				}
				r.TrainCos1bit = r.Train.Code
			}
			if r.Cos1bit.Learned != nil && r.Cos1bit.SRHT != nil {
				d := *r.Cos1bit.Learned - *r.Cos1bit.SRHT
				r.Delta = &d
			}
			out = append(out, r)
		}
	}
	return out
}
