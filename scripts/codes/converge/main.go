// Command converge tabulates how the learned rotation and the frame of one bit
// converge, for docs/codes.md: the mean cosine of keys with their codes (cos1bit)
// and moment_ratio, step by step, on the fitted keys and on keys of another text,
// over some layers and several seeds. A seed also chooses the windows that are
// fitted to.
//
//	converge -model model.gguf -fit valid.txt -text test.txt [-seeds 5] [-every 3]
package main

import (
	"context"
	"flag"
	"fmt"
	"math"
	"os"
	"slices"
	"sync"

	"github.com/phaseconv/phaseconv/rotations/fit"

	"github.com/phaseconv/phaseconv/convert/calibrate"
	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/verify/activations"
	"github.com/phaseconv/phaseconv/verify/kvcache"
	"github.com/phaseconv/phaseconv/verify/ppl"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// measure cannot fail: nobody stops it.
func measure(c *codec.Code, keys []float32) codec.Beta {
	b, _ := c.Measure(context.Background(), keys)
	return b
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "converge:", err)
		os.Exit(1)
	}
}

const (
	windows = 8 // to fit to, and half as many to measure on
	maxKeys = 2000
)

// point sums over heads what one step has.
type point struct{ train, held, trainRatio, heldRatio, n float64 }

func (p *point) add(train, held codec.Beta) {
	p.train, p.held = p.train+train.Cos1bit, p.held+held.Cos1bit
	p.trainRatio, p.heldRatio = p.trainRatio+train.MomentRatio, p.heldRatio+held.MomentRatio
	p.n++
}

// A curve is what one start of one head has at each step: train, held out.
type curve [][2]codec.Beta

// mean returns step i of the mean over heads; a head whose fit has ended stays
// where it is. ok is false when all have.
func mean(curves []curve, i int) (p point, ok bool) {
	for _, c := range curves {
		x := c[min(i, len(c)-1)]
		p.add(x[0], x[1])
		ok = ok || i < len(c)
	}
	return p, ok
}

// heldKeys keeps keys of the text to measure on.
type heldKeys struct {
	c      *checkpoint.Checkpoint
	policy kvcache.Policy
	keys   map[[2]int][]float32
}

func (t *heldKeys) Attention(a *refmodel.Attention) error {
	for h := range t.c.Config.Layers[a.Layer].KVHeads {
		t.keys[[2]int{a.Layer, h}] = activations.Keys(t.c.Config, a, h, nil, t.policy)
	}
	return nil
}

func cut(c *checkpoint.Checkpoint, path string, n int) ([][]int32, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	w, err := ppl.Tokenize(context.Background(), c, ppl.Text{Name: path, Data: raw}, 512, n)
	if err != nil {
		return nil, err
	}
	return w.Tokens, nil
}

func few(keys []float32, d int) []float32 { return keys[:min(len(keys), maxKeys*d)] }

var crossings = []float64{.85, .90, .92}

func run() error {
	model := flag.String("model", "", "checkpoint")
	fitText := flag.String("fit", "", "text to fit to")
	text := flag.String("text", "", "text to measure on")
	seeds := flag.Int("seeds", 5, "seeds")
	every := flag.Int("every", 3, "take every so many layers")
	threads := flag.Int("threads", 1, "threads")
	flag.Parse()
	c, err := checkpoint.Open(*model)
	if err != nil {
		return err
	}
	defer c.Close()
	d := c.Config.Layers[0].HeadDim
	ctx := context.Background()
	policy := kvcache.Policy{Anchor: 64, Sink: 4}
	m := refmodel.New(c.Config, c, *threads)
	test, err := cut(c, *text, windows/2)
	if err != nil {
		return err
	}
	held := &heldKeys{c, policy, map[[2]int][]float32{}}
	if err := m.Run(ctx, test, []*refmodel.Variant{{}}, refmodel.Options{Hooks: refmodel.Hooks{Attention: held.Attention}}); err != nil {
		return err
	}
	cal, err := cut(c, *fitText, windows**seeds)
	if err != nil {
		return err
	}
	fmt.Println("seed\tcode\tstart\tstep\theads\ttrain_cos1bit\theld_cos1bit\ttrain_moment_ratio\theld_moment_ratio")
	for seed := range *seeds {
		var mu sync.Mutex
		type head struct {
			kind        codec.Kind
			start       int
			layer, head int
		}
		curves := map[head]curve{}
		o := calibrate.Options{Kinds: []codec.Kind{codec.Learned, codec.Frame}, Bits: 1, Policy: policy, Seed: uint64(seed), Threads: *threads,
			Only: func(l int) bool { return l%*every == 0 },
			Trace: func(s *fit.Sample, kind codec.Kind, start, step int, k *codec.Code) {
				keys := held.keys[[2]int{s.Layer, s.Head}]
				train, test := measure(k, few(s.Keys, d)), measure(k, few(keys, d))
				mu.Lock()
				defer mu.Unlock()
				h := head{kind, start, s.Layer, s.Head}
				curves[h] = append(curves[h], [2]codec.Beta{train, test})
			}}
		res, err := calibrate.Run(ctx, m, cal[seed*windows:(seed+1)*windows], o)
		if err != nil {
			return err
		}
		for _, kind := range o.Kinds {
			var first []curve // from the first start
			for start := range 4 {
				var all []curve
				for l := range c.Config.Layers {
					for h := range c.Config.Layers[l].KVHeads {
						if x := curves[head{kind, start, l, h}]; x != nil {
							all = append(all, x)
						}
					}
				}
				for step := 0; ; step++ {
					p, ok := mean(all, step)
					if !ok {
						break
					}
					fmt.Printf("%d\t%s\t%d\t%d\t%g\t%.4f\t%.4f\t%.4f\t%.4f\n", seed, kind, start, step, p.n, p.train/p.n, p.held/p.n, p.trainRatio/p.n, p.heldRatio/p.n)
				}
				if start == 0 {
					first = all
				}
			}
			final, floor, worst, best := point{}, point{}, math.Inf(1), math.Inf(-1)
			for l := 0; l < len(c.Config.Layers); l += *every {
				for h, x := range res.Layers[l].Heads {
					keys := few(held.keys[[2]int{l, h}], d)
					srht, err := codec.DataFree(codec.SRHT, d, uint64(seed), l, h)
					if err != nil {
						return err
					}
					// The floor is that of centred keys, as the codes see them.
					if srht, err = codec.New(codec.SRHT, d, d, x.Codes[kind].Mean, srht.Decode, nil); err != nil {
						return err
					}
					b := measure(x.Codes[kind], keys)
					final.add(x.Train[kind], b)
					floor.add(b, measure(srht, keys))
					worst, best = min(worst, b.Cos1bit), max(best, b.Cos1bit)
				}
			}
			fmt.Printf("%d\t%s\tend\t-\t%g\t%.4f\t%.4f\t%.4f\t%.4f\n", seed, kind, final.n, final.train/final.n, final.held/final.n, final.trainRatio/final.n, final.heldRatio/final.n)
			fmt.Printf("# seed %d, %s: held-out cos1bit of heads %.4f to %.4f; SRHT %.4f, moment_ratio %.4f\n", seed, kind, worst, best, floor.held/floor.n, floor.heldRatio/floor.n)
			for _, x := range crossings {
				for side, name := range []string{"fitted", "other"} {
					n, sum := 0, 0
					for _, c := range first {
						at := slices.IndexFunc(c, func(p [2]codec.Beta) bool { return p[side].Cos1bit >= x })
						if at >= 0 {
							n, sum = n+1, sum+at
						}
					}
					fmt.Printf("# seed %d, %s: %d of %d heads cross %.2f on %s keys, steps until then %d in all\n", seed, kind, n, len(first), x, name, sum)
				}
			}
		}
	}
	return nil
}
