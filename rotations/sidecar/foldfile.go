package sidecar

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/dtype"
	"github.com/phaseconv/phaseconv/format/jsonx"
	"github.com/phaseconv/phaseconv/format/safetensors"
	"github.com/phaseconv/phaseconv/rotations/transform"
	"github.com/phaseconv/phaseconv/spec"
)

// A Fold is what a conversion did to the weights, as numbers: with it and the
// source the converted model can be made again, byte for byte, without the text
// that everything was fitted to.
type Fold struct {
	SourceSHA256 string
	Edits        checkpoint.Edits
	// Added are tensors that the source lacks.
	Added map[string]*checkpoint.Tensor
	// Residual is the rotation of identity G1, nil for none.
	Residual *transform.ResidualRotation
}

// FoldOf gathers what was done to the weights of v. Biases of zeros that a container needs beside others
// are no part of it: the plan of that container makes them again.
func FoldOf(v *checkpoint.Edited, source string) *Fold {
	f := &Fold{SourceSHA256: source, Edits: v.Edits, Added: maps.Clone(v.Added)}
	maps.DeleteFunc(f.Added, func(name string, _ *checkpoint.Tensor) bool { return f.Edits[name] == nil })
	if r, ok := v.Stream.(*transform.Residual); ok {
		f.Residual = r.Rotation()
	}
	return f
}

// foldEntry is one edited tensor in the metadata.
type foldEntry struct {
	Tensor string   `json:"tensor"`
	By     []string `json:"by"`
	// Added is the length of a vector that the source lacks, 0 for its own tensors.
	Added int `json:"added,omitempty"`
}

// Limits of a fold file.
const (
	maxFoldList  = 64 << 20 // bytes of JSON
	maxFoldParts = 1 << 24  // numbers of one tensor
)

// parts of an edit in the file, with their element types.
var foldParts = []struct{ name, dtype string }{
	{"mix.rows", "I32"}, {"mix", "F32"}, {"colmix.cols", "I32"}, {"colmix", "F32"}, {"scale", "F32"}, {"partner", "I32"},
	{"cross", "F32"}, {"shift", "F32"},
	{"rows.order", "I32"}, {"rows.factor", "F32"}, {"cols.order", "I32"}, {"cols.factor", "F32"},
}

// foldBytes returns one part of an edit as it is stored, nil when it has none.
func foldBytes(e *checkpoint.Edit, part string) []byte {
	var b []byte
	put := func(x []float32) { b = dtype.AppendF32(b, x) }
	index := func(x []int) {
		for _, v := range x {
			b = binary.LittleEndian.AppendUint32(b, uint32(int32(v)))
		}
	}
	switch part {
	case "scale":
		put(e.Scale)
	case "cross":
		put(e.Cross)
	case "shift":
		put(e.Shift)
	case "mix", "colmix":
		for _, m := range *mixesOf(e, part) {
			put(m.Matrix)
		}
	case "mix.rows", "colmix.cols":
		for _, m := range *mixesOf(e, part) {
			index(m.Rows)
		}
	case "partner":
		index(e.Partner)
	case "rows.order", "rows.factor", "cols.order", "cols.factor":
		in := *innerOf(e, part)
		if in == nil {
			break
		}
		if strings.HasSuffix(part, "order") {
			index(in.Order)
		} else {
			put(in.Factor)
		}
	}
	return b
}

// innerOf returns the inner edit that a part of the file holds.
func innerOf(e *checkpoint.Edit, part string) **checkpoint.Inner {
	if strings.HasPrefix(part, "cols.") {
		return &e.InnerCols
	}
	return &e.Inner
}

// mixesOf returns the mixes of an edit that a part of the file holds.
func mixesOf(e *checkpoint.Edit, part string) *[]checkpoint.RowMix {
	if strings.HasPrefix(part, "col") {
		return &e.ColMix
	}
	return &e.Mix
}

// Write writes the fold as a safetensors file.
func (f *Fold) Write(path string) error {
	list := []foldEntry{}
	var ts []safetensors.Tensor
	var data [][]byte
	for _, name := range f.Edits.Names() {
		e := f.Edits[name]
		entry := foldEntry{Tensor: name, By: e.By}
		if t := f.Added[name]; t != nil {
			if len(t.Shape) != 1 {
				return fmt.Errorf("tensor %s, which the source lacks, has shape %v; only vectors can be added", name, t.Shape)
			}
			entry.Added = t.Shape[0]
		}
		list = append(list, entry)
		for _, p := range foldParts {
			if b := foldBytes(e, p.name); len(b) > 0 {
				ts, data = append(ts, safetensors.Tensor{Name: name + "." + p.name, DType: p.dtype, Shape: []int{len(b) / 4}}),
					append(data, b)
			}
		}
	}
	for name := range f.Added {
		if f.Edits[name] == nil {
			return fmt.Errorf("tensor %s is added, and nothing is done to it", name)
		}
	}
	text, err := json.Marshal(list)
	if err != nil {
		return err
	}
	meta := map[string]string{
		spec.KeyVersion: strconv.Itoa(spec.Version), spec.KeySourceSHA256: f.SourceSHA256, spec.FoldList: string(text),
	}
	if q := f.Residual; q != nil {
		meta[spec.FoldResidual] = fmt.Sprintf("%d %d", q.D, q.P)
		ts, data = appendResidual(q, ts, data)
	}
	out, err := safetensors.Create(path, ts, meta)
	if err != nil {
		return err
	}
	defer out.Abort()
	for i, t := range ts {
		if err := out.WriteTensor(t.Name, func(o io.Writer) error { _, err := o.Write(data[i]); return err }); err != nil {
			return err
		}
	}
	return out.Commit()
}

// ReadFold reads a fold file and refuses, naming the key or tensor, what version
// 1 does not define. When ctx ends, it returns its cause.
func ReadFold(ctx context.Context, path string) (*Fold, error) {
	f, err := safetensors.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	out, err := readFold(ctx, f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return out, nil
}

func readFold(ctx context.Context, f *safetensors.File) (*Fold, error) {
	for k := range f.Metadata {
		if k != spec.KeyVersion && k != spec.KeySourceSHA256 && k != spec.FoldList && k != spec.FoldResidual &&
			strings.HasPrefix(k, keyPrefix) {
			return nil, fmt.Errorf("key %.80q is not one of version %d: the file was made by a later program; use one that knows the key", k, spec.Version)
		}
	}
	if v := f.Metadata[spec.KeyVersion]; v != strconv.Itoa(spec.Version) {
		return nil, fmt.Errorf("key %s is %.20q; this program reads version %d", spec.KeyVersion, v, spec.Version)
	}
	r := &keyReader{f: stSidecar{f}}
	out := &Fold{Edits: checkpoint.Edits{}, Added: map[string]*checkpoint.Tensor{},
		SourceSHA256: r.digest(spec.KeySourceSHA256)}
	if r.err != nil {
		return nil, r.err
	}
	text := f.Metadata[spec.FoldList]
	var list []foldEntry
	if len(text) > maxFoldList || jsonx.UnmarshalStrict([]byte(text), &list) != nil {
		return nil, fmt.Errorf("key %s is not a list of edits", spec.FoldList)
	}
	seen := map[string]bool{}
	for _, x := range list {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if out.Edits[x.Tensor] != nil {
			return nil, fmt.Errorf("key %s lists %.80q twice", spec.FoldList, x.Tensor)
		}
		if x.Added < 0 || x.Added > maxFoldParts {
			return nil, fmt.Errorf("key %s: tensor %.80q is added with %d numbers", spec.FoldList, x.Tensor, x.Added)
		}
		e, err := readEdit(f, x.Tensor, seen)
		if err != nil {
			return nil, err
		}
		if e.By = x.By; len(e.By) == 0 {
			return nil, fmt.Errorf("key %s: tensor %.80q is edited by no identity", spec.FoldList, x.Tensor)
		}
		if x.Added > 0 {
			layer := -1
			_, _ = fmt.Sscanf(x.Tensor, "blk.%d.", &layer)
			out.Added[x.Tensor] = &checkpoint.Tensor{Name: x.Tensor, Layer: layer, Shape: []int{x.Added}, Type: "F32"}
		}
		out.Edits[x.Tensor] = e
	}
	var err error
	if out.Residual, err = readResidual(f, seen); err != nil {
		return nil, err
	}
	for i := range f.Tensors {
		if n := f.Tensors[i].Name; !seen[n] {
			return nil, fmt.Errorf("tensor %.80q belongs to no edit", n)
		}
	}
	return out, nil
}

// An editReader reads the parts of one tensor's edit.
type editReader struct {
	f        *safetensors.File
	name     string
	e        *checkpoint.Edit
	rows     int                  // that every part but mixes has, -1 until one is read
	mixed    map[string][]int     // indices of mixes, by "mix" and "colmix"
	matrices map[string][]float32 // their numbers
}

// readEdit reads the parts of one tensor's edit, and marks what it read in seen.
func readEdit(f *safetensors.File, name string, seen map[string]bool) (*checkpoint.Edit, error) {
	r := &editReader{f: f, name: name, e: &checkpoint.Edit{}, rows: -1,
		mixed: map[string][]int{}, matrices: map[string][]float32{}}
	for _, p := range foldParts {
		full := name + "." + p.name
		t, ok := f.Find(full)
		if !ok {
			continue
		}
		seen[full] = true
		if t.DType != p.dtype || len(t.Shape) != 1 || t.Shape[0] < 1 || t.Shape[0] > maxFoldParts {
			return nil, fmt.Errorf("tensor %.80s is %s %v, expected %s and one dimension", full, t.DType, t.Shape, p.dtype)
		}
		if err := r.part(p.name, p.dtype, t, full); err != nil {
			return nil, err
		}
	}
	if (r.e.Partner == nil) != (r.e.Cross == nil) {
		return nil, fmt.Errorf("tensor %.80s has one of cross and partner without the other", name)
	}
	if err := r.mixes(); err != nil {
		return nil, err
	}
	if r.rows < 0 && r.e.ColMix == nil && r.e.Mix == nil && r.e.Inner == nil && r.e.InnerCols == nil {
		return nil, fmt.Errorf("tensor %.80s is listed as edited, but nothing is done to it", name)
	}
	return r.e, nil
}

// part reads one part, tensor t of the file, full by name.
func (r *editReader) part(part, dtype string, t *safetensors.Tensor, full string) error {
	n := t.Shape[0]
	of, _, _ := strings.Cut(part, ".")
	isMix := of == "mix" || of == "colmix"
	inner := of == "rows" || of == "cols"
	if inner && *innerOf(r.e, part) == nil {
		*innerOf(r.e, part) = &checkpoint.Inner{}
	}
	if !isMix && !inner {
		if r.rows >= 0 && r.rows != n {
			return fmt.Errorf("tensor %.80s has %d numbers, the other parts of the edit %d", full, n, r.rows)
		}
		r.rows = n
	}
	if dtype == "I32" {
		return r.indices(of, isMix, t, full)
	}
	x := make([]float32, n)
	if err := r.f.ReadRows(t, 0, 1, x); err != nil {
		return err
	}
	for i, v := range x {
		if v-v != 0 {
			return fmt.Errorf("tensor %.80s: number %d is %v; all must be finite", full, i, v)
		}
	}
	switch part {
	case "mix", "colmix":
		r.matrices[of] = x
	case "scale":
		r.e.Scale = x
	case "cross":
		r.e.Cross = x
	case "shift":
		r.e.Shift = x
	case "rows.factor", "cols.factor":
		(*innerOf(r.e, part)).Factor = x
	}
	return nil
}

// indices reads the rows or columns of mixes, the places of an order, or the partners of rows.
func (r *editReader) indices(of string, isMix bool, t *safetensors.Tensor, full string) error {
	raw := make([]int32, t.Shape[0])
	if err := binary.Read(r.f.Reader(t), binary.LittleEndian, raw); err != nil {
		return err
	}
	for i, v := range raw {
		if isMix {
			r.mixed[of] = append(r.mixed[of], int(v))
			continue
		}
		if of == "rows" || of == "cols" { // Fold.Apply knows the matrix and checks the order
			in := *innerOf(r.e, of+".")
			in.Order = append(in.Order, int(v))
			continue
		}
		// A partner of a partner is the row itself: pairs of rows are turned.
		if v < 0 || int(v) >= len(raw) || int(raw[v]) != i {
			return fmt.Errorf("tensor %.80s: number %d is %d, which is no partner among %d rows", full, i, v, len(raw))
		}
		r.e.Partner = append(r.e.Partner, int(v))
	}
	return nil
}

// mixes puts indices and numbers of mixes together.
func (r *editReader) mixes() error {
	for _, part := range []string{"mix", "colmix"} {
		of, m := r.mixed[part], r.matrices[part]
		if len(of) == 0 && len(m) == 0 {
			continue
		}
		// Mixes of one tensor are alike: each has as many rows as its matrix is wide.
		n := len(m) / max(len(of), 1)
		if n == 0 || len(m) != n*len(of) || len(of)%n != 0 {
			return fmt.Errorf("tensor %.80s: %s has %d indices and %d numbers, which is no list of square matrices",
				r.name, part, len(of), len(m))
		}
		to := mixesOf(r.e, part)
		for i := 0; i < len(of); i += n {
			*to = append(*to, checkpoint.RowMix{Rows: of[i : i+n], Matrix: m[i*n : (i+n)*n]})
		}
	}
	return nil
}

// Apply returns the source with the fold applied. It fails if a tensor is not there
// or has another shape.
func (f *Fold) Apply(c *checkpoint.Checkpoint) (*checkpoint.Edited, error) {
	v := checkpoint.NewEdited(c, f.Edits)
	v.Added = f.Added
	if f.Residual != nil {
		if err := transform.FoldStream(v, f.Residual, 0); err != nil {
			return nil, fmt.Errorf("%s: %w", c.Path, err)
		}
	}
	for _, name := range f.Edits.Names() {
		t, ok := v.Find(name)
		if !ok {
			return nil, fmt.Errorf("%s: no tensor %.80s, which the fold edits", c.Path, name)
		}
		if _, own := c.Find(name); own && f.Added[name] != nil {
			return nil, fmt.Errorf("%s: tensor %.80s is there, and the fold adds it", c.Path, name)
		}
		if err := f.Edits[name].Check(t); err != nil {
			return nil, fmt.Errorf("%s: %w", c.Path, err)
		}
	}
	return v, nil
}

// compare lists the tensors that two conversions edited differently, with the
// distance of their numbers, nil where they cannot be compared.
func (f *Fold) compare(g *Fold) []spec.DiffTensor {
	names := map[string]bool{}
	for n := range f.Edits {
		names[n] = true
	}
	for n := range g.Edits {
		names[n] = true
	}
	var out []spec.DiffTensor
	for _, n := range slices.Sorted(maps.Keys(names)) {
		a, b := f.Edits[n], g.Edits[n]
		d := spec.DiffTensor{Tensor: n}
		same, alike := true, a != nil && b != nil
		var x, y []float32
		for _, p := range foldParts {
			if !alike {
				break
			}
			u, v := foldBytes(a, p.name), foldBytes(b, p.name)
			same = same && bytes.Equal(u, v)
			if p.dtype == "I32" {
				alike = bytes.Equal(u, v)
				continue
			}
			alike = len(u) == len(v)
			x, y = append(x, floatsOf(u)...), append(y, floatsOf(v)...)
		}
		if same && alike {
			continue
		}
		if alike {
			d.Distance = distance(x, y)
		}
		out = append(out, d)
	}
	if !reflect.DeepEqual(f.Residual, g.Residual) {
		out = append(out, spec.DiffTensor{Tensor: "residual"})
	}
	return out
}

func floatsOf(b []byte) []float32 {
	x := make([]float32, len(b)/4)
	dtype.DecodeF32(x, b)
	return x
}
