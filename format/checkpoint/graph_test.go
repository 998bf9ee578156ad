package checkpoint_test

import (
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/format"
	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/internal/tiny"
	"github.com/phaseconv/phaseconv/spec"
)

// graph describes the second layer of a tiny llama as the only cache: 4 heads and 2 KV heads of 16.
func graph() *spec.Graph {
	weight := func(role, name string, rows int) spec.GraphTensor {
		return spec.GraphTensor{Role: role, Name: "blk.1." + name, Rows: rows}
	}
	return &spec.Graph{Architecture: "llama", Hidden: 64, Vocab: tiny.MinVocab + 7, Context: 256, PairLayout: "interleaved",
		Caches: []spec.GraphCache{{Block: 1, Heads: 4, KVHeads: 2, HeadDim: 16, ValueDim: 16, Scale: 0.25, Norm: "none",
			Rope: &spec.GraphRope{Dim: 16, Theta: 10000},
			Tensors: []spec.GraphTensor{weight("attn_q.weight", "attn_q.weight", 64), weight("attn_k.weight", "attn_k.weight", 32),
				weight("attn_v.weight", "attn_v.weight", 32), weight("attn_output.weight", "attn_output.weight", 64)}}}}
}

// TestOpenAs: a file opened by a graph has the tensors of the roles, under names that count caches, and
// what the graph does not name is left alone; rows of a larger tensor are parts of it.
func TestOpenAs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.gguf")
	tiny.GGUF(t, path, "llama", tiny.Options{Seed: 4})
	whole, err := checkpoint.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer whole.Close()
	c, err := checkpoint.OpenAs(path, graph())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	k, ok := c.Find("blk.0.attn_k.weight")
	if !ok || len(c.Config.Layers) != 1 || len(c.Tensors()) != 4 || !slices.Contains(c.Unknown, "blk.0.attn_k.weight") {
		t.Fatalf("tensors %v, unknown %v", c.Tensors(), c.Unknown)
	}
	got, err := c.ReadAll(k)
	if err != nil {
		t.Fatal(err)
	}
	x, _ := whole.Find("blk.1.attn_k.weight")
	want, err := whole.ReadAll(x)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("the key matrix of the cache is not that of the block (%v)", err)
	}
	// Half of the query rows belong to a model with half of the heads.
	g := graph()
	g.Caches[0].Heads, g.Caches[0].Tensors = 2, []spec.GraphTensor{g.Caches[0].Tensors[0], g.Caches[0].Tensors[1]}
	g.Caches[0].Tensors[0].Row, g.Caches[0].Tensors[0].Rows = 32, 32
	part, err := checkpoint.OpenAs(path, g)
	if err != nil {
		t.Fatal(err)
	}
	defer part.Close()
	q, _ := part.Find("blk.0.attn_q.weight")
	if got, err = part.ReadAll(q); err != nil {
		t.Fatal(err)
	}
	x, _ = whole.Find("blk.1.attn_q.weight")
	if want, err = whole.ReadAll(x); err != nil || !slices.Equal(got, want[len(want)/2:]) {
		t.Errorf("the second half of the query matrix is not that (%v)", err)
	}
	if held := part.Holds("blk.1.attn_q.weight"); len(held) != 2 || held[1].Name != q.Name || held[0].Rows() != 32 {
		t.Errorf("the stored matrix holds %v", held)
	}
	// Digests are of what makes keys: one for each graph.
	one, err := c.AttentionDigest(t.Context(), false, nil)
	if err != nil {
		t.Fatal(err)
	}
	if two, err := part.AttentionDigest(t.Context(), false, nil); err != nil || one == two {
		t.Errorf("digests %s and %s (%v)", one, two, err)
	}
}

// optional adds a bias that the file lacks.
func optional(c *spec.GraphCache, role string, row, rows int) {
	c.Tensors = append(c.Tensors, spec.GraphTensor{Role: role, Name: "blk.1.attn_qkv.bias", Row: row, Rows: rows, Optional: true})
}

// TestOptional: a bias that a file lacks and its readers take is no tensor of the checkpoint, which says where
// it is to be stored: alone under its name, or as a part of another.
func TestOptional(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.gguf")
	tiny.GGUF(t, path, "llama", tiny.Options{Seed: 4})
	g := graph()
	for i, role := range []string{"attn_v.bias", "attn_k.bias", "attn_q.bias"} {
		optional(&g.Caches[0], role, []int{96, 64, 0}[i], []int{32, 32, 64}[i])
	}
	c, err := checkpoint.OpenAs(path, g)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, ok := c.Find("blk.0.attn_k.bias"); ok || !c.Config.Family.GGUFBias.K || c.Config.Family.AttnBias.K {
		t.Errorf("the bias is there: %v; %+v, %+v", ok, c.Config.Family.AttnBias, c.Config.Family.GGUFBias)
	}
	stored, parts := c.AddedTo("blk.0.attn_k.bias")
	if want := []string{"blk.0.attn_q.bias", "blk.0.attn_k.bias", "blk.0.attn_v.bias"}; stored != "blk.1.attn_qkv.bias" ||
		!slices.Equal(parts, want) {
		t.Errorf("stored in %s as %v, expected %v", stored, parts, want)
	}
	if stored, parts = c.AddedTo("other"); stored != "other" || len(parts) != 1 {
		t.Errorf("another one is stored in %s as %v", stored, parts)
	}
}

// TestOpenAsRefuses: a graph that does not fit the file, or contradicts itself, is an error that names what.
func TestOpenAsRefuses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.gguf")
	tiny.GGUF(t, path, "llama", tiny.Options{Seed: 4})
	for says, breaks := range map[string]func(g *spec.Graph, c *spec.GraphCache){
		"general.architecture": func(g *spec.Graph, _ *spec.GraphCache) { g.Architecture = "gptneox" },
		"is missing":           func(_ *spec.Graph, c *spec.GraphCache) { c.Tensors[1].Name = "blk.1.attn_qkv.weight" },
		"has no rows":          func(_ *spec.Graph, c *spec.GraphCache) { c.Tensors[1].Row = 1 },
		"has shape":            func(_ *spec.Graph, c *spec.GraphCache) { c.Tensors[1].Rows = 31 },
		"two tensors":          func(_ *spec.Graph, c *spec.GraphCache) { c.Tensors[1].Role = "attn_v.weight" },
		"shares rows": func(_ *spec.Graph, c *spec.GraphCache) {
			c.Tensors[2].Name = c.Tensors[1].Name
		},
		"rows 0 to 31": func(_ *spec.Graph, c *spec.GraphCache) { optional(c, "attn_k.bias", 0, 31) },
		"none of its vectors": func(_ *spec.Graph, c *spec.GraphCache) {
			optional(c, "attn_k_norm.weight", 0, 16)
		},
		"begins at row 64, expected 0": func(_ *spec.Graph, c *spec.GraphCache) { optional(c, "attn_v.bias", 64, 32) },
		"is no role":                   func(_ *spec.Graph, c *spec.GraphCache) { c.Tensors[1].Role = "ffn_up.weight" },
		"pair layout":                  func(g *spec.Graph, _ *spec.GraphCache) { g.PairLayout = "thirds" },
		"num_hidden_layers":            func(g *spec.Graph, _ *spec.GraphCache) { g.Caches = nil },
		"num_key_value_heads":          func(_ *spec.Graph, c *spec.GraphCache) { c.KVHeads = 1 << 30 },
		"theta":                        func(_ *spec.Graph, c *spec.GraphCache) { c.Rope.Theta = -1 },
		"divisors": func(_ *spec.Graph, c *spec.GraphCache) {
			c.Rope.Scaling, c.Rope.Divisors = "divisor", []float64{1}
		},
	} {
		g := graph()
		breaks(g, &g.Caches[0])
		c, err := checkpoint.OpenAs(path, g)
		if err == nil {
			c.Close()
		}
		if err == nil || !strings.Contains(err.Error(), says) || !errors.Is(err, format.ErrBroken) {
			t.Errorf("%s: %v", says, err)
		}
	}
}
