package refmodel

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/kernels/fmath"
	"github.com/phaseconv/phaseconv/kernels/gemm"
	"github.com/phaseconv/phaseconv/kernels/linalg"
	"github.com/phaseconv/phaseconv/kernels/parallel"
	"github.com/phaseconv/phaseconv/kernels/rope"
)

// A task scores a block of query rows at a time: queryRows(T) x T scores, which the
// softmax and the product with the values walk over again, so they should stay in
// the second-level cache, and which must not grow with T squared.
const (
	maxQueryRows = 64
	minQueryRows = 8 // fewer would leave the matrix product short of work
	scoreFloats  = 1 << 18
)

func queryRows(T int) int {
	return min(maxQueryRows, max(minQueryRows, scoreFloats/T/minQueryRows*minQueryRows))
}

// scoreStride is the distance of rows of scores, an odd number of cache lines:
// multiples of large powers of two would put all rows into the same sets.
// One score more than keys has room, for a sink.
func scoreStride(T int) int { return ((T+16)/16 | 1) * 16 }

// layerAttention holds the small tensors of one layer.
type layerAttention struct {
	gain, postGain             []float32
	qBias, kBias, vBias, oBias []float32
	qNorm, kNorm               []float32
	sinks                      []float32
}

func (m *Model) loadAttention(ctx context.Context, l int) (a layerAttention, err error) {
	y := &m.Config.Layers[l]
	for _, x := range []struct {
		dst            *[]float32
		name           string
		have, optional bool
	}{
		{&a.gain, "attn_norm.weight", !y.BareInputs, false},
		{&a.postGain, "post_attention_norm.weight", y.PostNorms, false},
		// Weights say which biases there are: an edit may add the first.
		{&a.qBias, "attn_q.bias", true, true},
		{&a.kBias, "attn_k.bias", true, true},
		{&a.vBias, "attn_v.bias", true, true},
		{&a.oBias, "attn_output.bias", true, true},
		{&a.qNorm, "attn_q_norm.weight", y.QKNorm != family.NoQKNorm, false},
		{&a.kNorm, "attn_k_norm.weight", y.QKNorm != family.NoQKNorm && y.Owner == l, false},
		{&a.sinks, "attn_sinks.weight", y.Sinks, false},
	} {
		if !x.have {
			continue
		}
		if *x.dst, err = m.vector(family.Name(l, x.name), x.optional); err != nil {
			return a, err
		}
	}
	for i, n := range []string{"attn_q.weight", "attn_k.weight", "attn_v.weight", "attn_output.weight"} {
		if (i == 1 || i == 2) && y.Owner != l || i == 2 && y.ValuesAreKeys {
			continue
		}
		if err = m.packAll(ctx, &m.mats[i], family.Name(l, n)); err != nil {
			return a, err
		}
	}
	return a, nil
}

// attention adds layer l's attention to the hidden states of every variant.
func (m *Model) attention(ctx context.Context, l int, b *batch, variants []*Variant, hooks Hooks) error {
	w, err := m.loadAttention(ctx, l)
	if err != nil {
		return err
	}
	c, y := m.Config, &m.Config.Layers[l]
	n, d := b.rows(), y.HeadDim
	T := b.T
	if b.context != nil {
		T = b.context.T
	}
	table := m.ropeTable(l, b.span)
	for i, variant := range variants {
		a := &Attention{Layer: l, T: T, Windows: b.windows, Rope: table, Sinks: w.sinks}
		a.X = variant.Hidden
		if w.gain != nil {
			a.X = linalg.Grow(&b.norm, n*c.Hidden)
			m.norm(a.X, variant.Hidden, w.gain)
		}
		if y.Parallel {
			variant.beside = append(variant.beside[:0], a.X...)
		}
		if err := m.project(ctx, a, b, &w, variant, hooks.Attention != nil && i == 0); err != nil {
			return err
		}
		if hooks.Attention != nil && i == 0 {
			if err := hooks.Attention(a); err != nil {
				return err
			}
		}
		o := linalg.Grow(&b.o, n*y.Heads*d)
		done := false
		if variant.Attend != nil {
			if done, err = variant.Attend(ctx, a, o); err != nil {
				return err
			}
		}
		if !done {
			if err := m.attend(ctx, o, a, variant.Cache, b.positions); err != nil {
				return err
			}
		}
		out := linalg.Grow(&b.proj, n*c.Hidden)
		if err := m.linear(ctx, out, o, n, &m.mats[3], w.oBias); err != nil {
			return err
		}
		if w.postGain != nil {
			m.norm(out, out, w.postGain)
		}
		addScaled(variant.Hidden, out, y.ResidualScale, m.Threads)
	}
	return nil
}

// project fills in the queries of layer a.Layer, and its keys and values: its own, or those of
// the layer that owns them. With before, it keeps those before RoPE.
func (m *Model) project(ctx context.Context, a *Attention, b *batch, w *layerAttention, variant *Variant,
	before bool) error {
	c, l := m.Config, a.Layer
	y := &c.Layers[l]
	n, d := b.rows(), y.HeadDim
	own := y.Owner == l
	a.Q = linalg.Grow(&b.q, n*y.Heads*d)
	if err := m.linear(ctx, a.Q, a.X, n, &m.mats[0], w.qBias); err != nil {
		return err
	}
	if own {
		a.K, a.V = linalg.Grow(&b.k, n*y.KVHeads*d), linalg.Grow(&b.v, n*y.KVHeads*d)
		if err := m.linear(ctx, a.K, a.X, n, &m.mats[1], w.kBias); err != nil {
			return err
		}
		if y.ValuesAreKeys {
			copy(a.V, a.K)
		} else if err := m.linear(ctx, a.V, a.X, n, &m.mats[2], w.vBias); err != nil {
			return err
		}
		if y.ValueNorm {
			if a.norms != nil {
				a.norms.v = slices.Clone(a.V)
			}
			rmsNorm(a.V, a.V, unitGains(d), c.NormEps, m.Threads)
		}
	}
	normed := func() {
		// With one gain per head dimension rmsNorm walks head by head, with a
		// gain for the whole projection token by token.
		if a.norms != nil && w.qNorm != nil {
			a.norms.q, a.norms.k = slices.Clone(a.Q), slices.Clone(a.K)
		}
		if w.qNorm != nil {
			rmsNorm(a.Q, a.Q, w.qNorm, c.NormEps, m.Threads)
		}
		if w.kNorm != nil && own {
			rmsNorm(a.K, a.K, w.kNorm, c.NormEps, m.Threads)
		}
	}
	if !y.NormAfterRoPE {
		normed()
	}
	if before {
		a.QPre = append(b.qPre[:0], a.Q...)
		b.qPre = a.QPre
		if own {
			a.KPre = append(b.kPre[:0], a.K...)
			b.kPre = a.KPre
		}
	}
	turnHeads(a.Q, n, y.Heads, d, b, a.Rope, c.Pairs, m.Threads)
	if own {
		turnHeads(a.K, n, y.KVHeads, d, b, a.Rope, c.Pairs, m.Threads)
	}
	if y.NormAfterRoPE {
		normed()
	}
	if y.Temperature.Beta != 0 {
		for r := range n {
			f := float32(y.Temperature.At(b.position(r)))
			for i := range a.Q[r*y.Heads*d : (r+1)*y.Heads*d] {
				a.Q[r*y.Heads*d+i] *= f
			}
		}
	}
	if own && b.context != nil {
		a.K, a.V = b.context.patch(l, a.K, a.V, b.positions)
	}
	if own {
		if c.Shared(l) {
			variant.share(l, a, before)
		}
		return nil
	}
	kv, ok := variant.Shared[y.Owner]
	if !ok {
		return fmt.Errorf("layer %d reads keys and values of layer %d, before which the run began", l, y.Owner)
	}
	a.K, a.V, a.KPre = kv.k, kv.v, kv.pre
	return nil
}

// Shared holds the keys and values of layers that others read too.
type Shared map[int]sharedKV

type sharedKV struct{ k, v, pre []float32 }

// share keeps the keys and values of layer l.
func (x *Variant) share(l int, a *Attention, before bool) {
	if x.Shared == nil {
		x.Shared = Shared{}
	}
	kv := sharedKV{k: slices.Clone(a.K), v: slices.Clone(a.V)}
	if before {
		kv.pre = slices.Clone(a.KPre)
	}
	x.Shared[l] = kv
}

func (m *Model) linear(ctx context.Context, dst, x []float32, rows int, w *matrix, bias []float32) error {
	if err := m.mul(ctx, dst, x, rows, w); err != nil {
		return err
	}
	addBias(dst, bias)
	return nil
}

// turnHeads applies RoPE to all heads of all rows of a batch.
func turnHeads(x []float32, rows, heads, d int, b *batch, t *rope.Table, pairs rope.Layout, threads int) {
	if t == nil {
		return
	}
	parallel.Rows(threads, rows, func(r0, r1 int) {
		for r := r0; r < r1; r++ {
			for h := range heads {
				t.Apply(x[(r*heads+h)*d:][:d], b.position(r), pairs)
			}
		}
	})
}

// attend computes softmax attention of every window and head into o. positions are those of the
// queries in each window; nil: all.
func (m *Model) attend(ctx context.Context, o []float32, a *Attention, cache Cache, positions []int) error {
	y := &m.Config.Layers[a.Layer]
	units := a.Windows * y.KVHeads
	caches, err := m.windowCaches(ctx, a, cache)
	if err != nil {
		return err
	}
	if units >= 4*m.Threads && positions == nil {
		return parallel.For(ctx, m.Threads, units, func(i int) error {
			h, err := m.prepareHead(a, caches[i/y.KVHeads], i)
			if err == nil {
				h.queries(o, 0, y.Group()*a.T)
			}
			return err
		})
	}
	// Few heads (a long context, a model with one KV head): they are cut along their
	// queries.
	heads := make([]*attentionHead, units)
	err = parallel.For(ctx, m.Threads, units, func(i int) (err error) {
		heads[i], err = m.prepareHead(a, caches[i/y.KVHeads], i)
		return err
	})
	if err != nil {
		return err
	}
	var tasks []func()
	for _, h := range heads {
		if positions != nil {
			for g := range y.Group() {
				tasks = append(tasks, func() { h.fork().probe(o, positions, g) })
			}
			continue
		}
		for head := 0; head < y.Group()*a.T; head += a.T {
			for i := 0; i < a.T; i += queryRows(a.T) {
				tasks = append(tasks, func() { h.fork().queries(o, head+i, head+min(a.T, i+queryRows(a.T))) })
			}
		}
	}
	return parallel.For(ctx, m.Threads, len(tasks), func(i int) error { tasks[i](); return nil })
}

// windowCaches returns the cache of each window: all the same one, or what a LayerCache makes of
// the window's keys and values.
func (m *Model) windowCaches(ctx context.Context, a *Attention, cache Cache) ([]Cache, error) {
	caches := make([]Cache, a.Windows)
	layer, ok := cache.(LayerCache)
	if !ok {
		for w := range caches {
			caches[w] = cache
		}
		return caches, nil
	}
	y := &m.Config.Layers[a.Layer]
	keys, values := a.T*y.KVHeads*y.HeadDim, a.T*y.KVHeads*y.ValueDim
	err := parallel.For(ctx, m.Threads, a.Windows, func(w int) (err error) {
		caches[w], err = layer.Window(ctx, y.Owner, w, a.K[w*keys:(w+1)*keys], a.V[w*values:(w+1)*values])
		return err
	})
	return caches, err
}

// An attentionHead is the keys and values of one window and KV head.
type attentionHead struct {
	y            *family.Layer
	a            *Attention
	window, head int
	scorer       Scorer // nil: keys are used as they are
	summer       Summer // nil: so are values
	values       []float32
	kw, vw       gemm.Weights
}

// prepareHead sends the keys and values of unit number i, a window and KV head,
// through the cache and packs them.
func (m *Model) prepareHead(a *Attention, cache Cache, i int) (*attentionHead, error) {
	y, T := &m.Config.Layers[a.Layer], a.T
	h := &attentionHead{y: y, a: a, window: i / y.KVHeads, head: i % y.KVHeads}
	d, width := y.HeadDim, y.KVHeads*y.HeadDim
	keys, ldk := a.K[h.window*T*width+h.head*d:], width
	vals, ldv := a.V[h.window*T*width+h.head*d:], width
	if cache != nil {
		keys, vals = gather(keys, ldk, T, d), gather(vals, ldv, T, d)
		ldk, ldv = d, d
		var err error
		if h.scorer, err = cache.Keys(y.Owner, h.head, keys); err != nil {
			return nil, err
		}
		if err = cache.Values(y.Owner, h.head, vals); err != nil {
			return nil, err
		}
		if h.summer, _ = h.scorer.(Summer); h.summer != nil {
			h.values = vals
			return h, nil
		}
	}
	if h.scorer == nil {
		h.kw.PackRows(T, d, keys, ldk, 1)
	}
	h.vw.PackT(d, T, vals, ldv, 1)
	return h, nil
}

// fork returns the head with a scorer of its own.
func (h *attentionHead) fork() *attentionHead {
	if h.scorer == nil {
		return h
	}
	f := *h
	f.scorer = h.scorer.Fork()
	f.summer, _ = f.scorer.(Summer)
	return &f
}

// scores holds buffers of queryRows x scoreStride scores.
var scores = sync.Pool{New: func() any { return new([]float32) }}

// queries computes rows [r0, r1) of the group's queries: row r is position r mod T
// of its query head number r div T.
func (h *attentionHead) queries(o []float32, r0, r1 int) {
	y, T := h.y, h.a.T
	d, width := y.HeadDim, y.Heads*y.HeadDim
	buffer := scores.Get().(*[]float32)
	defer scores.Put(buffer)
	ld, rows := scoreStride(T), queryRows(T)
	s := linalg.Grow(buffer, rows*ld)
	for r0 < r1 {
		i0 := r0 % T
		i1 := min(T, i0+rows, i0+r1-r0)
		at := (h.window*T+i0)*width + (h.head*y.Group()+r0/T)*d
		h.block(o[at:], h.a.Q[at:], s, ld, i0, i1, h.head*y.Group()+r0/T)
		r0 += i1 - i0
	}
}

// Softmax turns the scores of keys [from, to) of a query head into probabilities. A sink takes
// part as one key more, whose place in the row the caller does not use.
func Softmax(row []float32, from, to int, y *family.Layer, sinks []float32, head int) {
	scale := float32(y.Scale)
	if c := y.SoftCap; c > 0 {
		for j, s := range row[from:to] {
			row[from+j] = float32(c * fmath.Tanh(float64(s)*y.Scale/c))
		}
		scale = 1
	}
	if sinks == nil {
		fmath.Softmax(row[from:to], scale)
		return
	}
	row[to] = sinks[head] / scale
	fmath.Softmax(row[from:to+1], scale)
}

// block computes attention of a query head at positions [i0, i1), whose rows and outputs lie a
// token's queries apart, with scores in s.
func (h *attentionHead) block(o, q, s []float32, ld, i0, i1, head int) {
	y := h.y
	d, width := y.HeadDim, y.Heads*y.HeadDim
	j0 := FirstSeen(y, i0)
	tile := Tile{Dst: s, LD: ld, Q: q, LDQ: width, Rows: i1 - i0, Pos: i0, From: j0, To: i1}
	if h.scorer != nil {
		h.scorer.Score(tile)
	} else {
		tile.Product(&h.kw, d)
	}
	for i := i0; i < i1; i++ {
		row := s[(i-i0)*ld:]
		lo := FirstSeen(y, i)
		clear(row[j0:lo])
		Softmax(row, lo, i+1, y, h.a.Sinks, head)
		clear(row[i+1 : i1])
	}
	if h.summer != nil {
		h.summer.Sum(o, width, s, ld, h.values, i1-i0, i0, j0)
	} else {
		gemm.MulRange(o, width, s, ld, i1-i0, &h.vw, 0, d, j0, i1, false, 1)
	}
}

// Softmax turns the scores that one query of a head gives keys into probabilities, beside the
// head's sink if layer y has one.
func (a *Attention) Softmax(y *family.Layer, head int, scores []float32) {
	if a.Sinks == nil {
		Softmax(scores, 0, len(scores), y, nil, head)
		return
	}
	row := append(slices.Clone(scores), 0)
	Softmax(row, 0, len(scores), y, a.Sinks, head)
	copy(scores, row)
}

// Probabilities calls visit for every query of one window and query head, in
// order, with its attention probabilities p over keys [lo, i]; p is valid during
// the call. They are what the forward pass multiplies the values with.
func (a *Attention) Probabilities(c *family.Config, window, head int, visit func(i, lo int, p []float32)) {
	y := &c.Layers[a.Layer]
	T, d := a.T, y.HeadDim
	kvWidth, qWidth := y.KVHeads*d, y.Heads*d
	base := window * T
	var kw gemm.Weights
	kw.PackRows(T, d, a.K[base*kvWidth+head/y.Group()*d:], kvWidth, 1)
	buffer := scores.Get().(*[]float32)
	defer scores.Put(buffer)
	ld, rows := scoreStride(T), queryRows(T)
	s := linalg.Grow(buffer, rows*ld)
	for i0 := 0; i0 < T; i0 += rows {
		i1 := min(T, i0+rows)
		j0 := FirstSeen(y, i0)
		gemm.MulRange(s, ld, a.Q[(base+i0)*qWidth+head*d:], qWidth, i1-i0, &kw, j0, i1, 0, d, false, 1)
		for i := i0; i < i1; i++ {
			lo := FirstSeen(y, i)
			row := s[(i-i0)*ld:]
			Softmax(row, lo, i+1, y, a.Sinks, head)
			visit(i, lo, row[lo:i+1])
		}
	}
}

// gather copies one head's rows to contiguous memory.
func gather(x []float32, ld, rows, d int) []float32 {
	out := make([]float32, rows*d)
	for r := range rows {
		copy(out[r*d:(r+1)*d], x[r*ld:])
	}
	return out
}
