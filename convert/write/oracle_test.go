package write

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/convert/plan"
	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/internal/tiny"
	"github.com/phaseconv/phaseconv/kernels/rope"
	"github.com/phaseconv/phaseconv/rotations/transform"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// testdata holds tiny models of every family with logits of Hugging Face
// transformers, made by scripts/oracles/make_tiny.py.
const testdata = "../../verify/refmodel/testdata"

// keepGGUF names a folder in which TestGGUFOracle leaves NAME.OUTTYPE.gguf of all
// types, the logits that it compares F32 files with in NAME.f32.logits, and those of our pass when it
// rounds as ggml does in NAME.f32.rounded, for scripts/oracles/stock_gguf.py.
const keepGGUF = "PHASECONV_KEEP_GGUF"

// refused lists the tiny models that cannot be GGUF files, with the key that the
// error must name.
var refused = map[string]string{
	"olmo3-base":         "rope_theta",
	"seed-oss-out":       "attention_out_bias",
	"exaone4":            "models of 64 layers",
	"smollm3-list":       "no_rope_layers",
	"llama-yarn-context": "beta_fast 4",
	"qwen2-headdim":      "head_dim 16",
	"qwen3moe-raw":       "norm_topk_prob is false",
	"olmoe-gqa":          "norm_topk_prob is true",
	"qwen2moe-steps":     "some layers have no experts",
	"ernie45moe-range":   "but in front of the others",
	"gemma3-scale":       "query_pre_attn_scalar",
	"gemma3-defaults":    "query_pre_attn_scalar",
}

// windowless lists those whose sliding window stock GGUF runtimes ignore.
var windowless = map[string]bool{"mistral-window": true, "mixtral-window": true, "qwen2-window": true,
	"qwen3-window": true, "qwen3moe-window": true}

// tinyModel is an open tiny model and what the oracle said.
type tinyModel struct {
	*checkpoint.Checkpoint
	name   string
	Tokens [][]int32
	Stats  struct{ Std, Rounding float64 }
	logits []float32
	edits  checkpoint.Edits
}

func (m *tinyModel) tolerance() float64 { return max(4*m.Stats.Rounding, 2e-5*m.Stats.Std) }

func openTiny(t *testing.T, name string) *tinyModel {
	t.Helper()
	dir := filepath.Join(testdata, name)
	m := &tinyModel{name: name}
	raw, err := os.ReadFile(filepath.Join(dir, "golden.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, m); err != nil {
		t.Fatal(err)
	}
	if raw, err = os.ReadFile(filepath.Join(dir, "golden.f32")); err != nil {
		t.Fatal(err)
	}
	for ; len(raw) >= 4; raw = raw[4:] {
		m.logits = append(m.logits, math.Float32frombits(binary.LittleEndian.Uint32(raw)))
	}
	if m.Checkpoint, err = checkpoint.Open(tiny.Folder(t, dir)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

func eachTiny(t *testing.T, f func(t *testing.T, m *tinyModel)) {
	dirs, err := filepath.Glob(filepath.Join(testdata, "*", "golden.json"))
	if err != nil || len(dirs) < 30 {
		t.Fatalf("%d tiny models in %s (%v)", len(dirs), testdata, err)
	}
	for _, d := range dirs {
		name := filepath.Base(filepath.Dir(d))
		t.Run(name, func(t *testing.T) { f(t, openTiny(t, name)) })
	}
}

// logitsOf runs the forward pass of c.
func logitsOf(t *testing.T, cfg *family.Config, c checkpoint.Weights, tokens [][]int32) []float32 {
	t.Helper()
	return logitsWith(t, refmodel.New(cfg, c, 2), tokens)
}

func logitsWith(t *testing.T, m *refmodel.Model, tokens [][]int32) []float32 {
	t.Helper()
	variant := &refmodel.Variant{}
	if err := m.Run(context.Background(), tokens, []*refmodel.Variant{variant}, refmodel.Options{}); err != nil {
		t.Fatal(err)
	}
	normed, err := m.FinalNorm(variant.Hidden)
	if err != nil {
		t.Fatal(err)
	}
	out := make([]float32, len(tokens)*len(tokens[0])*m.Config.Vocab)
	if err := m.Logits(t.Context(), [][]float32{out}, [][]float32{normed}, 0, m.Config.Vocab); err != nil {
		t.Fatal(err)
	}
	return out
}

func farthest(a, b []float32) float64 {
	if len(a) != len(b) || len(a) == 0 {
		return math.Inf(1)
	}
	worst := 0.0
	for i := range a {
		if d := math.Abs(float64(a[i]) - float64(b[i])); !(d <= worst) {
			worst = d
		}
	}
	return worst
}

// asStock returns the configuration that stock GGUF runtimes compute the model with, and a part
// of the warning if that is another than its own.
func asStock(m *tinyModel) (cfg *family.Config, warning string) {
	cfg = m.Config.Clone()
	for l := range cfg.Layers {
		y := &cfg.Layers[l]
		if windowless[m.name] {
			y.Window, warning = 0, "sliding window"
		}
		if y.Rope.Smooth {
			y.Rope.Smooth, warning = false, "YaRN's ramp"
		}
	}
	return cfg, warning
}

// writeTiny writes m, changed by nothing but m.edits, into dir.
func writeTiny(t *testing.T, m *tinyModel, p *plan.Plan, dir, outtype string) string {
	t.Helper()
	w := &writer{c: m.Checkpoint, view: checkpoint.NewEdited(m.Checkpoint, m.edits), plan: p}
	if p.Container == checkpoint.Safetensors {
		if _, err := w.safetensors(t.Context(), dir); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	v, err := m.Vocab()
	if err != nil {
		t.Fatal(err)
	}
	kvs, err := ggufKVs(m.Checkpoint, v, "source", outtype,
		(&Tag{Source: spec.Source{SHA256: "0"}, Code: spec.CodeInfo{Kind: "raw"}, Tool: "test"}).keys())
	if err != nil {
		t.Fatal(err)
	}
	name := m.name + "." + outtype + ".gguf"
	if _, err := w.gguf(t.Context(), dir, name, kvs); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, name)
}

// convertedLogits writes m as GGUF and runs the file.
func convertedLogits(t *testing.T, m *tinyModel, p *plan.Plan, dir, outtype string) []float32 {
	t.Helper()
	c, err := checkpoint.Open(writeTiny(t, m, p, dir, outtype))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if len(c.Unknown) > 0 {
		t.Errorf("tensors that the graph does not use: %v", c.Unknown)
	}
	return logitsOf(t, c.Config, c, m.Tokens)
}

// keep writes what the test itself does not need but stock_gguf.py does.
func keep(t *testing.T, m *tinyModel, dir string, want []float32) {
	t.Helper()
	for _, outtype := range []string{"f16", "bf16", "q8_0"} {
		p, err := plan.Make(m.Checkpoint, checkpoint.GGUF, outtype,
			plan.Propose(m.Checkpoint, plan.Options{WeightEdits: plan.EditsExact}))
		if err != nil {
			t.Fatal(err)
		}
		writeTiny(t, m, p, dir, outtype)
	}
	keepLogits(t, filepath.Join(dir, m.name+".f32.logits"), want)
	c, err := checkpoint.Open(filepath.Join(dir, m.name+".f32.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	rounded := refmodel.New(c.Config, c, 2)
	rounded.RoundInputs, rounded.HalfGELU = true, true
	keepLogits(t, filepath.Join(dir, m.name+".f32.rounded"), logitsWith(t, rounded, m.Tokens))
	// The folder too: that of a model whose weights are not stored is gone after the test.
	if err := os.CopyFS(filepath.Join(dir, m.name+".hf"), os.DirFS(m.Path)); err != nil {
		t.Fatal(err)
	}
}

func keepLogits(t *testing.T, path string, logits []float32) {
	t.Helper()
	var raw []byte
	for _, v := range logits {
		raw = binary.LittleEndian.AppendUint32(raw, math.Float32bits(v))
	}
	if err := os.WriteFile(path, raw, 0o666); err != nil {
		t.Fatal(err)
	}
}

// TestGGUFOracle converts every tiny model to an F32 GGUF file and compares its
// logits with those of transformers for the source.
func TestGGUFOracle(t *testing.T) {
	eachTiny(t, func(t *testing.T, m *tinyModel) {
		p, err := plan.Make(m.Checkpoint, checkpoint.GGUF, "f32",
			plan.Propose(m.Checkpoint, plan.Options{WeightEdits: plan.EditsExact}))
		if want := refused[m.name]; want != "" {
			if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), m.Path) {
				t.Fatalf("planned with error %v; the error should name the folder and %q", err, want)
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		want := m.logits
		stock, says := asStock(m)
		if m.Config.Wrapped {
			if len(p.Warnings) == 0 || !strings.Contains(p.Warnings[0], "the language model is converted") {
				t.Errorf("warnings %q", p.Warnings)
			}
			p.Warnings = p.Warnings[min(1, len(p.Warnings)):]
		}
		if len(p.Warnings) > 1 || (says != "") != (len(p.Warnings) == 1) ||
			says != "" && !strings.Contains(p.Warnings[0], says) {
			t.Errorf("warnings %q, want %q", p.Warnings, says)
		}
		if says != "" {
			want = logitsOf(t, stock, m.Checkpoint, m.Tokens)
			if d := farthest(want, m.logits); d < 1000*m.tolerance() {
				t.Errorf("as stock runtimes compute it, the model differs by only %g, so this test sees nothing", d)
			}
		}
		dir := os.Getenv(keepGGUF)
		if dir == "" {
			dir = t.TempDir()
		}
		f32 := convertedLogits(t, m, p, dir, "f32")
		if os.Getenv(keepGGUF) != "" {
			keep(t, m, dir, want)
		}
		d := farthest(f32, want)
		t.Logf("largest difference %.2e, tolerance %.2e", d, m.tolerance())
		if d > m.tolerance() {
			t.Errorf("a logit of the GGUF file is off by %g, tolerance %g", d, m.tolerance())
		}
		if tensor, _ := m.Find("token_embd.weight"); tensor.Type != "BF16" {
			return
		}
		// The matrices came as BF16, so this loses nothing.
		if p, err = plan.Make(m.Checkpoint, checkpoint.GGUF, "bf16",
			plan.Propose(m.Checkpoint, plan.Options{WeightEdits: plan.EditsExact})); err != nil {
			t.Fatal(err)
		}
		if d := farthest(convertedLogits(t, m, p, dir, "bf16"), f32); d != 0 {
			t.Errorf("a logit of the BF16 file is off by %g from that of the F32 file", d)
		}
	})
}

// TestSafetensorsOracle copies every tiny model and finds every tensor's bytes.
func TestSafetensorsOracle(t *testing.T) {
	eachTiny(t, func(t *testing.T, m *tinyModel) {
		p, err := plan.Make(m.Checkpoint, checkpoint.Safetensors, "f32",
			plan.Propose(m.Checkpoint, plan.Options{WeightEdits: plan.EditsExact}))
		if err != nil {
			t.Fatal(err)
		}
		dir := writeTiny(t, m, p, t.TempDir(), "")
		if _, err := Copy(t.Context(), m.Path, dir, "config.json"); err != nil {
			t.Fatal(err)
		}
		got, err := checkpoint.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer got.Close()
		if farthest(logitsOf(t, got.Config, got, m.Tokens[:1]), logitsOf(t, m.Config, m.Checkpoint, m.Tokens[:1])) != 0 {
			t.Error("the copy computes other logits than its source")
		}
	})
}

// TestBalanceIsExact folds arbitrary pair scales (identity G3) into every tiny
// model: the logits must stay those of the source, in memory and as GGUF.
func TestBalanceIsExact(t *testing.T) {
	eachTiny(t, func(t *testing.T, m *tinyModel) {
		cfg := m.Config
		rng := rand.New(rand.NewPCG(7, uint64(len(m.name))))
		m.edits = checkpoint.Edits{}
		for l := range cfg.Layers {
			y := &cfg.Layers[l]
			if y.Owner != l {
				continue
			}
			b := &transform.PairScale{PerLayer: y.QKNorm == family.NormHead}
			for h := range y.KVHeads {
				s := make([]float32, y.HeadDim/2)
				for i := range s {
					s[i] = float32(math.Exp2(4*rng.Float64() - 2)) // 1/4 to 4
				}
				if b.PerLayer && h > 0 {
					s = b.Scale[0]
				}
				b.Scale = append(b.Scale, s)
			}
			if err := transform.FoldPairScale(checkpoint.NewEdited(m.Checkpoint, m.edits), l, b); err != nil {
				t.Fatal(err)
			}
		}
		// Twice the rounding errors: each score is made of other numbers.
		limit := 2 * m.tolerance()
		view := checkpoint.NewEdited(m.Checkpoint, m.edits)
		if d := farthest(logitsOf(t, cfg, view, m.Tokens), m.logits); d > limit {
			t.Errorf("folding moves a logit by %g, tolerance %g", d, limit)
		}
		// Folded on one side only it would be seen.
		half := checkpoint.Edits{}
		for name, e := range m.edits {
			if strings.Contains(name, "attn_k") {
				half[name] = e
			}
		}
		if d := farthest(logitsOf(t, cfg, checkpoint.NewEdited(m.Checkpoint, half), m.Tokens), m.logits); d < 1000*limit {
			t.Errorf("folding into keys alone moves logits by only %g: this test sees nothing", d)
		}
		p, err := plan.Make(m.Checkpoint, checkpoint.GGUF, "f32",
			plan.Propose(m.Checkpoint, plan.Options{PairScale: true, WeightEdits: plan.EditsExact}))
		if refused[m.name] != "" {
			return // TestGGUFOracle looks at the error
		}
		if err != nil {
			t.Fatal(err)
		}
		stock, _ := asStock(m)
		got, want := convertedLogits(t, m, p, t.TempDir(), "f32"), logitsOf(t, stock, m.Checkpoint, m.Tokens)
		if d := farthest(got, want); d > limit {
			t.Errorf("a logit of the GGUF file is off by %g, tolerance %g", d, limit)
		}
	})
}

// A GGUF file is copied as it is, and cannot become a Hugging Face folder.
func TestPlanFromGGUF(t *testing.T) {
	for _, name := range []string{"llama-llama3", "gemma3-linear"} {
		m := openTiny(t, name)
		p, err := plan.Make(m.Checkpoint, checkpoint.GGUF, "f32",
			plan.Propose(m.Checkpoint, plan.Options{WeightEdits: plan.EditsExact}))
		if err != nil {
			t.Fatal(err)
		}
		c, err := checkpoint.Open(writeTiny(t, m, p, t.TempDir(), "f32"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := plan.Make(c, checkpoint.Safetensors, "f16", plan.Propose(c,
			plan.Options{WeightEdits: plan.EditsExact})); err == nil || !strings.Contains(err.Error(), "--format gguf") {
			t.Errorf("safetensors from GGUF: %v", err)
		}
		p, err = plan.Make(c, checkpoint.GGUF, "f16", plan.Propose(c, plan.Options{WeightEdits: plan.EditsExact}))
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range p.Tensors {
			if x.Action != plan.Copy || x.From != x.To {
				t.Errorf("without an identity %s is planned as %s, %s to %s", x.Name, x.Action, x.From, x.To)
			}
		}
		if r := c.Config.Layers[0].Rope; m.name == "llama-llama3" && r.Scaling != rope.Divisor {
			t.Errorf("RoPE scaling read back as %q", r.Scaling)
		}
	}
}
