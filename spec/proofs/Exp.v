(* What Attention, Families, Ladder and Online suppose of e is so for the real exponential. *)
From Coq Require Import Reals.
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp Require Import Rstruct.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Theorem exp_meets :
  [/\ forall x y : R, exp (x + y) = exp x * exp y, forall x : R, 0 < exp x,
      forall x : R, 1 + x <= exp x & forall x y : R, x <= y -> exp x <= exp y].
Proof.
split=> [x y|x|x|x y].
- exact: exp_plus.
- by apply/RltP; apply: exp_pos.
- by apply/RleP; apply: exp_ineq1_le.
move=> /RleP [lt|->]; last exact: lexx.
by apply/RleP; left; apply: exp_increasing.
Qed.
