package spec

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/json"
	"fmt"
)

//go:embed proofs/proved.json
var proved []byte

// Proofs is proved.json: what the prover said of spec/proofs. Its runner,
// spec/internal/prove, writes it; nobody else does.
type Proofs struct {
	Prover   string            `json:"prover"`   // name and release
	Checker  string            `json:"checker"`  // the second program that read the compiled proofs; "" if none did
	Digest   string            `json:"digest"`   // SHA-256 of all the rest, see Sum
	Sources  map[string]string `json:"sources"`  // file to SHA-256
	Theorems []Theorem         `json:"theorems"` // by name
}

// Proved returns proved.json as this build carries it. It refuses a file whose digest is
// not that of its content.
func Proved() (*Proofs, error) { return ParseProofs(proved) }

// ParseProofs reads a proved.json, and refuses one with a wrong digest.
func ParseProofs(b []byte) (*Proofs, error) {
	var p Proofs
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&p); err != nil {
		return nil, fmt.Errorf("spec/proofs/proved.json: %w", err)
	}
	if got := p.Sum(); got != p.Digest {
		return nil, fmt.Errorf("spec/proofs/proved.json: digest %q is not that of its content (%s); "+
			"only the runner writes it: go run ./spec/internal/prove -dir spec/proofs", p.Digest, got)
	}
	return &p, nil
}

// Sum returns the SHA-256 of p's encoding without Digest, in hex. It stops a slip of the
// hand; what stops intent is CI, which asks the prover again.
func (p *Proofs) Sum() string {
	q := *p
	q.Digest = ""
	return fmt.Sprintf("%x", sha256.Sum256(q.Encode()))
}

// Encode returns the bytes of the file.
func (p *Proofs) Encode() []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", " ")
	if err := e.Encode(p); err != nil {
		panic(err) // strings, and nothing else: cannot be
	}
	return b.Bytes()
}

// Find returns the theorem of that name, nil if there is none.
func (p *Proofs) Find(name string) *Theorem {
	for i := range p.Theorems {
		if p.Theorems[i].Name == name {
			return &p.Theorems[i]
		}
	}
	return nil
}
