package refmodel

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/internal/tiny"
	"github.com/phaseconv/phaseconv/kernels/gemm"
	"github.com/phaseconv/phaseconv/kernels/rope"
)

// gradients are those of all layers, windows after each other.
type gradients struct{ k, v [][]float32 }

func collect(t *testing.T, m *Model, windows [][]int32, o GradientOptions) gradients {
	t.Helper()
	out := gradients{make([][]float32, len(m.Config.Layers)), make([][]float32, len(m.Config.Layers))}
	err := m.Gradients(t.Context(), windows, o, func(g *Gradient) error {
		out.k[g.Layer] = append(out.k[g.Layer], g.DK...)
		out.v[g.Layer] = append(out.v[g.Layer], g.DV...)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// A slope is what the reference's loss does along a random direction of keys or values of a layer.
type slope struct {
	layer, kind int // kind 0: keys
	dir         []float64
	diff        float64 // the central difference
}

func (r *reference) slopes(windows, labels [][]int32, from int) (out []slope) {
	const step = 1e-5
	random := rand.New(rand.NewPCG(7, 7))
	for l := range r.c.Layers {
		if r.c.Layers[l].Owner != l {
			continue
		}
		per := len(windows[0]) * r.c.Layers[l].KVHeads * r.c.Layers[l].HeadDim
		for kind := range 2 {
			s := slope{layer: l, kind: kind, dir: make([]float64, per*len(windows))}
			for i := range s.dir {
				s.dir[i] = random.NormFloat64()
			}
			for w, tokens := range windows {
				loss := func(sign float64) float64 {
					r.move = func(layer int, k, v []float64) {
						if layer == l {
							for i, x := range s.dir[w*per : (w+1)*per] {
								[][]float64{k, v}[kind][i] += sign * step * x
							}
						}
					}
					return r.loss(tokens, labels[w], from)
				}
				s.diff += (loss(1) - loss(-1)) / (2 * step)
			}
			out = append(out, s)
		}
	}
	return out
}

// worst returns the largest error of gradients, relative to what a random direction shows of one,
// |g| |direction| / sqrt(n).
func (g gradients) worst(slopes []slope) (worst float64, where string) {
	for _, s := range slopes {
		grad := [][][]float32{g.k, g.v}[s.kind][s.layer]
		var along, square, length float64
		for i, x := range s.dir {
			along += x * float64(grad[i])
			square += float64(grad[i]) * float64(grad[i])
			length += x * x
		}
		e := math.Abs(s.diff-along) / math.Sqrt(square*length/float64(len(grad)))
		if !(e <= worst) {
			worst, where = e, fmt.Sprintf("%s of layer %d: %g, by differences %g", []string{"keys", "values"}[s.kind], s.layer,
				along, s.diff)
		}
	}
	return worst, where
}

// gradientTolerance is some ten times what float32 leaves of these gradients: up to 4e-6 was
// seen.
const gradientTolerance = 4e-5

func gradientCases() []struct {
	family string
	o      tiny.Options
} {
	cases := []struct {
		family string
		o      tiny.Options
	}{
		{"llama", tiny.Options{Bias: true, Untied: true, Config: map[string]any{"rope_scaling": map[string]any{
			"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}}}},
		{"gemma3_text", tiny.Options{Window: 5, Config: map[string]any{"final_logit_softcapping": 3.0}}},
		{"qwen2", tiny.Options{Vocab: headPiece + 100, Hidden: 24, Heads: 6, HeadDim: 4, FFN: 20}},
	}
	for _, f := range tiny.Families {
		if !slices.ContainsFunc(cases, func(x struct {
			family string
			o      tiny.Options
		}) bool {
			return x.family == f
		}) {
			cases = append(cases, struct {
				family string
				o      tiny.Options
			}{f, tiny.Options{}})
		}
	}
	return cases
}

// TestGradients: the gradients of every family are those that differences show, or the family's
// layers are refused by name.
func TestGradients(t *testing.T) {
	for _, x := range gradientCases() {
		t.Run(x.family, func(t *testing.T) {
			x.o.Layers = 3
			dir := t.TempDir()
			tiny.HF(t, dir, x.family, x.o)
			c, err := checkpoint.Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			m := New(c.Config, c, 2)
			windows := tiny.Windows(c.Config, 2, 11)
			labels := tiny.Windows(c.Config, 2, 11)
			slices.Reverse(labels)
			labels[0][7], labels[1][9] = -1, int32(c.Config.Vocab-1)
			o := GradientOptions{Labels: labels, From: 3}
			if err := c.Config.Require("", 0); err != nil {
				err := m.Gradients(t.Context(), windows, o, func(*Gradient) error { return nil })
				if err == nil || !strings.Contains(err.Error(), "the backward pass does not support") {
					t.Error(err)
				}
				return
			}
			g := collect(t, m, windows, o)
			slopes := (&reference{t: t, c: c.Config, w: c}).slopes(windows, labels, 3)
			e, where := g.worst(slopes)
			t.Logf("largest error %.1e, %s", e, where)
			if e > gradientTolerance {
				t.Errorf("off by %g: %s", e, where)
			}
			if again := collect(t, New(c.Config, c, 3), windows, o); !slices.EqualFunc(g.k, again.k, slices.Equal) ||
				!slices.EqualFunc(g.v, again.v, slices.Equal) {
				t.Error("gradients depend on the number of threads")
			}
			// It can fail: what a slightly different model says is far off.
			for _, mistake := range []func(c *family.Config){
				func(c *family.Config) { c.Layers[1].Scale *= 1.05 },
				func(c *family.Config) { c.Layers[2].Window = 4 },
				func(c *family.Config) { c.NormEps *= 1e5 },
				func(c *family.Config) { c.Layers[2].FFN.Activation = 1 - c.Layers[2].FFN.Activation },
			} {
				cfg := c.Config.Clone()
				mistake(cfg)
				if e, _ := collect(t, New(cfg, c, 2), windows, o).worst(slopes); e < 50*gradientTolerance {
					t.Errorf("a mistake shows as %g only", e)
				}
			}
			g.k, g.v = g.v, g.k
			if e, _ := g.worst(slopes); e < 50*gradientTolerance {
				t.Errorf("keys and values exchanged: %g", e)
			}
		})
	}
}

// TestGradientsOfFixtures: the same for checkpoints of all families, of which some that differ most are always
// measured. The reference's logits are those of the forward pass.
func TestGradientsOfFixtures(t *testing.T) {
	names := []string{"cohere2", "gemma2", "gemma4", "gemma4-moe", "glm4moe", "gptoss", "granite", "hunyuan",
		"ministral3", "olmo2"}
	if os.Getenv("PHASECONV_LONG") != "" {
		names = nil
		for _, dir := range models(t) {
			if name := filepath.Base(dir); name != "gemma3-62" { // in 62 layers float32 loses more
				names = append(names, name)
			}
		}
	}
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			c, err := checkpoint.Open(tiny.Folder(t, "testdata/"+name))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			windows, labels := tiny.Windows(c.Config, 1, 10), tiny.Windows(c.Config, 2, 10)[1:]
			o := GradientOptions{Labels: labels, From: 3}
			r := &reference{t: t, c: c.Config, w: c}
			sameLogits(t, r, New(c.Config, c, 2), windows)
			slopes := r.slopes(windows, labels, 3)
			e, where := collect(t, New(c.Config, c, 2), windows, o).worst(slopes)
			t.Logf("largest error %.1e, %s", e, where)
			if e > gradientTolerance {
				t.Errorf("off by %g: %s", e, where)
			}
			// It can fail: a model that differs in one layer, such as one that reads another's keys, is far off.
			for l := range c.Config.Layers {
				if l < len(c.Config.Layers)-1 && c.Config.Layers[l].Owner == l {
					continue
				}
				cfg := c.Config.Clone()
				cfg.Layers[l].Window = 2
				if e, _ := collect(t, New(cfg, c, 2), windows, o).worst(slopes); e < 50*gradientTolerance {
					t.Errorf("layer %d with a window of 2: %g only", l, e)
				}
			}
		})
	}
}

func sameLogits(t *testing.T, r *reference, m *Model, windows [][]int32) {
	t.Helper()
	v := &Variant{}
	if err := m.Run(t.Context(), windows, []*Variant{v}, Options{}); err != nil {
		t.Fatal(err)
	}
	x, err := m.FinalNorm(v.Hidden)
	if err != nil {
		t.Fatal(err)
	}
	z := make([]float32, len(windows[0])*r.c.Vocab)
	if err := m.Logits(t.Context(), [][]float32{z}, [][]float32{x}, 0, r.c.Vocab); err != nil {
		t.Fatal(err)
	}
	if e := far(z, r.logits(windows[0])); e > 1e-4 { // that of TestOracle
		t.Errorf("logits are %g off those of the reference", e)
	}
}

// TestGradientBytes: the same bytes on every machine and instruction set. A change of the
// arithmetic or of tiny's models changes them, nothing else may.
func TestGradientBytes(t *testing.T) {
	for f, want := range map[string]string{"gemma3_text": "ba18fe29247b", "olmoe": "ca1bfb4ee53f"} {
		c := tiny.Open(t, f, tiny.Options{Window: 16})
		g := collect(t, New(c.Config, c, 2), tiny.Windows(c.Config, 2, 40), GradientOptions{Seed: 9})
		h := sha256.New()
		for _, x := range [][][]float32{g.k, g.v} {
			for _, y := range x {
				if err := binary.Write(h, binary.LittleEndian, y); err != nil {
					t.Fatal(err)
				}
			}
		}
		if got := hex.EncodeToString(h.Sum(nil)[:6]); got != want {
			t.Errorf("%s: %s, want %s", f, got, want)
		}
	}
}

// TestGradientBatches: which windows share a batch changes nothing, nor do the labels that are
// drawn; another seed draws others.
func TestGradientBatches(t *testing.T) {
	c := tiny.Open(t, "qwen3", tiny.Options{})
	m := New(c.Config, c, 2)
	windows := tiny.Windows(c.Config, 3, 70)
	all := collect(t, m, windows, GradientOptions{Seed: 5})
	var k []float32
	for i := range windows {
		b, err := newBatch(windows[i : i+1])
		if err != nil {
			t.Fatal(err)
		}
		err = m.gradients(t.Context(), b, i, &GradientOptions{Seed: 5}, func(g *Gradient) error {
			if g.First != i || g.Windows != 1 || g.T != 70 {
				t.Errorf("window %d: %d, %d of %d", i, g.First, g.Windows, g.T)
			}
			if g.Layer == 0 {
				k = append(k, g.DK...)
			}
			return nil
		}, func() {})
		if err != nil {
			t.Fatal(err)
		}
	}
	if !slices.Equal(k, all.k[0]) {
		t.Error("gradients depend on the batch")
	}
	if other := collect(t, m, windows, GradientOptions{Seed: 6}); slices.Equal(other.k[0], all.k[0]) {
		t.Error("two seeds draw the same labels")
	}
}

// TestDraws: labels come as often as the model predicts them.
func TestDraws(t *testing.T) {
	logits := [][]float32{{0, 1, 2}, {3, -40, 1.5}} // two pieces
	var tops []float32
	var sums []float64
	var all []float64
	for _, x := range logits {
		top := slices.Max(x)
		var sum float64
		for _, v := range x {
			sum += math.Exp(float64(v - top))
			all = append(all, float64(v))
		}
		tops, sums = append(tops, top), append(sums, sum)
	}
	p := softmaxed(all)
	const n = 20000
	count := make([]float64, 6)
	for i := range n {
		d := newDraw(tops, sums, &GradientOptions{Seed: 3}, 0, i)
		for piece, x := range logits {
			row := slices.Clone(x)
			d.gradient(row, make([]float32, 3), piece, 0)
		}
		count[d.label-d.piece*headPiece+3*d.piece]++
	}
	for i, c := range count {
		// Six standard deviations of a count.
		if math.Abs(c/n-p[i]) > 6*math.Sqrt(p[i]*(1-p[i])/n)+1e-12 {
			t.Errorf("label %d: %g of draws, predicted %g", i, c/n, p[i])
		}
	}
}

// differences returns the central differences of f at x.
func differences(x []float64, f func(x []float64) float64) []float64 {
	out := make([]float64, len(x))
	for i := range x {
		at := func(s float64) float64 {
			y := slices.Clone(x)
			y[i] += s
			return f(y)
		}
		out[i] = (at(1e-6) - at(-1e-6)) / 2e-6
	}
	return out
}

func far(got []float32, want []float64) (worst float64) {
	var size float64
	for i, v := range want {
		worst, size = max(worst, math.Abs(v-float64(got[i]))), max(size, math.Abs(v))
	}
	return worst / size
}

func numbers(seed uint64, n int) ([]float32, []float64) {
	r := rand.New(rand.NewPCG(seed, 1))
	a, b := make([]float32, n), make([]float64, n)
	for i := range a {
		a[i] = float32(r.NormFloat64())
		b[i] = float64(a[i])
	}
	return a, b
}

func dot64(x, y []float64) (s float64) {
	for i, v := range x {
		s += v * y[i]
	}
	return s
}

// TestBackwardOps: each operation's gradient by itself, against differences, and a broken form of
// each that is far off.
func TestBackwardOps(t *testing.T) {
	const tolerance = 1e-5
	check := func(name string, got []float32, want []float64, broken []float32) {
		t.Helper()
		if e := far(got, want); !(e <= tolerance) {
			t.Errorf("%s: off by %g", name, e)
		}
		if e := far(broken, want); e < 100*tolerance {
			t.Errorf("%s: its broken form is off by %g only", name, e)
		}
	}
	x, x64 := numbers(1, 12)
	dy, dy64 := numbers(2, 12)
	gain, gain64 := numbers(3, 6)

	dx := make([]float32, 12)
	rmsNormBack(dx, dy, x, gain, 0.01, 2)
	broken := make([]float32, 12) // the size taken for a constant
	for i, v := range dy {
		broken[i] = v * gain[i%6]
	}
	check("norm", dx, differences(x64, func(x []float64) float64 { return dot64(normed(x, gain64, 0.01), dy64) }), broken)

	for _, kind := range []family.Activation{family.SiLU, family.GELUTanh} {
		act, slope := make([]float32, 12), make([]float32, 12)
		activate(kind, act, slope, x)
		check("activation", slope, differences(x64, func(x []float64) (s float64) {
			for _, v := range x {
				s += activation(kind, v)
			}
			return s
		}), act)
	}

	y := &family.Layer{Attention: family.Attention{Scale: 0.7}}
	p, ds := slices.Clone(x), slices.Clone(dy)
	o := dot64(softmaxed64(x64[2:9], 0.7), dy64[2:9])
	softmaxBack(p, ds, 1, 2, 9, y, nil, 0, float32(o))
	if ds[1] != 0 || ds[9] != 0 || p[10] != 0 || ds[0] != dy[0] {
		t.Error("softmax: keys out of sight")
	}
	noDot := slices.Clone(dy)
	softmaxBack(slices.Clone(x), noDot, 1, 2, 9, y, nil, 0, 0)
	check("softmax", ds[2:9], differences(x64[2:9], func(x []float64) float64 {
		return dot64(softmaxed64(x, 0.7), dy64[2:9])
	}), noDot[2:9])

	for _, renorm := range []bool{false, true} {
		f := &family.FFN{Experts: 5, Used: 2, Renorm: renorm}
		weigh := func(z []float64) []float64 {
			p, w := softmaxed(z), make([]float64, 5)
			sum := 1.0
			if renorm {
				sum = p[1] + p[4]
			}
			w[1], w[4] = p[1]/sum, p[4]/sum
			return w
		}
		z64 := []float64{0, 2, 0.5, -1, 1}
		probs, w, dw := make([]float32, 5), make([]float32, 5), []float32{0, 0.7, 0, 0, -1.3}
		for i, v := range softmaxed(z64) {
			probs[i] = float32(v)
			w[i] = float32(weigh(z64)[i])
		}
		other := slices.Clone(probs)
		routerBack(&family.FFN{Experts: 5, Used: 2, Renorm: !renorm}, other, w, slices.Clone(dw))
		routerBack(f, probs, w, dw)
		check("router", probs, differences(z64, func(z []float64) float64 {
			return dot64(weigh(z), []float64{0, 0.7, 0, 0, -1.3})
		}), other)
	}

	// A turn with a magnitude, and its transpose.
	table := rope.NewTable(rope.Params{Theta: 100, Dim: 6, Scaling: rope.YaRN, Factor: 8, OriginalContext: 4, BetaFast: 32,
		BetaSlow: 1}, 2)
	m := &Model{Config: &family.Config{}, Threads: 1}
	back := slices.Clone(dy)
	turnBack(back, 2, 1, 6, 2, &Attention{Rope: table}, m)
	forth := slices.Clone(dy)
	turnHeads(forth, 2, 1, 6, &batch{T: 2}, table, rope.Half, 1)
	r := &reference{c: m.Config}
	check("RoPE", back, differences(x64, func(x []float64) float64 {
		x = slices.Clone(x)
		r.turn(x, 1, 6, table)
		return dot64(x, dy64)
	}), forth)

	// Products: gradients of the inputs go through the transpose.
	w32, w64 := numbers(4, 18) // [3, 6]
	var turned, straight gemm.Weights
	turned.PackT(6, 3, w32, 6, 1)
	straight.PackRows(6, 3, w32, 3, 1)
	din, wrong := make([]float32, 12), make([]float32, 12)
	for _, y := range []struct {
		dst []float32
		w   *gemm.Weights
	}{{din, &turned}, {wrong, &straight}} {
		if err := m.addProduct(t.Context(), y.dst, dy[:6], 2, y.w); err != nil {
			t.Fatal(err)
		}
	}
	check("product", din, differences(x64, func(x []float64) float64 {
		return dot64(product(x, w64, nil, 6), dy64[:6])
	}), wrong)
}

func softmaxed64(x []float64, scale float64) []float64 {
	y := make([]float64, len(x))
	for i, v := range x {
		y[i] = v * scale
	}
	return softmaxed(y)
}

// TestGradientRefusals: what has no backward pass, or no labels, is refused before work begins, and
// an error of the caller ends it.
func TestGradientRefusals(t *testing.T) {
	c := tiny.Open(t, "mixtral", tiny.Options{})
	windows := tiny.Windows(c.Config, 1, 8)
	never := func(*Gradient) error { t.Error("called"); return nil }
	cfg := c.Config.Clone()
	cfg.Layers[1].Gate = family.GateHead
	err := New(cfg, c, 1).Gradients(t.Context(), windows, GradientOptions{}, never)
	if err == nil || !strings.Contains(err.Error(), "a gate on the output of attention, which the backward pass") {
		t.Error(err)
	}
	cfg = c.Config.Clone()
	cfg.Layers[1].PostNorms = true
	err = New(cfg, c, 1).Gradients(t.Context(), windows, GradientOptions{}, never)
	if err == nil || !strings.Contains(err.Error(), "layer 1") {
		t.Error(err)
	}
	m := New(c.Config, c, 1)
	for _, labels := range [][][]int32{{}, {{1}}, {{0, 0, 0, 0, 0, 0, 0, 1 << 20}}} {
		if err := m.Gradients(t.Context(), windows, GradientOptions{Labels: labels}, never); err == nil {
			t.Errorf("labels %v", labels)
		}
	}
	if err := m.Gradients(t.Context(), nil, GradientOptions{}, never); err == nil {
		t.Error("no windows")
	}
	stop := fmt.Errorf("enough")
	calls := 0
	err = m.Gradients(t.Context(), windows, GradientOptions{}, func(g *Gradient) error { calls++; return stop })
	if err != stop || calls != 1 {
		t.Errorf("%v after %d calls", err, calls)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := m.Gradients(ctx, windows, GradientOptions{}, never); err == nil {
		t.Error("not interrupted")
	}
}
