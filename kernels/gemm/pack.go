package gemm

import (
	"fmt"
	"math"
	"slices"
	"sync"
)

// A RowFunc decodes row number row of a weight matrix, k numbers, into dst,
// which has length k. Pack calls it from several goroutines at once, for
// different rows and each row once.
type RowFunc func(row int, dst []float32) error

// Weights is a matrix W[n,k] in the order in which the kernels read it. The zero
// value is an empty matrix. Packing again reuses the memory if it is large
// enough; a Weights must not be packed while a product reads it.
type Weights struct {
	n, k   int
	layout layout
	data   []float32
}

// N returns the number of rows of W, which are the columns of the product.
func (w *Weights) N() int { return w.n }

// K returns the number of columns of W, over which products sum.
func (w *Weights) K() int { return w.k }

// A layout cuts the n rows of W into panels. In a panel the numbers of equal k
// are adjacent, so that a tile loads them as vectors: element [j,p] of W lies in
// panel q = j/panel at q*panel*k + p*width(q) + j%panel. The last panel is as
// narrow as whole grains allow and filled up with zeros.
type layout struct {
	panel int // rows of W in a full panel
	grain int // the width of a panel is a multiple of this, itself one of 8
}

// width returns the width of panel q of a matrix of n rows.
func (l layout) width(n, q int) int {
	return min(l.panel, l.round(n)-q*l.panel)
}

// round returns n rounded up to whole grains.
func (l layout) round(n int) int { return (n + l.grain - 1) / l.grain * l.grain }

// maxElements bounds a packed matrix (1 TiB, or less where int has 32 bits), so
// that no product of sizes overflows.
const maxElements = min(1<<38, math.MaxInt/8)

// reset gives w its new size and a buffer of undefined contents.
func (w *Weights) reset(n, k int) error {
	*w = Weights{layout: current().layout, data: w.data}
	if n < 0 || k < 0 || n > maxElements || k > 0 && (n+maxPanel) > maxElements/k {
		return fmt.Errorf("gemm: cannot pack a matrix of %d x %d: sizes must not be negative nor exceed %d numbers in all", n,
			k, maxElements)
	}
	size := w.layout.round(n) * k
	if cap(w.data) < size {
		w.data = make([]float32, size)
		preferHugePages(w.data)
	}
	w.n, w.k, w.data = n, k, w.data[:size]
	return nil
}

// mustReset is reset for callers whose sizes were checked against a slice.
func (w *Weights) mustReset(n, k int) {
	if err := w.reset(n, k); err != nil {
		panic(err.Error())
	}
}

// packRows is how many rows of W are decoded before they are interleaved: enough
// to write whole cache lines, few enough to stay in cache. A multiple of every
// grain.
const packRows = 16

// Pack fills w with the n x k matrix whose rows the function decodes, on up to
// threads goroutines (<= 0 means GOMAXPROCS). When rows fails, Pack stops early,
// leaves w empty and returns the error of the lowest failing row, wrapped with
// its number.
func (w *Weights) Pack(n, k int, rows RowFunc, threads int) error {
	if err := w.reset(n, k); err != nil {
		return err
	}
	var (
		mu     sync.Mutex
		failed error
		first  = math.MaxInt
	)
	if n == 0 || k == 0 {
		return nil
	}
	groups := (n + packRows - 1) / packRows
	buffers := sync.Pool{New: func() any { b := make([]float32, packRows*k); return &b }}
	parallel(threads, groups, func(id int, _ *scratch) {
		mu.Lock()
		stop := failed != nil
		mu.Unlock()
		if stop {
			// Lower groups were handed out before this one and report themselves.
			return
		}
		buf := buffers.Get().(*[]float32)
		defer buffers.Put(buf)
		j0 := id * packRows
		j1 := min(j0+packRows, n)
		for j := j0; j < j1; j++ {
			if err := rows(j, (*buf)[(j-j0)*k:(j-j0+1)*k]); err != nil {
				mu.Lock()
				if j < first {
					first, failed = j, fmt.Errorf("row %d of %d: %w", j, n, err)
				}
				mu.Unlock()
				return
			}
		}
		w.interleave(j0, j1, *buf, k)
	})
	if failed != nil {
		w.n, w.k, w.data = 0, 0, w.data[:0]
	}
	return failed
}

// PackRows fills w with the n x k matrix b, whose rows are ldb apart:
// W[j,p] = b[j*ldb+p].
func (w *Weights) PackRows(n, k int, b []float32, ldb int, threads int) {
	checkMatrix("W", len(b), ldb, n, k)
	w.mustReset(n, k)
	if n == 0 || k == 0 {
		return
	}
	groups := (n + packRows - 1) / packRows
	if n*k < minTaskWork {
		threads = 1
	}
	parallel(threads, groups, func(id int, _ *scratch) {
		j0 := id * packRows
		w.interleave(j0, min(j0+packRows, n), b[j0*ldb:], ldb)
	})
}

// PackT fills w with the transpose of b, k rows of n numbers that are ldb apart:
// W[j,p] = b[p*ldb+j]. So Mul computes the plain product A b, such as
// probabilities times values.
func (w *Weights) PackT(n, k int, b []float32, ldb int, threads int) {
	checkMatrix("W^T", len(b), ldb, k, n)
	w.mustReset(n, k)
	if n == 0 || k == 0 {
		return
	}
	if n*k < minTaskWork {
		threads = 1
	}
	// A few rows of b at a time: as many streams as hardware prefetches, and whole
	// cache lines to write in each panel.
	const stretch = 16
	l := w.layout
	parallel(threads, (k+stretch-1)/stretch, func(id int, _ *scratch) {
		p0, p1 := id*stretch, min((id+1)*stretch, k)
		for j := 0; j < n; j += l.panel {
			width := l.width(n, j/l.panel)
			dst := w.data[j*k+p0*width : j*k+p1*width]
			src := b[j:]
			for p := p0; p < p1; p++ {
				row := dst[(p-p0)*width:][:width]
				taken := copy(row, src[p*ldb:][:min(width, n-j)])
				clear(row[taken:])
			}
		}
	})
}

// interleave stores rows [j0,j1) of W, which are the rows of src, in their
// panels. j0 is a multiple of packRows and j1 of it or equal to n.
func (w *Weights) interleave(j0, j1 int, src []float32, ld int) {
	const group = 8 // divides every grain, so that a group lies in one panel
	for j := j0; j < w.layout.round(j1); j += group {
		q := j / w.layout.panel
		width := w.layout.width(w.n, q)
		at := q*w.layout.panel*w.k + j%w.layout.panel
		dst := w.data[at : at+(w.k-1)*width+group]
		if j1-j < group {
			// Behind the last row of W come zeros.
			for p := range w.k {
				d := dst[p*width:][:group]
				clear(d)
				for i := j; i < j1; i++ {
					d[i-j] = src[(i-j0)*ld+p]
				}
			}
			continue
		}
		s := src[(j-j0)*ld:]
		p := interleave8(w.k, s, ld, dst, width)
		if p == w.k {
			continue
		}
		s, dst = s[p:], dst[p*width:]
		n := w.k - p
		s0, s1, s2, s3 := s[:n], s[ld:][:n], s[2*ld:][:n], s[3*ld:][:n]
		s4, s5, s6, s7 := s[4*ld:][:n], s[5*ld:][:n], s[6*ld:][:n], s[7*ld:][:n]
		for p := range n {
			d := (*[group]float32)(dst[p*width:])
			d[0], d[1], d[2], d[3] = s0[p], s1[p], s2[p], s3[p]
			d[4], d[5], d[6], d[7] = s4[p], s5[p], s6[p], s7[p]
		}
	}
}

// Transpose returns the transpose of x, rows x cols, in dst where that has room.
// It goes in squares: whole columns at once would touch a page of the result for
// every number.
func Transpose(dst, x []float32, rows, cols int) []float32 {
	const side = 16
	dst = slices.Grow(dst[:0], len(x))[:len(x)]
	for i0 := 0; i0 < rows; i0 += side {
		for j0 := 0; j0 < cols; j0 += side {
			for j := j0; j < min(cols, j0+side); j++ {
				to := dst[j*rows:]
				for i := i0; i < min(rows, i0+side); i++ {
					to[i] = x[i*cols+j]
				}
			}
		}
	}
	return dst
}
