package report

import (
	"bytes"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/spec"
)

// rungs makes the records of two rungs at one context: a killed one of features, a passed one of
// slots with three layers, one of which slides over less than the context.
func rungs(ctx int) []spec.LadderRecord {
	p := func(x float64) *float64 { return &x }
	all := spec.Ladder()
	step := func(m, share, err float64) spec.LadderStep {
		return spec.LadderStep{Size: m, Fit: err / 2, HeldOut: err, Bytes: int(share * 4096), Share: share}
	}
	base := spec.LadderRecord{Source: spec.Source{Name: "tiny <model>"}, Ctx: ctx, Live: []spec.LadderLive{},
		Fit: spec.Text{Name: "fit.txt", Windows: 8}, Eval: spec.Text{Name: "eval.txt", Windows: 4}}
	killed, passed, live := base, base, base
	killed.Rung, killed.Status, killed.Reason = all[1], spec.RungKill, "final max 1.2 is above 0.14"
	killed.FinalMax, killed.Share = p(1.2), p(0.5)
	passed.Rung, passed.Status, passed.FinalMax, passed.Gap, passed.Share = all[7], spec.RungPass, p(0.09), p(0.01), p(0.3)
	passed.Monotone = 2
	passed.Layers = []spec.LadderLayer{
		{Layer: 0, Monotone: true, Steps: []spec.LadderStep{step(8, 0.1, 0.2), step(16, 0.2, 0.12), step(32, 0.3, 0.09)}},
		{Layer: 1, Native: true},
		{Layer: 2, Monotone: true, Steps: []spec.LadderStep{step(8, 0.1, 0.08), step(16, 0.2, 0.05), step(32, 0.3, 0.01)}},
	}
	live.Rung, live.Status, live.Share = all[len(all)-1], spec.RungPass, p(0.3)
	live.Live = []spec.LadderLive{{
		Layers: []int{0, 2}, NLLInflation: -0.001, NLLErr: 0.002, Logits: 0.01, LogitsStrict: 0.2,
		KLD: 0.004, CopyNLL: 1.5, CopyLive: 1.75, Share: 0.3, Status: spec.RungPass,
		StrictStatus: spec.RungInconclusive,
	}}
	return []spec.LadderRecord{killed, passed, live}
}

// TestLadderPage: tables and the picture say what the records say, on the page of its own and in
// the report of a model.
func TestLadderPage(t *testing.T) {
	l := &spec.LadderJSON{Records: append(rungs(256), rungs(512)...),
		Verdicts: []string{"RW1.6 passes at 256", "RW3.1 passes at 256, at 512 with 30.0 % of the cache"}}
	var own, whole bytes.Buffer
	if err := WriteLadder(&own, l); err != nil {
		t.Fatal(err)
	}
	if err := Write(&whole, []Model{{Name: "tiny", Ladder: l}}, nil); err != nil {
		t.Fatal(err)
	}
	for name, page := range map[string]string{"own": own.String(), "report": whole.String()} {
		for _, want := range []string{
			"RW3.1 passes at 256, at 512 with 30.0 % of the cache",
			`title="final max 1.2 is above 0.14">KILL`, "256 tokens", "512 tokens",
			"1.2 KiB, 30.0 % of the cache", // layer 0 passes with its third state
			"409 B, 10.0 % of the cache",   // layer 2 with its first
			"its own window: finite as it is", "−0.10 %", "1.500 → 1.750", "layer 0: error 0.0900 with 30.0 % of the cache",
		} {
			if !strings.Contains(page, strings.ReplaceAll(want, " %", "\u00a0%")) && !strings.Contains(page, want) {
				t.Errorf("%s: %q is missing", name, want)
			}
		}
		if n := strings.Count(page, `class="curve t`); n != 2*2*2 { // layers, widths, contexts
			t.Errorf("%s: %d curves", name, n)
		}
		if strings.Contains(page, "<model>") {
			t.Errorf("%s: a name is not escaped", name)
		}
	}
	if WriteLadder(&own, &spec.LadderJSON{}) == nil {
		t.Error("a ladder without records made a page")
	}
}

// TestLadderHostile: numbers that no ladder writes make a page all the same.
func TestLadderHostile(t *testing.T) {
	r := rungs(256)
	for _, x := range []float64{0, -1, 1e308, math.SmallestNonzeroFloat64} {
		r[1].Layers[0].Steps[1].HeldOut, r[1].Layers[0].Steps[1].Share = x, x
		*r[0].FinalMax, *r[0].Share = x, x
		r[1].Layers[2].Steps = nil
		var b bytes.Buffer
		if err := WriteLadder(&b, &spec.LadderJSON{Records: r}); err != nil {
			t.Fatal(err)
		}
	}
}

// TestLadderLoad: a folder of records and the JSON of the command belong to the model before them.
func TestLadderLoad(t *testing.T) {
	b, err := json.Marshal(&spec.LadderJSON{Until: "RW1.6", Records: rungs(256)})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "ladder.json")
	if err := os.WriteFile(file, b, 0o666); err != nil {
		t.Fatal(err)
	}
	models, err := Load([]string{file})
	if err != nil {
		t.Fatal(err)
	}
	if len(models) != 1 || models[0].Ladder == nil || len(models[0].Ladder.Records) != 3 {
		t.Fatalf("%+v", models)
	}
	if err := os.WriteFile(file, []byte(`{"until":"RW1.6","records":[]}`), 0o666); err != nil {
		t.Fatal(err)
	}
	if _, err := Load([]string{file}); err == nil {
		t.Error("no records are no ladder")
	}
}
