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
