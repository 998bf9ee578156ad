package linalg

import (
	"context"
	"errors"
	"math"
)

// ErrNotPositive is returned by Cholesky for a matrix that is not positive definite.
var ErrNotPositive = errors.New("matrix is not positive definite")

// Cholesky returns the lower triangle L with A = L L^T for a positive definite n x n matrix, of
// which it reads the lower triangle. It fails on others, with ErrNotPositive, and when ctx ends.
func Cholesky(ctx context.Context, a []float64, n int) ([]float64, error) {
	// The upper triangle L^T in panels of columns: a panel holds rows 0 to n-1 of its columns.
	up := make([]float64, panels(n)*panel*n)
	coef := make([]float64, n)
	for j := range n { // column j of L
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		own := up[j/panel*panel*n:]
		for k := range j {
			coef[k] = own[k*panel+j%panel]
		}
		for c := j / panel; c < panels(n); c++ {
			x := up[c*panel*n:][:panel*n]
			row := x[j*panel : (j+1)*panel]
			for i := max(j, c*panel); i < min(n, (c+1)*panel); i++ {
				row[i-c*panel] = a[i*n+j]
			}
			subProducts(row, coef[:j], x)
		}
		pivot := own[j*panel+j%panel]
		if !(pivot > 0) {
			return nil, ErrNotPositive
		}
		pivot = math.Sqrt(pivot)
		for c := j / panel; c < panels(n); c++ {
			row := up[(c*n+j)*panel:][:panel]
			for i := range row {
				row[i] /= pivot
			}
		}
		own[j*panel+j%panel] = pivot
	}
	l := make([]float64, n*n)
	for i := range n {
		for j := range i + 1 {
			l[i*n+j] = up[(i/panel*n+j)*panel+i%panel]
		}
	}
	return l, nil
}

// fewRows is below how many rows SolveRight takes them one by one.
const fewRows = 4

// SolveRight returns X with X B = A for B = L L^T given by its Cholesky factor:
// A and X are m x n, L is n x n. It fails only when ctx ends.
func SolveRight(ctx context.Context, a []float64, m int, l []float64, n int) ([]float64, error) {
	x := append([]float64(nil), a...)
	r := 0
	if m >= fewRows {
		up, side := Transpose(l, n), make([]float64, n*panel)
		for ; r+fewRows <= m; r += panel {
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			solvePanel(x[r*n:min(m, r+panel)*n], side, l, up, n)
		}
	}
	for ; r < m; r++ {
		row := x[r*n : (r+1)*n]
		for i := range n { // L y = a
			s := row[i]
			for k := range i {
				s -= float64(l[i*n+k] * row[k])
			}
			row[i] = s / l[i*n+i]
		}
		for i := n - 1; i >= 0; i-- { // L^T x = y
			s := row[i]
			for k := i + 1; k < n; k++ {
				s -= float64(l[k*n+i] * row[k])
			}
			row[i] = s / l[i*n+i]
		}
	}
	return x, nil
}

// solvePanel is the body of SolveRight for the rows of x, at most a panel of them, side by side in
// t, [n, panel]. up is L^T.
func solvePanel(x, t, l, up []float64, n int) {
	clear(t)
	for r := 0; r*n < len(x); r++ {
		for i, v := range x[r*n : (r+1)*n] {
			t[i*panel+r] = v
		}
	}
	divide := func(row []float64, i int) {
		d := l[i*n+i]
		for j := range row {
			row[j] /= d
		}
	}
	for i := range n { // L y = a
		row := t[i*panel : (i+1)*panel]
		subProducts(row, l[i*n:i*n+i], t)
		divide(row, i)
	}
	for i := n - 1; i >= 0; i-- { // L^T x = y
		row := t[i*panel : (i+1)*panel]
		subProducts(row, up[i*n+i+1:(i+1)*n], t[(i+1)*panel:])
		divide(row, i)
	}
	for r := 0; r*n < len(x); r++ {
		for i := range n {
			x[r*n+i] = t[i*panel+r]
		}
	}
}
