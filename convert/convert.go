// Package convert turns a checkpoint into an artifact: a model whose KV cache survives few
// bits, with the codes of its keys beside it and a manifest that says what was done and what
// it measures. Its subpackages are the steps: calibrate, bits, edits, plan, write.
package convert

import (
	"context"

	"github.com/phaseconv/phaseconv/convert/bits"
	"github.com/phaseconv/phaseconv/convert/calibrate"
	"github.com/phaseconv/phaseconv/convert/plan"
	"github.com/phaseconv/phaseconv/convert/write"
	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/rotations/transform"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/ppl"
)

// Result is what a conversion made.
type Result struct {
	Plans    []*plan.Plan // one per container
	Manifest *spec.Manifest
	Verify   *spec.VerifyJSON // what the artifact measures on held-out text
}

// Convert makes the artifact in o.Out and measures it. Nothing appears under o.Out before it is
// complete and measured. An *OptionError comes back before any work; a context that ends stops
// it within a second or two of processor time.
func Convert(ctx context.Context, o Options) (res *Result, err error) {
	j, err := open(ctx, o)
	if err != nil {
		return nil, err
	}
	defer j.source.Close()
	if err := j.scan(ctx); err != nil {
		return nil, err
	}
	folder, err := write.NewFolder(j.o.Out, j.o.Notice)
	if err != nil {
		return nil, err
	}
	defer folder.Abort()
	defer func() { err = folder.Explain(err) }()

	// Which edits of the weights help the stock cache types, and the weight type, that were asked for?
	changes, searched, err := j.search(ctx)
	if err != nil {
		return nil, err
	}
	if err := j.chooseJoint(ctx, changes); err != nil {
		return nil, err
	}
	// What becomes of every tensor?
	plans, err := j.plans(changes)
	if err != nil {
		return nil, err
	}
	// Codes of the keys of every head, and the K/Q pair scaling.
	fitted, err := j.calibrate(ctx, changes, nil)
	if err != nil {
		return nil, err
	}
	if err := foldPairScales(changes, fitted); err != nil {
		return nil, err
	}
	// Models, sidecars and the edits themselves.
	written, err := j.write(ctx, folder.Path, plans, changes, fitted)
	if err != nil {
		return nil, err
	}
	man := j.manifest(plans[0].Identities, searched, fitted, written)
	if err := write.Manifest(folder.Path, man); err != nil {
		return nil, err
	}
	// What it measures, from the files as they were written.
	measured, err := j.measure(ctx, folder.Path, man, fitted)
	if err != nil {
		return nil, err
	}
	measured.record(man)
	if err := write.Manifest(folder.Path, man); err != nil {
		return nil, err
	}
	if err := j.report(folder.Path, measured); err != nil {
		return nil, err
	}
	if err := folder.Commit(); err != nil {
		return nil, err
	}
	j.removeWork()
	return &Result{Plans: plans, Manifest: man, Verify: measured.verify}, nil
}

// A job is a conversion under way: its options, its source and the windows of its texts.
type job struct {
	o                       Options
	source                  *checkpoint.Checkpoint
	proposed                *plan.Changes // before anything is measured
	calibration, evaluation *ppl.Windows
	ranges                  map[string]float32 // largest magnitudes in the source, by tensor
	edits                   checkpoint.Edits   // that were chosen for a weight type
}

// scan reads all weights before anything is computed with them: a number that is not finite
// may stand where no text of ours leads, and would be found when all is fitted.
func (j *job) scan(ctx context.Context) (err error) {
	j.ranges, err = j.source.Ranges(ctx, j.o.Threads, j.o.Progress.Of("reading weights"))
	return err
}

// open opens the source, refuses what cannot work, and cuts the texts: one that is too short is
// found before hours are spent, not after.
func open(ctx context.Context, o Options) (*job, error) {
	if err := newOnly(o.Out); err != nil {
		return nil, err
	}
	c, err := o.openSource(ctx)
	if err != nil {
		return nil, err
	}
	j, err := newJob(ctx, c, o)
	if err != nil {
		c.Close()
		return nil, err
	}
	return j, nil
}

// newJob does what open does on a source that is open.
func newJob(ctx context.Context, c *checkpoint.Checkpoint, o Options) (*job, error) {
	j, err := settledJob(c, o)
	if err != nil {
		return nil, err
	}
	j.proposed = plan.Propose(c, j.o.planned())
	if _, err := j.plans(j.proposed); err != nil {
		return nil, err
	}
	if j.calibration, err = ppl.TokenizeSpread(ctx, c, o.Calibration, o.Ctx, o.CalibrationTokens/o.Ctx); err != nil {
		return nil, err
	}
	if err := j.enough(); err != nil {
		return nil, err
	}
	if j.evaluation, err = ppl.Tokenize(ctx, c, o.Evaluation, o.Ctx, o.Chunks); err == nil {
		j.o.notice(j.o.settled)
	}
	return j, err
}

// settledJob begins a job whose options fit its source.
func settledJob(c *checkpoint.Checkpoint, o Options) (*job, error) {
	j := &job{o: o, source: c}
	if err := j.o.settle(c); err != nil {
		return nil, err
	}
	if !o.BreakDrafter {
		c.Config.KeepDrafted()
	}
	return j, j.checkSource()
}

// enough refuses calibration texts that are too short for what is to be fitted.
func (j *job) enough() error {
	o, c, windows := &j.o, j.source.Config, j.calibration.Tokens
	if o.Joint == nil {
		return calibrate.Enough(c, windows, o.Policy, o.Bits)
	}
	g, err := bits.JointGroups(c, o.Joint.GroupOptions)
	if err != nil {
		return err
	}
	numbers, signs := g.Largest(c)
	err = calibrate.EnoughFor(numbers, signs, windows, o.Policy)
	if err == nil || !o.Joint.OrKeys {
		return err
	}
	o.codeKeys(plain(err))
	return calibrate.Enough(c, windows, o.Policy, o.Bits)
}

// Plans opens the source and plans every container, without calibrating.
func Plans(ctx context.Context, o Options) ([]*plan.Plan, error) {
	c, err := o.openSource(ctx)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	j, err := settledJob(c, o)
	if err != nil {
		return nil, err
	}
	j.o.notice(j.o.settled)
	return j.plans(plan.Propose(c, j.o.planned()))
}

// plans makes the plan of every container.
func (j *job) plans(ch *plan.Changes) ([]*plan.Plan, error) {
	keys, err := plan.NewKeys(j.source.Config, j.o.keys())
	if err != nil {
		return nil, err
	}
	var out []*plan.Plan
	for _, f := range j.o.Formats {
		p, err := plan.Make(j.source, f, j.o.OutType, ch)
		if err != nil {
			return nil, err
		}
		p.Keys = keys
		out = append(out, p)
	}
	return out, nil
}

// foldPairScales adds the pair scaling that a calibration fitted to the changes.
func foldPairScales(ch *plan.Changes, fitted *calibrate.Result) error {
	for l, layer := range fitted.Layers {
		if layer.PairScale == nil {
			continue
		}
		if err := transform.FoldPairScale(ch.View, l, layer.PairScale); err != nil {
			return err
		}
	}
	return nil
}
