package transform

import (
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/family"
)

// IDChannels is identity G10, a positive diagonal between a norm and the matrices that read it.
const IDChannels = "G10"

// Neurons is identity G4 for one FFN, or for one expert: neuron j of the result is neuron Order[j]
// of the source, with its row of up multiplied by Scale[j] and its column of down divided by it. The
// row of gate moves, and is never scaled: it passes through the nonlinearity. A nil Order moves none,
// a nil Scale is all ones.
type Neurons struct {
	Order []int
	Scale []float32
}

// CheckNeurons says whether identity G4 holds in a layer, with the reason if not. Of a mixture it
// changes the experts that a router chooses; shared ones stay as they are.
func CheckNeurons(c *family.Config, layer int) error {
	return c.RequireLayer(layer, "a fold of FFN neurons", ^(family.UngatedFFN | family.OtherExperts))
}

// FoldNeurons adds G4 in one layer to the edits of v, an entry for each expert, or one for a plain
// FFN.
func FoldNeurons(v *checkpoint.Edited, layer int, experts []Neurons) error {
	c := v.Config()
	if err := CheckNeurons(c, layer); err != nil {
		return err
	}
	ffn, suffix := &c.Layers[layer].FFN, ".weight"
	if ffn.Experts > 0 {
		suffix = "_exps.weight"
	}
	if n := max(1, ffn.Experts); len(experts) != n {
		return fmt.Errorf("layer %d: changes of neurons for %d experts of %d", layer, len(experts), n)
	}
	var order []int
	var up, down []float32
	for e, x := range experts {
		if err := x.check(ffn.Size); err != nil {
			return fmt.Errorf("layer %d, expert %d: %w", layer, e, err)
		}
		for j := range ffn.Size {
			from, s := j, float32(1)
			if x.Order != nil {
				from = x.Order[j]
			}
			if x.Scale != nil {
				s = x.Scale[j]
			}
			order, up, down = append(order, from), append(up, s), append(down, 1/s)
		}
	}
	name := func(part string) string { return family.Name(layer, part+suffix) }
	if slices.ContainsFunc(experts, func(x Neurons) bool { return x.Order != nil }) {
		for _, part := range []string{"ffn_gate", "ffn_up", "ffn_down"} {
			if err := v.Edits.Reorder(name(part), IDNeurons, part == "ffn_down", order); err != nil {
				return err
			}
		}
	}
	if slices.ContainsFunc(experts, func(x Neurons) bool { return x.Scale != nil }) {
		v.Edits.ScaleRows(name("ffn_up"), IDNeurons, up)
		v.Edits.ScaleColumns(name("ffn_down"), IDNeurons, down)
	}
	return nil
}

func (x *Neurons) check(size int) error {
	if x.Order != nil && len(x.Order) != size || x.Scale != nil && len(x.Scale) != size {
		return fmt.Errorf("%d places and %d scales for an FFN of %d", len(x.Order), len(x.Scale), size)
	}
	return checkScales(x.Scale)
}

// checkScales refuses scales that are not positive and finite, or whose inverses are not.
func checkScales(scale []float32) error {
	for i, x := range scale {
		if y := 1 / x; !(x > 0) || !(y > 0) || math.IsInf(float64(x), 0) || math.IsInf(float64(y), 0) {
			return fmt.Errorf("scale %d is %g", i, x)
		}
	}
	return nil
}

// NeuronTensor says whether G4 may change a tensor.
func NeuronTensor(c *family.Config, name string) bool {
	l := family.LayerOf(name)
	if l < 0 || l >= len(c.Layers) || CheckNeurons(c, l) != nil {
		return false
	}
	switch inLayer(name, l) {
	case "ffn_gate.weight", "ffn_up.weight", "ffn_down.weight":
		return c.Layers[l].FFN.Experts == 0
	case "ffn_gate_exps.weight", "ffn_up_exps.weight", "ffn_down_exps.weight":
		return true
	}
	return false
}

// ChannelTensor says whether G10 may change a tensor of a model that can have it.
func ChannelTensor(c *family.Config, name string) bool {
	l := family.LayerOf(name)
	if l < 0 || l >= len(c.Layers) {
		return false
	}
	part := inLayer(name, l)
	x := residualParts[part]
	return part == "attn_norm.weight" || part == "ffn_norm.weight" || x.part == reader && x.norm != ""
}

// CheckChannels says whether identity G10 holds for the norms in front of attention and FFN, with
// the reason if not.
func CheckChannels(c *family.Config) error {
	for l := range c.Layers {
		y := &c.Layers[l]
		switch {
		case y.BareInputs:
			return fmt.Errorf("family %s has no norms in front of attention and FFN", c.Family.Name)
		case y.Parallel:
			return fmt.Errorf("family %s has one norm for attention and FFN", c.Family.Name)
		case y.FFN.Beside > 0 || c.PerLayerInput > 0:
			return fmt.Errorf("family %s reads the stream through further norms", c.Family.Name)
		case y.Gate != family.NoGate || y.Kind != family.Softmax:
			return fmt.Errorf("family %s has other readers of the norm in front of attention", c.Family.Name)
		}
	}
	return nil
}

// ChannelReaders lists the tensors of a layer that read the norm "attn_norm.weight" or
// "ffn_norm.weight".
func ChannelReaders(v interface {
	Find(name string) (*checkpoint.Tensor, bool)
}, layer int, norm string) (readers []*checkpoint.Tensor) {
	for _, part := range slices.Sorted(maps.Keys(residualParts)) {
		if x := residualParts[part]; x.part == reader && x.norm == norm {
			if t, ok := v.Find(family.Name(layer, part)); ok {
				readers = append(readers, t)
			}
		}
	}
	return readers
}

// FoldChannels adds G10 for one norm of a layer to the edits of v: its gain is multiplied by scale,
// [hidden], and the columns of all that reads it are divided by it.
func FoldChannels(v *checkpoint.Edited, layer int, norm string, scale []float32) error {
	c := v.Config()
	if err := CheckChannels(c); err != nil {
		return err
	}
	if len(scale) != c.Hidden {
		return fmt.Errorf("layer %d: %d scales behind %s for a hidden size of %d", layer, len(scale), norm, c.Hidden)
	}
	if err := checkScales(scale); err != nil {
		return fmt.Errorf("layer %d, %s: %w", layer, norm, err)
	}
	inverse := make([]float32, len(scale))
	for i, x := range scale {
		inverse[i] = 1 / x
	}
	v.Edits.Scale(family.Name(layer, norm), IDChannels, scale)
	for _, t := range ChannelReaders(v, layer, norm) {
		if len(t.Shape) < 2 { // the gate of a shared expert is one row
			v.Edits.Scale(t.Name, IDChannels, inverse)
			continue
		}
		v.Edits.ScaleColumns(t.Name, IDChannels, slices.Repeat(inverse, t.Rows()/t.Shape[len(t.Shape)-2]))
	}
	return nil
}
