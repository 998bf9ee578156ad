package main

import (
	"context"
	"fmt"
	"slices"

	"github.com/phaseconv/phaseconv/format/dtype"
	"github.com/phaseconv/phaseconv/kernels/onebit"
	"github.com/phaseconv/phaseconv/kernels/rope"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/rotations/sidecar"
	"github.com/phaseconv/phaseconv/spec"
)

// A groupVector takes a group of keys and values from the tokens of a short sequence to
// scores and sums. All numbers are bits in hex; spec/vectors.md explains every key.
type groupVector struct {
	Version    int      `json:"version"`
	Name       string   `json:"name"`
	Kind       string   `json:"kind"`
	HeadDim    int      `json:"head_dim"`
	ValueDim   int      `json:"value_dim"`
	Parts      []string `json:"parts"`
	Signs      int      `json:"signs"`
	Anchor     int      `json:"anchor"`
	Sink       int      `json:"sink"`
	Recent     int      `json:"recent"`
	PairLayout string   `json:"pair_layout"`
	RopeTheta  float64  `json:"rope_theta"`
	RopeDim    *int     `json:"rope_dim,omitempty"` // turned numbers of a key, absent for all

	Mean     *array `json:"mean"`
	Decode   *array `json:"decode"`
	Encode   *array `json:"encode,omitempty"`
	Gain     string `json:"gain,omitempty"`      // absent for 1
	PartGain string `json:"part_gain,omitempty"` // absent if all are 1

	// Below, of a group that is given one below: its matrix, and what that one stores of the coded
	// tokens.
	Below      *array   `json:"below,omitempty"`
	BelowWords []string `json:"below_words,omitempty"`
	BelowAlpha string   `json:"below_alpha,omitempty"`

	// Vectors of all tokens of a sequence, from position 0 on: keys after RoPE, and values.
	Vectors *array       `json:"vectors"`
	Blocks  []groupBlock `json:"blocks,omitempty"`

	// Of the coded tokens, those between Sink and Recent.
	Words      []string `json:"words"`
	Alpha      string   `json:"alpha"`
	Stored     []string `json:"stored"`     // blocks of 16 tokens, 16 words a line
	Transposed []string `json:"transposed"` // blocks of 32 tokens, 32 words a line
	Decoded    string   `json:"decoded"`    // x_hat of the last coded token

	// Queries after RoPE at the last position, one for each part of K, and their scores for
	// all tokens.
	Queries *array   `json:"queries,omitempty"`
	Scores  []string `json:"scores,omitempty"`
	// Weights of all tokens, a row for each part of V, and the sums over values.
	Weights *array   `json:"weights,omitempty"`
	Sums    []string `json:"sums,omitempty"`
}

// A groupBlock is the rotation of one block of coded tokens, of which the first starts with
// the position Start.
type groupBlock struct {
	Start int    `json:"start"`
	Cos   string `json:"cos"`
	Sin   string `json:"sin"`
}

// A groupCase is the input of a groupVector.
type groupCase struct {
	name         string
	tokens       int // of the sequence
	parts        []string
	dk, dv, b    int
	anchor       int
	sink, recent int
	pairs        rope.Layout
	orthonormal  bool
	gain         float32
	partGain     []float32
	turned       *int // numbers of a key that RoPE turns, nil for all
	below        int  // signs of the group below, 0 for none
}

// groupTokens is the length of golden sequences: with 2 first and 3 recent ones kept, 36 are
// coded, a block of 32 and a part of one.
const groupTokens = 41

// groupCases has groups of keys, of values and of both, three lengths of heads and one of
// another length of values, spans of heads, sign counts that do and do not fill words, with
// and without kept tokens, gains and an encode matrix. Values beside anchors show that
// values never turn.
func groupCases() []groupCase {
	half, inter := rope.Half, rope.Interleaved
	return []groupCase{
		{name: "k-d64-b96", parts: []string{"k0", "k1", "k2"}, dk: 64, dv: 64, b: 96, anchor: 16, sink: 2, recent: 3,
			pairs: half},
		{name: "v-d64-b192", parts: []string{"v0", "v1", "v2"}, dk: 64, dv: 64, b: 192, anchor: 16, sink: 2, recent: 3,
			pairs: half, partGain: []float32{2.5, 2.5, 2.5}},
		{name: "kv-d64-b128-gains", parts: []string{"k0", "k1", "v0", "v1"}, dk: 64, dv: 64, b: 128, anchor: 16, sink: 2,
			recent: 3, pairs: inter, gain: 0.75, partGain: []float32{1.25, 1.25, 3.1, 2.9}},
		{name: "kv-d128-b64-span2", parts: []string{"k2", "k3", "v2", "v3"}, dk: 128, dv: 128, b: 64, anchor: 16, sink: 2,
			recent: 3, pairs: half, partGain: []float32{1, 1, 2, 2}},
		{name: "v-d256-b32", parts: []string{"v0"}, dk: 256, dv: 256, b: 32, sink: 2, recent: 3, pairs: inter},
		{name: "kv-d256-b128", parts: []string{"k0", "v0"}, dk: 256, dv: 256, b: 128, anchor: 32, sink: 2, recent: 3,
			pairs: half, partGain: []float32{1.5, 4}},
		{name: "kv-d64-v32-b40-all", parts: []string{"k0", "k1", "v0", "v1"}, dk: 64, dv: 32, b: 40, pairs: inter,
			partGain: []float32{1, 1, 1.5, 1.5}},
		{name: "k-d64-b128-learned", parts: []string{"k0", "k1"}, dk: 64, dv: 64, b: 128, anchor: 16, sink: 2, pairs: half,
			orthonormal: true, gain: 1.1},
		{name: "kv-d64-b96-turned16", parts: []string{"k0", "k1", "v0", "v1"}, dk: 64, dv: 64, b: 96, anchor: 16, sink: 2,
			recent: 3, pairs: half, partGain: []float32{1.2, 1.2, 2, 2}, turned: new(16)},
		{name: "k-d64-b64-turned32", parts: []string{"k0", "k1"}, dk: 64, dv: 64, b: 64, anchor: 16, sink: 2, recent: 3,
			pairs: inter, turned: new(32)},
		{name: "k-d64-b64-still", parts: []string{"k0", "k1"}, dk: 64, dv: 64, b: 64, anchor: 16, sink: 2, recent: 3,
			pairs: half, turned: new(0)},
		{name: "kv-d64-b96-below72", parts: []string{"k0", "k1", "v0", "v1"}, dk: 64, dv: 64, b: 96, anchor: 16, sink: 2,
			recent: 3, pairs: half, partGain: []float32{1.1, 1.1, 1.8, 1.8}, below: 72},
	}
}

// rope returns the parameters of the case's angles.
func (c groupCase) rope() rope.Params {
	p := rope.Params{Theta: theta, Dim: c.dk}
	if c.turned != nil {
		p.Dim = *c.turned
	}
	return p
}

func (c groupCase) group(seed uint64, v *groupVector) (*codec.Group, error) {
	var parts []codec.Part
	d := 0
	for _, text := range c.parts {
		p, err := codec.ParsePart(text)
		if err != nil {
			return nil, err
		}
		if parts, d = append(parts, p), d+c.dk; p.Value {
			d += c.dv - c.dk
		}
	}
	kind, rule := codec.Frame, formula{Rule: "uniform", Seed: seed + 1, RowStep: (c.b + 3) / 4}
	if c.orthonormal {
		kind, rule = codec.Learned, formula{Rule: "reflector", Seed: seed + 1}
	}
	v.Kind = string(kind)
	v.Mean = generate(formula{Rule: "uniform", Seed: seed + 2}, 1, d, nil)
	v.Decode = generate(rule, c.b, d, nil)
	var encode []float32
	if !c.orthonormal {
		v.Encode = generate(formula{Rule: "weighted"}, c.b, d, v.Decode)
		encode = v.Encode.data
	}
	code, err := codec.New(kind, d, c.b, v.Mean.data, v.Decode.data, encode)
	if err == nil && c.gain != 0 {
		v.Gain = floats([]float32{c.gain})
		code, err = code.WithGain(c.gain)
	}
	if err != nil {
		return nil, err
	}
	if c.partGain != nil {
		v.PartGain = floats(c.partGain)
	}
	g, err := codec.NewGroup(code, parts, c.dk, c.dv, c.partGain)
	if err != nil || c.below == 0 {
		return g, err
	}
	v.Below = generate(formula{Rule: "uniform", Seed: seed + 6, RowStep: (c.below + 3) / 4}, c.below, d, nil)
	return g.Given(c.below, v.Below.data)
}

// A stream is what a group stores of tokens.
type stream struct {
	words []uint32
	alpha []float32
	w     int // words a token
}

func (s *stream) at(n int) ([]uint32, float64) {
	return s.words[n*s.w : (n+1)*s.w], float64(s.alpha[n])
}

// storedBelow makes up what the group below stores of n tokens, with scales that leave the group
// itself something to code.
func (v *groupVector) storedBelow(signs, n int, seed uint64) *stream {
	s := &stream{w: (signs + 31) / 32}
	scales := make([]uint16, n)
	for i := range n {
		row := make([]uint32, s.w)
		for k := range signs {
			row[k/32] |= uint32(number(seed+7, uint64(i*signs+k))>>63) << (k % 32)
		}
		scales[i] = dtype.F32ToF16(float32(number(seed+8, uint64(i))>>40) / (1 << 26))
		s.words, s.alpha = append(s.words, row...), append(s.alpha, dtype.F16ToF32(scales[i]))
		v.BelowWords = append(v.BelowWords, hexWords(row))
	}
	v.BelowAlpha = hexScales(scales)
	return s
}

func (c groupCase) vector(i int) (*groupVector, error) {
	c.tokens = groupTokens
	v, seed := &groupVector{}, uint64(20000+100*i)
	g, err := c.group(seed, v)
	if err == nil {
		err = c.compute(v, g, seed)
	}
	if err != nil {
		return nil, fmt.Errorf("case %s: %w", c.name, err)
	}
	return v, nil
}

// compute fills in everything that follows from the code of v, which is g.
func (c groupCase) compute(v *groupVector, g *codec.Group, seed uint64) error {
	v.Version, v.Name, v.HeadDim, v.ValueDim, v.Parts, v.Signs = spec.VersionGroups, c.name, c.dk, c.dv, c.parts, c.b
	v.Anchor, v.Sink, v.Recent, v.PairLayout, v.RopeTheta = c.anchor, c.sink, c.recent, c.pairs.String(), theta
	v.RopeDim = c.turned
	d := g.D()
	v.Vectors = generate(formula{Rule: "uniform", Seed: seed + 3, Exponent: 2, ColumnMod: 5}, c.tokens, d, nil)
	table := rope.NewTable(c.rope(), c.tokens)
	from, to := c.sink, c.tokens-c.recent
	rows := append([]float32(nil), v.Vectors.data[from*d:to*d]...)
	for n := range to - from {
		start := c.start(from + n)
		if n == 0 || start == from+n {
			v.block(g, table, start)
		}
		for j, p := range g.Parts {
			if lo, hi := g.Range(j); !p.Value {
				table.ApplyInverse(rows[n*d+lo:n*d+hi], start, c.pairs)
			}
		}
	}
	predicted := make([]float32, len(rows))
	var below *stream
	if g.Below != nil {
		below = v.storedBelow(g.BelowSigns, to-from, seed)
		g.Predict(predicted, below.words, below.alpha)
		for i, p := range predicted {
			rows[i] -= p
		}
	}
	words, alpha := make([]uint32, (to-from)*g.Words()), make([]float32, to-from)
	if err := g.EncodeRows(context.Background(), rows, words, alpha); err != nil {
		return err
	}
	v.store(g, words, alpha)
	hat := make([]float32, d)
	g.DecodeRows(hat, words[len(words)-g.Words():], alpha[len(alpha)-1:])
	for i, p := range predicted[len(predicted)-d:] {
		hat[i] += p
	}
	v.Decoded = floats(hat)
	c.attend(v, g, seed, &stream{words, alpha, g.Words()}, below, table)
	return nil
}

// start is the position that keys at a position are turned back by.
func (c groupCase) start(position int) int {
	if c.anchor == 0 {
		return 0
	}
	return position - position%c.anchor
}

func (v *groupVector) block(g *codec.Group, table *rope.Table, start int) {
	if start > 0 && g.Has(false) && (v.RopeDim == nil || *v.RopeDim > 0) {
		cos, sin := table.Row(start)
		v.Blocks = append(v.Blocks, groupBlock{start, floats(cos), floats(sin)})
	}
}

// store fills in what is stored, in both layouts.
func (v *groupVector) store(g *codec.Group, words []uint32, alpha []float32) {
	n, b, w := len(alpha), g.B(), g.Words()
	scales := make([]uint16, n)
	stored, transposed := make([]uint32, onebit.Len(n, b)), make([]uint32, (n+31)/32*32*w)
	for i := range n {
		scales[i] = dtype.F32ToF16(alpha[i])
		row := words[i*w : (i+1)*w]
		v.Words = append(v.Words, hexWords(row))
		onebit.Set(stored, b, i, row)
		for k := range b {
			transposed[i/32*32*w+k] |= row[k/32] >> (k % 32) & 1 << (i % 32)
		}
	}
	v.Alpha = hexScales(scales)
	for i := 0; i < len(stored); i += onebit.BlockKeys {
		v.Stored = append(v.Stored, hexWords(stored[i:i+onebit.BlockKeys]))
	}
	for i := 0; i < len(transposed); i += 32 {
		v.Transposed = append(v.Transposed, hexWords(transposed[i:i+32]))
	}
}

// attend fills in scores and sums: exact values, but for the rounding of float64 sums.
// below is what the group below stores, nil for none.
func (c groupCase) attend(v *groupVector, g *codec.Group, seed uint64, own, below *stream, table *rope.Table) {
	keys, values := 0, 0
	for _, p := range g.Parts {
		if p.Value {
			values++
		} else {
			keys++
		}
	}
	if keys > 0 {
		v.Queries = generate(formula{Rule: "uniform", Seed: seed + 4, Exponent: 1, ColumnMod: 3}, keys, c.dk, nil)
	}
	if values > 0 {
		v.Weights = generate(formula{Rule: "unsigned", Seed: seed + 5}, values, c.tokens, nil)
	}
	to := c.tokens - c.recent
	for i, p := range g.Parts {
		lo, hi := g.Range(i)
		part := exactPart{g.PartMean(i), g.PartDecode(i)}
		given := exactPart{mean: make([]float32, hi-lo)}
		for k := range g.BelowSigns {
			given.decode = append(given.decode, g.Below[k*g.D()+lo:k*g.D()+hi]...)
		}
		// add adds a times what the part of token n is decoded to.
		add := func(sums []float64, a float64, n int) {
			s, scale := own.at(n - c.sink)
			if part.add(sums, a, s, scale); below != nil {
				s, scale = below.at(n - c.sink)
				given.add(sums, a, s, scale)
			}
		}
		kept := func(n int) []float32 {
			row := v.Vectors.data[n*g.D()+lo:][:g.Dim(p)]
			out := make([]float32, len(row))
			for j, x := range row {
				out[j] = dtype.F16Round(x)
			}
			return out
		}
		if p.Value {
			weights := v.Weights.data[len(v.Sums)*c.tokens:][:c.tokens]
			sums := make([]float64, c.dv)
			for n, a := range weights {
				if n < c.sink || n >= to {
					for j, x := range kept(n) {
						sums[j] += float64(a) * float64(x)
					}
					continue
				}
				add(sums, float64(a), n)
			}
			out := make([]float32, c.dv)
			for j, x := range sums {
				out[j] = float32(x)
			}
			v.Sums = append(v.Sums, floats(out))
			continue
		}
		query := v.Queries.data[len(v.Scores)*c.dk:][:c.dk]
		scores := make([]float32, c.tokens)
		for n := range scores {
			if n < c.sink || n >= to {
				var sum float64
				for j, x := range kept(n) {
					sum += float64(query[j]) * float64(x)
				}
				scores[n] = float32(sum)
				continue
			}
			q := append([]float32(nil), query...)
			table.ApplyInverse(q, c.start(n), c.pairs)
			hat := make([]float64, c.dk)
			add(hat, 1, n)
			var sum float64
			for j, x := range hat {
				sum += float64(float64(q[j]) * x)
			}
			scores[n] = float32(sum)
		}
		v.Scores = append(v.Scores, floats(scores))
	}
}

// An exactPart is mean and decode matrix of a part, gain included.
type exactPart struct{ mean, decode []float32 }

// add adds a times the decoded part to sums.
func (p exactPart) add(sums []float64, a float64, words []uint32, alpha float64) {
	d := len(p.mean)
	for j := range sums {
		var t float64
		for i := range len(p.decode) / d {
			x := float64(p.decode[i*d+j])
			if words[i/32]>>(i%32)&1 == 0 {
				x = -x
			}
			t += x
		}
		sums[j] += float64(a * (float64(p.mean[j]) + float64(alpha*t)))
	}
}

// groupSidecarVectors makes vectors for some groups of a sidecar of version 2: the first of
// the first layer that has one, and the last of the last. The sequence reaches into the
// second block, unless blocks are very long, and keeps fewer recent tokens than its policy.
func groupSidecarVectors(s *sidecar.Sidecar) ([]*groupVector, error) {
	first, last := -1, 0
	for l, y := range s.Layers {
		if len(y.Groups) > 0 {
			if last = l; first < 0 {
				first = l
			}
		}
	}
	var out []*groupVector
	for k, at := range [][2]int{{first, 0}, {last, len(s.Layers[last].Groups) - 1}} {
		l, i := at[0], at[1]
		g := s.Layers[l].Groups[i]
		c := groupCase{name: fmt.Sprintf("layer %d, group %d", l, i), dk: g.KeyDim, dv: g.ValueDim, b: g.B(),
			anchor: s.Anchor, sink: min(s.Sink, 2), recent: min(s.Recent, 3), pairs: s.Pairs}
		if c.tokens = groupTokens; s.Anchor <= 1024 {
			c.tokens += s.Anchor
		}
		for _, p := range g.Parts {
			c.parts = append(c.parts, p.String())
		}
		tensor := func(part string, rows int, data []float32) *array {
			return finish(&array{Shape: []int{rows, g.D()}, Tensor: sidecar.GroupTensorName(l, i, part), data: data})
		}
		v := &groupVector{Kind: string(s.Kind), Mean: tensor("mean", 1, g.Code.Mean),
			Decode: tensor("decode", g.B(), g.Code.Decode)}
		if g.Below != nil {
			v.Below = tensor("below", g.BelowSigns, g.Below)
		}
		if g.Code.Encode != nil {
			v.Encode = tensor("encode", g.B(), g.Code.Encode)
		}
		if g.Code.Gain != 1 {
			v.Gain = floats([]float32{g.Code.Gain})
		}
		if slices.ContainsFunc(g.Gains, func(x float32) bool { return x != 1 }) {
			v.PartGain = floats(g.Gains)
		}
		if err := c.compute(v, g, uint64(9000+10*k)); err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}
