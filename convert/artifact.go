package convert

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"

	"github.com/phaseconv/phaseconv/convert/calibrate"
	"github.com/phaseconv/phaseconv/convert/plan"
	"github.com/phaseconv/phaseconv/convert/write"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/rotations/sidecar"
	"github.com/phaseconv/phaseconv/spec"
)

// written is what a conversion wrote.
type written struct {
	tag    write.Tag
	models []spec.Artifact
	files  []spec.File
}

// write writes the edits, and every model with its sidecar, into dir.
func (j *job) write(ctx context.Context, dir string, plans []*plan.Plan, ch *plan.Changes,
	fitted *calibrate.Result) (*written, error) {
	w := &written{}
	var err error
	if w.tag, err = j.tag(ctx, fitted); err != nil {
		return nil, err
	}
	if err := sidecar.FoldOf(ch.View, w.tag.Source.SHA256).Write(filepath.Join(dir, spec.FoldName)); err != nil {
		return nil, err
	}
	f, err := write.Describe(ctx, dir, spec.FoldName)
	if err != nil {
		return nil, err
	}
	w.files = append(w.files, f)
	for _, p := range plans {
		x := write.Job{
			Dir: dir, Source: j.source, View: ch.View, Plan: p, OutType: j.o.OutType, Tag: w.tag, Ranges: j.ranges,
			Progress: j.o.Progress.Of("writing " + string(p.Container) + ", MiB"),
		}
		entry, files, err := x.Model(ctx)
		if err != nil {
			return nil, err
		}
		model, err := write.Open(dir, entry, j.source.Graph)
		if err != nil {
			return nil, err
		}
		// The digest is taken from what was written, not from what was meant.
		entry.WeightsSHA256, err = model.AttentionDigest(ctx, w.tag.Version == spec.VersionGroups,
			j.o.Progress.Of("checking query and key tensors, MiB"))
		cfg := model.Config
		model.Close()
		if err != nil {
			return nil, err
		}
		s, err := j.sidecar(cfg, fitted, w.tag, entry.WeightsSHA256)
		if err != nil {
			return nil, err
		}
		f, err := write.Sidecar(ctx, dir, entry, p, s)
		if err != nil {
			return nil, err
		}
		w.models = append(w.models, entry)
		w.files = append(append(w.files, files...), f)
	}
	return w, nil
}

// tag says where the artifact comes from.
func (j *job) tag(ctx context.Context, fitted *calibrate.Result) (write.Tag, error) {
	c, o := j.source, &j.o
	digest, err := c.Digest(ctx, o.Progress.Of("reading the source, MiB"))
	if err != nil {
		return write.Tag{}, err
	}
	tag := write.Tag{
		Version: spec.Version,
		Source:  spec.Source{Name: c.Name(), Container: string(c.Container), SHA256: digest},
		Code: spec.CodeInfo{
			Kind: string(o.Code), Bits: codec.MeanBits(fitted.Codes(o.Code)), Alloc: string(o.keys().Allocation()),
			Exceptions: o.Policy.Exceptions, Anchor: o.Policy.Anchor, Sink: o.Policy.Sink, Recent: o.Policy.Recent,
		},
		Tool: o.Tool,
	}
	groups, err := j.groups(fitted)
	if err != nil {
		return write.Tag{}, err
	}
	if groups != nil {
		x := codec.Summarize(slices.Concat(groups...))
		tag.Version = spec.VersionGroups
		tag.Code.Bits, tag.Code.Parts, tag.Code.GroupDim = x.Bits, x.Parts, x.Dim
	}
	return tag, nil
}

// groups returns the codes of a sidecar of version 2, [layer][group]: joint ones, or where layers
// differ those of each head. It returns nil for version 1.
func (j *job) groups(fitted *calibrate.Result) ([][]*codec.Group, error) {
	switch {
	case j.o.Joint != nil:
		return fitted.Groups(), nil
	case j.source.Config.Alike():
		return nil, nil
	}
	out := make([][]*codec.Group, len(j.source.Config.Layers))
	for l, heads := range fitted.Codes(j.o.Code) {
		y := &j.source.Config.Layers[l]
		for h, code := range heads {
			g, err := codec.NewGroup(code, []codec.Part{{Head: h}}, y.HeadDim, y.ValueDim, nil)
			if err != nil {
				return nil, fmt.Errorf("layer %d: %w", l, err)
			}
			out[l] = append(out[l], g)
		}
	}
	return out, nil
}

// sidecar gathers the fitted codes in the source's pair layout. Its RoPE text is that of the
// written model: GGUF rounds the parameters to float32.
func (j *job) sidecar(model *family.Config, fitted *calibrate.Result, tag write.Tag, weights string) (*sidecar.Sidecar,
	error) {
	ropes, err := sidecar.RopeText(model.Ropes())
	if err != nil {
		return nil, err
	}
	o, cfg, text := &j.o, j.source.Config, j.o.Calibration.Info(j.calibration)
	groups, err := j.groups(fitted)
	if err != nil {
		return nil, err
	}
	s := &sidecar.Sidecar{
		Kind: o.Code, Anchor: o.Policy.Anchor, Sink: o.Policy.Sink, Recent: o.Policy.Recent,
		Exceptions: o.Policy.Exceptions,
		Pairs:      cfg.Pairs, Rope: ropes, SourceSHA256: tag.Source.SHA256, WeightsSHA256: weights, Tool: tag.Tool,
		Calibration: sidecar.Calibration{SHA256: text.SHA256, Tokens: text.Tokens, Context: text.Context},
	}
	if groups != nil {
		for l, of := range groups {
			y := cfg.Layers[l].HeadShape
			s.Layers = append(s.Layers, sidecar.Layer{Heads: y.KVHeads, KeyDim: y.HeadDim, ValueDim: y.ValueDim, Groups: of})
		}
		return s, nil
	}
	s.HeadDim, s.Codes = cfg.Layers[0].HeadDim, fitted.Codes(o.Code)
	return s, nil
}

// manifest says what was done, without what it measures.
func (j *job) manifest(identities []spec.Identity, searched *searched, fitted *calibrate.Result,
	w *written) *spec.Manifest {
	o, cfg := &j.o, j.source.Config
	shape := cfg.Layers[0].HeadShape // where layers differ, the sidecar has the others
	m := &spec.Manifest{
		Version: w.tag.Version, Tool: o.Tool, Command: o.Command, Source: w.tag.Source,
		Model: spec.Model{
			Family: cfg.Family.Name, Layers: len(cfg.Layers), Heads: shape.Heads, KVHeads: shape.KVHeads, HeadDim: shape.HeadDim,
			Hidden: cfg.Hidden, Vocab: cfg.Vocab, Context: cfg.Context, Experts: cfg.Experts(),
		},
		Code: w.tag.Code, Calibration: o.Calibration.Info(j.calibration), Seed: o.Seed,
		Identities: identities, Fusion: searched.fusion, FFN: searched.ffn, Artifacts: w.models, Files: w.files, Notes: j.source.Notes(),
	}
	m.Graph = j.source.Graph
	if !o.own() {
		id := o.Engines.Identity()
		m.Engine = &id
	}
	for l, layer := range fitted.Layers {
		for h, head := range layer.Heads {
			for _, kind := range slices.Sorted(maps.Keys(head.Curves)) {
				curve := spec.Curve{Layer: l, Head: h, Code: string(kind)}
				for _, p := range head.Curves[kind] {
					curve.Points = append(curve.Points, [2]float64{float64(p.Step), p.Cos1bit})
				}
				m.Curves = append(m.Curves, curve)
			}
		}
	}
	return m
}
