package engine

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"

	"github.com/phaseconv/phaseconv/spec"
)

// The names of engines.
const (
	Own   = "own"
	Llama = "llama"
)

// Identity is what the results of an engine depend on beside the model, the text and the options.
type Identity = spec.EngineIdentity

// Digest is the SHA-256 of an identity, in hex.
func Digest(id Identity) string {
	b, err := json.Marshal(id)
	if err != nil {
		panic(fmt.Sprintf("an identity of strings and numbers: %v", err)) // cannot be
	}
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

// Same returns an error that names the first difference of two identities.
func Same(id, other Identity) error {
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
