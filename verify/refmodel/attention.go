package refmodel

import (
	"phaseconv/format/family"
	"phaseconv/kernels/fmath"
	"phaseconv/kernels/gemm"
	"phaseconv/kernels/rope"
)

// queryBlock is how many query rows are scored at a time: the score matrix of a
// task is queryBlock x T, small enough for the cache at usual contexts.
const queryBlock = 64

// layerAttention holds the small tensors of one layer.
type layerAttention struct {
	gain, postGain             []float32
	qBias, kBias, vBias, oBias []float32
	qNorm, kNorm               []float32
}

func (m *Model) loadAttention(l int) (a layerAttention, err error) {
	f := m.Config.Family
	for _, x := range []struct {
		dst            *[]float32
		name           string
		have, optional bool
	}{
		{&a.gain, "attn_norm.weight", true, false},
		{&a.postGain, "post_attention_norm.weight", f.PostNorms, false},
		{&a.qBias, "attn_q.bias", f.AttnBias.Q, true},
		{&a.kBias, "attn_k.bias", f.AttnBias.K, true},
		{&a.vBias, "attn_v.bias", f.AttnBias.V, true},
		{&a.oBias, "attn_output.bias", f.AttnBias.O, true},
		{&a.qNorm, "attn_q_norm.weight", f.QKNorm != family.NoQKNorm, false},
		{&a.kNorm, "attn_k_norm.weight", f.QKNorm != family.NoQKNorm, false},
	} {
		if !x.have {
			continue
		}
		if *x.dst, err = m.vector(family.Name(l, x.name), x.optional); err != nil {
			return a, err
		}
	}
	for i, n := range []string{"attn_q.weight", "attn_k.weight", "attn_v.weight", "attn_output.weight"} {
		if err = m.packAll(&m.mats[i], family.Name(l, n)); err != nil {
			return a, err
		}
	}
	return a, nil
}

// attention adds layer l's attention to the hidden states of every lane.
func (m *Model) attention(l int, b *batch, lanes []*Lane, tap Tap) error {
	w, err := m.loadAttention(l)
	if err != nil {
		return err
	}
	c := m.Config
	n, d := b.rows(), c.HeadDim
	table := m.ropeTable(l, b.T)
	for i, lane := range lanes {
		x := grow(&b.norm, n*c.Hidden)
		rmsNorm(x, lane.Hidden, w.gain, c.NormEps, m.Threads)
		q, k, v := grow(&b.q, n*c.Heads*d), grow(&b.k, n*c.KVHeads*d), grow(&b.v, n*c.KVHeads*d)
		m.linear(q, x, n, &m.mats[0], w.qBias)
		m.linear(k, x, n, &m.mats[1], w.kBias)
		m.linear(v, x, n, &m.mats[2], w.vBias)
		if w.qNorm != nil {
			// With one gain per head dimension rmsNorm walks head by head, with a
			// gain for the whole projection token by token.
			rmsNorm(q, q, w.qNorm, c.NormEps, m.Threads)
			rmsNorm(k, k, w.kNorm, c.NormEps, m.Threads)
		}
		a := &Attention{Layer: l, T: b.T, Windows: b.windows, Q: q, K: k, V: v, Rope: table}
		if tap != nil && i == 0 {
			a.QPre = append(b.qPre[:0], q...)
			a.KPre = append(b.kPre[:0], k...)
			b.qPre, b.kPre = a.QPre, a.KPre
		}
		turnHeads(q, n, c.Heads, d, b.T, table, c.Pairs, m.Threads)
		turnHeads(k, n, c.KVHeads, d, b.T, table, c.Pairs, m.Threads)
		if tap != nil && i == 0 {
			if err := tap.Attention(a); err != nil {
				return err
			}
		}
		o := grow(&b.o, n*c.Heads*d)
		if err := m.attend(o, a, lane.Cache); err != nil {
			return err
		}
		y := grow(&b.proj, n*c.Hidden)
		m.linear(y, o, n, &m.mats[3], w.oBias)
		if w.postGain != nil {
			rmsNorm(y, y, w.postGain, c.NormEps, m.Threads)
		}
		addTo(lane.Hidden, y)
	}
	return nil
}

func (m *Model) linear(dst, x []float32, rows int, w *gemm.Weights, bias []float32) {
	gemm.Mul(dst, w.N(), x, w.K(), rows, w, m.Threads)
	addBias(dst, bias)
}

// turnHeads applies RoPE to all heads of all rows; row r is position r mod T.
func turnHeads(x []float32, rows, heads, d, T int, t *rope.Table, pairs rope.Layout, threads int) {
	rowsParallel(threads, rows, func(r0, r1 int) {
		for r := r0; r < r1; r++ {
			for h := range heads {
				t.Apply(x[(r*heads+h)*d:][:d], r%T, pairs)
			}
		}
	})
}

// attend computes softmax attention of every window and head into o.
func (m *Model) attend(o []float32, a *Attention, cache Cache) error {
	c := m.Config
	return parallel(m.Threads, a.Windows*c.KVHeads, func(i int) error {
		return m.attendHead(o, a, cache, i/c.KVHeads, i%c.KVHeads)
	})
}

// attendHead handles one window and KV head with all its query heads.
func (m *Model) attendHead(o []float32, a *Attention, cache Cache, window, head int) error {
	c, T := m.Config, a.T
	d, kvWidth, qWidth := c.HeadDim, c.KVHeads*c.HeadDim, c.Heads*c.HeadDim
	base := window * T
	keys, ldk := a.K[base*kvWidth+head*d:], kvWidth
	vals, ldv := a.V[base*kvWidth+head*d:], kvWidth
	var scorer Scorer
	if cache != nil {
		keys, vals = gather(keys, ldk, T, d), gather(vals, ldv, T, d)
		ldk, ldv = d, d
		var err error
		if scorer, err = cache.Keys(a.Layer, head, keys); err != nil {
			return err
		}
		if err = cache.Values(a.Layer, head, vals); err != nil {
			return err
		}
	}
	var kw, vw gemm.Weights
	if scorer == nil {
		kw.PackRows(T, d, keys, ldk, 1)
	}
	vw.PackT(d, T, vals, ldv, 1)
	window0 := 0
	if c.IsSliding(a.Layer) {
		window0 = c.SlidingWindow
	}
	s := make([]float32, queryBlock*T)
	for h := head * c.Group(); h < (head+1)*c.Group(); h++ {
		q := a.Q[base*qWidth+h*d:]
		for i0 := 0; i0 < T; i0 += queryBlock {
			i1 := min(T, i0+queryBlock)
			j0 := 0
			if window0 > 0 {
				j0 = max(0, i0-window0+1)
			}
			if scorer != nil {
				scorer.Score(s, T, q[i0*qWidth:], qWidth, i1-i0, i0, j0, i1)
			} else {
				gemm.MulRange(s, T, q[i0*qWidth:], qWidth, i1-i0, &kw, j0, i1, 0, d, false, 1)
			}
			for i := i0; i < i1; i++ {
				row := s[(i-i0)*T : (i-i0+1)*T]
				lo := j0
				if window0 > 0 {
					lo = max(0, i-window0+1)
				}
				clear(row[j0:lo])
				fmath.Softmax(row[lo:i+1], float32(c.AttnScale))
				clear(row[i+1 : i1])
			}
			gemm.MulRange(o[(base+i0)*qWidth+h*d:], qWidth, s, T, i1-i0, &vw, 0, d, j0, i1, false, 1)
		}
	}
	return nil
}

// Probabilities calls visit for every query of one window and query head with
// its attention probabilities p over keys [lo, i]; p is valid during the call.
func (a *Attention) Probabilities(c *family.Config, window, head int, visit func(i, lo int, p []float32)) {
	T, d := a.T, c.HeadDim
	kvWidth, qWidth := c.KVHeads*d, c.Heads*d
	base := window * T
	var kw gemm.Weights
	kw.PackRows(T, d, a.K[base*kvWidth+head/c.Group()*d:], kvWidth, 1)
	span := 0
	if c.IsSliding(a.Layer) {
		span = c.SlidingWindow
	}
	s := make([]float32, queryBlock*T)
	for i0 := 0; i0 < T; i0 += queryBlock {
		i1 := min(T, i0+queryBlock)
		gemm.MulRange(s, T, a.Q[(base+i0)*qWidth+head*d:], qWidth, i1-i0, &kw, 0, i1, 0, d, false, 1)
		for i := i0; i < i1; i++ {
			lo := 0
			if span > 0 {
				lo = max(0, i-span+1)
			}
			p := s[(i-i0)*T+lo : (i-i0)*T+i+1]
			fmath.Softmax(p, float32(c.AttnScale))
			visit(i, lo, p)
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
