package convert

import (
	"context"
	"fmt"

	"github.com/phaseconv/phaseconv/convert/bits"
	"github.com/phaseconv/phaseconv/convert/plan"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// chooseJoint decides about the anchor and the span of joint codes where that is asked for: first
// the anchor with the widest groups, then the span with that anchor. The options then say what was
// chosen. Every unit of a conversion finds the same.
func (j *job) chooseJoint(ctx context.Context, ch *plan.Changes) error {
	if j.o.Joint == nil || !j.o.Joint.ChooseAnchor && !j.o.Joint.ChooseSpan {
		return nil
	}
	o, c := &j.o, j.source.Config
	joint := *o.Joint // the caller's own
	o.Joint = &joint
	m := refmodel.New(c, ch.View, o.Threads)
	choose := func(what string, all []bits.Candidate) (bits.Candidate, error) {
		if len(all) == 1 {
			return all[0], nil
		}
		tried, best, err := bits.Choose(ctx, m, j.calibration.Tokens, all, bits.Options{Policy: o.Policy,
			Balance: ch.PairScale, Seed: o.Seed, Threads: o.Threads, Progress: o.Progress.Of("choosing the " + what)})
		if err != nil {
			return bits.Candidate{}, err
		}
		for _, t := range tried {
			o.notice(fmt.Sprintf("joint codes, span %d, anchor %d: KLD of drafts %.4f ± %.4f, decode cost %.2f of the first's, "+
				"worth %.4f", t.Span, t.Anchor, t.KLD, t.KLDErr, t.Cost/tried[0].Cost, t.Worth()/tried[0].Worth()))
		}
		o.notice(fmt.Sprintf("chosen: span %d, anchor %d", tried[best].Span, tried[best].Anchor))
		return tried[best].Candidate, nil
	}
	at := bits.Candidate{GroupOptions: joint.GroupOptions, Anchor: o.Policy.Anchor}
	if joint.ChooseAnchor {
		var all []bits.Candidate
		for _, n := range bits.Anchors {
			x := at
			x.Anchor = n
			all = append(all, x)
		}
		var err error
		if at, err = choose("anchor", all); err != nil {
			return err
		}
	}
	if joint.ChooseSpan {
		var all []bits.Candidate
		for _, n := range bits.SpanChoices(c, joint.Parts, joint.Span) {
			x := at
			x.Span = n
			all = append(all, x)
		}
		var err error
		if at, err = choose("span", all); err != nil {
			return err
		}
	}
	joint.GroupOptions, o.Policy.Anchor = at.GroupOptions, at.Anchor
	return nil
}
