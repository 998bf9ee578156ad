package tiny

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/format/safetensors"
)

const (
	ropeTheta   = 10000.0
	gemmaTheta  = 1000000.0 // of full-attention layers
	normEps     = 1e-5
	expertsUsed = 2
)

// sliding says whether layer l of gemma3_text has the window.
func (m *Model) sliding(l int) bool { return m.info.gemma && l%2 == 0 }

// ConfigJSON returns config.json as an object.
func (m *Model) ConfigJSON() map[string]any {
	o := &m.Options
	c := map[string]any{
		"architectures": []string{m.info.class}, "model_type": m.Family, "torch_dtype": map[string]string{"F32": "float32",
			"F16": "float16", "BF16": "bfloat16", "F64": "float64"}[o.DType],
		"hidden_size": o.Hidden, "num_hidden_layers": o.Layers, "num_attention_heads": o.Heads,
		"num_key_value_heads": o.KVHeads, "head_dim": o.HeadDim,
		"intermediate_size": o.FFN, "vocab_size": o.Vocab, "max_position_embeddings": o.Context, "rms_norm_eps": normEps,
		"rope_theta": ropeTheta, "hidden_act": "silu", "tie_word_embeddings": !o.Untied, "bos_token_id": EndOfText,
		"eos_token_id": EndOfText,
	}
	switch m.Family {
	case "llama":
		c["attention_bias"] = o.Bias
	case "mistral":
		c["sliding_window"] = nil // absent means 4096
	case "mixtral":
		c["sliding_window"] = nil
		c["num_local_experts"], c["num_experts_per_tok"] = o.Experts, expertsUsed
	case "qwen3_moe":
		c["num_experts"], c["num_experts_per_tok"], c["moe_intermediate_size"], c["norm_topk_prob"] = o.Experts, expertsUsed,
			o.FFN, true
	case "olmoe":
		c["num_experts"], c["num_experts_per_tok"], c["norm_topk_prob"] = o.Experts, expertsUsed, false
	case "gemma3_text":
		delete(c, "hidden_act")
		c["hidden_activation"], c["query_pre_attn_scalar"] = "gelu_pytorch_tanh", o.HeadDim
		c["rope_theta"], c["rope_local_base_freq"], c["sliding_window"] = gemmaTheta, ropeTheta, o.Window
		var types []string
		for l := range o.Layers {
			types = append(types, map[bool]string{true: "sliding_attention", false: "full_attention"}[m.sliding(l)])
		}
		c["layer_types"] = types
	}
	for k, v := range o.Config {
		if v == nil {
			delete(c, k)
		} else {
			c[k] = v
		}
	}
	return c
}

// HF writes the model as a Hugging Face folder, which it makes if need be.
func (m *Model) HF(t testing.TB, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	writeJSON(t, filepath.Join(dir, "config.json"), m.ConfigJSON())
	if !m.Options.NoTokenizer {
		writeTokenizer(t, dir)
	}
	// Tensors are dealt out one by one, so that a layer's experts lie in
	// different files.
	n := m.Options.Shards
	stored := m.stored()
	index := map[string]string{}
	for s := range n {
		name := safetensors.SingleName
		if n > 1 {
			name = fmt.Sprintf("model-%05d-of-%05d.safetensors", s+1, n)
		}
		var specs []safetensors.Tensor
		var values [][]float32
		for i := s; i < len(stored); i += n {
			x := &stored[i]
			specs = append(specs, safetensors.Tensor{Name: x.Name, DType: m.Options.DType, Shape: x.Shape})
			values = append(values, x.Values)
			index[x.Name] = name
		}
		w, err := safetensors.Create(filepath.Join(dir, name), specs, map[string]string{"format": "pt"})
		if err != nil {
			t.Fatal(err)
		}
		for i, x := range specs {
			b := make([]byte, len(values[i])*safetensors.ElementBytes(x.DType))
			safetensors.Encode(x.DType, b, values[i])
			if err := w.WriteTensor(x.Name, func(o io.Writer) error { _, err := o.Write(b); return err }); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Commit(); err != nil {
			t.Fatal(err)
		}
	}
	if n > 1 {
		writeJSON(t, filepath.Join(dir, safetensors.IndexName),
			map[string]any{"metadata": map[string]any{}, "weight_map": index})
	}
}

// stored returns the tensors as the folder has them.
func (m *Model) stored() []Tensor {
	var out []Tensor
	fused := map[string]int{} // name to place in out
	for _, x := range m.Tensors {
		module := "." + m.info.experts + "."
		if m.Options.Fused && m.info.experts != "" && strings.Contains(x.Name, module) {
			before, _, _ := strings.Cut(x.Name, module)
			name, rows := before+".mlp.gate.weight", 0
			switch {
			case x.Expert < 0: // the router
			case strings.HasSuffix(x.Name, m.info.down+".weight"):
				name, rows = before+".mlp.experts.down_proj", x.Shape[0]
			default:
				name, rows = before+".mlp.experts.gate_up_proj", 2*x.Shape[0]
			}
			if rows > 0 {
				at, ok := fused[name]
				if !ok {
					at, fused[name] = len(out), len(out)
					out = append(out, Tensor{Name: name, Shape: []int{m.Options.Experts, rows, x.Shape[1]}, Values: make([]float32,
						m.Options.Experts*rows*x.Shape[1])})
				}
				row := x.Expert * rows
				if strings.HasSuffix(x.Name, m.info.up+".weight") {
					row += x.Shape[0]
				}
				copy(out[at].Values[row*x.Shape[1]:], x.Values)
				continue
			}
			x.Name = name
		}
		out = append(out, x)
	}
	if m.Options.Bare {
		for i := range out {
			out[i].Name = strings.TrimPrefix(out[i].Name, "model.")
		}
	}
	return out
}

func writeJSON(t testing.TB, path string, v any) {
	t.Helper()
	b, err := json.MarshalIndent(v, "", "  ")
	if err == nil {
		err = os.WriteFile(path, append(b, '\n'), 0o666)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// KVs returns the metadata of the GGUF file.
func (m *Model) KVs() []gguf.KV {
	o, arch := &m.Options, m.info.arch
	kvs := []gguf.KV{
		gguf.Value("general.architecture", arch), gguf.Value("general.type", "model"),
		gguf.Value("general.name", "tiny "+m.Family),
	}
	u32 := func(key string, n int) { kvs = append(kvs, gguf.Value(arch+"."+key, uint32(n))) }
	f32 := func(key string, x float64) { kvs = append(kvs, gguf.Value(arch+"."+key, float32(x))) }
	u32("block_count", o.Layers)
	u32("context_length", o.Context)
	u32("embedding_length", o.Hidden)
	u32("feed_forward_length", o.FFN)
	u32("attention.head_count", o.Heads)
	u32("attention.head_count_kv", o.KVHeads)
	u32("attention.key_length", o.HeadDim)
	u32("attention.value_length", o.HeadDim)
	f32("attention.layer_norm_rms_epsilon", normEps)
	theta := ropeTheta
	if m.info.gemma {
		theta = gemmaTheta
		u32("attention.sliding_window", o.Window)
		flags := make([]bool, o.Layers)
		for l := range flags {
			flags[l] = m.sliding(l)
		}
		kvs = append(kvs, gguf.Array(arch+".attention.sliding_window_pattern", flags))
		f32("rope.freq_base_swa", ropeTheta)
	}
	f32("rope.freq_base", theta)
	if o.Experts > 0 {
		u32("expert_count", o.Experts)
		u32("expert_used_count", expertsUsed)
		u32("expert_feed_forward_length", o.FFN)
	}
	if !o.NoTokenizer {
		kvs = append(kvs, tokenizerKVs(o.Vocab)...)
	}
	return append(kvs, m.KV...)
}

// GGUF writes the model as one GGUF file.
func (m *Model) GGUF(t testing.TB, path string) {
	t.Helper()
	typ, err := gguf.ParseType(m.Options.DType)
	if err != nil {
		t.Fatal(err)
	}
	type part struct {
		spec gguf.TensorSpec
		data []byte
	}
	var parts []*part
	byName := map[string]*part{}
	for i := range m.Tensors {
		x := &m.Tensors[i]
		p := byName[x.GGUF]
		if p == nil {
			p = &part{spec: gguf.TensorSpec{Name: x.GGUF, Type: typ}}
			if len(x.Shape) == 1 || strings.HasSuffix(x.GGUF, "ffn_gate_inp.weight") {
				p.spec.Type = gguf.TypeF32 // vectors and routers, as stock converters do
			}
			for j := len(x.Shape) - 1; j >= 0; j-- {
				p.spec.Dims = append(p.spec.Dims, x.Shape[j])
			}
			if x.Expert >= 0 {
				p.spec.Dims = append(p.spec.Dims, m.Options.Experts)
			}
			byName[x.GGUF], parts = p, append(parts, p)
		}
		values := m.Stored(x)
		size, err := gguf.RowBytes(p.spec.Type, len(values))
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, size)
		if err := gguf.QuantizeRow(p.spec.Type, b, values); err != nil {
			t.Fatal(err)
		}
		p.data = append(p.data, b...)
	}
	var specs []gguf.TensorSpec
	for _, p := range parts {
		specs = append(specs, p.spec)
	}
	w, err := gguf.Create(path, m.KVs(), specs)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	for _, p := range parts {
		if err := w.WriteTensor(p.spec.Name, func(o io.Writer) error { _, err := o.Write(p.data); return err }); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
}
