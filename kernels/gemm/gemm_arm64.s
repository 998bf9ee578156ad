//go:build gc && !noasm

#include "textflag.h"

// FMLAE is "FMLA Vd.4S, Vn.4S, Vm.S[2h+l]": d += n * m[2h+l], rounded once. Go's
// assembler has no mnemonic for the form by element.
#define FMLAE(d, n, m, h, l) WORD $(0x4f801000 | (l)<<21 | (m)<<16 | (h)<<11 | (n)<<5 | (d))

// One vector of weights times one number of each of six rows of A. Row r of the
// tile is held in V(4r)..V(4r+3); V24..V29 hold four numbers of k of each row.
#define COLUMN6(b, j, h, l) \
	FMLAE(0+j, b, 24, h, l);  \
	FMLAE(4+j, b, 25, h, l);  \
	FMLAE(8+j, b, 26, h, l);  \
	FMLAE(12+j, b, 27, h, l); \
	FMLAE(16+j, b, 28, h, l); \
	FMLAE(20+j, b, 29, h, l)

// All sixteen columns for one k, which is element 2h+l of V24..V29.
#define STEP6(h, l) \
	VLD1.P 16(R3), [V30.S4]; \
	VLD1.P 16(R3), [V31.S4]; \
	COLUMN6(30, 0, h, l);    \
	VLD1.P 16(R3), [V30.S4]; \
	COLUMN6(31, 1, h, l);    \
	VLD1.P 16(R3), [V31.S4]; \
	COLUMN6(30, 2, h, l);    \
	COLUMN6(31, 3, h, l)

#define STEP1(h, l) \
	VLD1.P 64(R3), [V4.S4, V5.S4, V6.S4, V7.S4]; \
	FMLAE(0, 4, 24, h, l); \
	FMLAE(1, 5, 24, h, l); \
	FMLAE(2, 6, 24, h, l); \
	FMLAE(3, 7, 24, h, l)

#define ZERO4(a, b, c, d) \
	VEOR a.B16, a.B16, a.B16; \
	VEOR b.B16, b.B16, b.B16; \
	VEOR c.B16, c.B16, c.B16; \
	VEOR d.B16, d.B16, d.B16

// func neonTile6x16(kc int, a *float32, lda int, b *float32, ldb int, c *float32, ldc int, add bool)
// C[6,16] (+)= A[6,kc] B[kc,16]; ldb is always 16.
TEXT ·neonTile6x16(SB), NOSPLIT, $0-57
	MOVD  kc+0(FP), R0
	MOVD  a+8(FP), R6
	MOVD  lda+16(FP), R2
	MOVD  b+24(FP), R3
	MOVD  c+40(FP), R4
	MOVD  ldc+48(FP), R5
	MOVBU add+56(FP), R1
	LSL   $2, R2, R2
	LSL   $2, R5, R5
	ADD   R2, R6, R7
	ADD   R2, R7, R8
	ADD   R2, R8, R9
	ADD   R2, R9, R10
	ADD   R2, R10, R11
	CBZ   R1, zero
	MOVD  R4, R12
	VLD1  (R12), [V0.S4, V1.S4, V2.S4, V3.S4]
	ADD   R5, R12, R12
	VLD1  (R12), [V4.S4, V5.S4, V6.S4, V7.S4]
	ADD   R5, R12, R12
	VLD1  (R12), [V8.S4, V9.S4, V10.S4, V11.S4]
	ADD   R5, R12, R12
	VLD1  (R12), [V12.S4, V13.S4, V14.S4, V15.S4]
	ADD   R5, R12, R12
	VLD1  (R12), [V16.S4, V17.S4, V18.S4, V19.S4]
	ADD   R5, R12, R12
	VLD1  (R12), [V20.S4, V21.S4, V22.S4, V23.S4]
	B     start

zero:
	ZERO4(V0, V1, V2, V3)
	ZERO4(V4, V5, V6, V7)
	ZERO4(V8, V9, V10, V11)
	ZERO4(V12, V13, V14, V15)
	ZERO4(V16, V17, V18, V19)
	ZERO4(V20, V21, V22, V23)

start:
	SUBS $4, R0, R0
	BLT  rest

loop:
	VLD1.P 16(R6), [V24.S4]
	VLD1.P 16(R7), [V25.S4]
	VLD1.P 16(R8), [V26.S4]
	VLD1.P 16(R9), [V27.S4]
	VLD1.P 16(R10), [V28.S4]
	VLD1.P 16(R11), [V29.S4]
	STEP6(0, 0)
	STEP6(0, 1)
	STEP6(1, 0)
	STEP6(1, 1)
	SUBS   $4, R0, R0
	BGE    loop

rest:
	ADDS $4, R0, R0
	BEQ  done

single:
	VLD1R.P 4(R6), [V24.S4]
	VLD1R.P 4(R7), [V25.S4]
	VLD1R.P 4(R8), [V26.S4]
	VLD1R.P 4(R9), [V27.S4]
	VLD1R.P 4(R10), [V28.S4]
	VLD1R.P 4(R11), [V29.S4]
	STEP6(0, 0)
	SUBS    $1, R0, R0
	BNE     single

done:
	VST1 [V0.S4, V1.S4, V2.S4, V3.S4], (R4)
	ADD  R5, R4, R4
	VST1 [V4.S4, V5.S4, V6.S4, V7.S4], (R4)
	ADD  R5, R4, R4
	VST1 [V8.S4, V9.S4, V10.S4, V11.S4], (R4)
	ADD  R5, R4, R4
	VST1 [V12.S4, V13.S4, V14.S4, V15.S4], (R4)
	ADD  R5, R4, R4
	VST1 [V16.S4, V17.S4, V18.S4, V19.S4], (R4)
	ADD  R5, R4, R4
	VST1 [V20.S4, V21.S4, V22.S4, V23.S4], (R4)
	RET

// func neonTile1x16(kc int, a *float32, lda int, b *float32, ldb int, c *float32, ldc int, add bool)
TEXT ·neonTile1x16(SB), NOSPLIT, $0-57
	MOVD  kc+0(FP), R0
	MOVD  a+8(FP), R6
	MOVD  b+24(FP), R3
	MOVD  c+40(FP), R4
	MOVBU add+56(FP), R1
	CBZ   R1, zero
	VLD1  (R4), [V0.S4, V1.S4, V2.S4, V3.S4]
	B     start

zero:
	ZERO4(V0, V1, V2, V3)

start:
	SUBS $4, R0, R0
	BLT  rest

loop:
	VLD1.P 16(R6), [V24.S4]
	STEP1(0, 0)
	STEP1(0, 1)
	STEP1(1, 0)
	STEP1(1, 1)
	SUBS   $4, R0, R0
	BGE    loop

rest:
	ADDS $4, R0, R0
	BEQ  done

single:
	VLD1R.P 4(R6), [V24.S4]
	STEP1(0, 0)
	SUBS    $1, R0, R0
	BNE     single

done:
	VST1 [V0.S4, V1.S4, V2.S4, V3.S4], (R4)
	RET

#define CHAIN4(a, b, c, d) \
	VFMLA V24.S4, V24.S4, a.S4; \
	VFMLA V24.S4, V24.S4, b.S4; \
	VFMLA V24.S4, V24.S4, c.S4; \
	VFMLA V24.S4, V24.S4, d.S4

// func neonPeak(iterations int)
// 24 independent chains of multiply-adds.
TEXT ·neonPeak(SB), NOSPLIT, $0-8
	MOVD iterations+0(FP), R0
	VEOR V24.B16, V24.B16, V24.B16
	ZERO4(V0, V1, V2, V3)
	ZERO4(V4, V5, V6, V7)
	ZERO4(V8, V9, V10, V11)
	ZERO4(V12, V13, V14, V15)
	ZERO4(V16, V17, V18, V19)
	ZERO4(V20, V21, V22, V23)

loop:
	CHAIN4(V0, V1, V2, V3)
	CHAIN4(V4, V5, V6, V7)
	CHAIN4(V8, V9, V10, V11)
	CHAIN4(V12, V13, V14, V15)
	CHAIN4(V16, V17, V18, V19)
	CHAIN4(V20, V21, V22, V23)
	SUBS $1, R0, R0
	BNE  loop
	RET
