package family

import (
	"cmp"
	"fmt"
	"math"
	"reflect"
	"strings"

	"github.com/phaseconv/phaseconv/format"
	"github.com/phaseconv/phaseconv/kernels/fmath"
	"github.com/phaseconv/phaseconv/kernels/rope"
)

// A Layer describes one layer of a model: what its attention and its FFN compute. A
// family's entry makes the layers once, from the numbers of a configuration file
// (Config.Resolve); whoever runs, changes or writes a layer asks its description.
type Layer struct {
	Attention
	FFN FFN
	// PostNorms: the outputs of attention and FFN are normalised before they are added
	// to the residual stream (sandwich).
	PostNorms bool
	// BareInputs: the inputs of attention and FFN are not normalised (OLMo 2, EXAONE 4).
	BareInputs bool
	// Parallel: the FFN reads the normalised input of attention, and both are added to what
	// came into the layer (Cohere).
	Parallel bool
	// ResidualScale multiplies the outputs of attention and FFN before they are added, 1 in
	// most families (granite's residual_multiplier).
	ResidualScale float64
	// OutputScale: the layer's output is multiplied by a learned number (Gemma 4).
	OutputScale bool
}

// AttentionKind is how a layer lets tokens see each other.
type AttentionKind int

// The kinds of attention.
const (
	Softmax   AttentionKind = iota // keys and values of each KV head are cached
	Latent                         // one latent row per token is cached (MLA)
	Recurrent                      // a state of fixed size instead of a cache (delta net, Mamba, convolution)
)

// QKNorm says over what the queries and keys are RMS-normalised.
type QKNorm int

// The kinds of QK-norm.
const (
	NoQKNorm   QKNorm = iota
	NormHead          // each head by itself, one gain vector of head_dim for all heads of the layer
	NormLayers        // all heads of the projection together, gains as long as the projection
)

// String returns "none", "head" or "projection": what is normalised together.
func (q QKNorm) String() string { return [...]string{"none", "head", "projection"}[q] }

// Gate says what the output of attention is multiplied with before its projection.
type Gate int

// The gates of attention.
const (
	NoGate      Gate = iota
	GateChannel      // a number per query head and dimension
	GateHead         // a number per query head
)

// HeadShape is the number and length of a layer's heads.
type HeadShape struct {
	Heads   int // query heads
	KVHeads int // key/value heads (GQA: Heads is a multiple)
	HeadDim int // length of one query or key head
	// ValueDim is the length of one value head; no family here has another than HeadDim.
	ValueDim int
}

// Group returns how many query heads share one KV head.
func (s HeadShape) Group() int { return s.Heads / s.KVHeads }

// Attention describes the attention of one layer.
type Attention struct {
	Kind AttentionKind
	HeadShape
	// Owner is the layer whose keys and values are read: the layer itself, or with
	// shared KV an earlier one. Only an owner has tensors for keys and values.
	Owner int
	// Rope turns queries and keys. Rope.Dim is how many dimensions of a head turn, from
	// the first on: 0 in a layer without RoPE.
	Rope rope.Params
	// Window is how many positions, itself included, a query sees; 0: all.
	Window int
	Scale  float64 // scores are multiplied by it; 1/sqrt(HeadDim) in most families
	// SoftCap, if not 0, replaces a scaled score s by SoftCap tanh(s / SoftCap) (Gemma 2).
	SoftCap float64
	QKNorm  QKNorm
	// NormAfterRoPE: QKNorm acts after RoPE instead of before (Hunyuan).
	NormAfterRoPE bool
	// ValueNorm: values are RMS-normalised per head, without gain (Gemma 4).
	ValueNorm bool
	// ValuesAreKeys: values are what the key projection gives, before its norm (Gemma 4).
	ValuesAreKeys bool
	// Temperature grows the queries with their position.
	Temperature Temperature
	Biases      Biases // projections that may have a bias
	Sinks       bool   // a learned logit per query head joins the softmax and is dropped
	Gate        Gate
	// FixedKeys and FixedValues say why no edit of keys, or of values, passes into weights: an operation
	// of a graph that llama.cpp computes (FromGraph). Families of the table have none.
	FixedKeys, FixedValues string
}

// A Temperature multiplies the query at position p by 1 + Beta ln(1 + floor(p / Length)), after
// RoPE (Ministral 3, Llama 4). A Beta of 0 is none.
type Temperature struct {
	Beta   float64
	Length int // in positions
}

// At returns the factor of the query at position p.
func (t Temperature) At(p int) float64 {
	if t.Beta == 0 {
		return 1
	}
	return 1 + float64(t.Beta*fmath.Log(float64(1+p/t.Length)))
}

// Activation is the nonlinearity of the FFN, of its gate where it has one.
type Activation int

// The activations that families use.
const (
	SiLU Activation = iota
	GELUTanh
	// ClampedSwiGLU (gpt-oss) with gate and up: the gate is clamped above at ClampLimit, up on
	// both sides; gate * sigmoid(ClampAlpha gate) * (up + 1).
	ClampedSwiGLU
)

// The numbers of ClampedSwiGLU, which runtimes have built in.
const (
	ClampAlpha = 1.702
	ClampLimit = 7.0
)

// FFNKind is the form of a feed-forward network, or of each expert of one.
type FFNKind int

// The forms of an FFN.
const (
	Gated   FFNKind = iota // down(act(gate x) * up x)
	Ungated                // down(act(up x))
)

// Router is how a mixture weighs its experts.
type Router int

// The routers of mixtures.
const (
	// SoftmaxTopK: softmax over all experts, the best Used of them, their weights
	// divided by their sum if Renorm is set.
	SoftmaxTopK Router = iota
	TopKSoftmax        // the best Used logits, softmax over them
	SigmoidTopK        // sigmoid of each logit, a bias for the choice alone, groups
)

// FFN describes the feed-forward network of one layer.
type FFN struct {
	Kind       FFNKind
	Activation Activation
	Size       int // intermediate size, of one expert in a mixture

	Experts int // 0 in a dense layer
	Used    int // experts per token
	Router  Router
	// Renorm: the weights of the chosen experts are divided by their sum.
	Renorm bool
	// RouterBias: the logits of the router have a bias. ChoiceBias: a bias is added to the
	// probabilities for choosing the best, but not to their weights.
	RouterBias, ChoiceBias bool
	// Groups: the experts form so many groups, of which GroupsUsed take part, those with the
	// largest sums of their two best; below 2: there are none.
	Groups, GroupsUsed int
	// WeightScale multiplies the weights of the chosen experts; 0 means 1.
	WeightScale float64
	// Biases: gate, up and down of each expert have one.
	Biases bool
	// Shared is the number of experts that every token goes through, beside the chosen ones: in
	// weights they are one FFN of SharedSize. With SharedGate the sigmoid of one more logit
	// multiplies its output.
	Shared, SharedSize int
	SharedGate         bool
	// Beside, of a mixture, is the intermediate size of a plain FFN that runs beside it (Gemma 4);
	// 0: there is none. Then the router reads the normed residual stream times gains of its own, the
	// experts read it through another norm than the FFN, both results are normed before
	// they are added, and the weight of each expert has a learned factor.
	Beside int
}

// Features are what a layer can have beyond softmax attention over its own keys and values,
// all dimensions of which RoPE turns, and a gated FFN, perhaps a mixture with a
// SoftmaxTopK router. Whoever handles layers says by
// Config.Require which of them it can.
type Features uint32

// The features of layers.
const (
	LatentKV         Features = 1 << iota // Kind Latent
	RecurrentBlock                        // Kind Recurrent
	SharedKV                              // Owner is another layer
	NoRoPE                                // Rope.Dim is 0
	PartialRoPE                           // Rope.Dim is below HeadDim
	ValueLength                           // ValueDim is not HeadDim
	LateNorm                              // NormAfterRoPE
	NormedValues                          // ValueNorm
	NoPreNorms                            // BareInputs
	AttentionSinks                        // Sinks
	OutputGate                            // Gate
	UngatedFFN                            // Kind Ungated
	OtherRouter                           // Router is not SoftmaxTopK, or it has biases, groups or a scale
	SharedExperts                         // Shared
	KeysAsValues                          // ValuesAreKeys
	QueryTemperature                      // Temperature
	OtherExperts                          // Biases of experts, ClampedSwiGLU, Beside
	CappedScores                          // SoftCap
	OtherBlock                            // Parallel, ResidualScale, OutputScale, Config.LayerNorm or PerLayerInput
)

// OutsideCache are the features that change neither what a KV cache holds nor how.
const OutsideCache = QueryTemperature | CappedScores | OtherBlock | NoPreNorms | AttentionSinks | OutputGate | UngatedFFN |
	OtherRouter | SharedExperts | OtherExperts

// OwnHeads are the features of layers that cache keys and values of their own, head by head, in
// whatever way they make them.
const OwnHeads = OutsideCache | NoRoPE | PartialRoPE | LateNorm | NormedValues | KeysAsValues

var featureNames = []string{
	"latent attention (MLA)", "a recurrent block instead of attention", "keys and values of another layer",
	"attention without RoPE", "RoPE on a part of each head", "values of another length than keys",
	"a norm of queries and keys after RoPE", "a norm of values", "no norm before attention and FFN",
	"attention sinks", "a gate on the output of attention", "an FFN without gate",
	"a router other than softmax over all experts", "shared experts", "keys as values", "queries that grow with their position",
	"experts with biases or a clamped activation or beside a plain FFN", "a soft cap on attention scores",
	"another block than attention and FFN, each of which is normed and added",
}

// String names what is set, for messages.
func (f Features) String() string {
	var out []string
	for i, n := range featureNames {
		if f&(1<<i) != 0 {
			out = append(out, n)
		}
	}
	return strings.Join(out, ", ")
}

// otherRouter says whether more happens than softmax over all experts and a choice of the best.
func (f *FFN) otherRouter() bool {
	return f.Router != SoftmaxTopK || f.RouterBias || f.ChoiceBias || f.Groups > 1 || f.Scale() != 1
}

// Scale returns what the weights of the chosen experts are multiplied by.
func (f *FFN) Scale() float64 {
	if f.WeightScale == 0 {
		return 1
	}
	return f.WeightScale
}

// features returns those of layer number l.
func (c *Config) features(l int) Features {
	var f Features
	y := &c.Layers[l]
	for _, x := range []struct {
		on   bool
		flag Features
	}{
		{y.Kind == Latent, LatentKV},
		{y.Kind == Recurrent, RecurrentBlock},
		{y.Kind == Softmax && y.Owner != l, SharedKV},
		{y.Kind == Softmax && y.Rope.Dim == 0, NoRoPE},
		{y.Kind == Softmax && y.Rope.Dim > 0 && y.Rope.Dim < y.HeadDim, PartialRoPE},
		{y.Kind == Softmax && y.ValueDim != y.HeadDim, ValueLength},
		{y.NormAfterRoPE, LateNorm},
		{y.ValueNorm, NormedValues},
		{y.BareInputs, NoPreNorms},
		{y.Sinks, AttentionSinks},
		{y.Gate != NoGate, OutputGate},
		{y.FFN.Kind != Gated, UngatedFFN},
		{y.FFN.Experts > 0 && y.FFN.otherRouter(), OtherRouter},
		{y.FFN.Biases || y.FFN.Activation == ClampedSwiGLU || y.FFN.Beside > 0, OtherExperts},
		{y.FFN.Shared > 0, SharedExperts},
		{y.ValuesAreKeys, KeysAsValues},
		{y.Temperature.Beta != 0, QueryTemperature},
		{y.SoftCap != 0, CappedScores},
		{y.Parallel || y.ResidualScale != 1 || y.OutputScale || c.LayerNorm || c.PerLayerInput > 0, OtherBlock},
	} {
		if x.on {
			f |= x.flag
		}
	}
	return f
}

// Require refuses, by name, the first layer with a feature that is not among those
// that who ("the forward pass") can handle.
func (c *Config) Require(who string, can Features) error {
	for l := range c.Layers {
		if err := c.RequireLayer(l, who, can); err != nil {
			return err
		}
	}
	return nil
}

// RequireLayer is Require for one layer.
func (c *Config) RequireLayer(l int, who string, can Features) error {
	if f := c.features(l) &^ can; f != 0 {
		return format.Unsupportedf("layer %d of this %s model has %s, which %s does not support", l, c.Family.Name, f, who)
	}
	return nil
}

// Uniform returns the shape that the heads of all layers share. Formats and searches
// with one number for the whole model need it: it refuses a model whose layers differ.
func (c *Config) Uniform() (HeadShape, error) {
	first := c.Layers[0].HeadShape
	for l := range c.Layers {
		if x := c.Layers[l].HeadShape; x != first {
			return first, format.Unsupportedf("layer 0 has %d heads and %d KV heads of %d, layer %d has %d and %d of %d; "+
				"models whose layers differ in this are not supported here",
				first.Heads, first.KVHeads, first.HeadDim, l, x.Heads, x.KVHeads, x.HeadDim)
		}
	}
	return first, nil
}

// Experts returns the number of experts of the layers that are mixtures, 0 in a dense
// model.
func (c *Config) Experts() int {
	n := 0
	for l := range c.Layers {
		n = max(n, c.Layers[l].FFN.Experts)
	}
	return n
}

// Mixture returns the FFN of the first layer that is a mixture, nil in a dense model.
func (c *Config) Mixture() *FFN {
	for l := range c.Layers {
		if f := &c.Layers[l].FFN; f.Experts > 0 {
			return f
		}
	}
	return nil
}

// DenseLead returns how many layers in front of the first mixture are dense, and whether all
// behind it are mixtures; 0 and true for a dense model.
func (c *Config) DenseLead() (lead int, ok bool) {
	if c.Mixture() == nil {
		return 0, true
	}
	for c.Layers[lead].FFN.Experts == 0 {
		lead++
	}
	for _, y := range c.Layers[lead:] {
		if y.FFN.Experts == 0 {
			return lead, false
		}
	}
	return lead, true
}

// Window returns the window of the layers that have one, 0 if none has; and for
// each layer whether it has one.
func (c *Config) Window() (window int, sliding []bool) {
	sliding = make([]bool, len(c.Layers))
	for l := range c.Layers {
		if w := c.Layers[l].Window; w > 0 {
			window, sliding[l] = w, true
		}
	}
	return window, sliding
}

// Ropes returns the RoPE parameters of layers without a window and of layers with
// one, of those that RoPE turns at all; where a model has one kind only, both are its parameters.
func (c *Config) Ropes() (full, sliding rope.Params) {
	have := [2]bool{}
	of := [2]rope.Params{}
	for l := range c.Layers {
		i := 0
		if c.Layers[l].Window > 0 {
			i = 1
		}
		if !have[i] && c.Layers[l].Rope.Dim > 0 {
			have[i], of[i] = true, c.Layers[l].Rope
		}
	}
	switch {
	case !have[0]:
		of[0] = of[1]
	case !have[1]:
		of[1] = of[0]
	}
	return of[0], of[1]
}

// OwnKVHeads returns how many KV heads layer l has in a cache: none where it reads those of another
// layer.
func (c *Config) OwnKVHeads(l int) int {
	if c.Layers[l].Owner != l {
		return 0
	}
	return c.Layers[l].KVHeads
}

// CachedDims returns the length of the keys of each head in a cache, layer by layer.
func (c *Config) CachedDims() []int {
	var out []int
	for l := range c.Layers {
		for range c.OwnKVHeads(l) {
			out = append(out, c.Layers[l].HeadDim)
		}
	}
	return out
}

// KeepDrafted forbids edits of the keys and values that the family's drafter reads, and returns
// their layers; none without a drafter.
func (c *Config) KeepDrafted() (layers []int) {
	if c.Family.Drafter == "" {
		return nil
	}
	var seen [2]bool
	for l := len(c.Layers) - 1; l >= 0; l-- {
		y, kind := &c.Layers[l], 0
		if y.Window > 0 {
			kind = 1
		}
		if y.Owner != l || seen[kind] {
			continue
		}
		seen[kind] = true
		y.FixedKeys = fmt.Sprintf("the drafter %s reads the keys of layer %d", c.Family.Drafter, l)
		y.FixedValues = fmt.Sprintf("the drafter %s reads the values of layer %d", c.Family.Drafter, l)
		layers = append([]int{l}, layers...)
	}
	return layers
}

// Alike says whether each layer caches keys and values of its own, and all have heads of one shape.
func (c *Config) Alike() bool {
	_, err := c.Uniform()
	return err == nil && c.SharedLayers() == 0
}

// SharedLayers returns how many of the last layers read keys and values of others.
func (c *Config) SharedLayers() int {
	n := 0
	for l := range c.Layers {
		if c.Layers[l].Kind == Softmax && c.Layers[l].Owner != l {
			n++
		}
	}
	return n
}

// Readers returns the layers that read the keys and values of layer l, itself among them; none
// if it reads another's.
func (c *Config) Readers(l int) []int {
	var out []int
	for i := range c.Layers {
		if c.Layers[i].Owner == l {
			out = append(out, i)
		}
	}
	return out
}

// LastReader returns the last of the layers that read the keys and values of layer l, or l itself.
func (c *Config) LastReader(l int) int {
	for i := len(c.Layers) - 1; i > l; i-- {
		if c.Layers[i].Owner == l {
			return i
		}
	}
	return l
}

// Shared says whether other layers read the keys and values of layer l.
func (c *Config) Shared(l int) bool { return len(c.Readers(l)) > 1 }

// PairsIn returns the pairs of dimensions of layer l's heads: those that RoPE turns, and
// behind them pairs that stand still.
func (c *Config) PairsIn(l int) rope.Layout { return c.Pairs.Part(c.Layers[l].Rope.Dim) }

// RopeKind returns the first layer with the same RoPE parameters as layer l: what is
// made of them, such as tables of angles, can be kept by that number.
func (c *Config) RopeKind(l int) int {
	for i := range l {
		if reflect.DeepEqual(c.Layers[i].Rope, c.Layers[l].Rope) {
			return i
		}
	}
	return l
}

// Params are the numbers of a configuration file from which a family's entry makes
// layers: one for all layers, or one per layer where the families here need that.
type Params struct {
	Layers                  int
	Heads, KVHeads, HeadDim int
	AttnScale               float64
	SoftCap                 float64 // of attention scores; 0: none
	AttnBias                Biases
	QKNorm                  QKNorm // where the family leaves it to a key
	// Rope turns the keys of layers without a window, RopeLocal those of layers with one.
	Rope, RopeLocal rope.Params
	// FullHeadDim and FullKVHeads are those of layers without a window; 0: as others have.
	FullHeadDim, FullKVHeads int
	// FullValuesAreKeys: in layers without a window values are keys.
	FullValuesAreKeys bool
	// SharedKV is how many of the last layers read the keys and values of the last one of their
	// kind in front of them; WideFFN: their FFNs are of twice the size.
	SharedKV int
	WideFFN  bool
	// NoRope is true for layers that turn nothing; nil: all do.
	NoRope        []bool
	ResidualScale float64 // 0 is 1
	Temperature   Temperature
	// SlidingWindow is the window of the layers for which Sliding is true; 0: no
	// window anywhere.
	SlidingWindow int
	Sliding       []bool // one per layer, nil when SlidingWindow is 0

	// FFN is that of all layers but those of Dense, which have a plain one of Config.DenseFFN.
	FFN   FFN
	Dense []bool // one per layer; nil: none
}

// check refuses lists that are not of one entry per layer, and numbers of layers that no model has.
func (p *Params) check() error {
	if p.Layers < 1 || p.Layers > MaxLayers {
		return format.Brokenf("num_hidden_layers is %d, expected 1 to %d", p.Layers, MaxLayers)
	}
	if p.SharedKV < 0 || p.SharedKV > p.Layers {
		return format.Brokenf("num_kv_shared_layers is %d of %d", p.SharedKV, p.Layers)
	}
	if p.NoRope != nil && len(p.NoRope) != p.Layers {
		return format.Brokenf("no_rope_layers has %d entries for %d layers", len(p.NoRope), p.Layers)
	}
	if p.Dense != nil && len(p.Dense) != p.Layers {
		return format.Brokenf("dense flags for %d of %d layers", len(p.Dense), p.Layers)
	}
	if p.SlidingWindow > 0 && len(p.Sliding) != p.Layers {
		return format.Brokenf("sliding-window flags for %d of %d layers", len(p.Sliding), p.Layers)
	}
	return nil
}

// Resolve makes the layers of c, whose Family and model-wide numbers are set, and
// checks all. The error names the offending quantity in the words of config.json.
func (c *Config) Resolve(p Params) error {
	f := c.Family
	if err := p.check(); err != nil {
		return err
	}
	if c.EmbeddingScale == 0 {
		c.EmbeddingScale = 1
		if f.ScaleEmbeddings {
			c.EmbeddingScale = math.Sqrt(float64(max(0, c.Hidden)))
		}
	}
	if c.LogitScale == 0 {
		c.LogitScale = 1
	}
	c.LayerNorm = f.LayerNorm
	c.Layers = make([]Layer, p.Layers)
	for l := range c.Layers {
		y := Layer{
			Attention: Attention{
				HeadShape: HeadShape{Heads: p.Heads, KVHeads: p.KVHeads, HeadDim: p.HeadDim, ValueDim: p.HeadDim},
				Owner:     l, Rope: p.Rope, Scale: p.AttnScale, SoftCap: p.SoftCap, QKNorm: cmp.Or(f.QKNorm,
					p.QKNorm), Biases: p.AttnBias,
				Sinks: f.Sinks, NormAfterRoPE: f.NormAfterRoPE, Temperature: p.Temperature, ValueNorm: f.ValueNorm,
			},
			FFN: p.FFN, PostNorms: f.PostNorms, BareInputs: f.BareInputs, Parallel: f.Parallel,
			ResidualScale: cmp.Or(p.ResidualScale, 1), OutputScale: f.OutputScale,
		}
		y.FFN.Activation = f.Activation
		if p.Dense != nil && p.Dense[l] {
			y.FFN = FFN{Activation: f.Activation, Size: c.DenseFFN}
		}
		if p.SlidingWindow > 0 && p.Sliding[l] {
			y.Window, y.Rope = p.SlidingWindow, p.RopeLocal
		}
		if p.NoRope != nil && p.NoRope[l] || f.NoRope.Full && p.SlidingWindow > 0 && y.Window == 0 {
			y.Rope = rope.Params{}
		}
		if y.Window == 0 {
			y.HeadDim, y.ValueDim = cmp.Or(p.FullHeadDim, y.HeadDim), cmp.Or(p.FullHeadDim, y.ValueDim)
			y.KVHeads, y.ValuesAreKeys = cmp.Or(p.FullKVHeads, y.KVHeads), p.FullValuesAreKeys
		}
		if first := p.Layers - p.SharedKV; l >= first {
			if y.Owner = first - 1; first > 0 {
				for y.Owner > 0 && (c.Layers[y.Owner].Window > 0) != (y.Window > 0) {
					y.Owner--
				}
			}
			if y.Owner < 0 || (c.Layers[y.Owner].Window > 0) != (y.Window > 0) {
				return format.Brokenf("num_kv_shared_layers is %d, but layer %d finds none in front of them with keys for it",
					p.SharedKV, l)
			}
			if p.WideFFN {
				y.FFN.Size *= 2
			}
		}
		c.Layers[l] = y
	}
	return c.Check()
}

// check refuses numbers that no layer has or that contradict each other.
func (y *Layer) check(l int) error {
	for _, x := range []struct {
		name   string
		v, max int
	}{
		{"num_attention_heads", y.Heads, MaxHeads},
		{"num_key_value_heads", y.KVHeads, MaxHeads},
		{"head_dim", y.HeadDim, MaxHeadDim},
		{"intermediate_size", y.FFN.Size, MaxFFN},
	} {
		if x.v < 1 || x.v > x.max {
			return fmt.Errorf("%s is %d, expected 1 to %d", x.name, x.v, x.max)
		}
	}
	if y.ValueDim < 1 || y.ValueDim > MaxHeadDim {
		return fmt.Errorf("values of length %d, expected 1 to %d", y.ValueDim, MaxHeadDim)
	}
	if y.Heads%y.KVHeads != 0 {
		return fmt.Errorf("num_attention_heads %d is not a multiple of num_key_value_heads %d", y.Heads, y.KVHeads)
	}
	if y.HeadDim%2 != 0 {
		return fmt.Errorf("head_dim %d is odd; RoPE needs pairs", y.HeadDim)
	}
	if !(y.Scale > 0 && y.Scale <= 16) {
		return fmt.Errorf("attention scale is %g, expected a positive number", y.Scale)
	}
	if !(y.SoftCap >= 0 && y.SoftCap < 1e6) {
		return fmt.Errorf("attn_logit_softcapping is %g, expected a positive number or none", y.SoftCap)
	}
	if y.Owner < 0 || y.Owner > l || y.Window < 0 {
		return fmt.Errorf("keys and values of layer %d and a window of %d", y.Owner, y.Window)
	}
	if err := y.FFN.check(); err != nil {
		return err
	}
	if t := y.Temperature; t.Beta != 0 && !(t.Beta > 0 && t.Beta < 100 && t.Length > 0) {
		return fmt.Errorf("queries grow with %g per e-fold of %d positions, expected positive numbers", t.Beta, t.Length)
	}
	if !(y.ResidualScale > 0 && y.ResidualScale < 1e6) {
		return fmt.Errorf("residual_multiplier is %g, expected a positive number", y.ResidualScale)
	}
	if y.Rope.Dim > y.HeadDim {
		return fmt.Errorf("RoPE turns %d of %d dimensions", y.Rope.Dim, y.HeadDim)
	}
	if y.Rope.Dim == 0 {
		return nil
	}
	return y.Rope.Check()
}

// check refuses numbers that no FFN has.
func (f *FFN) check() error {
	n := f.Experts
	if n < 0 || n > MaxExperts || n > 0 && (f.Used < 1 || f.Used > n) {
		return fmt.Errorf("%d experts of which %d are used per token", n, f.Used)
	}
	if f.Beside < 0 || f.Beside > MaxFFN || f.Beside > 0 && n == 0 {
		return fmt.Errorf("a plain FFN of %d beside %d experts", f.Beside, n)
	}
	if f.Shared < 0 || f.Shared > MaxExperts || f.SharedSize < 0 || f.SharedSize > MaxFFN ||
		(f.Shared > 0) != (f.SharedSize > 0) {
		return fmt.Errorf("%d shared experts of together %d dimensions", f.Shared, f.SharedSize)
	}
	if f.Groups > 1 && (n%f.Groups != 0 || n/f.Groups < 2 || f.GroupsUsed < 1 || f.GroupsUsed > f.Groups ||
		f.GroupsUsed*(n/f.Groups) < f.Used) {
		return fmt.Errorf("%d experts in %d groups of which %d take part (n_group, topk_group)", n, f.Groups, f.GroupsUsed)
	}
	if s := f.Scale(); !(s > 0 && s < 1e6) {
		return fmt.Errorf("routed_scaling_factor is %g, expected a positive number", s)
	}
	return nil
}

// has says whether layer number l has the tensor with this name pattern at all.
func (y *Layer) has(l int, pattern string) bool {
	switch strings.TrimPrefix(pattern, "blk.%d.") {
	case "attn_norm.weight":
		return !y.BareInputs
	case "ffn_norm.weight":
		return !y.BareInputs && !y.Parallel
	case "attn_q.bias":
		return y.Biases.Q
	case "attn_k.bias":
		return y.Owner == l && y.Biases.K
	case "attn_v.bias":
		return y.Owner == l && y.Biases.V
	case "attn_output.bias":
		return y.Biases.O
	case "attn_v.weight":
		return y.Owner == l && !y.ValuesAreKeys
	case "attn_k.weight":
		return y.Owner == l
	case "attn_k_norm.weight":
		return y.Owner == l && y.QKNorm != NoQKNorm
	case "attn_q_norm.weight":
		return y.QKNorm != NoQKNorm
	case "attn_sinks.weight":
		return y.Sinks
	case "layer_output_scale.weight":
		return y.OutputScale
	case "ffn_gate.weight", "ffn_up.weight", "ffn_down.weight":
		return y.FFN.Experts == 0 || y.FFN.Beside > 0
	case "ffn_gate_inp.scale", "ffn_down_exps.scale", "pre_ffw_norm_2.weight", "post_ffw_norm_1.weight", "post_ffw_norm_2.weight":
		return y.FFN.Beside > 0
	case "ffn_gate_inp.weight", "ffn_gate_exps.weight", "ffn_up_exps.weight", "ffn_down_exps.weight":
		return y.FFN.Experts > 0
	case "ffn_gate_inp.bias":
		return y.FFN.RouterBias
	case "exp_probs_b.bias":
		return y.FFN.ChoiceBias
	case "ffn_gate_exps.bias", "ffn_up_exps.bias", "ffn_down_exps.bias":
		return y.FFN.Biases && y.FFN.Experts > 0
	case "ffn_gate_shexp.weight", "ffn_up_shexp.weight", "ffn_down_shexp.weight":
		return y.FFN.Shared > 0
	case "ffn_gate_inp_shexp.weight":
		return y.FFN.Shared > 0 && y.FFN.SharedGate
	}
	return true
}

// shape gives the expected shape of the layer's tensor with this name pattern.
func (y *Layer) shape(pattern string, hidden int) []int {
	q, k := y.Heads*y.HeadDim, y.KVHeads*y.HeadDim
	v, out := y.KVHeads*y.ValueDim, y.Heads*y.ValueDim
	normQ, normK := y.HeadDim, y.HeadDim
	if y.QKNorm == NormLayers {
		normQ, normK = q, k
	}
	switch strings.TrimPrefix(pattern, "blk.%d.") {
	case "attn_q.weight":
		return []int{q, hidden}
	case "attn_k.weight":
		return []int{k, hidden}
	case "attn_v.weight":
		return []int{v, hidden}
	case "attn_output.weight":
		return []int{hidden, out}
	case "attn_q.bias":
		return []int{q}
	case "attn_k.bias":
		return []int{k}
	case "attn_v.bias":
		return []int{v}
	case "attn_sinks.weight":
		return []int{y.Heads}
	case "layer_output_scale.weight":
		return []int{1}
	case "attn_q_norm.weight":
		return []int{normQ}
	case "attn_k_norm.weight":
		return []int{normK}
	case "ffn_gate.weight", "ffn_up.weight":
		return []int{cmp.Or(y.FFN.Beside, y.FFN.Size), hidden}
	case "ffn_down.weight":
		return []int{hidden, cmp.Or(y.FFN.Beside, y.FFN.Size)}
	case "ffn_down_exps.scale":
		return []int{y.FFN.Experts}
	case "ffn_gate_inp.weight":
		return []int{y.FFN.Experts, hidden}
	case "ffn_gate_exps.weight", "ffn_up_exps.weight":
		return []int{y.FFN.Experts, y.FFN.Size, hidden}
	case "ffn_down_exps.weight":
		return []int{y.FFN.Experts, hidden, y.FFN.Size}
	case "ffn_gate_inp.bias", "exp_probs_b.bias":
		return []int{y.FFN.Experts}
	case "ffn_gate_exps.bias", "ffn_up_exps.bias":
		return []int{y.FFN.Experts, y.FFN.Size}
	case "ffn_down_exps.bias":
		return []int{y.FFN.Experts, hidden}
	case "ffn_gate_shexp.weight", "ffn_up_shexp.weight":
		return []int{y.FFN.SharedSize, hidden}
	case "ffn_down_shexp.weight":
		return []int{hidden, y.FFN.SharedSize}
	}
	// Norm gains and the output bias live in the residual stream.
	return []int{hidden}
}
