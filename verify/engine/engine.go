// Package engine is what computes a model, whatever that is: the own forward pass, or stock
// llama.cpp (package llama). What is measured with models is written once, for an Engine.
package engine

import (
	"context"

	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/rotations/transform"
	"github.com/phaseconv/phaseconv/verify/kvcache"
	"github.com/phaseconv/phaseconv/verify/ppl"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// An Engine runs windows of one model.
type Engine interface {
	// Config describes the model as far as the engine knows it: the own pass all of it, llama.cpp the
	// caches, one layer for each (see llama.Facts).
	Config() *family.Config
	// Windows cuts a text with the model's tokenizer, see ppl.Tokenize.
	Windows(ctx context.Context, t ppl.Text, n, chunks int) (*ppl.Windows, error)
	// Fits refuses cache types that a runtime has no such cache for.
	Fits(t kvcache.CacheTypes) error
	// Size is what the caches take, of one token and for one sequence at a context of ctx tokens, as
	// llama.cpp allocates them.
	Size(t kvcache.CacheTypes, ctx int) (token int, all int64)
	// Compare measures lanes against a reference, which is computed once.
	Compare(ctx context.Context, w *ppl.Windows, ref *Reference, lanes []Lane, p Progress) (*ppl.Result, error)
	// Tap runs windows and shows their activations. The own pass shows a layer with all windows at once,
	// layer by layer; llama.cpp shows one window after the other, and in each its layers: hooks
	// add up what they see.
	Tap(ctx context.Context, windows [][]int32, h refmodel.Hooks, p func(done, total int)) error
	// Identity is what results depend on beside model, text and options.
	Identity() Identity
}

// A Lane is one way of computing windows.
type Lane struct {
	// Types are a stock runtime's caches; nil stands for floats: float32 in the own pass, F16 in llama.cpp.
	Types *kvcache.CacheTypes
	// Keys replaces keys by what a code gives back, beside values as floats.
	Keys *Keys
	// Edits are made to the weights for this lane alone. The own pass computes with the keys that they
	// would make, which is the same up to rounding; llama.cpp has other bytes in its tensors.
	Edits transform.ModelEdits
}

// Keys are codes that keys are replaced by. The own pass uses Codes. llama.cpp's worker reads the
// codes by itself, from the file Sidecar, or makes those of Kind, which needs no fit.
type Keys struct {
	Codes   *kvcache.Codes
	Sidecar string
	Kind    string
	Seed    uint64
}

// Stock is the lane of a pair of cache types.
func Stock(t kvcache.CacheTypes) Lane { return Lane{Types: &t} }

// A Reference is what lanes are compared with: a lane of an engine, for the windows that it is
// first used with. Engines keep what they computed of it here.
type Reference struct {
	Engine Engine
	Lane   Lane

	kept any
}

// Progress is told how much is done: of the windows, and of the comparison of predictions.
type Progress struct {
	Run, Compare func(done, total int)
}
