package figures

import (
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/phaseconv/phaseconv/kernels/fmath"
	"github.com/phaseconv/phaseconv/kernels/parallel"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/rotations/fit"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/activations"
	"github.com/phaseconv/phaseconv/verify/kvcache"
	"github.com/phaseconv/phaseconv/verify/progress"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// tap measures angles of every layer and keeps the keys and one query of the
// head that is shown.
type tap struct {
	p      *measurer
	angles []spec.AngleRow

	keys  []float32 // of the last window, as attention sees them, [T, head_dim]
	query []float32 // the last window's last query, of the head's first query head
	coded []float32 // keys of all windows as the cache codes them, [n, head_dim]
}

func (t *tap) attention(ctx context.Context, a *refmodel.Attention) error {
	o := t.p.o
	c, y := o.Config, &o.Config.Layers[a.Layer]
	d := y.HeadDim
	rows := make([]spec.AngleRow, c.OwnKVHeads(a.Layer))
	err := parallel.For(ctx, t.p.o.Threads, len(rows), func(h int) error {
		srht, err := codec.DataFree(codec.SRHT, d, o.Seed, a.Layer, h)
		if err != nil {
			return err
		}
		plain := activations.Keys(c, a, h, nil, kvcache.Policy{Sink: o.Policy.Sink})
		coded := activations.Keys(c, a, h, t.p.scale(a.Layer, h), o.Policy)
		raw, err := codec.DataFree(codec.Raw, d, o.Seed, a.Layer, h)
		if err != nil {
			return err
		}
		rows[h] = spec.AngleRow{Layer: a.Layer, Head: h}
		for _, x := range []struct {
			to   *float64
			code *codec.Code
			keys []float32
		}{{&rows[h].Raw, raw, plain}, {&rows[h].SRHT, srht, plain}, {&rows[h].Code, o.Codes[a.Layer][h], coded}} {
			if *x.to, err = meanAngle(ctx, x.code, x.keys); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	t.angles = append(t.angles, rows...)
	if a.Layer != t.p.layer {
		return nil
	}
	h, kw, qw := t.p.head, y.KVHeads*d, y.Heads*d
	t.coded = activations.Keys(c, a, h, t.p.scale(a.Layer, h), o.Policy)
	base := (a.Windows - 1) * a.T
	for i := range a.T {
		row := (base+i)*kw + h*d
		t.keys = append(t.keys, a.K[row:row+d]...)
	}
	row := (base+a.T-1)*qw + h*y.Group()*d
	t.query = append(t.query, a.Q[row:row+d]...)
	return nil
}

func (p *measurer) scale(layer, head int) []float32 {
	if p.o.Scale == nil {
		return nil
	}
	return p.o.Scale(layer, head)
}

// meanAngle is the mean angle between centred keys and what the code gives back.
func meanAngle(ctx context.Context, c *codec.Code, keys []float32) (float64, error) {
	d, n := c.D, len(keys)/c.D
	words, alpha, hat := make([]uint32, n*c.Words()), make([]float32, n), make([]float32, n*d)
	if err := c.EncodeKeys(ctx, keys, words, alpha); err != nil {
		return 0, err
	}
	c.DecodeKeys(hat, words, alpha)
	var sum float64
	used := 0
	for i := range n {
		var xx, hh, xh float64
		for j := range d {
			x, h := float64(keys[i*d+j])-float64(c.Mean[j]), float64(hat[i*d+j])-float64(c.Mean[j])
			xx += float64(x * x)
			hh += float64(h * h)
			xh += float64(x * h)
		}
		if xx > 0 && hh > 0 {
			sum += fmath.Acos(xh/math.Sqrt(float64(xx*hh))) * (180 / math.Pi)
			used++
		}
	}
	if used == 0 {
		return 0, nil
	}
	return sum / float64(used), nil
}

// shown fills in the samples of the head that is shown.
func (p *measurer) shown(ctx context.Context, t *tap) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var err error
	if p.out.Cloud, err = cloud(ctx, t.coded, p.o.Config.Layers[p.layer].HeadDim, p.layer, p.head); err != nil {
		return err
	}
	sample, err := p.sample(ctx)
	if err != nil {
		return err
	}
	fitted := func() {}
	if sample != nil {
		fitted = progress.Count(p.step("fitting other codes to it"), 1+len(sizes))
		if p.out.Convergence, err = p.converge(ctx, sample, t.coded); err != nil {
			return err
		}
		fitted()
	}
	return p.scores(ctx, t, sample, fitted)
}

// cloudAngles is how many angles of a quarter turn are tried for each pair of coordinates.
const cloudAngles = 18

// cloud picks the plane of two coordinates in which the best turn lifts the
// one-bit cosine most above what no turn and 45 degrees, the Hadamard rotation of
// a plane, give.
func cloud(ctx context.Context, keys []float32, d, layer, head int) (*spec.Cloud, error) {
	n := len(keys) / d
	if n == 0 || d < 2 {
		return nil, nil
	}
	mean := make([]float64, d)
	for i, v := range keys {
		mean[i%d] += float64(v) / float64(n)
	}
	m := min(n, cloudPoints)
	x := make([]float64, m*d) // evenly spaced keys
	for i := range m {
		for j := range d {
			x[i*d+j] = float64(keys[i*n/m*d+j]) - mean[j]
		}
	}
	var sin, cos [cloudAngles]float64
	for k := range sin {
		sin[k], cos[k] = fmath.SinCos(float64(k) / cloudAngles * math.Pi / 2)
	}
	best, bi, bj := math.Inf(-1), 0, 1
	for i := range d {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		for j := i + 1; j < d; j++ {
			var value [cloudAngles]float64
			for r := range m {
				a, b := x[r*d+i], x[r*d+j]
				norm := math.Sqrt(float64(a*a) + float64(b*b))
				if norm == 0 {
					continue
				}
				for k := range value {
					value[k] += (math.Abs(float64(cos[k]*a)-float64(sin[k]*b)) + math.Abs(float64(sin[k]*a)+float64(cos[k]*b))) / norm
				}
			}
			top := 0.0
			for _, v := range value {
				top = max(top, v)
			}
			if gain := top - max(value[0], value[cloudAngles/2]); gain > best {
				best, bi, bj = gain, i, j
			}
		}
	}
	out := &spec.Cloud{Layer: layer, Head: head, Dims: [2]int{bi, bj}}
	for r := range m {
		out.Points = append(out.Points, [2]float64{round(x[r*d+bi]), round(x[r*d+bj])})
	}
	return out, nil
}

// round keeps five significant digits, enough to draw and to compute with.
func round(x float64) float64 {
	if x == 0 || math.IsNaN(x) || math.IsInf(x, 0) {
		return x
	}
	unit := 1.0
	for a := math.Abs(x); a*unit < 1e4; {
		unit *= 10
	}
	for a := math.Abs(x); a*unit >= 1e5; {
		unit /= 10
	}
	return math.Round(x*unit) / unit
}

// sample collects calibration keys and the query metric of the head that is
// shown: the layers up to the last that reads it are run again.
func (p *measurer) sample(ctx context.Context) (*fit.Sample, error) {
	if len(p.o.Calibration) == 0 {
		return nil, nil
	}
	T := len(p.o.Calibration[0])
	windows := p.o.Calibration[:min(len(p.o.Calibration), max(1, fitKeys/T))]
	var s *fit.Sample
	shown := func(owner int) bool { return owner == p.layer }
	gather := activations.NewGatherer(p.o.Config, p.o.Policy, p.o.Threads, shown)
	hook := func(a *refmodel.Attention) error {
		x, err := gather.Add(ctx, a)
		if err == nil && x != nil {
			s, err = x.Sample(ctx, p.head, p.scale(p.layer, p.head))
		}
		return err
	}
	until := p.o.Config.LastReader(p.layer) + 1
	step := p.step("collecting keys of one head")
	hooks := refmodel.Hooks{Attention: hook, NoPre: true, NoValues: true}
	var err error
	if p.o.Engine != nil {
		err = p.o.Engine.Tap(ctx, windows, hooks, step)
	} else {
		err = p.m.Run(ctx, windows, []*refmodel.Variant{{Until: until}}, refmodel.Options{Hooks: hooks,
			Progress: func(done, _ int) {
				if step != nil {
					step(done, until)
				}
			}})
	}
	if err != nil || s == nil || s.N() == 0 { // all keys of short windows may be sinks
		return nil, err
	}
	s.Seed = p.o.Seed
	return s, nil
}

// sizes are the bits per number of the frames whose scores are shown. The time
// that a fit takes grows with the square of the bits.
var sizes = []float64{0.5, 1, 2}

// scores compares the logits of one query under several codes, and calls fitted after each of sizes.
func (p *measurer) scores(ctx context.Context, t *tap, sample *fit.Sample, fitted func()) error {
	y := &p.o.Config.Layers[p.layer]
	d := y.HeadDim
	T := len(t.keys) / d
	out := &spec.Scores{Layer: p.layer, Head: p.head, QueryHead: p.head * y.Group(), Position: T - 1,
		Sink: min(p.o.Policy.Sink, T)}
	lo := refmodel.FirstSeen(y, T-1)
	for j := lo; j < T; j++ {
		var s float64
		for k, v := range t.query {
			s += float64(v) * float64(t.keys[j*d+k])
		}
		out.Float = append(out.Float, round(s*y.Scale))
	}
	out.Sink = max(0, out.Sink-lo)
	add := func(kind codec.Kind, fitted string, c *codec.Code) error {
		s, err := p.query(c, t, lo)
		if err != nil {
			return fmt.Errorf("layer %d, KV head %d, code %s: %w", p.layer, p.head, kind, err)
		}
		out.Codes = append(out.Codes, spec.ScoreCode{Code: string(kind), Bits: float64(c.B) / float64(d), Fitted: fitted,
			Scores: s})
		return nil
	}
	for _, kind := range []codec.Kind{codec.Raw, codec.SRHT} {
		c, err := codec.DataFree(kind, d, p.o.Seed, p.layer, p.head)
		if err != nil {
			return err
		}
		if err := add(kind, "", c); err != nil {
			return err
		}
	}
	if p.o.Fitted != nil && p.o.Kind != codec.Learned {
		if c := p.o.Fitted[p.layer][p.head][codec.Learned]; c != nil {
			if err := add(codec.Learned, p.o.CalibrationName, c); err != nil {
				return err
			}
		}
	}
	own := p.o.Codes[p.layer][p.head]
	ownBits := float64(own.B) / float64(d)
	placed := false
	size := func(bits float64) error {
		defer fitted()
		if !placed && ownBits <= bits {
			if err := add(p.o.Kind, "", own); err != nil {
				return err
			}
			placed = true
			if ownBits == bits && p.o.Kind == codec.Frame {
				return nil
			}
		}
		b, err := codec.Budget(bits, d)
		if err != nil || b != int(bits*float64(d)) || sample == nil {
			return nil // this head_dim has no such size, or there is nothing to fit to
		}
		c, _, err := fit.Fit(ctx, codec.Frame, b, sample)
		if err != nil {
			return err
		}
		return add(codec.Frame, p.o.CalibrationName, c)
	}
	for _, bits := range sizes {
		if err := size(bits); err != nil {
			return err
		}
	}
	if !placed {
		if err := add(p.o.Kind, "", own); err != nil {
			return err
		}
	}
	p.out.Scores = out
	return nil
}

// query scores the kept keys, from key lo on, as a cache with this code would.
func (p *measurer) query(c *codec.Code, t *tap, lo int) ([]float64, error) {
	cfg := p.o.Config
	all := slices.Clone(p.o.Codes)
	all[p.layer] = slices.Repeat([]*codec.Code{c}, len(all[p.layer]))
	cache, err := p.cache(all, p.o.Policy)
	if err != nil {
		return nil, err
	}
	scorer, err := cache.Keys(p.layer, p.head, append([]float32(nil), t.keys...))
	if err != nil {
		return nil, err
	}
	T := len(t.keys) / c.D
	dst := make([]float32, T)
	scorer.Score(refmodel.Tile{Dst: dst, LD: T, Q: t.query, LDQ: c.D, Rows: 1, Pos: T - 1, To: T})
	var out []float64
	for _, v := range dst[lo:] {
		out = append(out, round(float64(v)*cfg.Layers[p.layer].Scale))
	}
	return out, nil
}
