package main

import (
	"crypto/sha256"
	"fmt"
	"math"
	"math/bits"
	"strings"

	"github.com/phaseconv/phaseconv/format/dtype"
)

// number is the counter-based generator of the specification (spec/vectors.md):
// the 64 bits that belong to a counter i under a seed, SplitMix64's finaliser.
func number(seed, i uint64) uint64 {
	z := seed + (i+1)*0x9e3779b97f4a7c15
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// An array is a matrix of float32 in row-major order: written out in hex, or
// given by a formula of the specification together with the digest of its bytes.
type array struct {
	Shape   []int    `json:"shape"`
	Hex     []string `json:"hex,omitempty"` // a row each
	Formula *formula `json:"formula,omitempty"`
	// Tensor names the tensor of a sidecar that holds the numbers.
	Tensor string `json:"tensor,omitempty"`
	SHA256 string `json:"sha256"` // of the numbers as little-endian float32

	data []float32
}

// A formula names a rule of spec/vectors.md and its parameters.
type formula struct {
	Rule     string `json:"rule"` // zeros, identity, uniform, unsigned, hadamard, reflector, weighted
	Seed     uint64 `json:"seed,omitempty"`
	Exponent int    `json:"exponent,omitempty"` // uniform
	// ColumnMod and RowStep of uniform: values shrink by a power of two along
	// the columns, cyclically, and down the rows.
	ColumnMod int `json:"column_mod,omitempty"`
	RowStep   int `json:"row_step,omitempty"`
}

func finish(a *array) *array {
	a.SHA256 = fmt.Sprintf("%x", sha256.Sum256(dtype.AppendF32(nil, a.data)))
	return a
}

// written returns numbers in hex, in rows of cols.
func written(data []float32, cols int) *array {
	a := &array{Shape: []int{len(data) / cols, cols}, data: data}
	for i := 0; i < len(data); i += cols {
		a.Hex = append(a.Hex, floats(data[i:i+cols]))
	}
	return finish(a)
}

// generate evaluates a formula. base is the matrix that "weighted" refers to.
func generate(f formula, rows, cols int, base *array) *array {
	a := &array{Shape: []int{rows, cols}, Formula: &f, data: make([]float32, rows*cols)}
	for r := range rows {
		for c := range cols {
			a.data[r*cols+c] = f.at(r, c, cols, base)
		}
	}
	return finish(a)
}

func (f *formula) at(r, c, cols int, base *array) float32 {
	switch f.Rule {
	case "identity":
		if r == c {
			return 1
		}
	case "uniform":
		// A number of 24 bits times powers of two: exact in float32.
		e := f.Exponent - 23
		if f.ColumnMod > 0 {
			e -= c % f.ColumnMod
		}
		if f.RowStep > 0 {
			e -= r / f.RowStep
		}
		n := int64(number(f.Seed, uint64(r*cols+c))>>40) - 1<<23
		return float32(math.Ldexp(float64(n), e))
	case "unsigned":
		return float32(math.Ldexp(float64(number(f.Seed, uint64(r*cols+c))>>40), -24))
	case "hadamard":
		v := float32(1 / math.Sqrt(float64(cols)))
		if (bits.OnesCount(uint(r&c))+int(number(f.Seed, uint64(c))>>63))%2 == 1 {
			return -v
		}
		return v
	case "reflector":
		var square int64
		for j := range cols {
			square += f.axis(j) * f.axis(j)
		}
		p := (5*r + 3) % cols
		v := -float64(2*f.axis(p)*f.axis(c)) / float64(square)
		if p == c {
			v++
		}
		if number(f.Seed, uint64(cols+r))>>63 == 1 {
			v = -v
		}
		if v == 0 {
			return 0 // never -0, whatever the order of the signs above
		}
		return float32(v)
	case "weighted":
		return base.data[r*cols+c] * (1 + float32(c%4)/2)
	}
	return 0
}

// axis is component j of a reflector's integer axis, -4 to 3.
func (f *formula) axis(j int) int64 { return int64(number(f.Seed, uint64(j))>>61) - 4 }

// floats writes float32 numbers as their bits in hex.
func floats(x []float32) string {
	var b strings.Builder
	for i, v := range x {
		if i > 0 {
			b.WriteByte(' ')
		}
		fmt.Fprintf(&b, "%08x", math.Float32bits(v))
	}
	return b.String()
}

// hexWords writes stored words.
func hexWords(x []uint32) string {
	var b strings.Builder
	for i, v := range x {
		if i > 0 {
			b.WriteByte(' ')
		}
		fmt.Fprintf(&b, "%08x", v)
	}
	return b.String()
}

// hexScales writes binary16 numbers.
func hexScales(x []uint16) string {
	var b strings.Builder
	for i, v := range x {
		if i > 0 {
			b.WriteByte(' ')
		}
		fmt.Fprintf(&b, "%04x", v)
	}
	return b.String()
}
