package audit

import (
	"cmp"
	"context"
	"fmt"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/rotations/fit"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/progress"
)

// FFNOptions of FFN; zero values stand for the defaults.
type FFNOptions struct {
	// Block is the largest block of a learned rotation (128): rows longer than it
	// get a block-diagonal one, of the largest divisor of their length.
	Block int
	// MaxRows bounds the rows of one matrix, or of a bank's experts together, that
	// are looked at (16384), evenly spaced over all; half of them are fitted.
	MaxRows int
	// Experts bounds the experts of a layer with rows of their own (8), evenly spaced.
	Experts int
	// Layers, if set, are the only layers looked at.
	Layers   []int
	Seed     uint64
	Threads  int
	Progress func(done, total int)

	rotationBits int // of one number of a learned rotation
}

func (o FFNOptions) withDefaults() FFNOptions {
	o.Block = cmp.Or(o.Block, 128)
	o.MaxRows = cmp.Or(o.MaxRows, 1<<14)
	o.Experts = cmp.Or(o.Experts, 8)
	o.rotationBits = cmp.Or(o.rotationBits, rotationBits)
	return o
}

// What a fit of rows costs, beside products of a forward pass. It takes fitSteps steps from its
// two starts together, on average of real models, and each multiplies the rows by the rotation
// twice and takes a polar factor, which costs as much as polarCost products of the rotation with
// itself: small ones, in float64. With these two SmolLM2-135M takes 74 % of a conversion's
// work; 71 % of its processor time were measured (83 of 116 s), and 24 to 28 products on
// SmolLM2 and Qwen2.5-0.5B. The noise that rows are held against is fitted too, hence fitsEach.
const (
	fitSteps  = 24
	polarCost = 26
	fitsEach  = 2
)

// FFNWork returns about how many multiplications FFN takes, from the shapes of a model alone:
// the same on every machine.
func FFNWork(cfg *family.Config, w checkpoint.Weights, o FFNOptions) float64 {
	o = o.withDefaults()
	var total float64
	for l := range cfg.Layers {
		experts := cfg.Layers[l].FFN.Experts
		for _, which := range []string{"gate", "up", "down"} {
			t, ok := w.Find(bank(cfg, l, which))
			if !ok {
				continue
			}
			d := t.Cols()
			block := float64(fit.BlockSize(d, o.Block))
			fits := func(rows int) {
				perStep := 2*float64(min(rows, o.MaxRows)/2) + polarCost*block
				total += fitsEach * fitSteps * perStep * float64(d) * block
			}
			fits(t.Rows()) // shared
			if experts == 0 {
				fits(t.Rows()) // own
				continue
			}
			for range min(experts, o.Experts) {
				fits(t.Rows() / experts)
			}
		}
	}
	return total
}

// Storage of the 1-bit form of a row, in bits beside its signs: a scale in F16.
const scaleBits = 16

// rotationBits is the storage of one number of a learned rotation, unless told otherwise.
const rotationBits = 16

// FFN measures how well signs describe the rows of gate, up and down, which lie
// along each matrix's input side, as they stand (none), after a randomised Hadamard
// transform (srht), and after a rotation learned on every other row and measured on
// the rows between: one for all matrices of a layer with the same input (shared:
// gate and up of all experts; down of all), and one for each matrix of each expert
// (own). It reads a layer at a time and changes nothing.
func FFN(ctx context.Context, cfg *family.Config, w checkpoint.Weights, o FFNOptions) ([]spec.FFNRow, error) {
	o = o.withDefaults()
	if o.Block < 1 || o.Block > codec.MaxDim || o.MaxRows < 2 || o.Experts < 1 {
		return nil, fmt.Errorf("FFN audit with blocks of %d, %d rows and %d experts", o.Block, o.MaxRows, o.Experts)
	}
	a := &ffnAudit{cfg: cfg, w: w, o: o, noise: map[[3]int]float64{}}
	layers := o.Layers
	if layers == nil {
		for l := range cfg.Layers {
			layers = append(layers, l)
		}
	}
	steps := 0
	for _, l := range layers {
		if l < 0 || l >= len(cfg.Layers) {
			return nil, fmt.Errorf("layer %d of %d", l, len(cfg.Layers))
		}
		// Two groups of three matrices in all, and what is measured of single experts.
		steps += 5 + 3*min(cfg.Layers[l].FFN.Experts, o.Experts)
	}
	a.done = progress.Count(o.Progress, steps)
	for _, l := range layers {
		for input, group := range spec.FFNMatrices {
			if err := a.group(ctx, l, input, group); err != nil {
				return nil, err
			}
		}
	}
	return a.out, nil
}

type ffnAudit struct {
	cfg *family.Config
	w   checkpoint.Weights
	o   FFNOptions
	out []spec.FFNRow
	// noise is what a fit to so many rows of so many Gaussian numbers, in blocks of so
	// many, reaches on them.
	noise map[[3]int]float64
	done  func() // reports a fit
}

// sample is rows of one matrix, split for a fit.
type sample struct {
	fit, held []float32
	elements  int // of the whole matrix, or bank
}

// read takes at most most rows of one expert's matrix, or with expert -1 of all.
func (a *ffnAudit) read(ctx context.Context, layer int, which string, expert, most int) (*sample, int, error) {
	name := bank(a.cfg, layer, which)
	t, ok := a.w.Find(name)
	if !ok {
		return nil, 0, fmt.Errorf("the model has no tensor %s", name)
	}
	rows, row0, cols := t.Rows(), 0, t.Cols()
	if n := a.cfg.Layers[layer].FFN.Experts; expert >= 0 && n > 0 {
		rows /= n
		row0 = expert * rows
	}
	n := min(rows, most)
	s := &sample{elements: rows * cols}
	row := make([]float32, cols)
	for i := range n {
		if ctx.Err() != nil {
			return nil, 0, context.Cause(ctx)
		}
		if err := a.w.ReadRows(t, row0+i*rows/n, 1, row); err != nil {
			return nil, 0, err
		}
		if i%2 == 0 {
			s.fit = append(s.fit, row...)
		} else {
			s.held = append(s.held, row...)
		}
	}
	return s, cols, nil
}

// An ffnGroup is what the rows of a layer's matrices with the same input have in common.
type ffnGroup struct {
	layer, input int
	d, block     int
	one          bool // the group is one matrix without experts
	experts      int
	srht, shared *fit.BlockRotation
	rows         int // that shared was fitted to
	elements     int // that share it
}

// group measures the matrices of a layer that have the same input.
func (a *ffnAudit) group(ctx context.Context, layer, input int, matrices []string) error {
	experts := a.cfg.Layers[layer].FFN.Experts
	g := &ffnGroup{layer: layer, input: input, experts: experts, one: len(matrices) == 1 && experts == 0}
	var banks []*sample
	var together []float32
	for _, which := range matrices {
		s, cols, err := a.read(ctx, layer, which, -1, a.o.MaxRows)
		if err != nil {
			return err
		}
		banks, g.d = append(banks, s), cols
		g.elements += s.elements
		together = append(together, s.fit...)
	}
	g.block, g.rows = fit.BlockSize(g.d, a.o.Block), len(together)/g.d
	g.srht = fit.HadamardRows(g.d, g.block, a.o.Seed, layer, input)
	var err error
	if g.shared, err = fit.FitRows(ctx, together, g.d, g.block, a.o.Seed, layer, input, a.o.Threads); err != nil {
		return err
	}
	a.done()
	for i, which := range matrices {
		if err := a.matrix(ctx, g, which, -1, banks[i]); err != nil {
			return err
		}
		a.done()
	}
	n := min(experts, a.o.Experts)
	for i := range n {
		for _, which := range matrices {
			e := i * experts / n
			s, _, err := a.read(ctx, layer, which, e, a.o.MaxRows)
			if err != nil {
				return err
			}
			if err := a.matrix(ctx, g, which, e, s); err != nil {
				return err
			}
			a.done()
		}
	}
	return nil
}

// onNoise returns the cos1bit that a fit to n rows of noise reaches on them.
func (a *ffnAudit) onNoise(ctx context.Context, n, d, block int) (float64, error) {
	key := [3]int{n, d, block}
	if v, ok := a.noise[key]; ok {
		return v, nil
	}
	rows := fit.NoiseRows(n, d, a.o.Seed)
	r, err := fit.FitRows(ctx, rows, d, block, a.o.Seed, 0, 0, a.o.Threads)
	if err != nil {
		return 0, err
	}
	b, err := r.Measure(ctx, rows, d, a.o.Threads)
	if err != nil {
		return 0, err
	}
	a.noise[key] = b.Cos1bit
	return b.Cos1bit, nil
}

// matrix measures one matrix under every rotation; expert -1 is a bank, or a dense matrix.
func (a *ffnAudit) matrix(ctx context.Context, g *ffnGroup, which string, expert int, s *sample) error {
	if len(s.held) == 0 {
		return fmt.Errorf("layer %d, %s: one row cannot be split for a fit", g.layer, which)
	}
	x := spec.FFNRow{Layer: g.layer, Matrix: which, Expert: expert}
	row := func(rotation string, r *fit.BlockRotation, fitted, shares int) error {
		x := x
		x.Rotation = rotation
		return a.row(ctx, g, x, s, r, fitted, shares)
	}
	if err := row("none", nil, 0, 0); err != nil {
		return err
	}
	if err := row("srht", g.srht, 0, 0); err != nil {
		return err
	}
	if err := row("shared", g.shared, g.rows, g.elements); err != nil {
		return err
	}
	if expert < 0 && g.experts > 0 {
		return nil
	}
	if g.one { // the same rows
		return row("own", g.shared, g.rows, g.elements)
	}
	own, err := fit.FitRows(ctx, s.fit, g.d, g.block, a.o.Seed, g.layer, g.input, a.o.Threads)
	if err != nil {
		return err
	}
	return row("own", own, len(s.fit)/g.d, s.elements)
}

// row measures one matrix under one rotation, nil for none, and adds what it is to x. fitted is
// how many rows the rotation was fitted to, 0 for none, shares how many numbers it serves.
func (a *ffnAudit) row(ctx context.Context, g *ffnGroup, x spec.FFNRow, s *sample, r *fit.BlockRotation, fitted,
	shares int) error {
	d := g.d
	b, err := r.Measure(ctx, s.held, d, a.o.Threads)
	if err != nil {
		return err
	}
	if b.N == 0 {
		return nil // a matrix of zeros has no directions
	}
	x.Cos1bit, x.MomentRatio, x.Dims, x.HeldOut = b.Cos1bit, b.MomentRatio, d, b.N
	x.EffectiveBits = 1 + scaleBits/float64(d)
	if r != nil {
		x.Block = g.block
	}
	if fitted > 0 {
		x.EffectiveBits += float64(a.o.rotationBits) * float64(g.block) * float64(d) / float64(shares)
		x.Rows, x.RowsPerDim = fitted, float64(fitted)/float64(g.block)
		train, err := r.Measure(ctx, s.fit, d, a.o.Threads)
		if err != nil {
			return err
		}
		noise, err := a.onNoise(ctx, fitted, d, g.block)
		if err != nil {
			return err
		}
		x.TrainCos1bit, x.NoiseCos1bit = &train.Cos1bit, &noise
		if train.N == 0 {
			x.TrainCos1bit = nil
		}
	}
	a.out = append(a.out, x)
	return nil
}

// bank names the matrices of a layer's FFN: one of each, or a bank of experts.
func bank(cfg *family.Config, layer int, matrix string) string {
	if cfg.Layers[layer].FFN.Experts > 0 {
		return family.Name(layer, "ffn_"+matrix+"_exps.weight")
	}
	return family.Name(layer, "ffn_"+matrix+".weight")
}
