package checkpoint

import (
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"

	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/format/hf"
	"github.com/phaseconv/phaseconv/format/safetensors"
	"github.com/phaseconv/phaseconv/format/tokenizer"
)

// hfBackend reads a Hugging Face folder.
type hfBackend struct {
	dir string
	set *safetensors.Set
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
	c := &Checkpoint{Path: dir, Container: Safetensors, Config: cfg, b: &hfBackend{dir, set}}
	if cfg.TiedEmbeddings {
		own, err := ownHead(set, cfg)
		if err != nil {
			set.Close()
			return nil, err
		}
		if own {
			cfg.TiedEmbeddings = false
			c.notes = append(c.notes, "config.json says that the output head is the embedding (tie_word_embeddings), "+
				"but lm_head.weight is stored and differs: it is kept, as transformers 5 does. Older readers of "+
				"safetensors drop it; set tie_word_embeddings to false in config.json for them.")
		}
	}
	err = c.collect(
		func(t family.Tensor) []string {
			n, _ := cfg.Family.HFNames(t.Name, cfg.Experts)
			return n
		},
		func(name string) ([]int, string, bool) {
			r, ok := set.Find(name)
			if !ok {
				return nil, "", false
			}
			return r.Tensor.Shape, r.Tensor.DType, true
		}, set.Names())
	if err != nil {
		set.Close()
		return nil, err
	}
	for _, name := range c.order { // so that of several always the same is reported
		t := c.tensors[name]
		if !safetensors.Readable(t.Type) {
			r, _ := set.Find(t.Sources[0])
			set.Close()
			return nil, &safetensors.UnsupportedError{File: r.File.Path, Tensor: t.Sources[0], DType: t.Type}
		}
		if cfg.Family.NormPlusOne && family.IsNorm(t.Name) {
			t.Add = 1
		}
	}
	if _, ok := c.tensors[headName]; !ok && !cfg.TiedEmbeddings {
		set.Close()
		return nil, fmt.Errorf("%s: lm_head.weight is missing and tie_word_embeddings is false", dir)
	}
	return c, nil
}

// ownHead says whether a checkpoint whose configuration ties the output head to the
// embedding stores a head with other numbers. Adapters that trained the head leave
// such checkpoints when they are merged; the stored head is the function.
func ownHead(set *safetensors.Set, cfg *family.Config) (bool, error) {
	name := func(canonical string) string {
		n, _ := cfg.Family.HFNames(canonical, 0)
		return n[0]
	}
	head, ok := set.Find(name(headName))
	embd, there := set.Find(name("token_embd.weight"))
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
	a, b := make([]float32, rows*h.Cols()), make([]float32, rows*h.Cols())
	for r := 0; r < h.Rows(); r += rows {
		n := min(rows, h.Rows()-r)
		if err := head.File.ReadRows(h, r, n, a); err != nil {
			return false, err
		}
		if err := embd.File.ReadRows(e, r, n, b); err != nil {
			return false, err
		}
		if !slices.EqualFunc(a[:n*h.Cols()], b[:n*h.Cols()], same) {
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
	r, _ := b.set.Find(source)
	return r.File.ReadRows(r.Tensor, row0, n, dst)
}

func (b *hfBackend) raw(source string) (*io.SectionReader, error) {
	r, ok := b.set.Find(source)
	if !ok {
		return nil, fmt.Errorf("%s: no tensor %s", b.dir, source)
	}
	return r.File.Reader(r.Tensor), nil
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

// Shards returns the safetensors files of a Hugging Face checkpoint, nil for others.
func (c *Checkpoint) Shards() *safetensors.Set {
	if b, ok := c.b.(*hfBackend); ok {
		return b.set
	}
	return nil
}
