// Package checkpoint opens a model, whatever its container, as a set of tensors
// with canonical names (package family), readable row by row as float32.
//
// Values are those of the forward graph: norm gains are multipliers, expert
// matrices are stacked. The order of rotary dimensions in query and key rows
// stays the container's own; Config.Pairs names it.
package checkpoint

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"sync"

	"github.com/phaseconv/phaseconv/format"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/format/hf"
	"github.com/phaseconv/phaseconv/format/stream"
	"github.com/phaseconv/phaseconv/format/tokenizer"
	"github.com/phaseconv/phaseconv/spec"
)

// Container is a file format for models.
type Container string

// The containers.
const (
	Safetensors Container = "safetensors" // a Hugging Face folder
	GGUF        Container = "gguf"
)

// A Tensor is one canonical tensor of an open checkpoint.
type Tensor struct {
	Name  string // canonical, as in GGUF
	Layer int    // -1 for global tensors
	Shape []int  // row-major, outermost first
	Type  string // element type in the source: BF16, F32, Q4_K, ...
	// Sources are the tensor's names in the source: one, or one per expert.
	Sources []string
	// Add is added to each value on reading (1 for norm gains stored minus one).
	Add float32
}

// Cols returns the length of a row: the innermost dimension.
func (t *Tensor) Cols() int { return t.Shape[len(t.Shape)-1] }

// Rows returns the product of all other dimensions.
func (t *Tensor) Rows() int {
	n := 1
	for _, d := range t.Shape[:len(t.Shape)-1] {
		n *= d
	}
	return n
}

// Elements returns the number of values.
func (t *Tensor) Elements() int { return t.Rows() * t.Cols() }

// backend is what a container has to offer.
type backend interface {
	// readRows decodes rows of the named source tensor; cols is the row length.
	readRows(source string, row0, n int, dst []float32) error
	// raw returns a source tensor's stored bytes.
	raw(source string) (*io.SectionReader, error)
	// files lists the files whose bytes make up the model.
	files() []string
	vocab() (*tokenizer.Vocab, error)
	close() error
}

// Weights gives tensors by canonical name: an open checkpoint, one with edits, or a
// fold on top of either. Reading is safe for concurrent use.
type Weights interface {
	// Find returns the canonical tensor with this name.
	Find(name string) (*Tensor, bool)
	// ReadRows decodes rows [row0, row0+n) of t into dst, n*t.Cols() values.
	ReadRows(t *Tensor, row0, n int, dst []float32) error
}

// A Checkpoint is an open model. Reading is safe for concurrent use.
type Checkpoint struct {
	Path      string
	Container Container
	Config    *family.Config
	// Unknown lists source tensors that the family's graph does not use.
	Unknown []string
	// Graph is what the file was opened by, nil where its architecture is in the table of families.
	Graph *spec.Graph

	notes []string // see Notes

	tensors map[string]*Tensor
	order   []string
	parts   parts
	// optional are tensors that the file lacks and the graph says its readers take.
	optional map[string]spec.GraphTensor
	holds    map[string][]*Tensor
	b        backend
	stamps   map[string]stamp

	reading  sync.Once // of the tokenizer
	vocab    *tokenizer.Vocab
	vocabErr error

	digesting sync.Mutex
	digest    string // once it is known

	tokenizing sync.Mutex
	tokenizer  *tokenizer.Tokenizer // once it is built
}

// stamp recognises a file that changes while it is in use.
type stamp struct {
	size  int64
	mtime int64
}

// Open opens a Hugging Face folder or a GGUF file. Errors about what is in the files are
// of kind format.ErrBroken or format.ErrUnsupported.
func Open(path string) (*Checkpoint, error) {
	c, err := opened(func() (*Checkpoint, error) { return open(path) })
	return c, format.Broken(err)
}

func open(path string) (*Checkpoint, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if st.IsDir() {
		return openDir(path)
	}
	c, err := openGGUF(path)
	if err != nil && partOfFolder(path) {
		err = fmt.Errorf("%s: this is one file of a checkpoint; name its folder, %s, instead", path, filepath.Dir(path))
	}
	return c, err
}

// opened completes what open gives.
func opened(open func() (*Checkpoint, error)) (*Checkpoint, error) {
	c, err := open()
	if err != nil {
		return nil, err
	}
	if err := c.checkUnknown(); err != nil {
		c.Close()
		return nil, err
	}
	doubles := 0
	for _, t := range c.tensors {
		if t.Type == "F64" {
			doubles++
		}
	}
	if doubles > 0 {
		c.notes = append(c.notes, fmt.Sprintf("The source has F64 weights (tensors stored as F64: %d), which are read as F32: "+
			"each number is rounded once.", doubles))
	}
	c.stamps = map[string]stamp{}
	for _, f := range c.b.files() {
		s, err := takeStamp(f)
		if err != nil {
			c.Close()
			return nil, err
		}
		c.stamps[f] = s
	}
	return c, nil
}

func takeStamp(path string) (stamp, error) {
	st, err := os.Stat(path)
	if err != nil {
		return stamp{}, err
	}
	return stamp{st.Size(), st.ModTime().UnixNano()}, nil
}

// partOfFolder says whether a file that is no GGUF file stands for its folder.
func partOfFolder(path string) bool {
	switch filepath.Ext(path) {
	case ".safetensors", ".json", ".bin", ".pt", ".pth", ".model":
	default:
		return false
	}
	is, err := gguf.HasMagic(path)
	return err == nil && !is
}

// openDir opens a folder with config.json. It refuses others, also one that holds a GGUF
// file, which then is named.
func openDir(dir string) (*Checkpoint, error) {
	if ok, err := hf.IsFolder(dir); err != nil {
		return nil, err
	} else if ok {
		return openHF(dir)
	}
	found, err := filepath.Glob(filepath.Join(dir, "*.gguf"))
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(dir, spec.ManifestName)); err == nil {
		found = slices.DeleteFunc(found, func(f string) bool { return filepath.Base(f) != spec.GGUFModelName })
		return nil, format.Unsupportedf("%s: an artifact of phaseconv without a safetensors model; name a file in it%s",
			dir, hint(found))
	}
	return nil, format.Unsupportedf("%s: no config.json, so not a Hugging Face checkpoint; name a GGUF file instead%s", dir,
		hint(found))
}

func hint(files []string) string {
	if len(files) == 0 {
		return ""
	}
	return " (such as " + files[0] + ")"
}

// Close releases the files.
func (c *Checkpoint) Close() error { return c.b.close() }

// Tensors returns all canonical tensors, globals first, then by layer.
func (c *Checkpoint) Tensors() []*Tensor {
	out := make([]*Tensor, len(c.order))
	for i, n := range c.order {
		out[i] = c.tensors[n]
	}
	return out
}

// Find returns the canonical tensor with this name.
func (c *Checkpoint) Find(name string) (*Tensor, bool) { t, ok := c.tensors[name]; return t, ok }

// Notes returns what people should know of how the source was read, one sentence
// each: where its files disagree, and where the tokenizer of GGUF readers differs
// from the one of the source. A source whose tokenizer cannot be read has none.
func (c *Checkpoint) Notes() []string {
	out := slices.Clone(c.notes)
	if v, err := c.Vocab(); err == nil {
		out = append(out, v.Notes...)
	}
	return out
}

// Vocab returns the tokenizer's data, which is read once and must not be changed.
func (c *Checkpoint) Vocab() (*tokenizer.Vocab, error) {
	c.reading.Do(func() { c.vocab, c.vocabErr = c.b.vocab() })
	return c.vocab, format.Broken(c.vocabErr)
}

// Tokenizer returns the model's tokenizer, which is built once. It fails where the tokenizer
// is damaged or of a kind that is not supported.
func (c *Checkpoint) Tokenizer() (*tokenizer.Tokenizer, error) {
	c.tokenizing.Lock()
	defer c.tokenizing.Unlock()
	if c.tokenizer != nil {
		return c.tokenizer, nil
	}
	v, err := c.Vocab()
	if err != nil {
		return nil, err
	}
	if c.tokenizer, err = tokenizer.New(v); err != nil {
		return nil, fmt.Errorf("%s: %w", c.Path, err)
	}
	return c.tokenizer, nil
}

// ReadRows decodes rows [row0, row0+n) of t into dst (n*t.Cols() values). It
// refuses numbers that are not finite, by name: no model can be computed with them.
func (c *Checkpoint) ReadRows(t *Tensor, row0, n int, dst []float32) error {
	cols := t.Cols()
	if row0 < 0 || n < 0 || n > t.Rows()-row0 || len(dst) < n*cols {
		return fmt.Errorf("%s: tensor %s: %d rows from %d on of %d asked for, room for %d values", c.Path, t.Name, n, row0,
			t.Rows(), len(dst))
	}
	per := t.Rows() / len(t.Sources)
	for at := row0; at < row0+n; {
		part := at / per
		m := min(row0+n, (part+1)*per) - at
		if err := c.b.readRows(t.Sources[part], at-part*per, m, dst[(at-row0)*cols:]); err != nil {
			return err
		}
		at += m
	}
	dst = dst[:n*cols]
	if t.Add != 0 {
		for i := range dst {
			dst[i] += t.Add
		}
	}
	if i := notFinite(dst); i >= 0 {
		row := row0 + i/cols
		return format.Brokenf("%s: tensor %s: value at row %d, column %d is %v; a weight must be finite", c.Path,
			t.Sources[row/per], row%per, i%cols, dst[i])
	}
	return nil
}

// notFinite returns the index of the first NaN or infinity, or -1.
func notFinite(x []float32) int {
	const exponent = 0x7f800000
	for i, v := range x {
		if math.Float32bits(v)&exponent == exponent {
			return i
		}
	}
	return -1
}

// ReadAll returns all values of a tensor.
func (c *Checkpoint) ReadAll(t *Tensor) ([]float32, error) {
	out := make([]float32, t.Elements())
	return out, c.ReadRows(t, 0, t.Rows(), out)
}

// Raw returns the stored bytes of a source tensor (a name of Tensor.Sources or Unknown).
func (c *Checkpoint) Raw(source string) (*io.SectionReader, error) { return c.b.raw(source) }

// Unchanged returns an error when a file of the model was modified since Open.
func (c *Checkpoint) Unchanged() error {
	for _, f := range c.b.files() {
		s, err := takeStamp(f)
		if err != nil {
			return err
		}
		if s != c.stamps[f] {
			return fmt.Errorf("%s: the file changed while it was being read", f)
		}
	}
	return nil
}

// Digest returns the SHA-256 that identifies the source: of the file itself for
// a single GGUF file, otherwise of the lines "<sha256>  <name>\n" of all model
// files sorted by name (what `sha256sum` prints). The files are read once, until ctx ends,
// and tick, if not nil, is told how many MiB are done; later calls only see to it that they
// are Unchanged.
func (c *Checkpoint) Digest(ctx context.Context, tick func(done, total int)) (string, error) {
	c.digesting.Lock()
	defer c.digesting.Unlock()
	var err error
	if c.digest == "" {
		c.digest, err = c.readDigest(ctx, tick)
	} else {
		err = c.Unchanged()
	}
	if err != nil {
		return "", err
	}
	return c.digest, nil
}

func (c *Checkpoint) readDigest(ctx context.Context, tick func(done, total int)) (string, error) {
	files := c.b.files()
	var size int64
	for _, f := range files {
		size += c.stamps[f].size
	}
	m := stream.NewMeter(size, tick)
	if len(files) == 1 && c.Container == GGUF {
		d, err := FileDigest(ctx, files[0], m)
		if err == nil {
			m.Finish()
		}
		return d, err
	}
	var lines []string
	for _, f := range files {
		d, err := FileDigest(ctx, f, m)
		if err != nil {
			return "", err
		}
		lines = append(lines, d+"  "+filepath.Base(f)+"\n")
	}
	m.Finish()
	sort.Slice(lines, func(i, j int) bool { return lines[i][66:] < lines[j][66:] })
	h := sha256.Sum256([]byte(strings.Join(lines, "")))
	return hex.EncodeToString(h[:]), nil
}

// FileDigest returns the SHA-256 of a file in hex. m, which may be nil, counts the bytes. When
// ctx ends, it returns its cause.
func FileDigest(ctx context.Context, path string, m *stream.Meter) (string, error) {
	f, _, err := format.OpenRegular(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if err := stream.Copy(ctx, h, f, m); err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// headName is the output head, where a model has one of its own.
const headName = "output.weight"

// attention lists the tensors that determine a layer's queries and keys, in
// digest order.
var attention = []string{
	"attn_q.weight", "attn_q.bias", "attn_q_norm.weight",
	"attn_k.weight", "attn_k.bias", "attn_k_norm.weight",
}

// values lists those that determine its values; they follow in the digest where it has them.
var values = []string{"attn_v.weight", "attn_v.bias"}

// graphRoles lists the roles of a cache's tensors in digest order, which is theirs in the graph.
func graphRoles(g *spec.GraphCache, withValues bool) (out []string) {
	for _, t := range g.Tensors {
		if withValues && slices.Contains(values, t.Role) || !slices.Contains(values, t.Role) && t.Role != outputRole {
			out = append(out, t.Role)
		}
	}
	return out
}

// outputRole is that of the matrix behind attention, which changes no key.
const outputRole = "attn_output.weight"

// AttentionDigest returns the SHA-256 over the stored query and key tensors of
// all layers, and withValues over those of values too. A sidecar carries it, so that it is
// never used with other weights.
//
// Hashed per tensor, layers ascending: canonical name, NUL, element type, NUL,
// the shape as decimal numbers joined by "x", NUL, then the stored bytes. tick, if not nil, is
// told how many MiB are done. When ctx ends, AttentionDigest returns its cause.
func (c *Checkpoint) AttentionDigest(ctx context.Context, withValues bool, tick func(done, total int)) (string, error) {
	names := slices.Clone(attention)
	if withValues {
		names = append(names, values...)
	}
	var all []*Tensor
	var size int64
	for l := range c.Config.Layers {
		if c.Graph != nil {
			names = graphRoles(&c.Graph.Caches[l], withValues)
		}
		for _, n := range names {
			t, ok := c.Find(family.Name(l, n))
			if !ok {
				continue
			}
			for _, s := range t.Sources {
				r, err := c.Raw(s)
				if err != nil {
					return "", err
				}
				size += r.Size()
			}
			all = append(all, t)
		}
	}
	h, m := sha256.New(), stream.NewMeter(size, tick)
	for _, t := range all {
		if err := c.hashTensor(ctx, h, t, m); err != nil {
			return "", err
		}
	}
	m.Finish()
	return hex.EncodeToString(h.Sum(nil)), nil
}

func (c *Checkpoint) hashTensor(ctx context.Context, h hash.Hash, t *Tensor, m *stream.Meter) error {
	var dims []string
	for _, d := range t.Shape {
		dims = append(dims, fmt.Sprint(d))
	}
	fmt.Fprintf(h, "%s\x00%s\x00%s\x00", t.Name, t.Type, strings.Join(dims, "x"))
	for _, s := range t.Sources {
		r, err := c.Raw(s)
		if err != nil {
			return err
		}
		if err := stream.Copy(ctx, h, r, m); err != nil {
			return fmt.Errorf("%s: tensor %s: %w", c.Path, t.Name, err)
		}
	}
	return nil
}

// collect matches the tensors that the family expects with those that the
// container has. lookup returns shape, element type and existence of a source name.
func (c *Checkpoint) collect(names func(t family.Tensor) []string, lookup func(source string) ([]int, string, bool),
	all []string) error {
	c.tensors = map[string]*Tensor{}
	used := map[string]bool{}
	for _, want := range c.Config.Tensors() {
		// Checkpoints with tied embeddings may still carry a copy of the head. One
		// that differs makes them untied; see ownHead.
		if want.Name == headName && c.Config.TiedEmbeddings {
			continue
		}
		sources := names(want)
		shape, typ, ok := lookup(sources[0])
		if !ok {
			if want.Optional {
				continue
			}
			return fmt.Errorf("%s: tensor %s is missing", c.Path, sources[0])
		}
		for _, s := range sources {
			sh, ty, ok := lookup(s)
			if !ok {
				return fmt.Errorf("%s: tensor %s is missing", c.Path, s)
			}
			if ty != typ || !sameShape(sh, shape) {
				return fmt.Errorf("%s: tensor %s is %s %v, but %s is %s %v; experts must be alike", c.Path, s, ty, sh, sources[0],
					typ, shape)
			}
			used[s] = true
		}
		if len(sources) > 1 {
			shape = append([]int{len(sources)}, shape...)
		}
		if !sameShape(shape, want.Shape) && (len(want.Shape) != 1 || !sameShape(shape, []int{1, want.Shape[0]})) {
			return fmt.Errorf("%s: tensor %s has shape %v, the configuration implies %v", c.Path, sources[0], shape, want.Shape)
		}
		c.tensors[want.Name] = &Tensor{Name: want.Name, Layer: want.Layer, Shape: want.Shape, Type: typ, Sources: sources}
		c.order = append(c.order, want.Name)
	}
	for _, n := range all {
		if !used[n] {
			c.Unknown = append(c.Unknown, n)
		}
	}
	sort.Strings(c.Unknown)
	c.setHolds()
	return nil
}

func sameShape(a, b []int) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}
