// Package hf reads the configuration of Hugging Face checkpoint folders.
package hf

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"

	"phaseconv/format/family"
	"phaseconv/kernels/rope"
)

// ConfigName is the file that makes a folder a checkpoint.
const ConfigName = "config.json"

// MaxConfig bounds the size of config.json in bytes.
const MaxConfig = 16 << 20

// config mirrors the keys of config.json that determine the graph. Pointers
// tell an absent key from a zero.
type config struct {
	ModelType     string   `json:"model_type"`
	Architectures []string `json:"architectures"`

	HiddenSize       int      `json:"hidden_size"`
	Layers           int      `json:"num_hidden_layers"`
	Heads            int      `json:"num_attention_heads"`
	KVHeads          *int     `json:"num_key_value_heads"`
	HeadDim          *int     `json:"head_dim"`
	IntermediateSize int      `json:"intermediate_size"`
	VocabSize        int      `json:"vocab_size"`
	MaxPositions     int      `json:"max_position_embeddings"`
	NormEps          *float64 `json:"rms_norm_eps"`
	Tied             *bool    `json:"tie_word_embeddings"`
	HiddenAct        string   `json:"hidden_act"`
	HiddenActivation string   `json:"hidden_activation"`
	BOS              tokenID  `json:"bos_token_id"`
	EOS              tokenID  `json:"eos_token_id"`

	RopeTheta      *float64     `json:"rope_theta"`
	RopeLocalTheta *float64     `json:"rope_local_base_freq"`
	RopeScaling    *ropeScaling `json:"rope_scaling"`
	// RopeParameters is the newer spelling: one object, or one per layer type.
	RopeParameters json.RawMessage `json:"rope_parameters"`
	PartialRotary  *float64        `json:"partial_rotary_factor"`
	OriginalMax    *int            `json:"original_max_position_embeddings"`

	SlidingWindow        *int     `json:"sliding_window"`
	UseSlidingWindow     *bool    `json:"use_sliding_window"`
	MaxWindowLayers      *int     `json:"max_window_layers"`
	SlidingWindowPattern *int     `json:"sliding_window_pattern"`
	LayerTypes           []string `json:"layer_types"`

	QueryPreAttnScalar *float64 `json:"query_pre_attn_scalar"`
	AttnLogitSoftcap   *float64 `json:"attn_logit_softcapping"`
	FinalLogitSoftcap  *float64 `json:"final_logit_softcapping"`
	BidirectionalAttn  *bool    `json:"use_bidirectional_attention"`

	Experts         *int     `json:"num_local_experts"`
	NumExperts      *int     `json:"num_experts"`
	ExpertsPerTok   *int     `json:"num_experts_per_tok"`
	MoEIntermediate *int     `json:"moe_intermediate_size"`
	NormTopK        *bool    `json:"norm_topk_prob"`
	SparseStep      *int     `json:"decoder_sparse_step"`
	MLPOnlyLayers   []int    `json:"mlp_only_layers"`
	ClipQKV         *float64 `json:"clip_qkv"`
	MLPBias         *bool    `json:"mlp_bias"`
	PretrainingTP   *int     `json:"pretraining_tp"`

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
	if json.Unmarshal(b, &t.id) == nil {
		t.set = true
		return nil
	}
	var list []int
	if err := json.Unmarshal(b, &list); err != nil {
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
	path := filepath.Join(dir, ConfigName)
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, MaxConfig+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if len(raw) > MaxConfig {
		return nil, fmt.Errorf("%s: larger than %d bytes", path, MaxConfig)
	}
	c, err := ParseConfig(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// ParseConfig is ReadConfig for the bytes of a config.json.
func ParseConfig(raw []byte) (*family.Config, error) {
	var h config
	if err := json.Unmarshal(raw, &h); err != nil {
		return nil, fmt.Errorf("not a valid configuration: %w", err)
	}
	class := ""
	if len(h.Architectures) > 0 {
		class = h.Architectures[0]
	}
	fam, err := family.ByModelType(h.ModelType, class)
	if err != nil {
		return nil, err
	}
	if err := h.refuse(fam); err != nil {
		return nil, err
	}
	c := &family.Config{
		Family: fam, Layers: h.Layers, Hidden: h.HiddenSize, Heads: h.Heads, KVHeads: or(h.KVHeads, h.Heads),
		FFN: h.IntermediateSize, Vocab: h.VocabSize, Context: h.MaxPositions,
		NormEps: *h.NormEps, Pairs: rope.Half,
		TiedEmbeddings: or(h.Tied, fam.TiedByDefault), BOS: h.BOS.value(), EOS: h.EOS.value(),
	}
	if c.Heads < 1 {
		return nil, fmt.Errorf("num_attention_heads is %d", c.Heads)
	}
	c.HeadDim = or(h.HeadDim, c.Hidden/c.Heads)
	c.AttnScale = 1 / math.Sqrt(or(h.QueryPreAttnScalar, float64(c.HeadDim)))
	c.LogitSoftcap = or(h.FinalLogitSoftcap, 0)
	if fam.Experts != nil {
		c.Experts = or(h.Experts, or(h.NumExperts, 0))
		c.ExpertsUsed = or(h.ExpertsPerTok, 0)
		c.FFN = or(h.MoEIntermediate, c.FFN)
		c.RenormTopK = fam.Experts.AlwaysRenorm || or(h.NormTopK, false)
	}
	if err := h.sliding(c); err != nil {
		return nil, err
	}
	if err := h.rope(c); err != nil {
		return nil, err
	}
	return c, c.Check()
}

func or[T any](p *T, def T) T {
	if p == nil {
		return def
	}
	return *p
}

// refuse names each key whose meaning the forward graph does not implement, and
// each that must not be guessed.
func (h *config) refuse(f *family.Family) error {
	act := h.HiddenAct
	if act == "" || h.HiddenActivation != "" {
		act = h.HiddenActivation
	}
	want := map[family.Activation][]string{family.SiLU: {"silu", "swish"}, family.GELUTanh: {"gelu_pytorch_tanh"}}[f.Activation]
	if act != "" && act != want[0] && act != want[len(want)-1] {
		return fmt.Errorf("hidden activation %q is not supported for %s (expected %s)", act, f.Name, want[0])
	}
	unsupported := func(key string, on bool) error {
		if on {
			return fmt.Errorf("%s is set, which phaseconv does not support for %s", key, f.Name)
		}
		return nil
	}
	if h.NormEps == nil {
		return fmt.Errorf("rms_norm_eps is missing")
	}
	for _, c := range []struct {
		key string
		on  bool
	}{
		{"quantization_config (already quantised weights)", len(h.Quantization) > 0 && !bytes.Equal(h.Quantization, []byte("null"))},
		{"partial_rotary_factor", h.PartialRotary != nil && *h.PartialRotary != 1},
		{"attn_logit_softcapping", h.AttnLogitSoftcap != nil && *h.AttnLogitSoftcap != 0},
		{"use_bidirectional_attention", or(h.BidirectionalAttn, false)},
		{"is_causal = false", !or(h.IsCausal, true)},
		{"clip_qkv", h.ClipQKV != nil},
		{"mlp_bias", or(h.MLPBias, false)},
		{"pretraining_tp", or(h.PretrainingTP, 1) > 1},
		{"mlp_only_layers", len(h.MLPOnlyLayers) > 0},
		{"decoder_sparse_step", or(h.SparseStep, 1) != 1},
	} {
		if err := unsupported(c.key, c.on); err != nil {
			return err
		}
	}
	return nil
}

// sliding fills in the window and which layers have it.
func (h *config) sliding(c *family.Config) error {
	w, rule := or(h.SlidingWindow, 0), c.Family.Window
	if w <= 0 || rule.NeedsFlag && !or(h.UseSlidingWindow, false) {
		return nil
	}
	period := or(h.SlidingWindowPattern, rule.Period)
	if c.Layers < 0 || c.Layers > family.MaxLayers {
		return nil // Check names it
	}
	flags, any := make([]bool, c.Layers), false
	for l := range flags {
		switch {
		case len(h.LayerTypes) > 0:
			if len(h.LayerTypes) != c.Layers {
				return fmt.Errorf("layer_types has %d entries for %d layers", len(h.LayerTypes), c.Layers)
			}
			switch h.LayerTypes[l] {
			case "sliding_attention":
				flags[l] = true
			case "full_attention":
			default:
				return fmt.Errorf("layer_types[%d] is %q; full_attention and sliding_attention are supported", l, h.LayerTypes[l])
			}
		case rule.NeedsFlag:
			flags[l] = l >= or(h.MaxWindowLayers, 0)
		case rule.AllLayers:
			flags[l] = true
		case period > 0:
			flags[l] = (l+1)%period != 0
		}
		any = any || flags[l]
	}
	if any {
		c.SlidingWindow, c.Sliding = w, flags
	}
	return nil
}

// rope reads both spellings of the RoPE parameters.
func (h *config) rope(c *family.Config) error {
	global, local := h.RopeScaling, (*ropeScaling)(nil)
	if len(h.RopeParameters) > 0 && !bytes.Equal(h.RopeParameters, []byte("null")) {
		var perType map[string]json.RawMessage
		if err := json.Unmarshal(h.RopeParameters, &perType); err != nil {
			return fmt.Errorf("rope_parameters: %w", err)
		}
		full := h.RopeParameters
		if raw, ok := perType["full_attention"]; ok {
			full = raw
			if raw, ok := perType["sliding_attention"]; ok {
				if err := json.Unmarshal(raw, &local); err != nil {
					return fmt.Errorf("rope_parameters.sliding_attention: %w", err)
				}
			}
		}
		if err := json.Unmarshal(full, &global); err != nil {
			return fmt.Errorf("rope_parameters: %w", err)
		}
	}
	var err error
	if c.Rope, err = h.ropeParams(c, global, h.RopeTheta); err != nil {
		return err
	}
	c.RopeLocal = c.Rope
	switch {
	case local != nil:
		c.RopeLocal, err = h.ropeParams(c, local, h.RopeLocalTheta)
	case h.RopeLocalTheta != nil:
		// The local layers of families with two bases are never scaled.
		c.RopeLocal, err = h.ropeParams(c, nil, h.RopeLocalTheta)
	}
	return err
}

func (h *config) ropeParams(c *family.Config, s *ropeScaling, theta *float64) (rope.Params, error) {
	p := rope.Params{Dim: c.HeadDim}
	if s != nil && s.Theta != nil {
		theta = s.Theta
	}
	if theta == nil {
		return p, fmt.Errorf("rope_theta is missing")
	}
	p.Theta = *theta
	if s == nil {
		return p, nil
	}
	kind := s.RopeType
	if kind == "" {
		kind = s.Type
	}
	if s.Partial != nil && *s.Partial != 1 {
		return p, fmt.Errorf("RoPE partial_rotary_factor %g is not supported", *s.Partial)
	}
	switch kind {
	case "", "default":
		return p, nil
	case "linear", "llama3", "yarn":
	default:
		return p, fmt.Errorf("RoPE scaling type %q is not supported (linear, llama3 and yarn are)", kind)
	}
	if s.Factor == nil {
		return p, fmt.Errorf("RoPE scaling %s has no factor", kind)
	}
	p.Scaling, p.Factor = rope.Scaling(kind), *s.Factor
	p.OriginalContext = or(s.Original, or(h.OriginalMax, 0))
	switch p.Scaling {
	case rope.Llama3:
		if s.LowFreq == nil || s.HighFreq == nil {
			return p, fmt.Errorf("RoPE scaling llama3 needs low_freq_factor and high_freq_factor")
		}
		p.LowFreqFactor, p.HighFreqFactor = *s.LowFreq, *s.HighFreq
	case rope.YaRN:
		if p.OriginalContext == 0 {
			p.OriginalContext = c.Context // the reference's fallback
		}
		p.BetaFast, p.BetaSlow = or(s.BetaFast, 32), or(s.BetaSlow, 1)
		if !or(s.Truncate, true) || s.MScale != nil || s.MScaleAll != nil || s.ExtrapScale != nil && *s.ExtrapScale != 1 {
			return p, fmt.Errorf("RoPE scaling yarn with truncate = false, mscale, mscale_all_dim or extrapolation_factor is not supported")
		}
		if s.AttnFactor != nil && math.Abs(*s.AttnFactor-p.Magnitude()) > 1e-6 {
			return p, fmt.Errorf("RoPE scaling yarn with attention_factor %g is not supported (the default here is %.6g)", *s.AttnFactor, p.Magnitude())
		}
	}
	return p, nil
}
