package refmodel

import (
	"context"
	"math"

	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/kernels/fmath"
	"github.com/phaseconv/phaseconv/kernels/linalg"
	"github.com/phaseconv/phaseconv/kernels/parallel"
)

// perLayerInputs prepares what each layer of Gemma 4's small models reads of a token beside the
// residual stream, [rows, layers*n] for n = Config.PerLayerInput: a projection of the token's
// embedding, normed per layer, and the layers' own embeddings of the token, which lie side by
// side in a row of one table; both together have the size of one.
func (m *Model) perLayerInputs(ctx context.Context, b *batch) error {
	c := m.Config
	n, width := c.PerLayerInput, c.PerLayerInput*len(c.Layers)
	if n == 0 || b.perLayer != nil {
		return nil
	}
	start := &Variant{}
	if err := m.embed(b, start); err != nil {
		return err
	}
	gain, err := m.vector("per_layer_proj_norm.weight", false)
	if err != nil {
		return err
	}
	if err := m.packAll(ctx, &m.mats[0], "per_layer_model_proj.weight"); err != nil {
		return err
	}
	own, err := m.find("per_layer_token_embd.weight")
	if err != nil {
		return err
	}
	x := make([]float32, b.rows()*width)
	if err := m.mul(ctx, x, start.Hidden, b.rows(), &m.mats[0]); err != nil {
		return err
	}
	fmath.Scale(x, float32(1/math.Sqrt(float64(c.Hidden))))
	rmsNorm(x, x, gain, c.NormEps, m.Threads)
	size, half := float32(math.Sqrt(float64(n))), float32(math.Sqrt(0.5))
	err = parallel.For(ctx, m.Threads, b.rows(), func(r int) error {
		row := make([]float32, width)
		if err := m.w.ReadRows(own, int(b.tokens[r]), 1, row); err != nil {
			return err
		}
		for i, v := range row {
			at := &x[r*width+i]
			*at = float32((*at + float32(v*size)) * half)
		}
		return nil
	})
	b.perLayer = x
	return err
}

// finish does what follows a layer's FFN: it adds what the layer makes of its own input of each
// token, and scales the result.
func (m *Model) finish(ctx context.Context, l int, b *batch, variants []*Variant) error {
	c, y := m.Config, &m.Config.Layers[l]
	if n := c.PerLayerInput; n > 0 {
		gain, err := m.vector(family.Name(l, "post_norm.weight"), false)
		if err != nil {
			return err
		}
		for i, name := range []string{"inp_gate.weight", "proj.weight"} {
			if err := m.packAll(ctx, &m.mats[i], family.Name(l, name)); err != nil {
				return err
			}
		}
		own := linalg.Grow(&b.up, b.rows()*n)
		for r := range b.rows() {
			copy(own[r*n:(r+1)*n], b.perLayer[(r*len(c.Layers)+l)*n:])
		}
		for _, x := range variants {
			g, out := linalg.Grow(&b.gate, b.rows()*n), linalg.Grow(&b.proj, b.rows()*c.Hidden)
			if err := m.mul(ctx, g, x.Hidden, b.rows(), &m.mats[0]); err != nil {
				return err
			}
			m.actMul(y.FFN.Activation, g, own)
			if err := m.mul(ctx, out, g, b.rows(), &m.mats[1]); err != nil {
				return err
			}
			m.norm(out, out, gain)
			addTo(x.Hidden, out, m.Threads)
		}
	}
	if y.OutputScale {
		scale, err := m.vector(family.Name(l, "layer_output_scale.weight"), false)
		if err != nil {
			return err
		}
		for _, x := range variants {
			fmath.Scale(x.Hidden, scale[0])
		}
	}
	return nil
}
