package transform_test

import (
	"context"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/internal/tiny"
	"github.com/phaseconv/phaseconv/rotations/transform"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// tap collects pair energies.
type tap struct {
	c   *family.Config
	sum []*transform.PairEnergy
}

func (p *tap) Attention(a *refmodel.Attention) error {
	e := transform.NewPairEnergy(p.c.Layers[0].KVHeads, p.c.Layers[0].HeadDim)
	qw, kw := p.c.Layers[0].Heads*p.c.Layers[0].HeadDim, p.c.Layers[0].KVHeads*p.c.Layers[0].HeadDim
	for r := range a.T * a.Windows {
		e.Add(a.Q[r*qw:(r+1)*qw], a.K[r*kw:(r+1)*kw], p.c.Layers[0].Group(), p.c.Pairs)
	}
	p.sum = append(p.sum, e)
	return nil
}

// logits runs windows through w; energies come along if p is not nil.
func logits(t *testing.T, c *family.Config, w checkpoint.Weights, p *tap) []float32 {
	t.Helper()
	const T = 40
	window := make([]int32, T)
	for i := range window {
		window[i] = int32(i * 53 % c.Vocab)
	}
	m := refmodel.New(c, w, 2)
	variant := &refmodel.Variant{}
	opt := refmodel.Options{}
	if p != nil {
		opt.Hooks.Attention = p.Attention
	}
	if err := m.Run(context.Background(), [][]int32{window}, []*refmodel.Variant{variant}, opt); err != nil {
		t.Fatal(err)
	}
	x, err := m.FinalNorm(variant.Hidden)
	if err != nil {
		t.Fatal(err)
	}
	out := make([]float32, T*c.Vocab)
	if err := m.Logits(t.Context(), [][]float32{out}, [][]float32{x}, 0, c.Vocab); err != nil {
		t.Fatal(err)
	}
	return out
}

func difference(a, b []float32) (worst, size float64) {
	for i := range a {
		worst = max(worst, math.Abs(float64(a[i])-float64(b[i])))
		size = max(size, math.Abs(float64(a[i])))
	}
	return worst, size
}

// TestFoldBalance: a model whose balance is folded into its weights computes the
// same function, in every family and container; the energies that the balance was
// made for come out equal.
func TestFoldBalance(t *testing.T) {
	for _, fam := range tiny.Families {
		m := tiny.New(t, fam, tiny.Options{Seed: 9, Bias: true})
		dir := t.TempDir()
		m.HF(t, filepath.Join(dir, "hf"))
		m.GGUF(t, filepath.Join(dir, "m.gguf"))
		for _, path := range []string{"hf", "m.gguf"} {
			c, err := checkpoint.Open(filepath.Join(dir, path))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			cfg := c.Config
			what := fam + " " + path
			p := &tap{c: cfg}
			want := logits(t, cfg, c, p)
			perLayer := cfg.Layers[0].QKNorm == family.NormHead
			edits := checkpoint.Edits{}
			for l, e := range p.sum {
				if err := transform.FoldPairScale(checkpoint.NewEdited(c, edits), l, e.PairScale(perLayer)); err != nil {
					t.Fatal(err)
				}
			}
			// Weights that carry the balance, and no others.
			var names []string
			for l := range cfg.Layers {
				for _, n := range foldedInto(cfg, m) {
					names = append(names, family.Name(l, n))
				}
			}
			slices.Sort(names)
			if !slices.Equal(edits.Names(), names) {
				t.Errorf("%s: edits %v, want %v", what, edits.Names(), names)
			}
			after := &tap{c: cfg}
			got := logits(t, cfg, checkpoint.NewEdited(c, edits), after)
			worst, size := difference(want, got)
			t.Logf("%s: logits up to %.2f change by %.1e", what, size, worst)
			// Each edited weight is rounded once more, 6e-8 of it; two layers of
			// attention and FFN pass it on.
			if !(worst < 1e-5*size) {
				t.Errorf("%s: logits up to %.3g change by %.3g", what, size, worst)
			}
			// The balance of the balanced model is one, where it was not before.
			if before := off(p.sum[0].PairScale(perLayer)); before < 0.1 {
				t.Errorf("%s: the model was balanced before (%.3g)", what, before)
			}
			if now := off(after.sum[0].PairScale(perLayer)); !(now < 1e-3) {
				t.Errorf("%s: a second balance is off one by %.3g", what, now)
			}
			// The check can fail: without its half on the query side, the fold is
			// another model.
			for _, n := range edits.Names() {
				if strings.Contains(n, "attn_q") {
					delete(edits, n)
				}
			}
			if worst, _ := difference(want, logits(t, cfg, checkpoint.NewEdited(c, edits), nil)); worst < 1e-3*size {
				t.Errorf("%s: half a fold changes logits by %.3g only", what, worst)
			}
		}
	}
}

// off returns how far the scales are from one.
func off(b *transform.PairScale) (worst float64) {
	for _, s := range b.Scale {
		for _, v := range s {
			worst = max(worst, math.Abs(math.Log2(float64(v))))
		}
	}
	return worst
}

// foldedInto says which tensors take the balance, from the families' graphs.
func foldedInto(cfg *family.Config, m *tiny.Model) []string {
	switch m.Family {
	case "qwen3", "qwen3_moe", "gemma3_text", "olmoe":
		return []string{"attn_k_norm.weight", "attn_q_norm.weight"}
	case "llama", "qwen2": // with Bias
		return []string{"attn_k.bias", "attn_k.weight", "attn_q.bias", "attn_q.weight"}
	}
	return []string{"attn_k.weight", "attn_q.weight"}
}

// TestFoldRefuses: a balance per head cannot go into a gain that all heads share,
// and one of the wrong size goes nowhere.
func TestFoldRefuses(t *testing.T) {
	for _, fam := range tiny.Families {
		path := filepath.Join(t.TempDir(), "m.gguf")
		tiny.GGUF(t, path, fam, tiny.Options{})
		c, err := checkpoint.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		d := c.Config.Layers[0].HeadDim
		good := transform.FloorPairScale(&c.Config.Layers[0])
		if good.PerLayer != (c.Config.Layers[0].QKNorm == family.NormHead) {
			t.Errorf("%s: floor balance per layer: %v", fam, good.PerLayer)
		}
		for says, b := range map[string]*transform.PairScale{
			"1 of 2 KV heads": {PerLayer: true, Scale: good.Scale[:1]},
			"scales for":      {PerLayer: true, Scale: [][]float32{good.Scale[0], good.Scale[1][:d/2-1]}},
			"has scale":       {PerLayer: true, Scale: [][]float32{good.Scale[0], make([]float32, d/2)}},
		} {
			edits := checkpoint.Edits{}
			if err := transform.FoldPairScale(checkpoint.NewEdited(c, edits), 1, b); err == nil ||
				!strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), "layer 1") {
				t.Errorf("%s: %v, want %q", fam, err, says)
			}
			if len(edits) != 0 {
				t.Errorf("%s: edits after a refusal: %v", fam, edits.Names())
			}
		}
		err = transform.FoldPairScale(checkpoint.NewEdited(c, nil), 0, &transform.PairScale{Scale: good.Scale})
		if wants := c.Config.Layers[0].QKNorm == family.NormHead; (err != nil) != wants {
			t.Errorf("%s: a balance per head gives %v", fam, err)
		}
	}
}

// TestFloor: the floor balance changes rounding only, and it does change it.
func TestFloor(t *testing.T) {
	for _, fam := range tiny.Families {
		path := filepath.Join(t.TempDir(), "m.gguf")
		tiny.GGUF(t, path, fam, tiny.Options{Seed: 2, Bias: true})
		c, err := checkpoint.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		edits := checkpoint.Edits{}
		for l := range c.Config.Layers {
			if err := transform.FoldPairScale(checkpoint.NewEdited(c, edits), l,
				transform.FloorPairScale(&c.Config.Layers[0])); err != nil {
				t.Fatal(err)
			}
		}
		worst, size := difference(logits(t, c.Config, c, nil), logits(t, c.Config, checkpoint.NewEdited(c, edits), nil))
		if !(worst < 1e-5*size) || worst == 0 {
			t.Errorf("%s: logits up to %.3g change by %.3g", fam, size, worst)
		}
	}
}
