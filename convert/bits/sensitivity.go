package bits

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/kernels/parallel"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/rotations/fit"
	"github.com/phaseconv/phaseconv/rotations/transform"
	"github.com/phaseconv/phaseconv/verify/activations"
	"github.com/phaseconv/phaseconv/verify/kvcache"
	"github.com/phaseconv/phaseconv/verify/ppl"
	"github.com/phaseconv/phaseconv/verify/progress"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// An Alloc names a way of spreading the signs of a frame over the heads of a model. Its text
// stands in manifests and options.
type Alloc string

// The ways that there are.
const (
	AllocUniform     Alloc = "uniform"     // all alike
	AllocSensitivity Alloc = "sensitivity" // by what they are measured to cost
	AllocAngle       Alloc = "angle"       // by phase-collapse angle, the baseline
)

// Options of Allocate.
type Options struct {
	Bits    float64 // signs per number, on average over all heads
	Policy  kvcache.Policy
	Balance bool // the keys are those that the K/Q pair scaling leaves
	Seed    uint64
	Threads int
	// Progress, if set, is told how many steps are done.
	Progress func(done, total int)

	signs [][]int // of the frames that damage is measured with: Bits, evenly
}

// errDone ends a pass that has seen all that it is for.
var errDone = errors.New("all layers are measured")

// Allocs lists the ways of spreading signs.
var Allocs = []Alloc{AllocUniform, AllocSensitivity, AllocAngle}

// ParseAlloc returns the way that a text names. The error says which there are.
func ParseAlloc(text string) (Alloc, error) {
	if slices.Contains(Allocs, Alloc(text)) {
		return Alloc(text), nil
	}
	return "", fmt.Errorf("expected %s, %s, %s", AllocUniform, AllocSensitivity, AllocAngle)
}

// How much text an allotment looks at.
const (
	allotKeys   = 16       // per number of a key, to fit to, in whole windows
	allotTokens = 11 << 10 // of one window, once for each layer; so deep models get shorter ones
	allotLeast  = 64       // but not shorter than this
)

// Allocate decides how many signs the frame of each head gets, [layer][KV head], so
// that they are o.Bits per number on average: exactly the budget that
// codec.Budget names. It looks at the first windows of the calibration text;
// the result depends on them and on o, not on the number of threads.
//
// sensitivity measures for each layer how much the model's predictions diverge
// when that layer alone is coded with o.Bits, on the last window (of deep models on
// its beginning), shares this out
// over the layer's heads by the errors of their scores, and takes it that the
// damage falls with more signs as rate-distortion theory says for the head's
// spectrum. angle reads the angle between keys and their signs.
func Allocate(ctx context.Context, m *refmodel.Model, windows [][]int32, alloc Alloc, o Options) ([][]int, error) {
	c := m.Config
	even, err := Even(c, o.Bits)
	if err != nil || alloc == AllocUniform {
		return even, err
	}
	if len(windows) == 0 {
		return nil, fmt.Errorf("no calibration text to allot signs by")
	}
	total, err := Budget(c, o.Bits)
	if err != nil {
		return nil, err
	}
	dims := c.CachedDims()
	d := slices.Max(dims)
	// A frame has head_dim numbers for each sign, so wide heads need more keys.
	fit := (allotKeys*d + len(windows[0]) - 1) / len(windows[0])
	first := windows[:max(1, min(fit, len(windows)-1))]
	o.Threads, o.signs = m.Threads, even
	switch alloc {
	case AllocAngle:
		w, err := angleWeights(ctx, m, first, o)
		if err != nil {
			return nil, err
		}
		return layered(c, WeightedSigns(total, dims, w)), nil
	case AllocSensitivity:
		last := windows[len(windows)-1]
		last = last[:min(len(last), max(allotLeast, allotTokens/len(c.Layers)))]
		damage, err := sensitivities(ctx, m, first, last, o)
		if err != nil {
			return nil, err
		}
		return layered(c, AllotSigns(total, dims, damage)), nil
	}
	return nil, fmt.Errorf("signs cannot be spread by %q; there are %v", alloc, Allocs)
}

// collapseCos is the cosine of 44 degrees, the angle between a key and its signs
// above which the published allocator calls a layer fragmented.
const collapseCos = 0.71933980033865119

// angleWeights returns what each head's share of the signs is proportional to: 3
// in layers whose keys, as attention has them, are further than 44 degrees from
// their signs (by the mean cosine), else 2, and 1 in full-attention layers of
// models that also have sliding windows, at any angle.
func angleWeights(ctx context.Context, m *refmodel.Model, windows [][]int32, o Options) ([]float64, error) {
	c := m.Config
	t := &angleTap{cfg: c, o: o}
	opt := refmodel.Options{
		Hooks:    refmodel.Hooks{Attention: func(a *refmodel.Attention) error { return t.attention(ctx, a) }},
		Progress: o.Progress,
	}
	if err := m.Run(ctx, windows, []*refmodel.Variant{{}}, opt); !errors.Is(err, errDone) {
		if err == nil {
			err = fmt.Errorf("layer %d was not reached", len(c.Layers)-1)
		}
		return nil, err
	}
	window, _ := c.Window()
	var out []float64
	for l, cos := range t.cos {
		w := 2.0
		switch {
		case window > 0 && c.Layers[l].Window == 0:
			w = 1
		case cos < collapseCos:
			w = 3
		}
		for range c.OwnKVHeads(l) {
			out = append(out, w*float64(c.Layers[l].HeadDim))
		}
	}
	return out, nil
}

// angleTap measures the mean cosine between each layer's keys and their signs.
type angleTap struct {
	cfg *family.Config
	o   Options
	cos []float64
}

func (t *angleTap) attention(ctx context.Context, a *refmodel.Attention) error {
	c, y := t.cfg, &t.cfg.Layers[a.Layer]
	cos := make([]float64, y.KVHeads)
	err := parallel.For(ctx, t.o.Threads, y.KVHeads, func(h int) error {
		raw, err := codec.DataFree(codec.Raw, y.HeadDim, 0, a.Layer, h)
		if err != nil {
			return err
		}
		b, err := raw.Measure(ctx, activations.Keys(c, a, h, nil, kvcache.Policy{Sink: t.o.Policy.Sink}))
		cos[h] = b.Cos1bit
		return err
	})
	if err != nil {
		return err
	}
	var sum float64
	for _, v := range cos {
		sum += v
	}
	t.cos = append(t.cos, sum/float64(y.KVHeads))
	if len(t.cos) == len(c.Layers) {
		if t.o.Progress != nil {
			t.o.Progress(len(c.Layers), len(c.Layers))
		}
		return errDone
	}
	return nil
}

// sensitivities returns what each head is expected to cost with so many signs, in nats
// of the model's divergence.
func sensitivities(ctx context.Context, m *refmodel.Model, fit [][]int32, measure []int32, o Options) ([]DamageCurve,
	error) {
	c := m.Config
	s := &survey{cfg: c, o: o, scale: map[[2]int][]float32{}, codes: make([][]*codec.Code, len(c.Layers)),
		heads: make([][]surveyed, len(c.Layers)), gather: activations.NewGatherer(c, o.Policy, o.Threads, nil)}
	// Codes of heads first, then layers one at a time.
	codes := 0
	for l := range c.Layers {
		codes += c.OwnKVHeads(l)
	}
	total := codes + ppl.LayerSteps(m)
	s.coded = progress.Count(o.Progress, total)
	hooks := refmodel.Hooks{Attention: func(a *refmodel.Attention) error { return s.attention(ctx, a) }}
	opt := refmodel.Options{Hooks: hooks}
	if err := m.Run(ctx, fit, []*refmodel.Variant{{}}, opt); err != nil {
		return nil, err
	}
	cache, err := kvcache.NewCodes(c, s.codes, o.Policy)
	if err != nil {
		return nil, err
	}
	cache.Scale = func(l, h int) []float32 { return s.scale[[2]int{l, h}] }
	kld, err := ppl.LayerKLD(ctx, m, [][]int32{measure}, len(measure)/4, cache, func(done, _ int) {
		if o.Progress != nil {
			o.Progress(codes+done, total)
		}
	})
	if err != nil {
		return nil, err
	}
	var out []DamageCurve
	for l, heads := range s.heads {
		var loss float64
		for _, h := range heads {
			loss += h.loss
		}
		for h, x := range heads {
			// A loss without errors leaves nothing to share out.
			share := max(0, kld[l].Mean) * x.loss / max(loss, math.SmallestNonzeroFloat64)
			floor := Waterfill(x.spectrum, float64(o.signs[l][h]))
			out = append(out, func(signs int) float64 {
				if floor == 0 {
					return 0
				}
				return share * (Waterfill(x.spectrum, float64(signs)) / floor)
			})
		}
	}
	return out, nil
}

// surveyor fits every head with the same number of signs and keeps what an
// allotment needs.
type survey struct {
	cfg    *family.Config
	o      Options
	gather *activations.Gatherer
	codes  [][]*codec.Code // [layer][KV head], none in a layer that reads another's keys
	scale  map[[2]int][]float32
	heads  [][]surveyed
	coded  func() // reports a head
}

type surveyed struct {
	spectrum []float64
	loss     float64
}

// balance adds the pair scales of a layer's keys, by layer and KV head, where they are folded.
func (o *Options) balance(c *family.Config, x *activations.Gathered, scale map[[2]int][]float32) {
	y := &c.Layers[x.Layer]
	if !o.Balance || transform.CheckPairScale(y) != nil {
		return
	}
	b := x.PairScale()
	for h := range y.KVHeads {
		scale[[2]int{x.Layer, h}] = b.KeyScale(h, y.HeadDim, c.PairsIn(x.Layer))
	}
}

func (s *survey) attention(ctx context.Context, a *refmodel.Attention) error {
	x, err := s.gather.Add(ctx, a)
	if err != nil || x == nil {
		return err
	}
	c, o := s.cfg, s.o
	o.balance(c, x, s.scale)
	xs, err := x.Samples(ctx, func(h int) []float32 { return s.scale[[2]int{x.Layer, h}] })
	if err != nil {
		return err
	}
	codes, heads := make([]*codec.Code, len(xs)), make([]surveyed, len(xs))
	err = parallel.For(ctx, o.Threads, len(xs), func(h int) error {
		xs[h].Seed, xs[h].Draft = o.Seed, true
		var err error
		codes[h], heads[h], err = s.head(ctx, xs[h])
		s.coded()
		return err
	})
	s.codes[x.Layer], s.heads[x.Layer] = codes, heads
	return err
}

func (s *survey) head(ctx context.Context, x *fit.Sample) (*codec.Code, surveyed, error) {
	spectrum, err := x.Spectrum(ctx)
	if err != nil {
		return nil, surveyed{}, err
	}
	code, _, err := fit.Fit(ctx, codec.Frame, s.o.signs[x.Layer][x.Head], x)
	if err != nil {
		return nil, surveyed{}, err
	}
	loss, err := x.ScoreLoss(ctx, code)
	return code, surveyed{spectrum, loss}, err
}
