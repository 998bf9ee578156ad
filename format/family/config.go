package family

import (
	"fmt"

	"github.com/phaseconv/phaseconv/kernels/rope"
)

// Limits on numbers read from a configuration. They are far above every
// published model and keep a hostile file from asking for absurd memory.
const (
	MaxLayers  = 4096
	MaxHeads   = 1 << 14
	MaxHeadDim = 1 << 12
	MaxHidden  = 1 << 18
	MaxFFN     = 1 << 20
	MaxVocab   = 1 << 24
	MaxExperts = 1 << 12
	MaxContext = 1 << 30
)

// Config is the shape of one model: everything that the forward pass, the plan
// and the writers need to know, whatever container it was read from.
// Units: positions are tokens, angles radians, all sizes are counts.
type Config struct {
	Family *Family

	Layers  int
	Hidden  int // embedding length
	Heads   int // query heads
	KVHeads int // key/value heads (GQA: Heads is a multiple)
	HeadDim int // length of one query or key head
	FFN     int // intermediate size of a dense FFN, or of one expert
	// DenseFFN is the intermediate size of dense layers where experts have their
	// OwnSize, else 0. No graph here uses it, GGUF files record it.
	DenseFFN int
	Vocab    int // rows of the embedding
	Context  int // trained context length, in tokens

	Experts     int // 0 for a dense model
	ExpertsUsed int
	// RenormTopK: the weights of the chosen experts are divided by their sum.
	RenormTopK bool

	NormEps float64

	// Rope turns the keys of full-attention layers, RopeLocal those of
	// sliding-window layers (equal to Rope where a family has one base).
	Rope, RopeLocal rope.Params
	// Pairs says which two dimensions of a head RoPE turns together, in the
	// container that the model was read from.
	Pairs rope.Layout

	// SlidingWindow is how many positions, itself included, a query sees in
	// the layers for which Sliding is true; 0: no window anywhere.
	SlidingWindow int
	Sliding       []bool // one per layer, nil when SlidingWindow is 0

	TiedEmbeddings bool
	// AttnBias says which projections may have a bias in this model.
	AttnBias     Biases
	AttnScale    float64 // scores are multiplied by it; 1/sqrt(HeadDim) in most families
	LogitSoftcap float64 // 0: none

	BOS, EOS int // token ids, -1 when the source names none
}

// Group returns how many query heads share one KV head.
func (c *Config) Group() int { return c.Heads / c.KVHeads }

// IsSliding says whether layer l attends through a sliding window.
func (c *Config) IsSliding(l int) bool {
	return c.SlidingWindow > 0 && l < len(c.Sliding) && c.Sliding[l]
}

// RopeOf returns the RoPE parameters of layer l.
func (c *Config) RopeOf(l int) rope.Params {
	if c.IsSliding(l) {
		return c.RopeLocal
	}
	return c.Rope
}

// Check refuses numbers that no model has or that contradict each other.
// The error names the offending quantity in the words of config.json.
func (c *Config) Check() error {
	for _, x := range []struct {
		name   string
		v, max int
	}{
		{"num_hidden_layers", c.Layers, MaxLayers},
		{"hidden_size", c.Hidden, MaxHidden},
		{"num_attention_heads", c.Heads, MaxHeads},
		{"num_key_value_heads", c.KVHeads, MaxHeads},
		{"head_dim", c.HeadDim, MaxHeadDim},
		{"intermediate_size", c.FFN, MaxFFN},
		{"vocab_size", c.Vocab, MaxVocab},
		{"max_position_embeddings", c.Context, MaxContext},
	} {
		if x.v < 1 || x.v > x.max {
			return fmt.Errorf("%s is %d, expected 1 to %d", x.name, x.v, x.max)
		}
	}
	if err := c.checkNumbers(); err != nil {
		return err
	}
	if err := c.checkExperts(); err != nil {
		return err
	}
	if c.SlidingWindow > 0 && len(c.Sliding) != c.Layers {
		return fmt.Errorf("sliding-window flags for %d of %d layers", len(c.Sliding), c.Layers)
	}
	for _, p := range []rope.Params{c.Rope, c.RopeLocal} {
		if p.Dim != c.HeadDim {
			return fmt.Errorf("RoPE turns %d of %d dimensions; partial rotary embedding is not supported yet", p.Dim, c.HeadDim)
		}
		if err := p.Check(); err != nil {
			return err
		}
	}
	return nil
}

// checkNumbers holds sizes against each other, and constants against what can be.
func (c *Config) checkNumbers() error {
	if c.Heads%c.KVHeads != 0 {
		return fmt.Errorf("num_attention_heads %d is not a multiple of num_key_value_heads %d", c.Heads, c.KVHeads)
	}
	if c.HeadDim%2 != 0 {
		return fmt.Errorf("head_dim %d is odd; RoPE needs pairs", c.HeadDim)
	}
	if !(c.NormEps > 0 && c.NormEps < 1) {
		return fmt.Errorf("rms_norm_eps is %g, expected a small positive number", c.NormEps)
	}
	if !(c.AttnScale > 0 && c.AttnScale <= 16) {
		return fmt.Errorf("attention scale is %g, expected a positive number", c.AttnScale)
	}
	if !(c.LogitSoftcap >= 0 && c.LogitSoftcap < 1e6) {
		return fmt.Errorf("final_logit_softcapping is %g, expected a positive number or none", c.LogitSoftcap)
	}
	return nil
}

// checkExperts holds the numbers of experts against the family.
func (c *Config) checkExperts() error {
	if c.Experts < 0 || c.Experts > MaxExperts || c.Experts > 0 && (c.ExpertsUsed < 1 || c.ExpertsUsed > c.Experts) {
		return fmt.Errorf("%d experts of which %d are used per token", c.Experts, c.ExpertsUsed)
	}
	if c.Family.Experts != nil && c.Experts == 0 {
		return fmt.Errorf("family %s needs experts, the configuration names none", c.Family.Name)
	}
	if c.Family.Experts == nil && c.Experts > 0 {
		return fmt.Errorf("family %s has no experts, the configuration names %d", c.Family.Name, c.Experts)
	}
	return nil
}
