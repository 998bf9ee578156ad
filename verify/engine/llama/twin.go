package llama

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/format/gguf"
)

// Edits can only be tried in memory where their tensors have types that we can write. For the others
// there is a twin of the file, in the folder for temporary files, with those tensors as Q8_0, which is
// what an artifact has in their place.

// editable returns the model that edits are made in.
func (m *Model) editable(ctx context.Context) (*Model, error) {
	if m.Source == nil {
		return nil, fmt.Errorf("%s: edits of weights need the source's tensors", m.Path)
	}
	if m.twin != nil {
		return m.twin, nil
	}
	stored := unwritable(m.Source)
	if len(stored) == 0 {
		return m, nil
	}
	dir, err := os.MkdirTemp("", "phaseconv-engine")
	if err != nil {
		return nil, err
	}
	m.w.scratch = append(m.w.scratch, dir)
	path := filepath.Join(dir, "twin.gguf")
	if err := writeTwin(ctx, path, m.Source, stored); err != nil {
		return nil, err
	}
	x, err := m.w.Load(ctx, path, m.place)
	if err != nil {
		return nil, err
	}
	x.Source, x.caches, x.sizes = m.Source, m.caches, m.sizes
	m.twin = x
	return x, nil
}

// unwritable lists the tensors of a file that edits may change and whose types cannot be written.
func unwritable(c *checkpoint.Checkpoint) (stored []string) {
	for l := range c.Config.Layers {
		for _, part := range []string{"attn_q.weight", "attn_k.weight", "attn_v.weight", "attn_output.weight"} {
			t, ok := c.Find(family.Name(l, part))
			if !ok || len(t.Sources) != 1 {
				continue
			}
			typ, err := gguf.ParseType(t.Type)
			name := c.Stored(t.Sources[0])
			if (err != nil || !gguf.CanQuantize(typ)) && !slices.Contains(stored, name) {
				stored = append(stored, name)
			}
		}
	}
	return stored
}

// writeTwin copies a file with some tensors in the type that artifacts have them in.
func writeTwin(ctx context.Context, path string, c *checkpoint.Checkpoint, other []string) error {
	f := c.File()
	specs := make([]gguf.TensorSpec, len(f.Tensors))
	for i := range f.Tensors {
		t := &f.Tensors[i]
		specs[i] = t.Spec()
		if slices.Contains(other, t.Name) {
			specs[i].Type = gguf.WritableType(t.Type, t.RowLen())
		}
	}
	w, err := gguf.Create(path, f.KVs, specs)
	if err != nil {
		return err
	}
	defer w.Abort()
	for i := range f.Tensors {
		t := &f.Tensors[i]
		err := w.WriteTensor(t.Name, func(o io.Writer) error {
			if specs[i].Type == t.Type {
				_, err := io.Copy(o, f.Reader(t))
				return err
			}
			x := make([]float32, t.RowLen())
			for row := range t.Rows() {
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				if err := f.ReadRows(t, row, 1, x); err != nil {
					return err
				}
				b, err := encode(specs[i].Type, x, len(x))
				if err != nil {
					return err
				}
				if _, err := o.Write(b); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return w.Commit()
}
