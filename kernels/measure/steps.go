package measure

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/phaseconv/phaseconv/kernels/coded"
	"github.com/phaseconv/phaseconv/kernels/fmath"
	"github.com/phaseconv/phaseconv/kernels/halfdot"
	"github.com/phaseconv/phaseconv/kernels/onebit"
	"github.com/phaseconv/phaseconv/kernels/rope"
)

// A LayerShape is the attention of a layer whose decode step is timed.
type LayerShape struct {
	KVHeads int `json:"kv_heads"`
	HeadDim int `json:"head_dim"` // a multiple of 64
	// Groups are the numbers of query heads for each KV head.
	Groups []int `json:"-"`
	// Anchors are those of joint codes, multiples of 16; 0 for none.
	Anchors []int `json:"-"`
	// Bits are those of joint codes, signs per number of keys and values.
	Bits []float64 `json:"-"`
	// KeyShare and ValueShare are the parts of the signs that keys and values of the codes called
	// shares are decoded from, above 0 to 1 and together at least 1.
	KeyShare   float64 `json:"-"`
	ValueShare float64 `json:"-"`
}

// DefaultLayer is SmolLM2-135M's, with one and with its three query heads for each KV
// head.
func DefaultLayer() LayerShape {
	return LayerShape{KVHeads: 3, HeadDim: 64, Groups: []int{1, 3}, Anchors: []int{64, 128}, Bits: []float64{1, 1.5, 2},
		KeyShare: 0.5, ValueShare: 0.83}
}

// DefaultContexts are the numbers of tokens in the cache that a decode step is timed at.
var DefaultContexts = []int{4096, 32768, 131072}

// A Step is the attention of one layer for one new token: scores of all query heads with
// all cached keys, softmax, and weighted sums of all values, on one thread. Scores of
// joint codes contain the projection of queries onto every block of the code. Caches of
// several layers take turns and together are larger than most caches of processors, so
// that long contexts come from memory.
type Step struct {
	// Format is of keys and values. joint: one code for all heads' keys and values; pairs: the same, and
	// every second layer is given the signs of the layer below; shares: joint, keys decoded from the first and
	// values from the last of the signs alone; apart: one code for keys, one for values.
	Format string  `json:"format"`
	Bits   float64 `json:"bits,omitempty"`
	Anchor int     `json:"anchor,omitempty"`
	// Keys and Values, of shares, are the parts of the signs.
	Keys    float64 `json:"key_share,omitempty"`
	Values  float64 `json:"value_share,omitempty"`
	Tokens  int     `json:"tokens"`
	Heads   int     `json:"query_heads"`
	Layers  int     `json:"layers"`          // that take turns
	Bytes   float64 `json:"bytes_per_token"` // of the layer, keys and values
	Us      float64 `json:"us"`              // the step
	Scores  float64 `json:"us_scores"`
	Softmax float64 `json:"us_softmax"`
	Sums    float64 `json:"us_sums"`
	Ratio   float64 `json:"speed_over_f16"`
}

const (
	// stepBytes is what the F16 caches that take turns have together, about.
	stepBytes = 256 << 20
	maxLayers = 30
	// stepBlock is how many tokens the heads that share them pass over in turns, so
	// that keys and values come from memory once.
	stepBlock = 256
	// stepPiece is how many tokens are timed at once: a multiple of coded.Step and of all
	// anchors, so many that what a step does once, whatever its tokens (M_p t of package
	// coded), is not timed much more often.
	stepPiece = 8192
)

// A stepEntry is one way of storing a cache.
type stepEntry struct {
	Step
	scores, sums func(layer, from, to int)
	best         [][3]float64 // per layer and piece: seconds of scores, softmax and sums
}

// A stepRun is what the entries of one context and group share.
type stepRun struct {
	LayerShape
	n, group, layers int
	q                []float32 // [heads, head_dim]
	p                []float32 // [heads, n] scores, then weights
	out              []float32
	entries          []*stepEntry
}

func (r *stepRun) heads() int { return r.KVHeads * r.group }

func (r *stepRun) add(e Step, scores, sums func(layer, from, to int)) {
	e.Tokens, e.Heads, e.Layers = r.n, r.heads(), r.layers
	r.entries = append(r.entries, &stepEntry{
		Step: e, scores: scores, sums: sums, best: make([][3]float64, r.layers*r.pieces()),
	})
}

func (r *stepRun) pieces() int { return (r.n + stepPiece - 1) / stepPiece }

// blocks calls f for every KV head, block of tokens in a range and query head.
func (r *stepRun) blocks(from, to int, f func(kv, head, from, to int)) {
	for kv := range r.KVHeads {
		for at := from; at < to; at += stepBlock {
			for g := range r.group {
				f(kv, kv*r.group+g, at, min(to, at+stepBlock))
			}
		}
	}
}

func newStepRun(ctx context.Context, l LayerShape, n, group int) (*stepRun, error) {
	f16 := 4 * l.KVHeads * l.HeadDim * n
	r := &stepRun{LayerShape: l, n: n, group: group, layers: min(maxLayers, max(2, stepBytes/f16))}
	random := rand.New(rand.NewPCG(1, 1))
	r.q = make([]float32, r.heads()*l.HeadDim)
	for i := range r.q {
		r.q[i] = float32(random.NormFloat64())
	}
	r.p, r.out = make([]float32, r.heads()*n), make([]float32, r.heads()*l.HeadDim)
	r.addHalf()
	r.addBlocks("q8_0", halfdot.BytesQ8, halfdot.ScoreQ8, halfdot.SumQ8)
	r.addBlocks("q4_0", halfdot.BytesQ4, halfdot.ScoreQ4, halfdot.SumQ4)
	table := rope.NewTable(rope.Params{Theta: 100000, Dim: l.HeadDim}, n)
	for _, bits := range l.Bits {
		layers := map[string][]codedTokens{}
		for _, x := range []struct {
			name        string
			keys, value float64
		}{{"joint", 1, 1}, {"shares", l.KeyShare, l.ValueShare}, {"keys", 1, 0}, {"values", 0, 1}} {
			var err error
			if layers[x.name], err = codedLayers(ctx, random, l, r.layers, n, bits, x.keys, x.value); err != nil {
				return nil, err
			}
		}
		for _, anchor := range l.Anchors {
			e := Step{Format: "joint", Bits: bits, Anchor: anchor}
			if err := r.addCoded(e, table, layers["joint"]); err != nil {
				return nil, err
			}
			e.Format = "pairs"
			if err := r.addCoded(e, table, layers["joint"]); err != nil {
				return nil, err
			}
			e.Format = "apart"
			if err := r.addCoded(e, table, layers["keys"], layers["values"]); err != nil {
				return nil, err
			}
			e.Format, e.Keys, e.Values = "shares", l.KeyShare, l.ValueShare
			if err := r.addCoded(e, table, layers["shares"]); err != nil {
				return nil, err
			}
		}
	}
	return r, nil
}

func (r *stepRun) addHalf() {
	d := r.HeadDim
	// [layer][KV head][token][number], keys and values.
	k := slices.Repeat([]uint16{0x2c00, 0xac01, 0x2c02}, (r.layers*r.KVHeads*r.n*d+2)/3)
	v := slices.Clone(k)
	at := func(layer, kv, token int) int { return ((layer*r.KVHeads+kv)*r.n + token) * d }
	r.add(Step{Format: "F16", Bytes: float64(4 * r.KVHeads * d)}, func(layer, from, to int) {
		r.blocks(from, to, func(kv, h, from, to int) {
			halfdot.Score(r.p[h*r.n+from:], r.q[h*d:(h+1)*d], k[at(layer, kv, from):], to-from)
		})
	}, func(layer, from, to int) {
		r.blocks(from, to, func(kv, h, from, to int) {
			halfdot.Sum(r.out[h*d:(h+1)*d], r.p[h*r.n+from:], v[at(layer, kv, from):], to-from)
		})
	})
}

func (r *stepRun) addBlocks(format string, block int, score func([]float32, *halfdot.Query, []byte, int),
	sum func([]float32, []float32, []byte, int)) {
	d := r.HeadDim
	size := d / halfdot.BlockLen * block
	// Any bytes will do whose factors are finite: 0x2c2c is about 1/15.
	k := slices.Repeat([]byte{0x2c}, r.layers*r.KVHeads*r.n*size)
	v := slices.Clone(k)
	at := func(layer, kv, token int) int { return ((layer*r.KVHeads+kv)*r.n + token) * size }
	queries := make([]halfdot.Query, r.heads())
	r.add(Step{Format: format, Bytes: float64(2 * r.KVHeads * size)}, func(layer, from, to int) {
		for h := range queries {
			if from == 0 {
				queries[h].Set(r.q[h*d : (h+1)*d])
			}
		}
		r.blocks(from, to, func(kv, h, from, to int) {
			score(r.p[h*r.n+from:], &queries[h], k[at(layer, kv, from):], to-from)
		})
	}, func(layer, from, to int) {
		r.blocks(from, to, func(kv, h, from, to int) {
			sum(r.out[h*d:(h+1)*d], r.p[h*r.n+from:], v[at(layer, kv, from):], to-from)
		})
	})
}

// codedTokens is the storage of one code of a layer, for caches with several anchors.
type codedTokens struct {
	code   *coded.Code
	bits   []uint32
	scales []uint16
}

// codedLayers makes random codes of all heads' keys, values or both, decoded from these parts of the signs;
// 0 for none.
func codedLayers(ctx context.Context, random *rand.Rand, l LayerShape, layers, n int, bits float64,
	keys, values float64) ([]codedTokens, error) {
	d, heads := l.HeadDim, 0
	for _, share := range []float64{keys, values} {
		if share > 0 {
			heads += l.KVHeads
		}
	}
	b := int(math.Round(bits*float64(heads*d)/8)) * 8
	out := make([]codedTokens, layers)
	for i := range out {
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
		// Rows from <= i < to are not zero.
		matrices := func(from, to int) (list []coded.Matrix) {
			for h := 0; from < to && h < l.KVHeads; h++ {
				x := make([]float32, (b+1)*d)
				for j := range x {
					if i := j/d - 1; i < 0 || i >= from && i < to {
						x[j] = float32(random.NormFloat64())
					}
				}
				list = append(list, coded.Matrix{Head: h, Mean: x[:d], Decode: x[d:]})
			}
			return list
		}
		words := func(share float64) int { return min(b, int(math.Ceil(share*float64(b)/32))*32) }
		code, err := coded.NewCode(b, matrices(0, words(keys)), matrices(b-words(values), b))
		if err != nil {
			return nil, fmt.Errorf("%g bits of %d KV heads of %d: %w", bits, l.KVHeads, d, err)
		}
		t := codedTokens{code: code, bits: make([]uint32, onebit.Len(n, b)), scales: slices.Repeat([]uint16{0x2c00}, n)}
		row := make([]uint32, onebit.Words(b))
		for token := range n {
			for j := range row {
				row[j] = random.Uint32()
			}
			onebit.Set(t.bits, b, token, row)
		}
		out[i] = t
	}
	return out, nil
}

// addCoded adds an entry for caches of one or two groups a layer: groups[group][layer]. Of pairs every
// second layer also scores and sums with the signs of the layer below; that layer's own matrices stand
// for the ones between, which are of the same size.
func (r *stepRun) addCoded(e Step, table *rope.Table, groups ...[]codedTokens) error {
	caches := make([][]*coded.Cache, len(groups))
	for i, layers := range groups {
		e.Bytes += float64(4*onebit.Words(layers[0].code.B()) + 2)
		for _, t := range layers {
			c, err := coded.OpenCache(t.code, e.Anchor, table, rope.Half, t.bits, t.scales)
			if err != nil {
				return err
			}
			caches[i] = append(caches[i], c)
		}
	}
	read := func(layer int) (all []*coded.Cache) {
		for _, c := range caches {
			all = append(all, c[layer])
			if e.Format == "pairs" && layer%2 == 1 {
				all = append(all, c[layer-1])
			}
		}
		return all
	}
	var w coded.Worker
	r.add(e, func(layer, from, to int) {
		for _, c := range read(layer) {
			w.Scores(r.p, r.n, c, r.q, r.group, from, to)
		}
	}, func(layer, from, to int) {
		for _, c := range read(layer) {
			w.Sums(r.out, c, r.p, r.n, r.group, from, to)
		}
	})
	return nil
}

// time times the entries in turns until d is over, at least three times.
func (r *stepRun) time(ctx context.Context, d time.Duration) []Step {
	scale := float32(1 / math.Sqrt(float64(r.HeadDim)))
	pieces := r.pieces()
	for start, rounds := time.Now(), 0; time.Since(start) < d || rounds < 3; rounds++ {
		for _, e := range r.entries {
			for layer := range r.layers {
				if ctx.Err() != nil {
					return nil
				}
				clear(r.out)
				for part, run := range []func(from, to int){
					func(from, to int) { e.scores(layer, from, to) },
					// Each head's softmax is of its whole row; pieces stand for it as well.
					func(from, to int) {
						for h := range r.heads() {
							fmath.Softmax(r.p[h*r.n+from:h*r.n+to], scale)
						}
					},
					func(from, to int) { e.sums(layer, from, to) },
				} {
					for i := range pieces {
						t := time.Now()
						run(i*stepPiece, min(r.n, (i+1)*stepPiece))
						took := time.Since(t).Seconds()
						best := &e.best[layer*pieces+i][part]
						if rounds == 0 || took < *best {
							*best = took
						}
					}
				}
			}
		}
	}
	var steps []Step
	for _, e := range r.entries {
		for _, b := range e.best {
			e.Scores += 1e6 * b[0] / float64(r.layers)
			e.Softmax += 1e6 * b[1] / float64(r.layers)
			e.Sums += 1e6 * b[2] / float64(r.layers)
		}
		e.Us = e.Scores + e.Softmax + e.Sums
		e.Ratio = r.entries[0].Us / e.Us
		steps = append(steps, e.Step)
	}
	return steps
}
