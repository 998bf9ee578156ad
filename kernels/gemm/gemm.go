// Package gemm multiplies float32 matrices in the shape of a linear layer,
// C[m,n] = A[m,k] W[n,k]^T, with results that do not depend on the machine.
//
// # Bits
//
// Every C[i,j] is one chain of fused multiply-adds over ascending k,
//
//	s = fma(A[i,p], W[j,p], s), each rounded once to float32 (nearest even),
//
// that starts from +0 (Mul) or from the old C[i,j] (MulAdd). Tiles, cache
// blocks, vector width and thread count only change which chains run side by
// side, so they never change a bit, and neither does the tier: AVX-512, AVX2,
// NEON or plain Go, which rounds to odd where the CPU has no float32 FMA within
// Go's reach. Splitting the k range over a Mul and MulAdds gives the bits of
// one call. The one thing left open is the sign and payload of a NaN.
//
// # Sizes
//
// Matrices are row major; ld is the distance between rows in elements. A call
// panics, before it writes anything, when a slice is too short for its sizes or
// a size is negative: that is a mistake of the caller, never of a file.
package gemm

import (
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
)

// Mul computes C[m,n] = A[m,k] W^T, with n and k taken from w. threads <= 0
// means GOMAXPROCS. C must not overlap A.
func Mul(c []float32, ldc int, a []float32, lda, m int, w *Weights, threads int) {
	MulRange(c, ldc, a, lda, m, w, 0, w.n, 0, w.k, false, threads)
}

// MulAdd computes C += A W^T: like Mul, but each chain starts from C[i,j].
func MulAdd(c []float32, ldc int, a []float32, lda, m int, w *Weights, threads int) {
	MulRange(c, ldc, a, lda, m, w, 0, w.n, 0, w.k, true, threads)
}

// MulRange computes a part of the product: C[i,j] for j in [n0,n1), summed over
// p in [k0,k1). Indices are those of the whole matrices: C[i,j] is c[i*ldc+j]
// and A[i,p] is a[i*lda+p], and nothing outside the ranges is read or written.
// With add the chains start from C, otherwise from zero.
//
// Causal attention is the use: a block of queries against keys [0,end), then
// the probabilities of keys [0,end) times the values.
func MulRange(c []float32, ldc int, a []float32, lda, m int, w *Weights, n0, n1, k0, k1 int, add bool, threads int) {
	if n0 < 0 || n1 < n0 || n1 > w.n || k0 < 0 || k1 < k0 || k1 > w.k {
		panic(fmt.Sprintf("gemm: columns [%d,%d) and k [%d,%d) do not lie in weights of %d x %d", n0, n1, k0, k1, w.n, w.k))
	}
	checkMatrix("A", len(a), lda, m, k1)
	checkMatrix("C", len(c), ldc, m, n1)
	if m == 0 || n0 == n1 {
		return
	}
	if k0 == k1 {
		if !add {
			for i := range m {
				clear(c[i*ldc+n0 : i*ldc+n1])
			}
		}
		return
	}
	p := product{c: c, ldc: ldc, a: a, lda: lda, m: m, w: w, n0: n0, n1: n1, k0: k0, k1: k1, add: add}
	p.run(threads)
}

// checkMatrix panics when rows x cols numbers at row distance ld are not all
// inside a slice of the given length, or when rows overlap.
func checkMatrix(name string, length, ld, rows, cols int) {
	if rows < 0 || ld < 0 {
		panic(fmt.Sprintf("gemm: %s: %d rows at distance %d", name, rows, ld))
	}
	if rows == 0 || cols == 0 {
		return
	}
	if rows > 1 && ld < cols {
		panic(fmt.Sprintf("gemm: %s: rows of %d numbers overlap at distance %d", name, cols, ld))
	}
	if length < cols || (length-cols)/max(ld, 1) < rows-1 {
		panic(fmt.Sprintf("gemm: %s: %d numbers are too few for %d rows of %d at distance %d", name, length, rows, cols, ld))
	}
}

// A tier is one implementation of the inner tile.
type tier struct {
	name string
	// layout of the weights that tile reads.
	layout layout
	// mr is the largest number of rows that tile takes.
	mr int
	// At most mc rows of A and kc of its columns are worked on at a time, so that
	// this block of A stays in cache while the panels pass by, and so does a panel
	// (kc x layout.panel weights) while it meets the rows. Measured, not derived:
	// a larger kc saves loads and stores of C.
	mc, kc int
	// tile computes rows x width numbers of C from kc columns of A, where width
	// is a multiple of layout.grain; b is the first weight of a packed panel,
	// whose rows are ldb apart. It touches exactly that part of c.
	tile func(rows, width, kc int, a []float32, lda int, b []float32, ldb int, c []float32, ldc int, add bool)
	// stream, if not nil, computes one row of C for streams whole panels from kc
	// columns of A; the panels' first weights are distance apart.
	stream  func(kc int, a, b []float32, distance int, c []float32, add bool)
	streams int
	// peak is a loop of nothing but multiply-adds, peakFlop operations each time.
	peak     func(iterations int)
	peakFlop float64
}

// tiers that the machine supports, best first; init functions of the
// architecture files append to it before the generic tier is used.
var tiers []*candidate

type candidate struct {
	tier
	enabled bool
}

var generic = tier{
	name: "generic", layout: layout{panel: 16, grain: 8},
	mr: 4, mc: 64, kc: 256, tile: tileGeneric,
}

// current returns the best enabled tier.
func current() *tier {
	for _, t := range tiers {
		if t.enabled {
			return &t.tier
		}
	}
	return &generic
}

// Tier names the implementation in use: "avx512", "avx2", "neon" or "generic".
func Tier() string { return current().name }

// A product is one MulRange call, cut into tasks that workers take by number.
type product struct {
	c      []float32
	ldc    int
	a      []float32
	lda    int
	m      int
	w      *Weights
	n0, n1 int
	k0, k1 int
	add    bool

	t            *tier
	rows, panels int // of one task
	kc           int // t.kc or less, so that blocks of k are about even
	rowTasks     int
	firstPanel   int
	lastPanel    int // exclusive
}

// minTaskWork is the least number of multiply-adds worth a goroutine of its own
// (starting and joining one costs about a microsecond).
const minTaskWork = 1 << 17

// run cuts the product into tasks and works through them.
func (p *product) run(threads int) {
	p.t = current()
	if p.t.layout != p.w.layout {
		// The weights were packed while another tier was enabled (tests do that).
		p.t = &tier{mr: generic.mr, mc: generic.mc, kc: generic.kc, tile: generic.tile}
	}
	if threads <= 0 {
		threads = runtime.GOMAXPROCS(0)
	}
	nr := p.w.layout.panel
	p.firstPanel, p.lastPanel = p.n0/nr, (p.n1+nr-1)/nr
	panels := p.lastPanel - p.firstPanel

	blocks := (p.k1 - p.k0 + p.t.kc - 1) / p.t.kc
	p.kc = ((p.k1-p.k0+blocks-1)/blocks + 3) &^ 3
	if p.m <= p.t.mr {
		// Every weight is read once, so it is best read in the order of memory.
		p.kc = p.k1 - p.k0
	}

	// Rows first into blocks of about mc, as even as whole tiles allow.
	p.rowTasks = (p.m + p.t.mc - 1) / p.t.mc
	p.panels = panels
	work := p.m * (p.n1 - p.n0) * (p.k1 - p.k0)
	if limit := work / minTaskWork; threads > limit {
		threads = max(limit, 1)
	}
	if threads > 1 {
		// A few tasks per worker, so that a core that is busy elsewhere does not
		// hold up the others. Panels are cut first: a worker then keeps to its own
		// weights. Narrow products (head_dim columns) are cut by rows instead.
		want := 4 * threads
		p.panels = max(1, panels*p.rowTasks/want)
		if pt := (panels + p.panels - 1) / p.panels; pt*p.rowTasks < want {
			tiles := (p.m + p.t.mr - 1) / p.t.mr
			p.rowTasks = max(p.rowTasks, min(tiles, (want+pt-1)/pt))
		}
	}
	p.rows = (p.m + p.rowTasks - 1) / p.rowTasks
	p.rows = (p.rows + p.t.mr - 1) / p.t.mr * p.t.mr
	p.rowTasks = (p.m + p.rows - 1) / p.rows
	panelTasks := (panels + p.panels - 1) / p.panels
	parallel(threads, p.rowTasks*panelTasks, p.task)
}

// task computes one block of C over the whole k range: the chain of each number
// runs inside one task.
func (p *product) task(id int, s *scratch) {
	i0 := id % p.rowTasks * p.rows
	i1 := min(i0+p.rows, p.m)
	q0 := p.firstPanel + id/p.rowTasks*p.panels
	q1 := min(q0+p.panels, p.lastPanel)
	for k0 := p.k0; k0 < p.k1; k0 += p.kc {
		kc := min(p.kc, p.k1-k0)
		add := p.add || k0 > p.k0
		for q := q0; q < q1; q++ {
			if p.stream(q, q1, i0, i1, k0, kc, add) {
				q += p.t.streams - 1
				continue
			}
			p.panel(q, i0, i1, k0, kc, add, s)
		}
	}
}

// stream computes a single row of several panels from q on, or returns false where
// that cannot be done.
func (p *product) stream(q, q1, i0, i1, k0, kc int, add bool) bool {
	n := p.t.streams
	width := n * p.w.layout.panel
	j0 := q * p.w.layout.panel
	if p.t.stream == nil || i1-i0 != 1 || q+n > q1 || j0 < p.n0 || j0+width > p.n1 {
		return false
	}
	distance := p.w.layout.panel * p.w.k
	from := q*distance + k0*p.w.layout.panel
	b := p.w.data[from : from+(n-1)*distance+kc*p.w.layout.panel]
	p.t.stream(kc, p.a[i0*p.lda+k0:][:kc], b, distance, p.c[i0*p.ldc+j0:][:width], add)
	return true
}

// panel computes rows [i0,i1) of panel q over k [k0,k0+kc).
func (p *product) panel(q, i0, i1, k0, kc int, add bool, s *scratch) {
	l := p.w.layout
	// The wanted columns of this panel, then widened to whole grains.
	j0, j1 := max(p.n0-q*l.panel, 0), min(p.n1-q*l.panel, l.panel)
	g0, g1 := j0/l.grain*l.grain, (j1+l.grain-1)/l.grain*l.grain
	ldb := l.width(p.w.n, q)
	off := q*l.panel*p.w.k + k0*ldb
	b := p.w.data[off+g0 : off+(kc-1)*ldb+g1]
	exact := g0 == j0 && g1 == j1
	for i := i0; i < i1; i += p.t.mr {
		rows := min(p.t.mr, i1-i)
		a := p.a[i*p.lda+k0 : (i+rows-1)*p.lda+k0+kc]
		at := i*p.ldc + q*l.panel
		if exact {
			c := p.c[at+j0 : at+(rows-1)*p.ldc+j1]
			p.t.tile(rows, g1-g0, kc, a, p.lda, b, ldb, c, p.ldc, add)
			continue
		}
		// Part of the tile lies outside the wanted columns: go through a buffer.
		c := s.tile[:rows*l.panel]
		if add {
			for r := range rows {
				copy(c[r*l.panel+j0-g0:], p.c[at+r*p.ldc+j0:at+r*p.ldc+j1])
			}
		}
		p.t.tile(rows, g1-g0, kc, a, p.lda, b, ldb, c, l.panel, add)
		for r := range rows {
			copy(p.c[at+r*p.ldc+j0:at+r*p.ldc+j1], c[r*l.panel+j0-g0:])
		}
	}
}

// Limits over all tiers, for buffers.
const (
	maxPanel = 64
	maxRows  = 16
)

// A scratch is what one worker needs besides the operands.
type scratch struct {
	tile [maxRows * maxPanel]float32
}

var scratchPool = sync.Pool{New: func() any { return new(scratch) }}

// parallel runs f(0..tasks-1) on up to threads goroutines, this one included.
// Tasks are handed out in ascending order.
func parallel(threads, tasks int, f func(id int, s *scratch)) {
	if threads <= 0 {
		threads = runtime.GOMAXPROCS(0)
	}
	var next atomic.Int64
	worker := func() {
		s := scratchPool.Get().(*scratch)
		defer scratchPool.Put(s)
		for {
			id := int(next.Add(1)) - 1
			if id >= tasks {
				return
			}
			f(id, s)
		}
	}
	var wg sync.WaitGroup
	for range min(threads, tasks) - 1 {
		wg.Go(worker)
	}
	worker()
	wg.Wait()
}
