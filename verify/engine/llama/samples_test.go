package llama_test

import (
	"context"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/verify/engine/llama"
	"github.com/phaseconv/phaseconv/verify/engine/sample"
	"github.com/phaseconv/phaseconv/verify/ppl"
)

// folds are what the graph of each sample's first layer with keys admits, or why it does not.
var folds = map[string]string{
	"llama": "pair scale and angle", "qwen2": "pair scale and angle", "gptneox": "pair scale and angle",
	"falcon": "pair scale and angle", "smollm3": "pair scale and angle", "cohere2": "pair scale and angle",
	"gemma2": "pair scale and angle", "gpt-oss": "pair scale and angle", "gpt2": "dense",
	"qwen3": "pair scale, through the gains", "hunyuan": "pair scale, through the gains",
	"olmo2": "pair scale, through the gains", "lfm2": "pair scale, through the gains",
	"gemma4": "pair scale, through the gains", "starcoder2": "pair scale and angle", "starcoder2-fused": "pair scale and angle",
	"afmoe": "pair scale, through the gains",
	"olmo":  "keys: CLAMP behind the product", "deepseek2": "keys: CONCAT of parts, as in latent attention (MLA)",
}

// TestSamples: in every kind of graph the self-tests pass (they ran when the model was loaded), the
// attention of all layers is found, stock types and codes change what they should.
func TestSamples(t *testing.T) {
	w := start(t, llama.Start{})
	for _, name := range sample.Names() {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), name+".gguf")
			if err := sample.Write(path, name); err != nil {
				t.Fatal(err)
			}
			ctx := t.Context()
			m, err := w.Load(ctx, path, place())
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close(context.WithoutCancel(ctx)) //nolint:errcheck // the worker ends with the test
			if len(m.Tests) != 2 {
				t.Errorf("%d self-tests", len(m.Tests))
			}
			f16, q4 := int32(gguf.TypeF16), int32(gguf.TypeQ4_0)
			coded := m.Lane(f16, f16)
			coded.Keys = &llama.Keys{Kind: "srht", Sink: 4}
			same := m.Lane(f16, f16)
			same.Keys = &llama.Keys{Kind: llama.KeysSame}
			all, values := m.Lane(f16, f16), m.Lane(f16, f16)
			all.Keys, values.Keys = &llama.Keys{Kind: llama.AllSame}, &llama.Keys{Kind: llama.ValuesDouble}
			v := f16
			if m.Facts.Attention[0].ValueDim == 0 {
				v = q4 // MLA has one type for both
			}
			win := ppl.From([][]int32{ids(128, 1), ids(128, 2)}, 64)
			scores, lanes, err := w.Measure(ctx, win, llama.Measure{Threads: 1,
				Lanes: []llama.Lane{m.Lane(f16, f16), same, m.Lane(q4, v), coded, all, values}}, nil)
			if err != nil {
				t.Fatal(err)
			}
			// The base's logits are kept: with and without computing them again the numbers are the same.
			for range 2 {
				again, _, err := w.Measure(ctx, win, llama.Measure{Threads: 1, Base: "kept",
					Lanes: []llama.Lane{m.Lane(f16, f16), m.Lane(q4, v)}}, nil)
				if err != nil {
					t.Fatal(err)
				}
				if !reflect.DeepEqual(again, []ppl.Scores{scores[0], scores[2]}) {
					t.Error("other numbers with a base that was kept")
				}
			}
			res, err := ppl.Combine(scores)
			if err != nil {
				t.Fatal(err)
			}
			for _, a := range m.Facts.Attention {
				t.Logf("layer %d of %d: %d/%d heads of %d, rope %+v, K: "+
					"%v", a.Layer, a.Owner, a.Heads, a.KVHeads, a.HeadDim, a.Rope, a.K)
			}
			if got := m.Facts.Owners()[0].Folds(); got.Keys+got.Refused != folds[name] {
				t.Errorf("folds %+v, want %q", got, folds[name])
			}
			if name == "afmoe" { // no matrix passes through a gate for each channel
				for _, c := range m.Facts.Graph().Caches {
					if !strings.Contains(c.FixedValues, "stands between attention and its output") {
						t.Errorf("values behind a gate: %q", c.FixedValues)
					}
				}
			}
			d := res.Divergences
			t.Logf("same %g, q4_0 %g, 1 bit %g; %+v", d[0].MaxAbsDLogit, d[1].Mean, d[2].Mean, lanes)
			if d[0].MaxAbsDLogit != 0 {
				t.Errorf("keys written back change a logit by %g", d[0].MaxAbsDLogit)
			}
			if d[3].MaxAbsDLogit != 0 {
				t.Errorf("keys and values written back change a logit by %g", d[3].MaxAbsDLogit)
			}
			if latent := m.Facts.Attention[0].ValueDim == 0; (d[4].MaxAbsDLogit == 0) != latent {
				t.Errorf("values written back doubled change a logit by %g", d[4].MaxAbsDLogit)
			}
			if !(d[1].Mean > 1e-6) || !(d[2].Mean > d[1].Mean) {
				t.Errorf("KLD %g with q4_0 keys, %g with 1-bit keys", d[1].Mean, d[2].Mean)
			}
			if lanes[2].TokenBytes >= lanes[0].TokenBytes {
				t.Errorf("%d bytes a token with q4_0 keys, %d with F16", lanes[2].TokenBytes, lanes[0].TokenBytes)
			}
		})
	}
}
