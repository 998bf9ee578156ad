package sidecar

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/phaseconv/phaseconv/format/jsonx"
	"github.com/phaseconv/phaseconv/kernels/rope"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/spec"
)

// A Layer is one layer of a sidecar with groups.
type Layer struct {
	Heads int // KV heads
	// KeyDim and ValueDim are the lengths of a head's key and value.
	KeyDim, ValueDim int
	// Groups code the keys of all heads or of none, and their values likewise; what no
	// group has stays as it is. There may be none.
	Groups []*codec.Group
}

// Groups returns the groups of all layers, layer by layer.
func (s *Sidecar) Groups() []*codec.Group {
	var out []*codec.Group
	for _, y := range s.Layers {
		out = append(out, y.Groups...)
	}
	return out
}

// HeadCodes returns the codes of the keys of each KV head, [layer][KV head]: those of version 1, or of
// groups that are each the keys of one head, as files of models have whose layers differ. It is
// false where any group is another.
func (s *Sidecar) HeadCodes() ([][]*codec.Code, bool) {
	if s.Layers == nil {
		return s.Codes, true
	}
	out := make([][]*codec.Code, len(s.Layers))
	for l, y := range s.Layers {
		for h, g := range y.Groups {
			if len(g.Parts) != 1 || g.Parts[0] != (codec.Part{Head: h}) || g.Gains[0] != 1 {
				return nil, false
			}
			out[l] = append(out[l], g.Code)
		}
	}
	return out, true
}

// Bits returns the signs per number over all codes, scales not counted.
func (s *Sidecar) Bits() float64 {
	if s.Layers != nil {
		return codec.Summarize(s.Groups()).Bits
	}
	return codec.MeanBits(s.Codes)
}

// GroupTensorName returns the name of one part of a group's code: mean, decode, encode,
// gain or part_gain.
func GroupTensorName(layer, group int, part string) string {
	return fmt.Sprintf("blk.%d.kv_code.%d.%s", layer, group, part)
}

// partGain is the tensor of a group with the gains of its parts, below the one with what the signs
// of the group below add.
const (
	partGain = "part_gain"
	below    = "below"
)

// jsonLayer is a layer in the text of the key phaseconv.groups.
type jsonLayer struct {
	Heads    int        `json:"heads"`
	HeadDim  int        `json:"head_dim"`
	ValueDim int        `json:"value_dim"`
	Groups   [][]string `json:"groups"`
}

// groupsText writes layers as JSON without spaces, so that equal layers have equal texts.
func groupsText(layers []Layer) string {
	out := []jsonLayer{}
	for _, y := range layers {
		x := jsonLayer{y.Heads, y.KeyDim, y.ValueDim, [][]string{}}
		for _, g := range y.Groups {
			var parts []string
			for _, p := range g.Parts {
				parts = append(parts, p.String())
			}
			x.Groups = append(x.Groups, parts)
		}
		out = append(out, x)
	}
	b, _ := json.Marshal(out) // numbers and texts alone: it cannot fail
	return string(b)
}

// check refuses to write what no reader would read.
func (s *Sidecar) check() error {
	if s.Layers == nil {
		return nil
	}
	if s.Codes != nil || s.Exceptions != 0 {
		return fmt.Errorf("a sidecar with groups has no codes per head and no outliers, this one has %d layers and %d",
			len(s.Codes), s.Exceptions)
	}
	if n := len(s.Layers); n < 1 || n > spec.MaxLayers {
		return fmt.Errorf("%d layers of a sidecar: expected 1 to %d", n, spec.MaxLayers)
	}
	for l, y := range s.Layers {
		if err := y.check(); err != nil {
			return fmt.Errorf("layer %d: %w", l, err)
		}
	}
	if err := checkGiven(s.Layers); err != nil {
		return err
	}
	if len(s.Groups()) == 0 {
		return fmt.Errorf("a sidecar of version %d without a group", spec.VersionGroups)
	}
	if n := len(groupsText(s.Layers)); n > spec.MaxGroupsText {
		return fmt.Errorf("key %s has %d bytes; %d are allowed", spec.KeyGroups, n, spec.MaxGroupsText)
	}
	return nil
}

// check refuses numbers beyond the limits of the format.
func (x jsonLayer) check() error {
	switch {
	case x.Heads < 1 || x.Heads > spec.MaxHeads:
		return fmt.Errorf("heads is %d; version %d allows 1 to %d", x.Heads, spec.VersionGroups, spec.MaxHeads)
	case x.HeadDim < 2 || x.HeadDim > spec.MaxHeadDim || x.HeadDim%2 != 0:
		return fmt.Errorf("head_dim is %d; version %d allows even numbers from 2 to %d", x.HeadDim, spec.VersionGroups,
			spec.MaxHeadDim)
	case x.ValueDim < 1 || x.ValueDim > spec.MaxHeadDim:
		return fmt.Errorf("value_dim is %d; version %d allows 1 to %d", x.ValueDim, spec.VersionGroups, spec.MaxHeadDim)
	case x.Groups == nil:
		return fmt.Errorf("groups is missing")
	}
	return nil
}

func (y *Layer) check() error {
	if err := (jsonLayer{y.Heads, y.KeyDim, y.ValueDim, [][]string{}}).check(); err != nil {
		return err
	}
	for i, g := range y.Groups {
		if g.KeyDim != y.KeyDim || g.ValueDim != y.ValueDim {
			return fmt.Errorf("group %d is for keys of %d and values of %d numbers, the layer has %d and %d", i, g.KeyDim,
				g.ValueDim, y.KeyDim, y.ValueDim)
		}
	}
	return codec.CheckLayer(y.Groups, y.Heads)
}

// groupParts lists the tensors of groups.
func groupParts(layers []Layer) (out []part) {
	for l, y := range layers {
		for i, g := range y.Groups {
			c := g.Code
			name := func(p string) string { return GroupTensorName(l, i, p) }
			out = append(out, codeParts(c, name)...)
			for _, v := range g.Gains {
				if v != 1 {
					out = append(out, part{name(partGain), []int{len(g.Gains)}, g.Gains})
					break
				}
			}
			if g.Below != nil {
				out = append(out, part{name(below), []int{g.BelowSigns, g.D()}, g.Below})
			}
		}
	}
	return out
}

// readGroups reads layers and groups of version 2 as the text of their key lists them. It
// returns the names that their tensors may have.
func (s *Sidecar) readGroups(ctx context.Context, f sidecarFile, text string, r *keyReader) (map[string]bool, error) {
	if r.err != nil {
		return nil, r.err
	}
	if len(text) > spec.MaxGroupsText {
		return nil, fmt.Errorf("key %s has %d bytes; %d are allowed", spec.KeyGroups, len(text), spec.MaxGroupsText)
	}
	var layers []jsonLayer
	if err := jsonx.UnmarshalStrict([]byte(text), &layers); err != nil {
		return nil, fmt.Errorf("key %s: %w", spec.KeyGroups, err)
	}
	if len(layers) < 1 || len(layers) > spec.MaxLayers {
		return nil, fmt.Errorf("key %s lists %d layers; version %d allows 1 to %d", spec.KeyGroups, len(layers),
			spec.VersionGroups, spec.MaxLayers)
	}
	seen := map[string]bool{}
	for l, x := range layers {
		var lower *Layer
		if l > 0 {
			lower = &s.Layers[l-1]
		}
		y, err := readLayer(ctx, f, s.Kind, l, x, lower, seen)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err != nil {
			return nil, err
		}
		s.Layers = append(s.Layers, y)
	}
	if len(s.Groups()) == 0 {
		return nil, fmt.Errorf("key %s lists no group", spec.KeyGroups)
	}
	return seen, nil
}

// readLayer reads the groups of one layer. Errors of the list name its key, those of
// tensors the tensor.
// lower is the layer below, nil for none.
func readLayer(ctx context.Context, f sidecarFile, kind codec.Kind, l int, x jsonLayer, lower *Layer,
	seen map[string]bool) (Layer, error) {
	y := Layer{Heads: x.Heads, KeyDim: x.HeadDim, ValueDim: x.ValueDim}
	bad := func(err error) (Layer, error) {
		return Layer{}, fmt.Errorf("key %s: layer %d: %w", spec.KeyGroups, l, err)
	}
	if err := x.check(); err != nil {
		return bad(err)
	}
	for i, texts := range x.Groups {
		if ctx.Err() != nil {
			return Layer{}, context.Cause(ctx)
		}
		var parts []codec.Part
		d := 0
		for _, text := range texts {
			p, err := codec.ParsePart(text)
			if err != nil {
				return bad(fmt.Errorf("group %d: %w", i, err))
			}
			parts = append(parts, p)
			d += p.Dim(y.KeyDim, y.ValueDim)
			// Before anything of that size is read.
			if d > spec.MaxGroupDim {
				return bad(fmt.Errorf("group %d has more than %d numbers", i, spec.MaxGroupDim))
			}
		}
		if len(parts) == 0 {
			return bad(fmt.Errorf("group %d has no parts", i))
		}
		name := func(part string) string { return GroupTensorName(l, i, part) }
		code, err := readCode(f, kind, d, name)
		if err != nil {
			return Layer{}, err
		}
		var gains []float32
		if f.has(name(partGain)) {
			if gains, err = readTensor(f, name(partGain), len(parts)); err != nil {
				return Layer{}, err
			}
		}
		g, err := codec.NewGroup(code, parts, y.KeyDim, y.ValueDim, gains)
		if err != nil {
			return bad(fmt.Errorf("group %d: %w", i, err))
		}
		if f.has(name(below)) {
			if g, err = readBelow(f, name(below), g, i, lower); err != nil {
				return Layer{}, err
			}
		}
		y.Groups = append(y.Groups, g)
		for _, part := range append(partNames, partGain, below) {
			seen[name(part)] = true
		}
	}
	if err := y.check(); err != nil {
		return bad(err)
	}
	return y, nil
}

// readBelow gives group number i what stands in tensor name, if the layer below has the group.
func readBelow(f sidecarFile, name string, g *codec.Group, i int, lower *Layer) (*codec.Group, error) {
	if lower == nil || i >= len(lower.Groups) {
		return nil, fmt.Errorf("tensor %s: there is no group of that number in the layer below", name)
	}
	b := lower.Groups[i].B()
	m, err := readTensor(f, name, b, g.D())
	if err != nil {
		return nil, err
	}
	out, err := g.Given(b, m)
	if err == nil {
		err = codec.CheckGiven(out, lower.Groups[i])
	}
	if err != nil {
		return nil, fmt.Errorf("tensor %s: %w", name, err)
	}
	return out, nil
}

// checkGiven refuses groups that are given a group below that is not there, has other parts or is given
// one itself.
func checkGiven(layers []Layer) error {
	for l, y := range layers {
		for i, g := range y.Groups {
			if g.Below == nil {
				continue
			}
			if l == 0 || i >= len(layers[l-1].Groups) {
				return fmt.Errorf("layer %d, group %d is given a group of the layer below that is not there", l, i)
			}
			if err := codec.CheckGiven(g, layers[l-1].Groups[i]); err != nil {
				return fmt.Errorf("layer %d, group %d: %w", l, i, err)
			}
		}
	}
	return nil
}

// layersTo returns layers in another pair layout.
func layersTo(ctx context.Context, layers []Layer, from, to rope.Layout) ([]Layer, error) {
	if layers == nil {
		return nil, nil
	}
	out := []Layer{}
	for l, y := range layers {
		var groups []*codec.Group
		for i, g := range y.Groups {
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			moved, err := g.To(from, to)
			if err != nil {
				return nil, fmt.Errorf("layer %d, group %d: %w", l, i, err)
			}
			groups = append(groups, moved)
		}
		y.Groups = groups
		out = append(out, y)
	}
	return out, nil
}
