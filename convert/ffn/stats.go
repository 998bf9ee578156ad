package ffn

import (
	"context"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/verify/ppl"
	"github.com/phaseconv/phaseconv/verify/progress"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// A Stats holds the mean squares of what matrices multiply, over all tokens of a text.
type Stats struct {
	// Attention and FFN, [layer][hidden], are those behind the norms in front of both.
	Attention, FFN [][]float64
	// Neurons, [layer][expert, or one][neuron], are those of up times activated gate. In an expert
	// each counts times its weight, and a token that does not choose it counts as 0.
	Neurons [][][]float64

	cfg *family.Config
}

// NewStats runs a text through a model.
func NewStats(ctx context.Context, cfg *family.Config, w checkpoint.Weights, text *ppl.Windows, threads int,
	report progress.Func) (*Stats, error) {
	s := &Stats{cfg: cfg}
	for l := range cfg.Layers {
		var neurons [][]float64
		for range max(1, cfg.Layers[l].FFN.Experts) {
			neurons = append(neurons, make([]float64, cfg.Layers[l].FFN.Size))
		}
		s.Neurons = append(s.Neurons, neurons)
	}
	tokens := float64(len(text.Tokens) * text.Ctx)
	hooks := refmodel.Hooks{
		Attention: func(a *refmodel.Attention) error {
			s.Attention = append(s.Attention, meanSquares(a.X, cfg.Hidden))
			return nil
		},
		FFN: func(_ int, x []float32) error {
			s.FFN = append(s.FFN, meanSquares(x, cfg.Hidden))
			return nil
		},
		Neurons: func(layer, expert int, h, weights []float32) error {
			sum := s.Neurons[layer][expert]
			for i, v := range h {
				if weights != nil {
					v *= weights[i/len(sum)]
				}
				sum[i%len(sum)] += float64(v) * float64(v) / tokens
			}
			return nil
		},
	}
	m := refmodel.New(cfg, w, threads)
	err := m.Run(ctx, text.Tokens, []*refmodel.Variant{{}},
		refmodel.Options{Hooks: hooks, Progress: report.Of("activations of the FFN")})
	return s, err
}

// meanSquares returns the mean square of every column of x, [n, d].
func meanSquares(x []float32, d int) []float64 {
	sum := make([]float64, d)
	for i, v := range x {
		sum[i%d] += float64(v) * float64(v) // exact, so fusing changes nothing
	}
	for i := range sum {
		sum[i] /= float64(len(x) / d)
	}
	return sum
}
