package convert

import (
	"context"

	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/contract"
	"github.com/phaseconv/phaseconv/verify/figures"
	"github.com/phaseconv/phaseconv/verify/ppl"
)

// detail is Detail at the end of a conversion, which still has all codes that it
// fitted and the windows of both texts.
func detail(ctx context.Context, a *contract.Artifact, o Options, v *spec.VerifyJSON, fitted [][]map[string]*codec.Code, w, held *ppl.Windows) (*spec.Detail, error) {
	p := figures.OfArtifact(a)
	p.Rows, p.Fitted, p.Detail, p.Seed, p.Threads, p.Progress = v.Layers, fitted, o.ReportDetail, o.Seed, o.Threads, o.Progress
	p.Windows, p.Text, p.Long = held.Tokens, *ppl.TextInfo(o.Evaluation, held), ppl.Longer(a.Model, o.Evaluation)
	p.Calibration, p.CalibrationName = w.Tokens, o.Calibration.Name
	return figures.Run(ctx, p)
}
