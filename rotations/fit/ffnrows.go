package fit

import (
	"context"
	"fmt"
	"math"

	"github.com/phaseconv/phaseconv/kernels/gemm"
	"github.com/phaseconv/phaseconv/kernels/linalg"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/rotations/internal/seeded"
)

// purposeFFN selects random numbers, as the other purposes do.
const purposeFFN uint64 = 0x101

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
// keeps what ends higher. When ctx ends, it returns its cause after at most one step.
func FitRows(ctx context.Context, rows []float32, d, block int, seed uint64, layer, part, threads int) (*BlockRotation,
	error) {
	if d < 1 || block < 1 || d%block != 0 || len(rows)%d != 0 || len(rows) == 0 || block > codec.MaxDim {
		return nil, fmt.Errorf("a rotation of %d numbers in blocks of %d for %d numbers of rows", d, block, len(rows))
	}
	out := HadamardRows(d, block, seed, layer, part)
	n := len(rows) / d
	for at := 0; at < d; at += block {
		s := &Sample{D: block, Threads: threads, Keys: make([]float32, n*block)}
		for i := range n {
			copy(s.Keys[i*block:(i+1)*block], rows[i*d+at:])
		}
		r := out.R[at*block : (at+block)*block]
		m, value, err := s.spread(ctx, r)
		if err != nil {
			return nil, err
		}
		m2, value2, err := s.spread(ctx, linalg.Float32(linalg.Identity(block)))
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
func (s *Sample) spread(ctx context.Context, best []float32) ([]float32, float64, error) {
	d := s.D
	x := UnitKeys(s.Keys, make([]float32, d))
	if len(x) == 0 {
		return best, 0, nil
	}
	f := NewL1(x, d, s.Threads)
	r, value := best, -1.0
	var bestC []float32
	for step := 0; step <= rowsSteps; step++ {
		if ctx.Err() != nil {
			return nil, 0, context.Cause(ctx)
		}
		v := f.Objective(r)
		c := f.Correlate()
		gain := v - value
		next := stretched(c, bestC, gain)
		if gain > 0 {
			best, bestC, value = r, c, v
		}
		if gain >= 0 && gain < rowsGain {
			break
		}
		ridge := float32(rowsRidge * math.Sqrt(linalg.Dot64(next, next)/float64(d)))
		pulled := make([]float32, d*d)
		for i, v := range next {
			pulled[i] = v + float32(ridge*best[i])
		}
		var err error
		if r, err = linalg.Polar(ctx, pulled, d, s.Threads); err != nil {
			return nil, 0, err
		}
	}
	return linalg.Orthogonal(best, d), value, nil
}

// Measure computes Beta of rows, [n, D], in the rotated basis with one scale per
// row. Zero rows are left out. b may be nil: rows as they stand. It fails only when ctx ends.
func (b *BlockRotation) Measure(ctx context.Context, rows []float32, d, threads int) (codec.Beta, error) {
	const batch = 256
	var w []gemm.Weights
	if b != nil {
		w = b.packed(threads)
	}
	var out codec.Beta
	var cos, abs, sq, kept float64
	buf := make([]float32, batch*d)
	for len(rows) > 0 {
		if ctx.Err() != nil {
			return codec.Beta{}, context.Cause(ctx)
		}
		x := rows[:min(len(rows), batch*d)]
		rows = rows[len(x):]
		y := x
		if b != nil {
			y = buf[:len(x)]
			b.mul(y, x, w, threads)
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
		return codec.Beta{Cos1bit: math.NaN(), MomentRatio: math.NaN(), Energy: math.NaN()}, nil
	}
	n := float64(out.N)
	mean := abs / (n * float64(d))
	out.Cos1bit, out.Energy = cos/n, kept/sq
	out.MomentRatio = float64(mean*mean) / (sq / (n * float64(d)))
	return out, nil
}

// packed returns the blocks as operands of mul.
func (b *BlockRotation) packed(threads int) []gemm.Weights {
	w := make([]gemm.Weights, b.D/b.Block)
	for i := range w {
		w[i].PackRows(b.Block, b.Block, b.R[i*b.Block*b.Block:], b.Block, threads)
	}
	return w
}

// mul sets y to the rotated rows of x, both [n, D].
func (b *BlockRotation) mul(y, x []float32, w []gemm.Weights, threads int) {
	for i := range w {
		gemm.Mul(y[i*b.Block:], b.D, x[i*b.Block:], b.D, len(x)/b.D, &w[i], threads)
	}
}

// Rotate returns R x for every row x of rows, [n, D].
func (b *BlockRotation) Rotate(rows []float32, threads int) []float32 {
	out := make([]float32, len(rows))
	b.mul(out, rows, b.packed(threads), threads)
	return out
}

// HadamardRows is the rotation of FitRows before any fit: a randomised Hadamard
// transform in each block.
func HadamardRows(d, block int, seed uint64, layer, part int) *BlockRotation {
	out := &BlockRotation{D: d, Block: block}
	r := seeded.Stream(seed, layer, part, purposeFFN)
	for at := 0; at < d; at += block {
		out.R = append(out.R, linalg.Float32(seeded.SRHT(block, r))...)
	}
	return out
}

// NoiseRows returns n rows of d Gaussian numbers: what a fit gains on them is not
// learned from anything.
func NoiseRows(n, d int, seed uint64) []float32 {
	r := seeded.Stream(seed, n, d, purposeFFN)
	out := make([]float32, n*d)
	for i := range out {
		out[i] = float32(seeded.Gaussian(r))
	}
	return out
}
