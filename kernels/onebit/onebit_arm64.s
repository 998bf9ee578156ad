//go:build gc && !noasm

#include "textflag.h"

// Vector forms that Go's assembler has no mnemonics for, on four float32.
#define SCVTF(d, n) WORD $(0x4e21d800 | (n)<<5 | (d))
#define FMUL(d, n, m) WORD $(0x6e20dc00 | (m)<<16 | (n)<<5 | (d))
#define FADD(d, n, m) WORD $(0x4e20d400 | (m)<<16 | (n)<<5 | (d))
#define FCVTL(d, n) WORD $(0x0e217800 | (n)<<5 | (d))

// The tables of byte j of a word: V8, V9 are the digits of its low nibble, V10 and
// V11 those of its high one.
#define TABLES(j) \
	FMOVQ (16*j)(R5), F8;      \
	FMOVQ (16*j+64)(R5), F9;   \
	FMOVQ (16*j+128)(R5), F10; \
	FMOVQ (16*j+192)(R5), F11

// Adds what byte p of 16 keys looks up to the counters of 16 bits: l0 and l1 for
// the low digit, h0 and h1 for the high one. Four digits would fit in a byte.
#define BYTE(p, l0, l1, h0, h1) \
	VAND    V31.B16, p.B16, V24.B16;     \
	VUSHR   $4, p.B16, V25.B16;          \
	VTBL    V24.B16, [V8.B16], V26.B16;  \
	VTBL    V25.B16, [V10.B16], V27.B16; \
	VTBL    V24.B16, [V9.B16], V28.B16;  \
	VTBL    V25.B16, [V11.B16], V29.B16; \
	VADD    V27.B16, V26.B16, V26.B16;   \
	VADD    V29.B16, V28.B16, V28.B16;   \
	VUADDW  V26.B8, l0.H8, l0.H8;        \
	VUADDW2 V26.B16, l1.H8, l1.H8;       \
	VUADDW  V28.B8, h0.H8, h0.H8;        \
	VUADDW2 V28.B16, h1.H8, h1.H8

// Turns counters of eight keys into scores: ((sum * step) * scale) + offset.
#define FINISH(lo, hi) \
	VUSHLL  $0, lo.H4, V24.S4;        \
	VUSHLL2 $0, lo.H8, V25.S4;        \
	VUSHLL  $6, hi.H4, V26.S4;        \
	VUSHLL2 $6, hi.H8, V27.S4;        \
	VADD    V26.S4, V24.S4, V24.S4;   \
	VADD    V27.S4, V25.S4, V25.S4;   \
	VSUB    V30.S4, V24.S4, V24.S4;   \
	VSUB    V30.S4, V25.S4, V25.S4;   \
	VLD1.P  16(R4), [V26.H4, V27.H4]; \
	SCVTF(24, 24);                    \
	SCVTF(25, 25);                    \
	FCVTL(26, 26);                    \
	FCVTL(27, 27);                    \
	FMUL(24, 24, 14);                 \
	FMUL(25, 25, 14);                 \
	FMUL(24, 24, 26);                 \
	FMUL(25, 25, 27);                 \
	FADD(24, 24, 15);                 \
	FADD(25, 25, 15);                 \
	VST1.P  [V24.S4, V25.S4], 32(R7)

#define ZERO(a, b, c, d) \
	VEOR a.B16, a.B16, a.B16; \
	VEOR b.B16, b.B16, b.B16; \
	VEOR c.B16, c.B16, c.B16; \
	VEOR d.B16, d.B16, d.B16

// func neonScore(blocks, words, stride int, tab *byte, bits *uint32, scales *uint16, head *uint32, out *float32)
TEXT ·neonScore(SB), NOSPLIT, $0-64
	MOVD  blocks+0(FP), R0
	MOVD  words+8(FP), R1
	MOVD  stride+16(FP), R9
	MOVD  tab+24(FP), R2
	MOVD  bits+32(FP), R3
	MOVD  scales+40(FP), R4
	MOVD  head+48(FP), R6
	MOVD  out+56(FP), R7
	VLD1R (R6), [V14.S4]
	ADD   $4, R6, R6
	VLD1R (R6), [V15.S4]
	VMOVI $15, V31.B16
	MOVD  $16640, R8
	MUL   R1, R8, R8
	VDUP  R8, V30.S4        // what the tables add up to without a query
	SUB   R1, R9, R12
	LSL   $6, R9, R9        // bytes of a block
	LSL   $6, R12, R12      // those of words that are not read

two:
	CMP  $2, R0
	BLT  one
	ZERO(V16, V17, V18, V19)
	ZERO(V20, V21, V22, V23)
	MOVD R2, R5
	MOVD R1, R10
	ADD  R9, R3, R11

word2:
	VLD4.P 64(R3), [V0.B16, V1.B16, V2.B16, V3.B16]
	VLD4.P 64(R11), [V4.B16, V5.B16, V6.B16, V7.B16]
	TABLES(0)
	BYTE(V0, V16, V17, V18, V19)
	BYTE(V4, V20, V21, V22, V23)
	TABLES(1)
	BYTE(V1, V16, V17, V18, V19)
	BYTE(V5, V20, V21, V22, V23)
	TABLES(2)
	BYTE(V2, V16, V17, V18, V19)
	BYTE(V6, V20, V21, V22, V23)
	TABLES(3)
	BYTE(V3, V16, V17, V18, V19)
	BYTE(V7, V20, V21, V22, V23)
	ADD  $256, R5, R5
	SUBS $1, R10, R10
	BNE  word2
	ADD  R12, R11, R3
	FINISH(V16, V18)
	FINISH(V17, V19)
	FINISH(V20, V22)
	FINISH(V21, V23)
	SUB  $2, R0, R0
	B    two

one:
	CBZ R0, done
	ZERO(V16, V17, V18, V19)

word1:
	VLD4.P 64(R3), [V0.B16, V1.B16, V2.B16, V3.B16]
	MOVD R2, R5
	TABLES(0)
	BYTE(V0, V16, V17, V18, V19)
	TABLES(1)
	BYTE(V1, V16, V17, V18, V19)
	TABLES(2)
	BYTE(V2, V16, V17, V18, V19)
	TABLES(3)
	BYTE(V3, V16, V17, V18, V19)
	ADD  $256, R2, R2
	SUBS $1, R1, R1
	BNE  word1
	FINISH(V16, V18)
	FINISH(V17, V19)

done:
	RET

// Adds products of four signed words of n, the lower or the upper ones, and m to d.
#define SMLAL(d, n, m) WORD $(0x0e608000 | (m)<<16 | (n)<<5 | (d))
#define SMLAL2(d, n, m) WORD $(0x4e608000 | (m)<<16 | (n)<<5 | (d))

// func neonProject(blocks, pairs int, q, m *int16, factor, out *float32)
TEXT ·neonProject(SB), NOSPLIT, $0-48
	MOVD  blocks+0(FP), R0
	MOVD  pairs+8(FP), R1
	MOVD  q+16(FP), R2
	MOVD  m+24(FP), R3
	MOVD  factor+32(FP), R4
	MOVD  out+40(FP), R5
	VLD1R (R4), [V31.S4]

block:
	ZERO(V0, V1, V2, V3)
	MOVD R2, R6
	MOVD R1, R7

pair:
	VLD2.P 32(R3), [V4.H8, V5.H8] // the first and the second numbers of eight signs
	VLD2.P 32(R3), [V6.H8, V7.H8]
	VLD1R  (R6), [V8.H8]
	ADD    $2, R6, R6
	VLD1R  (R6), [V9.H8]
	ADD    $2, R6, R6
	SMLAL(0, 4, 8)
	SMLAL2(1, 4, 8)
	SMLAL(2, 6, 8)
	SMLAL2(3, 6, 8)
	SMLAL(0, 5, 9)
	SMLAL2(1, 5, 9)
	SMLAL(2, 7, 9)
	SMLAL2(3, 7, 9)
	SUBS   $1, R7, R7
	BNE    pair
	SCVTF(0, 0)
	SCVTF(1, 1)
	SCVTF(2, 2)
	SCVTF(3, 3)
	FMUL(0, 0, 31)
	FMUL(1, 1, 31)
	FMUL(2, 2, 31)
	FMUL(3, 3, 31)
	VST1.P [V0.S4, V1.S4, V2.S4, V3.S4], 64(R5)
	SUBS   $1, R0, R0
	BNE    block
	RET
