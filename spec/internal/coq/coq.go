// Package coq reads as much of Coq's sources as holding proved.json to them takes:
// names and statements of theorems, what a file requires, and words that have no
// place in a proof. It needs no prover.
package coq

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/phaseconv/phaseconv/spec"
)

// Root is the logical name under which the files are compiled.
const Root = "phaseconv"

// Allowed lists the axioms that a theorem may rest on: the real numbers of the standard
// library, excluded middle, extensionality and choice. All of them hold in the usual
// mathematics of sets; none is ours.
var Allowed = []string{
	"ClassicalDedekindReals.sig_forall_dec",
	"ClassicalDedekindReals.sig_not_dec",
	"Classical_Prop.classic",
	"FunctionalExtensionality.functional_extensionality_dep",
	"boolp.constructive_indefinite_description",
	"boolp.functional_extensionality_dep",
	"boolp.propositional_extensionality",
}

// A Statement is a theorem as its source has it.
type Statement struct {
	Name string // without the file's
	Text string // on one line
}

var (
	requires = regexp.MustCompile(`(?m)^From ` + Root + ` Require Import ([^.]*)\.`)
	states   = regexp.MustCompile(`(?ms)^Theorem (\w+)(.*?)\.\n`)
	theorem  = regexp.MustCompile(`\bTheorem\b`)
	header   = regexp.MustCompile(`(?m)^(From|Import|Local Open Scope|Open Scope|Set|Unset) .*\.$`)
	// What would let something pass unproved, or hide it from the runner.
	forbidden = regexp.MustCompile(`\b(Admitted|admit|Axioms?|Parameters?|Conjectures?|Primitive|` +
		`Guard Checking|Positivity Checking|Universe Checking|bypass_check|Declare ML|Load|Redirect|Drop|` +
		`Extract|Extraction|Abort|Fail|Context|Module|Notation|Reserved|Infix|Coercion|Canonical)\b`)
	outside = regexp.MustCompile(`^\s*(Variables?|Hypothes[ie]s|Let)\b`)
	opens   = regexp.MustCompile(`^Section (\w+)\.`)
	closes  = regexp.MustCompile(`^End (\w+)\.`)
)

// Theorems returns the theorems of a source in its order.
func Theorems(text string) (out []Statement) {
	for _, s := range states.FindAllStringSubmatch(bare(text), -1) {
		out = append(out, Statement{s[1], line(strings.TrimPrefix(strings.TrimSpace(s[2]), ":"))})
	}
	return out
}

// Header returns the lines of a source that say how terms are read and printed.
func Header(text string) string { return strings.Join(header.FindAllString(bare(text), -1), "\n") }

// Check returns what a source has that no proof may have: words that leave something
// unproved or that change how statements read, a variable outside a section (which is an
// axiom by another name), and theorems that Theorems does not see.
func Check(file, text string) (errs []error) {
	text = bare(text)
	open := 0
	for i, l := range strings.Split(text, "\n") {
		if w := forbidden.FindString(l); w != "" {
			errs = append(errs, fmt.Errorf("%s:%d: %s has no place in a proof", file, i+1, w))
		}
		switch {
		case opens.MatchString(l):
			open++
		case closes.MatchString(l):
			open--
		case open == 0 && outside.MatchString(l):
			errs = append(errs, fmt.Errorf("%s:%d: %q outside a section is an axiom", file, i+1, strings.TrimSpace(l)))
		}
	}
	if a, b := len(theorem.FindAllString(text, -1)), len(states.FindAllString(text, -1)); a != b {
		errs = append(errs, fmt.Errorf("%s: %d times the word Theorem, but %d statements of the form "+
			"\"Theorem NAME ... .\" at the start of a line", file, a, b))
	}
	return errs
}

// Order puts each file after those that it requires. Keys of text are names without ".v".
func Order(text map[string]string) (order []string, err error) {
	const visiting, done = 1, 2
	seen := map[string]int{}
	var visit func(m, by string)
	visit = func(m, by string) {
		if _, ok := text[m]; !ok && err == nil {
			err = fmt.Errorf("%s.v requires %s, which is not there", by, m)
		}
		if seen[m] == visiting && err == nil {
			err = fmt.Errorf("%s.v requires itself", m)
		}
		if seen[m] != 0 {
			return
		}
		seen[m] = visiting
		for _, r := range requires.FindAllStringSubmatch(bare(text[m]), -1) {
			for _, n := range strings.Fields(r[1]) {
				visit(n, m)
			}
		}
		seen[m] = done
		order = append(order, m)
	}
	for _, m := range slices.Sorted(maps.Keys(text)) {
		visit(m, m)
	}
	return order, err
}

// Lock holds p to the sources it speaks of: the same files with the same hashes, the same
// theorems with the same statements, no axiom that is not in Allowed. Keys of text are
// names without ".v". What only the prover can say, it cannot check.
func Lock(text map[string]string, p *spec.Proofs) (errs []error) {
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if got := p.Sum(); got != p.Digest {
		bad("proved.json: digest %q, its content has %s", p.Digest, got)
	}
	source := map[string]string{} // statements by full name
	for _, m := range slices.Sorted(maps.Keys(text)) {
		switch was, ok := p.Sources[m+".v"]; {
		case !ok:
			bad("%s.v is not in proved.json", m)
		case was != Hash(text[m]):
			bad("%s.v changed since the prover ran", m)
		}
		errs = append(errs, Check(m+".v", text[m])...)
		for _, s := range Theorems(text[m]) {
			source[m+"."+s.Name] = s.Text
		}
	}
	for _, f := range slices.Sorted(maps.Keys(p.Sources)) {
		if _, ok := text[strings.TrimSuffix(f, ".v")]; !ok {
			bad("proved.json speaks of %s, which is not there", f)
		}
	}
	last := ""
	for _, t := range p.Theorems {
		if t.Name <= last {
			bad("proved.json: %s is out of order or occurs twice", t.Name)
		}
		last = t.Name
		switch s, ok := source[t.Name]; {
		case !ok:
			bad("proved.json: no source has %s", t.Name)
		case s != t.Statement:
			bad("proved.json: the source states %s otherwise", t.Name)
		}
		if t.Type == "" {
			bad("proved.json: %s has no type", t.Name)
		}
		for _, a := range t.Axioms {
			if !slices.Contains(Allowed, a) {
				bad("%s rests on %s", t.Name, a)
			}
		}
		delete(source, t.Name)
	}
	for _, n := range slices.Sorted(maps.Keys(source)) {
		bad("proved.json lacks %s", n)
	}
	return errs
}

// Hash returns the SHA-256 of a source in hex.
func Hash(text string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(text))) }

// line puts one space where there is white space.
func line(s string) string { return strings.Join(strings.Fields(s), " ") }

// bare blanks comments, which nest, and what strings hold; lines stay where they are.
func bare(text string) string {
	out := []byte(text)
	depth, quoted := 0, false
	for i := 0; i < len(out); i++ {
		switch {
		case out[i] == '"':
			quoted = !quoted
			if depth > 0 {
				out[i] = ' '
			}
		case !quoted && strings.HasPrefix(text[i:], "(*"):
			depth++
			out[i], out[i+1] = ' ', ' '
			i++
		case !quoted && depth > 0 && strings.HasPrefix(text[i:], "*)"):
			depth--
			out[i], out[i+1] = ' ', ' '
			i++
		case (quoted || depth > 0) && out[i] != '\n':
			out[i] = ' '
		}
	}
	return string(out)
}
