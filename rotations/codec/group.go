package codec

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"

	"github.com/phaseconv/phaseconv/kernels/gemm"
	"github.com/phaseconv/phaseconv/kernels/rope"
	"github.com/phaseconv/phaseconv/spec"
)

// A Part is what one KV head of a layer puts into the vector of a group: its key or
// its value.
type Part struct {
	Head  int
	Value bool
}

// String returns the text of sidecars: "k0" is the key of head 0, "v3" the value of head 3.
func (p Part) String() string {
	if p.Value {
		return "v" + strconv.Itoa(p.Head)
	}
	return "k" + strconv.Itoa(p.Head)
}

// ParsePart is the inverse of String. It takes no other spelling of a number, and no
// head beyond the format's limit.
func ParsePart(text string) (Part, error) {
	var p Part
	if text != "" && (text[0] == 'k' || text[0] == 'v') {
		h, err := strconv.ParseUint(text[1:], 10, 31)
		p = Part{int(h), text[0] == 'v'}
		if err == nil && p.String() == text && h < spec.MaxHeads {
			return p, nil
		}
	}
	return Part{}, fmt.Errorf("part %.20q of a group: expected k or v and the number of a KV head below %d, as in k0",
		text, spec.MaxHeads)
}

// Compare orders parts as they stand in a group: keys before values, each by head.
func (p Part) Compare(q Part) int {
	if p.Value != q.Value {
		if q.Value {
			return -1
		}
		return 1
	}
	return cmp.Compare(p.Head, q.Head)
}

// A Group stores the keys, the values or both of some KV heads of one layer in one
// code: one row of signs and one scale per token. Its vector is the concatenation of
// its parts, D numbers; parts of K have been turned back to their block when the cache
// has anchors, parts of V never turn. It stands for
//
//	x_hat = mean + alpha * (gains of the parts) * M s
//
// A score of part p is q.mean_p + alpha (PartDecode(p) q).s. A weighted sum over coded
// tokens with weights a_j is (sum of a_j) mean_p + PartDecode(p)^T t with
// t = sum of a_j alpha_j s_j. So neither metric, mean nor gain costs a runtime
// anything per token.
//
// Today's code of one head's keys is KeyGroup. A Group is immutable once made and safe
// for concurrent use.
type Group struct {
	// Code is that of the whole vector. Its Decode is without the gains of the parts:
	// the encoder takes its Gram matrix from Encode and Decode, and that is the metric of
	// the fit, of which gains are no part.
	Code  *Code
	Parts []Part // in the order of Compare, no two alike
	// KeyDim and ValueDim are how many numbers a part has.
	KeyDim, ValueDim int
	// Gains multiply what signs stand for, one per part. A scale serves all parts, while
	// keys and values want different ones: keys the root of what an unbiased code needs,
	// values all of it.
	Gains []float32

	// Below, [BelowSigns, D], is what the signs of another group add to the vectors of this one,
	// each times the scale that it is stored with: the group of the same parts in the layer
	// below. nil where the code stands by itself. What the signs of the group itself stand for is
	// then the rest.
	Below      []float32
	BelowSigns int

	below   gemm.Weights
	starts  []int // of each part in the vector, and D at the end
	decoder *Code // Code with gains in Decode; for decoding alone
}

// NewGroup makes a group of code for the given parts, of keyDim and valueDim numbers;
// gains nil is 1 for each part. It fails where parts are not in order, their lengths do
// not add up to code.D, this is above the format's limit, or a gain is not from
// 1/MaxGain to MaxGain.
func NewGroup(code *Code, parts []Part, keyDim, valueDim int, gains []float32) (*Group, error) {
	if len(parts) == 0 || !slices.IsSortedFunc(parts, Part.Compare) {
		return nil, fmt.Errorf("parts %v of a group: there must be one, keys before values, each by head", parts)
	}
	g := &Group{Code: code, Parts: slices.Clone(parts), KeyDim: keyDim, ValueDim: valueDim, Gains: slices.Clone(gains),
		starts: make([]int, 1, len(parts)+1)}
	for i, p := range parts {
		if i > 0 && p == parts[i-1] {
			return nil, fmt.Errorf("part %s is in a group twice", p)
		}
		n := g.Dim(p)
		if p.Head < 0 || p.Head >= spec.MaxHeads || n < 1 || n > MaxDim {
			return nil, fmt.Errorf("part %s of %d numbers in a group: heads are below %d, numbers 1 to %d", p,
				n, spec.MaxHeads, MaxDim)
		}
		g.starts = append(g.starts, g.starts[i]+n)
	}
	d := g.starts[len(parts)]
	if d != code.D || d > spec.MaxGroupDim {
		return nil, fmt.Errorf("parts of a group have %d numbers together and the code %d; they must be equal and at most %d",
			d, code.D, spec.MaxGroupDim)
	}
	if gains == nil {
		g.Gains = make([]float32, len(parts))
		for i := range g.Gains {
			g.Gains[i] = 1
		}
	}
	if len(g.Gains) != len(parts) {
		return nil, fmt.Errorf("%d gains for %d parts of a group", len(g.Gains), len(parts))
	}
	g.decoder = code
	for i, v := range g.Gains {
		if !(v >= 1.0/MaxGain && v <= MaxGain) {
			return nil, fmt.Errorf("gain %g of part %s: it must be from %g to %g", v, parts[i], 1.0/MaxGain, float64(MaxGain))
		}
		if v != 1 && g.decoder == code {
			g.decoder = &Code{Kind: code.Kind, D: code.D, B: code.B, Mean: code.Mean, Decode: slices.Clone(code.Decode),
				Gain: code.Gain}
		}
	}
	if g.decoder == code {
		return g, nil
	}
	for i, v := range g.Gains {
		for row := 0; row < code.B; row++ {
			m := g.decoder.Decode[row*d+g.starts[i] : row*d+g.starts[i+1]]
			for j := range m {
				// Converted, so that no compiler fuses the product into the check.
				m[j] = float32(m[j] * v)
				if m[j]-m[j] != 0 {
					return nil, fmt.Errorf("part %s: the gain %g takes a number of sign %d out of range", parts[i], v, row)
				}
			}
		}
	}
	g.decoder.decode.PackT(d, code.B, g.decoder.Decode, d, 1)
	return g, nil
}

// KeyGroup returns the group that holds the keys of one head in code: the same signs,
// scales and decoded bits as the code alone.
func KeyGroup(code *Code, head int) (*Group, error) {
	return NewGroup(code, []Part{{Head: head}}, code.D, code.D, nil)
}

// Given returns the group with a matrix Below, [signs, D].
func (g *Group) Given(signs int, below []float32) (*Group, error) {
	if signs < 1 || len(below) != signs*g.D() {
		return nil, fmt.Errorf("%d numbers for %d signs of the group below and vectors of %d", len(below), signs, g.D())
	}
	for i, v := range below {
		if v-v != 0 {
			return nil, fmt.Errorf("what sign %d of the group below adds is not finite", i/g.D())
		}
	}
	out := *g
	out.Below, out.BelowSigns = slices.Clone(below), signs
	out.below = gemm.Weights{}
	out.below.PackT(g.D(), signs, out.Below, g.D(), 1)
	return &out, nil
}

// CheckGiven refuses a group g that is given a group of other parts or lengths, of another number of
// signs, or one that is given another itself: its vectors are then not those of its signs alone.
func CheckGiven(g, below *Group) error {
	switch {
	case g.BelowSigns != below.B():
		return fmt.Errorf("a group given %d signs of a group below that has %d", g.BelowSigns, below.B())
	case !slices.Equal(g.Parts, below.Parts) || g.KeyDim != below.KeyDim || g.ValueDim != below.ValueDim:
		return fmt.Errorf("a group of %v given one of %v; parts and lengths must be the same", g.Parts, below.Parts)
	case below.Below != nil:
		return fmt.Errorf("a group is given one that is given another itself")
	}
	return nil
}

// Predict sets dst, [n, D], to what the signs and scales of the group below say of the vectors.
func (g *Group) Predict(dst []float32, words []uint32, alpha []float32) {
	n := len(alpha)
	gemm.Mul(dst, g.D(), Spread(words, alpha, g.BelowSigns), g.BelowSigns, n, &g.below, 1)
}

// Spread returns signs times scales, [n, b].
func Spread(words []uint32, alpha []float32, b int) []float32 {
	out := make([]float32, len(alpha)*b)
	w := (b + 31) / 32
	for i, a := range alpha {
		row := words[i*w : (i+1)*w]
		for k := range b {
			if out[i*b+k] = -a; row[k/32]>>(k%32)&1 == 1 {
				out[i*b+k] = a
			}
		}
	}
	return out
}

// SpreadRows encodes rows, [n, D], and returns their signs times their scales, [n, B].
func (g *Group) SpreadRows(ctx context.Context, rows []float32, threads int) ([]float32, error) {
	d, w := g.D(), g.Words()
	n := len(rows) / d
	words, alpha := make([]uint32, n*w), make([]float32, n)
	err := Batches(ctx, n, threads, func(k0, k1 int) error {
		return g.EncodeRows(ctx, rows[k0*d:k1*d], words[k0*w:k1*w], alpha[k0:k1])
	})
	if err != nil {
		return nil, err
	}
	return Spread(words, alpha, g.B()), nil
}

// D returns the length of the group's vector.
func (g *Group) D() int { return g.Code.D }

// B returns the signs of a token.
func (g *Group) B() int { return g.Code.B }

// Words returns how many 32-bit words hold the signs of a token.
func (g *Group) Words() int { return g.Code.Words() }

// TokenBytes returns what a coded token takes: words of signs and a scale in binary16.
func (g *Group) TokenBytes() int { return 4*g.Words() + 2 }

// Dim returns the length of a part.
func (g *Group) Dim(p Part) int { return p.Dim(g.KeyDim, g.ValueDim) }

// Dim returns the length of a part where a head's keys and values have these lengths.
func (p Part) Dim(key, value int) int {
	if p.Value {
		return value
	}
	return key
}

// PartsDim returns the length of the vector of parts.
func PartsDim(parts []Part, key, value int) (d int) {
	for _, p := range parts {
		d += p.Dim(key, value)
	}
	return d
}

// Range returns where part i lies in the group's vector: from <= j < to.
func (g *Group) Range(i int) (from, to int) { return g.starts[i], g.starts[i+1] }

// Index returns which part p is, -1 if the group does not have it.
func (g *Group) Index(p Part) int { return slices.Index(g.Parts, p) }

// Has says whether the group has parts of K (value false) or of V.
func (g *Group) Has(value bool) bool {
	return slices.ContainsFunc(g.Parts, func(p Part) bool { return p.Value == value })
}

// PartMean returns the mean of part i, of its own length. It is not to be written to.
func (g *Group) PartMean(i int) []float32 { return g.Code.Mean[g.starts[i]:g.starts[i+1]] }

// PartDecode returns a copy of the decode matrix of part i, [B, length of the part], its
// gain multiplied in and rounded to float32: row k is what sign k stands for. Scores
// want its product with a query, sums over values that of its transpose with the sums
// over signs.
func (g *Group) PartDecode(i int) []float32 {
	d, from, to := g.D(), g.starts[i], g.starts[i+1]
	out := make([]float32, 0, g.B()*(to-from))
	for k := range g.B() {
		out = append(out, g.decoder.Decode[k*d+from:k*d+to]...)
	}
	return out
}

// PartBelow returns a copy of what the signs of the group below add to part i, [BelowSigns, length of
// the part].
func (g *Group) PartBelow(i int) []float32 {
	d, from, to := g.D(), g.starts[i], g.starts[i+1]
	out := make([]float32, 0, g.BelowSigns*(to-from))
	for k := range g.BelowSigns {
		out = append(out, g.Below[k*d+from:k*d+to]...)
	}
	return out
}

// Concat fills rows, [n, D], with the parts of n tokens; of returns those of one part,
// [n, length of the part], parts of K turned back to their blocks.
func (g *Group) Concat(rows []float32, of func(Part) []float32) {
	g.each(rows, of, func(row, part []float32) { copy(row, part) })
}

// Split is the inverse of Concat: it copies rows, [n, D], to what to returns for each
// part; where that is nil, the part is left out.
func (g *Group) Split(rows []float32, to func(Part) []float32) {
	g.each(rows, to, func(row, part []float32) { copy(part, row) })
}

func (g *Group) each(rows []float32, of func(Part) []float32, move func(row, part []float32)) {
	d := g.D()
	for i, p := range g.Parts {
		part := of(p)
		if part == nil {
			continue
		}
		from, to := g.starts[i], g.starts[i+1]
		for n := range len(rows) / d {
			move(rows[n*d+from:n*d+to], part[n*(to-from):(n+1)*(to-from)])
		}
	}
}

// EncodeRows finds the signs and scales of rows, [n, D]; layout, rounding and errors are
// those of Code.EncodeKeys.
func (g *Group) EncodeRows(ctx context.Context, rows []float32, words []uint32, alpha []float32) error {
	return g.Code.EncodeKeys(ctx, rows, words, alpha)
}

// DecodeRows sets dst, [n, D], to what signs and scales stand for, gains included. Sums
// run over ascending signs in float32, with gain times matrix rounded before.
func (g *Group) DecodeRows(dst []float32, words []uint32, alpha []float32) {
	g.decoder.DecodeKeys(dst, words, alpha)
}

// To returns the group for keys whose dimensions moved from one pair layout to another.
// Values have no pairs: their dimensions stay.
func (g *Group) To(from, to rope.Layout) (*Group, error) {
	if from == to {
		return g, nil
	}
	at := make([]int, g.D())
	for i, p := range g.Parts {
		for j := range g.Dim(p) {
			if at[g.starts[i]+j] = g.starts[i] + j; !p.Value {
				at[g.starts[i]+j] = g.starts[i] + from.Index(to, j, g.KeyDim)
			}
		}
	}
	code, err := g.Code.moved(at)
	if err != nil {
		return nil, err
	}
	out, err := NewGroup(code, g.Parts, g.KeyDim, g.ValueDim, g.Gains)
	if err != nil || g.Below == nil {
		return out, err
	}
	below := make([]float32, len(g.Below))
	for i := range g.BelowSigns {
		row := g.Below[i*g.D() : (i+1)*g.D()]
		for j, k := range at {
			below[i*g.D()+k] = row[j]
		}
	}
	return out.Given(g.BelowSigns, below)
}

// CheckLayer refuses groups that are no whole code of a layer with the given number of
// KV heads: keys must be coded for all heads or for none, values likewise, and no part
// twice. All groups must have the same lengths of parts.
func CheckLayer(groups []*Group, heads int) error {
	var seen [2]map[int]bool
	for i := range seen {
		seen[i] = map[int]bool{}
	}
	for _, g := range groups {
		if g.KeyDim != groups[0].KeyDim || g.ValueDim != groups[0].ValueDim {
			return fmt.Errorf("groups for keys of %d and %d numbers and values of %d and %d in one layer", groups[0].KeyDim,
				g.KeyDim, groups[0].ValueDim, g.ValueDim)
		}
		for _, p := range g.Parts {
			of := seen[0]
			if p.Value {
				of = seen[1]
			}
			if p.Head >= heads {
				return fmt.Errorf("part %s of a group, in a layer of %d KV heads", p, heads)
			}
			if of[p.Head] {
				return fmt.Errorf("part %s is in two groups of a layer", p)
			}
			of[p.Head] = true
		}
	}
	for i, what := range []string{"keys", "values"} {
		if n := len(seen[i]); n != 0 && n != heads {
			return fmt.Errorf("%s of %d of %d KV heads are in groups; it must be all or none", what, n, heads)
		}
	}
	return nil
}

// A Summary says in a line what the groups of a model code.
type Summary struct {
	// Parts is "k", "v", "k+v" for groups of keys beside groups of values, "kv" for groups
	// with both, "mixed" where some have both and some not, "" without groups.
	Parts string
	Dim   int     // the length of the longest vector
	Bits  float64 // signs per number over all groups, scales not counted; NaN without groups
}

// Summarize describes groups, of one layer or of all.
func Summarize(groups []*Group) Summary {
	var s Summary
	var keys, values, both, signs, numbers int
	for _, g := range groups {
		switch k, v := g.Has(false), g.Has(true); {
		case k && v:
			both++
		case k:
			keys++
		default:
			values++
		}
		s.Dim = max(s.Dim, g.D())
		signs, numbers = signs+g.B(), numbers+g.D()
	}
	s.Bits = float64(signs) / float64(numbers)
	switch {
	case both > 0 && keys+values > 0:
		s.Parts = "mixed"
	case both > 0:
		s.Parts = "kv"
	case keys > 0 && values > 0:
		s.Parts = "k+v"
	case keys > 0:
		s.Parts = "k"
	case values > 0:
		s.Parts = "v"
	}
	return s
}

// Spans divides the heads of a layer into groups of neighbours, as few and as equal as a
// limit on the length of a group's vector allows, the larger ones first. keys and values
// say what a group takes of each head. It fails where not even one head fits.
func Spans(heads, keyDim, valueDim, limit int, keys, values bool) ([][]Part, error) {
	per := 0
	if keys {
		per += keyDim
	}
	if values {
		per += valueDim
	}
	if limit > spec.MaxGroupDim {
		return nil, fmt.Errorf("groups of up to %d numbers: the format has at most %d", limit, spec.MaxGroupDim)
	}
	if heads < 1 || per < 1 || per > limit {
		return nil, fmt.Errorf("groups of at most %d numbers for %d KV heads with %d numbers each: "+
			"a group holds one head at least", limit, heads, per)
	}
	most := limit / per
	n := (heads + most - 1) / most
	out := make([][]Part, n)
	h := 0
	for i := range out {
		size := (heads - h + n - i - 1) / (n - i)
		for _, value := range []bool{false, true} {
			if value && !values || !value && !keys {
				continue
			}
			for k := range size {
				out[i] = append(out[i], Part{h + k, value})
			}
		}
		h += size
	}
	return out, nil
}
