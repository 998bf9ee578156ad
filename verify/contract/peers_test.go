package contract_test

import (
	"bytes"
	"context"
	"math/bits"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/convert"
	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/dtype"
	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/internal/tiny"
	"github.com/phaseconv/phaseconv/kernels/rope"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/rotations/sidecar"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/contract"
	"github.com/phaseconv/phaseconv/verify/kvcache"
	"github.com/phaseconv/phaseconv/verify/texts"
)

// The tests below are named after what went wrong in other programs that rotate,
// centre or code KV caches.

// TestPeers_WrongBasis: codes for another basis load nowhere. The sidecar's own
// test goes through all values; here the whole contract refuses.
func TestPeers_WrongBasis(t *testing.T) {
	dir, _ := artifact(t, recipe{family: "llama", tiny: tiny.Options{Seed: 1}})
	editGGUF(t, filepath.Join(dir, spec.GGUFSidecarName), setKey(spec.KeyBasis, gguf.Value(spec.KeyBasis, "hadamard")),
		nil)
	record(t, dir)
	wants(t, check(t, dir, "gguf"), "sidecar", spec.KeyBasis, "hadamard", "post_rope")
}

// TestPeers_Requantized: a tool that re-encodes the model and leaves out keys
// that it does not know makes files that load. Whatever it drops or rounds, the
// contract notices: the marker is gone, and the digest of the key tensors differs
// even where only their element type did.
func TestPeers_Requantized(t *testing.T) {
	toF16 := func(which string) func(s *gguf.TensorSpec, b []byte) []byte {
		return func(s *gguf.TensorSpec, b []byte) []byte {
			if s.Type != gguf.TypeF32 || len(s.Dims) < 2 || !strings.Contains(s.Name, which) {
				return b
			}
			x := make([]float32, len(b)/4)
			dtype.DecodeF32(x, b)
			s.Type = gguf.TypeF16
			out := make([]byte, 2*len(x))
			dtype.EncodeF16(out, x)
			return out
		}
	}
	base := recipe{family: "llama", tiny: tiny.Options{Seed: 1}}
	for _, x := range []struct {
		name  string
		keys  func([]gguf.KV) []gguf.KV
		edit  func(s *gguf.TensorSpec, b []byte) []byte
		check string
	}{
		{"keys lost, weights kept", dropKeys("general.phaseconv."), nil, "model marker"},
		{"keys kept, queries and keys re-encoded", nil, toF16("attn_k."), "weights digest"},
		{"everything re-encoded", dropKeys("general.phaseconv."), toF16(""), "weights digest"},
	} {
		t.Run(x.name, func(t *testing.T) {
			dir, _ := artifact(t, base)
			editGGUF(t, filepath.Join(dir, spec.GGUFModelName), x.keys, x.edit)
			wants(t, check(t, dir, "gguf"), "files") // as it is
			record(t, dir)
			wants(t, check(t, dir, "gguf"), x.check)
		})
	}
	// What keeps queries and keys as they were keeps the sidecar valid: FFN weights
	// may be re-encoded, and the comparison with the source judges them.
	dir, src := artifact(t, base)
	editGGUF(t, filepath.Join(dir, spec.GGUFModelName), nil, toF16("ffn_"))
	record(t, dir)
	if v := checkSource(t, dir, "gguf", src); !v.OK {
		t.Errorf("FFN re-encoded as F16: %v", failed(v.Contract))
	}
}

// TestPeers_UnknownConsumers: a graph with another consumer of keys (a head for
// further tokens, a draft model, latent attention) is refused, not converted
// around. So is a family that is not in the table.
func TestPeers_UnknownConsumers(t *testing.T) {
	dir := t.TempDir()
	src := filepath.Join(dir, "m.gguf")
	tiny.GGUF(t, src, "qwen3", tiny.Options{Seed: 1})
	extra := filepath.Join(dir, "mtp.gguf")
	write(t, extra, read(t, src))
	rename := func(old, name string) func(s *gguf.TensorSpec, b []byte) []byte {
		done := false
		return func(s *gguf.TensorSpec, b []byte) []byte {
			if s.Name == old && !done {
				s.Name, done = name, true
			}
			return b
		}
	}
	// The tied model gets a tensor of another graph beside its own.
	tiny.GGUF(t, extra, "qwen3", tiny.Options{Seed: 1, Untied: true})
	editGGUF(t, extra, nil, rename("output.weight", "blk.2.nextn.embed_tokens.weight"))
	r := recipe{formats: both[:1]}
	_, err := convert.Convert(context.Background(), r.options(extra, filepath.Join(dir, "out")))
	if err == nil || !strings.Contains(err.Error(), "blk.2.nextn.embed_tokens.weight") {
		t.Errorf("a tensor of another graph: %v", err)
	}
	for _, arch := range []string{"qwen4exp", "deepseek2", "minimax-m2", "gemma4"} {
		path := filepath.Join(dir, arch+".gguf")
		write(t, path, read(t, src))
		editGGUF(t, path, func(kvs []gguf.KV) (out []gguf.KV) {
			for _, kv := range kvs {
				if kv.Key == "general.architecture" {
					kv = gguf.Value(kv.Key, arch)
				} else if rest, ok := strings.CutPrefix(kv.Key, "qwen3."); ok {
					kv.Key = arch + "." + rest
				}
				out = append(out, kv)
			}
			return out
		}, nil)
		if _, err := checkpoint.Open(path); err == nil || !strings.Contains(err.Error(), arch) {
			t.Errorf("%s: %v", arch, err)
		}
	}
}

// TestPeers_ExtraTensors: stock readers refuse tensors that their architecture
// does not have, take files that begin with "model" for shards, and give type
// ids meanings of their own. So none is added.
func TestPeers_ExtraTensors(t *testing.T) {
	stock := []gguf.Type{gguf.TypeF32, gguf.TypeF16, gguf.TypeBF16, gguf.TypeQ8_0}
	for _, outtype := range []string{"f32", "f16", "bf16", "q8_0"} {
		dir, src := artifact(t, recipe{family: "qwen2", tiny: tiny.Options{Seed: 1, Shards: 2}, outtype: outtype})
		m := tiny.New(t, "qwen2", tiny.Options{Seed: 1})
		var want, got []string
		for i := range m.Tensors {
			want = append(want, m.Tensors[i].GGUF)
		}
		f, err := gguf.Open(filepath.Join(dir, spec.GGUFModelName))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for _, x := range f.Tensors {
			got = append(got, x.Name)
			if !slices.Contains(stock, x.Type) {
				t.Errorf("%s: tensor %s has type %s", outtype, x.Name, x.Type)
			}
		}
		slices.Sort(want)
		slices.Sort(got)
		if !slices.Equal(want, got) {
			t.Errorf("%s: tensors %v, want %v", outtype, got, want)
		}
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			n := e.Name()
			_, err := os.Stat(filepath.Join(src, n))
			if strings.HasPrefix(n, "model") && strings.HasSuffix(n, ".safetensors") && err != nil {
				t.Errorf("%s looks like a shard, and the source has none of that name", n)
			}
		}
		if a, b := read(t, filepath.Join(dir, "model.safetensors.index.json")),
			read(t, filepath.Join(src, "model.safetensors.index.json")); !bytes.Equal(a, b) {
			t.Error("the index changed")
		}
	}
}

// TestPeers_KeyBias: the bias of W_K is scaled with it. A forgotten bias fails the
// comparison with the source.
func TestPeers_KeyBias(t *testing.T) {
	// Trained models of this family have biases far larger than what is added to them.
	large := func(name string, x []float32) {
		if strings.HasSuffix(name, "k_proj.bias") {
			for i := range x {
				x[i] *= 10
			}
		}
	}
	dir, src := artifact(t, recipe{family: "qwen2", tiny: tiny.Options{Seed: 1, Edit: large}})
	if v := checkSource(t, dir, "gguf", src); !v.OK {
		t.Fatal(failed(v.Contract))
	}
	c, err := checkpoint.Open(src)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	bias, _ := c.Find("blk.0.attn_k.bias")
	x, err := c.ReadAll(bias)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4*len(x))
	dtype.EncodeF32(b, x)
	// What a converter that scales only the matrix would write, sidecar and all.
	path := filepath.Join(dir, spec.GGUFModelName)
	changed := false
	editGGUF(t, path, nil, func(s *gguf.TensorSpec, old []byte) []byte {
		if s.Name == "blk.0.attn_k.bias" {
			changed = !bytes.Equal(old, b)
			return b
		}
		return old
	})
	if !changed {
		t.Fatal("the balance left the bias as it was")
	}
	m, err := checkpoint.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	sum, err := m.AttentionDigest(t.Context(), false, nil)
	if err != nil {
		t.Fatal(err)
	}
	editSidecar(t, filepath.Join(dir, spec.GGUFSidecarName), func(s *sidecar.Sidecar) { s.WeightsSHA256 = sum })
	editManifest(t, dir, func(m *spec.Manifest) { m.Artifacts[0].WeightsSHA256 = sum })
	record(t, dir)
	v := checkSource(t, dir, "gguf", src)
	wants(t, v.Contract, "function preserved")
	if bad := failed(v.Contract); len(bad) != 1 || v.OK {
		t.Errorf("failed: %v", bad)
	}
}

// TestPeers_TiedEmbeddings: a table that is read at both ends of the model is
// written once and as it was.
func TestPeers_TiedEmbeddings(t *testing.T) {
	for _, family := range []string{"llama", "qwen2", "qwen3", "gemma3_text"} {
		dir, src := artifact(t, recipe{family: family, tiny: tiny.Options{Seed: 1}})
		a, err := checkpoint.Open(filepath.Join(dir, spec.GGUFModelName))
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		b, err := checkpoint.Open(src)
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		if _, ok := a.Find("output.weight"); ok || !a.Config.TiedEmbeddings {
			t.Errorf("%s: the head is no longer tied", family)
		}
		x, _ := a.Find("token_embd.weight")
		y, _ := b.Find("token_embd.weight")
		p, err := a.ReadAll(x)
		if err != nil {
			t.Fatal(err)
		}
		q, err := b.ReadAll(y)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(p, q) {
			t.Errorf("%s: embeddings changed", family)
		}
	}
}

// TestPeers_ExplicitHeadDim: head_dim is a key of the configuration, and need be
// neither hidden/heads nor a power of two: 24, 80, 96 and 112 work like 64, with
// every code, and a code that needs another size says so instead of doing nothing.
func TestPeers_ExplicitHeadDim(t *testing.T) {
	for _, d := range []int{24, 80, 96, 112} {
		r := recipe{family: "qwen3", tiny: tiny.Options{Seed: 1, HeadDim: d, Layers: 1, KVHeads: 1, Heads: 2}, code: "srht"}
		dir, src := artifact(t, r)
		for _, container := range []string{"gguf", "safetensors"} {
			v := checkSource(t, dir, container, src)
			if !v.OK {
				t.Errorf("head_dim %d, %s: %v", d, container, failed(v.Contract))
			}
		}
		s, err := sidecar.Read(t.Context(), filepath.Join(dir, spec.GGUFSidecarName))
		if err != nil {
			t.Fatal(err)
		}
		c := s.Codes[0][0]
		if s.HeadDim != d || c.D != d || c.B != d {
			t.Errorf("head_dim %d: the code is %d by %d", d, c.B, c.D)
		}
		zeros := 0
		for _, x := range c.Decode {
			if x == 0 {
				zeros++
			}
		}
		if zeros > 0 {
			t.Errorf("head_dim %d: %d of %d numbers of the rotation are zero: part of the key is not rotated", d, zeros,
				len(c.Decode))
		}
	}
}

// TestPeers_HeterogeneousHeads: layers with unlike heads are refused by the name
// of the key; nothing is switched off silently.
func TestPeers_HeterogeneousHeads(t *testing.T) {
	dir := t.TempDir()
	for _, x := range []struct {
		key string
		kv  gguf.KV
	}{
		{"qwen3.attention.key_length", gguf.Array("qwen3.attention.key_length", []uint32{16, 32})},
		{"qwen3.attention.head_count_kv", gguf.Array("qwen3.attention.head_count_kv", []uint32{2, 1})},
		{"qwen3.attention.value_length", gguf.Value("qwen3.attention.value_length", uint32(32))},
	} {
		path := filepath.Join(dir, "m.gguf")
		tiny.GGUF(t, path, "qwen3", tiny.Options{Seed: 1})
		editGGUF(t, path, setKey(x.key, x.kv), nil)
		if _, err := checkpoint.Open(path); err == nil || !strings.Contains(err.Error(), x.key) {
			t.Errorf("%s: %v", x.key, err)
		}
	}
}

// TestPeers_SiblingRotations: rotations fitted to one model do not go with its
// siblings, however alike their shapes are; and every head of every layer has
// its own.
func TestPeers_SiblingRotations(t *testing.T) {
	base := recipe{family: "mixtral", tiny: tiny.Options{Seed: 1}}
	dir, _ := artifact(t, base)
	other, _ := artifact(t, recipe{family: "mixtral", tiny: tiny.Options{Seed: 2}})
	for _, n := range []string{spec.GGUFSidecarName, spec.SafetensorsSidecarName} {
		write(t, filepath.Join(dir, n), read(t, filepath.Join(other, n)))
	}
	record(t, dir)
	for _, container := range []string{"gguf", "safetensors"} {
		wants(t, check(t, dir, container), "weights digest", "other weights")
	}
	dir, _ = artifact(t, base)
	s, err := sidecar.Read(t.Context(), filepath.Join(dir, spec.GGUFSidecarName))
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, heads := range s.Codes {
		for _, c := range heads {
			b := make([]byte, 4*len(c.Decode))
			dtype.EncodeF32(b, c.Decode)
			seen[string(b)] = true
		}
	}
	if len(seen) != 4 {
		t.Errorf("%d different codes in 2 layers of 2 KV heads", len(seen))
	}
}

// TestPeers_GateOnKLD: a model that still predicts sensibly is not good for that.
// Here one layer's value heads are swapped: finite numbers, a plausible
// perplexity, another function.
func TestPeers_GateOnKLD(t *testing.T) {
	dir, src := artifact(t, recipe{family: "llama", tiny: tiny.Options{Seed: 1}})
	good := checkSource(t, dir, "gguf", src)
	editGGUF(t, filepath.Join(dir, spec.GGUFModelName), nil, func(s *gguf.TensorSpec, b []byte) []byte {
		if s.Name == "blk.1.attn_v.weight" {
			half := len(b) / 2
			return append(bytes.Clone(b[half:]), b[:half]...)
		}
		return b
	})
	record(t, dir)
	v := checkSource(t, dir, "gguf", src)
	wants(t, v.Contract, "function preserved", "KLD")
	if r := v.PPL.Float / good.PPL.Float; !(r < 2) {
		t.Errorf("perplexity changes by %.2f: not the case that was meant", r)
	}
	if v.OK {
		t.Error("OK")
	}
}

// TestPeers_CalibrationRecorded: what the codes were fitted to, and how, is in the
// artifact: digest and length of the text, the command line, the seed.
func TestPeers_CalibrationRecorded(t *testing.T) {
	r := recipe{family: "llama", tiny: tiny.Options{Seed: 1}}
	dir, _ := artifact(t, r)
	m, err := contract.ReadManifest(dir)
	if err != nil {
		t.Fatal(err)
	}
	o := r.options("src", "out")
	want := spec.Text{Name: texts.CalibrationName, SHA256: o.Calibration.SHA256(), Tokens: 4 * ctx, Context: ctx,
		Windows: 4}
	if m.Calibration != want || !reflect.DeepEqual(m.Command, o.Command) || m.Seed != 1 || m.Tool != o.Tool {
		t.Errorf("calibration %+v, want %+v; command %v, seed %d, tool %q", m.Calibration, want, m.Command, m.Seed, m.Tool)
	}
	for _, n := range []string{spec.GGUFSidecarName, spec.SafetensorsSidecarName} {
		s, err := sidecar.Read(t.Context(), filepath.Join(dir, n))
		if err != nil {
			t.Fatal(err)
		}
		if c := (sidecar.Calibration{SHA256: want.SHA256, Tokens: want.Tokens, Context: want.Context}); s.Calibration != c ||
			s.Tool != o.Tool {
			t.Errorf("%s: %+v, want %+v", n, s.Calibration, c)
		}
	}
}

// TestPeers_ShiftedCache: runtimes drop old tokens by turning the cached keys of the
// others to new positions. Coded keys cannot be turned; with anchors they need not
// be if the shift is a whole number of blocks, and only then (spec/code.md, section 4).
func TestPeers_ShiftedCache(t *testing.T) {
	const d, B, n = 32, 64, 256
	c, err := codec.DataFree("srht", d, 3, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	table := rope.NewTable(rope.Params{Theta: 10000, Dim: d}, 4*n)
	rng := rand.New(rand.NewPCG(1, 2))
	u := make([]float32, n*d) // before RoPE
	for i := range u {
		u[i] = float32(rng.NormFloat64())
	}
	code := func(pos0, anchor int) []uint32 {
		k := slices.Clone(u)
		for i := range n {
			table.Apply(k[i*d:(i+1)*d], pos0+i, rope.Half)
		}
		kvcache.ToAnchor(k, d, pos0, anchor, table, rope.Half)
		words, alpha := make([]uint32, n*c.Words()), make([]float32, n)
		if err := c.EncodeKeys(t.Context(), k, words, alpha); err != nil {
			t.Fatal(err)
		}
		return words
	}
	differ := func(a, b []uint32) (share float64) {
		signs := 0
		for i := range a {
			signs += bits.OnesCount32(a[i] ^ b[i])
		}
		return float64(signs) / (n * d)
	}
	for _, x := range []struct {
		shift, anchor int
		same          bool
	}{{B, B, true}, {5 * B, B, true}, {B / 2, B, false}, {1, B, false}, {B, 0, false}} {
		got := differ(code(0, x.anchor), code(x.shift, x.anchor))
		// The same angles by way of other positions differ in rounding, which turns
		// a sign only where a number is within some 1e-5 of 0.
		if same := got < 1e-3; same != x.same {
			t.Errorf("anchors of %d, shifted by %d: %.4f of all signs differ", x.anchor, x.shift, got)
		}
	}
	for _, says := range []string{"MUST NOT shift coded keys",
		"MUST NOT rotate queries or keys in any other way before coding"} {
		if !strings.Contains(string(read(t, "../../spec/code.md")), says) {
			t.Errorf("spec/code.md does not say %q", says)
		}
	}
}
