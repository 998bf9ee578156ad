package calibrate

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/kernels/gemm"
	"github.com/phaseconv/phaseconv/kernels/rope"
	"github.com/phaseconv/phaseconv/rotations"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// BalanceKind says how the pairs of a head are scaled.
type BalanceKind int

const (
	// NoBalance leaves scales as they are.
	NoBalance BalanceKind = iota
	// PowerOfTwo takes the closed form rounded to powers of two: rows of quantised
	// weights then keep their stored digits.
	PowerOfTwo
	// ClosedForm takes the scales that suit any type with errors alike in all directions.
	ClosedForm
	// ForType starts from the closed form and tunes it to the cache type; with a
	// mix it is the mix that is fitted to the type. It needs StatsOptions.Samples.
	ForType
)

func (k BalanceKind) String() string {
	switch k {
	case NoBalance:
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
	Remove *rotations.SlowMeanOptions
	// Mix, if not 0, mixes pairs, with this weight of the drift; see
	// rotations.MixOptions. It needs StatsOptions.Samples. A mix balances pairs too:
	// of Balance it only minds ForType, see rotations.ShapeMix.
	Mix     float64
	Balance BalanceKind
	Cache   rotations.CacheRow // what the edits are for
}

// Fit makes the edits of all heads, [layer][KV head]. It refuses a removal on
// models whose keys take no bias.
func (s *KeyStats) Fit(f KeyFit) ([][]rotations.KeyEdit, error) {
	c := s.cfg
	if f.Remove != nil {
		if err := rotations.CheckKeyBias(c); err != nil {
			return nil, err
		}
	}
	out := make([][]rotations.KeyEdit, c.Layers)
	for l := range out {
		out[l] = make([]rotations.KeyEdit, c.KVHeads)
	}
	// With one gain vector for all heads a layer is one task.
	per := 1
	if c.Family.QKNorm == family.NormHead {
		per = c.KVHeads
	}
	tasks := c.Layers * c.KVHeads / per
	errs := make([]error, tasks)
	refmodel.Parallel(s.o.Threads, tasks, func(i int) {
		l, h := i*per/c.KVHeads, i*per%c.KVHeads
		errs[i] = s.fitHeads(f, l, h, out[l][h:h+per])
	})
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// FitValues returns the edits with the values of all heads mixed for a cache type,
// see rotations.MixValues. It needs StatsOptions.Weights and Samples.
func (s *KeyStats) FitValues(edits [][]rotations.KeyEdit, cache rotations.CacheRow) ([][]rotations.KeyEdit, error) {
	c := s.cfg
	out := make([][]rotations.KeyEdit, c.Layers)
	for l := range out {
		out[l] = slices.Clone(edits[l])
	}
	errs := make([]error, c.Layers*c.KVHeads)
	refmodel.Parallel(s.o.Threads, len(errs), func(i int) {
		l, h := i/c.KVHeads, i%c.KVHeads
		x, err := s.Values(l, h)
		if err == nil && !x.Silent() {
			if out[l][h].Values, err = rotations.MixValues(x, cache); errors.Is(err, rotations.ErrNoMix) {
				out[l][h].Values, err = nil, nil
			}
		}
		if err != nil {
			errs[i] = fmt.Errorf("values of layer %d, KV head %d: %w", l, h, err)
		}
	})
	return out, cmp.Or(errs...)
}

// fitHeads fits KV heads [head, head+len(out)) of a layer, which share a balance.
// Heads whose keys, queries or values are all zero, as pruning leaves them, stay as they are.
func (s *KeyStats) fitHeads(f KeyFit, layer, head int, out []rotations.KeyEdit) error {
	fail := func(err error) error { return fmt.Errorf("layer %d, KV head %d: %w", layer, head, err) }
	half := s.cfg.HeadDim / 2
	q, k := make([]float64, half), make([]float64, half)
	var alive []int
	for i := range out {
		if x := s.heads[layer*s.cfg.KVHeads+head+i]; x.queries > 0 && (x.attention <= 0 || x.weight <= 0) {
			continue // what attention looks at weighs nothing: values or W_O are zero
		}
		stats, err := s.Head(layer, head+i)
		if err != nil {
			return err
		}
		if scoreless(stats) {
			continue
		}
		alive = append(alive, i)
		var delta []float64
		if f.Remove != nil {
			if out[i].Removal, err = s.remove(f, stats, layer, head+i); err != nil {
				return fail(err)
			}
			delta = out[i].Removal.Delta
		}
		stats.AddPairEnergies(q, k, delta)
		if f.Mix != 0 {
			switch out[i].Mix, err = s.mix(f, stats, layer, head+i, out[i].Removal); {
			case errors.Is(err, rotations.ErrNoMix):
				out[i].Mix = nil
			case err != nil:
				return fail(err)
			}
		}
	}
	if f.Balance == NoBalance || f.Mix != 0 || len(alive) == 0 {
		return nil
	}
	turn := &rotations.PairTurn{Scale: rotations.BalanceOf(q, k)}
	switch f.Balance {
	case PowerOfTwo:
		for p, t := range turn.Scale {
			turn.Scale[p] = nearestPower(t)
		}
	case ForType:
		var samples []*rotations.KeySample
		for _, i := range alive {
			x, err := s.Sample(layer, head+i, out[i])
			if err != nil {
				return err
			}
			samples = append(samples, x)
		}
		// Gains of a QK-norm scale, and do not turn.
		t, err := rotations.TuneBalance(samples, turn, f.Cache, s.cfg.Family.QKNorm == family.NoQKNorm)
		if err != nil {
			return fail(err)
		}
		turn = t.Turn
	}
	for i := range out {
		out[i].Turn = turn
	}
	return nil
}

// scoreless says whether a head's scores are all zero.
func scoreless(s *rotations.KeyStats) bool {
	q, k := make([]float64, s.D/2), make([]float64, s.D/2)
	s.AddPairEnergies(q, k, nil)
	return slices.Max(q) == 0 || slices.Max(k) == 0
}

// noiseRounds is how often a removal is repeated with the noise of what it leaves:
// keys that are nearly all mean store better than what comes after them.
const noiseRounds = 2

// noise measures the cache type's relative error on the balanced keys of a head.
func (s *KeyStats) noise(f KeyFit, stats *rotations.KeyStats, layer, head int, m *rotations.SlowMean) (float64, error) {
	sample, err := s.Sample(layer, head, rotations.KeyEdit{Removal: m})
	if err != nil {
		return 0, err
	}
	half := s.cfg.HeadDim / 2
	q, k := make([]float64, half), make([]float64, half)
	var delta []float64
	if m != nil {
		delta = m.Delta
	}
	stats.AddPairEnergies(q, k, delta)
	return sample.Noise(&rotations.PairTurn{Scale: rotations.BalanceOf(q, k)}, f.Cache)
}

// remove solves the program of one head, with its noise measured if need be.
func (s *KeyStats) remove(f KeyFit, stats *rotations.KeyStats, layer, head int) (*rotations.SlowMean, error) {
	o := *f.Remove
	if o.Noise != 0 {
		return rotations.RemoveSlowMean(stats, o)
	}
	var m *rotations.SlowMean
	o.Noise = rotations.NoiseQ4_0
	for round := 0; ; round++ {
		var err error
		if m, err = rotations.RemoveSlowMean(stats, o); err != nil || round == noiseRounds {
			return m, err
		}
		if o.Noise, err = s.noise(f, stats, layer, head, m); err != nil {
			return nil, err
		}
	}
}

// A Candidate is a named KeyFit.
type Candidate struct {
	Name string
	// Near: the model's function changes a little, see rotations.IDSlowMean.
	Near bool
	Fit  KeyFit
}

// Candidates lists the exact changes worth measuring for a cache, the least first.
// The first changes nothing, and types without blocks need nothing.
func Candidates(cache rotations.CacheRow) []Candidate {
	out := []Candidate{{Name: "as published"}}
	if cache.Type.Quantized() {
		balance := Candidate{Name: "balance", Fit: KeyFit{Balance: ClosedForm, Cache: cache}}
		out = append(out, Candidate{Name: "balance, powers of two", Fit: KeyFit{Balance: PowerOfTwo, Cache: cache}}, balance, balance.Tuned())
	}
	return out
}

// Removal returns the candidate that takes slow means out, with this weight of the
// drift, and balances what is left. Models whose keys take no bias cannot have it.
func Removal(kappa float64, cache rotations.CacheRow) Candidate {
	return Candidate{
		Name: fmt.Sprintf("slow means removed (drift weight %g), balance", kappa), Near: true,
		Fit: KeyFit{Remove: &rotations.SlowMeanOptions{Kappa: kappa}, Balance: ClosedForm, Cache: cache},
	}
}

// Milder returns the candidate with its drift weights, at least one, so many times larger.
func (c Candidate) Milder(factor float64) Candidate {
	removal, mix := c.driftWeights()
	out := Candidate{Name: "balance", Fit: KeyFit{Balance: ClosedForm, Cache: c.Fit.Cache}}
	if !math.IsInf(removal, 1) {
		out = Removal(factor*removal, c.Fit.Cache)
	}
	if !math.IsInf(mix, 1) {
		return out.Mixed(factor * mix)
	}
	return out
}

// Mixed returns the candidate with pairs mixed for the cache type, with this weight
// of the drift.
func (c Candidate) Mixed(kappa float64) Candidate {
	c.Name, c.Near = fmt.Sprintf("%s, pairs mixed (drift weight %g)", c.Name, kappa), true
	c.Fit.Mix, c.Fit.Balance = kappa, ForType
	return c
}

// driftWeights returns the weights of drift in a removal and in a mix, infinite
// where there is none.
func (c Candidate) driftWeights() (removal, mix float64) {
	removal, mix = math.Inf(1), math.Inf(1)
	if c.Fit.Remove != nil {
		removal = c.Fit.Remove.Kappa
	}
	if c.Fit.Mix != 0 {
		mix = c.Fit.Mix
	}
	return removal, mix
}

// Below says whether both of c's changes drift no more than d's.
func (c Candidate) Below(d Candidate) bool {
	r, m := c.driftWeights()
	r2, m2 := d.driftWeights()
	return r >= r2 && m >= m2
}

// KeepsDigits says whether the candidate changes no digit of a weight but its exponent.
func (c Candidate) KeepsDigits() bool {
	return !c.Near && (c.Fit.Balance == NoBalance || c.Fit.Balance == PowerOfTwo)
}

// Drift compares candidates by how much they may change the model's function: it
// is negative where c may change less than d.
func (c Candidate) Drift(d Candidate) int {
	r, m := c.driftWeights()
	r2, m2 := d.driftWeights()
	// A mix moves more than any removal.
	if mixed, mixed2 := !math.IsInf(m, 1), !math.IsInf(m2, 1); mixed != mixed2 {
		if mixed {
			return 1
		}
		return -1
	}
	return cmp.Or(cmp.Compare(r2, r), cmp.Compare(m2, m), cmp.Compare(c.Fit.Balance, d.Fit.Balance))
}

// Tuned returns the candidate with its balance tuned to the cache type: scales
// and, where there is no QK-norm, angles.
func (c Candidate) Tuned() Candidate {
	c.Name += " for the type"
	c.Fit.Balance = ForType
	return c
}

// nearestPower rounds t > 0 to the power of two with the nearest logarithm.
func nearestPower(t float32) float32 {
	frac, exp := math.Frexp(float64(t))
	if frac < math.Sqrt2/2 {
		exp--
	}
	return float32(math.Ldexp(1, exp))
}

// EditedKeys stands for the cache of a model whose weights have been edited, on
// top of the unedited model: candidates run as lanes of one forward pass. Inner
// is the cache format.
type EditedKeys struct {
	Inner refmodel.Cache

	cfg   *family.Config
	edits [][]rotations.KeyEdit
	ropes [2]ropes // of full and of sliding layers
}

// ropes are tables of one kind of layer: as the model turns, with YaRN's
// magnitude, and purely.
type ropes struct {
	turn, pure *rope.Table
	moved      *gemm.Weights // of KeyStats with the model's weights
}

func newRopes(p rope.Params, turn *rope.Table) ropes {
	if p.Magnitude() == 1 {
		return ropes{turn: turn, pure: turn}
	}
	return ropes{turn: turn, pure: rope.NewTable(p.Pure(), turn.Positions())}
}

// NewEditedKeys returns the cache for contexts of up to n tokens.
func NewEditedKeys(cfg *family.Config, edits [][]rotations.KeyEdit, inner refmodel.Cache, n int) (*EditedKeys, error) {
	if len(edits) != cfg.Layers {
		return nil, fmt.Errorf("key edits for %d of %d layers", len(edits), cfg.Layers)
	}
	e := &EditedKeys{Inner: inner, cfg: cfg, edits: edits}
	for l, heads := range edits {
		if len(heads) != cfg.KVHeads {
			return nil, fmt.Errorf("layer %d: key edits for %d of %d KV heads", l, len(heads), cfg.KVHeads)
		}
		if i := sliding(cfg, l); e.ropes[i].turn == nil {
			e.ropes[i] = newRopes(cfg.RopeOf(l), rope.NewTable(cfg.RopeOf(l), n))
		}
	}
	return e, nil
}

func sliding(cfg *family.Config, layer int) int {
	if cfg.IsSliding(layer) {
		return 1
	}
	return 0
}

// Keys implements refmodel.Cache.
func (e *EditedKeys) Keys(layer, head int, k []float32) (refmodel.Scorer, error) {
	edit := e.edits[layer][head]
	d := e.cfg.HeadDim
	t := e.ropes[sliding(e.cfg, layer)]
	if len(k)/d > t.turn.Positions() {
		return nil, fmt.Errorf("layer %d: %d keys, the edited cache was made for %d", layer, len(k)/d, t.turn.Positions())
	}
	editKeys(k, d, edit, func(i int) int { return i }, t, e.cfg.Pairs)
	if edit.Turn != nil {
		for i := 0; i < len(k); i += d {
			edit.Turn.Apply(k[i:i+d], e.cfg.Pairs, false)
		}
	}
	changed := edit.Turn != nil || edit.Mix != nil
	var s refmodel.Scorer
	if e.Inner != nil {
		var err error
		if s, err = e.Inner.Keys(layer, head, k); err != nil || s != nil && !changed {
			return s, err
		}
	}
	if !changed {
		return nil, nil
	}
	if s == nil {
		plain := &plainKeys{d: d}
		plain.keys.PackRows(len(k)/d, d, k, d, 1)
		s = plain
	}
	out := &editedQueries{Scorer: s, edit: edit, rope: t.pure, pairs: e.cfg.Pairs, d: d}
	if edit.Mix != nil {
		out.mix = edit.Mix.Weights(d, true)
	}
	return out, nil
}

// Values implements refmodel.Cache. Mixed values are turned back here instead of in W_O.
func (e *EditedKeys) Values(layer, head int, v []float32) error {
	if e.Inner == nil {
		return nil
	}
	m, d := e.edits[layer][head].Values, e.cfg.HeadDim
	if m == nil {
		return e.Inner.Values(layer, head, v)
	}
	x := make([]float32, len(v))
	gemm.Mul(x, d, v, d, len(v)/d, m.Weights(d, false), 1)
	if err := e.Inner.Values(layer, head, x); err != nil {
		return err
	}
	for i := 0; i < len(v); i += d {
		m.Undo(x[i : i+d])
	}
	copy(v, x)
	return nil
}

// editKeys does to keys after RoPE, [n, d], what a removal and a mix of weights do
// before it.
func editKeys(k []float32, d int, e rotations.KeyEdit, pos func(i int) int, t ropes, pairs rope.Layout) {
	if e.Removal != nil {
		x := make([]float32, d)
		for i := 0; i < len(k); i += d {
			for j, v := range e.Removal.Delta {
				x[j] = float32(v)
			}
			t.turn.Apply(x, pos(i/d), pairs)
			for j, v := range x {
				k[i+j] -= v
			}
		}
	}
	if e.Mix != nil {
		mixRows(k, d, e.Mix.Weights(d, false), pos, t.pure, pairs)
	}
}

// mixRows mixes keys or queries after RoPE, [n, d], as weights would before it.
func mixRows(x []float32, d int, w *gemm.Weights, pos func(i int) int, t *rope.Table, pairs rope.Layout) {
	for i := 0; i < len(x); i += d {
		t.ApplyInverse(x[i:i+d], pos(i/d), pairs)
	}
	out := make([]float32, len(x))
	gemm.Mul(out, d, x, d, len(x)/d, w, 1)
	copy(x, out)
	for i := 0; i < len(x); i += d {
		t.Apply(x[i:i+d], pos(i/d), pairs)
	}
}

// plainKeys scores keys as they are.
type plainKeys struct {
	d    int
	keys gemm.Weights
}

func (s *plainKeys) Score(dst []float32, ldd int, q []float32, ldq, n, pos, n0, n1 int) {
	gemm.MulRange(dst, ldd, q, ldq, n, &s.keys, n0, n1, 0, s.d, false, 1)
}

// Fork implements refmodel.Scorer. There are no buffers.
func (s *plainKeys) Fork() refmodel.Scorer { return s }

// editedQueries scores queries that edited weights would have made.
type editedQueries struct {
	refmodel.Scorer
	edit  rotations.KeyEdit
	mix   *gemm.Weights // of queries, nil for none
	rope  *rope.Table
	pairs rope.Layout
	d     int
}

// Fork implements refmodel.Scorer.
func (s *editedQueries) Fork() refmodel.Scorer {
	f := *s
	f.Scorer = s.Scorer.Fork()
	return &f
}

func (s *editedQueries) Score(dst []float32, ldd int, q []float32, ldq, n, pos, n0, n1 int) {
	x := make([]float32, n*s.d)
	for r := range n {
		copy(x[r*s.d:(r+1)*s.d], q[r*ldq:])
	}
	if s.mix != nil {
		mixRows(x, s.d, s.mix, func(i int) int { return pos + i }, s.rope, s.pairs)
	}
	if s.edit.Turn != nil {
		for r := 0; r < len(x); r += s.d {
			s.edit.Turn.Apply(x[r:r+s.d], s.pairs, true)
		}
	}
	s.Scorer.Score(dst, ldd, x, s.d, n, pos, n0, n1)
}
