// Package quantweights emulates the weights of quantised files: which type llama-quantize gives
// each matrix of a model, and what that type leaves of its numbers.
package quantweights

import (
	"fmt"
	"slices"
	"strings"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/verify/option"
)

// A FileType is what llama-quantize makes of a model under one name: most matrices have Type, some a
// better one.
type FileType struct {
	Name  string // as --weights takes it
	Label string // as llama-quantize takes it
	Type  gguf.Type
	// Importance, if set, is the importance matrix that llama-quantize is given.
	Importance Importance
}

// FileTypes are those that can be emulated.
var FileTypes = []FileType{
	{Name: "q4_0", Label: "Q4_0", Type: gguf.TypeQ4_0}, {Name: "q4_k", Label: "Q4_K_M", Type: gguf.TypeQ4_K},
	{Name: "q3_k", Label: "Q3_K_M", Type: gguf.TypeQ3_K},
	{Name: "q2_k", Label: "Q2_K", Type: gguf.TypeQ2_K}, {Name: "q8_0", Label: "Q8_0", Type: gguf.TypeQ8_0},
	{Name: "q1_0", Label: "Q1_0", Type: gguf.TypeQ1_0},
	{Name: "q2_0", Label: "Q2_0", Type: gguf.TypeQ2_0}, {Name: "mxfp4", Label: "MXFP4_MOE", Type: gguf.TypeMXFP4},
}

// Names lists the names of FileTypes, for messages.
func Names() string {
	var n []string
	for _, f := range FileTypes {
		n = append(n, f.Name)
	}
	return strings.Join(n, ", ")
}

// Parse returns the file type of a name.
func Parse(name string) (FileType, error) {
	for _, f := range FileTypes {
		if strings.EqualFold(name, f.Name) {
			return f, nil
		}
	}
	return FileType{}, option.Bad("Weights", name, "expected %s", Names())
}

// A role is what llama-quantize takes a matrix for, by its name.
type role int

const (
	other role = iota
	output
	embeddings
	values // or all three projections of attention in one
	keys
	attentionOutput
	down
)

// roleOf reads the role from the name that a tensor has in a GGUF file.
func roleOf(name string) role {
	switch {
	case name == "output.weight":
		return output
	case name == "token_embd.weight":
		return embeddings
	case strings.Contains(name, "attn_qkv.weight"), strings.Contains(name, "attn_v.weight"):
		return values
	case strings.Contains(name, "attn_k.weight"):
		return keys
	case strings.Contains(name, "attn_output.weight"):
		return attentionOutput
	case strings.Contains(name, "ffn_down"):
		return down
	}
	return other
}

// A place is what the choice of a type depends on.
type place struct {
	role           role
	cols           int
	bank           bool // a matrix per expert
	layer, layers  int
	nth, all       int // of the matrices with the role values
	experts, group int // query heads per KV head
	tied           bool
	large          bool // counts as a 70B model
}

// moreBits says which of n layers some mixtures give a better type.
func moreBits(i, n int) bool { return i < n/8 || i >= 7*n/8 || (i-n/8)%3 == 2 }

// choose returns the type that llama-quantize gives a matrix, before it looks at the length of rows.
func (f *FileType) choose(p place) gguf.Type {
	switch block, _ := f.Type.Block(); {
	case p.role == output || p.tied && p.role == embeddings:
		if f.Type == gguf.TypeMXFP4 || f.Type == gguf.TypeQ8_0 || p.cols%block != 0 {
			return gguf.TypeQ8_0
		}
		return gguf.TypeQ6_K
	case f.Type == gguf.TypeMXFP4:
		if p.bank {
			return gguf.TypeMXFP4
		}
		return gguf.TypeQ8_0
	case p.role == embeddings:
		if f.Type == gguf.TypeQ2_0 {
			return gguf.TypeQ4_K
		}
		return f.Type
	}
	switch p.role {
	case values:
		return f.ofValues(p)
	case keys:
		if p.experts == 8 {
			return gguf.TypeQ8_0
		}
	case down:
		return f.ofDown(p)
	case attentionOutput:
		return f.ofAttentionOutput(p)
	}
	return f.Type
}

// ofValues is choose for the projection of values, or for all three of attention in one.
func (f *FileType) ofValues(p place) gguf.Type {
	if p.experts == 8 {
		return gguf.TypeQ8_0
	}
	t := f.Type
	switch f.Type {
	case gguf.TypeQ2_K:
		t = gguf.TypeQ3_K
		if p.group >= 4 {
			t = gguf.TypeQ4_K
		}
	case gguf.TypeQ3_K:
		t = gguf.TypeQ4_K
		if p.nth < 2 {
			t = gguf.TypeQ5_K
		}
	case gguf.TypeQ4_K:
		if moreBits(p.nth, p.all) {
			t = gguf.TypeQ6_K
		}
	}
	if p.large && (t == gguf.TypeQ3_K || t == gguf.TypeQ4_K) {
		return gguf.TypeQ5_K
	}
	return t
}

// ofDown is choose for the matrices from neurons to the stream.
func (f *FileType) ofDown(p place) gguf.Type {
	switch {
	case f.Type == gguf.TypeQ2_K:
		return gguf.TypeQ3_K
	case f.Type == gguf.TypeQ3_K && p.layer < p.layers/16:
		return gguf.TypeQ5_K
	case f.Type == gguf.TypeQ3_K:
		return gguf.TypeQ4_K
	case f.Type == gguf.TypeQ4_K && moreBits(p.layer, p.layers):
		return gguf.TypeQ6_K
	case f.Type == gguf.TypeQ4_0 && f.Importance != nil && p.layer < p.layers/8:
		return gguf.TypeQ4_1
	}
	return f.Type
}

// ofAttentionOutput is choose for the output projection of attention.
func (f *FileType) ofAttentionOutput(p place) gguf.Type {
	k := f.Type == gguf.TypeQ2_K || f.Type == gguf.TypeQ3_K
	switch {
	case p.experts == 8 && (k || f.Type == gguf.TypeQ4_K):
		return gguf.TypeQ5_K
	case p.experts == 8:
		return f.Type
	case f.Type == gguf.TypeQ2_K:
		return gguf.TypeQ3_K
	case f.Type == gguf.TypeQ3_K:
		return gguf.TypeQ4_K
	}
	return f.Type
}

// fallbacks are the types of matrices whose rows blocks of 64 or 256 do not divide.
var fallbacks = map[gguf.Type]gguf.Type{
	gguf.TypeQ2_0: gguf.TypeQ4_0, gguf.TypeQ2_K: gguf.TypeQ4_0, gguf.TypeQ3_K: gguf.TypeQ4_0, gguf.TypeQ4_K: gguf.TypeQ5_0,
	gguf.TypeQ5_K: gguf.TypeQ5_1, gguf.TypeQ6_K: gguf.TypeQ8_0,
}

// fit returns t, or what llama-quantize takes instead for rows of cols numbers.
func fit(t gguf.Type, cols int) (gguf.Type, error) {
	divides := func(t gguf.Type) bool { n, _ := t.Block(); return cols%n == 0 }
	if divides(t) {
		return t, nil
	}
	if n, _ := t.Block(); n > 32 {
		instead, ok := fallbacks[t]
		if !ok {
			return 0, fmt.Errorf("rows of %d numbers are no whole blocks of %s, and llama-quantize has no type for that", cols, t)
		}
		t = instead
	}
	if !divides(t) {
		t = gguf.TypeF16
	}
	return t, nil
}

// stays are endings of matrices that llama-quantize leaves as they are.
var stays = []string{"_norm.weight", "ffn_gate_inp.weight"}

// Types returns the type that llama-quantize gives each canonical
// tensor of a model that it changes. head says that the file has an output matrix of its own. Norms, biases and
// routers are not in the result. It is an error if a matrix has no such type.
func (f *FileType) Types(c *family.Config, w checkpoint.Weights, head bool) (map[string]gguf.Type, error) {
	stored := storedNames(c, w)
	first := c.Layers[0].HeadShape
	base := place{layers: len(c.Layers) + c.DraftLayers, experts: c.Experts(), group: first.Group(), tied: !head,
		large: len(c.Layers) == 80 && first.Heads != first.KVHeads &&
			slices.Contains([]string{"llama", "qwen2"}, c.Family.GGUFArch)}
	var matrices []*checkpoint.Tensor
	for _, x := range c.Tensors() {
		t, ok := w.Find(x.Name)
		if !ok || len(t.Shape) < 2 || !strings.HasSuffix(x.Name, ".weight") ||
			slices.ContainsFunc(stays, func(end string) bool { return strings.HasSuffix(x.Name, end) }) {
			continue
		}
		matrices = append(matrices, t)
		if p := stored[t.Name]; roleOf(p.name) == values && p.first {
			base.all++
		}
	}
	out := map[string]gguf.Type{}
	seen := -1
	for _, t := range matrices {
		name, p := stored[t.Name], base
		p.role, p.cols, p.bank, p.layer = roleOf(name.name), t.Cols(), len(t.Shape) > 2, t.Layer
		if p.role == values && name.first {
			seen++
		}
		p.nth = seen
		typ, err := fit(f.choose(p), p.cols)
		if err != nil {
			return nil, fmt.Errorf("tensor %s as %s: %w", t.Name, f.Label, err)
		}
		out[t.Name] = typ
	}
	return out, nil
}

// A storedName is what a tensor is called in a GGUF file, and whether it is the first or the only one
// in the tensor of that name.
type storedName struct {
	name  string
	first bool
}

// storedNames returns the names of tensors in GGUF files, where stacks hold several.
func storedNames(c *family.Config, w checkpoint.Weights) map[string]storedName {
	out := map[string]storedName{}
	for _, x := range c.Tensors() {
		out[x.Name] = storedName{c.Family.GGUFName(x.Name), true}
	}
	for l := range c.Layers {
		for _, s := range c.Family.GGUFStacks(l) {
			first := true
			for _, part := range s.Parts {
				if _, ok := w.Find(part); ok {
					out[part] = storedName{s.Name, first}
					first = false
				}
			}
		}
	}
	return out
}
