package command

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v3"

	"github.com/phaseconv/phaseconv/spec"
)

func claimsCommand(stdout io.Writer) *cli.Command {
	return &cli.Command{
		Name:      "claims",
		Usage:     "print what the format relies on, and what shows it",
		ArgsUsage: "[NAME...]",
		Description: `Proved means that a prover's kernel has accepted the theorems named; spec/proofs has
them, and spec/internal/prove asks the prover again.

Examples:
  phaseconv claims
  phaseconv claims rope_commutant
  phaseconv claims --json`,
		Flags: []cli.Flag{jsonFlag()},
		Action: func(_ context.Context, c *cli.Command) error {
			l, err := spec.ClaimsReport()
			if err != nil {
				return err
			}
			if names := c.Args().Slice(); len(names) > 0 {
				if err := selectClaims(l, names); err != nil {
					return err
				}
			}
			if c.Bool("json") {
				return printJSON(stdout, l)
			}
			printClaims(stdout, l, c.Args().Present())
			return nil
		},
	}
}

// selectClaims keeps the claims named, in the order of the ledger, and their theorems.
func selectClaims(l *spec.ClaimsJSON, names []string) error {
	wanted, claims, theorems := map[string]bool{}, l.Claims, l.Theorems
	for _, n := range names {
		wanted[n] = true
	}
	l.Claims, l.Theorems = nil, []spec.Theorem{}
	used := map[string]bool{}
	for _, c := range claims {
		if !wanted[c.Name] {
			continue
		}
		l.Claims = append(l.Claims, c)
		delete(wanted, c.Name)
		for _, t := range c.Theorems {
			used[t] = true
		}
	}
	for _, n := range names {
		if wanted[n] {
			return usagef("claims: no claim %q; without a name, all are printed", n)
		}
	}
	for _, t := range theorems {
		if used[t.Name] {
			l.Theorems = append(l.Theorems, t)
		}
	}
	return nil
}

// printClaims prints one line for each claim, or with detail all that is known of it.
func printClaims(w io.Writer, l *spec.ClaimsJSON, detail bool) {
	if !detail {
		t := newTable("claim", "status", "theorems", "statement")
		counts := map[string]int{}
		for _, c := range l.Claims {
			counts[c.Status]++
			t.row(c.Name, c.Status, fmt.Sprint(len(c.Theorems)), c.Statement)
		}
		t.print(w)
		fmt.Fprintf(w, "\n%d claims: %d proved, %d argued, %d tested, %d refuted, %d open; %d theorems, accepted by %s\n",
			len(l.Claims), counts["proved"], counts["argued"], counts["tested"], counts["refuted"], counts["open"],
			len(l.Theorems), l.Prover)
		return
	}
	theorems := map[string]spec.Theorem{}
	for _, t := range l.Theorems {
		theorems[t.Name] = t
	}
	for i, c := range l.Claims {
		if i > 0 {
			fmt.Fprintln(w)
		}
		fmt.Fprintf(w, "%s: %s\n  %s\n", c.Name, c.Status, c.Statement)
		for _, n := range c.Theorems {
			axioms := "no axiom"
			if a := theorems[n].Axioms; len(a) > 0 {
				axioms = "axioms " + strings.Join(a, ", ")
			}
			fmt.Fprintf(w, "  theorem  %s (%s, %s)\n           %s\n", n, l.Prover, axioms, theorems[n].Type)
		}
		if c.Outside != "" {
			fmt.Fprintf(w, "  outside  %s\n", c.Outside)
		}
		for _, n := range c.Needs {
			fmt.Fprintf(w, "  needs    %s\n           checked by %s, broken by %s\n", n.What, n.Code, n.Test)
		}
		for _, e := range strings.Split(c.Evidence, "; ") {
			if e != "" {
				fmt.Fprintf(w, "  evidence %s\n", e)
			}
		}
	}
}
