package figures

import (
	"context"

	"github.com/phaseconv/phaseconv/kernels/linalg"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/rotations/fit"
	"github.com/phaseconv/phaseconv/spec"
)

// convergeSteps of the shown iteration.
const convergeSteps = 40

// converge runs the plain L1-max fixed point R <- polar(sum sign(R x) x^T) from
// the identity, on centred unit keys, and measures it at every step on keys that
// it does not see as well.
func (p *measurer) converge(ctx context.Context, s *fit.Sample, held []float32) (*spec.Convergence, error) {
	d := s.D
	srht, err := codec.DataFree(codec.SRHT, d, p.o.Seed, p.layer, p.head)
	if err != nil {
		return nil, err
	}
	mean := s.Mean()
	train, test := fit.UnitKeys(s.Keys, mean), fit.UnitKeys(held[:min(len(held), heldKeys*d)], mean)
	if len(train) == 0 || len(test) == 0 {
		return nil, nil
	}
	out := &spec.Convergence{Layer: p.layer, Head: p.head, Keys: len(train) / d, HeldOut: len(test) / d,
		TokensPerDim: float64(len(train)/d) / float64(d)}
	f, g := fit.NewL1(train, d, p.o.Threads), fit.NewL1(test, d, p.o.Threads)
	out.SRHT = round(g.Objective(srht.Decode))
	r := linalg.Float32(linalg.Identity(d))
	for step := range convergeSteps + 1 {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		out.Points = append(out.Points, [3]float64{float64(step), round(f.Objective(r)), round(g.Objective(r))})
		if len(train) < d*d {
			break // too few keys to span the space: the iteration has no unique next step
		}
		if r, err = linalg.Polar(ctx, f.Correlate(), d, p.o.Threads); err != nil {
			return nil, err
		}
	}
	return out, nil
}
