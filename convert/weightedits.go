package convert

import (
	"context"
	"fmt"
	"slices"

	"github.com/phaseconv/phaseconv/convert/edits"
	"github.com/phaseconv/phaseconv/convert/plan"
	"github.com/phaseconv/phaseconv/rotations/transform"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/engine"
)

// engine is what computes the source, nil for the own pass.
func (j *job) engine(ctx context.Context) (engine.Engine, error) {
	if j.o.own() {
		return nil, nil
	}
	return j.o.Engines.Open(ctx, j.source)
}

// searchEdits measures which edits of the weights help the cache types that were asked for,
// and makes them. Without cache types it returns what was proposed, and no report.
func (j *job) searchEdits(ctx context.Context) (*plan.Changes, *spec.Fusion, error) {
	o := &j.o
	if o.Cache == nil || o.WeightEdits == plan.EditsNone {
		return j.proposed, nil, nil
	}
	planned := o.planned()
	e, err := j.engine(ctx)
	if err != nil {
		return nil, nil, err
	}
	found, err := edits.Search(ctx, j.source, edits.Options{
		Cache: *o.Cache, Ctx: o.TargetCtx, Text: o.Calibration, Tokens: o.CacheTokens,
		Approximate: o.WeightEdits == plan.EditsApproximate, NoKeyBias: planned.NoKeyBias(j.source),
		Seed: o.Seed, Threads: o.Threads, Progress: o.Progress, Engine: e,
	})
	if err != nil {
		return nil, nil, err
	}
	ch := plan.NoChanges(j.source)
	if found.Changed() {
		for l, heads := range found.Edits {
			if len(heads) == 0 {
				continue // it reads the keys and values of another
			}
			if err := transform.FoldKeys(ch.View, l, heads); err != nil {
				return nil, nil, err
			}
		}
	}
	count := map[string]int{}
	for name, e := range ch.View.Edits {
		ch.Targets[name] = e.By
		for _, id := range e.By {
			count[id]++
		}
	}
	for _, id := range j.proposed.Identities {
		if slices.Contains([]string{transform.IDValueTransform, transform.IDPairScale, transform.IDBiasShift,
			transform.IDKeyTransform, transform.IDStillTransform, transform.IDStillShift}, id.ID) {
			was := id.Applied
			id.Tensors = count[id.ID]
			if id.Applied = id.Tensors > 0; id.Applied || was {
				id.Why = fmt.Sprintf("measured with %s keys and %s values: chosen is %q", found.Report.KType, found.Report.VType,
					found.Report.Chosen)
			}
		}
		if id.ID == transform.IDPairAngle && turned(found) {
			id.Applied, id.Tensors, id.Why = true, count[transform.IDPairScale], "with the scales of G3, tuned to the cache type"
		}
		ch.Identities = append(ch.Identities, id)
	}
	return ch, found.Report, nil
}

// turned says whether an edit turns pairs by angles.
func turned(r *edits.Result) bool {
	return r.Changed() && slices.ContainsFunc(r.Edits, func(heads []transform.KeyEdit) bool {
		return slices.ContainsFunc(heads, func(e transform.KeyEdit) bool { return e.Pairs != nil && e.Pairs.Angle != nil })
	})
}
