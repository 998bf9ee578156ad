//go:build (linux || darwin) && (amd64 || arm64)

package libllama

import (
	"bytes"
	"fmt"
	"unsafe"
)

// Layout holds the offsets of the fields of struct ggml_tensor that are read here. They are
// taken from no header: probe makes tensors with known contents through the library's own
// constructors, and looks where these contents stand.
type Layout struct {
	Type, NE, NB, Op, Params, Src, ViewSrc, Data, Name int
}

func at[T any](p uintptr, off int) T {
	return *(*T)(unsafe.Add(*(*unsafe.Pointer)(unsafe.Pointer(&p)), off))
}

// raw shows memory of the library.
func raw(p uintptr, n int) []byte {
	return unsafe.Slice((*byte)(*(*unsafe.Pointer)(unsafe.Pointer(&p))), n)
}

// maxCString bounds strings of the library: a pointer that is none does not make us read on.
const maxCString = 1 << 16

func cstr(p uintptr) string {
	if p == 0 {
		return ""
	}
	n := 0
	for n < maxCString && at[byte](p, n) != 0 {
		n++
	}
	return string(raw(p, n))
}

// Types of ggml that probe needs; the numbers are part of the file format.
const (
	typeF32 = 0
	typeF16 = 1
	typeI32 = 26
	typeI64 = 27
)

// srcCount is how many sources of a tensor are looked at; ggml has 10.
const srcCount = 10

// ggmlInit is struct ggml_init_params.
type ggmlInit struct {
	Size   uint64
	Buffer uintptr
	NoData bool
}

// constructors are the functions of ggml that probe makes tensors with.
type constructors struct {
	init    func(ggmlInit) uintptr
	free    func(uintptr)
	new4    func(ctx uintptr, typ int32, a, b, c, d int64) uintptr
	new1    func(ctx uintptr, typ int32, a int64) uintptr
	setName func(t uintptr, name string) uintptr
	getData func(t uintptr) uintptr
	view1   func(ctx, a uintptr, n int64, off uint64) uintptr
	mulMat  func(ctx, a, b uintptr) uintptr
	setRows func(ctx, a, b, c uintptr) uintptr
	rope    func(ctx, a, b, c uintptr, dims, mode, orig int32, fb, fs, ef, af, bf, bs float32) uintptr
	flash   func(ctx, q, k, v, mask uintptr, scale, bias, softcap float32) uintptr
}

func (l *Library) constructors() (*constructors, error) {
	var g constructors
	return &g, l.register(map[string]any{
		"ggml_init": &g.init, "ggml_free": &g.free, "ggml_new_tensor_4d": &g.new4, "ggml_new_tensor_1d": &g.new1,
		"ggml_set_name": &g.setName, "ggml_get_data": &g.getData, "ggml_view_1d": &g.view1, "ggml_mul_mat": &g.mulMat,
		"ggml_set_rows": &g.setRows, "ggml_rope_ext": &g.rope, "ggml_flash_attn_ext": &g.flash,
	})
}

// tensorBytes is how much of a tensor is searched; a tensor has 336 bytes and more, and the
// context's memory goes on behind it.
const tensorBytes = 320

func bytesOf[T any](x ...T) []byte {
	n := int(unsafe.Sizeof(x[0])) * len(x)
	return bytes.Clone(unsafe.Slice((*byte)(unsafe.Pointer(&x[0])), n))
}

// probe finds the fields of struct ggml_tensor.
func (l *Library) probe() error {
	g, err := l.constructors()
	if err != nil {
		return fmt.Errorf("%w; releases before July 2025 lack ggml_set_rows and are not supported", err)
	}
	ctx := g.init(ggmlInit{Size: 1 << 22})
	if ctx == 0 {
		return fmt.Errorf("ggml_init failed")
	}
	defer g.free(ctx)
	find := func(t uintptr, step int, what ...byte) int {
		b := raw(t, tensorBytes)
		for i := 0; i+len(what) <= len(b); i += step {
			if bytes.Equal(b[i:i+len(what)], what) {
				return i
			}
		}
		return -1
	}
	// A tensor for each kind of field, all with numbers that occur nowhere else.
	a := g.new4(ctx, typeF32, 64, 3, 5, 7)
	g.setName(a, "phaseconv-probe")
	view := g.view1(ctx, a, 16, 256)
	pos, factors := g.new1(ctx, typeI32, 5), g.new1(ctx, typeF32, 16)
	x := g.new4(ctx, typeF32, 64, 3, 5, 1)
	rope := g.rope(ctx, x, pos, factors, 32, 2, 4096, 12345, 0.5, 0.25, 1.5, 33, 3)
	// op_params of ROPE: n_past, n_dims, mode, n_ctx, n_ctx_orig, six floats, sections.
	ropeParams := append(bytesOf[int32](32, 2, 0, 4096), bytesOf[float32](12345, 0.5, 0.25, 1.5, 33, 3)...)
	y := &l.layout
	for _, f := range []struct {
		name  string
		field *int
		at    int
	}{
		{"name", &y.Name, find(a, 1, append([]byte("phaseconv-probe"), 0)...)},
		{"ne", &y.NE, find(a, 8, bytesOf[int64](64, 3, 5, 7)...)},
		{"nb", &y.NB, find(a, 8, bytesOf[int64](4, 256, 768, 3840)...)},
		{"data", &y.Data, find(a, 8, bytesOf(g.getData(a))...)},
		{"view_src and view_offs", &y.ViewSrc, find(view, 8, bytesOf(a, 256)...)},
		{"src", &y.Src, find(rope, 8, bytesOf(x, pos, factors)...)},
		{"op_params", &y.Params, find(rope, 4, ropeParams...)},
	} {
		if f.at < 0 {
			return fmt.Errorf("the field %s of ggml_tensor was not found: this release lays tensors out in a way that "+
				"is not known", f.name)
		}
		*f.field = f.at
	}
	y.Params -= 4 // n_past stands in front of what was searched
	y.Op, y.Type = y.Params-4, 0
	return l.checkLayout(g, ctx, []uintptr{a, view, x, rope, pos, factors})
}

// checkLayout holds the layout against tensors of other kinds.
func (l *Library) checkLayout(g *constructors, ctx uintptr, made []uintptr) error {
	a, view, x, rope, pos, factors := made[0], made[1], made[2], made[3], made[4], made[5]
	half := g.new4(ctx, typeF16, 64, 100, 1, 1)
	index, rows := g.new1(ctx, typeI64, 5), g.new4(ctx, typeF32, 64, 5, 1, 1)
	product, stored := g.mulMat(ctx, x, x), g.setRows(ctx, half, rows, index)
	q, k, v := g.new4(ctx, typeF32, 64, 8, 2, 1), g.new4(ctx, typeF16, 64, 32, 1, 1), g.new4(ctx, typeF16, 64, 32, 1, 1)
	mask := g.new4(ctx, typeF16, 32, 64, 1, 1)
	flash := g.flash(ctx, q, k, v, mask, 0.125, 0, 50)
	for _, c := range []struct {
		t    uintptr
		op   string
		typ  int32
		srcs []uintptr
	}{
		{a, "NONE", typeF32, nil}, {half, "NONE", typeF16, nil}, {index, "NONE", typeI64, nil},
		{view, "VIEW", typeF32, []uintptr{a}}, {product, "MUL_MAT", typeF32, []uintptr{x, x}},
		{rope, "ROPE", typeF32, []uintptr{x, pos, factors}}, {stored, "SET_ROWS", typeF16, []uintptr{rows, index}},
		{flash, "FLASH_ATTN_EXT", typeF32, []uintptr{q, k, v, mask}},
	} {
		t := Tensor{c.t, l}
		if t.Type() != c.typ || t.Op() != c.op {
			return fmt.Errorf("ggml_tensor: %s has type %d and op %q where type %d was "+
				"expected", c.op, t.Type(), t.Op(), c.typ)
		}
		for i, s := range c.srcs {
			if t.Src(i).p != s {
				return fmt.Errorf("ggml_tensor: source %d of %s is not at its place", i, c.op)
			}
		}
	}
	if (Tensor{stored, l}).View().p != half {
		return fmt.Errorf("ggml_tensor: SET_ROWS is no view of what it writes to")
	}
	if f := (Tensor{flash, l}); f.FloatParam(0) != 0.125 || f.FloatParam(2) != 50 {
		return fmt.Errorf("ggml_tensor: FLASH_ATTN_EXT does not keep scale and soft cap where they were expected")
	}
	return nil
}
