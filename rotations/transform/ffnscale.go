package transform

import (
	"fmt"
	"math"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/kernels/fmath"
)

// IDNeurons is identity G4, a positive diagonal between up and down of an FFN.
const IDNeurons = "G4"

// A ScaledFFN is a model with identity G4 folded: neuron j of an FFN, or of one
// expert, has row j of up multiplied by a positive number and column j of down
// divided by it. gate is left alone: it passes through the nonlinearity. It is
// checkpoint.Weights.
type ScaledFFN struct {
	src    checkpoint.Weights
	scale  [][][]float32 // [layer][expert, or one][neuron]
	inside int           // hidden size: rows of down per expert
}

// FoldFFN returns the model with G4 folded: scale[layer][expert][neuron], with one
// entry in place of the experts for a dense model. A layer's scales may be nil.
// Checkpoint edits cannot hold it, as they have one scale for a row of the
// outermost dimension, which for a bank is the expert.
func FoldFFN(src checkpoint.Weights, cfg *family.Config, scale [][][]float32) (*ScaledFFN, error) {
	if len(scale) != len(cfg.Layers) {
		return nil, fmt.Errorf("FFN scales for %d of %d layers", len(scale), len(cfg.Layers))
	}
	for l, experts := range scale {
		if experts == nil {
			continue
		}
		ffn := &cfg.Layers[l].FFN
		if err := cfg.RequireLayer(l, "a fold of FFN scales", ^(family.UngatedFFN | family.SharedExperts)); err != nil {
			return nil, err
		}
		if n := max(1, ffn.Experts); len(experts) != n {
			return nil, fmt.Errorf("layer %d: FFN scales for %d experts of %d", l, len(experts), n)
		}
		for e, s := range experts {
			if len(s) != ffn.Size {
				return nil, fmt.Errorf("layer %d, expert %d: %d scales for an FFN of %d", l, e, len(s), ffn.Size)
			}
			for _, x := range s {
				// The inverse has to be finite too.
				if y := 1 / x; !(x > 0) || !(y > 0) || math.IsInf(float64(x), 0) || math.IsInf(float64(y), 0) {
					return nil, fmt.Errorf("layer %d, expert %d: FFN scale %g", l, e, x)
				}
			}
		}
	}
	return &ScaledFFN{src: src, scale: scale, inside: cfg.Hidden}, nil
}

// Changes says whether the fold changes a tensor.
func (f *ScaledFFN) Changes(name string) bool {
	up, down := f.part(name)
	return up || down
}

func (f *ScaledFFN) part(name string) (up, down bool) {
	l := family.LayerOf(name)
	if l < 0 || l >= len(f.scale) || f.scale[l] == nil {
		return false, false
	}
	switch inLayer(name, l) {
	case "ffn_up.weight", "ffn_up_exps.weight":
		return true, false
	case "ffn_down.weight", "ffn_down_exps.weight":
		return false, true
	}
	return false, false
}

// Find implements checkpoint.Weights.
func (f *ScaledFFN) Find(name string) (*checkpoint.Tensor, bool) { return f.src.Find(name) }

// ReadRows implements checkpoint.Weights.
func (f *ScaledFFN) ReadRows(t *checkpoint.Tensor, row0, n int, dst []float32) error {
	if err := f.src.ReadRows(t, row0, n, dst); err != nil {
		return err
	}
	up, down := f.part(t.Name)
	if !up && !down {
		return nil
	}
	cols, layer := t.Cols(), family.LayerOf(t.Name)
	for r := range n {
		row := dst[r*cols : (r+1)*cols]
		if up {
			wide := len(f.scale[layer][0])
			s := f.scale[layer][(row0+r)/wide][(row0+r)%wide]
			for k := range row {
				row[k] *= s
			}
			continue
		}
		for k, s := range f.scale[layer][(row0+r)/f.inside] {
			row[k] /= s
		}
	}
	return nil
}

// FFNBalance returns the scales of G4 that lose least when down is stored in a
// format whose error in a weight depends on its whole block: s^4 = down / energy,
// with energy_j the mean square of neuron j (up times activated gate) and down_j
// the squared length of its column in down. It minimises sum_j energy_j s_j^2
// times sum_j down_j / s_j^2, as the K/Q balance does for keys. A neuron that
// never fires, or that nothing reads, keeps a scale of one; the largest scales are
// cut off at MaxFFNScale.
func FFNBalance(energy, down []float64) []float32 {
	out := make([]float32, len(energy))
	var logs float64
	n := 0
	for j, e := range energy[:min(len(energy), len(down))] {
		// A quotient that is 0, infinite or NaN comes of numbers that say nothing.
		if q := down[j] / e; e > 0 && q > 0 && !math.IsInf(q, 0) {
			s := math.Sqrt(math.Sqrt(q))
			out[j] = float32(s)
			logs += fmath.Log(s)
			n++
		}
	}
	// Only ratios matter; the geometric mean of one keeps the size of both matrices.
	unit := float32(1)
	if n > 0 {
		unit = float32(fmath.Exp(-logs / float64(n)))
	}
	for j, s := range out {
		if s == 0 {
			out[j] = 1
			continue
		}
		out[j] = min(max(s*unit, 1/float32(MaxFFNScale)), MaxFFNScale)
	}
	return out
}

// MaxFFNScale bounds the scales of FFNBalance and their inverses.
const MaxFFNScale = 64
