package checkpoint

import (
	"fmt"
	"io"
	"path/filepath"

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
	err = c.collect(
		func(t family.Tensor) []string {
			n, _ := cfg.Family.HFNames(t.Name, cfg.Experts())
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
	for _, t := range c.tensors {
		if !safetensors.Readable(t.Type) {
			set.Close()
			return nil, &safetensors.UnsupportedError{File: dir, Tensor: t.Sources[0], DType: t.Type}
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

func (b *hfBackend) vocab() (*tokenizer.Vocab, error) { return tokenizer.ReadHF(b.dir) }

func (b *hfBackend) close() error { return b.set.Close() }

// Shards returns the safetensors files of a Hugging Face checkpoint, nil for others.
func (c *Checkpoint) Shards() *safetensors.Set {
	if b, ok := c.b.(*hfBackend); ok {
		return b.set
	}
	return nil
}
