package write

import (
	"fmt"
	"strings"

	"github.com/phaseconv/phaseconv/convert/plan"
	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/format/tokenizer"
	"github.com/phaseconv/phaseconv/kernels/rope"
	"github.com/phaseconv/phaseconv/spec"
)

// keys returns the keys that a converted model carries.
func (t *Tag) keys() []gguf.KV {
	key := func(k string) string { return spec.ModelPrefix + k }
	return []gguf.KV{
		gguf.Value(key(spec.KeyVersion), uint32(t.Version)),
		gguf.Value(key(spec.KeySourceSHA256), t.Source.SHA256),
		gguf.Value(key(spec.KeyCode), t.Code.Kind),
		gguf.Value(key(spec.KeyTool), t.Tool),
	}
}

// copyWithTag copies a GGUF file's keys byte for byte and adds the provenance tag. Stray keys
// under its prefix go, and an alignment that stock runtimes cannot read.
func copyWithTag(f *gguf.File, mark []gguf.KV) []gguf.KV {
	var out []gguf.KV
	for _, kv := range f.KVs {
		// Stock runtimes map tensors where they lie and need multiples of 32: a file
		// that asks for less does not load, and gets the default.
		if kv.Key == gguf.KeyAlignment && f.Alignment < gguf.DefaultAlignment {
			continue
		}
		if !strings.HasPrefix(kv.Key, spec.ModelPrefix+"phaseconv.") {
			out = append(out, kv)
		}
	}
	return append(out, mark...)
}

// ggufKVs builds the metadata of a GGUF model from a Hugging Face checkpoint,
// with the keys that stock converters write.
func ggufKVs(c *checkpoint.Checkpoint, v *tokenizer.Vocab, name, outtype string, mark []gguf.KV) ([]gguf.KV, error) {
	cfg := c.Config
	arch := cfg.Family.GGUFArch
	fileType := plan.FileTypes[outtype]
	for _, t := range c.Tensors() {
		if t.Type == gguf.TypeMXFP4.String() && outtype != "q8_0" { // as stock converters say it
			fileType = plan.FileTypeMXFP4
		}
	}
	out := []gguf.KV{
		gguf.Value("general.architecture", arch),
		gguf.Value("general.type", "model"),
		gguf.Value("general.name", name),
		gguf.Value("general.file_type", fileType),
		gguf.Value("general.quantization_version", uint32(2)),
	}
	u32 := func(key string, n int) { out = append(out, gguf.Value(arch+"."+key, uint32(n))) }
	f32 := func(key string, x float64) { out = append(out, gguf.Value(arch+"."+key, float32(x))) }
	// What is one number for all layers here is so by the plan, which refuses others.
	y := &cfg.Layers[0]
	full, local := cfg.Ropes()
	u32("block_count", len(cfg.Layers))
	u32("context_length", cfg.Context)
	u32("embedding_length", cfg.Hidden)
	perLayer := func(key string, of func(y *family.Layer) int) {
		list := make([]int32, len(cfg.Layers))
		same := true
		for l := range list {
			list[l] = int32(of(&cfg.Layers[l]))
			same = same && list[l] == list[0]
		}
		if same {
			u32(key, int(list[0]))
			return
		}
		out = append(out, gguf.Array(arch+"."+key, list))
	}
	if cfg.DenseFFN > 0 {
		u32("feed_forward_length", cfg.DenseFFN)
	} else {
		perLayer("feed_forward_length", func(y *family.Layer) int { return y.FFN.Size })
	}
	if x := cfg.Family.Experts; cfg.Mixture() != nil && (x.OwnSize || x.GGUFOwnSize) {
		u32("expert_feed_forward_length", cfg.Mixture().Size)
	}
	u32("attention.head_count", y.Heads)
	perLayer("attention.head_count_kv", func(y *family.Layer) int { return y.KVHeads })
	wide := y
	if cfg.Family.Kinds {
		for l := range cfg.Layers {
			if x := &cfg.Layers[l]; x.Window == 0 {
				wide = x
			} else {
				y = x
			}
		}
		u32("attention.key_length_swa", y.HeadDim)
		u32("attention.value_length_swa", y.ValueDim)
		u32("rope.dimension_count_swa", local.Dim)
		u32("attention.shared_kv_layers", cfg.SharedLayers())
		u32("embedding_length_per_layer_input", cfg.PerLayerInput)
	}
	u32("attention.key_length", wide.HeadDim)
	u32("attention.value_length", wide.ValueDim)
	u32("rope.dimension_count", full.Dim)
	u32("vocab_size", cfg.Vocab)
	eps := "attention.layer_norm_rms_epsilon"
	if cfg.LayerNorm {
		eps = "attention.layer_norm_epsilon"
	}
	f32(eps, cfg.NormEps)
	if cfg.Family.Multipliers {
		f32("attention.scale", y.Scale)
		f32("embedding_scale", cfg.EmbeddingScale)
		f32("residual_scale", y.ResidualScale)
		f32("logit_scale", 1/cfg.LogitScale)
	}
	if cfg.Family.LogitScaleKey {
		f32("logit_scale", cfg.LogitScale)
	}
	if y.Temperature.Beta != 0 {
		f32("attention.temperature_scale", y.Temperature.Beta)
	}
	f32("rope.freq_base", full.Theta)
	switch full.Scaling {
	case rope.None, rope.Llama3, rope.Divisor: // divisors are a tensor
	case rope.Linear:
		out = append(out, gguf.Value(arch+".rope.scaling.type", "linear"))
		f32("rope.scaling.factor", full.Factor)
	case rope.LongRoPE: // divisors are tensors
		out = append(out, gguf.Value(arch+".rope.scaling.type", "longrope"))
		u32("rope.scaling.original_context_length", full.OriginalContext)
		f32("rope.scaling.attn_factor", full.Magnitude())
	case rope.YaRN: // with the default ramp where readers know no other: the plan refuses it
		out = append(out, gguf.Value(arch+".rope.scaling.type", "yarn"))
		f32("rope.scaling.factor", full.Factor)
		u32("rope.scaling.original_context_length", full.OriginalContext)
		plain := full
		plain.Attention = 0
		switch own := plain.Magnitude(); {
		case full.Attention == 0:
		case cfg.Family.RampKeys && full.Attention == 1:
			f32("rope.scaling.yarn_log_multiplier", 1)
		default:
			f32("rope.scaling.attn_factor", full.Attention/own)
		}
		if cfg.Family.RampKeys {
			f32("rope.scaling.yarn_beta_fast", full.BetaFast)
			f32("rope.scaling.yarn_beta_slow", full.BetaSlow)
		}
	default:
		return nil, fmt.Errorf("RoPE scaling %s cannot be written to GGUF", full.Scaling)
	}
	if cfg.Mixture() != nil {
		out = append(out, expertKVs(cfg)...)
	}
	if window, sliding := cfg.Window(); window > 0 && cfg.Family.Window.InGGUF {
		u32("attention.sliding_window", window)
		if !cfg.Family.Window.SameRope {
			f32("rope.freq_base_swa", local.Theta)
		}
		out = append(out, gguf.Array(arch+".attention.sliding_window_pattern", sliding))
	}
	if cfg.LogitSoftcap > 0 {
		f32("final_logit_softcapping", cfg.LogitSoftcap)
	}
	if len(v.Tokens) != cfg.Vocab {
		return nil, fmt.Errorf("%s: the tokenizer has %d tokens, the embedding %d rows", c.Path, len(v.Tokens), cfg.Vocab)
	}
	for _, kv := range v.KeyValues() {
		g, err := tokenizerKV(kv)
		if err != nil {
			return nil, err
		}
		out = append(out, g)
	}
	return append(out, mark...), nil
}

// The values of expert_gating_func.
var gating = map[family.Router]uint32{family.SoftmaxTopK: 1, family.SigmoidTopK: 2}

// expertKVs are the keys of a mixture.
func expertKVs(cfg *family.Config) []gguf.KV {
	f, x := cfg.Mixture(), cfg.Family.Experts
	var out []gguf.KV
	u32 := func(key string, n int) { out = append(out, gguf.Value(cfg.Family.GGUFArch+"."+key, uint32(n))) }
	u32("expert_count", f.Experts)
	u32("expert_used_count", f.Used)
	if f.Shared > 0 {
		u32("expert_shared_count", f.Shared)
		u32("expert_shared_feed_forward_length", f.SharedSize)
	}
	if lead, _ := cfg.DenseLead(); x.GGUFDense {
		u32("leading_dense_block_count", lead)
	}
	if x.Dense == family.DenseRange {
		u32("interleave_moe_layer_step", 1)
	}
	if x.GGUFRouter {
		u32("expert_gating_func", int(gating[f.Router]))
		u32("expert_group_count", max(1, f.Groups))
		u32("expert_group_used_count", max(1, f.GroupsUsed))
		out = append(out, gguf.Value(cfg.Family.GGUFArch+".expert_weights_norm", f.Renorm),
			gguf.Value(cfg.Family.GGUFArch+".expert_weights_scale", float32(f.Scale())))
	}
	return out
}

func tokenizerKV(kv tokenizer.KeyValue) (gguf.KV, error) {
	switch v := kv.Value.(type) {
	case string:
		return gguf.Value(kv.Key, v), nil
	case uint32:
		return gguf.Value(kv.Key, v), nil
	case bool:
		return gguf.Value(kv.Key, v), nil
	case []string:
		return gguf.Array(kv.Key, v), nil
	case []int32:
		return gguf.Array(kv.Key, v), nil
	case []float32:
		return gguf.Array(kv.Key, v), nil
	}
	return gguf.KV{}, fmt.Errorf("tokenizer key %s has a value of type %T", kv.Key, kv.Value)
}
