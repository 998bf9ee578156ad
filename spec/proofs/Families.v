(* Identities that come with other families: channels without RoPE, sinks, QK-norms, latent
   attention, and keys and values that several layers read. *)
From mathcomp Require Import all_ssreflect fingroup perm all_algebra.
From mathcomp Require Import ring.
From phaseconv Require Import Vec Rope Attention Norm.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Attention.
Variables (R : realFieldType) (e : R -> R).
Hypothesis eD : forall x y, e (x + y) = e x * e y.
Hypothesis e_gt0 : forall x, 0 < e x.

Lemma e0 : e 0 = 1.
Proof.
have := eD 0 0; rewrite addr0 -{1}[e 0]mulr1 => /mulfI <- //.
by rewrite gt_eqF.
Qed.

(* Partial rotary: m rotary pairs and r channels that RoPE leaves alone; the score is the sum
   over both. *)
Section Partial.
Variables (m r n dv : nat) (c s : 'rV[R]_m).
Implicit Types (q k : 'cV[R]_(m + m)) (v : 'I_n -> 'cV[R]_dv).

(* A constant in the key bias of channels without RoPE drops out, for every query. *)
Theorem unrotated_bias_free q (q' : 'cV[R]_r) (i : nat) (pos : 'I_n -> nat) (k : 'I_n -> 'cV[R]_(m + m))
    (k' : 'I_n -> 'cV[R]_r) (b : 'cV[R]_r) v :
  attend e (fun j => dot (rope c s i *m q) (rope c s (pos j) *m k j) + dot q' (k' j + b)) v =
  attend e (fun j => dot (rope c s i *m q) (rope c s (pos j) *m k j) + dot q' (k' j)) v.
Proof.
rewrite -[RHS](attend_shift eD e_gt0 _ (dot q' b)).
by apply: attend_ext => j; rewrite dotDr addrA.
Qed.

(* Dense on the channels without RoPE, angle and scale per pair on the others (G5 and G3). *)
Theorem partial_rotary_fold (A : 'M[R]_r) (t u w : 'rV[R]_m) i j q k (q' k' : 'cV[R]_r) :
  A \in unitmx ->
  (forall p, t 0 p != 0) -> (forall p, u 0 p ^+ 2 + w 0 p ^+ 2 = 1) ->
  let K := pairs (hada t u) (hada t w) in
  let Q := pairs (\row_p (u 0 p / t 0 p)) (\row_p (w 0 p / t 0 p)) in
  dot (rope c s i *m (Q *m q)) (rope c s j *m (K *m k)) + dot ((invmx A)^T *m q') (A *m k') =
  dot (rope c s i *m q) (rope c s j *m k) + dot q' k'.
Proof. by move=> uA tn uw K Q; rewrite pair_fold_exact // gauge_invariance. Qed.

End Partial.

(* A learned sink: one more score, z, in the sum, without a key and a value. *)
Section Sink.
Variables (n : nat).
Implicit Types (x : 'I_n -> R).

Definition sinkmax z x (j : 'I_n) : R := e (x j) / (e z + \sum_i e (x i)).

Lemma sink_gt0 z x : 0 < e z + \sum_i e (x i).
Proof. by rewrite pos_add ?sumr_ge0 // => i _; apply: ltW. Qed.

(* What all keys share drops out if the sink has it too, ... *)
Theorem sink_shift z x (a : R) j : sinkmax (z + a) (fun i => x i + a) j = sinkmax z x j.
Proof.
rewrite /sinkmax (eq_bigr (fun i => e (x i) * e a)) => [|i _]; last exact: eD.
by rewrite -mulr_suml !eD -mulrDl -mulf_div divff ?mulr1 // gt_eqF.
Qed.

(* ... and not otherwise: every weight changes. *)
Theorem sink_not_shifted z x (a : R) j : e a != 1 ->
  sinkmax z (fun i => x i + a) j != sinkmax z x j.
Proof.
move=> an; rewrite /sinkmax (eq_bigr (fun i => e (x i) * e a)) => [|i _]; last exact: eD.
rewrite -mulr_suml eD; set S := \sum_i e (x i).
have D : 0 < e z + S by apply: sink_gt0.
have D' : 0 < e z + S * e a by rewrite pos_add // mulr_ge0 ?sumr_ge0 ?ltW // => i _; apply: ltW.
rewrite eqr_div ?(gt_eqF D) ?(gt_eqF D') // -mulrA (inj_eq (mulfI (lt0r_neq0 (e_gt0 (x j))))) mulrDr.
rewrite (mulrC S) (inj_eq (addIr _)) -subr_eq0.
by rewrite -{2}[e z]mul1r -mulrBl mulf_eq0 subr_eq0 (gt_eqF (e_gt0 z)) orbF.
Qed.

(* So a mean of the keys, which shifts the scores of a query by q.mu, may be taken out of
   them only for queries that do not see it. *)
Theorem sink_centring_not_exact d (q mu : 'cV[R]_d) (k : 'I_n -> 'cV[R]_d) z j : e (- dot q mu) != 1 ->
  sinkmax z (fun i => dot q (k i - mu)) j != sinkmax z (fun i => dot q (k i)) j.
Proof.
move=> an; have -> : sinkmax z (fun i => dot q (k i - mu)) j = sinkmax z (fun i => dot q (k i) + - dot q mu) j.
  rewrite /sinkmax dotDr dotNr; congr (_ / (_ + _)).
  by apply: eq_bigr => i _; rewrite dotDr dotNr.
exact: sink_not_shifted.
Qed.

End Sink.

(* Keys and values of one owner, read by the query heads of several layers: one matrix on
   each, its inverse on every reader. *)
Theorem shared_kv (L G : finType) n d dv do (A : 'M[R]_d) (B : 'M[R]_dv)
    (q : L -> G -> 'cV[R]_d) (k : 'I_n -> 'cV[R]_d) (v : 'I_n -> 'cV[R]_dv)
    (Wo : L -> G -> 'M[R]_(do, dv)) :
  A \in unitmx -> B \in unitmx -> forall l g,
  (Wo l g *m invmx B) *m attend e (fun j => dot ((invmx A)^T *m q l g) (A *m k j)) (fun j => B *m v j) =
  Wo l g *m attend e (fun j => dot (q l g) (k j)) v.
Proof. by move=> uA uB l g; rewrite value_gauge // (group_gauge e (fun g => q l g)). Qed.

End Attention.

(* QK-norm: a gain of the key norm that is equal in each pair moves into the gain of the query
   norm, through RoPE. *)
Section QKNorm.
Variables (R : realFieldType) (m : nat) (c s : 'rV[R]_m).
Theorem norm_gain_moves (t : 'rV[R]_m) (gq gk : 'rV[R]_(m + m)) i j (q k : 'cV[R]_(m + m)) :
  (forall p, t 0 p != 0) ->
  let T := row_mx t t in let T' := row_mx (\row_p (t 0 p)^-1) (\row_p (t 0 p)^-1) in
  dot (rope c s i *m (diag_mx (hada T' gq) *m q)) (rope c s j *m (diag_mx (hada T gk) *m k)) =
  dot (rope c s i *m (diag_mx gq *m q)) (rope c s j *m (diag_mx gk *m k)).
Proof.
move=> tn T T'.
have D (a : 'rV[R]_m) : diag_mx (row_mx a a) = pairs a 0.
  by rewrite /pairs raddf0 oppr0 diag_mx_row.
rewrite -!diagM -!mulmxA !D.
have := @pair_fold_exact R m c s t (const_mx 1) 0 i j (diag_mx gq *m q) (diag_mx gk *m k) tn.
have -> : hada t (const_mx 1) = t by apply/rowP => p; rewrite !mxE mulr1.
have -> : hada t 0 = 0 by apply/rowP => p; rewrite !mxE mulr0.
have -> : \row_p ((const_mx 1 : 'rV[R]_m) 0 p / t 0 p) = \row_p (t 0 p)^-1.
  by apply/rowP => p; rewrite !mxE mul1r.
have -> : \row_p ((0 : 'rV[R]_m) 0 p / t 0 p) = 0 by apply/rowP => p; rewrite !mxE mul0r.
by apply=> p; rewrite !mxE expr1n expr0n addr0.
Qed.

End QKNorm.

(* Multi-head latent attention: the cache holds the normalised latent x and a rotary part r
   that all heads share; keys and values of a head are products with x. *)
Section Latent.
Variables (R : rcfType) (l d dv rr : nat).
Implicit Types (A U : 'M[R]_l) (x : 'cV[R]_l) (Wk : 'M[R]_(d, l)) (Wv : 'M[R]_(dv, l)).

(* Any invertible matrix on what is cached is taken back by the up projections, ... *)
Theorem latent_gauge A Wk Wv x (q : 'cV[R]_d) (qr kr : 'cV[R]_rr) : A \in unitmx ->
  dot q ((Wk *m invmx A) *m (A *m x)) + dot qr kr = dot q (Wk *m x) + dot qr kr /\
  (Wv *m invmx A) *m (A *m x) = Wv *m x.
Proof. by move=> u; rewrite -!mulmxA !mulKmx. Qed.

(* ... also where a runtime has absorbed them into the query. *)
Theorem latent_absorbed A Wk x (q : 'cV[R]_d) : A \in unitmx ->
  dot ((Wk *m invmx A)^T *m q) (A *m x) = dot q (Wk *m x).
Proof. by move=> u; rewrite dot_adj trmxK -mulmxA mulKmx. Qed.

(* An orthogonal one can be folded before the norm of the latent, its gain moved behind. *)
Theorem latent_norm_fold n eps U (g : 'rV[R]_l) (Wd : 'M[R]_(l, n)) Wk (y : 'cV[R]_n) : orthogonal U ->
  (Wk *m diag_mx g *m U^T) *m rmsnorm eps ((U *m Wd) *m y) = Wk *m (diag_mx g *m rmsnorm eps (Wd *m y)).
Proof.
by move=> o; rewrite -(mulmxA U) rmsnorm_orthogonal // -!mulmxA (mulmxA U^T) o mul1mx.
Qed.

End Latent.
