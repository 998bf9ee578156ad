(* Frames: the two steps of their fit, and the encoder's search for signs. A key x stands for
   M s times a scale; M has any number of columns. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp Require Import ring.
From phaseconv Require Import Vec.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

(* Keys x_j and what they are coded as, y_j (scale times signs). The rows of M are found by
   least squares: M (S + l) = T with S the moments of y, T those of x with y, and a ridge l. *)
Section Fit.
Variables (R : realFieldType) (d b N : nat) (x : 'I_N -> 'cV[R]_d).
Implicit Types (M : 'M[R]_(d, b)) (y : 'I_N -> 'cV[R]_b).

Definition fit_error M y : R := \sum_j sq (x j - M *m y j).
Definition moments y : 'M[R]_b := \sum_j y j *m (y j)^T.
Definition cross y : 'M[R]_(d, b) := \sum_j x j *m (y j)^T.

Lemma dot_trace k (a c : 'cV[R]_k) : dot a c = \tr (a *m c^T).
Proof. by rewrite dotC dotE mxtrace_mulC trace_mx11. Qed.

Definition entries M : R := \tr (M *m M^T). (* the sum of all squares *)

Lemma entries_ge0 M : 0 <= entries M.
Proof.
apply: sumr_ge0 => i _; rewrite mxE; apply: sumr_ge0 => k _.
by rewrite mxE -expr2 sqr_ge0.
Qed.

(* What solves the normal equations with a ridge l is the best of all with a price of l on
   the squares of M, also where the moments are singular. *)
Theorem ridge_best l M M' y : 0 <= l -> M *m (moments y + l%:M) = cross y ->
  fit_error M y + l * entries M <= fit_error M' y + l * entries M'.
Proof.
move=> l0 eq; pose D := M' - M.
have E j : sq (x j - M' *m y j) = sq (x j - M *m y j) - 2%:R * dot (x j - M *m y j) (D *m y j) + sq (D *m y j).
  by rewrite -sqB; congr (sq _); rewrite /D mulmxBl opprB addrA subrK.
have S : \sum_j dot (x j - M *m y j) (D *m y j) = l * \tr (M *m D^T).
  have -> : \sum_j dot (x j - M *m y j) (D *m y j) = \tr ((cross y - M *m moments y) *m D^T).
    rewrite /cross /moments mulmx_sumr -sumrB mulmx_suml raddf_sum /=.
    by apply: eq_bigr => j _; rewrite dot_trace trmx_mul (mulmxA M) -mulmxBl mulmxA.
  by rewrite -eq mulmxDr addrC addKr mul_mx_scalar -scalemxAl mxtraceZ.
have F : entries M' = entries M + 2%:R * \tr (M *m D^T) + entries D.
  have -> : M' = M + D by rewrite /D addrC subrK.
  have T : \tr (D *m M^T) = \tr (M *m D^T) by rewrite -mxtrace_tr trmx_mul trmxK.
  have TD (A B : 'M[R]_d) : \tr (A + B) = \tr A + \tr B by apply: raddfD.
  have -> : entries (M + D) = \tr ((M + D) *m (M^T + D^T)) by congr (\tr (_ *m _)); apply: raddfD.
  rewrite mulmxDl !mulmxDr !TD T /entries.
  by move: (\tr (M *m M^T)) (\tr (M *m D^T)) (\tr (D *m D^T)) => a c e; ring.
have Q : 0 <= \sum_j sq (D *m y j) + l * entries D.
  by rewrite addr_ge0 ?mulr_ge0 ?entries_ge0 // sumr_ge0 // => j _; apply: sq_ge0.
rewrite {2}/fit_error (eq_bigr _ (fun j _ => E j)) big_split sumrB -mulr_sumr /= S F -/(fit_error M y).
rewrite -subr_ge0; move: Q; move: (fit_error M y) (\sum_j _) (entries M) (entries D) (\tr _) => a c e f t Q.
by have -> : a - 2%:R * (l * t) + c + l * (e + 2%:R * t + f) - (a + l * e) = c + l * f by ring.
Qed.

Theorem least_squares M M' y : M *m moments y = cross y -> fit_error M y <= fit_error M' y.
Proof.
move=> eq; have := @ridge_best 0 M M' y (lexx 0); rewrite !mul0r !addr0.
by apply; rewrite -eq (_ : 0%:M = 0) ?addr0 // raddf0.
Qed.

(* A round of the fit, codes that are no worse for the matrix and then least squares, never
   ends with a larger error, but for the price of the ridge. *)
Theorem frame_round l M M' y y' : 0 <= l ->
  (forall j, sq (x j - M *m y' j) <= sq (x j - M *m y j)) -> M' *m (moments y' + l%:M) = cross y' ->
  fit_error M' y' <= fit_error M y + l * entries M.
Proof.
move=> l0 enc ls; apply: (@le_trans _ _ (fit_error M' y' + l * entries M')).
  by rewrite -subr_ge0 addrAC subrr add0r mulr_ge0 ?entries_ge0.
apply: (le_trans (ridge_best M l0 ls)); apply: le_add => //.
by apply: ler_sum => j _; apply: enc.
Qed.

End Fit.

(* The encoder measures the error in a metric C: with z = M^T C x and G = M^T C M, signs s have
   num = s.z and den = s^T G s. *)
Section Encode.
Variables (R : realFieldType) (d b : nat) (C : 'M[R]_d) (M : 'M[R]_(d, b)).
Hypothesis symmetric : C^T = C.
Implicit Types (x : 'cV[R]_d) (s : 'cV[R]_b) (a : R).

Definition metric_sq x : R := dot x (C *m x).
Definition coefficients x : 'cV[R]_b := M^T *m (C *m x).
Definition gram : 'M[R]_b := M^T *m C *m M.
Definition num x s : R := dot s (coefficients x).
Definition den s : R := dot s (gram *m s).

Lemma gram_sym : gram^T = gram.
Proof. by rewrite /gram !trmx_mul trmxK symmetric mulmxA. Qed.

Lemma metric_expand x s a :
  metric_sq (x - a *: (M *m s)) = metric_sq x - 2%:R * a * num x s + a ^+ 2 * den s.
Proof.
have A u v : dot u (C *m v) = dot v (C *m u) by rewrite dotC dot_adj symmetric.
rewrite /metric_sq mulmxBr -scalemxAr !(dotDl, dotDr, dotNl, dotNr, dotZl, dotZr).
have -> : dot (M *m s) (C *m x) = num x s by rewrite dot_adj.
have -> : dot x (C *m (M *m s)) = num x s by rewrite A dot_adj.
have -> : dot (M *m s) (C *m (M *m s)) = den s by rewrite /den /gram dot_adj !mulmxA.
by ring.
Qed.

(* The best scale for signs is num/den, and leaves |x|^2 - num^2/den. *)
Theorem scale_error x s : den s != 0 ->
  metric_sq (x - (num x s / den s) *: (M *m s)) = metric_sq x - num x s ^+ 2 / den s.
Proof. by move=> n; rewrite metric_expand; field. Qed.

Theorem scale_best x s a : 0 < den s ->
  metric_sq (x - (num x s / den s) *: (M *m s)) <= metric_sq (x - a *: (M *m s)).
Proof.
move=> p; rewrite scale_error ?gt_eqF // metric_expand -subr_ge0.
have -> : metric_sq x - 2%:R * a * num x s + a ^+ 2 * den s - (metric_sq x - num x s ^+ 2 / den s) =
          (a * den s - num x s) ^+ 2 / den s by field; rewrite gt_eqF.
by rewrite mulr_ge0 ?sqr_ge0 // invr_ge0 ltW.
Qed.

(* What the encoder computes for a change of one sign is what the change does. *)
Definition flip s i : 'cV[R]_b := s - (2%:R * s i 0) *: delta_mx i 0.

Lemma flipE s i k : flip s i k 0 = if k == i then - s i 0 else s k 0.
Proof.
rewrite !mxE eqxx andbT; have [->|_] := eqVneq k i; last by rewrite mulr0 subr0.
by rewrite mulr1 mulr_natl mulr2n opprD addrA subrr add0r.
Qed.

Lemma dot_delta (v : 'cV[R]_b) i : dot (delta_mx i 0) v = v i 0.
Proof.
rewrite /dot (bigD1 i) //= big1 ?addr0 => [|k ki]; first by rewrite mxE !eqxx mul1r.
by rewrite mxE (negbTE ki) mul0r.
Qed.

Theorem flip_num x s i : num x (flip s i) = num x s - 2%:R * s i 0 * coefficients x i 0.
Proof. by rewrite /num /flip dotDl dotNl dotZl dot_delta. Qed.

Theorem flip_den s i : s i 0 ^+ 2 = 1 ->
  den (flip s i) = den s - 4%:R * s i 0 * (gram *m s) i 0 + 4%:R * gram i i.
Proof.
move=> s1; rewrite /den /flip mulmxBr -scalemxAr !(dotDl, dotDr, dotNl, dotNr, dotZl, dotZr).
rewrite !dot_delta.
have -> : dot s (gram *m delta_mx i 0) = (gram *m s) i 0.
  by rewrite dotC dot_adj gram_sym dot_delta.
have -> : (gram *m delta_mx i 0 : 'cV_b) i 0 = gram i i by rewrite -colE mxE.
move: (dot s _) ((gram *m s) i 0) (gram i i) => e g h.
transitivity (e - 4%:R * s i 0 * g + 4%:R * h * s i 0 ^+ 2); first by ring.
by rewrite s1 mulr1.
Qed.

Theorem flip_gram s i k : (gram *m flip s i) k 0 = (gram *m s) k 0 - 2%:R * s i 0 * gram k i.
Proof.
have D : (gram *m delta_mx i 0 : 'cV_b) k 0 = gram k i by rewrite -colE mxE.
have B (A : 'cV[R]_b) a c : (A - a *: c) k 0 = A k 0 - a * c k 0 by rewrite !mxE.
by rewrite /flip mulmxBr -scalemxAr B D.
Qed.

(* A sign that changes only where n^2 den > num^2 e lowers the error, at the best scales. *)
Theorem search_improves x s s' : 0 < den s -> 0 < den s' ->
  num x s ^+ 2 * den s' < num x s' ^+ 2 * den s ->
  metric_sq (x - (num x s' / den s') *: (M *m s')) < metric_sq (x - (num x s / den s) *: (M *m s)).
Proof.
move=> p p' lt; rewrite !scale_error ?gt_eqF // -subr_gt0.
have -> : metric_sq x - num x s ^+ 2 / den s - (metric_sq x - num x s' ^+ 2 / den s') =
  (num x s' ^+ 2 * den s - num x s ^+ 2 * den s') / (den s * den s').
  by field; rewrite !gt_eqF.
by rewrite divr_gt0 ?mulr_gt0 // subr_gt0.
Qed.

(* Where no single change passes that test, none lowers the error: a local optimum. *)
Theorem local_optimum x s : 0 < den s ->
  (forall i, 0 < den (flip s i)) ->
  (forall i, num x (flip s i) ^+ 2 * den s <= num x s ^+ 2 * den (flip s i)) ->
  forall i a, metric_sq (x - (num x s / den s) *: (M *m s)) <= metric_sq (x - a *: (M *m flip s i)).
Proof.
move=> p pf le i a; apply: le_trans (scale_best x a (pf i)).
rewrite !scale_error ?gt_eqF // -subr_ge0.
have -> : metric_sq x - num x (flip s i) ^+ 2 / den (flip s i) - (metric_sq x - num x s ^+ 2 / den s) =
  (num x s ^+ 2 * den (flip s i) - num x (flip s i) ^+ 2 * den s) / (den s * den (flip s i)).
  by field; rewrite !gt_eqF.
apply: mulr_ge0; first by rewrite subr_ge0; apply: le.
by rewrite invr_ge0 ltW // mulr_gt0 ?pf.
Qed.

(* Changing all signs, as the encoder does at the end where num < 0, changes no error. *)
Theorem negate x s : num x (- s) = - num x s /\ den (- s) = den s.
Proof. by rewrite /num /den mulmxN !(dotNl, dotNr) opprK. Qed.

End Encode.
