package contract

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/phaseconv/phaseconv/format"
	"github.com/phaseconv/phaseconv/spec"
)

// Types of the statement: in-toto's attestation framework, version 1, with SLSA's provenance.
const (
	statementType = "https://in-toto.io/Statement/v1"
	provenance    = "https://slsa.dev/provenance/v1"
	buildType     = "https://github.com/phaseconv/phaseconv/blob/main/docs/releases.md#provenance"
	builder       = "https://github.com/phaseconv/phaseconv"
	// maxStatement bounds the statement in bytes.
	maxStatement = 16 << 20
)

type (
	resource struct {
		Name   string            `json:"name"`
		Digest map[string]string `json:"digest"`
	}
	statement struct {
		Type          string     `json:"_type"`
		Subject       []resource `json:"subject"`
		PredicateType string     `json:"predicateType"`
		Predicate     predicate  `json:"predicate"`
	}
	predicate struct {
		BuildDefinition definition `json:"buildDefinition"`
		RunDetails      details    `json:"runDetails"`
	}
	definition struct {
		BuildType            string         `json:"buildType"`
		ExternalParameters   map[string]any `json:"externalParameters"`
		ResolvedDependencies []resource     `json:"resolvedDependencies"`
	}
	details struct {
		Builder struct {
			ID      string            `json:"id"`
			Version map[string]string `json:"version"`
		} `json:"builder"`
	}
)

// Provenance makes the statement of an artifact that is in dir: its subjects are all of its files and
// the manifest, its dependencies the source and the calibration text. It has no time: the same
// conversion gives the same statement.
func Provenance(dir string, m *spec.Manifest) ([]byte, error) {
	raw, err := format.ReadFile(filepath.Join(dir, spec.ManifestName), MaxManifest)
	if err != nil {
		return nil, err
	}
	digest := func(sum string) map[string]string { return map[string]string{"sha256": sum} }
	s := statement{Type: statementType, PredicateType: provenance}
	for _, f := range m.Files {
		s.Subject = append(s.Subject, resource{f.Name, digest(f.SHA256)})
	}
	s.Subject = append(s.Subject, resource{spec.ManifestName, digest(sha(raw))})
	d := &s.Predicate.BuildDefinition
	d.BuildType = buildType
	d.ExternalParameters = map[string]any{"command": m.Command, "seed": m.Seed}
	d.ResolvedDependencies = []resource{
		{m.Source.Name, digest(m.Source.SHA256)}, {m.Calibration.Name, digest(m.Calibration.SHA256)},
	}
	b := &s.Predicate.RunDetails.Builder
	b.ID, b.Version = builder, map[string]string{"phaseconv": m.Tool}
	out, err := json.MarshalIndent(s, "", " ")
	return append(out, '\n'), err
}

// checkProvenance holds a statement, where there is one, against the manifest: both must tell the
// same. It proves no more than that; who made it is told by a signature.
func checkProvenance(dir string, m *spec.Manifest) (there bool, err error) {
	path := filepath.Join(dir, spec.ProvenanceName)
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	got, err := format.ReadFile(path, maxStatement)
	if err != nil {
		return true, err
	}
	want, err := Provenance(dir, m)
	if err != nil || bytes.Equal(got, want) {
		return true, err
	}
	var a, b statement
	if err := json.Unmarshal(got, &a); err != nil {
		return true, fmt.Errorf("%s: %w", path, err)
	}
	if err := json.Unmarshal(want, &b); err != nil {
		return true, err
	}
	return true, fmt.Errorf("%s: %s", path, difference(a, b))
}

// difference names the first thing that a statement says otherwise than the manifest.
func difference(got, want statement) string {
	resources := func(what string, got, want []resource) string {
		has := map[string]string{}
		for _, r := range got {
			has[r.Name] = r.Digest["sha256"]
		}
		var list []string
		for _, r := range want {
			if sum, ok := has[r.Name]; !ok {
				list = append(list, fmt.Sprintf("%s is missing", r.Name))
			} else if sum != r.Digest["sha256"] {
				list = append(list, fmt.Sprintf("%s has the digest %s, the manifest %s", r.Name, sum, r.Digest["sha256"]))
			}
			delete(has, r.Name)
		}
		for n := range has {
			list = append(list, fmt.Sprintf("%s is not in the manifest", n))
		}
		if len(list) == 0 {
			return ""
		}
		return what + ": " + strings.Join(list, "; ")
	}
	if s := resources("subject", got.Subject, want.Subject); s != "" {
		return s
	}
	if s := resources("resolvedDependencies", got.Predicate.BuildDefinition.ResolvedDependencies,
		want.Predicate.BuildDefinition.ResolvedDependencies); s != "" {
		return s
	}
	return "it tells another way of making than the manifest"
}

func sha(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}
