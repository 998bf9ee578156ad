package sidecar

import (
	"fmt"

	"github.com/phaseconv/phaseconv/format/dtype"
	"github.com/phaseconv/phaseconv/format/safetensors"
	"github.com/phaseconv/phaseconv/rotations/transform"
	"github.com/phaseconv/phaseconv/spec"
)

// Tensors of identity G1 in a fold file.
const (
	residualSign  = "residual.sign"
	residualSmall = "residual.small"
)

// appendResidual adds the tensors of a rotation of the stream.
func appendResidual(q *transform.ResidualRotation, ts []safetensors.Tensor, data [][]byte) ([]safetensors.Tensor,
	[][]byte) {
	for _, x := range []struct {
		name string
		v    []float32
	}{{residualSign, q.Sign}, {residualSmall, q.Small}} {
		if x.v != nil {
			ts = append(ts, safetensors.Tensor{Name: x.name, DType: "F32", Shape: []int{len(x.v)}})
			data = append(data, dtype.AppendF32(nil, x.v))
		}
	}
	return ts, data
}

// readResidual reads the rotation of the stream, nil where there is none, and marks what it read in
// seen.
func readResidual(f *safetensors.File, seen map[string]bool) (*transform.ResidualRotation, error) {
	text, ok := f.Metadata[spec.FoldResidual]
	if !ok {
		return nil, nil
	}
	q := &transform.ResidualRotation{}
	if n, err := fmt.Sscanf(text, "%d %d", &q.D, &q.P); n != 2 || err != nil || q.D < 1 || q.D > maxFoldParts {
		return nil, fmt.Errorf("key %s is %.40q, expected two numbers", spec.FoldResidual, text)
	}
	for _, x := range []struct {
		name string
		to   *[]float32
	}{{residualSign, &q.Sign}, {residualSmall, &q.Small}} {
		t, ok := f.Find(x.name)
		if !ok {
			continue
		}
		seen[x.name] = true
		if t.DType != "F32" || len(t.Shape) != 1 || t.Shape[0] < 1 || t.Shape[0] > 16*maxFoldParts {
			return nil, fmt.Errorf("tensor %s is %s %v, expected F32 and one dimension", x.name, t.DType, t.Shape)
		}
		*x.to = make([]float32, t.Shape[0])
		if err := f.ReadRows(t, 0, 1, *x.to); err != nil {
			return nil, err
		}
	}
	if err := q.Check(q.D); err != nil {
		return nil, err
	}
	return q, nil
}
