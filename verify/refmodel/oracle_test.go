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
	"github.com/phaseconv/phaseconv/internal/tiny"
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
func allLogits(cfg *family.Config, w checkpoint.Weights, tokens [][]int32, threads int) ([]float32, error) {
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
			c, err := checkpoint.Open(tiny.Folder(t, dir))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			for _, n := range c.Unknown {
				if !c.Outside(n) {
					t.Errorf("tensor %s, which the graph does not use", n)
				}
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

func hide(layer string) func(c *family.Config, w *altered) bool {
	return func(c *family.Config, w *altered) bool {
		name := family.Name(0, layer)
		_, ok := w.Checkpoint.Find(name)
		w.hidden = func(n string) bool { return n == name }
		return ok
	}
}

// each changes every layer for which of says so; false where that is none.
func each(c *family.Config, of func(y *family.Layer) bool, change func(y *family.Layer)) bool {
	found := false
	for l := range c.Layers {
		if y := &c.Layers[l]; of(y) {
			found = true
			change(y)
		}
	}
	return found
}

// Kinds of layers.
func all(y *family.Layer) bool     { return true }
func full(y *family.Layer) bool    { return y.Window == 0 && y.Rope.Dim > 0 }
func turned(y *family.Layer) bool  { return y.Window > 0 && y.Rope.Dim > 0 }
func sliding(y *family.Layer) bool { return y.Window > 0 }
func scaled(y *family.Layer) bool  { return y.Rope.Scaling != rope.None }
func mixture(y *family.Layer) bool { return y.FFN.Experts > 0 }
func shared(y *family.Layer) bool  { return y.FFN.Shared > 0 }

var mistakes = []mistake{
	{"theta 10 % off", func(c *family.Config, w *altered) bool {
		return each(c, full, func(y *family.Layer) { y.Rope.Theta *= 1.1 })
	}},
	{"theta of sliding layers 10 % off", func(c *family.Config, w *altered) bool {
		return each(c, turned, func(y *family.Layer) { y.Rope.Theta *= 1.1 })
	}},
	{"one theta for all layers", func(c *family.Config, w *altered) bool {
		if c.Family.Kinds {
			return false
		}
		theta, local := c.Ropes()
		return each(c, turned, func(y *family.Layer) { y.Rope = theta }) && local.Theta != theta.Theta
	}},
	{"other pairs", func(c *family.Config, w *altered) bool {
		if was := c.Pairs; was == rope.Interleaved {
			c.Pairs = rope.Half
		} else {
			c.Pairs = rope.Interleaved
		}
		return true
	}},
	{"RoPE scaling forgotten", func(c *family.Config, w *altered) bool {
		return each(c, scaled, func(y *family.Layer) { y.Rope = rope.Params{Theta: y.Rope.Theta, Dim: y.Rope.Dim} })
	}},
	{"RoPE scaling in sliding layers", func(c *family.Config, w *altered) bool {
		if c.Family.Kinds {
			return false
		}
		theta, local := c.Ropes()
		theta.Theta = local.Theta
		return each(c, turned, func(y *family.Layer) { y.Rope = theta }) && theta.Scaling != rope.None &&
			local.Scaling == rope.None
	}},
	{"no magnitude", func(c *family.Config, w *altered) bool {
		return each(c, func(y *family.Layer) bool { return y.Rope.Magnitude() != 1 },
			func(y *family.Layer) { y.Rope.Attention = 1 })
	}},
	{"yarn's usual ramp", func(c *family.Config, w *altered) bool {
		return each(c, func(y *family.Layer) bool { return y.Rope.Scaling == rope.YaRN && y.Rope.BetaFast != 32 },
			func(y *family.Layer) { y.Rope.BetaFast, y.Rope.BetaSlow = 32, 1 })
	}},
	{"original context doubled", func(c *family.Config, w *altered) bool {
		return each(c, func(y *family.Layer) bool { return y.Rope.OriginalContext > 0 && y.Rope.Scaling != rope.LongRoPE },
			func(y *family.Layer) { y.Rope.OriginalContext *= 2 })
	}},
	{"divisors of other contexts", func(c *family.Config, w *altered) bool {
		return each(c, func(y *family.Layer) bool { return y.Rope.Scaling == rope.LongRoPE },
			func(y *family.Layer) { y.Rope.Short, y.Rope.Divisors = y.Rope.Divisors, y.Rope.Short })
	}},
	{"RoPE on whole heads", func(c *family.Config, w *altered) bool {
		return each(c, func(y *family.Layer) bool { return y.Rope.Dim > 0 && y.Rope.Dim < y.HeadDim }, func(y *family.Layer) {
			y.Rope = rope.Params{Dim: y.HeadDim, Theta: y.Rope.Theta}
		})
	}},
	{"RoPE in all layers", func(c *family.Config, w *altered) bool {
		full, _ := c.Ropes()
		return each(c, func(y *family.Layer) bool { return y.Rope.Dim == 0 }, func(y *family.Layer) { y.Rope = full })
	}},
	{"queries that do not grow", func(c *family.Config, w *altered) bool {
		return each(c, func(y *family.Layer) bool { return y.Temperature.Beta != 0 },
			func(y *family.Layer) { y.Temperature.Beta = 0 })
	}},
	{"no residual multiplier", func(c *family.Config, w *altered) bool {
		return each(c, func(y *family.Layer) bool { return y.ResidualScale != 1 },
			func(y *family.Layer) { y.ResidualScale = 1 })
	}},
	{"logits not scaled", func(c *family.Config, w *altered) bool {
		ok := c.LogitScale != 1
		c.LogitScale = 1
		return ok
	}},
	{"values not normed", func(c *family.Config, w *altered) bool {
		return each(c, func(y *family.Layer) bool { return y.ValueNorm }, func(y *family.Layer) { y.ValueNorm = false })
	}},
	{"layers not scaled", func(c *family.Config, w *altered) bool {
		return each(c, func(y *family.Layer) bool { return y.OutputScale }, func(y *family.Layer) { y.OutputScale = false })
	}},
	{"no embeddings per layer", func(c *family.Config, w *altered) bool {
		ok := c.PerLayerInput > 0
		c.PerLayerInput = 0
		return ok
	}},
	{"keys of another layer", func(c *family.Config, w *altered) bool {
		ok := false
		for l := range c.Layers {
			if y := &c.Layers[l]; y.Owner != l && y.Owner >= 2 {
				y.Owner -= 2 // of the same kind in gemma4
				ok = true
			}
		}
		return ok
	}},
	{"norm before RoPE", func(c *family.Config, w *altered) bool {
		return each(c, func(y *family.Layer) bool { return y.NormAfterRoPE },
			func(y *family.Layer) { y.NormAfterRoPE = false })
	}},
	{"mean not subtracted", func(c *family.Config, w *altered) bool {
		ok := c.LayerNorm
		c.LayerNorm = false
		return ok
	}},
	{"no window", func(c *family.Config, w *altered) bool {
		return each(c, sliding, func(y *family.Layer) { y.Window = 0 })
	}},
	{"window one short", func(c *family.Config, w *altered) bool {
		return each(c, func(y *family.Layer) bool { return y.Window > 1 }, func(y *family.Layer) { y.Window-- })
	}},
	{"window one long", func(c *family.Config, w *altered) bool {
		return each(c, func(y *family.Layer) bool { return y.Window > 1 }, func(y *family.Layer) { y.Window++ })
	}},
	{"sliding layers shifted by one", func(c *family.Config, w *altered) bool {
		if c.Family.Kinds {
			return false
		}
		ok, was := false, slices.Clone(c.Layers)
		for i := range was {
			next := was[(i+1)%len(was)]
			ok = ok || next.Window != was[i].Window
			c.Layers[i].Window, c.Layers[i].Rope = next.Window, next.Rope
		}
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
		return each(c, func(y *family.Layer) bool { return y.QKNorm != family.NoQKNorm },
			func(y *family.Layer) { y.QKNorm = family.NoQKNorm })
	}},
	{"no norm after attention and FFN", func(c *family.Config, w *altered) bool {
		return each(c, func(y *family.Layer) bool { return y.PostNorms }, func(y *family.Layer) { y.PostNorms = false })
	}},
	{"other activation", func(c *family.Config, w *altered) bool {
		return each(c, all, func(y *family.Layer) { y.FFN.Activation = (y.FFN.Activation + 1) % 3 })
	}},
	{"embeddings not scaled", func(c *family.Config, w *altered) bool {
		ok := c.EmbeddingScale != 1
		c.EmbeddingScale = 1
		return ok
	}},
	{"top-k weights otherwise", func(c *family.Config, w *altered) bool {
		return each(c, func(y *family.Layer) bool {
			return mixture(y) && y.FFN.Router != family.TopKSoftmax && y.FFN.Beside == 0
		},
			func(y *family.Layer) { y.FFN.Renorm = !y.FFN.Renorm })
	}},
	{"one expert fewer", func(c *family.Config, w *altered) bool {
		return each(c, mixture, func(y *family.Layer) { y.FFN.Used-- })
	}},
	{"no shared expert", func(c *family.Config, w *altered) bool {
		return each(c, shared, func(y *family.Layer) { y.FFN.Shared = 0 })
	}},
	{"no gate of the shared expert", func(c *family.Config, w *altered) bool {
		return each(c, func(y *family.Layer) bool { return y.FFN.SharedGate },
			func(y *family.Layer) { y.FFN.SharedGate = false })
	}},
	{"no bias of the choice", func(c *family.Config, w *altered) bool {
		return each(c, func(y *family.Layer) bool { return y.FFN.ChoiceBias },
			func(y *family.Layer) { y.FFN.ChoiceBias = false })
	}},
	{"other router", func(c *family.Config, w *altered) bool {
		return each(c, func(y *family.Layer) bool { return y.FFN.Experts > 0 && y.FFN.Router != family.SoftmaxTopK },
			func(y *family.Layer) { y.FFN.Router = family.SoftmaxTopK })
	}},
	{"experts without groups", func(c *family.Config, w *altered) bool {
		return each(c, func(y *family.Layer) bool { return y.FFN.Groups > 1 }, func(y *family.Layer) { y.FFN.Groups = 0 })
	}},
	{"experts not scaled", func(c *family.Config, w *altered) bool {
		return each(c, func(y *family.Layer) bool { return y.FFN.Scale() != 1 },
			func(y *family.Layer) { y.FFN.WeightScale = 1 })
	}},
	{"no bias of the router", func(c *family.Config, w *altered) bool {
		return each(c, func(y *family.Layer) bool { return y.FFN.RouterBias },
			func(y *family.Layer) { y.FFN.RouterBias = false })
	}},
	{"no biases of experts", func(c *family.Config, w *altered) bool {
		return each(c, func(y *family.Layer) bool { return y.FFN.Biases }, func(y *family.Layer) { y.FFN.Biases = false })
	}},
	{"no FFN beside the experts", func(c *family.Config, w *altered) bool {
		return each(c, func(y *family.Layer) bool { return y.FFN.Beside > 0 }, func(y *family.Layer) { y.FFN.Beside = 0 })
	}},
	{"no sinks", func(c *family.Config, w *altered) bool {
		return each(c, func(y *family.Layer) bool { return y.Sinks }, func(y *family.Layer) { y.Sinks = false })
	}},
	{"yarn's ramp rounded", func(c *family.Config, w *altered) bool {
		return each(c, func(y *family.Layer) bool { return y.Rope.Smooth }, func(y *family.Layer) { y.Rope.Smooth = false })
	}},
	{"attention scale 1 % off", func(c *family.Config, w *altered) bool {
		return each(c, all, func(y *family.Layer) { y.Scale *= 1.01 })
	}},
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
		c, err := checkpoint.Open(tiny.Folder(t, dir))
		if err != nil {
			t.Fatal(err)
		}
		g := readGolden(t, dir)
		for _, m := range mistakes {
			cfg := c.Config.Clone()
			w := &altered{Checkpoint: c}
			if !m.make(cfg, w) {
				continue
			}
			logits, err := allLogits(cfg, w, g.Tokens, 2)
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
