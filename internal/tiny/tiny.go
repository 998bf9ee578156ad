// Package tiny makes small models of every family with random weights, and writes
// the same model as a Hugging Face folder and as a GGUF file. It is for tests.
//
// Names, shapes and layouts stand here a second time, taken from the two formats
// and not from package family, so that a wrong entry there shows as a difference.
package tiny

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/format/dtype"
	"github.com/phaseconv/phaseconv/format/gguf"
)

// Families lists the model types that New knows.
var Families = []string{"llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "olmoe", "gemma3_text"}

// Options change a model; zero values stand for the defaults.
type Options struct {
	Seed uint64

	Layers  int // 2
	Hidden  int // 64
	Heads   int // 4
	KVHeads int // 2
	HeadDim int // 16
	FFN     int // 96, of one expert in a mixture
	Vocab   int // 272; at least MinVocab
	Context int // 256
	Experts int // 4 where the family has experts, of which two are used
	// Window is the sliding window of gemma3_text (32), whose layers alternate.
	Window int

	// DType is the element type of matrices (and, in the folder, of everything):
	// F32 (default), F16 or BF16. Values are rounded to it, so both containers
	// hold the same numbers. GGUF files can also have quantised types that can be
	// written, folders F64.
	DType string
	// Bias gives llama all four attention biases; qwen2 always has its three.
	Bias bool
	// Untied gives the model an output head of its own; olmoe always has one.
	Untied bool
	// NoTokenizer leaves the tokenizer out.
	NoTokenizer bool

	// Shards is the number of safetensors files, with an index from 2 on.
	Shards int
	// Fused stores the folder's experts as transformers 5 has them in memory; Bare
	// leaves the prefix "model." out, as the base class does.
	Fused, Bare bool
	// Config changes entries of config.json; nil as a value removes one.
	Config map[string]any
	// Edit may change the values of a tensor, named as in the folder, before they
	// are rounded.
	Edit func(name string, x []float32)
}

// A Tensor is one tensor of the folder and where it lies in the GGUF file.
type Tensor struct {
	Name   string    // in the folder
	GGUF   string    // in the GGUF file
	Expert int       // its place in the stacked GGUF tensor, -1 if it is not stacked
	Shape  []int     // of the folder's tensor, row-major
	Values []float32 // as stored in the folder
	turned bool      // rows (or numbers) are query or key dimensions
}

// A Model is a complete random model.
type Model struct {
	Family  string
	Options Options // with the defaults filled in
	Tensors []Tensor
	KV      []gguf.KV // further keys of the GGUF file

	info traits
}

// traits is what distinguishes the families.
type traits struct {
	arch, class string
	interleaved bool // the GGUF file pairs neighbouring dimensions
	bias        string
	norm        string // "head", "layer" or ""
	experts     string // module name, "" for dense
	gate, up    string // names inside an expert
	down        string
	gemma       bool // sandwich norms, gains stored minus one, window
}

var families = map[string]traits{
	"llama":   {arch: "llama", class: "LlamaForCausalLM", interleaved: true},
	"mistral": {arch: "llama", class: "MistralForCausalLM", interleaved: true},
	"mixtral": {arch: "llama", class: "MixtralForCausalLM", interleaved: true, experts: "block_sparse_moe", gate: "w1",
		up: "w3", down: "w2"},
	"qwen2": {arch: "qwen2", class: "Qwen2ForCausalLM", bias: "qkv"},
	"qwen3": {arch: "qwen3", class: "Qwen3ForCausalLM", norm: "head"},
	"qwen3_moe": {arch: "qwen3moe", class: "Qwen3MoeForCausalLM", norm: "head", experts: "mlp", gate: "gate_proj",
		up: "up_proj", down: "down_proj"},
	"olmoe": {arch: "olmoe", class: "OlmoeForCausalLM", norm: "layer", experts: "mlp", gate: "gate_proj",
		up: "up_proj", down: "down_proj"},
	"gemma3_text": {arch: "gemma3", class: "Gemma3ForCausalLM", norm: "head", gemma: true},
}

// New makes a model. The same family and options give the same numbers everywhere.
func New(t testing.TB, family string, o Options) *Model {
	t.Helper()
	info, ok := families[family]
	if !ok {
		t.Fatalf("tiny: no family %q", family)
	}
	def := func(p *int, v int) {
		if *p == 0 {
			*p = v
		}
	}
	def(&o.Layers, 2)
	def(&o.Hidden, 64)
	def(&o.Heads, 4)
	def(&o.KVHeads, 2)
	def(&o.HeadDim, 16)
	def(&o.FFN, 96)
	def(&o.Vocab, MinVocab+7)
	def(&o.Context, 256)
	def(&o.Shards, 1)
	if info.experts != "" {
		def(&o.Experts, 4)
	} else {
		o.Experts = 0
	}
	if info.gemma {
		def(&o.Window, 32)
	}
	if o.DType == "" {
		o.DType = "F32"
	}
	typ, err := gguf.ParseType(o.DType)
	if (err != nil || !gguf.CanQuantize(typ)) && o.DType != "F64" || o.Vocab < MinVocab ||
		o.Heads%o.KVHeads != 0 {
		t.Fatalf("tiny: options %+v", o)
	}
	if family == "olmoe" {
		o.Untied = true
	}
	if o.Bias && family == "llama" {
		info.bias = "qkvo"
	}
	m := &Model{Family: family, Options: o, info: info}
	m.tensors()
	for i := range m.Tensors {
		m.fill(&m.Tensors[i], uint64(i))
	}
	return m
}

// HF writes a model of the family as a Hugging Face folder and returns it.
func HF(t testing.TB, dir, family string, o Options) *Model {
	t.Helper()
	m := New(t, family, o)
	m.HF(t, dir)
	return m
}

// GGUF writes a model of the family as a GGUF file and returns it.
func GGUF(t testing.TB, path, family string, o Options) *Model {
	t.Helper()
	m := New(t, family, o)
	m.GGUF(t, path)
	return m
}

// Experts says whether the model is a mixture.
func (m *Model) Experts() bool { return m.info.experts != "" }

// Find returns the folder's tensor of this name.
func (m *Model) Find(name string) *Tensor {
	for i := range m.Tensors {
		if m.Tensors[i].Name == name {
			return &m.Tensors[i]
		}
	}
	return nil
}

// tensors lists names and shapes.
func (m *Model) tensors() {
	o, f := &m.Options, &m.info
	add := func(hf, gguf string, shape ...int) {
		m.Tensors = append(m.Tensors, Tensor{Name: hf, GGUF: gguf, Expert: -1, Shape: shape})
	}
	add("model.embed_tokens.weight", "token_embd.weight", o.Vocab, o.Hidden)
	q, kv := o.Heads*o.HeadDim, o.KVHeads*o.HeadDim
	for l := range o.Layers {
		a, b := fmt.Sprintf("model.layers.%d.", l), fmt.Sprintf("blk.%d.", l)
		for _, x := range []struct {
			letter, hf, gguf string
			rows, cols       int
		}{{"q", "q_proj", "attn_q", q, o.Hidden}, {"k", "k_proj", "attn_k", kv, o.Hidden},
			{"v", "v_proj", "attn_v", kv, o.Hidden}, {"o", "o_proj", "attn_output", o.Hidden, q}} {
			add(a+"self_attn."+x.hf+".weight", b+x.gguf+".weight", x.rows, x.cols)
			turned := x.letter == "q" || x.letter == "k"
			m.Tensors[len(m.Tensors)-1].turned = turned
			if strings.Contains(f.bias, x.letter) {
				add(a+"self_attn."+x.hf+".bias", b+x.gguf+".bias", x.rows)
				m.Tensors[len(m.Tensors)-1].turned = turned
			}
		}
		switch f.norm {
		case "head":
			add(a+"self_attn.q_norm.weight", b+"attn_q_norm.weight", o.HeadDim)
			add(a+"self_attn.k_norm.weight", b+"attn_k_norm.weight", o.HeadDim)
		case "layer":
			add(a+"self_attn.q_norm.weight", b+"attn_q_norm.weight", q)
			add(a+"self_attn.k_norm.weight", b+"attn_k_norm.weight", kv)
		}
		add(a+"input_layernorm.weight", b+"attn_norm.weight", o.Hidden)
		if f.gemma {
			add(a+"post_attention_layernorm.weight", b+"post_attention_norm.weight", o.Hidden)
			add(a+"pre_feedforward_layernorm.weight", b+"ffn_norm.weight", o.Hidden)
			add(a+"post_feedforward_layernorm.weight", b+"post_ffw_norm.weight", o.Hidden)
		} else {
			add(a+"post_attention_layernorm.weight", b+"ffn_norm.weight", o.Hidden)
		}
		if f.experts == "" {
			add(a+"mlp.gate_proj.weight", b+"ffn_gate.weight", o.FFN, o.Hidden)
			add(a+"mlp.up_proj.weight", b+"ffn_up.weight", o.FFN, o.Hidden)
			add(a+"mlp.down_proj.weight", b+"ffn_down.weight", o.Hidden, o.FFN)
			continue
		}
		add(a+f.experts+".gate.weight", b+"ffn_gate_inp.weight", o.Experts, o.Hidden)
		for _, x := range []struct {
			hf, gguf   string
			rows, cols int
		}{{f.gate, "ffn_gate_exps", o.FFN, o.Hidden}, {f.up, "ffn_up_exps", o.FFN, o.Hidden},
			{f.down, "ffn_down_exps", o.Hidden, o.FFN}} {
			for e := range o.Experts {
				add(fmt.Sprintf("%s%s.experts.%d.%s.weight", a, f.experts, e, x.hf), b+x.gguf+".weight", x.rows, x.cols)
				m.Tensors[len(m.Tensors)-1].Expert = e
			}
		}
	}
	add("model.norm.weight", "output_norm.weight", o.Hidden)
	if o.Untied {
		add("lm_head.weight", "output.weight", o.Vocab, o.Hidden)
	}
}

// fill draws a tensor's values and rounds them.
func (m *Model) fill(x *Tensor, index uint64) {
	r := rand.New(rand.NewPCG(m.Options.Seed, index))
	n := 1
	for _, d := range x.Shape {
		n *= d
	}
	x.Values = make([]float32, n)
	cols := x.Shape[len(x.Shape)-1]
	std, centre := 1/math.Sqrt(float64(cols)), 0.0
	switch {
	case x.IsNorm():
		std, centre = 0.2, 1
		if m.info.gemma {
			centre = 0
		}
	case len(x.Shape) == 1: // a bias
		std = 0.5
	case strings.Contains(x.Name, "embed") || strings.Contains(x.Name, "lm_head"):
		std = 0.5
	}
	for i := range x.Values {
		// The sum of twelve uniform numbers is normal enough, and needs no
		// function whose last bit differs between machines.
		g := -6.0
		for range 12 {
			g += r.Float64()
		}
		x.Values[i] = float32(centre + float64(std*g))
	}
	if x.turned || strings.HasSuffix(x.Name, "k_norm.weight") {
		// Rotary pairs of unlike size, as trained models have them.
		for i := range x.Values {
			row := i
			if len(x.Shape) == 2 {
				row = i / cols
			}
			pair := row % m.Options.HeadDim % (m.Options.HeadDim / 2)
			x.Values[i] *= []float32{0.5, 1, 2, 1}[pair%4]
		}
	}
	if m.Options.Edit != nil {
		m.Options.Edit(x.Name, x.Values)
	}
	b := make([]byte, 2*n)
	switch m.Options.DType {
	case "F16":
		dtype.EncodeF16(b, x.Values)
		dtype.DecodeF16(x.Values, b)
	case "BF16":
		dtype.EncodeBF16(b, x.Values)
		dtype.DecodeBF16(x.Values, b)
	}
}

// IsNorm says whether the tensor holds the gains of a norm.
func (x *Tensor) IsNorm() bool { return strings.HasSuffix(x.Name, "norm.weight") }

// Graph returns the values that the forward graph uses: gains are multipliers.
func (m *Model) Graph(x *Tensor) []float32 {
	out := slices.Clone(x.Values)
	if m.info.gemma && x.IsNorm() {
		for i := range out {
			out[i]++
		}
	}
	return out
}

// Stored returns the values in the order of the GGUF file.
func (m *Model) Stored(x *Tensor) []float32 {
	out := m.Graph(x)
	if !x.turned || !m.info.interleaved {
		return out
	}
	d := m.Options.HeadDim
	width := len(out) / x.Shape[0]
	src := slices.Clone(out)
	for row := range x.Shape[0] {
		head, i := row/d, row%d
		to := head*d + 2*(i%(d/2)) + i/(d/2) // (p, p+d/2) becomes (2p, 2p+1)
		copy(out[to*width:(to+1)*width], src[row*width:(row+1)*width])
	}
	return out
}
