package report

import (
	"fmt"
	"math"

	"github.com/phaseconv/phaseconv/spec"
)

// stockView is what was measured of a stock runtime's cache types, and how the weights
// were changed for them.
type stockView struct {
	Note string
	Rows []stockRow
	// Of the change; Tried is empty where there was none.
	Tried  []stockTry
	Why    string
	Chosen string
	Heads  []spec.FusionHead
}

type stockRow struct {
	spec.AdviseRow
	Weights string
}

// Bytes is what keys and values of a token take.
func (r stockRow) Bytes() string { return comma(int64(math.Round(r.BytesPerToken))) }

type stockTry struct {
	spec.FusionTry
	Kind, Cost string
	Chosen     bool
}

func newStock(v *view) *stockView {
	var f *spec.Fusion
	if v.Manifest != nil {
		f = v.Manifest.Fusion
	}
	if len(v.Advise) == 0 && f == nil {
		return nil
	}
	s := &stockView{Note: "Each pair of K and V cache types of llama.cpp against the source as published with F16 caches, which tells what a user of that runtime gets today. The rows with F16 caches and this file’s weights are what the change of weights costs those who do not quantise."}
	if v.Rounded {
		s.Note += " " + roundedNote
	}
	for _, r := range v.Advise {
		x := stockRow{r, "as published"}
		if r.Converted {
			x.Weights = "this file"
		}
		s.Rows = append(s.Rows, x)
	}
	if f == nil {
		return s
	}
	s.Chosen, s.Heads = f.Chosen, f.Heads
	s.Why = fmt.Sprintf("The weights were changed for K %s and V %s at a context of %s. Candidates were fitted to %d windows of %s and compared on %d later ones, against the unchanged model with F16 caches.",
		f.KType, f.VType, comma(f.TargetCtx), f.FitWindows, f.Text.Name, f.Text.Windows)
	if f.Refused != "" {
		s.Why += " Key biases were not shifted: " + f.Refused + "."
	}
	for _, t := range f.Tried {
		x := stockTry{FusionTry: t, Kind: "exact", Cost: missing, Chosen: t.Name == f.Chosen}
		if t.Near {
			x.Kind = "approximate"
		}
		if t.F16KLD != nil {
			x.Cost = sig(*t.F16KLD)
		}
		s.Tried = append(s.Tried, x)
	}
	return s
}

// roundedNote tells what stands under every divergence of a quantised file.
const roundedNote = "Inputs of matrix products are rounded as llama.cpp’s CPU backend does for the types of the file. Where its matrices are quantised, whatever moves a number draws these errors anew, so even a harmless change shows as a small divergence."
