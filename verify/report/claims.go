package report

import (
	"fmt"
	"strings"

	"github.com/phaseconv/phaseconv/spec"
)

// claimsView is the ledger of claims as the page shows it.
type claimsView struct {
	Rows     []claimRow
	Counts   string
	Prover   string // "" if no claim names a theorem
	Theorems int
	Pure     int // theorems that rest on no axiom
}

type claimRow struct {
	spec.Claim
	Proofs []proofRow
}

type proofRow struct{ Name, Axioms string }

// ledger counts claims by status and finds their theorems.
func ledger(l *spec.ClaimsJSON) *claimsView {
	if l == nil || len(l.Claims) == 0 {
		return nil
	}
	v := &claimsView{Theorems: len(l.Theorems)}
	axioms := map[string]string{}
	for _, t := range l.Theorems {
		axioms[t.Name] = strings.Join(t.Axioms, ", ")
		if len(t.Axioms) == 0 {
			v.Pure++
		}
	}
	counts := map[string]int{}
	for _, c := range l.Claims {
		counts[c.Status]++
		row := claimRow{Claim: c}
		for _, n := range c.Theorems {
			row.Proofs = append(row.Proofs, proofRow{n, axioms[n]})
			v.Prover = l.Prover
		}
		v.Rows = append(v.Rows, row)
	}
	if v.Prover != "" && l.Checker != "" {
		v.Prover += " and " + l.Checker
	}
	var parts []string
	for _, s := range []string{"proved", "argued", "tested", "refuted", "open"} {
		if counts[s] > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", counts[s], s))
		}
	}
	v.Counts = strings.Join(parts, ", ")
	return v
}
