//go:build linux && (amd64 || arm64)

package libllama

import (
	"fmt"
	"math"

	"github.com/phaseconv/phaseconv/kernels/fmath"
	"github.com/phaseconv/phaseconv/verify/ppl"
)

// Result compares one context with a base, in the numbers of llama-perplexity.
type Result struct {
	KLD, KLDErr     float64 // mean KL(base || this) in nats per token, and its standard error
	PPL             float64
	Ratio, RatioErr float64 // PPL(this)/PPL(base), and its standard error
	SameTop         float64 // share of tokens with the same most likely prediction
}

// Measure runs windows through base and others, which may belong to different
// models of one vocabulary, and compares the predictions of their second halves.
// The result holds base itself first.
func Measure(w *ppl.Windows, base *Context, others ...*Context) ([]Result, error) {
	vocab := base.m.Vocab
	kept := make([]float32, w.PerWindow()*vocab) // one window of the base
	all := append([]*Context{base}, others...)
	type sums struct {
		kld, nll []float64
		same     int
	}
	acc := make([]sums, len(all))
	e := make([]float32, vocab)
	for n, tokens := range w.Tokens {
		for i, c := range all {
			if c.m.Vocab != vocab {
				return nil, fmt.Errorf("vocabularies of %d and %d tokens cannot be compared", vocab, c.m.Vocab)
			}
			err := c.Window(tokens, w.First(), func(pos int, z []float32) error {
				r := pos - w.First()
				if r == w.PerWindow() {
					return nil // predicts a token outside the window
				}
				b := kept[r*vocab : (r+1)*vocab]
				if i == 0 {
					copy(b, z)
				}
				max := fmath.Max(z)
				lse := float64(max) + math.Log(fmath.ExpSum(e, z, max, 1))
				acc[i].nll = append(acc[i].nll, lse-float64(z[w.Targets[n*w.PerWindow()+r]]))
				kld, same, err := divergence(e, b, z, lse)
				if err != nil {
					return fmt.Errorf("window %d, position %d: %w", n, pos, err)
				}
				acc[i].kld = append(acc[i].kld, kld)
				if same {
					acc[i].same++
				}
				return nil
			})
			if err != nil {
				return nil, err
			}
		}
	}
	out := make([]Result, len(all))
	for i, a := range acc {
		r := &out[i]
		r.KLD, r.KLDErr = ppl.MeanErr(a.kld)
		mean, _ := ppl.MeanErr(a.nll)
		r.PPL = math.Exp(mean)
		diff := make([]float64, len(a.nll))
		for j := range diff {
			diff[j] = a.nll[j] - acc[0].nll[j]
		}
		mean, err := ppl.MeanErr(diff)
		r.Ratio = math.Exp(mean)
		r.RatioErr = r.Ratio * err
		r.SameTop = float64(a.same) / float64(len(a.nll))
	}
	return out, nil
}

// divergence returns KL(b || z) for rows of logits, with lse the logarithm of the
// sum of exponentials of z, and whether their largest stand at the same place. e is
// scratch of their length.
func divergence(e, b, z []float32, lse float64) (kld float64, same bool, err error) {
	max := fmath.Max(b)
	sum := fmath.ExpSum(e, b, max, 1)
	var cross float64
	topB, topZ := 0, 0
	for i, p := range e {
		cross += float64(p) * (float64(b[i]) - float64(z[i]))
		if b[i] > b[topB] {
			topB = i
		}
		if z[i] > z[topZ] {
			topZ = i
		}
	}
	kld = cross/sum - float64(max) - math.Log(sum) + lse
	if math.IsNaN(kld) || math.IsInf(kld, 0) {
		return 0, false, fmt.Errorf("a logit is not a number")
	}
	return kld, topB == topZ, nil
}
