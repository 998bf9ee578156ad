package coq

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

const good = `(* A comment (* that nests, with Admitted *) and a Theorem. *)
From phaseconv Require Import B.
Section S.
Variable x : nat.
Theorem one (y : nat) :
  x + y = y + x.
Proof. now rewrite Nat.add_comm. Qed.
Theorem two : x = "Axiom"%string -> True.
Proof. trivial. Qed.
End S.
`

func TestTheorems(t *testing.T) {
	want := []Statement{{"one", "(y : nat) : x + y = y + x"}, {"two", `x = " "%string -> True`}}
	if got := Theorems(good); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	if errs := Check("a.v", good); errs != nil {
		t.Error(errs)
	}
	if h := Header(good); h != "From phaseconv Require Import B." {
		t.Errorf("%q", h)
	}
}

func TestOrder(t *testing.T) {
	text := map[string]string{
		"A": good, "B": "From phaseconv Require Import C D.\n", "C": "", "D": "From phaseconv Require Import C.\n",
	}
	if got, err := Order(text); err != nil || !slices.Equal(got, []string{"C", "D", "B", "A"}) {
		t.Errorf("%q, %v", got, err)
	}
	text["C"] = "From phaseconv Require Import A.\n"
	if _, err := Order(text); err == nil || !strings.Contains(err.Error(), "requires itself") {
		t.Error(err)
	}
	delete(text, "C")
	if _, err := Order(text); err == nil || !strings.Contains(err.Error(), "requires C, which is not there") {
		t.Error(err)
	}
}

func TestCheck(t *testing.T) {
	for text, says := range map[string]string{
		"Lemma a : False.\nProof. Admitted.\n":                  "a.v:2: Admitted has",
		"Lemma a : False.\nProof. admit. Qed.\n":                "admit has",
		"Axioms a b : False.\n":                                 "Axioms has",
		"Parameter a : False.\n":                                "Parameter has",
		"Section S.\nEnd S.\nHypothesis a : False.\n":           "a.v:3: ",
		"Unset Universe Checking.\n":                            "Universe Checking has",
		"#[bypass_check(guard)] Fixpoint f (n : nat) := f n.\n": "bypass_check has",
		"Notation \"a <= b\" := True.\n":                        "Notation has",
		"  Theorem a : True.\nProof. trivial. Qed.\n":           "1 times the word Theorem, but 0",
		"Theorem a : True. Proof. trivial. Qed.\n":              "",
	} {
		got := fmt.Sprint(Check("a.v", text))
		if says != "" && !strings.Contains(got, says) {
			t.Errorf("%q: %s, want %q", text, got, says)
		}
	}
}
