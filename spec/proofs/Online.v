(* A softmax computed in parts, and what errors of scores and values do to its output. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp Require Import ring.
From phaseconv Require Import Vec Attention.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Online.
Variables (R : realFieldType) (e : R -> R).
Hypothesis eD : forall x y, e (x + y) = e x * e y.
Hypothesis e_gt0 : forall x, 0 < e x.

(* The state of a part P of the tokens, against any reference m (its maximum, say): the sum
   of weights and the weighted sum of values. *)
Section Parts.
Variables (n d : nat) (x : 'I_n -> R) (v : 'I_n -> 'cV[R]_d).
Implicit Types (P Q : pred 'I_n) (m : R).

Definition part_sum P m : R := \sum_(j | P j) e (x j - m).
Definition part_out P m : 'cV[R]_d := \sum_(j | P j) e (x j - m) *: v j.

Lemma rebase m m' a : e (a - m') = e (m - m') * e (a - m).
Proof. by rewrite -eD; congr (e _); ring. Qed.

(* A part moves to another reference by one factor, ... *)
Theorem part_rebase P m m' :
  part_sum P m' = e (m - m') * part_sum P m /\ part_out P m' = e (m - m') *: part_out P m.
Proof.
rewrite /part_sum /part_out mulr_sumr scaler_sumr.
by split; apply: eq_bigr => j _; rewrite (rebase m) ?scalerA.
Qed.

(* ... two parts that together have each token once add up at a common one, ... *)
Theorem part_join P m1 m2 m :
  part_sum xpredT m = e (m1 - m) * part_sum P m1 + e (m2 - m) * part_sum (predC P) m2 /\
  part_out xpredT m = e (m1 - m) *: part_out P m1 + e (m2 - m) *: part_out (predC P) m2.
Proof.
have [<- <-] := part_rebase P m1 m; have [<- <-] := part_rebase (predC P) m2 m.
by rewrite /part_sum /part_out (bigID P) [in X in _ /\ X](bigID P).
Qed.

(* ... and the quotient is attention, whatever the reference. *)
Theorem online_exact m : (0 < n)%N ->
  (part_sum xpredT m)^-1 *: part_out xpredT m = attend e x v.
Proof.
move=> n0; have S0 : \sum_i e (x i) != 0.
  rewrite gt_eqF // (bigD1 (Ordinal n0)) //= pos_add ?sumr_ge0 // => i _.
  exact: ltW.
have E a : e (a - m) = e (- m) * e a by rewrite -eD addrC.
rewrite /part_sum /part_out /attend (eq_bigr (fun j => e (- m) * e (x j))) => [|j _]; last exact: E.
rewrite -mulr_sumr scaler_sumr; apply: eq_bigr => j _.
rewrite /softmax E scalerA invfM mulrACA mulVf ?gt_eqF // mul1r.
by rewrite mulrC.
Qed.

End Parts.

(* Errors. Scores y instead of x, off by at most eps, and values v' instead of v, off by at
   most eta in each number: kept tokens have neither. *)
Section Errors.
Hypothesis e_mono : forall x y, x <= y -> e x <= e y.
Variables (n : nat).
Implicit Types (x y : 'I_n -> R).

Lemma eN a : e (- a) = (e a)^-1.
Proof.
have e1 : e 0 = 1.
  have := eD 0 0; rewrite addr0 -{1}[e 0]mulr1 => /mulfI <- //.
  by rewrite gt_eqF.
by apply: (mulIf (lt0r_neq0 (e_gt0 a))); rewrite -eD addNr e1 mulVf // gt_eqF.
Qed.

Lemma score_factor x y eps j : (forall i, `|y i - x i| <= eps) ->
  e (x j) * e (- eps) <= e (y j) /\ e (y j) <= e (x j) * e eps.
Proof.
move=> H; have := H j; rewrite ler_norml => /andP [lo hi].
have -> : y j = x j + (y j - x j) by ring.
by rewrite eD; split; apply: le_mul2l; [apply: ltW|apply: e_mono|apply: ltW|apply: e_mono].
Qed.

(* No weight changes by more than a factor e(2 eps), either way. *)
Theorem softmax_error x y eps j : (0 < n)%N -> (forall i, `|y i - x i| <= eps) ->
  softmax e y j <= softmax e x j * e (eps + eps).
Proof.
move=> n0 H; have P (z : 'I_n -> R) : 0 < \sum_i e (z i).
  by rewrite (bigD1 (Ordinal n0)) //= pos_add ?sumr_ge0 // => i _; apply: ltW.
have D : (\sum_i e (x i)) * e (- eps) <= \sum_i e (y i).
  by rewrite mulr_suml; apply: ler_sum => i _; have [] := score_factor i H.
have [_ N] := score_factor j H.
rewrite /softmax eD; apply: le_divl => //.
have -> : e (x j) / (\sum_i e (x i)) * (e eps * e eps) * (\sum_i e (y i)) =
  (e (x j) * e eps) * (e eps * (\sum_i e (y i)) / \sum_i e (x i)) by ring.
rewrite -[leLHS]mulr1; apply: le_mul; rewrite ?ler01 //; first exact: ltW.
apply: le_divr => //; rewrite mul1r.
have := le_mul2l (ltW (e_gt0 eps)) D; rewrite mulrCA eN divff ?mulr1 //.
by rewrite gt_eqF.
Qed.

Theorem attention_error d x y eps eta (v v' : 'I_n -> 'cV[R]_d) i : (0 < n)%N ->
  (forall j, `|y j - x j| <= eps) -> (forall j, `|v' j i 0 - v j i 0| <= eta) ->
  `|attend e y v' i 0 - attend e x v i 0| <=
  (e (eps + eps) - 1) * (\sum_j softmax e x j * `|v j i 0|) + eta.
Proof.
move=> n0 H V.
have P (z : 'I_n -> R) : 0 < \sum_j e (z j).
  by rewrite (bigD1 (Ordinal n0)) //= pos_add ?sumr_ge0 // => j _; apply: ltW.
have w0 (z : 'I_n -> R) j : 0 <= softmax e z j by rewrite mulr_ge0 ?invr_ge0 ?(ltW (P _)) ?(ltW (e_gt0 _)).
have w1 (z : 'I_n -> R) : \sum_j softmax e z j = 1 by rewrite /softmax -mulr_suml divff // gt_eqF ?P.
have F j : `|softmax e y j - softmax e x j| <= (e (eps + eps) - 1) * softmax e x j.
  have up := softmax_error j n0 H.
  have dn : softmax e x j <= softmax e y j * e (eps + eps).
    by apply: softmax_error => // k; rewrite distrC.
  have e1 : 1 <= e (eps + eps).
    rewrite -[leLHS](w1 y) -[leRHS]mul1r -(w1 x) mulr_suml.
    by apply: ler_sum => k _; apply: softmax_error.
  rewrite ler_norml; apply/andP; split; rewrite -subr_ge0; last first.
    have -> : (e (eps + eps) - 1) * softmax e x j - (softmax e y j - softmax e x j) =
      softmax e x j * e (eps + eps) - softmax e y j by ring.
    by rewrite subr_ge0.
  move: up dn e1 (w0 x j) (w0 y j); move: (softmax e x j) (softmax e y j) (e _) => a b f up dn f1 a0 b0.
  have -> : b - a - - ((f - 1) * a) = b + (f - 1 - 1) * a by ring.
  have [f2|f2] := leP 1 (f - 1).
    by rewrite addr_ge0 // mulr_ge0 // subr_ge0.
  have b1 : a <= b * f by [].
  have g : 0 <= f * (b + (f - 1 - 1) * a).
    have -> : f * (b + (f - 1 - 1) * a) = (b * f - a) + (f - 1) ^+ 2 * a by ring.
    by rewrite addr_ge0 ?subr_ge0 // mulr_ge0 ?sqr_ge0.
  by move: g; rewrite pmulr_rge0 // (lt_le_trans ltr01).
rewrite /attend !summxE -sumrB.
have -> : \sum_j ((softmax e y j *: v' j) i 0 - (softmax e x j *: v j) i 0) =
  \sum_j (softmax e y j - softmax e x j) * v j i 0 + \sum_j softmax e y j * (v' j i 0 - v j i 0).
  rewrite -big_split; apply: eq_bigr => j _; rewrite !mxE /=.
  by move: (softmax e y j) (softmax e x j) (v j i 0) (v' j i 0) => a b c f; ring.
apply: (le_trans (le_norm_add _ _)); apply: le_add.
  apply: (le_trans (ler_norm_sum _ _ _)); rewrite mulr_sumr; apply: ler_sum => j _.
  by rewrite normrM mulrA; apply: le_mul.
apply: (le_trans (ler_norm_sum _ _ _)).
rewrite -[leRHS]mul1r -(w1 y) mulr_suml; apply: ler_sum => j _.
by rewrite normrM (ger0_norm (w0 y j)); apply: le_mul2l.
Qed.

End Errors.
End Online.
