package audit_test

import (
	"context"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/internal/tiny"
	"github.com/phaseconv/phaseconv/rotations/fit"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/audit"
)

// planted are weights whose rows of gate and up are signs in a hidden basis, with a little noise.
type planted struct {
	checkpoint.Weights
	basis *fit.BlockRotation
}

func (p planted) ReadRows(t *checkpoint.Tensor, row0, n int, dst []float32) error {
	if !strings.Contains(t.Name, "ffn_gate") && !strings.Contains(t.Name, "ffn_up") {
		return p.Weights.ReadRows(t, row0, n, dst)
	}
	for i := range n {
		r := rand.New(rand.NewPCG(uint64(row0+i), uint64(len(t.Name))))
		x := make([]float32, p.basis.D)
		for j := range x {
			x[j] = float32(2*r.IntN(2)-1) + float32(0.1*r.NormFloat64())
		}
		copy(dst[i*len(x):], p.basis.Rotate(x, 1))
	}
	return nil
}

// TestFFNSummary: where rows have a basis in which they are signs, it is found, and the verdict says so;
// in random weights nothing is.
func TestFFNSummary(t *testing.T) {
	ctx := context.Background()
	const d = 32
	c := tiny.Open(t, "llama", tiny.Options{Seed: 1, Layers: 2, Hidden: d, Heads: 2, KVHeads: 1, HeadDim: 16, FFN: 1024})
	basis := fit.HadamardRows(d, d, 99, 7, 7)
	for _, x := range []struct {
		w       checkpoint.Weights
		learned bool
	}{{planted{c, basis}, true}, {c, false}} {
		m := audit.NewFFNMeter(c.Config, x.w, audit.FFNOptions{Block: d, Seed: 1, Threads: 1}, 32)
		var rows []spec.FFNRow
		for l := range 2 {
			s, err := m.Sample(ctx, l, 0, -1)
			if err != nil {
				t.Fatal(err)
			}
			r, err := m.Fit(ctx, s)
			if err != nil {
				t.Fatal(err)
			}
			more, err := m.Measure(ctx, s, r, spec.FFNShared)
			if err != nil {
				t.Fatal(err)
			}
			rows = append(rows, more...)
		}
		means, v := audit.FFNSummary(rows, spec.FFNShared)
		if v.Learned != x.learned || len(means) != 6 || means[0].Matrices != 2 {
			t.Errorf("planted %v: %+v, %d means", x.learned, v, len(means))
		}
		// Signs with noise of 0.1 have a cosine of 0.995 in their basis; the fit ends in a local maximum at
		// 0.94. Gaussian rows lie at 0.80, and so do these in any basis that is not near theirs.
		if got := means[2].Cos1bit; x.learned && got < 0.92 || !x.learned && got > 0.82 {
			t.Errorf("planted %v: held out %.3f", x.learned, got)
		}
	}
}
