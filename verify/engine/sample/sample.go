// Package sample writes small random models of different architectures as GGUF files: one for each
// chain of operations that keys come from. An engine is tried with them where no model is at hand.
package sample

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/phaseconv/phaseconv/format/gguf"
)

// Sizes that all samples share. Blocks of stock cache types divide the heads.
const (
	hidden   = 128
	heads    = 4
	kvHeads  = 2
	headDim  = 32
	ffn      = 128
	vocab    = 272 // what internal/tiny has a tokenizer for
	context  = 512
	experts  = 4
	window   = 64
	perLayer = 8  // the embedding of its own that each layer gets of a token (Gemma 4)
	rotated  = 16 // dimensions, where RoPE turns a part of a head
	// MLA: the rank of keys and values, and of queries; the parts of a head with and without RoPE.
	latent, queries, turned, unturned = 32, 32, 32, 32
)

// A tensor is one of a sample's, for each layer where the name has a %d.
type tensor struct {
	name  string
	shape []int          // outermost first
	only  func(int) bool // layers that have it; nil: all
}

// An arch is what is special about a sample.
type arch struct {
	name    string // general.architecture
	what    string
	layers  int
	kvHeads int // 0: kvHeads
	keys    []gguf.KV
	tensors []tensor
}

func t(name string, shape ...int) tensor { return tensor{name: name, shape: shape} }

// both is a weight with its bias.
func both(name string, shape ...int) []tensor {
	return []tensor{t(name+".weight", shape...), t(name+".bias", shape[0])}
}

func join(parts ...[]tensor) []tensor { return slices.Concat(parts...) }

var (
	embeddings = []tensor{t("token_embd.weight", vocab, hidden), t("output_norm.weight", hidden)}
	output     = []tensor{t("output.weight", vocab, hidden)}
	attnNorm   = []tensor{t("blk.%d.attn_norm.weight", hidden)}
	ffnNorm    = []tensor{t("blk.%d.ffn_norm.weight", hidden)}
	gated      = []tensor{t("blk.%d.ffn_gate.weight", ffn, hidden), t("blk.%d.ffn_up.weight", ffn, hidden),
		t("blk.%d.ffn_down.weight", hidden, ffn)}
	headNorms = []tensor{t("blk.%d.attn_q_norm.weight", headDim), t("blk.%d.attn_k_norm.weight", headDim)}
	// LayerNorm with biases, an FFN without gate: GPT-2 and GPT-NeoX.
	classic = join(both("blk.%d.attn_norm", hidden), both("blk.%d.ffn_norm", hidden), both("blk.%d.ffn_up", ffn, hidden),
		both("blk.%d.ffn_down", hidden, ffn), both("blk.%d.attn_output", hidden, heads*headDim),
		[]tensor{t("output_norm.bias", hidden)})
)

func projections(kv int) []tensor {
	return []tensor{t("blk.%d.attn_q.weight", heads*headDim, hidden), t("blk.%d.attn_k.weight", kv*headDim, hidden),
		t("blk.%d.attn_v.weight", kv*headDim, hidden)}
}

func separate(kv int) []tensor {
	return join(projections(kv), []tensor{t("blk.%d.attn_output.weight", hidden, heads*headDim)})
}

func fused(kv int, bias bool) []tensor {
	n := (heads + 2*kv) * headDim
	if bias {
		return both("blk.%d.attn_qkv", n, hidden)
	}
	return []tensor{t("blk.%d.attn_qkv.weight", n, hidden)}
}

func biases(names string, n ...int) []tensor {
	var out []tensor
	for i, x := range strings.Fields(names) {
		out = append(out, t("blk.%d."+x+".bias", n[i]))
	}
	return out
}

const rms, layerNorm = "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"

func key[T gguf.Scalar](name string, v T) gguf.KV { return gguf.Value(name, v) }

// archs are the samples. Names of keys are without their architecture.
var archs = map[string]arch{
	"llama": {name: "llama", what: "separate projections, pairs side by side", layers: 2,
		keys:    []gguf.KV{key(rms, float32(1e-5))},
		tensors: join(embeddings, attnNorm, separate(kvHeads), ffnNorm, gated)},
	"qwen2": {name: "qwen2", what: "separate projections with biases, halves", layers: 2,
		keys: []gguf.KV{key(rms, float32(1e-6))},
		tensors: join(embeddings, attnNorm, separate(kvHeads), ffnNorm, gated,
			biases("attn_q attn_k attn_v", heads*headDim, kvHeads*headDim, kvHeads*headDim))},
	"qwen3": {name: "qwen3", what: "QK-norm in front of RoPE", layers: 2,
		keys:    []gguf.KV{key(rms, float32(1e-6))},
		tensors: join(embeddings, attnNorm, separate(kvHeads), headNorms, ffnNorm, gated)},
	"afmoe": {name: "afmoe", what: "a gate on the output of attention", layers: 2,
		keys: []gguf.KV{key(rms, float32(1e-5)), key("leading_dense_block_count", uint32(2)),
			key("expert_feed_forward_length", uint32(ffn)), key("expert_shared_count", uint32(0)),
			key("attention.sliding_window", uint32(window))},
		tensors: join(embeddings, output, attnNorm, separate(kvHeads), headNorms, ffnNorm, gated, []tensor{
			t("blk.%d.attn_gate.weight", heads*headDim, hidden), t("blk.%d.post_attention_norm.weight", hidden),
			t("blk.%d.post_ffw_norm.weight", hidden)})},
	"hunyuan": {name: "hunyuan-dense", what: "QK-norm behind RoPE", layers: 2,
		keys:    []gguf.KV{key(rms, float32(1e-5))},
		tensors: join(embeddings, attnNorm, separate(kvHeads), headNorms, ffnNorm, gated)},
	"olmo2": {name: "olmo2", what: "QK-norm over all heads, no norm in front", layers: 2,
		keys: []gguf.KV{key(rms, float32(1e-6))},
		tensors: join(embeddings, output, separate(kvHeads), gated, []tensor{t("blk.%d.attn_q_norm.weight", heads*headDim),
			t("blk.%d.attn_k_norm.weight", kvHeads*headDim), t("blk.%d.post_attention_norm.weight", hidden),
			t("blk.%d.post_ffw_norm.weight", hidden)})},
	"gptneox": {name: "gptneox", what: "fused projections with biases, RoPE on a part", layers: 2, kvHeads: heads,
		keys: []gguf.KV{key(layerNorm, float32(1e-5)), key("use_parallel_residual", true),
			key("rope.dimension_count", uint32(rotated))},
		tensors: join(embeddings, output, classic, fused(heads, true))},
	"gpt2": {name: "gpt2", what: "fused projections, positions learned", layers: 2, kvHeads: heads,
		keys:    []gguf.KV{key(layerNorm, float32(1e-5))},
		tensors: join(embeddings, classic, fused(heads, true), []tensor{t("position_embd.weight", context, hidden)})},
	"falcon": {name: "falcon", what: "fused projections without biases, one KV head", layers: 2, kvHeads: 1,
		keys: []gguf.KV{key(layerNorm, float32(1e-5))},
		tensors: join(embeddings, output, both("blk.%d.attn_norm", hidden), fused(1, false), []tensor{
			t("output_norm.bias", hidden), t("blk.%d.attn_output.weight", hidden, heads*headDim),
			t("blk.%d.ffn_up.weight", ffn, hidden), t("blk.%d.ffn_down.weight", hidden, ffn)})},
	"starcoder2": {name: "starcoder2", what: "separate projections behind a LayerNorm", layers: 2,
		keys:    []gguf.KV{key(layerNorm, float32(1e-5))},
		tensors: join(embeddings, classic, projections(kvHeads))},
	"starcoder2-fused": {name: "starcoder2", what: "fused projections of several KV heads", layers: 2,
		keys:    []gguf.KV{key(layerNorm, float32(1e-5))},
		tensors: join(embeddings, classic, fused(kvHeads, false))},
	"smollm3": {name: "smollm3", what: "every fourth layer without RoPE", layers: 4,
		keys:    []gguf.KV{key(rms, float32(1e-6))},
		tensors: join(embeddings, attnNorm, separate(kvHeads), ffnNorm, gated)},
	"cohere2": {name: "cohere2", what: "sliding windows with RoPE, every fourth layer full and without", layers: 4,
		keys: []gguf.KV{key(layerNorm, float32(1e-5)), key("attention.sliding_window", uint32(window)),
			key("logit_scale", float32(0.25))},
		tensors: join(embeddings, attnNorm, separate(kvHeads), gated)},
	"gemma2": {name: "gemma2", what: "sliding windows, soft caps, queries scaled behind RoPE", layers: 2,
		keys: []gguf.KV{key(rms, float32(1e-6)), key("attention.sliding_window", uint32(window)),
			key("attn_logit_softcapping", float32(50)), key("final_logit_softcapping", float32(30))},
		tensors: join(embeddings, attnNorm, separate(kvHeads), ffnNorm, gated, []tensor{
			t("blk.%d.post_attention_norm.weight", hidden), t("blk.%d.post_ffw_norm.weight", hidden)})},
	"gpt-oss": {name: "gpt-oss", what: "attention sinks, biases, sliding windows, a mixture", layers: 2,
		keys: []gguf.KV{key(rms, float32(1e-5)), key("attention.sliding_window", uint32(window)),
			key("expert_count", uint32(experts)), key("expert_used_count", uint32(2)),
			key("expert_feed_forward_length", uint32(ffn)), key("rope.dimension_count", uint32(headDim))},
		tensors: join(embeddings, output, attnNorm, separate(kvHeads),
			biases("attn_q attn_k attn_v attn_output", heads*headDim, kvHeads*headDim, kvHeads*headDim, hidden),
			both("blk.%d.ffn_gate_inp", experts, hidden), []tensor{t("blk.%d.attn_sinks.weight", heads),
				t("blk.%d.post_attention_norm.weight", hidden), t("blk.%d.ffn_gate_exps.weight", experts, ffn, hidden),
				t("blk.%d.ffn_up_exps.weight", experts, ffn, hidden), t("blk.%d.ffn_down_exps.weight", experts, hidden, ffn),
				t("blk.%d.ffn_gate_exps.bias", experts, ffn), t("blk.%d.ffn_up_exps.bias", experts, ffn),
				t("blk.%d.ffn_down_exps.bias", experts, hidden)})},
	"deepseek2": {name: "deepseek2", what: "latent attention (MLA)", layers: 2, kvHeads: 1,
		keys: []gguf.KV{key(rms, float32(1e-6)), key("leading_dense_block_count", uint32(2)),
			key("attention.q_lora_rank", uint32(queries)), key("attention.kv_lora_rank", uint32(latent)),
			key("attention.key_length", uint32(latent+turned)), key("attention.value_length", uint32(latent)),
			key("attention.key_length_mla", uint32(turned+unturned)), key("attention.value_length_mla", uint32(headDim)),
			key("rope.dimension_count", uint32(turned)), key("expert_count", uint32(experts)),
			key("expert_used_count", uint32(2)), key("expert_shared_count", uint32(1)),
			key("expert_feed_forward_length", uint32(ffn)), key("expert_gating_func", uint32(1)),
			key("expert_weights_scale", float32(1))},
		tensors: join(embeddings, output, attnNorm, ffnNorm, gated, []tensor{
			t("blk.%d.attn_q_a.weight", queries, hidden), t("blk.%d.attn_q_a_norm.weight", queries),
			t("blk.%d.attn_q_b.weight", heads*(turned+unturned), queries), t("blk.%d.attn_kv_a_mqa.weight", latent+turned, hidden),
			t("blk.%d.attn_kv_a_norm.weight", latent), t("blk.%d.attn_k_b.weight", heads, latent, unturned),
			t("blk.%d.attn_v_b.weight", heads, headDim, latent), t("blk.%d.attn_output.weight", hidden, heads*headDim)})},
	"lfm2": {name: "lfm2", what: "a hybrid: convolutions, attention in every second layer", layers: 4,
		keys: []gguf.KV{key(rms, float32(1e-5)), key("shortconv.l_cache", uint32(3)),
			gguf.Array("attention.head_count_kv", []int32{0, kvHeads, 0, kvHeads})},
		tensors: join([]tensor{t("token_embd.weight", vocab, hidden), t("token_embd_norm.weight", hidden)},
			attnNorm, ffnNorm, gated,
			in(odd, join(separate(kvHeads), headNorms)), in(even, []tensor{t("blk.%d.shortconv.conv.weight", hidden, 3),
				t("blk.%d.shortconv.in_proj.weight", 3*hidden, hidden), t("blk.%d.shortconv.out_proj.weight", hidden, hidden)}))},
	"gemma4": {name: "gemma4", what: "keys and values that later layers read too, two kinds of RoPE", layers: 4,
		keys: []gguf.KV{key(rms, float32(1e-6)), key("attention.sliding_window", uint32(window)),
			gguf.Array("attention.sliding_window_pattern", []bool{true, false, true, false}),
			key("attention.key_length", uint32(headDim)), key("attention.value_length", uint32(headDim)),
			key("attention.key_length_swa", uint32(headDim)), key("attention.value_length_swa", uint32(headDim)),
			key("rope.dimension_count_swa", uint32(headDim)), key("attention.shared_kv_layers", uint32(2)),
			key("embedding_length_per_layer_input", uint32(perLayer)), key("rope.freq_base", float32(1e6)),
			key("rope.freq_base_swa", float32(1e4)), key("final_logit_softcapping", float32(30))},
		tensors: join(embeddings, []tensor{t("per_layer_token_embd.weight", vocab, 4*perLayer),
			t("per_layer_model_proj.weight", 4*perLayer, hidden), t("per_layer_proj_norm.weight", perLayer),
			t("rope_freqs.weight", headDim/2)},
			attnNorm, ffnNorm, gated, []tensor{t("blk.%d.attn_q.weight", heads*headDim, hidden),
				t("blk.%d.attn_output.weight", hidden, heads*headDim), t("blk.%d.attn_q_norm.weight", headDim),
				t("blk.%d.post_attention_norm.weight", hidden), t("blk.%d.post_ffw_norm.weight", hidden),
				t("blk.%d.layer_output_scale.weight", 1), t("blk.%d.inp_gate.weight", perLayer, hidden),
				t("blk.%d.proj.weight", hidden, perLayer), t("blk.%d.post_norm.weight", hidden)},
			in(first, []tensor{t("blk.%d.attn_k.weight", kvHeads*headDim, hidden),
				t("blk.%d.attn_v.weight", kvHeads*headDim, hidden), t("blk.%d.attn_k_norm.weight", headDim)}))},
	"olmo": {name: "olmo", what: "a clamp behind the products", layers: 2, kvHeads: heads,
		keys:    []gguf.KV{key(layerNorm, float32(1e-5)), key("attention.clamp_kqv", float32(8))},
		tensors: join([]tensor{t("token_embd.weight", vocab, hidden)}, separate(heads), gated)},
}

func first(l int) bool { return l < 2 }
func odd(l int) bool   { return l%2 == 1 }
func even(l int) bool  { return l%2 == 0 }

// in restricts tensors to layers.
func in(layers func(int) bool, ts []tensor) []tensor {
	out := slices.Clone(ts)
	for i := range out {
		out[i].only = layers
	}
	return out
}

// Names lists the samples, sorted.
func Names() []string {
	var out []string
	for n := range archs {
		out = append(out, n)
	}
	slices.Sort(out)
	return out
}

// What says what a sample stands for.
func What(name string) string { return archs[name].what }

// Write writes a sample as a GGUF file without a tokenizer, about 1 MiB. The same name gives the same
// bytes.
func Write(path, name string) error {
	a, ok := archs[name]
	if !ok {
		return fmt.Errorf("no sample %q; there are %s", name, strings.Join(Names(), ", "))
	}
	kv := a.kvHeads
	if kv == 0 {
		kv = kvHeads
	}
	meta := []gguf.KV{gguf.Value("general.architecture", a.name), gguf.Value("general.name", "sample "+name),
		gguf.Value("tokenizer.ggml.model", "no_vocab")}
	common := []gguf.KV{
		key("block_count", uint32(a.layers)), key("context_length", uint32(context)), key("embedding_length", uint32(hidden)),
		key("feed_forward_length", uint32(ffn)), key("attention.head_count", uint32(heads)),
		key("attention.head_count_kv", uint32(kv)), key("vocab_size", uint32(vocab)), key("rope.dimension_count", uint32(headDim)),
	}
	common = slices.DeleteFunc(common, func(k gguf.KV) bool { // the sample has another value
		return slices.ContainsFunc(a.keys, func(x gguf.KV) bool { return x.Key == k.Key })
	})
	for _, k := range slices.Concat(common, a.keys) {
		k.Key = a.name + "." + k.Key
		meta = append(meta, k)
	}
	var specs []gguf.TensorSpec
	for _, t := range a.tensors {
		n := 1
		if strings.Contains(t.name, "%d") {
			n = a.layers
		}
		for l := range n {
			name := t.name
			if n > 1 {
				name = fmt.Sprintf(t.name, l)
			}
			if t.only == nil || t.only(l) {
				dims := slices.Clone(t.shape)
				slices.Reverse(dims)
				specs = append(specs, gguf.TensorSpec{Name: name, Dims: dims, Type: gguf.TypeF32})
			}
		}
	}
	w, err := gguf.Create(path, meta, specs)
	if err != nil {
		return err
	}
	r := rand.New(rand.NewPCG(1, 2))
	for _, s := range specs {
		if err := w.WriteTensor(s.Name, func(o io.Writer) error { _, err := o.Write(values(r, s)); return err }); err != nil {
			w.Abort()
			return err
		}
	}
	return w.Commit()
}

// values draws the numbers of a tensor: gains near 1, small biases, matrices that keep lengths.
func values(r *rand.Rand, s gguf.TensorSpec) []byte {
	n := 1
	for _, d := range s.Dims {
		n *= d
	}
	mean, dev := 0.0, 1/math.Sqrt(float64(s.Dims[0]))
	switch {
	case strings.HasSuffix(s.Name, "norm.weight"):
		mean, dev = 1, 0.1
	case strings.HasSuffix(s.Name, ".bias"):
		dev = 0.3
	case strings.HasSuffix(s.Name, "output_scale.weight"), s.Name == "rope_freqs.weight":
		mean, dev = 1, 0.1
	case s.Name == "token_embd.weight":
		dev = 0.1
	case strings.HasPrefix(s.Name, "position_embd"):
		dev = 0.1
	}
	b := make([]byte, 0, 4*n)
	for range n {
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(float32(mean+dev*r.NormFloat64())))
	}
	return b
}
