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
	Stock       []stockWeights
}

// A stockWeights shows quantised files in stock llama.cpp.
type stockWeights struct {
	Why  string
	Rows []weightsRow
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
	matrix := "without an importance matrix"
	if f.Imatrix != "" {
		matrix = "with the importance matrix that was named"
	}
	w := &weightsView{FileType: f.FileType, Why: fmt.Sprintf("All changes are exact. Candidates were fitted to %d windows "+
		"and compared on %d others of %s, with the matrices as llama-quantize makes them for %s (emulated, %s), "+
		"against the unchanged model in floats.", f.FitWindows, f.Text.Windows, f.Text.Name, f.FileType, matrix)}
	for _, x := range f.Tried {
		w.Tried = append(w.Tried, newWeightsRow(x, x.Name == f.Chosen))
	}
	for _, x := range f.Measured {
		w.Made = append(w.Made, newWeightsRow(x, false))
	}
	for _, q := range v.Quantized {
		s := stockWeights{Why: stockWeightsText(q)}
		for _, x := range q.Quantized {
			s.Rows = append(s.Rows, newWeightsRow(x, false))
		}
		w.Stock = append(w.Stock, s)
	}
	return w
}

// stockWeightsText says what quantised files were measured with.
func stockWeightsText(q spec.QuantizedJSON) string {
	return fmt.Sprintf("in stock llama.cpp (%s), %d windows of %d tokens of %s, against the unchanged model in floats", q.Runtime,
		q.Text.Windows, q.Text.Context, q.Text.Name)
}

func newWeightsRow(x spec.FFNTry, chosen bool) weightsRow {
	return weightsRow{Name: x.Name, Bits: fix(x.Bits, 3), KLD: sig(x.KLD), Err: sig(x.KLDErr), Ratio: fix(x.PPLRatio, 4),
		Top: fix(100*x.SameTop, 1) + " %", Chosen: chosen}
}
