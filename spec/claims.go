package spec

import (
	_ "embed"
	"encoding/json"
)

//go:embed claims.json
var claims []byte

// Claims returns the ledger of claims that the format relies on. Evidence lists
// files, and tests as "file: Test", separated by "; "; it is empty for open claims
// without any.
func Claims() ([]Claim, error) {
	var out []Claim
	err := json.Unmarshal(claims, &out)
	return out, err
}
