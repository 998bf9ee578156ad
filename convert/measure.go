package convert

import (
	"context"
	"fmt"
	"strings"

	"github.com/phaseconv/phaseconv/convert/calibrate"
	"github.com/phaseconv/phaseconv/convert/plan"
	"github.com/phaseconv/phaseconv/convert/write"
	"github.com/phaseconv/phaseconv/kernels/rope"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify"
	"github.com/phaseconv/phaseconv/verify/audit"
	"github.com/phaseconv/phaseconv/verify/contract"
	"github.com/phaseconv/phaseconv/verify/figures"
	"github.com/phaseconv/phaseconv/verify/kvcache"
	"github.com/phaseconv/phaseconv/verify/ppl"
	"github.com/phaseconv/phaseconv/verify/report"
)

// measured is what an artifact measures, from its files as they were written.
type measured struct {
	verify *spec.VerifyJSON
	caches *spec.AdviseJSON // stock cache types, nil where none were asked for
	detail *spec.Detail     // for the report, nil without one
	ffn    []spec.FFNRow    // likewise, nil where it would take long

	weights []spec.FFNTry // source and artifact in the weight type, nil where none was asked for
}

// record puts the measurements into the manifest.
func (m *measured) record(man *spec.Manifest) {
	v := *m.verify
	v.Layers = nil // they stand in the manifest itself
	v.CodeName, v.Pairs = "", false
	man.Layers, man.Measured = m.verify.Layers, &v
	if man.FFN != nil {
		man.FFN.Measured = m.weights
	}
	if m.caches != nil && man.Fusion != nil {
		man.Fusion.Measured, man.Fusion.RoundedInputs = m.caches.Rows, m.caches.RoundedInputs
	}
}

// measure verifies the artifact in dir.
func (j *job) measure(ctx context.Context, dir string, man *spec.Manifest, fitted *calibrate.Result) (*measured,
	error) {
	o := &j.o
	checks := &contract.Checker{Fresh: true, Progress: o.Progress}
	a, err := contract.Open(ctx, dir, string(o.Formats[0]), checks)
	if err != nil {
		return nil, err
	}
	if a == nil {
		return nil, fmt.Errorf("%s: the artifact does not pass its own contract: %w", o.Out, checks.Failed())
	}
	defer a.Close()
	var codes [][]map[codec.Kind]*codec.Code // beside those of heads; joint codes have none
	var head func(layer, head int) audit.Head
	if o.Joint == nil {
		if codes, err = codesIn(ctx, fitted, j.source.Config.Pairs, a.Sidecar.Pairs); err != nil {
			return nil, err
		}
		head = fittedHead(fitted, o.Code, o.Policy.Anchor)
	}
	out := &measured{}
	out.verify, err = verify.Artifact(ctx, a, checks, verify.Options{
		Text: o.Evaluation, Ctx: o.Ctx, Chunks: o.Chunks, Sink: -1, Recent: -1, Seed: o.Seed, Threads: o.Threads,
		Source: j.source, Progress: o.Progress, Engines: o.Engines, Fitted: codes,
		Head: head,
	})
	if err != nil {
		return nil, err
	}
	if o.Report {
		p := figures.OfArtifact(a)
		p.Rows, p.Fitted, p.Detail, p.Seed, p.Threads, p.Progress = out.verify.Layers, codes, o.ReportDetail, o.Seed,
			o.Threads, o.Progress
		p.Windows, p.Text, p.Long = j.evaluation.Tokens, o.Evaluation.Info(j.evaluation),
			ppl.Longer(ctx, a.Model, o.Evaluation)
		p.Calibration, p.CalibrationName = j.calibration.Tokens, o.Calibration.Name
		if err := p.Compute(ctx, a, o.Engines); err != nil {
			return nil, err
		}
		if out.detail, err = figures.Run(ctx, p); err != nil {
			return nil, err
		}
		if out.ffn, err = j.auditFFN(ctx, a); err != nil {
			return nil, err
		}
	}
	if o.FFN != plan.FFNNone {
		if out.weights, err = j.compareWeights(ctx, dir, man.Artifacts[0]); err != nil {
			return nil, err
		}
	}
	switch {
	case o.Cache != nil:
		f16 := kvcache.F16
		f16.Rotation = o.Cache.Rotation
		out.caches, err = j.compareCaches(ctx, dir, man.Artifacts[0], []int{o.Ctx, o.TargetCtx}, *o.Cache, f16)
	case o.Joint != nil && o.Report:
		out.caches, err = j.comparePairs(ctx, dir, man.Artifacts[0])
	}
	return out, err
}

// besideJoint are the stock types that a report puts beside joint codes, each for keys and values.
var besideJoint = []string{"q8_0", "q4_0"}

// comparePairs measures stock pairs for the report, where the runtime has them for this model.
func (j *job) comparePairs(ctx context.Context, dir string, e spec.Artifact) (*spec.AdviseJSON, error) {
	var pairs []kvcache.CacheTypes
	for _, name := range besideJoint {
		t, err := kvcache.ParseStockType(name)
		if err != nil {
			return nil, err
		}
		pair := kvcache.CacheTypes{K: t, V: t, Rotation: true}
		if _, err := kvcache.NewLlamaCpp(j.source.Config, pair); err != nil {
			j.o.notice(fmt.Sprintf("the report has no stock cache types beside the code: %v", err))
			return nil, nil
		}
		pairs = append(pairs, pair)
	}
	return j.compareCaches(ctx, dir, e, []int{j.o.Ctx}, pairs...)
}

// maxFFNShare is how much of the conversion's work the FFN section of the report may take.
const maxFFNShare = 0.1

// auditFFN measures the FFN weights for the report where that is quick, and says how to get it
// where it is not.
func (j *job) auditFFN(ctx context.Context, a *contract.Artifact) ([]spec.FFNRow, error) {
	if a.Model.Graph != nil {
		j.o.notice("the report has no section on FFN weights: the table of families lacks this architecture")
		return nil, nil
	}
	o := audit.FFNOptions{Seed: j.o.Seed, Threads: j.o.Threads, Progress: j.o.Progress.Of("auditing FFN matrices")}
	if audit.FFNWork(a.Model.Config, a.Model, o) > maxFFNShare*j.multiplications() {
		j.o.notice(fmt.Sprintf("the report has no section on FFN weights, which would take long; this adds it: phaseconv report %s --ffn", j.o.Out))
		return nil, nil
	}
	return audit.FFN(ctx, a.Model.Config, a.Model, o)
}

// multiplications returns about how many multiplications the forward passes of a conversion take:
// the texts' tokens times the weights that a token meets. Calibration text passes once, and once
// more to allocate bits; held-out text as the source, as the artifact with float and with coded
// keys, and for the figures.
func (j *job) multiplications() float64 {
	c := j.source
	var weights float64
	for _, t := range c.Tensors() {
		n := float64(t.Elements())
		if strings.Contains(t.Name, "_exps") {
			ffn := c.Config.Layers[t.Layer].FFN
			n *= float64(ffn.Used) / float64(ffn.Experts)
		}
		weights += n
	}
	tokens := func(w *ppl.Windows) float64 { return float64(len(w.Tokens) * w.Ctx) }
	return weights * (2*tokens(j.calibration) + 5*tokens(j.evaluation))
}

// codesIn returns all codes that were fitted, [layer][head][kind], with their dimensions moved
// to another pair layout.
func codesIn(ctx context.Context, fitted *calibrate.Result, from, to rope.Layout) ([][]map[codec.Kind]*codec.Code,
	error) {
	var out [][]map[codec.Kind]*codec.Code
	for _, layer := range fitted.Layers {
		var row []map[codec.Kind]*codec.Code
		for _, h := range layer.Heads {
			x := map[codec.Kind]*codec.Code{}
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			for kind, code := range h.Codes {
				moved, err := code.To(from, to)
				if err != nil {
					return nil, err
				}
				x[kind] = moved
			}
			row = append(row, x)
		}
		out = append(out, row)
	}
	return out, nil
}

// compareCaches measures pairs of cache types with the model e in dir beside the source, at these
// contexts.
func (j *job) compareCaches(ctx context.Context, dir string, e spec.Artifact, contexts []int,
	pairs ...kvcache.CacheTypes) (*spec.AdviseJSON, error) {
	o := &j.o
	model, err := write.Open(dir, e, j.source.Graph)
	if err != nil {
		return nil, err
	}
	defer model.Close()
	how := verify.AdviseOptions{
		Texts: []ppl.Text{o.Evaluation}, Ctx: contexts, Chunks: o.Chunks, Pairs: pairs,
		Rotation: pairs[0].Rotation, Threads: o.Threads, Progress: o.Progress,
	}
	if o.own() {
		return verify.Advise(ctx, j.source, model, how)
	}
	source, err := j.engine(ctx)
	if err != nil {
		return nil, err
	}
	made, err := o.Engines.Open(ctx, model)
	if err != nil {
		return nil, err
	}
	return verify.AdviseWith(ctx, source, made, how)
}

// report writes report.html and its data beside the model in dir.
func (j *job) report(dir string, m *measured) error {
	if !j.o.Report {
		return nil
	}
	return report.Update(dir, func(r *spec.ReportJSON) {
		if r.Detail, r.FFN = m.detail, m.ffn; m.caches != nil {
			r.Advise, r.RoundedInputs = m.caches.Rows, m.caches.RoundedInputs
		}
	})
}
