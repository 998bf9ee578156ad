package report

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"

	"github.com/phaseconv/phaseconv/format/jsonx"
	"github.com/phaseconv/phaseconv/spec"
)

// Claims reads the ledger that the specification carries; nil when it carries none.
func Claims() ([]spec.Claim, error) {
	raw, err := fs.ReadFile(spec.Ledger, "claims.json")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return parseClaims(raw)
}

// parseClaims accepts a list, and an object with the list under "claims".
func parseClaims(raw []byte) ([]spec.Claim, error) {
	var file struct {
		Claims []spec.Claim `json:"claims"`
	}
	into := any(&file)
	if t := bytes.TrimLeft(raw, " \t\r\n"); len(t) > 0 && t[0] == '[' {
		into = &file.Claims
	}
	if err := jsonx.Unmarshal(raw, into); err != nil {
		return nil, fmt.Errorf("spec/claims.json: %w", err)
	}
	for i, c := range file.Claims {
		if c.Name == "" || c.Statement == "" || c.Status == "" {
			return nil, fmt.Errorf("spec/claims.json: claim %d lacks name, statement or status", i)
		}
	}
	return file.Claims, nil
}
