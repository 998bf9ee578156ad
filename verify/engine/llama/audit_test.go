package llama_test

import (
	"math"
	"testing"

	"github.com/phaseconv/phaseconv/convert"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/engine"
	"github.com/phaseconv/phaseconv/verify/engine/llama"
)

func audited(t *testing.T, src string, engines engine.Engines) *spec.AuditJSON {
	t.Helper()
	c, err := engines.Source(t.Context(), src)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	o := convert.DefaultAuditOptions()
	o.Ctx, o.Chunks, o.CalibrationTokens, o.Code, o.Threads, o.Engines = 128, 2, 1024, codec.SRHT, 1, engines
	res, err := convert.Audit(t.Context(), c, o)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// TestAudit: the beta table of keys that llama.cpp computes is that of the own pass, and there is one for
// architectures that the table of families lacks.
func TestAudit(t *testing.T) {
	w := start(t, llama.Start{})
	place := llama.Place{Threads: 1}
	src := tinyFile(t)
	own, other := audited(t, src, engine.OwnEngines{Threads: 1}), audited(t, src, &llama.Engines{Worker: w, Place: place})
	if len(own.Layers) != len(other.Layers) || len(own.Layers) == 0 {
		t.Fatalf("%d and %d rows", len(own.Layers), len(other.Layers))
	}
	for i, a := range own.Layers {
		b := other.Layers[i]
		for name, x := range map[string][2]*float64{"raw": {a.Cos1bit.Raw, b.Cos1bit.Raw},
			"cen":  {a.Cos1bit.Cen, b.Cos1bit.Cen},
			"srht": {a.Cos1bit.SRHT, b.Cos1bit.SRHT}, "code": {a.Cos1bit.Code, b.Cos1bit.Code}} {
			// Keys differ by 1e-5 of their size, and a sign that turns by that moves a mean of some thousand cosines little.
			if d := math.Abs(*x[0] - *x[1]); !(d < 1e-3) {
				t.Errorf("layer %d, head %d: %s is %g, in llama.cpp %g", a.Layer, a.Head, name, *x[0], *x[1])
			}
		}
	}
	t.Logf("KLD %g, in llama.cpp %g", own.KLD.Mean, other.KLD.Mean)
	if d := math.Abs(own.KLD.Mean-other.KLD.Mean) / own.KLD.Mean; !(d < 0.2) {
		t.Errorf("KLD %g, in llama.cpp %g", own.KLD.Mean, other.KLD.Mean)
	}
	unknown := audited(t, sampleText(t, "starcoder2"), &llama.Engines{Worker: w, Place: place})
	if len(unknown.Layers) != 4 || !(unknown.KLD.Mean > 1e-6) {
		t.Errorf("%d rows, KLD %g", len(unknown.Layers), unknown.KLD.Mean)
	}
}
