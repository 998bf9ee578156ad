package quantweights

import (
	"fmt"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/kernels/parallel"
)

// Weights are those of a model after llama-quantize, as float32. Tensors name the type that they
// have then, which is what refmodel.Model.RoundInputs looks at.
type Weights struct {
	src     checkpoint.Weights
	types   map[string]gguf.Type
	file    gguf.Type // of matrices in the file that is quantised
	weigh   Importance
	threads int
}

// New returns the weights that llama-quantize makes of a file whose matrices are those of src in the
// element type file: F32, F16 or BF16. An importance matrix in f is that of src: see
// Importance.Edited. head says that the file has an output matrix of its own.
func New(f FileType, c *family.Config, src checkpoint.Weights, file gguf.Type, head bool, threads int) (
	*Weights, error,
) {
	types, err := f.Types(c, src, head)
	if err != nil {
		return nil, err
	}
	return &Weights{src: src, types: types, file: file, weigh: f.Importance, threads: parallel.Threads(threads)}, nil
}

// Bits returns how many bits a weight of the matrices takes on average.
func (w *Weights) Bits() float64 {
	var bytes, n float64
	for name, t := range w.types {
		x, _ := w.src.Find(name)
		numbers, size := t.Block()
		bytes += float64(float64(x.Elements()) / float64(numbers) * float64(size))
		n += float64(x.Elements())
	}
	return 8 * bytes / max(n, 1)
}

// Find implements checkpoint.Weights.
func (w *Weights) Find(name string) (*checkpoint.Tensor, bool) {
	t, ok := w.src.Find(name)
	typ, quantized := w.types[name]
	if !ok || !quantized {
		return t, ok
	}
	x := *t
	x.Type = typ.String()
	return &x, true
}

// ReadRows implements checkpoint.Weights.
func (w *Weights) ReadRows(t *checkpoint.Tensor, row0, n int, dst []float32) error {
	typ, quantized := w.types[t.Name]
	if src, ok := w.src.Find(t.Name); ok {
		t = src
	}
	if err := w.src.ReadRows(t, row0, n, dst); err != nil || !quantized {
		return err
	}
	cols := t.Cols()
	errs := make([]error, n)
	parallel.Do(w.threads, n, func(r int) {
		row := dst[r*cols : (r+1)*cols]
		if errs[r] = Round(w.file, row, nil); errs[r] == nil {
			errs[r] = Round(typ, row, w.weigh.Of(t.Name, (row0+r)/t.Shape[len(t.Shape)-2]))
		}
	})
	for r, err := range errs {
		if err != nil {
			return fmt.Errorf("tensor %s, row %d as %s: %w", t.Name, row0+r, typ, err)
		}
	}
	return nil
}

// Round replaces a row by what a type leaves of it, with the importance of its numbers, nil for none.
func Round(t gguf.Type, row, importance []float32) error {
	if t == gguf.TypeF32 {
		return nil
	}
	size, err := gguf.RowBytes(t, len(row))
	if err != nil {
		return err
	}
	b := make([]byte, size)
	if err := gguf.QuantizeRowWeighted(t, b, row, importance); err != nil {
		return err
	}
	return gguf.DequantizeRow(t, row, b)
}
