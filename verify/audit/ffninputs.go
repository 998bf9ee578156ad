package audit

import (
	"context"
	"fmt"
	"math"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/rotations/fit"
	"github.com/phaseconv/phaseconv/spec"
)

// An FFNMeter fits and measures rotations of single inputs of FFNs, for files of them: see
// spec/ffn-rotations.md. It is not safe for concurrent use.
type FFNMeter struct{ a ffnAudit }

// NewFFNMeter returns a meter of a model. Of the options Block, MaxRows, Seed and Threads count. bits
// is the storage of one number of a rotation.
func NewFFNMeter(cfg *family.Config, w checkpoint.Weights, o FFNOptions, bits int) *FFNMeter {
	o = o.withDefaults()
	o.rotationBits = bits
	return &FFNMeter{ffnAudit{cfg: cfg, w: w, o: o, noise: map[[3]int]float64{}}}
}

// An FFNSample is rows of the matrices that multiply one input, every other one to fit to and those
// between to measure on.
type FFNSample struct {
	layer, input, expert int
	group                *ffnGroup
	matrices             []*sample
}

// Sample reads rows of the matrices of a layer's input (of spec.FFNInputs) of one expert, or with
// expert -1 of all; a dense FFN has only that.
func (m *FFNMeter) Sample(ctx context.Context, layer, input, expert int) (*FFNSample, error) {
	s := &FFNSample{layer: layer, input: input, expert: expert, group: &ffnGroup{layer: layer, input: input}}
	g := s.group
	for _, which := range spec.FFNMatrices[input] {
		x, cols, err := m.a.read(ctx, layer, which, expert, m.a.o.MaxRows)
		if err != nil {
			return nil, err
		}
		if len(x.held) == 0 {
			return nil, fmt.Errorf("layer %d, %s: one row cannot be split for a fit", layer, which)
		}
		s.matrices, g.d = append(s.matrices, x), cols
		g.elements += x.elements
		g.rows += len(x.fit) / cols
	}
	g.block = fit.BlockSize(g.d, m.a.o.Block)
	g.srht = fit.HadamardRows(g.d, g.block, m.a.o.Seed, layer, input)
	return s, nil
}

// Fit learns a rotation for the fitted rows of a sample.
func (m *FFNMeter) Fit(ctx context.Context, s *FFNSample) (*fit.BlockRotation, error) {
	var rows []float32
	for _, x := range s.matrices {
		rows = append(rows, x.fit...)
	}
	return fit.FitRows(ctx, rows, s.group.d, s.group.block, m.a.o.Seed, s.layer, s.input, m.a.o.Threads)
}

// Measure returns a row for each matrix as it stands, after a Hadamard transform and after r, which
// is called by the name of its basis.
func (m *FFNMeter) Measure(ctx context.Context, s *FFNSample, r *fit.BlockRotation, basis string) (
	[]spec.FFNRow, error,
) {
	if g := s.group; r.D != g.d || r.Block != g.block {
		return nil, fmt.Errorf("layer %d: a rotation of %d numbers in blocks of %d; the model has %d in blocks of %d",
			s.layer, r.D, r.Block, g.d, g.block)
	}
	m.a.out = nil
	for i, which := range spec.FFNMatrices[s.input] {
		x := spec.FFNRow{Layer: s.layer, Matrix: which, Expert: s.expert}
		for _, y := range []struct {
			rotation string
			r        *fit.BlockRotation
			fitted   int
		}{{"none", nil, 0}, {"srht", s.group.srht, 0}, {basis, r, s.group.rows}} {
			x.Rotation = y.rotation
			if err := m.a.row(ctx, s.group, x, s.matrices[i], y.r, y.fitted, s.group.elements); err != nil {
				return nil, err
			}
		}
	}
	return m.a.out, nil
}

// productRows is how many rows of each matrix Products looks at.
const productRows = 32

// Products returns how far (R w).(R x) is from w.x, over |w| |x|: the largest of some rows w of the
// matrices and a random x, rotated in float32. See ProductBound.
func (m *FFNMeter) Products(s *FFNSample, r *fit.BlockRotation) float64 {
	d := s.group.d
	x := fit.NoiseRows(1, d, m.a.o.Seed+uint64(s.layer))
	turned := r.Rotate(x, 1)
	var worst float64
	for _, y := range s.matrices {
		rows := y.held[:min(len(y.held), productRows*d)]
		moved := r.Rotate(rows, 1)
		for at := 0; at < len(rows); at += d {
			w := rows[at : at+d]
			if size := math.Sqrt(dot(w, w) * dot(x, x)); size > 0 {
				worst = max(worst, math.Abs(dot(moved[at:at+d], turned)-dot(w, x))/size)
			}
		}
	}
	return worst
}

// ProductBound is what Products may find of a rotation with blocks of so many numbers: w and x are
// rotated by sums of as many products in float32, each of which errs by at most its terms times
// 2^-24 of the lengths, and the rotation, the polar factor of such sums, once more as much.
func ProductBound(block int) float64 { return float64(4*block) * 0x1p-24 }

func dot(a, b []float32) (sum float64) {
	for i, v := range a {
		sum += float64(v) * float64(b[i]) // exact, so fusing changes nothing
	}
	return sum
}
