package ffn

import (
	"context"
	"fmt"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/rotations/transform"
	"github.com/phaseconv/phaseconv/verify/quantweights"
)

// A fitting has what changes are fitted to.
type fitting struct {
	stats   *Stats
	types   map[string]gguf.Type // of every matrix in the quantised file
	weigh   quantweights.Importance
	threads int
	tick    func(done, total int)
}

// rowsOf bounds the numbers of a matrix that scales are searched with: fewer rows where a block is
// long, because each of its numbers depends on all the others.
func rowsOf(block int) int { return min(64, max(16, 2048/block)) }

// read takes rows of matrix e of a tensor for a group of groupRows rows in all.
func (f *fitting) read(v *checkpoint.Edited, t *checkpoint.Tensor, e, rows int) (part, error) {
	p := part{typ: gguf.TypeF32}
	if typ, ok := f.types[t.Name]; ok {
		p.typ = typ
	}
	p.importance = f.weigh.Of(t.Name, e)
	per, cols := t.Shape[len(t.Shape)-2], t.Cols()
	n := min(2*rows, per)
	for i := range n {
		row := make([]float32, cols)
		if err := v.ReadRows(t, e*per+i*per/n, 1, row); err != nil {
			return p, err
		}
		if i%2 == 0 {
			p.fitted = append(p.fitted, row...)
		} else {
			p.held = append(p.held, row...)
		}
	}
	return p, nil
}

// A neuronsKind says how the neurons of an FFN are changed.
type neuronsKind int

const (
	closedForm neuronsKind = iota
	tunedScales
	arranged // and tuned
)

// neurons folds identity G4 into every layer that can have it.
func (f *fitting) neurons(ctx context.Context, v *checkpoint.Edited, kind neuronsKind) error {
	cfg := v.Config()
	for l := range cfg.Layers {
		if transform.CheckNeurons(cfg, l) != nil {
			continue
		}
		ffn, name := &cfg.Layers[l].FFN, "ffn_down.weight"
		if ffn.Experts > 0 {
			name = "ffn_down_exps.weight"
		}
		t, ok := v.Find(family.Name(l, name))
		if !ok {
			return fmt.Errorf("the model has no tensor %s", family.Name(l, name))
		}
		var experts []transform.Neurons
		for e := range max(1, ffn.Experts) {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			x, err := f.expert(v, t, e, f.stats.Neurons[l][e], kind)
			if err != nil {
				return err
			}
			experts = append(experts, x)
		}
		if err := transform.FoldNeurons(v, l, experts); err != nil {
			return err
		}
		if f.tick != nil {
			f.tick(l+1, len(cfg.Layers))
		}
	}
	return nil
}

// expert fits the neurons of one FFN to its matrix down.
func (f *fitting) expert(v *checkpoint.Edited, t *checkpoint.Tensor, e int, energy []float64,
	kind neuronsKind) (transform.Neurons, error) {
	block, _ := f.types[t.Name].Block()
	p, err := f.read(v, t, e, rowsOf(max(1, block)))
	if err != nil {
		return transform.Neurons{}, err
	}
	g := &group{n: t.Cols(), energy: energy, parts: []part{p}}
	order := g.identity().order
	if kind == closedForm {
		return transform.Neurons{Scale: g.balanced(order, 1).scale}, nil
	}
	if kind == arranged {
		order = g.arrange(f.threads)
	}
	x := transform.Neurons{Scale: g.tune(order, f.threads).scale}
	if kind == arranged {
		x.Order = order
	}
	return x, nil
}

// channels folds identity G10 behind the norms in front of attention and FFN.
func (f *fitting) channels(ctx context.Context, v *checkpoint.Edited, tuned bool) error {
	cfg := v.Config()
	for l := range cfg.Layers {
		for _, x := range []struct {
			norm   string
			energy []float64
		}{{"attn_norm.weight", f.stats.Attention[l]}, {"ffn_norm.weight", f.stats.FFN[l]}} {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			g, err := f.readers(v, l, x.norm, x.energy)
			if err != nil {
				return err
			}
			order := g.identity().order
			scale := g.balanced(order, 1).scale
			if tuned {
				scale = g.tune(order, f.threads).scale
			}
			if err := transform.FoldChannels(v, l, x.norm, scale); err != nil {
				return err
			}
		}
		if f.tick != nil {
			f.tick(l+1, len(cfg.Layers))
		}
	}
	return nil
}

// readers gathers the quantised matrices that read a norm.
func (f *fitting) readers(v *checkpoint.Edited, layer int, norm string, energy []float64) (*group, error) {
	g := &group{n: v.Config().Hidden, energy: energy}
	matrices := 0
	tensors := transform.ChannelReaders(v, layer, norm)
	for _, t := range tensors {
		if _, ok := f.types[t.Name]; ok {
			matrices += t.Rows() / t.Shape[len(t.Shape)-2]
		}
	}
	for _, t := range tensors {
		typ, ok := f.types[t.Name]
		if !ok {
			continue
		}
		block, _ := typ.Block()
		for e := range t.Rows() / t.Shape[len(t.Shape)-2] {
			p, err := f.read(v, t, e, max(4, rowsOf(block)/matrices))
			if err != nil {
				return nil, err
			}
			g.parts = append(g.parts, p)
		}
	}
	return g, nil
}
