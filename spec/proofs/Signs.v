(* A Hadamard rotation after random signs: what holds for every key in the mean over signs.
   (For each key it does not: OneBit, hadamard_single.) *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp Require Import ring.
From phaseconv Require Import Vec OneBit Sample.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Signs.
Variables (R : realFieldType) (d : nat).
Implicit Types (H : 'M[R]_d) (x : 'cV[R]_d).

(* d independent signs, each as likely as its opposite. *)
Definition fair (_ : bool) : R := 2%:R^-1.
Definition sign_of (c : bool) : R := if c then 1 else -1.
Definition signed (o : {ffun 'I_d -> bool}) x : 'cV[R]_d := \col_k (sign_of (o k) * x k 0).

Lemma fair_ge0 c : 0 <= fair c.
Proof. by rewrite invr_ge0 ler0n. Qed.

Lemma two_neq0 : 2%:R != 0 :> R.
Proof. by rewrite pnatr_eq0. Qed.

Lemma fair_sum : \sum_c fair c = 1.
Proof. by rewrite big_bool /= /fair -[RHS](mulfV two_neq0) mulr_natl mulr2n. Qed.

Lemma sign_mean : mean fair sign_of = 0.
Proof. by rewrite /mean big_bool /= mulr1 mulrN1 subrr. Qed.

Lemma sign_square : mean fair (fun c => sign_of c ^+ 2) = 1.
Proof.
rewrite -[RHS]fair_sum; apply: eq_bigr => c _.
by case: c; rewrite /= ?sqrrN expr1n mulr1.
Qed.

(* Signs change no length. *)
Lemma signed_sq o x : sq (signed o x) = sq x.
Proof.
rewrite !sqE; apply: eq_bigr => k _; rewrite mxE exprMn.
by rewrite /sign_of; case: (o k); rewrite ?sqrrN expr1n mul1r.
Qed.

(* Each coordinate of the rotated key has the mean energy that its row of squares gives: |x|^2/d
   where all entries are of one size and the matrix is orthogonal. *)
Theorem coordinate_energy H x i :
  expect fair (fun o => (H *m signed o x) i 0 ^+ 2) = \sum_k H i k ^+ 2 * x k 0 ^+ 2.
Proof.
have E o : (H *m signed o x) i 0 ^+ 2 =
    \sum_k \sum_l (H i k * x k 0) * (H i l * x l 0) * (sign_of (o k) * sign_of (o l)).
  rewrite mxE expr2 mulr_suml; apply: eq_bigr => k _; rewrite mulr_sumr.
  apply: eq_bigr => l _; rewrite !mxE.
  by move: (sign_of (o k)) (sign_of (o l)) (H i k) (H i l) (x k 0) (x l 0) => f g a b c e; ring.
have -> : expect fair (fun o => (H *m signed o x) i 0 ^+ 2) =
    expect fair (fun o => \sum_k \sum_l (H i k * x k 0) * (H i l * x l 0) * (sign_of (o k) * sign_of (o l))).
  by apply: eq_bigr => o _; rewrite E.
rewrite expect_sum; apply: eq_bigr => k _.
rewrite expect_sum (bigD1 k) //= big1 ?addr0 => [|l lk].
  by rewrite expectZ (expect_pair fair_sum _ _ sign_mean) eqxx sign_square mulr1 mulrACA -!expr2.
by rewrite expectZ (expect_pair fair_sum _ _ sign_mean) eq_sym (negbTE lk) mulr0.
Qed.

Theorem hadamard_flat_in_mean H x (h : R) i : orthogonal H -> (forall r c, H r c ^+ 2 = h) ->
  expect fair (fun o => (H *m signed o x) i 0 ^+ 2) = sq x / d%:R.
Proof.
move=> o flat; rewrite coordinate_energy (eq_bigr (fun k => h * x k 0 ^+ 2)) => [|k _]; last by rewrite flat.
rewrite -mulr_sumr -sqE; have dn : d%:R != 0 :> R by rewrite pnatr_eq0 -lt0n (leq_trans _ (ltn_ord i)).
suff -> : h = d%:R^-1 by rewrite mulrC.
have := congr1 (fun M : 'M[R]_d => M i i) o.
rewrite !mxE eqxx (eq_bigr (fun=> h)) => [|k _]; last by rewrite mxE -expr2 flat.
rewrite sumr_const card_ord => e.
by apply: (mulfI dn); rewrite mulr_natl e mulfV.
Qed.

End Signs.
