package edits

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/kernels/parallel"
	"github.com/phaseconv/phaseconv/rotations/transform"
	"github.com/phaseconv/phaseconv/verify/progress"
)

// PairScaling says how the pairs of a head are scaled.
type PairScaling int

const (
	// NoPairScaling leaves scales as they are.
	NoPairScaling PairScaling = iota
	// PowerOfTwo takes the closed form rounded to powers of two: rows of quantised
	// weights then keep their stored digits.
	PowerOfTwo
	// ClosedForm takes the scales that suit any type with errors alike in all directions.
	ClosedForm
	// ForType starts from the closed form and tunes it to the cache type; with a
	// mix it is the mix that is fitted to the type. It needs StatsOptions.Samples.
	ForType
)

func (k PairScaling) String() string {
	switch k {
	case NoPairScaling:
		return "none"
	case ClosedForm:
		return "closed form"
	case PowerOfTwo:
		return "powers of two"
	}
	return "tuned"
}

// A KeyFit is one candidate for what is done to keys. Candidates are compared by
// measured divergence, see EditedKeys; the zero value changes nothing.
type KeyFit struct {
	// Remove takes slow means out; nil does not. A Noise of 0 is measured, head by
	// head, by storing sampled keys in Cache.
	Shift *transform.BiasShiftOptions
	// Mix, if not 0, mixes pairs, with this weight of the drift; see
	// transform.KeyTransformOptions. It needs StatsOptions.Samples. A mix balances pairs too:
	// of Balance it only minds ForType, see transform.RefineKeyTransform.
	Transform float64
	// Start, if set, has mixes of another fit, with another penalty, from which this one goes on:
	// that takes a fraction of the steps.
	Start transform.ModelEdits
	Pairs PairScaling
	// Still makes exact changes on the pairs of transform.StillPairs, in layers that have them: a
	// constant leaves the key bias, unless NoBias is set, and a matrix passes to the queries. It
	// goes with no Shift and no Transform, and needs StatsOptions.Samples.
	Still, NoBias bool
	Cache         transform.CacheRow // what the edits are for
}

// Fit makes the edits of all heads, [layer][KV head]. It refuses a removal on
// models whose keys take no bias. tick, if not nil, is told about heads that are done. When
// ctx ends, Fit returns its cause after at most one step of one fit.
func (s *KeyStats) Fit(ctx context.Context, f KeyFit, tick func(done, total int)) (transform.ModelEdits, error) {
	c := s.cfg
	if f.Shift != nil {
		if err := transform.CheckKeyBias(c); err != nil {
			return nil, err
		}
	}
	out := make(transform.ModelEdits, len(c.Layers))
	var tasks []fitTask
	for l := range out {
		y := &c.Layers[l]
		heads := c.OwnKVHeads(l)
		out[l] = make([]transform.KeyEdit, heads)
		if transform.CheckPairScale(y) != nil {
			continue // no edit of its keys passes into weights
		}
		per := 1
		if y.QKNorm == family.NormHead {
			per = y.KVHeads // with one gain vector for all heads a layer is one task
		}
		for h := 0; h < heads; h += per {
			tasks = append(tasks, fitTask{l, h, per})
		}
	}
	fitted := progress.Count(tick, len(tasks))
	err := parallel.For(ctx, s.o.Threads, len(tasks), func(i int) error {
		t := tasks[i]
		if err := s.fitHeads(ctx, f, t.layer, t.head, out[t.layer][t.head:t.head+t.n]); err != nil {
			return err
		}
		fitted()
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// A fitTask is n KV heads of a layer that are fitted together.
type fitTask struct{ layer, head, n int }

// FitValues returns the edits with the values of all heads mixed for a cache type, where that is
// exact, see transform.FitValueTransform and FitValueRotation. It needs StatsOptions.Weights and Samples. ctx and tick are
// as in Fit.
func (s *KeyStats) FitValues(ctx context.Context, edits transform.ModelEdits, cache transform.CacheRow,
	tick func(done, total int)) (
	transform.ModelEdits, error,
) {
	c := s.cfg
	out := make(transform.ModelEdits, len(c.Layers))
	var tasks []fitTask
	for l := range out {
		out[l] = slices.Clone(edits[l])
		if transform.CheckLayerValues(c, l) != nil {
			continue
		}
		for h := range out[l] {
			tasks = append(tasks, fitTask{l, h, 1})
		}
	}
	fitted := progress.Count(tick, len(tasks))
	err := parallel.For(ctx, s.o.Threads, len(tasks), func(i int) error {
		l, h := tasks[i].layer, tasks[i].head
		fit := transform.FitValueTransform
		if c.Layers[l].ValueNorm {
			fit = transform.FitValueRotation
		}
		x, err := s.Values(l, h)
		if err == nil && !x.IsZero() {
			if out[l][h].Values, err = fit(ctx, x, cache); errors.Is(err, transform.ErrNoTransform) {
				out[l][h].Values, err = nil, nil
			}
		}
		if err != nil {
			return fmt.Errorf("values of layer %d, KV head %d: %w", l, h, err)
		}
		fitted()
		return nil
	})
	return out, err
}

// fitHead fits one KV head, but for the balance that it shares: it adds to q and k, [head_dim/2], the energies that
// this is fitted to, and says whether the head takes part.
func (s *KeyStats) fitHead(ctx context.Context, f KeyFit, layer, head int, q, k []float64, out *transform.KeyEdit) (
	left bool, err error,
) {
	if x := s.heads[layer][head]; x.queries > 0 && (x.attention <= 0 || x.weight <= 0) {
		return false, nil // what attention looks at weighs nothing: values or W_O are zero
	}
	stats, err := s.Head(layer, head)
	if err != nil || scoreless(stats) {
		return false, err
	}
	if f.Still && s.cfg.Layers[layer].QKNorm == family.NoQKNorm {
		if done, err := s.still(ctx, f, stats, layer, head, out); err != nil || done {
			return false, err
		}
	}
	var delta []float64
	if f.Shift != nil {
		if out.Shift, err = s.remove(ctx, f, stats, layer, head); err != nil {
			return false, err
		}
		delta = out.Shift.Delta
	}
	stats.AddPairEnergies(q, k, delta)
	if f.Transform != 0 {
		out.Transform, err = s.mix(ctx, f, stats, layer, head, out.Shift)
		if errors.Is(err, transform.ErrNoTransform) {
			out.Transform, err = nil, nil
		}
	}
	return err == nil, err
}

// fitHeads fits KV heads [head, head+len(out)) of a layer, which share a balance.
// Heads whose keys, queries or values are all zero, as pruning leaves them, stay as they are.
func (s *KeyStats) fitHeads(ctx context.Context, f KeyFit, layer, head int, out []transform.KeyEdit) error {
	fail := func(err error) error { return fmt.Errorf("layer %d, KV head %d: %w", layer, head, err) }
	half := s.cfg.Layers[layer].HeadDim / 2
	q, k := make([]float64, half), make([]float64, half)
	var alive []int
	for i := range out {
		left, err := s.fitHead(ctx, f, layer, head+i, q, k, &out[i])
		if err != nil {
			return fail(err)
		}
		if left {
			alive = append(alive, i)
		}
	}
	if f.Pairs == NoPairScaling || f.Transform != 0 || len(alive) == 0 {
		return nil
	}
	turn := &transform.PairRotation{Scale: transform.PairScaleOf(q, k)}
	if f.Still {
		gains, err := s.stillGains(layer, head, alive, turn)
		if err != nil {
			return fail(err)
		}
		if gains != nil {
			for i := range out {
				out[i].Transform = gains
			}
			return nil
		}
		for _, i := range alive {
			out[i].Pairs = turn
		}
		return nil
	}
	switch f.Pairs {
	case PowerOfTwo:
		for p, t := range turn.Scale {
			turn.Scale[p] = nearestPower(t)
		}
	case ForType:
		var samples []*transform.KeySample
		for _, i := range alive {
			x, err := s.Sample(layer, head+i, out[i])
			if err != nil {
				return err
			}
			samples = append(samples, x)
		}
		// Gains of a QK-norm scale, and do not turn.
		t, err := transform.TunePairScale(ctx, samples, turn, f.Cache, s.cfg.Layers[layer].QKNorm == family.NoQKNorm)
		if err != nil {
			return fail(err)
		}
		turn = t.Turn
	}
	for i := range out {
		out[i].Pairs = turn
	}
	return nil
}

// still makes the exact changes of one head on the pairs that RoPE does not turn. done is false
// where it has none, or no matrix can be found.
func (s *KeyStats) still(ctx context.Context, f KeyFit, stats *transform.KeyStats, layer, head int,
	out *transform.KeyEdit) (done bool, err error) {
	c := s.cfg
	still, some := transform.StillPairs(&c.Layers[layer])
	if !some || transform.CheckStillTransform(c, layer) != nil {
		return false, nil
	}
	if !f.NoBias && transform.CheckStillShift(c, layer) == nil {
		out.Shift = transform.StillShift(stats, still)
	}
	x, err := s.mixStats(stats, layer, head, out.Shift)
	if err != nil {
		return false, err
	}
	out.Transform, err = transform.FitKeyTransform(ctx, x, transform.KeyTransformOptions{Noise: transform.NoiseQ4_0,
		Penalty: 1, Still: still})
	if errors.Is(err, transform.ErrNoTransform) {
		out.Transform = nil
		return false, nil
	}
	return err == nil, err
}

// stillGains returns the exact change of heads whose queries and keys are normed, nil where it is no
// more than the scales of turn: on the pairs of StillPairs each channel has a scale of its own, in
// the gains of the norms. The energies of a pair are shared out over its channels.
func (s *KeyStats) stillGains(layer, head int, alive []int, turn *transform.PairRotation) (*transform.KeyTransform,
	error) {
	c, y := s.cfg, &s.cfg.Layers[layer]
	still, some := transform.StillPairs(y)
	if y.QKNorm == family.NoQKNorm || !some || transform.CheckStillTransform(c, layer) != nil {
		return nil, nil
	}
	d := y.HeadDim
	q, k := make([]float64, d), make([]float64, d)
	for _, i := range alive {
		x := s.heads[layer][head+i]
		if len(x.samples) == 0 {
			return nil, fmt.Errorf("layer %d, KV head %d: no keys were sampled", layer, head+i)
		}
		for j := range d {
			q[j] += x.metric[j*d+j]
		}
		for n, w := range x.sampleShare {
			for j, v := range x.samples[n*d : (n+1)*d] {
				k[j] += float64(w * float64(float64(v)*float64(v)))
			}
		}
	}
	out := &transform.KeyTransform{Key: make([]float64, d*d), Query: make([]float64, d*d), Exact: true}
	for p, on := range still {
		a, b := c.PairsIn(layer).Dims(p, d)
		for _, j := range []int{a, b} {
			t := float64(turn.Scale[p])
			if on && q[a] > 0 && q[b] > 0 && k[a] > 0 && k[b] > 0 {
				// The mean of both channels is that of the pair.
				t *= math.Sqrt(math.Sqrt((q[j] / (q[a] + q[b])) / (k[j] / (k[a] + k[b]))))
			}
			t = float64(float32(t))
			out.Key[j*d+j], out.Query[j*d+j] = t, 1/t
		}
	}
	return out, nil
}

// scoreless says whether a head's scores are all zero.
func scoreless(s *transform.KeyStats) bool {
	q, k := make([]float64, s.D/2), make([]float64, s.D/2)
	s.AddPairEnergies(q, k, nil)
	return slices.Max(q) == 0 || slices.Max(k) == 0
}

// noiseRounds is how often a removal is repeated with the noise of what it leaves:
// keys that are nearly all mean store better than what comes after them.
const noiseRounds = 2

// noise measures the cache type's relative error on the balanced keys of a head.
func (s *KeyStats) noise(f KeyFit, stats *transform.KeyStats, layer, head int, m *transform.BiasShift) (float64,
	error) {
	sample, err := s.Sample(layer, head, transform.KeyEdit{Shift: m})
	if err != nil {
		return 0, err
	}
	half := s.cfg.Layers[layer].HeadDim / 2
	q, k := make([]float64, half), make([]float64, half)
	var delta []float64
	if m != nil {
		delta = m.Delta
	}
	stats.AddPairEnergies(q, k, delta)
	return sample.Noise(&transform.PairRotation{Scale: transform.PairScaleOf(q, k)}, f.Cache)
}

// remove solves the program of one head, with its noise measured if need be.
func (s *KeyStats) remove(ctx context.Context, f KeyFit, stats *transform.KeyStats, layer, head int) (
	*transform.BiasShift, error,
) {
	o := *f.Shift
	if o.Noise != 0 {
		return transform.FitBiasShift(ctx, stats, o)
	}
	var m *transform.BiasShift
	o.Noise = transform.NoiseQ4_0
	for round := 0; ; round++ {
		var err error
		if m, err = transform.FitBiasShift(ctx, stats, o); err != nil || round == noiseRounds {
			return m, err
		}
		if o.Noise, err = s.noise(f, stats, layer, head, m); err != nil {
			return nil, err
		}
	}
}
