package write

import (
	"path/filepath"
	"testing"

	"github.com/phaseconv/phaseconv/convert/plan"
	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/internal/tiny"
	"github.com/phaseconv/phaseconv/rotations/transform"
)

// TestAddedBiases: a Hugging Face checkpoint without biases gets key biases, with
// attention_bias and zeros in the other projections, in the shards of their
// layers; the model that is read back computes what the edited weights do.
func TestAddedBiases(t *testing.T) {
	for _, x := range []struct {
		shards int
		config map[string]any
	}{{1, nil}, {3, map[string]any{"attention_bias": false}}} {
		src := filepath.Join(t.TempDir(), "src")
		tiny.New(t, "llama", tiny.Options{Seed: 8, Shards: x.shards, Config: x.config}).HF(t, src)
		c, err := checkpoint.Open(src)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		ch := plan.NoChanges(c)
		heads := make([]transform.KeyEdit, c.Config.Layers[0].KVHeads)
		for h := range heads {
			m := &transform.BiasShift{Delta: make([]float64, c.Config.Layers[0].HeadDim)}
			for i := range m.Delta {
				m.Delta[i] = float64(i-h) / 4
			}
			heads[h].Shift = m
		}
		if err := transform.FoldKeys(ch.View, 1, heads); err != nil {
			t.Fatal(err)
		}
		for n, e := range ch.View.Edits {
			ch.Targets[n] = e.By
		}
		p, err := plan.Make(c, checkpoint.Safetensors, "f32", ch)
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		if _, _, err := (&Job{Dir: dir, Source: c, View: ch.View, Plan: p}).Model(t.Context()); err != nil {
			t.Fatal(err)
		}
		got, err := checkpoint.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer got.Close()
		if b := got.Config.Layers[0].Biases; !b.Q || !b.K || !b.V || !b.O {
			t.Errorf("biases that are read: %+v", b)
		}
		for l := range c.Config.Layers {
			for _, part := range []string{"q", "k", "v", "o"} {
				w, _ := got.Shards().Find("model.layers." + string(rune('0'+l)) + ".self_attn." + part + "_proj.weight")
				b, ok := got.Shards().Find("model.layers." + string(rune('0'+l)) + ".self_attn." + part + "_proj.bias")
				if !ok || w.File != b.File || b.Tensor.DType != w.Tensor.DType {
					t.Errorf("layer %d: bias of %s_proj: %+v, its weight %+v", l, part, b, w)
				}
			}
		}
		if (got.Shards().Index != nil) != (x.shards > 1) {
			t.Errorf("%d shards and an index of %d bytes", x.shards, len(got.Shards().Index))
		}
		tokens := [][]int32{{3, 1, 4, 1, 5, 9, 2, 6}}
		want := logitsOf(t, c.Config, ch.View, tokens)
		if d := farthest(want, logitsOf(t, got.Config, got, tokens)); d != 0 {
			t.Errorf("%d shards: logits differ by %g", x.shards, d)
		}
		if d := farthest(want, logitsOf(t, c.Config, c, tokens)); d == 0 {
			t.Error("the edit changes nothing")
		}
	}
}
