package sidecar

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/format/safetensors"
	"github.com/phaseconv/phaseconv/internal/keydata"
	"github.com/phaseconv/phaseconv/kernels/linalg"
	"github.com/phaseconv/phaseconv/kernels/rope"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/spec"
)

// sidecar returns one with two layers of two heads: codes with and without an
// encode matrix, of different sizes.
func sidecar(t testing.TB, d int) *Sidecar {
	t.Helper()
	r := rand.New(rand.NewPCG(1, uint64(d)))
	text, err := RopeText(rope.Params{Theta: 10000, Dim: d}, rope.Params{Theta: 500, Dim: d})
	if err != nil {
		t.Fatal(err)
	}
	s := &Sidecar{Kind: "frame", HeadDim: d, Anchor: 64, Sink: 4, Recent: 9, Pairs: rope.Half, Rope: text,
		SourceSHA256: strings.Repeat("0a", 32), WeightsSHA256: strings.Repeat("1b", 32),
		Calibration: Calibration{strings.Repeat("2c", 32), 6000, 512}, Tool: "phaseconv test"}
	for layer := range 2 {
		var row []*codec.Code
		for head := range 2 {
			var c *codec.Code
			var err error
			if head == 0 {
				c, err = codec.DataFree("srht", d, 1, layer, head)
			} else {
				m := keydata.Normal(r, 3*d*8)
				c, err = codec.New("frame", d, 24, keydata.Normal(r, d), m[:24*d], m[:24*d])
			}
			if err != nil {
				t.Fatal(err)
			}
			c.Mean = keydata.Normal(r, d)
			row = append(row, c)
		}
		s.Codes = append(s.Codes, row)
	}
	return s
}

var containers = map[string]func(s *Sidecar, path string) error{
	"gguf":        (*Sidecar).WriteGGUF,
	"safetensors": (*Sidecar).WriteSafetensors,
}

func bitsOf(x []float32) []uint32 {
	out := make([]uint32, len(x))
	for i, v := range x {
		out[i] = math.Float32bits(v)
	}
	return out
}

// same compares everything a sidecar holds, numbers by their bits.
func same(t *testing.T, what string, a, b *Sidecar) {
	t.Helper()
	x, y := *a, *b
	x.Codes, y.Codes, x.Layers, y.Layers = nil, nil, nil, nil
	sameLayers(t, what, a.Layers, b.Layers)
	if !reflect.DeepEqual(x, y) {
		t.Errorf("%s: %+v, want %+v", what, x, y)
	}
	if len(a.Codes) != len(b.Codes) {
		t.Fatalf("%s: %d layers, want %d", what, len(a.Codes), len(b.Codes))
	}
	for l := range a.Codes {
		if len(a.Codes[l]) != len(b.Codes[l]) {
			t.Fatalf("%s: layer %d has %d heads, want %d", what, l, len(a.Codes[l]), len(b.Codes[l]))
		}
		for h, c := range a.Codes[l] {
			if !sameCode(c, b.Codes[l][h]) {
				t.Errorf("%s: code of layer %d, head %d differs", what, l, h)
			}
		}
	}
}

func sameCode(c, w *codec.Code) bool {
	return c.D == w.D && c.B == w.B && c.Gain == w.Gain && slices.Equal(bitsOf(c.Mean), bitsOf(w.Mean)) &&
		slices.Equal(bitsOf(c.Decode), bitsOf(w.Decode)) &&
		(c.Encode == nil) == (w.Encode == nil) && slices.Equal(bitsOf(c.Encode), bitsOf(w.Encode))
}

func sameLayers(t *testing.T, what string, a, b []Layer) {
	t.Helper()
	if len(a) != len(b) || (a == nil) != (b == nil) {
		t.Fatalf("%s: groups of %d layers, want %d", what, len(a), len(b))
	}
	for l, y := range a {
		z := b[l]
		if y.Heads != z.Heads || y.KeyDim != z.KeyDim || y.ValueDim != z.ValueDim || len(y.Groups) != len(z.Groups) {
			t.Fatalf("%s: layer %d is %+v, want %+v", what, l, y, z)
		}
		for i, g := range y.Groups {
			w := z.Groups[i]
			if !slices.Equal(g.Parts, w.Parts) || !slices.Equal(bitsOf(g.Gains), bitsOf(w.Gains)) || !sameCode(g.Code, w.Code) {
				t.Errorf("%s: layer %d, group %d differs", what, l, i)
			}
		}
	}
}

func TestSidecarRoundTrip(t *testing.T) {
	for name, write := range containers {
		for _, d := range []int{16, 64} {
			s := sidecar(t, d)
			s.Codes[0][0].Mean[1] = float32(math.Copysign(0, -1)) // kept as it is
			s.Codes[0][0].Mean[2] = math.SmallestNonzeroFloat32
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
			if err := write(got, b); err != nil {
				t.Fatal(err)
			}
			x, _ := os.ReadFile(a)
			y, _ := os.ReadFile(b)
			if !bytes.Equal(x, y) || len(x) == 0 {
				t.Errorf("%s: written again, the file differs", name)
			}
			// A code that was read encodes as the one that was written.
			k := keydata.Normal(rand.New(rand.NewPCG(2, 2)), d)
			w1, w2 := make([]uint32, 1), make([]uint32, 1)
			if a1, a2 := s.Codes[1][1].EncodeKey(k, w1), got.Codes[1][1].EncodeKey(k, w2); a1 != a2 || w1[0] != w2[0] {
				t.Errorf("%s: encodes otherwise", name)
			}
		}
	}
}

// TestVersion1Bytes: files with codes per head are the bytes that they were before there were
// groups.
func TestVersion1Bytes(t *testing.T) {
	for name, want := range map[string]string{
		"gguf":        "24c123348c25ad2cb1da52b5fc0455d86578c5a858a5427ab4c7a85e044e5530",
		"safetensors": "5fa08fa8afcb78cef8e7ec9d96e7ac2c7634dc3e6dbd02edce2f44052c5b7e64",
	} {
		s, path := sidecar(t, 64), filepath.Join(t.TempDir(), "x")
		s.Codes[1][1].Gain = 1.5
		if err := containers[name](s, path); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(path)
		if got := fmt.Sprintf("%x", sha256.Sum256(b)); err != nil || got != want {
			t.Errorf("%s: SHA-256 %s, want %s (%v)", name, got, want, err)
		}
	}
}

// TestSidecarNames: both containers have the keys and tensors that package spec names.
func TestSidecarNames(t *testing.T) {
	dir := t.TempDir()
	s := sidecar(t, 16)
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	if err := s.WriteGGUF(a); err != nil {
		t.Fatal(err)
	}
	if err := s.WriteSafetensors(b); err != nil {
		t.Fatal(err)
	}
	g, err := gguf.Open(a)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	f, err := safetensors.Open(b)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	keys := []string{"phaseconv.version", "phaseconv.code", "phaseconv.layers", "phaseconv.head_count",
		"phaseconv.head_dim", "phaseconv.anchor", "phaseconv.sink", "phaseconv.recent",
		"phaseconv.exceptions", "phaseconv.basis", "phaseconv.pair_layout", "phaseconv.rope", "phaseconv.source.sha256",
		"phaseconv.weights.sha256", "phaseconv.calibration.sha256",
		"phaseconv.calibration.tokens", "phaseconv.calibration.context", "phaseconv.tool"}
	for _, k := range keys {
		kv, ok := g.KV(k)
		v, ok2 := f.Metadata[k]
		if !ok || !ok2 || fmt.Sprint(kv.Value()) != v {
			t.Errorf("key %s: %v in GGUF, %q in safetensors", k, kv.Value(), v)
		}
	}
	if len(g.KVs) != len(keys)+2 || len(f.Metadata) != len(keys)+1 {
		t.Errorf("%d keys in GGUF, %d in safetensors", len(g.KVs), len(f.Metadata))
	}
	if arch, _ := g.String("general.architecture"); arch != "phaseconv" {
		t.Errorf("architecture %q", arch)
	}
	want := []string{"blk.0.k_code.0.mean", "blk.0.k_code.0.decode", "blk.0.k_code.1.mean", "blk.0.k_code.1.decode",
		"blk.0.k_code.1.encode",
		"blk.1.k_code.0.mean", "blk.1.k_code.0.decode", "blk.1.k_code.1.mean", "blk.1.k_code.1.decode",
		"blk.1.k_code.1.encode"}
	if got := (ggufSidecar{g}).names(); !slices.Equal(got, want) {
		t.Errorf("GGUF tensors %v", got)
	}
	if got := (stSidecar{f}).names(); !slices.Equal(got, want) {
		t.Errorf("safetensors tensors %v", got)
	}
	for _, n := range want {
		x, _ := ggufSidecar{g}.shape(n)
		y, _ := stSidecar{f}.shape(n)
		if !slices.Equal(x, y) {
			t.Errorf("%s: shape %v and %v", n, x, y)
		}
	}
}

// TestSidecarTo: another pair layout moves dimensions; moved back, everything is
// as it was, and a moved code gives moved keys and queries the same score.
func TestSidecarTo(t *testing.T) {
	const d = 16
	s := sidecar(t, d)
	there, err := s.To(t.Context(), rope.Interleaved)
	if err != nil {
		t.Fatal(err)
	}
	if there.Pairs != rope.Interleaved || s.Pairs != rope.Half {
		t.Errorf("pairs %v, of the original %v", there.Pairs, s.Pairs)
	}
	back, err := there.To(t.Context(), rope.Half)
	if err != nil {
		t.Fatal(err)
	}
	same(t, "there and back", back, s)
	none, err := s.To(t.Context(), rope.Half)
	if err != nil {
		t.Fatal(err)
	}
	same(t, "nowhere", none, s)

	r := rand.New(rand.NewPCG(3, 3))
	move := func(x []float32) []float32 { // (p, p+d/2) to (2p, 2p+1)
		out := make([]float32, d)
		for i, v := range x {
			out[i%(d/2)*2+i/(d/2)] = v
		}
		return out
	}
	moved, differ := false, 0
	for l := range s.Codes {
		for h, c := range s.Codes[l] {
			m := there.Codes[l][h]
			moved = moved || !slices.Equal(c.Decode, m.Decode)
			for range 20 {
				k, q := keydata.Normal(r, d), keydata.Normal(r, d)
				w1, w2 := make([]uint32, c.Words()), make([]uint32, c.Words())
				h1, h2 := make([]float32, d), make([]float32, d)
				a1, a2 := c.EncodeKey(k, w1), m.EncodeKey(move(k), w2)
				c.DecodeKey(h1, w1, a1)
				m.DecodeKey(h2, w2, a2)
				s1, s2 := linalg.Dot64(q, h1), linalg.Dot64(move(q), h2)
				// Projections are summed in another order, so a sign near zero or a
				// scale may turn; that moves the score by little.
				tol := 1e-3 * math.Sqrt(linalg.Dot64(q, q)*linalg.Dot64(k, k))
				if math.Abs(s1-s2) > tol {
					t.Errorf("layer %d, head %d: scores %g and %g", l, h, s1, s2)
				}
				// The check can fail: the query must move too.
				if math.Abs(s1-linalg.Dot64(q, h2)) > tol {
					differ++
				}
			}
		}
	}
	if !moved || differ < 60 {
		t.Errorf("moved: %v; %d of 80 scores differ when the query stays", moved, differ)
	}
}

// document is a sidecar in the making: what a test wants to be wrong in it.
type document struct {
	arch  string
	keys  []keyValue
	parts []part
}

func (d *document) set(key string, v any) {
	for i := range d.keys {
		if d.keys[i].key == key {
			d.keys[i].value = v
			return
		}
	}
	d.keys = append(d.keys, keyValue{key, v})
}

func (d *document) drop(key string) {
	d.keys = slices.DeleteFunc(d.keys, func(k keyValue) bool { return k.key == key })
}

func (d *document) part(name string) *part {
	for i := range d.parts {
		if d.parts[i].name == name {
			return &d.parts[i]
		}
	}
	panic(name)
}

// write writes the document; in GGUF a part of type f16 is F16.
func (d *document) write(t testing.TB, container, path string) {
	t.Helper()
	if container == "gguf" {
		kvs := []gguf.KV{gguf.Value("general.architecture", d.arch)}
		for _, kv := range d.keys {
			switch v := kv.value.(type) {
			case int:
				if v < 0 {
					kvs = append(kvs, gguf.Value(kv.key, int64(v)))
				} else {
					kvs = append(kvs, gguf.Value(kv.key, uint64(v)))
				}
			case string:
				kvs = append(kvs, gguf.Value(kv.key, v))
			case float64:
				kvs = append(kvs, gguf.Value(kv.key, v))
			}
		}
		var specs []gguf.TensorSpec
		for _, p := range d.parts {
			dims := slices.Clone(p.shape)
			slices.Reverse(dims)
			specs = append(specs, gguf.TensorSpec{Name: p.name, Type: gguf.TypeF32, Dims: dims})
		}
		w, err := gguf.Create(path, kvs, specs)
		if err != nil {
			t.Fatal(err)
		}
		if err := writeParts(w, d.parts); err != nil {
			t.Fatal(err)
		}
		return
	}
	meta := map[string]string{}
	for _, kv := range d.keys {
		meta[kv.key] = fmt.Sprint(kv.value)
	}
	var specs []safetensors.Tensor
	for _, p := range d.parts {
		specs = append(specs, safetensors.Tensor{Name: p.name, DType: "F32", Shape: p.shape})
	}
	w, err := safetensors.Create(path, specs, meta)
	if err != nil {
		t.Fatal(err)
	}
	if err := writeParts(w, d.parts); err != nil {
		t.Fatal(err)
	}
}

func newDocument(t testing.TB) *document {
	s := sidecar(t, 16)
	d := &document{arch: spec.Architecture, keys: s.keys(), parts: s.parts()}
	for i := range d.parts { // so that a test may change numbers
		d.parts[i].data = slices.Clone(d.parts[i].data)
	}
	return d
}

// TestSidecarRefuses: whatever version 1 does not define is refused by the name
// of the key or tensor, in both containers.
func TestSidecarRefuses(t *testing.T) {
	type test struct {
		name string
		edit func(d *document)
		says []string
	}
	key := func(k string, v any) test {
		return test{fmt.Sprintf("%s = %.20v", k, v), func(d *document) { d.set(k, v) }, []string{k}}
	}
	tests := []test{
		key(spec.KeyVersion, 0), key(spec.KeyVersion, 3), key(spec.KeyVersion, "one"), key(spec.KeyVersion, -1),
		key(spec.KeyVersion, 1.5), key(spec.KeyVersion, 1<<40),
		key(spec.KeyBasis, "pre_rope"), key(spec.KeyBasis, ""), key(spec.KeyBasis, "POST_ROPE"),
		key(spec.KeyExceptions, 9), key(spec.KeyExceptions, 129), key(spec.KeyExceptions, "0x0"),
		key(spec.KeyPairLayout, "neox"), key(spec.KeyPairLayout, ""),
		key(spec.KeyLayers, 0), key(spec.KeyLayers, spec.MaxLayers+1), key(spec.KeyLayers, -1), key(spec.KeyLayers, 1<<33),
		key(spec.KeyHeads, 0), key(spec.KeyHeads, spec.MaxHeads+1),
		key(spec.KeyHeadDim, 0), key(spec.KeyHeadDim, 1), key(spec.KeyHeadDim, 15), key(spec.KeyHeadDim, spec.MaxHeadDim+2),
		key(spec.KeyAnchor, spec.MaxAnchor+1), key(spec.KeySink, spec.MaxSink+1), key(spec.KeyRecent, spec.MaxRecent+1),
		key(spec.KeyAnchor, -1), key(spec.KeySink, "many"),
		key(spec.KeyCalibrationTokens, 1<<31), key(spec.KeyCalibrationContext, "512 "),
		{"more layers than tensors", func(d *document) { d.set(spec.KeyLayers, 4000); d.set(spec.KeyHeads, 4000) },
			[]string{spec.KeyLayers, "10 tensors"}},
		{"a layer more", func(d *document) { d.set(spec.KeyLayers, 3) }, []string{"blk.2.k_code.0.decode"}},
		{"a layer less", func(d *document) { d.set(spec.KeyLayers, 1) }, []string{"blk.1.k_code.0.mean", "1 layers"}},
		{"another head_dim", func(d *document) { d.set(spec.KeyHeadDim, 18) }, []string{"blk.0.k_code.0.decode", "18"}},
		{"an extra tensor", func(d *document) { d.parts = append(d.parts, part{"extra", []int{1}, []float32{1}}) },
			[]string{`"extra"`}},
		{"a part that is not defined", func(d *document) {
			d.parts = append(d.parts, part{TensorName(0, 0, "exceptions"), []int{1}, []float32{1}})
		}, []string{TensorName(0, 0, "exceptions")}},
		// What a later version may add is not skipped: it would be meant.
		key("phaseconv.value_code", "frame"), key("phaseconv.versions", 1), key("phaseconv.calibration.seed", 7),
		key("phaseconv.", 1),
		{"a tensor of layer 7", func(d *document) {
			d.parts = append(d.parts, part{TensorName(7, 0, "mean"), []int{16}, make([]float32, 16)})
		}, []string{TensorName(7, 0, "mean")}},
		{"no encode", func(d *document) {
			d.parts = slices.DeleteFunc(d.parts, func(p part) bool { return p.name == TensorName(1, 1, "encode") })
		}, []string{TensorName(1, 1, "decode"), "encode matrix"}},
		{"decode off orthonormal", func(d *document) { d.part(TensorName(0, 0, "decode")).data[5] += 1e-3 },
			[]string{TensorName(0, 0, "decode"), "orthonormal"}},
	}
	for _, k := range []string{spec.KeySourceSHA256, spec.KeyWeightsSHA256, spec.KeyCalibrationSHA256} {
		for _, v := range []string{"", strings.Repeat("0a", 31), strings.Repeat("0a", 32) + "0", strings.Repeat("0A", 32),
			strings.Repeat("0g", 32), " " + strings.Repeat("0", 63)} {
			tests = append(tests, key(k, v))
		}
	}
	for _, kv := range newDocument(t).keys {
		tests = append(tests, test{"no " + kv.key, func(d *document) { d.drop(kv.key) }, []string{kv.key}})
		other := any("text")
		if _, ok := kv.value.(string); ok {
			other = 7
		}
		// free texts; "7" is one in safetensors
		if kv.key != spec.KeyCode && kv.key != spec.KeyTool && kv.key != spec.KeyRope {
			tests = append(tests, test{"other type of " + kv.key, func(d *document) { d.set(kv.key, other) }, []string{kv.key}})
		}
	}
	for _, p := range newDocument(t).parts {
		name := p.name
		tests = append(tests,
			test{"no " + name, func(d *document) {
				d.parts = slices.DeleteFunc(d.parts, func(p part) bool { return p.name == name })
			}, []string{"tensor"}},
			test{"NaN in " + name, func(d *document) { d.part(name).data[3] = float32(math.NaN()) },
				[]string{name, "number 3", "finite"}},
			test{"Inf in " + name, func(d *document) { d.part(name).data[3] = float32(math.Inf(-1)) },
				[]string{name, "number 3", "finite"}},
			test{"shape of " + name, func(d *document) {
				p := d.part(name)
				p.shape = append(p.shape, 1)
			}, []string{name}},
			test{"longer " + name, func(d *document) {
				p := d.part(name)
				p.shape = slices.Clone(p.shape)
				n := len(p.data) / p.shape[0]
				p.shape[0]++
				p.data = append(p.data, make([]float32, n)...)
			}, []string{"k_code"}},
		)
	}
	for container := range containers {
		path := filepath.Join(t.TempDir(), "x")
		newDocument(t).write(t, container, path)
		if _, err := Read(t.Context(), path); err != nil {
			t.Fatalf("%s: the untouched document: %v", container, err)
		}
		// Keys outside of the format are free.
		free := newDocument(t)
		free.set("general.author", "somebody")
		free.set("phaseconverter", 1)
		free.write(t, container, path)
		if _, err := Read(t.Context(), path); err != nil {
			t.Errorf("%s: keys of others: %v", container, err)
		}
		for _, x := range tests {
			d := newDocument(t)
			x.edit(d)
			d.write(t, container, path)
			_, err := Read(t.Context(), path)
			if err == nil {
				t.Errorf("%s, %s: no error", container, x.name)
				continue
			}
			for _, says := range append(x.says, path) {
				if !strings.Contains(err.Error(), says) {
					t.Errorf("%s, %s: %v, want %q", container, x.name, err, says)
				}
			}
		}
	}
	// A model is no sidecar, even one that has all the keys.
	path := filepath.Join(t.TempDir(), "x")
	d := newDocument(t)
	d.arch = "llama"
	d.write(t, "gguf", path)
	if _, err := Read(t.Context(), path); err == nil || !strings.Contains(err.Error(), "general.architecture") {
		t.Errorf("architecture llama: %v", err)
	}
	if _, err := Read(t.Context(), filepath.Dir(path)); err == nil || !strings.Contains(err.Error(), "regular file") {
		t.Errorf("a folder: %v", err)
	}
	if _, err := Read(t.Context(), path+"none"); !os.IsNotExist(err) {
		t.Errorf("missing file: %v", err)
	}
}

// TestSidecarSplit: a sidecar is one file. Of a split no file is read but the one
// that was named, and that one is refused.
func TestSidecarSplit(t *testing.T) {
	dir := t.TempDir()
	for _, x := range []struct {
		count  any
		refuse bool
	}{{2, true}, {1, false}, {"two", true}, {1 << 30, true}} {
		d := newDocument(t)
		d.set("split.count", x.count)
		d.set("split.no", 0)
		d.set("split.tensors.count", len(d.parts))
		path := filepath.Join(dir, "x.gguf")
		d.write(t, "gguf", path)
		_, err := Read(t.Context(), path)
		if refused := err != nil; refused != x.refuse {
			t.Errorf("split.count %v: %v", x.count, err)
		} else if refused && !strings.Contains(err.Error(), "split.count") {
			t.Errorf("split.count %v: the error does not name the key: %v", x.count, err)
		}
	}
	// A real split, whole and readable as GGUF: half of the tensors in each file.
	whole := newDocument(t)
	for i := range 2 {
		d := newDocument(t)
		half := len(whole.parts) / 2
		d.parts = whole.parts[i*half : (i+1)*half+i*(len(whole.parts)%2)]
		if i == 1 {
			d.keys = nil
		}
		d.set("split.count", 2)
		d.set("split.no", i)
		d.set("split.tensors.count", len(whole.parts))
		d.write(t, "gguf", gguf.ShardPath(filepath.Join(dir, "model.phase"), i, 2))
	}
	first := gguf.ShardPath(filepath.Join(dir, "model.phase"), 0, 2)
	f, err := gguf.Open(first)
	if err != nil {
		t.Fatalf("the split that this test made is none: %v", err)
	}
	n := len(f.Tensors)
	f.Close()
	if n != len(whole.parts) {
		t.Fatalf("the split has %d tensors of %d", n, len(whole.parts))
	}
	if _, err := Read(t.Context(), first); err == nil || !strings.Contains(err.Error(), "one file, not a split") {
		t.Errorf("a sidecar in two files: %v", err)
	}
}

// TestSidecarTypes: numbers of another element type are not what version 1 defines.
func TestSidecarTypes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x")
	d := newDocument(t)
	d.write(t, "safetensors", path)
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// I32 has as many bytes as F32.
	if err := os.WriteFile(path, bytes.Replace(raw, []byte(`"F32"`), []byte(`"I32"`), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(t.Context(), path); err == nil || !strings.Contains(err.Error(), "blk.0.k_code.0.mean") {
		t.Errorf("I32: %v", err)
	}
}

// TestRopeText: equal texts mean equal angles, whatever they are called.
func TestRopeText(t *testing.T) {
	text := func(full, local rope.Params) string {
		s, err := RopeText(full, local)
		if err != nil {
			t.Fatal(err)
		}
		var v map[string]any
		if err := json.Unmarshal([]byte(s), &v); err != nil || len(v) != 2 {
			t.Fatalf("%q is no object of two: %v", s, err)
		}
		return s
	}
	plain := rope.Params{Theta: 10000, Dim: 16}
	llama3 := rope.Params{Theta: 500000, Dim: 16, Scaling: rope.Llama3, Factor: 8, OriginalContext: 8192, LowFreqFactor: 1,
		HighFreqFactor: 4}
	div, _ := llama3.FreqDivisors()
	stored := make([]float64, len(div)) // as a GGUF file has them
	for i, v := range div {
		stored[i] = float64(float32(v))
	}
	if a, b := text(llama3, llama3), text(rope.Params{Theta: 500000, Dim: 16, Scaling: rope.Divisor, Divisors: stored},
		llama3); a != b {
		t.Errorf("llama3 scaling and its divisors:\n%s\n%s", a, b)
	}
	for _, one := range []rope.Params{{Theta: 10000, Dim: 16, Scaling: rope.Linear, Factor: 1},
		{Theta: 10000, Dim: 16, Scaling: rope.YaRN, Factor: 1, OriginalContext: 512, BetaFast: 32, BetaSlow: 1}} {
		if a, b := text(plain, plain), text(one, plain); a != b {
			t.Errorf("a factor of one: %s, without %s", b, a)
		}
	}
	yarn := rope.Params{Theta: 10000, Dim: 16, Scaling: rope.YaRN, Factor: 4, OriginalContext: 512, BetaFast: 32,
		BetaSlow: 1}
	seen := map[string]rope.Params{}
	for _, p := range []rope.Params{
		plain, {Theta: 10001, Dim: 16}, {Theta: 10000, Dim: 32}, {Theta: 10000, Dim: 16, Scaling: rope.Linear, Factor: 2},
		{Theta: 10000, Dim: 16, Scaling: rope.Linear, Factor: 4},
		llama3, {Theta: 500000, Dim: 16}, yarn,
		{Theta: 10000, Dim: 16, Scaling: rope.YaRN, Factor: 8, OriginalContext: 512, BetaFast: 32, BetaSlow: 1},
		{Theta: 10000, Dim: 16, Scaling: rope.YaRN, Factor: 4, OriginalContext: 513, BetaFast: 32, BetaSlow: 1},
		{Theta: 10000, Dim: 16, Scaling: rope.YaRN, Factor: 4, OriginalContext: 512, BetaFast: 31, BetaSlow: 1},
		{Theta: 10000, Dim: 16, Scaling: rope.YaRN, Factor: 4, OriginalContext: 512, BetaFast: 32, BetaSlow: 2},
	} {
		for _, s := range []string{text(p, plain), "local " + text(plain, p)} {
			if other, dup := seen[s]; dup && !reflect.DeepEqual(other, plain) && !reflect.DeepEqual(p, plain) {
				t.Errorf("%+v and %+v have one text", other, p)
			}
			seen[s] = p
		}
	}
	if _, err := RopeText(rope.Params{Theta: math.NaN(), Dim: 16}, plain); err == nil {
		t.Error("NaN has a text")
	}
}

// FuzzReadSidecar: whatever the bytes, reading ends without a panic, and what is
// accepted can be used and written again.
func FuzzReadSidecar(f *testing.F) {
	for container, write := range containers {
		path := filepath.Join(f.TempDir(), "x")
		var raw []byte
		for _, s := range []*Sidecar{sidecar(f, 8), grouped(f)} {
			err := write(s, path)
			if err == nil {
				raw, err = os.ReadFile(path)
			}
			if err != nil {
				f.Fatal(err)
			}
			f.Add(raw)
		}
		var err error
		newDocument(f).write(f, container, path)
		if raw, err = os.ReadFile(path); err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(dir, "x")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Read(t.Context(), path)
		if err != nil {
			return
		}
		for _, layout := range []rope.Layout{rope.Half, rope.Interleaved} {
			if _, err := s.To(t.Context(), layout); err != nil {
				// Moving numbers changes the order of sums, which may tip a matrix over
				// the tolerance; it must not panic.
				continue
			}
		}
		for _, heads := range s.Codes {
			for _, c := range heads {
				words, hat := make([]uint32, c.Words()), make([]float32, c.D)
				c.DecodeKey(hat, words, c.EncodeKey(make([]float32, c.D), words))
			}
		}
		for _, y := range s.Layers {
			for _, g := range y.Groups {
				row, words, alpha := make([]float32, g.D()), make([]uint32, g.Words()), make([]float32, 1)
				if err := g.EncodeRows(t.Context(), row, words, alpha); err != nil {
					t.Fatal(err)
				}
				g.DecodeRows(row, words, alpha)
				for i, p := range g.Parts {
					if len(g.PartDecode(i)) != g.B()*g.Dim(p) {
						t.Fatalf("part %s of %d numbers", p, g.Dim(p))
					}
				}
			}
		}
		for name, write := range containers {
			if err := write(s, path); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			again, err := Read(t.Context(), path)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			same(t, name, again, s)
		}
	})
}
