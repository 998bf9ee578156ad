package report

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"path/filepath"

	"github.com/phaseconv/phaseconv/format/atomicfile"
	"github.com/phaseconv/phaseconv/format/jsonx"
	"github.com/phaseconv/phaseconv/spec"
)

// Update changes an artifact's report.json, which need not exist yet, and
// writes report.html beside it.
func Update(dir string, change func(r *spec.ReportJSON)) error {
	r := &spec.ReportJSON{}
	path := filepath.Join(dir, spec.ReportDataName)
	raw, err := readJSON(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	default:
		// A file of another version or a damaged one is made anew.
		if jsonx.Unmarshal(raw, r) != nil || r.Version != spec.ReportVersion {
			r = &spec.ReportJSON{}
		}
	}
	change(r)
	r.Version = spec.ReportVersion
	b, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	if err := atomicfile.WriteFile(path, append(b, '\n')); err != nil {
		return err
	}
	return Render([]string{dir}, filepath.Join(dir, spec.ReportName))
}

// Render writes one page about what args name; see Load.
func Render(args []string, path string) error {
	models, err := Load(args)
	if err != nil {
		return err
	}
	return WriteFile(path, models...)
}

// WriteFile writes one page about models.
func WriteFile(path string, models ...Model) error {
	claims, err := spec.ClaimsReport()
	if err != nil {
		return err
	}
	var page bytes.Buffer
	if err := Write(&page, models, claims); err != nil {
		return err
	}
	return atomicfile.WriteFile(path, page.Bytes())
}
