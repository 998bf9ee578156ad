package calibrate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"

	"github.com/phaseconv/phaseconv/format/atomicfile"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/format/jsonx"
	"github.com/phaseconv/phaseconv/rotations"
	"github.com/phaseconv/phaseconv/verify/kvcache"
	"github.com/phaseconv/phaseconv/verify/ppl"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// Ways of spreading the signs of a frame over the heads of a model.
const (
	AllocUniform     = "uniform"     // all alike
	AllocSensitivity = "sensitivity" // by what they are measured to cost
	AllocAngle       = "angle"       // by phase-collapse angle, the baseline
)

// Allocs lists the ways of spreading signs.
var Allocs = []string{AllocUniform, AllocSensitivity, AllocAngle}

// How much text an allotment looks at.
const (
	allotKeys   = 16       // per number of a key, to fit to, in whole windows
	allotTokens = 11 << 10 // of one window, once for each layer; so deep models get shorter ones
	allotLeast  = 64       // but not shorter than this
	layerLanes  = 8        // layers measured at a time, each with hidden states of its own
)

// Even spreads bits per number evenly over the heads of a model, [layer][KV head].
func Even(c *family.Config, bits float64) ([][]int, error) {
	total, err := rotations.Budget(bits, c.HeadDim, c.Layers*c.KVHeads)
	if err != nil {
		return nil, err
	}
	return layered(c, rotations.EvenSigns(total, c.Layers*c.KVHeads)), nil
}

func layered(c *family.Config, signs []int) [][]int {
	return slices.Collect(slices.Chunk(signs, c.KVHeads))
}

// Allot decides how many signs the frame of each head gets, [layer][KV head], so
// that they are o.Bits per number on average: exactly the budget that
// rotations.Budget names. It looks at the first windows of the calibration text;
// the result depends on them and on o, not on the number of threads.
//
// sensitivity measures for each layer how much the model's predictions diverge
// when that layer alone is coded with o.Bits, on the last window (of deep models on
// its beginning), shares this out
// over the layer's heads by the errors of their scores, and takes it that the
// damage falls with more signs as rate-distortion theory says for the head's
// spectrum. angle reads the angle between keys and their signs.
func Allot(ctx context.Context, m *refmodel.Model, windows [][]int32, alloc string, o Options) ([][]int, error) {
	c := m.Config
	even, err := Even(c, o.Bits)
	if err != nil || alloc == AllocUniform {
		return even, err
	}
	if len(windows) == 0 {
		return nil, fmt.Errorf("no calibration text to allot signs by")
	}
	total, err := rotations.Budget(o.Bits, c.HeadDim, c.Layers*c.KVHeads)
	if err != nil {
		return nil, err
	}
	// A frame has head_dim numbers for each sign, so wide heads need more keys.
	fit := (allotKeys*c.HeadDim + len(windows[0]) - 1) / len(windows[0])
	first := windows[:max(1, min(fit, len(windows)-1))]
	o.Threads, o.Signs = m.Threads, even
	switch alloc {
	case AllocAngle:
		w, err := angleWeights(ctx, m, first, o)
		if err != nil {
			return nil, err
		}
		return layered(c, rotations.WeightedSigns(total, c.HeadDim, w)), nil
	case AllocSensitivity:
		last := windows[len(windows)-1]
		last = last[:min(len(last), max(allotLeast, allotTokens/c.Layers))]
		damage, err := damages(ctx, m, first, last, o)
		if err != nil {
			return nil, err
		}
		return layered(c, rotations.AllotSigns(total, c.HeadDim, damage)), nil
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
	opt := refmodel.Options{Tap: t, Progress: func(done, total int) { o.step(done, total) }}
	if err := m.Run(ctx, windows, []*refmodel.Lane{{}}, opt); !errors.Is(err, errDone) {
		if err == nil {
			err = fmt.Errorf("layer %d was not reached", c.Layers-1)
		}
		return nil, err
	}
	sliding := slices.Contains(c.Sliding, true) && c.SlidingWindow > 0
	var out []float64
	for l, cos := range t.cos {
		w := 2.0
		switch {
		case sliding && !c.IsSliding(l):
			w = 1
		case cos < collapseCos:
			w = 3
		}
		for range c.KVHeads {
			out = append(out, w)
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

// FFN implements refmodel.Tap.
func (t *angleTap) FFN(int, []float32) error { return nil }

// Attention implements refmodel.Tap.
func (t *angleTap) Attention(a *refmodel.Attention) error {
	c := t.cfg
	cos := make([]float64, c.KVHeads)
	errs := make([]error, c.KVHeads)
	refmodel.Parallel(t.o.Threads, c.KVHeads, func(h int) {
		raw, err := rotations.DataFree("raw", c.HeadDim, 0, a.Layer, h)
		if err != nil {
			errs[h] = err
			return
		}
		b := raw.Measure(Keys(c, a, h, nil, kvcache.Policy{Sink: t.o.Policy.Sink}))
		cos[h] = b.Cos1bit
	})
	if err := errors.Join(errs...); err != nil {
		return err
	}
	var sum float64
	for _, v := range cos {
		sum += v
	}
	t.cos = append(t.cos, sum/float64(c.KVHeads))
	if len(t.cos) == c.Layers {
		return errDone
	}
	return nil
}

// damages returns what each head is expected to cost with so many signs, in nats
// of the model's divergence.
func damages(ctx context.Context, m *refmodel.Model, fit [][]int32, measure []int32, o Options) ([]rotations.DamageCurve, error) {
	c := m.Config
	s := &surveyor{ctx: ctx, cfg: c, o: o, scale: map[[2]int][]float32{}}
	opt := refmodel.Options{Tap: s, Progress: func(done, _ int) { o.step(done, 2*c.Layers) }}
	if err := m.Run(ctx, fit, []*refmodel.Lane{{}}, opt); err != nil {
		return nil, err
	}
	cache, err := kvcache.NewCodes(c, s.codes, o.Policy)
	if err != nil {
		return nil, err
	}
	cache.Scale = func(l, h int) []float32 { return s.scale[[2]int{l, h}] }
	kld, err := LayerKLD(ctx, m, [][]int32{measure}, len(measure)/4, cache, func(done, _ int) { o.step(c.Layers+done, 2*c.Layers) })
	if err != nil {
		return nil, err
	}
	var out []rotations.DamageCurve
	for l, heads := range s.heads {
		var loss float64
		for _, h := range heads {
			loss += h.loss
		}
		for h, x := range heads {
			// A loss without errors leaves nothing to share out.
			share := max(0, kld[l].Mean) * x.loss / max(loss, math.SmallestNonzeroFloat64)
			floor := rotations.Waterfill(x.spectrum, float64(o.Signs[l][h]))
			out = append(out, func(signs int) float64 {
				if floor == 0 {
					return 0
				}
				return share * (rotations.Waterfill(x.spectrum, float64(signs)) / floor)
			})
		}
	}
	return out, nil
}

// surveyor fits every head with the same number of signs and keeps what an
// allotment needs.
type surveyor struct {
	ctx   context.Context
	cfg   *family.Config
	o     Options
	codes [][]*rotations.Code
	scale map[[2]int][]float32
	heads [][]surveyed
}

type surveyed struct {
	spectrum []float64
	loss     float64
}

// FFN implements refmodel.Tap.
func (s *surveyor) FFN(int, []float32) error { return nil }

// Attention implements refmodel.Tap.
func (s *surveyor) Attention(a *refmodel.Attention) error {
	c, o := s.cfg, s.o
	if o.Balance {
		b := Energies(c, a, o.Policy.Sink).Balance(c.Family.QKNorm == family.NormHead)
		for h := range c.KVHeads {
			s.scale[[2]int{a.Layer, h}] = b.RowScale(h, c.HeadDim, c.Pairs, false)
		}
	}
	xs, err := samples(s.ctx, c, a, func(h int) []float32 { return s.scale[[2]int{a.Layer, h}] }, o.Policy, o.Threads)
	if err != nil {
		return err
	}
	codes, heads, errs := make([]*rotations.Code, c.KVHeads), make([]surveyed, c.KVHeads), make([]error, c.KVHeads)
	refmodel.Parallel(o.Threads, c.KVHeads, func(h int) {
		xs[h].Seed, xs[h].Draft = o.Seed, true
		codes[h], heads[h], errs[h] = s.head(xs[h])
	})
	s.codes, s.heads = append(s.codes, codes), append(s.heads, heads)
	return errors.Join(errs...)
}

func (s *surveyor) head(x *rotations.Sample) (*rotations.Code, surveyed, error) {
	spectrum, err := x.Spectrum()
	if err != nil {
		return nil, surveyed{}, err
	}
	code, _, err := rotations.Fit("frame", s.o.Signs[x.Layer][x.Head], x)
	if err != nil {
		return nil, surveyed{}, err
	}
	return code, surveyed{spectrum, x.ScoreLoss(code)}, nil
}

// LayerKLD returns by how much predictions diverge when the keys of one layer
// alone are coded, for each layer, at positions from on of each window. tick, if
// not nil, is told how many layers are done.
func LayerKLD(ctx context.Context, m *refmodel.Model, windows [][]int32, from int, cache *kvcache.Codes, tick func(done, total int)) ([]ppl.Divergence, error) {
	w := &ppl.Windows{Ctx: len(windows[0]), Tokens: windows}
	for _, ids := range windows {
		w.Targets = append(w.Targets, ids[from+1:]...)
	}
	var out []ppl.Divergence
	var base ppl.Stream
	var start []float32 // float hidden states in front of layer l0
	layers := m.Config.Layers
	for l0 := 0; l0 < layers; l0 += layerLanes {
		l1 := min(layers, l0+layerLanes)
		float := &refmodel.Lane{From: l0, Start: start, Until: l1}
		next := float
		lanes := []*refmodel.Lane{float}
		if l0 == 0 {
			float.Until, next = 0, &refmodel.Lane{From: l1, Until: l1}
		}
		for l := l0; l < l1; l++ {
			// Without a code in front of it, a layer gets what it gets in the float model.
			lanes = append(lanes, &refmodel.Lane{Cache: cache.Only(l), From: l})
		}
		coded := lanes[1:]
		if next != float {
			lanes = append(lanes, next)
		}
		if err := m.Run(ctx, windows, lanes, refmodel.Options{}); err != nil {
			return nil, err
		}
		start = next.Hidden
		var err error
		if l0 == 0 {
			if base, err = ppl.ScoredFrom(m, w.Ctx, from, float); err != nil {
				return nil, err
			}
		}
		var streams []ppl.Stream
		for _, l := range coded {
			s, err := ppl.ScoredFrom(m, w.Ctx, from, l)
			if err != nil {
				return nil, err
			}
			streams = append(streams, s)
		}
		r, err := ppl.Measure(ctx, w, base, streams...)
		if err != nil {
			return nil, err
		}
		out = append(out, r.Divergences...)
		if tick != nil {
			tick(len(out), layers)
		}
	}
	return out, nil
}

func (o *Options) step(done, total int) {
	if o.Progress != nil {
		o.Progress(done, total)
	}
}

// allotName is the file of a work folder that says how signs were allotted.
const allotName = "allot.json"

type allotFile struct {
	Inputs []Input `json:"inputs"`
	Signs  [][]int `json:"signs"`
}

func (w *Work) signsPath() string { return filepath.Join(w.Dir, allotName) }

// ReadSigns returns the allotment that a work folder has for w.Inputs, which must
// sum up to total. The error says why there is none that can be used; it is
// fs.ErrNotExist when there is no file.
func (w *Work) ReadSigns(layers, total int) ([][]int, error) {
	signs, err := w.readSigns(layers, total)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", w.signsPath(), err)
	}
	return signs, err
}

func (w *Work) readSigns(layers, total int) ([][]int, error) {
	st, err := os.Stat(w.signsPath())
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() > maxInputs+int64(16*layers*(w.KVHeads+1)) {
		return nil, fmt.Errorf("not an allotment of %d layers with %d heads", layers, w.KVHeads)
	}
	raw, err := os.ReadFile(w.signsPath())
	if err != nil {
		return nil, err
	}
	var f allotFile
	if err := jsonx.Unmarshal(raw, &f); err != nil {
		return nil, err
	}
	have, err := json.Marshal(f.Inputs)
	if err != nil {
		return nil, err
	}
	if err := w.sameInputs(string(have)); err != nil {
		return nil, err
	}
	sum, ok := 0, len(f.Signs) == layers
	for _, heads := range f.Signs {
		ok = ok && len(heads) == w.KVHeads
		for _, b := range heads {
			ok = ok && b >= 8 && b%8 == 0 && b <= rotations.MaxBits
			sum += b
		}
	}
	if !ok || sum != total {
		return nil, fmt.Errorf("not an allotment of %d signs to %d layers with %d heads", total, layers, w.KVHeads)
	}
	return f.Signs, nil
}

// SaveSigns keeps an allotment, beside the layers that will be fitted with it.
func (w *Work) SaveSigns(signs [][]int) error {
	if w.Check != nil {
		if err := w.Check(); err != nil {
			return err
		}
	}
	b, err := json.Marshal(allotFile{w.Inputs, signs})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(w.Dir, 0o777); err != nil {
		return err
	}
	return atomicfile.WriteFile(w.signsPath(), append(b, '\n'))
}
