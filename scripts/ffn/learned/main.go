// Command learned measures two fits that "phaseconv audit --ffn" leaves out, for
// docs/ffn.md: one rotation of the residual stream for the FFN readers of all
// layers, gains folded (what a learned G1 would use), and one full rotation, not in
// blocks, for the gate matrix of one layer.
//
//	learned -model model.gguf [-block 96] [-layer 15]
package main

import (
	"context"
	"flag"
	"fmt"
	"os"

	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/rotations/fit"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/rotations/transform"
)

// measure cannot fail: nobody stops it.
func measure(r *fit.BlockRotation, rows []float32, d, threads int) codec.Beta {
	b, _ := r.Measure(context.Background(), rows, d, threads)
	return b
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "learned:", err)
		os.Exit(1)
	}
}

func run() error {
	model := flag.String("model", "", "checkpoint of a dense model")
	block := flag.Int("block", 96, "largest block of the rotation for all layers")
	layer := flag.Int("layer", 15, "layer of the full rotation, -1 for none")
	threads := flag.Int("threads", 1, "threads")
	flag.Parse()
	c, err := checkpoint.Open(*model)
	if err != nil {
		return err
	}
	defer c.Close()
	cfg, d := c.Config, c.Config.Hidden
	q, err := transform.NewResidualRotation("none", d, 0)
	if err != nil {
		return err
	}
	folded, err := transform.FoldResidual(c, cfg, q, 1) // gains alone
	if err != nil {
		return err
	}
	split := func(l int, matrices ...string) (fitted, held []float32, err error) {
		for _, m := range matrices {
			t, ok := folded.Find(family.Name(l, m))
			if !ok {
				return nil, nil, fmt.Errorf("no tensor %s in layer %d", m, l)
			}
			x := make([]float32, t.Elements())
			if err := folded.ReadRows(t, 0, t.Rows(), x); err != nil {
				return nil, nil, err
			}
			for i := 0; i < len(x); i += 2 * d {
				fitted = append(fitted, x[i:i+d]...)
				if i+d < len(x) {
					held = append(held, x[i+d:i+2*d]...)
				}
			}
		}
		return fitted, held, nil
	}
	show := func(what string, fitted, held []float32, block int) error {
		r, err := fit.FitRows(context.Background(), fitted, d, block, 1, 0, 0, *threads)
		if err != nil {
			return err
		}
		srht := fit.HadamardRows(d, block, 1, 0, 0)
		var none *fit.BlockRotation
		h := measure(r, held, d, *threads)
		fmt.Printf("%s: %d rows of %d, block %d, %.2f rows per dimension: cos1bit train %.4f, held out %.4f (moment_ratio %.4f), srht %.4f, none %.4f\n",
			what, len(fitted)/d, d, block, float64(len(fitted)/d)/float64(block), measure(r, fitted, d, *threads).Cos1bit, h.Cos1bit, h.MomentRatio,
			measure(srht, held, d, *threads).Cos1bit, measure(none, held, d, *threads).Cos1bit)
		return nil
	}
	var fitted, held []float32
	for l := range cfg.Layers {
		f, h, err := split(l, "ffn_gate.weight", "ffn_up.weight")
		if err != nil {
			return err
		}
		fitted, held = append(fitted, f...), append(held, h...)
	}
	if err := show("all layers", fitted, held, fit.BlockSize(d, *block)); err != nil || *layer < 0 {
		return err
	}
	if fitted, held, err = split(*layer, "ffn_gate.weight"); err != nil {
		return err
	}
	if err := show(fmt.Sprintf("layer %d gate, full", *layer), fitted, held, d); err != nil {
		return err
	}
	n := len(fitted) / d
	return show("the same of noise", fit.NoiseRows(n, d, 1), fit.NoiseRows(n, d, 2), d)
}
