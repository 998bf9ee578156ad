//go:build gc && !noasm

package gemm

import (
	"golang.org/x/sys/cpu"

	"github.com/phaseconv/phaseconv/kernels/internal/impl"
)

// avx512Needs and avx2Needs list everything that the kernels of a tier execute
// (requires_test.go holds the assembly against them). The AVX-512 tier asks for
// AVX2 and FMA too, so that GODEBUG=cpu.avx2=off takes both tiers away.
var (
	avx2Needs   = []bool{cpu.X86.HasAVX, cpu.X86.HasAVX2, cpu.X86.HasFMA}
	avx512Needs = append([]bool{cpu.X86.HasAVX512F}, avx2Needs...)
)

type tileFunc func(kc int, a *float32, lda int, b *float32, ldb int, c *float32, ldc int, add bool)

// Tiles by rows-1 and vectors-1.
var (
	avx2Tiles = [4][3]tileFunc{
		{avx2Tile1x8, avx2Tile1x16, avx2Tile1x24},
		{avx2Tile2x8, avx2Tile2x16, avx2Tile2x24},
		{avx2Tile3x8, avx2Tile3x16, avx2Tile3x24},
		{avx2Tile4x8, avx2Tile4x16, avx2Tile4x24},
	}
	avx512Tiles = [8][3]tileFunc{
		{avx512Tile1x16, avx512Tile1x32, avx512Tile1x48},
		{avx512Tile2x16, avx512Tile2x32, avx512Tile2x48},
		{avx512Tile3x16, avx512Tile3x32, avx512Tile3x48},
		{avx512Tile4x16, avx512Tile4x32, avx512Tile4x48},
		{avx512Tile5x16, avx512Tile5x32, avx512Tile5x48},
		{avx512Tile6x16, avx512Tile6x32, avx512Tile6x48},
		{avx512Tile7x16, avx512Tile7x32, avx512Tile7x48},
		{avx512Tile8x16, avx512Tile8x32, avx512Tile8x48},
	}
)

// The slices have the exact extent of the operands: the caller cut them so, and
// its bounds checks are the ones that guard these pointers.

func tileAVX2(rows, width, kc int, a []float32, lda int, b []float32, ldb int, c []float32, ldc int, add bool) {
	avx2Tiles[rows-1][width/8-1](kc, &a[0], lda, &b[0], ldb, &c[0], ldc, add)
}

func tileAVX512(rows, width, kc int, a []float32, lda int, b []float32, ldb int, c []float32, ldc int, add bool) {
	avx512Tiles[rows-1][width/16-1](kc, &a[0], lda, &b[0], ldb, &c[0], ldc, add)
}

func streamAVX2(kc int, a, b []float32, distance int, c []float32, add bool) {
	avx2Stream(kc, &a[0], &b[0], distance, &c[0], add)
}

func streamAVX512(kc int, a, b []float32, distance int, c []float32, add bool) {
	avx512Stream(kc, &a[0], &b[0], distance, &c[0], add)
}

// interleave8 transposes the first columns of 8 rows for pack.go and returns how
// many it took, a multiple of 8.
func interleave8(k int, src []float32, ld int, dst []float32, width int) int {
	k &^= 7
	if k == 0 || current() == &generic {
		return 0
	}
	_, _ = src[7*ld+k-1], dst[(k-1)*width+7]
	avx2Interleave8(k, &src[0], ld, &dst[0], width)
	return k
}

func all(features []bool) bool {
	for _, f := range features {
		if !f {
			return false
		}
	}
	return true
}

func init() {
	// 12 registers of accumulators, 3 of weights and 1 broadcast on AVX2; the
	// 8 x 48 tile of AVX-512 uses 28 of 32 and does the fewest loads per
	// multiply-add.
	tiers = append(tiers,
		&candidate{enabled: all(avx512Needs), tier: tier{
			name: "avx512", layout: layout{panel: 48, grain: 16}, mr: 8, mc: 512, kc: 1024,
			tile: tileAVX512, stream: streamAVX512, streams: 4, peak: avx512Peak, peakFlop: 12 * 16 * 2,
		}},
		&candidate{enabled: all(avx2Needs), tier: tier{
			name: "avx2", layout: layout{panel: 24, grain: 8}, mr: 4, mc: 512, kc: 1024,
			tile: tileAVX2, stream: streamAVX2, streams: 4, peak: avx2Peak, peakFlop: 12 * 8 * 2,
		}},
	)
	for _, t := range tiers {
		impl.Register("gemm", t.name, &t.enabled)
	}
}
