package edits

import (
	"context"
	"fmt"
	"math"
	"math/bits"
	"math/rand/v2"
	"runtime"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/kernels/fmath"
	"github.com/phaseconv/phaseconv/kernels/gemm"
	"github.com/phaseconv/phaseconv/kernels/linalg"
	"github.com/phaseconv/phaseconv/kernels/parallel"
	"github.com/phaseconv/phaseconv/kernels/rope"
	"github.com/phaseconv/phaseconv/rotations/transform"
	"github.com/phaseconv/phaseconv/verify/kvcache"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// StatsOptions of NewKeyStats.
type StatsOptions struct {
	// Queries is how many queries of each window and query head are looked at; 0
	// takes 64. They lie in equal strata of the window.
	Queries int
	// Sink keys at the start of each window do not count in the moments of keys.
	// Attention to them still does.
	Sink int
	// Samples is how many keys of each window are kept for fits to single keys,
	// their share of attention with them; 0 keeps none.
	Samples int
	// Meetings is how many queries of each window, of all query heads of a KV head together, are kept
	// with the sampled keys for fits of transforms; 0 takes 576.
	Meetings int
	// Weights, if set, are the model's: in moments and drift, score errors then
	// count by what they do to the output of the attention block, behind W_O,
	// instead of by the divergence of the attention probabilities. Samples keep
	// the weights of attention: those of the output are spread so widely that a fit
	// to single keys follows a few of them.
	Weights checkpoint.Weights
	Seed    uint64
	Threads int
}

// KeyStats is a hook of refmodel that sums up what edits of keys are fitted to while
// activations pass. Run it over window after window of the context that the model will
// be used at: sums go on, and memory does not grow with the number of windows
// (but for Samples). Per thread it needs queries x context numbers.
type KeyStats struct {
	cfg   *family.Config
	o     StatsOptions
	heads [][]*keySums               // [layer][KV head], those of the owner where keys are shared
	roots [][][]float64              // [layer][query head], see outputRoots
	ropes map[int]kvcache.RopeTables // by RopeKind, for the longest window
}

// keySums are the sums of one KV head.
type keySums struct {
	key, key2   []float64 // [D], [D/2]: sum a_j k_j, sum a_j |k_jp|^2
	attention   float64   // sum a_j
	query       []float64 // [D/2]
	weight      float64   // sum w_i
	queries     float64   // number of queries
	drift       []float64 // [D, D]
	metric      []float64 // [D, D] sum w_i q_i q_i^T
	metricPre   []float64 // the same before RoPE
	samples     []float32 // [n, D] keys after RoPE
	sampleShare []float64 // [n]
	samplePos   []int
	values      []float32 // [n, D] at the same positions
	valueShare  []float64 // [n] sum of p^2
	out         []float64 // [D, D] W_O^T W_O over the query heads of the group
	meetings    []transform.QueryWindow
	distance    [2]distances // of the first keys of a window, and of the others
	windows     int
}

// minProbability: keys with less attention than this are left out of the drift.
const minProbability = 1e-7

// NewKeyStats starts empty statistics. It refuses what cannot be measured.
func NewKeyStats(cfg *family.Config, o StatsOptions) (*KeyStats, error) {
	if o.Queries < 0 || o.Sink < 0 || o.Samples < 0 || o.Meetings < 0 {
		return nil, fmt.Errorf("key statistics with %d queries, %d sinks, %d samples and %d meetings: none may be negative",
			o.Queries, o.Sink, o.Samples, o.Meetings)
	}
	if o.Queries == 0 {
		o.Queries = 64
	}
	if o.Meetings == 0 {
		o.Meetings = 576
	}
	if o.Threads <= 0 {
		o.Threads = runtime.GOMAXPROCS(0)
	}
	if err := cfg.Require("statistics of keys", family.OwnHeads|family.SharedKV); err != nil {
		return nil, err
	}
	s := &KeyStats{cfg: cfg, o: o, heads: make([][]*keySums, len(cfg.Layers)), roots: make([][][]float64, len(cfg.Layers)),
		ropes: map[int]kvcache.RopeTables{}}
	for l := range s.heads {
		d := cfg.Layers[l].HeadDim
		if owner := cfg.Layers[l].Owner; owner != l {
			s.heads[l] = s.heads[owner] // its queries meet the keys of that layer
			continue
		}
		for range cfg.Layers[l].KVHeads {
			s.heads[l] = append(s.heads[l], &keySums{
				key: make([]float64, d), key2: make([]float64, d/2), query: make([]float64, d/2),
				drift: make([]float64, d*d), metric: make([]float64, d*d), metricPre: make([]float64, d*d),
			})
		}
	}
	return s, nil
}

// Hooks returns what takes the statistics along with a forward pass, until ctx ends.
func (s *KeyStats) Hooks(ctx context.Context) refmodel.Hooks {
	return refmodel.Hooks{Attention: func(a *refmodel.Attention) error { return s.attention(ctx, a) }}
}

func (s *KeyStats) attention(ctx context.Context, a *refmodel.Attention) error {
	c, y := s.cfg, &s.cfg.Layers[a.Layer]
	g := y.Group()
	s.rope(a.Layer, a.Rope)
	parts := make([]*querySums, y.Heads)
	roots := make([][]float64, y.Heads)
	if s.o.Weights != nil {
		var err error
		if roots, err = s.outputRoots(ctx, a.Layer); err != nil {
			return err
		}
	}
	for w := range a.Windows {
		err := parallel.For(ctx, s.o.Threads, y.Heads, func(h int) (err error) {
			parts[h], err = s.queryHead(ctx, a, w, h, roots[h])
			return err
		})
		if err != nil {
			return err
		}
		// Sums are merged in the order of the heads, so that threads change no bit.
		for k := range y.KVHeads {
			s.heads[a.Layer][k].merge(c, s.o, a, w, k, parts[k*g:(k+1)*g])
		}
	}
	return nil
}

// querySums are the sums of one query head over the sampled queries of a window.
type querySums struct {
	seen          []float64 // [T] what an error in the score of each key costs
	attention     []float64 // [T] sum over queries of p(1-p): the same, by attention alone
	squared       []float64 // [T] sum over queries of p^2
	query         []float64
	weight        float64
	n             int
	drift, metric []float64
	metricPre     []float64
	distance      [2]distances
}

// queryHead looks at sampled queries of one window and query head.
func (s *KeyStats) queryHead(ctx context.Context, a *refmodel.Attention, window, head int, root []float64) (
	*querySums, error,
) {
	c, y, T := s.cfg, &s.cfg.Layers[a.Layer], a.T
	d := y.HeadDim
	half := d / 2
	out := &querySums{
		seen: make([]float64, T), attention: make([]float64, T), squared: make([]float64, T), query: make([]float64, half),
		drift: make([]float64, d*d), metric: make([]float64, d*d), metricPre: make([]float64, d*d),
	}
	qw := y.Heads * d
	base := window * T
	at := s.positions(T, a.Layer, head)
	q, pre, curvatures := make([]float32, len(at)*d), make([]float32, len(at)*d), make([]float64, len(at))
	for n, i := range at {
		copy(q[n*d:(n+1)*d], a.Q[(base+i)*qw+head*d:])
		copy(pre[n*d:(n+1)*d], a.QPre[(base+i)*qw+head*d:])
	}
	scores := s.probabilities(a, window, head, at, q)
	acc := newOuter(d)
	var u *headOutputs
	if root != nil {
		u = s.outputs(a, window, head, root, scores)
	}
	for n, i := range at {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		lo := firstSeen(y, i)
		p := scores[n*T+lo : n*T+i+1]
		row := q[n*d : (n+1)*d]
		for j, v := range p {
			out.squared[lo+j] += float64(float64(v) * float64(v))
			out.attention[lo+j] += float64(float64(v) * (1 - float64(v)))
		}
		seen := 1.0 // of the attention; a sink takes the rest
		if a.Sinks != nil {
			seen = sumOf32(p)
		}
		curvature := max(0, seen-fmath.SumSq(p))
		w := curvature
		if root == nil {
			acc.drift(a.Rope, row, p, lo, float32(y.Scale), c.PairsIn(a.Layer), a.Sinks != nil)
			for j, v := range p {
				out.distance[later(lo+j)].add(i-lo-j, float64(v))
			}
		} else {
			w = acc.output(u, n, row, p, lo, float32(y.Scale), c.PairsIn(a.Layer), out)
		}
		for k := range half {
			i, j := c.PairsIn(a.Layer).Dims(k, d)
			e := float64(row[i])*float64(row[i]) + float64(float64(row[j])*float64(row[j]))
			out.query[k] += float64(w * e)
		}
		curvatures[n] = curvature
		out.weight += w
		out.n++
	}
	acc.flush()
	out.drift = acc.sum
	linalg.AddOuters(out.metric, q, curvatures, d)
	linalg.AddOuters(out.metricPre, pre, curvatures, d)
	if root == nil {
		copy(out.seen, out.attention)
	}
	return out, nil
}

// firstSeen returns the first position that a query at i sees.
func firstSeen(y *family.Layer, i int) int {
	if y.Window > 0 {
		return max(0, i-y.Window+1)
	}
	return 0
}

// probabilities returns the probabilities of all keys of a window for the queries q of one head
// at positions at, [len(at), T], zero for those that a query does not see.
func (s *KeyStats) probabilities(a *refmodel.Attention, window, head int, at []int, q []float32) []float32 {
	y, T := &s.cfg.Layers[a.Layer], a.T
	d, kw := y.HeadDim, y.KVHeads*y.HeadDim
	var keys gemm.Weights
	keys.PackRows(T, d, a.K[window*T*kw+head/y.Group()*d:], kw, 1)
	scores := make([]float32, len(at)*T)
	gemm.Mul(scores, T, q, d, len(at), &keys, 1)
	for n, i := range at {
		lo, p := firstSeen(y, i), scores[n*T:(n+1)*T]
		a.Softmax(y, head, p[lo:i+1])
		clear(p[:lo])
		clear(p[i+1:])
	}
	return scores
}

// positions samples queries, one from each stratum of the window.
func (s *KeyStats) positions(T, layer, head int) []int {
	k := s.heads[layer][head/s.cfg.Layers[layer].Group()]
	r := rand.New(rand.NewPCG(s.o.Seed, uint64(layer)<<40|uint64(head)<<24|uint64(k.windows)))
	n := min(s.o.Queries, T)
	out := make([]int, n)
	for i := range out {
		lo, hi := i*T/n, (i+1)*T/n
		out[i] = lo + r.IntN(hi-lo)
	}
	return out
}

// outer sums E_i Cov_j(F_ij) as a matrix product of many rows at a time.
type outer struct {
	d, n  int
	x     []float32 // [d, outerRows]: column r is sqrt(p_j) (F_ij - mean)
	c     []float32
	w     gemm.Weights
	sum   []float64
	g, gt []float32 // [d, d], of output
}

const outerRows = 2048

func newOuter(d int) *outer {
	return &outer{d: d, x: make([]float32, d*outerRows), c: make([]float32, d*d), sum: make([]float64, d*d)}
}

// drift adds the covariance of F_ij = R(j)^T q_i scale over keys j ~ p of one
// query, where q_i is the query after RoPE and R(j) the rotation of position j. A sink is one
// key more, with the probability that is left and F = 0.
func (o *outer) drift(t *rope.Table, q, p []float32, lo int, scale float32, pairs rope.Layout, sink bool) {
	d := o.d
	f, mean := make([]float32, d), make([]float64, d)
	var total float64
	for j, v := range p {
		if v < minProbability {
			continue
		}
		copy(f, q)
		t.ApplyInverse(f, lo+j, pairs)
		for k, x := range f {
			mean[k] += float64(float64(v) * float64(x))
		}
		total += float64(v)
	}
	if total == 0 {
		return
	}
	if !sink {
		for k := range mean {
			mean[k] /= total
		}
	} else if left := 1 - sumOf32(p); left > 0 {
		if o.n == outerRows {
			o.flush()
		}
		r := float64(scale) * math.Sqrt(left)
		for k, m := range mean {
			o.x[k*outerRows+o.n] = float32(-r * m)
		}
		o.n++
	}
	for j, v := range p {
		if v < minProbability {
			continue
		}
		if o.n == outerRows {
			o.flush()
		}
		copy(f, q)
		t.ApplyInverse(f, lo+j, pairs)
		r := float64(scale) * math.Sqrt(float64(v))
		for k, x := range f {
			o.x[k*outerRows+o.n] = float32(r * (float64(x) - mean[k]))
		}
		o.n++
	}
}

// headOutputs is what the keys of a window contribute to one query head's output.
type headOutputs struct {
	moved *gemm.Weights // see movedTable
	start []float32     // what RoPE multiplies pairs with at position 0, [D/2]; only where there are sinks
	u     []float32     // [D, T]: L^T v of each value
	mean  []float32     // [queries, D]: sum_j p_j u_j
	y     []float32     // [D, T]
	e     []float32     // [T]
	size  []float64     // [T]
}

// output adds G^T G for G = sum_j p_j (u_j - u) F_ij^T, what a shift of the keys
// does to the head's output u = sum_j p_j u_j to first order; F as in drift. It adds
// to seen what a unit error in the score of each key does, p_j^2 |u_j - u|^2, and to
// the distances what errors would do that agree in all keys, at most, p_j |u_j - u|
// sum_k p_k |u_k - u|. It returns the sum of the former.
func (o *outer) output(x *headOutputs, query int, q, p []float32, lo int, scale float32, pairs rope.Layout,
	out *querySums) float64 {
	d, T := o.d, len(x.e)
	e := x.e[lo : lo+len(p)]
	clear(e)
	for k := range d {
		u, y, mean := x.u[k*T+lo:][:len(p)], x.y[k*T+lo:][:len(p)], x.mean[query*d+k]
		for j, v := range p {
			r := u[j] - mean
			y[j] = v * r
			e[j] += float32(r * r)
		}
	}
	var sum, all float64
	size := x.size[:len(p)]
	for j, v := range p {
		size[j] = float64(float64(v) * math.Sqrt(float64(e[j])))
		all += size[j]
		one := float64(size[j] * size[j])
		out.seen[lo+j] += one
		sum += one
	}
	for j, v := range size {
		out.distance[later(lo+j)].add(len(p)-1-j, float64(all*v))
	}
	// The constant that F is relative to drops out, because the y of a query sum to 0; with a sink
	// they do not.
	gemm.MulRange(o.c, d, x.y, T, d, x.moved, 0, d, lo, lo+len(p), false, 1)
	if o.g == nil {
		o.g = make([]float32, d*d)
	}
	for k := range d {
		row, g := o.c[k*d:(k+1)*d], o.g[k*d:(k+1)*d]
		rest := 0.0
		if x.start != nil {
			rest = sumOf32(x.y[k*T+lo:][:len(p)])
		}
		for n := range d / 2 {
			i, j := pairs.Dims(n, d)
			a, b, cos, sin := float64(scale*q[i]), float64(scale*q[j]), float64(row[2*n]), float64(row[2*n+1])
			if x.start != nil {
				cos += float64(rest * float64(x.start[n]))
			}
			g[i] = float32(float64(a*cos) + float64(b*sin))
			g[j] = float32(float64(b*cos) - float64(a*sin))
		}
	}
	o.w.PackT(d, d, o.g, d, 1)
	o.gt = gemm.Transpose(o.gt, o.g, d, d)
	gemm.Mul(o.c, d, o.gt, d, d, &o.w, 1)
	addTo32(o.sum, o.c)
	return sum
}

// movedTable packs by how much RoPE differs from that of position 0, as a matrix
// over positions: rows 2p and 2p+1 are cos - 1 and sin of pair p, times the magnitude.
func movedTable(t *rope.Table, d int, pairs rope.Layout) *gemm.Weights {
	n := t.Positions()
	x := make([]float32, d*n)
	row := make([]float32, d)
	for j := range n {
		clear(row)
		for p := range d / 2 {
			i, _ := pairs.Dims(p, d)
			row[i] = 1
		}
		t.ApplyInverse(row, j, pairs)
		for p := range d / 2 {
			a, b := pairs.Dims(p, d)
			x[2*p*n+j], x[(2*p+1)*n+j] = row[a]-x[2*p*n], -row[b]
			if j == 0 {
				x[2*p*n] = row[a]
			}
		}
	}
	for i := 0; i < d; i += 2 {
		x[i*n] = 0
	}
	w := &gemm.Weights{}
	w.PackRows(d, n, x, n, 1)
	return w
}

// outputRoots returns, per query head, a factor L with L L^T = W^T W for the
// columns W of W_O that the head's output meets: |L^T v| is how much of v
// reaches the residual stream. They are kept. A factor is nil where that is not known.
func (s *KeyStats) outputRoots(ctx context.Context, layer int) ([][]float64, error) {
	if s.roots[layer] != nil {
		return s.roots[layer], nil
	}
	y := &s.cfg.Layers[layer]
	d := y.HeadDim
	name := family.Name(layer, "attn_output.weight")
	t, ok := s.o.Weights.Find(name)
	if !ok && y.FixedValues != "" {
		// In front of the output matrix something else happens, such as a gate: errors count by what
		// they do to the attention alone.
		s.roots[layer] = make([][]float64, y.Heads)
		return s.roots[layer], nil
	}
	if !ok {
		return nil, fmt.Errorf("the model has no tensor %s", name)
	}
	w := make([]float32, t.Elements())
	if err := s.o.Weights.ReadRows(t, 0, t.Rows(), w); err != nil {
		return nil, err
	}
	out := make([][]float64, y.Heads)
	moments := make([][]float64, y.Heads)
	err := parallel.For(ctx, s.o.Threads, y.Heads, func(h int) error {
		m, own := make([]float64, d*d), make([]float32, 0, t.Rows()*d)
		for r := range t.Rows() {
			own = append(own, w[r*t.Cols()+h*d:][:d]...)
		}
		linalg.AddOuters(m, own, nil, d)
		moments[h] = m
		var err error
		if out[h], err = linalg.Root(ctx, m, d); err != nil {
			return fmt.Errorf("layer %d, head %d: %w", layer, h, err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for k := range y.KVHeads {
		sum := make([]float64, d*d)
		for g := range y.Group() {
			addTo(sum, moments[k*y.Group()+g])
		}
		if y.Owner != layer {
			addTo(s.heads[layer][k].out, sum)
			continue
		}
		s.heads[layer][k].out = sum
	}
	s.roots[layer] = out
	return out, nil
}

// outputs prepares the outputs of a head for the sampled queries' probabilities, [queries, T].
func (s *KeyStats) outputs(a *refmodel.Attention, window, head int, root []float64, probs []float32) *headOutputs {
	y := &s.cfg.Layers[a.Layer]
	d, kw, T := y.HeadDim, y.KVHeads*y.HeadDim, a.T
	lt := make([]float32, d*d)
	for i := range d {
		for j := range d {
			lt[j*d+i] = float32(root[i*d+j])
		}
	}
	out := &headOutputs{
		moved: s.ropes[s.cfg.RopeKind(a.Layer)].Moved, u: make([]float32, d*T), mean: make([]float32, len(probs)/T*d),
		y: make([]float32, d*T), e: make([]float32, T), size: make([]float64, T),
	}
	if a.Sinks != nil {
		out.start = make([]float32, d/2)
		row := make([]float32, d)
		for p := range out.start {
			clear(row)
			i, _ := s.cfg.PairsIn(a.Layer).Dims(p, d)
			row[i] = 1
			a.Rope.Apply(row, 0, s.cfg.PairsIn(a.Layer))
			out.start[p] = row[i]
		}
	}
	var w gemm.Weights
	w.PackRows(T, d, a.V[window*T*kw+head/y.Group()*d:], kw, 1)
	gemm.Mul(out.u, T, lt, d, d, &w, 1)
	w.PackRows(d, T, out.u, T, 1)
	gemm.Mul(out.mean, d, probs, T, len(probs)/T, &w, 1)
	return out
}

func (o *outer) flush() {
	if o.n == 0 {
		return
	}
	o.w.PackRows(o.d, o.n, o.x, outerRows, 1)
	gemm.Mul(o.c, o.d, o.x, outerRows, o.d, &o.w, 1)
	addTo32(o.sum, o.c)
	o.n = 0
}

// merge adds what the queries of a group saw in one window.
func (k *keySums) merge(c *family.Config, o StatsOptions, a *refmodel.Attention, window, head int, parts []*querySums) {
	y := &c.Layers[a.Layer]
	d, T, kw := y.HeadDim, a.T, y.KVHeads*y.HeadDim
	seen, attention, squared := make([]float64, T), make([]float64, T), make([]float64, T)
	for _, p := range parts {
		addTo(seen, p.seen)
		addTo(attention, p.attention)
		addTo(squared, p.squared)
		addTo(k.query, p.query)
		addTo(k.drift, p.drift)
		addTo(k.metric, p.metric)
		addTo(k.metricPre, p.metricPre)
		for i := range k.distance {
			k.distance[i].merge(&p.distance[i])
		}
		k.weight += p.weight
		k.queries += float64(p.n)
	}
	keys := a.KPre
	if transform.LateGains(y) {
		keys = a.K // before RoPE they have not been normed
	}
	for j := min(o.Sink, T); j < T; j++ {
		row := keys[(window*T+j)*kw+head*d:][:d]
		w := seen[j]
		for i, v := range row {
			k.key[i] += float64(w * float64(v))
		}
		for p := range d / 2 {
			x, y := c.PairsIn(a.Layer).Dims(p, d)
			e := float64(row[x])*float64(row[x]) + float64(float64(row[y])*float64(row[y]))
			k.key2[p] += float64(w * e)
		}
		k.attention += w
	}
	switch {
	case y.Owner != a.Layer:
		if o.Samples > 0 {
			k.meet(o, a, window, head, c, attention, squared)
		}
		return
	case o.Samples > 0:
		k.sample(o, a, window, head, c, attention, squared)
	}
	k.windows++
}

// meet adds what the queries of a layer that reads the keys of another one see of the keys that
// were kept of the same window: their share of attention, and queries that meet them.
func (k *keySums) meet(o StatsOptions, a *refmodel.Attention, window, head int, c *family.Config, seen,
	squared []float64) {
	y := &c.Layers[a.Layer]
	d, T, qw := y.HeadDim, a.T, y.Heads*y.HeadDim
	m := &k.meetings[len(k.meetings)-a.Windows+window]
	lo := 0
	for i, n := range m.Counts {
		hi := lo + int(n)
		k.sampleShare[m.From+i] += sumOf(seen[lo:hi])
		k.valueShare[m.From+i] += sumOf(squared[lo:hi])
		lo = hi
	}
	n := min(T, max(1, o.Meetings/y.Group()))
	for q := head * y.Group(); q < (head+1)*y.Group(); q++ {
		for i := range n {
			j := (2*i + 1) * T / (2 * n)
			m.Queries, m.Pos = append(m.Queries, a.QPre[(window*T+j)*qw+q*d:][:d]...), append(m.Pos, j)
		}
	}
}

// distances is how far keys are from the queries that feel errors in them: weights
// in bins of one position below 16 and of an eighth of a power of two above.
type distances struct {
	weight, sum [distanceBins]float64 // sum: of weight times distance
}

const distanceBins = 16 + 8*28

func (d *distances) add(n int, w float64) {
	i := n
	if n >= 16 {
		e := bits.Len(uint(n)) - 1
		i = min(16+8*(e-4)+(n>>(e-3))&7, distanceBins-1)
	}
	d.weight[i] += w
	d.sum[i] += float64(w * float64(n))
}

// list returns the distances that were seen, with weights relative to total.
func (d *distances) list(total float64) []transform.Distance {
	var out []transform.Distance
	for i, w := range d.weight {
		if w > 0 {
			out = append(out, transform.Distance{Positions: d.sum[i] / w, Weight: w / total})
		}
	}
	return out
}

// later returns 0 for the first keys of a window, which are sampled one by one, else 1.
func later(pos int) int {
	if pos < firstSamples {
		return 0
	}
	return 1
}

func (d *distances) merge(x *distances) {
	addTo(d.weight[:], x.weight[:])
	addTo(d.sum[:], x.sum[:])
}

func addTo(dst, x []float64) {
	for i, v := range x {
		dst[i] += v
	}
}

// firstSamples keys of each window are always kept: attention sinks.
const firstSamples = 4

// sample keeps keys and values of a window: the first ones, and one of each stratum
// of the rest, which then stands for the attention of the whole stratum. And it
// keeps queries that meet them.
func (k *keySums) sample(o StatsOptions, a *refmodel.Attention, window, head int, c *family.Config, seen,
	squared []float64) {
	y := &c.Layers[a.Layer]
	d, T, kw, qw := y.HeadDim, a.T, y.KVHeads*y.HeadDim, y.Heads*y.HeadDim
	r := rand.New(rand.NewPCG(o.Seed+1, uint64(a.Layer)<<40|uint64(head)<<24|uint64(k.windows)))
	meet := transform.QueryWindow{From: len(k.samplePos), Span: y.Window}
	keep := func(j, lo, hi int) {
		meet.Counts = append(meet.Counts, float64(hi-lo))
		at := (window*T+j)*kw + head*d
		k.samples = append(k.samples, a.K[at:at+d]...)
		k.values = append(k.values, a.V[at:at+d]...)
		k.samplePos = append(k.samplePos, j)
		k.sampleShare = append(k.sampleShare, sumOf(seen[lo:hi]))
		k.valueShare = append(k.valueShare, sumOf(squared[lo:hi]))
	}
	first := min(firstSamples, T)
	for j := range first {
		keep(j, j, j+1)
	}
	n := min(o.Samples, T-first)
	for i := range n {
		lo, hi := first+i*(T-first)/n, first+(i+1)*(T-first)/n
		keep(lo+r.IntN(hi-lo), lo, hi)
	}
	meet.To = len(k.samplePos)
	n = min(T, max(1, o.Meetings/y.Group()))
	for q := head * y.Group(); q < (head+1)*y.Group(); q++ {
		for i := range n {
			lo, hi := i*T/n, (i+1)*T/n
			j := lo + r.IntN(hi-lo)
			meet.Queries, meet.Pos = append(meet.Queries, a.QPre[(window*T+j)*qw+q*d:][:d]...), append(meet.Pos, j)
		}
	}
	k.meetings = append(k.meetings, meet)
}

func sumOf32(x []float32) (sum float64) {
	for _, v := range x {
		sum += float64(v)
	}
	return sum
}

func sumOf(x []float64) (sum float64) {
	for _, v := range x {
		sum += v
	}
	return sum
}

// Values returns the values of one KV head that were kept, with what an error in each
// costs: its squared probability times what W_O makes of it. It needs
// StatsOptions.Weights and Samples.
func (s *KeyStats) Values(layer, head int) (*transform.KeySample, error) {
	k := s.heads[layer][head]
	if k.out == nil || len(k.values) == 0 {
		return nil, fmt.Errorf("layer %d, KV head %d: statistics of values need samples and the model's weights", layer, head)
	}
	return &transform.KeySample{D: s.cfg.Layers[layer].HeadDim, Pairs: s.cfg.PairsIn(layer), Keys: k.values,
		Weights: k.valueShare, Metric: k.out}, nil
}

// Head returns the statistics of one KV head.
func (s *KeyStats) Head(layer, head int) (*transform.KeyStats, error) {
	c, y, k := s.cfg, &s.cfg.Layers[layer], s.heads[layer][head]
	d := y.HeadDim
	if k.queries == 0 || k.attention <= 0 || k.weight <= 0 {
		return nil, fmt.Errorf("layer %d, KV head %d: no attention was seen", layer, head)
	}
	out := &transform.KeyStats{
		D: d, Pairs: c.PairsIn(layer), Group: y.Group(), Scale: y.Scale * y.Scale,
		Mean: make([]float64, d), Var: make([]float64, d/2), Query: make([]float64, d/2), Drift: make([]float64, d*d),
		Curvature: k.weight / k.queries,
	}
	for i := range d {
		out.Mean[i] = k.key[i] / k.attention
	}
	for p := range d / 2 {
		x, y := c.PairsIn(layer).Dims(p, d)
		m := float64(out.Mean[x]*out.Mean[x]) + float64(out.Mean[y]*out.Mean[y])
		out.Var[p] = max(0, k.key2[p]/k.attention-m)
		out.Query[p] = k.query[p] / k.weight
	}
	for i, v := range k.drift {
		out.Drift[i] = v / k.queries
	}
	return out, out.Check()
}

// Sample returns the keys of one KV head that were kept, after an edit.
func (s *KeyStats) Sample(layer, head int, e transform.KeyEdit) (*transform.KeySample, error) {
	c, d, k := s.cfg, s.cfg.Layers[layer].HeadDim, s.heads[layer][head]
	if len(k.samples) == 0 {
		return nil, fmt.Errorf("layer %d, KV head %d: no keys were sampled", layer, head)
	}
	out := &transform.KeySample{D: d, Pairs: c.PairsIn(layer), Keys: append([]float32(nil), k.samples...),
		Weights: k.sampleShare, Metric: make([]float64, len(k.metric))}
	for i, v := range k.metric {
		out.Metric[i] = v / k.queries
	}
	if e.Transform != nil {
		// What is mixed hardly turns, so the mix of a query after RoPE is nearly that before.
		out.Metric = e.Transform.Metric(out.Metric, d)
	}
	kvcache.EditKeys(out.Keys, d, e, func(i int) int { return k.samplePos[i] },
		s.ropes[c.RopeKind(layer)], c.PairsIn(layer))
	return out, nil
}

// mix finds the mix of the pairs of one KV head after a removal, for the cache type
// if the balance is for it.
func (s *KeyStats) mix(ctx context.Context, f KeyFit, stats *transform.KeyStats, layer, head int,
	removal *transform.BiasShift) (*transform.KeyTransform, error) {
	sample, err := s.Sample(layer, head, transform.KeyEdit{Shift: removal})
	if err != nil {
		return nil, err
	}
	o := transform.RefineOptions{Cache: f.Cache, Penalty: f.Transform}
	block, _ := f.Cache.Type.Block()
	refined := f.Pairs == ForType && block >= 2
	var m *transform.KeyTransform
	if refined && f.Start != nil {
		m, o.Steps = f.Start[layer][head].Transform, goOnSteps
	}
	if m == nil {
		noise, err := s.noise(f, stats, layer, head, removal)
		if err != nil {
			return nil, err
		}
		o.Steps = 0
		x, err := s.mixStats(stats, layer, head, removal)
		if err != nil {
			return nil, err
		}
		m, err = transform.FitKeyTransform(ctx, x, transform.KeyTransformOptions{Noise: noise, Penalty: f.Transform})
		if err != nil || !refined {
			return m, err
		}
	}
	k := s.heads[layer][head]
	return transform.RefineKeyTransform(ctx, m, &transform.RefineSample{KeySample: *sample, Pos: k.samplePos,
		Table: s.ropes[s.cfg.RopeKind(layer)].Pure, Windows: k.meetings, Scale: stats.Scale}, o)
}

// mixStats returns what a transform of one head's keys after a shift is fitted to.
func (s *KeyStats) mixStats(stats *transform.KeyStats, layer, head int, removal *transform.BiasShift) (
	*transform.KeyTransformStats, error,
) {
	c, d, k := s.cfg, s.cfg.Layers[layer].HeadDim, s.heads[layer][head]
	sample, err := s.Sample(layer, head, transform.KeyEdit{Shift: removal})
	if err != nil {
		return nil, err
	}
	x := &transform.KeyTransformStats{D: d, Pairs: c.PairsIn(layer), Queries: make([]float64, d*d),
		Freq: make([]float64, d/2), Curvature: stats.Curvature, Scale: stats.Scale}
	if y := &c.Layers[layer]; y.Rope.Dim > 0 {
		copy(x.Freq, y.Rope.InvFreq())
	}
	// Keys are weighed by sum p(1-p) over queries and queries by 1 - sum p^2 over
	// keys, so both weights have the same total.
	for i := range k.distance {
		x.Keys = append(x.Keys, transform.DistanceBucket{Moment: make([]float64, d*d),
			Distances: k.distance[i].list(k.weight)})
	}
	t := s.ropes[c.RopeKind(layer)].Pure // a magnitude is the same for all pairs
	var total float64
	keys, weights := make([][]float32, len(x.Keys)), make([][]float64, len(x.Keys))
	for n, w := range sample.Weights {
		key := sample.Keys[n*d : (n+1)*d]
		t.ApplyInverse(key, k.samplePos[n], c.PairsIn(layer))
		g := later(k.samplePos[n])
		keys[g], weights[g] = append(keys[g], key...), append(weights[g], w)
		x.Keys[g].Share += w
		total += w
	}
	for i := range x.Keys {
		linalg.AddOuters(x.Keys[i].Moment, keys[i], weights[i], d)
	}
	for i := range x.Keys {
		g := &x.Keys[i]
		if g.Share == 0 {
			continue
		}
		for j := range g.Moment {
			g.Moment[j] /= g.Share
		}
		g.Share /= total
	}
	for i, v := range k.metricPre {
		x.Queries[i] = v / total
	}
	return x, nil
}

// goOnSteps is how many steps a mix takes from that of another penalty.
const goOnSteps = 15

func addTo32(dst []float64, x []float32) {
	for i, v := range x {
		dst[i] += float64(v)
	}
}
