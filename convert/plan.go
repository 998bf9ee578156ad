// Package convert turns a checkpoint into an artifact: it calibrates, fits,
// plans what becomes of each tensor, writes models, sidecars and the manifest.
package convert

import (
	"fmt"
	"slices"
	"strings"

	"github.com/phaseconv/phaseconv/convert/bits"
	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/kernels/rope"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/rotations/transform"
	"github.com/phaseconv/phaseconv/spec"
)

// Action says what becomes of a tensor.
type Action string

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

	tensor *checkpoint.Tensor // nil for tensors outside the graph
	shard  string             // source tensor beside which an added one is stored in safetensors
}

// A Plan is everything that will be written for one container.
type Plan struct {
	Container  checkpoint.Container `json:"container"`
	Pairs      rope.Layout          `json:"-"`
	PairLayout string               `json:"pair_layout"`
	Identities []spec.Identity      `json:"identities"`
	Tensors    []TensorPlan         `json:"tensors"`
	Keys       KeysPlan             `json:"keys"`
	Warnings   []string             `json:"warnings,omitempty"`
}

// KeysPlan is what a coded token will take, over all layers and heads.
type KeysPlan struct {
	Code       string  `json:"code"`
	Bits       float64 `json:"bits"` // signs per number, on average
	Alloc      string  `json:"alloc"`
	Spread     string  `json:"spread"` // what Alloc means here
	Signs      int     `json:"signs"`
	Exceptions int     `json:"exceptions"` // per key
	// Bytes of signs, scales and exceptions. Signs are stored in words of 32, so
	// heads that do not fill their last word take more: 3 bytes at most each.
	Bytes int `json:"bytes"`
}

// planKeys says what is known of the codes before the calibration.
func planKeys(c *family.Config, o *Options) (KeysPlan, error) {
	k := KeysPlan{Code: o.Code, Alloc: o.alloc(), Exceptions: o.Policy.Exceptions}
	if err := o.checkSigns(c); err != nil {
		return k, err
	}
	shape, err := c.Uniform()
	if err != nil {
		return k, err
	}
	if err := o.Policy.Check(shape.HeadDim); err != nil {
		return k, usage("%v", err)
	}
	heads := len(c.Layers) * shape.KVHeads
	if k.Signs, err = bits.Budget(c, o.Bits); err != nil {
		return k, err
	}
	k.Bits = float64(k.Signs) / float64(heads*shape.HeadDim)
	k.Bytes = k.Signs/8 + heads*(2+codec.ExceptionBytes*k.Exceptions)
	even := bits.EvenSigns(k.Signs, heads)
	switch lo, hi := slices.Min(even), slices.Max(even); {
	case k.Alloc != bits.AllocUniform:
		k.Spread = "spread over heads by the calibration (" + k.Alloc + ")"
	case lo == hi:
		k.Spread = fmt.Sprintf("%d for each head", lo)
	default:
		k.Spread = fmt.Sprintf("%d or %d for each head", lo, hi)
	}
	return k, nil
}

// decideBalance says whether and where identity G3 can be folded.
func decideBalance(c *checkpoint.Checkpoint, want bool) spec.Identity {
	id := spec.Identity{ID: transform.IDPairScale, Name: "K/Q pair balance", Exact: true}
	if !want {
		id.Why = "switched off"
		return id
	}
	id.Applied = true
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

// idAngle is identity G3 with angles.
const idAngle = "G3-angle"

// others lists the identities that this version does not fold, with the reason.
func others(c *checkpoint.Checkpoint) []spec.Identity {
	norm := slices.ContainsFunc(c.Config.Layers, func(y family.Layer) bool { return y.QKNorm != family.NoQKNorm })
	angles := "not needed: the codes rotate each head anyway"
	if norm {
		angles = "not exact: the gain of a QK-norm differs within a pair"
	}
	return []spec.Identity{
		{ID: "G1", Name: "residual rotation", Exact: true, Why: "not folded by this version"},
		{ID: idAngle, Name: "K/Q pair angles", Exact: true, Why: angles},
		{ID: "G4", Name: "FFN scales", Exact: true, Why: "not folded by this version"},
		{ID: "G6", Name: "centring after RoPE", Exact: true, Why: "part of the code, applied at run time"},
	}
}

// targets of edits by identity G3, for a plan made before anything is fitted.
func balanceTargets(c *checkpoint.Checkpoint) map[string][]string {
	out := map[string][]string{}
	for l := range c.Config.Layers {
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

// MakePlan decides what becomes of every tensor in a container. With o.Cache set
// measurements will say which of the changes it lists are made.
func MakePlan(c *checkpoint.Checkpoint, to checkpoint.Container, o *Options) (*Plan, error) {
	return makePlan(c, to, o.OutType, planned(c, o))
}

func makePlan(c *checkpoint.Checkpoint, to checkpoint.Container, outtype string, ch *changes) (*Plan, error) {
	targets := ch.targets
	p := &Plan{Container: to, Pairs: rope.Half, Identities: ch.identities}
	if err := checkUnknown(c, p); err != nil {
		return nil, err
	}
	var err error
	switch {
	case to == checkpoint.GGUF && c.Container == checkpoint.GGUF:
		p.Pairs = c.Config.Pairs
		if err = p.retrofit(c, outtype, targets); err == nil {
			p.added(c, ch)
		}
	case to == checkpoint.GGUF:
		p.Pairs = c.Config.Family.GGUFPairs
		if err = p.toGGUF(c, outtype, targets); err == nil {
			p.added(c, ch)
		}
	case c.Container == checkpoint.GGUF:
		err = fmt.Errorf("%s: a GGUF file cannot be written as safetensors, because config.json and tokenizer.json are not in it; use --format gguf", c.Path)
	default:
		p.likeSource(c, targets)
		p.addedBiases(c, ch)
	}
	p.PairLayout = p.Pairs.String()
	return p, err
}

// harmless are endings of tensors that some checkpoints carry and no graph uses.
var harmless = []string{".rotary_emb.inv_freq", ".masked_bias", ".attention.bias"}

// checkUnknown refuses tensors that may belong to a graph other than the
// family's: computing without them would be silently wrong.
func checkUnknown(c *checkpoint.Checkpoint, p *Plan) error {
	for _, n := range c.Unknown {
		ok := c.Container == checkpoint.Safetensors && (n == "lm_head.weight" && c.Config.TiedEmbeddings ||
			!strings.HasPrefix(n, "model.") && !strings.HasPrefix(n, "lm_head."))
		for _, h := range harmless {
			ok = ok || strings.HasSuffix(n, h)
		}
		if !ok {
			return fmt.Errorf("%s: tensor %s is not part of the %s graph; a model that has it is not supported", c.Path, n, c.Config.Family.Name)
		}
	}
	return nil
}

// likeSource plans a safetensors copy with the source's names, types and shards.
func (p *Plan) likeSource(c *checkpoint.Checkpoint, targets map[string][]string) {
	for _, t := range c.Tensors() {
		shape := t.Shape
		if len(t.Sources) > 1 { // one matrix per expert
			shape = shape[1:]
		}
		for _, s := range t.Sources {
			x := TensorPlan{Name: s, Sources: []string{s}, Shape: shape, From: t.Type, To: t.Type, Action: Copy, tensor: t, Why: "untouched"}
			if by := targets[t.Name]; by != nil {
				x.Action, x.By, x.Why = Fold, by, "folded and rounded to its own type"
			}
			p.Tensors = append(p.Tensors, x)
		}
	}
	for _, n := range c.Unknown {
		p.Tensors = append(p.Tensors, TensorPlan{Name: n, Sources: []string{n}, Action: Copy, Why: "not part of the graph; copied as it is"})
	}
}

// retrofit plans a GGUF copy in which only edited tensors are re-encoded.
func (p *Plan) retrofit(c *checkpoint.Checkpoint, outtype string, targets map[string][]string) error {
	f := c.File()
	for i := range f.Tensors {
		src := &f.Tensors[i]
		t, _ := c.Find(src.Name)
		x := TensorPlan{Name: src.Name, Sources: []string{src.Name}, Shape: src.Shape(), From: src.Type.String(), To: src.Type.String(), Action: Copy, tensor: t, Why: "untouched"}
		if by := targets[src.Name]; by != nil {
			to, err := ggufType(src.Name, src.Shape(), outtype)
			if err != nil {
				return err
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
		p.Warnings = append(p.Warnings, fmt.Sprintf("stock GGUF runtimes ignore the sliding window of architecture %s; results differ from the source beyond %d tokens", cfg.Family.GGUFArch, window))
	}
	for _, t := range c.Tensors() {
		to, err := ggufType(t.Name, t.Shape, outtype)
		if err != nil {
			return err
		}
		x := TensorPlan{Name: t.Name, Sources: t.Sources, Shape: t.Shape, From: t.Type, To: to.String(), Action: Recode, tensor: t, Why: "re-encoded for the container"}
		x.Reorder = p.Pairs != cfg.Pairs && isRotary(t.Name)
		if by := targets[t.Name]; by != nil {
			x.Action, x.By, x.Why = Fold, by, "folded and re-encoded"
		} else if t.Type == x.To && !x.Reorder && t.Add == 0 {
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
		p.Tensors = append(p.Tensors, TensorPlan{Name: "output.weight", Sources: t.Sources, Shape: t.Shape, From: t.Type, To: to.String(), Action: Recode, tensor: t, Why: "stock readers of this architecture need a head of its own"})
	}
	full, _ := cfg.Ropes()
	if d, ok := full.FreqDivisors(); ok {
		if !cfg.Family.RopeFreqs {
			return fmt.Errorf("%s: RoPE scaling %s cannot be written for architecture %s", c.Path, full.Scaling, cfg.Family.GGUFArch)
		}
		p.Tensors = append(p.Tensors, TensorPlan{Name: ropeFreqs, Shape: []int{len(d)}, From: "-", To: "F32", Action: Recode, Why: "RoPE scaling, as frequency divisors"})
	}
	for _, n := range c.Unknown {
		p.Tensors = append(p.Tensors, TensorPlan{Name: n, Sources: []string{n}, Action: Drop, Why: "stock readers refuse tensors outside the architecture"})
	}
	return nil
}

const ropeFreqs = "rope_freqs.weight"

// checkStock refuses models that stock GGUF readers would refuse, or would
// compute otherwise because their architecture has no key for a number.
func checkStock(c *checkpoint.Checkpoint) error {
	cfg, f := c.Config, c.Config.Family
	shape, err := cfg.Uniform()
	if err == nil {
		err = cfg.Require("the GGUF writer", 0)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", c.Path, err)
	}
	full, local := cfg.Ropes()
	window, _ := cfg.Window()
	stock := 1 / sqrt(float64(shape.HeadDim))
	if n := f.WideScaleLayers; n > 0 && n == len(cfg.Layers) {
		stock = 1 / sqrt(float64(cfg.Hidden/shape.Heads))
	}
	for l := range cfg.Layers {
		y := &cfg.Layers[l]
		if d := y.Scale/stock - 1; d > 1e-6 || d < -1e-6 {
			return fmt.Errorf("%s: query_pre_attn_scalar implies an attention scale of %g, stock GGUF runtimes use %g for this shape", c.Path, y.Scale, stock)
		}
		if y.FFN.Experts > 0 && y.FFN.Renorm != f.Experts.GGUFRenorm {
			return fmt.Errorf("%s: norm_topk_prob is %v, but stock GGUF runtimes always compute architecture %s with %v", c.Path, y.FFN.Renorm, f.GGUFArch, f.Experts.GGUFRenorm)
		}
		if f.SquareAttention && y.QKNorm == family.NormLayers && y.KVHeads != y.Heads {
			return fmt.Errorf("%s: num_key_value_heads %d differs from num_attention_heads %d, which stock GGUF runtimes do not read in architecture %s", c.Path, y.KVHeads, y.Heads, f.GGUFArch)
		}
		if first := &cfg.Layers[0]; y.FFN.Size != first.FFN.Size || y.FFN.Experts != first.FFN.Experts || y.FFN.Used != first.FFN.Used ||
			y.Window > 0 && y.Window != window {
			return fmt.Errorf("%s: layer %d has an FFN or a window of another size than other layers, which the GGUF writer does not support", c.Path, l)
		}
	}
	if f.SquareAttention && shape.Heads*shape.HeadDim != cfg.Hidden {
		return fmt.Errorf("%s: %d heads with head_dim %d for hidden_size %d: stock GGUF runtimes demand that the product is the hidden size in architecture %s", c.Path, shape.Heads, shape.HeadDim, cfg.Hidden, f.GGUFArch)
	}
	if full.Scaling == rope.YaRN && (full.BetaFast != 32 || full.BetaSlow != 1) {
		return fmt.Errorf("%s: RoPE scaling yarn with beta_fast %g and beta_slow %g: stock GGUF runtimes use 32 and 1 in architecture %s", c.Path, full.BetaFast, full.BetaSlow, f.GGUFArch)
	}
	if window > 0 && f.Window.InGGUF && local.Scaling != rope.None {
		return fmt.Errorf("%s: RoPE scaling %s of sliding-window layers cannot be written for architecture %s", c.Path, local.Scaling, f.GGUFArch)
	}
	return nil
}

// isRotary says whether the rows of a tensor are ordered by rotary dimension.
func isRotary(name string) bool {
	for _, s := range []string{".attn_q.weight", ".attn_q.bias", ".attn_k.weight", ".attn_k.bias", ".attn_q_norm.weight", ".attn_k_norm.weight"} {
		if strings.HasSuffix(name, s) {
			return true
		}
	}
	return false
}

// OutTypes are the element types for matrices in GGUF.
var OutTypes = map[string]gguf.Type{"f32": gguf.TypeF32, "f16": gguf.TypeF16, "bf16": gguf.TypeBF16, "q8_0": gguf.TypeQ8_0}

// fileTypes are the values of general.file_type for OutTypes.
var fileTypes = map[string]uint32{"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}

// ggufType returns the type a tensor is written in: vectors, norm gains and
// routers stay F32, as stock converters do and stock readers expect; rows that
// blocks of 32 do not divide fall back to F16.
func ggufType(name string, shape []int, outtype string) (gguf.Type, error) {
	t, ok := OutTypes[outtype]
	if !ok {
		return 0, fmt.Errorf("outtype %q is not known (f32, f16, bf16, q8_0)", outtype)
	}
	if len(shape) < 2 || family.IsNorm(name) || strings.HasSuffix(name, "ffn_gate_inp.weight") {
		return gguf.TypeF32, nil
	}
	if n, _ := t.Block(); shape[len(shape)-1]%n != 0 {
		return gguf.TypeF16, nil
	}
	return t, nil
}

func exists(c *checkpoint.Checkpoint, name string) bool { _, ok := c.Find(name); return ok }
