package bits

import (
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/rotations/codec"
)

// Even spreads bits per number evenly over the heads of a model, [layer][KV head]. Layers that
// cache nothing get none.
func Even(c *family.Config, bits float64) ([][]int, error) {
	total, err := Budget(c, bits)
	if err != nil {
		return nil, err
	}
	return layered(c, EvenSigns(total, c.CachedDims())), nil
}

// Budget returns how many signs the keys of a token get in all layers at so many
// bits per number; see codec.Budget.
func Budget(c *family.Config, bits float64) (int, error) {
	return codec.Budget(bits, c.CachedDims()...)
}

// layered splits the signs of all heads by layer.
func layered(c *family.Config, signs []int) [][]int {
	var out [][]int
	for l := range c.Layers {
		n := c.OwnKVHeads(l)
		out, signs = append(out, signs[:n:n]), signs[n:]
	}
	return out
}
