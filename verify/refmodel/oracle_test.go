package refmodel

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/kernels/rope"
)

// golden is what scripts/oracles/make_tiny.py recorded beside a tiny model:
// logits of Hugging Face transformers in float32.
type golden struct {
	Tokens [][]int32
	Stats  struct {
		Std      float64 // of all logits
		Rounding float64 // largest difference between the oracle's float32 and float64 runs
	}
	logits []float32 // [windows, T, vocab]
}

func readGolden(t *testing.T, dir string) *golden {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(dir, "golden.json"))
	if err != nil {
		t.Fatal(err)
	}
	g := &golden{}
	if err := json.Unmarshal(raw, g); err != nil {
		t.Fatal(err)
	}
	if raw, err = os.ReadFile(filepath.Join(dir, "golden.f32")); err != nil {
		t.Fatal(err)
	}
	for ; len(raw) >= 4; raw = raw[4:] {
		g.logits = append(g.logits, math.Float32frombits(binary.LittleEndian.Uint32(raw)))
	}
	return g
}

// tolerance of one logit: our rounding errors and the oracle's are of one kind,
// so a few times the oracle's own, which it measured against float64. The floor
// covers models where that measure is luckily small.
func (g *golden) tolerance() float64 { return max(4*g.Stats.Rounding, 2e-5*g.Stats.Std) }

// worst returns the largest difference from the golden logits.
func (g *golden) worst(t *testing.T, logits []float32) float64 {
	t.Helper()
	if len(logits) != len(g.logits) || len(logits) == 0 {
		t.Fatalf("%d logits, the oracle has %d", len(logits), len(g.logits))
	}
	worst := 0.0
	for i, v := range logits {
		d := math.Abs(float64(v) - float64(g.logits[i]))
		if !(d <= worst) { // a NaN counts as a difference
			worst = d
		}
	}
	return worst
}

// allLogits runs a model on windows of tokens.
func allLogits(cfg *family.Config, w Weights, tokens [][]int32, threads int) ([]float32, error) {
	m := New(cfg, w, threads)
	variant := &Variant{}
	if err := m.Run(context.Background(), tokens, []*Variant{variant}, Options{}); err != nil {
		return nil, err
	}
	normed, err := m.FinalNorm(variant.Hidden)
	if err != nil {
		return nil, err
	}
	out := make([]float32, len(tokens)*len(tokens[0])*cfg.Vocab)
	return out, m.Logits(context.Background(), [][]float32{out}, [][]float32{normed}, 0, cfg.Vocab)
}

// models lists the tiny models; an empty folder is an error, not a pass.
func models(t *testing.T) []string {
	t.Helper()
	dirs, err := filepath.Glob("testdata/*/golden.json")
	if err != nil || len(dirs) < 30 {
		t.Fatalf("%d tiny models in testdata (%v); make them with scripts/oracles/make_tiny.py", len(dirs), err)
	}
	for i := range dirs {
		dirs[i] = filepath.Dir(dirs[i])
	}
	return dirs
}

func TestOracle(t *testing.T) {
	for _, dir := range models(t) {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			c, err := checkpoint.Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if len(c.Unknown) > 0 {
				t.Errorf("tensors that the graph does not use: %v", c.Unknown)
			}
			g := readGolden(t, dir)
			logits, err := allLogits(c.Config, c, g.Tokens, 2)
			if err != nil {
				t.Fatal(err)
			}
			d := g.worst(t, logits)
			t.Logf("largest difference %.2e, tolerance %.2e, logits' deviation %.2f", d, g.tolerance(), g.Stats.Std)
			if d > g.tolerance() {
				t.Errorf("a logit differs from the oracle's by %.3e, more than %.1e", d, g.tolerance())
			}
			again, err := allLogits(c.Config, c, g.Tokens, 3)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(logits, again) {
				t.Error("the result depends on the number of threads")
			}
		})
	}
}

// A mistake changes one thing in a model; it returns false where the model has
// no such thing.
type mistake struct {
	name string
	make func(c *family.Config, w *altered) bool
}

// altered is a checkpoint with some tensors hidden or shifted.
type altered struct {
	*checkpoint.Checkpoint
	hidden func(name string) bool
	add    func(name string) float32
}

func (a *altered) Find(name string) (*checkpoint.Tensor, bool) {
	if a.hidden != nil && a.hidden(name) {
		return nil, false
	}
	return a.Checkpoint.Find(name)
}

func (a *altered) ReadRows(t *checkpoint.Tensor, row0, n int, dst []float32) error {
	if err := a.Checkpoint.ReadRows(t, row0, n, dst); err != nil {
		return err
	}
	if a.add != nil {
		s := a.add(t.Name)
		for i := range dst[:n*t.Cols()] {
			dst[i] += s
		}
	}
	return nil
}

// changeFamily gives the configuration a family of its own to change.
func changeFamily(c *family.Config) *family.Family {
	f := *c.Family
	c.Family = &f
	return &f
}

func hide(layer string) func(c *family.Config, w *altered) bool {
	return func(c *family.Config, w *altered) bool {
		name := family.Name(0, layer)
		_, ok := w.Checkpoint.Find(name)
		w.hidden = func(n string) bool { return n == name }
		return ok
	}
}

func scaled(c *family.Config) bool { return c.Rope.Scaling != rope.None }

var mistakes = []mistake{
	{"theta 10 % off", func(c *family.Config, w *altered) bool {
		c.Rope.Theta *= 1.1
		for l := range c.Layers {
			if !c.IsSliding(l) {
				return true
			}
		}
		return false
	}},
	{"theta of sliding layers 10 % off", func(c *family.Config, w *altered) bool {
		c.RopeLocal.Theta *= 1.1
		return c.SlidingWindow > 0
	}},
	{"one theta for all layers", func(c *family.Config, w *altered) bool {
		c.RopeLocal = c.Rope
		return c.SlidingWindow > 0 && w.Config.RopeLocal.Theta != c.Rope.Theta
	}},
	{"other pairs", func(c *family.Config, w *altered) bool { c.Pairs = rope.Interleaved; return true }},
	{"RoPE scaling forgotten", func(c *family.Config, w *altered) bool {
		ok := scaled(c)
		c.Rope = rope.Params{Theta: c.Rope.Theta, Dim: c.Rope.Dim}
		if c.SlidingWindow == 0 {
			c.RopeLocal = c.Rope
		}
		return ok
	}},
	{"RoPE scaling in sliding layers", func(c *family.Config, w *altered) bool {
		ok := scaled(c) && c.RopeLocal.Scaling == rope.None
		theta := c.RopeLocal.Theta
		c.RopeLocal = c.Rope
		c.RopeLocal.Theta = theta
		return ok
	}},
	{"yarn without magnitude", func(c *family.Config, w *altered) bool {
		ok := c.Rope.Scaling == rope.YaRN
		if ok {
			c.Rope = c.Rope.Pure()
		}
		return ok
	}},
	{"yarn's usual ramp", func(c *family.Config, w *altered) bool {
		ok := c.Rope.Scaling == rope.YaRN && c.Rope.BetaFast != 32
		c.Rope.BetaFast, c.Rope.BetaSlow = 32, 1
		return ok
	}},
	{"original context doubled", func(c *family.Config, w *altered) bool {
		c.Rope.OriginalContext *= 2
		return c.Rope.OriginalContext > 0
	}},
	{"no window", func(c *family.Config, w *altered) bool {
		ok := c.SlidingWindow > 0 && c.Rope.Theta == c.RopeLocal.Theta
		c.SlidingWindow = 0
		return ok
	}},
	{"window one short", func(c *family.Config, w *altered) bool { c.SlidingWindow--; return c.SlidingWindow > 0 }},
	{"window one long", func(c *family.Config, w *altered) bool { c.SlidingWindow++; return c.SlidingWindow > 1 }},
	{"sliding layers shifted by one", func(c *family.Config, w *altered) bool {
		ok := false
		s := make([]bool, len(c.Sliding))
		for i := range s {
			s[i] = c.Sliding[(i+1)%len(s)]
			ok = ok || s[i] != c.Sliding[i]
		}
		c.Sliding = s
		return ok
	}},
	{"norm offset forgotten", func(c *family.Config, w *altered) bool {
		w.add = func(n string) float32 {
			if n == "output_norm.weight" {
				return -1
			}
			return 0
		}
		return c.Family.NormPlusOne
	}},
	{"norm offset twice", func(c *family.Config, w *altered) bool {
		w.add = func(n string) float32 {
			if n == "blk.0.attn_norm.weight" {
				return 1
			}
			return 0
		}
		return c.Family.NormPlusOne
	}},
	{"no QK-norm", func(c *family.Config, w *altered) bool {
		f := changeFamily(c)
		ok := f.QKNorm != family.NoQKNorm
		f.QKNorm = family.NoQKNorm
		return ok
	}},
	{"no norm after attention and FFN", func(c *family.Config, w *altered) bool {
		f := changeFamily(c)
		ok := f.PostNorms
		f.PostNorms = false
		return ok
	}},
	{"other activation", func(c *family.Config, w *altered) bool {
		f := changeFamily(c)
		f.Activation = family.GELUTanh + family.SiLU - f.Activation
		return true
	}},
	{"embeddings not scaled", func(c *family.Config, w *altered) bool {
		f := changeFamily(c)
		ok := f.ScaleEmbeddings
		f.ScaleEmbeddings = false
		return ok
	}},
	{"top-k weights otherwise", func(c *family.Config, w *altered) bool { c.RenormTopK = !c.RenormTopK; return c.Experts > 0 }},
	{"one expert fewer", func(c *family.Config, w *altered) bool { c.ExpertsUsed--; return c.Experts > 0 }},
	{"attention scale 1 % off", func(c *family.Config, w *altered) bool { c.AttnScale *= 1.01; return true }},
	{"no soft cap", func(c *family.Config, w *altered) bool {
		ok := c.LogitSoftcap > 0
		c.LogitSoftcap = 0
		return ok
	}},
	{"epsilon 100 times larger", func(c *family.Config, w *altered) bool { c.NormEps *= 100; return true }},
	{"no Q bias", hide("attn_q.bias")},
	{"no K bias", hide("attn_k.bias")},
	{"no V bias", hide("attn_v.bias")},
	{"no output bias", hide("attn_output.bias")},
	{"embeddings as head", func(c *family.Config, w *altered) bool {
		w.hidden = func(n string) bool { return n == "output.weight" }
		return !c.TiedEmbeddings
	}},
}

// TestOracleSeesMistakes shows that TestOracle can fail: each mistake moves some
// logit far beyond the tolerance in every model that could have it.
func TestOracleSeesMistakes(t *testing.T) {
	seen := map[string]int{}
	least := map[string]float64{}
	for _, dir := range models(t) {
		c, err := checkpoint.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		g := readGolden(t, dir)
		for _, m := range mistakes {
			cfg := *c.Config
			w := &altered{Checkpoint: c}
			if !m.make(&cfg, w) {
				continue
			}
			logits, err := allLogits(&cfg, w, g.Tokens, 2)
			if err != nil {
				t.Errorf("%s, %s: %v", dir, m.name, err)
				continue
			}
			x := g.worst(t, logits) / g.tolerance()
			if x < 10 {
				t.Errorf("%s: with the mistake %q the largest difference is only %.1f times the tolerance", dir, m.name, x)
			}
			if seen[m.name] == 0 || x < least[m.name] {
				least[m.name] = x
			}
			seen[m.name]++
		}
		c.Close()
	}
	for _, m := range mistakes {
		if seen[m.name] == 0 {
			t.Errorf("no tiny model could have the mistake %q", m.name)
			continue
		}
		t.Logf("%-32s %2d models, at least %.0f times the tolerance", m.name, seen[m.name], least[m.name])
	}
}
