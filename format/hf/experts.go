package hf

import (
	"fmt"
	"slices"

	"github.com/phaseconv/phaseconv/format"
	"github.com/phaseconv/phaseconv/format/family"
)

// experts fills in the mixtures of a model whose family has them.
func (h *config) experts(c *family.Config, p *family.Params) error {
	x := c.Family.Experts
	f := &p.FFN
	f.Experts = or(h.Experts, or(h.NumExperts, or(h.RoutedExperts, or(h.MoEExperts, 0))))
	f.Used = or(h.ExpertsPerTok, or(h.MoEK, or(h.MoETopK.value, or(h.TopKExperts, 0))))
	f.Router, f.RouterBias, f.ChoiceBias, f.Biases = x.Router, x.RouterBias, x.ChoiceBias, x.Biases
	f.Renorm = x.AlwaysRenorm || or(h.NormTopK, x.RenormDefault)
	if x.OwnSize {
		if h.MoEIntermediate.value == nil {
			return fmt.Errorf("moe_intermediate_size is missing")
		}
		f.Size, c.DenseFFN = *h.MoEIntermediate.value, f.Size
	} else if n := h.MoEIntermediate.value; n != nil && *n != f.Size {
		return format.Unsupportedf("moe_intermediate_size %d and intermediate_size %d: experts of a size of their own are not "+
			"supported for %s", *n, f.Size, c.Family.Name)
	}
	if x.Beside {
		f.Beside = c.DenseFFN
	}
	if x.Router == family.SigmoidTopK {
		f.Groups, f.GroupsUsed, f.WeightScale = or(h.Groups, 1), or(h.GroupsUsed, 1), or(h.RoutedScale, 1)
	}
	switch x.Shared {
	case family.SharedOwn:
		if h.SharedSize == nil {
			return fmt.Errorf("shared_expert_intermediate_size is missing")
		}
		f.Shared, f.SharedSize, f.SharedGate = 1, *h.SharedSize, x.SharedGate
	case family.SharedMultiple:
		f.Shared = or(h.SharedExperts, or(h.MoEShared, or(h.SharedLayered.value, x.SharedCount)))
		if f.Shared < 0 || f.Shared > family.MaxExperts || f.Size > family.MaxFFN {
			return fmt.Errorf("%d shared experts of %d dimensions, which no model has", f.Shared, f.Size)
		}
		f.SharedSize, f.SharedGate = f.Shared*f.Size, f.Shared > 0 && x.SharedGate
	}
	return h.dense(c.Family, p)
}

// dense fills in which layers are no mixtures.
func (h *config) dense(fam *family.Family, p *family.Params) error {
	if p.Layers < 1 || p.Layers > family.MaxLayers {
		return nil // Resolve names it
	}
	out := make([]bool, p.Layers)
	switch fam.Experts.Dense {
	case family.NoDense:
		return nil
	case family.DenseSteps:
		step := or(h.SparseStep, 1)
		if step < 1 {
			return fmt.Errorf("decoder_sparse_step is %d, expected a positive number", step)
		}
		for l := range out {
			out[l] = (l+1)%step != 0 || slices.Contains(h.MLPOnlyLayers, l)
		}
	case family.DenseFirst:
		n := or(h.FirstDense, 1)
		for l := range out {
			out[l] = l < n
		}
	case family.DenseRange:
		start, end, step := or(h.MoEStart, 1), or(h.MoEEnd, -1), or(h.MoEInterval, 1)
		if step < 1 {
			return fmt.Errorf("moe_layer_interval is %d, expected a positive number", step)
		}
		if end == -1 {
			end = p.Layers - 1
		}
		for l := range out {
			out[l] = (l+1)%step != 0 || l < start || l > end
		}
	}
	if slices.Contains(out, true) {
		p.Dense = out
	}
	return nil
}
