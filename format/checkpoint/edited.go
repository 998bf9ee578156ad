package checkpoint

import (
	"fmt"
	"maps"
	"slices"
	"sort"

	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/kernels/linalg"
)

// An Edit changes one tensor. For rows x_i, the slices along the outermost
// dimension, it makes
//
//	y_i = Scale[i] x_i + Cross[i] x_Partner[i] + Shift[i]
//
// after Mix has replaced the rows that it names and ColMix the columns. It is the folded form of
// identities; nil fields do nothing. Partner and Cross turn rotary pairs by an angle; Shift moves
// biases.
type Edit struct {
	Mix     []RowMix
	ColMix  []RowMix // its Rows are columns
	Scale   []float32
	Partner []int
	Cross   []float32
	Shift   []float32
	// Inner moves and multiplies rows within the matrices of a tensor, InnerCols columns, after all
	// that is above.
	Inner, InnerCols *Inner
	By               []string // ids of the identities, such as G3
}

// An Inner edit moves and multiplies the rows or the columns of each matrix of a tensor: of a plain
// matrix, or of the matrix of every expert in a bank.
type Inner struct {
	// Order, [matrices * n]: number i of a matrix is the source's number Order[i] of the same matrix.
	// nil: none moves.
	Order []int
	// Factor, [matrices * n], multiplies what the order left at each place; nil: all 1.
	Factor []float32
}

// MeanSquares returns the mean squares of the inputs of each matrix, n numbers of x, where an edit of
// columns is made: what multiplies a column divides its input. A nil edit returns x.
func (n *Inner) MeanSquares(x []float32, each int) []float32 {
	if n == nil {
		return x
	}
	out := make([]float32, len(x))
	for i := range out {
		from := i
		if n.Order != nil {
			from = i/each*each + n.Order[i]
		}
		out[i] = x[from]
		if n.Factor != nil {
			out[i] /= float32(n.Factor[i] * n.Factor[i])
		}
	}
	return out
}

// MeanSquares returns the mean squares of the inputs of an edited tensor's columns, from those of the
// source's, each numbers for every matrix. Moves and factors are followed exactly. Inputs of mixed
// columns are mixed by the inverse transpose; as squares do not tell how inputs go together, they are
// taken as uncorrelated there, which is an estimate. It fails for a mix that has no inverse.
func (e *Edit) MeanSquares(x []float32, each int) ([]float32, error) {
	out := x
	if len(e.ColMix) > 0 {
		out = slices.Clone(x)
	}
	for i := range e.ColMix {
		m := &e.ColMix[i]
		n := len(m.Rows)
		inverse, err := linalg.Inverse(linalg.Float64(m.Matrix), n)
		if err != nil {
			return nil, fmt.Errorf("mix %d of columns: %w", i, err)
		}
		for j, c := range m.Rows {
			var sum float64
			for k, from := range m.Rows {
				v := inverse[k*n+j]
				sum += float64(float64(v*v) * float64(x[from]))
			}
			out[c] = float32(sum)
		}
	}
	return e.InnerCols.MeanSquares(out, each), nil
}

// scaled multiplies the factors of an inner edit by others, at the places that it leaves.
func (n *Inner) scaled(factor []float32) *Inner {
	if n == nil {
		n = &Inner{}
	}
	return &Inner{Order: n.Order, Factor: times(n.Factor, factor)}
}

// A RowMix replaces n rows, or columns, by linear combinations of them.
type RowMix struct {
	Rows   []int     // none is in two mixes of a tensor
	Matrix []float32 // [n, n]
}

// Edits maps canonical tensor names to what is done to them.
type Edits map[string]*Edit

func (e Edits) at(name, id string) *Edit {
	x := e[name]
	if x == nil {
		x = &Edit{}
		e[name] = x
	}
	for _, b := range x.By {
		if b == id {
			return x
		}
	}
	x.By = append(x.By, id)
	return x
}

// Scale multiplies the rows of a tensor, on top of what is there.
func (e Edits) Scale(name, id string, factors []float32) {
	x := e.at(name, id)
	x.Scale = times(x.Scale, factors)
	for i, f := range factors {
		if x.Cross != nil {
			x.Cross[i] *= f
		}
		if x.Shift != nil {
			x.Shift[i] *= f
		}
	}
}

// times multiplies factors into dst, which may be nil.
func times(dst, factors []float32) []float32 {
	if dst == nil {
		return append([]float32(nil), factors...)
	}
	for i, f := range factors {
		dst[i] *= f
	}
	return dst
}

// Shift adds to the rows of a tensor, after all that is there.
func (e Edits) Shift(name, id string, add []float32) {
	x := e.at(name, id)
	if x.Shift == nil {
		x.Shift = make([]float32, len(add))
	}
	for i, v := range add {
		x.Shift[i] += v
	}
}

// Turn replaces row i by own[i] x_i + cross[i] x_partner[i], after all that is
// there. partner must be its own inverse, and the same in every Turn of a tensor.
func (e Edits) Turn(name, id string, partner []int, own, cross []float32) {
	x := e.at(name, id)
	n := len(partner)
	s, c := make([]float32, n), make([]float32, n)
	var shift []float32
	if x.Shift != nil {
		shift = make([]float32, n)
	}
	get := func(v []float32, i int, def float32) float32 {
		if v == nil {
			return def
		}
		return v[i]
	}
	for i, p := range partner {
		// x_i and x_p are what earlier edits made of source rows i and p.
		s[i] = float32(own[i]*get(x.Scale, i, 1)) + float32(cross[i]*get(x.Cross, p, 0))
		c[i] = float32(own[i]*get(x.Cross, i, 0)) + float32(cross[i]*get(x.Scale, p, 1))
		if shift != nil {
			shift[i] = float32(own[i]*x.Shift[i]) + float32(cross[i]*x.Shift[p])
		}
	}
	x.Scale, x.Cross, x.Partner, x.Shift = s, c, partner, shift
}

// Mix replaces rows by combinations of rows. Rows must still be the source's but
// for what was added to them.
func (e Edits) Mix(name, id string, mixes []RowMix) error {
	x := e.at(name, id)
	if x.Mix != nil || x.Scale != nil {
		return fmt.Errorf("edit of tensor %s mixes rows that are changed already", name)
	}
	x.Mix = mixes
	if x.Shift == nil {
		return nil
	}
	shift := append([]float32(nil), x.Shift...)
	for _, m := range mixes {
		for i, r := range m.Rows {
			var sum float64
			for j, s := range m.Rows {
				sum += float64(m.Matrix[i*len(m.Rows)+j]) * float64(x.Shift[s])
			}
			shift[r] = float32(sum)
		}
	}
	x.Shift = shift
	return nil
}

// MixColumns replaces columns by combinations of columns, before all that is there.
func (e Edits) MixColumns(name, id string, mixes []RowMix) error {
	x := e.at(name, id)
	if x.ColMix != nil {
		return fmt.Errorf("edit of tensor %s mixes columns that are changed already", name)
	}
	x.ColMix = mixes
	return nil
}

// ScaleRows multiplies rows within the matrices of a tensor, ScaleColumns columns: [matrices * n].
func (e Edits) ScaleRows(name, id string, factor []float32) {
	x := e.at(name, id)
	x.Inner = x.Inner.scaled(factor)
}

// ScaleColumns is ScaleRows for columns.
func (e Edits) ScaleColumns(name, id string, factor []float32) {
	x := e.at(name, id)
	x.InnerCols = x.InnerCols.scaled(factor)
}

// Reorder moves rows, or columns, within the matrices of a tensor whose Inner edits are none yet.
func (e Edits) Reorder(name, id string, columns bool, order []int) error {
	x := e.at(name, id)
	if columns && x.InnerCols != nil || !columns && (x.Inner != nil || x.Mix != nil || x.Scale != nil || x.Shift != nil) {
		return fmt.Errorf("edit of tensor %s moves rows or columns that are changed already", name)
	}
	if columns {
		x.InnerCols = &Inner{Order: order}
	} else {
		x.Inner = &Inner{Order: order}
	}
	return nil
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

// An Edited is a checkpoint with edits applied on reading. It is what writers
// write, and what a forward pass of the edited model reads. It offers nothing of the
// checkpoint that edits do not reach.
type Edited struct {
	base  *Checkpoint
	Edits Edits
	// Added are tensors that the checkpoint lacks, zero before their edits: biases.
	Added map[string]*Tensor
	// Stream, if set, changes what the edits leave of tensors: identity G1.
	Stream Stream
	// Round, if set, rounds the values of edited tensors as storing them would, rows at a time.
	Round func(t *Tensor, x []float32)
}

// A Stream is a change of whole matrices on top of edits, which it reads.
type Stream interface {
	Weights
	// Changes says whether it changes a tensor.
	Changes(name string) bool
	// Untied is the head that a model with tied embeddings gets, nil where it has one.
	Untied() *Tensor
}

// Clone returns v with edits of its own, which may go on from those of v. Its Stream must not be set:
// a Stream reads the edits that it was made for.
func (v *Edited) Clone() (*Edited, error) {
	if v.Stream != nil {
		return nil, fmt.Errorf("%s: edits below a change of whole matrices cannot be copied", v.base.Path)
	}
	x := *v
	x.Edits, x.Added = Edits{}, maps.Clone(v.Added)
	for name, e := range v.Edits {
		c := *e
		for _, p := range []*[]float32{&c.Scale, &c.Cross, &c.Shift} {
			*p = slices.Clone(*p) // what is there is changed in place
		}
		c.By = slices.Clone(c.By)
		for _, p := range []**Inner{&c.Inner, &c.InnerCols} {
			if *p != nil {
				*p = &Inner{Order: (*p).Order, Factor: slices.Clone((*p).Factor)}
			}
		}
		x.Edits[name] = &c
	}
	return &x, nil
}

// WithoutStream is the edited checkpoint below v.Stream. It shares the edits.
func (v *Edited) WithoutStream() *Edited {
	x := *v
	x.Stream, x.Round = nil, nil
	return &x
}

// Changed says whether a tensor is not as in the checkpoint.
func (v *Edited) Changed(name string) bool {
	return v.Edits[name] != nil || v.Stream != nil && v.Stream.Changes(name)
}

// NewEdited returns c with edits, which may be nil.
func NewEdited(c *Checkpoint, edits Edits) *Edited { return &Edited{base: c, Edits: edits} }

// Config returns the configuration, which edits do not change.
func (v *Edited) Config() *family.Config { return v.base.Config }

// Find returns the canonical tensor with this name, an added one too.
func (v *Edited) Find(name string) (*Tensor, bool) {
	if t, ok := v.base.Find(name); ok {
		return t, true
	}
	if v.Stream != nil {
		if t := v.Stream.Untied(); t != nil && t.Name == name {
			return t, true
		}
	}
	t, ok := v.Added[name]
	return t, ok
}

// source reads rows before edits.
func (v *Edited) source(t *Tensor, row0, n int, dst []float32) error {
	if v.Added[t.Name] == t {
		if row0 < 0 || n < 0 || n > t.Rows()-row0 || len(dst) < n*t.Cols() {
			return fmt.Errorf("%s: added tensor %s: %d rows from %d on of %d asked for, room for %d values", v.base.Path,
				t.Name, n,
				row0, t.Rows(), len(dst))
		}
		clear(dst[:n*t.Cols()])
		return nil
	}
	return v.base.ReadRows(t, row0, n, dst)
}

// ReadRows reads rows of the edited tensor.
func (v *Edited) ReadRows(t *Tensor, row0, n int, dst []float32) error {
	if v.Stream != nil && v.Stream.Changes(t.Name) {
		err := v.Stream.ReadRows(t, row0, n, dst)
		if err == nil && v.Round != nil {
			v.Round(t, dst[:n*t.Cols()])
		}
		return err
	}
	e := v.Edits[t.Name]
	if e == nil || e.Inner == nil || e.Inner.Order == nil {
		if err := v.source(t, row0, n, dst); err != nil {
			return err
		}
	}
	if e == nil {
		return nil
	}
	if err := e.Check(t); err != nil {
		return fmt.Errorf("%s: %w", v.base.Path, err)
	}
	cols := t.Cols()
	dst = dst[:n*cols]
	var err error
	if len(t.Shape) == 1 { // a vector's only dimension is its outermost
		editVector(e, dst)
	} else {
		err = v.rows(t, e, row0, n, dst)
	}
	if err == nil && v.Round != nil {
		v.Round(t, dst)
	}
	return err
}

// Check refuses an edit that does not fit its tensor.
func (e *Edit) Check(t *Tensor) error {
	for _, x := range []struct {
		what    string
		n, want int
	}{
		{"row scales", len(e.Scale), t.Shape[0]}, {"row partners", len(e.Partner), t.Shape[0]},
		{"row mixtures", len(e.Cross), t.Shape[0]},
		{"row shifts", len(e.Shift), t.Shape[0]},
	} {
		if x.n != 0 && x.n != x.want {
			return fmt.Errorf("edit of tensor %s has %d %s, the tensor has %d", t.Name, x.n, x.what, x.want)
		}
	}
	if (e.Cross == nil) != (e.Partner == nil) || e.Cross != nil && e.Scale == nil {
		return fmt.Errorf("edit of tensor %s mixes rows without partners or without scales", t.Name)
	}
	for i, p := range e.Partner {
		if p < 0 || p >= t.Shape[0] || e.Partner[p] != i {
			return fmt.Errorf("edit of tensor %s: row %d has partner %d, which is not its pair", t.Name, i, p)
		}
	}
	if (e.Cross != nil || e.Mix != nil) && len(t.Shape) > 2 {
		return fmt.Errorf("edit of tensor %s mixes rows of a tensor with %d dimensions", t.Name, len(t.Shape))
	}
	if err := e.checkInner(t); err != nil {
		return err
	}
	if e.ColMix != nil && len(t.Shape) != 2 {
		return fmt.Errorf("edit of tensor %s mixes columns of a tensor with %d dimensions", t.Name, len(t.Shape))
	}
	if err := checkMixes(t.Name, "row", e.Mix, t.Shape[0]); err != nil {
		return err
	}
	return checkMixes(t.Name, "column", e.ColMix, t.Cols())
}

// checkInner refuses inner edits that do not fit the matrices of a tensor.
func (e *Edit) checkInner(t *Tensor) error {
	if e.Inner == nil && e.InnerCols == nil {
		return nil
	}
	if len(t.Shape) < 2 {
		return fmt.Errorf("edit of tensor %s moves or multiplies rows within a vector", t.Name)
	}
	cols, rows := t.Cols(), t.Shape[len(t.Shape)-2]
	if e.Inner != nil && e.Inner.Order != nil && (e.Mix != nil || e.Scale != nil || e.Shift != nil) {
		return fmt.Errorf("edit of tensor %s moves rows and changes them otherwise", t.Name)
	}
	matrices := t.Rows() / max(rows, 1)
	for _, x := range []struct {
		what string
		in   *Inner
		n    int
	}{{"row", e.Inner, rows}, {"column", e.InnerCols, cols}} {
		if x.in == nil {
			continue
		}
		if err := x.in.check(matrices, x.n); err != nil {
			return fmt.Errorf("edit of tensor %s, %ss: %w", t.Name, x.what, err)
		}
	}
	return nil
}

// check refuses orders that are none, and lengths other than matrices times n.
func (n *Inner) check(matrices, size int) error {
	if n.Factor != nil && len(n.Factor) != matrices*size || n.Order != nil && len(n.Order) != matrices*size {
		return fmt.Errorf("%d factors and %d places for %d matrices of %d", len(n.Factor), len(n.Order), matrices, size)
	}
	seen := make([]bool, len(n.Order))
	for i, from := range n.Order {
		at := i/size*size + from
		if from < 0 || from >= size || seen[at] {
			return fmt.Errorf("number %d comes from %d of %d, or from the same as another", i, from, size)
		}
		seen[at] = true
	}
	return nil
}

func checkMixes(tensor, what string, mixes []RowMix, n int) error {
	seen := make([]bool, n)
	for _, m := range mixes {
		if len(m.Rows) == 0 || len(m.Matrix) != len(m.Rows)*len(m.Rows) {
			return fmt.Errorf("edit of tensor %s mixes %d %ss with a matrix of %d numbers", tensor, len(m.Rows), what,
				len(m.Matrix))
		}
		for _, r := range m.Rows {
			if r < 0 || r >= n || seen[r] {
				return fmt.Errorf("edit of tensor %s mixes %s %d of %d, or mixes it twice", tensor, what, r, n)
			}
			seen[r] = true
		}
	}
	return nil
}

// editVector applies an edit to a tensor of one dimension, in place.
func editVector(e *Edit, dst []float32) {
	src := append([]float32(nil), dst...)
	for _, m := range e.Mix {
		for i, r := range m.Rows {
			m.combine(i, 1, func(j int) []float32 { return dst[m.Rows[j] : m.Rows[j]+1] }, src[r:r+1])
		}
	}
	for i := range dst {
		var y float32
		if e.Cross != nil {
			y = src[e.Partner[i]]
		}
		dst[i] = e.apply(i, src[i], y)
	}
}

// combine sets dst to row i of the matrix times the mixed rows, summed in float64
// in their order.
func (m *RowMix) combine(i, cols int, row func(j int) []float32, dst []float32) {
	sum := make([]float64, cols)
	for j := range m.Rows {
		f := float64(m.Matrix[i*len(m.Rows)+j])
		for k, x := range row(j) {
			sum[k] += f * float64(x) // exact products, so fusing changes nothing
		}
	}
	for k, x := range sum {
		dst[k] = float32(x)
	}
}

// mixer reads rows of a tensor after the mixes of its edit. It keeps the rows of
// one mix, because the rows of a head are read one after the other.
type mixer struct {
	v     *Edited
	t     *Tensor
	mixes []RowMix
	of    map[int][2]int // row -> mix, and place in it
	held  int
	rows  []float32
}

func (v *Edited) mixer(t *Tensor, e *Edit) *mixer {
	m := &mixer{v: v, t: t, mixes: e.Mix, held: -1, of: map[int][2]int{}}
	for g, x := range e.Mix {
		for i, r := range x.Rows {
			m.of[r] = [2]int{g, i}
		}
	}
	return m
}

// row reads row i into dst; where nothing is mixed, dst holds it already if read.
func (m *mixer) row(i int, dst []float32, read bool) error {
	at, ok := m.of[i]
	if !ok {
		if read {
			return nil
		}
		return m.v.source(m.t, i, 1, dst)
	}
	cols, x := m.t.Cols(), &m.mixes[at[0]]
	if m.held != at[0] {
		m.held = -1
		m.rows = make([]float32, len(x.Rows)*cols)
		for j, r := range x.Rows {
			if err := m.v.source(m.t, r, 1, m.rows[j*cols:(j+1)*cols]); err != nil {
				return err
			}
		}
		m.held = at[0]
	}
	x.combine(at[1], cols, func(j int) []float32 { return m.rows[j*cols : (j+1)*cols] }, dst)
	return nil
}

func (v *Edited) rows(t *Tensor, e *Edit, row0, n int, dst []float32) error {
	cols := t.Cols()
	per := t.Rows() / t.Shape[0]
	var other []float32
	if e.Cross != nil {
		other = make([]float32, cols)
	}
	mix := v.mixer(t, e)
	for r := range n {
		i := (row0 + r) / per
		row := dst[r*cols : (r+1)*cols]
		if e.Inner != nil && e.Inner.Order != nil {
			size := t.Shape[len(t.Shape)-2]
			if err := v.source(t, (row0+r)/size*size+e.Inner.Order[row0+r], 1, row); err != nil {
				return err
			}
		}
		if err := mix.row(i, row, true); err != nil {
			return err
		}
		mixColumns(row, e.ColMix)
		if e.Cross != nil && e.Cross[i] != 0 {
			if err := mix.row(e.Partner[i], other, false); err != nil {
				return err
			}
			mixColumns(other, e.ColMix)
			for k := range row {
				row[k] = e.apply(i, row[k], other[k])
			}
		} else {
			for k := range row {
				row[k] = e.apply(i, row[k], 0)
			}
		}
		e.inner(t, row0+r, row)
	}
	return nil
}

// inner applies the factor of a row and what is done to columns within its matrix.
func (e *Edit) inner(t *Tensor, r int, row []float32) {
	if e.Inner != nil && e.Inner.Factor != nil {
		f := e.Inner.Factor[r]
		for k := range row {
			row[k] *= f
		}
	}
	c := e.InnerCols
	if c == nil {
		return
	}
	at := r / t.Shape[len(t.Shape)-2] * len(row)
	if c.Order != nil {
		from := append([]float32(nil), row...)
		for k, j := range c.Order[at : at+len(row)] {
			row[k] = from[j]
		}
	}
	if c.Factor != nil {
		for k, f := range c.Factor[at : at+len(row)] {
			row[k] *= f
		}
	}
}

// mixColumns mixes the columns of one row, summed in float64 in their order.
func mixColumns(row []float32, mixes []RowMix) {
	for i := range mixes {
		m := &mixes[i]
		n := len(m.Rows)
		x := make([]float64, n)
		for j, c := range m.Rows {
			x[j] = float64(row[c])
		}
		for j, c := range m.Rows {
			var sum float64
			for k, f := range m.Matrix[j*n : (j+1)*n] {
				sum += float64(f) * x[k] // exact products, so fusing changes nothing
			}
			row[c] = float32(sum)
		}
	}
}

// apply edits a value x of row i, where the partner row has the value y.
func (e *Edit) apply(i int, x, y float32) float32 {
	if e.Scale != nil {
		x = float32(x * e.Scale[i])
	}
	if e.Cross != nil {
		x += float32(y * e.Cross[i])
	}
	if e.Shift != nil {
		x += e.Shift[i]
	}
	return x
}
