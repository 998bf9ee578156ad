package engine

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
)

// An Identity is what the results of an engine depend on beside the model, the text and the options.
// Results of two identities may differ in their last bits, and must not be mixed.
type Identity struct {
	Engine string `json:"engine"` // own or llama
	// The rest is empty for the own pass, whose results depend on nothing else.
	Release   string   `json:"release,omitempty"`
	GGML      string   `json:"ggml,omitempty"`
	Commit    string   `json:"commit,omitempty"`
	Libraries string   `json:"libraries_sha256,omitempty"`
	Platform  string   `json:"platform,omitempty"`
	System    string   `json:"system,omitempty"` // instruction sets and options of the library
	Devices   []string `json:"devices,omitempty"`
	GPULayers int      `json:"gpu_layers,omitempty"`
	Batch     int      `json:"ubatch,omitempty"`
}

// OwnIdentity is that of the own pass.
func OwnIdentity() Identity { return Identity{Engine: Own} }

// Identity describes the worker's library with the devices of a place.
func (w *Worker) Identity(p Place) Identity {
	l := &w.Library
	id := Identity{Engine: Llama, Release: l.Release, GGML: l.GGML, Commit: l.Commit, Libraries: l.SHA256,
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

// Digest is the SHA-256 of an identity, in hex.
func (id Identity) Digest() string {
	b, err := json.Marshal(id)
	if err != nil {
		panic(fmt.Sprintf("an identity of strings and numbers: %v", err)) // cannot be
	}
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

// Same returns an error that names the first difference of two identities.
func (id Identity) Same(other Identity) error {
	for _, x := range []struct{ what, a, b string }{
		{"engine", id.Engine, other.Engine}, {"release of llama.cpp", id.Release, other.Release},
		{"ggml", id.GGML, other.GGML}, {"commit", id.Commit, other.Commit},
		{"libraries' SHA-256", id.Libraries, other.Libraries}, {"platform", id.Platform, other.Platform},
		{"instruction sets", id.System, other.System},
		{"devices", fmt.Sprint(id.Devices), fmt.Sprint(other.Devices)},
		{"layers on devices", fmt.Sprint(id.GPULayers), fmt.Sprint(other.GPULayers)},
		{"ubatch", fmt.Sprint(id.Batch), fmt.Sprint(other.Batch)},
	} {
		if x.a != x.b {
			return fmt.Errorf("the %s differs: %q and %q; results of two engines are not mixed", x.what, x.a, x.b)
		}
	}
	return nil
}
