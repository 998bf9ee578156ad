//go:build gc && !noasm

package gemm

import (
	"golang.org/x/sys/cpu"

	"github.com/phaseconv/phaseconv/kernels/internal/impl"
)

//go:noescape
func neonTile6x16(kc int, a *float32, lda int, b *float32, ldb int, c *float32, ldc int, add bool)

//go:noescape
func neonTile1x16(kc int, a *float32, lda int, b *float32, ldb int, c *float32, ldc int, add bool)

func neonPeak(iterations int)

// tileNEON gets slices of the exact extent of the operands; a row at a time
// takes what is left of the six.
func tileNEON(rows, _, kc int, a []float32, lda int, b []float32, ldb int, c []float32, ldc int, add bool) {
	if rows == 6 {
		neonTile6x16(kc, &a[0], lda, &b[0], ldb, &c[0], ldc, add)
		return
	}
	for r := range rows {
		neonTile1x16(kc, &a[r*lda], lda, &b[0], ldb, &c[r*ldc], ldc, add)
	}
}

func init() {
	t := &candidate{enabled: cpu.ARM64.HasASIMD, tier: tier{
		name: "neon", layout: layout{panel: 16, grain: 16}, mr: 6, mc: 240, kc: 512,
		tile: tileNEON, peak: neonPeak, peakFlop: 24 * 4 * 2,
	}}
	tiers = append(tiers, t)
	impl.Register("gemm", t.name, &t.enabled)
}
