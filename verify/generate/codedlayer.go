package generate

import (
	"context"
	"fmt"

	"github.com/phaseconv/phaseconv/format/dtype"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/kernels/coded"
	"github.com/phaseconv/phaseconv/kernels/gemm"
	"github.com/phaseconv/phaseconv/kernels/linalg"
	"github.com/phaseconv/phaseconv/kernels/onebit"
	"github.com/phaseconv/phaseconv/kernels/parallel"
	"github.com/phaseconv/phaseconv/kernels/rope"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/verify/kvcache"
)

// tables are the angles that turn keys to their anchors, shared by layers.
type tables struct{ pure *rope.Table }

func newTables(y *family.Layer, limit int) *tables {
	return &tables{pure: rope.NewTable(y.Rope.Pure(), limit)}
}

// A half is rows in F16 of consecutive tokens, all KV heads side by side: those that a
// policy keeps.
type half struct {
	width int
	first int // token of the first row
	rows  []uint16
}

func (h *half) append(x []float32) {
	for _, v := range x {
		h.rows = append(h.rows, dtype.F32ToF16(v))
	}
}

// keepLast forgets all but the last n rows.
func (h *half) keepLast(n int) {
	if drop := len(h.rows)/h.width - n; drop > 0 {
		h.rows = append(h.rows[:0], h.rows[drop*h.width:]...)
		h.first += drop
	}
}

// widen returns tokens [from, to) as float32, from the first number of a head on.
func (h *half) widen(buf *[]float32, from, to, d, head int) []float32 {
	out := linalg.Grow(buf, (to-from)*d)
	for j := from; j < to; j++ {
		row := h.rows[(j-h.first)*h.width+head*d:][:d]
		for i, v := range row {
			out[(j-from)*d+i] = dtype.F16ToF32(v)
		}
	}
	return out
}

// A codedGroup is one group of a layer with its tokens.
type codedGroup struct {
	*codec.Group
	cache *coded.Cache
	// What the last tokens that came are stored as.
	words []uint32
	alpha []float32
	// lower is the group of the layer below that this one is given, nil for none, and below its
	// tokens with the matrices of this one. A runtime would keep them once.
	lower *codedGroup
	below *coded.Cache
	// Exceptions of keys, for groups of one head's keys.
	index  []uint8
	values []uint16
}

// codedLayer keeps tokens as groups code them.
type codedLayer struct {
	y       *family.Layer
	policy  kvcache.Policy
	table   *rope.Table
	pairs   rope.Layout
	threads int
	n       int

	groups       []codedGroup
	keys, values bool // coded
	// What is not coded, and what the policy keeps: the first tokens, and the latest of each
	// query. Those of the latest that come with one append are dropped with the next one.
	floatK, floatV                 packed
	sinkK, sinkV, latestK, latestV half
	worker                         coded.Worker
	buf, rest, added               []float32
	weights                        gemm.Weights
}

// lower is the layer below, nil for none: groups may be given its groups.
func newCodedLayer(y *family.Layer, groups []*codec.Group, p kvcache.Policy, t *tables, pairs rope.Layout,
	lower *codedLayer, threads int) (*codedLayer, error) {
	if err := p.Check(y.HeadDim); err != nil {
		return nil, err
	}
	if err := codec.CheckLayer(groups, y.KVHeads); err != nil {
		return nil, err
	}
	width := y.KVHeads * y.HeadDim
	l := &codedLayer{y: y, policy: p, table: t.pure, pairs: pairs, threads: threads,
		floatK: packed{heads: y.KVHeads, d: y.HeadDim}, floatV: packed{heads: y.KVHeads, d: y.HeadDim, transposed: true}}
	for _, h := range []*half{&l.sinkK, &l.sinkV, &l.latestK, &l.latestV} {
		h.width = width
	}
	for at, g := range groups {
		if g.KeyDim != y.HeadDim || g.ValueDim != y.HeadDim {
			return nil, fmt.Errorf("codes for keys of %d and values of %d numbers, where head_dim is %d",
				g.KeyDim, g.ValueDim, y.HeadDim)
		}
		if p.Exceptions > 0 && (g.Has(true) || len(g.Parts) != 1) {
			return nil, fmt.Errorf("exceptions beside a code of %d parts", len(g.Parts))
		}
		x := codedGroup{Group: g}
		var err error
		if x.cache, err = groupCache(g, g.B(), p.Anchor, t.pure, pairs, func(i int) coded.Matrix {
			return coded.Matrix{Mean: g.PartMean(i), Decode: g.PartDecode(i)}
		}); err != nil {
			return nil, err
		}
		if g.Below != nil {
			if lower == nil || at >= len(lower.groups) {
				return nil, fmt.Errorf("group %d is given one of the layer below, which is not there", at)
			}
			x.lower = &lower.groups[at]
			if err := codec.CheckGiven(g, x.lower.Group); err != nil {
				return nil, err
			}
			if x.below, err = groupCache(g, g.BelowSigns, p.Anchor, t.pure, pairs, func(i int) coded.Matrix {
				return coded.Matrix{Mean: make([]float32, g.Dim(g.Parts[i])), Decode: g.PartBelow(i)}
			}); err != nil {
				return nil, err
			}
		}
		l.groups = append(l.groups, x)
		l.keys, l.values = l.keys || g.Has(false), l.values || g.Has(true)
	}
	return l, nil
}

// groupCache returns an empty cache of b signs for the parts of a group, whose matrices of returns
// but for the head.
func groupCache(g *codec.Group, b, anchor int, table *rope.Table, pairs rope.Layout, of func(i int) coded.Matrix) (
	*coded.Cache, error) {
	matrices := [2][]coded.Matrix{}
	for i, part := range g.Parts {
		side := 0
		if part.Value {
			side = 1
		}
		m := of(i)
		m.Head = part.Head
		matrices[side] = append(matrices[side], m)
	}
	code, err := coded.NewCode(b, matrices[0], matrices[1])
	if err != nil {
		return nil, err
	}
	if !g.Has(false) {
		anchor = 0
	}
	return coded.NewCache(code, anchor, table, pairs)
}

func (l *codedLayer) append(ctx context.Context, k, v []float32) error {
	width := l.y.KVHeads * l.y.HeadDim
	n := len(k) / width
	if !l.keys {
		l.floatK.append(k)
	}
	if !l.values {
		l.floatV.append(v)
	}
	sinks := min(n, max(0, l.policy.Sink-l.n))
	for i, x := range [][]float32{k, v} {
		if ![]bool{l.keys, l.values}[i] {
			continue
		}
		[]*half{&l.sinkK, &l.sinkV}[i].append(x[:sinks*width])
		latest := []*half{&l.latestK, &l.latestV}[i]
		if l.policy.Recent > 0 {
			// The first of these tokens still sees Recent-1 before it.
			latest.keepLast(l.policy.Recent - 1)
			latest.append(x)
		}
	}
	err := parallel.For(ctx, l.threads, len(l.groups), func(i int) error {
		return l.groups[i].append(ctx, l, k, v, n, sinks)
	})
	l.n += n
	return err
}

// append codes n tokens, but for the first of them, which are sinks and leave their place
// in the cache empty.
func (g *codedGroup) append(ctx context.Context, l *codedLayer, k, v []float32, n, sinks int) error {
	d, width := l.y.HeadDim, l.y.KVHeads*l.y.HeadDim
	zero := make([]uint32, g.Words())
	g.words, g.alpha = nil, nil
	for range sinks {
		if g.cache.Append(zero, 0); g.below != nil {
			g.below.Append(make([]uint32, g.lower.Words()), 0)
		}
		g.index = append(g.index, make([]uint8, l.policy.Exceptions)...)
		g.values = append(g.values, make([]uint16, l.policy.Exceptions)...)
	}
	rest := n - sinks
	if rest == 0 {
		return nil
	}
	rows := make([]float32, rest*g.D())
	g.Concat(rows, func(p codec.Part) []float32 {
		part := make([]float32, 0, rest*d)
		x := k
		if p.Value {
			x = v
		}
		for r := sinks; r < n; r++ {
			part = append(part, x[r*width+p.Head*d:][:d]...)
		}
		if !p.Value {
			kvcache.ToAnchor(part, d, l.n+sinks, l.policy.Anchor, l.table, l.pairs)
		}
		return part
	})
	if g.below != nil {
		predicted := make([]float32, len(rows))
		g.Predict(predicted, g.lower.words, g.lower.alpha)
		for i, p := range predicted {
			rows[i] -= p
		}
		for i, a := range g.lower.alpha {
			g.below.Append(g.lower.words[i*g.lower.Words():(i+1)*g.lower.Words()], dtype.F32ToF16(a))
		}
	}
	words, alpha := make([]uint32, rest*g.Words()), make([]float32, rest)
	if err := g.EncodeRows(ctx, rows, words, alpha); err != nil {
		return err
	}
	g.words, g.alpha = words, alpha
	for i, a := range alpha {
		g.cache.Append(words[i*g.Words():(i+1)*g.Words()], dtype.F32ToF16(a))
	}
	if l.policy.Exceptions > 0 {
		hat := make([]float32, len(rows))
		g.DecodeRows(hat, words, alpha)
		x, err := codec.Except(rows, hat, g.D(), l.policy.Exceptions)
		if err != nil {
			return err
		}
		g.index, g.values = append(g.index, x.Index...), append(g.values, x.Values...)
	}
	return nil
}

// exact calls f for the ranges of tokens, of those that a query at pos sees from from on,
// that the policy keeps.
func (l *codedLayer) exact(from, pos int, f func(sinks bool, lo, hi int)) {
	end := min(l.policy.Sink, pos+1)
	if from < end {
		f(true, from, end)
	}
	if lo := max(from, end, pos+1-l.policy.Recent); lo <= pos && l.policy.Recent > 0 {
		f(false, lo, pos+1)
	}
}

func (l *codedLayer) scores(dst []float32, ld int, q []float32, from, pos int) {
	if !l.keys {
		l.floatK.scores(dst, ld, q, l.y.Group(), from, pos)
		return
	}
	group, d := l.y.Group(), l.y.HeadDim
	lo := from / onebit.BlockKeys * onebit.BlockKeys
	for i := range l.groups {
		g := &l.groups[i]
		l.worker.Scores(dst, ld, g.cache, q, group, lo, pos+1)
		if g.below != nil {
			l.addBelow(dst, ld, g, q, lo, pos+1)
		}
		if l.policy.Exceptions > 0 {
			l.addExceptions(dst, ld, g, q, max(from, l.policy.Sink), pos+1)
		}
	}
	l.exact(from, pos, func(sinks bool, lo, hi int) {
		rows := &l.latestK
		if sinks {
			rows = &l.sinkK
		}
		for h := range l.y.KVHeads {
			l.weights.PackRows(hi-lo, d, rows.widen(&l.buf, lo, hi, d, h), d, 1)
			gemm.MulRange(dst[h*group*ld+lo:], ld, q[h*group*d:], d, group, &l.weights, 0, hi-lo, 0, d, false, 1)
		}
	})
}

// addBelow adds what the signs of the group below contribute to the scores of tokens [from, to).
func (l *codedLayer) addBelow(dst []float32, ld int, g *codedGroup, q []float32, from, to int) {
	group := l.y.Group()
	added := linalg.Grow(&l.added, l.y.Heads*ld)
	l.worker.Scores(added, ld, g.below, q, group, from, to)
	for _, p := range g.Parts {
		for h := p.Head * group; h < (p.Head+1)*group && !p.Value; h++ {
			row := dst[h*ld : h*ld+to]
			for j := from; j < to; j++ {
				row[j] += added[h*ld+j]
			}
		}
	}
}

// addExceptions adds what the exceptions of a group of one head's keys contribute to the
// scores of tokens [from, to).
func (l *codedLayer) addExceptions(dst []float32, ld int, g *codedGroup, q []float32, from, to int) {
	if from >= to {
		return
	}
	d, group, head, per := l.y.HeadDim, l.y.Group(), g.Parts[0].Head, l.policy.Exceptions
	block := l.policy.Anchor
	if block == 0 {
		block = max(to, 1)
	}
	for at := from / block * block; at < to; at += block {
		lo, hi := max(from, at), min(to, at+block)
		for h := head * group; h < (head+1)*group; h++ {
			turned := append(l.buf[:0], q[h*d:(h+1)*d]...)
			l.buf = turned
			if l.policy.Anchor > 0 {
				l.table.ApplyInverse(turned, at, l.pairs)
			}
			onebit.AddExceptions(dst[h*ld+lo:], turned, g.index[lo*per:], g.values[lo*per:], per, hi-lo)
		}
	}
}

func (l *codedLayer) sums(out, p []float32, ld, from, pos int) {
	clear(out)
	group, d := l.y.Group(), l.y.HeadDim
	if !l.values {
		l.floatV.sums(out, p, ld, group, from, pos)
		return
	}
	// The coded tokens first, with weights of 0 for those that are kept.
	n := pos + 1
	rest := linalg.Grow(&l.rest, l.y.Heads*n)
	for h := range l.y.Heads {
		copy(rest[h*n:(h+1)*n], p[h*ld:])
	}
	l.exact(from, pos, func(_ bool, lo, hi int) {
		for h := range l.y.Heads {
			clear(rest[h*n+lo : h*n+hi])
		}
	})
	for i := range l.groups {
		for _, c := range []*coded.Cache{l.groups[i].cache, l.groups[i].below} {
			if c != nil {
				l.worker.Sums(out, c, rest, n, group, from/coded.Step*coded.Step, n)
			}
		}
	}
	l.exact(from, pos, func(sinks bool, lo, hi int) {
		rows := &l.latestV
		if sinks {
			rows = &l.sinkV
		}
		for h := range l.y.KVHeads {
			l.weights.PackT(d, hi-lo, rows.widen(&l.buf, lo, hi, d, h), d, 1)
			gemm.MulRange(out[h*group*d:], d, p[h*group*ld+lo:], ld, group, &l.weights, 0, d, 0, hi-lo, true, 1)
		}
	})
}

func (l *codedLayer) bytes() Bytes {
	b := Bytes{Float: l.floatK.bytes() + l.floatV.bytes()}
	for i := range l.groups {
		g := &l.groups[i]
		b.Coded += g.cache.Bytes() + len(g.index) + 2*len(g.values)
		b.CodedF16 += 2 * l.n * g.D()
	}
	for _, h := range []*half{&l.sinkK, &l.sinkV, &l.latestK, &l.latestV} {
		b.Coded += 2 * len(h.rows)
	}
	return b
}
