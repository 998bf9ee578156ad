package checkpoint_test

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/format/safetensors"
	"github.com/phaseconv/phaseconv/internal/tiny"
	"github.com/phaseconv/phaseconv/kernels/rope"
)

func open(t *testing.T, path string) *checkpoint.Checkpoint {
	t.Helper()
	c, err := checkpoint.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// fails opens path and checks that the error says everything asked for.
func fails(t *testing.T, path string, says ...string) {
	t.Helper()
	c, err := checkpoint.Open(path)
	if err == nil {
		c.Close()
		t.Errorf("%s opens, want an error about %q", path, says)
		return
	}
	for _, s := range append(says, filepath.Dir(path)) {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("error %q does not say %q", err, s)
		}
	}
}

func sameBits(a, b []float32) bool {
	return slices.EqualFunc(a, b, func(x, y float32) bool { return math.Float32bits(x) == math.Float32bits(y) })
}

// expected returns the graph values of a canonical tensor, experts stacked, in
// the dimension order of the container.
func expected(m *tiny.Model, name string, inGGUF bool) (out []float32) {
	for i := range m.Tensors {
		x := &m.Tensors[i]
		if x.GGUF != name {
			continue
		}
		if inGGUF {
			out = append(out, m.Stored(x)...)
		} else {
			out = append(out, m.Graph(x)...)
		}
	}
	return out
}

// TestContainers opens every family in both containers: each canonical tensor
// has the model's values bit by bit, however it is cut into reads.
func TestContainers(t *testing.T) {
	t.Parallel()
	for _, fam := range tiny.Families {
		for i, dt := range []string{"F32", "BF16", "F16"} {
			if i > 0 && fam != "gemma3_text" && fam != "mixtral" { // gains minus one, and stacked experts
				continue
			}
			m := tiny.New(t, fam, tiny.Options{Seed: 5, Bias: true, DType: dt, Shards: 1 + i, Untied: i == 1})
			dir := t.TempDir()
			m.HF(t, filepath.Join(dir, "hf"))
			m.GGUF(t, filepath.Join(dir, "m.gguf"))
			var shapes []string
			for _, path := range []string{filepath.Join(dir, "hf"), filepath.Join(dir, "m.gguf")} {
				c := open(t, path)
				inGGUF := c.Container == checkpoint.GGUF
				what := fmt.Sprintf("%s %s %s", fam, dt, c.Container)
				if len(c.Unknown) > 0 {
					t.Errorf("%s: unknown tensors %v", what, c.Unknown)
				}
				want := map[string]bool{}
				for _, x := range m.Tensors {
					want[x.GGUF] = true
				}
				var list []string
				for _, x := range c.Tensors() {
					list = append(list, fmt.Sprint(x.Name, x.Shape))
					if !want[x.Name] {
						t.Errorf("%s: tensor %s is not the model's", what, x.Name)
					}
					delete(want, x.Name)
					all, err := c.ReadAll(x)
					if err != nil {
						t.Fatal(err)
					}
					if !sameBits(all, expected(m, x.Name, inGGUF)) {
						t.Errorf("%s: %s has other values", what, x.Name)
					}
					if x.Elements() != len(all) || x.Rows()*x.Cols() != len(all) {
						t.Errorf("%s: %+v has %d values", what, x, len(all))
					}
					readParts(t, c, x, all)
				}
				for name := range want {
					t.Errorf("%s: tensor %s is missing", what, name)
				}
				slices.Sort(list)
				shapes = append(shapes, strings.Join(list, "\n"))
			}
			if shapes[0] != shapes[1] {
				t.Errorf("%s: the containers list other tensors:\n%s\n\n%s", fam, shapes[0], shapes[1])
			}
		}
	}
}

// readParts reads ranges of rows, across the borders between experts too.
func readParts(t *testing.T, c *checkpoint.Checkpoint, x *checkpoint.Tensor, all []float32) {
	t.Helper()
	rows, cols := x.Rows(), x.Cols()
	per := rows / len(x.Sources)
	for _, r := range [][2]int{{0, 0}, {0, 1}, {rows - 1, 1}, {rows, 0}, {rows / 3, rows / 2},
		{max(per-1, 0), min(2, rows)}, {per / 2, min(2*per, rows-per/2)}} {
		if r[0]+r[1] > rows {
			continue
		}
		// One number behind the range must stay.
		dst := make([]float32, r[1]*cols+1)
		dst[r[1]*cols] = 77
		if err := c.ReadRows(x, r[0], r[1], dst); err != nil {
			t.Fatal(err)
		}
		if !sameBits(dst[:r[1]*cols], all[r[0]*cols:(r[0]+r[1])*cols]) || dst[r[1]*cols] != 77 {
			t.Errorf("%s: rows [%d, %d) differ from the whole", x.Name, r[0], r[0]+r[1])
		}
	}
	const big = int(^uint(0) >> 1)
	for _, r := range [][2]int{{-1, 1}, {0, -1}, {0, rows + 1}, {rows, 1}, {1, big}, {big, 1}} {
		if err := c.ReadRows(x, r[0], r[1], make([]float32, rows*cols)); err == nil ||
			!strings.Contains(err.Error(), x.Name) {
			t.Errorf("%s: rows %v: %v", x.Name, r, err)
		}
	}
	if err := c.ReadRows(x, 0, rows, make([]float32, rows*cols-1)); err == nil {
		t.Errorf("%s: no error for a short buffer", x.Name)
	}
}

// TestConfigs: both containers describe the same model.
func TestConfigs(t *testing.T) {
	for _, fam := range tiny.Families {
		m := tiny.New(t, fam, tiny.Options{Layers: 3})
		dir := t.TempDir()
		m.HF(t, filepath.Join(dir, "hf"))
		m.GGUF(t, filepath.Join(dir, "m.gguf"))
		a, b := *open(t, filepath.Join(dir, "hf")).Config, *open(t, filepath.Join(dir, "m.gguf")).Config
		if a.Pairs != rope.Half || b.Pairs != b.Family.GGUFPairs {
			t.Errorf("%s: pairs %v and %v", fam, a.Pairs, b.Pairs)
		}
		if a.Family.GGUFArch != b.Family.GGUFArch || (a.Family != b.Family) != (fam == "mistral") {
			t.Errorf("%s: families %s and %s", fam, a.Family.Name, b.Family.Name) // a mistral GGUF is a llama
		}
		if math.Abs(a.NormEps-b.NormEps) > 1e-7*a.NormEps { // GGUF holds float32
			t.Errorf("%s: eps %g and %g", fam, a.NormEps, b.NormEps)
		}
		b.NormEps, b.Pairs, b.Family = a.NormEps, a.Pairs, a.Family
		for l := range b.Layers { // stock readers accept biases that this source cannot have
			b.Layers[l].Biases = a.Layers[l].Biases
		}
		if fmt.Sprintf("%+v", a) != fmt.Sprintf("%+v", b) {
			t.Errorf("%s:\n%+v\n%+v", fam, a, b)
		}
	}
}

// patch changes bytes of a tensor's data in a file of either container.
func patch(t *testing.T, file string, tensor string, at int64, b []byte) {
	t.Helper()
	var r *io.SectionReader
	if strings.HasSuffix(file, ".gguf") {
		f, err := gguf.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		x, ok := f.Tensor(tensor)
		if !ok {
			t.Fatalf("no tensor %s", tensor)
		}
		r = f.Reader(x)
	} else {
		f, err := safetensors.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		x, ok := f.Find(tensor)
		if !ok {
			t.Fatalf("no tensor %s", tensor)
		}
		r = f.Reader(x)
	}
	_, off, _ := r.Outer()
	h, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if _, err := h.WriteAt(b, off+at); err != nil {
		t.Fatal(err)
	}
}

// flip inverts one bit of a tensor's data.
func flip(t *testing.T, file, tensor string, at int64) {
	t.Helper()
	// Read the byte through the format's own reader, then write it changed.
	var b [1]byte
	if strings.HasSuffix(file, ".gguf") {
		f, err := gguf.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		x, _ := f.Tensor(tensor)
		f.Reader(x).ReadAt(b[:], at)
	} else {
		f, err := safetensors.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		x, _ := f.Find(tensor)
		f.Reader(x).ReadAt(b[:], at)
	}
	patch(t, file, tensor, at, []byte{b[0] ^ 1})
}

// TestNotFinite: NaN and infinities are refused by tensor, row and column, when
// they are read, and only then.
func TestNotFinite(t *testing.T) {
	dir := t.TempDir()
	m := tiny.New(t, "llama", tiny.Options{})
	m.HF(t, filepath.Join(dir, "hf"))
	m.GGUF(t, filepath.Join(dir, "m.gguf"))
	const canonical = "blk.1.ffn_up.weight"
	for _, bits := range [][]byte{{0, 0, 0x80, 0x7f}, {0, 0, 0x80, 0xff}, {1, 0, 0x80, 0x7f}, {0, 0, 0xc0, 0xff}} {
		for path, source := range map[string]string{"hf": "model.layers.1.mlp.up_proj.weight", "m.gguf": canonical} {
			file := filepath.Join(dir, path)
			if path == "hf" {
				file = filepath.Join(file, safetensors.SingleName)
			}
			patch(t, file, source, 4*(7*64+5), bits)
			c := open(t, filepath.Join(dir, path))
			x, _ := c.Find(canonical)
			_, err := c.ReadAll(x)
			if err == nil || !strings.Contains(err.Error(), source) || !strings.Contains(err.Error(), "row 7, column 5") {
				t.Errorf("%s, %x: %v", path, bits, err)
			}
			if err := c.ReadRows(x, 8, x.Rows()-8, make([]float32, x.Elements())); err != nil {
				t.Errorf("%s: the rows behind: %v", path, err)
			}
			if err := c.ReadRows(x, 6, 2, make([]float32, 2*x.Cols())); err == nil ||
				!strings.Contains(err.Error(), "row 7, column 5") {
				t.Errorf("%s: rows 6 and 7: %v", path, err)
			}
		}
	}
}

// rewrite copies a folder's weights with changes: edit may drop (nil) or replace
// a tensor's description; its data is cut or filled up with zeros.
func rewrite(t *testing.T, dir string, edit func(x safetensors.Tensor) []safetensors.Tensor) {
	t.Helper()
	path := filepath.Join(dir, safetensors.SingleName)
	f, err := safetensors.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var specs []safetensors.Tensor
	var from []*safetensors.Tensor
	for i := range f.Tensors {
		for _, x := range edit(f.Tensors[i]) {
			specs, from = append(specs, x), append(from, &f.Tensors[i])
		}
	}
	w, err := safetensors.Create(path, specs, f.Metadata)
	if err != nil {
		t.Fatal(err)
	}
	for i, x := range specs {
		n := int64(safetensors.ElementBytes(x.DType))
		if n == 0 {
			n = 1
		}
		for _, d := range x.Shape {
			n *= int64(d)
		}
		b, err := io.ReadAll(f.Reader(from[i]))
		if err != nil {
			t.Fatal(err)
		}
		b = append(b, make([]byte, n)...)[:n]
		if err := w.WriteTensor(x.Name, func(o io.Writer) error { _, err := o.Write(b); return err }); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
}

func keep(x safetensors.Tensor) []safetensors.Tensor { return []safetensors.Tensor{x} }

// TestBadFolders: what does not fit the configuration is named.
func TestBadFolders(t *testing.T) {
	const up = "model.layers.1.mlp.up_proj.weight"
	for _, c := range []struct {
		family string
		opts   tiny.Options
		edit   func(x safetensors.Tensor) []safetensors.Tensor
		says   []string // nil: it opens
	}{
		{"llama", tiny.Options{}, func(x safetensors.Tensor) []safetensors.Tensor {
			if x.Name == up {
				return nil
			}
			return keep(x)
		}, []string{up, "missing"}},
		{"llama", tiny.Options{}, func(x safetensors.Tensor) []safetensors.Tensor {
			if x.Name == up {
				x.Shape = []int{x.Shape[1], x.Shape[0]}
			}
			return keep(x)
		}, []string{up, "[64 96]", "[96 64]"}},
		{"llama", tiny.Options{}, func(x safetensors.Tensor) []safetensors.Tensor {
			if x.Name == up {
				x.Shape = []int{1, x.Shape[0], x.Shape[1]}
			}
			return keep(x)
		}, []string{up, "[1 96 64]"}},
		{"llama", tiny.Options{}, func(x safetensors.Tensor) []safetensors.Tensor {
			if x.Name == up {
				x.DType, x.Shape = "F8_E4M3", []int{96, 64}
			}
			return keep(x)
		}, []string{up, "F8_E4M3"}},
		{"llama", tiny.Options{Untied: true}, func(x safetensors.Tensor) []safetensors.Tensor {
			if x.Name == "lm_head.weight" {
				return nil
			}
			return keep(x)
		}, []string{"lm_head.weight", "tie_word_embeddings"}},
		{"qwen2", tiny.Options{}, func(x safetensors.Tensor) []safetensors.Tensor {
			if strings.HasSuffix(x.Name, "norm.weight") && x.Shape[0] == 64 {
				x.Shape = []int{63}
			}
			return keep(x)
		}, []string{"norm.weight", "[63]"}},
		{"mixtral", tiny.Options{}, func(x safetensors.Tensor) []safetensors.Tensor {
			if x.Name == "model.layers.1.block_sparse_moe.experts.3.w2.weight" {
				return nil
			}
			return keep(x)
		}, []string{"model.layers.1.block_sparse_moe.experts.3.w2.weight", "missing"}},
		{"mixtral", tiny.Options{}, func(x safetensors.Tensor) []safetensors.Tensor {
			if x.Name == "model.layers.0.block_sparse_moe.experts.2.w1.weight" {
				x.DType = "BF16"
			}
			return keep(x)
		}, []string{"model.layers.0.block_sparse_moe.experts.2.w1.weight", "alike"}},
		{"mixtral", tiny.Options{}, func(x safetensors.Tensor) []safetensors.Tensor {
			if x.Name == "model.layers.0.block_sparse_moe.experts.2.w1.weight" {
				x.Shape = []int{95, 64}
			}
			return keep(x)
		}, []string{"model.layers.0.block_sparse_moe.experts.2.w1.weight", "alike"}},
	} {
		dir := filepath.Join(t.TempDir(), "m")
		tiny.HF(t, dir, c.family, c.opts)
		rewrite(t, dir, c.edit)
		fails(t, dir, c.says...)
	}
}

// TestUnknown lists what the graph does not use, sorted, and does not mind its type.
func TestUnknown(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "m")
	tiny.HF(t, dir, "llama", tiny.Options{})
	rewrite(t, dir, func(x safetensors.Tensor) []safetensors.Tensor {
		if x.Name == "model.norm.weight" {
			return []safetensors.Tensor{x, {Name: "z.extra", DType: "I8", Shape: []int{3}},
				{Name: "model.layers.0.self_attn.rotary_emb.inv_freq", DType: "F32", Shape: []int{8}}}
		}
		return keep(x)
	})
	c := open(t, dir)
	if want := []string{"model.layers.0.self_attn.rotary_emb.inv_freq", "z.extra"}; !slices.Equal(c.Unknown, want) {
		t.Errorf("unknown %v, want %v", c.Unknown, want)
	}
	r, err := c.Raw("z.extra")
	if err != nil || r.Size() != 3 {
		t.Errorf("raw: %v", err)
	}
	if _, err := c.Raw("none"); err == nil || !strings.Contains(err.Error(), "none") {
		t.Errorf("raw of nothing: %v", err)
	}
}

// withTensor makes a small model with one more tensor; rename changes the names of the others.
func withTensor(t *testing.T, model string, rename func(string) string, more safetensors.Tensor) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "m")
	tiny.HF(t, dir, model, tiny.Options{})
	rewrite(t, dir, func(x safetensors.Tensor) []safetensors.Tensor {
		last := x.Name == "model.norm.weight"
		if x.Name = rename(x.Name); last {
			return []safetensors.Tensor{x, more}
		}
		return keep(x)
	})
	return dir
}

// TestUnknownRefused: a tensor that the reference would compute with, and the family's graph does not,
// is refused by its name whatever is to be done with the model: gates on the output of attention,
// sinks, biases that config.json denies, layers that it does not count.
func TestUnknownRefused(t *testing.T) {
	for name, hint := range map[string]string{
		"model.layers.0.self_attn.gate_proj.weight":     "leaves this tensor unused",
		"model.layers.1.self_attn.g_proj.weight":        "leaves this tensor unused",
		"model.layers.0.self_attn.sinks":                "leaves this tensor unused",
		"model.layers.0.self_attn.k_proj.bias":          "leaves this tensor unused",
		"model.layers.0.self_attn.bias":                 "leaves this tensor unused", // a mask has four dimensions
		"model.layers.2.mlp.up_proj.weight":             "num_hidden_layers of config.json counts 2 layers",
		"model.layers.0.self_attn.q_proj.weight_scale":  "quantised",
		"model.layers.0.self_attn.k_scale":              "quantised",
		"model.norm.bias":                               "leaves this tensor unused",
		"model.layers.0.self_attn.q_proj.lora_A.weight": "merge",
		"base_model.model.layers.0.lora_B.weight":       "merge",
		"lm_head.bias": "leaves this tensor unused",
	} {
		more := safetensors.Tensor{Name: name, DType: "F32", Shape: []int{64}}
		fails(t, withTensor(t, "llama", strings.Clone, more), name, "not part of the llama graph", hint)
	}
}

// TestUnknownHarmless: what published checkpoints carry and no graph uses stops nobody.
func TestUnknownHarmless(t *testing.T) {
	for _, more := range []safetensors.Tensor{
		{Name: "model.rotary_emb.inv_freq", DType: "F32", Shape: []int{8}},
		{Name: "model.layers.0.self_attn.rotary_emb.cos_cached", DType: "F32", Shape: []int{1, 1, 32, 16}},
		{Name: "model.layers.0.self_attn.core_attention._extra_state", DType: "U8", Shape: []int{5}},
		{Name: "model.layers.0.self_attn.bias", DType: "BOOL", Shape: []int{1, 1, 32, 32}},
		{Name: "model.layers.0.self_attn.masked_bias", DType: "F32", Shape: []int{}},
		{Name: "vision_tower.patch.weight", DType: "F32", Shape: []int{2, 3}},
		{Name: "mtp.layers.0.norm.weight", DType: "F32", Shape: []int{64}},
		{Name: "score.weight", DType: "F32", Shape: []int{2, 64}},
	} {
		c := open(t, withTensor(t, "llama", strings.Clone, more))
		if !slices.Equal(c.Unknown, []string{more.Name}) {
			t.Errorf("%s: unknown %v", more.Name, c.Unknown)
		}
	}
	bare := func(n string) string { return strings.TrimPrefix(n, "model.") }
	more := safetensors.Tensor{Name: "rotary_emb.inv_freq", DType: "F32", Shape: []int{8}}
	open(t, withTensor(t, "qwen2", bare, more))
	more.Name = "layers.0.self_attn.sinks"
	fails(t, withTensor(t, "qwen2", bare, more), more.Name, "not part of the qwen2 graph")
}

// headLike makes the head of a model its embedding; with change, not quite.
func headLike(change bool) func(name string, x []float32) {
	var embd []float32
	return func(name string, x []float32) {
		switch name {
		case "model.embed_tokens.weight":
			embd = x
		case "lm_head.weight":
			copy(x, embd)
			if change {
				x[len(x)-1] += 0.25
			}
		}
	}
}

// TestTiedHead: where the configuration ties the head to the embedding, a stored
// head that is the same is left alone, and one that differs in a single number is
// the model's head, as transformers 5 has it, with a note. Untied, it is read.
func TestTiedHead(t *testing.T) {
	for _, x := range []struct {
		what      string
		fam       string
		tied      bool
		edit      func(name string, x []float32)
		dtype     string
		own, note bool
	}{
		{"tied, other head", "qwen2", true, nil, "", true, true},
		{"tied, one number differs", "llama", true, headLike(true), "", true, true},
		{"tied, one number differs, BF16", "qwen3", true, headLike(true), "BF16", true, true},
		{"tied, same head", "llama", true, headLike(false), "", false, false},
		{"tied, same head, BF16", "gemma3_text", true, headLike(false), "BF16", false, false},
		{"tied, other head", "gemma3_text", true, nil, "", true, true},
		{"tied, other head", "olmoe", true, nil, "", true, true},
		{"untied, other head", "qwen2", false, nil, "", true, false},
		{"untied, same head", "llama", false, headLike(false), "", true, false},
	} {
		dir := filepath.Join(t.TempDir(), "m")
		m := tiny.New(t, x.fam, tiny.Options{Untied: true, DType: x.dtype, Shards: 2, Edit: x.edit,
			Config: map[string]any{"tie_word_embeddings": x.tied}})
		m.HF(t, dir)
		c := open(t, dir)
		h, own := c.Find("output.weight")
		unknown := slices.Contains(c.Unknown, "lm_head.weight")
		note := strings.Contains(strings.Join(c.Notes(), " "), "lm_head.weight is stored and differs")
		if own != x.own || unknown == x.own || c.Config.TiedEmbeddings == x.own || note != x.note {
			t.Errorf("%s, %s: own head %v, unknown %v, tied %v, notes %q", x.fam, x.what, own, c.Unknown,
				c.Config.TiedEmbeddings, c.Notes())
		}
		if !own {
			continue
		}
		if got, err := c.ReadAll(h); err != nil || !sameBits(got, m.Find("lm_head.weight").Values) {
			t.Errorf("%s, %s: the head has other numbers (%v)", x.fam, x.what, err)
		}
	}
	// What cannot be compared is refused, by name.
	for _, x := range []struct {
		edit safetensors.Tensor
		says string
	}{{safetensors.Tensor{DType: "I8", Shape: []int{272, 64}}, "I8"}, {safetensors.Tensor{DType: "F32", Shape: []int{1}}, "shape [1]"}} {
		dir := filepath.Join(t.TempDir(), "m")
		tiny.HF(t, dir, "qwen2", tiny.Options{Untied: true, Config: map[string]any{"tie_word_embeddings": true}})
		rewrite(t, dir, func(y safetensors.Tensor) []safetensors.Tensor {
			if y.Name == "lm_head.weight" {
				y.DType, y.Shape = x.edit.DType, x.edit.Shape
			}
			return keep(y)
		})
		fails(t, dir, "lm_head.weight", x.says)
	}
	// No head although the configuration unties it: a reader would make one up.
	dir := filepath.Join(t.TempDir(), "m")
	tiny.HF(t, dir, "qwen2", tiny.Options{Config: map[string]any{"tie_word_embeddings": false}})
	fails(t, dir, "lm_head.weight", "tie_word_embeddings")
	// A GGUF file says it by the tensor alone.
	for _, edit := range []func(string, []float32){nil, headLike(false), headLike(true)} {
		path := filepath.Join(t.TempDir(), "m.gguf")
		m := tiny.New(t, "qwen2", tiny.Options{Untied: true, Edit: edit})
		m.GGUF(t, path)
		c := open(t, path)
		h, ok := c.Find("output.weight")
		if !ok || c.Config.TiedEmbeddings {
			t.Fatal("the head of a GGUF file is not read")
		}
		if got, err := c.ReadAll(h); err != nil || !sameBits(got, m.Find("lm_head.weight").Values) {
			t.Errorf("the head has other numbers (%v)", err)
		}
	}
}

// TestDigests: stable over reopening and position of the folder, and sensitive to
// one bit; the attention digest only to queries and keys.
func TestDigests(t *testing.T) {
	m := tiny.New(t, "qwen2", tiny.Options{Shards: 2})
	root := t.TempDir()
	type digests struct{ source, attention string }
	read := func(path string) digests {
		c := open(t, path)
		s, err := c.Digest(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		a, err := c.AttentionDigest(t.Context(), false, nil)
		if err != nil {
			t.Fatal(err)
		}
		if len(s) != 64 || len(a) != 64 {
			t.Errorf("digests %q, %q", s, a)
		}
		return digests{s, a}
	}
	m.HF(t, filepath.Join(root, "a"))
	m.HF(t, filepath.Join(root, "b"))
	m.GGUF(t, filepath.Join(root, "a.gguf"))
	m.GGUF(t, filepath.Join(root, "b.gguf"))
	hf, gg := read(filepath.Join(root, "a")), read(filepath.Join(root, "a.gguf"))
	if hf != read(filepath.Join(root, "b")) || gg != read(filepath.Join(root, "b.gguf")) {
		t.Error("copies have other digests")
	}
	if hf.source == gg.source {
		t.Error("two containers, one source digest")
	}
	// qwen2 has the same pair layout, names and element type in both, so a sidecar
	// fits both.
	if hf.attention != gg.attention {
		t.Error("equal query and key tensors, two attention digests")
	}
	shard := func(name string) string {
		for i, x := range m.Tensors {
			if x.Name == name {
				return filepath.Join(root, "b", fmt.Sprintf("model-%05d-of-00002.safetensors", i%2+1))
			}
		}
		t.Fatal(name)
		return ""
	}
	for _, x := range []struct {
		hf, gguf  string
		attention bool
	}{
		{"model.layers.1.self_attn.q_proj.weight", "blk.1.attn_q.weight", true},
		{"model.layers.0.self_attn.k_proj.bias", "blk.0.attn_k.bias", true},
		{"model.layers.0.self_attn.v_proj.weight", "blk.0.attn_v.weight", false},
		{"model.layers.1.mlp.down_proj.weight", "blk.1.ffn_down.weight", false},
		{"model.norm.weight", "output_norm.weight", false},
	} {
		for _, in := range []struct {
			file, name string
			was        digests
			path       string
		}{{shard(x.hf), x.hf, hf, filepath.Join(root, "b")},
			{filepath.Join(root, "b.gguf"), x.gguf, gg, filepath.Join(root, "b.gguf")}} {
			for _, at := range []int64{0, 77} {
				flip(t, in.file, in.name, at)
				now := read(in.path)
				if now.source == in.was.source {
					t.Errorf("%s: bit %d flipped, the source digest stays", in.name, 8*at)
				}
				if (now.attention != in.was.attention) != x.attention {
					t.Errorf("%s: bit %d flipped, attention digest changes: %v", in.name, 8*at, now.attention != in.was.attention)
				}
				flip(t, in.file, in.name, at)
				if read(in.path) != in.was {
					t.Fatal("flipping back does not restore the digests")
				}
			}
		}
	}
	// config.json determines the numbers too.
	m.Options.Config = map[string]any{"rope_theta": 20000.0}
	m.HF(t, filepath.Join(root, "b"))
	if now := read(filepath.Join(root, "b")); now.source == hf.source || now.attention != hf.attention {
		t.Error("another rope_theta: source digest must change, attention digest must not")
	}
	// The digest of a single file is that of sha256sum.
	d, err := checkpoint.FileDigest(t.Context(), filepath.Join(root, "a.gguf"), nil)
	if err != nil || d != gg.source {
		t.Errorf("file digest %s, %v; source digest %s", d, err, gg.source)
	}
	// Digests of different shapes with the same bytes differ.
	x, y := tiny.New(t, "qwen3", tiny.Options{}), tiny.New(t, "qwen3", tiny.Options{})
	y.Tensors[1].Values[0]++
	x.HF(t, filepath.Join(root, "x"))
	y.HF(t, filepath.Join(root, "y"))
	if read(filepath.Join(root, "x")).attention == read(filepath.Join(root, "y")).attention {
		t.Errorf("%s differs, the attention digest does not", x.Tensors[1].Name)
	}
}

// TestUnchanged notices a file that was modified, replaced or removed since Open.
func TestUnchanged(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(file string) error{
		"longer": func(file string) error {
			h, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			defer h.Close()
			_, err = h.Write([]byte{0})
			return err
		},
		"touched": func(file string) error { return os.Chtimes(file, time.Now(), time.Now().Add(2*time.Second)) },
		"removed": os.Remove,
		"replaced": func(file string) error {
			if err := os.Rename(file, file+".old"); err != nil {
				return err
			}
			b, err := os.ReadFile(file + ".old")
			if err != nil {
				return err
			}
			if err := os.WriteFile(file, b, 0o600); err != nil {
				return err
			}
			return os.Chtimes(file, time.Now(), time.Now().Add(-time.Hour))
		},
	} {
		m := tiny.New(t, "qwen3", tiny.Options{Shards: 2, NoTokenizer: true})
		root := t.TempDir()
		for _, file := range []string{"m.gguf", "hf/config.json", "hf/model-00002-of-00002.safetensors"} {
			m.HF(t, filepath.Join(root, "hf"))
			m.GGUF(t, filepath.Join(root, "m.gguf"))
			path := filepath.Join(root, strings.Split(file, "/")[0])
			c := open(t, path)
			if err := c.Unchanged(); err != nil {
				t.Errorf("nothing changed: %v", err)
			}
			if err := change(filepath.Join(root, file)); err != nil {
				t.Fatal(err)
			}
			if err := c.Unchanged(); err == nil || !strings.Contains(err.Error(), filepath.Base(file)) {
				t.Errorf("%s %s: %v", file, name, err)
			}
			c.Close()
		}
	}
}

// TestView: edits act on the outermost dimension, whatever part is read, and
// Round on edited tensors only.
func TestView(t *testing.T) {
	m := tiny.New(t, "mixtral", tiny.Options{Layers: 1})
	dir := t.TempDir()
	m.HF(t, filepath.Join(dir, "hf"))
	m.GGUF(t, filepath.Join(dir, "m.gguf"))
	for _, path := range []string{"hf", "m.gguf"} {
		c := open(t, filepath.Join(dir, path))
		edits := checkpoint.Edits{}
		factor := func(n int, f func(i int) float32) []float32 {
			s := make([]float32, n)
			for i := range s {
				s[i] = f(i)
			}
			return s
		}
		// 1, 2 and 3 dimensions
		names := []string{"blk.0.attn_norm.weight", "blk.0.attn_k.weight", "blk.0.ffn_up_exps.weight"}
		for _, n := range names {
			x, ok := c.Find(n)
			if !ok {
				t.Fatal(n)
			}
			edits.Scale(n, "G3", factor(x.Shape[0], func(i int) float32 { return 1 + float32(i)/8 }))
			edits.Scale(n, "G4", factor(x.Shape[0], func(i int) float32 { return 2 })) // on top
		}
		if !slices.Equal(edits.Names(), []string{names[1], names[0], names[2]}) ||
			!slices.Equal(edits[names[0]].By, []string{"G3", "G4"}) {
			t.Errorf("edits %v by %v", edits.Names(), edits[names[0]].By)
		}
		rounded := 0
		v := checkpoint.NewEdited(c, edits)
		v.Round = func(_ *checkpoint.Tensor, x []float32) { rounded += len(x) }
		for _, x := range c.Tensors() {
			before, err := c.ReadAll(x)
			if err != nil {
				t.Fatal(err)
			}
			want := slices.Clone(before)
			if e := edits[x.Name]; e != nil {
				per := len(want) / x.Shape[0]
				for i := range want {
					want[i] *= e.Scale[i/per]
				}
			}
			rounded = 0
			for row := 0; row <= x.Rows(); row++ {
				for _, n := range []int{0, 1, 3, x.Rows()} {
					if row+n > x.Rows() || x.Rows() > 64 && row%7 != 0 {
						continue
					}
					got := make([]float32, n*x.Cols())
					if err := v.ReadRows(x, row, n, got); err != nil {
						t.Fatal(err)
					}
					if !sameBits(got, want[row*x.Cols():(row+n)*x.Cols()]) {
						t.Fatalf("%s %s: rows [%d, %d) are not the edited ones", path, x.Name, row, row+n)
					}
				}
			}
			if (rounded > 0) != (edits[x.Name] != nil) {
				t.Errorf("%s: %d values rounded", x.Name, rounded)
			}
			after, err := c.ReadAll(x)
			if err != nil || !sameBits(before, after) {
				t.Errorf("%s: the checkpoint itself changed", x.Name)
			}
		}
	}
}

// TestOpenRefuses what is no model.
func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	if _, err := checkpoint.Open(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
	fails(t, dir, "config.json")
	tiny.GGUF(t, filepath.Join(dir, "x.gguf"), "llama", tiny.Options{})
	fails(t, dir, "x.gguf") // the hint
	if err := os.WriteFile(filepath.Join(dir, "text"), []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	fails(t, filepath.Join(dir, "text"))
	hf := filepath.Join(dir, "hf")
	tiny.HF(t, hf, "llama", tiny.Options{Config: map[string]any{"model_type": "mamba"}})
	fails(t, hf, "mamba", "config.json")
	tiny.HF(t, hf, "llama", tiny.Options{Config: map[string]any{"quantization_config": map[string]any{"bits": 4}}})
	fails(t, hf, "quantization_config")
	tiny.HF(t, hf, "llama", tiny.Options{})
	if err := os.Remove(filepath.Join(hf, safetensors.SingleName)); err != nil {
		t.Fatal(err)
	}
	fails(t, hf, safetensors.SingleName)
}

// TestRopeFreqs: a GGUF file may carry frequency divisors; they become part of
// the configuration and of the tensors.
func TestRopeFreqs(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "m.gguf")
	for _, c := range []struct {
		family string
		dims   []int
		values []float32
		says   string // "" when it opens
	}{
		{"llama", []int{8}, []float32{1, 1, 2, 4, 8, 8, 8, 8}, ""},
		{"llama", []int{7}, []float32{1, 1, 2, 4, 8, 8, 8}, "rope_freqs.weight"},
		{"llama", []int{2, 4}, []float32{1, 1, 2, 4, 8, 8, 8, 8}, "rope_freqs.weight"},
		{"llama", []int{8}, []float32{1, 1, 2, 4, 0, 8, 8, 8}, "rope_freqs.weight"},
		{"llama", []int{8}, []float32{1, 1, 2, float32(math.NaN()), 1, 8, 8, 8}, "rope_freqs.weight"},
		{"llama", []int{8}, []float32{1, 1, 2, -1, 1, 8, 8, 8}, "rope_freqs.weight"},
		{"qwen2", []int{8}, []float32{1, 1, 2, 4, 8, 8, 8, 8}, "rope_freqs.weight"},
	} {
		tiny.GGUF(t, path, c.family, tiny.Options{})
		addTensor(t, path, gguf.TensorSpec{Name: "rope_freqs.weight", Type: gguf.TypeF32, Dims: c.dims}, c.values)
		if c.says != "" {
			fails(t, path, c.says)
			continue
		}
		ck := open(t, path)
		x, ok := ck.Find("rope_freqs.weight")
		r, _ := ck.Config.Ropes()
		if !ok || r.Scaling != rope.Divisor || len(r.Divisors) != 8 || r.Divisors[3] != 4 || len(ck.Unknown) != 0 {
			t.Fatalf("found %v, rope %+v, unknown %v", ok, r, ck.Unknown)
		}
		if got, err := ck.ReadAll(x); err != nil || !sameBits(got, c.values) {
			t.Errorf("%v, %v", got, err)
		}
	}
	// A scalar is one number too, which is what head_dim 2 needs.
	tiny.GGUF(t, path, "llama", tiny.Options{HeadDim: 2})
	addTensor(t, path, gguf.TensorSpec{Name: "rope_freqs.weight", Type: gguf.TypeF32}, []float32{1})
	if ck, err := checkpoint.Open(path); err == nil {
		x, _ := ck.Find("rope_freqs.weight")
		if got, err := ck.ReadAll(x); err != nil || len(got) != 1 {
			t.Errorf("%v, %v", got, err)
		}
		ck.Close()
	}
}

// addTensor rewrites a GGUF file with one tensor more.
func addTensor(t *testing.T, path string, spec gguf.TensorSpec, values []float32) {
	t.Helper()
	f, err := gguf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var specs []gguf.TensorSpec
	for i := range f.Tensors {
		specs = append(specs, f.Tensors[i].Spec())
	}
	w, err := gguf.Create(path, f.KVs, append(specs, spec))
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	for i := range f.Tensors {
		if err := w.CopyTensor(f, &f.Tensors[i]); err != nil {
			t.Fatal(err)
		}
	}
	b := make([]byte, 4*len(values))
	safetensors.Encode("F32", b, values)
	if err := w.WriteTensor(spec.Name, func(o io.Writer) error { _, err := o.Write(b); return err }); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
}

// TestConcurrent reads one checkpoint from several goroutines; run with -race.
func TestConcurrent(t *testing.T) {
	t.Parallel()
	m := tiny.New(t, "mixtral", tiny.Options{Layers: 1, Shards: 2})
	dir := t.TempDir()
	m.HF(t, filepath.Join(dir, "hf"))
	m.GGUF(t, filepath.Join(dir, "m.gguf"))
	for _, path := range []string{"hf", "m.gguf"} {
		c := open(t, filepath.Join(dir, path))
		done := make(chan error)
		for range 4 {
			go func() {
				for _, x := range c.Tensors() {
					all, err := c.ReadAll(x)
					if err == nil && !sameBits(all, expected(m, x.Name, c.Container == checkpoint.GGUF)) {
						err = fmt.Errorf("%s has other values", x.Name)
					}
					if err != nil {
						done <- err
						return
					}
				}
				done <- nil
			}()
		}
		for range 4 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}
}

// TestFirstUnreadable: of many tensors with an element type that cannot be read the
// error always names the same, and its file.
func TestFirstUnreadable(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "m")
	tiny.HF(t, dir, "llama", tiny.Options{})
	rewrite(t, dir, func(x safetensors.Tensor) []safetensors.Tensor {
		x.DType = "I8"
		return keep(x)
	})
	for range 10 {
		fails(t, dir, "tensor model.embed_tokens.weight has element type I8", safetensors.SingleName)
	}
}
