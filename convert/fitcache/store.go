// Package fitcache keeps fitted layers in a folder, so that a conversion that was interrupted can
// be taken up, and several processes can share one.
package fitcache

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/phaseconv/phaseconv/convert/calibrate"
	"github.com/phaseconv/phaseconv/format/dtype"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/format/jsonx"
	"github.com/phaseconv/phaseconv/format/safetensors"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/rotations/fit"
	"github.com/phaseconv/phaseconv/rotations/transform"
)

// An Input is something that fits depend on.
type Input struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// A Cache is a folder with one file per layer. Runs on several machines may
// share it: a file appears complete or not at all, and all write the same bytes.
// A file names the inputs of its fit and carries a digest of its contents; one
// that has other inputs, or is damaged, is not used.
type Cache struct {
	Dir string
	// Inputs are all that fits depend on. They are compared as they are.
	Inputs []Input
	// What a layer must have to be of use: heads as those of the model, which a layer that reads the
	// keys and values of another has none of.
	Config  *family.Config
	Balance bool
	Kinds   []codec.Kind
	// Groups, if set, are the parts of joint codes, [layer][group]; layers then have those
	// instead of heads.
	Groups [][][]codec.Part
	// Check, if set, is asked before each Save; an error says that the inputs are
	// no longer what they were.
	Check func() error
	// Notice, if set, is told about files that are there and cannot be used.
	Notice func(text string)
}

// Keys in the metadata of a layer's file.
const (
	workVersion   = "1"
	keyWork       = "phaseconv.work.version"
	keyWorkLayer  = "phaseconv.work.layer"
	keyWorkInputs = "phaseconv.work.inputs"
	keyWorkSHA256 = "phaseconv.work.sha256"
	keyPerLayer   = "phaseconv.work.balance.per_layer"
)

// Limits of a layer's file.
const (
	maxInputs = 1 << 20 // bytes of their JSON
	maxCurve  = 1 << 20 // points
)

// Path returns the name of a layer's file.
func (w *Cache) Path(layer int) string {
	return filepath.Join(w.Dir, fmt.Sprintf("layer-%04d.safetensors", layer))
}

// Load implements Store.
func (w *Cache) Load(ctx context.Context, layer int) (*calibrate.Layer, error) {
	x, err := w.Read(ctx, layer)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) && w.Notice != nil {
		w.Notice(fmt.Sprintf("%v; the layer is fitted again", err))
	}
	return x, nil
}

// array is one tensor of a layer's file.
type array struct {
	name  string
	dtype string // F32 or F64
	shape []int
	data  []byte
}

func array32(name string, x []float32, shape ...int) array {
	return array{name, "F32", shape, dtype.AppendF32(nil, x)}
}

func array64(name string, x []float64, shape ...int) array {
	b := make([]byte, 8*len(x))
	for i, v := range x {
		binary.LittleEndian.PutUint64(b[8*i:], math.Float64bits(v))
	}
	return array{name, "F64", shape, b}
}

// arrays lists what is in a layer. Floats are stored as they are in memory, so a
// layer that is read back gives the same artifact to the last bit.
func arrays(x *calibrate.Layer) (out []array) {
	if b := x.PairScale; b != nil {
		for h, s := range b.Scale {
			out = append(out, array32(fmt.Sprintf("balance.%d", h), s, len(s)))
		}
	}
	for i := range x.Groups {
		g, at := &x.Groups[i], fmt.Sprintf("group.%d.", i)
		c := g.Code.Code
		out = append(out,
			array64(at+"tokens", []float64{float64(g.Tokens)}, 1),
			array32(at+"mean", c.Mean, c.D), array32(at+"decode", c.Decode, c.B, c.D), array32(at+"encode", c.Encode, c.B, c.D),
			array32(at+"gains", g.Code.Gains, len(g.Code.Gains)),
			curveArray(at, g.Curve))
		if g.Code.Below != nil {
			out = append(out, array32(at+"below", g.Code.Below, g.Code.BelowSigns, c.D))
		}
	}
	for h := range x.Heads {
		head := &x.Heads[h]
		out = append(out, array64(fmt.Sprintf("head.%d.tokens", h), []float64{float64(head.Tokens)}, 1))
		for _, kind := range slices.Sorted(maps.Keys(head.Codes)) {
			c, t := head.Codes[kind], head.Train[kind]
			at := fmt.Sprintf("head.%d.%s.", h, kind)
			out = append(out,
				array32(at+"mean", c.Mean, c.D),
				array32(at+"decode", c.Decode, c.B, c.D))
			if c.Encode != nil {
				out = append(out, array32(at+"encode", c.Encode, c.B, c.D))
			}
			out = append(out,
				array32(at+"gain", []float32{c.Gain}, 1),
				array64(at+"train", []float64{t.Cos1bit, t.MomentRatio, t.Energy, float64(t.N)}, 4))
			if curve, ok := head.Curves[kind]; ok {
				out = append(out, curveArray(at, curve))
			}
		}
	}
	return out
}

func curveArray(at string, curve []fit.Point) array {
	var p []float64
	for _, v := range curve {
		p = append(p, float64(v.Step), v.Cos1bit)
	}
	return array64(at+"curve", p, len(curve), 2)
}

// digest covers everything that a layer's file means.
func digest(layer int, inputs, perLayer string, all []array) string {
	h := sha256.New()
	fmt.Fprintf(h, "%s\x00%d\x00%s\x00%s\x00", workVersion, layer, inputs, perLayer)
	for _, a := range all {
		fmt.Fprintf(h, "%s\x00%s\x00%v\x00", a.name, a.dtype, a.shape)
		h.Write(a.data)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// Save implements Store.
func (w *Cache) Save(ctx context.Context, layer int, x *calibrate.Layer) error {
	if w.Check != nil {
		if err := w.Check(); err != nil {
			return err
		}
	}
	inputs, err := json.Marshal(w.Inputs)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(w.Dir, 0o777); err != nil {
		return err
	}
	per := strconv.FormatBool(x.PairScale != nil && x.PairScale.PerLayer)
	all := arrays(x)
	meta := map[string]string{
		keyWork: workVersion, keyWorkLayer: strconv.Itoa(layer), keyWorkInputs: string(inputs), keyPerLayer: per,
		keyWorkSHA256: digest(layer, string(inputs), per, all),
	}
	var ts []safetensors.Tensor
	for _, a := range all {
		ts = append(ts, safetensors.Tensor{Name: a.name, DType: a.dtype, Shape: a.shape})
	}
	out, err := safetensors.Create(w.Path(layer), ts, meta)
	if err != nil {
		return err
	}
	defer out.Abort()
	for _, a := range all {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := out.WriteTensor(a.name, func(o io.Writer) error { _, err := o.Write(a.data); return err }); err != nil {
			return err
		}
	}
	return out.Commit()
}

// Read returns a layer that was saved. The error says why there is none that can
// be used; it is fs.ErrNotExist when there is no file, and the cause of ctx when that ends.
func (w *Cache) Read(ctx context.Context, layer int) (*calibrate.Layer, error) {
	path := w.Path(layer)
	f, err := safetensors.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	x, err := w.read(ctx, f, layer)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return x, nil
}

func (w *Cache) read(ctx context.Context, f *safetensors.File, layer int) (*calibrate.Layer, error) {
	m := f.Metadata
	if m[keyWork] != workVersion {
		return nil, fmt.Errorf("key %s is %.20q; this program reads version %s", keyWork, m[keyWork], workVersion)
	}
	if m[keyWorkLayer] != strconv.Itoa(layer) {
		return nil, fmt.Errorf("key %s is %.20q, expected %d", keyWorkLayer, m[keyWorkLayer], layer)
	}
	if err := w.sameInputs(m[keyWorkInputs]); err != nil {
		return nil, err
	}
	var all []array
	byName := map[string]array{}
	for i := range f.Tensors {
		t := &f.Tensors[i]
		b, err := io.ReadAll(f.Reader(t))
		if err != nil {
			return nil, err
		}
		a := array{t.Name, t.DType, t.Shape, b}
		all, byName[t.Name] = append(all, a), a
	}
	if sum := digest(layer, m[keyWorkInputs], m[keyPerLayer], all); sum != m[keyWorkSHA256] {
		return nil, fmt.Errorf("key %s is %.64q, but the contents have %s: the file is damaged", keyWorkSHA256,
			m[keyWorkSHA256], sum)
	}
	r := &reader{m: byName}
	x := r.layer(ctx, w, layer, m[keyPerLayer])
	if r.err == nil && len(r.m) > 0 {
		r.err = fmt.Errorf("tensor %.80q is not one of a fitted layer", slices.Sorted(maps.Keys(r.m))[0])
	}
	return x, r.err
}

// sameInputs names what differs.
func (w *Cache) sameInputs(text string) error {
	want, err := json.Marshal(w.Inputs)
	if err != nil {
		return err
	}
	if text == string(want) {
		return nil
	}
	var have []Input
	if len(text) > maxInputs || jsonx.Unmarshal([]byte(text), &have) != nil {
		return fmt.Errorf("key %s is not readable", keyWorkInputs)
	}
	var why []string
	for i, x := range w.Inputs {
		switch {
		case i >= len(have) || have[i].Name != x.Name:
			return fmt.Errorf("the layer was fitted by another version of the program")
		case have[i].Value != x.Value:
			there, here := apart(have[i].Value, x.Value)
			why = append(why, fmt.Sprintf("%s is %s there and %s here", x.Name, there, here))
		}
	}
	if len(why) == 0 {
		return fmt.Errorf("the layer was fitted by another version of the program")
	}
	return fmt.Errorf("the layer was fitted for something else: %s", strings.Join(why, ", "))
}

// apart shortens two values so that what differs is seen.
func apart(a, b string) (string, string) {
	const most, lead = 80, 20
	if len(a) <= most && len(b) <= most {
		return a, b
	}
	same := 0
	for same < min(len(a), len(b)) && a[same] == b[same] {
		same++
	}
	from, before := 0, ""
	if same > lead {
		from, before = same-lead, "..."
	}
	show := func(s string) string {
		return before + strings.ToValidUTF8(fmt.Sprintf("%.*s", most, s[from:]), "")
	}
	return show(a), show(b)
}

// reader takes arrays out of a file and remembers the first error.
type reader struct {
	m   map[string]array
	err error
}

func (r *reader) take(name, dtype string, shape ...int) []byte {
	a, ok := r.m[name]
	if r.err == nil && (!ok || a.dtype != dtype || !slices.Equal(a.shape, shape)) {
		r.err = fmt.Errorf("tensor %s is %s %v, expected %s %v", name, a.dtype, a.shape, dtype, shape)
	}
	if r.err != nil {
		return nil
	}
	delete(r.m, name)
	return a.data
}

func (r *reader) floats(name string, shape ...int) []float32 {
	b := r.take(name, "F32", shape...)
	out := make([]float32, len(b)/4)
	dtype.DecodeF32(out, b)
	return out
}

func (r *reader) doubles(name string, shape ...int) []float64 {
	b := r.take(name, "F64", shape...)
	n := 1
	for _, d := range shape {
		n *= d
	}
	out := make([]float64, n) // as many as asked for, even after an error
	for i := range len(b) / 8 {
		out[i] = math.Float64frombits(binary.LittleEndian.Uint64(b[8*i:]))
	}
	return out
}

// integer reads a count that was stored as a float64.
func (r *reader) integer(name string, v float64) int {
	if r.err == nil && !(v >= 0 && v <= math.MaxInt32 && v == math.Trunc(v)) {
		r.err = fmt.Errorf("tensor %s: %g is not a count", name, v)
	}
	if r.err != nil {
		return 0
	}
	return int(v)
}

func (r *reader) layer(ctx context.Context, w *Cache, layer int, perLayer string) *calibrate.Layer {
	x := &calibrate.Layer{}
	y := &w.Config.Layers[layer]
	if y.Owner != layer {
		return x
	}
	if w.Balance && transform.CheckPairScale(y) == nil {
		x.PairScale = &transform.PairScale{PerLayer: perLayer == "true"}
		for h := range y.KVHeads {
			x.PairScale.Scale = append(x.PairScale.Scale, r.floats(fmt.Sprintf("balance.%d", h), y.HeadDim/2))
		}
		if r.err == nil {
			r.err = x.PairScale.Check(y.KVHeads, y.HeadDim)
		}
	}
	if w.Groups != nil {
		for i, parts := range w.Groups[layer] {
			if r.err == nil && ctx.Err() != nil {
				r.err = context.Cause(ctx)
			}
			x.Groups = append(x.Groups, r.group(y, parts, fmt.Sprintf("group.%d.", i)))
		}
		if r.err != nil {
			return nil
		}
		return x
	}
	for h := range y.KVHeads {
		head := calibrate.Head{Codes: map[codec.Kind]*codec.Code{}, Curves: map[codec.Kind][]fit.Point{},
			Train: map[codec.Kind]codec.Beta{}}
		name := fmt.Sprintf("head.%d.tokens", h)
		head.Tokens = r.integer(name, r.doubles(name, 1)[0])
		for _, kind := range w.Kinds {
			if r.err == nil && ctx.Err() != nil {
				r.err = context.Cause(ctx)
			}
			r.code(&head, kind, fmt.Sprintf("head.%d.%s.", h, kind), y.HeadDim)
			if r.err != nil {
				return nil
			}
		}
		x.Heads = append(x.Heads, head)
	}
	if r.err != nil {
		return nil
	}
	return x
}

func (r *reader) code(head *calibrate.Head, kind codec.Kind, at string, d int) {
	shape := r.m[at+"decode"].shape
	if r.err == nil && len(shape) != 2 {
		r.err = fmt.Errorf("tensor %sdecode has shape %v, expected [signs, %d]", at, shape, d)
	}
	if r.err != nil {
		return
	}
	b := shape[0]
	mean, decode := r.floats(at+"mean", d), r.floats(at+"decode", b, d)
	var encode []float32
	if _, ok := r.m[at+"encode"]; ok {
		encode = r.floats(at+"encode", b, d)
	}
	gain, train := r.floats(at+"gain", 1), r.doubles(at+"train", 4)
	if r.err != nil {
		return
	}
	c, err := codec.New(kind, d, b, mean, decode, encode)
	if err == nil && gain[0] != 1 {
		c, err = c.WithGain(gain[0])
	}
	if err != nil {
		r.err = fmt.Errorf("tensor %sdecode: %w", at, err)
		return
	}
	head.Codes[kind] = c
	head.Train[kind] = codec.Beta{Cos1bit: train[0], MomentRatio: train[1], Energy: train[2],
		N: r.integer(at+"train", train[3])}
	if _, ok := r.m[at+"curve"]; ok {
		head.Curves[kind] = r.curve(at)
	}
}

func (r *reader) curve(at string) []fit.Point {
	a := r.m[at+"curve"]
	if r.err == nil && (len(a.shape) != 2 || a.shape[0] > maxCurve) {
		r.err = fmt.Errorf("tensor %scurve has shape %v", at, a.shape)
	}
	if r.err != nil {
		return nil
	}
	n := a.shape[0]
	p := r.doubles(at+"curve", n, 2)
	curve := make([]fit.Point, n)
	for i := range curve {
		curve[i] = fit.Point{Step: r.integer(at+"curve", p[2*i]), Cos1bit: p[2*i+1]}
	}
	return curve
}

// group reads what was fitted to the group of these parts.
func (r *reader) group(y *family.Layer, parts []codec.Part, at string) (g calibrate.Group) {
	d := codec.PartsDim(parts, y.HeadDim, y.ValueDim)
	shape := r.m[at+"decode"].shape
	if r.err == nil && len(shape) != 2 {
		r.err = fmt.Errorf("tensor %sdecode has shape %v, expected [signs, %d]", at, shape, d)
	}
	if r.err != nil {
		return g
	}
	b := shape[0]
	g.Tokens = r.integer(at+"tokens", r.doubles(at+"tokens", 1)[0])
	mean, decode, encode := r.floats(at+"mean", d), r.floats(at+"decode", b, d), r.floats(at+"encode", b, d)
	gains := r.floats(at+"gains", len(parts))
	if g.Curve = r.curve(at); r.err != nil {
		return g
	}
	c, err := codec.New(codec.Frame, d, b, mean, decode, encode)
	if err == nil {
		g.Code, err = codec.NewGroup(c, parts, y.HeadDim, y.ValueDim, gains)
	}
	if below, ok := r.m[at+"below"]; ok && err == nil && len(below.shape) == 2 {
		m := r.floats(at+"below", below.shape...)
		if r.err != nil {
			return g
		}
		g.Code, err = g.Code.Given(below.shape[0], m)
	}
	if err != nil {
		r.err = fmt.Errorf("tensor %sdecode: %w", at, err)
	}
	return g
}

// Clean removes temporary files that interrupted runs left in the folder. It must
// not be called while others write there.
func (w *Cache) Clean() error {
	// Not by filepath.Glob: the folder's own name may have * or [ in it.
	found, err := os.ReadDir(w.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, f := range found {
		if ok, _ := filepath.Match(".layer-*.tmp", f.Name()); ok || strings.HasPrefix(f.Name(), "."+allotName+".") {
			err = errors.Join(err, os.Remove(filepath.Join(w.Dir, f.Name())))
		}
	}
	return err
}

// Remove deletes the allotment, the files of the first so many layers, what interrupted runs
// left, and the folder if nothing else is in it.
func (w *Cache) Remove(layers int) error {
	err := w.Clean()
	if e := os.Remove(w.signsPath()); e != nil && !errors.Is(e, fs.ErrNotExist) {
		err = errors.Join(err, e)
	}
	for l := range layers {
		if e := os.Remove(w.Path(l)); e != nil && !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, e)
		}
	}
	if rest, e := os.ReadDir(w.Dir); e == nil && len(rest) == 0 {
		err = errors.Join(err, os.Remove(w.Dir))
	}
	return err
}
