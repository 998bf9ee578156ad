package fit

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/phaseconv/phaseconv/internal/keydata"
)

// TestSpectrum: eigenvalues of a product that is known.
func TestSpectrum(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	const d, n = 16, 4000
	m, _ := keydata.Metric(r, 400, d)
	s := &Sample{D: d, Keys: keydata.Keyish(r, n, d), Metric: m, Threads: 1}
	got, err := s.Spectrum(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// The trace of C S is the error of storing the mean for every key.
	var want, sum float64
	mean := s.Mean()
	for i := 0; i < len(s.Keys); i += d {
		for a := range d {
			for b := range d {
				want += m[a*d+b] * float64(s.Keys[i+a]-mean[a]) * float64(s.Keys[i+b]-mean[b]) / n
			}
		}
	}
	for i, v := range got {
		sum += v
		if v < 0 || i > 0 && v > got[i-1] {
			t.Errorf("eigenvalues %v", got)
		}
	}
	if math.Abs(sum-want) > 1e-4*want {
		t.Errorf("sum %g, want %g", sum, want)
	}
	if _, err := (&Sample{D: d}).Spectrum(t.Context()); err == nil {
		t.Error("no keys: no error")
	}
}
