package llama_test

import (
	"bytes"
	"os"
	"testing"
	"time"

	"github.com/phaseconv/phaseconv/convert/edits"
	"github.com/phaseconv/phaseconv/verify/engine"
	"github.com/phaseconv/phaseconv/verify/engine/llama"
)

// TestSums: statistics of keys that the worker sums up are, bit for bit, those that are summed up here from
// activations that travelled; also where layers share keys, and for an architecture that the table of families lacks.
// With a real model, PHASECONV_MODEL, it tells what that spares.
func TestSums(t *testing.T) {
	w := start(t, llama.Start{})
	paths, n := map[string]string{"llama": tinyFile(t), "gemma4": sampleText(t, "gemma4"), "gpt2": sampleText(t, "gpt2")}, 128
	if path := os.Getenv(modelEnv); path != "" {
		paths, n = map[string]string{"model": path}, 512
	}
	for name, path := range paths {
		t.Run(name, func(t *testing.T) {
			engines := &llama.Engines{Worker: w, Place: place()}
			c, e := opened(t, engines, path)
			windows := [][]int32{ids(n, 1), ids(n, 2)}
			o := edits.StatsOptions{Queries: 16, Samples: 24, Meetings: 24, Weights: c, Seed: 3, Threads: 1}
			took := func(do func(s *edits.KeyStats)) ([]byte, int64, time.Duration) {
				s, err := edits.NewKeyStats(c.Config, o)
				if err != nil {
					t.Fatal(err)
				}
				before, begin := w.Received(), time.Now()
				do(s)
				spent := time.Since(begin)
				sums, err := s.Sums()
				if err != nil {
					t.Fatal(err)
				}
				return sums, w.Received() - before, spent
			}
			want, travelled, longer := took(func(s *edits.KeyStats) {
				for i := range windows { // one by one, as the worker does
					if err := e.Tap(t.Context(), windows[i:i+1], s.Hooks(t.Context()), nil); err != nil {
						t.Fatal(err)
					}
				}
			})
			got, sums, shorter := took(func(s *edits.KeyStats) {
				b, ropes, err := e.(engine.Summer).KeySums(t.Context(), windows, engine.KeySums{Queries: 16, Samples: 24,
					Meetings: 24, Output: true, Seed: 3, Threads: 1}, nil)
				if err != nil {
					t.Fatal(err)
				}
				if err := s.SetSums(b, ropes); err != nil {
					t.Fatal(err)
				}
			})
			t.Logf("over the pipe: %d bytes of activations, %d of sums; %.2f of the time", travelled, sums,
				shorter.Seconds()/longer.Seconds())
			if !bytes.Equal(want, got) {
				t.Error("other sums in the worker")
			}
			if len(want) < 1000 {
				t.Errorf("%d bytes of sums", len(want))
			}
		})
	}
}
