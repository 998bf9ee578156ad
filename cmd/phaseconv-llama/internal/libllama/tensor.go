//go:build (linux || darwin) && (amd64 || arm64)

package libllama

import (
	"fmt"
	"unsafe"
)

// A Tensor is the address of a struct ggml_tensor. Those of a graph are valid while the
// graph runs, those of weights as long as their model.
type Tensor struct {
	p uintptr
	l *Library
}

// OK says whether there is a tensor.
func (t Tensor) OK() bool { return t.p != 0 }

// Address tells tensors of one graph apart.
func (t Tensor) Address() uintptr { return t.p }

// Type is the number of the element type, as in GGUF files.
func (t Tensor) Type() int32 { return at[int32](t.p, t.l.layout.Type) }

// NE is the shape, innermost dimension first.
func (t Tensor) NE() [4]int64 { return at[[4]int64](t.p, t.l.layout.NE) }

// NB are the strides in bytes.
func (t Tensor) NB() [4]int64 { return at[[4]int64](t.p, t.l.layout.NB) }

// Src is source number i, perhaps none.
func (t Tensor) Src(i int) Tensor {
	if i >= srcCount {
		return Tensor{}
	}
	return Tensor{at[uintptr](t.p, t.l.layout.Src+8*i), t.l}
}

// Sources is how many sources there can be.
func (t Tensor) Sources() int { return srcCount }

// View is the tensor whose memory this one shows, none for one with memory of its own.
func (t Tensor) View() Tensor { return Tensor{at[uintptr](t.p, t.l.layout.ViewSrc), t.l} }

// ViewOffset is where in the memory of View this tensor begins, in bytes.
func (t Tensor) ViewOffset() int64 { return at[int64](t.p, t.l.layout.ViewSrc+8) }

// Name is the tensor's name.
func (t Tensor) Name() string { return cstr(t.p + uintptr(t.l.layout.Name)) }

// Op is the name of the operation, such as MUL_MAT; unary operations give their own names.
// (Numbers of operations move with releases.)
func (t Tensor) Op() string { return t.l.opName(t) }

// Param is an integer parameter of the operation.
func (t Tensor) Param(i int) int32 { return at[int32](t.p, t.l.layout.Params+4*i) }

// FloatParam is a parameter of the operation as a float.
func (t Tensor) FloatParam(i int) float32 { return at[float32](t.p, t.l.layout.Params+4*i) }

// Bytes is what the tensor takes.
func (t Tensor) Bytes() int { return int(t.l.nbytes(t.p)) }

// Elements is the number of values.
func (t Tensor) Elements() int { n := t.NE(); return int(n[0] * n[1] * n[2] * n[3]) }

// Leaf says that no operation makes the tensor: a weight, an input or a cache.
func (t Tensor) Leaf() bool { return t.Op() == "NONE" }

// Root is the tensor whose memory this one shows, the tensor itself if it has its own.
func (t Tensor) Root() Tensor {
	if v := t.View(); v.OK() {
		return v
	}
	return t
}

// maxSteps bounds walks through a graph: it has no cycles, but memory that is none could.
const maxSteps = 64

// Producer follows operations that only look at memory in another way.
func (t Tensor) Producer() Tensor {
	for range maxSteps {
		if !t.OK() {
			return t
		}
		switch t.Op() {
		case "VIEW", "RESHAPE", "PERMUTE", "TRANSPOSE":
			t = t.Src(0)
		default:
			return t
		}
	}
	return Tensor{}
}

// dense says that the values of a float32 tensor stand side by side.
func (t Tensor) dense() bool {
	ne, nb := t.NE(), t.NB()
	return nb[0] == 4 && nb[1] == 4*ne[0] && nb[2] == nb[1]*ne[1] && nb[3] == nb[2]*ne[2]
}

// Get reads a float32 tensor into dst, which grows if it must; rows may stand apart.
func (t Tensor) Get(dst []float32) ([]float32, error) {
	if t.Type() != typeF32 {
		return nil, fmt.Errorf("%s (%s) is no float32 tensor", t.Name(), t.Op())
	}
	n := t.Elements()
	if cap(dst) < n {
		dst = make([]float32, n)
	}
	dst = dst[:n]
	if n == 0 {
		return dst, nil
	}
	if t.dense() {
		t.l.tensorGet(t.p, unsafe.Pointer(&dst[0]), 0, uint64(4*n))
		return dst, nil
	}
	ne, nb := t.NE(), t.NB()
	buf := make([]float32, (t.Bytes()+3)/4)
	t.l.tensorGet(t.p, unsafe.Pointer(&buf[0]), 0, uint64(t.Bytes()))
	i := 0
	for d := range ne[3] {
		for c := range ne[2] {
			for b := range ne[1] {
				o := (d*nb[3] + c*nb[2] + b*nb[1]) / 4
				for a := range ne[0] {
					dst[i] = buf[o+a*nb[0]/4]
					i++
				}
			}
		}
	}
	return dst, nil
}

// Set writes a float32 tensor whose values stand side by side.
func (t Tensor) Set(src []float32) error {
	if t.Type() != typeF32 || !t.dense() || len(src) != t.Elements() {
		return fmt.Errorf("%s (%s) is no dense float32 tensor of %d values", t.Name(), t.Op(), len(src))
	}
	if len(src) > 0 {
		t.l.tensorSet(t.p, unsafe.Pointer(&src[0]), 0, uint64(4*len(src)))
	}
	return nil
}

// GetRaw reads the stored bytes.
func (t Tensor) GetRaw() []byte {
	b := make([]byte, t.Bytes())
	if len(b) > 0 {
		t.l.tensorGet(t.p, unsafe.Pointer(&b[0]), 0, uint64(len(b)))
	}
	return b
}

// SetRaw writes the stored bytes, all of them.
func (t Tensor) SetRaw(b []byte) error {
	if len(b) != t.Bytes() {
		return fmt.Errorf("%s takes %d bytes, not %d", t.Name(), t.Bytes(), len(b))
	}
	if len(b) > 0 {
		t.l.tensorSet(t.p, unsafe.Pointer(&b[0]), 0, uint64(len(b)))
	}
	return nil
}

// rows checks that rows [from, from+n) are there and stand side by side, and returns where they begin and how
// long they are, in bytes.
func (t Tensor) rows(from, n int) (offset, bytes int64, err error) {
	row := t.NB()[1]
	if from < 0 || n < 1 || int64(from+n) > t.NE()[1] || int64(from+n)*row > int64(t.Bytes()) {
		return 0, 0, fmt.Errorf("%s has no rows %d to %d", t.Name(), from, from+n)
	}
	return int64(from) * row, int64(n) * row, nil
}

// GetRows reads the stored bytes of rows [from, from+n).
func (t Tensor) GetRows(from, n int) ([]byte, error) {
	at, size, err := t.rows(from, n)
	if err != nil {
		return nil, err
	}
	b := make([]byte, size)
	t.l.tensorGet(t.p, unsafe.Pointer(&b[0]), uint64(at), uint64(size))
	return b, nil
}

// SetRow writes the stored bytes of one row.
func (t Tensor) SetRow(i int, b []byte) error {
	at, size, err := t.rows(i, 1)
	if err != nil {
		return err
	}
	if int64(len(b)) != size {
		return fmt.Errorf("%s: a row takes %d bytes, not %d", t.Name(), size, len(b))
	}
	t.l.tensorSet(t.p, unsafe.Pointer(&b[0]), uint64(at), uint64(size))
	return nil
}
