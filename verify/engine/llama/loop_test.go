package llama_test

import (
	"os"
	"testing"

	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/rotations/transform"
	"github.com/phaseconv/phaseconv/verify/engine"
	"github.com/phaseconv/phaseconv/verify/engine/llama"
	"github.com/phaseconv/phaseconv/verify/kvcache"
	"github.com/phaseconv/phaseconv/verify/ppl"
	"github.com/phaseconv/phaseconv/verify/texts"
)

// modelEnv names a real model as a GGUF file, for what small ones do not show.
const modelEnv = "PHASECONV_MODEL"

// TestLoop: patching weights and measuring what they do takes at most 1.2 times what the forward passes
// take alone, in CPU time of one run: of this program, which encodes weights, and of the worker, which
// compares predictions. Of a small model the comparison would be most of the work.
func TestLoop(t *testing.T) {
	path := os.Getenv(modelEnv)
	if path == "" {
		t.Skip("NOT TESTED: " + modelEnv + " names no GGUF file")
	}
	w := start(t, llama.Start{})
	engines := &llama.Engines{Worker: w, Place: place()}
	c, e := opened(t, engines, path)
	win, err := ppl.Tokenize(t.Context(), c, ppl.Text{Name: texts.EvaluationName, Data: texts.Evaluation}, 512, 1)
	if err != nil {
		t.Fatal(err)
	}
	lane := engine.Stock(kvcache.CacheTypes{K: gguf.TypeQ4_0, V: gguf.TypeF16, Rotation: true})
	ref := &engine.Reference{Engine: e, Lane: engine.Stock(kvcache.F16)}
	var lanes []engine.Lane
	for i := range 4 {
		x := lane
		x.Edits = make(transform.ModelEdits, len(c.Config.Layers))
		for l := range c.Config.Layers {
			y := &c.Config.Layers[l]
			for range y.KVHeads {
				s := make([]float32, y.HeadDim/2)
				for p := range s {
					s[p] = 1 + float32((p+i)%3)/8
				}
				x.Edits[l] = append(x.Edits[l], transform.KeyEdit{Pairs: &transform.PairRotation{Scale: s}})
			}
		}
		lanes = append(lanes, x)
	}
	measure := func(lanes ...engine.Lane) {
		if _, err := e.Compare(t.Context(), win, ref, lanes, engine.Options{}); err != nil {
			t.Fatal(err)
		}
	}
	measure(lane) // the reference, which is kept
	decode, worker, here := w.DecodeCPU, w.CPU, ownCPU(t)
	measure(lanes...)
	decode, worker, here = w.DecodeCPU-decode, w.CPU-worker, ownCPU(t)-here
	ratio := (worker + here) / decode
	t.Logf("forward passes %.2f CPU s, worker %.2f, this program %.2f: %.3f times the passes", decode, worker, here, ratio)
	if ratio > 1.2 {
		t.Errorf("patching and measuring takes %.3f times what forward passes do", ratio)
	}
}
