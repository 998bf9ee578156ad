package ladder

import (
	"context"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/phaseconv/phaseconv/kernels/fmath"
	"github.com/phaseconv/phaseconv/kernels/linalg"
)

// randomHead makes a head with G query heads; queries are times scale.
func randomHead(seed uint64, T, d, G int, scale float32) *head {
	r := rand.New(rand.NewPCG(seed, 1))
	fill := func(n int, s float32) []float32 {
		x := make([]float32, n)
		for i := range x {
			x[i] = s * float32(r.NormFloat64())
		}
		return x
	}
	x := &head{T: T, d: d, G: G, Q: fill(G*T*d, scale), K: fill(T*d, 1), V: fill(T*d, 1)}
	x.exact()
	return x
}

func randomStats(t *testing.T, scale float32) (*stats, []*head) {
	t.Helper()
	heads := []*head{randomHead(1, 96, 16, 2, scale), randomHead(2, 96, 16, 2, scale)}
	s, err := fitStats(context.Background(), heads, 64)
	if err != nil {
		t.Fatal(err)
	}
	return s, heads
}

// TestExact compares attention with its definition in float64.
func TestExact(t *testing.T) {
	x := randomHead(3, 40, 8, 2, 0.5)
	for _, r := range []int{0, 17, 39, 40, 79} {
		n := r%40 + 1
		want, z := make([]float64, 8), 0.0
		for j := range n {
			e := math.Exp(linalg.Dot64(x.Q[r*8:(r+1)*8], x.K[j*8:(j+1)*8]))
			z += e
			for i := range want {
				want[i] += e * float64(x.V[j*8+i])
			}
		}
		for i := range want {
			if d := math.Abs(want[i]/z - float64(x.O[r*8+i])); d > 1e-6 {
				t.Fatalf("query %d, number %d is off by %g", r, i, d)
			}
		}
	}
}

func slotted(t testing.TB, x *head, s *stats, o slotOptions) *slotInput {
	t.Helper()
	y := *x // the exact weights of x stay
	in, err := newSlotInput(context.Background(), &y, s, o.window, o.sinks)
	if err != nil {
		t.Fatal(err)
	}
	return in
}

// TestSlotsHoldAll: as long as there is a slot for every token the state is exact.
func TestSlotsHoldAll(t *testing.T) {
	s, _ := randomStats(t, 0.5)
	x := randomHead(7, 96, 16, 2, 0.5)
	o := slotOptions{window: 16, sinks: 4, cost: costProd, kappa: 0.5, saturation: 0.25}
	in := slotted(t, x, s, o)
	run, err := runSlots(context.Background(), in, o, 96, true)
	if err != nil {
		t.Fatal(err)
	}
	if e := x.compare(run.O).rel(); e > 1e-6 {
		t.Errorf("relative error %g", e)
	}
	few, err := runSlots(context.Background(), in, o, 8, false)
	if err != nil {
		t.Fatal(err)
	}
	if e := x.compare(few.O).rel(); e < 0.01 {
		t.Errorf("8 slots err by %g only: the comparison sees nothing", e)
	}
}

// TestSlotsReplay: the state is its batch form, with decay and the stored type too; and without
// a second-order count and decay no denominator is too large.
func TestSlotsReplay(t *testing.T) {
	s, _ := randomStats(t, 0.5)
	x := randomHead(8, 96, 16, 2, 0.5)
	for _, v := range []struct {
		o    slotOptions
		most float64
	}{
		{slotOptions{window: 16, sinks: 4, cost: costProd}, 1e-6},
		{slotOptions{window: 16, sinks: 4, cost: costWard, kappa: 0.5, saturation: 0.25, decay: 1.0 / 64}, 1e-6},
		{slotOptions{window: 16, sinks: 4, cost: costProd, stored: storedF16}, 2e-3},
		// A merge rounds to a 254th of the largest number, and a slot here is merged some ten times.
		{slotOptions{window: 16, sinks: 4, cost: costProd, stored: stored8}, 2e-2},
	} {
		run, err := runSlots(context.Background(), slotted(t, x, s, v.o), v.o, 8, true)
		if err != nil {
			t.Fatal(err)
		}
		if e := run.replay.rel(); e > v.most || e == 0 {
			t.Errorf("%+v: replay %g", v.o, e)
		}
		if v.o == (slotOptions{window: 16, sinks: 4, cost: costProd}) && run.logMax > 1e-6 {
			t.Errorf("log(z'/z) is up to %g", run.logMax)
		}
	}
}

// allPairs is the plain form of slots: costs of all pairs in a matrix, brought up to date row by
// row, as the study had it. It returns which tokens share a slot.
func allPairs(x *head, mass, white []float32, mu []float32, o slotOptions, m int) []int {
	type slot struct {
		k, v, x  []float64
		count, w float64
	}
	n, d := m+1, x.d
	S := make([]*slot, n)
	cost := make([][]float64, n)
	for i := range cost {
		cost[i] = slices.Repeat([]float64{math.Inf(1)}, n)
	}
	dist := func(a, b []float64) (s float64) {
		for i := range a {
			s += (a[i] - b[i]) * (a[i] - b[i])
		}
		return s
	}
	row := func(i int) {
		for j := range n {
			c := math.Inf(1)
			if S[i] != nil && S[j] != nil && i != j {
				dk, dv := dist(S[i].x, S[j].x), dist(S[i].v, S[j].v)
				h := S[i].w * S[j].w / (S[i].w + S[j].w + 1e-30)
				s := dk / (1 + dk/4)
				if o.cost == costWard {
					c = h * (dk + dv)
				} else {
					c = h * h * s * (dv + 0.5*s*dist(S[j].v, make([]float64, d)))
				}
			}
			cost[i][j], cost[j][i] = c, c
		}
	}
	wide := func(x []float32) (out []float64) {
		for _, v := range x {
			out = append(out, float64(v))
		}
		return out
	}
	var label []int
	free, used := 0, 0
	for t := o.window; t < x.T; t++ {
		j := t - o.window
		if j < o.sinks {
			continue
		}
		i := free
		if used < n {
			i = used
			used++
		}
		S[i] = &slot{k: wide(x.K[j*d : (j+1)*d]), v: wide(x.V[j*d : (j+1)*d]), x: wide(white[j*d : (j+1)*d]),
			w: float64(mass[j]), count: linalg.Dot64(mu, x.K[j*d:(j+1)*d])}
		label = append(label, i)
		row(i)
		if used < n || len(label) < n {
			continue
		}
		p, q := 0, 0
		best := math.Inf(1)
		for a := range n {
			for b := range n {
				if cost[a][b] < best {
					best, p, q = cost[a][b], a, b
				}
			}
		}
		A, B := S[p], S[q]
		sum := math.Log(math.Exp(A.count) + math.Exp(B.count))
		a, b := math.Exp(A.count-sum), math.Exp(B.count-sum)
		for i := range d {
			A.k[i], A.v[i], A.x[i] = a*A.k[i]+b*B.k[i], a*A.v[i]+b*B.v[i], a*A.x[i]+b*B.x[i]
		}
		A.count, A.w = sum, A.w+B.w
		for t, l := range label {
			if l == q {
				label[t] = p
			}
		}
		S[q], free = nil, q
		row(q)
		row(p)
	}
	return label
}

// TestNearest: with a cheapest partner for each slot the same pairs are merged as with all
// pairs, for both costs.
func TestNearest(t *testing.T) {
	s, _ := randomStats(t, 0.5)
	for seed := range uint64(4) {
		x := randomHead(20+seed, 96, 16, 1, 0.5)
		mass, err := s.mass(context.Background(), x.K)
		if err != nil {
			t.Fatal(err)
		}
		white := s.whiten(x.K)
		for _, cost := range []string{costProd, costWard} {
			o := slotOptions{window: 8, sinks: 2, cost: cost}
			want := allPairs(x, mass, white, s.mu, o, 12)
			state := newSlots(o, 12, 16, s.mu, nil)
			for t := o.window; t < x.T; t++ {
				if j := t - o.window; j >= o.sinks {
					state.push(x.K[j*16:(j+1)*16], x.V[j*16:(j+1)*16], white[j*16:(j+1)*16], mass[j])
				}
			}
			for i, l := range state.label {
				if int(l) != want[i] {
					t.Fatalf("seed %d, %s: token %d is in slot %d, want %d", seed, cost, i, l, want[i])
				}
			}
		}
	}
}

// TestEvict: the tokens of the largest mass stay.
func TestEvict(t *testing.T) {
	s, _ := randomStats(t, 0.5)
	state := newSlots(slotOptions{evict: true}, 2, 16, s.mu, nil)
	x := randomHead(5, 8, 16, 1, 0.5)
	for i, w := range []float32{3, 1, 2, 5, 4} {
		state.push(x.K[i*16:(i+1)*16], x.V[i*16:(i+1)*16], x.K[i*16:(i+1)*16], w)
	}
	var kept []int
	for i, l := range state.label {
		if l >= 0 {
			kept = append(kept, i)
		}
	}
	if !slices.Equal(kept, []int{3, 4}) {
		t.Errorf("tokens %v are kept", kept)
	}
}

// weights compares estimated weights with the exact ones, for keys up to the query's own.
func weights(x *head, P []float32) float64 {
	var diff, norm float64
	for r := range x.G * x.T {
		for j := range r%x.T + 1 {
			e := float64(x.e[r*x.T+j])
			diff += (float64(P[r*x.T+j]) - e) * (float64(P[r*x.T+j]) - e)
			norm += e * e
		}
	}
	return math.Sqrt(diff / norm)
}

// TestFeatures: where a feature map must be nearly exact it is.
func TestFeatures(t *testing.T) {
	ctx := context.Background()
	s, heads := randomStats(t, 0.02)
	x := randomHead(9, 96, 16, 2, 0.02)
	f, err := taylor(ctx, s, heads, 1+16+16*17/2)
	if err != nil {
		t.Fatal(err)
	}
	if e := weights(x, f(x)); e > 1e-3 {
		t.Errorf("Taylor in all directions: %g", e)
	}
	if e := weights(x, favor(s, heads, 4096, 1)(x)); e > 0.02 {
		t.Errorf("4096 random features: %g", e)
	}
	if few := weights(x, favor(s, heads, 8, 1)(x)); few < 0.02 {
		t.Errorf("8 random features: %g", few)
	}
	// Each key its own centre.
	b := &codebook{s: s, m: x.T, white: s.whiten(less(x.K, s.keyMean)), centres: x.K}
	b.norms = norms(b.white, 16)
	if e := weights(x, b.weights(x)); e > 1e-5 {
		t.Errorf("a codebook of the keys themselves: %g", e)
	}
	c, err := fitCodebook(ctx, s, heads, 16)
	if err != nil {
		t.Fatal(err)
	}
	if e := c.replay(x).rel(); e > 1e-5 || e == 0 {
		t.Errorf("replay %g", e)
	}
}

// TestMass compares with the definition.
func TestMass(t *testing.T) {
	s, heads := randomStats(t, 0.5)
	got, err := s.mass(context.Background(), heads[0].K)
	if err != nil {
		t.Fatal(err)
	}
	want := 0.0
	for i, z := range s.logZ {
		e := math.Exp(math.Min(0, linalg.Dot64(s.queries[i*16:(i+1)*16], heads[0].K[5*16:6*16])-float64(z)))
		want += e * e / float64(len(s.logZ))
	}
	if d := math.Abs(float64(got[5])/math.Sqrt(want) - 1); d > 1e-5 {
		t.Errorf("mass of key 5 is %g, want %g", got[5], math.Sqrt(want))
	}
	if z := fmath.Log(heads[0].Z[24]) + float64(heads[0].c[24]); float32(z) != s.logZ[0] {
		t.Errorf("the sample begins with log Z %g, want %g", s.logZ[0], z)
	}
}

// TestEightBits: a constant that all keys share, as a bias makes it, drops out of softmax, and
// takes nothing of the eight bits either.
func TestEightBits(t *testing.T) {
	const d = 16
	apart := func(constant float32) float64 {
		shift := func(x *head) *head {
			for i := 0; i < len(x.K); i += d {
				x.K[i] += constant
			}
			x.exact()
			return x
		}
		s, err := fitStats(context.Background(), []*head{shift(randomHead(5, 96, d, 2, 0.5))}, 64)
		if err != nil {
			t.Fatal(err)
		}
		x := shift(randomHead(8, 96, d, 2, 0.5))
		o := slotOptions{window: 16, sinks: 4, cost: costProd, stored: stored8}
		run, err := runSlots(context.Background(), slotted(t, x, s, o), o, 96, false) // nothing is merged
		if err != nil {
			t.Fatal(err)
		}
		return x.compare(run.O).rel()
	}
	plain, shifted := apart(0), apart(100)
	if plain == 0 || shifted > 1.2*plain {
		t.Errorf("relative error %g, with a constant of 100 %g", plain, shifted)
	}
}
