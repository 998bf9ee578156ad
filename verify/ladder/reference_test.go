package ladder

import (
	"bytes"
	"context"
	"math"
	"os"
	"testing"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/verify/ppl"
	"github.com/phaseconv/phaseconv/verify/refmodel"
	"github.com/phaseconv/phaseconv/verify/texts"
)

// referenceLayer loads austen-moe's windows 0-3 of Persuasion and fit windows of Northanger
// Abbey, and fits layer 2.
func referenceLayers(t *testing.T, layers []int, T, fit, eval, queries int) map[int]*layer {
	t.Helper()
	ck, err := checkpoint.Open("../../testdata/austen-moe")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ck.Close() })
	ctx := context.Background()
	cut := func(b []byte, n int) [][]int32 {
		w, err := ppl.Tokenize(ctx, ck, ppl.Text{Name: "text", Data: bytes.ToValidUTF8(b, nil)}, T, n)
		if err != nil {
			t.Fatal(err)
		}
		return w.Tokens
	}
	o := DefaultOptions()
	s := &session{o: &o, T: T, layers: layers, model: refmodel.New(ck.Config, ck, 0)}
	s.fit, s.eval = ppl.From(cut(texts.Calibration, fit), T/2), ppl.From(cut(texts.Evaluation, eval), T/2)
	s.o.Queries = queries
	if err := s.load(ctx); err != nil {
		t.Fatal(err)
	}
	return s.loaded
}

// TestReference compares with the numbers of a study in numpy (float32, another sample of
// queries).
func TestReference(t *testing.T) {
	layers := []int{0, 1, 2, 3}
	if os.Getenv("PHASECONV_LADDER") == "" {
		layers = layers[3:4]
	}
	sizes := ladderSizes(256)
	want := map[int][]float64{
		0: {1.4106, 0.2184, 0.1837, 0.1459, 0.0921, 0.0254},
		1: {0.2234, 0.0930, 0.0838, 0.0704, 0.0474, 0.0249},
		2: {0.1040, 0.0557, 0.0505, 0.0401, 0.0251, 0.0125},
		3: {0.1916, 0.0936, 0.0815, 0.0633, 0.0421, 0.0215},
	}
	o := slotOptions{window: 32, sinks: 4, cost: costProd, kappa: 0.5, saturation: 0.25}
	loaded := referenceLayers(t, layers, 256, 16, 4, 256)
	for _, n := range layers {
		l := loaded[n]
		l.eval = 1
		got, err := l.slots(context.Background(), o, uniform(sizes, l.y.KVHeads), func() {})
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("layer %d: window only %.4f", n, got.WindowOnly.HeldOut)
		if d := math.Abs(got.WindowOnly.HeldOut - want[n][0]); d > 1e-4 {
			t.Errorf("layer %d, window only: %.5f, want %.4f", n, got.WindowOnly.HeldOut, want[n][0])
		}
		for i, s := range got.Steps {
			w := want[n][i+1]
			t.Logf("  m %g: %.4f (%.4f)", s.Size, s.HeldOut, w)
			if math.Abs(s.HeldOut-w) > max(0.05*w, 0.004) {
				t.Errorf("layer %d, %g slots: %.4f, want %.4f", n, s.Size, s.HeldOut, w)
			}
		}
		t.Log(*got.Replay, *got.LogZ, *got.LogZMax)
	}
}
