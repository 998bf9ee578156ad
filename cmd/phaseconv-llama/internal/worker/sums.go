//go:build (linux || darwin) && (amd64 || arm64)

package worker

import (
	"context"
	"errors"
	"fmt"

	"github.com/phaseconv/phaseconv/convert/edits"
	"github.com/phaseconv/phaseconv/format"
	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/verify/engine/llama"
)

// sums runs windows through the statistics of keys, which see each layer as soon as it has been computed, and sends
// the sums alone.
func (s *server) sums(o llama.Sums, blobs [][]byte) (any, [][]byte, error) {
	m, err := s.model(o.Model)
	if err != nil {
		return nil, nil, err
	}
	c, err := checkpoint.Open(m.opened.Path)
	if errors.Is(err, format.ErrUnsupported) {
		c, err = checkpoint.OpenAs(m.opened.Path, m.facts.Graph())
	}
	if err != nil {
		return nil, nil, err
	}
	defer c.Close() //nolint:errcheck // only read
	options := edits.StatsOptions{Queries: o.Queries, Sink: o.Sink, Samples: o.Samples, Meetings: o.Meetings, Seed: o.Seed,
		Threads: o.Threads}
	if o.Output {
		options.Weights = c
	}
	stats, err := edits.NewKeyStats(c.Config, options)
	if err != nil {
		return nil, nil, err
	}
	see := stats.Hooks(context.Background()).Attention
	layers := m.facts.Tapped(c.Graph == nil)
	at := map[int]int{}
	for i, y := range layers {
		at[y.Layer] = i
	}
	job := llama.Tap{Ctx: o.Ctx, Model: o.Model, Wants: llama.Wants{QKV: true, Pre: true}, Threads: o.Threads, Patch: o.Patch}
	for _, y := range layers {
		job.Layers = append(job.Layers, y.Layer)
	}
	err = s.watch(job, blobs, func(y *taps, values [][]float32) error {
		i, ok := at[y.layer]
		if !ok {
			return fmt.Errorf("activations of layer %d, which was not asked for", y.layer)
		}
		for j, name := range y.names {
			layers[i].Keep(name, values[j])
		}
		err := see(layers[i].Attend(o.Ctx, 1))
		layers[i].Forget(i)
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	sums, err := stats.Sums()
	return nil, [][]byte{sums}, err
}
