package figures

import (
	"math"
	"testing"

	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/verify/audit"
	"github.com/phaseconv/phaseconv/verify/ppl"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// TestGroupRows: groups of one head's keys have the beta of the audit of those heads. In the first layer
// both see the same keys; further up the groups' come from a model whose cache is coded.
func TestGroupRows(t *testing.T) {
	c := model(t, "llama")
	o := options(t, c, "srht")
	meter := audit.Meter{Config: c.Config, Policy: o.Policy, Threads: 2}
	for _, layer := range o.Codes {
		var groups []*codec.Group
		var codes []audit.Codes
		for h, code := range layer {
			g, err := codec.KeyGroup(code, h)
			if err != nil {
				t.Fatal(err)
			}
			groups, codes = append(groups, g), append(codes, audit.Codes{"code": code})
		}
		o.Groups, meter.Codes = append(o.Groups, groups), append(meter.Codes, codes)
	}
	o.Codes = nil
	d, err := Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	m := refmodel.New(c.Config, c, 2)
	if _, err := ppl.Compare(t.Context(), m, ppl.From(o.Windows, 0), refmodel.Options{Hooks: meter.Hooks(t.Context())},
		&refmodel.Variant{}); err != nil {
		t.Fatal(err)
	}
	heads := c.Config.Layers[0].KVHeads
	if len(d.Groups) != heads*len(c.Config.Layers) {
		t.Fatalf("%d rows of groups", len(d.Groups))
	}
	for h, row := range d.Groups[:heads] {
		want := meter.Rows[0][h]["code"]
		if row.Layer != 0 || row.Group != h || row.Part != "k" || row.Heads[0] != h ||
			row.Dims != c.Config.Layers[0].HeadDim || row.Tokens != want.N || row.Signs != o.Groups[0][h].B() {
			t.Errorf("row %+v of %d keys", row, want.N)
		}
		// Scales of caches are binary16, those of the audit float32.
		if math.Abs(row.Cos1bit-want.Cos1bit) > 1e-6 || math.Abs(row.EnergyLeft-(1-want.Energy)) > 1e-5 {
			t.Errorf("head %d: cosine %g, energy left %g; the audit has %g, %g", h, row.Cos1bit, row.EnergyLeft, want.Cos1bit,
				1-want.Energy)
		}
	}
}
