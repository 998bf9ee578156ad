(* Attention by a finite state: slots that stand for several keys, sums that decay, and parts
   of a softmax computed apart. e is the exponential; all that is used of it is stated. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp Require Import ring.
From phaseconv Require Import Vec Attention.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

(* A slot: a mass, and the mean of what it stands for (key and value, one vector here). *)
Section Slot.
Variables (R : realFieldType) (d : nat).

Definition slot : Type := (R * 'cV[R]_d)%type.
Implicit Types (p q r : slot).

Definition merge p q : slot := (p.1 + q.1, (p.1 + q.1)^-1 *: (p.1 *: p.2 + q.1 *: q.2)).

Lemma mergeC p q : merge p q = merge q p.
Proof. by rewrite /merge [p.1 + _]addrC [p.1 *: _ + _]addrC. Qed.

Lemma mergeA p q r : 0 < p.1 -> 0 < q.1 -> 0 < r.1 ->
  merge (merge p q) r = merge p (merge q r).
Proof.
move=> p0 q0 r0; have pq : p.1 + q.1 != 0 by rewrite gt_eqF // addr_gt0.
have qr : q.1 + r.1 != 0 by rewrite gt_eqF // addr_gt0.
by rewrite /merge /= !scalerA !divff // !scale1r !addrA.
Qed.

(* The state after any order of merging is that of the tokens that share the slot, without
   recurrence: the sum of their masses and their weighted mean. *)
Definition mass (l : seq slot) : R := \sum_(p <- l) p.1.
Definition direct (l : seq slot) : slot := (mass l, (mass l)^-1 *: \sum_(p <- l) p.1 *: p.2).

Theorem replay p l : (forall q, q \in p :: l -> 0 < q.1) -> foldl merge p l = direct (p :: l).
Proof.
elim: l p => [|q l IH] p H.
  have p0 : p.1 != 0 by rewrite gt_eqF // H // mem_head.
  by rewrite /direct /mass !big_cons !big_nil !addr0 scalerA mulVf // scale1r -surjective_pairing.
have p0 : 0 < p.1 by rewrite H // mem_head.
have q0 : 0 < q.1 by rewrite H // !inE eqxx orbT.
have pq : p.1 + q.1 != 0 by rewrite gt_eqF // addr_gt0.
rewrite /= IH => [|r].
  by rewrite /direct /mass !big_cons /= scalerA divff // scale1r !addrA.
by rewrite inE => /orP [/eqP ->|rl]; [rewrite /= addr_gt0|rewrite H // !inE rl !orbT].
Qed.

(* So the order of merging does not matter. *)
Theorem merge_order p l p' l' : (forall q, q \in p :: l -> 0 < q.1) -> perm_eq (p :: l) (p' :: l') ->
  foldl merge p l = foldl merge p' l'.
Proof.
move=> H e; rewrite !replay // => [|q]; last by rewrite -(perm_mem e); apply: H.
by rewrite /direct /mass !(perm_big _ e).
Qed.

End Slot.

(* A slot's share of a query's denominator: masses a_i = e(mu.k_i), mean key m, count
   e(-mu.m) sum a: never more than what its keys have, since e is convex. *)
Section Denominator.
Variables (R : realFieldType) (e : R -> R).
Hypothesis eD : forall x y, e (x + y) = e x * e y.
Hypothesis e_gt0 : forall x, 0 < e x.
Hypothesis e_tangent : forall x, 1 + x <= e x.
Variables (I : finType) (d : nat) (k : I -> 'cV[R]_d) (mu : 'cV[R]_d).

Definition slot_masses (i : I) : R := e (dot mu (k i)).
Definition slot_key : 'cV[R]_d := (\sum_i slot_masses i)^-1 *: \sum_i slot_masses i *: k i.

Lemma jensen (a y : I -> R) : (forall i, 0 <= a i) -> 0 < \sum_i a i ->
  (\sum_i a i) * e ((\sum_i a i * y i) / \sum_i a i) <= \sum_i a i * e (y i).
Proof.
move=> a0 A0; set A := \sum_i a i; set m := _ / A.
have -> : A * e m = \sum_i a i * (e m * (1 + (y i - m))).
  rewrite (eq_bigr (fun i => a i * e m + e m * (a i * y i) - e m * m * a i)) => [|i _]; last by ring.
  rewrite sumrB big_split -mulr_suml -!mulr_sumr /= -/A.
  have -> : \sum_i a i * y i = m * A by rewrite divfK // gt_eqF.
  by move: (e m) => em; ring.
apply: ler_sum => i _; apply: le_mul2l => //.
have {2}-> : y i = m + (y i - m) by rewrite addrC subrK.
by rewrite eD; apply: le_mul2l; [apply: ltW|apply: e_tangent].
Qed.

Theorem denominator_below (q : 'cV[R]_d) : (0 < #|I|)%N ->
  (\sum_i slot_masses i) * e (dot q slot_key - dot mu slot_key) <= \sum_i e (dot q (k i)).
Proof.
move=> /card_gt0P [i0 _]; have A0 : 0 < \sum_i slot_masses i.
  by rewrite (bigD1 i0) //= pos_add ?sumr_ge0 // => [|i _]; [apply: e_gt0|apply: ltW; apply: e_gt0].
have E i : slot_masses i * e (dot q (k i) - dot mu (k i)) = e (dot q (k i)).
  by rewrite /slot_masses -eD addrC subrK.
rewrite -(eq_bigr _ (fun i _ => E i)).
have -> : dot q slot_key - dot mu slot_key =
          (\sum_i slot_masses i * (dot q (k i) - dot mu (k i))) / \sum_i slot_masses i.
  have L (z : 'cV[R]_d) : dot z slot_key = (\sum_i slot_masses i * dot z (k i)) / \sum_i slot_masses i.
    rewrite /slot_key dotZr mulrC; congr (_ / _).
    elim/big_ind2: _ => [|x1 x2 y1 y2 <- <-|i _]; first by rewrite dotC dot0l.
      by rewrite dotDr.
    by rewrite dotZr.
  rewrite !L -mulrBl; congr (_ / _); rewrite -sumrB.
  by apply: eq_bigr => i _; rewrite mulrBr.
by apply: jensen => // i; apply: ltW; apply: e_gt0.
Qed.

End Denominator.

(* A sum that decays by g for each token. *)
Section Decay.
Variables (R : realFieldType) (g : R) (x : nat -> R).

Fixpoint decayed (z : R) (n : nat) : R := if n is n'.+1 then g * decayed z n' + x n' else z.

(* Without recurrence: the newest token whole, the oldest by g^(n-1). *)
Theorem decayed_direct z n : decayed z n = g ^+ n * z + \sum_(i < n) g ^+ (n.-1 - i) * x i.
Proof.
elim: n => [|n IH]; first by rewrite big_ord0 addr0 expr0 mul1r.
rewrite big_ord_recr /= subnn expr0 mul1r addrA; congr (_ + _).
rewrite IH mulrDr mulrA -exprS; congr (_ + _); rewrite mulr_sumr.
by apply: eq_bigr => i _; rewrite mulrA -exprS; case: n i {IH} => [[]|n i] //; rewrite subSn // -ltnS.
Qed.

(* What comes in stays below U / (1 - g): a bound on the state, and on an error of U a token. *)
Theorem decay_bound z U n : 0 <= g < 1 -> (forall i, `|x i| <= U) ->
  `|decayed z n| <= g ^+ n * `|z| + U * (1 - g ^+ n) / (1 - g).
Proof.
case/andP=> g0 g1 xU; have g1' : 1 - g != 0 by rewrite subr_eq0 eq_sym lt_eqF.
elim: n => [|n IH]; first by rewrite expr0 mul1r subrr mulr0 mul0r addr0.
rewrite /=; apply: (le_trans (le_norm_add _ _)).
rewrite normrM (ger0_norm g0).
have -> : g ^+ n.+1 * `|z| + U * (1 - g ^+ n.+1) / (1 - g) =
  g * (g ^+ n * `|z| + U * (1 - g ^+ n) / (1 - g)) + U.
  by rewrite exprS; field.
by apply: le_add => //; apply: le_mul2l.
Qed.

End Decay.
