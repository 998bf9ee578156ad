package checkpoint

import (
	"fmt"
	"io"
	"sort"

	"github.com/phaseconv/phaseconv/format/family"
)

// A slice is some rows of a stored tensor, or numbers of a stored vector.
type slice struct {
	stored     string
	row0, rows int
}

// parts are those of stored tensors that hold several: fused experts, under names such as
// "model.layers.0.mlp.experts.gate_up_proj[3,0:48]" (expert 3, its rows 0 to 47), and stacked
// projections, such as "model.layers.0.self_attn.qkv_proj.weight[0:64]".
type parts struct {
	slices map[string]slice
	// stacked are the sources of canonical tensors that lie in a stack.
	stacked map[string]string
}

func newParts() parts { return parts{map[string]slice{}, map[string]string{}} }

// stack looks for the stacks of a container's files and gives their parts names. shape returns
// what is stored under a name. It returns the names of the stored tensors.
func (p parts) stack(cfg *family.Config, of func(layer int) []family.Stack, name func(string) string,
	shape func(stored string) ([]int, bool)) (map[string]bool, error) {
	canonical := map[string]family.Tensor{}
	for _, t := range cfg.Tensors() {
		canonical[t.Name] = t
	}
	found := map[string]bool{}
	for l := range cfg.Layers {
		for _, s := range of(l) {
			stored := name(s.Name)
			have, ok := shape(stored)
			if !ok {
				continue
			}
			rows, shapes := 0, []string(nil)
			var parts []family.Tensor
			for _, n := range s.Parts {
				t, ok := canonical[n]
				if !ok {
					continue
				}
				parts = append(parts, t)
				rows += t.Shape[0]
				shapes = append(shapes, fmt.Sprint(t.Shape))
			}
			if len(parts) == 0 {
				continue
			}
			if _, own := shape(parts[0].Name); own && len(have) > 1 && have[0] == parts[len(parts)-1].Shape[0] {
				continue // the name of a stack is that of its last part, which stands for itself here
			}
			want := append([]int{rows}, parts[0].Shape[1:]...)
			if !sameShape(have, want) {
				return nil, fmt.Errorf("tensor %s has shape %v; stacked %v, as the configuration implies, it has %v", stored, have,
					shapes, want)
			}
			found[stored] = true
			rows = 0
			for _, t := range parts {
				p.stacked[t.Name] = p.cut(stored, rows, t.Shape[0])
				rows += t.Shape[0]
			}
		}
	}
	return found, nil
}

// shape returns that of a slice of a tensor.
func (s slice) shape(stored []int) []int {
	return append([]int{s.rows}, stored[len(stored)-min(1, len(stored)-1):]...)
}

// section returns the bytes of a slice, of all those of its tensor.
func (s slice) section(all *io.SectionReader, stored []int) *io.SectionReader {
	n := stored[0] // rows, or numbers of a vector
	if len(stored) > 2 {
		n *= stored[1]
	}
	row := all.Size() / int64(n)
	return io.NewSectionReader(all, int64(s.row0)*row, int64(s.rows)*row)
}

// read decodes rows of a slice of a tensor; of a vector, which has one row, its numbers.
func (s slice) read(stored []int, row0, n int, dst []float32, rows func(row0, n int, dst []float32) error) error {
	if len(stored) > 1 {
		return rows(s.row0+row0, n, dst)
	}
	all := make([]float32, stored[0])
	if err := rows(0, 1, all); err != nil {
		return err
	}
	copy(dst[:s.rows], all[s.row0:])
	return nil
}

// StoredAll returns the names of the tensors in the files that hold a source tensor: Stored, or
// those of blocks and scales.
func (c *Checkpoint) StoredAll(source string) []string {
	if b, ok := c.b.(*hfBackend); ok && b.packed[source] != nil {
		return b.packed[source].stored()
	}
	return []string{c.Stored(source)}
}

// Stored returns the name of the tensor in the file that holds a source tensor: another only
// for experts that are fused and projections that are stacked.
func (c *Checkpoint) Stored(source string) string {
	if b, ok := c.b.(*hfBackend); ok && b.packed[source] != nil {
		return b.packed[source].stored()[0]
	}
	if s, ok := c.parts.slices[source]; ok {
		return s.stored
	}
	return source
}

// Holds returns the canonical tensors that a stored tensor holds whole, in the order of its
// rows: one, or those of a stack; none for fused experts and for tensors outside the graph.
func (c *Checkpoint) Holds(stored string) []*Tensor { return c.holds[stored] }

// setHolds fills in what Holds returns.
func (c *Checkpoint) setHolds() {
	c.holds = map[string][]*Tensor{}
	for _, name := range c.order {
		t := c.tensors[name]
		if len(t.Sources) == 1 {
			stored := c.Stored(t.Sources[0])
			c.holds[stored] = append(c.holds[stored], t)
		}
	}
	for _, list := range c.holds {
		sort.SliceStable(list, func(i, j int) bool {
			return c.parts.slices[list[i].Sources[0]].row0 < c.parts.slices[list[j].Sources[0]].row0
		})
	}
}

// IdleKV says whether a source tensor makes keys or values that no layer reads: checkpoints of
// models with shared ones may still carry those of the layers that read others'.
func (c *Checkpoint) IdleKV(source string) bool {
	for l := range c.Config.Layers {
		if c.Config.Layers[l].Owner == l {
			continue
		}
		for _, part := range []string{"attn_k.weight", "attn_v.weight", "attn_k_norm.weight"} {
			name := family.Name(l, part)
			if c.Container == Safetensors {
				name = c.HFName(name)
			}
			if name == source {
				return true
			}
		}
	}
	return false
}
