package llama

import (
	"fmt"
	"strings"
)

// Facts are what an engine knows of a loaded model. Those of attention are read from the graph
// that llama.cpp computes, not from a table of architectures.
type Facts struct {
	Arch   string `json:"arch"`
	Name   string `json:"name,omitempty"`
	Vocab  int    `json:"vocab"`
	Layers int    `json:"layers"` // of the file, whatever they are
	Hidden int    `json:"hidden"`
	// Context is what the model was made for, in tokens.
	Context int `json:"context"`
	// BOS begins a text where AddBOS is set.
	BOS    int32 `json:"bos"`
	AddBOS bool  `json:"add_bos"`
	// Attention lists the layers that read a K cache, in the order in which they run.
	Attention []Attention `json:"attention"`
	// Weights are the weights and biases that the graph reads, by name.
	Weights map[string]Weight `json:"weights"`
	// Nodes is how many operations one graph has.
	Nodes int `json:"nodes"`
}

// A Weight is a tensor of the file as the library holds it.
type Weight struct {
	Type  int32    `json:"type"` // as in GGUF files
	NE    [4]int64 `json:"ne"`   // innermost first
	Bytes int      `json:"bytes"`
}

// Attention is what the graph says of one layer's attention.
type Attention struct {
	// Layer is the layer whose query weights are used, Owner the one whose cache is read.
	Layer int `json:"layer"`
	Owner int `json:"owner"`

	HeadDim  int `json:"head_dim"`
	Heads    int `json:"n_heads"`
	KVHeads  int `json:"n_kv_heads"`
	ValueDim int `json:"value_dim"` // 0: no V cache, values are a part of the keys (MLA)

	Rope *Rope `json:"rope,omitempty"` // nil: positions are not in the keys
	// Scale multiplies scores in the attention node, QueryScale queries in front of it.
	Scale      float32 `json:"scale,omitempty"`
	QueryScale float32 `json:"query_scale,omitempty"`
	SoftCap    float32 `json:"softcap,omitempty"`
	Sinks      bool    `json:"sinks,omitempty"`
	Flash      bool    `json:"flash,omitempty"`

	// K, Q and V are the operations from the matrix product to what is stored or scored.
	K Chain `json:"k"`
	Q Chain `json:"q"`
	V Chain `json:"v,omitempty"`
	// O is the matrix that the output of attention is multiplied by, "" where another operation
	// stands in between.
	O string `json:"o,omitempty"`
}

// Rope are the parameters of a rotation as the node has them.
type Rope struct {
	Mode      int32   `json:"mode"` // 0: pairs (2i, 2i+1); 2: halves; 8, 40: several sections (M-RoPE)
	Dim       int     `json:"dim"`  // numbers that turn
	Theta     float32 `json:"theta"`
	FreqScale float32 `json:"freq_scale"`
	Ext       float32 `json:"ext"`
	Magnitude float32 `json:"magnitude"`
	// Original is the context before YaRN, BetaFast and BetaSlow its ramp.
	Original int32   `json:"original,omitempty"`
	BetaFast float32 `json:"beta_fast,omitempty"`
	BetaSlow float32 `json:"beta_slow,omitempty"`
	// Factors names the tensor that frequencies are divided by, Divisors are its numbers.
	Factors  string    `json:"factors,omitempty"`
	Divisors []float32 `json:"divisors,omitempty"`
}

// A Step is one operation of a chain.
type Step struct {
	Op     string `json:"op"`
	Weight string `json:"weight,omitempty"`
	// Offset of a VIEW is the first number that it takes of a row of what is in front of it.
	Offset int64 `json:"offset,omitempty"`
	// Gaps: it leaves out numbers between the heads.
	Gaps bool `json:"gaps,omitempty"`
}

// A Chain is a list of operations, the matrix product first.
type Chain []Step

// String writes a chain in one line: MUL_MAT blk.0.attn_k.weight, ADD blk.0.attn_k.bias, ROPE.
func (c Chain) String() string {
	var out []string
	for _, s := range c {
		x := s.Op
		if s.Weight != "" {
			x += " " + s.Weight
		}
		if s.Offset != 0 {
			x += fmt.Sprintf(" +%d", s.Offset)
		}
		if s.Gaps {
			x += " with gaps"
		}
		out = append(out, x)
	}
	return strings.Join(out, ", ")
}

// Weights lists the weights of a chain.
func (c Chain) Weights() []string {
	var out []string
	for _, s := range c {
		if s.Weight != "" {
			out = append(out, s.Weight)
		}
	}
	return out
}

// Owners returns the attention of layers that have a cache of their own, each cache once.
func (f *Facts) Owners() []*Attention {
	var out []*Attention
	seen := map[int]bool{}
	for i := range f.Attention {
		if a := &f.Attention[i]; !seen[a.Owner] {
			seen[a.Owner] = true
			out = append(out, a)
		}
	}
	return out
}
