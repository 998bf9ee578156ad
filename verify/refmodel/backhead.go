package refmodel

import (
	"context"
	"math/rand/v2"

	"github.com/phaseconv/phaseconv/kernels/fmath"
	"github.com/phaseconv/phaseconv/kernels/gemm"
	"github.com/phaseconv/phaseconv/kernels/parallel"
)

// The output head is walked over in pieces of the vocabulary and of the rows, so that logits take
// headPiece x headRows numbers at a time.
const (
	headPiece = 8192
	headRows  = 1024
)

// lossBack returns the gradient of the loss with respect to the hidden states behind the last
// layer, [rows, hidden]. It walks over the vocabulary twice: for the sums of the softmax, and
// for labels and gradients.
func (m *Model) lossBack(ctx context.Context, b *batch, hidden []float32, first int, o *GradientOptions) (
	[]float32, error) {
	c, n := m.Config, b.rows()
	normed, err := m.FinalNorm(hidden)
	if err != nil {
		return nil, err
	}
	pieces := (c.Vocab + headPiece - 1) / headPiece
	tops, sums := make([]float32, n*pieces), make([]float64, n*pieces) // of each row's pieces
	logits := make([]float32, min(n, headRows)*min(headPiece, c.Vocab))
	head := func(each func(p, r0, r1, width int) error) error {
		for p := range pieces {
			v0 := p * headPiece
			width := min(headPiece, c.Vocab-v0)
			if err := m.PackHead(ctx, v0, v0+width); err != nil {
				return err
			}
			for r0 := 0; r0 < n; r0 += headRows {
				r1 := min(n, r0+headRows)
				if err := m.HeadLogits(ctx, logits, normed[r0*c.Hidden:r1*c.Hidden]); err != nil {
					return err
				}
				if err := each(p, r0, r1, width); err != nil {
					return err
				}
			}
		}
		return nil
	}
	err = head(func(p, r0, r1, width int) error {
		parallel.Rows(m.Threads, r1-r0, func(a, z int) {
			scratch := make([]float32, width)
			for r := a; r < z; r++ {
				row := logits[r*width : (r+1)*width]
				at := (r0+r)*pieces + p
				tops[at] = fmath.Max(row)
				sums[at] = fmath.ExpSum(scratch, row, tops[at], 1)
			}
		})
		return nil
	})
	if err != nil {
		return nil, err
	}
	draws := make([]*draw, n)
	for r := range draws {
		draws[r] = newDraw(tops[r*pieces:(r+1)*pieces], sums[r*pieces:(r+1)*pieces], o, first+r/b.T, r%b.T)
	}
	dn := make([]float32, n*c.Hidden)
	var turned gemm.Weights
	packed := -1
	err = head(func(p, r0, r1, width int) error {
		if p != packed { // the rows of the piece still lie where PackHead decoded them
			turned.PackT(c.Hidden, width, m.scratch[:width*c.Hidden], c.Hidden, m.Threads)
			packed = p
		}
		parallel.Rows(m.Threads, r1-r0, func(a, z int) {
			scratch := make([]float32, width)
			for r := a; r < z; r++ {
				row := logits[r*width : (r+1)*width]
				draws[r0+r].gradient(row, scratch, p, c.LogitSoftcap)
				scaleBy(row, c.LogitScale)
			}
		})
		return m.addProduct(ctx, dn[r0*c.Hidden:r1*c.Hidden], logits, r1-r0, &turned)
	})
	if err != nil {
		return nil, err
	}
	gain, err := m.vector("output_norm.weight", false)
	if err != nil {
		return nil, err
	}
	dx := make([]float32, n*c.Hidden)
	m.normBack(dx, dn, hidden, gain)
	return dx, nil
}

// A draw is the softmax of one row, in pieces, and its label.
type draw struct {
	none   bool      // the row does not count
	tops   []float32 // of each piece
	factor []float64 // what makes e^(z - top) of each piece a probability
	label  int       // -1 while it has not been found
	piece  int       // where the label lies
	rest   float64   // the part of the piece's sum up to the label
}

func newDraw(tops []float32, sums []float64, o *GradientOptions, window, pos int) *draw {
	d := &draw{tops: tops, factor: make([]float64, len(tops)), label: -1}
	top := fmath.Max(tops)
	var total float64
	for p, t := range tops {
		d.factor[p] = fmath.Exp(float64(t) - float64(top))
		total += float64(sums[p] * d.factor[p])
	}
	if o.Labels != nil {
		d.label = int(o.Labels[window][pos])
	}
	d.none = pos < o.From || o.Labels != nil && d.label < 0
	// A generator of its own makes the label of a position independent of the batch.
	left := total * rand.New(rand.NewPCG(o.Seed, uint64(window)<<32|uint64(pos))).Float64()
	for p := range tops {
		share := float64(sums[p] * d.factor[p])
		if left < share || p == len(tops)-1 {
			d.piece, d.rest = p, left/d.factor[p]
			break
		}
		left -= share
	}
	for p := range d.factor {
		d.factor[p] /= total
	}
	return d
}

// gradient replaces the row's logits of piece p by the gradient of -log p(label) with respect to
// them, before the soft cap.
func (d *draw) gradient(row, scratch []float32, p int, softcap float64) {
	if d.none {
		clear(row)
		return
	}
	fmath.ExpSum(scratch, row, d.tops[p], 1)
	if d.label < 0 && p == d.piece {
		d.label = p*headPiece + find(scratch, d.rest)
	}
	for i, e := range scratch {
		g := float64(float64(e) * d.factor[p])
		if i+p*headPiece == d.label {
			g--
		}
		if softcap > 0 {
			z := float64(row[i]) / softcap
			g *= 1 - float64(z*z)
		}
		row[i] = float32(g)
	}
}

// find returns the first number whose sum with those before it exceeds limit.
func find(x []float32, limit float64) int {
	var sum float64
	last := 0
	for i, v := range x {
		if v > 0 {
			last = i
		}
		if sum += float64(v); sum > limit {
			return i
		}
	}
	return last // the limit is the whole sum but for rounding
}
