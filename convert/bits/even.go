package bits

import (
	"slices"

	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/rotations/codec"
)

// Even spreads bits per number evenly over the heads of a model, [layer][KV head].
func Even(c *family.Config, bits float64) ([][]int, error) {
	total, err := codec.Budget(bits, c.HeadDim, c.Layers*c.KVHeads)
	if err != nil {
		return nil, err
	}
	return layered(c, EvenSigns(total, c.Layers*c.KVHeads)), nil
}

func layered(c *family.Config, signs []int) [][]int {
	return slices.Collect(slices.Chunk(signs, c.KVHeads))
}
