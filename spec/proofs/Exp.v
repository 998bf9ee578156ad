(* What Attention, Families, Ladder and Online suppose of e is so for the real exponential. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp Require Import ring.
From mathcomp Require Import boolp classical_sets reals signed topology normedtype sequences exp realfun derive.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Import numFieldTopology.Exports numFieldNormedType.Exports.
Local Open Scope ring_scope.
Local Open Scope classical_set_scope.

Section Exp.
Variable R : realType.

Lemma slope (a b : R) : a < b -> exists2 c, a < c < b & expR b - expR a = expR c * (b - a).
Proof.
move=> ab.
have [|c] := @MVT R (@expR R) (@expR R) a b ab (fun x _ => is_derive_expR x).
  by apply: continuous_subspaceT => x; apply: continuous_expR.
by rewrite in_itv /= => cab e; exists c.
Qed.

Lemma tangent (x : R) : 1 + x <= expR x.
Proof.
rewrite -subr_ge0; have [x0|x0|->] := ltgtP x 0; last by rewrite expR0 addr0 subrr.
  have [c /andP [_ c0] e] := slope x0.
  rewrite (_ : expR x - (1 + x) = (1 - expR c) * (- x)).
    by apply: mulr_ge0; rewrite ?oppr_ge0 ?subr_ge0; apply: ltW; rewrite ?expR_lt1.
  by move: e; rewrite expR0 sub0r mulrBl mul1r => <-; move: (expR x) => y; ring.
have [c /andP [c0 _] e] := slope x0.
rewrite (_ : expR x - (1 + x) = (expR c - 1) * x).
  by apply: mulr_ge0; rewrite ?subr_ge0; apply: ltW; rewrite ?expR_gt1.
by move: e; rewrite expR0 subr0 mulrBl mul1r => <-; rewrite opprD addrA.
Qed.

Theorem exp_meets :
  [/\ forall x y : R, expR (x + y) = expR x * expR y, forall x : R, 0 < expR x,
      forall x : R, 1 + x <= expR x & forall x y : R, x <= y -> expR x <= expR y].
Proof.
split=> [x y|x|x|x y xy]; [exact: expRD|exact: expR_gt0|exact: tangent|].
by rewrite ler_expR.
Qed.

End Exp.
