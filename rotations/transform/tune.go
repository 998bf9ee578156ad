package transform

import (
	"context"
	"fmt"
	"math"

	"github.com/phaseconv/phaseconv/kernels/fmath"
	"github.com/phaseconv/phaseconv/kernels/linalg"
	"github.com/phaseconv/phaseconv/kernels/rope"
)

// tuneSteps bounds the descent of TunePairScale: it has few numbers, which fit nothing by chance.
const tuneSteps = 80

// Tuned is the result of TunePairScale.
type Tuned struct {
	Turn *PairRotation
	// Before and After are the mean square errors of scores that the type makes on the
	// sample, with the start and with the result.
	Before, After float64
}

// TunePairScale improves a balance for a cache type with blocks: by descent on what
// RefineKeyTransform minimises, over one scale and, with angles, one angle per pair. RoPE
// commutes with those, so nothing drifts. Where the closed form takes every error for
// noise alike in all directions, this sees the blocks, the Hadamard transform and the
// largest number of each block. All samples share the result: heads whose scales must be
// one. It is never worse than the start for the type itself on the sample.
// When ctx ends, it returns its cause after at most one step.
func TunePairScale(ctx context.Context, samples []*KeySample, start *PairRotation, cache CacheRow, angles bool) (*Tuned,
	error) {
	if len(samples) == 0 {
		return nil, fmt.Errorf("no keys to tune a balance with")
	}
	d := samples[0].D
	if err := start.Check(d); err != nil {
		return nil, err
	}
	if err := cache.check(d); err != nil {
		return nil, err
	}
	t := &pairSearch{d: d, pairs: samples[0].Pairs, angles: angles}
	for _, s := range samples {
		if s.D != d {
			return nil, fmt.Errorf("samples of head_dim %d and %d", d, s.D)
		}
		p, err := newBlockObjective(ctx, start.mix(d, s.Pairs), s.withoutRoPE(), RefineOptions{Cache: cache, Penalty: 1})
		if err != nil {
			return nil, err
		}
		t.heads = append(t.heads, p)
	}
	out := &Tuned{Turn: start}
	value := func(x []float64) (float64, []float64) { return t.value(ctx, x) }
	x, _, _, err := linalg.Minimize(ctx, make([]float64, t.size()), t.curvature(), value, tuneSteps, refineGain)
	if err != nil {
		return nil, err
	}
	turn := start.clone()
	if angles && turn.Angle == nil {
		turn.Angle = make([]float64, d/2)
	}
	for p := range turn.Scale {
		turn.Scale[p] = float32(float64(turn.Scale[p]) * fmath.Exp(x[p]))
		if angles {
			turn.Angle[p] += x[d/2+p]
		}
	}
	if err := turn.Check(d); err != nil {
		return nil, fmt.Errorf("the search for a balance ended badly: %w", err)
	}
	for _, s := range samples {
		before, err := s.loss(start, cache)
		if err != nil {
			return nil, err
		}
		after, err := s.loss(turn, cache)
		if err != nil {
			return nil, err
		}
		out.Before, out.After = out.Before+before, out.After+after
	}
	if out.After < out.Before {
		out.Turn = turn
	} else {
		out.After = out.Before
	}
	return out, nil
}

// turnSearch is the objective of TunePairScale over logarithms of scales, then angles,
// each relative to the start.
type pairSearch struct {
	d      int
	pairs  rope.Layout
	angles bool
	heads  []*blockObjective
}

func (t *pairSearch) size() int {
	if t.angles {
		return t.d
	}
	return t.d / 2
}

// curvature adds up that of the numbers of the matrix that a scale or an angle moves.
func (t *pairSearch) curvature() []float64 {
	out := make([]float64, t.size())
	for _, p := range t.heads {
		for k := range t.d / 2 {
			i, j := t.pairs.Dims(k, t.d)
			out[k] += p.curvature[i*t.d+i] + p.curvature[j*t.d+j]
			if t.angles {
				out[t.d/2+k] += p.curvature[i*t.d+j] + p.curvature[j*t.d+i]
			}
		}
	}
	return out
}

// value returns the objective and its gradient. Once ctx has ended it returns something
// else, soon.
func (t *pairSearch) value(ctx context.Context, x []float64) (float64, []float64) {
	d := t.d
	turn := &PairRotation{Scale: make([]float32, d/2)}
	c, inverse := make([]float64, d*d), make([]float64, d*d)
	for p := range turn.Scale {
		i, j := t.pairs.Dims(p, d)
		re, im := fmath.Exp(x[p]), 0.0
		if t.angles {
			sin, cos := fmath.SinCos(x[d/2+p])
			re, im = float64(re*cos), float64(re*sin)
		}
		c[i*d+i], c[i*d+j], c[j*d+i], c[j*d+j] = re, -im, im, re
		n := float64(re*re) + float64(im*im)
		re, im = re/n, -im/n
		inverse[i*d+i], inverse[i*d+j], inverse[j*d+i], inverse[j*d+j] = re, -im, im, re
	}
	var f float64
	out := make([]float64, len(x))
	for _, h := range t.heads {
		v, g := h.at(ctx, c, inverse)
		if ctx.Err() != nil {
			return math.Inf(1), nil
		}
		f += v
		for p := range d / 2 {
			i, j := t.pairs.Dims(p, d)
			re, im := c[i*d+i], c[j*d+i]
			// A scale moves the pair's matrix along itself, an angle along itself times i.
			out[p] += float64(re*(g[i*d+i]+g[j*d+j])) + float64(im*(g[j*d+i]-g[i*d+j]))
			if t.angles {
				out[d/2+p] += float64(re*(g[j*d+i]-g[i*d+j])) - float64(im*(g[i*d+i]+g[j*d+j]))
			}
		}
	}
	return f, out
}
