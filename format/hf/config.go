// Package hf reads the configuration of Hugging Face checkpoint folders.
package hf

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/phaseconv/phaseconv/format"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/format/jsonx"
	"github.com/phaseconv/phaseconv/format/placeholder"
	"github.com/phaseconv/phaseconv/kernels/fmath"
	"github.com/phaseconv/phaseconv/kernels/rope"
)

// ConfigName is the file that makes a folder a checkpoint.
const ConfigName = "config.json"

// MaxConfig bounds the size of config.json in bytes.
const MaxConfig = 16 << 20

// config mirrors the keys of config.json that determine the graph. Pointers
// tell an absent key from a zero.
type config struct {
	ModelType string `json:"model_type"`
	// TextConfig is the language model's configuration in a multimodal checkpoint.
	TextConfig    json.RawMessage `json:"text_config"`
	Architectures []string        `json:"architectures"`

	HiddenSize       int               `json:"hidden_size"`
	Layers           int               `json:"num_hidden_layers"`
	Heads            *int              `json:"num_attention_heads"`
	KVHeads          nullable[int]     `json:"num_key_value_heads"`
	HeadDim          *int              `json:"head_dim"`
	IntermediateSize int               `json:"intermediate_size"`
	VocabSize        *int              `json:"vocab_size"`
	MaxPositions     *int              `json:"max_position_embeddings"`
	NormEps          nullable[float64] `json:"rms_norm_eps"`
	Tied             *bool             `json:"tie_word_embeddings"`
	HiddenAct        string            `json:"hidden_act"`
	HiddenActivation string            `json:"hidden_activation"`
	BOS              tokenID           `json:"bos_token_id"`
	EOS              tokenID           `json:"eos_token_id"`

	NormEpsLayer nullable[float64] `json:"layer_norm_eps"` // of families with LayerNorm

	EmbeddingMultiplier *float64 `json:"embedding_multiplier"`
	ResidualMultiplier  *float64 `json:"residual_multiplier"`
	AttentionMultiplier *float64 `json:"attention_multiplier"`
	LogitsScaling       *float64 `json:"logits_scaling"`
	LogitScale          *float64 `json:"logit_scale"`
	NoRopeLayers        []int    `json:"no_rope_layers"`
	NoRopeInterval      *int     `json:"no_rope_layer_interval"`

	// Of families whose layers are of two kinds.
	GlobalHeadDim  *int                      `json:"global_head_dim"`
	GlobalKVHeads  *int                      `json:"num_global_key_value_heads"`
	KEqualsV       *bool                     `json:"attention_k_eq_v"`
	SharedKVLayers *int                      `json:"num_kv_shared_layers"`
	DoubleWide     *bool                     `json:"use_double_wide_mlp"`
	PerLayerInput  *int                      `json:"hidden_size_per_layer_input"`
	PerLayerVocab  *int                      `json:"vocab_size_per_layer_input"`
	MoEBlock       *bool                     `json:"enable_moe_block"`
	PerLayerConfig map[string]map[string]int `json:"per_layer_config"`

	RopeTheta      *float64        `json:"rope_theta"`
	RopeLocalTheta *float64        `json:"rope_local_base_freq"`
	RopeScaling    json.RawMessage `json:"rope_scaling"`
	// RopeParameters is the newer spelling: one object, or one per layer type.
	RopeParameters json.RawMessage `json:"rope_parameters"`
	PartialRotary  *float64        `json:"partial_rotary_factor"`
	OriginalMax    *int            `json:"original_max_position_embeddings"`

	SlidingWindow    nullable[int] `json:"sliding_window"`
	UseSlidingWindow *bool         `json:"use_sliding_window"`
	MaxWindowLayers  *int          `json:"max_window_layers"`
	// SlidingWindowPattern is a number, or letters such as LLLG.
	SlidingWindowPattern json.RawMessage `json:"sliding_window_pattern"`
	LayerTypes           []string        `json:"layer_types"`

	QueryPreAttnScalar *float64          `json:"query_pre_attn_scalar"`
	AttnLogitSoftcap   nullable[float64] `json:"attn_logit_softcapping"`
	FinalLogitSoftcap  nullable[float64] `json:"final_logit_softcapping"`
	// BidirectionalAttn is a flag, or says of what: "vision", which leaves text causal, or "all".
	BidirectionalAttn json.RawMessage `json:"use_bidirectional_attention"`

	Experts         *int    `json:"num_local_experts"`
	NumExperts      *int    `json:"num_experts"`
	ExpertsPerTok   *int    `json:"num_experts_per_tok"`
	MoEIntermediate layered `json:"moe_intermediate_size"`
	NormTopK        *bool   `json:"norm_topk_prob"`
	SparseStep      *int    `json:"decoder_sparse_step"`
	MLPOnlyLayers   []int   `json:"mlp_only_layers"`

	// The same numbers in the words of other families; see experts.
	RoutedExperts *int     `json:"n_routed_experts"`
	MoEExperts    *int     `json:"moe_num_experts"`
	MoEK          *int     `json:"moe_k"`
	MoETopK       layered  `json:"moe_topk"`
	TopKExperts   *int     `json:"top_k_experts"`
	SharedSize    *int     `json:"shared_expert_intermediate_size"`
	SharedExperts *int     `json:"n_shared_experts"`
	MoEShared     *int     `json:"moe_num_shared_experts"`
	SharedLayered layered  `json:"num_shared_expert"`
	Groups        *int     `json:"n_group"`
	GroupsUsed    *int     `json:"topk_group"`
	RoutedScale   *float64 `json:"routed_scaling_factor"`
	FirstDense    *int     `json:"first_k_dense_replace"`
	MoEStart      *int     `json:"moe_layer_start_index"`
	MoEEnd        *int     `json:"moe_layer_end_index"`
	MoEInterval   *int     `json:"moe_layer_interval"`
	DraftLayers   *int     `json:"num_nextn_predict_layers"`
	SwiGLUAlpha   *float64 `json:"swiglu_alpha"`
	SwiGLULimit   *float64 `json:"swiglu_limit"`

	ClipQKV       *float64 `json:"clip_qkv"`
	MLPBias       *bool    `json:"mlp_bias"`
	AttentionBias *bool    `json:"attention_bias"`
	// AttentionOutBias is seed_oss's, for the output projection.
	AttentionOutBias *bool `json:"attention_out_bias"`

	UseQKNorm *bool `json:"use_qk_norm"`
	UseBias   *bool `json:"use_bias"` // of all projections (ERNIE)

	Quantization json.RawMessage `json:"quantization_config"`
	IsCausal     *bool           `json:"is_causal"`
}

type ropeScaling struct {
	Type        string   `json:"type"`
	RopeType    string   `json:"rope_type"`
	Theta       *float64 `json:"rope_theta"`
	Factor      *float64 `json:"factor"`
	Original    *int     `json:"original_max_position_embeddings"`
	LowFreq     *float64 `json:"low_freq_factor"`
	HighFreq    *float64 `json:"high_freq_factor"`
	BetaFast    *float64 `json:"beta_fast"`
	BetaSlow    *float64 `json:"beta_slow"`
	AttnFactor  *float64 `json:"attention_factor"`
	MScale      *float64 `json:"mscale"`
	MScaleAll   *float64 `json:"mscale_all_dim"`
	Truncate    *bool    `json:"truncate"`
	Partial     *float64 `json:"partial_rotary_factor"`
	ExtrapScale *float64 `json:"extrapolation_factor"`
	Alpha       *float64 `json:"alpha"`
	Temperature *float64 `json:"llama_4_scaling_beta"`
	// Sections, of positions in pictures, are refused.
	Sections json.RawMessage `json:"mrope_section"`
	// Divisors of frequencies, for longrope.
	Short []float64 `json:"short_factor"`
	Long  []float64 `json:"long_factor"`
	// MaxPositions, as in Ministral 3, says what max_position_embeddings does.
	MaxPositions *int `json:"max_position_embeddings"`
}

// nullable tells an absent key from one that is null: defaults are for the first.
type nullable[T any] struct {
	present bool
	value   *T
}

func (n *nullable[T]) UnmarshalJSON(b []byte) error {
	n.present = true
	return jsonx.Unmarshal(b, &n.value)
}

// layered accepts a number, or a list that has the same one for each layer.
type layered struct{ value *int }

func (n *layered) UnmarshalJSON(b []byte) error {
	if bytes.Equal(b, []byte("null")) || jsonx.Unmarshal(b, &n.value) == nil {
		return nil
	}
	var list []int
	if err := jsonx.Unmarshal(b, &list); err != nil {
		return fmt.Errorf("%s is neither a number nor a list of numbers", clip(b))
	}
	for _, x := range list {
		if x != list[0] {
			return format.Unsupportedf("the list %s has several numbers; layers whose experts differ are not supported", clip(b))
		}
		n.value = &list[0]
	}
	return nil
}

// tokenID accepts a number, a list of numbers (the first counts) or null.
type tokenID struct {
	set bool
	id  int
}

func (t *tokenID) UnmarshalJSON(b []byte) error {
	if bytes.Equal(b, []byte("null")) {
		return nil
	}
	if jsonx.Unmarshal(b, &t.id) == nil {
		t.set = true
		return nil
	}
	var list []int
	if err := jsonx.Unmarshal(b, &list); err != nil {
		return fmt.Errorf("token id %s is neither a number nor a list of numbers", clip(b))
	}
	if len(list) > 0 {
		t.set, t.id = true, list[0]
	}
	return nil
}

func (t tokenID) value() int {
	if !t.set {
		return -1
	}
	return t.id
}

func clip(b []byte) string {
	if len(b) > 40 {
		return string(b[:40]) + "..."
	}
	return string(b)
}

// ReadConfig reads dir/config.json. It refuses what the forward graphs of
// phaseconv would compute wrongly, by the name of the key.
func ReadConfig(dir string) (*family.Config, error) {
	raw, err := ReadRaw(dir)
	if err != nil {
		return nil, err
	}
	c, err := ParseConfig(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, ConfigName), err)
	}
	return c, nil
}

// IsFolder says whether dir is a Hugging Face checkpoint: whether it has a config.json.
func IsFolder(dir string) (bool, error) {
	_, err := os.Stat(filepath.Join(dir, ConfigName))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// ReadRaw returns the bytes of dir/config.json, at most MaxConfig of them.
func ReadRaw(dir string) ([]byte, error) {
	path := filepath.Join(dir, ConfigName)
	raw, err := format.ReadFile(path, MaxConfig)
	if err != nil {
		return nil, err
	}
	if err := placeholder.Check(path, raw); err != nil {
		return nil, err
	}
	return raw, nil
}

// ParseConfig is ReadConfig for the bytes of a config.json.
func ParseConfig(raw []byte) (*family.Config, error) {
	c, err := parseConfig(raw)
	return c, format.Broken(err)
}

func parseConfig(raw []byte) (*family.Config, error) {
	var h config
	if err := jsonx.Unmarshal(raw, &h); err != nil {
		return nil, fmt.Errorf("not a valid configuration: %w", err)
	}
	class := ""
	if len(h.Architectures) > 0 {
		class = h.Architectures[0]
	}
	var fam *family.Family
	var err error
	wrapped, text := isSet(h.TextConfig), raw // text is the language model's
	if wrapped {
		text = h.TextConfig
	}
	if wrapped {
		fam, err = h.unwrap(class)
	} else {
		fam, err = family.ByModelType(h.ModelType, class)
	}
	if err != nil {
		return nil, err
	}
	if err = h.refuse(fam); err != nil {
		return nil, err
	}
	if err = refuseGraphKeys(text, fam); err != nil {
		return nil, err
	}
	c := &family.Config{
		Family: fam, Hidden: h.HiddenSize, Vocab: or(h.VocabSize, fam.Defaults.Vocab),
		Context: or(h.MaxPositions, fam.Defaults.Context),
		NormEps: or(h.NormEps.value, nonzero(fam.Defaults.NormEps, 1e-6)), Pairs: fam.HFPairs,
		Wrapped: wrapped, TiedEmbeddings: or(h.Tied, fam.Defaults.Tied), BOS: h.BOS.value(), EOS: h.EOS.value(),
	}
	p := &family.Params{Layers: h.Layers, Heads: or(h.Heads, fam.Defaults.Heads)}
	p.KVHeads = or(h.KVHeads.value, p.Heads)
	p.FFN.Size = h.IntermediateSize
	if d := fam.Defaults.KVHeads; d > 0 && !h.KVHeads.present {
		p.KVHeads = d
	}
	if p.Heads < 1 {
		return nil, fmt.Errorf("num_attention_heads is %d, expected at least 1", p.Heads)
	}
	p.AttnBias = h.biases(fam)
	p.HeadDim = or(h.HeadDim, nonzero(fam.Defaults.HeadDim, c.Hidden/p.Heads))
	if fam.LayerNorm {
		c.NormEps = or(h.NormEpsLayer.value, fam.Defaults.NormEps)
	}
	if fam.Multipliers {
		c.EmbeddingScale, p.ResidualScale = or(h.EmbeddingMultiplier, 1), or(h.ResidualMultiplier, 1)
		c.LogitScale = 1 / or(h.LogitsScaling, 1)
	}
	if fam.LogitScaleKey {
		c.LogitScale = or(h.LogitScale, nonzero(fam.Defaults.LogitScale, 1))
	}
	if p.NoRope, err = h.noRope(fam, p.Layers); err != nil {
		return nil, err
	}
	p.AttnScale = 1 / math.Sqrt(or(h.QueryPreAttnScalar, nonzero(fam.Defaults.QueryPreAttnScalar, float64(p.HeadDim))))
	if fam.Multipliers {
		p.AttnScale = or(h.AttentionMultiplier, 1)
	}
	if fam.Scale != 0 {
		p.AttnScale = fam.Scale
	}
	if err := h.kinds(c, p); err != nil {
		return nil, err
	}
	if c.LogitSoftcap = or(h.FinalLogitSoftcap.value, 0); !h.FinalLogitSoftcap.present {
		c.LogitSoftcap = fam.Defaults.LogitSoftcap
	}
	if p.SoftCap = or(h.AttnLogitSoftcap.value, 0); !h.AttnLogitSoftcap.present {
		p.SoftCap = fam.Defaults.SoftCap
	}
	if fam.QKNormKey != "" && or(h.UseQKNorm, false) {
		p.QKNorm = family.NormHead
	}
	if fam.DraftKey {
		c.DraftLayers = or(h.DraftLayers, 1)
	}
	if fam.Experts != nil && (!fam.Experts.Optional || or(h.MoEBlock, false)) {
		if err := h.experts(c, p); err != nil {
			return nil, err
		}
	}
	if err := h.sliding(fam, p); err != nil {
		return nil, err
	}
	if err := h.rope(c, p); err != nil {
		return nil, err
	}
	if err := c.Resolve(*p); err != nil {
		return nil, err
	}
	return c, nil
}

// unwrap replaces the configuration of a multimodal checkpoint by that of its language model.
// What decides about the whole checkpoint stays where text_config leaves it out.
func (h *config) unwrap(class string) (*family.Family, error) {
	var text config
	if err := jsonx.Unmarshal(h.TextConfig, &text); err != nil {
		return nil, fmt.Errorf("text_config: %w", err)
	}
	fam, err := family.ByWrapper(h.ModelType, class, text.ModelType)
	if err != nil {
		return nil, err
	}
	if h.Tied != nil {
		text.Tied = h.Tied
	}
	if isSet(h.Quantization) {
		text.Quantization = h.Quantization
	}
	if !text.BOS.set {
		text.BOS = h.BOS
	}
	if !text.EOS.set {
		text.EOS = h.EOS
	}
	*h = text
	return fam, nil
}

func or[T any](p *T, def T) T {
	if p == nil {
		return def
	}
	return *p
}

func nonzero[T int | float64](x, def T) T {
	if x == 0 {
		return def
	}
	return x
}

// isSet says whether a raw value is there and not null.
func isSet(raw json.RawMessage) bool {
	return len(raw) > 0 && !bytes.Equal(raw, []byte("null"))
}

// mxfp4 says whether the weights are quantised in the way that is read: experts of families that
// pack them, as blocks and scales.
func (h *config) mxfp4(f *family.Family) bool {
	var q struct {
		Method string `json:"quant_method"`
	}
	return f.Experts != nil && f.Experts.Packed && jsonx.Unmarshal(h.Quantization, &q) == nil && q.Method == "mxfp4"
}

// refuse names each key whose meaning the forward graph does not implement, and
// each that must not be guessed.
func (h *config) refuse(f *family.Family) error {
	act := h.HiddenAct
	if act == "" || h.HiddenActivation != "" {
		act = h.HiddenActivation
	}
	want := map[family.Activation][]string{family.SiLU: {"silu", "swish"},
		family.GELUTanh: {"gelu_pytorch_tanh"}, family.ClampedSwiGLU: {"silu"}}[f.Activation]
	if act != "" && act != want[0] && act != want[len(want)-1] {
		return format.Unsupportedf("hidden activation %q is not supported for %s (expected %s)", act, f.Name, want[0])
	}
	unsupported := func(key string, on bool) error {
		if on {
			return format.Unsupportedf("%s is set, which phaseconv does not support for %s", key, f.Name)
		}
		return nil
	}
	if h.NormEps.present && h.NormEps.value == nil {
		return fmt.Errorf("rms_norm_eps is null, expected a small positive number")
	}
	for _, c := range []struct {
		key string
		on  bool
	}{
		{"quantization_config (already quantised weights)", isSet(h.Quantization) && !h.mxfp4(f)},
		{"swiglu_alpha", or(h.SwiGLUAlpha, family.ClampAlpha) != family.ClampAlpha},
		{"swiglu_limit", or(h.SwiGLULimit, family.ClampLimit) != family.ClampLimit},
		{"partial_rotary_factor", h.PartialRotary != nil && *h.PartialRotary != 1 && !f.PartialRotary},
		{"embedding_multiplier", or(h.EmbeddingMultiplier, 1) != 1 && !f.Multipliers},
		{"residual_multiplier", or(h.ResidualMultiplier, 1) != 1 && !f.Multipliers},
		{"attention_multiplier", h.AttentionMultiplier != nil && !f.Multipliers},
		{"logits_scaling", or(h.LogitsScaling, 1) != 1 && !f.Multipliers},
		{"logit_scale", or(h.LogitScale, 1) != 1 && !f.LogitScaleKey},
		{"no_rope_layers", slices.Contains(h.NoRopeLayers, 0) && f.NoRope.Period == 0},
		{"attn_logit_softcapping", or(h.AttnLogitSoftcap.value, 0) != 0 && !f.SoftCapKey},
		{"use_bidirectional_attention", isSet(h.BidirectionalAttn) && string(h.BidirectionalAttn) != "false" &&
			(!f.Kinds || string(h.BidirectionalAttn) != `"vision"`)},
		{"is_causal = false", !or(h.IsCausal, true)},
		{"clip_qkv", h.ClipQKV != nil},
		{"mlp_bias", or(h.MLPBias, false)},
		{"attention_bias", or(h.AttentionBias, false) && f.AttnBias == family.Biases{}},
		{"query_pre_attn_scalar", h.QueryPreAttnScalar != nil && !f.ScoreKeys},
		{"final_logit_softcapping", or(h.FinalLogitSoftcap.value, 0) != 0 && !f.ScoreKeys},
		{"use_qk_norm", or(h.UseQKNorm, false) && f.QKNormKey == "" && f.QKNorm == family.NoQKNorm},
		{"use_bias", or(h.UseBias, false)},
		{"mlp_only_layers", len(h.MLPOnlyLayers) > 0 && !f.HasDense(family.DenseSteps)},
		{"decoder_sparse_step", or(h.SparseStep, 1) != 1 && !f.HasDense(family.DenseSteps)},
	} {
		if err := unsupported(c.key, c.on); err != nil {
			return err
		}
	}
	return nil
}

// kinds reads what tells layers without a window from those with one, and what the last layers
// share.
func (h *config) kinds(c *family.Config, p *family.Params) error {
	f := c.Family
	for _, x := range []struct {
		key string
		on  bool
	}{
		{"global_head_dim", h.GlobalHeadDim != nil}, {"num_global_key_value_heads", h.GlobalKVHeads != nil},
		{"attention_k_eq_v", or(h.KEqualsV, false)}, {"num_kv_shared_layers", or(h.SharedKVLayers, 0) != 0},
		{"use_double_wide_mlp", or(h.DoubleWide, false)}, {"hidden_size_per_layer_input", or(h.PerLayerInput, 0) != 0},
		{"per_layer_config", len(h.PerLayerConfig) > 0},
	} {
		if x.on && !f.Kinds {
			return format.Unsupportedf("%s is set, which phaseconv does not support for %s", x.key, f.Name)
		}
	}
	if or(h.MoEBlock, false) && (f.Experts == nil || !f.Experts.Optional) {
		return format.Unsupportedf("enable_moe_block is set, which phaseconv does not support for %s", f.Name)
	}
	if !f.Kinds {
		return nil
	}
	p.FullHeadDim, p.FullValuesAreKeys = or(h.GlobalHeadDim, 512), or(h.KEqualsV, false)
	if p.FullValuesAreKeys {
		p.FullKVHeads = or(h.GlobalKVHeads, 0)
	}
	for layer, keys := range h.PerLayerConfig {
		for k, v := range keys {
			switch k {
			case "head_dim":
				p.FullHeadDim = v
			case "num_key_value_heads":
				p.FullKVHeads = v
			default:
				return format.Unsupportedf("per_layer_config has %s for layer %s, which phaseconv does not support", k, layer)
			}
		}
	}
	p.SharedKV, p.WideFFN = or(h.SharedKVLayers, 0), or(h.DoubleWide, false)
	c.PerLayerInput = or(h.PerLayerInput, c.Family.Defaults.PerLayerInput)
	if n := or(h.PerLayerVocab, c.Vocab); c.PerLayerInput > 0 && n != c.Vocab && h.PerLayerVocab != nil {
		return format.Unsupportedf("vocab_size_per_layer_input is %d and vocab_size %d; different ones are not supported", n,
			c.Vocab)
	}
	return h.checkKinds(p)
}

// checkKinds refuses a per_layer_config that says of a layer what its kind does not.
func (h *config) checkKinds(p *family.Params) error {
	byLayer := map[int]map[string]int{}
	for text, keys := range h.PerLayerConfig {
		l, err := strconv.Atoi(text) // with zeros in front
		if err != nil || byLayer[l] != nil {
			return fmt.Errorf("per_layer_config has the layer %q", text)
		}
		byLayer[l] = keys
	}
	for l, t := range h.LayerTypes {
		keys, ok := byLayer[l]
		if len(h.PerLayerConfig) == 0 || ok == (t == "full_attention") && (!ok || (keys["head_dim"] == p.FullHeadDim &&
			(p.FullKVHeads == 0 || keys["num_key_value_heads"] == p.FullKVHeads))) {
			continue
		}
		return format.Unsupportedf("per_layer_config of layer %d (%s) differs from that of other layers of its kind", l, t)
	}
	return nil
}

// biases says which projections have a bias.
func (h *config) biases(f *family.Family) family.Biases {
	if f.BiasKey == "" {
		return f.AttnBias
	}
	b := f.AttnBias
	if f.OutBiasKey != "" {
		b.O = b.O && or(h.AttentionOutBias, false)
	}
	if !or(h.AttentionBias, f.BiasDefault) {
		b.Q, b.K, b.V, b.O = false, false, false, b.O && f.OutBiasKey != ""
	}
	return b
}

// noRope says which layers turn nothing; nil: all do.
func (h *config) noRope(f *family.Family, layers int) ([]bool, error) {
	if f.NoRope.Period == 0 || layers < 0 || layers > family.MaxLayers {
		return nil, nil
	}
	out := make([]bool, layers)
	if h.NoRopeLayers != nil {
		if len(h.NoRopeLayers) != layers {
			return nil, fmt.Errorf("no_rope_layers has %d entries for %d layers", len(h.NoRopeLayers), layers)
		}
		for l, on := range h.NoRopeLayers {
			out[l] = on == 0
		}
		return out, nil
	}
	n := or(h.NoRopeInterval, f.NoRope.Period)
	if n < 1 {
		return nil, fmt.Errorf("no_rope_layer_interval is %d, expected a positive number", n)
	}
	for l := range out {
		out[l] = (l+1)%n == 0
	}
	return out, nil
}

// period reads sliding_window_pattern: every layer of that number sees everything, or as its
// letters say, L for a window.
func (h *config) period(def int) (func(l int) bool, error) {
	n := def
	if isSet(h.SlidingWindowPattern) {
		var letters string
		if jsonx.Unmarshal(h.SlidingWindowPattern, &letters) == nil && strings.Trim(letters, "LG") == "" && letters != "" {
			return func(l int) bool { return letters[l%len(letters)] == 'L' }, nil
		}
		if err := jsonx.Unmarshal(h.SlidingWindowPattern, &n); err != nil {
			return nil, fmt.Errorf("sliding_window_pattern is %s, expected a positive number", clip(h.SlidingWindowPattern))
		}
	}
	if n < 1 {
		return nil, fmt.Errorf("sliding_window_pattern is %d, expected a positive number", n)
	}
	return func(l int) bool { return (l+1)%n != 0 }, nil
}

// sliding fills in the window and which layers have it.
func (h *config) sliding(fam *family.Family, p *family.Params) error {
	rule := fam.Window
	window := h.SlidingWindow.value
	if d := fam.Defaults.SlidingWindow; !h.SlidingWindow.present && d > 0 {
		window = &d
	}
	if rule.NeedsFlag && !or(h.UseSlidingWindow, false) {
		window = nil
	}
	if p.Layers < 0 || p.Layers > family.MaxLayers {
		return nil // Resolve names it
	}
	types, err := h.layerTypes(p.Layers)
	if err != nil {
		return err
	}
	if rule.Null && window == nil {
		return nil
	}
	slides := func(int) bool { return false }
	if rule.Period > 0 {
		if slides, err = h.period(rule.Period); err != nil {
			return err
		}
	}
	if window != nil && types == nil && rule.TypesOnly {
		return format.Unsupportedf("a sliding window without layer_types is not supported for %s", fam.Name)
	}
	flags, first := make([]bool, p.Layers), -1
	for l := range flags {
		switch {
		case rule.LayerTypes && types != nil:
			flags[l] = types[l]
		case rule.Period > 0:
			flags[l] = slides(l)
		case window == nil:
		case rule.WithoutRoPE:
			flags[l] = p.NoRope[l]
		case rule.AllLayers:
			flags[l] = true
		case rule.FromLayer:
			flags[l] = l >= or(h.MaxWindowLayers, fam.Defaults.MaxWindowLayers)
		}
		if flags[l] && first < 0 {
			first = l
		}
		if types != nil && types[l] != flags[l] {
			return format.Unsupportedf("layer_types[%d] is %q, but models of type %s take no notice of layer_types", l,
				h.LayerTypes[l],
				fam.Name)
		}
	}
	if first < 0 {
		return nil
	}
	if window == nil {
		return fmt.Errorf("layer %d has sliding-window attention, but sliding_window is null or switched off", first)
	}
	if *window < 1 {
		return fmt.Errorf("sliding_window is %d, expected a positive number or null", *window)
	}
	p.SlidingWindow, p.Sliding = *window, flags
	return nil
}

// layerTypes reads layer_types: true for layers that slide; nil when absent.
func (h *config) layerTypes(layers int) ([]bool, error) {
	if len(h.LayerTypes) == 0 {
		return nil, nil
	}
	if len(h.LayerTypes) != layers {
		return nil, fmt.Errorf("layer_types has %d entries for %d layers", len(h.LayerTypes), layers)
	}
	out := make([]bool, layers)
	for l, t := range h.LayerTypes {
		switch t {
		case "sliding_attention":
			out[l] = true
		case "full_attention":
		default:
			return nil, format.Unsupportedf("layer_types[%d] is %q; full_attention and sliding_attention are supported", l, t)
		}
	}
	return out, nil
}

// rope reads both spellings of the RoPE parameters, with the reference's
// precedence: where both are present, the older rope_scaling wins.
func (h *config) rope(c *family.Config, p *family.Params) error {
	d := c.Family.Defaults
	theta := or(h.RopeTheta, nonzero(d.RopeTheta, 10000))
	perType := map[string]json.RawMessage{}
	if isSet(h.RopeParameters) {
		if err := jsonx.Unmarshal(h.RopeParameters, &perType); err != nil {
			return fmt.Errorf("rope_parameters: %w", err)
		}
	}
	rawFull, rawLocal := perType["full_attention"], perType["sliding_attention"]
	nested := isSet(rawFull) || isSet(rawLocal)
	if d.LocalRopeTheta == 0 {
		if nested {
			return format.Unsupportedf("rope_parameters differ by layer type, which models of type %s do not support",
				c.Family.Name)
		}
		return h.oneRope(c, p, theta)
	}
	if len(perType) > 0 && !nested {
		return fmt.Errorf("rope_parameters has neither full_attention nor sliding_attention, which models of type %s need",
			c.Family.Name)
	}
	if len(perType) == 0 && !isSet(h.RopeScaling) && d.RopeJSON != "" {
		if err := jsonx.Unmarshal([]byte(d.RopeJSON), &perType); err != nil {
			return err
		}
		rawFull, rawLocal = perType["full_attention"], perType["sliding_attention"]
	}
	full, err := decodeRope(rawFull, h.RopeScaling)
	if err != nil {
		return err
	}
	local, err := decodeRope(rawLocal)
	if err != nil {
		return err
	}
	if p.Rope, err = ropeParams(c, nonzero(p.FullHeadDim, p.HeadDim), full, theta); err != nil {
		return err
	}
	p.RopeLocal, err = ropeParams(c, p.HeadDim, local, or(h.RopeLocalTheta, d.LocalRopeTheta))
	return err
}

// oneRope reads RoPE parameters that are the same for all layers.
func (h *config) oneRope(c *family.Config, p *family.Params, theta float64) error {
	s, err := decodeRope(h.RopeScaling)
	if err == nil && reflect.ValueOf(*s).IsZero() {
		s, err = decodeRope(h.RopeParameters)
	}
	if err == nil && !isSet(h.RopeScaling) && !isSet(h.RopeParameters) && h.RopeTheta == nil {
		s, err = decodeRope(json.RawMessage(c.Family.Defaults.RopeJSON))
	}
	if err != nil {
		return err
	}
	if h.OriginalMax != nil {
		s.Original = h.OriginalMax
	}
	if s.Partial == nil {
		s.Partial = h.PartialRotary
	}
	p.Rope, err = ropeParams(c, p.HeadDim, s, theta)
	p.RopeLocal = p.Rope
	if beta := or(s.Temperature, 0); beta != 0 {
		if !c.Family.TemperatureKey || s.Original == nil {
			return format.Unsupportedf("llama_4_scaling_beta is set, which phaseconv does not support for %s without "+
				"original_max_position_embeddings", c.Family.Name)
		}
		p.Temperature = family.Temperature{Beta: beta, Length: *s.Original}
	}
	return err
}

// decodeRope reads objects of RoPE parameters, later ones over earlier ones.
func decodeRope(raws ...json.RawMessage) (*ropeScaling, error) {
	s := &ropeScaling{}
	for _, raw := range raws {
		if !isSet(raw) {
			continue
		}
		if err := jsonx.Unmarshal(raw, s); err != nil {
			return nil, fmt.Errorf("rope_scaling or rope_parameters: %w", err)
		}
	}
	return s, nil
}

// ropeParams interprets one object of RoPE parameters; theta is the base if the
// object has none.
func ropeParams(c *family.Config, dim int, s *ropeScaling, theta float64) (rope.Params, error) {
	p := rope.Params{Dim: dim, Theta: or(s.Theta, theta)}
	f := c.Family
	if isSet(s.Sections) {
		return p, format.Unsupportedf("RoPE has mrope_section, which phaseconv does not support for %s", f.Name)
	}
	kind := s.RopeType
	if kind == "" {
		kind = s.Type
	}
	switch part := or(s.Partial, nonzero(f.Defaults.PartialRotary, 1)); {
	case kind == "proportional" && f.Kinds:
		// The base counts for whole heads, but only the fastest pairs turn.
		p.Scaling = rope.Divisor
		for i := range dim / 2 {
			if d := or(s.Factor, 1); i < int(part*float64(dim))/2 {
				p.Divisors = append(p.Divisors, d)
			} else {
				p.Divisors = append(p.Divisors, rope.Still)
			}
		}
		return p, nil
	case part == 1:
	case !f.PartialRotary:
		return p, format.Unsupportedf("RoPE partial_rotary_factor %g is not supported for %s", part, f.Name)
	case !(part > 0 && part < 1):
		return p, fmt.Errorf("partial_rotary_factor is %g, expected a number between 0 and 1", part)
	default:
		p.Dim = int(float64(dim) * part)
	}
	switch kind {
	case "", "default":
		return p, nil
	case "linear", "llama3", "yarn":
	case "longrope", "su":
		return p, longRope(c, s, &p)
	case "dynamic":
		if f.AlphaRope && or(s.Alpha, 0) > 0 {
			// A base so large that the slowest pair turns Alpha times slower.
			p.Theta *= fmath.Pow(*s.Alpha, float64(dim)/float64(dim-2))
			return p, nil
		}
		fallthrough
	default:
		return p, format.Unsupportedf("RoPE scaling type %q is not supported (linear, llama3 and yarn are)", kind)
	}
	err := scale(c, s, kind, &p)
	return p, err
}

// scale fills in the scalings that have a factor.
func scale(c *family.Config, s *ropeScaling, kind string, p *rope.Params) error {
	if s.Factor == nil {
		return fmt.Errorf("RoPE scaling %s has no factor", kind)
	}
	p.Scaling, p.Factor = rope.Scaling(kind), *s.Factor
	switch p.Scaling {
	case rope.Llama3:
		p.OriginalContext = or(s.Original, c.Context)
		if s.LowFreq == nil || s.HighFreq == nil {
			return fmt.Errorf("RoPE scaling llama3 needs low_freq_factor and high_freq_factor")
		}
		p.LowFreqFactor, p.HighFreqFactor = *s.LowFreq, *s.HighFreq
	case rope.YaRN:
		p.OriginalContext = or(s.Original, c.Context)
		p.BetaFast, p.BetaSlow = or(s.BetaFast, 32), or(s.BetaSlow, 1)
		p.Smooth = !or(s.Truncate, true)
		if s.ExtrapScale != nil && *s.ExtrapScale != 1 {
			return format.Unsupportedf("RoPE scaling yarn with extrapolation_factor %g is not supported", *s.ExtrapScale)
		}
		if m, all := or(s.MScale, 0), or(s.MScaleAll, 0); m != 0 && all != 0 && p.Factor > 1 {
			ln := float64(0.1 * fmath.Log(p.Factor))
			p.Attention = (1 + float64(m*ln)) / (1 + float64(all*ln))
		}
		if s.AttnFactor != nil {
			p.Attention = *s.AttnFactor
		}
		if plain := *p; p.Attention != 0 {
			if plain.Attention = 0; math.Abs(p.Attention-plain.Magnitude()) <= 1e-6 {
				*p = plain
			}
		}
	}
	return nil
}

// longRope fills in the divisors of scaling longrope, and its magnitude, which is one for both.
func longRope(c *family.Config, s *ropeScaling, p *rope.Params) error {
	if s.Original == nil {
		return fmt.Errorf("RoPE scaling longrope needs original_max_position_embeddings")
	}
	p.Scaling, p.OriginalContext, p.Short, p.Divisors = rope.LongRoPE, *s.Original, s.Short, s.Long
	factor := or(s.Factor, float64(c.Context)/float64(max(1, *s.Original)))
	p.Attention = 1
	if factor > 1 && *s.Original > 1 {
		p.Attention = math.Sqrt(1 + fmath.Log(factor)/fmath.Log(float64(*s.Original)))
	}
	if s.AttnFactor != nil {
		p.Attention = *s.AttnFactor
	}
	return nil
}
