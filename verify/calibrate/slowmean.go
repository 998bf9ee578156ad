package calibrate

import (
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"

	"phaseconv/format/family"
	"phaseconv/kernels/fmath"
	"phaseconv/kernels/gemm"
	"phaseconv/kernels/rope"
	"phaseconv/rotations"
	"phaseconv/verify/refmodel"
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
	// Weights, if set, are the model's: in moments and drift, score errors then
	// count by what they do to the output of the attention block, behind W_O,
	// instead of by the divergence of the attention probabilities. Samples keep
	// the weights of attention: those of the output are spread so widely that a fit
	// to single keys follows a few of them.
	Weights refmodel.Weights
	Seed    uint64
	Threads int
}

// KeyStats is a refmodel.Tap that reduces activations to rotations.KeyStats while
// they pass. Run it over window after window of the context that the model will
// be used at: sums go on, and memory does not grow with the number of windows
// (but for Samples). Per thread it needs queries x context numbers.
type KeyStats struct {
	cfg   *family.Config
	o     StatsOptions
	heads []*keySums // [layer*KVHeads + head]
	ropes [2]ropes   // of full and of sliding layers, for the longest window
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
	value2, out []float64 // [D]: sum of squared values, weighted; energy of W_O's columns
	windows     int
}

// minProbability: keys with less attention than this are left out of the drift.
const minProbability = 1e-7

// NewKeyStats starts empty statistics. It refuses what cannot be measured.
func NewKeyStats(cfg *family.Config, o StatsOptions) (*KeyStats, error) {
	if o.Queries < 0 || o.Sink < 0 || o.Samples < 0 {
		return nil, fmt.Errorf("key statistics with %d queries, %d sinks and %d samples: none may be negative", o.Queries, o.Sink, o.Samples)
	}
	if o.Queries == 0 {
		o.Queries = 64
	}
	if o.Threads <= 0 {
		o.Threads = runtime.GOMAXPROCS(0)
	}
	s := &KeyStats{cfg: cfg, o: o}
	d := cfg.HeadDim
	for range cfg.Layers * cfg.KVHeads {
		s.heads = append(s.heads, &keySums{
			key: make([]float64, d), key2: make([]float64, d/2), query: make([]float64, d/2),
			drift: make([]float64, d*d), metric: make([]float64, d*d), metricPre: make([]float64, d*d), value2: make([]float64, d),
		})
	}
	return s, nil
}

// FFN implements refmodel.Tap.
func (s *KeyStats) FFN(int, []float32) error { return nil }

// Attention implements refmodel.Tap.
func (s *KeyStats) Attention(a *refmodel.Attention) error {
	c := s.cfg
	g := c.Group()
	if i := sliding(c, a.Layer); s.ropes[i].turn == nil || s.ropes[i].turn.Positions() < a.T {
		s.ropes[i] = newRopes(c.RopeOf(a.Layer), a.Rope)
	}
	parts := make([]*querySums, c.Heads)
	roots := make([][]float64, c.Heads)
	if s.o.Weights != nil {
		var err error
		if roots, err = s.outputRoots(a.Layer); err != nil {
			return err
		}
	}
	for w := range a.Windows {
		refmodel.Parallel(s.o.Threads, c.Heads, func(h int) {
			parts[h] = s.queryHead(a, w, h, roots[h])
		})
		// Sums are merged in the order of the heads, so that threads change no bit.
		for k := range c.KVHeads {
			s.heads[a.Layer*c.KVHeads+k].merge(c, s.o, a, w, k, parts[k*g:(k+1)*g])
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
}

// queryHead looks at sampled queries of one window and query head.
func (s *KeyStats) queryHead(a *refmodel.Attention, window, head int, root []float64) *querySums {
	c, d, T := s.cfg, s.cfg.HeadDim, a.T
	half := d / 2
	out := &querySums{seen: make([]float64, T), attention: make([]float64, T), squared: make([]float64, T), query: make([]float64, half), drift: make([]float64, d*d), metric: make([]float64, d*d), metricPre: make([]float64, d*d)}
	kw, qw := c.KVHeads*d, c.Heads*d
	base := window * T
	at := s.positions(T, a.Layer, head)
	q := make([]float32, len(at)*d)
	for n, i := range at {
		copy(q[n*d:(n+1)*d], a.Q[(base+i)*qw+head*d:])
	}
	var keys gemm.Weights
	keys.PackRows(T, d, a.K[base*kw+head/c.Group()*d:], kw, 1)
	scores := make([]float32, len(at)*T)
	gemm.Mul(scores, T, q, d, len(at), &keys, 1)
	span := 0
	if c.IsSliding(a.Layer) {
		span = c.SlidingWindow
	}
	acc := newOuter(d)
	var u []float32
	if root != nil {
		u = s.outputs(a, window, head, root)
	}
	for n, i := range at {
		lo := 0
		if span > 0 {
			lo = max(0, i-span+1)
		}
		p := scores[n*T+lo : n*T+i+1]
		fmath.Softmax(p, float32(c.AttnScale))
		row := q[n*d : (n+1)*d]
		for j, v := range p {
			out.squared[lo+j] += float64(float64(v) * float64(v))
			out.attention[lo+j] += float64(float64(v) * (1 - float64(v)))
		}
		curvature := max(0, 1-fmath.SumSq(p))
		w := curvature
		if root == nil {
			acc.drift(a.Rope, row, p, lo, float32(c.AttnScale), c.Pairs)
		} else {
			w = acc.output(a.Rope, row, p, lo, float32(c.AttnScale), c.Pairs, u, out.seen)
		}
		for k := range half {
			x, y := c.Pairs.Dims(k, d)
			e := float64(row[x])*float64(row[x]) + float64(float64(row[y])*float64(row[y]))
			out.query[k] += float64(w * e)
		}
		for x := range d {
			for y := range d {
				out.metric[x*d+y] += float64(float64(curvature*float64(row[x])) * float64(row[y]))
			}
		}
		pre := a.QPre[(base+i)*qw+head*d:][:d]
		for x := range d {
			for y := range d {
				out.metricPre[x*d+y] += float64(float64(curvature*float64(pre[x])) * float64(pre[y]))
			}
		}
		out.weight += w
		out.n++
	}
	acc.flush()
	out.drift = acc.sum
	if root == nil {
		copy(out.seen, out.attention)
	}
	return out
}

// positions samples queries, one from each stratum of the window.
func (s *KeyStats) positions(T, layer, head int) []int {
	k := s.heads[layer*s.cfg.KVHeads+head/s.cfg.Group()]
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
	d, n     int
	x        []float32 // [d, outerRows]: column r is sqrt(p_j) (F_ij - mean)
	c        []float32
	w        gemm.Weights
	sum      []float64
	y, z, yt []float32 // [n, d], [n, d], [d, n]
}

const outerRows = 2048

func newOuter(d int) *outer {
	return &outer{d: d, x: make([]float32, d*outerRows), c: make([]float32, d*d), sum: make([]float64, d*d)}
}

// drift adds the covariance of F_ij = R(j)^T q_i scale over keys j ~ p of one
// query, where q_i is the query after RoPE and R(j) the rotation of position j.
func (o *outer) drift(t *rope.Table, q, p []float32, lo int, scale float32, pairs rope.Layout) {
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
	for k := range mean {
		mean[k] /= total
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

// output adds G^T G for G = sum_j p_j (u_j - u) F_ij^T, what a shift of the keys
// does to the head's output u = sum_j p_j u_j to first order. It adds to seen
// what a unit error in the score of each key does, p_j^2 |u_j - u|^2, and returns
// the sum of that.
func (o *outer) output(t *rope.Table, q, p []float32, lo int, scale float32, pairs rope.Layout, u []float32, seen []float64) float64 {
	d := o.d
	mean := make([]float64, d)
	var total float64
	for j, v := range p {
		if v < minProbability {
			continue
		}
		for k, x := range u[(lo+j)*d : (lo+j+1)*d] {
			mean[k] += float64(float64(v) * float64(x))
		}
		total += float64(v)
	}
	if total == 0 {
		return 0
	}
	for k := range mean {
		mean[k] /= total
	}
	// F is taken relative to that of the query's own position: a constant drops
	// out, and slow pairs would lose their digits in it.
	last := append([]float32(nil), q...)
	t.ApplyInverse(last, lo+len(p)-1, pairs)
	if cap(o.y) < d*len(p) {
		o.y, o.z = make([]float32, d*len(p)), make([]float32, d*len(p))
	}
	m := 0
	var sum float64
	for j, v := range p {
		if v < minProbability {
			continue
		}
		y, z := o.y[m*d:(m+1)*d], o.z[m*d:(m+1)*d]
		copy(z, q)
		t.ApplyInverse(z, lo+j, pairs)
		for k := range z {
			z[k] = float32((z[k] - last[k]) * scale)
		}
		var e float64
		for k, x := range u[(lo+j)*d : (lo+j+1)*d] {
			r := float64(x) - mean[k]
			e += float64(r * r)
			y[k] = float32(float64(v) * r)
		}
		e *= float64(float64(v) * float64(v))
		seen[lo+j] += e
		sum += e
		m++
	}
	// g[k, i] = sum_j y[j, k] z[j, i]
	o.w.PackT(d, m, o.z, d, 1)
	o.yt = transpose(o.yt, o.y, m, d)
	gemm.Mul(o.c, d, o.yt, m, d, &o.w, 1)
	for k := range d {
		g := o.c[k*d : (k+1)*d]
		for i, a := range g {
			row := o.sum[i*d : (i+1)*d]
			for j, b := range g {
				row[j] += float64(float64(a) * float64(b))
			}
		}
	}
	return sum
}

// transpose returns the d x n transpose of the n x d matrix x, in dst if it is large enough.
func transpose(dst, x []float32, n, d int) []float32 {
	if cap(dst) < n*d {
		dst = make([]float32, n*d)
	}
	dst = dst[:n*d]
	for j := range n {
		for k := range d {
			dst[k*n+j] = x[j*d+k]
		}
	}
	return dst
}

// outputRoots returns, per query head, a factor L with L L^T = W^T W for the
// columns W of W_O that the head's output meets: |L^T v| is how much of v
// reaches the residual stream.
func (s *KeyStats) outputRoots(layer int) ([][]float64, error) {
	c, d := s.cfg, s.cfg.HeadDim
	name := family.Name(layer, "attn_output.weight")
	t, ok := s.o.Weights.Find(name)
	if !ok {
		return nil, fmt.Errorf("the model has no tensor %s", name)
	}
	w := make([]float32, t.Elements())
	if err := s.o.Weights.ReadRows(t, 0, t.Rows(), w); err != nil {
		return nil, err
	}
	out := make([][]float64, c.Heads)
	errs := make([]error, c.Heads)
	columns := make([][]float64, c.Heads)
	refmodel.Parallel(s.o.Threads, c.Heads, func(h int) {
		m := make([]float64, d*d)
		for r := range t.Rows() {
			x := w[r*t.Cols()+h*d:][:d]
			for i, a := range x {
				for j, b := range x {
					m[i*d+j] += float64(float64(a) * float64(b))
				}
			}
		}
		energy := make([]float64, d)
		for i := range energy {
			energy[i] = m[i*d+i]
		}
		columns[h] = energy
		out[h], errs[h] = rotations.Root(m, d)
	})
	for h, err := range errs {
		if err != nil {
			return nil, fmt.Errorf("layer %d, head %d: %w", layer, h, err)
		}
	}
	for k := range c.KVHeads {
		sum := make([]float64, d)
		for g := range c.Group() {
			addTo(sum, columns[k*c.Group()+g])
		}
		s.heads[layer*c.KVHeads+k].out = sum
	}
	return out, nil
}

// outputs returns L^T v of every value of a window, [T, D].
func (s *KeyStats) outputs(a *refmodel.Attention, window, head int, root []float64) []float32 {
	d, kw := s.cfg.HeadDim, s.cfg.KVHeads*s.cfg.HeadDim
	lt := make([]float32, d*d)
	for i := range d {
		for j := range d {
			lt[j*d+i] = float32(root[i*d+j])
		}
	}
	var w gemm.Weights
	w.PackRows(d, d, lt, d, 1)
	u := make([]float32, a.T*d)
	gemm.Mul(u, d, a.V[window*a.T*kw+head/s.cfg.Group()*d:], kw, a.T, &w, 1)
	return u
}

func (o *outer) flush() {
	if o.n == 0 {
		return
	}
	o.w.PackRows(o.d, o.n, o.x, outerRows, 1)
	gemm.Mul(o.c, o.d, o.x, outerRows, o.d, &o.w, 1)
	for i, v := range o.c {
		o.sum[i] += float64(v)
	}
	o.n = 0
}

// merge adds what the queries of a group saw in one window.
func (k *keySums) merge(c *family.Config, o StatsOptions, a *refmodel.Attention, window, head int, parts []*querySums) {
	d, T, kw := c.HeadDim, a.T, c.KVHeads*c.HeadDim
	seen, attention, squared := make([]float64, T), make([]float64, T), make([]float64, T)
	for _, p := range parts {
		addTo(seen, p.seen)
		addTo(attention, p.attention)
		addTo(squared, p.squared)
		addTo(k.query, p.query)
		addTo(k.drift, p.drift)
		addTo(k.metric, p.metric)
		addTo(k.metricPre, p.metricPre)
		k.weight += p.weight
		k.queries += float64(p.n)
	}
	for j, w := range squared {
		for i, v := range a.V[(window*T+j)*kw+head*d:][:d] {
			k.value2[i] += float64(w * float64(float64(v)*float64(v)))
		}
	}
	for j := min(o.Sink, T); j < T; j++ {
		row := a.KPre[(window*T+j)*kw+head*d:][:d]
		w := seen[j]
		for i, v := range row {
			k.key[i] += float64(w * float64(v))
		}
		for p := range d / 2 {
			x, y := c.Pairs.Dims(p, d)
			e := float64(row[x])*float64(row[x]) + float64(float64(row[y])*float64(row[y]))
			k.key2[p] += float64(w * e)
		}
		k.attention += w
	}
	if o.Samples > 0 {
		k.sample(o, a, window, head, c, attention)
	}
	k.windows++
}

func addTo(dst, x []float64) {
	for i, v := range x {
		dst[i] += v
	}
}

// firstSamples keys of each window are always kept: attention sinks.
const firstSamples = 4

// sample keeps keys of a window: the first ones, and one of each stratum of the
// rest, which then stands for the attention of the whole stratum.
func (k *keySums) sample(o StatsOptions, a *refmodel.Attention, window, head int, c *family.Config, seen []float64) {
	d, T, kw := c.HeadDim, a.T, c.KVHeads*c.HeadDim
	keep := func(j int, share float64) {
		k.samples = append(k.samples, a.K[(window*T+j)*kw+head*d:][:d]...)
		k.sampleShare = append(k.sampleShare, share)
		k.samplePos = append(k.samplePos, j)
	}
	first := min(firstSamples, T)
	for j := range first {
		keep(j, seen[j])
	}
	r := rand.New(rand.NewPCG(o.Seed+1, uint64(a.Layer)<<40|uint64(head)<<24|uint64(k.windows)))
	n := min(o.Samples, T-first)
	for i := range n {
		lo, hi := first+i*(T-first)/n, first+(i+1)*(T-first)/n
		j := lo + r.IntN(hi-lo)
		var share float64
		for _, v := range seen[lo:hi] {
			share += v
		}
		keep(j, share)
	}
}

// Head returns the statistics of one KV head.
func (s *KeyStats) Head(layer, head int) (*rotations.KeyStats, error) {
	c, d := s.cfg, s.cfg.HeadDim
	k := s.heads[layer*c.KVHeads+head]
	if k.queries == 0 || k.attention <= 0 || k.weight <= 0 {
		return nil, fmt.Errorf("layer %d, KV head %d: no attention was seen", layer, head)
	}
	out := &rotations.KeyStats{
		D: d, Pairs: c.Pairs, Group: c.Group(), Scale: c.AttnScale * c.AttnScale,
		Mean: make([]float64, d), Var: make([]float64, d/2), Query: make([]float64, d/2), Drift: make([]float64, d*d),
		Curvature: k.weight / k.queries,
	}
	for i := range d {
		out.Mean[i] = k.key[i] / k.attention
	}
	for p := range d / 2 {
		x, y := c.Pairs.Dims(p, d)
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
func (s *KeyStats) Sample(layer, head int, e rotations.KeyEdit) (*rotations.KeySample, error) {
	c, k := s.cfg, s.heads[layer*s.cfg.KVHeads+head]
	if len(k.samples) == 0 {
		return nil, fmt.Errorf("layer %d, KV head %d: no keys were sampled", layer, head)
	}
	out := &rotations.KeySample{D: c.HeadDim, Pairs: c.Pairs, Keys: append([]float32(nil), k.samples...), Weights: k.sampleShare, Metric: make([]float64, len(k.metric))}
	for i, v := range k.metric {
		out.Metric[i] = v / k.queries
	}
	if e.Mix != nil {
		// Slow pairs hardly turn, so the mix of a query after RoPE is nearly that before.
		out.Metric = e.Mix.Metric(out.Metric, c.HeadDim)
	}
	editKeys(out.Keys, c.HeadDim, e, func(i int) int { return k.samplePos[i] }, s.ropes[sliding(c, layer)], c.Pairs)
	return out, nil
}

// mix finds the mix of the pairs of one KV head that turn by at most limit
// radians over the context that the statistics come from.
func (s *KeyStats) mix(layer, head int, limit float64, removal *rotations.SlowMean) (*rotations.SlowMix, error) {
	c, d, k := s.cfg, s.cfg.HeadDim, s.heads[layer*s.cfg.KVHeads+head]
	slow := rotations.SlowPairs(c.RopeOf(layer), span(c, layer, s.ropes[sliding(c, layer)].turn.Positions()), limit)
	sample, err := s.Sample(layer, head, rotations.KeyEdit{Removal: removal})
	if err != nil {
		return nil, err
	}
	// Keys are weighed by sum p(1-p) over queries and queries by 1 - sum p^2 over
	// keys, so both weights have the same total and the mix comes out on the scale
	// of the other pairs' balance.
	t := s.ropes[sliding(c, layer)].pure // a magnitude is the same for all pairs
	keys := make([]float64, d*d)
	for n, w := range sample.Weights {
		x := sample.Keys[n*d : (n+1)*d]
		t.ApplyInverse(x, k.samplePos[n], c.Pairs)
		for i, a := range x {
			for j, b := range x {
				keys[i*d+j] += float64(w * float64(float64(a)*float64(b)))
			}
		}
	}
	return rotations.MixSlow(keys, k.metricPre, d, c.Pairs, slow)
}

// span is how far apart a query and a key of a layer can be in contexts of n tokens.
func span(c *family.Config, layer, n int) int {
	if c.IsSliding(layer) {
		return min(n, c.SlidingWindow)
	}
	return n
}
