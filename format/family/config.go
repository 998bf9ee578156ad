package family

import (
	"fmt"
	"slices"

	"github.com/phaseconv/phaseconv/format"
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
	// Layers describes each layer, in order; see Resolve.
	Layers []Layer

	Hidden  int // embedding length
	Vocab   int // rows of the embedding
	Context int // trained context length, in tokens
	// DenseFFN is the intermediate size of dense layers where experts have a size
	// of their own, else 0. No graph here uses it, GGUF files record it.
	DenseFFN int

	NormEps float64
	// LayerNorm: norms of the residual stream subtract the mean too (Cohere).
	LayerNorm bool
	// EmbeddingScale multiplies the token embeddings, 1 in most families.
	EmbeddingScale float64

	// Pairs says which two dimensions of a head RoPE turns together, in the
	// container that the model was read from.
	Pairs rope.Layout

	TiedEmbeddings bool
	LogitScale     float64 // what logits are multiplied by, before the cap; 1 in most families
	LogitSoftcap   float64 // 0: none

	// PerLayerInput is the length of the embedding of its own that each layer gets of a token
	// (Gemma 4's small models), 0: none.
	PerLayerInput int

	// DraftLayers is how many layers stand behind those of the model for drafting tokens
	// (MTP): with caches of their own, which nothing here computes or changes.
	DraftLayers int

	// Wrapped: the checkpoint holds more than the language model, such as a vision tower.
	Wrapped bool

	BOS, EOS int // token ids, -1 when the source names none
}

// Clone returns a configuration with layers of its own.
func (c *Config) Clone() *Config {
	d := *c
	d.Layers = slices.Clone(c.Layers)
	return &d
}

// Check refuses numbers that no model has or that contradict each other.
// The error, of kind format.ErrBroken, names the offending quantity in the words of
// config.json.
func (c *Config) Check() error { return format.Broken(c.check()) }

func (c *Config) check() error {
	for _, x := range []struct {
		name   string
		v, max int
	}{
		{"num_hidden_layers", len(c.Layers), MaxLayers},
		{"hidden_size", c.Hidden, MaxHidden},
		{"vocab_size", c.Vocab, MaxVocab},
		{"max_position_embeddings", c.Context, MaxContext},
	} {
		if x.v < 1 || x.v > x.max {
			return fmt.Errorf("%s is %d, expected 1 to %d", x.name, x.v, x.max)
		}
	}
	if !(c.NormEps > 0 && c.NormEps < 1) {
		return fmt.Errorf("rms_norm_eps is %g, expected a small positive number", c.NormEps)
	}
	if !(c.LogitScale > 0 && c.LogitScale < 1e6) {
		return fmt.Errorf("logit_scale is %g, expected a positive number", c.LogitScale)
	}
	if !(c.EmbeddingScale > 0 && c.EmbeddingScale < 1e6) {
		return fmt.Errorf("embedding_multiplier is %g, expected a positive number", c.EmbeddingScale)
	}
	if c.DraftLayers < 0 || c.DraftLayers > MaxLayers {
		return fmt.Errorf("num_nextn_predict_layers is %d, expected 0 to %d", c.DraftLayers, MaxLayers)
	}
	if c.PerLayerInput < 0 || c.PerLayerInput > MaxHidden {
		return fmt.Errorf("hidden_size_per_layer_input is %d, expected 0 to %d", c.PerLayerInput, MaxHidden)
	}
	if !(c.LogitSoftcap >= 0 && c.LogitSoftcap < 1e6) {
		return fmt.Errorf("final_logit_softcapping is %g, expected a positive number or none", c.LogitSoftcap)
	}
	for l := range c.Layers {
		err := c.Layers[l].check(l)
		if err != nil && l > 0 {
			err = fmt.Errorf("layer %d: %w", l, err) // what is wrong in layer 0 is wrong in all, as a rule
		}
		if err != nil {
			return err
		}
	}
	switch n := c.Experts(); {
	case c.Family.Experts != nil && n == 0 && !c.Family.Experts.Optional:
		return fmt.Errorf("family %s needs experts, the configuration names none", c.Family.Name)
	case c.Family.Experts == nil && n > 0:
		return fmt.Errorf("family %s has no experts, the configuration names %d", c.Family.Name, n)
	}
	return nil
}
