//go:build (linux || darwin) && (amd64 || arm64)

package worker

import (
	"context"
	"fmt"

	"github.com/phaseconv/phaseconv/cmd/phaseconv-llama/internal/graph"
	"github.com/phaseconv/phaseconv/cmd/phaseconv-llama/internal/libllama"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/kernels/parallel"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/rotations/sidecar"
	"github.com/phaseconv/phaseconv/verify/engine/llama"
	"github.com/phaseconv/phaseconv/verify/kvcache"
)

// A coder is what a lane replaces keys by, and values where it says so. Its layers are caches, in the order
// of llama.Facts.Owners.
type coder struct {
	kvcache.Coder
	values bool
}

// times is the coder of tests: it multiplies what is stored.
type times struct{ k, v float32 }

func (x times) Code(_ context.Context, _, _ int, k, v []float32) error {
	for i := range k {
		k[i] *= x.k
	}
	for i := range v {
		v[i] *= x.v
	}
	return nil
}

// coder returns what a lane replaces keys and values by.
func (m *model) coder(k *llama.Keys) (coder, error) {
	switch k.Kind {
	case llama.KeysSame:
		return coder{times{1, 1}, false}, nil
	case llama.KeysDouble:
		return coder{times{2, 1}, false}, nil
	case llama.AllSame:
		return coder{times{1, 1}, true}, nil
	case llama.ValuesDouble:
		return coder{times{1, 2}, true}, nil
	}
	cfg := m.facts.Caches()
	policy := kvcache.Policy{Anchor: k.Anchor, Sink: k.Sink, Exceptions: k.Exceptions}
	graph := m.facts.Graph()
	for l := range cfg.Layers {
		if policy.Anchor > 0 && graph.Caches[l].RopeUnknown {
			return coder{}, fmt.Errorf("position anchors need RoPE of a known kind, which layer %d does not have; take "+
				"--anchor 0", graph.Caches[l].Block)
		}
	}
	var codes [][]*codec.Code
	if k.Sidecar != "" {
		s, err := sidecar.Read(context.Background(), k.Sidecar)
		if err != nil {
			return coder{}, err
		}
		// The graph has the pairs of the file that was loaded.
		if s, err = s.To(context.Background(), cfg.Pairs); err != nil {
			return coder{}, err
		}
		all, ok := s.HeadCodes()
		if !ok {
			return joint(cfg, s, policy)
		}
		for _, layer := range all {
			if len(layer) > 0 { // the others read the caches of these
				codes = append(codes, layer)
			}
		}
	} else {
		kind, err := codec.ParseKind(k.Kind)
		if err != nil {
			return coder{}, err
		}
		for l := range cfg.Layers {
			var row []*codec.Code
			for h := range cfg.Layers[l].KVHeads {
				c, err := codec.DataFree(kind, cfg.Layers[l].HeadDim, k.Seed, l, h)
				if err != nil {
					return coder{}, err
				}
				row = append(row, c)
			}
			codes = append(codes, row)
		}
	}
	for l := range cfg.Layers {
		y := &cfg.Layers[l]
		// What a cache holds is a row of numbers to a code, also MLA's latent rows.
		y.Kind, y.ValueDim = family.Softmax, y.HeadDim
	}
	c, err := kvcache.NewCodes(cfg, codes, policy)
	return coder{c, false}, err
}

// joint returns the coder of a sidecar with groups of keys and values.
func joint(cfg *family.Config, s *sidecar.Sidecar, p kvcache.Policy) (coder, error) {
	var groups [][]*codec.Group
	for _, y := range s.Layers {
		if len(y.Groups) > 0 { // the others read the caches of these
			groups = append(groups, y.Groups)
		}
	}
	c, err := kvcache.NewGroups(cfg, groups, p)
	return coder{c, true}, err
}

// code replaces keys and values of tokens from position from on, a block of tokens in each thread.
func (c *coder) code(cache, from, tokens int, k, v []float32, threads int) error {
	blocks := min(tokens, threads)
	return parallel.For(context.Background(), threads, blocks, func(i int) error {
		a, b := i*tokens/blocks, (i+1)*tokens/blocks
		part := func(x []float32) []float32 { n := len(x) / tokens; return x[a*n : b*n] }
		return c.Code(context.Background(), cache, from+a, part(k), part(v))
	})
}

// substitute returns stops of a context that replace the keys of every cache, and values where the code holds
// them, before they are stored.
func (m *model) substitute(c *libllama.Context, k *llama.Keys, threads int) (libllama.Stops, error) {
	s := libllama.Stops{First: m.plan.First, Do: map[libllama.Node]func(libllama.Tensor) error{},
		Watch: map[libllama.Node]bool{}}
	by, err := m.coder(k)
	if err != nil {
		return s, err
	}
	for cache, y := range m.plan.Caches() {
		at, parts := y.K.Node, []*graph.Part{y.K}
		if by.values && y.V != nil {
			// Both at the later of the two, before either is stored.
			parts = append(parts, y.V)
			if y.V.Order > at.Order {
				at = y.V.Node
			}
			if at.Order > y.Stored {
				return s, fmt.Errorf("layer %d: one of keys and values is stored before the other is computed, so they "+
					"cannot be replaced together", y.Layer)
			}
		}
		for _, p := range parts {
			s.Watch[p.Node.Node] = true
		}
		s.Do[at.Node] = func(libllama.Tensor) error {
			return rewrite(c, parts, y.KVHeads*y.HeadDim, func(tokens int, x [][]float32) error {
				var v []float32
				if len(x) > 1 {
					v = x[1]
				}
				if err := by.code(cache, 0, tokens, x[0], v, threads); err != nil {
					return fmt.Errorf("cache %d: %w", cache, err)
				}
				return nil
			})
		}
	}
	return s, nil
}

// rewrite lets change rows of tokens that nodes have just made; the first part has width numbers a token. Two
// parts may be of one node.
func rewrite(c *libllama.Context, parts []*graph.Part, width int, change func(tokens int, x [][]float32) error) error {
	var rows [][]float32
	for _, p := range parts {
		t, err := c.Live(p.Node.Node)
		if err != nil {
			return err
		}
		all, err := t.Get(nil)
		if err != nil {
			return err
		}
		x, err := p.Cut(all)
		if err != nil {
			return err
		}
		rows = append(rows, x)
	}
	tokens := len(rows[0]) / width
	for i, p := range parts {
		if tokens == 0 || len(rows[i]) != tokens*p.Len {
			return fmt.Errorf("%s: %d numbers are no rows of %d of %d tokens", p.Name, len(rows[i]), p.Len, tokens)
		}
	}
	if err := change(tokens, rows); err != nil {
		return err
	}
	for i, p := range parts {
		t, err := c.Live(p.Node.Node)
		if err != nil {
			return err
		}
		all, err := t.Get(nil) // once more: another part of it may have changed
		if err != nil {
			return err
		}
		p.Paste(all, rows[i])
		if err := t.Set(all); err != nil {
			return err
		}
	}
	return nil
}
