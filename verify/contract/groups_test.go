package contract_test

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/convert"
	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/internal/keydata"
	"github.com/phaseconv/phaseconv/internal/tiny"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/rotations/sidecar"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/contract"
)

// regroup makes an artifact of version 2 of one of version 1: groups of keys and values of
// random codes, which is all that a contract looks at.
func regroup(t *testing.T, dir string) {
	t.Helper()
	var parts codec.Summary
	m, err := contract.ReadManifest(dir)
	if err != nil {
		t.Fatal(err)
	}
	var sums []string
	for _, e := range m.Artifacts {
		path := filepath.Join(dir, spec.GGUFModelName)
		if e.Container == "gguf" {
			editGGUF(t, path, setKey(spec.ModelPrefix+spec.KeyVersion,
				gguf.Value(spec.ModelPrefix+spec.KeyVersion, uint32(spec.VersionGroups))), nil)
		} else {
			path = dir
		}
		c, err := checkpoint.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		sum, err := c.AttentionDigest(t.Context(), true, nil)
		cfg := c.Config
		c.Close()
		if err != nil {
			t.Fatal(err)
		}
		sums = append(sums, sum)
		editSidecar(t, filepath.Join(dir, e.Sidecar), func(s *sidecar.Sidecar) {
			r := rand.New(rand.NewPCG(1, 1))
			s.Codes, s.HeadDim, s.WeightsSHA256 = nil, 0, sum
			for l := range cfg.Layers {
				y := sidecar.Layer{Heads: cfg.Layers[l].KVHeads, KeyDim: cfg.Layers[l].HeadDim, ValueDim: cfg.Layers[l].HeadDim}
				spans, err := codec.Spans(y.Heads, y.KeyDim, y.ValueDim, spec.DefaultGroupDim, true, true)
				if err != nil {
					t.Fatal(err)
				}
				for _, span := range spans {
					d := len(span) * y.KeyDim
					m := keydata.Normal(r, 16*d)
					code, err := codec.New(s.Kind, d, 16, keydata.Normal(r, d), m, slices.Clone(m))
					if err != nil {
						t.Fatal(err)
					}
					g, err := codec.NewGroup(code, span, y.KeyDim, y.ValueDim, nil)
					if err != nil {
						t.Fatal(err)
					}
					y.Groups = append(y.Groups, g)
				}
				s.Layers = append(s.Layers, y)
			}
			parts = codec.Summarize(s.Groups())
		})
	}
	marker := filepath.Join(dir, "config.json")
	before, mark, _ := strings.Cut(string(read(t, marker)), `"phaseconv"`)
	for _, x := range [][2]string{{`"version": 1`, `"version": 2`}, {`"bits": 1,`, fmt.Sprintf(`"bits": %v,`, parts.Bits)},
		{`"recent": 1`, fmt.Sprintf("\"recent\": 1,\n      \"parts\": %q,\n      \"group_dim\": %d", parts.Parts,
			parts.Dim)}} {
		if !strings.Contains(mark, x[0]) {
			t.Fatalf("no %s in %s", x[0], mark)
		}
		mark = strings.Replace(mark, x[0], x[1], 1)
	}
	write(t, marker, []byte(before+`"phaseconv"`+mark))
	editManifest(t, dir, func(m *spec.Manifest) {
		m.Version, m.Code.Parts, m.Code.GroupDim, m.Code.Bits = spec.VersionGroups, parts.Parts, parts.Dim, parts.Bits
		for i, sum := range sums {
			m.Artifacts[i].WeightsSHA256 = sum
		}
	})
	record(t, dir)
}

// TestGroups: an artifact with groups passes the checks of both containers, can be published
// and made again from its source; and it fails where its parts do not belong together.
func TestGroups(t *testing.T) {
	base := recipe{family: "llama", tiny: tiny.Options{Seed: 1}}
	dir, src := artifact(t, base)
	old := read(t, filepath.Join(dir, spec.GGUFSidecarName))
	regroup(t, dir)
	for _, container := range []string{"gguf", "safetensors"} {
		checks := check(t, dir, container)
		if bad := failed(checks); len(bad) > 0 || len(checks) != len(checkNames)-2 {
			t.Fatalf("%s: %v", container, bad)
		}
		if got := fmt.Sprint(checks); !strings.Contains(got, "version 2, complete") ||
			!strings.Contains(got, "as version 2 demands") {
			t.Errorf("%s: %s", container, got)
		}
	}
	published, again := filepath.Join(t.TempDir(), "p"), filepath.Join(t.TempDir(), "a")
	if _, err := convert.Export(t.Context(), dir, published, nil, func(string) {}); err != nil {
		t.Fatal(err)
	}
	checks, err := convert.CheckPublished(t.Context(), published, src, nil)
	if err != nil || len(failed(checks)) > 0 {
		t.Errorf("check: %v %v", failed(checks), err)
	}
	// Model files of version 2 differ in their marker alone, so apply makes the fixture's bytes.
	_, _, err = convert.Apply(t.Context(), convert.ApplyOptions{Dir: published, Base: src, Out: again})
	if err != nil {
		t.Errorf("apply: %v", err)
	}

	sidecarOf := func(edit func(s *sidecar.Sidecar)) func(dir string) {
		return func(dir string) {
			editSidecar(t, filepath.Join(dir, spec.GGUFSidecarName), edit)
			record(t, dir)
		}
	}
	for _, x := range []struct {
		name, check string
		breaks      func(dir string)
		says        string
	}{
		{"values changed", "weights digest", func(dir string) {
			editGGUF(t, filepath.Join(dir, spec.GGUFModelName), nil, func(s *gguf.TensorSpec, b []byte) []byte {
				if s.Name == "blk.1.attn_v.weight" {
					b[0] ^= 1
				}
				return b
			})
			record(t, dir)
		}, "other weights"},
		{"a layer less", "sidecar fits model", sidecarOf(func(s *sidecar.Sidecar) { s.Layers = s.Layers[1:] }),
			spec.KeyGroups},
		{"other values", "sidecar fits model", sidecarOf(func(s *sidecar.Sidecar) {
			s.Layers[0].Groups = nil // so that nothing but the number itself contradicts the model
			s.Layers[0].ValueDim++
		}), "layer 0"},
		{"fewer groups than told", "manifest fits sidecar", sidecarOf(func(s *sidecar.Sidecar) {
			s.Layers[0].Groups = keysOnly(t, s.Layers[0].Groups[0])
		}), "code."},
		{"sidecar of version 1", "manifest fits sidecar", func(dir string) {
			write(t, filepath.Join(dir, spec.GGUFSidecarName), old)
			record(t, dir)
		}, ""},
		{"marker of version 1", "model marker", func(dir string) {
			editGGUF(t, filepath.Join(dir, spec.GGUFModelName), setKey(spec.ModelPrefix+spec.KeyVersion,
				gguf.Value(spec.ModelPrefix+spec.KeyVersion, uint32(1))), nil)
			record(t, dir)
		}, "version 1"},
	} {
		dir, _ := artifact(t, base)
		regroup(t, dir)
		x.breaks(dir)
		wants(t, check(t, dir, "gguf"), x.check, x.says)
	}
}

// keysOnly returns the keys of a group's heads as a group.
func keysOnly(t *testing.T, g *codec.Group) []*codec.Group {
	t.Helper()
	parts := slices.DeleteFunc(slices.Clone(g.Parts), func(p codec.Part) bool { return p.Value })
	d := len(parts) * g.KeyDim
	m := keydata.Normal(rand.New(rand.NewPCG(2, 2)), 16*d)
	c, err := codec.New(g.Code.Kind, d, 16, make([]float32, d), m, slices.Clone(m))
	if err != nil {
		t.Fatal(err)
	}
	out, err := codec.NewGroup(c, parts, g.KeyDim, g.ValueDim, nil)
	if err != nil {
		t.Fatal(err)
	}
	return []*codec.Group{out}
}
