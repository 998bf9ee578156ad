(* Exceptions: coordinates of a key whose error is stored beside the signs. r is the error. *)
From mathcomp Require Import all_ssreflect all_algebra.
From mathcomp Require Import ring.
From phaseconv Require Import Vec.

Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

Section Exceptions.
Variables (R : realFieldType) (d : nat).
Implicit Types (r : 'cV[R]_d) (E F : {set 'I_d}).

(* What is left of the error when the coordinates E are stored exactly. *)
Definition left E r : 'cV[R]_d := \col_i if i \in E then 0 else r i 0.

Theorem exceptions_energy E r : sq (left E r) = sq r - \sum_(i in E) r i 0 ^+ 2.
Proof.
rewrite !sqE [in RHS](bigID (mem E)) /= [in RHS]addrAC subrr add0r (bigID (mem E)) /=.
rewrite big1 ?add0r => [|i iE]; last by rewrite mxE iE expr0n.
by apply: eq_bigr => i /negbTE iE; rewrite mxE iE.
Qed.

(* So none of them makes the error larger, and those with the largest |r_i| leave the least of
   all choices of as many. *)
Theorem exceptions_best E F r : #|E| = #|F| ->
  (forall i j, i \in E -> j \notin E -> `|r j 0| <= `|r i 0|) -> sq (left E r) <= sq (left F r).
Proof.
move=> card big; rewrite !exceptions_energy -subr_ge0.
have -> a x y : a - x - (a - y) = y - x :> R by ring.
rewrite subr_ge0.
have [S D] : \sum_(i in F) r i 0 ^+ 2 = \sum_(i in F :&: E) r i 0 ^+ 2 + \sum_(i in F :\: E) r i 0 ^+ 2 /\
             \sum_(i in E) r i 0 ^+ 2 = \sum_(i in F :&: E) r i 0 ^+ 2 + \sum_(i in E :\: F) r i 0 ^+ 2.
  by rewrite (big_setID E) /= (big_setID (A := E) F) /= setIC.
rewrite S D; apply: le_add => //.
have n : #|F :\: E| = #|E :\: F|.
  by apply/eqP; rewrite -(eqn_add2l #|F :&: E|) cardsID setIC cardsID card.
have [z|p] := posnP #|E :\: F|.
  have zE : E :\: F = set0 by apply/eqP; rewrite -cards_eq0 z.
  have zF : F :\: E = set0 by apply/eqP; rewrite -cards_eq0 n z.
  by rewrite zE zF !big_set0.
have P : 0 < #|E :\: F|%:R :> R by rewrite ltr0n.
have H : \sum_(j in F :\: E) \sum_(i in E :\: F) r j 0 ^+ 2 <= \sum_(j in F :\: E) \sum_(i in E :\: F) r i 0 ^+ 2.
  apply: ler_sum => j; rewrite inE => /andP [jE _]; apply: ler_sum => i; rewrite inE => /andP [_ iE].
  by rewrite -[r j 0 ^+ 2]norm_sq -[r i 0 ^+ 2]norm_sq; apply: le_sq => //; apply: big.
move: H; rewrite sumr_const n (eq_bigr (fun j => #|E :\: F|%:R * r j 0 ^+ 2)) => [|j _]; last first.
  by rewrite sumr_const mulr_natl.
by rewrite -mulr_sumr -[X in _ <= X]mulr_natl -subr_ge0 -mulrBr pmulr_rge0 // subr_ge0.
Qed.

End Exceptions.
