package ladder

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/spec"
)

// TestQueue: the queue runs what may run and blocks the rest, whatever the rungs say.
func TestQueue(t *testing.T) {
	const P, K, I, B = spec.RungPass, spec.RungKill, spec.RungInconclusive, spec.RungBlocked
	rw1 := func(status ...string) map[string]string {
		m := map[string]string{"RW0": P, "RW2": P, "RW2.1": P, "RW3": P, "RW3.1": P}
		for i := range 9 {
			m[fmt.Sprintf("RW1.%d", i)] = status[min(i, len(status)-1)]
		}
		return m
	}
	with := func(m map[string]string, id, status string) map[string]string { m[id] = status; return m }
	nine := func(s string) string { return strings.Repeat(s+" ", 9) }
	for name, x := range map[string]struct {
		says  map[string]string
		until string
		want  string // RW0, RW1.0 to RW1.8, RW2, RW2.1, RW3, RW3.1
	}{
		"all pass":          {rw1(P), "RW3.1", P + " " + nine(P) + P + " " + P + " " + P + " " + P},
		"until RW1.1":       {rw1(P), "RW1.1", P + " " + P + " " + P},
		"RW0 killed":        {with(rw1(P), "RW0", K), "RW3.1", K + " " + nine(B) + B + " " + B + " " + B + " " + B},
		"all RW1 killed":    {rw1(K), "RW3.1", P + " " + nine(K) + B + " " + B + " " + B + " " + B},
		"RW1 between":       {rw1(I), "RW3", P + " " + nine(I) + B + " " + B + " " + B},
		"one of RW1 passes": {rw1(K, K, K, K, K, K, P, K), "RW2", P + " " + strings.Repeat(K+" ", 6) + P + " " + K + " " + K + " " + P},
		"RW2 between":       {with(rw1(P), "RW2", I), "RW3.1", P + " " + nine(P) + I + " " + B + " " + B + " " + B},
		"RW2.1 killed":      {with(rw1(P), "RW2.1", K), "RW3", P + " " + nine(P) + P + " " + K + " " + P},
		"RW3 killed":        {with(rw1(P), "RW3", K), "RW3.1", P + " " + nine(P) + P + " " + P + " " + K + " " + B},
	} {
		got, err := queue(spec.Ladder(), x.until, func(r spec.Rung, why string,
			_ []*spec.LadderRecord) (*spec.LadderRecord, error) {
			if why != "" {
				return &spec.LadderRecord{Rung: r, Status: spec.RungBlocked, Reason: why}, nil
			}
			return &spec.LadderRecord{Rung: r, Status: x.says[r.ID]}, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		var s []string
		for _, r := range got {
			s = append(s, r.Status)
			if (r.Status == B) != (r.Reason != "") {
				t.Errorf("%s: %s is %s for the reason %q", name, r.Rung.ID, r.Status, r.Reason)
			}
		}
		if want := strings.Fields(x.want); !slices.Equal(s, want) {
			t.Errorf("%s:\n%v, want\n%v", name, s, want)
		}
	}
	_, err := queue(spec.Ladder(), "RW3", func(r spec.Rung, _ string, _ []*spec.LadderRecord) (*spec.LadderRecord, error) {
		return nil, fmt.Errorf("broken")
	})
	if err == nil || !strings.Contains(err.Error(), "RW0: broken") {
		t.Errorf("an error is given as %v", err)
	}
}

func rung(id string) spec.Rung {
	i := slices.IndexFunc(spec.Ladder(), func(r spec.Rung) bool { return r.ID == id })
	return spec.Ladder()[i]
}

// layers makes layers with one step each: held-out errors, all fit errors less gap.
func layers(gap float64, falling bool, held ...float64) (out []spec.LadderLayer) {
	for i, e := range held {
		out = append(out, spec.LadderLayer{Layer: i, Monotone: falling,
			Steps: []spec.LadderStep{{HeldOut: e, Fit: e - gap, Share: 0.5}}})
	}
	return out
}

// TestJudge: each gate decides at its own number.
func TestJudge(t *testing.T) {
	number := func(x float64) *float64 { return &x }
	one := func(id string, l []spec.LadderLayer, replay, logZ float64) *spec.LadderRecord {
		l[0].Replay, l[0].LogZ = number(replay), number(logZ)
		return &spec.LadderRecord{Rung: rung(id), Layers: l}
	}
	at := func(nll, logits, strict float64) *spec.LadderRecord {
		return &spec.LadderRecord{Rung: rung("RW3"), Live: []spec.LadderLive{
			{Layers: []int{0}}, {Layers: []int{1}, NLLInflation: nll, Logits: logits, LogitsStrict: strict}}}
	}
	native := append(layers(0, true, 0.09, 0.09), spec.LadderLayer{Layer: 9, Native: true})
	partly := layers(0, true, 0.09, 0.09, 0.09)
	partly[2].Monotone = false
	for i, x := range []struct {
		r    *spec.LadderRecord
		want string
	}{
		{one("RW0", layers(0, true, 0.5, 0.5), 0.0099, 0), spec.RungPass},
		{one("RW0", layers(0, true, 0.5, 0.5), 0.0101, 0), spec.RungKill},
		{one("RW1.6", layers(0.03, true, 0.099, 0.05), 0, 0), spec.RungPass},
		{one("RW1.6", layers(0.05, true, 0.099, 0.05), 0, 0), spec.RungInconclusive},
		{one("RW1.6", layers(0.03, true, 0.101, 0.05), 0, 0), spec.RungInconclusive},
		{one("RW1.6", layers(0.03, true, 0.141, 0.05), 0, 0), spec.RungKill},
		{one("RW1.6", layers(0.03, false, 0.09, 0.05), 0, 0), spec.RungKill},
		{one("RW1.6", partly, 0, 0), spec.RungInconclusive},
		{one("RW1.6", native, 0, 0), spec.RungPass},
		{one("RW1.6", layers(0.03, true, 0.09, 0.05), 0.02, 0), spec.RungInconclusive},
		{one("RW2", layers(0, true, 0.064, 0.05), 0, 0.1), spec.RungPass},
		{one("RW2", layers(0, true, 0.066, 0.05), 0, 0.1), spec.RungInconclusive},
		{one("RW2", layers(0, true, 0.101, 0.05), 0, 0.1), spec.RungKill},
		{one("RW2", layers(0, true, 0.05, 0.05), 0, 0.151), spec.RungKill},
		{one("RW2", layers(0, false, 0.05, 0.05), 0, 0.1), spec.RungInconclusive},
		{at(0.019, 0.09, 0.3), spec.RungPass},
		{at(0.021, 0.09, 0.09), spec.RungInconclusive},
		{at(-0.3, 0.11, 0.11), spec.RungInconclusive},
		{at(0.051, 0.09, 0.09), spec.RungKill},
		{at(0, 0.26, 0.3), spec.RungKill},
	} {
		summarise(x.r)
		judge(x.r, &spec.LadderRecord{Rung: rung("RW1.7"), FinalMax: number(0.05)})
		if x.r.Status != x.want || x.r.Reason == "" {
			t.Errorf("case %d: %s is %s (%s), want %s", i, x.r.Rung.ID, x.r.Status, x.r.Reason, x.want)
		}
	}
	r := at(0.01, 0.05, 0.3)
	judge(r, nil)
	if r.Live[1].StrictStatus != spec.RungKill || !strings.Contains(r.Reason, "tokens' logits: KILL") {
		t.Errorf("the strict gate says %s: %s", r.Live[1].StrictStatus, r.Reason)
	}
}

// TestVerdicts: a pass is said with its context and its share, and what does not pass beside it.
func TestVerdicts(t *testing.T) {
	share := 0.35
	got := Verdicts([]spec.LadderRecord{
		{Rung: rung("RW3.1"), Ctx: 512, Status: spec.RungPass, Share: &share},
		{Rung: rung("RW3.1"), Ctx: 2048, Status: spec.RungKill},
		{Rung: rung("RW3"), Ctx: 512, Status: spec.RungBlocked},
	})
	if want := []string{"RW3.1 passes at 512 with 35.0 % of the cache; not at 2048 (KILL)"}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}

// TestOpener: RW2 goes on from the passing rung of merged slots with the smallest state.
func TestOpener(t *testing.T) {
	at := func(id, status string, share float64) *spec.LadderRecord {
		return &spec.LadderRecord{Rung: rung(id), Status: status, Share: &share}
	}
	done := []*spec.LadderRecord{at("RW1.2", spec.RungPass, 0.1), at("RW1.6", spec.RungPass, 0.5), at("RW1.7", spec.RungPass, 0.4), at("RW1.8", spec.RungKill, 0.3)}
	if got := opener(rung("RW2"), done); got != done[2] {
		t.Errorf("RW2 goes on from %v", got)
	}
	if got := opener(rung("RW2"), done[:1]); got != nil {
		t.Errorf("RW2 goes on from %s", got.Rung.ID)
	}
}
