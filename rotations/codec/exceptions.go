package codec

import (
	"fmt"
	"math"
	"slices"

	"github.com/phaseconv/phaseconv/format/dtype"
	"github.com/phaseconv/phaseconv/spec"
)

// ExceptionBytes is what one exception of a key takes: its coordinate in 8 bits
// and its value as binary16.
const ExceptionBytes = 3

// CheckExceptions refuses numbers of exceptions per key that the format does not
// have: more than half the numbers of a key, or any where a coordinate does not
// fit 8 bits.
func CheckExceptions(per, d int) error {
	if per < 0 || per > d/2 || per > 0 && d > spec.MaxExceptionDim {
		return fmt.Errorf("%d exceptions for keys of %d numbers: expected 0 to half the numbers, and 0 beyond %d numbers",
			per, d, spec.MaxExceptionDim)
	}
	return nil
}

// An Exceptions list is what n keys keep beside their signs: key i has the values
// Values[i*Per+j], binary16, that are added to its coordinates Index[i*Per+j],
// which ascend.
type Exceptions struct {
	Per    int
	Index  []uint8
	Values []uint16
}

// Except returns the exceptions of keys, [n, D], whose decoded form without them
// is hat, [n, D]: the per coordinates where the two differ most, of equal ones the
// first. Both are in the frame of the code. It fails where CheckExceptions does.
func Except(keys, hat []float32, d, per int) (*Exceptions, error) {
	if err := CheckExceptions(per, d); err != nil {
		return nil, err
	}
	n := 0
	if per > 0 {
		n = len(keys) / d
	}
	x := &Exceptions{Per: per, Index: make([]uint8, n*per), Values: make([]uint16, n*per)}
	rest, order := make([]float32, d), make([]int, d)
	for i := range n {
		for j := range rest {
			rest[j], order[j] = keys[i*d+j]-hat[i*d+j], j
		}
		slices.SortFunc(order, func(a, b int) int {
			switch x, y := abs32(rest[a]), abs32(rest[b]); {
			case x > y:
				return -1
			case x < y:
				return 1
			}
			return a - b
		})
		slices.Sort(order[:per])
		for k, j := range order[:per] {
			x.Index[i*per+k] = uint8(j)
			x.Values[i*per+k] = dtype.F32ToF16(max(-MaxAlpha, min(MaxAlpha, rest[j])))
		}
	}
	return x, nil
}

// Add adds the exceptions to decoded keys, [n, D]. Sums are float32.
func (x *Exceptions) Add(hat []float32, d int) {
	for i, j := range x.Index {
		hat[i/x.Per*d+int(j)] += dtype.F16ToF32(x.Values[i])
	}
}

// Of returns the exceptions of key i alone.
func (x *Exceptions) Of(i int) *Exceptions {
	from, to := i*x.Per, (i+1)*x.Per
	return &Exceptions{x.Per, x.Index[from:to], x.Values[from:to]}
}

func abs32(x float32) float32 { return math.Float32frombits(math.Float32bits(x) &^ (1 << 31)) }
