package checkpoint

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/phaseconv/phaseconv/format"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/spec"
)

// OpenAs opens a GGUF file of an architecture that the table of families does not have, by what
// llama.cpp's graph says of its attention: the tensors of g are those of the checkpoint, under the names
// of their roles, counted by caches. All others are outside of what is known, and stay as they are.
// g nil is Open.
func OpenAs(path string, g *spec.Graph) (*Checkpoint, error) {
	if g == nil {
		return Open(path)
	}
	c, err := opened(func() (*Checkpoint, error) { return openGraph(path, g) })
	return c, format.Broken(err)
}

func openGraph(path string, g *spec.Graph) (*Checkpoint, error) {
	f, err := gguf.Open(path)
	if err != nil {
		return nil, err
	}
	b := &ggufBackend{f: f, parts: newParts()}
	c := &Checkpoint{Path: path, Container: GGUF, b: b, parts: b.parts, Graph: g, tensors: map[string]*Tensor{}}
	if err := c.fromGraph(b, g); err != nil {
		f.Close()
		return nil, err
	}
	return c, nil
}

func (c *Checkpoint) fromGraph(b *ggufBackend, g *spec.Graph) error {
	arch, err := b.f.String("general.architecture")
	if err != nil {
		return err
	}
	if arch != g.Architecture {
		return fmt.Errorf("%s: general.architecture is %q, the graph is one of %q", c.Path, arch, g.Architecture)
	}
	if c.Config, err = family.FromGraph(g); err != nil {
		return fmt.Errorf("%s: %w", c.Path, err)
	}
	for key, dst := range map[string]*int{"tokenizer.ggml.bos_token_id": &c.Config.BOS,
		"tokenizer.ggml.eos_token_id": &c.Config.EOS} {
		if v, err := b.f.Uint(key); err == nil && v < family.MaxVocab {
			*dst = int(v)
		}
	}
	of := map[string][]*Tensor{} // by the stored tensor
	for l := range g.Caches {
		for _, x := range g.Caches[l].Tensors {
			if _, there := b.f.Tensor(x.Name); x.Optional && !there {
				if err := c.lacks(l, x); err != nil {
					return fmt.Errorf("%s: %w", c.Path, err)
				}
				continue
			}
			t, err := c.graphTensor(b, l, x)
			if err != nil {
				return fmt.Errorf("%s: %w", c.Path, err)
			}
			of[x.Name] = append(of[x.Name], t)
		}
	}
	if err := c.checkOptional(); err != nil {
		return fmt.Errorf("%s: %w", c.Path, err)
	}
	for i := range b.f.Tensors {
		t := &b.f.Tensors[i]
		if list := of[t.Name]; len(list) == 0 {
			c.Unknown = append(c.Unknown, t.Name)
		} else if err := c.fill(b, t, list); err != nil {
			return fmt.Errorf("%s: %w", c.Path, err)
		}
	}
	slices.Sort(c.Unknown)
	c.setHolds()
	return nil
}

// lacks keeps an optional tensor of cache l that the file lacks.
func (c *Checkpoint) lacks(l int, x spec.GraphTensor) error {
	y := &c.Config.Layers[l]
	name := family.Name(l, x.Role)
	if want, ok := y.GraphShape(x.Role, c.Config.Hidden); !ok || len(want) != 1 || want[0] != x.Rows || x.Row < 0 {
		return fmt.Errorf("optional tensor %s of cache %d, rows %d to %d: it is none of its vectors (%s)", x.Name, l, x.Row,
			x.Row+x.Rows, x.Role)
	}
	if _, twice := c.optional[name]; twice {
		return fmt.Errorf("cache %d has two tensors %s", l, x.Role)
	}
	if c.optional == nil {
		c.optional = map[string]spec.GraphTensor{}
	}
	c.optional[name] = x
	return nil
}

// AddedTo says where a vector that the file lacks is stored if it is added: in which tensor, and of which
// canonical tensors that one consists, in order. Mostly it is one of its own.
func (c *Checkpoint) AddedTo(name string) (stored string, parts []string) {
	x, ok := c.optional[name]
	if !ok {
		return name, []string{name}
	}
	for n, y := range c.optional {
		if y.Name == x.Name {
			parts = append(parts, n)
		}
	}
	slices.SortFunc(parts, func(a, b string) int { return cmp.Compare(c.optional[a].Row, c.optional[b].Row) })
	return x.Name, parts
}

// checkOptional refuses an optional tensor whose parts do not lie side by side.
func (c *Checkpoint) checkOptional() error {
	for name, x := range c.optional {
		at := 0
		_, parts := c.AddedTo(name)
		for _, p := range parts {
			if y := c.optional[p]; y.Row != at {
				return fmt.Errorf("optional tensor %s: %s begins at row %d, expected %d", x.Name, p, y.Row, at)
			}
			at += c.optional[p].Rows
		}
	}
	return nil
}

// graphTensor adds the tensor of a role of cache l.
func (c *Checkpoint) graphTensor(b *ggufBackend, l int, x spec.GraphTensor) (*Tensor, error) {
	stored, ok := b.f.Tensor(x.Name)
	if !ok {
		return nil, fmt.Errorf("tensor %s is missing", x.Name)
	}
	have := stored.Shape()
	if x.Row < 0 || x.Rows < 1 || x.Row > have[0]-x.Rows {
		return nil, fmt.Errorf("tensor %s of shape %v has no rows %d to %d", x.Name, have, x.Row, x.Row+x.Rows)
	}
	y := &c.Config.Layers[l]
	in := have[len(have)-1]
	if x.Role == outputRole {
		in = have[0]
	}
	shape := append([]int{x.Rows}, have[1:]...)
	want, ok := y.GraphShape(x.Role, in)
	if ok && !sameShape(want, shape) {
		return nil, fmt.Errorf("tensor %s, rows %d to %d, has shape %v; as %s of cache %d it has %v", x.Name, x.Row,
			x.Row+x.Rows, shape, x.Role, l, want)
	}
	if !ok && (y.FixedKeys == "" || x.Rows != have[0]) {
		return nil, fmt.Errorf("tensor %s of cache %d: %q is no role", x.Name, l, x.Role)
	}
	name := family.Name(l, x.Role)
	if _, twice := c.tensors[name]; twice {
		return nil, fmt.Errorf("cache %d has two tensors %s", l, x.Role)
	}
	t := &Tensor{Name: name, Layer: l, Shape: shape, Type: stored.Type.String(), Sources: []string{x.Name}}
	if x.Rows != have[0] {
		t.Sources[0] = b.cut(x.Name, x.Row, x.Rows)
	}
	c.tensors[name], c.order = t, append(c.order, name)
	return t, nil
}

// cut gives some rows of a stored tensor a name.
func (p parts) cut(stored string, row, rows int) string {
	n := fmt.Sprintf("%s[%d:%d]", stored, row, row+rows)
	p.slices[n] = slice{stored, row, rows}
	return n
}

// fill adds what stands between the parts of a stored tensor as tensors, so that these make up all of
// it, and refuses parts that share rows.
func (c *Checkpoint) fill(b *ggufBackend, stored *gguf.Tensor, list []*Tensor) error {
	row := func(t *Tensor) int { return b.slices[t.Sources[0]].row0 }
	slices.SortStableFunc(list, func(x, y *Tensor) int { return cmp.Compare(row(x), row(y)) })
	have, at := stored.Shape(), 0
	gap := func(to int) {
		if at < to {
			n := b.cut(stored.Name, at, to-at)
			c.tensors[n] = &Tensor{Name: n, Layer: -1, Shape: append([]int{to - at}, have[1:]...), Type: stored.Type.String(),
				Sources: []string{n}}
			c.order = append(c.order, n)
		}
	}
	for _, t := range list {
		if row(t) < at {
			return fmt.Errorf("tensor %s: %s shares rows with another part", stored.Name, t.Name)
		}
		gap(row(t))
		at = row(t) + t.Shape[0]
	}
	gap(have[0])
	return nil
}
