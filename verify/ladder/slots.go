package ladder

import (
	"context"
	"math"

	"github.com/phaseconv/phaseconv/format/dtype"
	"github.com/phaseconv/phaseconv/kernels/fmath"
	"github.com/phaseconv/phaseconv/kernels/linalg"
)

// Pair costs of merging two slots.
const (
	costProd = "prod" // second order in scores, with the values' difference
	costWard = "ward" // Ward's criterion in keys and values
)

// Stored types of the keys and values of slots.
const (
	storedF32 = "F32"
	storedF16 = "F16"
	stored8   = "Q8" // whole numbers up to 127 in size, times one F16 scale for each vector
)

// slotOptions say how a state of slots works.
type slotOptions struct {
	window, sinks     int
	cost              string
	kappa, saturation float64 // second-order count; 0: none
	decay             float64 // of counts, per token
	stored            string  // type of keys and values of slots
	evict             bool    // the slot of the smallest mass is dropped; nothing is merged
}

// bytes is the size of the state of one KV head with m slots: keys and values in 8 bits, or in
// F16 as what is stored as F32 here would be; count and mass, and the second-order count where
// there is one, as F32.
func (o slotOptions) bytes(m, d int) int {
	slot := 4*d + 8
	if o.stored == stored8 {
		slot = 2*(d+2) + 8
	}
	if o.kappa != 0 {
		slot += 4
	}
	return m*slot + (o.window+o.sinks)*4*d
}

// slots is the state of one KV head: at most m slots, and one more for the token that comes.
// What is not counted as state (whitened keys, lengths, nearest slots) follows from it.
type slots struct {
	o       slotOptions
	m, d    int
	mu      []float32
	keyMean []float32
	now     int // tokens so far
	used    int
	free    int       // index of the free slot once all are used
	on      []bool    // slots in use
	K, V    []float32 // [m+1, d]
	count   []float32 // log count at time 0: decay lowers all alike, so only their age counts
	mass    []float32 // likewise
	corr    []float32 // second-order part of the log count
	X       []float32 // whitened keys
	vv      []float64 // squared lengths of values
	bias    []float32 // count - mu.key + corr
	stamp   []int     // when a slot was last changed
	changes int
	nearest []int // cheapest partner of each slot; with its cost this replaces all pairs
	cost    []float64
	label   []int32 // slot of each token pushed, -1 when dropped
}

func newSlots(o slotOptions, m, d int, mu, keyMean []float32) *slots {
	n := m + 1
	each := func(k int) []float32 { return make([]float32, n*k) }
	return &slots{o: o, m: m, d: d, mu: mu, keyMean: keyMean, on: make([]bool, n), K: each(d), V: each(d), X: each(d),
		count: each(1), mass: each(1), corr: each(1), bias: each(1), vv: make([]float64, n),
		stamp: make([]int, n), nearest: make([]int, n), cost: make([]float64, n)}
}

// push takes the token that leaves the window; x is its whitened key.
func (s *slots) push(k, v, x []float32, mass float32) {
	i, d := s.free, s.d
	if s.used <= s.m {
		i = s.used
	}
	s.used = min(s.used+1, s.m+1)
	copy(s.K[i*d:(i+1)*d], k)
	copy(s.V[i*d:(i+1)*d], v)
	copy(s.X[i*d:(i+1)*d], x)
	age := float64(s.o.decay * float64(s.now))
	s.count[i] = float32(linalg.Dot64(s.mu, k) + age)
	s.mass[i] = float32(float64(mass) * fmath.Exp(age))
	s.corr[i] = 0
	s.on[i] = true
	s.label = append(s.label, int32(i))
	s.settle(i)
	full := s.full()
	switch {
	case s.o.evict && full:
		s.evict()
	case !s.o.evict:
		s.link(i, -1)
		if full {
			s.merge()
		}
	}
}

func (s *slots) full() bool {
	for _, on := range s.on {
		if !on {
			return false
		}
	}
	return true
}

// settle rounds a slot to its stored type and computes what follows from it.
func (s *slots) settle(i int) {
	d := s.d
	k, v := s.K[i*d:(i+1)*d], s.V[i*d:(i+1)*d]
	switch s.o.stored {
	case storedF16:
		for j := range k {
			k[j], v[j] = dtype.F16Round(k[j]), dtype.F16Round(v[j])
		}
	case stored8: // a mean that all keys share would take the scale
		for j := range k {
			k[j] -= s.keyMean[j]
		}
		round8(k)
		for j := range k {
			k[j] += s.keyMean[j]
		}
		round8(v)
	}
	s.vv[i] = linalg.Dot64(v, v)
	s.bias[i] = float32(float64(s.count[i]) - linalg.Dot64(s.mu, k) + float64(s.corr[i]))
	s.changes++
	s.stamp[i] = s.changes
}

// round8 rounds a vector to stored8: the scale is the largest size over 127, as F16, never 0
// where a number is not.
func round8(x []float32) {
	top := float32(0)
	for _, v := range x {
		top = max(top, v, -v)
	}
	scale := dtype.F16Round(top / 127)
	if scale == 0 {
		clear(x)
		return
	}
	for i, v := range x {
		x[i] = float32(math.RoundToEven(float64(v/scale))) * scale
	}
}

func squaredDistance(a, b []float32) float64 {
	var s0, s1, s2, s3 float32
	n := len(a) &^ 3
	b = b[:len(a)]
	for i := 0; i < n; i += 4 {
		d0, d1, d2, d3 := a[i]-b[i], a[i+1]-b[i+1], a[i+2]-b[i+2], a[i+3]-b[i+3]
		s0 = float32(d0*d0) + s0
		s1 = float32(d1*d1) + s1
		s2 = float32(d2*d2) + s2
		s3 = float32(d3*d3) + s3
	}
	for i := n; i < len(a); i++ {
		s0 = float32((a[i]-b[i])*(a[i]-b[i])) + s0
	}
	return float64(s0+s1) + float64(s2+s3)
}

// pair is the cost of merging two slots. Of the two values' lengths that of the older counts.
// Where keys alone cost more than limit, values are not looked at: the result is below the cost,
// and above limit.
func (s *slots) pair(i, j int, limit float64) float64 {
	d := s.d
	dk := squaredDistance(s.X[i*d:(i+1)*d], s.X[j*d:(j+1)*d])
	wi, wj := float64(s.mass[i]), float64(s.mass[j])
	h := wi * wj / (wi + wj + 1e-30)
	if s.o.cost == costWard {
		if least := h * dk; least > limit {
			return least
		}
		return h * (dk + squaredDistance(s.V[i*d:(i+1)*d], s.V[j*d:(j+1)*d]))
	}
	old := s.vv[i]
	if s.stamp[j] < s.stamp[i] {
		old = s.vv[j]
	}
	c := dk / (1 + dk/4)
	spread := float64(0.5 * c * old)
	if least := float64(h*h) * c * spread; least > limit {
		return least
	}
	return float64(h*h) * c * (squaredDistance(s.V[i*d:(i+1)*d], s.V[j*d:(j+1)*d]) + spread)
}

// link finds the nearest slot of i, which has changed, and brings the others up to date.
// gone is a slot that is no longer there, or -1.
func (s *slots) link(i, gone int) {
	s.cost[i], s.nearest[i] = math.Inf(1), -1
	for j, on := range s.on {
		if !on || j == i {
			continue
		}
		c := s.pair(i, j, max(s.cost[i], s.cost[j]))
		if c < s.cost[i] {
			s.cost[i], s.nearest[i] = c, j
		}
		switch near := s.nearest[j]; {
		case c < s.cost[j] || c == s.cost[j] && i < near:
			s.cost[j], s.nearest[j] = c, i
		case near == i || near == gone || near < 0:
			s.search(j)
		}
	}
}

// search finds the nearest slot of j anew.
func (s *slots) search(j int) {
	s.cost[j], s.nearest[j] = math.Inf(1), -1
	for k, on := range s.on {
		if !on || k == j {
			continue
		}
		if c := s.pair(j, k, s.cost[j]); c < s.cost[j] {
			s.cost[j], s.nearest[j] = c, k
		}
	}
}

// merge joins the cheapest pair: weighted means of keys and values, counts and masses added.
func (s *slots) merge() {
	p := 0
	for i, c := range s.cost {
		if c < s.cost[p] {
			p = i
		}
	}
	q := s.nearest[p]
	if q < 0 { // costs that are no numbers; the first two will do
		p, q = 0, 1
	}
	d := s.d
	lp, lq := float64(s.count[p]), float64(s.count[q])
	top := max(lp, lq)
	sum := top + fmath.Log(fmath.Exp(lp-top)+fmath.Exp(lq-top))
	a, b := fmath.Exp(lp-sum), fmath.Exp(lq-sum)
	dk := squaredDistance(s.X[p*d:(p+1)*d], s.X[q*d:(q+1)*d])
	bend := s.o.kappa * 0.5 * a * b * dk / (1 + float64(s.o.saturation*dk))
	s.corr[p] = float32(float64(a*float64(s.corr[p])) + float64(b*float64(s.corr[q])) + bend)
	for _, x := range [][]float32{s.K, s.V, s.X} {
		xp, xq := x[p*d:(p+1)*d], x[q*d:(q+1)*d]
		for i := range xp {
			xp[i] = float32(float64(a*float64(xp[i])) + float64(b*float64(xq[i])))
		}
	}
	s.count[p], s.mass[p] = float32(sum), s.mass[p]+s.mass[q]
	for t, l := range s.label {
		if l == int32(q) {
			s.label[t] = int32(p)
		}
	}
	s.drop(q)
	s.settle(p)
	s.link(p, q)
}

func (s *slots) drop(q int) {
	s.on[q], s.free, s.cost[q], s.nearest[q] = false, q, math.Inf(1), -1
}

// evict drops the slot of the smallest mass.
func (s *slots) evict() {
	q := 0
	for i, w := range s.mass {
		if w < s.mass[q] {
			q = i
		}
	}
	for t, l := range s.label {
		if l == int32(q) {
			s.label[t] = -1
		}
	}
	s.drop(q)
}

// maxExponent bounds what a slot may weigh beside the exact tokens, whose largest weight is 1.
const maxExponent = 60

// read adds the slots' part to a query's sums relative to exp(c): num [d] grows by weights
// times values, and the sum of weights is returned. scores has room for m+1 numbers.
func (s *slots) read(q []float32, c float32, scores, num []float64) (sum float64) {
	d := s.d
	n := min(s.used, s.m+1)
	linalg.DotRows(scores[:n], q, s.K[:n*d])
	age := float64(s.o.decay * float64(s.now))
	for i := range n {
		if !s.on[i] {
			continue
		}
		e := fmath.Exp(min(scores[i]+float64(s.bias[i])-age-float64(c), maxExponent))
		sum += e
		for j, v := range s.V[i*d : (i+1)*d] {
			num[j] += float64(e * float64(v))
		}
	}
	return sum
}

// A slotRun is what running the slots of one KV head over a window gives.
type slotRun struct {
	O      []float32 // [G*T, d]
	replay squares   // token by token against the batch form, at some positions
	// logs of the denominators over the exact ones, at scored positions
	logSum, logMax float64
	logs           int
}

// stopEvery is how many tokens go by between two looks at the context.
const stopEvery = 16

// replays is about how many positions of a window the batch form is computed at.
const replays = 8

// A slotInput is what the slots of one KV head work on in one window: the same for all numbers of
// slots and all costs of merging.
type slotInput struct {
	*head           // without e
	N     []float32 // of window and sinks: see near
	D     []float64
	mu    []float32 // mean of queries
	kmean []float32 // mean of keys
	mass  []float32 // of each key
	white []float32 // whitened keys, [T, d]
}

// newSlotInput computes it. It drops the exact weights of x.
func newSlotInput(ctx context.Context, x *head, s *stats, W, S int) (*slotInput, error) {
	in := &slotInput{head: x, mu: s.mu, kmean: s.keyMean}
	in.N, in.D = x.near(W, S)
	x.e = nil
	var err error
	if in.mass, err = s.mass(ctx, x.K); err != nil {
		return nil, err
	}
	in.white = s.whiten(x.K)
	return in, nil
}

// runSlots runs a state of m slots over a window. With checks, replay and denominators are
// measured too.
func runSlots(ctx context.Context, x *slotInput, o slotOptions, m int, checks bool) (*slotRun, error) {
	T, d, N, D := x.T, x.d, x.N, x.D
	out := &slotRun{O: make([]float32, x.G*T*d), logMax: math.Inf(-1)}
	state := newSlots(o, m, d, x.mu, x.kmean)
	scores, num := make([]float64, m+1), make([]float64, d)
	every := max(1, T/2/replays)
	for t := range T {
		if t%stopEvery == 0 {
			if err := stop(ctx); err != nil {
				return nil, err
			}
		}
		state.now = t
		if j := t - o.window; j >= o.sinks && m > 0 {
			state.push(x.K[j*d:(j+1)*d], x.V[j*d:(j+1)*d], x.white[j*d:(j+1)*d], x.mass[j])
		}
		for g := range x.G {
			r := g*T + t
			clear(num)
			z := D[r]
			if m > 0 {
				z += state.read(x.Q[r*d:(r+1)*d], x.c[r], scores, num)
			}
			for i := range num {
				out.O[r*d+i] = float32((float64(N[r*d+i]) + num[i]) / z)
			}
			if checks && t >= T/2 {
				l := fmath.Log(z / x.Z[r])
				out.logSum += float64(l * l)
				out.logMax = max(out.logMax, l)
				out.logs++
			}
			if checks && t >= T/2 && (t-T/2)%every == 0 {
				out.replay.add(state.replay(x.head, r, N, D, out.O))
			}
		}
	}
	return out, nil
}

// replay computes the output of query r in batch form, in float64, from the partition alone:
// which tokens share a slot. It compares the output with it. The second-order count depends on
// the order of merges and is taken over from the state.
func (s *slots) replay(x *head, r int, N []float32, D []float64, O []float32) (out squares) {
	d := s.d
	num, z := make([]float64, d), D[r]
	key, value := make([]float64, d), make([]float64, d)
	for i := range num {
		num[i] = float64(N[r*d+i])
	}
	q := x.Q[r*d : (r+1)*d]
	for slot, on := range s.on {
		if !on {
			continue
		}
		top := math.Inf(-1)
		weight := func(j int) float64 { // log of the weight of token j
			t := s.o.sinks + j
			return linalg.Dot64(s.mu, x.K[t*d:(t+1)*d]) - float64(s.o.decay*float64(s.now-t-s.o.window))
		}
		for j, l := range s.label {
			if int(l) == slot {
				top = max(top, weight(j))
			}
		}
		clear(key)
		clear(value)
		total := 0.0
		for j, l := range s.label {
			if int(l) != slot {
				continue
			}
			t, a := s.o.sinks+j, fmath.Exp(weight(j)-top)
			total += a
			for i := range d {
				key[i] += float64(a * float64(x.K[t*d+i]))
				value[i] += float64(a * float64(x.V[t*d+i]))
			}
		}
		score := top + fmath.Log(total) + float64(s.corr[slot]) - float64(x.c[r])
		for i := range d {
			key[i] /= total
			score += float64(key[i] * (float64(q[i]) - float64(s.mu[i])))
		}
		e := fmath.Exp(min(score, maxExponent))
		z += e
		for i := range d {
			num[i] += float64(e * value[i] / total)
		}
	}
	for i := range d {
		want := num[i] / z
		diff := float64(O[r*d+i]) - want
		out.diff += float64(diff * diff)
		out.norm += float64(want * want)
	}
	return out
}
