//go:build (linux || darwin) && (amd64 || arm64)

package worker

import (
	"fmt"
	"slices"

	"github.com/phaseconv/phaseconv/cmd/phaseconv-llama/internal/graph"
	"github.com/phaseconv/phaseconv/cmd/phaseconv-llama/internal/libllama"
	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/verify/engine/llama"
	"github.com/phaseconv/phaseconv/verify/engine/wire"
)

// taps collects the activations of one layer and hands them on when the last has come.
type taps struct {
	see     func(y *taps, values [][]float32) error
	window  int
	layer   int
	missing int
	names   []string
	values  [][]float32
}

// add takes a node's values, or a part of them, along; part nil stands for all.
func (y *taps) add(name string, t libllama.Tensor, part *graph.Part) error {
	x, err := t.Get(nil)
	if err == nil && part != nil {
		x, err = part.Cut(x)
	}
	if err != nil {
		return err
	}
	y.names, y.values = append(y.names, name), append(y.values, x)
	if y.missing--; y.missing > 0 {
		return nil
	}
	err = y.see(y, y.values)
	y.missing, y.names, y.values = len(y.names), nil, nil
	return err
}

// send is what is done with activations that are asked for themselves.
func (s *server) send(y *taps, values [][]float32) error {
	var blobs [][]byte
	for _, x := range values {
		blobs = append(blobs, wire.Float32s(x))
	}
	return s.conn.Send(llama.KindTapped, llama.Tapped{Window: y.window, Layer: y.layer, Names: y.names}, blobs...)
}

// tap runs windows and sends what is wanted of each layer; of one that reads another's cache no keys and
// values.
func (s *server) tap(o llama.Tap, blobs [][]byte) (any, [][]byte, error) {
	return nil, nil, s.watch(o, blobs, s.send)
}

// watch runs windows and shows what is wanted of each layer.
func (s *server) watch(o llama.Tap, blobs [][]byte, see func(y *taps, values [][]float32) error) error {
	m, err := s.model(o.Model)
	if err != nil {
		return err
	}
	windows, err := cut(blobs, o.Ctx)
	if err != nil {
		return err
	}
	// F32 caches and no flash attention: what is read is what float32 attention computes.
	f32 := int32(gguf.TypeF32)
	c, err := m.NewContext(libllama.ContextOptions{Ctx: o.Ctx, Batch: o.Ctx, K: f32, V: f32, Flash: 0, FullWindow: true,
		Threads: o.Threads})
	if err != nil {
		return err
	}
	defer c.Close()
	// This context's graph has other nodes than that with flash attention.
	plan, err := graph.Record(c, windows[0][:min(o.Ctx, 2*testTokens)])
	if err != nil {
		return err
	}
	if err := plan.CheckTypes(f32, f32); err != nil {
		return err
	}
	var all []*taps
	stops := libllama.Stops{First: plan.First, Do: map[libllama.Node]func(libllama.Tensor) error{},
		Watch: map[libllama.Node]bool{}}
	for _, y := range plan.Layers {
		if o.Layers == nil || slices.Contains(o.Layers, y.Layer) {
			all = append(all, layerTaps(c, &stops, y, o.Wants, see))
		}
	}
	var p *patch
	if o.Patch != "" {
		if p = m.patches[o.Patch]; p == nil {
			return fmt.Errorf("there is no patch %q", o.Patch)
		}
		if err := p.apply(); err != nil {
			return err
		}
		defer p.undo() //nolint:errcheck // sizes were checked when the patch came
		p.stops(m, &stops)
	}
	c.SetStops(stops)
	for i, w := range windows {
		for _, y := range all {
			y.window = i
		}
		c.Clear()
		// An output for the last token: without any the last layer's FFN sees nothing.
		if err := c.Decode(w, 0); err != nil {
			return err
		}
		s.progress(i+1, len(windows))
	}
	return nil
}

// layerTaps sets the stops for one layer.
func layerTaps(c *libllama.Context, stops *libllama.Stops, y *graph.Layer, wants llama.Wants,
	see func(y *taps, values [][]float32) error) *taps {
	out := &taps{see: see, layer: y.Layer}
	at := func(n *graph.Node, do func(t libllama.Tensor) error) {
		if old := stops.Do[n.Node]; old != nil {
			first := do
			do = func(t libllama.Tensor) error {
				if err := old(t); err != nil {
					return err
				}
				return first(t)
			}
		}
		stops.Do[n.Node] = do
	}
	read := func(n *graph.Node, name string, part *graph.Part) {
		out.missing++
		at(n, func(t libllama.Tensor) error { return out.add(name, t, part) })
	}
	if wants.In && y.In != nil {
		read(y.In, llama.TapIn, nil)
	}
	if wants.Pre && y.QPre != nil {
		read(y.QPre.Node, llama.TapQPre, y.QPre)
	}
	if wants.Pre && y.KPre != nil && y.FirstReader {
		read(y.KPre.Node, llama.TapKPre, y.KPre)
	}
	if wants.QKV {
		out.together(c, stops, at, read, y, !wants.NoValues)
	}
	if wants.FFN && y.FFN != nil {
		read(y.FFN, llama.TapFFN, nil)
	}
	return out
}

// together reads Q, K and V at one stop, the last of the three, where none has been consumed. Queries
// that are scaled behind RoPE may be scaled in place: they get a stop of their own.
func (y *taps) together(c *libllama.Context, stops *libllama.Stops, at func(*graph.Node, func(libllama.Tensor) error),
	read func(*graph.Node, string, *graph.Part), l *graph.Layer, values bool) {
	type wanted struct {
		*graph.Part
		name string
	}
	var want []wanted
	if l.Q.Node == l.QScored {
		want = append(want, wanted{l.Q, llama.TapQ})
	} else {
		read(l.Q.Node, llama.TapQ, l.Q)
	}
	if l.FirstReader {
		want = append(want, wanted{l.K, llama.TapK})
		if l.V != nil && values {
			want = append(want, wanted{l.V, llama.TapV})
		}
	}
	if len(want) == 0 {
		return
	}
	last := want[0].Node
	for _, w := range want {
		if w.Order > last.Order {
			last = w.Node
		}
		stops.Watch[w.Node.Node] = true
	}
	y.missing += len(want)
	at(last, func(libllama.Tensor) error {
		for _, w := range want {
			t, err := c.Live(w.Node.Node)
			if err != nil {
				return err
			}
			if err := y.add(w.name, t, w.Part); err != nil {
				return err
			}
		}
		return nil
	})
}
