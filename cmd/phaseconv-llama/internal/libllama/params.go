//go:build (linux || darwin) && (amd64 || arm64)

package libllama

import (
	"fmt"
	"unsafe"
)

// The structs that llama.h passes by value change from release to release. So their fields are
// found in what the library gives as defaults, by landmarks: neighbours with known values. A
// release without them is refused, with the bytes.

// params is a parameter struct of some release: its bytes, and room for what newer releases
// add. Passed by value as the last argument, more bytes than the callee knows do no harm: on amd64
// they lie on the stack, on arm64 behind a pointer.
type params struct{ B [24]uint64 }

// returned is what a function that returns such a struct may write over.
type returned struct {
	P     params
	Spare [24]uint64
}

func (r *params) u32(off int) *uint32  { return (*uint32)(unsafe.Add(unsafe.Pointer(r), off)) }
func (r *params) u8(off int) *uint8    { return (*uint8)(unsafe.Add(unsafe.Pointer(r), off)) }
func (r *params) ptr(off int) *uintptr { return (*uintptr)(unsafe.Add(unsafe.Pointer(r), off)) }

// contextLayout says where the fields that are set here stand in llama_context_params.
type contextLayout struct {
	Threads, Flash, Eval, TypeK, OpOffload, FullWindow int
}

const (
	bits1      = 0x3f800000 // the float 1
	bitsMinus1 = 0xbf800000 // the float -1
)

// findContext finds the fields of llama_context_params: n_ctx 512, n_batch 2048, n_ubatch 512 and
// n_seq_max 1 in front; two equal thread counts; four floats for YaRN, 0 for its context, -1 for
// the threshold, then callback and its data, null, and the cache types, F16; then a callback
// with its data, null, and the flags embeddings, offload_kqv, no_perf, op_offload, swa_full.
func findContext(r *params) (c contextLayout, err error) {
	bad := func(what string) (contextLayout, error) {
		return c, fmt.Errorf("llama_context_default_params: %s, so this release's fields are not known: % x", what,
			unsafe.Slice((*byte)(unsafe.Pointer(r)), 160))
	}
	if *r.u32(0) != 512 || *r.u32(4) != 2048 || *r.u32(8) != 512 || *r.u32(12) != 1 {
		return bad("it does not begin with n_ctx 512, n_batch 2048, n_ubatch 512, n_seq_max 1")
	}
	for o := 16; o < 140 && c.Eval == 0; o += 4 {
		if *r.u32(o) != bitsMinus1 || *r.u32(o + 4) != bitsMinus1 && *r.u32(o + 4) != bits1 {
			continue
		}
		if *r.u32(o + 16) != 0 || *r.u32(o + 20) != bitsMinus1 {
			return bad("no context and threshold behind the YaRN factors")
		}
		c.Eval = (o + 24 + 7) &^ 7
		c.Flash = o - 12 // in front of rope_freq_base and rope_freq_scale
	}
	if c.Eval == 0 {
		return bad("no YaRN factors")
	}
	c.TypeK = c.Eval + 16
	if *r.ptr(c.Eval) != 0 || *r.ptr(c.Eval + 8) != 0 || *r.u32(c.TypeK) != typeF16 || *r.u32(c.TypeK + 4) != typeF16 {
		return bad("no callback and no cache types behind the threshold")
	}
	flags := c.TypeK + 24
	if *r.ptr(c.TypeK + 8) != 0 || *r.ptr(c.TypeK + 16) != 0 {
		return bad("no abort callback behind the cache types")
	}
	for i, want := range []uint8{0, 1, 1, 1, 1} {
		if *r.u8(flags + i) != want {
			return bad("the flags behind the abort callback are not the known ones")
		}
	}
	c.OpOffload, c.FullWindow = flags+3, flags+4
	for o := 16; o < c.Flash-4; o += 4 {
		if *r.u32(o) == 4 && *r.u32(o + 4) == 4 {
			c.Threads = o
			break
		}
	}
	if c.Threads == 0 {
		return bad("no thread counts")
	}
	return c, nil
}

// modelLayout says where the fields that are set here stand in llama_model_params; devices are
// first, the number of layers on devices stands at 16 and the way to split behind it.
type modelLayout struct {
	LoadMode int // load_mode, 0 where the release has use_mmap instead
	UseMmap  int
	Extra    int // use_extra_bufts
}

// Offsets of llama_model_params that have not moved since 2025.
const (
	modelDevices   = 0
	modelGPULayers = 16
	modelSplit     = 20
)

// findModel finds the fields of llama_model_params. Until August 2026 flags said how a file is
// read: vocab_only 0, use_mmap 1, others 0, use_extra_bufts 1. Since then load_mode, -1, does,
// and the flags are vocab_only 0, check_tensors 0, use_extra_bufts 1.
func findModel(r *params) (m modelLayout, err error) {
	bad := func(what string) (modelLayout, error) {
		return m, fmt.Errorf("llama_model_default_params: %s, so this release's fields are not known: % x", what,
			unsafe.Slice((*byte)(unsafe.Pointer(r)), 96))
	}
	if *r.ptr(0) != 0 || *r.ptr(8) != 0 || *r.u32(modelSplit) != 1 {
		return bad("no devices, overrides and split by layer in front")
	}
	pointers, flags := 32, 64
	if int32(*r.u32(24)) == -1 {
		m.LoadMode, pointers, flags = 24, 40, 72
	}
	for o := pointers; o < flags; o += 8 {
		if *r.ptr(o) != 0 {
			return bad("pointers that are not null")
		}
	}
	at := flags + 1
	if m.LoadMode == 0 {
		if m.UseMmap = at; *r.u8(at) != 1 {
			return bad("use_mmap is not set")
		}
		at++
	}
	if *r.u8(flags) != 0 {
		return bad("vocab_only is set")
	}
	for o := at; o < flags+8; o++ {
		if *r.u8(o) == 1 {
			m.Extra = o
			return m, nil
		}
	}
	return bad("use_extra_bufts is not set")
}

// batch is struct llama_batch, unchanged since October 2024. Null pointers stand for positions
// that go on, and for sequence 0.
type batch struct {
	N       int32
	Token   *int32
	Embd    uintptr
	Pos     uintptr
	NSeq    uintptr
	Seq     uintptr
	Outputs *int8
}
