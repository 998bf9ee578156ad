package main

import (
	"context"
	"fmt"

	"github.com/phaseconv/phaseconv/format/dtype"
	"github.com/phaseconv/phaseconv/kernels/gemm"
	"github.com/phaseconv/phaseconv/kernels/onebit"
	"github.com/phaseconv/phaseconv/kernels/rope"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/rotations/sidecar"
	"github.com/phaseconv/phaseconv/spec"
)

// A headVector takes one KV head from keys to scores. All numbers are bits in
// hex; spec/vectors.md explains every key.
type headVector struct {
	Version    int     `json:"version"`
	Name       string  `json:"name"`
	Kind       string  `json:"kind"`
	HeadDim    int     `json:"head_dim"`
	Signs      int     `json:"signs"`
	Anchor     int     `json:"anchor"`
	PairLayout string  `json:"pair_layout"`
	RopeTheta  float64 `json:"rope_theta"`

	Mean   *array `json:"mean"`
	Decode *array `json:"decode"`
	Encode *array `json:"encode,omitempty"`
	Gain   string `json:"gain,omitempty"` // absent for 1

	// Keys after RoPE; key i has position FirstPosition + i.
	FirstPosition int     `json:"first_position"`
	Keys          *array  `json:"keys"`
	Blocks        []block `json:"blocks"`

	Words  []string `json:"words"`  // per key
	Alpha  string   `json:"alpha"`  // binary16 per key
	Stored []string `json:"stored"` // blocks of 16 keys, 16 words a line

	// Exceptions per key, and of each key the coordinates, in hex, and the values.
	Exceptions  int      `json:"exceptions,omitempty"`
	Coordinates []string `json:"coordinates,omitempty"`
	Values      []string `json:"values,omitempty"`

	Decoded []decodedKey `json:"decoded"`

	// Queries after RoPE, a head of the group each, at QueryPosition.
	QueryPosition int      `json:"query_position"`
	Queries       *array   `json:"queries"`
	Scores        []string `json:"scores"` // per query, for all keys
}

// A block is a run of keys with one anchor position, and the queries as that
// block needs them.
type block struct {
	Start int `json:"start"` // the anchor position n0, 0 without anchors
	Keys  int `json:"keys"`  // how many of the keys lie in it
	// Cos and Sin of position n0, per pair; absent without anchors.
	Cos string `json:"cos,omitempty"`
	Sin string `json:"sin,omitempty"`
	// Transformed queries M^T q and offsets q.mean, per query.
	Transformed []string `json:"transformed"`
	Offsets     string   `json:"offsets"`
}

// A decodedKey is k_hat in the frame of the code: turned back by the anchor.
type decodedKey struct {
	Key  int    `json:"key"`
	KHat string `json:"k_hat"`
}

// A headCase is the input of a headVector.
type headCase struct {
	kind    codec.Kind
	d, b    int
	anchor  int
	pairs   rope.Layout
	mean    bool
	encode  bool
	seed    uint64
	decode  formula
	keyRule formula
	gain    float32 // 0 for none
	except  int
	name    string
}

const (
	theta         = 10000
	keysPerCase   = 19  // one whole block of the kernel and a part of one
	firstPosition = 120 // so that anchors of 64 change between the keys
	queryPosition = 200
	queries       = 2
)

// headCases covers every kind, three head dimensions, both pair layouts, with
// and without anchors, and sign counts that do and do not fill words.
func headCases() []headCase {
	uniform := formula{Rule: "uniform", ColumnMod: 5}
	cases := []headCase{
		{kind: "raw", d: 64, pairs: rope.Half, decode: formula{Rule: "identity"}},
		{kind: "raw", d: 64, anchor: 64, pairs: rope.Interleaved, decode: formula{Rule: "identity"}},
		{kind: "cen", d: 128, pairs: rope.Interleaved, mean: true, decode: formula{Rule: "identity"}},
		{kind: "srht", d: 64, anchor: 64, pairs: rope.Interleaved, mean: true, decode: formula{Rule: "hadamard"}},
		{kind: "srht", d: 256, pairs: rope.Half, mean: true, decode: formula{Rule: "hadamard"}},
		{kind: "random", d: 64, anchor: 64, pairs: rope.Half, mean: true, decode: formula{Rule: "reflector"}},
		{kind: "learned", d: 128, anchor: 64, pairs: rope.Half, mean: true, decode: formula{Rule: "reflector"}},
		{kind: "learned", d: 256, pairs: rope.Interleaved, mean: true, decode: formula{Rule: "reflector"}},
		{kind: "learned", d: 64, pairs: rope.Half, mean: true, decode: formula{Rule: "reflector"}, gain: 1.1},
	}
	for _, x := range []struct {
		d, b, anchor int
		pairs        rope.Layout
		gain         float32
	}{
		{64, 32, 64, rope.Half, 0}, // half a bit per number
		{64, 40, 0, rope.Interleaved, 0},
		{64, 64, 64, rope.Interleaved, 0},
		{64, 128, 64, rope.Half, 0}, // two bits
		{64, 168, 64, rope.Half, 0}, // six words, the last one in part
		{128, 128, 0, rope.Half, 0},
		{128, 256, 64, rope.Interleaved, 0},
		{256, 128, 64, rope.Interleaved, 1.25},
		{256, 256, 64, rope.Half, 0},
	} {
		cases = append(cases, headCase{kind: "frame", d: x.d, b: x.b, anchor: x.anchor, pairs: x.pairs, mean: true,
			encode: true,
			decode: formula{Rule: "uniform", RowStep: (x.b + 3) / 4}, gain: x.gain})
	}
	cases = append(cases,
		headCase{kind: "frame", d: 64, b: 64, anchor: 64, pairs: rope.Interleaved, mean: true, encode: true,
			decode: formula{Rule: "uniform", RowStep: 16}, gain: 1.25, except: 8},
		headCase{kind: "learned", d: 256, pairs: rope.Half, mean: true, decode: formula{Rule: "reflector"}, except: 5})
	for i := range cases {
		c := &cases[i]
		if c.b == 0 {
			c.b = c.d
		}
		c.seed, c.keyRule = uint64(100*(i+1)), uniform
		c.keyRule.Exponent = 2
		c.name = fmt.Sprintf("%s-d%d-b%d-%s-a%d", c.kind, c.d, c.b, c.pairs, c.anchor)
		if c.gain != 0 {
			c.name += "-gain"
		}
		if c.except > 0 {
			c.name += fmt.Sprintf("-x%d", c.except)
		}
		if c.decode.Rule != "identity" {
			c.decode.Seed = c.seed + 1
		}
	}
	return cases
}

func (c headCase) vector() (*headVector, error) {
	zeros := formula{Rule: "zeros"}
	v := &headVector{Name: c.name, Kind: string(c.kind), HeadDim: c.d, Signs: c.b, Anchor: c.anchor,
		PairLayout: c.pairs.String(), RopeTheta: theta, Exceptions: c.except}
	if v.Mean = generate(zeros, 1, c.d, nil); c.mean {
		v.Mean = generate(formula{Rule: "uniform", Seed: c.seed + 2}, 1, c.d, nil)
	}
	v.Decode = generate(c.decode, c.b, c.d, nil)
	if c.encode {
		v.Encode = generate(formula{Rule: "weighted"}, c.b, c.d, v.Decode)
	}
	c.keyRule.Seed = c.seed + 3
	v.Keys = generate(c.keyRule, keysPerCase, c.d, nil)
	v.Queries = generate(formula{Rule: "uniform", Seed: c.seed + 4, Exponent: 1, ColumnMod: 3}, queries, c.d, nil)
	var encode []float32
	if v.Encode != nil {
		encode = v.Encode.data
	}
	code, err := codec.New(c.kind, c.d, c.b, v.Mean.data, v.Decode.data, encode)
	if err != nil {
		return nil, fmt.Errorf("case %s: %w", c.name, err)
	}
	if c.gain != 0 {
		if code, err = code.WithGain(c.gain); err != nil {
			return nil, fmt.Errorf("case %s: %w", c.name, err)
		}
	}
	return v, v.compute(code, c.pairs, rope.NewTable(rope.Params{Theta: theta, Dim: c.d}, queryPosition+1))
}

// compute fills in everything that follows from the code, keys and queries.
func (v *headVector) compute(code *codec.Code, pairs rope.Layout, table *rope.Table) error {
	d, b, w := code.D, code.B, code.Words()
	n, heads := len(v.Keys.data)/d, len(v.Queries.data)/d
	if code.Gain != 1 {
		v.Gain = floats([]float32{code.Gain})
	}
	v.Version, v.FirstPosition, v.QueryPosition = spec.Version, firstPosition, queryPosition

	keys := append([]float32(nil), v.Keys.data...)
	if v.Anchor > 0 {
		for i := range n {
			pos := firstPosition + i
			table.ApplyInverse(keys[i*d:(i+1)*d], pos-pos%v.Anchor, pairs)
		}
	}
	words, alpha, hat := make([]uint32, n*w), make([]float32, n), make([]float32, n*d)
	if err := code.EncodeKeys(context.Background(), keys, words, alpha); err != nil {
		return err
	}
	code.DecodeKeys(hat, words, alpha)
	except, err := codec.Except(keys, hat, d, v.Exceptions)
	if err != nil {
		return err
	}
	except.Add(hat, d)
	scales := make([]uint16, n)
	stored := make([]uint32, onebit.Len(n, b))
	for i := range n {
		scales[i] = dtype.F32ToF16(alpha[i])
		v.Words = append(v.Words, hexWords(words[i*w:(i+1)*w]))
		onebit.Set(stored, b, i, words[i*w:(i+1)*w])
		if x := except.Per; x > 0 {
			v.Coordinates = append(v.Coordinates, fmt.Sprintf("% x", except.Index[i*x:(i+1)*x]))
			v.Values = append(v.Values, hexScales(except.Values[i*x:(i+1)*x]))
		}
	}
	v.Alpha = hexScales(scales)
	for i := 0; i < len(stored); i += onebit.BlockKeys {
		v.Stored = append(v.Stored, hexWords(stored[i:i+onebit.BlockKeys]))
	}
	for _, i := range []int{0, n - 1} {
		v.Decoded = append(v.Decoded, decodedKey{i, floats(hat[i*d : (i+1)*d])})
	}

	var toCode, toMean gemm.Weights
	toCode.PackRows(b, d, code.Decode, d, 1)
	toMean.PackRows(1, d, code.Mean, d, 1)
	scores := make([]float32, heads*n)
	for from := 0; from < n; {
		blk := block{Keys: n - from}
		q := append([]float32(nil), v.Queries.data...)
		if v.Anchor > 0 {
			pos := firstPosition + from
			blk.Start = pos - pos%v.Anchor
			blk.Keys = min(blk.Keys, blk.Start+v.Anchor-pos)
			cos, sin := table.Row(blk.Start)
			blk.Cos, blk.Sin = floats(cos), floats(sin)
			for h := range heads {
				table.ApplyInverse(q[h*d:(h+1)*d], blk.Start, pairs)
			}
		}
		turned, offsets := make([]float32, heads*b), make([]float32, heads)
		gemm.Mul(turned, b, q, d, heads, &toCode, 1)
		gemm.Mul(offsets, 1, q, d, heads, &toMean, 1)
		for h := range heads {
			blk.Transformed = append(blk.Transformed, floats(turned[h*b:(h+1)*b]))
		}
		blk.Offsets = floats(offsets)
		for h := range heads {
			for i := from; i < from+blk.Keys; i++ {
				scores[h*n+i] = score(code, q[h*d:(h+1)*d], words[i*w:(i+1)*w], alpha[i], except.Of(i))
			}
		}
		v.Blocks = append(v.Blocks, blk)
		from += blk.Keys
	}
	for h := range heads {
		v.Scores = append(v.Scores, floats(scores[h*n:(h+1)*n]))
	}
	return nil
}

// score is the exact score of a key, but for the rounding of float64 sums, in
// float32. It is computed here and not by kernels/onebit, so that no kernel's
// way of rounding becomes part of the format; a test holds the kernel to it.
func score(c *codec.Code, q []float32, words []uint32, alpha float32, x *codec.Exceptions) float32 {
	var offset, sum float64
	for j, v := range q {
		offset += float64(v) * float64(c.Mean[j])
	}
	for i := range c.B {
		var t float64 // sign i of M^T q
		for j, v := range q {
			t += float64(v) * float64(c.Decode[i*c.D+j])
		}
		if words[i/32]>>(i%32)&1 == 0 {
			t = -t
		}
		sum += t
	}
	for e, j := range x.Index {
		offset += float64(q[j]) * float64(dtype.F16ToF32(x.Values[e]))
	}
	return float32(offset + float64(float64(alpha)*sum))
}

// sidecarVectors makes vectors for some heads of a sidecar, so that readers of
// sidecars can be tried on a real one.
func sidecarVectors(path string) (any, error) {
	s, err := sidecar.Read(context.Background(), path)
	if err != nil {
		return nil, err
	}
	if s.Version() == spec.VersionGroups {
		return groupSidecarVectors(s)
	}
	var out []*headVector
	last := len(s.Codes) - 1
	for i, at := range [][2]int{{0, len(s.Codes[0]) - 1}, {last, 0}} {
		c := s.Codes[at[0]][at[1]]
		if c.D%2 != 0 {
			return nil, fmt.Errorf("%s: head_dim %d", path, c.D)
		}
		seed := uint64(9000 + 10*i)
		v := &headVector{
			Name: fmt.Sprintf("layer %d, KV head %d", at[0], at[1]), Kind: string(c.Kind), HeadDim: c.D, Signs: c.B,
			Anchor:     s.Anchor,
			PairLayout: s.Pairs.String(), RopeTheta: theta, Exceptions: s.Exceptions,
			Keys:    generate(formula{Rule: "uniform", Seed: seed, Exponent: 2, ColumnMod: 5}, keysPerCase, c.D, nil),
			Queries: generate(formula{Rule: "uniform", Seed: seed + 1, Exponent: 1, ColumnMod: 3}, queries, c.D, nil),
		}
		tensor := func(part string, rows int, data []float32) *array {
			return finish(&array{Shape: []int{rows, c.D}, Tensor: sidecar.TensorName(at[0], at[1], part), data: data})
		}
		v.Mean, v.Decode = tensor("mean", 1, c.Mean), tensor("decode", c.B, c.Decode)
		if c.Encode != nil {
			v.Encode = tensor("encode", c.B, c.Encode)
		}
		if err := v.compute(c, s.Pairs, rope.NewTable(rope.Params{Theta: theta, Dim: c.D}, queryPosition+1)); err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}
