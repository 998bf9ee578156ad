package llama

import (
	"slices"

	"github.com/phaseconv/phaseconv/verify/engine"
)

// Identity describes the worker's library with the devices of a place.
func (w *Worker) Identity(p Place) engine.Identity {
	l := &w.Library
	id := engine.Identity{Engine: engine.Llama, Release: l.Release, GGML: l.GGML, Commit: l.Commit, Libraries: l.SHA256,
		Platform: l.Platform, System: l.System, GPULayers: p.GPULayers, Batch: batch}
	for _, d := range l.Devices {
		if len(p.Devices) == 0 || slices.Contains(p.Devices, d.Name) {
			id.Devices = append(id.Devices, d.Name+": "+d.Description)
		}
	}
	return id
}

// batch is how many tokens the worker computes at a time where a whole window is not needed.
const batch = 512
