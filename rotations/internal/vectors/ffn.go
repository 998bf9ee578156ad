package main

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"

	"github.com/phaseconv/phaseconv/format/dtype"
	"github.com/phaseconv/phaseconv/rotations/fit"
	"github.com/phaseconv/phaseconv/rotations/sidecar"
	"github.com/phaseconv/phaseconv/spec"
)

// An ffnFile says what is in two files with rotations of FFN inputs, one in each container, and what
// products with rows of signs are.
type ffnFile struct {
	Version int       `json:"version"`
	Files   []string  `json:"files"`
	Cases   []ffnCase `json:"cases"`
}

// An ffnCase is one input of one expert.
type ffnCase struct {
	Tensor   string   `json:"tensor"`
	Expert   int      `json:"expert"`
	Rotation []*array `json:"rotation"` // its blocks
	Rows     *array   `json:"rows"`     // of a matrix, as the model has them
	Input    string   `json:"input"`
	Rotated  string   `json:"rotated"` // the input
	Words    []string `json:"words"`   // of each row
	Alpha    string   `json:"alpha"`
	Products string   `json:"products"` // of the model
	Coded    string   `json:"coded"`    // with rows of signs
}

// The two files.
const (
	ffnGGUF        = "ffn.gguf"
	ffnSafetensors = "ffn.sidecar"
)

// ffnFiles returns the two files and their description: three layers, of which one has rotations of
// two experts, its FFN input in two blocks.
func ffnFiles() (*ffnFile, map[string][]byte, error) {
	const layer, experts, block = 1, 2, 8
	h := &sidecar.FFNRotations{SourceSHA256: strings.Repeat("0a", 32), Tool: "phaseconv vectors", Layers: 3,
		Basis: spec.FFNOwn, Block: block, Rows: 6, Seed: math.MaxUint64, Measured: []spec.FFNRow{{Layer: layer,
			Matrix: "gate", Rotation: "none",
			Cos1bit: 0.75, MomentRatio: 0.5, EffectiveBits: 2, Dims: 16, HeldOut: 3}}}
	out := &ffnFile{Version: spec.FFNRotationsVersion, Files: []string{ffnGGUF, ffnSafetensors}}
	x := &sidecar.FFNLayer{}
	seed := uint64(40000)
	for input, d := range []int{2 * block, block} {
		for e := range experts {
			r := &fit.BlockRotation{D: d, Block: block}
			c := ffnCase{Tensor: sidecar.FFNTensorName(layer, input), Expert: e}
			for range d / block {
				a := generate(formula{Rule: "reflector", Seed: seed}, block, block, nil)
				r.R, c.Rotation, seed = append(r.R, a.data...), append(c.Rotation, a), seed+1
			}
			c.Rows = generate(formula{Rule: "uniform", Seed: seed, Exponent: 1, ColumnMod: 3}, 3, d, nil)
			v := generate(formula{Rule: "uniform", Seed: seed + 1, Exponent: 2}, 1, d, nil).data
			seed += 2
			if err := c.fill(r, v); err != nil {
				return nil, nil, err
			}
			x[input], out.Cases = append(x[input], r), append(out.Cases, c)
		}
	}
	dir, err := os.MkdirTemp("", "vectors")
	if err != nil {
		return nil, nil, err
	}
	defer os.RemoveAll(dir)
	files := map[string][]byte{}
	for _, name := range out.Files {
		path := filepath.Join(dir, name)
		err := h.Write(context.Background(), path, []sidecar.FFNShape{sidecar.ShapeOf(layer, x)},
			func(sidecar.FFNShape) (*sidecar.FFNLayer, error) { return x, nil })
		if err != nil {
			return nil, nil, err
		}
		if files[name], err = os.ReadFile(path); err != nil {
			return nil, nil, err
		}
	}
	return out, files, nil
}

// fill computes, in float64 and rounded once, what a runtime makes of the rows and an input.
func (c *ffnCase) fill(r *fit.BlockRotation, input []float32) error {
	d := r.D
	turned := turn(r, input)
	var scales []uint16
	var exact, coded []float32
	for at := 0; at < len(c.Rows.data); at += d {
		row := c.Rows.data[at : at+d]
		words := make([]uint32, (d+31)/32)
		var l1, product, signed float64
		for i, z := range turn(r, row) {
			if math.Abs(z) < 2e-6 {
				return fmt.Errorf("%s: a number within %g of zero: every float32 program must find its sign", c.Tensor, z)
			}
			if l1 += math.Abs(z); z >= 0 {
				words[i/32] |= 1 << (i % 32)
				signed += turned[i]
			} else {
				signed -= turned[i]
			}
			product += float64(row[i]) * float64(input[i])
		}
		alpha := dtype.F32ToF16(float32(l1 / float64(d)))
		scales = append(scales, alpha)
		c.Words = append(c.Words, hexWords(words))
		exact = append(exact, float32(product))
		coded = append(coded, float32(float64(dtype.F16ToF32(alpha))*signed))
	}
	rotated := make([]float32, d)
	for i, v := range turned {
		rotated[i] = float32(v)
	}
	c.Input, c.Rotated, c.Alpha = floats(input), floats(rotated), hexScales(scales)
	c.Products, c.Coded = floats(exact), floats(coded)
	return nil
}

// turn returns R x in float64.
func turn(r *fit.BlockRotation, x []float32) []float64 {
	out := make([]float64, r.D)
	n := r.Block
	for i := range out {
		for c := range n {
			out[i] += float64(float64(r.R[i*n+c]) * float64(x[i/n*n+c])) // block i/n has rows of n from i/n*n*n on: i*n
		}
	}
	return out
}
