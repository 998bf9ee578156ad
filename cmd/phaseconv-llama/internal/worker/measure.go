//go:build (linux || darwin) && (amd64 || arm64)

package worker

import (
	"context"
	"fmt"
	"slices"
	"syscall"
	"time"

	"github.com/phaseconv/phaseconv/cmd/phaseconv-llama/internal/graph"
	"github.com/phaseconv/phaseconv/cmd/phaseconv-llama/internal/libllama"
	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/kernels/parallel"
	"github.com/phaseconv/phaseconv/verify/engine/llama"
	"github.com/phaseconv/phaseconv/verify/engine/wire"
	"github.com/phaseconv/phaseconv/verify/ppl"
)

// batchTokens is how many tokens are computed at a time, the default of llama.cpp's programs.
const batchTokens = 512

// progressTokens is how many tokens pass between two reports of progress.
const progressTokens = 32

// A lane is a context with what is special about it.
type lane struct {
	*libllama.Context
	m        *model
	patch    *patch
	info     llama.MeasuredLane
	plan     *graph.Plan // of this context's graph, once it has run
	want     llama.Lane
	decoding float64 // seconds of CPU that its passes took
	// stopped: the lane has stops, in place of which nothing can be recorded.
	stopped bool
	// recent, if set, codes keys and values when they are the latest no more; rows then holds the logits of a batch.
	recent *recent
	rows   [][]float32
}

// Logits returns the row of token number i of what run computed last.
func (x *lane) Logits(i int) ([]float32, error) {
	if x.recent == nil {
		return x.Context.Logits(i)
	}
	if x.rows[i] == nil {
		return nil, fmt.Errorf("no logits of token %d were asked for", i)
	}
	return x.rows[i], nil
}

// decode computes tokens in one piece, or in those that a window of latest tokens wants, and says how many.
func (x *lane) decode(tokens []int32, first int, tick func(n int)) error {
	if x.recent == nil {
		defer tick(len(tokens))
		return x.Decode(tokens, first)
	}
	x.rows = make([][]float32, len(tokens))
	for at := 0; at < len(tokens); {
		n := x.recent.alone(x.Position(), len(tokens)-at)
		if err := x.recent.before(x.Position()); err != nil {
			return err
		}
		from := min(n, max(0, first-at))
		if err := x.Decode(tokens[at:at+n], from); err != nil {
			return err
		}
		if err := x.recent.check(x.Position()); err != nil {
			return err
		}
		for i := from; i < n; i++ {
			z, err := x.Context.Logits(i)
			if err != nil {
				return err
			}
			x.rows[at+i] = slices.Clone(z)
		}
		at += n
		tick(n)
	}
	return nil
}

// cut returns the windows of a blob of token ids.
func cut(blobs [][]byte, ctx int) ([][]int32, error) {
	if len(blobs) != 1 || ctx < 1 {
		return nil, fmt.Errorf("windows of %d tokens are one blob, not %d", ctx, len(blobs))
	}
	ids, err := wire.ReadInt32s(blobs[0])
	if err != nil {
		return nil, err
	}
	if len(ids) == 0 || len(ids)%ctx != 0 {
		return nil, fmt.Errorf("%d tokens are no windows of %d", len(ids), ctx)
	}
	var w [][]int32
	for i := 0; i < len(ids); i += ctx {
		w = append(w, ids[i:i+ctx])
	}
	return w, nil
}

// flash is how attention is computed for a pair of types: quantised values need flash attention, and
// float32 attention is for what is to be exact.
func flash(k, v int32) int {
	switch {
	case gguf.Type(v).Quantized():
		return 1
	case gguf.Type(k) == gguf.TypeF32 && gguf.Type(v) == gguf.TypeF32:
		return 0
	}
	return -1
}

func (s *server) lane(o llama.Lane, c llama.Measure, batch int) (*lane, error) {
	m, err := s.model(o.Model)
	if err != nil {
		return nil, err
	}
	x := &lane{m: m, want: o}
	if o.Patch != "" {
		if x.patch = m.patches[o.Patch]; x.patch == nil {
			return nil, fmt.Errorf("there is no patch %q", o.Patch)
		}
	}
	latest := o.Keys != nil && o.Keys.Recent > 0
	x.Context, err = m.NewContext(libllama.ContextOptions{Ctx: c.Ctx, Batch: batch, K: o.K, V: o.V, Flash: flash(o.K, o.V),
		FullWindow: c.FullWindow || latest, Threads: c.Threads})
	if err != nil {
		return nil, fmt.Errorf("caches K %s, V %s: %w", gguf.Type(o.K), gguf.Type(o.V), err)
	}
	var stops libllama.Stops
	if latest {
		if err = x.keepLatest(o.Keys, parallel.Threads(c.Threads)); err != nil {
			x.Close()
			return nil, err
		}
	} else if o.Keys != nil {
		if stops, err = m.substitute(x.Context, o.Keys, parallel.Threads(c.Threads)); err != nil {
			x.Close()
			return nil, err
		}
	}
	x.patch.stops(m, &stops)
	if x.stopped = len(stops.Do) > 0; x.stopped {
		x.SetStops(stops)
	}
	return x, nil
}

// keepLatest has the lane code keys and values when they are the latest no more.
func (x *lane) keepLatest(k *llama.Keys, threads int) error {
	by, err := x.m.coder(k)
	if err != nil {
		return err
	}
	n := min(testTokens, x.Options.Batch)
	if x.recent, x.plan, err = newRecent(x.Context, by, k.Recent, k.Sink, threads, x.m.someTokens(n)); err != nil {
		return err
	}
	if err := x.plan.CheckTypes(x.want.K, x.want.V); err != nil {
		return err
	}
	x.info.TokenBytes, x.info.CacheBytes = x.plan.CacheBytes(rowBytes)
	return nil
}

// run computes tokens with the lane's weights in place. The first batch is recorded as it runs: its
// caches must have the types that were asked for.
func (x *lane) run(tokens []int32, first int, tick func(n int)) (err error) {
	if x.patch != nil {
		if err := x.patch.apply(); err != nil {
			return err
		}
		defer func() {
			if e := x.patch.undo(); err == nil {
				err = e
			}
		}()
	}
	begin := cpu()
	defer func() { x.decoding += cpu() - begin }() // before the weights are put back
	if x.plan != nil || x.stopped {
		return x.decode(tokens, first, tick)
	}
	if x.plan, err = graph.RecordAs(x.Context, func() error { return x.decode(tokens, first, tick) }); err != nil {
		return err
	}
	if err := x.plan.CheckTypes(x.want.K, x.want.V); err != nil {
		return err
	}
	x.info.TokenBytes, x.info.CacheBytes = x.plan.CacheBytes(rowBytes)
	return nil
}

// cpu is what this process has taken of CPU in all its threads, in seconds.
func cpu() float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return (time.Duration(u.Utime.Nano()) + time.Duration(u.Stime.Nano())).Seconds()
}

func rowBytes(typ int32, n int64) int64 {
	block, size := gguf.Type(typ).Block()
	return n / int64(block) * int64(size)
}

// measure runs windows through the lanes, the first of which the others are compared with, and scores their tokens.
func (s *server) measure(o llama.Measure, blobs [][]byte) (any, [][]byte, error) {
	windows, err := cut(blobs, o.Ctx)
	if err != nil {
		return nil, nil, err
	}
	if o.First < 0 || o.First+1 >= o.Ctx || len(o.Lanes) == 0 {
		return nil, nil, fmt.Errorf("nothing is scored from position %d of %d on in %d "+
			"lanes", o.First, o.Ctx, len(o.Lanes))
	}
	batch := min(o.Ctx, batchTokens)
	for _, l := range o.Lanes {
		if l.Keys != nil && l.Keys.Recent == 0 {
			batch = o.Ctx // a code sees a whole window
		}
	}
	of := inputs(o, blobs[0])
	known := s.bases.find(o.Base, of)
	var lanes []*lane
	defer func() {
		for _, x := range lanes {
			x.Close()
		}
	}()
	for i, l := range o.Lanes {
		if i == 0 && known != nil {
			continue
		}
		x, err := s.lane(l, o, batch)
		if err != nil {
			return nil, nil, err
		}
		lanes = append(lanes, x)
		if x.m.Vocab != lanes[0].m.Vocab {
			return nil, nil, fmt.Errorf("vocabularies of %d and %d tokens cannot be compared", lanes[0].m.Vocab, x.m.Vocab)
		}
	}
	if len(lanes) == 0 {
		return nil, nil, fmt.Errorf("a base alone, which is known, is nothing to measure")
	}
	var targets []int32
	for _, w := range windows {
		targets = append(targets, w[o.First+1:]...)
	}
	vocab := lanes[0].m.Vocab
	meter, err := ppl.NewMeter(targets, len(o.Lanes), vocab)
	if err != nil {
		return nil, nil, err
	}
	var keep *base
	if known == nil {
		keep = s.bases.begin(o.Base, of, len(targets), vocab)
	}
	err = s.runLanes(o, windows, lanes, batch, func(first, n, at int) error {
		return rows(meter, lanes, known, keep, first, n, at, parallel.Threads(o.Threads))
	})
	if err != nil {
		return nil, nil, err
	}
	infos := make([]llama.MeasuredLane, 0, len(o.Lanes))
	if known != nil {
		infos = append(infos, known.info)
	}
	for _, x := range lanes {
		infos = append(infos, x.info)
	}
	if keep != nil {
		keep.info = infos[0]
		s.bases = append(s.bases, keep)
	}
	out := &llama.Measured{CPU: cpu()}
	for _, x := range lanes {
		out.DecodeCPU += x.decoding
	}
	var result [][]byte
	for i, sc := range meter.Scores() {
		infos[i].MaxAbsDLogit = sc.MaxAbsDLogit
		out.Lanes = append(out.Lanes, infos[i])
		result = append(result, wire.Float64s(sc.NLL), wire.Float64s(sc.KLD), wire.Int32s(sc.Top))
	}
	return out, result, nil
}

// runLanes runs all windows through all lanes. After each batch compare sees its tokens [first, n), which logits
// were asked for; token i is scored token at + i.
func (s *server) runLanes(o llama.Measure, windows [][]int32, lanes []*lane, batch int,
	compare func(first, n, at int) error) error {
	done, told, total := 0, 0, len(windows)*o.Ctx*len(lanes)
	tick := func(n int) {
		if done += n; done-told >= progressTokens || done == total {
			told = done
			s.progress(done, total)
		}
	}
	for i, w := range windows {
		for _, x := range lanes {
			x.Clear()
		}
		for from := 0; from < o.Ctx; from += batch {
			tokens := w[from:min(o.Ctx, from+batch)]
			first := min(len(tokens), max(0, o.First-from))
			for _, x := range lanes {
				if err := x.run(tokens, first, tick); err != nil {
					return fmt.Errorf("caches K %s, V %s, window %d: %w", gguf.Type(x.want.K), gguf.Type(x.want.V), i, err)
				}
			}
			// The last position predicts a token outside the window.
			n := min(len(tokens), o.Ctx-1-from)
			at := i*(o.Ctx-1-o.First) + from - o.First
			if err := compare(first, n, at); err != nil {
				return err
			}
		}
	}
	return nil
}

// rows compares the logits of tokens [first, n) of the last batch; token i is scored token at + i. The
// base's are the first lane's, or known ones; they are kept if keep is not nil.
func rows(meter *ppl.Meter, lanes []*lane, known, keep *base, first, n, at, threads int) error {
	// Asking is not for several threads.
	var all [][][]float32
	for i := first; i < n; i++ {
		var z [][]float32
		if known != nil {
			z = append(z, known.rows[at+i])
		}
		for _, x := range lanes {
			row, err := x.Logits(i)
			if err != nil {
				return err
			}
			z = append(z, row)
		}
		if keep != nil {
			keep.rows[at+i] = slices.Clone(z[0])
		}
		all = append(all, z)
	}
	return parallel.For(context.Background(), threads, len(all), func(i int) error {
		return meter.Row(at+first+i, all[i])
	})
}
