package sidecar

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/internal/keydata"
	"github.com/phaseconv/phaseconv/kernels/rope"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/spec"
)

// grouped returns a sidecar of version 2: a layer with keys and values together, one with
// two spans of values beside a group of keys, another shape and an encoder's gain, and one
// without any group.
func grouped(t testing.TB) *Sidecar {
	t.Helper()
	s := sidecar(t, 8)
	s.Codes, s.HeadDim = nil, 0
	r := rand.New(rand.NewPCG(7, 7))
	group := func(dk, dv, b int, gains []float32, parts ...string) *codec.Group {
		var list []codec.Part
		d := 0
		for _, text := range parts {
			p, err := codec.ParsePart(text)
			if err != nil {
				t.Fatal(err)
			}
			if d += dk; p.Value {
				d += dv - dk
			}
			list = append(list, p)
		}
		decode := keydata.Normal(r, b*d)
		c, err := codec.New("frame", d, b, keydata.Normal(r, d), decode, slices.Clone(decode))
		if err == nil && b == 8 {
			c, err = c.WithGain(1.5)
		}
		if err != nil {
			t.Fatal(err)
		}
		g, err := codec.NewGroup(c, list, dk, dv, gains)
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	s.Layers = []Layer{
		{2, 8, 6, []*codec.Group{group(8, 6, 24, []float32{1, 1.25, 2, 0.5}, "k0", "k1", "v0", "v1")}},
		{3, 4, 4, []*codec.Group{group(4, 4, 16, nil, "k0", "k1", "k2"), group(4, 4, 8, nil, "v0", "v1"),
			group(4, 4, 16, []float32{3}, "v2")}},
		{1, 8, 8, nil},
	}
	return s
}

func TestGroupsRoundTrip(t *testing.T) {
	s := grouped(t)
	for name, write := range containers {
		dir := t.TempDir()
		a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
		if err := write(s, a); err != nil {
			t.Fatal(err)
		}
		got, err := Read(t.Context(), a)
		if err != nil {
			t.Fatal(err)
		}
		same(t, name, got, s)
		if got.Version() != spec.VersionGroups {
			t.Errorf("%s: version %d", name, got.Version())
		}
		if err := write(got, b); err != nil {
			t.Fatal(err)
		}
		x, _ := os.ReadFile(a)
		y, _ := os.ReadFile(b)
		if !bytes.Equal(x, y) || len(x) == 0 {
			t.Errorf("%s: written again, the file differs", name)
		}
		there, err := s.To(t.Context(), rope.Interleaved)
		if err != nil {
			t.Fatal(err)
		}
		back, err := there.To(t.Context(), rope.Half)
		if err != nil {
			t.Fatal(err)
		}
		same(t, "there and back", back, s)
		if slices.Equal(there.Layers[0].Groups[0].Code.Decode, s.Layers[0].Groups[0].Code.Decode) ||
			!slices.Equal(there.Layers[1].Groups[1].Code.Decode, s.Layers[1].Groups[1].Code.Decode) {
			t.Error("in another pair layout keys move and values stay")
		}
	}
}

// TestGroupsNames: the keys and tensors of version 2.
func TestGroupsNames(t *testing.T) {
	s := grouped(t)
	var keys, names []string
	for _, kv := range s.keys() {
		keys = append(keys, kv.key)
	}
	if got := strings.Join(keys, " "); got != "phaseconv.version phaseconv.code phaseconv.groups phaseconv.anchor "+
		"phaseconv.sink phaseconv.recent phaseconv.basis phaseconv.pair_layout phaseconv.rope phaseconv.source.sha256 "+
		"phaseconv.weights.sha256 phaseconv.calibration.sha256 phaseconv.calibration.tokens "+
		"phaseconv.calibration.context phaseconv.tool" {
		t.Errorf("keys %s", got)
	}
	const want = `[{"heads":2,"head_dim":8,"value_dim":6,"groups":[["k0","k1","v0","v1"]]},` +
		`{"heads":3,"head_dim":4,"value_dim":4,"groups":[["k0","k1","k2"],["v0","v1"],["v2"]]},` +
		`{"heads":1,"head_dim":8,"value_dim":8,"groups":[]}]`
	if got := groupsText(s.Layers); got != want {
		t.Errorf("groups %s", got)
	}
	for _, p := range s.parts() {
		names = append(names, fmt.Sprint(p.name, p.shape))
	}
	if got := strings.Join(names, " "); got != "blk.0.kv_code.0.mean[28] blk.0.kv_code.0.decode[24 28] "+
		"blk.0.kv_code.0.encode[24 28] blk.0.kv_code.0.part_gain[4] "+
		"blk.1.kv_code.0.mean[12] blk.1.kv_code.0.decode[16 12] blk.1.kv_code.0.encode[16 12] "+
		"blk.1.kv_code.1.mean[8] blk.1.kv_code.1.decode[8 8] blk.1.kv_code.1.encode[8 8] blk.1.kv_code.1.gain[1] "+
		"blk.1.kv_code.2.mean[4] blk.1.kv_code.2.decode[16 4] blk.1.kv_code.2.encode[16 4] blk.1.kv_code.2.part_gain[1]" {
		t.Errorf("tensors %s", got)
	}
}

// TestGroupsRefuses: what version 2 does not define is refused by the name of the key or tensor.
func TestGroupsRefuses(t *testing.T) {
	fresh := func() *document {
		s := grouped(t)
		d := &document{arch: spec.Architecture, keys: s.keys(), parts: s.parts()}
		for i := range d.parts {
			d.parts[i].data = slices.Clone(d.parts[i].data)
		}
		return d
	}
	text := groupsText(grouped(t).Layers)
	type test struct {
		name string
		edit func(d *document)
		says []string
	}
	groups := func(old, repl string, says ...string) test {
		if !strings.Contains(text, old) {
			t.Fatalf("%q is not in %s", old, text)
		}
		return test{repl, func(d *document) { d.set(spec.KeyGroups, strings.Replace(text, old, repl, 1)) },
			append(says, spec.KeyGroups)}
	}
	key := func(k string, v any) test {
		return test{fmt.Sprintf("%s = %.20v", k, v), func(d *document) { d.set(k, v) }, []string{k}}
	}
	without := func(name string, says ...string) test {
		return test{"no " + name, func(d *document) {
			d.parts = slices.DeleteFunc(d.parts, func(p part) bool { return p.name == name })
		}, says}
	}
	tests := []test{
		{"version 1", func(d *document) { d.set(spec.KeyVersion, 1) }, []string{spec.KeyGroups, "version 1"}},
		key(spec.KeyVersion, 3), key(spec.KeyLayers, 3), key(spec.KeyHeads, 2), key(spec.KeyHeadDim, 8),
		key(spec.KeyExceptions, 0), key(spec.KeyGroups, ""), key(spec.KeyGroups, "[]"), key(spec.KeyGroups, "null"),
		key(spec.KeyGroups, "[["), key(spec.KeyGroups, strings.Repeat(" ", spec.MaxGroupsText+1)), key(spec.KeyGroups, 7),
		key("phaseconv.group_count", 1), key(spec.KeySink, spec.MaxSink+1), key(spec.KeyBasis, "pre_rope"),
		groups(`"heads":2`, `"heads":0`, "layer 0", "heads"), groups(`"heads":2`, `"heads":4097`, "heads"),
		groups(`"heads":2`, `"heads":2.5`), groups(`"heads":2`, `"heads":3`, "layer 0", "2 of 3"),
		groups(`"heads":2`, `"heads":1`, "layer 0"), groups(`"heads":2,`, ``, "heads"),
		groups(`"heads":2`, `"heads":2,"heads":2`), groups(`"heads":2`, `"kv_heads":2`),
		groups(`"head_dim":8`, `"head_dim":7`, "head_dim"), groups(`"head_dim":8`, `"head_dim":4098`, "head_dim"),
		groups(`"value_dim":6`, `"value_dim":0`, "value_dim"), groups(`"value_dim":6`, `"value_dim":4097`, "value_dim"),
		{"value_dim 7", groups(`"value_dim":6`, `"value_dim":7`).edit, []string{"blk.0.kv_code.0.decode", "30"}},
		groups(`"groups":[]`, `"groups":null`, "layer 2", "groups is missing"),
		groups(`"groups":[]`, `"groups":[[]]`, "layer 2", "no parts"),
		{"a group more", groups(`"groups":[]`, `"groups":[["k0"]]`).edit, []string{"blk.2.kv_code.0.decode"}},
		groups(`"k0","k1","v0"`, `"k1","k0","v0"`, "group 0"), groups(`"k0","k1","v0"`, `"k0","k0","v0"`, "k0", "twice"),
		groups(`["v2"]`, `["v3"]`, "layer 1", "v3"), groups(`["v2"]`, `["v1"]`, "layer 1", "v1"),
		groups(`["v2"]`, `["x2"]`, "layer 1", "x2"), groups(`["v2"]`, `["v02"]`, "v02"), groups(`["v2"]`, `[2]`),
		groups(`["v2"]`, `["v2"`+strings.Repeat(`,"v0"`, 600)+`]`, "layer 1", "2048"),
		{"a group less", groups(`,["v2"]`, ``).edit, []string{spec.KeyGroups, "2 of 3"}},
		{"a layer less", groups(`,{"heads":1,"head_dim":8,"value_dim":8,"groups":[]}`, ``).edit, nil}, // is no error
		without("blk.0.kv_code.0.mean", "blk.0.kv_code.0.mean"), without("blk.0.kv_code.0.decode", "blk.0.kv_code.0.decode"),
		without("blk.0.kv_code.0.encode", "blk.0.kv_code.0.decode", "encode matrix"),
		{"an extra tensor", func(d *document) { d.parts = append(d.parts, part{"extra", []int{1}, []float32{1}}) },
			[]string{`"extra"`}},
		{"of version 1", func(d *document) {
			d.parts = append(d.parts, part{TensorName(0, 0, "mean"), []int{8}, make([]float32, 8)})
		}, []string{TensorName(0, 0, "mean")}},
		{"of group 1", func(d *document) {
			d.parts = append(d.parts, part{GroupTensorName(0, 1, "mean"), []int{28}, make([]float32, 28)})
		}, []string{GroupTensorName(0, 1, "mean")}},
		{"NaN", func(d *document) { d.part("blk.1.kv_code.1.encode").data[3] = float32(math.NaN()) },
			[]string{"blk.1.kv_code.1.encode", "number 3"}},
		{"gain 0", func(d *document) { d.part("blk.1.kv_code.1.gain").data[0] = 0 }, []string{"blk.1.kv_code.1.gain"}},
		{"part gain 17", func(d *document) { d.part("blk.0.kv_code.0.part_gain").data[2] = 17 },
			[]string{spec.KeyGroups, "v0", "17"}},
		{"too few gains", func(d *document) {
			p := d.part("blk.0.kv_code.0.part_gain")
			p.shape, p.data = []int{3}, p.data[:3]
		}, []string{"blk.0.kv_code.0.part_gain"}},
	}
	for _, kv := range fresh().keys {
		tests = append(tests, test{"no " + kv.key, func(d *document) { d.drop(kv.key) }, []string{kv.key}})
	}
	for container := range containers {
		path := filepath.Join(t.TempDir(), "x")
		for _, x := range tests {
			d := fresh()
			x.edit(d)
			d.write(t, container, path)
			_, err := Read(t.Context(), path)
			if (err == nil) != (x.says == nil) {
				t.Errorf("%s, %s: error %v", container, x.name, err)
				continue
			}
			for _, says := range x.says {
				if !strings.Contains(err.Error(), says) {
					t.Errorf("%s, %s: %.300v, want %q", container, x.name, err, says)
				}
			}
		}
	}
}

// TestGroupsCheck: no file is written that readers would refuse.
func TestGroupsCheck(t *testing.T) {
	for name, edit := range map[string]func(s *Sidecar){
		"codes too":     func(s *Sidecar) { s.Codes = sidecar(t, 8).Codes },
		"exceptions":    func(s *Sidecar) { s.Exceptions = 1 },
		"no layers":     func(s *Sidecar) { s.Layers = s.Layers[:0] },
		"a head more":   func(s *Sidecar) { s.Layers[0].Heads++ },
		"another shape": func(s *Sidecar) { s.Layers[1].ValueDim = 6 },
		"odd head_dim":  func(s *Sidecar) { s.Layers[2].KeyDim = 7 },
	} {
		s := grouped(t)
		edit(s)
		path := filepath.Join(t.TempDir(), "x")
		for container, write := range containers {
			if err := write(s, path); err == nil {
				t.Errorf("%s: written to %s", name, container)
			}
		}
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%s: a file is there", name)
		}
	}
}

// TestGroupsCompare: groups that differ are told by layer and group, in one pair layout or two.
func TestGroupsCompare(t *testing.T) {
	a, b := grouped(t), grouped(t)
	moved, err := b.To(t.Context(), rope.Interleaved)
	if err != nil {
		t.Fatal(err)
	}
	moved.Pairs = rope.Interleaved
	d, err := Compare(t.Context(), a, moved, nil, nil)
	if err != nil || len(d.Groups) != 0 || len(d.Keys) != 1 || d.Keys[0].Key != spec.KeyPairLayout {
		t.Errorf("%+v, %v", d, err)
	}
	b.Layers[1].Groups[2].Gains[0] = 2
	b.Layers[0].Groups[0].Code.Decode[7]++
	d, err = Compare(t.Context(), a, b, nil, nil)
	if err != nil || d.Equal || len(d.Groups) != 2 || len(d.Keys) != 0 {
		t.Fatalf("%+v, %v", d, err)
	}
	x, y := d.Groups[0], d.Groups[1]
	if x.Layer != 0 || x.Group != 0 || fmt.Sprint(x.Parts) != "[k0 k1 v0 v1]" ||
		!(*x.Decode > 0) || *x.Mean != 0 || *x.PartGains != 0 {
		t.Errorf("%+v", x)
	}
	if y.Layer != 1 || y.Group != 2 || *y.Decode != 0 || !(math.Abs(*y.PartGains-1./3) < 1e-6) {
		t.Errorf("%+v", y)
	}
	// Of two versions, keys tell what there is.
	d, err = Compare(t.Context(), a, sidecar(t, 8), nil, nil)
	if err != nil || d.Equal {
		t.Fatalf("%+v, %v", d, err)
	}
	var keys []string
	for _, k := range d.Keys {
		keys = append(keys, k.Key+" "+k.A+" "+k.B)
	}
	for _, want := range []string{spec.KeyVersion + " 2 1", spec.KeyHeads + " - 2", spec.KeyExceptions + " - 0",
		spec.KeyGroups + " [{"} {
		if !strings.Contains(strings.Join(keys, "\n"), want) {
			t.Errorf("no %q in %q", want, keys)
		}
	}
}
