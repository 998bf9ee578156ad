package llama

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/phaseconv/phaseconv/format"
	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/dtype"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/rotations/transform"
	"github.com/phaseconv/phaseconv/verify/engine"
	"github.com/phaseconv/phaseconv/verify/progress"
)

// patches sends the edits of lanes to the worker and returns the names of their patches, "" where a
// lane's edits change nothing. forget makes the worker forget them.
func (m *Model) patches(ctx context.Context, lanes []engine.Lane) (names []string, forget func(), err error) {
	names = make([]string, len(lanes))
	forget = func() {
		for _, n := range names {
			if n == "" {
				continue
			}
			m.Patch(context.WithoutCancel(ctx), n, nil) //nolint:errcheck // a worker that died has none
		}
	}
	for i, l := range lanes {
		if l.Edits == nil {
			continue
		}
		tensors, err := m.edited(l)
		if err != nil {
			return names, forget, err
		}
		if len(tensors) == 0 {
			continue
		}
		name := fmt.Sprint("lane ", i)
		if err := m.Patch(ctx, name, tensors); err != nil {
			return names, forget, err
		}
		names[i] = name
	}
	return names, forget, nil
}

// edited returns the bytes of all tensors that a lane's edits change.
func (m *Model) edited(l engine.Lane) (map[string][]byte, error) {
	v := checkpoint.NewEdited(m.Source, checkpoint.Edits{})
	owners := map[int]*Attention{}
	for _, x := range m.Facts.Tapped(m.known()) {
		owners[x.Number] = x.Attention
	}
	for layer, heads := range l.Edits {
		if len(heads) == 0 {
			continue
		}
		a := owners[layer]
		if a == nil {
			return nil, fmt.Errorf("%s: edits of layer %d, of which the graph has no cache", m.Path, layer)
		}
		keys := slices.ContainsFunc(heads, func(e transform.KeyEdit) bool {
			return e.Pairs != nil || e.Transform != nil || e.Shift != nil
		})
		if f := a.Folds(); f.Refused != "" && keys {
			return nil, fmt.Errorf("%s: layer %d cannot be edited: %s", m.Path, f.Layer, f.Refused)
		}
		if err := transform.FoldKeys(v, layer, heads); err != nil {
			return nil, err
		}
	}
	return m.Encode(v)
}

// Encode returns the bytes of all tensors of the file that were edited, in the types in which the
// library holds them. Biases that the file lacks are float32.
func (m *Model) Encode(v *checkpoint.Edited) (map[string][]byte, error) {
	out := map[string][]byte{}
	for _, name := range v.Edits.Names() {
		t, ok := v.Find(name)
		if !ok {
			return nil, fmt.Errorf("%s: there is no tensor %s to edit", m.Path, name)
		}
		stored, parts := name, []*checkpoint.Tensor{t} // as for a bias that the file lacks
		if g := m.Source.Graph; g != nil && len(t.Sources) == 0 {
			stored = strings.Replace(name, family.Name(t.Layer, ""), family.Name(g.Caches[t.Layer].Block, ""), 1)
		}
		if len(t.Sources) == 1 {
			if stored = m.Source.Stored(t.Sources[0]); stored != t.Sources[0] {
				parts = m.Source.Holds(stored)
			}
		}
		if out[stored] != nil {
			continue // with another of its parts
		}
		typ := gguf.TypeF32
		if w, ok := m.Facts.Weights[stored]; ok {
			typ = gguf.Type(w.Type)
		}
		var x []float32
		for _, p := range parts {
			rows := make([]float32, p.Elements())
			if err := v.ReadRows(p, 0, p.Rows(), rows); err != nil {
				return nil, err
			}
			x = append(x, rows...)
		}
		cols := t.Cols()
		if len(t.Shape) == 1 {
			cols = len(x) // a vector of several parts is one row
		}
		b, err := encode(typ, x, cols)
		if err != nil {
			return nil, fmt.Errorf("%s: tensor %s: %w", m.Path, stored, err)
		}
		out[stored] = b
	}
	return out, nil
}

// encode stores rows in a type.
func encode(t gguf.Type, x []float32, cols int) ([]byte, error) {
	if t == gguf.TypeF32 {
		return dtype.AppendF32(make([]byte, 0, 4*len(x)), x), nil
	}
	n, err := gguf.RowBytes(t, cols)
	if err != nil {
		return nil, err
	}
	out := make([]byte, len(x)/cols*n)
	for i := range len(x) / cols {
		if err := gguf.QuantizeRow(t, out[i*n:(i+1)*n], x[i*cols:(i+1)*cols]); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// With returns the model with the weights of an edited checkpoint in place.
func (m *Model) With(ctx context.Context, w checkpoint.Weights) (engine.Engine, error) {
	v, ok := w.(*checkpoint.Edited)
	if !ok {
		return nil, fmt.Errorf("%s: llama.cpp runs the file's weights, or edits of them", m.Path)
	}
	x := *m
	if x.patched = ""; len(v.Edits) == 0 {
		return &x, nil
	}
	edited, err := m.editable(ctx)
	if err != nil {
		return nil, err
	}
	x = *edited
	tensors, err := x.Encode(v)
	if err != nil {
		return nil, err
	}
	m.w.patches++
	x.patched = fmt.Sprint("weights ", m.w.patches)
	return &x, x.Patch(ctx, x.patched, tensors)
}

// Engines loads the GGUF files of checkpoints into one worker.
type Engines struct {
	Worker *Worker
	Place  Place
	// KeyBias has Source find out whether llama.cpp takes a key bias in files of an architecture that has
	// none, see withKeyBias.
	KeyBias bool
	// Progress, if set, is told when files are loaded, which can take long.
	Progress progress.Func

	open map[string]*Model
}

// Identity is what results depend on.
func (e *Engines) Identity() engine.Identity { return e.Worker.Identity(e.Place) }

// Source opens a checkpoint. Of an architecture that the table of families lacks llama.cpp's graph says
// what makes its keys.
func (e *Engines) Source(ctx context.Context, path string) (*checkpoint.Checkpoint, error) {
	c, err := checkpoint.Open(path)
	gg, e1 := gguf.HasMagic(path)
	if !errors.Is(err, format.ErrUnsupported) || e1 != nil || !gg {
		return c, err
	}
	m, e2 := e.load(ctx, path)
	if e2 != nil {
		return nil, errors.Join(err, e2)
	}
	g := m.Facts.Graph()
	if e.KeyBias {
		if g, err = m.withKeyBias(ctx, g); err != nil {
			return nil, err
		}
	}
	return checkpoint.OpenAs(path, g)
}

// load loads a file once; of a split llama.cpp wants the first.
func (e *Engines) load(ctx context.Context, path string) (*Model, error) {
	f, err := gguf.Open(path)
	if err != nil {
		return nil, err
	}
	path = f.Paths()[0]
	if err := f.Close(); err != nil {
		return nil, err
	}
	if m := e.open[path]; m != nil {
		return m, nil
	}
	step := e.Progress.Of("loading " + filepath.Base(path) + " into llama.cpp")
	step(0, 1)
	m, err := e.Worker.Load(ctx, path, e.Place)
	if err != nil {
		return nil, err
	}
	step(1, 1)
	if e.open == nil {
		e.open = map[string]*Model{}
	}
	e.open[path] = m
	return m, nil
}

// Open returns the model of a checkpoint's file.
func (e *Engines) Open(ctx context.Context, c *checkpoint.Checkpoint) (engine.Engine, error) {
	f := c.File()
	if f == nil {
		return nil, fmt.Errorf("%s: llama.cpp reads GGUF files only; convert it with --engine own, or make a GGUF "+
			"file of it first", c.Path)
	}
	m, err := e.load(ctx, f.Path)
	if err != nil {
		return nil, err
	}
	if m.Source != nil {
		m.Source = c
		return m, nil
	}
	own := 0
	for l := range c.Config.Layers {
		if c.Config.Layers[l].Owner == l {
			own++
		}
	}
	if n := len(m.Facts.Owners()); n != own {
		return nil, fmt.Errorf("%s: the graph has %d caches, by the file's configuration it has %d", c.Path, n, own)
	}
	if c.Graph != nil {
		if err := m.Facts.CheckGraph(c.Graph); err != nil {
			return nil, fmt.Errorf("%s: %w", c.Path, err)
		}
	}
	m.Source = c
	// The file's own configuration says more than the graph.
	m.caches = c.Config
	return m, nil
}

// Close ends the worker.
func (e *Engines) Close() { e.Worker.Close() }
