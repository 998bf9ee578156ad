package checkpoint

import (
	"strings"

	"github.com/phaseconv/phaseconv/format"
	"github.com/phaseconv/phaseconv/format/family"
)

// harmless are endings of tensors that some checkpoints carry and no graph uses.
var harmless = []string{".rotary_emb.inv_freq", ".masked_bias", ".attention.bias"}

// checkUnknown refuses tensors that may belong to a graph other than the family's, such as a gate on
// the output of attention: computing without them would be silently wrong. Where llama.cpp computes the
// graph there is no such tensor.
func (c *Checkpoint) checkUnknown() error {
	if c.Graph != nil {
		return nil
	}
	for _, n := range c.Unknown {
		if !c.idle(n) {
			return format.Unsupportedf("%s: tensor %s is not part of the %s graph; a model that has it is not supported",
				c.Path, n, c.Config.Family.Name)
		}
	}
	return nil
}

// idle says whether a tensor that the graph does not use is known to be none of it.
func (c *Checkpoint) idle(name string) bool {
	for _, h := range harmless {
		if strings.HasSuffix(name, h) {
			return true
		}
	}
	if c.IdleKV(name) {
		return true
	}
	if c.Container == GGUF {
		l := family.LayerOf(name)
		return l >= len(c.Config.Layers) && l < len(c.Config.Layers)+c.Config.DraftLayers
	}
	return name == "lm_head.weight" && c.Config.TiedEmbeddings || c.Outside(name) || c.Config.Unread(name) ||
		!c.BaseNames() && !strings.HasPrefix(name, family.BasePrefix) && !strings.HasPrefix(name, "lm_head.")
}
