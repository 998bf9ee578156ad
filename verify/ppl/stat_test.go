package ppl_test

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"gonum.org/v1/gonum/stat"

	"github.com/phaseconv/phaseconv/verify/ppl"
)

// TestStatistics holds means, errors and quantiles against gonum. Ours go into
// manifests and so have one order of summation; the digits that this leaves open
// are allowed for.
func TestStatistics(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(31, 1))
	for _, n := range []int{2, 3, 10, 1020} {
		x := make([]float64, n)
		for i := range x {
			x[i] = math.Exp(3 * r.NormFloat64()) // few carry most, as with divergences
		}
		mean, err := ppl.MeanErr(x)
		m, s := stat.MeanStdDev(x, nil)
		if e := stat.StdErr(s, float64(n)); !near(mean, m) || !near(err, e) {
			t.Errorf("n %d: %v ± %v, gonum has %v ± %v", n, mean, err, m, e)
		}
		slices.Sort(x)
		for _, p := range []float64{0, 0.01, 0.5, 0.9, 0.99, 1} {
			// Ours interpolates between the first value at p = 0 and the last at p = 1,
			// gonum's between the first at 1/n and the last at 1.
			want := stat.Quantile((p*float64(n-1)+1)/float64(n), stat.LinInterp, x, nil)
			if got := ppl.Quantile(x, p); !(math.Abs(got-want) <= 1e-9*want) {
				t.Errorf("n %d: quantile %v is %v, gonum has %v", n, p, got, want)
			}
		}
	}
	if mean, err := ppl.MeanErr([]float64{3}); mean != 3 || err != 0 {
		t.Errorf("one value: %v ± %v", mean, err)
	}
}

func near(x, y float64) bool { return math.Abs(x-y) <= 1e-12*math.Abs(y) }
