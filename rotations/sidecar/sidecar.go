// Package sidecar reads and writes what is published beside a model: its key codes, in GGUF or
// safetensors, and the fold, what was done to the weights. It tells how two of them differ.
package sidecar

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"sort"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/phaseconv/phaseconv/format/dtype"
	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/format/safetensors"
	"github.com/phaseconv/phaseconv/kernels/linalg"
	"github.com/phaseconv/phaseconv/kernels/rope"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/spec"
)

// A Sidecar is everything that a runtime needs to store the cache of one model in 1-bit
// codes. It has either Codes, of the keys of each KV head (version 1 of the format), or
// Layers, whose groups code keys and values of several heads together (version 2).
type Sidecar struct {
	Kind codec.Kind
	// HeadDim is that of all layers, where there are Codes.
	HeadDim int
	// Anchor, Sink and Recent are the policy that the codes were fitted for. Sink and
	// Recent hold for keys and values alike.
	Anchor, Sink, Recent int
	// Exceptions is how many coordinates a coded key keeps beside its signs; 0 with groups.
	Exceptions int
	Pairs      rope.Layout
	// Rope is the canonical text of the model's RoPE parameters (RopeText).
	Rope string

	SourceSHA256  string
	WeightsSHA256 string
	Calibration   Calibration
	Tool          string

	Codes  [][]*codec.Code // [layer][KV head]
	Layers []Layer
}

// Version returns the version of the format that the sidecar is written in.
func (s *Sidecar) Version() int {
	if s.Layers != nil {
		return spec.VersionGroups
	}
	return spec.Version
}

// Calibration identifies the text that codes were fitted to.
type Calibration struct {
	SHA256  string
	Tokens  int
	Context int
}

// RopeText writes the RoPE parameters of full-attention and sliding-window
// layers in one canonical form, so that two texts are equal exactly when all
// angles are.
func RopeText(full, local rope.Params) (string, error) {
	type side struct {
		Theta    float64   `json:"theta"`
		Dim      int       `json:"dim"`
		Scaling  string    `json:"scaling,omitempty"`
		Factor   float64   `json:"factor,omitempty"`
		Original int       `json:"original_context,omitempty"`
		BetaFast float64   `json:"beta_fast,omitempty"`
		BetaSlow float64   `json:"beta_slow,omitempty"`
		Smooth   bool      `json:"smooth,omitempty"`
		Divisors []float32 `json:"divisors,omitempty"`
		Short    []float32 `json:"short_divisors,omitempty"`
	}
	make1 := func(p rope.Params) side {
		if (p.Scaling == rope.Linear || p.Scaling == rope.YaRN) && p.Factor == 1 {
			p.Scaling = rope.None // as containers that leave a factor of one out have it
		}
		s := side{Theta: p.Theta, Dim: p.Dim, Scaling: string(p.Scaling)}
		if d, ok := p.FreqDivisors(); ok {
			// llama3 and explicit divisors are one thing in two spellings: the
			// containers differ in which one they store.
			s.Scaling = string(rope.Divisor)
			for _, v := range d {
				s.Divisors = append(s.Divisors, float32(v))
			}
			return s
		}
		switch p.Scaling {
		case rope.Linear:
			s.Factor = p.Factor
		case rope.YaRN:
			s.Factor, s.Original, s.BetaFast, s.BetaSlow = p.Factor, p.OriginalContext, p.BetaFast, p.BetaSlow
			s.Smooth = p.Smooth
		case rope.LongRoPE:
			s.Original, s.Divisors, s.Short = p.OriginalContext, linalg.Float32(p.Divisors), linalg.Float32(p.Short)
		}
		return s
	}
	b, err := json.Marshal(map[string]side{"full": make1(full), "local": make1(local)})
	return string(b), err
}

// parts that a head's code may have, as tensors; mean and decode always.
var partNames = []string{"mean", "decode", "encode", "gain"}

// TensorName returns the name of one part of a head's code: mean, decode, encode or gain.
func TensorName(layer, head int, part string) string {
	return fmt.Sprintf("blk.%d.k_code.%d.%s", layer, head, part)
}

// To returns the sidecar for the same weights in another pair layout: the
// dimensions of means and matrices move as the rows of W_K and W_Q do. It fails only when ctx
// ends.
func (s *Sidecar) To(ctx context.Context, layout rope.Layout) (*Sidecar, error) {
	out := *s
	out.Pairs, out.Codes = layout, nil
	var err error
	if out.Layers, err = layersTo(ctx, s.Layers, s.Pairs, layout); err != nil {
		return nil, err
	}
	for _, heads := range s.Codes {
		var row []*codec.Code
		for _, c := range heads {
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			n, err := c.To(s.Pairs, layout)
			if err != nil {
				return nil, err
			}
			row = append(row, n)
		}
		out.Codes = append(out.Codes, row)
	}
	return &out, nil
}

// part is one tensor of the sidecar.
type part struct {
	name  string
	shape []int // row-major
	data  []float32
}

func (s *Sidecar) parts() []part {
	out := groupParts(s.Layers)
	for l, heads := range s.Codes {
		for h, c := range heads {
			out = append(out, codeParts(c, func(p string) string { return TensorName(l, h, p) })...)
		}
	}
	return out
}

// codeParts lists the tensors of one code; name gives the name of a part.
func codeParts(c *codec.Code, name func(part string) string) []part {
	out := []part{{name("mean"), []int{c.D}, c.Mean}, {name("decode"), []int{c.B, c.D}, c.Decode}}
	if c.Encode != nil {
		out = append(out, part{name("encode"), []int{c.B, c.D}, c.Encode})
	}
	if c.Gain != 1 {
		out = append(out, part{name("gain"), []int{1}, []float32{c.Gain}})
	}
	return out
}

// keyValue is one metadata entry; value is a string or an int.
type keyValue struct {
	key   string
	value any
}

func (s *Sidecar) keys() []keyValue {
	shape := []keyValue{
		{spec.KeyVersion, s.Version()},
		{spec.KeyCode, string(s.Kind)},
	}
	policy := []keyValue{
		{spec.KeyAnchor, s.Anchor},
		{spec.KeySink, s.Sink},
		{spec.KeyRecent, s.Recent},
	}
	if s.Version() == spec.VersionGroups {
		shape = append(shape, keyValue{spec.KeyGroups, groupsText(s.Layers)})
	} else {
		heads := 0
		if len(s.Codes) > 0 {
			heads = len(s.Codes[0])
		}
		shape = append(shape, keyValue{spec.KeyLayers, len(s.Codes)}, keyValue{spec.KeyHeads, heads},
			keyValue{spec.KeyHeadDim, s.HeadDim})
		policy = append(policy, keyValue{spec.KeyExceptions, s.Exceptions})
	}
	return append(append(shape, policy...), []keyValue{
		{spec.KeyBasis, spec.BasisPostRope},
		{spec.KeyPairLayout, s.Pairs.String()},
		{spec.KeyRope, s.Rope},
		{spec.KeySourceSHA256, s.SourceSHA256},
		{spec.KeyWeightsSHA256, s.WeightsSHA256},
		{spec.KeyCalibrationSHA256, s.Calibration.SHA256},
		{spec.KeyCalibrationTokens, s.Calibration.Tokens},
		{spec.KeyCalibrationContext, s.Calibration.Context},
		{spec.KeyTool, s.Tool},
	}...)
}

// WriteGGUF writes the sidecar as a GGUF file of architecture phaseconv.
func (s *Sidecar) WriteGGUF(path string) error {
	if err := s.check(); err != nil {
		return err
	}
	parts := s.parts()
	w, err := createGGUF(path, "k-code", s.keys(), parts)
	if err != nil {
		return err
	}
	return writeParts(w, parts)
}

// WriteSafetensors writes the sidecar as a safetensors file with the same names and keys.
func (s *Sidecar) WriteSafetensors(path string) error {
	if err := s.check(); err != nil {
		return err
	}
	parts := s.parts()
	w, err := createSafetensors(path, s.keys(), parts)
	if err != nil {
		return err
	}
	return writeParts(w, parts)
}

// createGGUF begins a GGUF file of architecture phaseconv for the tensors of parts, whose data it
// does not look at. kind is its general.type.
func createGGUF(path, kind string, keys []keyValue, parts []part) (partWriter, error) {
	kvs := []gguf.KV{
		gguf.Value("general.architecture", spec.Architecture),
		gguf.Value("general.type", kind),
	}
	for _, kv := range keys {
		switch v := kv.value.(type) {
		case int:
			kvs = append(kvs, gguf.Value(kv.key, uint32(v)))
		case string:
			kvs = append(kvs, gguf.Value(kv.key, v))
		}
	}
	var specs []gguf.TensorSpec
	for _, p := range parts {
		dims := make([]int, len(p.shape))
		for i, n := range p.shape {
			dims[len(dims)-1-i] = n
		}
		specs = append(specs, gguf.TensorSpec{Name: p.name, Type: gguf.TypeF32, Dims: dims})
	}
	return gguf.Create(path, kvs, specs)
}

// createSafetensors begins a safetensors file with the same names and keys.
func createSafetensors(path string, keys []keyValue, parts []part) (partWriter, error) {
	meta := map[string]string{"format": "pt"}
	for _, kv := range keys {
		meta[kv.key] = fmt.Sprint(kv.value)
	}
	var ts []safetensors.Tensor
	for _, p := range parts {
		ts = append(ts, safetensors.Tensor{Name: p.name, DType: "F32", Shape: p.shape})
	}
	return safetensors.Create(path, ts, meta)
}

// A partWriter is a file of either container that is being written.
type partWriter interface {
	WriteTensor(name string, write func(io.Writer) error) error
	Commit() error
	Abort()
}

// writeParts fills a file with the data of parts and puts it in its place.
func writeParts(w partWriter, parts []part) error {
	defer w.Abort()
	for _, p := range parts {
		if err := w.WriteTensor(p.name, func(o io.Writer) error { return writeFloats(o, p.data) }); err != nil {
			return err
		}
	}
	return w.Commit()
}

func writeFloats(w io.Writer, x []float32) error {
	_, err := w.Write(dtype.AppendF32(nil, x))
	return err
}

// sidecarFile is what reading needs of either container.
type sidecarFile interface {
	text(key string) (string, error)
	number(key string) (int, error)
	has(name string) bool
	shape(name string) ([]int, bool) // of a tensor of F32
	read(name string, dst []float32) error
	names() []string    // of tensors
	keyNames() []string // of metadata
	Close() error
}

// Read reads a sidecar of either container and refuses, naming the key
// or tensor, everything that its version does not define. When ctx ends, it returns its cause.
func Read(ctx context.Context, path string) (*Sidecar, error) {
	f, err := openSidecar(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	s, err := readSidecar(ctx, f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}

func openSidecar(path string) (sidecarFile, error) {
	isGGUF, err := gguf.HasMagic(path)
	if err != nil {
		return nil, err
	}
	if isGGUF {
		// The one file: a sidecar is no split, and its keys must not lead to others.
		f, err := gguf.OpenShard(path)
		if err != nil {
			return nil, err
		}
		if _, ok := f.KV(keySplitCount); ok {
			if n, err := f.Uint(keySplitCount); err != nil || n > 1 {
				f.Close()
				return nil, fmt.Errorf("%s: key %s: a sidecar must be one file, not a split; merge it, or take the publisher's own file", path, keySplitCount)
			}
		}
		if arch, err := f.String("general.architecture"); err != nil || arch != spec.Architecture {
			f.Close()
			return nil, fmt.Errorf("%s: key general.architecture is %q, a sidecar has %q", path, arch, spec.Architecture)
		}
		return ggufSidecar{f}, nil
	}
	f, err := safetensors.Open(path)
	if err != nil {
		return nil, err
	}
	return stSidecar{f}, nil
}

func readSidecar(ctx context.Context, f sidecarFile) (*Sidecar, error) {
	version, err := f.number(spec.KeyVersion)
	if err != nil {
		return nil, err
	}
	s := &Sidecar{}
	switch version {
	case spec.Version:
	case spec.VersionGroups:
		s.Layers = []Layer{}
	default:
		return nil, fmt.Errorf("key %s is %d; this program reads versions %d and %d", spec.KeyVersion, version, spec.Version,
			spec.VersionGroups)
	}
	if err := knownKeys(f, s); err != nil {
		return nil, err
	}
	r := &keyReader{f: f, version: version}
	layers, heads := 0, 0
	if version == spec.Version {
		layers, heads = r.number(spec.KeyLayers, 1, spec.MaxLayers), r.number(spec.KeyHeads, 1, spec.MaxHeads)
		s.HeadDim = r.number(spec.KeyHeadDim, 2, spec.MaxHeadDim)
		if r.err == nil && s.HeadDim%2 != 0 {
			return nil, fmt.Errorf("key %s is %d; RoPE pairs need an even number", spec.KeyHeadDim, s.HeadDim)
		}
		s.Exceptions = r.number(spec.KeyExceptions, 0, spec.MaxExceptionDim/2)
		if r.err == nil {
			if err := codec.CheckExceptions(s.Exceptions, s.HeadDim); err != nil {
				return nil, fmt.Errorf("key %s: %w", spec.KeyExceptions, err)
			}
		}
	}
	s.Anchor = r.number(spec.KeyAnchor, 0, spec.MaxAnchor)
	s.Sink = r.number(spec.KeySink, 0, spec.MaxSink)
	s.Recent = r.number(spec.KeyRecent, 0, spec.MaxRecent)
	r.oneOf(spec.KeyBasis, spec.BasisPostRope)
	s.Kind, s.Rope, s.Tool = codec.Kind(r.text(spec.KeyCode)), r.text(spec.KeyRope), r.text(spec.KeyTool)
	s.SourceSHA256, s.WeightsSHA256 = r.digest(spec.KeySourceSHA256), r.digest(spec.KeyWeightsSHA256)
	s.Calibration = Calibration{r.digest(spec.KeyCalibrationSHA256), r.number(spec.KeyCalibrationTokens, 0, math.MaxInt32),
		r.number(spec.KeyCalibrationContext, 0, math.MaxInt32)}
	layout := r.text(spec.KeyPairLayout)
	if r.err != nil {
		return nil, r.err
	}
	if s.Pairs, err = rope.ParseLayout(layout); err != nil {
		return nil, fmt.Errorf("key %s: %w", spec.KeyPairLayout, err)
	}
	var seen map[string]bool
	var what string
	if version == spec.Version {
		what = fmt.Sprintf("%d layers with %d heads", layers, heads)
		seen, err = s.readCodes(ctx, f, layers, heads)
	} else {
		what = "the groups of key " + spec.KeyGroups
		seen, err = s.readGroups(ctx, f, r.text(spec.KeyGroups), r)
	}
	if err != nil {
		return nil, err
	}
	for _, n := range f.names() {
		if !seen[n] {
			return nil, fmt.Errorf("tensor %.80q belongs to no code of %s, and version %d defines no others; use a program that knows it", n, what, version)
		}
	}
	return s, nil
}

// readCodes reads the codes of version 1. It returns the names that their tensors may have.
func (s *Sidecar) readCodes(ctx context.Context, f sidecarFile, layers, heads int) (map[string]bool, error) {
	// Every head needs two tensors, so the counts cannot exceed the file.
	if layers*heads > len(f.names()) {
		return nil, fmt.Errorf("key %s is %d and %s is %d, but there are only %d tensors", spec.KeyLayers, layers,
			spec.KeyHeads, heads, len(f.names()))
	}
	seen := map[string]bool{}
	for l := range layers {
		var row []*codec.Code
		for h := range heads {
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			name := func(part string) string { return TensorName(l, h, part) }
			c, err := readCode(f, s.Kind, s.HeadDim, name)
			if err != nil {
				return nil, err
			}
			row = append(row, c)
			for _, part := range partNames {
				seen[name(part)] = true
			}
		}
		s.Codes = append(s.Codes, row)
	}
	return seen, nil
}

// keySplitCount is the key of GGUF that says how many files a split has.
const keySplitCount = "split.count"

// keyPrefix begins the keys that belong to this format. Other keys, such as a
// name or an author, are free.
const keyPrefix = spec.Architecture + "."

// knownKeys refuses keys of the format that the version of s does not define: whoever
// wrote them meant something by them that this reader would leave out.
func knownKeys(f sidecarFile, s *Sidecar) error { return onlyKeys(f, s.keys(), s.Version()) }

// onlyKeys refuses keys of the format that are not among those given.
func onlyKeys(f sidecarFile, keys []keyValue, version int) error {
	known := map[string]bool{}
	for _, kv := range keys {
		known[kv.key] = true
	}
	for _, k := range f.keyNames() {
		if strings.HasPrefix(k, keyPrefix) && !known[k] {
			return fmt.Errorf("key %.80q is not one of version %d: the file was made by a later program; use one that knows the key", k, version)
		}
	}
	return nil
}

// readCode reads the tensors of one code for vectors of d numbers; name gives the name of a
// part.
func readCode(f sidecarFile, kind codec.Kind, d int, name func(part string) string) (*codec.Code, error) {
	shape, ok := f.shape(name("decode"))
	if !ok || len(shape) != 2 || shape[1] != d || shape[0] < 8 || shape[0] > spec.MaxBits {
		return nil, fmt.Errorf("tensor %s has shape %v; [signs, %d] is needed", name("decode"), shape, d)
	}
	mean, err := readTensor(f, name("mean"), d)
	if err != nil {
		return nil, err
	}
	decode, err := readTensor(f, name("decode"), shape...)
	if err != nil {
		return nil, err
	}
	var encode []float32
	if f.has(name("encode")) {
		if encode, err = readTensor(f, name("encode"), shape...); err != nil {
			return nil, err
		}
	}
	c, err := codec.New(kind, d, shape[0], mean, decode, encode)
	if err != nil {
		return nil, fmt.Errorf("tensor %s: %w", name("decode"), err)
	}
	if !f.has(name("gain")) {
		return c, nil
	}
	gain, err := readTensor(f, name("gain"), 1)
	if err != nil {
		return nil, err
	}
	if c, err = c.WithGain(gain[0]); err != nil {
		return nil, fmt.Errorf("tensor %s: %w", name("gain"), err)
	}
	return c, nil
}

// readTensor reads a tensor of F32 that must have the shape want and finite numbers.
func readTensor(f sidecarFile, name string, want ...int) ([]float32, error) {
	got, ok := f.shape(name)
	if !ok || !slices.Equal(got, want) {
		return nil, fmt.Errorf("tensor %s has shape %v, expected %v", name, got, want)
	}
	n := 1
	for _, d := range want {
		n *= d
	}
	out := make([]float32, n)
	if err := f.read(name, out); err != nil {
		return nil, err
	}
	for i, v := range out {
		if v-v != 0 {
			return nil, fmt.Errorf("tensor %s: number %d is %v; all must be finite", name, i, v)
		}
	}
	return out, nil
}

// keyReader reads keys and remembers the first error.
type keyReader struct {
	f       sidecarFile
	version int
	err     error
}

func (r *keyReader) number(key string, lo, hi int) int {
	if r.err != nil {
		return 0
	}
	v, err := r.f.number(key)
	if err == nil && (v < lo || v > hi) {
		err = fmt.Errorf("key %s is %d; version %d allows %d to %d", key, v, r.version, lo, hi)
	}
	r.err = err
	return v
}

func (r *keyReader) text(key string) string {
	if r.err != nil {
		return ""
	}
	v, err := r.f.text(key)
	if err == nil && !utf8.ValidString(v) {
		err = fmt.Errorf("key %s is not valid UTF-8", key)
	}
	r.err = err
	return v
}

func (r *keyReader) oneOf(key, want string) {
	if v := r.text(key); r.err == nil && v != want {
		r.err = fmt.Errorf("key %s is %q; version %d knows only %q", key, v, r.version, want)
	}
}

func (r *keyReader) digest(key string) string {
	v := r.text(key)
	if r.err == nil && (len(v) != 64 || strings.Trim(v, "0123456789abcdef") != "") {
		r.err = fmt.Errorf("key %s is %q, which is not a SHA-256 in hex", key, v)
	}
	return v
}

type ggufSidecar struct{ *gguf.File }

func (g ggufSidecar) text(key string) (string, error) { return g.String(key) }

func (g ggufSidecar) number(key string) (int, error) {
	v, err := g.Uint(key)
	if err == nil && v > math.MaxInt32 {
		err = fmt.Errorf("key %s is %d", key, v)
	}
	return int(v), err
}

func (g ggufSidecar) has(name string) bool { _, ok := g.Tensor(name); return ok }

func (g ggufSidecar) shape(name string) ([]int, bool) {
	t, ok := g.Tensor(name)
	if !ok || t.Type != gguf.TypeF32 {
		return nil, false
	}
	return t.Shape(), true
}

func (g ggufSidecar) read(name string, dst []float32) error {
	t, _ := g.Tensor(name)
	return g.ReadRows(t, 0, t.Rows(), dst)
}

func (g ggufSidecar) keyNames() []string {
	var out []string
	for _, kv := range g.KVs {
		out = append(out, kv.Key)
	}
	return out
}

func (g ggufSidecar) names() []string {
	var out []string
	for i := range g.Tensors {
		out = append(out, g.Tensors[i].Name)
	}
	return out
}

type stSidecar struct{ *safetensors.File }

func (s stSidecar) text(key string) (string, error) {
	v, ok := s.Metadata[key]
	if !ok {
		return "", fmt.Errorf("key %s is missing", key)
	}
	return v, nil
}

func (s stSidecar) number(key string) (int, error) {
	t, err := s.text(key)
	if err != nil {
		return 0, err
	}
	v, err := strconv.ParseUint(t, 10, 31)
	if err != nil {
		return 0, fmt.Errorf("key %s is %q, expected a number", key, t)
	}
	return int(v), nil
}

func (s stSidecar) has(name string) bool { _, ok := s.Find(name); return ok }

func (s stSidecar) shape(name string) ([]int, bool) {
	t, ok := s.Find(name)
	if !ok || t.DType != "F32" {
		return nil, false
	}
	return t.Shape, true
}

func (s stSidecar) read(name string, dst []float32) error {
	t, _ := s.Find(name)
	return s.ReadRows(t, 0, t.Rows(), dst)
}

func (s stSidecar) keyNames() []string {
	var out []string
	for k := range s.Metadata {
		out = append(out, k)
	}
	sort.Strings(out) // so that of several errors always the same is reported
	return out
}

func (s stSidecar) names() []string {
	var out []string
	for i := range s.Tensors {
		out = append(out, s.Tensors[i].Name)
	}
	return out
}
