package kvcache

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/phaseconv/phaseconv/format/dtype"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/kernels/gemm"
	"github.com/phaseconv/phaseconv/kernels/linalg"
	"github.com/phaseconv/phaseconv/kernels/rope"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/verify/option"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// Groups is a cache that stores the keys, the values or both of a layer's heads in joint codes.
// The tokens that the policy keeps, first and recent ones, stay in F16, keys and values alike.
// What no group holds stays float32.
type Groups struct {
	Policy Policy
	// Scale is as in Codes.
	Scale func(layer, head int) []float32
	// Kernels scores keys and adds up values with the kernels of package coded, as a runtime does
	// for one query after the other, instead of as products with decoded ones. They round queries
	// and weights.
	Kernels bool

	// Observe, if set, is shown the vectors of a group's coded tokens, [tokens, D], and what they are
	// decoded to, of each window; layers and windows may come at once. It is not called with Kernels.
	Observe func(layer, window, group int, g *codec.Group, rows, decoded []float32)

	cfg    *family.Config
	groups [][]*codec.Group // by layer

	mu    sync.Mutex
	below map[[3]int]storedRows // by layer, window and group, for the layer above
}

// storedRows is what a group stores of the coded tokens of a window.
type storedRows struct {
	words []uint32
	alpha []float32
}

// NewGroups returns a cache for groups[layer].
func NewGroups(cfg *family.Config, groups [][]*codec.Group, p Policy) (*Groups, error) {
	if err := cfg.Require("a cache of codes", family.OwnHeads|family.SharedKV|family.ValueLength); err != nil {
		return nil, err
	}
	if len(groups) != len(cfg.Layers) {
		return nil, fmt.Errorf("groups for %d of %d layers", len(groups), len(cfg.Layers))
	}
	if p.Exceptions != 0 {
		return nil, option.Bad("Exceptions", p.Exceptions, "joint codes have none")
	}
	for l, of := range groups {
		y := &cfg.Layers[l]
		if err := p.Check(y.HeadDim); err != nil {
			return nil, err
		}
		if err := codec.CheckLayer(of, y.KVHeads); err != nil {
			return nil, fmt.Errorf("layer %d: %w", l, err)
		}
		if y.Owner != l && len(of) > 0 {
			return nil, fmt.Errorf("layer %d: groups, but it reads the keys and values of layer %d", l, y.Owner)
		}
		for _, g := range of {
			if g.KeyDim != y.HeadDim || g.ValueDim != y.ValueDim {
				return nil, fmt.Errorf("layer %d: groups for keys of %d and values of %d numbers, the model has %d and %d", l,
					g.KeyDim, g.ValueDim, y.HeadDim, y.ValueDim)
			}
		}
	}
	return &Groups{Policy: p, cfg: cfg, groups: groups, below: map[[3]int]storedRows{}}, nil
}

// Only returns the cache that codes one layer and keeps all others as they are.
func (c *Groups) Only(layer int) refmodel.Cache { return onlyGroups{c, layer} }

// First is the layer itself, or that below it where it is given its codes.
func (c *Groups) First(layer int) int {
	if slices.ContainsFunc(c.groups[layer], func(g *codec.Group) bool { return g.Below != nil }) {
		return layer - 1
	}
	return layer
}

// Pairs says whether a layer is given the codes of the one below it.
func (c *Groups) Pairs() bool {
	for layer := range c.groups {
		if c.First(layer) != layer {
			return true
		}
	}
	return false
}

type onlyGroups struct {
	*Groups
	layer int
}

// Window implements refmodel.LayerCache.
func (o onlyGroups) Window(ctx context.Context, layer, window int, k, v []float32) (refmodel.Cache, error) {
	var coded refmodel.Cache
	var err error
	if layer >= o.First(o.layer) && layer <= o.layer {
		coded, err = o.Groups.Window(ctx, layer, window, k, v)
	}
	if err != nil || layer == o.layer {
		return coded, err
	}
	return o.Groups, nil // whose Keys and Values change nothing
}

// Keys is part of refmodel.Cache; the forward pass calls that of the Cache from Window.
func (c *Groups) Keys(layer, head int, k []float32) (refmodel.Scorer, error) { return nil, nil }

// Values is part of refmodel.Cache; the forward pass calls that of the Cache from Window.
func (c *Groups) Values(layer, head int, v []float32) error { return nil }

// Window implements refmodel.LayerCache.
func (c *Groups) Window(ctx context.Context, layer, window int, k, v []float32) (refmodel.Cache, error) {
	return c.code(ctx, layer, window, 0, k, v)
}

// Code implements Coder: joint codes take keys and values together.
func (c *Groups) Code(ctx context.Context, layer, from int, k, v []float32) error {
	if c.Kernels {
		return errors.New("codes for kernels are not decoded, so nothing can replace the keys and values")
	}
	w, err := c.code(ctx, layer, from, from, k, v)
	if err != nil {
		return err
	}
	for h := range w.keys {
		if x := w.keys[h]; x != nil {
			paste(k, x, len(w.keys)*w.d, h, w.d)
		}
		if x := w.values[h]; x != nil {
			paste(v, x, len(w.values)*w.vd, h, w.vd)
		}
	}
	return nil
}

// code codes the keys and values of tokens at positions from, from+1, ... of one window.
func (c *Groups) code(ctx context.Context, layer, window, from int, k, v []float32) (*groupWindow, error) {
	y := &c.cfg.Layers[layer]
	d, width := y.HeadDim, y.KVHeads*y.HeadDim
	vd, vwidth := y.ValueDim, y.KVHeads*y.ValueDim
	T := len(k) / width
	w := &groupWindow{d: d, vd: vd, T: T, policy: c.Policy, keys: make([][]float32, y.KVHeads),
		values: make([][]float32, y.KVHeads)}
	sink := min(max(0, c.Policy.Sink-from), T)
	var table *rope.Table
	if c.Policy.Anchor > 0 {
		table = rope.NewTable(y.Rope.Pure(), from+T)
	}
	w.scale = make([][]float32, y.KVHeads)
	scale := w.scale
	if c.Kernels {
		w.storedKeys, w.storedValues = make([]storedPart, y.KVHeads), make([]storedPart, y.KVHeads)
	}
	for at, g := range c.groups[layer] {
		parts := c.parts(g, layer, from, k, v, scale, table)
		coded := func(p codec.Part) []float32 { return parts[g.Index(p)][sink*g.Dim(p):] }
		rows := make([]float32, (T-sink)*g.D())
		g.Concat(rows, coded)
		var whole []float32
		if c.Observe != nil {
			whole = slices.Clone(rows)
		}
		var predicted []float32
		var lower storedRows
		if g.Below != nil {
			var err error
			if lower, err = c.take(layer-1, window, at); err != nil {
				return nil, err
			}
			predicted = make([]float32, len(rows))
			g.Predict(predicted, lower.words, lower.alpha)
			for i, v := range predicted {
				rows[i] -= v
			}
		}
		words, alpha := make([]uint32, (T-sink)*g.Words()), make([]float32, T-sink)
		if err := g.EncodeRows(ctx, rows, words, alpha); err != nil {
			return nil, err
		}
		own := storedRows{words, alpha}
		c.keep(layer, window, at, own)
		if c.Kernels {
			if err := c.store(w, g, layer, sink, own, lower, table); err != nil {
				return nil, err
			}
			continue
		}
		g.DecodeRows(rows, words, alpha)
		for i, v := range predicted {
			rows[i] += v
		}
		if c.Observe != nil {
			c.Observe(layer, window, at, g, whole, rows)
		}
		g.Split(rows, coded)
		for i, p := range g.Parts {
			if p.Value {
				keep(parts[i], v, vwidth, p.Head, vd, sink)
				w.values[p.Head] = parts[i]
				continue
			}
			FromAnchor(parts[i], d, from, c.Policy.Anchor, table, c.cfg.PairsIn(layer))
			if x := scale[p.Head]; x != nil {
				for j := range parts[i] {
					parts[i][j] /= x[j%d]
				}
			}
			keep(parts[i], k, width, p.Head, d, sink)
			w.keys[p.Head] = parts[i]
		}
	}
	return w, nil
}

// parts returns what group g holds of the tokens, part by part, as it is coded: keys scaled and turned
// back to anchors. It fills in the scales of their heads.
func (c *Groups) parts(g *codec.Group, layer, from int, k, v []float32, scale [][]float32,
	table *rope.Table) [][]float32 {
	y := &c.cfg.Layers[layer]
	d := y.HeadDim
	out := make([][]float32, len(g.Parts))
	for i, p := range g.Parts {
		if p.Value {
			out[i] = head(v, y.KVHeads*y.ValueDim, p.Head, y.ValueDim)
			continue
		}
		out[i] = head(k, y.KVHeads*d, p.Head, d)
		if scale[p.Head] = c.scale(layer, p.Head); scale[p.Head] != nil {
			for j := range out[i] {
				out[i][j] *= scale[p.Head][j%d]
			}
		}
		ToAnchor(out[i], d, from, c.Policy.Anchor, table, c.cfg.PairsIn(layer))
	}
	return out
}

// store gives a window the codes of group g, for kernels that do not decode them.
func (c *Groups) store(w *groupWindow, g *codec.Group, layer, sink int, own, lower storedRows,
	table *rope.Table) error {
	for i, p := range g.Parts {
		x, err := stored(g, i, sink, own, lower, c.Policy.Anchor, table, c.cfg.PairsIn(layer))
		if err != nil {
			return err
		}
		if p.Value {
			w.storedValues[p.Head] = x
		} else {
			w.storedKeys[p.Head] = x
		}
	}
	return nil
}

// keep remembers what group at of a layer stores, if the layer above is given it.
func (c *Groups) keep(layer, window, at int, x storedRows) {
	if layer+1 == len(c.groups) || at >= len(c.groups[layer+1]) || c.groups[layer+1][at].Below == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.below[[3]int{layer, window, at}] = x
}

// take returns what keep remembers.
func (c *Groups) take(layer, window, at int) (storedRows, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	x, ok := c.below[[3]int{layer, window, at}]
	if !ok {
		return x, fmt.Errorf("layer %d: the codes of layer %d, which it is given, are not there", layer+1, layer)
	}
	delete(c.below, [3]int{layer, window, at})
	return x, nil
}

func (c *Groups) scale(layer, head int) []float32 {
	if c.Scale == nil {
		return nil
	}
	return c.Scale(layer, head)
}

// head copies one head's rows, [T, d], from those of all heads, [T, width].
func head(x []float32, width, h, d int) []float32 {
	out := make([]float32, 0, len(x)/width*d)
	for i := h * d; i < len(x); i += width {
		out = append(out, x[i:i+d]...)
	}
	return out
}

// paste is the inverse of head: it puts one head's rows into those of all.
func paste(x, part []float32, width, h, d int) {
	for i := range len(part) / d {
		copy(x[i*width+h*d:][:d], part[i*d:])
	}
}

// keep puts the first n rows of a head back, as F16 holds them.
func keep(dst, x []float32, width, h, d, n int) {
	for i := range n {
		row := dst[i*d : (i+1)*d]
		copy(row, x[i*width+h*d:])
		roundF16(row)
	}
}

// groupWindow is what a cache of groups gives back for one window: decoded keys and values by
// head, [T, d], nil for a head that no group holds.
type groupWindow struct {
	d, vd, T     int
	policy       Policy
	keys, values [][]float32
	// Of a cache that uses kernels, instead: what they read, nil for a head that no group holds.
	storedKeys, storedValues []storedPart
	scale                    [][]float32
}

// Keys implements refmodel.Cache.
func (w *groupWindow) Keys(layer, head int, k []float32) (refmodel.Scorer, error) {
	if w.storedKeys != nil {
		return w.kernel(head, k), nil
	}
	s := &groupHead{decoded: decoded{d: w.d}}
	hat := w.keys[head]
	if hat == nil {
		hat = k
	} else {
		roundF16(k)
		s.exact.pack(k, w.d, 0, w.policy.Recent)
	}
	s.coded.PackRows(w.T, w.d, hat, w.d, 1)
	if w.values[head] == nil || w.policy.Recent == 0 {
		return &s.decoded, nil
	}
	s.recent, s.vd = w.policy.Recent, w.vd
	s.values.PackT(w.vd, w.T, w.values[head], w.vd, 1)
	return s, nil
}

// kernel is Keys with kernels.
func (w *groupWindow) kernel(head int, k []float32) refmodel.Scorer {
	s := &kernelKeys{d: w.d, cache: w.storedKeys[head], scale: w.scale[head]}
	if s.cache.own == nil {
		s.plain.PackRows(w.T, w.d, k, w.d, 1)
	} else {
		roundF16(k)
		s.exact.pack(k, w.d, min(w.policy.Sink, w.T), w.policy.Recent)
	}
	if w.storedValues[head].own == nil {
		return s
	}
	return &kernelHead{kernelKeys: s, vd: w.vd, sink: min(w.policy.Sink, w.T), recent: w.policy.Recent,
		cache: w.storedValues[head]}
}

// Values implements refmodel.Cache. With a recent window, or with kernels, values stay exact, and
// the scorer adds up both.
func (w *groupWindow) Values(layer, head int, v []float32) error {
	switch {
	case w.storedValues != nil && w.storedValues[head].own != nil:
		roundF16(v)
	case w.values[head] == nil:
	case w.policy.Recent > 0:
		roundF16(v)
	default:
		copy(v, w.values[head])
	}
	return nil
}

func roundF16(x []float32) {
	for i, v := range x {
		x[i] = dtype.F16Round(v)
	}
}

// groupHead scores decoded keys and adds up decoded values, the latest of each query's own
// context as they are.
type groupHead struct {
	decoded
	recent, vd   int
	values       gemm.Weights // decoded
	latest       gemm.Weights // exact; packed by the first Sum
	packed       bool
	older, newer []float32 // probabilities
}

// Fork implements refmodel.Scorer.
func (s *groupHead) Fork() refmodel.Scorer {
	f := *s
	f.exact.scores, f.older, f.newer = nil, nil, nil
	f.packed, f.latest = false, gemm.Weights{}
	return &f
}

// Sum implements refmodel.Summer.
func (s *groupHead) Sum(dst []float32, ldd int, p []float32, ldp int, v []float32, n, pos, n0 int) {
	if !s.packed {
		s.latest.PackT(s.vd, len(v)/s.vd, v, s.vd, 1)
		s.packed = true
	}
	end := pos + n
	from := max(n0, pos-s.recent+1) // the first key that is recent for any row
	old, recent := linalg.Grow(&s.older, n*ldp), linalg.Grow(&s.newer, n*ldp)
	for r := range n {
		row, o, e := p[r*ldp:], old[r*ldp:], recent[r*ldp:]
		split := max(n0, pos+r-s.recent+1)
		copy(o[n0:split], row[n0:split])
		clear(o[split:end])
		clear(e[from:split])
		copy(e[split:end], row[split:end])
	}
	gemm.MulRange(dst, ldd, old, ldp, n, &s.values, 0, s.vd, n0, end, false, 1)
	gemm.MulRange(dst, ldd, recent, ldp, n, &s.latest, 0, s.vd, from, end, true, 1)
}
