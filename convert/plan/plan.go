// Package plan decides what a conversion does to every tensor of a checkpoint, and says why,
// before anything is computed or written.
package plan

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/kernels/rope"
	"github.com/phaseconv/phaseconv/rotations/transform"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/option"
)

// Action says what becomes of a tensor.
type Action string

// What becomes of a tensor.
const (
	Copy   Action = "copy"   // the stored bytes, unchanged
	Recode Action = "recode" // the same numbers in another element type
	Fold   Action = "fold"   // an identity folded in, then encoded
	Drop   Action = "drop"   // not written
)

// A TensorPlan is one line of the plan.
type TensorPlan struct {
	Name    string   `json:"name"` // in the target container
	Sources []string `json:"sources"`
	Shape   []int    `json:"shape"`
	From    string   `json:"from"` // element type in the source
	To      string   `json:"to"`
	Action  Action   `json:"action"`
	By      []string `json:"by,omitempty"` // identities folded in
	// Reorder: rotary dimensions move from the source's pair layout to the target's.
	Reorder bool   `json:"reorder,omitempty"`
	Why     string `json:"why"`

	// Tensor is what the numbers come from, nil for tensors outside the graph.
	Tensor *checkpoint.Tensor `json:"-"`
	// Parts are what they come from, rows after rows, where several tensors are stacked.
	Parts []*checkpoint.Tensor `json:"-"`
	// Shard is the source tensor beside which an added one is stored in safetensors.
	Shard string `json:"-"`
}

// A Plan is everything that will be written for one container.
type Plan struct {
	Container  checkpoint.Container `json:"container"`
	Pairs      rope.Layout          `json:"-"`
	PairLayout string               `json:"pair_layout"`
	Identities []spec.Identity      `json:"identities"`
	Tensors    []TensorPlan         `json:"tensors"`
	Keys       Keys                 `json:"keys"`
	Warnings   []string             `json:"warnings,omitempty"`
	// Bytes is what the tensors take, SourceBytes what they took, where both are GGUF files. What is decided by
	// measuring, such as biases that are added, is not in it.
	Bytes       int64 `json:"bytes,omitempty"`
	SourceBytes int64 `json:"source_bytes,omitempty"`
}

// Make decides what becomes of every tensor of c in a container, with matrices of GGUF files
// in the type outtype where they cannot stay as they are. It refuses what the container or its
// stock readers cannot take, by the name of the tensor or key.
func Make(c *checkpoint.Checkpoint, to checkpoint.Container, outtype string, ch *Changes) (*Plan, error) {
	targets := ch.Targets
	p := &Plan{Container: to, Pairs: rope.Half, Identities: ch.Identities}
	outside := 0
	for _, n := range c.Unknown {
		if c.Outside(n) {
			outside++
		}
	}
	if outside > 0 {
		does := "copied as it is"
		if to == checkpoint.GGUF {
			does = "left out; stock runtimes have it in a file of its own (mmproj), which goes with the model as it is"
		}
		p.Warnings = append(p.Warnings, fmt.Sprintf("the language model is converted; what is outside it, such as a "+
			"vision tower (tensors: %d), is %s", outside, does))
	}
	p.drafters(c, to, len(targets) > 0)
	var err error
	switch {
	case to == checkpoint.GGUF && c.Container == checkpoint.GGUF:
		p.Pairs = c.Config.Pairs
		if err = p.retrofit(c, outtype, targets); err == nil {
			p.added(c, ch)
		}
	case to == checkpoint.GGUF:
		if outtype == OutTypeSource {
			return nil, option.Bad("OutType", outtype, "it keeps the types of a GGUF file, and %s is none; expected f32, f16, "+
				"bf16 or q8_0", c.Path)
		}
		p.Pairs = c.Config.Family.GGUFPairs
		if err = p.toGGUF(c, outtype, targets); err == nil {
			p.added(c, ch)
		}
	case c.Container == checkpoint.GGUF:
		err = fmt.Errorf("%s: a GGUF file cannot be written as safetensors, because config.json and tokenizer.json are not in it; use --format gguf", c.Path)
	default:
		if err = p.likeSource(c, targets); err == nil {
			p.addedBiases(c, ch)
		}
	}
	if err == nil {
		err = p.untied(c, ch, outtype)
	}
	p.PairLayout = p.Pairs.String()
	if err == nil && to == checkpoint.GGUF && c.Container == checkpoint.GGUF {
		err = p.size(c.File())
	}
	return p, err
}

// size fills in Bytes and SourceBytes.
func (p *Plan) size(source *gguf.File) error {
	for i := range p.Tensors {
		_, n, err := p.Tensors[i].GGUF()
		if err != nil {
			return err
		}
		p.Bytes += n
	}
	for i := range source.Tensors {
		p.SourceBytes += source.Tensors[i].Size
	}
	return nil
}

// GGUF describes the tensor in a GGUF file, where it takes so many bytes; none that is dropped.
func (x *TensorPlan) GGUF() (s gguf.TensorSpec, bytes int64, err error) {
	if x.Action == Drop {
		return s, 0, nil
	}
	s = gguf.TensorSpec{Name: x.Name, Dims: slices.Clone(x.Shape)}
	slices.Reverse(s.Dims)
	if s.Type, err = gguf.ParseType(x.To); err != nil || len(s.Dims) == 0 {
		return s, 0, err
	}
	row, err := gguf.RowBytes(s.Type, s.Dims[0])
	bytes = int64(row)
	for _, n := range s.Dims[1:] {
		bytes *= int64(n)
	}
	return s, bytes, err
}

// drafts says whether there are tensors of blocks that draft tokens.
func drafts(c *checkpoint.Checkpoint) bool {
	return slices.ContainsFunc(c.Unknown, func(n string) bool {
		return family.LayerOf(n) >= len(c.Config.Layers) || c.Unread(n)
	})
}

// drafters says what drafts tokens for the model, and what becomes of it; edited: weights will change.
func (p *Plan) drafters(c *checkpoint.Checkpoint, to checkpoint.Container, edited bool) {
	cfg := c.Config
	if drafts(c) {
		does := "are copied as they are"
		if to == checkpoint.GGUF && c.Container != checkpoint.GGUF {
			does = "are left out"
		}
		p.Warnings = append(p.Warnings, "blocks behind the model's layers draft tokens (MTP); they have caches of their own and "+does)
	}
	if cfg.Family.Drafter == "" || !edited {
		return
	}
	var kept []string
	for l := range cfg.Layers {
		if cfg.Layers[l].FixedKeys != "" {
			kept = append(kept, fmt.Sprint(l))
		}
	}
	if len(kept) > 0 {
		p.Warnings = append(p.Warnings, fmt.Sprintf("a drafter (%s) reads the keys and values of layers %s, so they stay as they are; "+
			"--break-drafter edits them too", cfg.Family.Drafter, strings.Join(kept, " and ")))
		return
	}
	p.Warnings = append(p.Warnings, fmt.Sprintf("the model no longer fits its drafter (%s), which reads keys and values of its last layers",
		cfg.Family.Drafter))
}

// likeSource plans a safetensors copy with the source's names, types and shards.
func (p *Plan) likeSource(c *checkpoint.Checkpoint, targets map[string][]string) error {
	fused := map[string]bool{} // stored tensors of several sources
	for _, t := range c.Tensors() {
		shape := t.Shape
		if len(t.Sources) > 1 { // one matrix per expert
			shape = shape[1:]
		}
		for _, s := range t.Sources {
			if name := c.Stored(s); name != s {
				if parts := c.Holds(name); len(parts) > 0 {
					if !fused[name] {
						fused[name] = true
						p.Tensors = append(p.Tensors, stacked(name, parts, targets))
					}
					continue
				}
				if targets[t.Name] != nil {
					return fmt.Errorf("%s: tensor %s holds all experts and cannot be changed in place; use --format gguf", c.Path,
						name)
				}
				for _, name := range c.StoredAll(s) {
					if !fused[name] {
						fused[name] = true
						r, _ := c.Shards().Find(name)
						p.Tensors = append(p.Tensors, TensorPlan{Name: name, Sources: []string{name}, Shape: r.Tensor.Shape,
							From: r.Tensor.DType, To: r.Tensor.DType, Action: Copy, Why: "untouched"})
					}
				}
				continue
			}
			x := TensorPlan{Name: s, Sources: []string{s}, Shape: shape, From: t.Type, To: t.Type, Action: Copy, Tensor: t,
				Why: "untouched"}
			if by := targets[t.Name]; by != nil {
				x.Action, x.By, x.Why = Fold, by, "folded and rounded to its own type"
			}
			p.Tensors = append(p.Tensors, x)
		}
	}
	for _, n := range c.Unknown {
		p.Tensors = append(p.Tensors, TensorPlan{Name: n, Sources: []string{n}, Action: Copy,
			Why: "not part of the graph; copied as it is"})
	}
	return nil
}

// stacked plans a stored tensor that holds several canonical ones, in its own type.
func stacked(name string, parts []*checkpoint.Tensor, targets map[string][]string) TensorPlan {
	shape := slices.Clone(parts[0].Shape)
	shape[0] = 0
	var by []string
	for _, t := range parts {
		shape[0] += t.Shape[0]
		for _, id := range targets[t.Name] {
			if !slices.Contains(by, id) {
				by = append(by, id)
			}
		}
	}
	x := TensorPlan{Name: name, Sources: []string{name}, Shape: shape, From: parts[0].Type, To: parts[0].Type,
		Action: Copy, Why: "untouched"}
	if by != nil {
		x.Action, x.By, x.Parts, x.Why = Fold, by, parts, "folded and rounded to its own type"
	}
	return x
}

// retrofit plans a GGUF copy in which only edited tensors are re-encoded.
func (p *Plan) retrofit(c *checkpoint.Checkpoint, outtype string, targets map[string][]string) error {
	f := c.File()
	for i := range f.Tensors {
		src := &f.Tensors[i]
		var t *checkpoint.Tensor
		held := c.Holds(src.Name)
		by := targets[src.Name]
		switch len(held) {
		case 0:
		case 1:
			t, by = held[0], targets[held[0].Name]
		default:
			by = stacked(src.Name, held, targets).By
		}
		x := TensorPlan{Name: src.Name, Sources: []string{src.Name}, Shape: src.Shape(), From: src.Type.String(),
			To: src.Type.String(), Action: Copy, Tensor: t, Why: "untouched"}
		if by != nil {
			if len(held) > 1 {
				x.Parts = held
			}
			to := gguf.WritableType(src.Type, src.RowLen())
			if outtype != OutTypeSource {
				var err error
				if to, err = ggufType(src.Name, src.Shape(), outtype); err != nil {
					return err
				}
			}
			x.Action, x.By, x.To = Fold, by, to.String()
			x.Why = "folded and re-encoded"
		}
		p.Tensors = append(p.Tensors, x)
	}
	return nil
}

// toGGUF plans the conversion of a Hugging Face checkpoint.
func (p *Plan) toGGUF(c *checkpoint.Checkpoint, outtype string, targets map[string][]string) error {
	cfg := c.Config
	if err := checkStock(c); err != nil {
		return err
	}
	if window, _ := cfg.Window(); window > 0 && !cfg.Family.Window.InGGUF && window < cfg.Context {
		p.Warnings = append(p.Warnings,
			fmt.Sprintf("stock GGUF runtimes ignore the sliding window of architecture %s; results differ from the source beyond %d tokens", cfg.Family.GGUFArch, window))
	}
	stacks := p.stacks(c)
	for _, t := range c.Tensors() {
		x := TensorPlan{Name: cfg.Family.GGUFName(t.Name), Sources: t.Sources, Shape: t.Shape, From: t.Type, Action: Recode,
			Tensor: t, Why: "re-encoded for the container"}
		by := targets[t.Name]
		if s, ok := stacks[t.Name]; ok {
			if s.parts[0] != t {
				continue // the stack is written in the place of its first part
			}
			x = stacked(s.name, s.parts, targets)
			x.Sources, x.Parts, x.Action, x.Why = nil, s.parts, Recode, "stacked and re-encoded for the container"
			for _, t := range s.parts {
				x.Sources = append(x.Sources, t.Sources...)
			}
			by = x.By
		}
		to, err := ggufType(t.Name, x.Shape, outtype)
		if err != nil {
			return err
		}
		if stored, err := gguf.ParseType(t.Type); err == nil && stored.Quantized() {
			to = stored // MXFP4 of Hugging Face files: any other type is larger or worse
		}
		x.To = to.String()
		x.Reorder = p.Pairs != cfg.Pairs && IsRotary(t.Name)
		if by != nil {
			x.Action, x.By, x.Why = Fold, by, "folded and re-encoded"
		} else if t.Type == x.To && !x.Reorder && t.Add == 0 && !c.Relaid(t) {
			x.Action, x.Why = Copy, "untouched"
		}
		p.Tensors = append(p.Tensors, x)
	}
	if cfg.TiedEmbeddings && cfg.Family.UntiedHead {
		t, _ := c.Find("token_embd.weight")
		to, err := ggufType("output.weight", t.Shape, outtype)
		if err != nil {
			return err
		}
		p.Tensors = append(p.Tensors, TensorPlan{Name: "output.weight", Sources: t.Sources, Shape: t.Shape, From: t.Type,
			To: to.String(), Action: Recode, Tensor: t, Why: "stock readers of this architecture need a head of its own"})
	}
	if err := p.rope(c); err != nil {
		return err
	}
	for _, n := range c.Unknown {
		p.Tensors = append(p.Tensors, TensorPlan{Name: n, Sources: []string{n}, Action: Drop,
			Why: "stock readers refuse tensors outside the architecture"})
	}
	return nil
}

// rope plans the tensors of RoPE scaling.
func (p *Plan) rope(c *checkpoint.Checkpoint) error {
	cfg := c.Config
	full, _ := cfg.Ropes()
	if d, ok := full.FreqDivisors(); ok {
		if !cfg.Family.RopeFreqs {
			return fmt.Errorf("%s: RoPE scaling %s cannot be written for architecture %s", c.Path, full.Scaling,
				cfg.Family.GGUFArch)
		}
		p.Tensors = append(p.Tensors, TensorPlan{Name: RopeFreqs, Shape: []int{len(d)}, From: "-", To: "F32", Action: Recode,
			Why: "RoPE scaling, as frequency divisors"})
	}
	if full.Scaling == rope.LongRoPE {
		for _, name := range []string{LongFactors, ShortFactors} {
			p.Tensors = append(p.Tensors, TensorPlan{Name: name, Shape: []int{full.Dim / 2}, From: "-", To: "F32",
				Action: Recode, Why: "RoPE scaling, as frequency divisors"})
		}
	}
	if full.Smooth {
		p.Warnings = append(p.Warnings, "stock GGUF runtimes round the ends of YaRN's ramp to whole pairs (truncate is false "+
			"here); results differ a little from the source")
	}
	return nil
}

// A stackOf is a stacked tensor of a GGUF file and what it holds.
type stackOf struct {
	name  string
	parts []*checkpoint.Tensor
}

// stacks returns the stack of each tensor that GGUF files hold in one.
func (p *Plan) stacks(c *checkpoint.Checkpoint) map[string]*stackOf {
	out := map[string]*stackOf{}
	for l := range c.Config.Layers {
		for _, s := range c.Config.Family.GGUFStacks(l) {
			x := &stackOf{name: s.Name}
			for _, n := range s.Parts {
				if t, ok := c.Find(n); ok {
					x.parts = append(x.parts, t)
					out[n] = x
				}
			}
		}
	}
	return out
}

// RopeFreqs is the GGUF tensor of frequency divisors.
const RopeFreqs = "rope_freqs.weight"

// LongFactors and ShortFactors are those of longrope, for long contexts and others.
const (
	LongFactors  = "rope_factors_long.weight"
	ShortFactors = "rope_factors_short.weight"
)

// ggufFeatures are those of layers that GGUF files of some family hold.
const ggufFeatures = family.AttentionSinks | family.SharedKV | family.NormedValues | family.KeysAsValues |
	family.NoRoPE | family.PartialRoPE | family.LateNorm | family.NoPreNorms | family.QueryTemperature |
	family.OtherBlock | family.OtherRouter | family.SharedExperts | family.OtherExperts | family.CappedScores

// checkStock refuses models that stock GGUF readers would refuse, or would
// compute otherwise because their architecture has no key for a number.
func checkStock(c *checkpoint.Checkpoint) error {
	cfg, f := c.Config, c.Config.Family
	shape, err := cfg.Layers[0].HeadShape, error(nil)
	if !f.Kinds {
		shape, err = cfg.Uniform()
	}
	if err == nil {
		err = cfg.Require("the GGUF writer", ggufFeatures)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", c.Path, err)
	}
	if f.OutBiasKey != "" && exists(c, family.Name(0, "attn_output.bias")) {
		return fmt.Errorf("%s: %s is true, but stock GGUF runtimes know no bias of the output projection in architecture %s", c.Path,
			f.OutBiasKey, f.GGUFArch)
	}
	full, local := cfg.Ropes()
	window, _ := cfg.Window()
	stock := 1 / math.Sqrt(float64(shape.HeadDim))
	if n := f.WideScaleLayers; n > 0 && n == len(cfg.Layers) {
		stock = 1 / math.Sqrt(float64(cfg.Hidden/shape.Heads))
	}
	if f.Scale != 0 {
		stock = f.Scale
	}
	if f.Multipliers {
		stock = cfg.Layers[0].Scale // a key says it
	}
	for l := range cfg.Layers {
		if err := checkStockLayer(cfg, l, stock, window); err != nil {
			return fmt.Errorf("%s: %w", c.Path, err)
		}
	}
	if f.SquareAttention && shape.Heads*shape.HeadDim != cfg.Hidden {
		return fmt.Errorf("%s: %d heads with head_dim %d for hidden_size %d: stock GGUF runtimes demand that the product is the hidden size in architecture %s", c.Path, shape.Heads, shape.HeadDim, cfg.Hidden, f.GGUFArch)
	}
	if full.Scaling == rope.YaRN && !f.RampKeys && (full.BetaFast != 32 || full.BetaSlow != 1) {
		return fmt.Errorf("%s: RoPE scaling yarn with beta_fast %g and beta_slow %g: stock GGUF runtimes use 32 and 1 in architecture %s", c.Path, full.BetaFast, full.BetaSlow, f.GGUFArch)
	}
	if err := checkStockRope(cfg); err != nil {
		return fmt.Errorf("%s: %w", c.Path, err)
	}
	if window > 0 && f.Window.InGGUF && !f.Window.SameRope && local.Scaling != rope.None {
		return fmt.Errorf("%s: RoPE scaling %s of sliding-window layers cannot be written for architecture %s", c.Path,
			local.Scaling, f.GGUFArch)
	}
	return nil
}

// checkStockRope refuses what stock GGUF readers count or compute in a way of their own.
func checkStockRope(cfg *family.Config) error {
	f := cfg.Family
	full, local := cfg.Ropes()
	window, _ := cfg.Window()
	if window > 0 && f.Window.SameBase && local.Theta != full.Theta {
		return fmt.Errorf("rope_theta is %g in sliding-window layers and %g in others: stock GGUF runtimes have one base in "+
			"architecture %s", local.Theta, full.Theta, f.GGUFArch)
	}
	if full.Scaling == rope.LongRoPE && !f.LongRope {
		return fmt.Errorf("RoPE scaling %s cannot be written for architecture %s", full.Scaling, f.GGUFArch)
	}
	if n := f.Window.Layers; n > 0 && (len(cfg.Layers) == n) != (window > 0) {
		return fmt.Errorf("stock GGUF runtimes apply a sliding window in architecture %s to models of %d layers, and to those "+
			"only; this one has %d layers and a window of %d", f.GGUFArch, n, len(cfg.Layers), window)
	}
	for l := range cfg.Layers {
		y := &cfg.Layers[l]
		if n := f.NoRope.Period; n > 0 && (y.Rope.Dim == 0) != ((l+1)%n == 0) {
			return fmt.Errorf("no_rope_layers: stock GGUF runtimes turn nothing in every %dth layer of architecture %s, and in "+
				"those only; layer %d differs", n, f.GGUFArch, l)
		}
		if y.Temperature.Beta != 0 && y.Temperature.Length != full.OriginalContext {
			return fmt.Errorf("layer %d: queries grow by the original context %d of YaRN in stock GGUF runtimes, here by %d", l,
				full.OriginalContext, y.Temperature.Length)
		}
	}
	return nil
}

// checkStockLayer is checkStock for one layer; scale is that of attention scores there.
func checkStockLayer(cfg *family.Config, l int, scale float64, window int) error {
	f := cfg.Family
	y := &cfg.Layers[l]
	if d := y.Scale/scale - 1; d > 1e-6 || d < -1e-6 {
		return fmt.Errorf("query_pre_attn_scalar implies an attention scale of %g, stock GGUF runtimes use %g for this shape",
			y.Scale, scale)
	}
	if err := checkStockFFN(cfg, l); err != nil {
		return err
	}
	switch {
	case f.GGUFSoftCap && (y.SoftCap == 0 || cfg.LogitSoftcap == 0):
		return fmt.Errorf("attn_logit_softcapping or final_logit_softcapping is null, and stock GGUF runtimes cap scores and logits "+
			"in architecture %s", f.GGUFArch)
	case !f.GGUFSoftCap && y.SoftCap != 0:
		return fmt.Errorf("attn_logit_softcapping is %g, and stock GGUF runtimes cap no scores in architecture %s", y.SoftCap,
			f.GGUFArch)
	}
	if f.EqualHeads && y.KVHeads != y.Heads {
		return fmt.Errorf("num_key_value_heads %d differs from num_attention_heads %d, which stock GGUF runtimes do not read in architecture %s", y.KVHeads, y.Heads, f.GGUFArch)
	}
	if y.Window > 0 && y.Window != window {
		return fmt.Errorf("layer %d has a window of another size than other layers, which the GGUF writer does not support", l)
	}
	return nil
}

// checkShared refuses a layer that reads other keys and values than in stock GGUF runtimes, which
// take the last two layers with keys of their own: the one before last for windows.
func checkShared(cfg *family.Config, l int) error {
	y := &cfg.Layers[l]
	if y.Owner == l {
		return nil
	}
	want := len(cfg.Layers) - cfg.SharedLayers() - 1
	if y.Window > 0 {
		want--
	}
	if y.Owner != want {
		return fmt.Errorf("num_kv_shared_layers: layer %d reads the keys and values of layer %d, in stock GGUF runtimes those of "+
			"layer %d", l, y.Owner, want)
	}
	return nil
}

// checkStockFFN is checkStockLayer for the FFN.
func checkStockFFN(cfg *family.Config, l int) error {
	f, y := cfg.Family, &cfg.Layers[l].FFN
	first := cfg.Mixture()
	if first == nil && f.Kinds {
		return checkShared(cfg, l) // a key has the size of each layer's
	}
	if first == nil {
		if first = &cfg.Layers[0].FFN; y.Size != first.Size {
			return fmt.Errorf("layer %d has an FFN of another size than other layers, which the GGUF writer does not support", l)
		}
		return nil
	}
	if lead, ok := cfg.DenseLead(); !ok || lead > 0 && !f.Experts.GGUFDense {
		return fmt.Errorf("some layers have no experts, which stock GGUF runtimes do not read in architecture %s%s", f.GGUFArch,
			map[bool]string{true: " but in front of the others"}[f.Experts.GGUFDense])
	}
	if y.Experts == 0 {
		return nil
	}
	if *y != *first {
		return fmt.Errorf("layer %d has another mixture than other layers, which the GGUF writer does not support", l)
	}
	switch {
	case f.Experts.GGUFRouter:
	case y.Renorm != f.Experts.GGUFRenorm:
		return fmt.Errorf("norm_topk_prob is %v, but stock GGUF runtimes always compute architecture %s with %v",
			y.Renorm, f.GGUFArch, f.Experts.GGUFRenorm)
	case y.Groups > 1 || y.Scale() != 1:
		return fmt.Errorf("n_group is %d and routed_scaling_factor %g, which stock GGUF runtimes do not read in architecture %s",
			y.Groups, y.Scale(), f.GGUFArch)
	}
	return nil
}

// IsRotary says whether the rows of a tensor are ordered by rotary dimension.
func IsRotary(name string) bool {
	for _, s := range []string{".attn_q.weight", ".attn_q.bias", ".attn_k.weight", ".attn_k.bias", ".attn_q_norm.weight",
		".attn_k_norm.weight"} {
		if strings.HasSuffix(name, s) {
			return true
		}
	}
	return false
}

// OutTypes are the element types for matrices in GGUF.
var OutTypes = map[string]gguf.Type{"f32": gguf.TypeF32, "f16": gguf.TypeF16, "bf16": gguf.TypeBF16,
	"q8_0": gguf.TypeQ8_0}

// OutTypeSource keeps the types of a GGUF file, where they can be written, see gguf.WritableType.
const OutTypeSource = "source"

// FileTypes are the values of general.file_type for OutTypes.
var FileTypes = map[string]uint32{"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}

// FileTypeMXFP4 is that of files with experts in MXFP4, unless their other matrices are Q8_0.
const FileTypeMXFP4 = 38

// ggufType returns the type a tensor is written in: vectors, norm gains and
// routers stay F32, as stock converters do and stock readers expect; rows that
// blocks of 32 do not divide fall back to F16.
func ggufType(name string, shape []int, outtype string) (gguf.Type, error) {
	t, ok := OutTypes[outtype]
	if !ok {
		return 0, CheckOutType(outtype)
	}
	if len(shape) < 2 || family.IsNorm(name) || strings.HasSuffix(name, ".bias") ||
		strings.HasSuffix(name, "ffn_gate_inp.weight") {
		return gguf.TypeF32, nil
	}
	if n, _ := t.Block(); shape[len(shape)-1]%n != 0 {
		return gguf.TypeF16, nil
	}
	return t, nil
}

func exists(c *checkpoint.Checkpoint, name string) bool { _, ok := c.Find(name); return ok }

// CheckOutType refuses the name of an element type that is not one of OutTypes.
func CheckOutType(name string) error {
	if _, ok := OutTypes[name]; !ok && name != OutTypeSource {
		return option.Bad("OutType", name, "expected f32, f16, bf16, q8_0 or source")
	}
	return nil
}

// added plans the tensors that the source lacks.
func (p *Plan) added(c *checkpoint.Checkpoint, ch *Changes) {
	for l := range c.Config.Layers {
		t, ok := ch.View.Added[family.Name(l, "attn_k.bias")]
		if !ok {
			continue
		}
		by := ch.Targets[t.Name]
		stored, parts := c.AddedTo(t.Name)
		x := TensorPlan{Name: stored, Shape: t.Shape, From: "-", To: gguf.TypeF32.String(), Action: Fold, By: by, Tensor: t,
			Reorder: p.Pairs != c.Config.Pairs, Why: "a key bias, which stock readers of this architecture accept"}
		if len(parts) > 1 { // with zeros for queries and values
			x.Tensor, x.Shape, x.Why = nil, []int{0}, "a bias of the fused projection, zeros but for the keys"
			for _, n := range parts {
				z := t
				if n != t.Name {
					z = zeroBias(ch.View, n, l)
				}
				x.Parts, x.Shape[0] = append(x.Parts, z), x.Shape[0]+z.Elements()
			}
		}
		p.Tensors = append(p.Tensors, x)
		if !p.stackedKeys(c, l) || len(parts) > 1 {
			continue
		}
		for _, part := range []string{"attn_q", "attn_v"} {
			if exists(c, family.Name(l, part+".bias")) {
				continue
			}
			z := zeroBias(ch.View, family.Name(l, part+".bias"), l)
			p.Tensors = append(p.Tensors, TensorPlan{Name: z.Name, Shape: z.Shape, From: "-", To: gguf.TypeF32.String(),
				Action: Fold, By: by, Tensor: z,
				Why: "zeros: beside stacked projections stock readers heed a key bias only if all three are there"})
		}
	}
}

// zeroBias adds a bias of zeros to a view, as long as the rows of its projection in layer l.
func zeroBias(v *checkpoint.Edited, name string, l int) *checkpoint.Tensor {
	w, _ := v.Find(strings.TrimSuffix(name, ".bias") + ".weight")
	z := &checkpoint.Tensor{Name: name, Layer: l, Shape: []int{w.Shape[0]}, Type: "F32"}
	v.Added[name] = z
	return z
}

// stackedKeys says whether the projections of layer l's attention will be stacked in the file.
func (p *Plan) stackedKeys(c *checkpoint.Checkpoint, l int) bool {
	name := family.Name(l, "attn_k.weight")
	if c.Container == checkpoint.GGUF {
		t, ok := c.Find(name)
		return ok && len(c.Holds(c.Stored(t.Sources[0]))) > 1
	}
	_, ok := p.stacks(c)[name]
	return ok
}

// addedBiases plans the biases of a checkpoint that gets its first: config.json
// knows one switch, attention_bias, for those of all four projections in all
// layers, so beside the key biases there are others, of zeros.
func (p *Plan) addedBiases(c *checkpoint.Checkpoint, ch *Changes) {
	if len(ch.View.Added) == 0 {
		return
	}
	for l := range c.Config.Layers {
		for _, part := range []string{"attn_q", "attn_k", "attn_v", "attn_output"} {
			if part == "attn_output" && c.Config.Family.OutBiasKey != "" {
				continue // it has a key of its own
			}
			name := family.Name(l, part+".bias")
			w, _ := c.Find(family.Name(l, part+".weight"))
			x := TensorPlan{Name: c.HFName(name), Shape: []int{w.Rows()}, From: "-", To: w.Type, Action: Fold,
				By:    []string{transform.IDBiasShift},
				Shard: w.Sources[0], Why: "zeros: attention_bias announces biases of all projections"}
			if t, ok := ch.View.Added[name]; ok {
				x.Tensor, x.By, x.Why = t, ch.Targets[name], "a key bias, announced by attention_bias"
			}
			p.Tensors = append(p.Tensors, x)
		}
	}
}
