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
	"cmp"
	"fmt"
	"slices"
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

	// Wraps are the model_types of multimodal checkpoints whose text_config is of this family, or of
	// one of the types TextTypes, with the class of each.
	Wraps     map[string]string
	TextTypes []string

	// GGUFPairs is how stock runtimes pair rotary dimensions for GGUFArch, HFPairs how
	// Hugging Face files do: nearly all are rope.Half.
	GGUFPairs, HFPairs rope.Layout
	// GGUFKey, if set, is a key that tells GGUF files of this family from those of
	// another with the same architecture, which stands behind it in the table.
	GGUFKey string

	QKNorm QKNorm
	// QKNormKey, if set, is a key that switches QK-norm per head on; GGUF files have its gains then.
	QKNormKey string
	// Sinks: see Attention.
	Sinks bool
	// NormAfterRoPE, BareInputs, Parallel and LayerNorm: see Attention, Layer and Config.
	NormAfterRoPE, BareInputs, Parallel, LayerNorm bool
	Activation                                     Activation
	// PostNorms: attention and FFN outputs are normalised before they are added (sandwich).
	PostNorms bool
	// ScaleEmbeddings: token embeddings are multiplied by sqrt(hidden).
	ScaleEmbeddings bool
	// NormPlusOne: Hugging Face files store norm gains minus one; GGUF files store gains.
	NormPlusOne bool
	// UntiedHead: stock readers demand an output tensor, also when embeddings are tied.
	UntiedHead bool
	// Scale is that of attention scores, where it does not depend on head_dim; 0: it does.
	Scale float64
	// Kinds: layers with a window and those without differ in head_dim and KV heads, and the last
	// layers read the keys and values of earlier ones (Gemma 4). In GGUF files rope_freqs holds for
	// layers without a window only.
	Kinds bool
	// ValueNorm, OutputScale: see Attention and Layer.
	ValueNorm, OutputScale bool
	// WideScaleLayers: stock GGUF readers scale the scores of a model with this
	// many layers by 1/sqrt(hidden/heads) instead of 1/sqrt(head_dim); 0: none.
	WideScaleLayers int
	// PartialRotary: partial_rotary_factor is a key of this family.
	PartialRotary bool
	// NoRope says which layers turn nothing.
	NoRope NoRope
	// AlphaRope: RoPE scaling "dynamic" with an alpha is a larger base (Hunyuan).
	AlphaRope bool
	// LongRope: stock GGUF readers accept tensors of divisors for short and long contexts.
	LongRope bool
	// RampKeys: stock GGUF readers heed yarn's beta_fast, beta_slow and mscale_all_dim.
	RampKeys bool
	// Multipliers: embedding_multiplier, residual_multiplier, attention_multiplier and
	// logits_scaling are keys of this family (granite).
	Multipliers bool
	// LogitScaleKey: logit_scale is one (Cohere).
	LogitScaleKey bool
	// TemperatureKey: llama_4_scaling_beta is one, among those of RoPE (Ministral 3).
	TemperatureKey bool
	// RopeFreqs: stock GGUF readers accept a rope_freqs tensor (per-pair frequency divisors).
	RopeFreqs bool
	// AttnBias says which projections may carry a bias, GGUFBias which ones may in GGUF files
	// beside those.
	AttnBias, GGUFBias Biases
	// Biases that Hugging Face files have depend on the key BiasKey if that is set, which is
	// BiasDefault where it is absent; otherwise they are as AttnBias says. OutBiasKey is
	// the key of the output projection, if that has one of its own; stock GGUF readers
	// then know no such bias.
	BiasKey, OutBiasKey string
	BiasDefault         bool
	Experts             *Experts
	Window              Window
	// ScoreKeys: query_pre_attn_scalar and final_logit_softcapping are keys of
	// this family; in others they have no meaning.
	ScoreKeys bool
	// SoftCapKey: attn_logit_softcapping is one; GGUFSoftCap: stock GGUF readers heed it.
	SoftCapKey, GGUFSoftCap bool
	// SquareAttention: stock GGUF readers demand that heads times head_dim is the
	// hidden size; EqualHeads: that there are as many KV heads as heads.
	SquareAttention, EqualHeads bool
	// Defaults stand in for keys that config.json leaves out.
	Defaults Defaults

	// DraftKey: num_nextn_predict_layers is a key of this family, in GGUF nextn_predict_layers.
	DraftKey bool
	// Drafter names a model that drafts tokens for models of this family and reads the keys and values
	// of the last layer of each kind that has its own.
	Drafter string
	// Unused are keys of config.json that models of this family carry and that its reference does
	// not read, though they name what other graphs have.
	Unused []string
	// Ignored are the beginnings of Hugging Face names that the reference leaves unread:
	// blocks that draft tokens. They are copied, and left out of GGUF files.
	Ignored []string

	// names maps a canonical name with a %d for the layer to its Hugging Face
	// template (layer %d, then expert %d).
	names []nameRule
	// stacks and ggufStacks are what files hold in place of their parts.
	stacks, ggufStacks []Stack
	// ggufNames are the names in GGUF files of canonical tensors that have another there:
	// without "blk.%d.".
	ggufNames map[string]string
}

// Biases lists which attention projections can have a bias tensor in stock readers.
type Biases struct{ Q, K, V, O bool }

// With returns those of both.
func (b Biases) With(x Biases) Biases {
	return Biases{b.Q || x.Q, b.K || x.K, b.V || x.V, b.O || x.O}
}

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
	PartialRotary      float64 // partial_rotary_factor; 1
	LogitScale         float64 // logit_scale; 1
	RopeJSON           string  // rope_parameters; none
	// hidden_size_per_layer_input, num_attention_heads, vocab_size and max_position_embeddings; none
	PerLayerInput, Heads, Vocab, Context int
	SoftCap, LogitSoftcap                float64 // attn_logit_softcapping and final_logit_softcapping; none
}

// NoRope says in which layers RoPE turns nothing. The zero value: in none.
type NoRope struct {
	// Period: no_rope_layers decides, or else no_rope_layer_interval: every layer of that
	// number turns nothing. Stock GGUF readers know no key for it and count by Period.
	Period int
	// Full: where layers have a window, those without one turn nothing.
	Full bool
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
	// Layers: they do so in models of this many layers only; 0: in all.
	Layers int
	// WithoutRoPE: without layer_types, layers that turn nothing slide.
	WithoutRoPE bool
	// Null: where sliding_window is null all layers see everything, whatever else is said.
	Null bool
	// SameRope: in GGUF files layers with a window have the RoPE of the others, scaling included;
	// elsewhere they have a plain one, whose base is that of the others unless a key or
	// GGUFBase says otherwise.
	SameRope bool
	GGUFBase float64
	// SameBase: stock GGUF readers turn layers with a window by the base of the others,
	// whatever a key says.
	SameBase bool
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
	// Optional: enable_moe_block switches the mixtures on. Beside: each runs beside an FFN of
	// intermediate_size; see FFN.
	Optional, Beside bool
	// Module is what the Hugging Face names of fused experts begin with in a layer; "mlp.experts.".
	Module string
	// Packed: Hugging Face files have tensors with gate and up of all experts by turns; see
	// HFPacked.
	Packed bool
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

// A Stack is a stored tensor that holds several canonical ones, rows after rows.
type Stack struct {
	Name  string   // with %d for the layer
	Parts []string // canonical, in the order of rows
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

// postNorms are the names of the norms behind attention and FFN.
func postNorms(attention, ffn string) []nameRule {
	return []nameRule{
		{"blk.%d.post_attention_norm.weight", layerPrefix + attention + ".weight", false},
		{"blk.%d.post_ffw_norm.weight", layerPrefix + ffn + ".weight", false},
	}
}

// packedFFN are the names of gpt-oss.
func packedFFN() []nameRule {
	m := layerPrefix + "mlp."
	return []nameRule{
		{"blk.%d.attn_sinks.weight", layerPrefix + "self_attn.sinks", false},
		{"blk.%d.ffn_gate_inp.weight", m + "router.weight", false},
		{"blk.%d.ffn_gate_inp.bias", m + "router.bias", false},
		{"blk.%d.ffn_gate_exps.weight", m + "experts.gate_up_proj", false},
		{"blk.%d.ffn_up_exps.weight", m + "experts.gate_up_proj", false},
		{"blk.%d.ffn_down_exps.weight", m + "experts.down_proj", false},
		{"blk.%d.ffn_gate_exps.bias", m + "experts.gate_up_proj_bias", false},
		{"blk.%d.ffn_up_exps.bias", m + "experts.gate_up_proj_bias", false},
		{"blk.%d.ffn_down_exps.bias", m + "experts.down_proj_bias", false},
	}
}

// choiceBias is what is added to probabilities for the choice of experts.
func choiceBias(hf string) []nameRule {
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

// renamed replaces parts of Hugging Face names: old, new, and so on.
func renamed(r []nameRule, names ...string) []nameRule {
	for i := range r {
		r[i].hf = strings.NewReplacer(names...).Replace(r[i].hf)
	}
	return r
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

	// lateFFNNorm: GGUF files name the norm in front of the FFN as Hugging Face files do.
	lateFFNNorm = map[string]string{"ffn_norm.weight": "post_attention_norm.weight"}

	// What Hugging Face files of phi3 and glm4 hold.
	qkvProj    = Stack{layerPrefix + "self_attn.qkv_proj.weight", qkvStacks[0].Parts}
	gateUpProj = Stack{layerPrefix + "mlp.gate_up_proj.weight", []string{"ffn_gate.weight", "ffn_up.weight"}}
	// What their GGUF files do.
	doubleUp = Stack{"blk.%d.ffn_up.weight", []string{"ffn_gate.weight", "ffn_up.weight"}}

	qwenWindow = Window{LayerTypes: true, FromLayer: true, NeedsFlag: true}
)

// table holds every family. Order matters only where two entries share a GGUF
// architecture: the first whose expert count fits is taken.
var table = []*Family{
	{
		Name: "llama", GGUFArch: "llama", Classes: []string{"LlamaForCausalLM"},
		GGUFPairs: rope.Interleaved, RopeFreqs: true, AttnBias: allBiases, BiasKey: "attention_bias",
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
		EqualHeads: true, Defaults: Defaults{NormEps: 1e-5, KVHeads: 16},
		names: rules(attention(noBiases, NormLayers), preNorm(), expertFFN("mlp", "gate_proj", "up_proj", "down_proj")),
	},
	{
		Name: "qwen2_moe", GGUFArch: "qwen2moe", Classes: []string{"Qwen2MoeForCausalLM"},
		AttnBias: qkvBiases, Window: Window{LayerTypes: true, TypesOnly: true, NeedsFlag: true},
		SquareAttention: true, Unused: []string{"qkv_bias"}, // the tensors say it
		Experts:  &Experts{OwnSize: true, Dense: DenseSteps, Shared: SharedOwn, SharedGate: true},
		Defaults: Defaults{SlidingWindow: 4096, MaxWindowLayers: 28, KVHeads: 16},
		names: rules(attention(qkvBiases, NoQKNorm), preNorm(), denseFFN(),
			expertFFN("mlp", "gate_proj", "up_proj", "down_proj"), sharedFFN("mlp.shared_expert"),
			[]nameRule{{"blk.%d.ffn_gate_inp_shexp.weight", layerPrefix + "mlp.shared_expert_gate.weight", false}}),
	},
	{
		Name: "glm4_moe", GGUFArch: "glm4moe", Classes: []string{"Glm4MoeForCausalLM"},
		QKNormKey: "use_qk_norm", AttnBias: qkvBiases, BiasKey: "attention_bias", PartialRotary: true, DraftKey: true,
		Experts: &Experts{Router: SigmoidTopK, ChoiceBias: true, RenormDefault: true, GGUFRouter: true, OwnSize: true,
			Dense: DenseFirst, GGUFDense: true, Shared: SharedMultiple, SharedCount: 1},
		Defaults:  Defaults{NormEps: 1e-5, KVHeads: 8, PartialRotary: 0.5},
		ggufNames: lateFFNNorm,
		names: rules(attention(qkvBiases, NormHead), preNorm(), denseFFN(),
			expertFFN("mlp", "gate_proj", "up_proj", "down_proj"),
			choiceBias("mlp.gate.e_score_correction_bias"), sharedFFN("mlp.shared_experts")),
	},
	{
		Name: "gpt_oss", GGUFArch: "gpt-oss", Classes: []string{"GptOssForCausalLM"},
		Activation: ClampedSwiGLU, Sinks: true, AttnBias: allBiases, BiasKey: "attention_bias", BiasDefault: true,
		Experts:    &Experts{Router: TopKSoftmax, RouterBias: true, Biases: true, Packed: true, GGUFOwnSize: true},
		UntiedHead: true, Window: Window{LayerTypes: true, Period: 2, InGGUF: true, SameRope: true},
		Defaults: Defaults{RopeTheta: 150000, HeadDim: 64, NormEps: 1e-5, KVHeads: 8, SlidingWindow: 128,
			RopeJSON: `{"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": false, ` +
				`"original_max_position_embeddings": 4096}`},
		ggufNames: lateFFNNorm,
		names:     rules(attention(allBiases, NoQKNorm), preNorm(), packedFFN()),
	},
	{
		Name: "ernie4_5_moe", GGUFArch: "ernie4_5-moe", Classes: []string{"Ernie4_5_MoeForCausalLM"},
		HFPairs: rope.Interleaved, GGUFPairs: rope.Interleaved,
		Experts: &Experts{ChoiceBias: true, AlwaysRenorm: true, GGUFRenorm: true, OwnSize: true, Dense: DenseRange,
			GGUFDense: true, Shared: SharedMultiple, SharedCount: 2},
		Defaults: Defaults{RopeTheta: 5e5, NormEps: 1e-5, KVHeads: 4, Tied: true},
		Ignored:  []string{"model.mtp_"},
		names: rules(attention(noBiases, NoQKNorm), preNorm(), denseFFN(),
			expertFFN("mlp", "gate_proj", "up_proj", "down_proj"),
			choiceBias("mlp.moe_statics.e_score_correction_bias"), sharedFFN("mlp.shared_experts")),
	},
	{
		Name: "hunyuan_v1_moe", GGUFArch: "hunyuan-moe", Classes: []string{"HunYuanMoEV1ForCausalLM"},
		QKNorm: NormHead, NormAfterRoPE: true, AlphaRope: true, Unused: unusedByHunyuan,
		Experts:  &Experts{AlwaysRenorm: true, GGUFRenorm: true, GGUFOwnSize: true, Shared: SharedMultiple, SharedCount: 1},
		Defaults: Defaults{NormEps: 1e-5},
		names: renamed(rules(attention(noBiases, NormHead), preNorm(), expertFFN("mlp", "gate_proj", "up_proj", "down_proj"),
			sharedFFN("mlp.shared_mlp")), "self_attn.q_norm", "self_attn.query_layernorm", "self_attn.k_norm",
			"self_attn.key_layernorm", "mlp.gate.weight", "mlp.gate.wg.weight"),
	},
	{
		Name: "gemma2", GGUFArch: "gemma2", Classes: []string{"Gemma2ForCausalLM"},
		Activation: GELUTanh, PostNorms: true, ScaleEmbeddings: true, NormPlusOne: true,
		ScoreKeys: true, SoftCapKey: true, GGUFSoftCap: true, WideScaleLayers: 46,
		Window: Window{LayerTypes: true, Period: 2, InGGUF: true, SameRope: true},
		Defaults: Defaults{HeadDim: 256, QueryPreAttnScalar: 256, SlidingWindow: 4096, Tied: true, KVHeads: 4, SoftCap: 50,
			LogitSoftcap: 30},
		names: rules(attention(noBiases, NoQKNorm), denseFFN(), []nameRule{
			{"blk.%d.post_attention_norm.weight", layerPrefix + "post_attention_layernorm.weight", false},
			{"blk.%d.ffn_norm.weight", layerPrefix + "pre_feedforward_layernorm.weight", false},
			{"blk.%d.post_ffw_norm.weight", layerPrefix + "post_feedforward_layernorm.weight", false},
		}),
	},
	{
		Name: "gemma3_text", GGUFArch: "gemma3", Classes: []string{"Gemma3ForCausalLM"},
		Wraps:  map[string]string{"gemma3": "Gemma3ForConditionalGeneration"},
		QKNorm: NormHead, Activation: GELUTanh, PostNorms: true, ScaleEmbeddings: true, NormPlusOne: true,
		ScoreKeys: true, WideScaleLayers: 62, Window: Window{LayerTypes: true, Period: 6, InGGUF: true, GGUFBase: 1e4},
		Defaults: Defaults{RopeTheta: 1e6, LocalRopeTheta: 1e4, HeadDim: 256, QueryPreAttnScalar: 256, SlidingWindow: 4096,
			Tied: true, KVHeads: 4, Heads: 8, Vocab: 262208, Context: 131072},
		names: rules(attention(noBiases, NormHead), denseFFN(), []nameRule{
			{"blk.%d.post_attention_norm.weight", layerPrefix + "post_attention_layernorm.weight", false},
			{"blk.%d.ffn_norm.weight", layerPrefix + "pre_feedforward_layernorm.weight", false},
			{"blk.%d.post_ffw_norm.weight", layerPrefix + "post_feedforward_layernorm.weight", false},
		}),
	},
	{
		Name: "seed_oss", GGUFArch: "seed_oss", Classes: []string{"SeedOssForCausalLM"},
		AttnBias: allBiases, BiasKey: "attention_bias", BiasDefault: true, OutBiasKey: "attention_out_bias",
		Defaults: Defaults{HeadDim: 128, KVHeads: 8}, ggufNames: lateFFNNorm,
		names: rules(attention(allBiases, NoQKNorm), preNorm(), denseFFN()),
	},
	{
		Name: "smollm3", GGUFArch: "smollm3", Classes: []string{"SmolLM3ForCausalLM"},
		GGUFPairs: rope.Interleaved, AttnBias: qkvBiases, BiasKey: "attention_bias", NoRope: NoRope{Period: 4},
		Window:   Window{LayerTypes: true, NeedsFlag: true, WithoutRoPE: true},
		Defaults: Defaults{RopeTheta: 2e6, KVHeads: 4, Tied: true},
		names:    rules(attention(allBiases, NoQKNorm), preNorm(), denseFFN()),
	},
	{
		Name: "granite", GGUFArch: "granite", Classes: []string{"GraniteForCausalLM"},
		GGUFPairs: rope.Interleaved, RopeFreqs: true, AttnBias: allBiases, BiasKey: "attention_bias", Multipliers: true,
		names: rules(attention(allBiases, NoQKNorm), preNorm(), denseFFN()),
	},
	{
		Name: "ministral3", GGUFArch: "mistral3", Classes: []string{"Ministral3ForCausalLM"},
		Wraps:     map[string]string{"mistral3": "Mistral3ForConditionalGeneration"},
		GGUFPairs: rope.Interleaved, GGUFBias: allBiases, RampKeys: true, TemperatureKey: true,
		Window: Window{AllLayers: true},
		Defaults: Defaults{RopeTheta: 1e6, HeadDim: 128, NormEps: 1e-5, KVHeads: 8, RopeJSON: `{"rope_type": "yarn", ` +
			`"rope_theta": 1000000.0, "factor": 16.0, "original_max_position_embeddings": 16384, "beta_fast": 32.0, ` +
			`"beta_slow": 1.0, "mscale_all_dim": 1.0, "mscale": 1.0, "llama_4_scaling_beta": 0.1}`},
		names: rules(attention(allBiases, NoQKNorm), preNorm(), denseFFN()),
	},
	{ // Mistral Small 3: the older language model in the same wrapper, of the same architecture in GGUF files.
		Name: "mistral3_text", GGUFArch: "mistral3",
		Wraps:     map[string]string{"mistral3": "Mistral3ForConditionalGeneration"},
		TextTypes: []string{"mistral"},
		GGUFPairs: rope.Interleaved, GGUFBias: allBiases, RampKeys: true, Window: Window{AllLayers: true},
		Defaults: Defaults{KVHeads: 8, SlidingWindow: 4096},
		names:    rules(attention(allBiases, NoQKNorm), preNorm(), denseFFN()),
	},
	{
		Name: "olmo3", GGUFArch: "olmo2", GGUFKey: "attention.sliding_window", Classes: []string{"Olmo3ForCausalLM"},
		QKNorm: NormLayers, PostNorms: true, BareInputs: true, UntiedHead: true, SquareAttention: true,
		Window:   Window{LayerTypes: true, Period: 4, InGGUF: true, SameBase: true},
		Defaults: Defaults{RopeTheta: 5e5, LocalRopeTheta: 5e5, NormEps: 1e-5, SlidingWindow: 4096},
		names: rules(attention(noBiases, NormLayers), denseFFN(),
			postNorms("post_attention_layernorm", "post_feedforward_layernorm")),
	},
	{
		Name: "olmo2", GGUFArch: "olmo2", Classes: []string{"Olmo2ForCausalLM"},
		QKNorm: NormLayers, PostNorms: true, BareInputs: true, UntiedHead: true, SquareAttention: true,
		Defaults: Defaults{NormEps: 1e-5},
		names: rules(attention(noBiases, NormLayers), denseFFN(),
			postNorms("post_attention_layernorm", "post_feedforward_layernorm")),
	},
	{
		Name: "ernie4_5", GGUFArch: "ernie4_5", Classes: []string{"Ernie4_5ForCausalLM", "Ernie4_5_ForCausalLM"},
		HFPairs: rope.Interleaved, GGUFPairs: rope.Interleaved, GGUFBias: allBiases,
		Defaults: Defaults{RopeTheta: 5e5, HeadDim: 128, NormEps: 1e-5, KVHeads: 2, Tied: true},
		names:    rules(attention(allBiases, NoQKNorm), preNorm(), denseFFN()),
	},
	{
		Name: "cohere2", GGUFArch: "cohere2", Classes: []string{"Cohere2ForCausalLM"},
		HFPairs: rope.Interleaved, GGUFPairs: rope.Interleaved, GGUFBias: qkvBiases,
		LayerNorm: true, Parallel: true, LogitScaleKey: true, NoRope: NoRope{Full: true}, SquareAttention: true,
		Unused:   []string{"position_embedding_type"},
		Window:   Window{LayerTypes: true, Period: 4, InGGUF: true, SameRope: true},
		Defaults: Defaults{NormEps: 1e-5, SlidingWindow: 4096, Tied: true, LogitScale: 0.0625},
		names:    rules(attention(qkvBiases, NoQKNorm), denseFFN()),
	},
	{
		Name: "exaone4", GGUFArch: "exaone4", Classes: []string{"Exaone4ForCausalLM"}, RopeFreqs: true,
		QKNorm: NormHead, PostNorms: true, BareInputs: true, NoRope: NoRope{Full: true}, SquareAttention: true,
		Window:   Window{LayerTypes: true, Period: 4, InGGUF: true, Layers: 64, Null: true, SameRope: true},
		Defaults: Defaults{NormEps: 1e-5, KVHeads: 32, SlidingWindow: 4096},
		names: rules(attention(noBiases, NormHead), denseFFN(),
			postNorms("post_attention_layernorm", "post_feedforward_layernorm")),
	},
	{
		Name: "hunyuan_v1_dense", GGUFArch: "hunyuan-dense", Classes: []string{"HunYuanDenseV1ForCausalLM"},
		QKNorm: NormHead, NormAfterRoPE: true, AlphaRope: true, Unused: unusedByHunyuan,
		Defaults: Defaults{NormEps: 1e-5},
		names: renamed(rules(attention(noBiases, NormHead), preNorm(), denseFFN()),
			"self_attn.q_norm", "self_attn.query_layernorm", "self_attn.k_norm", "self_attn.key_layernorm"),
	},
	{
		Name: "phi3", GGUFArch: "phi3", Classes: []string{"Phi3ForCausalLM"},
		GGUFBias: qkvBiases, PartialRotary: true, LongRope: true, SquareAttention: true, Window: Window{AllLayers: true},
		Defaults: Defaults{NormEps: 1e-5},
		stacks:   []Stack{qkvProj, gateUpProj}, ggufStacks: append([]Stack{doubleUp}, qkvStacks...),
		names: rules(attention(qkvBiases, NoQKNorm), preNorm(), denseFFN()),
	},
	{
		Name: "glm4", GGUFArch: "glm4", Classes: []string{"Glm4ForCausalLM"},
		HFPairs: rope.Interleaved, GGUFPairs: rope.Interleaved, PartialRotary: true, PostNorms: true,
		AttnBias: qkvBiases, BiasKey: "attention_bias", BiasDefault: true,
		Defaults: Defaults{HeadDim: 128, NormEps: 0.00000015625, KVHeads: 2, PartialRotary: 0.5},
		stacks:   []Stack{gateUpProj}, ggufStacks: []Stack{doubleUp},
		names: rules(attention(qkvBiases, NoQKNorm), preNorm(), denseFFN(),
			postNorms("post_self_attn_layernorm", "post_mlp_layernorm")),
	},
	gemma4("gemma4_text", "Gemma4ForCausalLM", map[string]string{"gemma4": "Gemma4ForConditionalGeneration"}, 512, 256),
	// What stands beside the language model has no tower here; the language model is the same, without
	// embeddings per layer and experts.
	gemma4("gemma4_unified_text", "Gemma4UnifiedForCausalLM",
		map[string]string{"gemma4_unified": "Gemma4UnifiedForConditionalGeneration"}, 1024, 0),
}

// gemma4 is the entry of Gemma 4's language models, which differ in their defaults.
func gemma4(name, class string, wraps map[string]string, window, perLayer int) *Family {
	return &Family{
		Name: name, GGUFArch: "gemma4", Classes: []string{class},
		Wraps:  wraps,
		QKNorm: NormHead, Activation: GELUTanh, PostNorms: true, ScaleEmbeddings: true, ScoreKeys: true, Scale: 1,
		Kinds: true, ValueNorm: true, OutputScale: true, RopeFreqs: true, Drafter: "gemma4-assistant",
		Window: Window{LayerTypes: true, Period: 6, InGGUF: true, GGUFBase: 1e4},
		Defaults: Defaults{HeadDim: 256, KVHeads: 4, SlidingWindow: window, PerLayerInput: perLayer, Tied: true,
			LocalRopeTheta: 1e4, RopeTheta: 1e6,
			RopeJSON: `{"full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1000000.0}, ` +
				`"sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}`},
		Experts: &Experts{Optional: true, Beside: true, Module: "experts.", AlwaysRenorm: true,
			GGUFRenorm: true, OwnSize: true},
		names: rules(attention(noBiases, NormHead), denseFFN(), []nameRule{
			{"blk.%d.post_attention_norm.weight", layerPrefix + "post_attention_layernorm.weight", false},
			{"blk.%d.ffn_norm.weight", layerPrefix + "pre_feedforward_layernorm.weight", false},
			{"blk.%d.post_ffw_norm.weight", layerPrefix + "post_feedforward_layernorm.weight", false},
			{"blk.%d.pre_ffw_norm_2.weight", layerPrefix + "pre_feedforward_layernorm_2.weight", false},
			{"blk.%d.post_ffw_norm_1.weight", layerPrefix + "post_feedforward_layernorm_1.weight", false},
			{"blk.%d.post_ffw_norm_2.weight", layerPrefix + "post_feedforward_layernorm_2.weight", false},
			{"blk.%d.ffn_gate_inp.weight", layerPrefix + "router.proj.weight", false},
			{"blk.%d.ffn_gate_inp.scale", layerPrefix + "router.scale", false},
			{"blk.%d.ffn_gate_exps.weight", layerPrefix + "experts.%d.gate_proj.weight", false},
			{"blk.%d.ffn_up_exps.weight", layerPrefix + "experts.%d.up_proj.weight", false},
			{"blk.%d.ffn_down_exps.weight", layerPrefix + "experts.%d.down_proj.weight", false},
			{"blk.%d.ffn_down_exps.scale", layerPrefix + "router.per_expert_scale", false},
			{"blk.%d.layer_output_scale.weight", layerPrefix + "layer_scalar", false},
			{"per_layer_token_embd.weight", "model.embed_tokens_per_layer.weight", false},
			{"per_layer_model_proj.weight", "model.per_layer_model_projection.weight", false},
			{"per_layer_proj_norm.weight", "model.per_layer_projection_norm.weight", false},
			{"blk.%d.inp_gate.weight", layerPrefix + "per_layer_input_gate.weight", false},
			{"blk.%d.proj.weight", layerPrefix + "per_layer_projection.weight", false},
			{"blk.%d.post_norm.weight", layerPrefix + "post_per_layer_input_norm.weight", false},
		}),
	}
}

// unusedByHunyuan are keys that come from the class of a larger family of models, see Family.Unused.
var unusedByHunyuan = []string{
	"q_lora_rank", "kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "use_mixed_mlp_moe", "moe_layer_num_skipped",
	"xdrope_section", "num_media_embeds", "max_image_size", "min_image_size", "img_max_token_num", "image_token_num", "video_start_id",
	"video_end_id", "anyres_pooling_size", "anyres_vit_max_image_size", "anyres_vit_two_views", "vit_add_patchemb_bias",
	"vit_input_resolution", "vit_mapping_type", "vit_norm_type", "vit_patch", "vit_path", "vit_remove_prenorm", "vit_shape",
	"vit_token", "vit_type", "vit_used_rms_norm", "vit_used_patchemb_bias",
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
		if class != "" && !slices.Contains(f.Classes, class) {
			return nil, format.Unsupportedf("architectures[0] is %q; of model_type %q only %s is supported", class, modelType,
				strings.Join(f.Classes, ", "))
		}
		return f, nil
	}
	return nil, format.Unsupportedf("model_type %q is not supported (known: %s)", modelType, strings.Join(Names(), ", "))
}

// mayHave says whether a model of the family can have so many experts.
func (f *Family) mayHave(experts int) bool {
	return (f.Experts != nil) == (experts > 0) || f.Experts != nil && f.Experts.Optional
}

// ByGGUFArch finds the family of a GGUF architecture; experts tells apart
// families that share one, and has says whether the file has a key.
func ByGGUFArch(arch string, experts int, has func(key string) bool) (*Family, error) {
	known := map[string]bool{}
	for _, f := range table {
		known[f.GGUFArch] = true
		if f.GGUFArch == arch && f.mayHave(experts) && (f.GGUFKey == "" || has(arch+"."+f.GGUFKey)) {
			return f, nil
		}
	}
	var names []string
	for n := range known {
		names = append(names, n)
	}
	sort.Strings(names)
	return nil, format.Unsupportedf("general.architecture %q with %d experts is not supported (known: %s); "+
		"stock llama.cpp may compute it: --engine llama", arch, experts, strings.Join(names, ", "))
}

// ByWrapper finds the family of the language model in a multimodal checkpoint: of the model_types
// of config.json and of its text_config.
func ByWrapper(modelType, class, textType string) (*Family, error) {
	for _, f := range table {
		if want, ok := f.Wraps[modelType]; ok && (textType == f.Name || slices.Contains(f.TextTypes, textType)) {
			if class != "" && class != want {
				return nil, format.Unsupportedf("architectures[0] is %q; of model_type %q only %s is supported",
					class, modelType, want)
			}
			return f, nil
		}
	}
	return nil, format.Unsupportedf("model_type %q with a text_config of model_type %q is not supported",
		modelType, textType)
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

// GGUFName returns the name of a canonical tensor in GGUF files.
func (f *Family) GGUFName(canonical string) string {
	if pattern, layer := splitLayer(canonical); layer >= 0 {
		if n, ok := f.ggufNames[strings.TrimPrefix(pattern, "blk.%d.")]; ok {
			return Name(layer, n)
		}
	}
	return canonical
}

// HFStacks returns what may hold several canonical tensors of a layer in Hugging Face files.
func (f *Family) HFStacks(layer int) []Stack { return ofLayer(f.stacks, layer) }

// GGUFStacks returns what stock GGUF files hold in place of several canonical tensors.
func (f *Family) GGUFStacks(layer int) []Stack { return ofLayer(f.ggufStacks, layer) }

// ReadStacks returns what GGUF files may hold in place of several canonical tensors: the
// projections of attention may be stacked in any family (--fuse-qkv of the stock converter).
func (f *Family) ReadStacks(layer int) []Stack {
	out := f.GGUFStacks(layer)
	for _, s := range ofLayer(qkvStacks, layer) {
		if !slices.ContainsFunc(out, func(x Stack) bool { return x.Name == s.Name }) {
			out = append(out, s)
		}
	}
	return out
}

// ofLayer fills in the layer's number.
func ofLayer(of []Stack, layer int) []Stack {
	var out []Stack
	for _, s := range of {
		x := Stack{Name: fmt.Sprintf(s.Name, layer)}
		for _, p := range s.Parts {
			x.Parts = append(x.Parts, Name(layer, p))
		}
		out = append(out, x)
	}
	return out
}

// qkvStacks is how converters stack the attention's projections.
var qkvStacks = []Stack{
	{"blk.%d.attn_qkv.weight", []string{"attn_q.weight", "attn_k.weight", "attn_v.weight"}},
	{"blk.%d.attn_qkv.bias", []string{"attn_q.bias", "attn_k.bias", "attn_v.bias"}},
}

// HFFused says where transformers 5 keeps a mixture's tensor in memory, and writes it
// when asked not to restore the older names: the same way in every family. The
// router has a name of its own; gate and up of all experts are one tensor, [experts,
// 2*ffn, hidden] with each expert's gate first, down is [experts, hidden, ffn]. The
// canonical tensor is part number part of parts of each expert's rows. ok is false
// for other tensors, and for families without experts.
func (f *Family) HFFused(canonical string) (name string, part, parts int, ok bool) {
	pattern, layer := splitLayer(canonical)
	if f.Experts == nil || f.Experts.Packed {
		return "", 0, 0, false
	}
	experts := fmt.Sprintf(layerPrefix+cmp.Or(f.Experts.Module, "mlp.experts."), layer)
	switch pattern {
	case "blk.%d.ffn_gate_inp.weight":
		// Only mixtral has another name for the module.
		names, _ := f.HFNames(canonical, 0)
		return strings.Replace(names[0], ".block_sparse_moe.", ".mlp.", 1), 0, 1, true
	case "blk.%d.ffn_gate_exps.weight":
		return experts + "gate_up_proj", 0, 2, true
	case "blk.%d.ffn_up_exps.weight":
		return experts + "gate_up_proj", 1, 2, true
	case "blk.%d.ffn_down_exps.weight":
		return experts + "down_proj", 0, 1, true
	}
	return "", 0, 0, false
}

// HFPacked says which tensor of a Hugging Face file holds an expert tensor of a family that packs
// them: of the rows of each expert those with number part, part+parts and so on.
func (f *Family) HFPacked(canonical string) (name string, part, parts int, ok bool) {
	pattern, layer := splitLayer(canonical)
	if f.Experts == nil || !f.Experts.Packed {
		return "", 0, 0, false
	}
	head, bias := strings.CutSuffix(pattern, ".bias")
	experts := fmt.Sprintf(layerPrefix+"mlp.experts.", layer)
	switch strings.TrimSuffix(head, ".weight") {
	case "blk.%d.ffn_gate_exps":
		name, part, parts = experts+"gate_up_proj", 0, 2
	case "blk.%d.ffn_up_exps":
		name, part, parts = experts+"gate_up_proj", 1, 2
	case "blk.%d.ffn_down_exps":
		name, part, parts = experts+"down_proj", 0, 1
	default:
		return "", 0, 0, false
	}
	if bias {
		name += "_bias"
	}
	return name, part, parts, true
}

// Unread says whether the reference leaves a Hugging Face tensor unread: whether it belongs to
// what drafts tokens.
func (c *Config) Unread(hf string) bool {
	for _, p := range c.Family.Ignored {
		if strings.HasPrefix(hf, p) {
			return true
		}
	}
	rest, ok := strings.CutPrefix(hf, BasePrefix+"layers.")
	number, _, _ := strings.Cut(rest, ".")
	l, err := strconv.Atoi(number)
	return ok && err == nil && l >= len(c.Layers) && l < len(c.Layers)+c.DraftLayers
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
			if c.PerLayerInput > 0 || !perLayer[r.canonical] {
				out = append(out, Tensor{r.canonical, -1, c.globalShape(r.canonical), r.optional})
			}
		}
	}
	for l := range c.Layers {
		for _, r := range c.Family.names {
			if y := &c.Layers[l]; strings.Contains(r.canonical, "%d") && y.has(l, r.canonical) {
				shape := y.shape(r.canonical, c.Hidden)
				switch {
				case !perLayer[r.canonical]:
				case c.PerLayerInput == 0:
					continue
				case r.canonical == "blk.%d.inp_gate.weight":
					shape = []int{c.PerLayerInput, c.Hidden}
				case r.canonical == "blk.%d.proj.weight":
					shape = []int{c.Hidden, c.PerLayerInput}
				}
				out = append(out, Tensor{fmt.Sprintf(r.canonical, l), l, shape, r.optional})
			}
		}
	}
	return out
}

// perLayer are the tensors of models whose layers read embeddings of their own.
var perLayer = map[string]bool{"per_layer_token_embd.weight": true, "per_layer_model_proj.weight": true,
	"per_layer_proj_norm.weight": true, "blk.%d.inp_gate.weight": true, "blk.%d.proj.weight": true,
	"blk.%d.post_norm.weight": true}

// globalShape gives the expected shape of a tensor outside the layers.
func (c *Config) globalShape(name string) []int {
	switch name {
	case "token_embd.weight", "output.weight":
		return []int{c.Vocab, c.Hidden}
	case "per_layer_token_embd.weight":
		return []int{c.Vocab, c.PerLayerInput * len(c.Layers)}
	case "per_layer_model_proj.weight":
		return []int{c.PerLayerInput * len(c.Layers), c.Hidden}
	case "per_layer_proj_norm.weight":
		return []int{c.PerLayerInput}
	}
	return []int{c.Hidden}
}

// IsNorm says whether a canonical tensor holds the gains of an RMS norm.
func IsNorm(canonical string) bool {
	return strings.HasSuffix(canonical, ".weight") && strings.Contains(canonical, "norm")
}

// LayerOf returns the layer of a canonical tensor name, -1 for a global one.
func LayerOf(canonical string) int { _, l := splitLayer(canonical); return l }

// Name builds the canonical name of a layer's tensor: Name(3, "attn_k.weight").
func Name(layer int, rest string) string { return "blk." + strconv.Itoa(layer) + "." + rest }
