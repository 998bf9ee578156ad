package llama_test

import (
	"bytes"
	"testing"

	"github.com/phaseconv/phaseconv/convert/edits"
	"github.com/phaseconv/phaseconv/verify/engine"
	"github.com/phaseconv/phaseconv/verify/engine/llama"
)

// TestSums: statistics of keys that the worker sums up are, bit for bit, those that are summed up here from
// activations that travelled; also where layers share keys, and for an architecture that the table of families lacks.
func TestSums(t *testing.T) {
	w := start(t, llama.Start{})
	for name, path := range map[string]string{"llama": tinyFile(t), "gemma4": sampleText(t, "gemma4"),
		"gpt2": sampleText(t, "gpt2")} {
		t.Run(name, func(t *testing.T) {
			engines := &llama.Engines{Worker: w, Place: place()}
			c, err := engines.Source(t.Context(), path)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			e, err := engines.Open(t.Context(), c)
			if err != nil {
				t.Fatal(err)
			}
			windows := [][]int32{ids(128, 1), ids(128, 2)}
			o := edits.StatsOptions{Queries: 16, Samples: 24, Meetings: 24, Weights: c, Seed: 3, Threads: 1}
			took := func(do func(s *edits.KeyStats)) ([]byte, int64) {
				s, err := edits.NewKeyStats(c.Config, o)
				if err != nil {
					t.Fatal(err)
				}
				before := w.Received()
				do(s)
				sums, err := s.Sums()
				if err != nil {
					t.Fatal(err)
				}
				return sums, w.Received() - before
			}
			want, travelled := took(func(s *edits.KeyStats) {
				for i := range windows { // one by one, as the worker does
					if err := e.Tap(t.Context(), windows[i:i+1], s.Hooks(t.Context()), nil); err != nil {
						t.Fatal(err)
					}
				}
			})
			got, sums := took(func(s *edits.KeyStats) {
				b, ropes, err := e.(engine.Summer).KeySums(t.Context(), windows, engine.KeySums{Queries: 16, Samples: 24,
					Meetings: 24, Output: true, Seed: 3, Threads: 1}, nil)
				if err != nil {
					t.Fatal(err)
				}
				if err := s.SetSums(b, ropes); err != nil {
					t.Fatal(err)
				}
			})
			t.Logf("over the pipe: %d bytes of activations, %d of sums", travelled, sums)
			if !bytes.Equal(want, got) {
				t.Error("other sums in the worker")
			}
			if len(want) < 1000 {
				t.Errorf("%d bytes of sums", len(want))
			}
		})
	}
}
