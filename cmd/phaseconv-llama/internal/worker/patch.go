//go:build (linux || darwin) && (amd64 || arm64)

package worker

import (
	"errors"
	"fmt"

	"github.com/phaseconv/phaseconv/cmd/phaseconv-llama/internal/libllama"
	"github.com/phaseconv/phaseconv/verify/engine"
)

// A patch is other bytes for weights of a loaded model.
type patch struct {
	tensors   []libllama.Tensor
	old, mine [][]byte
}

// patch keeps or forgets other bytes for weights.
func (s *server) patch(o engine.Patch, blobs [][]byte) (any, [][]byte, error) {
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
	p := &patch{}
	for i, name := range o.Names {
		t, ok := m.plan.Weights[name]
		if !ok {
			return nil, nil, fmt.Errorf("the graph reads no tensor %s, so it cannot be changed", name)
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
