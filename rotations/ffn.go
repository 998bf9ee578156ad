package rotations

import (
	"fmt"
	"math"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/kernels/fmath"
	"github.com/phaseconv/phaseconv/kernels/gemm"
	"github.com/phaseconv/phaseconv/rotations/internal/linalg"
)

// IDNeurons is identity G4, a positive diagonal between up and down of an FFN.
const IDNeurons = "G4"

// purposeFFN selects random numbers, as the other purposes do.
const purposeFFN uint64 = 0x101

// A ScaledFFN is a model with identity G4 folded: neuron j of an FFN, or of one
// expert, has row j of up multiplied by a positive number and column j of down
// divided by it. gate is left alone: it passes through the nonlinearity. It is a
// Source.
type ScaledFFN struct {
	src    Source
	scale  [][][]float32 // [layer][expert, or one][neuron]
	inside int           // hidden size: rows of down per expert
	wide   int           // neurons: rows of up per expert
}

// FoldFFN returns the model with G4 folded: scale[layer][expert][neuron], with one
// entry in place of the experts for a dense model. A layer's scales may be nil.
// Checkpoint edits cannot hold it, as they have one scale for a row of the
// outermost dimension, which for a bank is the expert.
func FoldFFN(src Source, cfg *family.Config, scale [][][]float32) (*ScaledFFN, error) {
	if len(scale) != cfg.Layers {
		return nil, fmt.Errorf("FFN scales for %d of %d layers", len(scale), cfg.Layers)
	}
	for l, experts := range scale {
		if experts == nil {
			continue
		}
		if len(experts) != max(1, cfg.Experts) {
			return nil, fmt.Errorf("layer %d: FFN scales for %d experts of %d", l, len(experts), max(1, cfg.Experts))
		}
		for e, s := range experts {
			if len(s) != cfg.FFN {
				return nil, fmt.Errorf("layer %d, expert %d: %d scales for an FFN of %d", l, e, len(s), cfg.FFN)
			}
			for _, x := range s {
				// The inverse has to be finite too.
				if y := 1 / x; !(x > 0) || !(y > 0) || math.IsInf(float64(x), 0) || math.IsInf(float64(y), 0) {
					return nil, fmt.Errorf("layer %d, expert %d: FFN scale %g", l, e, x)
				}
			}
		}
	}
	return &ScaledFFN{src: src, scale: scale, inside: cfg.Hidden, wide: cfg.FFN}, nil
}

// Changes says whether the fold changes a tensor.
func (f *ScaledFFN) Changes(name string) bool {
	up, down := f.part(name)
	return up || down
}

func (f *ScaledFFN) part(name string) (up, down bool) {
	l := family.Layer(name)
	if l < 0 || l >= len(f.scale) || f.scale[l] == nil {
		return false, false
	}
	switch inLayer(name, l) {
	case "ffn_up.weight", "ffn_up_exps.weight":
		return true, false
	case "ffn_down.weight", "ffn_down_exps.weight":
		return false, true
	}
	return false, false
}

// Find implements Source.
func (f *ScaledFFN) Find(name string) (*checkpoint.Tensor, bool) { return f.src.Find(name) }

// ReadRows implements Source.
func (f *ScaledFFN) ReadRows(t *checkpoint.Tensor, row0, n int, dst []float32) error {
	if err := f.src.ReadRows(t, row0, n, dst); err != nil {
		return err
	}
	up, down := f.part(t.Name)
	if !up && !down {
		return nil
	}
	cols, layer := t.Cols(), family.Layer(t.Name)
	for r := range n {
		row := dst[r*cols : (r+1)*cols]
		if up {
			s := f.scale[layer][(row0+r)/f.wide][(row0+r)%f.wide]
			for k := range row {
				row[k] *= s
			}
			continue
		}
		for k, s := range f.scale[layer][(row0+r)/f.inside] {
			row[k] /= s
		}
	}
	return nil
}

// FFNBalance returns the scales of G4 that lose least when down is stored in a
// format whose error in a weight depends on its whole block: s^4 = down / energy,
// with energy_j the mean square of neuron j (up times activated gate) and down_j
// the squared length of its column in down. It minimises sum_j energy_j s_j^2
// times sum_j down_j / s_j^2, as the K/Q balance does for keys. A neuron that
// never fires, or that nothing reads, keeps a scale of one; the largest scales are
// cut off at MaxFFNScale.
func FFNBalance(energy, down []float64) []float32 {
	out := make([]float32, len(energy))
	var logs float64
	n := 0
	for j, e := range energy[:min(len(energy), len(down))] {
		// A quotient that is 0, infinite or NaN comes of numbers that say nothing.
		if q := down[j] / e; e > 0 && q > 0 && !math.IsInf(q, 0) {
			s := math.Sqrt(math.Sqrt(q))
			out[j] = float32(s)
			logs += fmath.Log(s)
			n++
		}
	}
	// Only ratios matter; the geometric mean of one keeps the size of both matrices.
	unit := float32(1)
	if n > 0 {
		unit = float32(fmath.Exp(-logs / float64(n)))
	}
	for j, s := range out {
		if s == 0 {
			out[j] = 1
			continue
		}
		out[j] = min(max(s*unit, 1/float32(MaxFFNScale)), MaxFFNScale)
	}
	return out
}

// MaxFFNScale bounds the scales of FFNBalance and their inverses.
const MaxFFNScale = 64

// A BlockRotation is a block-diagonal orthogonal matrix for rows of weights.
type BlockRotation struct {
	D, Block int
	R        []float32 // [D/Block, Block, Block]
}

// BlockSize returns the largest divisor of d that is at most limit.
func BlockSize(d, limit int) int {
	for b := min(d, limit); b > 1; b-- {
		if d%b == 0 {
			return b
		}
	}
	return 1
}

// Settings of FitRows. The ridge pulls each step a little to the rotation before
// it: fewer rows than dimensions leave directions that the rows do not determine.
const (
	rowsSteps = 40
	rowsGain  = 1e-4 // a step that raises the objective by less is the last
	rowsRidge = 0.02
)

// FitRows learns a block-diagonal rotation for rows, [n, d], that maximises the
// mean of |R x|_1 / (sqrt(block) |x|_2) in each block (the L1-max objective of the
// learned code, without a mean). Each block starts from the identity and from the
// randomised Hadamard transform that HadamardRows gives for the same numbers, and
// keeps what ends higher.
func FitRows(rows []float32, d, block int, seed uint64, layer, part, threads int, stop func() error) (*BlockRotation, error) {
	if d < 1 || block < 1 || d%block != 0 || len(rows)%d != 0 || len(rows) == 0 || block > MaxDim {
		return nil, fmt.Errorf("a rotation of %d numbers in blocks of %d for %d numbers of rows", d, block, len(rows))
	}
	out := HadamardRows(d, block, seed, layer, part)
	n := len(rows) / d
	for at := 0; at < d; at += block {
		s := &Sample{D: block, Threads: threads, Stop: stop, Keys: make([]float32, n*block)}
		for i := range n {
			copy(s.Keys[i*block:(i+1)*block], rows[i*d+at:])
		}
		r := out.R[at*block : (at+block)*block]
		m, value, err := s.spread(r)
		if err != nil {
			return nil, err
		}
		m2, value2, err := s.spread(toFloat32(linalg.Identity(block)))
		if err != nil {
			return nil, err
		}
		if value2 > value {
			m = m2
		}
		copy(r, m)
	}
	return out, nil
}

// spread is the fixed point of learned for keys that are not centred, with a ridge.
// It returns the rotation and what the objective was.
func (s *Sample) spread(best []float32) ([]float32, float64, error) {
	d := s.D
	x := s.unitKeys(make([]float32, d))
	n := len(x) / d
	if n == 0 {
		return best, 0, nil
	}
	f := &l1max{d: d, n: n, threads: s.Threads, y: make([]float32, d*n)}
	f.keys.PackRows(n, d, x, d, s.Threads)
	f.dims.PackT(d, n, x, d, s.Threads)
	r, value := best, -1.0
	var bestC []float32
	for step := 0; step <= rowsSteps; step++ {
		if err := s.stopped(); err != nil {
			return nil, 0, err
		}
		v := f.objective(r)
		c := f.correlate()
		gain := v - value
		next := stretched(c, bestC, gain)
		if gain > 0 {
			best, bestC, value = r, c, v
		}
		if gain >= 0 && gain < rowsGain {
			break
		}
		ridge := float32(rowsRidge * math.Sqrt(dot64(next, next)/float64(d)))
		pulled := make([]float32, d*d)
		for i, v := range next {
			pulled[i] = v + float32(ridge*best[i])
		}
		r = linalg.Polar(pulled, d, s.Threads)
	}
	return linalg.Orthogonal(best, d), value, nil
}

// Measure computes Beta of rows, [n, D], in the rotated basis with one scale per
// row. Zero rows are left out. b may be nil: rows as they stand.
func (b *BlockRotation) Measure(rows []float32, d, threads int) Beta {
	const batch = 256
	var w []gemm.Weights
	if b != nil {
		w = make([]gemm.Weights, d/b.Block)
		for i := range w {
			w[i].PackRows(b.Block, b.Block, b.R[i*b.Block*b.Block:], b.Block, threads)
		}
	}
	var out Beta
	var cos, abs, sq, kept float64
	buf := make([]float32, batch*d)
	for len(rows) > 0 {
		x := rows[:min(len(rows), batch*d)]
		rows = rows[len(x):]
		y := x
		if b != nil {
			y = buf[:len(x)]
			for i := range w {
				gemm.Mul(y[i*b.Block:], d, x[i*b.Block:], d, len(x)/d, &w[i], threads)
			}
		}
		for i := 0; i < len(y); i += d {
			var l1, l2 float64
			for _, v := range y[i : i+d] {
				l1 += math.Abs(float64(v))
				l2 += float64(v) * float64(v)
			}
			if l2 == 0 {
				continue
			}
			out.N++
			cos += l1 / math.Sqrt(float64(d)*l2)
			abs += l1
			sq += l2
			kept += float64(l1*l1) / float64(d)
		}
	}
	if out.N == 0 {
		return Beta{Cos1bit: math.NaN(), MomentRatio: math.NaN(), Energy: math.NaN()}
	}
	n := float64(out.N)
	mean := abs / (n * float64(d))
	out.Cos1bit, out.Energy = cos/n, kept/sq
	out.MomentRatio = float64(mean*mean) / (sq / (n * float64(d)))
	return out
}

// HadamardRows is the rotation of FitRows before any fit: a randomised Hadamard
// transform in each block.
func HadamardRows(d, block int, seed uint64, layer, part int) *BlockRotation {
	out := &BlockRotation{D: d, Block: block}
	r := stream(seed, layer, part, purposeFFN)
	for at := 0; at < d; at += block {
		out.R = append(out.R, toFloat32(srht(block, r))...)
	}
	return out
}

// NoiseRows returns n rows of d Gaussian numbers: what a fit gains on them is not
// learned from anything.
func NoiseRows(n, d int, seed uint64) []float32 {
	r := stream(seed, n, d, purposeFFN)
	out := make([]float32, n*d)
	for i := range out {
		out[i] = float32(gaussian(r))
	}
	return out
}
