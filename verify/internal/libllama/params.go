package libllama

import (
	"fmt"
	"unsafe"
)

// The structs that llama.h passes by value, field by field as in its v0.5.0. Their
// layout is no promise of llama.cpp: fields come and go between releases, and a
// call with another release's layout would go wrong silently. So Open asks the
// library for its default values and refuses one whose defaults are not the known
// ones, see checkDefaults.

// modelParams is struct llama_model_params.
type modelParams struct {
	Devices, BufferOverrides                    uintptr
	GPULayers, Split, LoadMode, Lazy, MainGPU   int32
	TensorSplit, Progress, ProgressUser, KVOver uintptr
	VocabOnly, CheckTensors, ExtraBuffers       bool
	NoHost, NoAlloc, LoadMTP                    bool
}

// contextParams is struct llama_context_params.
type contextParams struct {
	Ctx, Batch, Ubatch, Seqs, RSSeq, Outputs, OutputsPerSeq uint32
	Threads, ThreadsBatch                                   int32
	Kind, RopeScaling, Pooling, Attention, Flash            int32
	RopeBase, RopeScale                                     float32
	YarnExt, YarnAttn, YarnFast, YarnSlow                   float32
	YarnCtx                                                 uint32
	Defrag                                                  float32
	Eval, EvalUser                                          uintptr
	TypeK, TypeV                                            int32
	Abort, AbortUser                                        uintptr
	Embeddings, OffloadKQV, NoPerf, OpOffload               bool
	FullWindow, Unified                                     bool
	Samplers                                                uintptr
	NSamplers                                               uint64
	Other                                                   uintptr
}

// batch is struct llama_batch. Null pointers stand for positions that go on, and
// for sequence 0.
type batch struct {
	N       int32
	Token   *int32
	Embd    uintptr
	Pos     uintptr
	NSeq    uintptr
	Seq     uintptr
	Outputs *int8
}

// The defaults of llama.cpp v0.5.0.
var (
	modelDefaults = modelParams{
		GPULayers: -1, Split: 1, LoadMode: -1, Lazy: 1, ExtraBuffers: true,
	}
	contextDefaults = contextParams{
		Ctx: 512, Batch: 2048, Ubatch: 512, Seqs: 1, OutputsPerSeq: 1, Threads: 4, ThreadsBatch: 4,
		RopeScaling: -1, Pooling: -1, Attention: -1, Flash: -1,
		YarnExt: -1, YarnAttn: -1, YarnFast: -1, YarnSlow: -1, Defrag: -1,
		TypeK: 1, TypeV: 1, OffloadKQV: true, NoPerf: true, OpOffload: true, FullWindow: true,
	}
)

// spare is room behind a returned struct: the callee writes as much as its own
// release has, which must not run over memory of ours before it is looked at.
const spare = 256

type returnedModelParams struct {
	P     modelParams
	Spare [spare]byte
}

type returnedContextParams struct {
	P     contextParams
	Spare [spare]byte
}

// checkDefaults refuses a library whose default parameters are not the known ones.
func checkDefaults(m returnedModelParams, c returnedContextParams) error {
	if m.P != modelDefaults || m.Spare != [spare]byte{} {
		return layoutError("llama_model_default_params", m.P, modelDefaults)
	}
	if c.P != contextDefaults || c.Spare != [spare]byte{} {
		return layoutError("llama_context_default_params", c.P, contextDefaults)
	}
	return nil
}

func layoutError[T any](function string, got, want T) error {
	return fmt.Errorf("%s of this library does not give the defaults of llama.cpp v0.5.0: another release, whose structs may be laid out otherwise, is not called\n got %+v\nwant %+v (%d bytes)",
		function, got, want, unsafe.Sizeof(want))
}
