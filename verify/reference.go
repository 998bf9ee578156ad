package verify

import (
	"fmt"
	"slices"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/safetensors"
)

// A reference is a source with the output head that its files store, if they store
// one, whatever was decided about it when the checkpoint was opened. A conversion
// that drops or replaces a head would otherwise be compared with itself.
type reference struct {
	checkpoint.Weights
	head *checkpoint.Tensor // nil: no file stores one
	read func(row0, n int, dst []float32) error
}

const headName = "output.weight"

// storedHead returns w, which reads from c, with the head of c's files.
func storedHead(c *checkpoint.Checkpoint, w checkpoint.Weights) (*reference, error) {
	r := &reference{Weights: w}
	cfg := c.Config
	var shape []int
	var typ, source string
	if set := c.Shards(); set != nil {
		names, _ := cfg.Family.HFNames(headName, cfg.Experts())
		ref, ok := set.Find(names[0])
		if !ok {
			return r, nil
		}
		shape, typ, source = ref.Tensor.Shape, ref.Tensor.DType, ref.Tensor.Name
		if !safetensors.Readable(typ) {
			return nil, &safetensors.UnsupportedError{File: ref.File.Path, Tensor: source, DType: typ}
		}
		r.read = func(row0, n int, dst []float32) error { return ref.File.ReadRows(ref.Tensor, row0, n, dst) }
	} else if f := c.File(); f != nil {
		t, ok := f.Tensor(headName)
		if !ok {
			return r, nil
		}
		shape, typ, source = t.Shape(), t.Type.String(), t.Name
		r.read = func(row0, n int, dst []float32) error { return f.ReadRows(t, row0, n, dst) }
	}
	if want := []int{cfg.Vocab, cfg.Hidden}; !slices.Equal(shape, want) {
		return nil, fmt.Errorf("%s: tensor %s has shape %v, the configuration implies %v", c.Path, source, shape, want)
	}
	r.head = &checkpoint.Tensor{Name: headName, Layer: -1, Shape: shape, Type: typ, Sources: []string{source}}
	return r, nil
}

// Find returns the canonical tensor with this name. Only the files say whether
// there is a head.
func (r *reference) Find(name string) (*checkpoint.Tensor, bool) {
	if name == headName {
		return r.head, r.head != nil
	}
	return r.Weights.Find(name)
}

// ReadRows reads rows of a tensor that Find returned.
func (r *reference) ReadRows(t *checkpoint.Tensor, row0, n int, dst []float32) error {
	if t == r.head {
		return r.read(row0, n, dst)
	}
	return r.Weights.ReadRows(t, row0, n, dst)
}
