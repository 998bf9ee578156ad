package convert

import (
	"context"
	"fmt"
	"slices"

	"github.com/phaseconv/phaseconv/convert/edits"
	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/rotations/transform"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify"
	"github.com/phaseconv/phaseconv/verify/kvcache"
)

// Which changes of weights a conversion may make.
const (
	EditsNone        = "none"
	EditsExact       = "exact" // identities
	EditsApproximate = "near"  // near-identities too, where they measure far better than they cost
)

// changes is what is done to a checkpoint's weights, known or planned.
type changes struct {
	view *checkpoint.Edited
	// balance: the closed form of G3 is still to be fitted, by the calibration.
	balance    bool
	identities []spec.Identity
	targets    map[string][]string // tensor -> ids of identities
	report     *spec.Fusion        // nil where no cache types were asked for
}

// planned says what a conversion would change, before anything is measured.
func planned(c *checkpoint.Checkpoint, o *Options) *changes {
	ch := &changes{view: checkpoint.NewEdited(c, checkpoint.Edits{}), targets: map[string][]string{}}
	if o.Cache != nil {
		return ch.measured(c, o)
	}
	g3 := decideBalance(c, o.Balance && o.WeightEdits != EditsNone)
	if ch.balance = g3.Applied; g3.Applied {
		ch.targets = balanceTargets(c)
		g3.Tensors = len(ch.targets)
	}
	const why = "for stock cache types only: name one with --cache-type-k"
	g2 := spec.Identity{ID: transform.IDValueTransform, Name: valuesName, Exact: true, Why: "for stock cache types only: name one with --cache-type-v"}
	g7 := spec.Identity{ID: transform.IDBiasShift, Name: slowMeanName, Why: why}
	g8 := spec.Identity{ID: transform.IDKeyTransform, Name: mixName, Why: why}
	ch.identities = append([]spec.Identity{g3, g7, g8, g2}, others(c)...)
	return ch
}

const (
	slowMeanName = "slow-mean removal"
	mixName      = "pair mixing"
	valuesName   = "V/O transform"
)

// measured is the plan for cache types: what measurements will decide about.
func (ch *changes) measured(c *checkpoint.Checkpoint, o *Options) *changes {
	g3 := decideBalance(c, o.WeightEdits != EditsNone)
	if g3.Applied {
		g3.Why = "if it measures better than no change: " + g3.Why
		ch.targets = balanceTargets(c)
		g3.Tensors = len(ch.targets)
	}
	g2 := spec.Identity{ID: transform.IDValueTransform, Name: valuesName, Exact: true}
	switch {
	case o.WeightEdits == EditsNone:
		g2.Why = "switched off"
	case !o.Cache.V.Quantized():
		g2.Why = "for quantised values only: name a type with --cache-type-v"
	default:
		g2.Applied, g2.Why = true, "if it measures better than no change: a matrix per KV head between values and output projection"
		for l := range c.Config.Layers {
			for _, part := range []string{"attn_v.weight", "attn_v.bias", "attn_output.weight"} {
				if name := family.Name(l, part); exists(c, name) {
					ch.targets[name] = append(ch.targets[name], g2.ID)
					g2.Tensors++
				}
			}
		}
	}
	g7 := spec.Identity{ID: transform.IDBiasShift, Name: slowMeanName}
	err := transform.CheckKeyBias(c.Config)
	switch reason := o.noKeyBias(c); {
	case o.WeightEdits != EditsApproximate:
		g7.Why = "not an exact identity; --fuse near allows it"
	case err != nil:
		g7.Why = err.Error()
	case reason != "":
		g7.Why = reason
	default:
		g7.Applied = true
		g7.Why = "if the divergence falls by ten times what the change costs: a constant out of the key bias"
		for l := range c.Config.Layers {
			if name := family.Name(l, "attn_k.bias"); exists(c, name) {
				ch.targets[name] = append(ch.targets[name], g7.ID)
				g7.Tensors++
			}
		}
	}
	g8 := spec.Identity{ID: transform.IDKeyTransform, Name: mixName}
	if err := transform.CheckKeyTransform(c.Config); o.WeightEdits != EditsApproximate {
		g8.Why = g7.Why
	} else if err != nil {
		g8.Why = err.Error()
	} else {
		g8.Applied = true
		g8.Why = "if the divergence falls by ten times what the change costs: a matrix over rotary pairs that RoPE hardly notices"
		for name := range balanceTargets(c) {
			ch.targets[name] = append(ch.targets[name], g8.ID)
			g8.Tensors++
		}
	}
	ch.identities = append([]spec.Identity{g3, g7, g8, g2}, others(c)...)
	return ch
}

// noKeyBias says why a constant cannot be taken out of the keys in all formats asked for.
func (o *Options) noKeyBias(c *checkpoint.Checkpoint) string {
	for _, f := range o.Formats {
		if f == checkpoint.Safetensors && !exists(c, family.Name(0, "attn_k.bias")) && !c.Config.Family.BiasKey {
			return "the checkpoint has no key bias, and config.json of this family cannot announce one; --format gguf can add it"
		}
	}
	return ""
}

// fuse measures which changes help the cache types that were asked for and
// makes them.
func searchEdits(ctx context.Context, c *checkpoint.Checkpoint, o *Options, plan *changes) (*changes, error) {
	if o.Cache == nil || o.WeightEdits == EditsNone {
		return plan, nil
	}
	choice, err := edits.Search(ctx, c, edits.Options{
		Cache: *o.Cache, Ctx: o.TargetCtx, Text: o.Calibration, Tokens: o.CacheTokens, Approximate: o.WeightEdits == EditsApproximate, NoKeyBias: o.noKeyBias(c),
		Seed: o.Seed, Threads: o.Threads, Progress: o.Progress,
	})
	if err != nil {
		return nil, err
	}
	ch := &changes{view: checkpoint.NewEdited(c, checkpoint.Edits{}), targets: map[string][]string{}, report: choice.Report}
	if choice.Changed() {
		for l, heads := range choice.Edits {
			if err := transform.FoldKeys(ch.view, l, heads); err != nil {
				return nil, err
			}
		}
	}
	count := map[string]int{}
	for name, e := range ch.view.Edits {
		ch.targets[name] = e.By
		for _, id := range e.By {
			count[id]++
		}
	}
	for _, id := range plan.identities {
		if slices.Contains([]string{transform.IDValueTransform, transform.IDPairScale, transform.IDBiasShift, transform.IDKeyTransform}, id.ID) {
			was := id.Applied
			id.Tensors = count[id.ID]
			if id.Applied = id.Tensors > 0; id.Applied || was {
				id.Why = fmt.Sprintf("measured with %s keys and %s values: chosen is %q", choice.Report.KType, choice.Report.VType, choice.Report.Chosen)
			}
		}
		if id.ID == idAngle && turned(choice) {
			id.Applied, id.Tensors, id.Why = true, count[transform.IDPairScale], "with the scales of G3, tuned to the cache type"
		}
		ch.identities = append(ch.identities, id)
	}
	return ch, nil
}

// turned says whether a choice turns pairs by angles.
func turned(c *edits.Result) bool {
	return c.Changed() && slices.ContainsFunc(c.Edits, func(heads []transform.KeyEdit) bool {
		return slices.ContainsFunc(heads, func(e transform.KeyEdit) bool { return e.Pairs != nil && e.Pairs.Angle != nil })
	})
}

// added plans the tensors that the source lacks.
func (p *Plan) added(c *checkpoint.Checkpoint, ch *changes) {
	for l := range c.Config.Layers {
		t, ok := ch.view.Added[family.Name(l, "attn_k.bias")]
		if !ok {
			continue
		}
		p.Tensors = append(p.Tensors, TensorPlan{
			Name: t.Name, Shape: t.Shape, From: "-", To: gguf.TypeF32.String(), Action: Fold, By: ch.targets[t.Name], tensor: t,
			Reorder: p.Pairs != c.Config.Pairs, Why: "a key bias, which stock readers of this architecture accept",
		})
	}
}

// addedBiases plans the biases of a checkpoint that gets its first: config.json
// knows one switch, attention_bias, for those of all four projections in all
// layers, so beside the key biases there are others, of zeros.
func (p *Plan) addedBiases(c *checkpoint.Checkpoint, ch *changes) {
	if len(ch.view.Added) == 0 {
		return
	}
	for l := range c.Config.Layers {
		for _, part := range []string{"attn_q", "attn_k", "attn_v", "attn_output"} {
			name := family.Name(l, part+".bias")
			hf, _ := c.Config.Family.HFNames(name, 0)
			w, _ := c.Find(family.Name(l, part+".weight"))
			x := TensorPlan{Name: hf[0], Shape: []int{w.Rows()}, From: "-", To: w.Type, Action: Fold, By: []string{transform.IDBiasShift},
				shard: w.Sources[0], Why: "zeros: attention_bias announces biases of all projections"}
			if t, ok := ch.view.Added[name]; ok {
				x.tensor, x.By, x.Why = t, ch.targets[name], "a key bias, announced by attention_bias"
			}
			p.Tensors = append(p.Tensors, x)
		}
	}
}

// compare measures the cache types with the model e in dir beside the source, at
// the context of the other measurements and at the one that was fitted for.
func compare(ctx context.Context, c *checkpoint.Checkpoint, dir string, e spec.Artifact, o *Options) (*spec.AdviseJSON, error) {
	written, err := openModel(dir, e)
	if err != nil {
		return nil, err
	}
	defer written.Close()
	half := kvcache.CacheTypes{K: gguf.TypeF16, V: gguf.TypeF16, Rotation: o.Cache.Rotation}
	return verify.Advise(ctx, c, written, verify.AdviseOptions{
		Text: o.Evaluation, Ctx: []int{o.Ctx, o.TargetCtx}, Chunks: o.Chunks, Pairs: []kvcache.CacheTypes{*o.Cache, half},
		Rotation: o.Cache.Rotation, Threads: o.Threads, Progress: o.Progress,
	})
}
