package convert

import (
	"context"
	"encoding/json"
	"path/filepath"
	"testing"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/internal/tiny"
	"github.com/phaseconv/phaseconv/rotations/transform"
	"github.com/phaseconv/phaseconv/spec"
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
		ch := &changes{view: checkpoint.NewEdited(c, checkpoint.Edits{}), targets: map[string][]string{}}
		heads := make([]transform.KeyEdit, c.Config.Layers[0].KVHeads)
		for h := range heads {
			m := &transform.BiasShift{Delta: make([]float64, c.Config.Layers[0].HeadDim)}
			for i := range m.Delta {
				m.Delta[i] = float64(i-h) / 4
			}
			heads[h].Shift = m
		}
		if err := transform.FoldKeys(ch.view, 1, heads); err != nil {
			t.Fatal(err)
		}
		for n, e := range ch.view.Edits {
			ch.targets[n] = e.By
		}
		p, err := makePlan(c, checkpoint.Safetensors, "f32", ch)
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		if _, _, err := writeModel(context.Background(), dir, c, Options{}, p, ch.view, &spec.Manifest{}); err != nil {
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
		want := logitsOf(t, c.Config, ch.view, tokens)
		if d := farthest(want, logitsOf(t, got.Config, got, tokens)); d != 0 {
			t.Errorf("%d shards: logits differ by %g", x.shards, d)
		}
		if d := farthest(want, logitsOf(t, c.Config, c, tokens)); d == 0 {
			t.Error("the edit changes nothing")
		}
	}
}

// TestAnnounceBiases: attention_bias is set and every other key stays.
func TestAnnounceBiases(t *testing.T) {
	for in, ok := range map[string]bool{
		`{"a": 1}`: true,
		`{"b": {"attention_bias": false}, "attention_bias" : false, "a": 1}`: false, // which of the two is not told apart
		`{"attention_bias" :  null, "a": 1}`:                                 true,
		`{"attention_bias": 0}`:                                              false,
		`[]`:                                                                 false,
	} {
		out, err := announceBiases([]byte(in))
		if (err == nil) != ok {
			t.Errorf("%s: %s, %v", in, out, err)
			continue
		}
		var m struct {
			A    int  `json:"a"`
			Bias bool `json:"attention_bias"`
		}
		if ok && (json.Unmarshal(out, &m) != nil || m.A != 1 || !m.Bias) {
			t.Errorf("%s became %s", in, out)
		}
	}
}

// TestExtendIndex: the size grows by the added tensors, and nothing else is lost.
func TestExtendIndex(t *testing.T) {
	raw := []byte(`{"metadata":{"total_size":100,"x":"y"},"weight_map":{"a":"s1"},"other":[1]}`)
	p := &Plan{Tensors: []TensorPlan{{Name: "b", Shape: []int{5}, To: "BF16"}, {Name: "a", Shape: []int{9}, To: "F32"}}}
	out, err := extendIndex(raw, map[string]string{"b": "s2"}, p)
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Metadata struct {
			TotalSize int `json:"total_size"`
			X         string
		}
		WeightMap map[string]string `json:"weight_map"`
		Other     []int
	}
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatal(err)
	}
	if got.Metadata.TotalSize != 110 || got.Metadata.X != "y" || len(got.WeightMap) != 2 || got.WeightMap["b"] != "s2" || len(got.Other) != 1 {
		t.Errorf("%s", out)
	}
	if same, err := extendIndex(raw, nil, p); err != nil || string(same) != string(raw) {
		t.Errorf("nothing added: %s, %v", same, err)
	}
}
