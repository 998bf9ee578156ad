package contract_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/internal/tiny"
	"github.com/phaseconv/phaseconv/kernels/rope"
	"github.com/phaseconv/phaseconv/rotations/sidecar"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/contract"
)

// checkNames are all checks, in order; the last two need the source.
var checkNames = []string{"manifest", "files", "no other files", "container", "model", "sidecar", "sidecar fits model",
	"weights digest", "manifest fits sidecar", "model marker", "source", "function preserved"}

// TestGood: what was just converted passes every check, in every family and both
// containers, and no check is left out.
func TestGood(t *testing.T) {
	for _, family := range tiny.Families {
		t.Run(family, func(t *testing.T) {
			r := recipe{family: family, tiny: tiny.Options{Seed: 1}}
			if family == "olmoe" {
				r.tiny.KVHeads = 4 // stock GGUF readers demand it
			}
			dir, src := artifact(t, r)
			for _, container := range []string{"gguf", "safetensors"} {
				v := checkSource(t, dir, container, src)
				var names []string
				for _, c := range v.Contract {
					names = append(names, c.Check)
				}
				if !v.OK || !reflect.DeepEqual(names, checkNames) {
					t.Errorf("%s: ok %v, checks %v, failed %v", container, v.OK, names, failed(v.Contract))
				}
			}
		})
	}
}

// put writes bytes over a file's, at the place where an equal text stands.
func put(t *testing.T, path, old, repl string) {
	t.Helper()
	b := read(t, path)
	if len(old) != len(repl) || !bytes.Contains(b, []byte(old)) {
		t.Fatalf("%s: %q cannot become %q", path, old, repl)
	}
	write(t, path, bytes.Replace(b, []byte(old), []byte(repl), 1))
}

// TestEveryCheckFails breaks an artifact in one place at a time. Later checks get
// a manifest that agrees with the broken files, as a tool that repacks a model
// would write it.
func TestEveryCheckFails(t *testing.T) {
	const gg, st = "gguf", "safetensors"
	base := recipe{family: "llama", tiny: tiny.Options{Seed: 1}}
	sibling := recipe{family: "llama", tiny: tiny.Options{Seed: 2}}
	deeper := recipe{family: "llama", tiny: tiny.Options{Seed: 1, Layers: 3}}
	model := func(dir string) string { return filepath.Join(dir, spec.GGUFModelName) }
	side := func(dir, container string) string {
		return filepath.Join(dir, map[string]string{gg: spec.GGUFSidecarName, st: spec.SafetensorsSidecarName}[container])
	}
	manifest := func(dir string) string { return filepath.Join(dir, spec.ManifestName) }
	steal := func(r recipe) func(t *testing.T, dir, c string) {
		return func(t *testing.T, dir, c string) {
			other, _ := artifact(t, r)
			write(t, side(dir, c), read(t, side(other, c)))
			record(t, dir)
		}
	}
	tests := []struct {
		name, check string
		breaks      func(t *testing.T, dir, container string)
		says        []string
	}{
		{"no manifest", "manifest", func(t *testing.T, dir, _ string) { os.Remove(manifest(dir)) },
			[]string{spec.ManifestName, "missing"}},
		{"manifest is a folder", "manifest", func(t *testing.T, dir, _ string) {
			os.Remove(manifest(dir))
			os.Mkdir(manifest(dir), 0o700)
		}, []string{spec.ManifestName, "not a regular file"}},
		{"manifest from the future", "manifest", func(t *testing.T, dir, _ string) {
			put(t, manifest(dir), `"version": 1`, `"version": 3`)
		}, []string{"version is 3", "versions 1 and 2"}},
		{"manifest of version 2 without groups", "manifest", func(t *testing.T, dir, _ string) {
			editManifest(t, dir, func(m *spec.Manifest) { m.Version = spec.VersionGroups })
		}, []string{"code.parts", "version 2"}},
		{"manifest of version 1 with groups", "manifest", func(t *testing.T, dir, _ string) {
			editManifest(t, dir, func(m *spec.Manifest) { m.Code.Parts, m.Code.GroupDim = "kv", 64 })
		}, []string{"code.parts", "version 1"}},
		{"manifest with a field of another version", "manifest", func(t *testing.T, dir, _ string) {
			put(t, manifest(dir), `"seed":`, `"sead":`)
		}, []string{"sead"}},
		{"manifest cut off", "manifest", func(t *testing.T, dir, _ string) { truncate(t, manifest(dir), 10) },
			[]string{spec.ManifestName}},
		{"manifest names a path", "manifest", func(t *testing.T, dir, _ string) {
			editManifest(t, dir, func(m *spec.Manifest) { m.Files[0].Name = "../" + m.Files[0].Name })
		}, []string{"key files", "../"}},

		{"model cut off", "files", func(t *testing.T, dir, _ string) { truncate(t, model(dir), 1) },
			[]string{spec.GGUFModelName, "bytes"}},
		{"model missing", "files", func(t *testing.T, dir, _ string) { os.Remove(model(dir)) },
			[]string{spec.GGUFModelName, "missing"}},
		{"tokenizer missing", "files", func(t *testing.T, dir, _ string) { os.Remove(filepath.Join(dir, "tokenizer.json")) },
			[]string{"tokenizer.json", "missing"}},
		{"a folder instead of a file", "files", func(t *testing.T, dir, c string) {
			os.Remove(side(dir, c))
			os.Mkdir(side(dir, c), 0o700)
		}, []string{"not a regular file"}},
		{"no files listed", "manifest", func(t *testing.T, dir, _ string) {
			editManifest(t, dir, func(m *spec.Manifest) { m.Files = []spec.File{} })
		}, []string{"key files"}},
		{"sidecar not listed", "files", func(t *testing.T, dir, c string) {
			editManifest(t, dir, func(m *spec.Manifest) {
				var keep []spec.File
				for _, f := range m.Files {
					if f.Name != filepath.Base(side(dir, c)) {
						keep = append(keep, f)
					}
				}
				m.Files = keep
			})
		}, []string{"does not list"}},

		{"another shard", "no other files", func(t *testing.T, dir, _ string) {
			write(t, filepath.Join(dir, "model-00002-of-00002.safetensors"), nil)
		}, []string{"model-00002-of-00002.safetensors"}},
		{"an index", "no other files", func(t *testing.T, dir, _ string) {
			write(t, filepath.Join(dir, "model.safetensors.index.json"), []byte("{}"))
		}, []string{"model.safetensors.index.json"}},
		{"an adapter", "no other files", func(t *testing.T, dir, _ string) {
			write(t, filepath.Join(dir, "adapter_config.json"), []byte("{}"))
		}, []string{"adapter_config.json"}},
		{"a folder of templates", "no other files", func(t *testing.T, dir, _ string) {
			os.Mkdir(filepath.Join(dir, "additional_chat_templates"), 0o700)
		}, []string{"additional_chat_templates"}},

		{"no such container", "container", func(t *testing.T, dir, c string) {
			editManifest(t, dir, func(m *spec.Manifest) {
				m.Artifacts = slices.DeleteFunc(m.Artifacts, func(a spec.Artifact) bool { return a.Container == c })
			})
		}, []string{"container"}},
		{"a container of a later version", "manifest", func(t *testing.T, dir, c string) {
			editManifest(t, dir, func(m *spec.Manifest) { m.Artifacts[0].Container = "onnx" })
		}, []string{"artifacts[0].container", "onnx"}},
		{"model outside of the folder", "manifest", func(t *testing.T, dir, c string) {
			editManifest(t, dir, func(m *spec.Manifest) {
				for i := range m.Artifacts {
					m.Artifacts[i].Model = "../src/config.json"
				}
			})
		}, []string{"../src/config.json"}},

		{"model without its last byte, recorded", "model", func(t *testing.T, dir, c string) {
			path := model(dir)
			if c == st {
				path = filepath.Join(dir, "model.safetensors")
			}
			// Alignment pads the end of a GGUF file, so one byte may not be missed.
			truncate(t, path, 64)
			record(t, dir)
		}, []string{"model."}},

		{"sidecar cut off, recorded", "sidecar", func(t *testing.T, dir, c string) {
			truncate(t, side(dir, c), 64)
			record(t, dir)
		}, []string{"phase"}},
		{"NaN in the sidecar", "sidecar", func(t *testing.T, dir, c string) {
			b := read(t, side(dir, c))
			binary.LittleEndian.PutUint32(b[len(b)-64:], math.Float32bits(float32(math.NaN())))
			write(t, side(dir, c), b)
			record(t, dir)
		}, []string{"tensor blk.1.k_code.1.", "finite"}},
		{"sidecar from the future", "sidecar", func(t *testing.T, dir, c string) {
			if c == st {
				put(t, side(dir, c), `"phaseconv.version":"1"`, `"phaseconv.version":"3"`)
			} else {
				editGGUF(t, side(dir, c), setKey(spec.KeyVersion, gguf.Value(spec.KeyVersion, uint32(3))), nil)
			}
			record(t, dir)
		}, []string{spec.KeyVersion + " is 3"}},
		{"sidecar with an unknown key", "sidecar", func(t *testing.T, dir, c string) {
			if c == st {
				put(t, side(dir, c), `"phaseconv.exceptions":"0"`, `"phaseconv.exclusions":"0"`)
			} else {
				editGGUF(t, side(dir, c), func(kvs []gguf.KV) []gguf.KV {
					return append(kvs,
						gguf.Value("phaseconv.values", "frame"))
				}, nil)
			}
			record(t, dir)
		}, []string{"phaseconv.", "version 1"}},
		{"basis before RoPE", "sidecar", func(t *testing.T, dir, c string) {
			if c == st {
				put(t, side(dir, c), `"post_rope"`, `"prev_rope"`)
			} else {
				editGGUF(t, side(dir, c), setKey(spec.KeyBasis, gguf.Value(spec.KeyBasis, "pre_rope")), nil)
			}
			record(t, dir)
		}, []string{spec.KeyBasis}},

		{"sidecar of a deeper sibling", "sidecar fits model", steal(deeper), []string{spec.KeyLayers, "3", "2"}},
		{"other pair layout", "sidecar fits model", func(t *testing.T, dir, c string) {
			editSidecar(t, side(dir, c), func(s *sidecar.Sidecar) {
				if s.Pairs == rope.Half {
					s.Pairs = rope.Interleaved
				} else {
					s.Pairs = rope.Half
				}
			})
			record(t, dir)
		}, []string{spec.KeyPairLayout}},
		{"sidecar of the other container", "sidecar fits model", func(t *testing.T, dir, c string) {
			other := map[string]string{gg: st, st: gg}[c]
			s, err := sidecar.Read(t.Context(), side(dir, other))
			if err != nil {
				t.Fatal(err)
			}
			editSidecar(t, side(dir, c), func(old *sidecar.Sidecar) { *old = *s })
			record(t, dir)
		}, []string{spec.KeyPairLayout}},
		{"other RoPE base", "sidecar fits model", func(t *testing.T, dir, c string) {
			editSidecar(t, side(dir, c),
				func(s *sidecar.Sidecar) { s.Rope = strings.Replace(s.Rope, `"theta":`, `"theta":1`, 1) })
			record(t, dir)
		}, []string{spec.KeyRope}},
		{"model with another RoPE base", "sidecar fits model", func(t *testing.T, dir, c string) {
			if c == gg {
				editGGUF(t, model(dir), setKey("llama.rope.freq_base", gguf.Value("llama.rope.freq_base", float32(12345))), nil)
			} else {
				b := string(read(t, filepath.Join(dir, "config.json")))
				i := strings.Index(b, `"rope_theta": `) + len(`"rope_theta": `)
				write(t, filepath.Join(dir, "config.json"), []byte(b[:i]+"9"+b[i:]))
			}
			record(t, dir)
		}, []string{spec.KeyRope}},

		{"sidecar of a sibling", "weights digest", steal(sibling), []string{spec.KeyWeightsSHA256, "other weights"}},
		{"a key weight changed", "weights digest", func(t *testing.T, dir, c string) {
			changeTensor(t, dir, c, "blk.1.attn_k.weight", "model.layers.1.self_attn.k_proj.weight")
			record(t, dir)
		}, []string{spec.KeyWeightsSHA256}},
		{"a query weight changed", "weights digest", func(t *testing.T, dir, c string) {
			changeTensor(t, dir, c, "blk.0.attn_q.weight", "model.layers.0.self_attn.q_proj.weight")
			record(t, dir)
		}, []string{spec.KeyWeightsSHA256}},

		{"no marker", "model marker", func(t *testing.T, dir, c string) {
			if c == gg {
				editGGUF(t, model(dir), dropKeys("general.phaseconv."), nil)
			} else {
				put(t, filepath.Join(dir, "config.json"), `"phaseconv": {`, `"pool_type": {`)
			}
			record(t, dir)
		}, []string{"phaseconv"}},
		{"marker from the future", "model marker", func(t *testing.T, dir, c string) {
			key := "general." + spec.KeyVersion
			if c == gg {
				editGGUF(t, model(dir), setKey(key, gguf.Value(key, uint32(2))), nil)
			} else {
				b := string(read(t, filepath.Join(dir, "config.json")))
				i := strings.LastIndex(b, `"version": 1`)
				write(t, filepath.Join(dir, "config.json"), []byte(b[:i]+`"version": 2`+b[i+len(`"version": 1`):]))
			}
			record(t, dir)
		}, []string{"version 2"}},
		{"marker of another source", "model marker", func(t *testing.T, dir, c string) {
			key := "general." + spec.KeySourceSHA256
			if c == gg {
				editGGUF(t, model(dir), setKey(key, gguf.Value(key, strings.Repeat("0a", 32))), nil)
			} else {
				m, err := contract.ReadManifest(dir)
				if err != nil {
					t.Fatal(err)
				}
				put(t, filepath.Join(dir, "config.json"), m.Source.SHA256, strings.Repeat("0a", 32))
			}
			record(t, dir)
		}, []string{"0a0a0a"}},
	}
	broken := map[string]bool{}
	for _, x := range tests {
		for _, container := range []string{gg, st} {
			t.Run(x.name+"/"+container, func(t *testing.T) {
				dir, _ := artifact(t, base)
				x.breaks(t, dir, container)
				wants(t, check(t, dir, container), x.check, x.says...)
			})
		}
		broken[x.check] = true
	}
	for key, edit := range map[string]func(m *spec.Manifest){
		"source.sha256":       func(m *spec.Manifest) { m.Source.SHA256 = strings.Repeat("0a", 32) },
		"code.kind":           func(m *spec.Manifest) { m.Code.Kind = "learned" },
		"code.bits":           func(m *spec.Manifest) { m.Code.Bits = 2 },
		"code.anchor":         func(m *spec.Manifest) { m.Code.Anchor++ },
		"code.sink":           func(m *spec.Manifest) { m.Code.Sink++ },
		"code.recent":         func(m *spec.Manifest) { m.Code.Recent++ },
		"calibration.sha256":  func(m *spec.Manifest) { m.Calibration.SHA256 = strings.Repeat("0a", 32) },
		"calibration.tokens":  func(m *spec.Manifest) { m.Calibration.Tokens++ },
		"calibration.context": func(m *spec.Manifest) { m.Calibration.Context++ },
		"tool":                func(m *spec.Manifest) { m.Tool = "another" },
		"weights_sha256":      func(m *spec.Manifest) { m.Artifacts[0].WeightsSHA256 = strings.Repeat("0a", 32) },
		"pair_layout":         func(m *spec.Manifest) { m.Artifacts[0].PairLayout = "half" },
		"model.family":        func(m *spec.Manifest) { m.Model.Family = "qwen2" },
		// the same GGUF architecture, with experts
		"model.family ":        func(m *spec.Manifest) { m.Model.Family = "mixtral" },
		"model.family  ":       func(m *spec.Manifest) { m.Model.Family = "gpt5" },
		"model.layers":         func(m *spec.Manifest) { m.Model.Layers++ },
		"model.n_heads":        func(m *spec.Manifest) { m.Model.Heads++ },
		"model.n_kv_heads":     func(m *spec.Manifest) { m.Model.KVHeads++ },
		"model.head_dim":       func(m *spec.Manifest) { m.Model.HeadDim++ },
		"model.hidden_size":    func(m *spec.Manifest) { m.Model.Hidden++ },
		"model.vocab_size":     func(m *spec.Manifest) { m.Model.Vocab++ },
		"model.context_length": func(m *spec.Manifest) { m.Model.Context++ },
		"model.experts":        func(m *spec.Manifest) { m.Model.Experts++ },
	} {
		t.Run(key, func(t *testing.T) {
			dir, _ := artifact(t, base)
			editManifest(t, dir, edit)
			wants(t, check(t, dir, gg), "manifest fits sidecar", "key "+strings.TrimSpace(key))
		})
		broken["manifest fits sidecar"] = true
	}
	// In a Hugging Face folder the families are told apart.
	t.Run("mistral for llama", func(t *testing.T) {
		dir, _ := artifact(t, base)
		editManifest(t, dir, func(m *spec.Manifest) { m.Model.Family = "mistral" })
		wants(t, check(t, dir, st), "manifest fits sidecar", "key model.family")
	})

	t.Run("source", func(t *testing.T) {
		dir, _ := artifact(t, base)
		_, other := artifact(t, sibling)
		for _, c := range []string{gg, st} {
			v := checkSource(t, dir, c, other)
			wants(t, v.Contract, "source", "SHA-256")
			if v.OK || v.Function != nil {
				t.Errorf("%s: OK %v with a function measured against another model: %v", c, v.OK, v.Function)
			}
		}
		broken["source"] = true
	})
	t.Run("function preserved", func(t *testing.T) {
		for _, c := range []string{gg, st} {
			dir, src := artifact(t, base)
			changeTensor(t, dir, c, "blk.1.ffn_down.weight", "model.layers.1.mlp.down_proj.weight")
			record(t, dir)
			v := checkSource(t, dir, c, src)
			wants(t, v.Contract, "function preserved", "KLD")
			if v.OK {
				t.Errorf("%s: OK", c)
			}
		}
		broken["function preserved"] = true
	})
	for _, n := range checkNames {
		if !broken[n] {
			t.Errorf("nothing breaks check %q", n)
		}
	}
}

// changeTensor turns the signs of one tensor (of elements of four bytes) in place.
func changeTensor(t *testing.T, dir, container, ggufName, hfName string) {
	t.Helper()
	turn := func(b []byte) []byte {
		for i := 3; i < len(b); i += 4 {
			b[i] ^= 0x80
		}
		return b
	}
	if container == "gguf" {
		editGGUF(t, filepath.Join(dir, spec.GGUFModelName), nil, func(s *gguf.TensorSpec, b []byte) []byte {
			if s.Name == ggufName {
				return turn(b)
			}
			return b
		})
		return
	}
	path := filepath.Join(dir, "model.safetensors")
	b := read(t, path)
	n := binary.LittleEndian.Uint64(b)
	var header map[string]json.RawMessage
	if err := json.Unmarshal(b[8:8+n], &header); err != nil {
		t.Fatal(err)
	}
	var x struct {
		Offsets [2]int `json:"data_offsets"`
	}
	if err := json.Unmarshal(header[hfName], &x); err != nil {
		t.Fatal(err)
	}
	turn(b[8+int(n)+x.Offsets[0] : 8+int(n)+x.Offsets[1]])
	write(t, path, b)
}

// TestHarmless: files that no loader reads may lie beside the others.
func TestHarmless(t *testing.T) {
	dir, _ := artifact(t, recipe{family: "llama", tiny: tiny.Options{Seed: 1}})
	write(t, filepath.Join(dir, "NOTES.md"), nil)
	write(t, filepath.Join(dir, "report.html"), nil)
	write(t, filepath.Join(dir, ".gitattributes"), nil)
	os.Mkdir(filepath.Join(dir, ".cache"), 0o700)
	if bad := failed(check(t, dir, "")); len(bad) > 0 {
		t.Error(bad)
	}
}

// TestLostWindow: a model whose sliding window was lost in repacking computes
// fluent text and something else. Only the comparison with its source shows it.
func TestLostWindow(t *testing.T) {
	// With embeddings this small a position's own token does not drown what
	// attention brings.
	quiet := func(name string, x []float32) {
		if strings.Contains(name, "embed_tokens") {
			for i := range x {
				x[i] *= 0.1
			}
		}
	}
	r := recipe{family: "gemma3_text", tiny: tiny.Options{Seed: 1, Window: 8, Edit: quiet}}
	dir, src := artifact(t, r)
	if v := checkSource(t, dir, "gguf", src); !v.OK {
		t.Fatalf("untouched: %v", failed(v.Contract))
	}
	const key = "gemma3.attention.sliding_window"
	editGGUF(t, filepath.Join(dir, spec.GGUFModelName), setKey(key, gguf.Value(key, uint32(200))), nil)
	record(t, dir)
	v := checkSource(t, dir, "gguf", src)
	wants(t, v.Contract, "function preserved", "KLD", "something else")
	if v.OK || v.Function == nil || v.Function.KLDMean < 1e-3 {
		t.Errorf("OK %v, function %+v", v.OK, v.Function)
	}
	if bad := failed(v.Contract); len(bad) != 1 {
		t.Errorf("failed: %v", bad)
	}
}

// TestFlippedBytes turns one bit at a sample of places in every file: all of the
// first and last 64 bytes, where headers and ends are, and places spread over the
// rest. Every one must be found.
func TestFlippedBytes(t *testing.T) {
	dir, _ := artifact(t, recipe{family: "llama", tiny: tiny.Options{Seed: 1}})
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		b := read(t, path)
		for _, at := range places(len(b), e.Name() == spec.ManifestName) {
			bad := bytes.Clone(b)
			bad[at] ^= 1 << (at % 8)
			write(t, path, bad)
			found := failed(check(t, dir, "gguf"))
			if len(found) == 0 {
				t.Errorf("%s: bit %d of byte %d (%.20q) turned, and every check passes", e.Name(), at%8, at, bad[max(0, at-10):])
			}
		}
		write(t, path, b)
	}
	if bad := failed(check(t, dir, "")); len(bad) > 0 {
		t.Errorf("put back: %v", bad)
	}
}

// places returns offsets to try in a file of n bytes.
func places(n int, dense bool) (out []int) {
	edge, middle := 12, 16
	if dense {
		edge, middle = 150, 200
	}
	for i := range min(edge, n) {
		out = append(out, i)
	}
	for i := range middle {
		out = append(out, i*n/middle)
	}
	for i := max(0, n-edge); i < n; i++ {
		out = append(out, i)
	}
	return out
}

func ExampleChecker() {
	c := &contract.Checker{}
	c.Add("files", nil, "2 files")
	c.Add("model", fmt.Errorf("tensor x is missing"), "")
	fmt.Println(c.OK(), c.Checks[1].Detail)
	// Output: false tensor x is missing
}

// TestNoFolder: a file of an artifact in its place is named as what it is.
func TestNoFolder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "model.gguf")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := contract.ReadManifest(path); err == nil || !strings.Contains(err.Error(), "name the artifact's folder") {
		t.Error(err)
	}
}
