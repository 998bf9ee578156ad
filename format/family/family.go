// Package family is the table of model families that phaseconv knows: one entry
// per family holds its names in both containers and what its layers are made of. From
// that and the numbers of a configuration file Config.Resolve makes a description
// of each layer (Layer), which the forward pass, caches, folds, the plan and the
// writers ask. The fields of a Family that other packages read say what stock readers
// and containers expect. Nobody asks for a family by name.
//
// Canonical tensor names are those of GGUF ("blk.3.attn_k.weight"), with shapes
// in row-major order, outermost first: attn_k.weight is [n_kv_heads*head_dim, hidden].
package family

import (
	"fmt"
	"sort"
	"strconv"
	"strings"

	"github.com/phaseconv/phaseconv/format"
	"github.com/phaseconv/phaseconv/kernels/rope"
)

// A Family describes all models with one forward graph.
type Family struct {
	Name     string // the model_type of config.json
	GGUFArch string // general.architecture
	// Classes are the config.json "architectures" values that this entry answers for.
	Classes []string

	// GGUFPairs is how stock runtimes pair rotary dimensions for GGUFArch.
	GGUFPairs rope.Layout

	QKNorm     QKNorm
	Activation Activation
	// PostNorms: attention and FFN outputs are normalised before they are added (sandwich).
	PostNorms bool
	// ScaleEmbeddings: token embeddings are multiplied by sqrt(hidden).
	ScaleEmbeddings bool
	// NormPlusOne: Hugging Face files store norm gains minus one; GGUF files store gains.
	NormPlusOne bool
	// UntiedHead: stock readers demand an output tensor, also when embeddings are tied.
	UntiedHead bool
	// WideScaleLayers: stock GGUF readers scale the scores of a model with this
	// many layers by 1/sqrt(hidden/heads) instead of 1/sqrt(head_dim); 0: none.
	WideScaleLayers int
	// RopeFreqs: stock GGUF readers accept a rope_freqs tensor (per-pair frequency divisors).
	RopeFreqs bool
	// AttnBias says which projections may carry a bias.
	AttnBias Biases
	// Biases that Hugging Face files have depend on attention_bias if BiasKey is
	// set; otherwise they are as AttnBias says.
	BiasKey bool
	Experts *Experts
	Window  Window
	// ScoreKeys: query_pre_attn_scalar and final_logit_softcapping are keys of
	// this family; in others they have no meaning.
	ScoreKeys bool
	// SquareAttention: stock GGUF readers demand that heads times head_dim is the
	// hidden size (and with NormLayers that there are as many KV heads as heads).
	SquareAttention bool
	// Defaults stand in for keys that config.json leaves out.
	Defaults Defaults

	// Ignored are the beginnings of Hugging Face names that the reference leaves unread:
	// blocks that draft tokens. They are copied, and left out of GGUF files.
	Ignored []string

	// names maps a canonical name with a %d for the layer to its Hugging Face
	// template (layer %d, then expert %d).
	names []nameRule
}

// Biases lists which attention projections can have a bias tensor in stock readers.
type Biases struct{ Q, K, V, O bool }

// Defaults are the values that the reference's configuration class of a family
// gives to keys of config.json that are absent. After the semicolon stands what
// a zero here means.
type Defaults struct {
	RopeTheta          float64 // rope_theta; 10000
	LocalRopeTheta     float64 // rope_local_base_freq; the family has one base for all layers
	HeadDim            int     // head_dim; hidden_size / num_attention_heads
	QueryPreAttnScalar float64 // query_pre_attn_scalar, where that is a key
	SlidingWindow      int     // sliding_window; none
	MaxWindowLayers    int     // max_window_layers
	NormEps            float64 // rms_norm_eps; 1e-6
	KVHeads            int     // num_key_value_heads; num_attention_heads
	Tied               bool    // tie_word_embeddings
}

// Window says in which layers sliding-window attention applies when a
// configuration gives a window. The zero value: in none.
type Window struct {
	// LayerTypes: the layer_types of a configuration decide, if present. Other
	// families ignore that key.
	LayerTypes bool
	// AllLayers: every layer slides (mistral).
	AllLayers bool
	// Period: all but every Period-th layer slide (gemma3: 6).
	Period int
	// FromLayer: layers from max_window_layers on slide (qwen).
	FromLayer bool
	// TypesOnly: a window without layer_types is refused.
	TypesOnly bool
	// NeedsFlag: the window counts only with use_sliding_window.
	NeedsFlag bool
	// InGGUF: stock GGUF runtimes apply the window; elsewhere they attend to
	// everything, and differ from the source beyond the window.
	InGGUF bool
}

// Experts describes the mixtures of a family: see FFN for what the numbers mean.
type Experts struct {
	Router                 Router
	RouterBias, ChoiceBias bool
	Biases                 bool
	// AlwaysRenorm: the top-k weights are renormalised whatever the
	// configuration says; otherwise its norm_topk_prob decides, RenormDefault if absent.
	AlwaysRenorm, RenormDefault bool
	// GGUFRenorm: what stock runtimes hard-code for the GGUF architecture; a
	// model that does otherwise cannot be written as GGUF.
	GGUFRenorm bool
	// GGUFRouter: stock runtimes read the router from keys of the file instead
	// (expert_gating_func, expert_weights_norm, expert_weights_scale), groups included.
	GGUFRouter bool
	// OwnSize: experts have an intermediate size of their own
	// (moe_intermediate_size) beside the intermediate_size of dense layers.
	OwnSize bool
	// GGUFOwnSize: GGUF files give the size of experts once more, as expert_feed_forward_length.
	GGUFOwnSize bool
	Dense       DenseLayers
	// GGUFDense: stock runtimes know layers in front of the mixtures that are dense.
	GGUFDense  bool
	Shared     SharedExpert
	SharedGate bool
	// SharedCount is the number of shared experts where the configuration names none.
	SharedCount int
}

// HasDense says whether the family's layers without mixture are named by this rule.
func (f *Family) HasDense(rule DenseLayers) bool { return f.Experts != nil && f.Experts.Dense == rule }

// DenseLayers says which keys of config.json name the layers without mixture.
type DenseLayers int

// The rules for dense layers.
const (
	NoDense    DenseLayers = iota
	DenseSteps             // all but every decoder_sparse_step-th, and those of mlp_only_layers
	DenseFirst             // the first first_k_dense_replace
	DenseRange             // moe_layer_start_index, moe_layer_end_index, moe_layer_interval
)

// SharedExpert says how large the experts are that every token goes through.
type SharedExpert int

// The rules for shared experts.
const (
	NoShared       SharedExpert = iota
	SharedOwn                   // one of shared_expert_intermediate_size
	SharedMultiple              // n_shared_experts (moe_num_shared_experts) of the size of the others
)

type nameRule struct {
	canonical string // "blk.%d.attn_q.weight"; no %d for global tensors
	hf        string // "model.layers.%d.self_attn.q_proj.weight"; a second %d is the expert
	optional  bool
}

const layerPrefix = "model.layers.%d."

// attention lists what every family here shares.
func attention(b Biases, norm QKNorm) []nameRule {
	r := []nameRule{
		{"blk.%d.attn_norm.weight", layerPrefix + "input_layernorm.weight", false},
		{"blk.%d.attn_q.weight", layerPrefix + "self_attn.q_proj.weight", false},
		{"blk.%d.attn_k.weight", layerPrefix + "self_attn.k_proj.weight", false},
		{"blk.%d.attn_v.weight", layerPrefix + "self_attn.v_proj.weight", false},
		{"blk.%d.attn_output.weight", layerPrefix + "self_attn.o_proj.weight", false},
	}
	for _, x := range []struct {
		on     bool
		gguf   string
		letter string
	}{{b.Q, "attn_q", "q"}, {b.K, "attn_k", "k"}, {b.V, "attn_v", "v"}, {b.O, "attn_output", "o"}} {
		if x.on {
			r = append(r, nameRule{"blk.%d." + x.gguf + ".bias", layerPrefix + "self_attn." + x.letter + "_proj.bias", true})
		}
	}
	if norm != NoQKNorm {
		r = append(r,
			nameRule{"blk.%d.attn_q_norm.weight", layerPrefix + "self_attn.q_norm.weight", false},
			nameRule{"blk.%d.attn_k_norm.weight", layerPrefix + "self_attn.k_norm.weight", false})
	}
	return r
}

func denseFFN() []nameRule {
	return []nameRule{
		{"blk.%d.ffn_gate.weight", layerPrefix + "mlp.gate_proj.weight", false},
		{"blk.%d.ffn_up.weight", layerPrefix + "mlp.up_proj.weight", false},
		{"blk.%d.ffn_down.weight", layerPrefix + "mlp.down_proj.weight", false},
	}
}

// expertFFN takes the module name and the names of gate, up and down inside an expert.
func expertFFN(module, gate, up, down string) []nameRule {
	e := layerPrefix + module + ".experts.%d."
	return []nameRule{
		{"blk.%d.ffn_gate_inp.weight", layerPrefix + module + ".gate.weight", false},
		{"blk.%d.ffn_gate_exps.weight", e + gate + ".weight", false},
		{"blk.%d.ffn_up_exps.weight", e + up + ".weight", false},
		{"blk.%d.ffn_down_exps.weight", e + down + ".weight", false},
	}
}

// routerBias is the bias of the choice of experts.
func routerBias(hf string) []nameRule {
	return []nameRule{{"blk.%d.exp_probs_b.bias", layerPrefix + hf, false}}
}

// sharedFFN takes the module name of the experts that every token goes through.
func sharedFFN(module string) []nameRule {
	m := layerPrefix + module + "."
	return []nameRule{
		{"blk.%d.ffn_gate_shexp.weight", m + "gate_proj.weight", false},
		{"blk.%d.ffn_up_shexp.weight", m + "up_proj.weight", false},
		{"blk.%d.ffn_down_shexp.weight", m + "down_proj.weight", false},
	}
}

func preNorm() []nameRule {
	return []nameRule{{"blk.%d.ffn_norm.weight", layerPrefix + "post_attention_layernorm.weight", false}}
}

func global() []nameRule {
	return []nameRule{
		{"token_embd.weight", "model.embed_tokens.weight", false},
		{"output_norm.weight", "model.norm.weight", false},
		{"output.weight", "lm_head.weight", true},
	}
}

func rules(parts ...[]nameRule) []nameRule {
	var out []nameRule
	for _, p := range append([][]nameRule{global()}, parts...) {
		out = append(out, p...)
	}
	return out
}

var (
	allBiases = Biases{Q: true, K: true, V: true, O: true}
	qkvBiases = Biases{Q: true, K: true, V: true}
	noBiases  = Biases{}

	qwenWindow = Window{LayerTypes: true, FromLayer: true, NeedsFlag: true}
)

// table holds every family. Order matters only where two entries share a GGUF
// architecture: the first whose expert count fits is taken.
var table = []*Family{
	{
		Name: "llama", GGUFArch: "llama", Classes: []string{"LlamaForCausalLM"},
		GGUFPairs: rope.Interleaved, RopeFreqs: true, AttnBias: allBiases, BiasKey: true,
		names: rules(attention(allBiases, NoQKNorm), preNorm(), denseFFN()),
	},
	{
		Name: "mistral", GGUFArch: "llama", Classes: []string{"MistralForCausalLM"},
		GGUFPairs: rope.Interleaved, RopeFreqs: true, AttnBias: noBiases, Window: Window{AllLayers: true},
		Defaults: Defaults{SlidingWindow: 4096, KVHeads: 8},
		names:    rules(attention(noBiases, NoQKNorm), preNorm(), denseFFN()),
	},
	{
		Name: "mixtral", GGUFArch: "llama", Classes: []string{"MixtralForCausalLM"},
		GGUFPairs: rope.Interleaved, RopeFreqs: true, AttnBias: noBiases, Window: Window{AllLayers: true},
		Experts:  &Experts{AlwaysRenorm: true, GGUFRenorm: true},
		Defaults: Defaults{RopeTheta: 1e6, NormEps: 1e-5, KVHeads: 8},
		names:    rules(attention(noBiases, NoQKNorm), preNorm(), expertFFN("block_sparse_moe", "w1", "w3", "w2")),
	},
	{
		Name: "qwen2", GGUFArch: "qwen2", Classes: []string{"Qwen2ForCausalLM"},
		AttnBias: qkvBiases, Window: qwenWindow, SquareAttention: true,
		Defaults: Defaults{SlidingWindow: 4096, MaxWindowLayers: 28, KVHeads: 32},
		names:    rules(attention(qkvBiases, NoQKNorm), preNorm(), denseFFN()),
	},
	{
		Name: "qwen3", GGUFArch: "qwen3", Classes: []string{"Qwen3ForCausalLM"},
		QKNorm: NormHead, AttnBias: noBiases, Window: qwenWindow,
		Defaults: Defaults{HeadDim: 128, SlidingWindow: 4096, MaxWindowLayers: 28, KVHeads: 32},
		names:    rules(attention(noBiases, NormHead), preNorm(), denseFFN()),
	},
	{
		Name: "qwen3_moe", GGUFArch: "qwen3moe", Classes: []string{"Qwen3MoeForCausalLM"},
		QKNorm: NormHead, AttnBias: noBiases, Window: Window{AllLayers: true, NeedsFlag: true},
		Experts:  &Experts{GGUFRenorm: true, OwnSize: true},
		Defaults: Defaults{SlidingWindow: 4096, KVHeads: 4},
		names:    rules(attention(noBiases, NormHead), preNorm(), expertFFN("mlp", "gate_proj", "up_proj", "down_proj")),
	},
	{
		Name: "olmoe", GGUFArch: "olmoe", Classes: []string{"OlmoeForCausalLM"},
		QKNorm: NormLayers, AttnBias: noBiases, Experts: &Experts{GGUFRenorm: false}, UntiedHead: true, SquareAttention: true,
		Defaults: Defaults{NormEps: 1e-5, KVHeads: 16},
		names:    rules(attention(noBiases, NormLayers), preNorm(), expertFFN("mlp", "gate_proj", "up_proj", "down_proj")),
	},
	{
		Name: "qwen2_moe", GGUFArch: "qwen2moe", Classes: []string{"Qwen2MoeForCausalLM"},
		AttnBias: qkvBiases, Window: Window{LayerTypes: true, TypesOnly: true, NeedsFlag: true},
		SquareAttention: true,
		Experts:         &Experts{OwnSize: true, Dense: DenseSteps, Shared: SharedOwn, SharedGate: true},
		Defaults:        Defaults{SlidingWindow: 4096, MaxWindowLayers: 28, KVHeads: 16},
		names: rules(attention(qkvBiases, NoQKNorm), preNorm(), denseFFN(), expertFFN("mlp", "gate_proj", "up_proj", "down_proj"),
			sharedFFN("mlp.shared_expert"),
			[]nameRule{{"blk.%d.ffn_gate_inp_shexp.weight", layerPrefix + "mlp.shared_expert_gate.weight", false}}),
	},
	{
		Name: "gemma3_text", GGUFArch: "gemma3", Classes: []string{"Gemma3ForCausalLM"},
		QKNorm: NormHead, Activation: GELUTanh, PostNorms: true, ScaleEmbeddings: true, NormPlusOne: true,
		ScoreKeys: true, WideScaleLayers: 62, Window: Window{LayerTypes: true, Period: 6, InGGUF: true},
		Defaults: Defaults{RopeTheta: 1e6, LocalRopeTheta: 1e4, HeadDim: 256, QueryPreAttnScalar: 256, SlidingWindow: 4096,
			Tied: true, KVHeads: 4},
		names: rules(attention(noBiases, NormHead), denseFFN(), []nameRule{
			{"blk.%d.post_attention_norm.weight", layerPrefix + "post_attention_layernorm.weight", false},
			{"blk.%d.ffn_norm.weight", layerPrefix + "pre_feedforward_layernorm.weight", false},
			{"blk.%d.post_ffw_norm.weight", layerPrefix + "post_feedforward_layernorm.weight", false},
		}),
	},
}

// Names lists the known families, sorted, for messages.
func Names() []string {
	var n []string
	for _, f := range table {
		n = append(n, f.Name)
	}
	sort.Strings(n)
	return n
}

// ByModelType finds the family of a config.json. class is the first entry of
// "architectures" ("" when absent) and must agree with model_type: a model with
// another head (classification, embedding) has another graph.
func ByModelType(modelType, class string) (*Family, error) {
	for _, f := range table {
		if f.Name != modelType {
			continue
		}
		if class != "" && !contains(f.Classes, class) {
			return nil, format.Unsupportedf("architectures[0] is %q; of model_type %q only %s is supported", class, modelType,
				strings.Join(f.Classes, ", "))
		}
		return f, nil
	}
	return nil, format.Unsupportedf("model_type %q is not supported (known: %s)", modelType, strings.Join(Names(), ", "))
}

// ByGGUFArch finds the family of a GGUF architecture; experts tells apart
// families that share one.
func ByGGUFArch(arch string, experts int) (*Family, error) {
	known := map[string]bool{}
	for _, f := range table {
		known[f.GGUFArch] = true
		if f.GGUFArch == arch && (f.Experts != nil) == (experts > 0) {
			return f, nil
		}
	}
	var names []string
	for n := range known {
		names = append(names, n)
	}
	sort.Strings(names)
	return nil, format.Unsupportedf("general.architecture %q with %d experts is not supported (known: %s)", arch, experts,
		strings.Join(names, ", "))
}

func contains(s []string, x string) bool {
	for _, v := range s {
		if v == x {
			return true
		}
	}
	return false
}

// HFNames returns the Hugging Face tensor names that make up one canonical
// tensor: one name, or one per expert for stacked experts. ok is false for a
// name that the family does not have.
func (f *Family) HFNames(canonical string, experts int) (names []string, ok bool) {
	pattern, layer := splitLayer(canonical)
	for _, r := range f.names {
		if r.canonical != pattern {
			continue
		}
		switch strings.Count(r.hf, "%d") {
		case 0:
			return []string{r.hf}, true
		case 1:
			return []string{fmt.Sprintf(r.hf, layer)}, true
		}
		for e := range experts {
			names = append(names, fmt.Sprintf(r.hf, layer, e))
		}
		return names, true
	}
	return nil, false
}

// HFFused says where transformers 5 keeps a mixture's tensor in memory, and writes it
// when asked not to restore the older names: the same way in every family. The
// router has a name of its own; gate and up of all experts are one tensor, [experts,
// 2*ffn, hidden] with each expert's gate first, down is [experts, hidden, ffn]. The
// canonical tensor is part number part of parts of each expert's rows. ok is false
// for other tensors, and for families without experts.
func (f *Family) HFFused(canonical string) (name string, part, parts int, ok bool) {
	pattern, layer := splitLayer(canonical)
	if f.Experts == nil {
		return "", 0, 0, false
	}
	mlp := fmt.Sprintf(layerPrefix+"mlp.", layer)
	switch pattern {
	case "blk.%d.ffn_gate_inp.weight":
		// Only mixtral has another name for the module.
		names, _ := f.HFNames(canonical, 0)
		return strings.Replace(names[0], ".block_sparse_moe.", ".mlp.", 1), 0, 1, true
	case "blk.%d.ffn_gate_exps.weight":
		return mlp + "experts.gate_up_proj", 0, 2, true
	case "blk.%d.ffn_up_exps.weight":
		return mlp + "experts.gate_up_proj", 1, 2, true
	case "blk.%d.ffn_down_exps.weight":
		return mlp + "experts.down_proj", 0, 1, true
	}
	return "", 0, 0, false
}

// BasePrefix is what the Hugging Face names of all tensors but the head begin with.
// A checkpoint of the base class, without a head, is saved without it.
const BasePrefix = "model."

// splitLayer turns "blk.3.attn_q.weight" into ("blk.%d.attn_q.weight", 3).
func splitLayer(name string) (pattern string, layer int) {
	rest, ok := strings.CutPrefix(name, "blk.")
	if !ok {
		return name, -1
	}
	num, tail, ok := strings.Cut(rest, ".")
	l, err := strconv.Atoi(num)
	if !ok || err != nil {
		return name, -1
	}
	return "blk.%d." + tail, l
}

// A Tensor is one canonical tensor that a model of the family has.
type Tensor struct {
	Name     string
	Layer    int   // -1 for global tensors
	Shape    []int // row-major, outermost first
	Optional bool
}

// Tensors lists all canonical tensors of a model with configuration c, globals
// first, then layer by layer. Optional ones (biases, a head of its own) are
// marked. What a layer's description rules out, such as a bias, is not among them.
func (c *Config) Tensors() []Tensor {
	var out []Tensor
	for _, r := range c.Family.names {
		if !strings.Contains(r.canonical, "%d") {
			out = append(out, Tensor{r.canonical, -1, c.globalShape(r.canonical), r.optional})
		}
	}
	for l := range c.Layers {
		for _, r := range c.Family.names {
			if y := &c.Layers[l]; strings.Contains(r.canonical, "%d") && y.has(l, r.canonical) {
				out = append(out, Tensor{fmt.Sprintf(r.canonical, l), l, y.shape(r.canonical, c.Hidden), r.optional})
			}
		}
	}
	return out
}

// globalShape gives the expected shape of a tensor outside the layers.
func (c *Config) globalShape(name string) []int {
	switch name {
	case "token_embd.weight", "output.weight":
		return []int{c.Vocab, c.Hidden}
	}
	return []int{c.Hidden}
}

// IsNorm says whether a canonical tensor holds the gains of an RMS norm.
func IsNorm(canonical string) bool { return strings.HasSuffix(canonical, "norm.weight") }

// LayerOf returns the layer of a canonical tensor name, -1 for a global one.
func LayerOf(canonical string) int { _, l := splitLayer(canonical); return l }

// Name builds the canonical name of a layer's tensor: Name(3, "attn_k.weight").
func Name(layer int, rest string) string { return "blk." + strconv.Itoa(layer) + "." + rest }
