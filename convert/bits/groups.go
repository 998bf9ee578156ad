package bits

import (
	"context"
	"fmt"
	"math"

	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/kernels/fmath"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/verify/activations"
	"github.com/phaseconv/phaseconv/verify/kvcache"
	"github.com/phaseconv/phaseconv/verify/option"
	"github.com/phaseconv/phaseconv/verify/ppl"
	"github.com/phaseconv/phaseconv/verify/progress"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// scaleBits is what the scale of a token takes in a group.
const scaleBits = 16

// Groups is which keys and values of a model are coded together, and with how many signs.
type Groups struct {
	Parts [][][]codec.Part // of each group, [layer][group]
	Signs [][]int          // of a token, [layer][group]
	// Given says which are coded given the group of the same number in the layer below, [layer][group];
	// nil for none.
	Given [][]bool
	// Shares say which signs of a group its keys and its values are decoded from.
	Shares Shares
}

// Parts names what groups hold; its text is that of codec.Summary.Parts.
type Parts string

// The choices that there are. What no group holds stays F16.
const (
	PartsBoth   Parts = "kv"  // keys and values of neighbouring heads in one group
	PartsApart  Parts = "k+v" // keys in groups of their own beside groups of values
	PartsKeys   Parts = "k"
	PartsValues Parts = "v"
	// PartsMixed cannot be chosen: it is what PartsBoth becomes where only some layers have heads that
	// fit a group.
	PartsMixed Parts = "mixed"
)

// ParseParts returns what a text names. The error says which there are.
func ParseParts(text string) (Parts, error) {
	switch p := Parts(text); p {
	case PartsBoth, PartsApart, PartsKeys, PartsValues:
		return p, nil
	}
	return "", fmt.Errorf("expected %s, %s, %s or %s", PartsBoth, PartsApart, PartsKeys, PartsValues)
}

// Whole says whether both keys and values are coded.
func (p Parts) Whole() bool { return p == PartsBoth || p == PartsApart }

// GroupOptions say what groups a model gets.
type GroupOptions struct {
	Parts Parts
	// Bits per pair of numbers, one of K and one of V, or per number where one side alone is
	// coded; scales are counted.
	Bits float64
	// Span is the most numbers of a group's vector.
	Span int
	// Pairs codes every second layer given the codes of the layer below it: a third less divergence at
	// equal bytes, for half as much decode work again (docs/codes.md).
	Pairs bool
	// Shares are the parts of a group's signs that serve keys, and values; less is faster to decode.
	Shares Shares
}

// in returns which parts the groups of a layer hold: with PartsBoth, keys and values have groups of
// their own where those of one head are longer than the span together, and each fits it.
func (o GroupOptions) in(y *family.Layer) Parts {
	if o.Parts == PartsBoth && y.HeadDim+y.ValueDim > o.Span && max(y.HeadDim, y.ValueDim) <= o.Span {
		return PartsApart
	}
	return o.Parts
}

// Divided returns the layers whose keys and values are too long for one group, though Parts wants them
// in one.
func (o GroupOptions) Divided(c *family.Config) (out []int) {
	for l := range c.Layers {
		if y := &c.Layers[l]; y.Owner == l && o.in(y) != o.Parts {
			out = append(out, l)
		}
	}
	return out
}

// spans returns the groups of one layer.
func (o GroupOptions) spans(y *family.Layer) (out [][]codec.Part, err error) {
	sides := [][2]bool{{true, true}} // of groups: whether they hold keys, values
	switch o.in(y) {
	case PartsKeys:
		sides = [][2]bool{{true, false}}
	case PartsValues:
		sides = [][2]bool{{false, true}}
	case PartsApart:
		sides = [][2]bool{{true, false}, {false, true}}
	}
	for _, s := range sides {
		parts, err := codec.Spans(y.KVHeads, y.HeadDim, y.ValueDim, o.Span, s[0], s[1])
		if most := max(y.HeadDim, y.ValueDim); err != nil && o.Parts == PartsBoth && most > o.Span {
			return nil, option.Bad("Span", o.Span, "a head has keys of %d and values of %d numbers; a group holds one of them at "+
				"least", y.HeadDim, y.ValueDim)
		}
		if err != nil {
			return nil, option.Bad("Span", o.Span, "%v", err)
		}
		out = append(out, parts...)
	}
	return out, nil
}

// JointGroups spreads bits over groups of the keys and values of neighbouring heads. Signs come in
// words of 32, spread in proportion to the numbers of a group, so that all together take as much as
// the bits allow and no more.
func JointGroups(c *family.Config, o GroupOptions) (*Groups, error) {
	if _, err := ParseParts(string(o.Parts)); err != nil {
		return nil, option.Of("Parts", o.Parts, err)
	}
	if err := o.Shares.check(o.Parts); err != nil {
		return nil, err
	}
	perNumber := o.Bits
	if o.Parts.Whole() {
		perNumber /= 2
	}
	if !(perNumber > 0 && perNumber <= codec.MaxBitsPerNumber) {
		most := float64(codec.MaxBitsPerNumber)
		if o.Parts.Whole() {
			most *= 2
		}
		return nil, option.Bad("BitsKV", o.Bits, "it must be above 0 and at most %g", most)
	}
	g := &Groups{Shares: o.Shares}
	numbers, count := 0, 0
	for l := range c.Layers {
		y := &c.Layers[l]
		if y.Owner != l {
			g.Parts = append(g.Parts, nil)
			continue
		}
		parts, err := o.spans(y)
		if err != nil {
			return nil, err
		}
		g.Parts = append(g.Parts, parts)
		for _, group := range parts {
			numbers += codec.PartsDim(group, y.HeadDim, y.ValueDim)
		}
		count += len(parts)
	}
	words := int(math.Floor((float64(perNumber*float64(numbers)) - float64(scaleBits*count)) / wordSigns))
	before, given := 0, 0 // numbers and words of the groups so far
	for l, parts := range g.Parts {
		y := &c.Layers[l]
		var signs []int
		for _, group := range parts {
			d := codec.PartsDim(group, y.HeadDim, y.ValueDim)
			before += d
			n := before*words/numbers - given
			given += n
			if most := codec.MaxSigns(d) / wordSigns * wordSigns; n < 1 || n*wordSigns > most {
				return nil, option.Bad("BitsKV", o.Bits,
					"groups of %d numbers would have %d signs; 32 to %d can be, their scales taken off", d, max(0, n)*wordSigns, most)
			}
			signs = append(signs, n*wordSigns)
		}
		g.Signs = append(g.Signs, signs)
	}
	if o.Pairs {
		g.Given = g.given(c)
	}
	return g, nil
}

// Largest returns the most numbers, and the most signs, that a group has.
func (g *Groups) Largest(c *family.Config) (numbers, signs int) {
	for l, parts := range g.Parts {
		y := &c.Layers[l]
		for i, group := range parts {
			d := codec.PartsDim(group, y.HeadDim, y.ValueDim)
			numbers, signs = max(numbers, d), max(signs, g.Signs[l][i])
		}
	}
	return numbers, signs
}

// Total returns the signs and the bytes of a token in all groups.
func (g *Groups) Total() (signs, bytes int) {
	for _, layer := range g.Signs {
		for _, n := range layer {
			signs, bytes = signs+n, bytes+n/8+scaleBits/8
		}
	}
	return signs, bytes
}

// Settings of the allotment of joint codes.
const (
	// fallPerBit is by what a bit a number more divides the divergence of joint codes, measured
	// from half a bit to two (docs/codes.md).
	fallPerBit = 3.7
	// movedPart bounds what a group gets, or gives, to one part in so many of what it has evenly, and to
	// a word where that is less than one. What a layer costs alone says little of what it costs among
	// coded ones: on SmolLM2 bounds of a half and of twice are worse than none of it (docs/codes.md).
	movedPart = 5
	// jointDraft is how many tokens per number or sign of a vector drafts are fitted to.
	jointDraft = 8
)

// AllotJoint spreads the signs of g over groups by what they are measured to cost: how much the
// predictions diverge when the keys and values of one layer alone are coded with the signs of g, by
// drafts that are fitted to some windows, on another one. The upper layer of a pair is given the codes
// of the lower one, which itself stays as it is. Where keys and values have groups of their own, each
// side is measured by itself, so that the budget is divided between them too. It takes it that the
// divergence falls by fallPerBit for every bit a number. Words of 32 signs go one by one where the sum
// falls most.
func AllotJoint(ctx context.Context, m *refmodel.Model, windows [][]int32, g *Groups, o Options) ([][]int, error) {
	c := m.Config
	few, middle, err := g.draftWindows(c, windows)
	if err != nil {
		return nil, err
	}
	sides := g.sides()
	total := len(c.Layers) + len(sides)*ppl.LayerSteps(m)
	s := newSurvey(c, o, g)
	s.done = progress.Count(o.Progress, total)
	hooks := refmodel.Hooks{Attention: func(a *refmodel.Attention) error { return s.attention(ctx, a) }}
	if err := m.Run(ctx, few, []*refmodel.Variant{{}}, refmodel.Options{Hooks: hooks}); err != nil {
		return nil, err
	}
	middle = middle[:min(len(middle), max(allotLeast, allotTokens/len(c.Layers)))]
	damage := make([][]float64, len(c.Layers))
	for l, signs := range g.Signs {
		damage[l] = make([]float64, len(signs))
	}
	for i, side := range sides {
		cache, err := s.cache(side.holds)
		if err != nil {
			return nil, err
		}
		kld, err := ppl.LayerKLD(ctx, m, [][]int32{middle}, len(middle)/4, cache, func(done, _ int) {
			if o.Progress != nil {
				o.Progress(len(c.Layers)+i*ppl.LayerSteps(m)+done, total)
			}
		})
		if err != nil {
			return nil, err
		}
		for l := range kld {
			side.share(g.Parts[l], damage[l], robust(kld[l].KLD))
		}
	}
	return spreadJoint(c, g, damage), nil
}

// robust returns the mean of a divergence over tokens, but for a factor that layers share: the square of
// the mean of its roots. A few tokens carry most of a mean, and a window is short: layers whose means
// have errors of a third differ by their roots, and what is allotted by those measures better
// (docs/codes.md).
func robust(kld []float64) float64 {
	var sum float64
	for _, v := range kld {
		sum += math.Sqrt(max(0, v)) // rounding may leave a divergence of 0 just below 0
	}
	mean := sum / float64(max(1, len(kld)))
	return float64(mean * mean)
}

// draftWindows returns windows from all over a text to fit drafts to, and the one in its middle to
// measure them on.
func (g *Groups) draftWindows(c *family.Config, windows [][]int32) (few [][]int32, middle []int32, err error) {
	if len(windows) < 2 {
		return nil, nil, option.Errorf("signs are allotted by drafts that are measured on a window of their own; %d windows of "+
			"calibration text are too few", len(windows))
	}
	numbers, signs := g.Largest(c)
	n := (jointDraft*max(numbers, signs) + len(windows[0]) - 1) / len(windows[0])
	n = max(1, min(n, len(windows)-1))
	for i := range n {
		w := i * len(windows) / n
		if w == len(windows)/2 {
			w = (w + 1) % len(windows)
		}
		few = append(few, windows[w])
	}
	return few, windows[len(windows)/2], nil
}

// A groupSide is groups that are measured together: nil for all, or those of keys or of values.
type groupSide struct{ value *bool }

// sides returns keys and values where every group holds one of them alone and both are there, else
// all groups as one side. In pairs, groups of a side must have the same number in both layers.
func (g *Groups) sides() []groupSide {
	var keys, values bool
	for _, layer := range g.Parts {
		for _, parts := range layer {
			first, last := parts[0].Value, parts[len(parts)-1].Value // keys come first
			if first != last {
				return []groupSide{{}}
			}
			keys, values = keys || !first, values || first
		}
	}
	if !keys || !values || !g.aligned() {
		return []groupSide{{}}
	}
	return []groupSide{{new(false)}, {new(true)}}
}

func (s groupSide) holds(parts []codec.Part) bool {
	return s.value == nil || parts[0].Value == *s.value
}

// share divides what a layer's groups of a side cost evenly among them.
func (s groupSide) share(groups [][]codec.Part, damage []float64, kld float64) {
	n := 0
	for _, parts := range groups {
		if s.holds(parts) {
			n++
		}
	}
	for i, parts := range groups {
		if s.holds(parts) {
			damage[i] = kld / float64(n)
		}
	}
}

// spreadJoint gives the words of g to groups that cost damage, [layer][group], with the signs of g.
func spreadJoint(c *family.Config, g *Groups, damage [][]float64) [][]int {
	type group struct {
		layer, index, least, most, words int
		damage, fall                     float64 // with its even signs, and the logarithm of the fall a word
	}
	var all []*group
	left := 0
	for l, signs := range g.Signs {
		for i, n := range signs {
			d := codec.PartsDim(g.Parts[l][i], c.Layers[l].HeadDim, c.Layers[l].ValueDim)
			even := n / wordSigns
			step := max(1, even/movedPart)
			x := &group{layer: l, index: i, least: max(1, even-step), most: min(even+step, codec.MaxSigns(d)/wordSigns),
				damage: damage[l][i], fall: fmath.Log(fallPerBit) * wordSigns / float64(d)}
			x.words = x.least
			left += even - x.least
			x.damage *= fmath.Exp(x.fall * float64(even-x.least))
			all = append(all, x)
		}
	}
	for ; left > 0; left-- {
		var best *group
		for _, x := range all {
			// What a word less damages is worth; the first of equals gets it.
			if x.words < x.most && (best == nil || x.damage*(1-fmath.Exp(-x.fall)) > best.damage*(1-fmath.Exp(-best.fall))) {
				best = x
			}
		}
		best.words++
		best.damage *= fmath.Exp(-best.fall)
	}
	out := make([][]int, len(g.Signs))
	for l := range out {
		out[l] = make([]int, len(g.Signs[l]))
	}
	for _, x := range all {
		out[x.layer][x.index] = x.words * wordSigns
	}
	return out
}

// jointSurvey fits a draft of every group.
type jointSurvey struct {
	cfg    *family.Config
	o      Options
	g      *Groups
	gather *activations.Gatherer
	groups [][]*codec.Group
	fitter *Fitter
	scale  map[[2]int][]float32
	done   func() // reports a layer
}

func newSurvey(c *family.Config, o Options, g *Groups) *jointSurvey {
	return &jointSurvey{cfg: c, o: o, g: g, gather: activations.NewGatherer(c, o.Policy, o.Threads, nil),
		groups: make([][]*codec.Group, len(c.Layers)), fitter: NewFitter(g), scale: map[[2]int][]float32{}}
}

func (s *jointSurvey) attention(ctx context.Context, a *refmodel.Attention) error {
	x, err := s.gather.Add(ctx, a)
	if err != nil {
		return err
	}
	if x != nil {
		if err := s.fit(ctx, x); err != nil {
			return err
		}
	}
	s.done()
	return nil
}

// fit fits drafts of the groups of a layer.
func (s *jointSurvey) fit(ctx context.Context, x *activations.Gathered) error {
	s.o.balance(s.cfg, x, s.scale)
	for i, parts := range s.g.Parts[x.Layer] {
		y, err := x.Groups(ctx, parts, func(h int) []float32 { return s.scale[[2]int{x.Layer, h}] }, nil)
		if err != nil {
			return err
		}
		y.Draft, y.Index = true, i
		group, _, err := s.fitter.Fit(ctx, y)
		if err != nil {
			return fmt.Errorf("a draft of joint codes: %w", err)
		}
		s.groups[x.Layer] = append(s.groups[x.Layer], group)
	}
	return nil
}

// cache returns the cache of the drafts of those groups whose parts are wanted. No recent tokens
// stay exact: a short window would hide the damage.
func (s *jointSurvey) cache(wanted func(parts []codec.Part) bool) (*kvcache.Groups, error) {
	groups := make([][]*codec.Group, len(s.groups))
	for l, layer := range s.groups {
		for _, g := range layer {
			if wanted(g.Parts) {
				groups[l] = append(groups[l], g)
			}
		}
	}
	policy := s.o.Policy
	policy.Recent = 0
	cache, err := kvcache.NewGroups(s.cfg, groups, policy)
	if err != nil {
		return nil, err
	}
	cache.Scale = func(l, h int) []float32 { return s.scale[[2]int{l, h}] }
	return cache, nil
}
