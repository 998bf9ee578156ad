package kvcache

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/phaseconv/phaseconv/format/dtype"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/kernels/rope"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// groupedConfig is a model of one layer with heads of keys of d and values of vd numbers.
func groupedConfig(heads, d, vd int) *family.Config {
	c := codedConfig(1, d)
	c.Layers[0].HeadShape = family.HeadShape{Heads: heads, KVHeads: heads, HeadDim: d, ValueDim: vd}
	return c
}

func randomGroup(t *testing.T, r *rand.Rand, parts []codec.Part, d, vd, b int) *codec.Group {
	t.Helper()
	size := 0
	gains := make([]float32, len(parts))
	for i, p := range parts {
		size += d
		if p.Value {
			size += vd - d
		}
		gains[i] = 1 + 0.25*float32(i)
	}
	m := normals(r, b*size)
	code, err := codec.New(codec.Frame, size, b, normals(r, size), m, m)
	if err != nil {
		t.Fatal(err)
	}
	g, err := codec.NewGroup(code, parts, d, vd, gains)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// TestGroups: scores and sums of a cache of groups are those of attention, in float64, over what
// a runtime stores: sinks and each query's own latest tokens exact, all others decoded, keys in
// the frame of their block. Groups of keys alone, of values alone, and of both.
func TestGroups(t *testing.T) {
	const heads, d, vd, T, anchor, rows, pos = 3, 16, 8, 50, 16, 5, 41
	cfg := groupedConfig(heads, d, vd)
	r := rand.New(rand.NewPCG(7, 7))
	k, v := normals(r, T*heads*d), normals(r, T*heads*vd)
	q, p := normals(r, rows*d), make([]float32, rows*T)
	for i := range rows {
		for j := range pos + i + 1 {
			p[i*T+j] = r.Float32()
		}
	}
	key := func(h int) codec.Part { return codec.Part{Head: h} }
	val := func(h int) codec.Part { return codec.Part{Head: h, Value: true} }
	for name, parts := range map[string][][]codec.Part{
		"joint":  {{key(0), key(1), key(2), val(0), val(1), val(2)}},
		"spans":  {{key(0), key(1), val(0), val(1)}, {key(2), val(2)}},
		"keys":   {{key(0), key(1), key(2)}},
		"values": {{val(0), val(1)}, {val(2)}},
	} {
		var groups []*codec.Group
		for _, x := range parts {
			groups = append(groups, randomGroup(t, r, x, d, vd, 40))
		}
		policies := []Policy{{}, {Anchor: anchor, Sink: 3}, {Anchor: anchor, Sink: 3, Recent: 7}, {Recent: 60}}
		for n, policy := range append(policies, policies...) {
			cache, err := NewGroups(cfg, [][]*codec.Group{groups}, policy)
			if err != nil {
				t.Fatal(err)
			}
			// Kernels round queries and weights, as package onebit says: here by at most 0.05.
			tolerance := 1e-3
			if cache.Kernels = n >= len(policies); cache.Kernels {
				tolerance = 0.06
			}
			w, err := cache.Window(t.Context(), 0, 0, k, v)
			if err != nil {
				t.Fatal(err)
			}
			hats := decodeSlowly(cfg, groups, policy, k, v)
			for h := range heads {
				keys, vals := head(k, heads*d, h, d), head(v, heads*vd, h, vd)
				s, err := w.Keys(0, h, append([]float32(nil), keys...))
				if err != nil {
					t.Fatal(err)
				}
				if err := w.Values(0, h, vals); err != nil {
					t.Fatal(err)
				}
				s = s.Fork()
				scores, sums := make([]float32, rows*T), make([]float32, rows*vd)
				s.Score(refmodel.Tile{Dst: scores, LD: T, Q: q, LDQ: d, Rows: rows, Pos: pos, To: pos + rows})
				if x, ok := s.(refmodel.Summer); ok {
					x.Sum(sums, vd, p, T, vals, rows, pos, 0)
				} else {
					for i := range rows {
						for j := range T {
							for c := range vd {
								sums[i*vd+c] += p[i*T+j] * vals[j*vd+c]
							}
						}
					}
				}
				exact := map[codec.Part][]float32{key(h): keys, val(h): head(v, heads*vd, h, vd)}
				of := func(part codec.Part, row, j int) []float32 {
					n := len(exact[part]) / T
					if hat, ok := hats[part]; ok && j <= pos+row-policy.Recent {
						return hat[j*n : (j+1)*n]
					} else if !ok {
						return exact[part][j*n : (j+1)*n]
					}
					return rounded(exact[part][j*n : (j+1)*n])
				}
				for i := range rows {
					want := make([]float64, vd)
					for j := range pos + i + 1 {
						var score float64
						for c, x := range of(key(h), i, j) {
							score += float64(x) * float64(q[i*d+c])
						}
						if got := float64(scores[i*T+j]); math.Abs(got-score) > tolerance {
							t.Fatalf("%s, %+v, head %d, row %d, key %d: score %g, want %g", name, policy, h, i, j, got, score)
						}
						for c, x := range of(val(h), i, j) {
							want[c] += float64(x) * float64(p[i*T+j])
						}
					}
					for c, x := range want {
						if got := float64(sums[i*vd+c]); math.Abs(got-x) > tolerance {
							t.Fatalf("%s, %+v, head %d, row %d: sum %d is %g, want %g", name, policy, h, i, c, got, x)
						}
					}
				}
			}
		}
	}
}

func rounded(x []float32) []float32 {
	out := make([]float32, len(x))
	for i, v := range x {
		out[i] = dtype.F16Round(v)
	}
	return out
}

// decodeSlowly codes token by token and returns what each part of a group reads back as.
func decodeSlowly(cfg *family.Config, groups []*codec.Group, p Policy, k, v []float32) map[codec.Part][]float32 {
	y := &cfg.Layers[0]
	T := len(k) / (y.KVHeads * y.HeadDim)
	table := rope.NewTable(y.Rope, T)
	out := map[codec.Part][]float32{}
	for _, g := range groups {
		for n := range T {
			var row []float32
			block := n
			if p.Anchor > 0 {
				block = n % p.Anchor
			}
			for _, part := range g.Parts {
				x := append([]float32(nil), k[(n*y.KVHeads+part.Head)*y.HeadDim:][:y.HeadDim]...)
				if part.Value {
					x = append([]float32(nil), v[(n*y.KVHeads+part.Head)*y.ValueDim:][:y.ValueDim]...)
				} else if p.Anchor > 0 {
					table.ApplyInverse(x, n-block, cfg.Pairs)
				}
				row = append(row, x...)
			}
			words := make([]uint32, g.Words())
			alpha := g.Code.EncodeKey(row, words)
			g.DecodeRows(row, words, []float32{alpha})
			for i, part := range g.Parts {
				from, to := g.Range(i)
				x := append([]float32(nil), row[from:to]...)
				switch {
				case n < p.Sink && part.Value:
					x = rounded(v[(n*y.KVHeads+part.Head)*y.ValueDim:][:y.ValueDim])
				case n < p.Sink:
					x = rounded(k[(n*y.KVHeads+part.Head)*y.HeadDim:][:y.HeadDim])
				case !part.Value && p.Anchor > 0:
					table.Apply(x, n-block, cfg.Pairs)
				}
				out[part] = append(out[part], x...)
			}
		}
	}
	return out
}

// TestGroupsOfOneHead: a group of one head's keys is the code of those keys, whether RoPE turns
// all of a head, a part or nothing.
func TestGroupsOfOneHead(t *testing.T) {
	for _, turned := range []int{32, 8, 0} {
		testGroupOfOneHead(t, turned)
	}
}

func testGroupOfOneHead(t *testing.T, turned int) {
	const d, T = 32, 40
	cfg := codedConfig(1, d)
	if cfg.Layers[0].Rope.Dim = turned; turned == 0 {
		cfg.Layers[0].Rope = rope.Params{}
	}
	r := rand.New(rand.NewPCG(3, 3))
	m := normals(r, 48*d)
	code, err := codec.New(codec.Frame, d, 48, normals(r, d), m, m)
	if err != nil {
		t.Fatal(err)
	}
	g, err := codec.KeyGroup(code, 0)
	if err != nil {
		t.Fatal(err)
	}
	keys, vals, q := normals(r, T*d), normals(r, T*d), normals(r, d)
	p := Policy{Anchor: 16, Sink: 2, Recent: 5}
	tile := func(s refmodel.Scorer) []float32 {
		out := make([]float32, T)
		s.Score(refmodel.Tile{Dst: out, LD: T, Q: q, LDQ: d, Rows: 1, Pos: T - 1, To: T})
		return out
	}
	one, err := NewCodes(cfg, [][]*codec.Code{{code}}, p)
	if err != nil {
		t.Fatal(err)
	}
	s, err := one.Keys(0, 0, append([]float32(nil), keys...))
	if err != nil {
		t.Fatal(err)
	}
	joint, err := NewGroups(cfg, [][]*codec.Group{{g}}, p)
	if err != nil {
		t.Fatal(err)
	}
	w, err := joint.Window(t.Context(), 0, 0, keys, vals)
	if err != nil {
		t.Fatal(err)
	}
	x, err := w.Keys(0, 0, append([]float32(nil), keys...))
	if err != nil {
		t.Fatal(err)
	}
	if a, b := fmt.Sprint(tile(s)), fmt.Sprint(tile(x)); a != b {
		t.Errorf("%d dimensions turn: scores differ:\n%s\n%s", turned, a, b)
	}
	if _, ok := x.(refmodel.Summer); ok {
		t.Error("values that no group holds are added up in another way")
	}
	if _, err := NewGroups(cfg, nil, p); err == nil {
		t.Error("no layers are accepted")
	}
	if _, err := NewGroups(cfg, [][]*codec.Group{{g}}, Policy{Exceptions: 1}); err == nil {
		t.Error("exceptions are accepted")
	}
	if _, err := NewGroups(groupedConfig(2, d, d), [][]*codec.Group{{g}}, p); err == nil {
		t.Error("keys of one of two heads are accepted")
	}
}

// TestGroupsGivenKernels: the kernels on the signs of both groups give the scores and sums of what
// they decode to, within their rounding.
func TestGroupsGivenKernels(t *testing.T) {
	const d, T, sink = 32, 40, 2
	cfg := codedConfig(2, d)
	r := rand.New(rand.NewPCG(8, 2))
	parts := []codec.Part{{Head: 0}, {Head: 0, Value: true}}
	small := normals(r, 40*2*d)
	for i := range small {
		small[i] *= 0.2
	}
	base := randomGroup(t, r, parts, d, d, 40)
	given, err := randomGroup(t, r, parts, d, d, 48).Given(40, small)
	if err != nil {
		t.Fatal(err)
	}
	k, v, q, p := normals(r, 2*T*d), normals(r, 2*T*d), normals(r, d), make([]float32, T)
	for i := range p {
		p[i] = 1 / float32(T)
	}
	var scores, sums [2][]float32
	for kernels := range 2 {
		cache, err := NewGroups(cfg, [][]*codec.Group{{base}, {given}}, Policy{Anchor: 16, Sink: sink, Recent: 5})
		if err != nil {
			t.Fatal(err)
		}
		cache.Kernels = kernels == 1
		if _, err := cache.Window(t.Context(), 0, 0, k[:T*d], v[:T*d]); err != nil {
			t.Fatal(err)
		}
		w, err := cache.Window(t.Context(), 1, 0, k[T*d:], v[T*d:])
		if err != nil {
			t.Fatal(err)
		}
		s, err := w.Keys(1, 0, append([]float32(nil), k[T*d:]...))
		if err != nil {
			t.Fatal(err)
		}
		values := append([]float32(nil), v[T*d:]...)
		if err := w.Values(1, 0, values); err != nil {
			t.Fatal(err)
		}
		scores[kernels], sums[kernels] = make([]float32, T), make([]float32, d)
		s = s.Fork()
		s.Score(refmodel.Tile{Dst: scores[kernels], LD: T, Q: q, LDQ: d, Rows: 1, Pos: T - 1, To: T})
		s.(refmodel.Summer).Sum(sums[kernels], d, p, T, values, 1, T-1, 0)
	}
	for i, x := range [2][2][]float32{scores, sums} {
		for j := range x[0] {
			if d := math.Abs(float64(x[0][j]) - float64(x[1][j])); !(d < 0.06) {
				t.Errorf("%d: number %d: %g decoded, %g by kernels", i, j, x[0][j], x[1][j])
			}
		}
	}
}

// TestGroupsGiven: a layer that is given the one below decodes to what that says and its own code
// adds; each window has its own, and without the layer below there is nothing.
func TestGroupsGiven(t *testing.T) {
	const d, T, sink = 16, 24, 2
	cfg := codedConfig(2, d)
	r := rand.New(rand.NewPCG(8, 1))
	parts := []codec.Part{{Head: 0}, {Head: 0, Value: true}}
	base := randomGroup(t, r, parts, d, d, 40)
	given, err := randomGroup(t, r, parts, d, d, 40).Given(40, normals(r, 40*2*d))
	if err != nil {
		t.Fatal(err)
	}
	cache, err := NewGroups(cfg, [][]*codec.Group{{base}, {given}}, Policy{Sink: sink})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cache.Window(t.Context(), 1, 0, normals(r, T*d), normals(r, T*d)); err == nil {
		t.Error("the layer below is not missed")
	}
	var k, v [2][2][]float32 // [layer][window]
	for l := range k {
		for w := range k[l] {
			k[l][w], v[l][w] = normals(r, T*d), normals(r, T*d)
		}
	}
	for w := range 2 {
		if _, err := cache.Window(t.Context(), 0, w, k[0][w], v[0][w]); err != nil {
			t.Fatal(err)
		}
	}
	concat := func(k, v []float32) (rows []float32) {
		for i := sink; i < T; i++ {
			rows = append(append(rows, k[i*d:(i+1)*d]...), v[i*d:(i+1)*d]...)
		}
		return rows
	}
	encode := func(g *codec.Group, rows []float32) ([]uint32, []float32) {
		words, alpha := make([]uint32, (T-sink)*g.Words()), make([]float32, T-sink)
		if err := g.EncodeRows(t.Context(), rows, words, alpha); err != nil {
			t.Fatal(err)
		}
		return words, alpha
	}
	for w := range 2 {
		x, err := cache.Window(t.Context(), 1, w, k[1][w], v[1][w])
		if err != nil {
			t.Fatal(err)
		}
		words, alpha := encode(base, concat(k[0][w], v[0][w]))
		rows := concat(k[1][w], v[1][w])
		predicted, hat := make([]float32, len(rows)), make([]float32, len(rows))
		given.Predict(predicted, words, alpha)
		for i, p := range predicted {
			rows[i] -= p
		}
		words, alpha = encode(given, rows)
		given.DecodeRows(hat, words, alpha)
		values := append([]float32(nil), v[1][w]...)
		if err := x.Values(1, 0, values); err != nil {
			t.Fatal(err)
		}
		for i := sink; i < T; i++ {
			for j := range d {
				at := (i-sink)*2*d + d + j
				if want := hat[at] + predicted[at]; values[i*d+j] != want {
					t.Fatalf("window %d, token %d: value %g, want %g", w, i, values[i*d+j], want)
				}
			}
		}
	}
}
