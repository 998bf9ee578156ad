package checkpoint_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/internal/tiny"
)

var small = tiny.Options{Layers: 1, Hidden: 8, Heads: 2, KVHeads: 1, HeadDim: 4, FFN: 8, NoTokenizer: true,
	DType: "F16"}

// use reads everything of a model that opened.
func use(t *testing.T, c *checkpoint.Checkpoint) {
	if err := c.Config.Check(); err != nil {
		t.Fatalf("a configuration that is not checked: %v", err)
	}
	for _, x := range c.Tensors() {
		if x.Elements() > 1<<20 {
			t.Fatalf("%s has %d values, more than the file has bytes", x.Name, x.Elements())
		}
		if _, err := c.ReadAll(x); err != nil {
			continue // numbers that are not finite, types that cannot be read
		}
	}
	if _, err := c.AttentionDigest(t.Context(), false, nil); err != nil {
		t.Fatal(err)
	}
	_, _ = c.Vocab()
}

// FuzzGGUF opens mutations of tiny GGUF models. Run with -fuzzminimizetime 10x: the
// order of map keys makes coverage unsteady, and minimising then takes all the time.
func FuzzGGUF(f *testing.F) {
	for _, family := range tiny.Families {
		path := filepath.Join(f.TempDir(), "m.gguf")
		tiny.GGUF(f, path, family, small)
		raw, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	path := filepath.Join(f.TempDir(), "x.gguf")
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := checkpoint.Open(path)
		if err != nil {
			return
		}
		defer c.Close()
		use(t, c)
	})
}

// FuzzConfig opens a folder with the weights of one family and any config.json.
func FuzzConfig(f *testing.F) {
	dirs := map[string]string{}
	for i, family := range tiny.Families {
		dir := filepath.Join(f.TempDir(), family)
		m := tiny.HF(f, dir, family, small)
		dirs[family] = dir
		raw, err := json.Marshal(m.ConfigJSON())
		if err != nil {
			f.Fatal(err)
		}
		for j := range tiny.Families {
			f.Add(uint8(i+j), raw)
		}
	}
	f.Fuzz(func(t *testing.T, family uint8, data []byte) {
		dir := dirs[tiny.Families[int(family)%len(tiny.Families)]]
		if err := os.WriteFile(filepath.Join(dir, "config.json"), data, 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := checkpoint.Open(dir)
		if err != nil {
			return
		}
		defer c.Close()
		use(t, c)
	})
}
