package onebit

import (
	"fmt"
	"math"

	"github.com/phaseconv/phaseconv/kernels/fmath"
)

// A Projection computes q' = M^T q for the scores of a code with decode matrix M, b signs
// and d dimensions, in 16-bit integers: where a cache has anchors every block of tokens
// wants its own q', and then that is most of the work. With n the largest length (L2 norm)
// of a row of M^T and |q| that of a query, both in float64,
//
//	R[i][j] = round(M^T[i][j] * float32(32000 / n)), ties to even
//	Q[j]    = round(q[j] * float32(32000 / |q|)), ties to even
//	q'[i]   = float32(sum_j R[i][j] Q[j]) * float32(|q| n / 32000^2)
//
// with products in float32 and an exact integer sum, which lengths of 32000 keep below
// 2^31, so that every instruction set gives the same bits.
//
// Against real numbers each q'[i] is off by sqrt(1/6) |q| n / 32000 in the root mean
// square: at d = 64, where q'[i] is about |q| n / 8, that is 1e-4 of it, a twelfth of what
// the rounding for tables costs (see the package comment).
//
// It is immutable once made and safe for concurrent use.
type Projection struct {
	b, d   int
	length float64
	// rows[(i/16*pairs+j/2)*32 + 2*(i%16) + j%2] is R[i][j].
	rows []int16
}

// projectScale is the length that rows and queries are scaled to.
const projectScale = 32000

const (
	// projectBlocks is how many blocks of 16 signs meet all queries before the next ones do:
	// their rows stay in the first-level cache.
	projectBlocks = 6
	projectRows   = 8 // queries that the kernels multiply at once
	projectPad    = 8 // dimensions are padded to a multiple of it with zeros
)

// NewProjection prepares the rows of M^T, [b, d], all finite. It panics unless b is what
// Words takes.
func NewProjection(rows []float32, b, d int) *Projection {
	Words(b)
	if d < 1 || len(rows) != b*d {
		panic(fmt.Sprintf("onebit: %d numbers are no matrix of %d x %d", len(rows), b, d))
	}
	p := &Projection{b: b, d: d}
	for i := range b {
		p.length = max(p.length, Length(rows[i*d:(i+1)*d]))
	}
	pairs := p.pairs()
	p.rows = make([]int16, p.blocks()*2*BlockKeys*pairs)
	if p.length < 0x1p-100 {
		p.length = 0
		return p
	}
	scale := float32(projectScale / p.length)
	for i := range b {
		for j, v := range rows[i*d : (i+1)*d] {
			p.rows[(i/BlockKeys*pairs+j/2)*2*BlockKeys+2*(i%BlockKeys)+j%2] = roundInt(v * scale)
		}
	}
	return p
}

// pairs is how many pairs of dimensions are stored for a row.
func (p *Projection) pairs() int { return (p.d + projectPad - 1) / projectPad * projectPad / 2 }

func (p *Projection) blocks() int { return (p.b + BlockKeys - 1) / BlockKeys }

// Width returns how many numbers Apply writes for a query: the signs in whole blocks of
// 16, of which the first b mean something.
func (p *Projection) Width() int { return p.blocks() * BlockKeys }

// Queries holds queries that were rounded for a Projection. The zero value is ready.
type Queries struct {
	n, wide int
	ints    []int16
	factors []float32
}

// Set rounds n queries for p; query r is q[r*ldq : r*ldq+d], of the length lengths[r] (see
// Length): a query that was only turned has that of before. The memory of earlier calls is
// used again. Queries of infinite or undefined length give NaN.
func (x *Queries) Set(p *Projection, q []float32, ldq, n int, lengths []float64) {
	if n < 0 || ldq < 0 || n > 0 && len(q) < (n-1)*ldq+p.d || len(lengths) < n {
		panic(fmt.Sprintf("onebit: %d numbers and %d lengths are too few for %d queries of %d at distance %d", len(q), len(lengths),
			n, p.d, ldq))
	}
	x.n, x.wide = n, 2*p.pairs()
	if cap(x.ints) < n*x.wide || cap(x.factors) < n {
		x.ints, x.factors = make([]int16, n*x.wide), make([]float32, n)
	}
	x.ints, x.factors = x.ints[:n*x.wide], x.factors[:n]
	for r, length := range lengths[:n] {
		row := x.ints[r*x.wide : (r+1)*x.wide]
		switch {
		case !(length <= math.MaxFloat32): // NaN too
			clear(row)
			x.factors[r] = float32(math.NaN())
		case length < 0x1p-100:
			clear(row)
			x.factors[r] = 0
		default:
			roundRow(row, q[r*ldq:][:p.d], float32(projectScale/length))
			x.factors[r] = float32(length * p.length / (projectScale * projectScale))
		}
	}
}

// roundRow rounds a query; the numbers that it does not have are 0.
func roundRow(row []int16, q []float32, scale float32) {
	whole := len(q) / projectPad * projectPad
	if whole > 0 {
		roundInt16(row[:whole], q[:whole], scale)
	}
	clear(row[whole:])
	for j := whole; j < len(q); j++ {
		row[j] = roundInt(q[j] * scale)
	}
}

// Length returns the length of a query, as Set wants it.
func Length(q []float32) float64 { return math.Sqrt(fmath.SumSq(q)) }

// Offset returns the product of a mean with a query of the same length, for the offset of
// Score: product i, a float32, goes to partial sum i mod 8 in ascending order, and these are
// added from the first to the last.
func Offset(mean, q []float32) float32 {
	var s [8]float32
	q = q[:len(mean)]
	for ; len(mean) >= 8 && len(q) >= 8; mean, q = mean[8:], q[8:] {
		m, x := (*[8]float32)(mean), (*[8]float32)(q)
		s[0] += float32(m[0] * x[0])
		s[1] += float32(m[1] * x[1])
		s[2] += float32(m[2] * x[2])
		s[3] += float32(m[3] * x[3])
		s[4] += float32(m[4] * x[4])
		s[5] += float32(m[5] * x[5])
		s[6] += float32(m[6] * x[6])
		s[7] += float32(m[7] * x[7])
	}
	for i, v := range mean {
		s[i] += float32(v * q[i])
	}
	total := s[0]
	for _, v := range s[1:] {
		total += v
	}
	return total
}

// Apply sets out[r*ldo : r*ldo+p.Width()] to q' of query r, for every query of x.
func (p *Projection) Apply(out []float32, ldo int, x *Queries) {
	if x.n == 0 {
		return
	}
	if w := p.Width(); ldo < w || len(out) < (x.n-1)*ldo+w {
		panic(fmt.Sprintf("onebit: %d numbers at distance %d do not hold %d rows of %d", len(out), ldo, x.n, w))
	}
	if x.wide != 2*p.pairs() {
		panic("onebit: queries that were rounded for another projection")
	}
	pairs := p.pairs()
	for g := 0; g < p.blocks(); g += projectBlocks {
		rows := p.rows[g*pairs*2*BlockKeys:]
		for r := 0; r < x.n; {
			r += applyRows(out[r*ldo+g*BlockKeys:], ldo, x.ints[r*x.wide:], rows, x.factors[r:],
				min(projectBlocks, p.blocks()-g), pairs)
		}
	}
}

// applyGeneric computes some blocks of one row.
func applyGeneric(out []float32, q, rows []int16, factor float32, blocks, pairs int) {
	for g := range blocks {
		var sum [BlockKeys]int32
		for k := range pairs {
			a, b := int32(q[2*k]), int32(q[2*k+1])
			m := (*[2 * BlockKeys]int16)(rows[(g*pairs+k)*2*BlockKeys:])
			for i := range sum {
				sum[i] += a*int32(m[2*i]) + b*int32(m[2*i+1])
			}
		}
		for i, s := range sum {
			out[g*BlockKeys+i] = float32(s) * factor
		}
	}
}
