(* Rounding to float32: what the order of decoding (code.md, section 6) and the scores of
   section 3 err by, against the tolerance of section 8. f32 is rounding to nearest, ties to
   even, with 24 bits and subnormal numbers; overflow is outside of it. *)
From Coq Require Import Reals Lra Lia List.
From Flocq Require Import Core Relative Plus_error.

Local Open Scope R_scope.

Definition emin : Z := (-149)%Z.
Definition f32 : R -> R := round radix2 (FLT_exp emin 24) ZnearestE.
Definition is32 (x : R) : Prop := generic_format radix2 (FLT_exp emin 24) x.
Definition u : R := / 16777216.
(* Not below the normal numbers of float32. *)
Definition normal (x : R) : Prop := x = 0 \/ bpow radix2 (-126) <= Rabs x.

Local Instance p24 : Prec_gt_0 24.
Proof. reflexivity. Qed.

Lemma u_pos : 0 < u.
Proof. unfold u; lra. Qed.

Lemma u_bpow : / 2 * bpow radix2 (- (24) + 1) = u.
Proof. unfold u; simpl; lra. Qed.

Lemma f32_is32 x : is32 (f32 x).
Proof. apply generic_format_round; auto with typeclass_instances. Qed.

Lemma f32_0 : f32 0 = 0.
Proof. apply round_0; auto with typeclass_instances. Qed.

Lemma is32_0 : is32 0.
Proof. apply generic_format_0. Qed.

(* One rounding, of a sum of two float32 numbers or of any normal number. *)
Theorem add_error x y : is32 x -> is32 y -> Rabs (f32 (x + y) - (x + y)) <= u * Rabs (x + y).
Proof.
intros Fx Fy.
destruct (FLT_plus_error_N_ex radix2 emin 24 (fun n => negb (Z.even n)) x y Fx Fy) as [e [He E]].
unfold f32; rewrite E.
replace ((x + y) * (1 + e) - (x + y)) with (e * (x + y)) by ring.
rewrite Rabs_mult; apply Rmult_le_compat_r; [apply Rabs_pos|].
apply (Rle_trans _ _ _ He); unfold u_ro; rewrite u_bpow.
generalize u_pos; intros U; apply Rmult_le_reg_r with (1 + u); [lra|].
unfold Rdiv; rewrite Rmult_assoc, Rinv_l by lra; nra.
Qed.

Theorem round_error x : normal x -> Rabs (f32 x - x) <= u * Rabs x.
Proof.
intros [->|N]; [rewrite f32_0, Rminus_0_r, Rabs_R0; lra|].
rewrite <- u_bpow; apply (relative_error_N_FLT radix2 emin 24); [reflexivity|exact N].
Qed.

(* (1 + u)^n - 1, what n roundings in a row amount to. *)
Definition gam (n : nat) : R := (1 + u) ^ n - 1.

Lemma gam_0 : gam 0 = 0.
Proof. unfold gam; simpl; ring. Qed.

Lemma gam_S n : gam (S n) = gam n + u * (1 + gam n).
Proof. unfold gam; simpl; ring. Qed.

Lemma gam_pos n : 0 <= gam n.
Proof.
induction n as [|n IH]; [rewrite gam_0; lra|].
rewrite gam_S; generalize u_pos; intros U; nra.
Qed.

(* n roundings err by little more than n u. *)
Lemma gam_le n : INR n * u <= / 2 -> gam n <= INR n * u * (1 + 2 * (INR n * u)).
Proof.
intros H; generalize u_pos; intros U.
induction n as [|n IH]; [rewrite gam_0; simpl; lra|].
rewrite S_INR in *; rewrite gam_S.
assert (N := pos_INR n).
assert (I : gam n <= INR n * u * (1 + 2 * (INR n * u))) by (apply IH; nra).
assert (V : INR n * u <= / 2) by nra.
assert (P : 0 <= INR n * u) by nra.
nra.
Qed.

Lemma gam_step g e a b k : 0 <= g -> 0 <= e -> 0 <= k -> 0 <= b -> a <= k + b ->
  g * k + e * (a + g * k) <= (g + e * (1 + g)) * (k + b).
Proof.
intros G E K B A.
assert (0 <= g * b) by (apply Rmult_le_pos; assumption).
assert (e * a <= e * (k + b)) by (apply Rmult_le_compat_l; assumption).
assert (0 <= e * (g * b)) by (apply Rmult_le_pos; assumption).
nra.
Qed.

Lemma near_step a b c k e : Rabs (b - a) <= k -> Rabs (c - b) <= e * Rabs b -> 0 <= e ->
  Rabs (c - a) <= k + e * (Rabs a + k).
Proof.
intros H1 H2 E.
assert (B : Rabs b <= Rabs a + k).
{ replace b with (a + (b - a)) by ring; eapply Rle_trans; [apply Rabs_triang|lra]. }
replace (c - a) with ((c - b) + (b - a)) by ring.
eapply Rle_trans; [apply Rabs_triang|]; nra.
Qed.

Definition sum (l : list R) : R := fold_right Rplus 0 l.
Definition mass (l : list R) : R := fold_right (fun x a => Rabs x + a) 0 l.

Lemma mass_pos l : 0 <= mass l.
Proof. induction l as [|x l IH]; simpl; [lra|generalize (Rabs_pos x); lra]. Qed.

Lemma sum_le_mass l : Rabs (sum l) <= mass l.
Proof.
induction l as [|x l IH]; simpl; [rewrite Rabs_R0; lra|].
eapply Rle_trans; [apply Rabs_triang|lra].
Qed.

Lemma sum_app a b : sum (a ++ b) = sum a + sum b.
Proof. induction a as [|x a IH]; simpl; [ring|rewrite IH; ring]. Qed.

Lemma mass_app a b : mass (a ++ b) = mass a + mass b.
Proof. induction a as [|x a IH]; simpl; [ring|rewrite IH; ring]. Qed.

(* Any order of summation is a tree; a value of it is computed with one rounding at each
   node. From left to right, the tree is a comb. *)
Inductive tree : Type := Leaf (x : R) | Node (a b : tree).

Fixpoint leaves (t : tree) : list R :=
  match t with Leaf x => x :: nil | Node a b => leaves a ++ leaves b end.
Fixpoint depth (t : tree) : nat :=
  match t with Leaf _ => 0 | Node a b => S (Nat.max (depth a) (depth b)) end.
Fixpoint value (t : tree) : R :=
  match t with Leaf x => x | Node a b => f32 (value a + value b) end.

Lemma depth_leaves t : (depth t < length (leaves t))%nat.
Proof. induction t as [x|a IHa b IHb]; simpl; [lia|rewrite app_length; lia]. Qed.

Lemma value_is32 t : (forall x, In x (leaves t) -> is32 x) -> is32 (value t).
Proof. destruct t as [x|a b]; simpl; intros H; [apply H; now left|apply f32_is32]. Qed.

Lemma gam_mono n m : (n <= m)%nat -> gam n <= gam m.
Proof.
induction 1 as [|m _ IH]; [lra|]; rewrite gam_S.
generalize u_pos (gam_pos m); intros U G; nra.
Qed.

(* Sums of float32 numbers, in any order: there is no underflow to exclude. *)
Lemma sum_error t : (forall x, In x (leaves t) -> is32 x) ->
  Rabs (value t - sum (leaves t)) <= gam (depth t) * mass (leaves t).
Proof.
induction t as [x|a IHa b IHb]; intros F.
  simpl; replace (x - (x + 0)) with 0 by ring; rewrite Rabs_R0, gam_0; lra.
simpl leaves; rewrite sum_app, mass_app.
assert (Fa : forall x, In x (leaves a) -> is32 x) by (intros; apply F; simpl; apply in_or_app; auto).
assert (Fb : forall x, In x (leaves b) -> is32 x) by (intros; apply F; simpl; apply in_or_app; auto).
set (n := Nat.max (depth a) (depth b)); simpl depth; fold n; simpl value.
assert (Ga : gam (depth a) <= gam n) by (apply gam_mono; lia).
assert (Gb : gam (depth b) <= gam n) by (apply gam_mono; lia).
assert (Ma := mass_pos (leaves a)); assert (Mb := mass_pos (leaves b)).
assert (Ha := IHa Fa); assert (Hb := IHb Fb).
set (A := mass (leaves a)) in *; set (B := mass (leaves b)) in *.
assert (S1 : Rabs (value a + value b - (sum (leaves a) + sum (leaves b))) <= gam n * (A + B)).
{ replace (value a + value b - (sum (leaves a) + sum (leaves b))) with
    ((value a - sum (leaves a)) + (value b - sum (leaves b))) by ring.
  eapply Rle_trans; [apply Rabs_triang|]; nra. }
assert (S2 : Rabs (sum (leaves a) + sum (leaves b)) <= A + B).
{ eapply Rle_trans; [apply Rabs_triang|apply Rplus_le_compat; apply sum_le_mass]. }
assert (U := u_pos).
eapply Rle_trans.
  apply (near_step _ _ _ _ _ S1 (add_error _ _ (value_is32 a Fa) (value_is32 b Fb))); lra.
rewrite gam_S; generalize (gam_pos n); intros G; nra.
Qed.

(* t_j of section 6: from 0, one term after the other. *)
Definition chain (l : list R) : R := fold_left (fun t x => f32 (t + x)) l 0.

Lemma chain_is32 l : is32 (chain l).
Proof.
unfold chain; assert (G : forall z, is32 z -> is32 (fold_left (fun t x => f32 (t + x)) l z)).
{ induction l as [|x l IH]; simpl; intros z Z; [exact Z|apply IH, f32_is32]. }
apply G, is32_0.
Qed.

Lemma chain_snoc l x : chain (l ++ x :: nil) = f32 (chain l + x).
Proof. unfold chain; rewrite fold_left_app; reflexivity. Qed.

Lemma chain_error l : (forall x, In x l -> is32 x) ->
  Rabs (chain l - sum l) <= gam (length l) * mass l.
Proof.
induction l as [|x l IH] using rev_ind; intros F.
  unfold chain; simpl; rewrite Rminus_0_r, Rabs_R0; lra.
rewrite chain_snoc, sum_app, mass_app, app_length; simpl.
replace (length l + 1)%nat with (S (length l)) by lia.
assert (Fl : forall y, In y l -> is32 y) by (intros; apply F, in_or_app; auto).
assert (Fx : is32 x) by (apply F, in_or_app; simpl; auto).
assert (H := IH Fl); assert (M := mass_pos l); assert (U := u_pos); assert (G := gam_pos (length l)).
rewrite !Rplus_0_r.
assert (S1 : Rabs (chain l + x - (sum l + x)) <= gam (length l) * mass l).
{ replace (chain l + x - (sum l + x)) with (chain l - sum l) by ring; exact H. }
eapply Rle_trans.
  apply (near_step _ _ _ _ _ S1 (add_error _ _ (chain_is32 l) Fx)); lra.
assert (S2 : Rabs (sum l + x) <= mass l + Rabs x).
{ eapply Rle_trans; [apply Rabs_triang|generalize (sum_le_mass l); lra]. }
rewrite gam_S; apply gam_step; auto using Rabs_pos; lra.
Qed.

(* A coordinate of a decoded key: mean mu, scale al, terms s_i M_ji. *)
Definition decoded (mu al : R) (l : list R) : R := f32 (mu + f32 (al * chain l)).

Lemma decoded_error mu al l : is32 mu -> (forall x, In x l -> is32 x) -> normal (al * chain l) -> 0 <= al ->
  Rabs (decoded mu al l - (mu + al * sum l)) <= gam (S (S (length l))) * (Rabs mu + al * mass l).
Proof.
intros Fm F N A; assert (U := u_pos).
assert (C := chain_error l F); assert (M := mass_pos l).
set (n := length l) in *; assert (G := gam_pos n).
assert (S1 : Rabs (al * chain l - al * sum l) <= gam n * (al * mass l)).
{ rewrite <- Rmult_minus_distr_l, Rabs_mult, (Rabs_pos_eq _ A); nra. }
assert (B : Rabs (al * sum l) <= al * mass l).
{ rewrite Rabs_mult, (Rabs_pos_eq _ A); apply Rmult_le_compat_l; [exact A|apply sum_le_mass]. }
assert (S2 : Rabs (f32 (al * chain l) - al * sum l) <= gam (S n) * (al * mass l)).
{ eapply Rle_trans; [apply (near_step _ _ _ _ _ S1 (round_error _ N)); lra|].
  rewrite gam_S; nra. }
assert (S3 : Rabs (mu + f32 (al * chain l) - (mu + al * sum l)) <= gam (S n) * (al * mass l)).
{ replace (mu + f32 (al * chain l) - (mu + al * sum l)) with (f32 (al * chain l) - al * sum l) by ring; exact S2. }
eapply Rle_trans.
  apply (near_step _ _ _ _ _ S3 (add_error _ _ Fm (f32_is32 _))); lra.
assert (B2 : Rabs (mu + al * sum l) <= Rabs mu + al * mass l).
{ eapply Rle_trans; [apply Rabs_triang|lra]. }
assert (AM : 0 <= al * mass l) by nra.
rewrite (gam_S (S n)), (Rplus_comm (Rabs mu)); apply gam_step; auto using gam_pos, Rabs_pos; lra.
Qed.

(* A key is a list of coordinates: its query's number, the mean, the terms. *)
Definition coordinate : Type := (R * R * list R)%type.

Fixpoint decoded_score (al : R) (k : list coordinate) : R :=
  match k with nil => 0 | (q, mu, l) :: k => q * decoded mu al l + decoded_score al k end.
Fixpoint exact_score (al : R) (k : list coordinate) : R :=
  match k with nil => 0 | (q, mu, l) :: k => q * (mu + al * sum l) + exact_score al k end.
(* sum |q_j mu_j| + al sum |q_j M_ji| of section 8. *)
Fixpoint size (al : R) (k : list coordinate) : R :=
  match k with nil => 0 | (q, mu, l) :: k => Rabs (q * mu) + al * (Rabs q * mass l) + size al k end.

Definition readable (al : R) (b : nat) (c : coordinate) : Prop :=
  let '(q, mu, l) := c in
  is32 mu /\ (forall x, In x l -> is32 x) /\ length l = b /\ normal (al * chain l).

Lemma gam_1000 n : (n <= 1000)%nat -> gam n <= 1001 * u.
Proof.
intros L; apply le_INR in L; replace (INR 1000) with 1000 in L by (rewrite INR_IZR_INZ; reflexivity).
assert (N := pos_INR n); assert (U := u_pos); assert (Ue : u = / 16777216) by reflexivity.
eapply Rle_trans; [apply gam_le; nra|].
assert (INR n * u <= 1000 * u) by nra.
assert (0 <= INR n * u) by nra.
nra.
Qed.

(* Keys decoded in the order of section 6 score within the first part of the tolerance, up
   to 998 signs. Beyond, rounding may need more than that part. *)
Theorem decode_tolerance al b k : 0 <= al -> (b <= 998)%nat ->
  (forall c, In c k -> readable al b c) ->
  Rabs (decoded_score al k - exact_score al k) <= / 16384 * size al k.
Proof.
intros A Hb; induction k as [|[[q mu] l] k IH]; intros F.
  simpl; rewrite Rminus_0_r, Rabs_R0; lra.
simpl; destruct (F (q, mu, l)) as [Fm [Fl [Ln Nm]]]; [now left|].
assert (H := IH (fun c I => F c (or_intror I))).
assert (D := decoded_error mu al l Fm Fl Nm A); rewrite Ln in D.
assert (G := gam_1000 (S (S b))).
assert (G1 : gam (S (S b)) <= 1001 * u) by (apply G; lia).
assert (GP := gam_pos (S (S b))).
assert (Ue : u = / 16777216) by reflexivity.
replace (q * decoded mu al l + decoded_score al k - (q * (mu + al * sum l) + exact_score al k))
  with (q * (decoded mu al l - (mu + al * sum l)) + (decoded_score al k - exact_score al k)) by ring.
eapply Rle_trans; [apply Rabs_triang|]; rewrite Rabs_mult, (Rabs_mult q mu).
assert (Q := Rabs_pos q); assert (Mu := Rabs_pos mu); assert (M := mass_pos l).
assert (T : 0 <= Rabs mu + al * mass l) by nra.
assert (E : Rabs q * Rabs (decoded mu al l - (mu + al * sum l)) <= Rabs q * (/ 16384 * (Rabs mu + al * mass l))).
{ apply Rmult_le_compat_l; [exact Q|]; eapply Rle_trans; [exact D|].
  apply Rmult_le_compat_r; [exact T|]; lra. }
nra.
Qed.

(* Section 3: q'_i and o are chains of fused multiply-adds over pairs of numbers, ... *)
Definition fma_chain (l : list (R * R)) : R := fold_left (fun z p => f32 (fst p * snd p + z)) l 0.
Definition product (l : list (R * R)) : R := fold_right (fun p a => fst p * snd p + a) 0 l.
Definition product_mass (l : list (R * R)) : R := fold_right (fun p a => Rabs (fst p * snd p) + a) 0 l.
(* ... none of whose values lies below the normal numbers. *)
Definition no_underflow (l : list (R * R)) : Prop :=
  forall a p c, l = a ++ p :: c -> normal (fst p * snd p + fma_chain a).

Lemma product_app a b : product (a ++ b) = product a + product b.
Proof. induction a as [|x a IH]; simpl; [ring|rewrite IH; ring]. Qed.

Lemma product_mass_app a b : product_mass (a ++ b) = product_mass a + product_mass b.
Proof. induction a as [|x a IH]; simpl; [ring|rewrite IH; ring]. Qed.

Lemma product_mass_pos l : 0 <= product_mass l.
Proof. induction l as [|x l IH]; simpl; [lra|generalize (Rabs_pos (fst x * snd x)); lra]. Qed.

Lemma product_le l : Rabs (product l) <= product_mass l.
Proof.
induction l as [|x l IH]; simpl; [rewrite Rabs_R0; lra|].
eapply Rle_trans; [apply Rabs_triang|lra].
Qed.

Lemma fma_is32 l : is32 (fma_chain l).
Proof.
destruct l as [|x l] using rev_ind; [apply is32_0|].
unfold fma_chain; rewrite fold_left_app; apply f32_is32.
Qed.

Lemma fma_error l : no_underflow l ->
  Rabs (fma_chain l - product l) <= gam (length l) * product_mass l.
Proof.
induction l as [|p l IH] using rev_ind; intros N.
  unfold fma_chain; simpl; rewrite Rminus_0_r, Rabs_R0; lra.
assert (H : Rabs (fma_chain l - product l) <= gam (length l) * product_mass l).
{ apply IH; intros a q c E; apply (N a q (c ++ p :: nil)); rewrite E, <- app_assoc; reflexivity. }
assert (Np : normal (fst p * snd p + fma_chain l)) by (apply (N l p nil); reflexivity).
rewrite product_app, product_mass_app, app_length; simpl.
replace (length l + 1)%nat with (S (length l)) by lia; rewrite !Rplus_0_r.
replace (fma_chain (l ++ p :: nil)) with (f32 (fst p * snd p + fma_chain l))
  by (unfold fma_chain; rewrite fold_left_app; reflexivity).
assert (S1 : Rabs (fst p * snd p + fma_chain l - (product l + fst p * snd p)) <= gam (length l) * product_mass l).
{ replace (fst p * snd p + fma_chain l - (product l + fst p * snd p)) with (fma_chain l - product l) by ring; exact H. }
eapply Rle_trans; [apply (near_step _ _ _ _ _ S1 (round_error _ Np)); generalize u_pos; lra|].
assert (S2 : Rabs (product l + fst p * snd p) <= product_mass l + Rabs (fst p * snd p)).
{ eapply Rle_trans; [apply Rabs_triang|generalize (product_le l); lra]. }
rewrite gam_S; apply gam_step; auto using gam_pos, product_mass_pos, Rabs_pos; generalize u_pos; lra.
Qed.

(* A sign with its row of decode and the query. *)
Definition sign_row : Type := (R * list (R * R))%type.
Definition is_sign (s : R) : Prop := s = 1 \/ s = -1.
Definition term (r : sign_row) : R := fst r * fma_chain (snd r).

Fixpoint row_mass (rows : list sign_row) : R := (* sum |q_j M_ji| *)
  match rows with nil => 0 | r :: rows => product_mass (snd r) + row_mass rows end.
Definition exact_rows (rows : list sign_row) : list R := map (fun r => product (snd r)) rows. (* q' *)
Fixpoint exact_sum (rows : list sign_row) : R := (* sum s_i q'_i *)
  match rows with nil => 0 | r :: rows => fst r * product (snd r) + exact_sum rows end.

Lemma row_mass_pos rows : 0 <= row_mass rows.
Proof. induction rows as [|r rows IH]; simpl; [lra|generalize (product_mass_pos (snd r)); lra]. Qed.

Lemma sign_abs s x : is_sign s -> Rabs (s * x) = Rabs x.
Proof. intros [E|E]; rewrite E, Rabs_mult; [rewrite Rabs_R1|rewrite Rabs_left by lra]; lra. Qed.

Lemma term_is32 r : is_sign (fst r) -> is32 (term r).
Proof.
intros Sg; unfold term; destruct Sg as [E | E]; rewrite E; [rewrite Rmult_1_l; apply fma_is32|].
replace (-1 * fma_chain (snd r)) with (- fma_chain (snd r)) by ring.
apply generic_format_opp, fma_is32.
Qed.

Definition good_row (d : nat) (r : sign_row) : Prop :=
  is_sign (fst r) /\ length (snd r) = d /\ no_underflow (snd r).

Lemma rows_error d rows : (forall r, In r rows -> good_row d r) ->
  Rabs (sum (map term rows) - exact_sum rows) <= gam d * row_mass rows /\
  mass (map term rows) <= mass (exact_rows rows) + gam d * row_mass rows /\
  Rabs (exact_sum rows) <= mass (exact_rows rows) /\ mass (exact_rows rows) <= row_mass rows.
Proof.
induction rows as [|r rows IH]; intros F.
  simpl; rewrite Rminus_0_r, Rabs_R0; lra.
destruct (F r (or_introl eq_refl)) as [Sg [Ln N]].
destruct (IH (fun x I => F x (or_intror I))) as [H1 [H2 [H3 H4]]]; clear IH.
assert (E := fma_error _ N); rewrite Ln in E.
simpl; fold (exact_rows rows).
assert (T : Rabs (term r - fst r * product (snd r)) <= gam d * product_mass (snd r)).
{ unfold term; rewrite <- Rmult_minus_distr_l, (sign_abs _ _ Sg); exact E. }
repeat split.
- replace (term r + sum (map term rows) - (fst r * product (snd r) + exact_sum rows))
    with ((term r - fst r * product (snd r)) + (sum (map term rows) - exact_sum rows)) by ring.
  eapply Rle_trans; [apply Rabs_triang|lra].
- assert (Rabs (term r) <= Rabs (product (snd r)) + gam d * product_mass (snd r)); [|lra].
  replace (term r) with (fst r * product (snd r) + (term r - fst r * product (snd r))) by ring.
  eapply Rle_trans; [apply Rabs_triang|]; rewrite (sign_abs _ _ Sg); lra.
- eapply Rle_trans; [apply Rabs_triang|]; rewrite (sign_abs _ _ Sg); lra.
- generalize (product_le (snd r)); lra.
Qed.

Lemma gam_2050 n : (n <= 2050)%nat -> gam n <= 2052 * u.
Proof.
intros L; apply le_INR in L; replace (INR 2050) with 2050 in L by (rewrite INR_IZR_INZ; reflexivity).
assert (N := pos_INR n); assert (U := u_pos); assert (Ue : u = / 16777216) by reflexivity.
eapply Rle_trans; [apply gam_le; nra|].
assert (INR n * u <= 2050 * u) by nra.
assert (0 <= INR n * u) by nra.
nra.
Qed.

(* sum |x_i| <= sqrt n |x|_2 *)
Definition square (l : list R) : R := fold_right (fun x a => x * x + a) 0 l.

Lemma square_pos l : 0 <= square l.
Proof. induction l as [|x l IH]; simpl; nra. Qed.

Lemma mass_square l : mass l * mass l <= INR (length l) * square l.
Proof.
induction l as [|x l IH]; [simpl; lra|].
change (length (x :: l)) with (S (length l)); rewrite S_INR; simpl mass; simpl square.
assert (M := mass_pos l); assert (P := square_pos l).
replace (x * x) with (Rabs x * Rabs x) by (rewrite <- Rabs_mult; apply Rabs_pos_eq; nra).
destruct l as [|y l]; [simpl; apply Req_le; ring|].
set (n := INR (length (y :: l))) in *.
assert (N : 0 < n) by (apply lt_0_INR; simpl; lia).
set (a := mass (y :: l)) in *; set (s := square (y :: l)) in *; set (b := Rabs x).
assert (H : 2 * (b * a) <= n * (b * b) + s); [|nra].
apply Rmult_le_reg_l with n; [exact N|].
assert (D : 0 <= (n * b - a) * (n * b - a)) by apply Rle_0_sqr.
nra.
Qed.

Lemma mass_norm l : mass l <= sqrt (INR (length l)) * sqrt (square l).
Proof.
rewrite <- sqrt_mult by (try apply pos_INR; apply square_pos).
rewrite <- (sqrt_square (mass l)) by apply mass_pos.
apply sqrt_le_1_alt, mass_square.
Qed.

(* The score of section 3 without exceptions, its signed sum in any order (the leaves of t,
   in the order in which the rows are listed), lies within the tolerance of section 8 for
   every number of signs that the format has and up to 998 dimensions. *)
Theorem score_tolerance d (mu : list (R * R)) (rows : list sign_row) (t : tree) (al : R) :
  (d <= 998)%nat -> (length rows <= 2048)%nat -> 0 <= al ->
  length mu = d -> no_underflow mu ->
  (forall r, In r rows -> good_row d r) ->
  leaves t = map term rows -> normal (al * value t) ->
  Rabs (f32 (fma_chain mu + f32 (al * value t)) - (product mu + al * exact_sum rows)) <=
  / 16384 * (product_mass mu + al * row_mass rows) +
  / 2048 * al * (sqrt (INR (length rows)) * sqrt (square (exact_rows rows))).
Proof.
intros Hd Hb A Lm Nm F Lt Na.
assert (Dt := depth_leaves t); rewrite Lt, map_length in Dt.
assert (U := u_pos); assert (Ue : u = / 16777216) by reflexivity.
destruct (rows_error d rows F) as [R1 [R2 [R3 R4]]].
assert (O := fma_error _ Nm); rewrite Lm in O.
assert (F32 : forall x, In x (leaves t) -> is32 x).
{ intros x I; rewrite Lt in I; apply in_map_iff in I; destruct I as [r [<- Ir]]; apply term_is32, (F r Ir). }
assert (T := sum_error t F32); rewrite Lt in T.
assert (Gd := gam_pos d); assert (Gt := gam_pos (depth t)).
assert (Q := mass_norm (exact_rows rows)).
replace (length (exact_rows rows)) with (length rows) in Q by (unfold exact_rows; rewrite map_length; reflexivity).
apply Rle_trans with (/ 16384 * (product_mass mu + al * row_mass rows) + / 2048 * al * mass (exact_rows rows));
  [|apply Rplus_le_compat_l, Rmult_le_compat_l; [nra|exact Q]].
clear Q; set (E := row_mass rows) in *; set (Qm := mass (exact_rows rows)) in *; set (P := product_mass mu) in *.
set (g := gam d) in *; set (h := gam (depth t)) in *.
assert (E0 : 0 <= E) by apply row_mass_pos; assert (P0 : 0 <= P) by apply product_mass_pos.
assert (Q0 : 0 <= Qm) by apply mass_pos.
set (c := exact_sum rows) in *; set (o := product mu) in *.
assert (Po : Rabs o <= P) by apply product_le.
assert (gs : g <= 1001 * u) by (apply gam_1000; lia).
assert (hs : h <= 2052 * u) by (apply gam_2050; lia).
(* the sum *)
assert (C1 : Rabs (value t - c) <= h * (Qm + g * E) + g * E).
{ replace (value t - c) with ((value t - sum (map term rows)) + (sum (map term rows) - c)) by ring.
  eapply Rle_trans; [apply Rabs_triang|].
  assert (h * mass (map term rows) <= h * (Qm + g * E)) by (apply Rmult_le_compat_l; lra); lra. }
set (k1 := h * (Qm + g * E) + g * E) in *.
assert (gE : 0 <= g * E) by (apply Rmult_le_pos; assumption).
assert (K1 : 0 <= k1) by (unfold k1; assert (0 <= h * (Qm + g * E)) by (apply Rmult_le_pos; lra); lra).
(* times the scale *)
assert (C2 : Rabs (al * value t - al * c) <= al * k1).
{ rewrite <- Rmult_minus_distr_l, Rabs_mult, (Rabs_pos_eq _ A); apply Rmult_le_compat_l; assumption. }
assert (Ac : Rabs (al * c) <= al * Qm).
{ rewrite Rabs_mult, (Rabs_pos_eq _ A); apply Rmult_le_compat_l; assumption. }
assert (U0 : 0 <= u) by lra.
assert (C3 := near_step _ _ _ _ _ C2 (round_error _ Na) U0).
assert (C3' : Rabs (f32 (al * value t) - al * c) <= al * (k1 + u * (Qm + k1))).
{ eapply Rle_trans; [exact C3|].
  assert (u * Rabs (al * c) <= u * (al * Qm)) by (apply Rmult_le_compat_l; assumption); nra. }
set (k2 := k1 + u * (Qm + k1)) in *.
(* plus the offset *)
assert (C4 : Rabs (fma_chain mu + f32 (al * value t) - (o + al * c)) <= g * P + al * k2).
{ replace (fma_chain mu + f32 (al * value t) - (o + al * c)) with
    ((fma_chain mu - o) + (f32 (al * value t) - al * c)) by ring.
  eapply Rle_trans; [apply Rabs_triang|lra]. }
assert (C5 := near_step _ _ _ _ _ C4 (add_error _ _ (fma_is32 mu) (f32_is32 _)) U0).
eapply Rle_trans; [exact C5|].
assert (B : Rabs (o + al * c) <= P + al * Qm).
{ eapply Rle_trans; [apply Rabs_triang|lra]. }
apply Rle_trans with (g * P + al * k2 + u * (P + al * Qm + (g * P + al * k2))).
{ apply Rplus_le_compat_l, Rmult_le_compat_l; lra. }
(* numbers *)
assert (K1b : k1 <= 2052 * u * Qm + (1001 * u + 2052 * u * (1001 * u)) * E).
{ unfold k1.
  assert (h * (Qm + g * E) <= 2052 * u * (Qm + g * E)) by (apply Rmult_le_compat_r; lra).
  assert (g * E <= 1001 * u * E) by (apply Rmult_le_compat_r; assumption).
  assert (2052 * u * (g * E) <= 2052 * u * (1001 * u * E)) by (apply Rmult_le_compat_l; lra).
  lra. }
assert (K2b : (1 + u) * k2 + u * Qm <= / 2048 * Qm + / 16384 * E).
{ unfold k2; rewrite Ue in *.
  assert (0 <= Qm) by exact Q0; lra. }
assert (Pb : g * P + u * (P + g * P) <= / 16384 * P).
{ assert (g * P <= 1001 * u * P) by (apply Rmult_le_compat_r; assumption).
  rewrite Ue in *; lra. }
assert (AK : al * ((1 + u) * k2 + u * Qm) <= al * (/ 2048 * Qm + / 16384 * E)) by (apply Rmult_le_compat_l; assumption).
lra.
Qed.
