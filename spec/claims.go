package spec

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
)

//go:embed claims.json
var claims []byte

// A Claim is one statement that the format or the tool relies on.
type Claim struct {
	Name      string `json:"name"`
	Statement string `json:"statement"`
	// Status is proved if a prover's kernel has accepted the theorems named; argued if prose
	// shows it; tested, refuted or open otherwise. See Claims.
	Status string `json:"status"`
	// Theorems of spec/proofs that together say what the statement says, or, where it is
	// refuted, the opposite.
	Theorems []string `json:"theorems,omitempty"`
	// Outside says what the theorems leave to tests: "" where nothing is worth a word beyond
	// float rounding and the code itself, which no theorem here covers.
	Outside string `json:"outside,omitempty"`
	// Needs lists what the theorems suppose of data, and the code that checks it.
	Needs    []Need `json:"needs,omitempty"`
	Evidence string `json:"evidence"` // files, and tests as "file: Test", separated by "; "
}

// A Need is a hypothesis of a theorem that data must meet.
type Need struct {
	What string `json:"what"`
	Code string `json:"code"` // "file: Func" of what checks it, or sees to it
	Test string `json:"test"` // "file: Test" that breaks it
}

// A Theorem is a statement that the kernel of the prover has accepted.
type Theorem struct {
	Name      string   `json:"name"`      // file.theorem, in spec/proofs
	Statement string   `json:"statement"` // as the source has it
	Type      string   `json:"type"`      // as the kernel has it, with every hypothesis
	Axioms    []string `json:"axioms"`    // what it rests on beyond the bare logic
}

// Claims returns the ledger of claims that the format relies on. The word proved is never
// the ledger's own: a claim has that status if it names theorems, has no status of its
// own, and proved.json has all of them.
func Claims() ([]Claim, error) {
	p, err := Proved()
	if err != nil {
		return nil, err
	}
	return parseClaims(claims, p)
}

func parseClaims(raw []byte, p *Proofs) ([]Claim, error) {
	var out []Claim
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(&out); err != nil {
		return nil, fmt.Errorf("spec/claims.json: %w", err)
	}
	for i := range out {
		c := &out[i]
		if c.Name == "" || c.Statement == "" {
			return nil, fmt.Errorf("spec/claims.json: claim %d lacks name or statement", i)
		}
		var err error
		if c.Status, err = status(c.Status, c.Theorems, p); err != nil {
			return nil, fmt.Errorf("spec/claims.json: %s: %w", c.Name, err)
		}
	}
	return out, nil
}

// status returns what a claim is, given the status that its entry has and the theorems
// that it names.
func status(own string, theorems []string, p *Proofs) (string, error) {
	for _, n := range theorems {
		if p.Find(n) == nil {
			return "", fmt.Errorf("no theorem %s in spec/proofs/proved.json", n)
		}
	}
	switch {
	case own == "" && len(theorems) > 0:
		return "proved", nil
	case own == "refuted", len(theorems) == 0 && (own == "argued" || own == "tested" || own == "open"):
		return own, nil
	}
	return "", fmt.Errorf("status %q with %d theorems; proved claims name theorems and have no status of their own, "+
		"others are argued, tested, refuted or open", own, len(theorems))
}

// ClaimsJSON is what "phaseconv claims --json" prints.
type ClaimsJSON struct {
	Prover   string    `json:"prover"`  // that accepted the theorems, with its release
	Checker  string    `json:"checker"` // that read the compiled proofs once more
	Digest   string    `json:"digest"`  // of proved.json
	Claims   []Claim   `json:"claims"`
	Theorems []Theorem `json:"theorems"` // all of spec/proofs, claimed or not
}

// ClaimsReport returns the ledger with the theorems behind it.
func ClaimsReport() (*ClaimsJSON, error) {
	p, err := Proved()
	if err != nil {
		return nil, err
	}
	c, err := parseClaims(claims, p)
	if err != nil {
		return nil, err
	}
	return &ClaimsJSON{p.Prover, p.Checker, p.Digest, c, p.Theorems}, nil
}
