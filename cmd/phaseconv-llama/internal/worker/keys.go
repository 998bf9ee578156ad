//go:build (linux || darwin) && (amd64 || arm64)

package worker

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/phaseconv/phaseconv/cmd/phaseconv-llama/internal/libllama"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/kernels/parallel"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/rotations/sidecar"
	"github.com/phaseconv/phaseconv/verify/engine/llama"
	"github.com/phaseconv/phaseconv/verify/kvcache"
)

// A replacer changes the keys of one window and KV head, [tokens, head_dim], in place; cache is the
// number of a cache in the order of llama.Facts.Owners.
type replacer func(cache, head int, k []float32) error

// replacer returns what a lane replaces keys by.
func (m *model) replacer(k *llama.Keys) (replacer, error) {
	switch k.Kind {
	case "same":
		return func(int, int, []float32) error { return nil }, nil
	case "double":
		return func(_, _ int, k []float32) error {
			for i := range k {
				k[i] *= 2
			}
			return nil
		}, nil
	}
	cfg := m.facts.Caches()
	policy := kvcache.Policy{Anchor: k.Anchor, Sink: k.Sink, Exceptions: k.Exceptions}
	var codes [][]*codec.Code
	if k.Sidecar != "" {
		s, err := sidecar.Read(context.Background(), k.Sidecar)
		if err != nil {
			return nil, err
		}
		// The graph has the pairs of the file that was loaded.
		if s, err = s.To(context.Background(), cfg.Pairs); err != nil {
			return nil, err
		}
		all, ok := s.HeadCodes()
		if !ok {
			return nil, fmt.Errorf("%s has groups of keys and values, which the engine on llama.cpp does not measure; "+
				"take --engine own", filepath.Base(k.Sidecar))
		}
		for _, layer := range all {
			if len(layer) > 0 { // the others read the caches of these
				codes = append(codes, layer)
			}
		}
	} else {
		kind, err := codec.ParseKind(k.Kind)
		if err != nil {
			return nil, err
		}
		for l := range cfg.Layers {
			var row []*codec.Code
			for h := range cfg.Layers[l].KVHeads {
				c, err := codec.DataFree(kind, cfg.Layers[l].HeadDim, k.Seed, l, h)
				if err != nil {
					return nil, err
				}
				row = append(row, c)
			}
			codes = append(codes, row)
		}
	}
	graph := m.facts.Graph()
	for l := range cfg.Layers {
		y := &cfg.Layers[l]
		// What a cache holds is a row of numbers to a code, also MLA's latent rows.
		y.Kind, y.ValueDim = family.Softmax, y.HeadDim
		if policy.Anchor > 0 && graph.Caches[l].RopeUnknown {
			return nil, fmt.Errorf("position anchors need RoPE of a known kind, which layer %d does not have; take "+
				"--anchor 0", graph.Caches[l].Block)
		}
	}
	c, err := kvcache.NewCodes(cfg, codes, policy)
	if err != nil {
		return nil, err
	}
	return func(cache, head int, x []float32) error {
		_, err := c.Keys(cache, head, x)
		return err
	}, nil
}

// substitute returns stops that replace the keys of every cache, before they are stored.
func (m *model) substitute(k *llama.Keys, threads int) (libllama.Stops, error) {
	s := libllama.Stops{First: m.plan.First, Do: map[libllama.Node]func(libllama.Tensor) error{}}
	replace, err := m.replacer(k)
	if err != nil {
		return s, err
	}
	n := 0
	for _, y := range m.plan.Layers {
		if !y.FirstReader {
			continue
		}
		cache, d, heads, k := n, y.HeadDim, y.KVHeads, y.K
		n++
		s.Do[k.Node.Node] = func(t libllama.Tensor) error {
			all, err := t.Get(nil)
			if err != nil {
				return err
			}
			x, err := k.Cut(all)
			if err != nil {
				return err
			}
			if len(x)%(d*heads) != 0 {
				return fmt.Errorf("%d numbers are no rows of %d heads of %d", len(x), heads, d)
			}
			T := len(x) / d / heads
			err = parallel.For(context.Background(), threads, heads, func(h int) error {
				row := make([]float32, T*d)
				for i := range T {
					copy(row[i*d:(i+1)*d], x[(i*heads+h)*d:])
				}
				if err := replace(cache, h, row); err != nil {
					return fmt.Errorf("cache %d, KV head %d: %w", cache, h, err)
				}
				for i := range T {
					copy(x[(i*heads+h)*d:(i*heads+h+1)*d], row[i*d:])
				}
				return nil
			})
			if err != nil {
				return err
			}
			k.Paste(all, x)
			return t.Set(all)
		}
	}
	return s, nil
}
