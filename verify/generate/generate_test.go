package generate

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/internal/keydata"
	"github.com/phaseconv/phaseconv/internal/tiny"
	"github.com/phaseconv/phaseconv/kernels/rope"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/verify/kvcache"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// batch returns the logits of every position of a window, as verify computes them.
func batch(t *testing.T, c *checkpoint.Checkpoint, window []int32, v *refmodel.Variant) [][]float32 {
	t.Helper()
	m := refmodel.New(c.Config, c, 1)
	if err := m.Run(t.Context(), [][]int32{window}, []*refmodel.Variant{v}, refmodel.Options{}); err != nil {
		t.Fatal(err)
	}
	normed, err := m.FinalNorm(v.Hidden)
	if err != nil {
		t.Fatal(err)
	}
	all := make([]float32, len(window)*c.Config.Vocab)
	if err := m.Logits(t.Context(), [][]float32{all}, [][]float32{normed}, 0, c.Config.Vocab); err != nil {
		t.Fatal(err)
	}
	var out [][]float32
	for i := range window {
		out = append(out, all[i*c.Config.Vocab:(i+1)*c.Config.Vocab])
	}
	return out
}

// farthest feeds a window, a prompt first and then one token at a time, and returns the
// largest difference of the logits from what is wanted.
func farthest(t *testing.T, c *checkpoint.Checkpoint, s Storage, window []int32, prompt int, want [][]float32) float64 {
	t.Helper()
	x, err := NewSession(refmodel.New(c.Config, c, 2), s, len(window)+5)
	if err != nil {
		t.Fatal(err)
	}
	most := 0.0
	for at := 0; at < len(window); {
		n := 1
		if at == 0 {
			n = prompt
		}
		got, err := x.Feed(t.Context(), window[at:at+n])
		if err != nil {
			t.Fatal(err)
		}
		at += n
		if x.Len() != at {
			t.Fatalf("%d tokens, want %d", x.Len(), at)
		}
		for i, v := range got {
			d := math.Abs(float64(v) - float64(want[at-1][i]))
			if !(d <= most) {
				most = d
			}
		}
	}
	return most
}

// TestFloat: a float cache gives the bits of the forward pass over the whole text.
func TestFloat(t *testing.T) {
	for _, fam := range []string{"llama", "gemma3_text", "mixtral", "qwen3"} {
		c := tiny.Open(t, fam, tiny.Options{Layers: 2})
		window := tiny.Windows(c.Config, 1, 90)[0]
		want := batch(t, c, window, &refmodel.Variant{})
		for _, prompt := range []int{1, 70} {
			if d := farthest(t, c, Storage{}, window, prompt, want); d != 0 {
				t.Errorf("%s, prompt of %d: logits differ by %g", fam, prompt, d)
			}
		}
	}
}

// TestKeyCodes: codes of keys give the bits of verify's cache with its kernels.
func TestKeyCodes(t *testing.T) {
	for _, fam := range []string{"llama", "gemma3_text"} {
		c := tiny.Open(t, fam, tiny.Options{Layers: 2})
		window := tiny.Windows(c.Config, 1, 90)[0]
		var codes [][]*codec.Code
		for l := range c.Config.Layers {
			var row []*codec.Code
			for h := range c.Config.Layers[l].KVHeads {
				code, err := codec.DataFree("random", c.Config.Layers[l].HeadDim, 1, l, h)
				if err != nil {
					t.Fatal(err)
				}
				row = append(row, code)
			}
			codes = append(codes, row)
		}
		groups, err := KeyGroups(codes)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range []kvcache.Policy{
			{}, {Anchor: 16}, {Anchor: 32, Sink: 4, Recent: 9}, {Anchor: 16, Sink: 3, Exceptions: 2},
			{Sink: 100}, {Recent: 40, Exceptions: 1},
		} {
			cache, err := kvcache.NewCodes(c.Config, codes, p)
			if err != nil {
				t.Fatal(err)
			}
			cache.Kernels = true
			want := batch(t, c, window, &refmodel.Variant{Cache: cache})
			for _, prompt := range []int{1, 70} {
				if d := farthest(t, c, Storage{groups, p}, window, prompt, want); d != 0 {
					t.Errorf("%s, %+v, prompt of %d: logits differ by %g", fam, p, prompt, d)
				}
			}
		}
	}
}

// layerGroups makes random groups of a layer's keys, values or both.
func layerGroups(t *testing.T, r *rand.Rand, y *family.Layer, keys, values bool) []*codec.Group {
	t.Helper()
	spans, err := codec.Spans(y.KVHeads, y.HeadDim, y.HeadDim, 2*y.KVHeads*y.HeadDim, keys, values)
	if err != nil {
		t.Fatal(err)
	}
	var out []*codec.Group
	for _, parts := range spans {
		d := len(parts) * y.HeadDim
		b := (d*3/2 + 7) / 8 * 8
		decode := keydata.Normal(r, b*d)
		for i := range decode {
			decode[i] /= float32(b)
		}
		code, err := codec.New(codec.Frame, d, b, make([]float32, d), decode, slices.Clone(decode))
		if err != nil {
			t.Fatal(err)
		}
		gains := make([]float32, len(parts))
		for i, p := range parts {
			gains[i] = 1.1
			if p.Value {
				gains[i] = 1.4
			}
		}
		g, err := codec.NewGroup(code, parts, y.HeadDim, y.HeadDim, gains)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, g)
	}
	return out
}

// groupCases are the ways to code keys and values in groups.
func groupCases(t *testing.T, r *rand.Rand, cfg *family.Config) map[string][][]*codec.Group {
	out := map[string][][]*codec.Group{}
	for l := range cfg.Layers {
		y := &cfg.Layers[l]
		out["values"] = append(out["values"], layerGroups(t, r, y, false, true))
		out["apart"] = append(out["apart"], append(layerGroups(t, r, y, true, false), layerGroups(t, r, y, false, true)...))
		out["joint"] = append(out["joint"], layerGroups(t, r, y, true, true))
	}
	out["given"] = givenGroups(t, r, cfg)
	return out
}

// givenGroups are joint groups of which every second layer is given the one below.
func givenGroups(t *testing.T, r *rand.Rand, cfg *family.Config) [][]*codec.Group {
	t.Helper()
	var out [][]*codec.Group
	for l := range cfg.Layers {
		groups := layerGroups(t, r, &cfg.Layers[l], true, true)
		for i, g := range groups {
			if l%2 == 0 {
				continue
			}
			below := make([]float32, out[l-1][i].B()*g.D())
			for j := range below {
				below[j] = float32(0.1 * r.NormFloat64())
			}
			var err error
			if groups[i], err = g.Given(out[l-1][i].B(), below); err != nil {
				t.Fatal(err)
			}
		}
		out = append(out, groups)
	}
	return out
}

var groupPolicies = []kvcache.Policy{{Anchor: 16}, {Anchor: 64, Sink: 4, Recent: 20}}

// TestGroups: codes of values, of both in groups of their own and of both in one group give
// the bits of verify's cache with its kernels.
func TestGroups(t *testing.T) {
	testGroups(t, tiny.Open(t, "llama", tiny.Options{Layers: 2}), groupPolicies, 1, 130)
}

// TestGroupsTurned: the same where RoPE turns a part of the heads of a layer, and nothing of those
// of another.
func TestGroupsTurned(t *testing.T) {
	c := tiny.Open(t, "llama", tiny.Options{Layers: 2})
	c.Config.Layers[0].Rope.Dim, c.Config.Layers[1].Rope = 4, rope.Params{}
	testGroups(t, c, groupPolicies[1:], 130)
}

func testGroups(t *testing.T, c *checkpoint.Checkpoint, policies []kvcache.Policy, prompts ...int) {
	t.Helper()
	window := tiny.Windows(c.Config, 1, 150)[0]
	for name, groups := range groupCases(t, rand.New(rand.NewPCG(5, 1)), c.Config) {
		for _, p := range policies {
			cache, err := kvcache.NewGroups(c.Config, groups, p)
			if err != nil {
				t.Fatal(err)
			}
			cache.Kernels = true
			want := batch(t, c, window, &refmodel.Variant{Cache: cache})
			for _, prompt := range prompts {
				if d := farthest(t, c, Storage{groups, p}, window, prompt, want); d != 0 {
					t.Errorf("%s, %+v, prompt of %d: logits differ by %g", name, p, prompt, d)
				}
			}
		}
	}
}

// TestDecoded: beside decoded keys and values what is left is the rounding of queries and of
// weights, a thousandth of scores and sums. One layer, because a sign of a second one may be
// the other way once a bit differs.
func TestDecoded(t *testing.T) {
	c := tiny.Open(t, "llama", tiny.Options{Layers: 1})
	window := tiny.Windows(c.Config, 1, 150)[0]
	float := batch(t, c, window, &refmodel.Variant{})
	for name, groups := range groupCases(t, rand.New(rand.NewPCG(5, 1)), c.Config) {
		for _, p := range groupPolicies {
			cache, err := kvcache.NewGroups(c.Config, groups, p)
			if err != nil {
				t.Fatal(err)
			}
			want := batch(t, c, window, &refmodel.Variant{Cache: cache})
			lost := 0.0 // what the code itself costs
			for i := range want {
				for j, v := range want[i] {
					lost = max(lost, math.Abs(float64(v)-float64(float[i][j])))
				}
			}
			if d := farthest(t, c, Storage{groups, p}, window, 1, want); !(d < lost/100) {
				t.Errorf("%s, %+v: logits differ by %g, the code costs %g", name, p, d, lost)
			}
		}
	}
}

// TestBytes counts what a cache of known numbers holds.
func TestBytes(t *testing.T) {
	c := tiny.Open(t, "llama", tiny.Options{Layers: 1})
	y := &c.Config.Layers[0]
	width := y.KVHeads * y.HeadDim
	window := tiny.Windows(c.Config, 1, 41)[0]
	groups := layerGroups(t, rand.New(rand.NewPCG(6, 1)), y, true, true)
	for name, x := range map[string]struct {
		s    Storage
		want Bytes
	}{
		"float": {Storage{}, Bytes{Tokens: 41, Float: 2 * 4 * 41 * width}},
		"joint": {Storage{[][]*codec.Group{groups}, kvcache.Policy{Anchor: 16, Sink: 4, Recent: 5}},
			Bytes{Tokens: 41, Coded: 48*4*groups[0].Words() + 41*2 + 2*9*width*2, CodedF16: 2 * 2 * 41 * width}},
	} {
		s, err := NewSession(refmodel.New(c.Config, c, 1), x.s, 50)
		if err != nil {
			t.Fatal(err)
		}
		for i := range window {
			if _, err := s.Feed(t.Context(), window[i:i+1]); err != nil {
				t.Fatal(err)
			}
		}
		if got := s.Bytes(); got != x.want {
			t.Errorf("%s: %+v, want %+v", name, got, x.want)
		}
	}
}

func TestRun(t *testing.T) {
	c := tiny.Open(t, "llama", tiny.Options{Layers: 2})
	m := refmodel.New(c.Config, c, 1)
	o := Options{Prompt: []int32{1, 2, 3}, Tokens: 12, Temperature: 1, Seed: 7}
	var seen []int32
	o.Emit = func(id int32) error { seen = append(seen, id); return nil }
	a, err := Run(t.Context(), m, Storage{}, o)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(seen, a.Tokens) || a.Bytes.Tokens < 3 {
		t.Errorf("%+v, emitted %v", a, seen)
	}
	if b, err := Run(t.Context(), m, Storage{}, o); err != nil || !slices.Equal(a.Tokens, b.Tokens) {
		t.Errorf("the same seed gives %v and %v, %v", a.Tokens, b.Tokens, err)
	}
	o.Seed = 8
	if b, err := Run(t.Context(), m, Storage{}, o); err != nil || slices.Equal(a.Tokens, b.Tokens) {
		t.Errorf("another seed gives %v and %v, %v", a.Tokens, b.Tokens, err)
	}
	stop := errors.New("stop")
	o.Emit = func(int32) error { return stop }
	if _, err := Run(t.Context(), m, Storage{}, o); !errors.Is(err, stop) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Run(ctx, m, Storage{}, o); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	for name, o := range map[string]Options{"no prompt": {Tokens: 1}, "no tokens": {Prompt: []int32{1}},
		"temperature": {Prompt: []int32{1}, Tokens: 1, Temperature: -1}, "context": {Prompt: []int32{1}, Tokens: c.Config.Context},
		"vocabulary": {Prompt: []int32{int32(c.Config.Vocab)}, Tokens: 1}} {
		if _, err := Run(t.Context(), m, Storage{}, o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestSampler(t *testing.T) {
	greedy, err := NewSampler(0, 1)
	if err != nil {
		t.Fatal(err)
	}
	if id, err := greedy.Next([]float32{1, 3, 3, 2}); err != nil || id != 1 {
		t.Errorf("token %d, %v; want the first of the most likely", id, err)
	}
	if _, err := greedy.Next([]float32{0, float32(math.NaN())}); err == nil {
		t.Error("a logit that is not a number")
	}
	s, err := NewSampler(2, 3)
	if err != nil {
		t.Fatal(err)
	}
	const n = 20000
	var count [3]int
	for range n {
		id, err := s.Next([]float32{0, 2, float32(math.Inf(-1))})
		if err != nil {
			t.Fatal(err)
		}
		count[id]++
	}
	// p = e/(1+e) at temperature 2; five standard deviations.
	p := math.E / (1 + math.E)
	if got := float64(count[1]) / n; math.Abs(got-p) > 5*math.Sqrt(p*(1-p)/n) || count[2] != 0 {
		t.Errorf("counts %v, want a share of %v", count, p)
	}
}

func TestNewSessionRefuses(t *testing.T) {
	c := tiny.Open(t, "llama", tiny.Options{Layers: 1})
	y := &c.Config.Layers[0]
	g := layerGroups(t, rand.New(rand.NewPCG(6, 1)), y, true, true)
	for name, s := range map[string]Storage{
		"layers": {Groups: [][]*codec.Group{g, g}}, "parts twice": {Groups: [][]*codec.Group{append(g, g...)}},
		"anchor": {[][]*codec.Group{g}, kvcache.Policy{Anchor: 24}}, "exceptions": {[][]*codec.Group{g}, kvcache.Policy{Exceptions: 1}},
		"sink": {[][]*codec.Group{g}, kvcache.Policy{Sink: -1}},
	} {
		if _, err := NewSession(refmodel.New(c.Config, c, 1), s, 20); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	x, err := NewSession(refmodel.New(c.Config, c, 1), Storage{}, 2)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := x.Feed(t.Context(), []int32{1, 2, 3}); err == nil {
		t.Error("more tokens than the session's limit")
	}
}
