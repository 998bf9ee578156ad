// Package engine is what computes a model, whatever that is: the own forward pass, or stock
// llama.cpp (package llama). What is measured with models is written once, for an Engine.
package engine

import (
	"context"

	"github.com/phaseconv/phaseconv/format"
	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/kernels/rope"
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
	Compare(ctx context.Context, w *ppl.Windows, ref *Reference, lanes []Lane, o Options) (*ppl.Result, error)
	// Tap runs windows and shows their activations: each layer once, with all windows, in order.
	Tap(ctx context.Context, windows [][]int32, h refmodel.Hooks, p func(done, total int)) error
	// With returns the engine of the same model with other weights: those of an edited checkpoint.
	With(ctx context.Context, w checkpoint.Weights) (Engine, error)
	// Identity is what results depend on beside model, text and options.
	Identity() Identity
}

// A Summer is an engine that sums up statistics of keys where it computes, so that activations do not travel.
type Summer interface {
	// KeySums runs windows one after the other through edits.KeyStats with these options and returns its sums, and
	// the rotary table of each layer of Config for one window, nil where it has none.
	KeySums(ctx context.Context, windows [][]int32, o KeySums, p func(done, total int)) (sums []byte, ropes []*rope.Table,
		err error)
}

// KeySums are the options of edits.KeyStats; with Output errors of scores count by what they do behind W_O.
type KeySums struct {
	Queries  int    `json:"queries"`
	Sink     int    `json:"sink"`
	Samples  int    `json:"samples"`
	Meetings int    `json:"meetings"`
	Output   bool   `json:"output"`
	Seed     uint64 `json:"seed"`
	Threads  int    `json:"threads"`
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
	// Again, if set, is the lane: what a reference of this or another model of the engine is. Where it
	// was computed for the same windows, it is not computed again.
	Again *Reference
}

// Keys are codes that keys are replaced by. The own pass uses Cache. llama.cpp's worker reads the codes
// by itself, from the file Sidecar, or makes those of Kind, which needs no fit, and has Policy.
type Keys struct {
	Cache   refmodel.Cache
	Policy  kvcache.Policy
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

	kept    any
	context *refmodel.Context // of Probe
}

// Keep returns what an engine keeps of the reference, which first makes the first time.
func (r *Reference) Keep(first func() any) any {
	if r.kept == nil {
		r.kept = first()
	}
	return r.kept
}

// Part is the reference on the first n of the windows w that it was used with.
func (r *Reference) Part(w *ppl.Windows, n int) *Reference {
	p := &Reference{Engine: r.Engine, Lane: r.Lane}
	if kept, ok := r.kept.(ppl.Positions); ok {
		p.kept = kept.Part(w, n)
	}
	return p
}

// Options of Compare.
type Options struct {
	// Hooks see the activations of the reference, which must be of the engine that compares.
	Hooks refmodel.Hooks
	// Run and Compare are told how much is done: of the windows, and of the comparison of predictions.
	Run, Compare func(done, total int)
}

// Engines opens models.
type Engines interface {
	// Source opens a checkpoint that these engines can compute. It is to be closed.
	Source(ctx context.Context, path string) (*checkpoint.Checkpoint, error)
	// Open returns the engine of a checkpoint. It is good until Close.
	Open(ctx context.Context, c *checkpoint.Checkpoint) (Engine, error)
	Identity() Identity
	Close()
}

// IsOwn says whether engines are the own pass; nil is.
func IsOwn(e Engines) bool { return e == nil || e.Identity().Engine == Own }

// OwnEngines opens checkpoints in the own pass. The zero value takes all threads.
type OwnEngines struct {
	Threads int
	// RoundInputs and HalfSums: see refmodel.Model and kvcache.LlamaCpp.
	RoundInputs, HalfSums bool
}

// Source opens a checkpoint of a family of the table.
func (o OwnEngines) Source(_ context.Context, path string) (*checkpoint.Checkpoint, error) {
	return checkpoint.Open(path)
}

// Open returns the own pass of a checkpoint.
func (o OwnEngines) Open(_ context.Context, c *checkpoint.Checkpoint) (Engine, error) {
	if c.Graph != nil {
		return nil, format.Unsupportedf("%s: the own forward pass knows no architecture %s; take --engine llama", c.Path,
			c.Graph.Architecture)
	}
	e := NewOwn(c, o.Threads)
	e.Model.RoundInputs, e.HalfSums = o.RoundInputs, o.HalfSums
	return e, nil
}

// Identity is that of the own pass.
func (o OwnEngines) Identity() Identity { return Identity{Engine: Own} }

// Close does nothing: checkpoints belong to who opened them.
func (o OwnEngines) Close() {}
