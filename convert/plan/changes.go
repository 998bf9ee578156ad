package plan

import (
	"errors"
	"fmt"
	"slices"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/rotations/transform"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/kvcache"
)

// WeightEdits says which edits of weights a conversion may make.
type WeightEdits string

// What may be allowed.
const (
	EditsNone        WeightEdits = "none"
	EditsExact       WeightEdits = "exact"       // identities
	EditsApproximate WeightEdits = "approximate" // near-identities too, where they measure far better than they cost
)

// ParseWeightEdits returns what a text allows. The error says what can be.
func ParseWeightEdits(text string) (WeightEdits, error) {
	switch e := WeightEdits(text); e {
	case EditsNone, EditsExact, EditsApproximate:
		return e, nil
	}
	return "", fmt.Errorf("expected %s, %s or %s", EditsNone, EditsExact, EditsApproximate)
}

// Options of Propose.
type Options struct {
	Formats     []checkpoint.Container
	PairScale   bool // fold the K/Q pair scaling for the key code
	WeightEdits WeightEdits
	// Cache, if set, names the cache types that weights are edited for.
	Cache *kvcache.CacheTypes
	// FFN says what may be changed for the weight type Weights, named as in --weights.
	FFN     FFN
	Weights string
}

// Changes is what is done to a checkpoint's weights, known or proposed.
type Changes struct {
	View *checkpoint.Edited // the weights with the edits that are known
	// PairScale: the closed form of the K/Q pair scaling is still to be fitted, by the calibration.
	PairScale  bool
	Identities []spec.Identity
	Targets    map[string][]string // tensor -> ids of identities
}

// NoChanges returns the changes of a conversion that edits nothing yet.
func NoChanges(c *checkpoint.Checkpoint) *Changes {
	return &Changes{View: checkpoint.NewEdited(c, checkpoint.Edits{}), Targets: map[string][]string{}}
}

// Propose says what a conversion would change, before anything is measured.
func Propose(c *checkpoint.Checkpoint, o Options) *Changes {
	ch := NoChanges(c)
	if o.Cache != nil {
		return ch.measured(c, o)
	}
	g3 := decideBalance(c, o.PairScale && o.WeightEdits != EditsNone)
	if ch.PairScale = g3.Applied; g3.Applied {
		ch.Targets = balanceTargets(c)
		g3.Tensors = len(ch.Targets)
	}
	const why = "for stock cache types only: name one with --cache-type-k"
	g2 := spec.Identity{ID: transform.IDValueTransform, Name: valuesName, Exact: true,
		Why: "for stock cache types only: name one with --cache-type-v"}
	g7 := spec.Identity{ID: transform.IDBiasShift, Name: biasShiftName, Why: why}
	g8 := spec.Identity{ID: transform.IDKeyTransform, Name: transformName, Why: why}
	ch.Identities = append([]spec.Identity{g3, g7, g8, g2}, ch.still(c, o)...)
	ch.Identities = append(ch.Identities, ch.others(c, o)...)
	return ch
}

// still says what may become of the dimensions of keys that RoPE does not turn.
func (ch *Changes) still(c *checkpoint.Checkpoint, o Options) []spec.Identity {
	g5 := spec.Identity{ID: transform.IDStillTransform, Name: "key transform where RoPE does not turn", Exact: true}
	g9 := spec.Identity{ID: transform.IDStillShift, Name: "key bias shift where RoPE does not turn", Exact: true}
	matrix, shift := transform.CheckStill(c.Config)
	decide := func(id *spec.Identity, err error, what string, sides ...string) {
		switch {
		case o.WeightEdits == EditsNone:
			id.Why = "switched off"
		case err != nil:
			id.Why = err.Error()
		case o.Cache == nil:
			id.Why = "for stock cache types only: name one with --cache-type-k"
		case !o.Cache.K.Quantized():
			id.Why = "for quantised keys only: name a type with --cache-type-k"
		default:
			id.Applied, id.Why = true, "if it measures better than no change: "+what
			for l := range c.Config.Layers {
				y := &c.Config.Layers[l]
				if _, some := transform.StillPairs(y); !some || transform.CheckPairScale(&c.Config.Layers[y.Owner]) != nil {
					continue
				}
				parts := sides
				if y.QKNorm != family.NoQKNorm {
					parts = []string{"attn_k_norm.weight", "attn_q_norm.weight"}
				}
				for _, part := range parts {
					if name := family.Name(l, part); exists(c, name) {
						ch.Targets[name] = append(ch.Targets[name], id.ID)
						id.Tensors++
					}
				}
			}
		}
	}
	what := "a matrix per KV head on the dimensions that RoPE does not turn"
	switch {
	case transform.HasLateGains(c.Config):
		what = "a scale for each channel, moved between the gains of k_norm and q_norm, which come after RoPE"
	case slices.ContainsFunc(c.Config.Layers, func(y family.Layer) bool { return y.QKNorm != family.NoQKNorm }):
		what = "a scale for each channel that RoPE does not turn, moved between the gains of k_norm and q_norm"
	}
	decide(&g5, matrix, what, "attn_k.weight", "attn_q.weight",
		"attn_k.bias", "attn_q.bias")
	if reason := o.NoKeyBias(c); shift == nil && reason != "" {
		shift = errors.New(reason)
	}
	decide(&g9, shift, "a constant out of the key bias there, which softmax drops", "attn_k.bias")
	return []spec.Identity{g5, g9}
}

const (
	biasShiftName = "key bias shift"
	transformName = "key transform"
	valuesName    = "value/output transform"
)

// measured is the plan for cache types: what measurements will decide about.
func (ch *Changes) measured(c *checkpoint.Checkpoint, o Options) *Changes {
	g3 := decideBalance(c, o.WeightEdits != EditsNone)
	if g3.Applied {
		g3.Why = "if it measures better than no change: " + g3.Why
		ch.Targets = balanceTargets(c)
		g3.Tensors = len(ch.Targets)
	}
	g2 := spec.Identity{ID: transform.IDValueTransform, Name: valuesName, Exact: true}
	switch {
	case o.WeightEdits == EditsNone:
		g2.Why = "switched off"
	case transform.CheckValueTransform(c.Config) != nil:
		g2.Why = transform.CheckValueTransform(c.Config).Error()
	case !o.Cache.V.Quantized():
		g2.Why = "for quantised values only: name a type with --cache-type-v"
	default:
		g2.Applied, g2.Why = true, "if it measures better than no change: a matrix per KV head between values and output projection"
		if slices.ContainsFunc(c.Config.Layers, func(y family.Layer) bool { return y.ValueNorm }) {
			g2.Why += ", orthogonal because values are normalised"
		}
		for l := range c.Config.Layers {
			if transform.CheckLayerValues(c.Config, c.Config.Layers[l].Owner) != nil {
				continue
			}
			for _, part := range []string{"attn_v.weight", "attn_v.bias", "attn_output.weight"} {
				if name := family.Name(l, part); exists(c, name) {
					ch.Targets[name] = append(ch.Targets[name], g2.ID)
					g2.Tensors++
				}
			}
		}
	}
	g7 := spec.Identity{ID: transform.IDBiasShift, Name: biasShiftName}
	err := transform.CheckKeyBias(c.Config)
	switch reason := o.NoKeyBias(c); {
	case o.WeightEdits != EditsApproximate:
		g7.Why = "not an exact identity; --weight-edits approximate allows it"
	case err != nil:
		g7.Why = err.Error()
	case reason != "":
		g7.Why = reason
	default:
		g7.Applied = true
		g7.Why = "if the divergence falls by ten times what the change costs: a constant out of the key bias"
		for l := range c.Config.Layers {
			if name := family.Name(l, "attn_k.bias"); exists(c, name) {
				ch.Targets[name] = append(ch.Targets[name], g7.ID)
				g7.Tensors++
			}
		}
	}
	g8 := spec.Identity{ID: transform.IDKeyTransform, Name: transformName}
	if err := transform.CheckKeyTransform(c.Config); o.WeightEdits != EditsApproximate {
		g8.Why = g7.Why
	} else if err != nil {
		g8.Why = err.Error()
	} else {
		g8.Applied = true
		g8.Why = "if the divergence falls by ten times what the change costs: a matrix over rotary pairs that RoPE hardly notices"
		for name := range balanceTargets(c) {
			ch.Targets[name] = append(ch.Targets[name], g8.ID)
			g8.Tensors++
		}
	}
	ch.Identities = append([]spec.Identity{g3, g7, g8, g2}, ch.still(c, o)...)
	ch.Identities = append(ch.Identities, ch.others(c, o)...)
	return ch
}

// NoKeyBias says why a constant cannot be taken out of the keys in all formats asked for.
func (o *Options) NoKeyBias(c *checkpoint.Checkpoint) string {
	for _, f := range o.Formats {
		if f == checkpoint.Safetensors && !exists(c, family.Name(0, "attn_k.bias")) && c.Config.Family.BiasKey == "" {
			return "the checkpoint has no key bias, and config.json of this family cannot announce one; --format gguf can add it"
		}
	}
	return ""
}

// decideBalance says whether and where identity G3 can be folded.
func decideBalance(c *checkpoint.Checkpoint, want bool) spec.Identity {
	id := spec.Identity{ID: transform.IDPairScale, Name: "K/Q pair scaling", Exact: true}
	if !want {
		id.Why = "switched off"
		return id
	}
	for l := range c.Config.Layers {
		err := transform.CheckPairScale(&c.Config.Layers[l])
		if err == nil && c.Config.OwnKVHeads(l) > 0 {
			id.Applied, id.Why = true, ""
			break
		}
		if err != nil && id.Why == "" {
			id.Why = fmt.Sprintf("layer %d: %v", l, err)
		}
	}
	if !id.Applied {
		return id
	}
	switch c.Config.Layers[0].QKNorm {
	case family.NoQKNorm:
		id.Why = "one scale per KV head and rotary pair, folded into W_K and, inverted, into W_Q, biases included"
	case family.NormHead:
		id.Why = "one scale per layer and rotary pair, folded into the gains of k_norm and, inverted, of q_norm, which all heads share"
	case family.NormLayers:
		id.Why = "one scale per KV head and rotary pair, folded into the gains of k_norm and, inverted, of q_norm"
	}
	return id
}

// others lists the identities that are not for caches, and those that this version does not fold,
// with the reason.
func (ch *Changes) others(c *checkpoint.Checkpoint, o Options) []spec.Identity {
	norm := slices.ContainsFunc(c.Config.Layers, func(y family.Layer) bool { return y.QKNorm != family.NoQKNorm })
	angles := "not needed: the codes rotate each head anyway"
	if norm {
		angles = "not exact: the gain of a QK-norm differs within a pair"
	}
	g1, g4, g10 := ch.ffn(c, o)
	return []spec.Identity{
		g1,
		{ID: transform.IDPairAngle, Name: "K/Q pair angles", Exact: true, Why: angles},
		g4, g10,
		{ID: "G6", Name: "centring after RoPE", Exact: true, Why: "part of the code, applied at run time"},
	}
}

// targets of edits by identity G3, for a plan made before anything is fitted.
func balanceTargets(c *checkpoint.Checkpoint) map[string][]string {
	out := map[string][]string{}
	for l := range c.Config.Layers {
		if transform.CheckPairScale(&c.Config.Layers[c.Config.Layers[l].Owner]) != nil {
			continue
		}
		names := []string{"attn_k.weight", "attn_q.weight", "attn_k.bias", "attn_q.bias"}
		if c.Config.Layers[l].QKNorm != family.NoQKNorm {
			names = []string{"attn_k_norm.weight", "attn_q_norm.weight"}
		}
		for _, n := range names {
			if name := family.Name(l, n); exists(c, name) {
				out[name] = []string{transform.IDPairScale}
			}
		}
	}
	return out
}
