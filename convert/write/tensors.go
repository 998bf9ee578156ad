package write

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"path/filepath"
	"slices"
	"strings"

	"github.com/phaseconv/phaseconv/convert/plan"
	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/format/jsonx"
	"github.com/phaseconv/phaseconv/format/safetensors"
	"github.com/phaseconv/phaseconv/format/stream"
	"github.com/phaseconv/phaseconv/kernels/linalg"
	"github.com/phaseconv/phaseconv/spec"
)

// writer streams the tensors of a plan.
type writer struct {
	c    *checkpoint.Checkpoint
	view *checkpoint.Edited
	plan *plan.Plan
	// ranges are largest magnitudes in the source, by tensor, as far as they are known.
	ranges map[string]float32
	report func(done, total int) // in MiB; may be nil
	meter  *stream.Meter
}

// A counter counts what it passes on.
type counter struct {
	to io.Writer
	m  *stream.Meter
}

func (c counter) Write(b []byte) (int, error) {
	n, err := c.to.Write(b)
	c.m.Add(int64(n))
	return n, err
}

// numbersPerPiece bounds the numbers that are in memory at a time.
const numbersPerPiece = 1 << 20

// encode streams a tensor's values, edited and reordered, through enc. part
// selects one source tensor of several, -1 all of them.
func (w *writer) encode(ctx context.Context, o io.Writer, x *plan.TensorPlan, part int,
	enc func(dst []byte, src []float32) ([]byte, error),
) error {
	if x.Parts != nil {
		for _, t := range x.Parts {
			y := *x
			y.Parts, y.Tensor, y.Shape, y.Reorder = nil, t, t.Shape, x.Reorder && plan.IsRotary(t.Name)
			if err := w.encode(ctx, o, &y, -1, enc); err != nil {
				return err
			}
		}
		return nil
	}
	t := x.Tensor
	cols, rows, row0 := t.Cols(), t.Rows(), 0
	if part >= 0 {
		rows /= len(t.Sources)
		row0 = part * rows
	}
	step := max(1, numbersPerPiece/cols)
	var order []int
	if x.Reorder {
		order = w.rowOrder(x)
	}
	vector := len(t.Shape) == 1
	if order != nil && !vector {
		// Rows move inside their head: whole heads are read at a time.
		d := w.c.Config.Layers[t.Layer].HeadDim
		step = max(1, step/d) * d
	}
	buf := make([]float32, min(step, rows)*cols)
	var out []byte
	for r := 0; r < rows; r += step {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n := min(step, rows-r)
		piece := buf[:n*cols]
		if err := w.view.ReadRows(t, row0+r, n, piece); err != nil {
			return err
		}
		if order != nil {
			// A vector is one row whose numbers move.
			size := cols
			if vector {
				size = 1
			}
			moved := make([]float32, 0, len(piece))
			for i := range len(piece) / size {
				from := (order[r+i] - r) * size
				moved = append(moved, piece[from:from+size]...)
			}
			piece = moved
		}
		if w.plan.Container == checkpoint.Safetensors && t.Add != 0 {
			for i := range piece { // back from the graph's values to the stored ones
				piece[i] -= t.Add
			}
		}
		if typ := limits[x.To]; typ != nil {
			if i := typ.over(piece); i >= 0 {
				return fmt.Errorf("%s: tensor %s: value at row %d, column %d becomes %g, which %s cannot hold (it goes up to %g); %s",
					w.c.Path, x.Name, row0+r+i/cols, i%cols, piece[i], x.To, typ.max, overHint(w.plan))
			}
		}
		var err error
		if out, err = enc(out[:0], piece); err != nil {
			return fmt.Errorf("%s: tensor %s: %w", w.c.Path, t.Name, err)
		}
		if _, err := o.Write(out); err != nil {
			return err
		}
	}
	return nil
}

// A limit is the largest magnitude that an element type stores as a finite number.
type limit struct {
	max   float64 // as it is stored
	first float64 // the smallest magnitude that is rounded to infinity
}

// limits by element type, named as in both containers. The scale of a Q8_0 block
// is the largest magnitude over 127, as F16.
var limits = map[string]*limit{
	"F64":  {math.MaxFloat64, math.Inf(1)},
	"F32":  {math.MaxFloat32, math.Inf(1)},
	"BF16": {0x1.fep127, 0x1.ffp127},
	"F16":  {65504, 65520},
	"Q8_0": {127 * 65504, 127 * 65520},
}

// over returns the index of the first number that would not stay finite, or -1.
// An edit may have made one of finite weights.
func (l *limit) over(x []float32) int {
	for i, v := range x {
		if !(math.Abs(float64(v)) < l.first) { // also NaN
			return i
		}
	}
	return -1
}

// mostQ8 is the largest magnitude that Q8_0 is used for: beside a larger one, weights of the
// usual size would vanish from a block, whose step is a 127th of its largest.
const mostQ8 = 127

// widen gives tensors that are encoded for a GGUF file another type where their own would
// make infinities of large numbers: that of the source, or F32. No number of the source is
// worth a model that cannot be written.
func (w *writer) widen(ctx context.Context) error {
	for i := range w.plan.Tensors {
		x := &w.plan.Tensors[i]
		l := limits[x.To]
		tensors := x.Parts
		if x.Tensor != nil {
			tensors = []*checkpoint.Tensor{x.Tensor}
		}
		if len(tensors) == 0 || l == nil || x.To == "F32" || x.Action != plan.Recode && x.Action != plan.Fold {
			continue
		}
		var largest float32
		for _, t := range tensors {
			n, known := w.ranges[t.Name]
			if !known || w.view.Changed(t.Name) {
				var err error
				if n, err = checkpoint.Largest(ctx, w.view, t); err != nil {
					return err
				}
			}
			largest = max(largest, n)
		}
		if l.over([]float32{largest}) < 0 && !(x.To == "Q8_0" && largest > mostQ8) {
			continue
		}
		was, wider := x.To, "F32"
		if from := limits[x.From]; from != nil && from.over([]float32{largest}) < 0 {
			wider = x.From
		}
		x.To = wider
		x.Why += fmt.Sprintf("; as %s, because it has numbers up to %.4g, which %s cannot hold", wider, largest, was)
		w.plan.Warnings = append(w.plan.Warnings, fmt.Sprintf("tensor %s is written as %s: it has numbers up to %.4g, "+
			"which %s cannot hold", x.Name, wider, largest, was))
	}
	return nil
}

// overHint says what to do about a number that does not fit.
func overHint(p *plan.Plan) string {
	if p.Container == checkpoint.Safetensors {
		return "use --format gguf with --outtype bf16 or f32, or --balance=false to leave the tensor as it is"
	}
	return "use --outtype bf16 or f32"
}

// rowOrder returns, for each row of the target, the row of the source.
func (w *writer) rowOrder(x *plan.TensorPlan) []int {
	cfg := w.c.Config
	d := cfg.Layers[x.Tensor.Layer].HeadDim
	n := x.Shape[0]
	order := make([]int, n)
	for i := range order {
		order[i/d*d+cfg.PairsIn(x.Tensor.Layer).Index(w.plan.Pairs, i%d, d)] = i
	}
	return order
}

// gguf writes the model as GGUF: the file whole, or as many as the source is split into, with the same tensors
// in each.
func (w *writer) gguf(ctx context.Context, dir, whole string, kvs []gguf.KV) ([]spec.File, error) {
	if err := w.widen(ctx); err != nil {
		return nil, err
	}
	shards, total, err := w.shards()
	if err != nil {
		return nil, err
	}
	w.meter = stream.NewMeter(total, w.report)
	tensors := 0
	for _, s := range shards {
		tensors += len(s.specs)
	}
	var files []spec.File
	for i, s := range shards {
		name := whole
		if n := len(shards); n > 1 {
			name = gguf.ShardPath(strings.TrimSuffix(name, ".gguf"), i, n)
			if i > 0 {
				kvs = kvs[:0:0] // the first file has the model's
			}
			kvs = append(kvs[:len(kvs):len(kvs)], gguf.SplitKeys(i, n, tensors)...)
		}
		f, err := w.ggufFile(ctx, dir, name, kvs, s)
		if err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	w.meter.Finish()
	return files, nil
}

// A ggufShard is what one file holds.
type ggufShard struct {
	tensors []*plan.TensorPlan
	specs   []gguf.TensorSpec
}

// shards lays out the files: what the source lacks goes into the last. total is the bytes of all tensors.
func (w *writer) shards() (out []ggufShard, total int64, err error) {
	source := w.c.File()
	n := 1
	if source != nil {
		n = max(1, source.Shards)
	}
	out = make([]ggufShard, n)
	for i := range w.plan.Tensors {
		x := &w.plan.Tensors[i]
		if x.Action == plan.Drop {
			continue
		}
		described, size, err := x.GGUF()
		if err != nil {
			return nil, 0, err
		}
		total += size
		at := n - 1
		if source != nil {
			if t, ok := source.Tensor(x.Name); ok {
				at = t.Shard
			}
		}
		s := &out[at]
		s.tensors, s.specs = append(s.tensors, x), append(s.specs, described)
	}
	return out, total, nil
}

// ggufFile writes one file.
func (w *writer) ggufFile(ctx context.Context, dir, name string, kvs []gguf.KV, s ggufShard) (spec.File, error) {
	var file spec.File
	out, err := gguf.Create(filepath.Join(dir, name), kvs, s.specs)
	if err != nil {
		return file, err
	}
	defer out.Abort()
	for _, x := range s.tensors {
		err := out.WriteTensor(x.Name, func(o io.Writer) error {
			return w.ggufTensor(ctx, counter{o, w.meter}, x)
		})
		if err != nil {
			return file, err
		}
	}
	if err := w.c.Unchanged(); err != nil {
		return file, err
	}
	if err := out.Commit(); err != nil {
		return file, err
	}
	sum, err := out.SHA256()
	return spec.File{Name: name, Bytes: out.Size(), SHA256: sum}, err
}

func (w *writer) ggufTensor(ctx context.Context, o io.Writer, x *plan.TensorPlan) error {
	if x.Tensor == nil && x.Parts == nil && x.From == "-" {
		full, _ := w.c.Config.Ropes()
		d, _ := full.FreqDivisors()
		switch x.Name {
		case plan.LongFactors:
			d = full.Divisors
		case plan.ShortFactors:
			d = full.Short
		}
		b, err := encodeGGUF(gguf.TypeF32, nil, linalg.Float32(d), len(d))
		if err != nil {
			return err
		}
		_, err = o.Write(b)
		return err
	}
	if x.Action == plan.Copy {
		for _, s := range x.Sources {
			if err := copyRaw(ctx, o, w.c, s); err != nil {
				return err
			}
		}
		return nil
	}
	typ, err := gguf.ParseType(x.To)
	if err != nil {
		return err
	}
	return w.encode(ctx, o, x, -1, func(dst []byte, src []float32) ([]byte, error) {
		return encodeGGUF(typ, dst, src, min(len(src), x.Shape[len(x.Shape)-1]))
	})
}

// encodeGGUF appends rows of cols numbers in a GGUF element type.
func encodeGGUF(typ gguf.Type, dst []byte, src []float32, cols int) ([]byte, error) {
	size, err := gguf.RowBytes(typ, cols)
	if err != nil {
		return nil, err
	}
	rows := len(src) / cols
	at := len(dst)
	dst = append(dst, make([]byte, rows*size)...)
	for r := range rows {
		if err := gguf.QuantizeRow(typ, dst[at+r*size:at+(r+1)*size], src[r*cols:(r+1)*cols]); err != nil {
			return nil, err
		}
	}
	return dst, nil
}

func copyRaw(ctx context.Context, o io.Writer, c *checkpoint.Checkpoint, source string) error {
	r, err := c.Raw(source)
	if err != nil {
		return err
	}
	if err := stream.Copy(ctx, o, r, nil); err != nil {
		return fmt.Errorf("%s: tensor %s: %w", c.Path, source, err)
	}
	return nil
}

// safetensors writes the shards of a Hugging Face checkpoint under their own
// names, and the index as it was.
func (w *writer) safetensors(ctx context.Context, dir string) ([]spec.File, error) {
	set := w.c.Shards()
	byName := map[string]*plan.TensorPlan{}
	for i := range w.plan.Tensors {
		byName[w.plan.Tensors[i].Name] = &w.plan.Tensors[i]
	}
	var total int64
	for _, f := range set.Files {
		for i := range f.Tensors {
			total += f.Tensors[i].Size()
		}
	}
	w.meter = stream.NewMeter(total, w.report)
	var files []spec.File
	shardOf := map[string]string{} // of added tensors
	for _, f := range set.Files {
		name := filepath.Base(f.Path)
		tensors := slices.Clone(f.Tensors)
		for i := range w.plan.Tensors {
			x := &w.plan.Tensors[i]
			if r, ok := set.Find(x.Shard); ok && r.File == f {
				tensors = append(tensors, safetensors.Tensor{Name: x.Name, DType: r.Tensor.DType, Shape: x.Shape})
				shardOf[x.Name] = name
			}
		}
		file, err := w.shard(ctx, filepath.Join(dir, name), tensors, f.Metadata, byName)
		if err != nil {
			return nil, err
		}
		files = append(files, file)
	}
	w.meter.Finish()
	if set.Index != nil {
		index, err := extendIndex(set.Index, shardOf, w.plan)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", filepath.Join(w.c.Path, safetensors.IndexName), err)
		}
		f, err := File(dir, safetensors.IndexName, index)
		if err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	return files, nil
}

// shard writes one file of the folder. byName has the plan of each tensor.
func (w *writer) shard(ctx context.Context, path string, tensors []safetensors.Tensor, meta map[string]string,
	byName map[string]*plan.TensorPlan) (spec.File, error) {
	out, err := safetensors.Create(path, tensors, meta)
	if err != nil {
		return spec.File{}, err
	}
	defer out.Abort()
	for i := range tensors {
		t := &tensors[i]
		err := out.WriteTensor(t.Name, func(o io.Writer) error {
			return w.shardTensor(ctx, counter{o, w.meter}, t, byName[t.Name])
		})
		if err != nil {
			return spec.File{}, err
		}
	}
	if err := w.c.Unchanged(); err != nil {
		return spec.File{}, err
	}
	if err := out.Commit(); err != nil {
		return spec.File{}, err
	}
	return spec.File{Name: filepath.Base(path), Bytes: out.Size(), SHA256: out.SHA256()}, nil
}

// shardTensor writes one tensor of a file: zeros of an added one that nothing edits yet, the
// source's bytes, or what the plan makes of them.
func (w *writer) shardTensor(ctx context.Context, o io.Writer, t *safetensors.Tensor, x *plan.TensorPlan) error {
	if x.Shard != "" && x.Tensor == nil {
		_, err := o.Write(make([]byte, x.Shape[0]*safetensors.ElementBytes(t.DType)))
		return err
	}
	if x.Action == plan.Copy {
		return copyRaw(ctx, o, w.c, t.Name)
	}
	part := -1
	if x.Tensor != nil && len(x.Tensor.Sources) > 0 {
		part = slices.Index(x.Tensor.Sources, t.Name)
	}
	return w.encode(ctx, o, x, part, func(dst []byte, src []float32) ([]byte, error) {
		at := len(dst)
		dst = append(dst, make([]byte, len(src)*safetensors.ElementBytes(t.DType))...)
		safetensors.Encode(t.DType, dst[at:], src)
		return dst, nil
	})
}

// extendIndex returns the index with the added tensors in it, byte for byte the
// source's where there are none.
func extendIndex(raw []byte, shardOf map[string]string, p *plan.Plan) ([]byte, error) {
	if len(shardOf) == 0 {
		return raw, nil
	}
	var index, meta map[string]json.RawMessage
	var shards map[string]string
	if err := jsonx.Unmarshal(raw, &index); err != nil {
		return nil, err
	}
	if err := jsonx.Unmarshal(index["weight_map"], &shards); err != nil {
		return nil, err
	}
	var added int64
	for i := range p.Tensors {
		x := &p.Tensors[i]
		if s, ok := shardOf[x.Name]; ok {
			shards[x.Name] = s
			n := int64(safetensors.ElementBytes(x.To))
			for _, d := range x.Shape {
				n *= int64(d)
			}
			added += n
		}
	}
	var err error
	if index["weight_map"], err = json.Marshal(shards); err != nil {
		return nil, err
	}
	var total int64
	if jsonx.Unmarshal(index["metadata"], &meta) == nil && jsonx.Unmarshal(meta["total_size"], &total) == nil {
		meta["total_size"], _ = json.Marshal(total + added) // numbers marshal
		if index["metadata"], err = json.Marshal(meta); err != nil {
			return nil, err
		}
	}
	out, err := json.MarshalIndent(index, "", "  ")
	return append(out, '\n'), err
}
