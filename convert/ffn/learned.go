package ffn

import (
	"context"
	"math"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/rotations/fit"
	"github.com/phaseconv/phaseconv/rotations/transform"
)

// learned is the kind of rotation that is fitted to the rows of gate and up.
const learned = "learned"

// learnRows bounds the rows that a rotation is learned from.
const learnRows = 4096

// rotation returns a rotation of the stream, nil where there is none of the kind for the model.
func (s *search) rotation(ctx context.Context, kind string) (*transform.ResidualRotation, error) {
	d := s.v.Config().Hidden
	if kind != learned {
		q, err := transform.NewResidualRotation(kind, d, s.o.Seed)
		if err != nil {
			return nil, nil //nolint:nilerr // of an odd size, which has no such matrix
		}
		return q, nil
	}
	if d > codec.MaxDim {
		return nil, nil
	}
	rows, err := s.streamRows(ctx)
	if err != nil {
		return nil, err
	}
	r, err := fit.FitRows(ctx, rows, d, d, s.o.Seed, 0, 0, s.o.Threads)
	if err != nil {
		return nil, err
	}
	return &transform.ResidualRotation{D: d, P: 1, Small: r.R}, nil
}

// streamRows reads rows of gate and up of all layers as they meet the stream: times the gains of
// their norm, and times the roots of the mean squares of the normed stream.
func (s *search) streamRows(ctx context.Context) ([]float32, error) {
	cfg := s.v.Config()
	var tensors []*checkpoint.Tensor
	total := 0
	for l := range cfg.Layers {
		for _, name := range []string{"ffn_gate.weight", "ffn_up.weight", "ffn_gate_exps.weight", "ffn_up_exps.weight"} {
			if t, ok := s.v.Find(family.Name(l, name)); ok {
				tensors = append(tensors, t)
				total += t.Rows()
			}
		}
	}
	stride := max(1, total/learnRows)
	var out []float32
	at := 0
	for _, t := range tensors {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		for ; at < t.Rows(); at += stride {
			row := make([]float32, cfg.Hidden)
			if err := s.v.ReadRows(t, at, 1, row); err != nil {
				return nil, err
			}
			// The energy is that behind the gain, so it is in it.
			for i, e := range s.fit.stats.FFN[t.Layer] {
				row[i] *= float32(math.Sqrt(e))
			}
			out = append(out, row...)
		}
		at -= t.Rows()
	}
	return out, nil
}
