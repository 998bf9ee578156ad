package measure

import (
	"fmt"
	"testing"
	"time"
)

func tinyLayer() LayerShape {
	return LayerShape{KVHeads: 2, HeadDim: 64, Groups: []int{2}, Anchors: []int{0, 64}, Bits: []float64{1, 1.5},
		KeyShare: 0.5, ValueShare: 0.83}
}

// TestSteps: the smallest sizes; that numbers are there and add up, not how large they are.
func TestSteps(t *testing.T) {
	l := tinyLayer()
	r, err := newStepRun(t.Context(), l, 300, 2)
	if err != nil {
		t.Fatal(err)
	}
	r.layers = 2
	steps := r.time(t.Context(), time.Millisecond)
	if len(steps) != 3+16 || steps[0].Format != "F16" || steps[0].Ratio != 1 {
		t.Fatalf("%+v", steps)
	}
	for i, bytes := range []float64{512, 272, 144, 34, 34, 36, 34, 34, 34, 36, 34, 50, 50, 52, 50, 50, 50, 52, 50} {
		s := steps[i]
		if s.Bytes != bytes || s.Heads != 4 || s.Tokens != 300 {
			t.Errorf("%+v, want %v bytes", s, bytes)
		}
		if sum := s.Scores + s.Softmax + s.Sums; !(s.Us > 0 && s.Us == sum) {
			t.Errorf("%+v: parts add up to %v", s, sum)
		}
	}
	l.Bits = []float64{20}
	if _, err := newStepRun(t.Context(), l, 16, 1); err == nil {
		t.Error("more signs than the kernels take")
	}
}

// BenchmarkStep is the decode step of "phaseconv bench", each format on its own: one layer
// again and again, so from caches.
func BenchmarkStep(b *testing.B) {
	for _, n := range []int{4096, 32768} {
		for _, group := range []int{1, 3} {
			l := DefaultLayer()
			r, err := newStepRun(b.Context(), l, n, group)
			if err != nil {
				b.Fatal(err)
			}
			for _, e := range r.entries {
				name := fmt.Sprintf("tokens=%d/heads=%d/format=%s", n, r.heads(), e.Format)
				if e.Bits > 0 {
					name += fmt.Sprintf("/bits=%g/anchor=%d", e.Bits, e.Anchor)
				}
				b.Run(name, func(b *testing.B) {
					b.SetBytes(int64(e.Bytes * float64(n)))
					for b.Loop() {
						e.scores(0, 0, n)
						e.sums(0, 0, n)
					}
					b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n*r.heads()), "ns/token/head")
				})
			}
		}
	}
}
