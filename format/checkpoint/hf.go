package checkpoint

import (
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/phaseconv/phaseconv/format"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/format/hf"
	"github.com/phaseconv/phaseconv/format/safetensors"
	"github.com/phaseconv/phaseconv/format/tokenizer"
)

// hfBackend reads a Hugging Face folder.
type hfBackend struct {
	dir string
	set *safetensors.Set
	cfg *family.Config
	// bare: the names lack family.BasePrefix, as the base class saves them.
	bare bool
	// prefix stands in for family.BasePrefix in multimodal checkpoints, head for the name of
	// the output head.
	prefix, head string
	parts
	// packed are experts' parts of tensors that hold all experts and cannot be read as they lie;
	// packedOf names those of a canonical tensor.
	packed   map[string]*packed
	packedOf map[string][]string
	turned   turned
}

func openHF(dir string) (*Checkpoint, error) {
	cfg, err := hf.ReadConfig(dir)
	if err != nil {
		return nil, err
	}
	set, err := safetensors.OpenDir(dir)
	if err != nil {
		return nil, err
	}
	b := &hfBackend{dir: dir, set: set, cfg: cfg, parts: newParts(), packed: map[string]*packed{},
		packedOf: map[string][]string{}}
	c := &Checkpoint{Path: dir, Container: Safetensors, Config: cfg, b: b, parts: b.parts}
	if err := c.fromHF(b); err != nil {
		set.Close()
		return nil, err
	}
	return c, nil
}

func (c *Checkpoint) fromHF(b *hfBackend) error {
	const embedding = "embed_tokens.weight"
	cfg := c.Config
	if cfg.Wrapped {
		b.wrapped(embedding)
	}
	if _, ok := b.set.Find(b.name(family.BasePrefix + embedding)); !ok {
		if _, b.bare = b.set.Find(embedding); !b.bare {
			for _, n := range b.set.Names() {
				if prefix, ok := strings.CutSuffix(n, family.BasePrefix+embedding); ok {
					return format.Unsupportedf("%s: tensor %s%s is missing, but there is %s; names with the prefix %q are not read: save "+
						"the language model alone",
						b.dir, family.BasePrefix, embedding, n, prefix)
				}
			}
		}
	}
	c.notes = append(c.notes, b.set.Notes...)
	if cfg.TiedEmbeddings {
		own, err := b.ownHead()
		if err != nil {
			return err
		}
		if own {
			cfg.TiedEmbeddings = false
			c.notes = append(c.notes, "config.json says that the output head is the embedding (tie_word_embeddings), "+
				"but lm_head.weight is stored and differs: it is kept, as transformers 5 does. Older readers of "+
				"safetensors drop it; set tie_word_embeddings to false in config.json for them.")
		}
	}
	stored, err := b.fused()
	if err != nil {
		return err
	}
	stacks, err := b.stack(cfg, cfg.Family.HFStacks, b.name, func(n string) ([]int, bool) {
		shape, _, ok := b.lookup(n)
		return shape, ok
	})
	if err != nil {
		return fmt.Errorf("%s: %w", b.dir, err)
	}
	maps.Copy(stored, stacks)
	packs, err := b.packedExperts()
	if err != nil {
		return err
	}
	maps.Copy(stored, packs)
	all := slices.DeleteFunc(b.set.Names(), func(n string) bool { return stored[n] })
	if err := c.collect(b.sources, b.lookup, all); err != nil {
		return err
	}
	for _, name := range c.order { // so that of several always the same is reported
		t := c.tensors[name]
		if !safetensors.Readable(t.Type) && t.Type != mxfp4 {
			r, _ := b.set.Find(c.Stored(t.Sources[0]))
			return &safetensors.UnsupportedError{File: r.File.Path, Tensor: t.Sources[0], DType: t.Type}
		}
		if cfg.Family.NormPlusOne && family.IsNorm(t.Name) {
			t.Add = 1
		}
	}
	if _, ok := c.tensors[headName]; !ok && !cfg.TiedEmbeddings {
		return fmt.Errorf("%s: lm_head.weight is missing and tie_word_embeddings is false", b.dir)
	}
	return nil
}

// fused finds fused experts, gives each a name, and returns the names of the stored
// tensors.
func (b *hfBackend) fused() (stored map[string]bool, err error) {
	stored = map[string]bool{}
	for _, t := range b.cfg.Tensors() {
		name, part, parts, ok := b.cfg.Family.HFFused(t.Name)
		if !ok || len(t.Shape) != 3 {
			continue
		}
		name = b.name(name)
		r, ok := b.set.Find(name)
		if !ok {
			continue
		}
		rows := t.Shape[1]
		if want := []int{t.Shape[0], parts * rows, t.Shape[2]}; !sameShape(r.Tensor.Shape, want) {
			return nil, fmt.Errorf("%s: tensor %s has shape %v, experts fused by transformers have %v here", b.dir, name,
				r.Tensor.Shape, want)
		}
		stored[name] = true
		for e := range t.Shape[0] {
			lo := part * rows
			b.slices[sliceName(name, e, lo, lo+rows)] = slice{name, e*parts*rows + lo, rows}
		}
	}
	return stored, nil
}

func sliceName(stored string, expert, from, to int) string {
	return fmt.Sprintf("%s[%d,%d:%d]", stored, expert, from, to)
}

// wrapped finds the names of the language model in a multimodal checkpoint, as transformers 5
// and its predecessors spell them.
func (b *hfBackend) wrapped(embedding string) {
	for _, p := range []string{"model.language_model.", "language_model.model."} {
		if _, ok := b.set.Find(p + embedding); ok {
			b.prefix = p
			break
		}
	}
	if _, ok := b.set.Find("language_model.lm_head.weight"); ok {
		b.head = "language_model.lm_head.weight"
	}
}

// name takes the prefix off a Hugging Face name if this folder's lack it, or replaces it.
func (b *hfBackend) name(hf string) string {
	if b.head != "" && hf == "lm_head.weight" {
		return b.head
	}
	if rest, ok := strings.CutPrefix(hf, family.BasePrefix); ok && b.prefix != "" {
		return b.prefix + rest
	}
	if b.bare {
		return strings.TrimPrefix(hf, family.BasePrefix)
	}
	return hf
}

// sources returns the names of what makes up a tensor of the family.
func (b *hfBackend) sources(t family.Tensor) []string {
	if name, part, _, ok := b.cfg.Family.HFFused(t.Name); ok && len(b.slices) > len(b.stacked) {
		if name = b.name(name); len(t.Shape) != 3 { // the router
			return []string{name}
		}
		if _, ok := b.set.Find(name); ok {
			var out []string
			for e := range t.Shape[0] {
				out = append(out, sliceName(name, e, part*t.Shape[1], (part+1)*t.Shape[1]))
			}
			return out
		}
	}
	if n, ok := b.stacked[t.Name]; ok {
		return []string{n}
	}
	if n, ok := b.packedOf[t.Name]; ok {
		return n
	}
	names, _ := b.cfg.Family.HFNames(t.Name, b.cfg.Experts())
	for i := range names {
		names[i] = b.name(names[i])
	}
	return names
}

func (b *hfBackend) lookup(name string) ([]int, string, bool) {
	if p, ok := b.packed[name]; ok {
		return p.shape(), p.dtype(), true
	}
	if s, ok := b.slices[name]; ok {
		r, _ := b.set.Find(s.stored)
		return s.shape(r.Tensor.Shape), r.Tensor.DType, true
	}
	r, ok := b.set.Find(name)
	if !ok {
		return nil, "", false
	}
	return r.Tensor.Shape, r.Tensor.DType, true
}

// ownHead says whether a checkpoint whose configuration ties the output head to the
// embedding stores a head with other numbers. Adapters that trained the head leave
// such checkpoints when they are merged; the stored head is the function.
func (b *hfBackend) ownHead() (bool, error) {
	name := func(canonical string) string {
		n, _ := b.cfg.Family.HFNames(canonical, 0)
		return b.name(n[0])
	}
	head, ok := b.set.Find(name(headName))
	embd, there := b.set.Find(name("token_embd.weight"))
	if !ok || !there { // the latter is reported later
		return false, nil
	}
	h, e := head.Tensor, embd.Tensor
	for _, r := range []safetensors.Ref{head, embd} {
		if !safetensors.Readable(r.Tensor.DType) {
			return false, &safetensors.UnsupportedError{File: r.File.Path, Tensor: r.Tensor.Name, DType: r.Tensor.DType}
		}
	}
	if !sameShape(h.Shape, e.Shape) {
		return false, fmt.Errorf("%s: tensor %s has shape %v and %s %v, but tie_word_embeddings says that they are one; "+
			"set it to false if the head is the model's own, or remove the head",
			head.File.Path, h.Name, h.Shape, e.Name, e.Shape)
	}
	rows := max(1, 1<<18/h.Cols())
	x, y := make([]float32, rows*h.Cols()), make([]float32, rows*h.Cols())
	for r := 0; r < h.Rows(); r += rows {
		n := min(rows, h.Rows()-r)
		if err := head.File.ReadRows(h, r, n, x); err != nil {
			return false, err
		}
		if err := embd.File.ReadRows(e, r, n, y); err != nil {
			return false, err
		}
		if !slices.EqualFunc(x[:n*h.Cols()], y[:n*h.Cols()], same) {
			return true, nil
		}
	}
	return false, nil
}

// same says whether two weights are the same number. A NaN, which is reported when
// it is read for computing, is the same as its own copy.
func same(x, y float32) bool { return x == y || math.Float32bits(x) == math.Float32bits(y) }

func without(list []string, x string) []string {
	var out []string
	for _, s := range list {
		if s != x {
			out = append(out, s)
		}
	}
	return out
}

func (b *hfBackend) readRows(source string, row0, n int, dst []float32) error {
	if p, ok := b.packed[source]; ok {
		return p.read(row0, n, dst, &b.turned)
	}
	if s, ok := b.slices[source]; ok {
		r, _ := b.set.Find(s.stored)
		return s.read(r.Tensor.Shape, row0, n, dst, func(row0, n int, dst []float32) error {
			return r.File.ReadRows(r.Tensor, row0, n, dst)
		})
	}
	r, _ := b.set.Find(source)
	return r.File.ReadRows(r.Tensor, row0, n, dst)
}

func (b *hfBackend) raw(source string) (*io.SectionReader, error) {
	if p, ok := b.packed[source]; ok {
		if !p.mx() {
			return nil, fmt.Errorf("%s: tensor %s can only be read by rows", b.dir, source)
		}
		return p.section(), nil
	}
	s, part := b.slices[source]
	if part {
		source = s.stored
	}
	r, ok := b.set.Find(source)
	if !ok {
		return nil, fmt.Errorf("%s: no tensor %s", b.dir, source)
	}
	all := r.File.Reader(r.Tensor)
	if !part {
		return all, nil
	}
	return s.section(all, r.Tensor.Shape), nil
}

// files names the configuration and the weights: what determines the numbers.
func (b *hfBackend) files() []string {
	out := []string{filepath.Join(b.dir, hf.ConfigName)}
	for _, f := range b.set.Files {
		out = append(out, f.Path)
	}
	return out
}

// configText returns config.json as it is.
func (b *hfBackend) configText() ([]byte, error) {
	return os.ReadFile(filepath.Join(b.dir, hf.ConfigName))
}

func (b *hfBackend) vocab() (*tokenizer.Vocab, error) { return tokenizer.ReadHF(b.dir) }

func (b *hfBackend) close() error { return b.set.Close() }

// HFName returns the name that a tensor of the family has, or would have, in this
// folder. It is for tensors that are no experts.
func (c *Checkpoint) HFName(canonical string) string {
	b, ok := c.b.(*hfBackend)
	names, known := c.Config.Family.HFNames(canonical, 0)
	if !ok || !known || len(names) == 0 {
		return ""
	}
	return b.name(names[0])
}

// Outside says whether a source tensor belongs to another part of a multimodal checkpoint than
// its language model, by its name.
func (c *Checkpoint) Outside(source string) bool {
	b, ok := c.b.(*hfBackend)
	return ok && b.prefix != "" && !strings.HasPrefix(source, b.prefix) && !strings.Contains(source, "lm_head.")
}

// BaseNames says whether the folder's names lack family.BasePrefix.
func (c *Checkpoint) BaseNames() bool {
	b, ok := c.b.(*hfBackend)
	return ok && b.bare
}

// Shards returns the safetensors files of a Hugging Face checkpoint, nil for others.
func (c *Checkpoint) Shards() *safetensors.Set {
	if b, ok := c.b.(*hfBackend); ok {
		return b.set
	}
	return nil
}
