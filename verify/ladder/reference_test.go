package ladder

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"testing"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/verify/ppl"
	"github.com/phaseconv/phaseconv/verify/refmodel"
	"github.com/phaseconv/phaseconv/verify/texts"
)

// referenceLayers fits layers of austen-moe to windows of Northanger Abbey and holds windows of
// Persuasion out.
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
// queries, random starts of centres): held-out errors of austen-moe at 256 tokens. With
// PHASECONV_LADDER=1 all layers and methods are compared, which takes a minute.
func TestReference(t *testing.T) {
	ctx := context.Background()
	layers, sizes, queries := []int{2}, []int{8, 64}, 256
	all := os.Getenv("PHASECONV_LADDER") != ""
	if all {
		layers, sizes, queries = []int{0, 1, 2, 3}, ladderSizes(256), 4096
	}
	loaded := referenceLayers(t, layers, 256, 16, 4, queries)
	near := func(what string, got, want, below, above float64) {
		t.Helper()
		t.Logf("%s: %.4f, the study has %.4f", what, got, want)
		if got < want-below || got > want+above {
			t.Errorf("%s: %.5f, want %.4f", what, got, want)
		}
	}
	for n, want := range map[int]map[int]float64{
		0: {0: 1.4106, 8: 0.2184, 16: 0.1837, 32: 0.1459, 64: 0.0921, 128: 0.0254},
		1: {0: 0.2234, 8: 0.0930, 16: 0.0838, 32: 0.0704, 64: 0.0474, 128: 0.0249},
		2: {0: 0.1040, 8: 0.0557, 16: 0.0505, 32: 0.0401, 64: 0.0251, 128: 0.0125},
		3: {0: 0.1916, 8: 0.0936, 16: 0.0815, 32: 0.0633, 64: 0.0421, 128: 0.0215},
	} {
		l := loaded[n]
		if l == nil {
			continue
		}
		l.eval = 1
		o := slotOptions{window: 32, sinks: 4, cost: costProd, kappa: 0.5, saturation: 0.25}
		got, err := l.slots(ctx, o, uniform(sizes, l.y.KVHeads), func() {})
		if err != nil {
			t.Fatal(err)
		}
		near(fmt.Sprintf("layer %d, window only", n), got.WindowOnly.HeldOut, want[0], 1e-4, 1e-4)
		for _, s := range got.Steps {
			w := want[int(s.Size)]
			tolerance := max(0.05*w, 0.004)
			below := tolerance
			if n == 3 {
				below = 0.006 // masses of more queries serve this layer better
			}
			near(fmt.Sprintf("layer %d, %g slots", n, s.Size), s.HeldOut, w, below, tolerance)
		}
	}
	if !all {
		return
	}
	codes := func(ctx context.Context, _ int, st *stats, fit []*head, m int) (featureMap, error) {
		b, err := fitCodebook(ctx, st, fit, m)
		if err != nil {
			return nil, err
		}
		return b.weights, nil
	}
	series := func(ctx context.Context, _ int, st *stats, fit []*head, m int) (featureMap, error) {
		return taylor(ctx, st, fit, m)
	}
	random := func(_ context.Context, h int, st *stats, fit []*head, m int) (featureMap, error) {
		return favor(st, fit, m, uint64(h)+1), nil
	}
	for _, x := range []struct {
		name      string
		W, S      int
		f         makeFeatures
		want      [4]float64
		tolerance float64
	}{
		{"FAVOR+", 0, 0, random, [4]float64{1.09, 1.24, 1.14, 1.17}, 0.07},
		{"Taylor", 0, 0, series, [4]float64{0.489, 0.860, 0.779, 0.761}, 0.001},
		{"codebook", 0, 0, codes, [4]float64{0.48, 0.73, 0.71, 0.68}, 0.02},
		{"Taylor with window", 32, 4, series, [4]float64{0.240, 0.120, 0.055, 0.126}, 0.001},
	} {
		for n, want := range x.want {
			got, err := loaded[n].features(ctx, []int{128}, x.W, x.S, x.f, false, func() {})
			if err != nil {
				t.Fatal(err)
			}
			near(fmt.Sprintf("layer %d, %s", n, x.name), got.Steps[0].HeldOut, want, x.tolerance, x.tolerance)
		}
	}
}
