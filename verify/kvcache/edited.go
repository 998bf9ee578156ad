package kvcache

import (
	"fmt"

	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/kernels/gemm"
	"github.com/phaseconv/phaseconv/kernels/rope"
	"github.com/phaseconv/phaseconv/rotations/transform"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// EditedKeys stands for the cache of a model whose weights have been edited, on
// top of the unedited model: candidates run as variants of one forward pass. Inner
// is the cache format.
type EditedKeys struct {
	Inner refmodel.Cache

	cfg   *family.Config
	edits transform.ModelEdits
	ropes map[int]RopeTables // by RopeKind
}

// RopeTables are tables of one kind of layer: as the model turns, with YaRN's
// magnitude, and purely; Pure is nil where nothing turns behind an edit (transform.LateGains).
type RopeTables struct {
	Turn, Pure *rope.Table
	Moved      *gemm.Weights // of KeyStats with the model's weights
}

// NewRopeTables returns the tables of layers like y, of whose parameters turn was made.
func NewRopeTables(y *family.Layer, turn *rope.Table) RopeTables {
	switch {
	case transform.LateGains(y):
		return RopeTables{Turn: turn}
	case y.Rope.Magnitude() == 1:
		return RopeTables{Turn: turn, Pure: turn}
	}
	return RopeTables{Turn: turn, Pure: rope.NewTable(y.Rope.Pure(), turn.Positions())}
}

// NewEditedKeys returns the cache for contexts of up to n tokens.
func NewEditedKeys(cfg *family.Config, edits transform.ModelEdits, inner refmodel.Cache, n int) (*EditedKeys, error) {
	if err := cfg.Require("an edited cache", family.OwnHeads|family.SharedKV); err != nil {
		return nil, err
	}
	if len(edits) != len(cfg.Layers) {
		return nil, fmt.Errorf("key edits for %d of %d layers", len(edits), len(cfg.Layers))
	}
	e := &EditedKeys{Inner: inner, cfg: cfg, edits: edits, ropes: map[int]RopeTables{}}
	for l, heads := range edits {
		y := &cfg.Layers[l]
		if n := cfg.OwnKVHeads(l); len(heads) != n {
			return nil, fmt.Errorf("layer %d: key edits for %d of %d KV heads", l, len(heads), n)
		}
		if i := cfg.RopeKind(l); i == l {
			e.ropes[i] = NewRopeTables(y, rope.NewTable(y.Rope, n))
		}
	}
	return e, nil
}

// Keys implements refmodel.Cache.
func (e *EditedKeys) Keys(layer, head int, k []float32) (refmodel.Scorer, error) {
	edit := e.edits[layer][head]
	d := e.cfg.Layers[layer].HeadDim
	t := e.ropes[e.cfg.RopeKind(layer)]
	if len(k)/d > t.Turn.Positions() {
		return nil, fmt.Errorf("layer %d: %d keys, the edited cache was made for %d", layer, len(k)/d, t.Turn.Positions())
	}
	EditKeys(k, d, edit, func(i int) int { return i }, t, e.cfg.PairsIn(layer))
	if edit.Pairs != nil {
		for i := 0; i < len(k); i += d {
			edit.Pairs.ApplyKey(k[i:i+d], e.cfg.PairsIn(layer))
		}
	}
	changed := edit.Pairs != nil || edit.Transform != nil
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
	out := &editedQueries{Scorer: s, edit: edit, rope: t.Pure, pairs: e.cfg.PairsIn(layer), d: d}
	if edit.Transform != nil {
		out.mix = edit.Transform.QueryWeights(d)
	}
	return out, nil
}

// Values implements refmodel.Cache. Mixed values are turned back here instead of in W_O.
func (e *EditedKeys) Values(layer, head int, v []float32) error {
	if e.Inner == nil {
		return nil
	}
	m, d := e.edits[layer][head].Values, e.cfg.Layers[layer].HeadDim
	if m == nil {
		return e.Inner.Values(layer, head, v)
	}
	x := make([]float32, len(v))
	gemm.Mul(x, d, v, d, len(v)/d, m.KeyWeights(d), 1)
	if err := e.Inner.Values(layer, head, x); err != nil {
		return err
	}
	gemm.Mul(v, d, x, d, len(v)/d, m.UndoWeights(d), 1)
	return nil
}

// EditKeys does to keys after RoPE, [n, d], what a removal and a mix of weights do
// before it, or a mix behind it.
func EditKeys(k []float32, d int, e transform.KeyEdit, pos func(i int) int, t RopeTables, pairs rope.Layout) {
	if e.Shift != nil {
		x := make([]float32, d)
		for i := 0; i < len(k); i += d {
			for j, v := range e.Shift.Delta {
				x[j] = float32(v)
			}
			t.Turn.Apply(x, pos(i/d), pairs)
			for j, v := range x {
				k[i+j] -= v
			}
		}
	}
	if e.Transform != nil {
		mixRows(k, d, e.Transform.KeyWeights(d), pos, t.Pure, pairs)
	}
}

// mixRows mixes keys or queries after RoPE, [n, d], as weights would before it, or behind it if t is nil.
func mixRows(x []float32, d int, w *gemm.Weights, pos func(i int) int, t *rope.Table, pairs rope.Layout) {
	for i := 0; i < len(x) && t != nil; i += d {
		t.ApplyInverse(x[i:i+d], pos(i/d), pairs)
	}
	out := make([]float32, len(x))
	gemm.Mul(out, d, x, d, len(x)/d, w, 1)
	copy(x, out)
	for i := 0; i < len(x) && t != nil; i += d {
		t.Apply(x[i:i+d], pos(i/d), pairs)
	}
}

// plainKeys scores keys as they are.
type plainKeys struct {
	d    int
	keys gemm.Weights
}

func (s *plainKeys) Score(t refmodel.Tile) {
	t.Product(&s.keys, s.d)
}

// Fork implements refmodel.Scorer. There are no buffers.
func (s *plainKeys) Fork() refmodel.Scorer { return s }

// editedQueries scores queries that edited weights would have made.
type editedQueries struct {
	refmodel.Scorer
	edit  transform.KeyEdit
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

func (s *editedQueries) Score(t refmodel.Tile) {
	x := make([]float32, t.Rows*s.d)
	for r := range t.Rows {
		copy(x[r*s.d:(r+1)*s.d], t.Q[r*t.LDQ:])
	}
	if s.mix != nil {
		mixRows(x, s.d, s.mix, func(i int) int { return t.Pos + i }, s.rope, s.pairs)
	}
	if s.edit.Pairs != nil {
		for r := 0; r < len(x); r += s.d {
			s.edit.Pairs.ApplyQuery(x[r:r+s.d], s.pairs)
		}
	}
	t.Q, t.LDQ = x, s.d
	s.Scorer.Score(t)
}
