package report

import (
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/contract"
)

// fixture is a small artifact with every part of the page, read back from the files that a
// conversion writes: what does not survive them is not on the page. Its numbers are made up, by
// fixed formulas, and mean nothing.
func fixture(t testing.TB) Model {
	t.Helper()
	made := invented()
	dir := t.TempDir()
	b, err := contract.MarshalManifest(made.Manifest)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, spec.ManifestName), b, 0o666); err != nil {
		t.Fatal(err)
	}
	err = Update(dir, func(r *spec.ReportJSON) {
		r.Detail, r.Advise, r.RoundedInputs, r.FFN = made.Detail, made.Advise, made.Rounded, made.FFN
	})
	if err != nil {
		t.Fatal(err)
	}
	models, err := Load([]string{dir})
	if err != nil {
		t.Fatal(err)
	}
	models[0].License = made.License
	return models[0]
}

func invented() Model {
	p := func(x float64) *float64 { return &x }
	wave := func(i, k int) float64 { return math.Round(1e4*math.Abs(float64((i*37+k*101)%97)/97)) / 1e4 }
	man := &spec.Manifest{
		Version: spec.Version, Tool: "phaseconv 0.0.0-test", Command: []string{"phaseconv", "convert", "fixture & co",
			"-o", "out"},
		Source: spec.Source{Name: "fixture <b>&", Container: "safetensors", SHA256: strings.Repeat("00ff", 16)},
		Model: spec.Model{Family: "llama", Layers: 4, Heads: 4, KVHeads: 2, HeadDim: 16, Hidden: 64, Vocab: 256,
			Context: 2048},
		Code: spec.CodeInfo{Kind: "frame", Bits: 1, Alloc: "uniform", Anchor: 64, Sink: 4},
		Calibration: spec.Text{Name: "fit.txt", SHA256: strings.Repeat("aa", 32), Tokens: 4096, Context: 128,
			Windows: 32}, Seed: 1,
		Identities: []spec.Identity{
			{ID: "G3", Name: "K/Q pair scaling", Applied: true, Exact: true, Tensors: 8, Why: "for the test"},
			{ID: "G1", Name: "residual rotation", Exact: true, Why: "not folded"},
		},
		Artifacts: []spec.Artifact{{Container: "gguf", Model: "model.gguf", Sidecar: "model.phase.gguf",
			PairLayout: "interleaved", OutType: "f16", WeightsSHA256: strings.Repeat("03", 32)}},
		Files: []spec.File{{Name: "model.gguf", Bytes: 1234567, SHA256: strings.Repeat("01", 32)},
			{Name: "model.phase.gguf", Bytes: 89, SHA256: strings.Repeat("02", 32)}},
	}
	for l := range 4 {
		for h := range 2 {
			x := 0.02 * wave(l, h)
			cols := spec.Columns{Raw: p(0.7 + x), Cen: p(0.75 + x), SRHT: p(0.795 + x/4), Random: p(0.798 - x/4),
				Learned: p(0.84 + x), Code: p(0.88 + x)}
			moment := cols
			moment.Code = nil
			man.Layers = append(man.Layers, spec.Layer{Layer: l, Head: h, Code: "frame", Bits: 1, Anchor: 64,
				Cos1bit: cols, MomentRatio: moment,
				Train: &spec.Columns{Learned: p(0.86 + x), Code: p(0.89 + x)}, Tokens: 4000, TokensPerDim: 250, Delta: p(0.045)})
			for _, code := range []string{"frame", "learned"} {
				c := spec.Curve{Layer: l, Head: h, Code: code}
				for s := range 6 {
					c.Points = append(c.Points, [2]float64{float64(2 * s), 0.8 + x + 0.025*float64(s)})
				}
				man.Curves = append(man.Curves, c)
			}
		}
	}
	man.Measured = &spec.VerifyJSON{
		OK: true,
		Contract: []spec.Check{{Check: "manifest", OK: true, Detail: "complete"}, {Check: "model", OK: true,
			Detail: "opens"}},
		PPL: &spec.PPLJSON{Float: 20, FloatErr: 1, OneBit: 23, OneBitErr: 1.2, Ratio: 1.15, RatioErr: 0.02,
			Tokens: 1020, Ctx: 512, Chunks: 4, Sink: 4, Anchor: 64, Code: "frame"},
		KLD: &spec.KLDJSON{Mean: 0.123, MeanErr: 0.004, Median: 0.05, P90: 0.3, P95: 0.5, P99: 1.2, Max: 4,
			SameTop: 0.81, SameTopErr: 0.01},
		Function: &spec.FunctionJSON{MaxAbsDLogit: 0.01, KLDMean: 2e-7, SameTop: 1, FloorMaxAbsDLogit: 0.2,
			FloorKLDMean: 3e-5, FloorSameTop: 0.99},
		Bytes: &spec.BytesJSON{KF16: 256, KCode: 32, EffectiveBits: map[string]float64{"4096": 2}, Sidecar: 12345},
		Text:  &spec.Text{Name: "test.txt", SHA256: strings.Repeat("bb", 32), Tokens: 2048, Context: 512, Windows: 4},
	}
	d := &spec.Detail{Text: *man.Measured.Text, Code: "frame", Bits: 1, Anchor: 64, Sink: 4,
		Positions: []spec.PositionBand{{From: 0, To: 8, Tokens: 16, KLD: 0.05, KLDErr: 0.01}, {From: 8, To: 64,
			Tokens: 112, KLD: 0.1, KLDErr: 0.02}},
		Contexts: []spec.ContextRow{{Ctx: 128, Windows: 8, Tokens: 504, PPLRatio: 1.1, RatioErr: 0.02, KLD: 0.1,
			KLDErr: 0.01}},
		Codes: []spec.ParetoPoint{{Code: "srht", Bits: 1, BytesPerToken: 32, PPLRatio: 3, KLD: 1.1, KLDErr: 0.1,
			SameTop: 0.4}},
		Cloud:  &spec.Cloud{Layer: 1, Head: 0, Dims: [2]int{3, 7}},
		Scores: &spec.Scores{Layer: 1, Head: 0, QueryHead: 1, Position: 39, Sink: 4},
		Convergence: &spec.Convergence{Layer: 1, Keys: 4000, HeldOut: 1000, TokensPerDim: 250, SRHT: 0.8,
			Points: [][3]float64{{0, 0.78, 0.77}, {1, 0.83, 0.82}, {2, 0.85, 0.83}}},
	}
	for l := range 4 {
		d.Layers = append(d.Layers, spec.LayerKLD{Layer: l, KLD: 0.01 + 0.05*wave(l, 3), KLDErr: 0.002})
		for h := range 2 {
			d.Angles = append(d.Angles, spec.AngleRow{Layer: l, Head: h, Raw: 40 + 10*wave(l, h), SRHT: 36 + wave(h, l),
				Code: 28 + 2*wave(l, h)})
		}
	}
	for i := range 24 {
		d.Cloud.Points = append(d.Cloud.Points, [2]float64{3 * (wave(i, 1) - 0.5), wave(i, 5) - 0.5})
	}
	for i := range 40 {
		d.Scores.Float = append(d.Scores.Float, 4*wave(i, 2)-2)
	}
	for k, c := range []spec.ScoreCode{{Code: "raw", Bits: 1}, {Code: "srht", Bits: 1}, {Code: "frame", Bits: 1},
		{Code: "frame", Bits: 2, Fitted: "fit.txt"}} {
		for i, f := range d.Scores.Float {
			e := 0.0
			if i >= d.Scores.Sink {
				e = (wave(i, 7*k) - 0.5) / float64(k+1)
			}
			c.Scores = append(c.Scores, math.Round(1e4*(f+0.3+e))/1e4)
		}
		d.Scores.Codes = append(d.Scores.Codes, c)
	}
	m := Model{Name: man.Source.Name, Manifest: man, Detail: d, License: ParseLicense("apache-2.0")}
	for _, x := range []struct {
		k         string
		bytes     float64
		kld       float64
		converted bool
	}{{"f16", 512, 0, false}, {"q8_0", 392, 0.004, false}, {"q8_0", 392, 0.001, true}, {"q4_0", 328, 0.4, false},
		{"q4_0", 328, 0.03, true}} {
		m.Advise = append(m.Advise, spec.AdviseRow{KType: x.k, VType: "f16", Ctx: 512, Converted: x.converted,
			BytesPerToken: x.bytes,
			PPLRatio:      1 + x.kld, KLD: x.kld, KLDErr: x.kld / 10, SameTop: 1 - x.kld, CacheBytes: int64(512 * x.bytes)})
	}
	for i := range m.Advise[:2] {
		m.Advise[i].Runs = "yes"
	}
	m.Advise[3].Runs, m.Advise[3].Reason = "slow", "<by a detour>"
	man.Fusion = &spec.Fusion{KType: "q4_0", VType: "f16", Rotation: true, TargetCtx: 512, FitWindows: 16,
		Chosen:   "slow means <removed>",
		Text:     spec.Text{Name: "fit.txt", SHA256: strings.Repeat("cc", 32), Tokens: 4096, Context: 512, Windows: 8},
		Measured: m.Advise[3:],
		Tried: []spec.FusionTry{
			{Name: "as published", KLD: 0.4, KLDErr: 0.04, PPLRatio: 1.5, SameTop: 0.6},
			{Name: "balance", KLD: 0.1, KLDErr: 0.01, PPLRatio: 1.1, SameTop: 0.8},
			{Name: "slow means <removed>", Near: true, KLD: 0.03, KLDErr: 0.003, PPLRatio: 1.03, SameTop: 0.97,
				F16KLD: p(0.0004)},
		}}
	for l := range 4 {
		for h := range 2 {
			man.Fusion.Heads = append(man.Fusion.Heads, spec.FusionHead{Layer: l, Head: h, Removed: 0.5 + 0.1*wave(l, h),
				Before: 0.1, After: 0.01 * wave(h, l), Cost: 0.0002})
		}
	}
	m.Rounded, man.Fusion.RoundedInputs = true, true
	for l := range 4 {
		for _, r := range []string{"srht", "shared"} {
			m.FFN = append(m.FFN, spec.FFNRow{Layer: l, Matrix: "up", Expert: -1, Rotation: r, Cos1bit: 0.8 + 0.02*wave(l,
				len(r)), MomentRatio: 0.64, EffectiveBits: 1.5})
		}
	}
	return m
}

// claims of the fixture.
func claims() *spec.ClaimsJSON {
	return &spec.ClaimsJSON{
		Prover: "Prover 1.0", Checker: "checker",
		Claims: []spec.Claim{
			{
				Name: "score_gauge", Statement: "Scores stay <the same>.", Status: "proved",
				Evidence: "spec/proofs.md; https://example.org/proof",
				Theorems: []string{"A.one", "A.two"}, Outside: "<much>.", Needs: []spec.Need{{What: "a & b",
					Code: "x/y.go: F", Test: "x/y_test.go: TestF"}},
			},
			{Name: "other", Statement: "It is open.", Status: "open", Evidence: ""},
			{Name: "prose", Statement: "It is argued.", Status: "argued", Evidence: "spec/proofs.md"},
		},
		Theorems: []spec.Theorem{{Name: "A.one", Axioms: []string{}}, {Name: "A.two", Axioms: []string{"choice",
			"classic"}}, {Name: "A.unused"}},
	}
}
