package edits

import (
	"bytes"
	"context"
	"encoding/gob"
	"fmt"

	"github.com/phaseconv/phaseconv/kernels/rope"
	"github.com/phaseconv/phaseconv/rotations/transform"
	"github.com/phaseconv/phaseconv/verify/engine"
	"github.com/phaseconv/phaseconv/verify/kvcache"
)

// headSums are the sums of one KV head as they travel, see keySums.
type headSums struct {
	Key, Key2                   []float64
	Attention                   float64
	Query                       []float64
	Weight, Queries             float64
	Drift, Metric, MetricPre    []float64
	Samples                     []float32
	SampleShare                 []float64
	SamplePos                   []int
	Values                      []float32
	ValueShare, Out             []float64
	Meetings                    []transform.QueryWindow
	DistanceWeight, DistanceSum [2][]float64
	Windows                     int
}

// Sums returns all that was summed up, for SetSums: in a worker activations need not travel then.
func (s *KeyStats) Sums() ([]byte, error) {
	var all []headSums
	for l, heads := range s.heads {
		if s.cfg.Layers[l].Owner != l {
			continue
		}
		for _, k := range heads {
			x := headSums{k.key, k.key2, k.attention, k.query, k.weight, k.queries, k.drift, k.metric, k.metricPre, k.samples,
				k.sampleShare, k.samplePos, k.values, k.valueShare, k.out, k.meetings, [2][]float64{}, [2][]float64{}, k.windows}
			for i := range k.distance {
				x.DistanceWeight[i], x.DistanceSum[i] = k.distance[i].weight[:], k.distance[i].sum[:]
			}
			all = append(all, x)
		}
	}
	var b bytes.Buffer
	err := gob.NewEncoder(&b).Encode(all)
	return b.Bytes(), err
}

// SetSums replaces all that was summed up by what Sums returned elsewhere, for the same model and options. ropes are
// the layers' tables for the longest window, nil where a layer has none.
func (s *KeyStats) SetSums(sums []byte, ropes []*rope.Table) error {
	var all []headSums
	if err := gob.NewDecoder(bytes.NewReader(sums)).Decode(&all); err != nil {
		return fmt.Errorf("sums of keys: %w", err)
	}
	if len(ropes) != len(s.heads) {
		return fmt.Errorf("sums of keys: %d rotary tables for %d layers", len(ropes), len(s.heads))
	}
	for l, heads := range s.heads {
		if ropes[l] != nil {
			s.rope(l, ropes[l])
		}
		if s.cfg.Layers[l].Owner != l {
			continue
		}
		if len(all) < len(heads) {
			return fmt.Errorf("sums of keys: none of layer %d", l)
		}
		for i, k := range heads {
			if err := k.set(&all[i], s.cfg.Layers[l].HeadDim); err != nil {
				return fmt.Errorf("sums of keys, layer %d, head %d: %w", l, i, err)
			}
		}
		all = all[len(heads):]
	}
	if len(all) > 0 {
		return fmt.Errorf("sums of keys: %d heads more than the model has", len(all))
	}
	return nil
}

// set takes over sums of a head of d numbers.
func (k *keySums) set(x *headSums, d int) error {
	for _, n := range [][2]int{{len(x.Key), d}, {len(x.Key2), d / 2}, {len(x.Query), d / 2}, {len(x.Drift), d * d},
		{len(x.Metric), d * d}, {len(x.MetricPre), d * d}, {len(x.Samples), d * len(x.SamplePos)},
		{len(x.Values), d * len(x.SamplePos)}, {len(x.SampleShare), len(x.SamplePos)},
		{len(x.ValueShare), len(x.SamplePos)}} {
		if n[0] != n[1] {
			return fmt.Errorf("%d numbers where %d were expected", n[0], n[1])
		}
	}
	if len(x.Out) != 0 && len(x.Out) != d*d {
		return fmt.Errorf("%d numbers of outputs where %d were expected", len(x.Out), d*d)
	}
	out := keySums{key: x.Key, key2: x.Key2, attention: x.Attention, query: x.Query, weight: x.Weight, queries: x.Queries,
		drift: x.Drift, metric: x.Metric, metricPre: x.MetricPre, samples: x.Samples, sampleShare: x.SampleShare,
		samplePos: x.SamplePos, values: x.Values, valueShare: x.ValueShare, out: x.Out, meetings: x.Meetings,
		windows: x.Windows}
	for i := range out.distance {
		if copy(out.distance[i].weight[:], x.DistanceWeight[i]) != distanceBins ||
			copy(out.distance[i].sum[:], x.DistanceSum[i]) != distanceBins {
			return fmt.Errorf("distances in other bins")
		}
	}
	*k = out
	return nil
}

// rope takes a layer's table along, if it is longer than what is there.
func (s *KeyStats) rope(layer int, table *rope.Table) {
	c, y := s.cfg, &s.cfg.Layers[layer]
	if i := c.RopeKind(layer); s.ropes[i].Turn == nil || s.ropes[i].Turn.Positions() < table.Positions() {
		t := kvcache.NewRopeTables(y, table)
		if s.o.Weights != nil {
			t.Moved = movedTable(table, y.HeadDim, c.PairsIn(layer))
		}
		s.ropes[i] = t
	}
}

// take has an engine run windows for the statistics, where the activations are if it can sum them up there.
func (s *KeyStats) take(ctx context.Context, e engine.Engine, windows [][]int32, p func(done, total int)) error {
	x, ok := e.(engine.Summer)
	if !ok {
		// In small batches: the statistics need no more, and activations take memory.
		batch := max(1, chooseBatch/len(windows[0]))
		for i := 0; i < len(windows); i += batch {
			n := min(batch, len(windows)-i)
			tick := func(done, total int) { p(i*total+n*done, len(windows)*total) }
			if err := e.Tap(ctx, windows[i:i+n], s.Hooks(ctx), tick); err != nil {
				return err
			}
		}
		return nil
	}
	sums, ropes, err := x.KeySums(ctx, windows, engine.KeySums{Queries: s.o.Queries, Sink: s.o.Sink, Samples: s.o.Samples,
		Meetings: s.o.Meetings, Output: s.o.Weights != nil, Seed: s.o.Seed, Threads: s.o.Threads}, p)
	if err != nil {
		return err
	}
	return s.SetSums(sums, ropes)
}
