//go:build gc && !noasm

#include "textflag.h"

// Vector forms that Go's assembler has no mnemonics for.
#define FCVTL(d, n) WORD $(0x0e217800 | (n)<<5 | (d))   // four binary16 to float32
#define FCVTL2(d, n) WORD $(0x4e217800 | (n)<<5 | (d))  // the upper four
#define FADD(d, n, m) WORD $(0x4e20d400 | (m)<<16 | (n)<<5 | (d))
#define FMUL(d, n, m) WORD $(0x6e20dc00 | (m)<<16 | (n)<<5 | (d))
#define SCVTF(d, n) WORD $(0x4e21d800 | (n)<<5 | (d))
#define SMULL(d, n, m) WORD $(0x0e20c000 | (m)<<16 | (n)<<5 | (d))  // 8 products of int8
#define SMULL2(d, n, m) WORD $(0x4e20c000 | (m)<<16 | (n)<<5 | (d)) // of the upper halves
#define SADDLP(d, n) WORD $(0x4e602800 | (n)<<5 | (d))  // pairs of int16 to int32

#define ZERO(a) VEOR a.B16, a.B16, a.B16

// Adds eight products to the partial sums a and b.
#define EIGHT(a, b) \
	VLD1.P 16(R6), [V16.H8];         \
	VLD1.P 32(R4), [V20.S4, V21.S4]; \
	FCVTL(18, 16);                   \
	FCVTL2(19, 16);                  \
	VFMLA  V18.S4, V20.S4, a.S4;     \
	VFMLA  V19.S4, V21.S4, b.S4

// Adds the upper half of V0 to the lower, and the second number to the first.
#define LAST2() \
	VEXT $8, V0.B16, V0.B16, V1.B16; \
	FADD(0, 0, 1);                   \
	VDUP V0.S[1], V1.S4;             \
	FADD(0, 0, 1)

// func neonScore(n, strips int, q *float32, keys *uint16, out *float32)
TEXT ·neonScore(SB), NOSPLIT, $0-40
	MOVD n+0(FP), R0
	MOVD strips+8(FP), R1
	MOVD q+16(FP), R2
	MOVD keys+24(FP), R6
	MOVD out+32(FP), R5

key:
	MOVD R2, R4
	MOVD R1, R3
	ZERO(V0)
	ZERO(V1)
	ZERO(V2)
	ZERO(V3)
	ZERO(V4)
	ZERO(V5)
	ZERO(V6)
	ZERO(V7)
	ZERO(V8)
	ZERO(V9)
	ZERO(V10)
	ZERO(V11)
	ZERO(V12)
	ZERO(V13)
	ZERO(V14)
	ZERO(V15)

strip:
	EIGHT(V0, V1)
	EIGHT(V2, V3)
	EIGHT(V4, V5)
	EIGHT(V6, V7)
	EIGHT(V8, V9)
	EIGHT(V10, V11)
	EIGHT(V12, V13)
	EIGHT(V14, V15)
	SUBS $1, R3, R3
	BNE  strip

	// (s[j] + s[j+16]) + (s[j+32] + s[j+48]), then halves.
	FADD(0, 0, 4)
	FADD(1, 1, 5)
	FADD(2, 2, 6)
	FADD(3, 3, 7)
	FADD(8, 8, 12)
	FADD(9, 9, 13)
	FADD(10, 10, 14)
	FADD(11, 11, 15)
	FADD(0, 0, 8)
	FADD(1, 1, 9)
	FADD(2, 2, 10)
	FADD(3, 3, 11)
	FADD(0, 0, 2)
	FADD(1, 1, 3)
	FADD(0, 0, 1)
	LAST2()
	FMOVS F0, (R5)
	ADD   $4, R5, R5
	SUBS  $1, R0, R0
	BNE   key
	RET

// Sums of four products each of the 32 numbers in V2, V3 (the key) and V4, V5 (the
// query), to V8 and V9.
#define PRODUCTS() \
	SMULL(8, 2, 4);              \
	SMULL2(9, 2, 4);             \
	SMULL(10, 3, 5);             \
	SMULL2(11, 3, 5);            \
	SADDLP(8, 8);                \
	SADDLP(9, 9);                \
	SADDLP(10, 10);              \
	SADDLP(11, 11);              \
	VADDP V9.S4, V8.S4, V8.S4;   \
	VADDP V11.S4, V10.S4, V9.S4

// Adds the sums times the factors of key (at R6) and query (at R4) to V0 and V1.
#define SCALED() \
	ADD    $96, R4, R7;              \
	VLD1   (R7), [V7.S4];            \
	VLD1R  (R6), [V6.H4];            \
	FCVTL(6, 6);                     \
	FMUL(6, 6, 7);                   \
	SCVTF(8, 8);                     \
	SCVTF(9, 9);                     \
	VFMLA  V6.S4, V8.S4, V0.S4;      \
	VFMLA  V6.S4, V9.S4, V1.S4

// func neonQ8(n, blocks int, q *int8, keys *byte, out *float32)
TEXT ·neonQ8(SB), NOSPLIT, $0-40
	MOVD n+0(FP), R0
	MOVD blocks+8(FP), R1
	MOVD q+16(FP), R2
	MOVD keys+24(FP), R6
	MOVD out+32(FP), R5

key8:
	MOVD R2, R4
	MOVD R1, R3
	ZERO(V0)
	ZERO(V1)

block8:
	ADD  $2, R6, R8
	VLD1 (R8), [V2.B16, V3.B16]
	VLD1 (R4), [V4.B16, V5.B16]
	PRODUCTS()
	SCALED()
	ADD  $34, R6, R6
	ADD  $128, R4, R4
	SUBS $1, R3, R3
	BNE  block8
	FADD(0, 0, 1)
	LAST2()
	FMOVS F0, (R5)
	ADD   $4, R5, R5
	SUBS  $1, R0, R0
	BNE   key8
	RET

// func neonQ4(n, blocks int, q *int8, keys *byte, out *float32)
TEXT ·neonQ4(SB), NOSPLIT, $0-40
	MOVD  n+0(FP), R0
	MOVD  blocks+8(FP), R1
	MOVD  q+16(FP), R2
	MOVD  keys+24(FP), R6
	MOVD  out+32(FP), R5
	VMOVI $15, V31.B16

key4:
	MOVD R2, R4
	MOVD R1, R3
	ZERO(V0)
	ZERO(V1)

block4:
	ADD   $2, R6, R8
	VLD1  (R8), [V2.B16]
	VLD1  (R4), [V4.B16, V5.B16]
	VUSHR $4, V2.B16, V3.B16
	VAND  V31.B16, V2.B16, V2.B16
	PRODUCTS()
	ADD   $64, R4, R7
	VLD1  (R7), [V10.S4, V11.S4] // takes back the 8 in every number
	VADD  V10.S4, V8.S4, V8.S4
	VADD  V11.S4, V9.S4, V9.S4
	SCALED()
	ADD   $18, R6, R6
	ADD   $128, R4, R4
	SUBS  $1, R3, R3
	BNE   block4
	FADD(0, 0, 1)
	LAST2()
	FMOVS F0, (R5)
	ADD   $4, R5, R5
	SUBS  $1, R0, R0
	BNE   key4
	RET
