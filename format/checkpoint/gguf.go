package checkpoint

import (
	"cmp"
	"fmt"
	"io"
	"math"

	"github.com/phaseconv/phaseconv/format"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/format/tokenizer"
	"github.com/phaseconv/phaseconv/kernels/rope"
)

// ropeFreqs is a tensor of frequency divisors that some GGUF files carry; it has
// no counterpart in Hugging Face checkpoints.
const ropeFreqs = "rope_freqs.weight"

// ggufBackend reads a GGUF file, split or not.
type ggufBackend struct {
	f *gguf.File
}

func openGGUF(path string) (*Checkpoint, error) {
	f, err := gguf.Open(path)
	if err != nil {
		return nil, err
	}
	c := &Checkpoint{Path: path, Container: GGUF, b: &ggufBackend{f}}
	if err := c.fromGGUF(f); err != nil {
		f.Close()
		return nil, err
	}
	return c, nil
}

func (c *Checkpoint) fromGGUF(f *gguf.File) error {
	cfg, err := ggufConfig(f)
	if err != nil {
		return err
	}
	c.Config = cfg
	var all []string
	for i := range f.Tensors {
		all = append(all, f.Tensors[i].Name)
	}
	err = c.collect(
		func(t family.Tensor) []string { return []string{t.Name} },
		func(name string) ([]int, string, bool) {
			t, ok := f.Tensor(name)
			if !ok {
				return nil, "", false
			}
			return t.Shape(), t.Type.String(), true
		}, all)
	if err != nil {
		return err
	}
	return c.addRopeFreqs(f)
}

// addRopeFreqs makes the divisors a tensor of the model, so that they are copied.
func (c *Checkpoint) addRopeFreqs(f *gguf.File) error {
	t, ok := f.Tensor(ropeFreqs)
	if !ok {
		return nil
	}
	cfg := c.Config
	r, _ := cfg.Ropes()
	if !cfg.Family.RopeFreqs || r.Scaling != rope.None {
		return fmt.Errorf("%s: tensor %s does not go with architecture %s and RoPE scaling %q", c.Path, ropeFreqs,
			cfg.Family.GGUFArch, r.Scaling)
	}
	if !sameShape(t.Shape(), []int{r.Dim / 2}) {
		return fmt.Errorf("%s: tensor %s has shape %v, RoPE on %d dimensions needs [%d]", c.Path, ropeFreqs, t.Shape(),
			r.Dim, r.Dim/2)
	}
	d := make([]float32, t.Elements())
	if err := f.ReadRows(t, 0, t.Rows(), d); err != nil {
		return err
	}
	r.Scaling = rope.Divisor
	for _, v := range d {
		r.Divisors = append(r.Divisors, float64(v))
	}
	for l := range cfg.Layers {
		cfg.Layers[l].Rope = r
	}
	c.tensors[ropeFreqs] = &Tensor{Name: ropeFreqs, Layer: -1, Shape: t.Shape(), Type: t.Type.String(),
		Sources: []string{ropeFreqs}}
	c.order = append(c.order, ropeFreqs)
	c.Unknown = without(c.Unknown, ropeFreqs)
	if err := cfg.Check(); err != nil {
		return fmt.Errorf("%s: tensor %s: %w", c.Path, ropeFreqs, err)
	}
	return nil
}

// What stock readers of the known architectures use for YaRN's ramp.
const stockBetaFast, stockBetaSlow = 32, 1

// keys reads the metadata keys of one architecture and remembers the first error.
type keys struct {
	f    *gguf.File
	arch string
	err  error
}

func (k *keys) has(name string) bool { _, ok := k.f.KV(k.arch + "." + name); return ok }

// int reads a count; def < 0 makes the key required. Arrays, which give one value
// per layer, are refused by the getter.
func (k *keys) int(name string, def int) int {
	if k.err != nil || !k.has(name) && def >= 0 {
		return def
	}
	v, err := k.f.Uint(k.arch + "." + name)
	if err == nil && v > math.MaxInt32 {
		err = fmt.Errorf("key %s.%s is %d, which no model has", k.arch, name, v)
	}
	if err != nil {
		k.err = err
		return 0
	}
	return int(v)
}

func (k *keys) float(name string, def float64) float64 {
	if k.err != nil || !k.has(name) {
		return def
	}
	v, err := k.f.Float(k.arch + "." + name)
	if err != nil {
		k.err = err
	}
	return v
}

func ggufConfig(f *gguf.File) (*family.Config, error) {
	arch, err := f.String("general.architecture")
	if err != nil {
		return nil, err
	}
	k := &keys{f: f, arch: arch}
	experts := k.int("expert_count", 0)
	fam, err := family.ByGGUFArch(arch, experts)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Path, err)
	}
	c := &family.Config{
		Family: fam, Pairs: fam.GGUFPairs, Hidden: k.int("embedding_length", -1),
		Context: k.int("context_length", -1), NormEps: k.float("attention.layer_norm_rms_epsilon", 0),
		BOS: -1, EOS: -1,
	}
	p := &family.Params{
		Layers: k.int("block_count", -1), Heads: k.int("attention.head_count", -1), AttnBias: fam.AttnBias,
	}
	if fam.ScoreKeys {
		c.LogitSoftcap = k.float("final_logit_softcapping", 0)
	}
	p.KVHeads = k.int("attention.head_count_kv", p.Heads)
	p.FFN.Size = k.int("feed_forward_length", -1)
	if experts > 0 {
		k.experts(c, p, experts)
	}
	if k.err != nil {
		return nil, k.err
	}
	if p.Heads < 1 || p.Heads > family.MaxHeads {
		return nil, fmt.Errorf("%s: key %s.attention.head_count is %d", f.Path, arch, p.Heads)
	}
	p.HeadDim = k.int("attention.key_length", c.Hidden/p.Heads)
	if v := k.int("attention.value_length", p.HeadDim); v != p.HeadDim {
		return nil, format.Unsupportedf("%s: key %s.attention.value_length is %d and key_length %d; different lengths are not supported", f.Path, arch, v, p.HeadDim)
	}
	if causal, err := f.Bool(arch + ".attention.causal"); err == nil && !causal {
		return nil, format.Unsupportedf("%s: key %s.attention.causal is false; only causal models are supported", f.Path,
			arch)
	}
	p.AttnScale = 1 / math.Sqrt(float64(p.HeadDim))
	if fam.WideScaleLayers > 0 && p.Layers == fam.WideScaleLayers {
		p.AttnScale = 1 / math.Sqrt(float64(c.Hidden/p.Heads))
	}
	embd, ok := f.Tensor("token_embd.weight")
	if !ok {
		return nil, fmt.Errorf("%s: tensor token_embd.weight is missing", f.Path)
	}
	c.Vocab = embd.Rows()
	_, head := f.Tensor("output.weight")
	c.TiedEmbeddings = !head
	if err := k.window(fam, p); err != nil {
		return nil, err
	}
	if err := k.rope(c, p); err != nil {
		return nil, err
	}
	if k.err != nil {
		return nil, k.err
	}
	for key, dst := range map[string]*int{"tokenizer.ggml.bos_token_id": &c.BOS, "tokenizer.ggml.eos_token_id": &c.EOS} {
		if v, err := f.Uint(key); err == nil && v < family.MaxVocab {
			*dst = int(v)
		}
	}
	if err := c.Resolve(*p); err != nil {
		return nil, fmt.Errorf("%s: %w", f.Path, err)
	}
	return c, nil
}

// experts fills in the mixtures: what stock readers have built in for the architecture, and what
// they read.
func (k *keys) experts(c *family.Config, p *family.Params, experts int) {
	x, f := c.Family.Experts, &p.FFN
	f.Experts, f.Used = experts, k.int("expert_used_count", 0)
	f.Router, f.RouterBias, f.ChoiceBias, f.Biases, f.Renorm = x.Router, x.RouterBias, x.ChoiceBias, x.Biases, x.GGUFRenorm
	dense := f.Size
	if x.OwnSize {
		c.DenseFFN = dense
		f.Size = k.int("expert_feed_forward_length", dense/max(1, f.Used)) // the default of stock readers
	}
	if x.GGUFRouter {
		k.router(f)
	}
	if x.Shared != family.NoShared {
		f.Shared, f.SharedGate = k.int("expert_shared_count", x.SharedCount), x.SharedGate
		size := f.Shared * f.Size
		if x.Shared == family.SharedOwn {
			f.Shared, size = 1, dense
		}
		if f.SharedSize = k.int("expert_shared_feed_forward_length", size); f.SharedSize == 0 {
			f.Shared, f.SharedGate = 0, false
		}
	}
	if step := k.int("interleave_moe_layer_step", 1); step != 1 {
		k.err = cmp.Or(k.err, format.Unsupportedf("%s: key %s.interleave_moe_layer_step is %d; only 1 is supported", k.f.Path, k.arch,
			step))
	}
	if n := k.int("leading_dense_block_count", 0); x.GGUFDense && n > 0 && p.Layers > 0 && p.Layers <= family.MaxLayers {
		p.Dense = make([]bool, p.Layers)
		for l := range p.Dense {
			p.Dense[l] = l < n
		}
	}
}

// The values of expert_gating_func.
const gatingSoftmax, gatingSigmoid = 1, 2

// router reads what stock readers of some architectures read.
func (k *keys) router(f *family.FFN) {
	switch g := k.int("expert_gating_func", 0); {
	case g == gatingSoftmax:
		f.Router = family.SoftmaxTopK
	case g == gatingSigmoid || g == 0 && f.Router == family.SigmoidTopK:
		f.Router = family.SigmoidTopK
	default:
		k.err = cmp.Or(k.err, format.Unsupportedf("%s: key %s.expert_gating_func is %d; softmax (1) and sigmoid (2) are supported",
			k.f.Path, k.arch, g))
	}
	f.Renorm = k.bool("expert_weights_norm", false)
	f.WeightScale = k.float("expert_weights_scale", 0)
	f.Groups, f.GroupsUsed = k.int("expert_group_count", 0), k.int("expert_group_used_count", 0)
}

func (k *keys) bool(name string, def bool) bool {
	if k.err != nil || !k.has(name) {
		return def
	}
	v, err := k.f.Bool(k.arch + "." + name)
	if err != nil {
		k.err = err
	}
	return v
}

func (k *keys) window(fam *family.Family, p *family.Params) error {
	if !fam.Window.InGGUF {
		return nil
	}
	w := k.int("attention.sliding_window", 0)
	if w == 0 || p.Layers > family.MaxLayers {
		return k.err
	}
	p.SlidingWindow, p.Sliding = w, make([]bool, p.Layers)
	const pattern = "attention.sliding_window_pattern"
	period := fam.Window.Period
	if kv, ok := k.f.KV(k.arch + "." + pattern); ok {
		if _, array := kv.Elem(); array {
			flags, err := k.f.Bools(k.arch + "." + pattern)
			if err != nil || len(flags) != p.Layers {
				return fmt.Errorf("%s: key %s.%s: expected %d flags (%v)", k.f.Path, k.arch, pattern, p.Layers, err)
			}
			copy(p.Sliding, flags)
			return nil
		}
		period = k.int(pattern, 0)
	}
	for l := range p.Sliding {
		p.Sliding[l] = period == 0 || (l+1)%period != 0
	}
	return k.err
}

func (k *keys) rope(c *family.Config, p *family.Params) error {
	if d := k.int("rope.dimension_count", p.HeadDim); d != p.HeadDim {
		return format.Unsupportedf("%s: key %s.rope.dimension_count is %d and head_dim %d; partial rotary embedding is not supported yet", k.f.Path, k.arch, d, p.HeadDim)
	}
	r := rope.Params{Theta: k.float("rope.freq_base", 10000), Dim: p.HeadDim}
	factor := k.float("rope.scaling.factor", k.float("rope.scale_linear", 0))
	kind := "linear"
	if k.has("rope.scaling.type") {
		var err error
		if kind, err = k.f.String(k.arch + ".rope.scaling.type"); err != nil {
			return err
		}
	}
	scaled := factor != 0 && factor != 1
	switch kind {
	case "none":
	case "linear":
		if scaled {
			r.Scaling, r.Factor = rope.Linear, factor
		}
	case "yarn":
		if scaled {
			r.Scaling, r.Factor = rope.YaRN, factor
			r.OriginalContext = k.int("rope.scaling.original_context_length", c.Context)
			r.BetaFast, r.BetaSlow = stockBetaFast, stockBetaSlow
		}
	default:
		return format.Unsupportedf("%s: key %s.rope.scaling.type is %q; linear and yarn are supported", k.f.Path, k.arch,
			kind)
	}
	// Stock readers of these architectures heed the first of these keys only, so
	// a file with another value means one thing and computes another.
	for _, x := range []struct {
		key  string
		want float64
	}{{"attn_factor", 1}, {"yarn_beta_fast", stockBetaFast}, {"yarn_beta_slow", stockBetaSlow}, {"yarn_ext_factor", 1},
		{"yarn_attn_factor", 1}, {"yarn_log_multiplier", 0}} {
		if v := k.float("rope.scaling."+x.key, x.want); v != x.want {
			return format.Unsupportedf("%s: key %s.rope.scaling.%s is %g; only %g is supported", k.f.Path, k.arch, x.key, v,
				x.want)
		}
	}
	p.Rope, p.RopeLocal = r, r
	if p.SlidingWindow > 0 {
		p.RopeLocal = rope.Params{Theta: k.float("rope.freq_base_swa", 10000), Dim: p.HeadDim}
	}
	return k.err
}

func (b *ggufBackend) readRows(source string, row0, n int, dst []float32) error {
	t, _ := b.f.Tensor(source)
	return b.f.ReadRows(t, row0, n, dst)
}

func (b *ggufBackend) raw(source string) (*io.SectionReader, error) {
	t, ok := b.f.Tensor(source)
	if !ok {
		return nil, fmt.Errorf("%s: no tensor %s", b.f.Path, source)
	}
	return b.f.Reader(t), nil
}

func (b *ggufBackend) files() []string { return b.f.Paths() }

func (b *ggufBackend) vocab() (*tokenizer.Vocab, error) {
	v, err := tokenizer.FromGGUF(metadata{b.f})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", b.f.Path, err)
	}
	return v, nil
}

func (b *ggufBackend) close() error { return b.f.Close() }

// File returns the open GGUF file, nil for other containers.
func (c *Checkpoint) File() *gguf.File {
	if b, ok := c.b.(*ggufBackend); ok {
		return b.f
	}
	return nil
}

// metadata shows a GGUF file's keys in the form that package tokenizer reads: a
// key that is absent or of another type is simply not there.
type metadata struct{ f *gguf.File }

func (m metadata) String(key string) (string, bool)    { return present(m.f.String(key)) }
func (m metadata) Uint(key string) (uint64, bool)      { return present(m.f.Uint(key)) }
func (m metadata) Bool(key string) (bool, bool)        { return present(m.f.Bool(key)) }
func (m metadata) Strings(key string) ([]string, bool) { return present(m.f.Strings(key)) }

func (m metadata) Float32s(key string) ([]float32, bool) {
	v, err := m.f.Floats(key)
	if err != nil {
		return nil, false
	}
	return convert[float32](v), true
}

func (m metadata) Int32s(key string) ([]int32, bool) {
	v, err := m.f.Ints(key)
	if err != nil {
		return nil, false
	}
	return convert[int32](v), true
}

func present[T any](v T, err error) (T, bool) { return v, err == nil }

func convert[To, From int32 | int64 | float32 | float64](in []From) []To {
	out := make([]To, len(in))
	for i, v := range in {
		out[i] = To(v)
	}
	return out
}
