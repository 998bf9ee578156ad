package checkpoint

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/phaseconv/phaseconv/format"
	"github.com/phaseconv/phaseconv/format/family"
)

// harmless are endings of tensors that some checkpoints carry and no graph uses: tables of RoPE, which
// follow from the configuration, what masks write, and notes of training frameworks.
var harmless = []string{".rotary_emb.inv_freq", ".rotary_emb.original_inv_freq", ".rotary_emb.cos_cached",
	".rotary_emb.sin_cached", ".masked_bias", "._extra_state"}

// masks are endings of causal masks, [1, 1, n, n], in old checkpoints. A bias proper has the same name
// and one dimension.
var masks = []string{".attention.bias", ".self_attn.bias", ".attn.bias"}

// scales are endings of what belongs to weights or caches that were quantised.
var scales = []string{"_scale", ".scale", "_scale_inv", ".scales", ".qweight", ".qzeros", ".g_idx", ".SCB", ".absmax"}

// adapter is a part of the names of low-rank changes that were not merged into the weights. transformers
// may pass over them, but the model that they were trained for has them.
const adapter = ".lora_"

// checkUnknown refuses tensors that may belong to a graph other than the family's, such as a gate on
// the output of attention: computing without them would be silently wrong. Where llama.cpp computes the
// graph there is no such tensor.
func (c *Checkpoint) checkUnknown() error {
	if c.Graph != nil {
		return nil
	}
	for _, n := range c.Unknown {
		if !c.idle(n) {
			return format.Unsupportedf("%s: tensor %s is not part of the %s graph; a model that has it is not supported%s",
				c.Path, n, c.Config.Family.Name, c.unknownHint(n))
		}
	}
	return nil
}

// idle says whether a tensor that the graph does not use is known to be none of it.
func (c *Checkpoint) idle(source string) bool {
	if c.IdleKV(source) {
		return true
	}
	name := c.plainName(source)
	if endsIn("."+name, harmless) || endsIn("."+name, masks) && c.isMask(source) {
		return true
	}
	if strings.Contains(name, adapter) {
		return c.Outside(source)
	}
	if c.Container == GGUF {
		l := family.LayerOf(name)
		return l >= len(c.Config.Layers) && l < len(c.Config.Layers)+c.Config.DraftLayers
	}
	return name == "lm_head.weight" && c.Config.TiedEmbeddings || c.Outside(source) || c.Config.Unread(name) ||
		!strings.HasPrefix(name, family.BasePrefix) && !strings.HasPrefix(name, "lm_head.")
}

// plainName returns the name that a source tensor would have in a Hugging Face folder of the language
// model alone; names in GGUF files stay.
func (c *Checkpoint) plainName(source string) string {
	b, ok := c.b.(*hfBackend)
	if !ok {
		return source
	}
	if rest, ok := strings.CutPrefix(source, b.prefix); ok && b.prefix != "" {
		return family.BasePrefix + rest
	}
	if rest, ok := strings.CutPrefix(source, strings.TrimSuffix(b.head, "lm_head.weight")); ok && b.head != "" {
		return rest
	}
	if b.bare && !strings.HasPrefix(source, "lm_head.") {
		return family.BasePrefix + source
	}
	return source
}

// Unread says whether the reference leaves a tensor of a Hugging Face folder unread, see family.Config.
func (c *Checkpoint) Unread(source string) bool { return c.Config.Unread(c.plainName(source)) }

// isMask says whether a tensor has the shape of a causal mask.
func (c *Checkpoint) isMask(source string) bool {
	b, ok := c.b.(*hfBackend)
	if !ok {
		return false
	}
	s, _, _ := b.lookup(source)
	return len(s) == 4 && s[0] == 1 && s[1] == 1 && s[2] == s[3]
}

func endsIn(name string, endings []string) bool {
	return slices.ContainsFunc(endings, func(e string) bool { return strings.HasSuffix(name, e) })
}

var layerNumber = regexp.MustCompile(`^(?:blk|model\.layers)\.(\d{1,6})\.`)

// unknownHint says what can be done about a tensor that is refused, after a separator.
func (c *Checkpoint) unknownHint(source string) string {
	name, folder := c.plainName(source), c.Container == Safetensors
	if m := layerNumber.FindStringSubmatch(name); m != nil {
		if l, err := strconv.Atoi(m[1]); err == nil && l >= len(c.Config.Layers) {
			key := c.Config.Family.GGUFArch + ".block_count"
			if folder {
				key = "num_hidden_layers of config.json"
			}
			return fmt.Sprintf(": %s counts %d layers without it", key, len(c.Config.Layers))
		}
	}
	switch {
	case strings.Contains(name, adapter):
		return ": it belongs to an adapter; merge that into the weights first (merge_and_unload of peft)"
	case endsIn(name, scales):
		return ": it seems to belong to weights or a cache that were quantised; take the model as it was before that"
	case !folder && (strings.HasPrefix(name, "v.") || strings.HasPrefix(name, "mm.")):
		return ": the file also holds a vision tower, as those in the store of ollama do; take a GGUF file of the language " +
			"model alone"
	case folder:
		return "; where transformers says on loading that it leaves this tensor unused, remove it from the checkpoint"
	}
	return "; take a file that the converter of llama.cpp makes of the model"
}
