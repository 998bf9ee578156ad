package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/spec"
)

// needProver skips a test unless PHASECONV_PROVER is set, as CI does: each question to a
// prover takes a second or more.
func needProver(t *testing.T) {
	t.Helper()
	if os.Getenv("PHASECONV_PROVER") == "" {
		t.Skip("PHASECONV_PROVER is not set")
	}
	for _, p := range []string{"coqc", "coqchk"} {
		if _, err := exec.LookPath(p); err != nil {
			t.Fatal(err)
		}
	}
}

const first = `From Coq Require Import Arith.
Section S.
Variable x : nat.
Lemma swap y : x + y = y + x.
Proof. apply Nat.add_comm. Qed.
Theorem swapped (y : nat) :
  x + y <= y + x.
Proof. rewrite swap; apply le_n. Qed.
End S.
`

const second = `From Coq Require Import Classical FunctionalExtensionality.
From phaseconv Require Import A.
Theorem middle (P : Prop) : P \/ ~ P.
Proof. apply classic. Qed.
`

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestProve: the runner writes what the kernel says, accepts it again, and refuses every
// way around a proof, also where the files were changed together.
func TestProve(t *testing.T) {
	needProver(t)
	dir := t.TempDir()
	write(t, dir, "A.v", first)
	write(t, dir, "B.v", second)
	var log strings.Builder
	if err := run(context.Background(), &log, dir, false, true); err != nil {
		t.Fatal(err)
	}
	said := log.String()
	if !strings.Contains(said, "2 theorems, 1 without any axiom") || !strings.Contains(said, "coqchk agrees") {
		t.Error(said)
	}
	b, err := os.ReadFile(filepath.Join(dir, ledger))
	if err != nil {
		t.Fatal(err)
	}
	p, err := spec.ParseProofs(b)
	if err != nil {
		t.Fatal(err)
	}
	if m := p.Find("B.middle"); m == nil || !slices.Equal(m.Axioms, []string{"Classical_Prop.classic"}) {
		t.Errorf("%+v", m)
	}
	if s := p.Find("A.swapped"); s == nil || len(s.Axioms) != 0 ||
		s.Type != "forall x y : nat, x + y <= y + x" || s.Statement != "(y : nat) : x + y <= y + x" {
		t.Errorf("%+v", s)
	}
	if err := run(context.Background(), &log, dir, true, false); err != nil {
		t.Error(err)
	}
	left, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(left) != 3 {
		t.Errorf("left behind: %q, %v", left, err)
	}

	const differs = "not what the prover says"
	for _, c := range []struct{ name, from, to, says string }{
		{"a proof given up", "rewrite swap; apply le_n. Qed.", "Admitted.", "A.v:8: Admitted has no place"},
		{"an axiom", "Section S.", "Axiom magic : False.\nSection S.", "Axiom has no place"},
		{"a false statement", "x + y <= y + x", "x + y < y + x", "A.v"},
		{"another statement", "x + y <= y + x", "x + y <= y + x + 0", "A.v"},
		{"another hypothesis", "Variable x : nat.", "Variable x : nat.\nHypothesis H : x = 0.", differs},
		{"a changed comment", "Section S.", "(* S *)\nSection S.", differs},
		{"another proof", "Proof. rewrite swap; apply le_n. Qed.", "Proof. now rewrite swap. Qed.", differs},
	} {
		if !strings.Contains(first, c.from) {
			t.Fatalf("%s: nothing to change", c.name)
		}
		write(t, dir, "A.v", strings.Replace(first, c.from, c.to, 1))
		if err := run(context.Background(), &log, dir, true, false); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", c.name, err, c.says)
		}
	}
	// An axiom outside the list, by way of a library: the source has no word that tells.
	write(t, dir, "A.v", first)
	const decide = "destruct (excluded_middle_informative P); auto."
	write(t, dir, "B.v", "From Coq Require Import ClassicalEpsilon.\n"+
		strings.Replace(second, "apply classic.", decide, 1))
	err = run(context.Background(), &log, dir, true, false)
	if err == nil || !strings.Contains(err.Error(), "B.middle rests on ClassicalEpsilon.constructive_indefinite") {
		t.Error(err)
	}
	// proved.json edited with its digest: only the prover can tell.
	write(t, dir, "B.v", second)
	for name, edit := range map[string]func(q *spec.Proofs){
		"an axiom less":   func(q *spec.Proofs) { q.Theorems[1].Axioms = []string{} },
		"another type":    func(q *spec.Proofs) { q.Theorems[0].Type = "forall x y : nat, x + y = y + x" },
		"another theorem": func(q *spec.Proofs) { q.Theorems = append(q.Theorems, spec.Theorem{Name: "C.c"}) },
	} {
		q := *p
		q.Theorems = slices.Clone(p.Theorems)
		edit(&q)
		q.Digest = q.Sum()
		write(t, dir, ledger, string(q.Encode()))
		if err := run(context.Background(), &log, dir, true, false); err == nil || !strings.Contains(err.Error(), differs) {
			t.Errorf("%s: %v", name, err)
		}
	}
	write(t, dir, ledger, strings.Replace(string(b), "A.swapped", "A.swopped", 1))
	if err := run(context.Background(), &log, dir, true, false); err == nil || !strings.Contains(err.Error(), "digest") {
		t.Errorf("an edit by hand: %v", err)
	}
}

// TestAxioms: whatever the prover prints in the first column is an axiom, so that what it
// says of unsafe definitions does not pass either.
func TestAxioms(t *testing.T) {
	for out, want := range map[string][]string{
		"Closed under the global context\n":                         {},
		"Axioms:\nb.x : nat\na.y\n  : forall n : nat,\n    n = n\n": {"a.y", "b.x"},
		"Axioms:\nf is assumed to be guarded.\n":                    {"f"},
		"Type hierarchy is collapsed (logic is inconsistent)\n":     {"Type"},
	} {
		if got := axioms(out); !slices.Equal(got, want) {
			t.Errorf("%q: %q, want %q", out, got, want)
		}
	}
}
