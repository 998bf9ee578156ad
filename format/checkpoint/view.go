package checkpoint

import "sort"

// An Edit changes one tensor: the value at index i of the outermost dimension is
// multiplied by Scale[i]. It is the folded form of an identity.
type Edit struct {
	Scale []float32
	By    []string // ids of the identities, such as G3
}

// Edits maps canonical tensor names to what is done to them.
type Edits map[string]*Edit

// Scale multiplies the rows of a tensor, on top of what is there.
func (e Edits) Scale(name, id string, factors []float32) {
	x := e[name]
	if x == nil {
		e[name] = &Edit{Scale: append([]float32(nil), factors...), By: []string{id}}
		return
	}
	for i, f := range factors {
		x.Scale[i] *= f
	}
	x.By = append(x.By, id)
}

// Names returns the edited tensors, sorted.
func (e Edits) Names() []string {
	var n []string
	for k := range e {
		n = append(n, k)
	}
	sort.Strings(n)
	return n
}

// A View is a checkpoint with edits applied on reading. It is what writers
// write, and what a forward pass of the edited model reads.
type View struct {
	*Checkpoint
	Edits Edits
	// Round, if set, rounds the values of edited tensors as storing them would.
	Round func(x []float32)
}

// ReadRows reads rows of the edited tensor.
func (v *View) ReadRows(t *Tensor, row0, n int, dst []float32) error {
	if err := v.Checkpoint.ReadRows(t, row0, n, dst); err != nil {
		return err
	}
	e := v.Edits[t.Name]
	if e == nil {
		return nil
	}
	cols := t.Cols()
	if len(t.Shape) == 1 { // a vector's only dimension is its outermost
		for i := range dst[:n*cols] {
			dst[i] *= e.Scale[i]
		}
	} else {
		per := t.Rows() / t.Shape[0]
		for r := range n {
			s := e.Scale[(row0+r)/per]
			row := dst[r*cols : (r+1)*cols]
			for i := range row {
				row[i] *= s
			}
		}
	}
	if v.Round != nil {
		v.Round(dst[:n*cols])
	}
	return nil
}
