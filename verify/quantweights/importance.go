package quantweights

import (
	"fmt"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/format/gguf"
)

// Importance is an importance matrix, as llama-quantize takes it, by canonical names of tensors.
type Importance map[string]Inputs

// Inputs are the mean squares of the N inputs of each matrix of a tensor, one matrix after the other.
type Inputs struct {
	Mean []float32
	N    int
}

// Of returns the inputs of one matrix of a tensor, nil for those that nothing is known of.
func (m Importance) Of(name string, matrix int) []float32 {
	x, ok := m[name]
	if !ok {
		return nil
	}
	return x.Mean[matrix*x.N:][:x.N]
}

// OpenImportance opens a file that llama-imatrix wrote, in GGUF, and refuses others. The caller closes it.
func OpenImportance(path string) (*gguf.File, error) {
	f, err := gguf.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%w; an importance matrix is taken as GGUF", err)
	}
	if kind, err := f.String("general.type"); err != nil || kind != "imatrix" {
		f.Close()
		return nil, fmt.Errorf("%s is no importance matrix: its general.type is not imatrix", path)
	}
	return f, nil
}

// ReadImportance reads a file that llama-imatrix wrote, in GGUF, for a model. Matrices that it lacks are
// quantised without; one of another size is an error, but for the embeddings, as in llama-quantize.
func ReadImportance(path string, c *family.Config, w checkpoint.Weights) (Importance, error) {
	f, err := OpenImportance(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	stored := storedNames(c, w)
	out := Importance{}
	for _, x := range c.Tensors() {
		t, ok := w.Find(x.Name)
		if !ok || len(t.Shape) < 2 {
			continue
		}
		mean, err := meanSquares(f, stored[t.Name].name)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		matrices := t.Rows() / t.Shape[len(t.Shape)-2]
		switch {
		case mean == nil || t.Name == "token_embd.weight" && len(mean) != t.Cols():
		case len(mean) != matrices*t.Cols():
			return nil, fmt.Errorf("%s: %s has %d numbers, the model's matrix %d inputs; take the importance matrix of this model",
				path, stored[t.Name].name, len(mean), matrices*t.Cols())
		default:
			out[t.Name] = Inputs{mean, t.Cols()}
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s: no entry belongs to a matrix of this model; take the importance matrix of this model", path)
	}
	return out, nil
}

// meanSquares reads one entry, nil for none: sums of squares over how many were summed, ones where
// nothing was.
func meanSquares(f *gguf.File, name string) ([]float32, error) {
	t, ok := f.Tensor(name + ".in_sum2")
	counts, okCounts := f.Tensor(name + ".counts")
	if !ok && !okCounts {
		return nil, nil
	}
	if !ok || !okCounts || t.Type != gguf.TypeF32 || counts.Type != gguf.TypeF32 || counts.RowLen() != 1 ||
		counts.Rows() != t.Rows() {
		return nil, fmt.Errorf("tensors %s.in_sum2 and .counts do not fit each other", name)
	}
	n := t.RowLen()
	x, of := make([]float32, n*t.Rows()), make([]float32, t.Rows())
	if err := f.ReadRows(t, 0, t.Rows(), x); err != nil {
		return nil, err
	}
	if err := f.ReadRows(counts, 0, counts.Rows(), of); err != nil {
		return nil, err
	}
	for i := range x {
		if c := of[i/n]; c > 0 {
			x[i] /= c
		} else {
			x[i] = 1
		}
		if x[i]-x[i] != 0 || x[i] < 0 {
			return nil, fmt.Errorf("tensor %s.in_sum2: number %d is no sum of squares", name, i)
		}
	}
	return x, nil
}

// Edited returns what holds for edited weights, whose columns have other inputs: see
// checkpoint.Edit.MeanSquares. An entry that it cannot follow is left out.
func (m Importance) Edited(edits checkpoint.Edits) Importance {
	if m == nil {
		return nil
	}
	out := Importance{}
	for name, x := range m {
		e := edits[name]
		if e == nil {
			out[name] = x
		} else if mean, err := e.MeanSquares(x.Mean, x.N); err == nil {
			out[name] = Inputs{mean, x.N}
		}
	}
	return out
}
