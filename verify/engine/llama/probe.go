package llama

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/phaseconv/phaseconv/verify/engine"
	"github.com/phaseconv/phaseconv/verify/engine/sample"
	"github.com/phaseconv/phaseconv/verify/progress"
)

// A Report is what `phaseconv engine probe --json` prints. Its keys are stable.
type Report struct {
	// Folder is the last element of the library's path.
	Folder  string   `json:"folder"`
	Library *Library `json:"library"`
	// Identity is what results depend on.
	Identity engine.Identity `json:"identity"`
	Models   []Probed        `json:"models"`
	// Facts and Folds are of a model that was named.
	Facts *Facts  `json:"facts,omitempty"`
	Folds []Folds `json:"folds,omitempty"`
	// Notes are sentences of what cannot be used, and why.
	Notes []string `json:"notes"`
	OK    bool     `json:"ok"`
}

// Probed is one model that was tried.
type Probed struct {
	Model string     `json:"model"`
	What  string     `json:"what"`
	Tests []SelfTest `json:"tests"`
	Error string     `json:"error,omitempty"`
	OK    bool       `json:"ok"`
}

// probeSamples are tried by Probe: one with plain keys, one with QK-norm and one hybrid.
var probeSamples = []string{"llama", "qwen3", "lfm2"}

// Probe starts the worker, loads the library and tries small models on the devices, or the model in a
// file, of which it tells what its graph says. tick, which may be nil, is told how much is done.
func Probe(ctx context.Context, s Start, p Place, file string, tick progress.Func) (*Report, error) {
	step := tick.Of("loading llama.cpp's libraries")
	step(0, 1)
	w, err := NewWorker(ctx, s)
	if err != nil {
		return nil, err
	}
	defer w.Close()
	step(1, 1)
	r := &Report{
		Folder: filepath.Base(w.Library.Dir), Library: &w.Library, Identity: w.Identity(p), Notes: w.Notes(), OK: true,
	}
	dir, err := os.MkdirTemp("", "phaseconv-probe")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // a temporary folder
	if file != "" {
		step = tick.Of("loading the model and trying it")
		step(0, 1)
		m, err := w.load(ctx, file, p)
		if err != nil {
			return nil, err
		}
		step(1, 1)
		ok := m.tested() == nil
		r.Models = append(r.Models, Probed{Model: filepath.Base(file), What: m.Facts.Arch, Tests: m.Tests, OK: ok})
		r.Facts, r.OK = m.Facts, ok
		for _, a := range m.Facts.Owners() {
			r.Folds = append(r.Folds, a.Folds())
		}
		return r, nil
	}
	step = tick.Of("trying small models")
	step(0, len(probeSamples))
	for i, name := range probeSamples {
		x := Probed{Model: name, What: sample.What(name)}
		path := filepath.Join(dir, name+".gguf")
		if err := sample.Write(path, name); err != nil {
			return nil, err
		}
		m, err := w.load(ctx, path, p)
		switch {
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case err != nil:
			x.Error = err.Error()
		default:
			x.Tests, x.OK = m.Tests, m.tested() == nil
			if err := m.Close(ctx); err != nil {
				return nil, err
			}
		}
		r.Models, r.OK = append(r.Models, x), r.OK && x.OK
		step(1+i, len(probeSamples))
	}
	return r, nil
}

// Notes are sentences on what is special about the library and its devices.
func (w *Worker) Notes() []string {
	var out []string
	l := &w.Library
	if !l.Tested {
		out = append(out, fmt.Sprintf("llama.cpp %s is none of the releases that the engine was tested with (%s); "+
			"its layouts were found, and every model is tested when it is loaded",
			ReleaseName(l.Release, l.GGML), strings.Join(TestedReleases, "; ")))
	}
	for _, d := range l.Devices {
		if d.remote() {
			out = append(out, fmt.Sprintf("%s: RPC servers have no authentication and no encryption: weights and "+
				"activations "+
				"go over the network as they are; use a trusted one", d.Name))
		} else if d.Kind == "gpu" || d.Kind == "igpu" {
			out = append(out, fmt.Sprintf("%s: the engine has not been tested on such a device by its authors; "+
				"self-tests run on it for every model", d.Name))
		}
	}
	return out
}
