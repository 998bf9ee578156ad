package ladder

import (
	"context"
	"math"
	"math/bits"
	"slices"

	"github.com/phaseconv/phaseconv/kernels/parallel"
	"github.com/phaseconv/phaseconv/spec"
)

// A layer is one layer's activations and what was fitted to them.
type layer struct {
	*activations
	threads int
	stats   []*stats // of each KV head
	eval    int      // windows of fit text that errors are measured on, as many as held-out ones

	// What slots work on, by KV head and window, and the window and sinks that it was computed for.
	// It is kept while a rung works on the layer.
	inputs []*slotInput
	W, S   int
}

// prepare computes what slots work on in windows.
func (l *layer) prepare(ctx context.Context, o slotOptions, windows []int) error {
	if l.W != o.window || l.S != o.sinks {
		l.forget()
		l.W, l.S = o.window, o.sinks
	}
	if l.inputs == nil {
		l.inputs = make([]*slotInput, l.y.KVHeads*l.windows)
	}
	return parallel.For(ctx, l.threads, l.y.KVHeads*len(windows), func(i int) (err error) {
		h, w := i/len(windows), windows[i%len(windows)]
		if at := h*l.windows + w; l.inputs[at] == nil {
			l.inputs[at], err = newSlotInput(ctx, l.head(w, h), l.stats[h], o.window, o.sinks)
		}
		return err
	})
}

// input returns what slots work on; prepare has computed it.
func (l *layer) input(w, h int) *slotInput { return l.inputs[h*l.windows+w] }

// forget frees what slots work on.
func (l *layer) forget() { l.inputs = nil }

// fitLayer measures the statistics of all KV heads of a layer.
func fitLayer(ctx context.Context, a *activations, queries, threads int) (*layer, error) {
	l := &layer{activations: a, threads: threads, stats: make([]*stats, a.y.KVHeads)}
	l.eval = max(1, min(a.fit, a.windows-a.fit))
	err := parallel.For(ctx, threads, len(l.stats), func(h int) (err error) {
		heads := make([]*head, a.fit)
		for w := range heads {
			if err := stop(ctx); err != nil {
				return err
			}
			heads[w] = a.head(w, h)
		}
		l.stats[h], err = fitStats(ctx, heads, queries)
		return err
	})
	return l, err
}

// heads computes the exact attention of windows [from, to) of KV head h.
func (l *layer) heads(ctx context.Context, h, from, to int) ([]*head, error) {
	out := make([]*head, to-from)
	err := parallel.For(ctx, l.threads, len(out), func(i int) error {
		out[i] = l.head(from+i, h)
		return nil
	})
	return out, err
}

// measured are the windows whose errors are measured: of fit text, then the held-out ones.
func (l *layer) measured() []int {
	var out []int
	for w := range l.eval {
		out = append(out, w)
	}
	for w := l.fit; w < l.windows; w++ {
		out = append(out, w)
	}
	return out
}

// fitAndHeld sums squares of the measured windows: fit text and held out.
type fitAndHeld struct{ fit, out squares }

func (l *layer) sum(windows []int, s []squares) (e fitAndHeld) {
	for i, w := range windows {
		if w < l.fit {
			e.fit.add(s[i])
		} else {
			e.out.add(s[i])
		}
	}
	return e
}

func (e *fitAndHeld) add(o fitAndHeld) { e.fit.add(o.fit); e.out.add(o.out) }

func (l *layer) step(e fitAndHeld, size float64, bytes int) spec.LadderStep {
	return spec.LadderStep{Size: size, Fit: e.fit.rel(), HeldOut: e.out.rel(), Bytes: bytes,
		Share: float64(bytes) / float64(l.cacheBytes())}
}

// cacheBytes is the size of the layer's F16 cache of one window.
func (l *layer) cacheBytes() int { return 4 * l.y.HeadDim * l.T * l.y.KVHeads }

// windowOnly measures what sinks and window alone give.
func (l *layer) windowOnly(ctx context.Context, W, S int) (*spec.LadderStep, error) {
	windows := l.measured()
	got := make([]squares, len(windows)*l.y.KVHeads)
	err := parallel.For(ctx, l.threads, len(got), func(i int) error {
		x := l.head(windows[i%len(windows)], i/len(windows))
		got[i] = x.compare(x.windowOnly(x.near(W, S)))
		return nil
	})
	if err != nil {
		return nil, err
	}
	var e fitAndHeld
	for h := range l.y.KVHeads {
		e.add(l.sum(windows, got[h*len(windows):]))
	}
	s := l.step(e, 0, (W+S)*4*l.y.HeadDim*l.y.KVHeads)
	return &s, nil
}

// falls says whether errors fall strictly from step to step.
func falls(steps []spec.LadderStep) bool {
	for i := 1; i < len(steps); i++ {
		if !(steps[i].HeldOut < steps[i-1].HeldOut) {
			return false
		}
	}
	return len(steps) > 0
}

// checks takes over replay and denominators from the runs of held-out windows.
func checks(out *spec.LadderLayer, runs []*slotRun) {
	var replay squares
	logs, n, top := 0.0, 0, math.Inf(-1)
	for _, r := range runs {
		if r.logs > 0 {
			replay.add(r.replay)
			logs, n, top = logs+r.logSum, n+r.logs, max(top, r.logMax)
		}
	}
	if n > 0 {
		rel, rms := replay.rel(), math.Sqrt(logs/float64(n))
		out.Replay, out.LogZ, out.LogZMax = &rel, &rms, &top
	}
}

// A makeFeatures fits a feature map with m features to the fit windows of KV head number h.
type makeFeatures func(ctx context.Context, h int, s *stats, fit []*head, m int) (featureMap, error)

// features measures a fixed feature map at each size. correct adds the ridge regression.
func (l *layer) features(
	ctx context.Context, sizes []int, W, S int, make1 makeFeatures, correct bool, tick func(),
) (spec.LadderLayer, error) {
	out := spec.LadderLayer{Layer: l.layer}
	if W > 0 {
		var err error
		if out.WindowOnly, err = l.windowOnly(ctx, W, S); err != nil {
			return out, err
		}
	}
	d, KV := l.y.HeadDim, l.y.KVHeads
	windows := l.measured()
	if correct { // the regression is fitted to all fit windows
		windows = nil
		for w := range l.windows {
			windows = append(windows, w)
		}
	}
	var r *ridge
	if correct {
		r = newRidge(l)
	}
	penalty := -1.0
	for i := len(sizes) - 1; i >= 0; i-- { // the penalty is chosen at the largest size
		m := sizes[i]
		var e fitAndHeld
		outputs := make([][]float32, len(windows)) // [T, heads*d] of each
		for j := range outputs {
			if correct {
				outputs[j] = make([]float32, l.T*l.y.Heads*d)
			}
		}
		for h := range KV {
			heads, err := l.heads(ctx, h, 0, l.windows)
			if err != nil {
				return out, err
			}
			f, err := make1(ctx, h, l.stats[h], heads[:l.fit], m)
			if err != nil {
				return out, err
			}
			got := make([]squares, len(windows))
			err = parallel.For(ctx, l.threads, len(windows), func(j int) error {
				x := heads[windows[j]]
				N, D := x.near(W, S)
				O := x.far(f(x), N, D, W, S)
				got[j] = x.compare(O)
				if correct {
					place(outputs[j], O, x, h, l.y.Heads)
				}
				return nil
			})
			if err != nil {
				return out, err
			}
			e.add(l.sum(windows, got))
		}
		if correct {
			var err error
			if e, penalty, err = r.correct(ctx, outputs, penalty); err != nil {
				return out, err
			}
		}
		// A linear carrier is m sums of d+1 numbers in F32.
		out.Steps = append(out.Steps, l.step(e, float64(m), KV*(4*m*(d+1)+(W+S)*4*d)))
		tick()
	}
	slices.Reverse(out.Steps)
	out.Monotone = falls(out.Steps)
	return out, nil
}

// place copies the outputs of one KV head's group into rows of all query heads.
func place(dst, O []float32, x *head, h, heads int) {
	for g := range x.G {
		for t := range x.T {
			copy(dst[(t*heads+h*x.G+g)*x.d:][:x.d], O[(g*x.T+t)*x.d:])
		}
	}
}

// slots measures states of slots. plans has the slots of each KV head, step by step; the last
// step is the one that replay and denominators are measured of.
func (l *layer) slots(ctx context.Context, o slotOptions, plans [][]int, tick func()) (spec.LadderLayer, error) {
	out := spec.LadderLayer{Layer: l.layer}
	if !o.evict {
		out.Cost = o.cost
	}
	var err error
	if out.WindowOnly, err = l.windowOnly(ctx, o.window, o.sinks); err != nil {
		return out, err
	}
	d, KV := l.y.HeadDim, l.y.KVHeads
	windows := l.measured()
	if err := l.prepare(ctx, o, windows); err != nil {
		return out, err
	}
	for i, plan := range plans {
		last := i == len(plans)-1
		got, runs := make([]squares, len(windows)*KV), make([]*slotRun, len(windows)*KV)
		err := parallel.For(ctx, l.threads, len(got), func(j int) error {
			h := j / len(windows)
			w := windows[j%len(windows)]
			x := l.input(w, h)
			run, err := runSlots(ctx, x, o, plan[h], last && w >= l.fit && !o.evict)
			if err != nil {
				return err
			}
			got[j] = x.compare(run.O)
			run.O = nil
			runs[j] = run
			return nil
		})
		if err != nil {
			return out, err
		}
		var e fitAndHeld
		size, bytes := 0.0, 0
		for h, m := range plan {
			e.add(l.sum(windows, got[h*len(windows):]))
			size += float64(m) / float64(KV)
			bytes += o.bytes(m, d)
		}
		step := l.step(e, size, bytes)
		step.Slots = plan
		out.Steps = append(out.Steps, step)
		if last && !o.evict {
			checks(&out, runs)
		}
		tick()
	}
	out.Monotone = falls(out.Steps)
	return out, nil
}

// fitError measures on fit text alone, by KV head.
func (l *layer) fitError(ctx context.Context, o slotOptions, m int) ([]squares, error) {
	KV := l.y.KVHeads
	got := make([]squares, l.eval*KV)
	if err := l.prepare(ctx, o, l.measured()[:l.eval]); err != nil {
		return nil, err
	}
	err := parallel.For(ctx, l.threads, len(got), func(j int) error {
		x := l.input(j%l.eval, j/l.eval)
		run, err := runSlots(ctx, x, o, m, false)
		if err == nil {
			got[j] = x.compare(run.O)
		}
		return err
	})
	out := make([]squares, KV)
	for j, s := range got {
		out[j/l.eval].add(s)
	}
	return out, err
}

// chooseCost takes the cost of merging that errs less on fit text.
func (l *layer) chooseCost(ctx context.Context, o slotOptions, m int) (string, error) {
	best, cost := 0.0, ""
	for _, c := range []string{costProd, costWard} {
		o.cost = c
		s, err := l.fitError(ctx, o, m)
		if err != nil {
			return "", err
		}
		var all squares
		for _, x := range s {
			all.add(x)
		}
		if e := all.rel(); cost == "" || e < best {
			best, cost = e, c
		}
	}
	return cost, nil
}

// allot gives each KV head as few slots as bring the layer's error on fit text below each of
// the targets, which fall: greedily, by error saved per slot.
func (l *layer) allot(ctx context.Context, o slotOptions, targets []float64, tick func()) ([][]int, error) {
	KV := l.y.KVHeads
	sizes := allotments(l.T)
	e := make([][]squares, KV) // by head and size
	enough := 0                // sizes that pass the last target in all heads alike
	for _, m := range sizes {
		tick()
		if enough == 2 { // a head may be given one size more than all would need
			continue
		}
		s, err := l.fitError(ctx, o, m)
		if err != nil {
			return nil, err
		}
		var now squares
		for h := range e {
			e[h] = append(e[h], s[h])
			now.add(s[h])
		}
		if now.rel() <= targets[len(targets)-1] {
			enough++
		}
	}
	sizes = sizes[:len(e[0])]
	at := make([]int, KV)
	var plans [][]int
	for _, target := range targets {
		for {
			var now squares
			for h := range e {
				now.add(e[h][at[h]])
			}
			if now.rel() <= target {
				break
			}
			gain, bestHead, bestSize := 0.0, -1, 0
			for h := range e {
				for k := at[h] + 1; k < len(sizes); k++ {
					g := (e[h][at[h]].diff - e[h][k].diff) / float64(sizes[k]-sizes[at[h]])
					if bestHead < 0 || g > gain {
						gain, bestHead, bestSize = g, h, k
					}
				}
			}
			if bestHead < 0 {
				break
			}
			at[bestHead] = bestSize
		}
		plan := make([]int, KV)
		for h := range plan {
			plan[h] = sizes[at[h]]
		}
		if n := len(plans); n == 0 || !slices.Equal(plan, plans[n-1]) {
			plans = append(plans, plan)
		}
	}
	return plans, nil
}

// ladderSizes are the sizes m of a ladder at a context: doubled from 8 to 256, to half the
// context.
func ladderSizes(T int) []int {
	var out []int
	for m := 8; m <= 256 && m <= T/2; m *= 2 {
		out = append(out, m)
	}
	return out
}

// allotments are the numbers of slots that a KV head can be given: up to five eighths of the
// context.
func allotments(T int) []int {
	out := []int{0}
	for m := 4; m <= T*5/8; m += max(4, 1<<bits.Len(uint(m))/4) {
		out = append(out, m)
	}
	if most := T * 5 / 8; most > out[len(out)-1] {
		out = append(out, most)
	}
	return out
}

// uniform gives every KV head the same slots, step by step.
func uniform(sizes []int, heads int) (out [][]int) {
	for _, m := range sizes {
		out = append(out, slices.Repeat([]int{m}, heads))
	}
	return out
}

// minContext is the shortest context at which window and sinks leave something to a state.
const minContext = 64
