package llama

import (
	"slices"
	"strings"

	"github.com/phaseconv/phaseconv/verify/engine"
)

// Identity describes the worker's library with the devices of a place.
func (w *Worker) Identity(p Place) engine.Identity {
	l := &w.Library
	id := engine.Identity{Engine: engine.Llama, Release: l.Release, GGML: l.GGML, Commit: l.Commit, Libraries: l.SHA256,
		Platform: l.Platform, System: l.System, GPULayers: p.GPULayers, Batch: batch}
	for _, d := range l.Devices {
		if len(p.Devices) == 0 || slices.Contains(p.Devices, d.Name) {
			what := d.Description
			if d.remote() {
				what = "an RPC server" // where it is says something about the network only
			}
			id.Devices = append(id.Devices, d.Name+": "+what)
		}
	}
	return id
}

// remote says whether a device is one of an RPC server.
func (d *Device) remote() bool { return strings.HasPrefix(d.Name, "RPC") }

// batch is how many tokens the worker computes at a time where a whole window is not needed.
const batch = 512
