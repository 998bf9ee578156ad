package llama

import (
	"context"
	"fmt"
	"slices"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/verify/engine/wire"
	"github.com/phaseconv/phaseconv/verify/option"
	"github.com/phaseconv/phaseconv/verify/ppl"
)

// A Model is a file that a worker has loaded.
type Model struct {
	Facts *Facts
	Tests []SelfTest
	Path  string
	// Source is the same file as a checkpoint, for lanes with edits; nil where its family is not known.
	Source *checkpoint.Checkpoint

	w     *Worker
	n     int
	place Place
	// twin is what edits are made in, once that is another file; see editable.
	twin *Model
	// patched is the patch that all lanes of this model have, "" for none, see With.
	patched string
	caches  *family.Config
	sizes   map[sizeKey]size
}

// Place says where a model is loaded.
type Place struct {
	// Devices are names of Library.Devices; none: all that are not the CPU.
	Devices []string
	// GPULayers is how many layers go to them; negative: all.
	GPULayers int
	Threads   int // on the CPU
}

// Load loads a GGUF file and tests the engine on its devices. It refuses a model where a self-test
// fails.
func (w *Worker) Load(ctx context.Context, path string, p Place) (*Model, error) {
	m, err := w.load(ctx, path, p)
	if err != nil {
		return nil, err
	}
	return m, m.tested()
}

// More layers and threads mean nothing; the library's numbers have 32 bits.
const maxLayers, maxThreads = 1 << 20, 1 << 10

// load is Load without a look at the tests' results.
func (w *Worker) load(ctx context.Context, path string, p Place) (*Model, error) {
	p.Threads = min(max(0, p.Threads), maxThreads)
	m := &Model{Path: path, w: w, place: p, sizes: map[sizeKey]size{}}
	var out Loaded
	if _, err := w.call(ctx, KindLoad, Load{Path: path, Devices: p.Devices,
		GPULayers: min(max(p.GPULayers, -1), maxLayers), Threads: p.Threads},
		&out, nil, nil); err != nil {
		return nil, err
	}
	m.Facts, m.Tests, m.n = out.Facts, out.Tests, out.Model
	if m.Facts == nil {
		return nil, fmt.Errorf("%s: the worker gave no facts", path)
	}
	m.caches = m.Facts.Caches()
	return m, nil
}

// tested returns the first self-test that failed as an error.
func (m *Model) tested() error {
	for _, t := range m.Tests {
		if !t.OK {
			return fmt.Errorf("%s: a self-test of the engine failed, so nothing it measures could be trusted: %s: %s",
				m.Path, t.Name, t.Detail)
		}
	}
	return nil
}

// Close frees the model in the worker.
func (m *Model) Close(ctx context.Context) error {
	_, err := m.w.call(ctx, KindUnload, Unload{Model: m.n}, nil, nil, nil)
	return err
}

// Lane returns a lane of this model with these cache types (numbers of GGUF types).
func (m *Model) Lane(k, v int32) Lane { return Lane{Model: m.n, K: k, V: v} }

// Windows tokenizes a text with llama.cpp's tokenizer and cuts it as ppl.Tokenize does.
func (m *Model) Windows(ctx context.Context, t ppl.Text, n, chunks int) (*ppl.Windows, error) {
	if err := t.Check(); err != nil {
		return nil, err
	}
	if own := m.Facts.Context; own > 0 && n > own {
		return nil, option.Bad("Ctx", n, "the model's own context is %d, and beyond it nothing that is measured "+
			"means much", own)
	}
	words := t.Data
	if t.Chat {
		v, err := checkpoint.GGUFVocab(m.Path)
		if err != nil {
			return nil, err
		}
		s, err := t.Render(ctx, v)
		if err != nil {
			return nil, err
		}
		words = []byte(s)
	}
	blobs, err := m.w.call(ctx, KindTokenize, Tokenize{Model: m.n, Special: t.Chat}, nil, nil, nil, words)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", t.Name, err)
	}
	if len(blobs) != 1 {
		return nil, fmt.Errorf("%s: the worker gave no tokens", t.Name)
	}
	ids, err := wire.ReadInt32s(blobs[0])
	if err != nil {
		return nil, err
	}
	bos := int32(-1)
	if m.Facts.AddBOS {
		bos = m.Facts.BOS
	}
	w, err := ppl.Cut(ids, n, chunks, bos)
	if err != nil {
		return nil, option.Errorf("%s: %w", t.Name, err)
	}
	return w, nil
}

// laneMemory bounds what logits of lanes that run together take, in bytes: llama.cpp reserves
// two rows for each token of a batch.
const laneMemory = 4 << 30

// MaxLanes is how many lanes Measure runs together for a vocabulary.
func MaxLanes(vocab int) int {
	const most = 10
	return max(2, min(most, laneMemory/(2*4*batch*max(1, vocab))))
}

// Measure runs windows through lanes, the first of which is the base, and measures the others
// against it with the meter of package ppl.
func (w *Worker) Measure(ctx context.Context, win *ppl.Windows, o Measure, tick func(done, total int)) (
	[]ppl.Scores, []MeasuredLane, error) {
	o.Ctx, o.First, o.Threads = win.Ctx, win.First(), min(max(0, o.Threads), maxThreads)
	var out Measured
	blobs, err := w.call(ctx, KindMeasure, o, &out, tick, nil, wire.Int32s(slices.Concat(win.Tokens...)))
	if err != nil {
		return nil, nil, err
	}
	w.DecodeCPU, w.CPU = w.DecodeCPU+out.DecodeCPU, out.CPU
	if len(out.Lanes) != len(o.Lanes) || len(blobs) != 3*len(o.Lanes) {
		return nil, nil, fmt.Errorf("the worker gave results for %d lanes, %d were asked "+
			"for", len(out.Lanes), len(o.Lanes))
	}
	scores := make([]ppl.Scores, len(o.Lanes))
	for i := range scores {
		s := &scores[i]
		s.MaxAbsDLogit = out.Lanes[i].MaxAbsDLogit
		var err error
		if s.NLL, err = wire.ReadFloat64s(blobs[3*i]); err != nil {
			return nil, nil, err
		}
		if s.KLD, err = wire.ReadFloat64s(blobs[3*i+1]); err != nil {
			return nil, nil, err
		}
		if s.Top, err = wire.ReadInt32s(blobs[3*i+2]); err != nil {
			return nil, nil, err
		}
	}
	return scores, out.Lanes, nil
}

// An Activation is what Tap was asked for, of one layer in one window: rows of tokens.
type Activation struct {
	Window, Layer int
	Values        map[string][]float32 // by the names of taps
}

// Activations runs windows and calls see with what was asked for, window by window, layer by layer. An
// error of see ends the worker.
func (m *Model) Activations(ctx context.Context, windows [][]int32, o Tap, tick func(done, total int),
	see func(a *Activation) error) error {
	if len(windows) == 0 {
		return fmt.Errorf("no windows to run")
	}
	o.Model, o.Ctx = m.n, len(windows[0])
	if o.Threads == 0 {
		o.Threads = m.place.Threads
	}
	_, err := m.w.call(ctx, KindTap, o, nil, tick, func(f *wire.Frame) error {
		var t Tapped
		if err := f.Decode(&t); err != nil {
			return err
		}
		if len(t.Names) != len(f.Blobs) {
			return fmt.Errorf("layer %d: %d names for %d activations", t.Layer, len(t.Names), len(f.Blobs))
		}
		a := &Activation{Window: t.Window, Layer: t.Layer, Values: map[string][]float32{}}
		for i, n := range t.Names {
			x, err := wire.ReadFloat32s(f.Blobs[i])
			if err != nil {
				return err
			}
			a.Values[n] = x
		}
		return see(a)
	}, wire.Int32s(slices.Concat(windows...)))
	return err
}

// Patch keeps other bytes for weights under a name, for lanes; nil forgets them.
func (m *Model) Patch(ctx context.Context, name string, tensors map[string][]byte) error {
	p := Patch{Model: m.n, Name: name}
	var blobs [][]byte
	for n := range tensors {
		p.Names = append(p.Names, n)
	}
	slices.Sort(p.Names)
	for _, n := range p.Names {
		blobs = append(blobs, tensors[n])
	}
	_, err := m.w.call(ctx, KindPatch, p, nil, nil, nil, blobs...)
	return err
}
