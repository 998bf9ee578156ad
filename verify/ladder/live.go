package ladder

import (
	"context"
	"math"

	"github.com/phaseconv/phaseconv/kernels/parallel"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/ppl"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// A replacement is a state that stands for the attention of one layer.
type replacement struct {
	layer int
	stats []*stats // of each KV head
	o     slotOptions
	slots []int // of each KV head
	share float64
}

// attend computes the attention of the replaced layers from their states; it is a variant's
// Attend.
func attend(m *refmodel.Model, by map[int]*replacement) (
	attend func(context.Context, *refmodel.Attention, []float32) (bool, error),
) {
	return func(ctx context.Context, a *refmodel.Attention, o []float32) (bool, error) {
		r := by[a.Layer]
		if r == nil {
			return false, nil
		}
		y := &m.Config.Layers[a.Layer]
		x := &activations{layer: a.Layer, y: y, T: a.T, windows: a.Windows, Q: a.Q, K: a.K, V: a.V}
		width := y.Heads * y.HeadDim
		err := parallel.For(ctx, m.Threads, a.Windows*y.KVHeads, func(i int) error {
			w, h := i/y.KVHeads, i%y.KVHeads
			head := x.head(w, h)
			in, err := newSlotInput(ctx, head, r.stats[h], r.o.window, r.o.sinks)
			if err != nil {
				return err
			}
			run, err := runSlots(ctx, in, r.o, r.slots[h], false)
			if err == nil {
				place(o[w*a.T*width:(w+1)*a.T*width], run.O, head, h, y.Heads)
			}
			return err
		})
		return true, err
	}
}

// live runs the model once as it is and once for each set of replacements, and compares. The
// layers of a set are replaced together.
func live(
	ctx context.Context, m *refmodel.Model, w *ppl.Windows, sets [][]*replacement, tick func(done, total int),
) ([]spec.LadderLive, error) {
	variants := func() (out []*refmodel.Variant) {
		for _, set := range sets {
			by := map[int]*replacement{}
			first := len(m.Config.Layers)
			for _, r := range set {
				by[r.layer] = r
				first = min(first, r.layer)
			}
			out = append(out, &refmodel.Variant{From: first, Attend: attend(m, by)})
		}
		return out
	}
	layers := len(m.Config.Layers)
	measure := func(w *ppl.Windows, part int) ([]ppl.Positions, *ppl.Result, error) {
		opt := refmodel.Options{Progress: func(done, _ int) { tick(part*layers+done, 2*layers) }}
		p, err := ppl.Run(ctx, m, w, opt, append([]*refmodel.Variant{{}}, variants()...)...)
		if err != nil {
			return nil, nil, err
		}
		res, err := ppl.Measure(ctx, w, nil, p[0], p[1:]...)
		if err == nil {
			err = res.Check()
		}
		return p, res, err
	}
	p, res, err := measure(w, 0)
	if err != nil {
		return nil, err
	}
	d, err := logitDistances(ctx, w, p[0], p[1:])
	if err != nil {
		return nil, err
	}
	_, copied, err := measure(repeated(w), 1)
	if err != nil {
		return nil, err
	}
	base, _ := ppl.MeanErr(res.Base.NLL)
	copyBase, _ := ppl.MeanErr(copied.Base.NLL)
	var out []spec.LadderLive
	for i, set := range sets {
		diff := make([]float64, len(res.Base.NLL))
		for j := range diff {
			diff[j] = res.Streams[i].NLL[j] - res.Base.NLL[j]
		}
		mean, sd := ppl.MeanErr(diff)
		x := spec.LadderLive{NLLInflation: mean / base, NLLErr: sd / base, Logits: d[i].window, LogitsStrict: d[i].token,
			KLD: res.Divergences[i].Mean, SameTop: res.Divergences[i].SameTop, CopyNLL: copyBase}
		x.CopyLive, _ = ppl.MeanErr(copied.Streams[i].NLL)
		for _, r := range set {
			x.Layers = append(x.Layers, r.layer)
			x.Share += r.share / float64(len(set))
		}
		out = append(out, x)
	}
	return out, nil
}

// repeated makes windows whose second half is the first half again. What is scored is what
// only copying predicts.
func repeated(w *ppl.Windows) *ppl.Windows {
	var out [][]int32
	for _, ids := range w.Tokens {
		half := ids[:w.Ctx/2]
		x := append(append([]int32(nil), half...), half...)
		out = append(out, x)
	}
	return ppl.From(out, w.Ctx/2)
}

// A distance is the relative L2 distance of logits: the largest of the windows, and the largest
// of single tokens, where a constant for all logits of a token, which softmax ignores, is taken
// out.
type distance struct{ window, token float64 }

// vocabPiece is how many logits of a token are held at a time.
const vocabPiece = 8192

// logitDistances compares the logits of streams with those of base.
func logitDistances(ctx context.Context, w *ppl.Windows, base ppl.Positions, streams []ppl.Positions) ([]distance,
	error) {
	// Sums over the vocabulary, by token: of z, z^2, y-z, (y-z)^2.
	type sums struct{ z, zz, d, dd float64 }
	n, m := len(w.Targets), base.Model
	vocab := m.Config.Vocab
	all := make([][]sums, len(streams))
	bufs, normed := make([][]float32, len(streams)+1), [][]float32{base.Normed}
	for i, s := range streams {
		all[i] = make([]sums, n)
		normed = append(normed, s.Normed)
	}
	for i := range bufs {
		bufs[i] = make([]float32, n*min(vocab, vocabPiece))
	}
	for v0 := 0; v0 < vocab; v0 += vocabPiece {
		v1 := min(vocab, v0+vocabPiece)
		if err := m.Logits(ctx, bufs, normed, v0, v1); err != nil {
			return nil, err
		}
		width := v1 - v0
		err := parallel.For(ctx, m.Threads, n, func(r int) error {
			z := bufs[0][r*width : (r+1)*width]
			for i := range streams {
				s := &all[i][r]
				for k, y := range bufs[i+1][r*width : (r+1)*width] {
					a, b := float64(z[k]), float64(y)-float64(z[k])
					s.z += a
					s.zz += float64(a * a)
					s.d += b
					s.dd += float64(b * b)
				}
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	out := make([]distance, len(streams))
	per := w.PerWindow()
	for i := range streams {
		for r := 0; r < n; r += per {
			var zz, dd float64
			for _, s := range all[i][r : r+per] {
				zz, dd = zz+s.zz, dd+s.dd
				size := s.zz - float64(s.z*s.z)/float64(vocab)
				far := max(0, s.dd-float64(s.d*s.d)/float64(vocab))
				if size > 0 {
					out[i].token = max(out[i].token, math.Sqrt(far/size))
				}
			}
			if zz > 0 {
				out[i].window = max(out[i].window, math.Sqrt(dd/zz))
			}
		}
	}
	return out, nil
}
