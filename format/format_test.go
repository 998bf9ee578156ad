package format_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/format"
	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/format/hf"
	"github.com/phaseconv/phaseconv/format/safetensors"
	"github.com/phaseconv/phaseconv/format/tokenizer"
	"github.com/phaseconv/phaseconv/internal/tiny"
)

// edit rewrites one file of a model.
func edit(name string, change func(b []byte) []byte) func(t *testing.T, path string) {
	return func(t *testing.T, path string) {
		t.Helper()
		if name != "" {
			path = filepath.Join(path, name)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, change(b), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// key sets a key of a JSON file.
func key(name, path string, value any) func(t *testing.T, path string) {
	return edit(name, func(b []byte) []byte {
		var v map[string]any
		if err := json.Unmarshal(b, &v); err != nil {
			panic(err)
		}
		at := v
		parts := strings.Split(path, ".")
		for _, p := range parts[:len(parts)-1] {
			at = at[p].(map[string]any)
		}
		at[parts[len(parts)-1]] = value
		b, _ = json.Marshal(v)
		return b
	})
}

func replace(name, old, now string) func(t *testing.T, path string) {
	return edit(name, func(b []byte) []byte { return bytes.Replace(b, []byte(old), []byte(now), 1) })
}

func cut(name string) func(t *testing.T, path string) {
	return edit(name, func(b []byte) []byte { return b[:len(b)/2] })
}

func remove(name string) func(t *testing.T, path string) {
	return func(t *testing.T, path string) {
		if err := os.Remove(filepath.Join(path, name)); err != nil {
			t.Fatal(err)
		}
	}
}

// pointer puts in place of a file what Git LFS does.
func pointer(name string) func(t *testing.T, path string) {
	return edit(name, func([]byte) []byte {
		return []byte("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
	})
}

func add(name, text string) func(t *testing.T, path string) {
	return func(t *testing.T, path string) {
		if err := os.WriteFile(filepath.Join(path, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// TestKinds: every reader tells a broken file from one that is not supported, and
// both from one that is not there.
func TestKinds(t *testing.T) {
	open := func(path string) error {
		c, err := checkpoint.Open(path)
		if err == nil {
			_, err = c.Vocab()
			c.Close()
		}
		return err
	}
	weights := func(path string) error {
		c, err := checkpoint.Open(path)
		if err != nil {
			return fmt.Errorf("opening: %w", err)
		}
		defer c.Close()
		for _, x := range c.Tensors() {
			if _, err := c.ReadAll(x); err != nil {
				return err
			}
		}
		return nil
	}
	file := func(path string) error {
		f, err := gguf.Open(path)
		if err == nil {
			f.Close()
		}
		return err
	}
	shard := func(path string) error {
		f, err := safetensors.Open(filepath.Join(path, "model.safetensors"))
		if err == nil {
			f.Close()
		}
		return err
	}
	folder := func(path string) error {
		s, err := safetensors.OpenDir(path)
		if err == nil {
			s.Close()
		}
		return err
	}
	config := func(path string) error { _, err := hf.ReadConfig(path); return err }
	vocab := func(path string) error { _, err := tokenizer.ReadHF(path); return err }
	for _, x := range []struct {
		name   string
		gguf   bool
		change func(t *testing.T, path string)
		read   func(path string) error
		want   error
	}{
		{"GGUF cut off", true, cut(""), file, format.ErrBroken},
		{"GGUF cut off", true, cut(""), open, format.ErrBroken},
		{"GGUF version 1", true, replace("", "GGUF\x03", "GGUF\x01"), file, format.ErrUnsupported},
		{"GGUF of another architecture", true, replace("", "\x05\x00\x00\x00\x00\x00\x00\x00llama",
			"\x05\x00\x00\x00\x00\x00\x00\x00mamba"), open, format.ErrUnsupported},
		{"safetensors cut off", false, cut("model.safetensors"), shard, format.ErrBroken},
		{"safetensors cut off", false, cut("model.safetensors"), open, format.ErrBroken},
		{"weights of another type", false, edit("model.safetensors", func(b []byte) []byte {
			return bytes.ReplaceAll(b, []byte(`"F32"`), []byte(`"U32"`))
		}), open, format.ErrUnsupported},
		{"a tensor of another shape", false, key("config.json", "intermediate_size", 8), open, format.ErrBroken},
		{"a NaN", false, edit("model.safetensors", func(b []byte) []byte { return append(b[:len(b)-4], 0, 0, 0xc0, 0x7f) }),
			weights, format.ErrBroken},
		{"config.json cut off", false, cut("config.json"), config, format.ErrBroken},
		{"a negative count", false, key("config.json", "num_attention_heads", -4), config, format.ErrBroken},
		{"an odd count", false, key("config.json", "num_key_value_heads", 3), config, format.ErrBroken},
		{"another family", false, key("config.json", "model_type", "mamba"), config, format.ErrUnsupported},
		{"another activation", false, key("config.json", "hidden_act", "relu"), config, format.ErrUnsupported},
		{"another RoPE", false, key("config.json", "rope_scaling", map[string]any{"rope_type": "dynamic", "factor": 2}),
			config, format.ErrUnsupported},
		{"another RoPE", false, key("config.json", "partial_rotary_factor", 0.5), open, format.ErrUnsupported},
		{"tokenizer.json cut off", false, cut("tokenizer.json"), vocab, format.ErrBroken},
		{"another tokenizer", false, key("tokenizer.json", "model.type", "WordPiece"), vocab, format.ErrUnsupported},
		{"another tokenizer", false, key("tokenizer.json", "model.type", "WordPiece"), open, format.ErrUnsupported},
		{"a placeholder of Git LFS", false, pointer("model.safetensors"), shard, format.ErrBroken},
		{"a placeholder of Git LFS", false, pointer("config.json"), config, format.ErrBroken},
		{"no weights that are read", false, remove("model.safetensors"), folder, format.ErrUnsupported},
		{"weights cut off", false, cut("model.safetensors"), folder, format.ErrBroken},
		{"an index that is none", false, add(safetensors.IndexName, "{}"), folder, format.ErrBroken},
		{"no config.json", false, remove("config.json"), config, fs.ErrNotExist},
		{"no weights", false, remove("model.safetensors"), shard, fs.ErrNotExist},
	} {
		path := filepath.Join(t.TempDir(), "m")
		if x.gguf {
			tiny.GGUF(t, path, "llama", tiny.Options{})
		} else {
			tiny.HF(t, path, "llama", tiny.Options{})
		}
		if err := x.read(path); err != nil {
			t.Fatalf("%s: before the change: %v", x.name, err)
		}
		x.change(t, path)
		err := x.read(path)
		for _, kind := range []error{format.ErrBroken, format.ErrUnsupported, fs.ErrNotExist} {
			if errors.Is(err, kind) != (kind == x.want) {
				t.Errorf("%s: %v is %v: %v", x.name, err, kind, kind != x.want)
			}
		}
		if err != nil && strings.Contains(err.Error(), format.ErrBroken.Error()) {
			t.Errorf("%s: the kind is in the text: %v", x.name, err)
		}
	}
}

// TestError: the place comes before what is wrong, and both what is wrong and the
// kind are found.
func TestError(t *testing.T) {
	inner := errors.New("no good")
	err := error(&format.Error{Path: "a.gguf", Offset: 12, Kind: format.ErrBroken, Err: inner})
	if err.Error() != "a.gguf: offset 12: no good" || !errors.Is(err, inner) || !errors.Is(err, format.ErrBroken) ||
		errors.Is(err, format.ErrUnsupported) {
		t.Error(err)
	}
	if format.Broken(err) != err || format.Broken(nil) != nil {
		t.Error("an error of a kind is given another")
	}
	if err := format.Unsupportedf("x %d: %w", 3, inner); err.Error() != "x 3: no good" ||
		!errors.Is(err, format.ErrUnsupported) || !errors.Is(err, inner) {
		t.Error(err)
	}
}
