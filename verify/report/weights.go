package report

import (
	"fmt"

	"github.com/phaseconv/phaseconv/spec"
)

// A weightsView shows how weights were changed for the type of a quantised file.
type weightsView struct {
	Why         string
	FileType    string
	Tried, Made []weightsRow
}

type weightsRow struct {
	Name, Bits, KLD, Err, Ratio, Top string
	Chosen                           bool
}

// newWeights returns nil where nothing was asked for.
func newWeights(v *view) *weightsView {
	if v.Manifest == nil || v.Manifest.FFN == nil {
		return nil
	}
	f := v.Manifest.FFN
	w := &weightsView{FileType: f.FileType, Why: fmt.Sprintf("All changes are exact. Candidates were fitted to %d windows "+
		"and compared on %d others of %s, with the matrices as llama-quantize makes them for %s (emulated, without an importance matrix), "+
		"against the unchanged model in floats.", f.FitWindows, f.Text.Windows, f.Text.Name, f.FileType)}
	for _, x := range f.Tried {
		w.Tried = append(w.Tried, newWeightsRow(x, x.Name == f.Chosen))
	}
	for _, x := range f.Measured {
		w.Made = append(w.Made, newWeightsRow(x, false))
	}
	return w
}

func newWeightsRow(x spec.FFNTry, chosen bool) weightsRow {
	return weightsRow{Name: x.Name, Bits: fix(x.Bits, 3), KLD: sig(x.KLD), Err: sig(x.KLDErr), Ratio: fix(x.PPLRatio, 4),
		Top: fix(100*x.SameTop, 1) + " %", Chosen: chosen}
}
