package plan

import (
	"errors"
	"fmt"
	"slices"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/rotations/transform"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/option"
)

// FFN says which changes of weights a conversion may make for the type of a quantised file.
type FFN string

// What may be made. Scale and Rotate make the best change of their kind whatever it measures, Auto the
// best of all, and none where nothing is better than that.
const (
	FFNNone   FFN = "none"
	FFNScale  FFN = "scale"
	FFNRotate FFN = "rotate"
	FFNAuto   FFN = "auto"
)

// ParseFFN returns what a text allows. The error says what can be.
func ParseFFN(text string) (FFN, error) {
	switch f := FFN(text); f {
	case FFNNone, FFNScale, FFNRotate, FFNAuto:
		return f, nil
	}
	return "", option.Bad("FFN", text, "expected %s, %s, %s or %s", FFNNone, FFNScale, FFNRotate, FFNAuto)
}

// Scales says whether scales may be tried, Rotates whether rotations of the stream may.
func (f FFN) Scales() bool { return f == FFNScale || f == FFNAuto }

// Rotates is described at Scales.
func (f FFN) Rotates() bool { return f == FFNRotate || f == FFNAuto }

// CheckNeurons says whether identity G4 holds in some layer, with the reason of the first where it
// does not if it holds in none.
func CheckNeurons(c *family.Config) (err error) {
	for l := range c.Layers {
		e := transform.CheckNeurons(c, l)
		if e == nil {
			return nil
		}
		if err == nil {
			err = e
		}
	}
	return err
}

// CheckStream says whether identity G1 can be folded into a checkpoint, with the reason if not.
func CheckStream(c *checkpoint.Checkpoint) error {
	cfg := c.Config
	if cfg.DraftLayers > 0 || drafts(c) {
		return errors.New("layers for drafting tokens (MTP) read the stream too, and are copied as they are")
	}
	q, err := transform.NewResidualRotation("none", cfg.Hidden, 0)
	if err != nil {
		return err
	}
	_, err = transform.FoldResidual(c, cfg, q, 1)
	return err
}

// CheckFFN refuses what cannot be made of a checkpoint.
func CheckFFN(c *checkpoint.Checkpoint, f FFN) error {
	neurons, channels := CheckNeurons(c.Config), transform.CheckChannels(c.Config)
	var stream error
	if f.Rotates() {
		stream = CheckStream(c)
	}
	switch {
	case f == FFNRotate && stream != nil:
		return option.Bad("FFN", string(f), "%v", stream)
	case f == FFNScale && neurons != nil && channels != nil:
		return option.Bad("FFN", string(f), "%v; %v", neurons, channels)
	case f == FFNAuto && neurons != nil && channels != nil && stream != nil:
		return option.Bad("FFN", string(f), "%v; %v; %v", neurons, channels, stream)
	}
	return nil
}

// ffn says what may become of the FFN and of the residual stream: G1, G4 and G10.
func (ch *Changes) ffn(c *checkpoint.Checkpoint, o Options) (g1, g4, g10 spec.Identity) {
	g1 = spec.Identity{ID: transform.IDResidual, Name: "residual rotation", Exact: true}
	g4 = spec.Identity{ID: transform.IDNeurons, Name: "FFN neurons", Exact: true}
	g10 = spec.Identity{ID: transform.IDChannels, Name: "norm scales", Exact: true}
	decide := func(id *spec.Identity, asked bool, check func() error, what string, changes func(name string) bool) {
		switch {
		case o.FFN == "" || o.FFN == FFNNone:
			id.Why = "for the weight type of a quantised file only: name one with --ffn and --weights"
			return
		case !asked:
			id.Why = fmt.Sprintf("not asked for: --ffn is %s", o.FFN)
			return
		}
		if err := check(); err != nil {
			id.Why = err.Error()
			return
		}
		id.Applied, id.Why = true, fmt.Sprintf("if it measures better with %s weights: %s", o.Weights, what)
		if o.FFN != FFNAuto {
			id.Why = fmt.Sprintf("the best with %s weights: %s", o.Weights, what)
		}
		for _, t := range c.Tensors() {
			if changes(t.Name) {
				ch.Targets[t.Name] = append(ch.Targets[t.Name], id.ID)
				id.Tensors++
			}
		}
	}
	cfg := c.Config
	decide(&g4, o.FFN.Scales() || o.FFN.Rotates(), func() error { return CheckNeurons(cfg) },
		"neurons of each FFN ordered, up scaled and down by the inverse", func(n string) bool { return transform.NeuronTensor(cfg, n) })
	decide(&g10, o.FFN.Scales(), func() error { return transform.CheckChannels(cfg) },
		"gains in front of attention and FFN scaled, their readers by the inverse",
		func(n string) bool { return transform.ChannelTensor(cfg, n) })
	stream := "one orthogonal matrix for the residual stream"
	if cfg.TiedEmbeddings {
		stream += "; the head is untied from the embeddings"
	}
	decide(&g1, o.FFN.Rotates(), func() error { return CheckStream(c) }, stream, transform.StreamTensor)
	return g1, g4, g10
}

// Fold notes what was done to the weights for the type of a quantised file: v is the view with it.
func (ch *Changes) Fold(c *checkpoint.Checkpoint, v *checkpoint.Edited, why string) {
	ch.View = v
	count := map[string]int{}
	for _, id := range []string{transform.IDResidual, transform.IDNeurons, transform.IDChannels} {
		for name, ids := range ch.Targets {
			if ch.Targets[name] = slices.DeleteFunc(ids, func(x string) bool { return x == id }); len(ch.Targets[name]) == 0 {
				delete(ch.Targets, name)
			}
		}
	}
	ch.Retarget(c)
	for _, ids := range ch.Targets {
		for _, id := range ids {
			count[id]++
		}
	}
	for i := range ch.Identities {
		id := &ch.Identities[i]
		if !slices.Contains([]string{transform.IDResidual, transform.IDNeurons, transform.IDChannels}, id.ID) {
			continue
		}
		was := id.Applied
		id.Tensors = count[id.ID]
		if id.Applied = id.Tensors > 0; was || id.Applied {
			id.Why = why
		}
	}
}

// Retarget adds to the targets what the view does to tensors.
func (ch *Changes) Retarget(c *checkpoint.Checkpoint) {
	add := func(name, id string) {
		if !slices.Contains(ch.Targets[name], id) {
			ch.Targets[name] = append(ch.Targets[name], id)
		}
	}
	for name, e := range ch.View.Edits {
		for _, id := range e.By {
			add(name, id)
		}
	}
	if s := ch.View.Stream; s != nil {
		for _, t := range c.Tensors() {
			if s.Changes(t.Name) {
				add(t.Name, transform.IDResidual)
			}
		}
	}
}

// untied plans the head that a rotated stream gives a model with tied embeddings, in place of what is
// planned under its name.
func (p *Plan) untied(c *checkpoint.Checkpoint, ch *Changes, outtype string) error {
	if ch.View.Stream == nil || ch.View.Stream.Untied() == nil {
		return nil
	}
	t := ch.View.Stream.Untied()
	x := TensorPlan{Name: t.Name, Shape: t.Shape, From: "-", To: t.Type, Action: Fold, By: []string{transform.IDResidual},
		Tensor: t, Why: "a head of its own: the gain of the last norm goes into it alone"}
	if p.Container == checkpoint.GGUF {
		if outtype != OutTypeSource { // else that of the embeddings
			to, err := ggufType(t.Name, t.Shape, outtype)
			if err != nil {
				return err
			}
			x.To = to.String()
		}
	} else {
		embd, _ := c.Find("token_embd.weight")
		x.Name = c.HFName(t.Name)
		if x.Name == "" {
			return fmt.Errorf("%s: family %s has no name for an output head of its own", c.Path, c.Config.Family.Name)
		}
		x.Shard = embd.Sources[0]
	}
	for i := range p.Tensors {
		if p.Tensors[i].Name == x.Name {
			x.Shard, x.Sources = "", p.Tensors[i].Sources
			p.Tensors[i] = x
			return nil
		}
	}
	p.Tensors = append(p.Tensors, x)
	return nil
}
