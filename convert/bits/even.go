package bits

import (
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/rotations/codec"
)

// Even spreads bits per number evenly over the heads of a model, [layer][KV head].
func Even(c *family.Config, bits float64) ([][]int, error) {
	total, err := Budget(c, bits)
	if err != nil {
		return nil, err
	}
	return layered(c, EvenSigns(total, heads(c))), nil
}

// Budget returns how many signs the keys of a token get in all layers at so many
// bits per number; see codec.Budget. Allocations take models whose layers are alike.
func Budget(c *family.Config, bits float64) (int, error) {
	shape, err := c.Uniform()
	if err != nil {
		return 0, err
	}
	return codec.Budget(bits, shape.HeadDim, heads(c))
}

// heads returns how many KV heads all layers have together.
func heads(c *family.Config) int {
	n := 0
	for l := range c.Layers {
		n += c.Layers[l].KVHeads
	}
	return n
}

// layered splits the signs of all heads by layer.
func layered(c *family.Config, signs []int) [][]int {
	var out [][]int
	for l := range c.Layers {
		n := c.Layers[l].KVHeads
		out, signs = append(out, signs[:n:n]), signs[n:]
	}
	return out
}
