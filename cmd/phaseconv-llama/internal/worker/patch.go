//go:build (linux || darwin) && (amd64 || arm64)

package worker

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"

	"github.com/phaseconv/phaseconv/cmd/phaseconv-llama/internal/libllama"
	"github.com/phaseconv/phaseconv/verify/engine/llama"
	"github.com/phaseconv/phaseconv/verify/engine/wire"
)

// A patch is other bytes for weights of a loaded model, and biases of keys that the file lacks.
type patch struct {
	tensors   []libllama.Tensor
	old, mine [][]byte
	// biases are added to the keys of layers, in front of RoPE.
	biases map[int][]float32
}

var keyBias = regexp.MustCompile(`^blk\.(\d+)\.attn_k\.bias$`)

// bias keeps a bias that is no tensor of the graph. It is exact where nothing stands between the
// product and RoPE.
func (p *patch) bias(m *model, name string, b []byte) error {
	match := keyBias.FindStringSubmatch(name)
	if match == nil {
		return fmt.Errorf("the graph reads no tensor %s, so it cannot be changed", name)
	}
	for _, y := range m.plan.Layers {
		if strconv.Itoa(y.Layer) != match[1] || !y.FirstReader {
			continue
		}
		at := y.KPre
		if at == nil {
			at = y.K // no RoPE
		}
		x, err := wire.ReadFloat32s(b)
		switch {
		case err != nil:
			return fmt.Errorf("%s: %w", name, err)
		case at.Op != "MUL_MAT": // it may make queries and values too
			return fmt.Errorf("%s: keys of layer %d have %s behind their product, so no bias can stand for one in the file",
				name, y.Layer, at.Op)
		case len(x) != y.KVHeads*y.HeadDim:
			return fmt.Errorf("%s has %d numbers, keys have %d", name, len(x), y.KVHeads*y.HeadDim)
		}
		p.biases[y.Layer] = x
		return nil
	}
	return fmt.Errorf("%s: there is no such layer with keys", name)
}

// stops adds what the patch does at nodes of the graph.
func (p *patch) stops(m *model, s *libllama.Stops) {
	if p == nil || len(p.biases) == 0 {
		return
	}
	if s.Do == nil {
		s.First, s.Do = m.plan.First, map[libllama.Node]func(libllama.Tensor) error{}
	}
	for _, y := range m.plan.Layers {
		b := p.biases[y.Layer]
		if b == nil || !y.FirstReader {
			continue
		}
		at := y.KPre
		if at == nil {
			at = y.K
		}
		node := at.Node.Node
		then := s.Do[node]
		s.Do[node] = func(t libllama.Tensor) error {
			all, err := t.Get(nil)
			if err != nil {
				return err
			}
			x, err := at.Cut(all)
			if err != nil {
				return err
			}
			for i := range x {
				x[i] += b[i%len(b)]
			}
			at.Paste(all, x)
			if err := t.Set(all); err != nil || then == nil {
				return err
			}
			return then(t)
		}
	}
}

// patch keeps or forgets other bytes for weights.
func (s *server) patch(o llama.Patch, blobs [][]byte) (any, [][]byte, error) {
	m, err := s.model(o.Model)
	if err != nil {
		return nil, nil, err
	}
	if len(o.Names) != len(blobs) || o.Name == "" {
		return nil, nil, fmt.Errorf("patch %q: %d names for %d tensors", o.Name, len(o.Names), len(blobs))
	}
	if len(o.Names) == 0 {
		delete(m.patches, o.Name)
		return nil, nil, nil
	}
	p := &patch{biases: map[int][]float32{}}
	for i, name := range o.Names {
		t, ok := m.plan.Weights[name]
		if !ok {
			if err := p.bias(m, name, blobs[i]); err != nil {
				return nil, nil, err
			}
			continue
		}
		if t.Bytes() != len(blobs[i]) {
			return nil, nil, fmt.Errorf("%s takes %d bytes, not %d", name, t.Bytes(), len(blobs[i]))
		}
		p.tensors, p.old, p.mine = append(p.tensors, t), append(p.old, t.GetRaw()), append(p.mine, blobs[i])
	}
	m.patches[o.Name] = p
	return nil, nil, nil
}

func (p *patch) set(bytes [][]byte) error {
	var errs []error
	for i, t := range p.tensors {
		errs = append(errs, t.SetRaw(bytes[i]))
	}
	return errors.Join(errs...)
}

func (p *patch) apply() error { return p.set(p.mine) }
func (p *patch) undo() error  { return p.set(p.old) }
