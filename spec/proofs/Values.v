(* Coded values and codes over several heads: what attention does with sums of coded values,
   and what one row of signs for all heads of a layer means for each of them. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp Require Import ring.
From phaseconv Require Import Vec OneBit Rope Attention.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

(* Any weights w of n tokens. *)
Section Blend.
Variables (R : realFieldType) (n d b : nat) (w : 'I_n -> R).
Implicit Types (v : 'I_n -> 'cV[R]_d) (mu : 'cV[R]_d) (M : 'M[R]_(d, b)) (s : 'I_n -> 'cV[R]_b) (a : 'I_n -> R).

Definition blend k (v : 'I_n -> 'cV[R]_k) : 'cV[R]_k := \sum_j w j *: v j.

Lemma blendD k (v v' : 'I_n -> 'cV[R]_k) : blend (fun j => v j + v' j) = blend v + blend v'.
Proof. by rewrite /blend -big_split; apply: eq_bigr => j _; rewrite scalerDr. Qed.

Lemma blend_linear k l (A : 'M[R]_(l, k)) (v : 'I_n -> 'cV[R]_k) : blend (fun j => A *m v j) = A *m blend v.
Proof. by rewrite /blend mulmx_sumr; apply: eq_bigr => j _; rewrite scalemxAr. Qed.

(* Sums over coded values commute with the decode matrix: a runtime adds and subtracts
   weights per sign and multiplies by M once for each query. *)
Theorem decode_sum M s a :
  blend (fun j => a j *: (M *m s j)) = M *m (\sum_j (w j * a j) *: s j).
Proof.
rewrite /blend mulmx_sumr; apply: eq_bigr => j _.
by rewrite scalerA scalemxAr.
Qed.

(* With a mean, of which only those tokens bring a share that are coded; the others, P, are
   kept as they are. *)
Theorem decode_sum_kept M mu s a v (P : pred 'I_n) :
  blend (fun j => if P j then v j else mu + a j *: (M *m s j)) =
  \sum_(j | P j) w j *: v j + (\sum_(j | ~~ P j) w j) *: mu +
  M *m (\sum_(j | ~~ P j) (w j * a j) *: s j).
Proof.
rewrite /blend (bigID P) /= -addrA; congr (_ + _); first by apply: eq_bigr => j ->.
rewrite scaler_suml mulmx_sumr -big_split /=; apply: eq_bigr => j /negbTE ->.
by rewrite scalerDr scalerA scalemxAr.
Qed.

(* The mean is free where weights add up to one, ... *)
Theorem mean_free v mu : \sum_j w j = 1 -> blend (fun j => v j - mu) + mu = blend v.
Proof.
move=> w1; rewrite /blend (eq_bigr (fun j => w j *: v j - w j *: mu)) => [|j _].
  by rewrite sumrB -scaler_suml w1 scale1r subrK.
by rewrite scalerBr.
Qed.

(* ... and nowhere else: a mean that is not 0 tells the sum of the weights. *)
Theorem mean_free_only v mu : mu != 0 -> blend (fun j => v j - mu) + mu = blend v -> \sum_j w j = 1.
Proof.
move=> mn; have -> : blend (fun j => v j - mu) = blend v - (\sum_j w j) *: mu.
  rewrite /blend scaler_suml -sumrB; apply: eq_bigr => j _; exact: scalerBr.
move=> E; have := congr1 (fun z => - blend v + z) E.
rewrite addNr 2!addrA addNr add0r addrC -{1}[mu]scale1r -scalerBl => /eqP.
by rewrite scaler_eq0 (negbTE mn) orbF subr_eq0 => /eqP.
Qed.

End Blend.

(* The weights of a softmax do add up to one. *)
Section Softmax.
Variables (R : realFieldType) (e : R -> R).
Hypothesis e_gt0 : forall x, 0 < e x.
Variables (n d : nat).
Implicit Types (x : 'I_n -> R) (v : 'I_n -> 'cV[R]_d).

Theorem softmax_sum x : (0 < n)%N -> \sum_j softmax e x j = 1.
Proof.
move=> n0; rewrite /softmax -mulr_suml divff // gt_eqF //.
rewrite (bigD1 (Ordinal n0)) //= pos_add ?sumr_ge0 // => i _.
exact: ltW.
Qed.

Theorem values_mean_free x v (mu : 'cV[R]_d) : (0 < n)%N ->
  attend e x (fun j => v j - mu) + mu = attend e x v.
Proof. by move=> n0; apply: (mean_free (w := softmax e x)); apply: softmax_sum. Qed.

End Softmax.

(* One code over h heads of d numbers each: head i is rows i d to i d + d - 1 of the vector,
   and of the decode matrix. *)
Section Joint.
Variables (R : realFieldType) (h d b : nat).
Implicit Types (x : 'cV[R]_(h * d)) (M : 'M[R]_(h * d, b)) (s : 'cV[R]_b) (i : 'I_h).

Definition part k i (A : 'M[R]_(h * d, k)) : 'M[R]_(d, k) := \matrix_(r, c) A (mxvec_index i r) c.

Lemma part_mul i M s : part i (M *m s) = part i M *m s.
Proof. by apply/matrixP => r c; rewrite !mxE; apply: eq_bigr => k _; rewrite !mxE. Qed.

Lemma partD k i (A B : 'M[R]_(h * d, k)) : part i (A + B) = part i A + part i B.
Proof. by apply/matrixP => r c; rewrite !mxE. Qed.

Lemma partZ k i a (A : 'M[R]_(h * d, k)) : part i (a *: A) = a *: part i A.
Proof. by apply/matrixP => r c; rewrite !mxE. Qed.

Lemma partB k i (A B : 'M[R]_(h * d, k)) : part i (A - B) = part i A - part i B.
Proof. by apply/matrixP => r c; rewrite !mxE. Qed.

(* A head of the decoded vector is what its rows of the matrix make of the shared signs, ... *)
Theorem joint_part (mu : 'cV[R]_(h * d)) M s (a : R) i :
  part i (mu + a *: (M *m s)) = part i mu + a *: (part i M *m s).
Proof. by rewrite partD partZ part_mul. Qed.

(* ... so a query of that head needs a product with those rows alone, once. *)
Theorem joint_score (mu : 'cV[R]_(h * d)) M s (a : R) i (q : 'cV[R]_d) :
  dot q (part i (mu + a *: (M *m s))) = dot q (part i mu) + a * dot ((part i M)^T *m q) s.
Proof. by rewrite joint_part score_identity. Qed.

Lemma dot_parts x y : dot x y = \sum_i dot (part i x) (part i y).
Proof.
rewrite /dot pair_big /= (reindex (uncurry (@mxvec_index h d))) /=; last first.
  exact: curry_mxvec_bij.
by apply: eq_bigr => -[i r] _; rewrite !mxE.
Qed.

(* The error of the joint code is the sum of those of its heads. *)
Theorem joint_energy x y : sq (x - y) = \sum_i sq (part i x - part i y).
Proof. by rewrite /sq dot_parts; apply: eq_bigr => i _; rewrite partB. Qed.

(* A change of one head's keys or values, inverted on its readers, needs no change of the
   signs: A on head i of the decode matrix. *)
Theorem joint_gauge (mu : 'cV[R]_(h * d)) M s (a : R) i (A : 'M[R]_d) (q : 'cV[R]_d) : A \in unitmx ->
  dot ((invmx A)^T *m q) (A *m part i mu + a *: ((A *m part i M) *m s)) =
  dot q (part i (mu + a *: (M *m s))).
Proof.
move=> u; rewrite -mulmxA scalemxAr -mulmxDr gauge_invariance //.
by rewrite joint_part scalemxAr.
Qed.

End Joint.

(* A group: parts of any lengths, keys and values, in one vector of D numbers. A part is named
   by where its d numbers lie, f; g has the gain of each number, that of its part. *)
Section Group.
Variables (R : realFieldType) (D b : nat).
Implicit Types (mu : 'cV[R]_D) (M : 'M[R]_(D, b)) (g : 'I_D -> R).

Definition pick d k (f : 'I_d -> 'I_D) (A : 'M[R]_(D, k)) : 'M[R]_(d, k) := \matrix_(r, c) A (f r) c.
Definition gained k g (A : 'M[R]_(D, k)) : 'M[R]_(D, k) := \matrix_(r, c) (g r * A r c).

Lemma pickD d k f (A B : 'M[R]_(D, k)) : @pick d k f (A + B) = pick f A + pick f B.
Proof. by apply/matrixP => r c; rewrite !mxE. Qed.

Lemma pickZ d k f a (A : 'M[R]_(D, k)) : @pick d k f (a *: A) = a *: pick f A.
Proof. by apply/matrixP => r c; rewrite !mxE. Qed.

Lemma pick_mul d k f M (s : 'M[R]_(b, k)) : @pick d k f (M *m s) = pick f M *m s.
Proof. by apply/matrixP => r c; rewrite !mxE; apply: eq_bigr => i _; rewrite !mxE. Qed.

(* The gain of a part goes into its matrix once. *)
Theorem group_gain d (f : 'I_d -> 'I_D) g M (h : R) : (forall r, g (f r) = h) ->
  pick f (gained g M) = h *: pick f M.
Proof. by move=> E; apply/matrixP => r c; rewrite !mxE E. Qed.

(* Scores of a key that is a part of a group, ... *)
Theorem group_score d (f : 'I_d -> 'I_D) g mu M (s : 'cV[R]_b) (a : R) (q : 'cV[R]_d) :
  dot q (pick f (mu + a *: (gained g M *m s))) =
  dot q (pick f mu) + a * dot ((pick f (gained g M))^T *m q) s.
Proof. by rewrite pickD pickZ pick_mul score_identity. Qed.

(* ... and sums over values that are one, from the same signs and scales. *)
Theorem group_sum d (f : 'I_d -> 'I_D) g mu M n (w a : 'I_n -> R) (s : 'I_n -> 'cV[R]_b) :
  blend w (fun j => pick f (mu + a j *: (gained g M *m s j))) =
  (\sum_j w j) *: pick f mu + pick f (gained g M) *m (\sum_j (w j * a j) *: s j).
Proof.
transitivity (blend w (fun j => pick f mu + a j *: (pick f (gained g M) *m s j))).
  by apply: eq_bigr => j _; rewrite pickD pickZ pick_mul.
by rewrite blendD decode_sum /blend -scaler_suml.
Qed.

End Group.
