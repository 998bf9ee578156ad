package figures

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/contract"
	"github.com/phaseconv/phaseconv/verify/engine"
	"github.com/phaseconv/phaseconv/verify/kvcache"
	"github.com/phaseconv/phaseconv/verify/ppl"
	"github.com/phaseconv/phaseconv/verify/progress"
)

// ReportOptions of Detail.
type ReportOptions struct {
	// Text is held out; Calibration, which may be empty, is what the codes were fitted to.
	Text, Calibration ppl.Text
	CalibrationTokens int
	Ctx, Chunks       int
	// Full measures layers, codes and contexts one by one as well.
	Full     bool
	Seed     uint64
	Threads  int
	Progress progress.Func
	// Engines compute; nil is the own pass, which Full takes.
	Engines engine.Engines
}

// Detail measures what the report of an artifact shows beyond the manifest.
func Detail(ctx context.Context, a *contract.Artifact, o ReportOptions) (*spec.Detail, error) {
	if o.Text.SHA256() == a.Sidecar.Calibration.SHA256 {
		return nil, fmt.Errorf("%s is the text that the codes were fitted to; measure on another", o.Text.Name)
	}
	policy := kvcache.Policy{Sink: a.Sidecar.Sink, Recent: a.Sidecar.Recent}
	if err := policy.CheckContext(o.Ctx); err != nil {
		return nil, err
	}
	p := OfArtifact(a)
	p.Rows, p.Detail, p.Seed, p.Threads, p.Progress = a.Manifest.Layers, o.Full, o.Seed, o.Threads, o.Progress
	w, err := ppl.Tokenize(ctx, a.Model, o.Text, o.Ctx, o.Chunks)
	if err != nil {
		return nil, err
	}
	p.Windows, p.Text, p.Long = w.Tokens, o.Text.Info(w), ppl.Longer(ctx, a.Model, o.Text)
	if len(o.Calibration.Data) > 0 {
		cal, err := ppl.TokenizeSpread(ctx, a.Model, o.Calibration, o.Ctx, max(1, o.CalibrationTokens/o.Ctx))
		if err != nil {
			return nil, err
		}
		p.Calibration, p.CalibrationName = cal.Tokens, o.Calibration.Name
	}
	if err := p.Compute(ctx, a, o.Engines); err != nil {
		return nil, err
	}
	return Run(ctx, p)
}

// Compute has engines compute an artifact, unless they are the own pass.
func (o *Options) Compute(ctx context.Context, a *contract.Artifact, engines engine.Engines) (err error) {
	if engine.IsOwn(engines) {
		return nil
	}
	o.Coded = engine.Lane{Keys: &engine.Keys{Policy: o.Policy, Sidecar: filepath.Join(a.Dir, a.Entry.Sidecar)}}
	o.Engine, err = engines.Open(ctx, a.Model)
	return err
}

// OfArtifact returns options that look at an artifact with its own codes and policy.
func OfArtifact(a *contract.Artifact) Options {
	s := a.Sidecar
	codes, ok := s.HeadCodes()
	o := Options{Config: a.Model.Config, Weights: a.Model, Codes: codes, Kind: s.Kind,
		Policy: kvcache.Policy{Anchor: s.Anchor, Sink: s.Sink, Recent: s.Recent, Exceptions: s.Exceptions}}
	for _, y := range s.Layers {
		if !ok {
			o.Groups = append(o.Groups, y.Groups)
		}
	}
	return o
}
