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

// keys collects metadata under the name of an architecture.
type keys struct {
	arch string
	kvs  []gguf.KV
}

func (k *keys) u32(key string, n int)       { k.add(gguf.Value(k.arch+"."+key, uint32(n))) }
func (k *keys) f32(key string, x float64)   { k.add(gguf.Value(k.arch+"."+key, float32(x))) }
func (k *keys) string(key, value string)    { k.add(gguf.Value(k.arch+"."+key, value)) }
func (k *keys) bools(key string, on []bool) { k.add(gguf.Array(k.arch+"."+key, on)) }
func (k *keys) add(kv gguf.KV)              { k.kvs = append(k.kvs, kv) }

// perLayer adds one number where it is the same in all layers, else a list.
func (k *keys) perLayer(key string, layers []family.Layer, of func(y *family.Layer) int) {
	list := make([]int32, len(layers))
	same := true
	for l := range list {
		list[l] = int32(of(&layers[l]))
		same = same && list[l] == list[0]
	}
	if same {
		k.u32(key, int(list[0]))
		return
	}
	k.add(gguf.Array(k.arch+"."+key, list))
}

// ggufKVs builds the metadata of a GGUF model from a Hugging Face checkpoint,
// with the keys that stock converters write.
func ggufKVs(c *checkpoint.Checkpoint, v *tokenizer.Vocab, name, outtype string, mark []gguf.KV) ([]gguf.KV, error) {
	cfg := c.Config
	if len(v.Tokens) != cfg.Vocab {
		return nil, fmt.Errorf("%s: the tokenizer has %d tokens, the embedding %d rows", c.Path, len(v.Tokens), cfg.Vocab)
	}
	fileType := plan.FileTypes[outtype]
	for _, t := range c.Tensors() {
		if t.Type == gguf.TypeMXFP4.String() && outtype != "q8_0" { // as stock converters say it
			fileType = plan.FileTypeMXFP4
		}
	}
	k := &keys{arch: cfg.Family.GGUFArch, kvs: []gguf.KV{
		gguf.Value("general.architecture", cfg.Family.GGUFArch),
		gguf.Value("general.type", "model"),
		gguf.Value("general.name", name),
		gguf.Value("general.file_type", fileType),
		gguf.Value("general.quantization_version", uint32(2)),
	}}
	k.layers(cfg)
	k.multipliers(cfg)
	if err := k.ropes(cfg); err != nil {
		return nil, err
	}
	if cfg.Mixture() != nil {
		k.experts(cfg)
	}
	k.window(cfg)
	if y := &cfg.Layers[0]; cfg.Family.GGUFSoftCap {
		k.f32("attn_logit_softcapping", y.SoftCap)
	}
	if cfg.LogitSoftcap > 0 || cfg.Family.Defaults.LogitSoftcap > 0 {
		k.f32("final_logit_softcapping", cfg.LogitSoftcap)
	}
	for _, kv := range v.KeyValues() {
		g, err := tokenizerKV(kv)
		if err != nil {
			return nil, err
		}
		k.add(g)
	}
	return append(k.kvs, mark...), nil
}

// layers adds how many layers there are, and their sizes.
func (k *keys) layers(cfg *family.Config) {
	// What is one number for all layers here is so by the plan, which refuses others.
	y := &cfg.Layers[0]
	full, local := cfg.Ropes()
	k.u32("block_count", len(cfg.Layers))
	k.u32("context_length", cfg.Context)
	k.u32("embedding_length", cfg.Hidden)
	if cfg.DenseFFN > 0 {
		k.u32("feed_forward_length", cfg.DenseFFN)
	} else {
		k.perLayer("feed_forward_length", cfg.Layers, func(y *family.Layer) int { return y.FFN.Size })
	}
	if x := cfg.Family.Experts; cfg.Mixture() != nil && (x.OwnSize || x.GGUFOwnSize) {
		k.u32("expert_feed_forward_length", cfg.Mixture().Size)
	}
	k.u32("attention.head_count", y.Heads)
	k.perLayer("attention.head_count_kv", cfg.Layers, func(y *family.Layer) int { return y.KVHeads })
	wide := y
	if cfg.Family.Kinds {
		for l := range cfg.Layers {
			if x := &cfg.Layers[l]; x.Window == 0 {
				wide = x
			} else {
				y = x
			}
		}
		k.u32("attention.key_length_swa", y.HeadDim)
		k.u32("attention.value_length_swa", y.ValueDim)
		k.u32("rope.dimension_count_swa", local.Dim)
		k.u32("attention.shared_kv_layers", cfg.SharedLayers())
		k.u32("embedding_length_per_layer_input", cfg.PerLayerInput)
	}
	k.u32("attention.key_length", wide.HeadDim)
	k.u32("attention.value_length", wide.ValueDim)
	k.u32("rope.dimension_count", full.Dim)
	k.u32("vocab_size", cfg.Vocab)
	eps := "attention.layer_norm_rms_epsilon"
	if cfg.LayerNorm {
		eps = "attention.layer_norm_epsilon"
	}
	k.f32(eps, cfg.NormEps)
}

// multipliers adds what a family multiplies its streams with.
func (k *keys) multipliers(cfg *family.Config) {
	y := &cfg.Layers[0]
	if cfg.Family.Multipliers {
		k.f32("attention.scale", y.Scale)
		k.f32("embedding_scale", cfg.EmbeddingScale)
		k.f32("residual_scale", y.ResidualScale)
		k.f32("logit_scale", 1/cfg.LogitScale)
	}
	if cfg.Family.LogitScaleKey {
		k.f32("logit_scale", cfg.LogitScale)
	}
	if y.Temperature.Beta != 0 {
		k.f32("attention.temperature_scale", y.Temperature.Beta)
	}
}

// ropes adds how positions turn queries and keys.
func (k *keys) ropes(cfg *family.Config) error {
	full, _ := cfg.Ropes()
	k.f32("rope.freq_base", full.Theta)
	switch full.Scaling {
	case rope.None, rope.Llama3, rope.Divisor: // divisors are a tensor
	case rope.Linear:
		k.string("rope.scaling.type", "linear")
		k.f32("rope.scaling.factor", full.Factor)
	case rope.LongRoPE: // divisors are tensors
		k.string("rope.scaling.type", "longrope")
		k.u32("rope.scaling.original_context_length", full.OriginalContext)
		k.f32("rope.scaling.attn_factor", full.Magnitude())
	case rope.YaRN: // with the default ramp where readers know no other: the plan refuses it
		k.string("rope.scaling.type", "yarn")
		k.f32("rope.scaling.factor", full.Factor)
		k.u32("rope.scaling.original_context_length", full.OriginalContext)
		plain := full
		plain.Attention = 0
		switch own := plain.Magnitude(); {
		case full.Attention == 0:
		case cfg.Family.RampKeys && full.Attention == 1:
			k.f32("rope.scaling.yarn_log_multiplier", 1)
		default:
			k.f32("rope.scaling.attn_factor", full.Attention/own)
		}
		if cfg.Family.RampKeys {
			k.f32("rope.scaling.yarn_beta_fast", full.BetaFast)
			k.f32("rope.scaling.yarn_beta_slow", full.BetaSlow)
		}
	default:
		return fmt.Errorf("RoPE scaling %s cannot be written to GGUF", full.Scaling)
	}
	return nil
}

// window adds which layers see a part of the context alone.
func (k *keys) window(cfg *family.Config) {
	window, sliding := cfg.Window()
	if window == 0 || !cfg.Family.Window.InGGUF {
		return
	}
	k.u32("attention.sliding_window", window)
	if !cfg.Family.Window.SameRope {
		_, local := cfg.Ropes()
		k.f32("rope.freq_base_swa", local.Theta)
	}
	k.bools("attention.sliding_window_pattern", sliding)
}

// The values of expert_gating_func.
var gating = map[family.Router]uint32{family.SoftmaxTopK: 1, family.SigmoidTopK: 2}

// experts adds the keys of a mixture.
func (k *keys) experts(cfg *family.Config) {
	f, x := cfg.Mixture(), cfg.Family.Experts
	k.u32("expert_count", f.Experts)
	k.u32("expert_used_count", f.Used)
	if f.Shared > 0 {
		k.u32("expert_shared_count", f.Shared)
		k.u32("expert_shared_feed_forward_length", f.SharedSize)
	}
	if lead, _ := cfg.DenseLead(); x.GGUFDense {
		k.u32("leading_dense_block_count", lead)
	}
	if x.Dense == family.DenseRange {
		k.u32("interleave_moe_layer_step", 1)
	}
	if x.GGUFRouter {
		k.u32("expert_gating_func", int(gating[f.Router]))
		k.u32("expert_group_count", max(1, f.Groups))
		k.u32("expert_group_used_count", max(1, f.GroupsUsed))
		k.add(gguf.Value(k.arch+".expert_weights_norm", f.Renorm))
		k.f32("expert_weights_scale", f.Scale())
	}
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
