//go:build (linux || darwin) && (amd64 || arm64)

// Package worker does the jobs of package engine with stock libllama.
package worker

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/phaseconv/phaseconv/cmd/phaseconv-llama/internal/graph"
	"github.com/phaseconv/phaseconv/cmd/phaseconv-llama/internal/libllama"
	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/verify/engine/llama"
	"github.com/phaseconv/phaseconv/verify/engine/wire"
)

// Handshake is the argument that phaseconv starts the worker with: both must speak of the same
// jobs.
const Handshake = llama.WorkerProtocol

// server holds what jobs share.
type server struct {
	conn   *wire.Conn
	log    io.Writer
	lib    *libllama.Library
	models map[int]*model
	last   int
	bases  bases
}

// A model is a loaded file with its plan.
type model struct {
	*libllama.Model
	facts   *llama.Facts
	plan    *graph.Plan
	opened  llama.Load
	patches map[string]*patch
}

// Serve does jobs until requests end.
func Serve(requests io.Reader, results io.Writer, log io.Writer) error {
	// Devices of some backends belong to a thread.
	runtime.LockOSThread()
	s := &server{conn: wire.New(requests, results), log: log, models: map[int]*model{}}
	jobs := make(chan *wire.Frame)
	go func() {
		for {
			f, err := s.conn.Receive()
			if err != nil {
				// The other side is gone: whatever runs is for nobody.
				os.Exit(0)
			}
			jobs <- f
		}
	}()
	for f := range jobs {
		body, blobs, err := s.try(f)
		if err != nil {
			err = s.conn.Send(llama.KindError, llama.Failure{Message: err.Error()})
		} else {
			err = s.conn.Send(llama.KindResult, body, blobs...)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// try does one job. A panic of ours is that job's error.
func (s *server) try(f *wire.Frame) (body any, blobs [][]byte, err error) {
	defer func() {
		if r := recover(); r != nil {
			fmt.Fprintf(s.log, "%v\n%s", r, debug.Stack())
			err = fmt.Errorf("the job %s failed: %v", f.Kind, r)
		}
	}()
	return s.do(f)
}

// job decodes a request and does it.
func job[T any](f *wire.Frame, do func(T) (any, [][]byte, error)) (any, [][]byte, error) {
	var x T
	if err := f.Decode(&x); err != nil {
		return nil, nil, err
	}
	return do(x)
}

func (s *server) do(f *wire.Frame) (any, [][]byte, error) {
	if s.lib == nil && f.Kind != llama.KindOpen {
		return nil, nil, fmt.Errorf("the job %s came before a library was opened", f.Kind)
	}
	switch f.Kind {
	case llama.KindOpen:
		return job(f, s.open)
	case llama.KindLoad:
		return job(f, s.load)
	case llama.KindUnload:
		return job(f, s.unload)
	case llama.KindTokenize:
		return job(f, func(x llama.Tokenize) (any, [][]byte, error) { return s.tokenize(x, f.Blobs) })
	case llama.KindMeasure:
		return job(f, func(x llama.Measure) (any, [][]byte, error) { return s.measure(x, f.Blobs) })
	case llama.KindTap:
		return job(f, func(x llama.Tap) (any, [][]byte, error) { return s.tap(x, f.Blobs) })
	case llama.KindSums:
		return job(f, func(x llama.Sums) (any, [][]byte, error) { return s.sums(x, f.Blobs) })
	case llama.KindPatch:
		return job(f, func(x llama.Patch) (any, [][]byte, error) { return s.patch(x, f.Blobs) })
	}
	return nil, nil, fmt.Errorf("this worker knows no job %q", f.Kind)
}

// progress tells how much of a job is done. A pipe that is gone ends the worker elsewhere.
func (s *server) progress(done, total int) {
	if err := s.conn.Send(llama.KindProgress, llama.Progress{Done: done, Total: total}); err != nil {
		fmt.Fprintln(s.log, "progress:", err)
	}
}

func (s *server) open(o llama.Open) (any, [][]byte, error) {
	if s.lib != nil {
		return nil, nil, fmt.Errorf("a library is open; one process loads one")
	}
	lib, err := libllama.Open(o.Dir, o.RPC, func(text string) { fmt.Fprint(s.log, text) })
	if err != nil {
		return nil, nil, err
	}
	s.lib = lib
	out := &llama.Library{System: lib.SystemInfo(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	out.Release, out.GGML, out.Commit = lib.Release()
	out.Tested = slices.Contains(llama.TestedReleases, llama.ReleaseName(out.Release, out.GGML))
	var lines []string
	for _, path := range lib.Files {
		d, err := checkpoint.FileDigest(context.Background(), path, nil)
		if err != nil {
			return nil, nil, err
		}
		lines = append(lines, d+"  "+filepath.Base(path)+"\n")
	}
	slices.Sort(lines)
	h := sha256.Sum256([]byte(strings.Join(lines, "")))
	out.SHA256 = hex.EncodeToString(h[:])
	for _, d := range lib.Devices() {
		out.Devices = append(out.Devices, llama.Device{Name: d.Name, Description: d.Description, Kind: d.Kind,
			Free: d.Free, Total: d.Total})
	}
	y := lib.TensorLayout()
	out.Tensor = map[string]int{"type": y.Type, "ne": y.NE, "nb": y.NB, "op": y.Op, "op_params": y.Params, "src": y.Src,
		"view_src": y.ViewSrc, "data": y.Data, "name": y.Name}
	return out, nil, nil
}

func (s *server) model(n int) (*model, error) {
	m := s.models[n]
	if m == nil {
		return nil, fmt.Errorf("there is no model %d", n)
	}
	return m, nil
}

// How a model is recorded and tested: so many tokens, in a context of that many.
const (
	testTokens = 32
	testCtx    = 256
	typeF16    = int32(gguf.TypeF16)
)

func (s *server) load(o llama.Load) (any, [][]byte, error) {
	lm, err := s.lib.Load(o.Path, libllama.ModelOptions{Devices: o.Devices, GPULayers: o.GPULayers, Map: o.Ask})
	if err != nil {
		return nil, nil, err
	}
	m := &model{Model: lm, opened: o, patches: map[string]*patch{}}
	tests, err := m.study(o)
	if err != nil {
		lm.Close()
		return nil, nil, fmt.Errorf("%s: %w", filepath.Base(o.Path), err)
	}
	s.last++
	s.models[s.last] = m
	return &llama.Loaded{Model: s.last, Facts: m.facts, Tests: tests}, nil, nil
}

func (s *server) unload(o llama.Unload) (any, [][]byte, error) {
	m, err := s.model(o.Model)
	if err != nil {
		return nil, nil, err
	}
	m.Close()
	delete(s.models, o.Model)
	s.bases = nil
	return nil, nil, nil
}

// someTokens are ids that any vocabulary has.
func (m *model) someTokens(n int) []int32 {
	x := make([]int32, n)
	for i := range x {
		x[i] = int32((i*37 + 11) % min(m.Vocab, 100))
	}
	return x
}

// study records the model's graph and tests what the engine relies on, on the devices in use.
func (m *model) study(o llama.Load) ([]llama.SelfTest, error) {
	c, err := m.NewContext(libllama.ContextOptions{Ctx: testCtx, Batch: 64, K: typeF16, V: typeF16, Flash: -1,
		FullWindow: true, Threads: o.Threads})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	ids := m.someTokens(testTokens)
	if m.plan, err = graph.Record(c, ids); err != nil {
		return nil, err
	}
	if err := m.plan.CheckTypes(typeF16, typeF16); err != nil {
		return nil, err
	}
	f := &llama.Facts{Arch: m.Meta("general.architecture"), Name: m.Meta("general.name"), Vocab: m.Vocab,
		Layers: m.Layers(), Hidden: m.Hidden(), Context: m.Context()}
	f.BOS, f.AddBOS = m.BOS()
	m.plan.Facts(f)
	m.facts = f
	if o.Ask {
		return nil, nil
	}
	return m.selfTests(c, ids)
}

// selfTests replaces keys by themselves, which must change no bit of the logits, and by their
// doubles, which must change them.
func (m *model) selfTests(c *libllama.Context, ids []int32) ([]llama.SelfTest, error) {
	logits := func() ([]float32, error) {
		c.Clear()
		if err := c.Decode(ids, 0); err != nil {
			return nil, err
		}
		var out []float32
		for i := range ids {
			z, err := c.Logits(i)
			if err != nil {
				return nil, err
			}
			out = append(out, z...)
		}
		return out, nil
	}
	base, err := logits()
	if err != nil {
		return nil, err
	}
	var tests []llama.SelfTest
	for _, x := range []struct {
		name, kind string
		same       bool
	}{{"keys written back unchanged leave the logits as they are, bit for bit", llama.KeysSame, true},
		{"keys written back doubled change the logits", llama.KeysDouble, false}} {
		t := llama.SelfTest{Name: x.name}
		stops, err := m.substitute(c, &llama.Keys{Kind: x.kind}, o1)
		if err == nil {
			c.SetStops(stops)
			var z []float32
			if z, err = logits(); err == nil {
				d := largest(base, z)
				t.OK, t.Detail = (d == 0) == x.same && d == d, fmt.Sprintf("largest difference of a logit %.3g", d)
			}
		}
		if err != nil {
			t.Detail = err.Error()
		}
		tests = append(tests, t)
	}
	return tests, nil
}

// o1 is one thread, for work that is too small to share.
const o1 = 1

// largest is the largest difference of two rows, NaN where one has a number and the other none.
func largest(a, b []float32) float64 {
	var m float64
	for i := range a {
		d := float64(a[i]) - float64(b[i])
		if d != d && (a[i] == a[i] || b[i] == b[i]) {
			return d
		}
		m = max(m, d, -d)
	}
	return m
}

func (s *server) tokenize(o llama.Tokenize, blobs [][]byte) (any, [][]byte, error) {
	m, err := s.model(o.Model)
	if err != nil {
		return nil, nil, err
	}
	if len(blobs) != 1 {
		return nil, nil, fmt.Errorf("a text is one blob, not %d", len(blobs))
	}
	ids, err := m.Tokenize(blobs[0], o.Special)
	if err != nil {
		return nil, nil, err
	}
	return nil, [][]byte{wire.Int32s(ids)}, nil
}
