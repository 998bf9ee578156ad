package checkpoint

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"

	"github.com/phaseconv/phaseconv/format"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/format/tokenizer"
	"github.com/phaseconv/phaseconv/kernels/fmath"
	"github.com/phaseconv/phaseconv/kernels/rope"
)

// ropeFreqs is a tensor of frequency divisors that some GGUF files carry; it has
// no counterpart in Hugging Face checkpoints.
const ropeFreqs = "rope_freqs.weight"

// ggufBackend reads a GGUF file, split or not.
type ggufBackend struct {
	f *gguf.File
	parts
	// experts are the sources of canonical tensors that lie in fused ones, by expert.
	experts map[string][]string
}

// fusedExperts finds tensors with gate and up of all experts, [experts, 2*ffn, hidden] with the
// gate of each first (--fuse-gate-up-exps of the stock converter, and what it always writes for
// Gemma 4). It returns their names.
func (b *ggufBackend) fusedExperts(cfg *family.Config) (map[string]bool, error) {
	stored := map[string]bool{}
	b.experts = map[string][]string{}
	for l := range cfg.Layers {
		f := &cfg.Layers[l].FFN
		name := family.Name(l, "ffn_gate_up_exps.weight")
		t, ok := b.f.Tensor(name)
		if !ok || f.Experts == 0 {
			continue
		}
		if want := []int{f.Experts, 2 * f.Size, cfg.Hidden}; !sameShape(t.Shape(), want) {
			return nil, fmt.Errorf("tensor %s has shape %v, the configuration implies %v", name, t.Shape(), want)
		}
		stored[name] = true
		for part, of := range []string{"ffn_gate_exps.weight", "ffn_up_exps.weight"} {
			for e := range f.Experts {
				n := sliceName(name, e, part*f.Size, (part+1)*f.Size)
				b.slices[n] = slice{name, (2*e + part) * f.Size, f.Size}
				b.experts[family.Name(l, of)] = append(b.experts[family.Name(l, of)], n)
			}
		}
	}
	return stored, nil
}

func openGGUF(path string) (*Checkpoint, error) {
	f, err := gguf.Open(path)
	if err != nil {
		return nil, err
	}
	b := &ggufBackend{f: f, parts: newParts()}
	c := &Checkpoint{Path: path, Container: GGUF, b: b, parts: b.parts}
	if err := c.fromGGUF(b); err != nil {
		f.Close()
		return nil, err
	}
	return c, nil
}

func (c *Checkpoint) fromGGUF(b *ggufBackend) error {
	f := b.f
	cfg, err := ggufConfig(f)
	if err != nil {
		return err
	}
	c.Config = cfg
	var all []string
	for i := range f.Tensors {
		all = append(all, f.Tensors[i].Name)
	}
	shape := func(name string) ([]int, bool) {
		t, ok := f.Tensor(name)
		if !ok {
			return nil, false
		}
		return t.Shape(), true
	}
	stored, err := b.stack(cfg, cfg.Family.ReadStacks, func(n string) string { return n }, shape)
	if err != nil {
		return fmt.Errorf("%s: %w", c.Path, err)
	}
	fused, err := b.fusedExperts(cfg)
	if err != nil {
		return fmt.Errorf("%s: %w", c.Path, err)
	}
	maps.Copy(stored, fused)
	all = slices.DeleteFunc(all, func(n string) bool { return stored[n] })
	err = c.collect(
		func(t family.Tensor) []string {
			if n, ok := b.experts[t.Name]; ok {
				return n
			}
			if n, ok := b.stacked[t.Name]; ok {
				return []string{n}
			}
			return []string{cfg.Family.GGUFName(t.Name)}
		},
		func(name string) ([]int, string, bool) {
			if s, ok := b.slices[name]; ok {
				t, _ := f.Tensor(s.stored)
				return s.shape(t.Shape()), t.Type.String(), true
			}
			t, ok := f.Tensor(name)
			if !ok {
				return nil, "", false
			}
			return t.Shape(), t.Type.String(), true
		}, all)
	if err != nil {
		return err
	}
	if err := c.addLongRope(f); err != nil {
		return err
	}
	return c.addRopeFreqs(f)
}

// addLongRope takes the divisors of longrope, which stock readers use where they are there,
// whatever the scaling is called.
func (c *Checkpoint) addLongRope(f *gguf.File) error {
	cfg := c.Config
	k := &keys{f: f, arch: cfg.Family.GGUFArch}
	r, _ := cfg.Ropes()
	found := 0
	for _, x := range []struct {
		name string
		dst  *[]float64
	}{{"rope_factors_long.weight", &r.Divisors}, {"rope_factors_short.weight", &r.Short}} {
		t, ok := f.Tensor(x.name)
		if !ok || !cfg.Family.LongRope {
			continue
		}
		found++
		if !sameShape(t.Shape(), []int{r.Dim / 2}) {
			return fmt.Errorf("%s: tensor %s has shape %v, RoPE on %d dimensions needs [%d]", c.Path, x.name, t.Shape(), r.Dim,
				r.Dim/2)
		}
		d := make([]float32, t.Elements())
		if err := f.ReadRows(t, 0, t.Rows(), d); err != nil {
			return err
		}
		*x.dst = convert[float64](d)
		c.tensors[x.name] = &Tensor{
			Name: x.name, Layer: -1, Shape: t.Shape(), Type: t.Type.String(), Sources: []string{x.name},
		}
		c.order = append(c.order, x.name)
		c.Unknown = without(c.Unknown, x.name)
	}
	switch found {
	case 0:
		return k.err
	case 1:
		return fmt.Errorf("%s: one of rope_factors_long.weight and rope_factors_short.weight is missing", c.Path)
	}
	if r.Scaling != rope.None {
		return fmt.Errorf("%s: tensor rope_factors_long.weight does not go with RoPE scaling %q", c.Path, r.Scaling)
	}
	r.Scaling, r.OriginalContext = rope.LongRoPE, k.int("rope.scaling.original_context_length", cfg.Context)
	r.Attention = k.float("rope.scaling.attn_factor", 1)
	for l := range cfg.Layers {
		cfg.Layers[l].Rope = r
	}
	if k.err != nil {
		return k.err
	}
	return cfg.Check()
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
		if !cfg.Family.Kinds || cfg.Layers[l].Window == 0 {
			cfg.Layers[l].Rope = r
		}
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

// ints reads a count per layer, or one for all; nil where the key is absent.
func (k *keys) ints(name string) []int {
	kv, ok := k.f.KV(k.arch + "." + name)
	if !ok || k.err != nil {
		return nil
	}
	if _, array := kv.Elem(); !array {
		return []int{k.int(name, -1)}
	}
	list, err := k.f.Ints(k.arch + "." + name)
	if err != nil || len(list) == 0 || len(list) > family.MaxLayers {
		k.err = fmt.Errorf("%s: key %s.%s: expected a count per layer (%v)", k.f.Path, k.arch, name, err)
		return nil
	}
	out := make([]int, len(list))
	for i, v := range list {
		if v < 0 || v > math.MaxInt32 {
			k.err = fmt.Errorf("%s: key %s.%s: layer %d has %d", k.f.Path, k.arch, name, i, v)
			return nil
		}
		out[i] = int(v)
	}
	return out
}

// kinds reads what tells layers without a window from those with one. HeadDim is still that of
// the former.
func (k *keys) kinds(c *family.Config, p *family.Params) error {
	p.AttnScale = c.Family.Scale
	p.FullHeadDim = p.HeadDim
	p.HeadDim = k.int("attention.key_length_swa", p.HeadDim)
	if v := k.int("attention.value_length_swa", p.HeadDim); v != p.HeadDim {
		return format.Unsupportedf("key %s.attention.value_length_swa is %d and key_length_swa %d; different lengths are not "+
			"supported", k.arch, v, p.HeadDim)
	}
	p.SharedKV, c.PerLayerInput = k.int("attention.shared_kv_layers", 0), k.int("embedding_length_per_layer_input", 0)
	of := func(list []int, l int) int {
		if len(list) == 1 {
			return list[0]
		}
		if l < len(list) {
			return list[l]
		}
		return 0
	}
	kv, ffn := k.ints("attention.head_count_kv"), k.ints("feed_forward_length")
	if k.err != nil {
		return k.err
	}
	if p.SlidingWindow == 0 || len(p.Sliding) != p.Layers {
		return format.Unsupportedf("key %s.attention.sliding_window is missing; models of this architecture have one", k.arch)
	}
	var heads [2]int // of layers with a window, and of others
	for l, sliding := range p.Sliding {
		i := 1
		if sliding {
			i = 0
		}
		if heads[i] == 0 {
			heads[i] = of(kv, l)
		}
		if of(kv, l) != heads[i] {
			return format.Unsupportedf("key %s.attention.head_count_kv: layer %d has %d, others of its kind %d", k.arch, l,
				of(kv, l), heads[i])
		}
		_, own := k.f.Tensor(family.Name(l, "attn_v.weight"))
		_, fused := k.f.Tensor(family.Name(l, "attn_qkv.weight"))
		if !sliding && l < p.Layers-p.SharedKV && !own && !fused {
			p.FullValuesAreKeys = true
		}
		want := cmp.Or(p.FFN.Beside, p.FFN.Size)
		if l >= p.Layers-p.SharedKV && of(ffn, l) != want {
			p.WideFFN = true
			want *= 2
		}
		if of(ffn, l) != want {
			return format.Unsupportedf("key %s.feed_forward_length: layer %d has %d, expected %d", k.arch, l, of(ffn, l), want)
		}
	}
	if p.KVHeads = heads[0]; heads[1] != heads[0] {
		p.FullKVHeads = heads[1]
	}
	if p.KVHeads == 0 {
		p.KVHeads = heads[1]
	}
	return nil
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
	fam, err := family.ByGGUFArch(arch, experts, func(key string) bool { _, ok := f.KV(key); return ok })
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Path, err)
	}
	c := &family.Config{
		Family: fam, Pairs: fam.GGUFPairs, Hidden: k.int("embedding_length", -1),
		Context: k.int("context_length", -1), BOS: -1, EOS: -1,
	}
	eps := "attention.layer_norm_rms_epsilon"
	if fam.LayerNorm {
		eps = "attention.layer_norm_epsilon"
	}
	c.NormEps = k.float(eps, 0)
	p := &family.Params{
		Layers: k.int("block_count", -1), Heads: k.int("attention.head_count", -1), AttnBias: fam.AttnBias.With(fam.GGUFBias),
	}
	k.sizes(c, p)
	if experts > 0 {
		k.experts(c, p, experts)
	}
	if k.err != nil {
		return nil, k.err
	}
	if err := k.heads(c, p); err != nil {
		return nil, err
	}
	k.scales(c, p)
	if err := k.vocabulary(c); err != nil {
		return nil, err
	}
	if err := k.window(fam, p); err != nil {
		return nil, err
	}
	if fam.Kinds {
		if err := k.kinds(c, p); err != nil {
			return nil, fmt.Errorf("%s: %w", f.Path, err)
		}
	}
	if err := k.rope(c, p); err != nil {
		return nil, err
	}
	if k.err != nil {
		return nil, k.err
	}
	if err := c.Resolve(*p); err != nil {
		return nil, fmt.Errorf("%s: %w", f.Path, err)
	}
	return c, nil
}

// sizes fills in the numbers of KV heads, layers of a drafter and FFN neurons, and the caps of scores and logits.
func (k *keys) sizes(c *family.Config, p *family.Params) {
	fam := c.Family
	if fam.ScoreKeys {
		c.LogitSoftcap = k.float("final_logit_softcapping", fam.Defaults.LogitSoftcap)
	}
	if fam.GGUFSoftCap {
		p.SoftCap = k.float("attn_logit_softcapping", fam.Defaults.SoftCap)
	}
	if kv := []int(nil); fam.Kinds {
		if kv = k.ints("attention.head_count_kv"); kv != nil {
			p.KVHeads = kv[0] // kinds looks at the others
		}
	} else {
		p.KVHeads = k.int("attention.head_count_kv", p.Heads)
	}
	if fam.DraftKey {
		c.DraftLayers = k.int("nextn_predict_layers", 0)
		p.Layers -= c.DraftLayers
	}
	if _, ok := k.f.Tensor("blk.0.attn_q_norm.weight"); ok && fam.QKNormKey != "" {
		p.QKNorm = family.NormHead
	}
	if sizes := k.ints("feed_forward_length"); fam.Kinds && len(sizes) > 0 {
		p.FFN.Size = sizes[0]
	} else {
		p.FFN.Size = k.int("feed_forward_length", -1)
	}
}

// heads fills in their size, and refuses attention that is of another kind.
func (k *keys) heads(c *family.Config, p *family.Params) error {
	f, arch := k.f, k.arch
	if p.Heads < 1 || p.Heads > family.MaxHeads {
		return fmt.Errorf("%s: key %s.attention.head_count is %d", f.Path, arch, p.Heads)
	}
	p.HeadDim = k.int("attention.key_length", c.Hidden/p.Heads)
	if v := k.int("attention.value_length", p.HeadDim); v != p.HeadDim {
		return format.Unsupportedf("%s: key %s.attention.value_length is %d and key_length %d; different lengths are not supported",
			f.Path, arch, v, p.HeadDim)
	}
	if causal, err := f.Bool(arch + ".attention.causal"); err == nil && !causal {
		return format.Unsupportedf("%s: key %s.attention.causal is false; only causal models are supported", f.Path, arch)
	}
	return nil
}

// scales fills in what scores, embeddings, residuals and logits are multiplied by, and which layers have no RoPE.
func (k *keys) scales(c *family.Config, p *family.Params) {
	fam := c.Family
	p.AttnScale = 1 / math.Sqrt(float64(p.HeadDim))
	if fam.Multipliers {
		// An absent multiplier, or one of 0, is none.
		one := func(key string) float64 { return cmp.Or(k.float(key, 0), 1) }
		p.AttnScale = cmp.Or(k.float("attention.scale", 0), p.AttnScale)
		c.EmbeddingScale, p.ResidualScale, c.LogitScale = one("embedding_scale"), one("residual_scale"), 1/one("logit_scale")
	}
	if fam.LogitScaleKey {
		c.LogitScale = cmp.Or(k.float("logit_scale", 0), 1)
	}
	if n := fam.NoRope.Period; n > 0 && p.Layers > 0 && p.Layers <= family.MaxLayers {
		p.NoRope = make([]bool, p.Layers)
		for l := range p.NoRope {
			p.NoRope[l] = (l+1)%n == 0
		}
	}
	if fam.WideScaleLayers > 0 && p.Layers == fam.WideScaleLayers {
		p.AttnScale = 1 / math.Sqrt(float64(c.Hidden/p.Heads))
	}
}

// vocabulary fills in its size, and the tokens at both ends of a text.
func (k *keys) vocabulary(c *family.Config) error {
	f := k.f
	embd, ok := f.Tensor("token_embd.weight")
	if !ok {
		return fmt.Errorf("%s: tensor token_embd.weight is missing", f.Path)
	}
	c.Vocab = embd.Rows()
	// More rows than tokens are padding; a token without a row is another model's.
	if kv, ok := f.KV("tokenizer.ggml.tokens"); ok && kv.Len() > c.Vocab {
		return fmt.Errorf("%s: tensor token_embd.weight has %d rows, and key tokenizer.ggml.tokens %d tokens; they do not "+
			"belong together", f.Path, c.Vocab, kv.Len())
	}
	_, head := f.Tensor("output.weight")
	c.TiedEmbeddings = !head
	for key, dst := range map[string]*int{"tokenizer.ggml.bos_token_id": &c.BOS, "tokenizer.ggml.eos_token_id": &c.EOS} {
		if v, err := f.Uint(key); err == nil && v < family.MaxVocab {
			*dst = int(v)
		}
	}
	return nil
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
	if x.Beside {
		f.Beside = dense
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
		k.err = cmp.Or(k.err, format.Unsupportedf("%s: key %s.interleave_moe_layer_step is %d; only 1 is supported",
			k.f.Path, k.arch, step))
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
	if n := fam.Window.Layers; n > 0 && n != p.Layers {
		return k.err
	}
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
	fam := c.Family
	whole := cmp.Or(p.FullHeadDim, p.HeadDim)
	dim := k.int("rope.dimension_count", whole)
	if dim != whole && !fam.PartialRotary {
		return format.Unsupportedf("%s: key %s.rope.dimension_count is %d and head_dim %d; stock readers of this architecture turn "+
			"all dimensions", k.f.Path, k.arch, dim, p.HeadDim)
	}
	r := rope.Params{Theta: k.float("rope.freq_base", 10000), Dim: dim}
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
			if fam.RampKeys {
				r.BetaFast, r.BetaSlow = k.float("rope.scaling.yarn_beta_fast", stockBetaFast), k.float("rope.scaling.yarn_beta_slow", stockBetaSlow)
				if n := k.float("rope.scaling.yarn_log_multiplier", 0); n != 0 {
					ln := float64(0.1 * fmath.Log(factor))
					r.Attention = (1 + ln) / (1 + float64(n*ln))
				}
			}
			if n := k.float("rope.scaling.attn_factor", 1); n != 1 {
				r.Attention = float64(n * r.Magnitude())
			}
		}
	case "longrope":
		if !fam.LongRope {
			return format.Unsupportedf("%s: key %s.rope.scaling.type is longrope, which stock readers of this architecture do not "+
				"compute", k.f.Path, k.arch)
		}
	default:
		return format.Unsupportedf("%s: key %s.rope.scaling.type is %q; linear, yarn and longrope are supported", k.f.Path, k.arch,
			kind)
	}
	if err := k.unheeded(fam, kind); err != nil {
		return err
	}
	p.Rope, p.RopeLocal = r, r
	if p.SlidingWindow > 0 {
		base := k.float("rope.freq_base_swa", cmp.Or(fam.Window.GGUFBase, r.Theta))
		if !fam.Window.SameRope {
			p.RopeLocal = rope.Params{Dim: r.Dim}
			if fam.Kinds {
				p.RopeLocal.Dim = k.int("rope.dimension_count_swa", p.HeadDim)
			}
		}
		if p.RopeLocal.Theta = base; fam.Window.SameBase {
			p.RopeLocal.Theta = r.Theta
		}
	}
	if beta := k.float("attention.temperature_scale", 0); beta != 0 && fam.TemperatureKey {
		p.Temperature = family.Temperature{Beta: beta, Length: k.int("rope.scaling.original_context_length", c.Context)}
	}
	return k.err
}

// unheeded refuses keys of a scaling whose values are not the usual ones: stock readers of these
// architectures heed the first of them only, so a file with another value means one thing and
// computes another.
func (k *keys) unheeded(fam *family.Family, kind string) error {
	for _, x := range []struct {
		key  string
		want float64
	}{{"attn_factor", 1}, {"yarn_beta_fast", stockBetaFast}, {"yarn_beta_slow", stockBetaSlow}, {"yarn_ext_factor", 1},
		{"yarn_attn_factor", 1}, {"yarn_log_multiplier", 0}} {
		if x.key == "attn_factor" && kind != "linear" || fam.RampKeys && x.key != "yarn_ext_factor" && x.key != "yarn_attn_factor" {
			continue
		}
		if v := k.float("rope.scaling."+x.key, x.want); v != x.want {
			return format.Unsupportedf("%s: key %s.rope.scaling.%s is %g; only %g is supported", k.f.Path, k.arch, x.key, v,
				x.want)
		}
	}
	return nil
}

func (b *ggufBackend) readRows(source string, row0, n int, dst []float32) error {
	s, part := b.slices[source]
	if part {
		source = s.stored
	}
	t, _ := b.f.Tensor(source)
	if part {
		return s.read(t.Shape(), row0, n, dst, func(row0, n int, dst []float32) error {
			return b.f.ReadRows(t, row0, n, dst)
		})
	}
	return b.f.ReadRows(t, row0, n, dst)
}

func (b *ggufBackend) raw(source string) (*io.SectionReader, error) {
	s, part := b.slices[source]
	if part {
		source = s.stored
	}
	t, ok := b.f.Tensor(source)
	if !ok {
		return nil, fmt.Errorf("%s: no tensor %s", b.f.Path, source)
	}
	if part {
		return s.section(b.f.Reader(t), t.Shape()), nil
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

// GGUFVocab reads the vocabulary of a GGUF file, whatever model is in it.
func GGUFVocab(path string) (*tokenizer.Vocab, error) {
	f, err := gguf.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	v, err := tokenizer.FromGGUF(metadata{f})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return v, nil
}

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
