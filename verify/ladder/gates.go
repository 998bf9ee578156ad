package ladder

import (
	"fmt"
	"strings"

	"github.com/phaseconv/phaseconv/spec"
)

// group returns the group of rungs that an id belongs to: RW1 of RW1.6, RW2 of RW2.1, RW3.1 of
// itself.
func group(id string) string {
	for _, g := range []string{"RW1", "RW2"} {
		if strings.HasPrefix(id, g+".") {
			return g
		}
	}
	return id
}

// blocked says why a rung must not run, in one sentence; "" where it may. A rung runs when its
// parent has passed, or one rung of the group that is its parent.
func blocked(r spec.Rung, done []*spec.LadderRecord) string {
	if r.Parent == "" {
		return ""
	}
	last := ""
	for _, d := range done {
		if d.Rung.ID != r.Parent && group(d.Rung.ID) != r.Parent {
			continue
		}
		if d.Status == spec.RungPass {
			return ""
		}
		if last == "" || last == spec.RungBlocked {
			last = d.Status
		}
	}
	if r.Parent == "RW1" {
		return "no rung of RW1 passed"
	}
	if last == "" {
		last = "not run"
	}
	return fmt.Sprintf("%s did not pass: %s", r.Parent, last)
}

// A runRung runs a rung after those that are done, or writes why it is blocked.
type runRung func(r spec.Rung, why string, done []*spec.LadderRecord) (*spec.LadderRecord, error)

// queue runs the rungs in order up to the one named until. Those that may not run are BLOCKED.
func queue(rungs []spec.Rung, until string, run runRung) ([]*spec.LadderRecord, error) {
	var done []*spec.LadderRecord
	for _, r := range rungs {
		x, err := run(r, blocked(r, done), done)
		if err != nil {
			return done, fmt.Errorf("%s: %w", r.ID, err)
		}
		done = append(done, x)
		if r.ID == until {
			break
		}
	}
	return done, nil
}

// summarise computes what gates look at from the layers of a record.
func summarise(r *spec.LadderRecord) {
	worse := func(p **float64, v float64) {
		if *p == nil || v > **p {
			*p = &v
		}
	}
	n, share := 0, 0.0
	for _, l := range r.Layers {
		if l.Native {
			continue
		}
		n++
		if l.Monotone {
			r.Monotone++
		}
		if l.Replay != nil {
			worse(&r.Replay, *l.Replay)
		}
		if l.LogZ != nil {
			worse(&r.LogZ, *l.LogZ)
		}
		if k := len(l.Steps); k > 0 {
			worse(&r.FinalMax, l.Steps[k-1].HeldOut)
			worse(&r.Gap, l.Steps[k-1].HeldOut-l.Steps[k-1].Fit)
			share += l.Steps[k-1].Share
		}
	}
	if n > 0 && r.FinalMax != nil {
		share /= float64(n)
		r.Share = &share
	}
}

// A verdict collects why a rung is not passed, and why it is killed.
type verdict struct{ short, kill []string }

// above notes a value beyond a gate; killed by kill, which is 0 where none is.
func (v *verdict) above(what string, x, gate, kill float64) {
	switch {
	case kill > 0 && x > kill:
		v.kill = append(v.kill, fmt.Sprintf("%s %.4g is above %.4g", what, x, kill))
	case !(x <= gate):
		v.short = append(v.short, fmt.Sprintf("%s %.4g is above %.4g", what, x, gate))
	}
}

func (v *verdict) result(passed string) (status, reason string) {
	switch {
	case len(v.kill) > 0:
		return spec.RungKill, strings.Join(v.kill, "; ")
	case len(v.short) > 0:
		return spec.RungInconclusive, strings.Join(v.short, "; ")
	}
	return spec.RungPass, passed
}

// judge gives a record its status and the reason of it. opened is the record that a rung goes
// on from: the rungs of RW2 are measured against its final max.
func judge(r, opened *spec.LadderRecord) {
	var v verdict
	layers := 0
	for _, l := range r.Layers {
		if !l.Native {
			layers++
		}
	}
	value := func(p *float64) float64 {
		if p == nil {
			return 0
		}
		return *p
	}
	switch group(r.Rung.ID) {
	case "RW0":
		v.above("replay", value(r.Replay), spec.LadderReplay, spec.LadderReplay)
		r.Status, r.Reason = v.result(fmt.Sprintf("replay %.2g", value(r.Replay)))
	case "RW1":
		v.above("replay", value(r.Replay), spec.LadderReplay, 0)
		v.above("final max", value(r.FinalMax), spec.LadderMax, spec.LadderMaxKill)
		v.above("gap", value(r.Gap), spec.LadderGap, 0)
		v.falling(r.Monotone, layers, layers)
		if r.Monotone < spec.LadderMonotone {
			v.kill = append(v.kill, fmt.Sprintf("errors fall at each step on %d layers, at least %d are needed",
				r.Monotone, spec.LadderMonotone))
		}
		r.Status, r.Reason = v.result(fmt.Sprintf("final max %.4f with %.1f %% of the cache",
			value(r.FinalMax), 100*value(r.Share)))
	case "RW2":
		before := value(opened.FinalMax)
		v.above("final max", value(r.FinalMax), before+spec.LadderWorse, before+spec.LadderWorseKill)
		v.above("replay", value(r.Replay), spec.LadderReplay, 0)
		v.above("rms of log(z^/z)", value(r.LogZ), spec.LadderLogZ, spec.LadderLogZ)
		v.falling(r.Monotone, layers, spec.LadderMonotone)
		r.Status, r.Reason = v.result(fmt.Sprintf("final max %.4f after %.4f in %s, log(z^/z) rms %.3f",
			value(r.FinalMax), before, opened.Rung.ID, value(r.LogZ)))
	default:
		strict, share := spec.RungPass, 0.0
		for i := range r.Live {
			x := &r.Live[i]
			name := ""
			if len(r.Live) > 1 {
				name = fmt.Sprintf("layer %d: ", x.Layers[0])
			}
			var one, exact verdict
			for _, u := range []struct {
				v      *verdict
				logits float64
			}{{&one, x.Logits}, {&exact, x.LogitsStrict}} {
				u.v.above(name+"NLL inflation", x.NLLInflation, spec.LadderNLL, spec.LadderNLLKill)
				u.v.above(name+"logit relative L2", u.logits, spec.LadderLogits, spec.LadderLogitsKill)
			}
			x.Status, _ = one.result("")
			x.StrictStatus, _ = exact.result("")
			v.short, v.kill = append(v.short, one.short...), append(v.kill, one.kill...)
			if x.StrictStatus == spec.RungKill || strict == spec.RungPass {
				strict = x.StrictStatus
			}
			share += x.Share / float64(len(r.Live))
		}
		r.Share = &share
		r.Status, r.Reason = v.result(fmt.Sprintf("with %.1f %% of the cache; by single tokens' logits: %s",
			100*share, strict))
	}
}

// falling notes that errors fall at each step on too few layers.
func (v *verdict) falling(n, layers, need int) {
	if n < need {
		v.short = append(v.short, fmt.Sprintf("errors fall at each step on %d of %d layers", n, layers))
	}
}

// Verdicts says, for each rung that ran, at which contexts it passes and at what share of the
// cache, and at which it does not.
func Verdicts(records []spec.LadderRecord) []string {
	var out []string
	for _, r := range spec.Ladder() {
		var pass, not []string
		ran := false
		for _, x := range records {
			if x.Rung.ID != r.ID {
				continue
			}
			ran = ran || x.Status != spec.RungBlocked
			if x.Status == spec.RungPass {
				s := fmt.Sprintf("at %d", x.Ctx)
				if x.Share != nil {
					s += fmt.Sprintf(" with %.1f %% of the cache", 100**x.Share)
				}
				pass = append(pass, s)
			} else {
				not = append(not, fmt.Sprintf("at %d (%s)", x.Ctx, x.Status))
			}
		}
		switch {
		case !ran:
		case len(pass) == 0:
			out = append(out, r.ID+" does not pass "+strings.Join(not, ", "))
		case len(not) == 0:
			out = append(out, r.ID+" passes "+strings.Join(pass, ", "))
		default:
			out = append(out, r.ID+" passes "+strings.Join(pass, ", ")+"; not "+strings.Join(not, ", "))
		}
	}
	return out
}
