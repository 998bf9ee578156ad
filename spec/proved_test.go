package spec_test

import (
	"bytes"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/spec/internal/coq"
)

// proofSources returns spec/proofs/*.v, names without ".v".
func proofSources(t *testing.T) map[string]string {
	t.Helper()
	files, err := filepath.Glob("proofs/*.v")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	text := map[string]string{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		text[strings.TrimSuffix(filepath.Base(f), ".v")] = string(b)
	}
	return text
}

// TestProved is the lock that needs no prover: proved.json speaks of the sources that lie
// here, and of all their theorems in their words. Whether it says what the prover says is
// the other lock, prove -check, which CI runs.
func TestProved(t *testing.T) {
	p, err := spec.Proved()
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range coq.Lock(proofSources(t), p) {
		t.Error(err)
	}
	if p.Checker != "coqchk" {
		t.Errorf("checked by %q", p.Checker)
	}
	if b, err := os.ReadFile("proofs/proved.json"); err != nil || !bytes.Equal(b, p.Encode()) {
		t.Errorf("proved.json is not as the runner writes it (%v)", err)
	}
	readme, err := os.ReadFile("proofs/README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range slices.Sorted(maps.Keys(p.Sources)) {
		if !strings.Contains(string(readme), "["+f+"]("+f+")") {
			t.Errorf("proofs/README.md does not list %s", f)
		}
	}
	for _, a := range coq.Allowed {
		if _, short, _ := strings.Cut(a, "."); !strings.Contains(string(readme), "`"+short+"`") {
			t.Errorf("proofs/README.md does not name the axiom %s", a)
		}
	}
}

// TestProvedBroken breaks proofs and proved.json in the ways that must not pass.
func TestProvedBroken(t *testing.T) {
	good, err := spec.Proved()
	if err != nil {
		t.Fatal(err)
	}
	sources := proofSources(t)
	const old = "product balance <= product t.\nProof."
	if !strings.Contains(sources["Balance"], old) {
		t.Fatal("Balance.v no longer has what this test changes")
	}
	type change = func(map[string]string, *spec.Proofs)
	// replace changes Balance.v; with rehash also the hash that proved.json has of it.
	replace := func(from, to string, rehash bool) change {
		return func(text map[string]string, p *spec.Proofs) {
			text["Balance"] = strings.Replace(text["Balance"], from, to, 1)
			if rehash {
				p.Sources["Balance.v"] = coq.Hash(text["Balance"])
				p.Digest = p.Sum()
			}
		}
	}
	// edit changes proved.json, with its digest.
	edit := func(f func(*spec.Proofs)) change {
		return func(_ map[string]string, p *spec.Proofs) {
			f(p)
			p.Digest = p.Sum()
		}
	}
	const last = "product_attained product_lower. Qed."
	for name, c := range map[string]struct {
		change change
		says   string
	}{
		"a proof given up":       {replace(last, "Admitted.", true), "Admitted has no place"},
		"the same, no rehash":    {replace(last, "Admitted.", false), "Balance.v changed"},
		"an axiom":               {replace("Section B", "Axiom x : False.\nSection B", true), "Axiom has no place"},
		"a variable outside":     {replace("Section B", "Variable x : False.\nSection B", true), "outside a section"},
		"an unsafe flag":         {replace("Section B", "Unset Guard Checking.\nSection B", true), "Guard Checking"},
		"a changed statement":    {replace(old, "product balance <= 2%:R * product t.\nProof.", true), "otherwise"},
		"a changed comment":      {replace("(* The balance of a head", "(* A balance of a head", false), "changed"},
		"a theorem that hides":   {replace("\nTheorem balance_o", "\n Theorem balance_o", true), "the word Theorem"},
		"a lemma, not a theorem": {replace("\nTheorem balance_o", "\nLemma balance_o", true), "no source has"},
		"a file more":            {func(text map[string]string, _ *spec.Proofs) { text["M"] = "" }, "M.v is not in"},
		"a file less":            {func(text map[string]string, _ *spec.Proofs) { delete(text, "Balance") }, "speaks of"},
		"a changed hash":         {edit(func(p *spec.Proofs) { p.Sources["Balance.v"] = "0" }), "Balance.v changed"},
		"a theorem added":        {edit(func(p *spec.Proofs) { p.Theorems[0].Name = "A.a" }), "no source has A.a"},
		"a theorem left out":     {edit(func(p *spec.Proofs) { p.Theorems = p.Theorems[1:] }), "lacks Attention."},
		"an axiom in the list":   {edit(func(p *spec.Proofs) { p.Theorems[0].Axioms = []string{"X.y"} }), "rests on X.y"},
		"an edit by hand":        {func(_ map[string]string, p *spec.Proofs) { p.Theorems[0].Type = "True" }, "digest"},
		"another prover":         {func(_ map[string]string, p *spec.Proofs) { p.Prover = "Coq 99" }, "digest"},
	} {
		text := maps.Clone(sources)
		p := *good
		p.Sources, p.Theorems = maps.Clone(good.Sources), slices.Clone(good.Theorems)
		c.change(text, &p)
		var all []string
		for _, err := range coq.Lock(text, &p) {
			all = append(all, err.Error())
		}
		if !strings.Contains(strings.Join(all, "\n"), c.says) {
			t.Errorf("%s: %q, want %q", name, all, c.says)
		}
	}
	// What Proved reads is held to its digest too.
	b := bytes.Replace(good.Encode(), []byte(`"axioms": []`), []byte(`"axioms": null`), 1)
	if _, err := spec.ParseProofs(b); err == nil || !strings.Contains(err.Error(), "digest") {
		t.Errorf("an edited proved.json: %v", err)
	}
	if _, err := spec.ParseProofs([]byte(`{"lemmas": []}`)); err == nil {
		t.Error("a proved.json with an unknown member was read")
	}
}
