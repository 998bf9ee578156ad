package convert

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/phaseconv/phaseconv/format/atomicfile"
	"github.com/phaseconv/phaseconv/rotations"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify"
	"github.com/phaseconv/phaseconv/verify/contract"
	"github.com/phaseconv/phaseconv/verify/kvcache"
	"github.com/phaseconv/phaseconv/verify/ppl"
	"github.com/phaseconv/phaseconv/verify/probe"
	"github.com/phaseconv/phaseconv/verify/report"
)

// ReportOptions of Detail.
type ReportOptions struct {
	// Text is held out; Calibration, which may be empty, is what the codes were fitted to.
	Text, Calibration verify.Text
	CalibrationTokens int
	Ctx, Chunks       int
	// Full measures layers, codes and contexts one by one as well.
	Full     bool
	Seed     uint64
	Threads  int
	Progress verify.Progress
}

// Detail measures what the report of an artifact shows beyond the manifest.
func Detail(ctx context.Context, a *contract.Artifact, o ReportOptions) (*spec.Detail, error) {
	if o.Text.SHA256() == a.Sidecar.Calibration.SHA256 {
		return nil, usage("%s is the text that the codes were fitted to; measure on another", o.Text.Name)
	}
	p := artifactProbe(a)
	p.Rows, p.Detail, p.Seed, p.Threads, p.Progress = a.Manifest.Layers, o.Full, o.Seed, o.Threads, o.Progress
	w, err := verify.Tokens(a.Model, o.Text, o.Ctx, o.Chunks)
	if err != nil {
		return nil, err
	}
	p.Windows, p.Text, p.Long = w.Tokens, *verify.TextInfo(o.Text, w), verify.Longer(a.Model, o.Text)
	if len(o.Calibration.Data) > 0 {
		cal, err := verify.Tokens(a.Model, o.Calibration, o.Ctx, max(1, o.CalibrationTokens/o.Ctx))
		if err != nil {
			return nil, err
		}
		p.Calibration, p.CalibrationName = cal.Tokens, o.Calibration.Name
	}
	return probe.Run(ctx, p)
}

// artifactProbe looks at an artifact with its own codes and policy.
func artifactProbe(a *contract.Artifact) probe.Options {
	s := a.Sidecar
	return probe.Options{Config: a.Model.Config, Weights: a.Model, Codes: s.Codes, Kind: s.Kind,
		Policy: kvcache.Policy{Anchor: s.Anchor, Sink: s.Sink, Recent: s.Recent, Exceptions: s.Exceptions}}
}

// detail is Detail at the end of a conversion, which still has all codes that it
// fitted and the windows of both texts.
func detail(ctx context.Context, a *contract.Artifact, o Options, v *spec.VerifyJSON, fitted [][]map[string]*rotations.Code, w, held *ppl.Windows) (*spec.Detail, error) {
	p := artifactProbe(a)
	p.Rows, p.Fitted, p.Detail, p.Seed, p.Threads, p.Progress = v.Layers, fitted, o.ReportDetail, o.Seed, o.Threads, o.Progress
	p.Windows, p.Text, p.Long = held.Tokens, *verify.TextInfo(o.Evaluation, held), verify.Longer(a.Model, o.Evaluation)
	p.Calibration, p.CalibrationName = w.Tokens, o.Calibration.Name
	return probe.Run(ctx, p)
}

// UpdateReport changes an artifact's report.json, which need not exist yet, and
// writes report.html beside it.
func UpdateReport(dir string, change func(r *spec.ReportJSON)) error {
	r := &spec.ReportJSON{}
	path := filepath.Join(dir, spec.ReportDataName)
	raw, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	default:
		// A file of another version or a damaged one is made anew.
		if json.Unmarshal(raw, r) != nil || r.Version != spec.ReportVersion {
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
	return RenderReport([]string{dir}, filepath.Join(dir, spec.ReportName))
}

// RenderReport writes one page about what args name; see report.Load.
func RenderReport(args []string, path string) error {
	models, err := report.Load(args)
	if err != nil {
		return err
	}
	return WriteReport(path, models...)
}

// WriteReport writes one page about models.
func WriteReport(path string, models ...report.Model) error {
	claims, err := report.Claims()
	if err != nil {
		return err
	}
	var page bytes.Buffer
	if err := report.Write(&page, models, claims); err != nil {
		return err
	}
	return atomicfile.WriteFile(path, page.Bytes())
}
