package convert

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"reflect"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/kernels/parallel"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/rotations/sidecar"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/audit"
	"github.com/phaseconv/phaseconv/verify/contract"
	"github.com/phaseconv/phaseconv/verify/option"
	"github.com/phaseconv/phaseconv/verify/progress"
)

// FFNRotationOptions of FitFFNRotations. Start from DefaultFFNRotationOptions.
type FFNRotationOptions struct {
	// Out is the file to write: GGUF if its name ends with .gguf, else safetensors.
	Out string
	// Basis is spec.FFNOwn or spec.FFNShared.
	Basis string
	// Block is the largest block of a rotation, Rows bounds the rows of one matrix that are looked at.
	Block, Rows int
	Seed        uint64
	Threads     int
	// Resume keeps fitted layers in WorkDir(Out) if the fit is interrupted, and uses those that are
	// there.
	Resume bool
	// Unit and Units, if set, fit only the layers of one unit, counted from 1, and write no file but
	// those of the layers.
	Unit, Units int
	Tool        string
	Progress    progress.Func
	Notice      func(text string)
}

// DefaultFFNRotationOptions returns what the command line takes unless told otherwise.
func DefaultFFNRotationOptions() FFNRotationOptions {
	return FFNRotationOptions{Basis: spec.FFNOwn, Block: 128, Rows: 1 << 14, Seed: DefaultOptions().Seed}
}

// ffnBits is the storage of one number of a rotation in the file: F32.
const ffnBits = 32

// check refuses options that cannot be.
func (o *FFNRotationOptions) check() error {
	switch {
	case o.Out == "":
		return option.Bad("Out", "", "name the file to write")
	case o.Basis != spec.FFNOwn && o.Basis != spec.FFNShared:
		return option.Bad("Basis", o.Basis, "expected %s or %s", spec.FFNOwn, spec.FFNShared)
	case o.Block < 1 || o.Block > codec.MaxDim:
		return option.Bad("Block", o.Block, "it must be from 1 to %d", codec.MaxDim)
	case o.Rows < 2 || o.Rows > 1<<30:
		return option.Bad("Rows", o.Rows, "it must be from 2 to %d", 1<<30)
	case o.Units != 0:
		return CheckUnits(o.Unit, o.Units)
	}
	return nil
}

// An ffnFit fits rotations of FFN inputs, layer by layer.
type ffnFit struct {
	o      FFNRotationOptions
	c      *checkpoint.Checkpoint
	meter  *audit.FFNMeter
	header sidecar.FFNRotations
	dir    string
	done   func()

	products spec.FFNProducts
}

// FitFFNRotations learns rotations of the inputs of a model's FFNs that are not folded into weights:
// runtimes rotate inputs with them (spec/ffn-rotations.md). It measures them on rows that they were
// not fitted to, and writes them to a file with what was measured.
func FitFFNRotations(ctx context.Context, c *checkpoint.Checkpoint, o FFNRotationOptions) (
	_ *spec.FFNRotationsJSON, err error,
) {
	if err := o.check(); err != nil {
		return nil, err
	}
	if _, err := os.Lstat(o.Out); err == nil {
		return nil, option.Bad("Out", o.Out, "it is there already; name another file or remove it")
	}
	o.Threads = parallel.Threads(o.Threads)
	source, err := c.Digest(ctx, o.Progress.Of("reading the source, MiB"))
	if err != nil {
		return nil, err
	}
	f := &ffnFit{o: o, c: c, dir: WorkDir(o.Out)} // or a hidden folder beside Out, for one run
	f.meter = ffnMeter(c, o.Block, o.Rows, o.Seed, o.Threads)
	f.header = sidecar.FFNRotations{SourceSHA256: source, Tool: o.Tool, Layers: len(c.Config.Layers), Basis: o.Basis,
		Block: o.Block, Rows: o.Rows, Seed: o.Seed}
	if o.Resume || o.Units != 0 {
		if err := os.MkdirAll(f.dir, 0o777); err != nil {
			return nil, err
		}
		defer func() {
			if err == nil && o.Units == 0 {
				err = f.remove()
			}
		}()
		return f.run(ctx)
	}
	if f.dir, err = os.MkdirTemp(filepath.Dir(o.Out), "."+filepath.Base(o.Out)+".*.work"); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(f.dir)) }()
	return f.run(ctx)
}

func ffnMeter(c *checkpoint.Checkpoint, block, rows int, seed uint64, threads int) *audit.FFNMeter {
	o := audit.FFNOptions{Block: block, MaxRows: rows, Seed: seed, Threads: threads}
	return audit.NewFFNMeter(c.Config, c, o, ffnBits)
}

// layers lists those to fit.
func (f *ffnFit) layers() []int {
	first, end := 0, len(f.c.Config.Layers)
	if f.o.Units != 0 {
		first, end = unitLayers(f.o.Unit, f.o.Units, end)
	}
	var out []int
	for l := first; l < end; l++ {
		out = append(out, l)
	}
	return out
}

// ffnExperts lists the experts of a layer that have rotations; -1 stands for all of them, and for a
// dense FFN.
func ffnExperts(c *checkpoint.Checkpoint, basis string, layer int) []int {
	n := c.Config.Layers[layer].FFN.Experts
	if n == 0 || basis == spec.FFNShared {
		return []int{-1}
	}
	out := make([]int, n)
	for e := range out {
		out[e] = e
	}
	return out
}

func (f *ffnFit) experts(layer int) []int { return ffnExperts(f.c, f.o.Basis, layer) }

func (f *ffnFit) run(ctx context.Context) (*spec.FFNRotationsJSON, error) {
	layers := f.layers()
	steps := 0
	for _, l := range layers {
		steps += len(spec.FFNInputs) * len(f.experts(l))
	}
	f.done = progress.Count(f.o.Progress.Of("FFN rotations"), steps)
	out := &spec.FFNRotationsJSON{Basis: f.o.Basis, Block: f.o.Block, Seed: f.o.Seed, Layers: len(layers),
		Source: spec.Source{Name: f.c.Name(), Container: string(f.c.Container), SHA256: f.header.SourceSHA256}}
	var shapes []sidecar.FFNShape
	for _, l := range layers {
		s, rows, err := f.layer(ctx, l)
		if err != nil {
			return nil, err
		}
		shapes, out.Rows = append(shapes, s), append(out.Rows, rows...)
		for _, size := range s.Sizes {
			out.Rotations += s.Experts
			out.Bytes += int64(s.Experts) * int64(size.Dim) * int64(size.Block) * ffnBits / 8
			f.products.Bound = max(f.products.Bound, audit.ProductBound(size.Block))
		}
	}
	out.Products = f.products
	if err := productsError(out.Products); err != nil {
		return nil, fmt.Errorf("%s: %w", f.c.Path, err)
	}
	out.Means, out.Verdict = audit.FFNSummary(out.Rows, f.o.Basis)
	if f.o.Units != 0 {
		return out, nil
	}
	f.header.Measured, out.File = out.Rows, filepath.Base(f.o.Out)
	err := f.header.Write(ctx, f.o.Out, shapes, func(s sidecar.FFNShape) (*sidecar.FFNLayer, error) {
		w, err := sidecar.OpenFFN(f.path(s.Layer))
		if err != nil {
			return nil, err
		}
		defer w.Close()
		return w.Layer(ctx, s)
	})
	return out, err
}

// path is the file of a fitted layer: one with the rotations of that layer alone.
func (f *ffnFit) path(layer int) string {
	return filepath.Join(f.dir, fmt.Sprintf("layer-%04d.ffn", layer))
}

// layer fits and measures one layer, or takes it from the work folder.
func (f *ffnFit) layer(ctx context.Context, l int) (sidecar.FFNShape, []spec.FFNRow, error) {
	x, rows, err := f.kept(ctx, l)
	if err != nil && ctx.Err() == nil && !errors.Is(err, fs.ErrNotExist) && f.o.Notice != nil {
		f.o.Notice(fmt.Sprintf("%v; the layer is fitted again", err))
	}
	if ctx.Err() != nil {
		return sidecar.FFNShape{}, nil, context.Cause(ctx)
	}
	was := err == nil
	if !was {
		x = &sidecar.FFNLayer{}
	}
	for i := range spec.FFNInputs {
		for at, e := range f.experts(l) {
			s, err := f.meter.Sample(ctx, l, i, e)
			if err != nil {
				return sidecar.FFNShape{}, nil, err
			}
			if !was {
				r, err := f.meter.Fit(ctx, s)
				if err != nil {
					return sidecar.FFNShape{}, nil, err
				}
				more, err := f.meter.Measure(ctx, s, r, f.o.Basis)
				if err != nil {
					return sidecar.FFNShape{}, nil, err
				}
				x[i], rows = append(x[i], r), append(rows, more...)
			}
			f.products.MaxError = max(f.products.MaxError, f.meter.Products(s, x[i][at]))
			f.done()
		}
	}
	shape := sidecar.ShapeOf(l, x)
	if was {
		return shape, rows, nil
	}
	if err := f.c.Unchanged(); err != nil { // its digest was taken before
		return shape, nil, err
	}
	h := f.header
	h.Measured = rows
	err = h.Write(ctx, f.path(l), []sidecar.FFNShape{shape},
		func(sidecar.FFNShape) (*sidecar.FFNLayer, error) { return x, nil })
	return shape, rows, err
}

// kept reads a layer that was fitted before, with the same options and source.
func (f *ffnFit) kept(ctx context.Context, l int) (*sidecar.FFNLayer, []spec.FFNRow, error) {
	if !f.o.Resume && f.o.Units == 0 {
		return nil, nil, fs.ErrNotExist
	}
	w, err := sidecar.OpenFFN(f.path(l))
	if err != nil {
		return nil, nil, err
	}
	defer w.Close()
	rows := w.Measured
	w.Measured = nil
	if !reflect.DeepEqual(w.FFNRotations, f.header) || len(w.Shapes) != 1 || w.Shapes[0].Layer != l ||
		w.Shapes[0].Experts != len(f.experts(l)) {
		return nil, nil, fmt.Errorf("%s is of another source, version of the program or options", f.path(l))
	}
	x, err := w.Layer(ctx, w.Shapes[0])
	return x, rows, err
}

// remove deletes the files of layers, and their folder if nothing else is in it.
func (f *ffnFit) remove() error {
	var all error
	for l := range f.c.Config.Layers {
		if err := os.Remove(f.path(l)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			all = errors.Join(all, err)
		}
	}
	if left, err := os.ReadDir(f.dir); err == nil && len(left) == 0 {
		all = errors.Join(all, os.Remove(f.dir))
	}
	return all
}

// measuredTolerance is how far two machines may be apart in a mean cosine: sums in float64 of the
// same numbers in the same order are equal; the rotations are in the file to the last bit.
const measuredTolerance = 1e-9

// CheckFFNRotations checks a file with rotations of FFN inputs, and with c, which may be nil, that
// they belong to this model: its digest, shapes, that products are preserved, and that what the file
// says was measured is measured again.
func CheckFFNRotations(ctx context.Context, path string, c *checkpoint.Checkpoint, threads int,
	report progress.Func) ([]spec.Check, error) {
	checks := &contract.Checker{Progress: report}
	w, err := sidecar.OpenFFN(path)
	if !checks.Add("the file has FFN rotations", err, fmt.Sprintf("version %d", spec.FFNRotationsVersion)) {
		return checks.Checks, nil
	}
	defer w.Close()
	v := &ffnCheck{w: w, c: c}
	if c != nil {
		source, err := c.Digest(ctx, report.Of("reading the source, MiB"))
		if err != nil {
			return nil, err
		}
		if source != w.SourceSHA256 {
			err = fmt.Errorf("%s has SHA-256 %s, the rotations are of %s", c.Path, source, w.SourceSHA256)
		}
		if !checks.Add("they are of this model", err, source) {
			return checks.Checks, nil
		}
		v.meter = ffnMeter(c, w.Block, w.Rows, w.Seed, parallel.Threads(threads))
	}
	v.layers(ctx, report.Of("checking layers"))
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if !checks.Add("every block is a rotation", v.form, fmt.Sprintf("%d layers", len(w.Shapes))) || c == nil {
		return checks.Checks, nil
	}
	if !checks.Add("they fit the model", v.fit, fmt.Sprintf("%d rotations", v.rotations)) {
		return checks.Checks, nil
	}
	checks.Add("products are preserved", productsError(v.products),
		fmt.Sprintf("off by at most %.2g of the lengths; rounding allows %.2g", v.products.MaxError, v.products.Bound))
	checks.Add("measured as the file says", sameRows(w.Measured, v.rows), fmt.Sprintf("%d rows", len(v.rows)))
	return checks.Checks, nil
}

// productsError says whether products differ by more than rounding.
func productsError(p spec.FFNProducts) error {
	if p.MaxError > p.Bound {
		return fmt.Errorf("products with rotated rows are off by %.3g of the lengths, rounding allows %.3g", p.MaxError,
			p.Bound)
	}
	return nil
}

// An ffnCheck reads a file with FFN rotations layer by layer; with a model it measures them too.
type ffnCheck struct {
	w     *sidecar.FFNFile
	c     *checkpoint.Checkpoint
	meter *audit.FFNMeter

	form, fit error // of the file, and of both together
	rotations int
	products  spec.FFNProducts
	rows      []spec.FFNRow
}

func (v *ffnCheck) layers(ctx context.Context, report func(done, total int)) {
	tick := progress.Count(report, len(v.w.Shapes))
	for _, s := range v.w.Shapes {
		x, err := v.w.Layer(ctx, s)
		if err != nil {
			v.form = err
			return
		}
		if v.c != nil && v.fit == nil {
			v.fit = v.measure(ctx, s, x)
		}
		tick()
	}
}

// measure measures a layer again, as it was when it was fitted.
func (v *ffnCheck) measure(ctx context.Context, s sidecar.FFNShape, x *sidecar.FFNLayer) error {
	if s.Layer >= len(v.c.Config.Layers) {
		return fmt.Errorf("the file has rotations of layer %d, the model %d layers", s.Layer, len(v.c.Config.Layers))
	}
	experts := ffnExperts(v.c, v.w.Basis, s.Layer)
	if len(experts) != s.Experts {
		return fmt.Errorf("layer %d has %d rotations of each input, the model needs %d", s.Layer, s.Experts, len(experts))
	}
	for i := range spec.FFNInputs {
		for at, e := range experts {
			y, err := v.meter.Sample(ctx, s.Layer, i, e)
			if err != nil {
				return err
			}
			rows, err := v.meter.Measure(ctx, y, x[i][at], v.w.Basis)
			if err != nil {
				return err
			}
			v.rotations++
			v.rows = append(v.rows, rows...)
			v.products.MaxError = max(v.products.MaxError, v.meter.Products(y, x[i][at]))
			v.products.Bound = max(v.products.Bound, audit.ProductBound(x[i][at].Block))
		}
	}
	return nil
}

// sameRows compares what a file says was measured with what is measured now.
func sameRows(said, now []spec.FFNRow) error {
	if len(said) != len(now) {
		return fmt.Errorf("the file has %d rows of measurements, there are %d", len(said), len(now))
	}
	for i, a := range said {
		b := now[i]
		apart := max(math.Abs(a.Cos1bit-b.Cos1bit), math.Abs(a.MomentRatio-b.MomentRatio),
			math.Abs(a.EffectiveBits-b.EffectiveBits),
			apartIn(a.TrainCos1bit, b.TrainCos1bit), apartIn(a.NoiseCos1bit, b.NoiseCos1bit))
		a.Cos1bit, a.MomentRatio, a.EffectiveBits, a.TrainCos1bit, a.NoiseCos1bit = b.Cos1bit, b.MomentRatio, b.EffectiveBits,
			b.TrainCos1bit, b.NoiseCos1bit
		if a != b || !(apart <= measuredTolerance) {
			return fmt.Errorf("layer %d, %s, expert %d, %s: the file has cos1bit %.6f, moment_ratio %.6f; measured are %.6f, %.6f",
				b.Layer, b.Matrix, b.Expert, b.Rotation, said[i].Cos1bit, said[i].MomentRatio, b.Cos1bit, b.MomentRatio)
		}
	}
	return nil
}

func apartIn(a, b *float64) float64 {
	switch {
	case a == nil && b == nil:
		return 0
	case a == nil || b == nil:
		return math.Inf(1)
	}
	return math.Abs(*a - *b)
}
