package transform

import (
	"testing"

	"github.com/phaseconv/phaseconv/kernels/linalg"
)

func eigen(t testing.TB, a []float64, n int) (values, vectors []float64) {
	t.Helper()
	values, vectors, err := linalg.Eigen(t.Context(), a, n)
	if err != nil {
		t.Fatal(err)
	}
	return values, vectors
}

func point(t testing.TB, p *transformProgram, x []float64) *transformPoint {
	t.Helper()
	m, err := p.at(t.Context(), x)
	if err != nil {
		t.Fatal(err)
	}
	return m
}
