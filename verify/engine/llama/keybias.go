package llama

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/spec"
)

// Whether llama.cpp takes a key bias in files of an architecture is in no list: the library in use is
// asked. It gets a file with the model's metadata and shapes, zeros in place of numbers, and the biases;
// it refuses tensors that it has no use for, and its graph says what becomes of the others.

// withKeyBias adds the key biases that the file lacks to a graph, as optional tensors, if the library
// takes one in each of its caches; else it returns the graph as it is. The file that is asked with takes
// no room where the filesystem keeps no zeros, and its worker no memory of its own but for one token; it is
// another process, for the library may end on it.
func (m *Model) withKeyBias(ctx context.Context, g *spec.Graph) (*spec.Graph, error) {
	with := *g
	with.Caches = slices.Clone(g.Caches)
	var added []gguf.TensorSpec
	for i := range with.Caches {
		c := &with.Caches[i]
		bias, dims := m.biasOf(c)
		if bias == nil {
			return g, nil
		}
		c.Tensors = append(slices.Clone(c.Tensors), bias...)
		added = append(added, gguf.TensorSpec{Name: bias[0].Name, Type: gguf.TypeF32, Dims: dims})
	}
	facts, err := m.ask(ctx, added)
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case err != nil, facts.CheckGraph(&with) != nil:
		return g, nil // this release takes none, or does something else with it
	}
	for _, t := range added {
		if _, used := facts.Weights[t.Name]; !used {
			return g, nil
		}
	}
	return &with, nil
}

// biasOf returns the tensors of a key bias for a cache, and their shape in the file: that of the key matrix
// alone or, where queries, keys and values are one product, of all of it. nil: there can be none, or is one.
func (m *Model) biasOf(c *spec.GraphCache) ([]spec.GraphTensor, []int) {
	if c.FixedKeys != "" || c.Norm != family.NoQKNorm.String() {
		return nil, nil
	}
	var key spec.GraphTensor
	var rows []spec.GraphTensor // of the matrices of queries, keys and values
	for _, t := range c.Tensors {
		if strings.HasSuffix(t.Role, ".bias") && t.Role != "attn_output.bias" {
			return nil, nil // a release that reads one of them may need all
		}
		if t.Role == "attn_k.weight" {
			key = t
		}
		if t.Role != "attn_output.weight" {
			rows = append(rows, t)
		}
	}
	all := int(m.Facts.Weights[key.Name].NE[1])
	name, isWeight := strings.CutSuffix(key.Name, ".weight")
	if !isWeight {
		return nil, nil
	}
	optional := func(t spec.GraphTensor) spec.GraphTensor {
		return spec.GraphTensor{Role: strings.TrimSuffix(t.Role, ".weight") + ".bias", Name: name + ".bias", Row: t.Row,
			Rows: t.Rows, Optional: true}
	}
	if all == key.Rows {
		return []spec.GraphTensor{optional(key)}, []int{all}
	}
	var out []spec.GraphTensor
	for _, t := range rows {
		if t.Name == key.Name {
			out, all = append(out, optional(t)), all-t.Rows
		}
	}
	if all != 0 { // rows that are none of these
		return nil, nil
	}
	return out, []int{int(m.Facts.Weights[key.Name].NE[1])}
}

// ask returns what the graph of the model's file with further tensors would be.
func (m *Model) ask(ctx context.Context, added []gguf.TensorSpec) (*Facts, error) {
	dir, err := os.MkdirTemp("", "phaseconv-engine")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // a temporary folder
	f, err := gguf.Open(m.Path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var specs []gguf.TensorSpec
	for i := range f.Tensors {
		specs = append(specs, f.Tensors[i].Spec())
	}
	path := filepath.Join(dir, "hollow.gguf")
	vectors := func(name string) io.Reader { // of RoPE's frequencies numbers count
		if t, ok := f.Tensor(name); ok && t.Rows() == 1 {
			return f.Reader(t)
		}
		return nil
	}
	if err := gguf.WriteHollow(path, f.KVs, append(specs, added...), vectors); err != nil {
		return nil, err
	}
	w, err := NewWorker(ctx, Start{Program: m.w.start.Program, Dir: m.w.start.Dir, NoRotation: m.w.start.NoRotation})
	if err != nil {
		return nil, err
	}
	defer w.Close()
	var out Loaded
	if _, err := w.call(ctx, KindLoad, Load{Path: path, Devices: []string{"CPU"}, Threads: m.place.Threads, Ask: true},
		&out,
		nil, nil); err != nil {
		return nil, err
	}
	if out.Facts == nil {
		return nil, fmt.Errorf("%s: the worker gave no facts", m.Path)
	}
	return out.Facts, nil
}
