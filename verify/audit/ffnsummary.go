package audit

import (
	"fmt"
	"math"

	"github.com/phaseconv/phaseconv/spec"
)

// FFNMeans averages rows over layers, and over experts that were looked at one by one, in the order
// in which matrices and rotations come first.
func FFNMeans(rows []spec.FFNRow) []spec.FFNMean {
	type key struct {
		matrix, rotation string
		each             bool
	}
	at := map[key]int{}
	var out []spec.FFNMean
	var trained []float64
	for _, r := range rows {
		k := key{r.Matrix, r.Rotation, r.Expert >= 0}
		i, ok := at[k]
		if !ok {
			i, at[k] = len(out), len(out)
			out = append(out, spec.FFNMean{Matrix: r.Matrix, Rotation: r.Rotation, Each: k.each, Dims: r.Dims, Block: r.Block})
			trained = append(trained, 0)
		}
		m := &out[i]
		m.Matrices++
		m.Cos1bit, m.MomentRatio = m.Cos1bit+r.Cos1bit, m.MomentRatio+r.MomentRatio
		m.EffectiveBits, m.RowsPerDim = m.EffectiveBits+r.EffectiveBits, m.RowsPerDim+r.RowsPerDim
		if r.TrainCos1bit != nil && r.NoiseCos1bit != nil {
			trained[i]++
			m.TrainCos1bit, m.NoiseCos1bit = plus(m.TrainCos1bit, *r.TrainCos1bit), plus(m.NoiseCos1bit, *r.NoiseCos1bit)
		}
	}
	for i := range out {
		m, n := &out[i], float64(out[i].Matrices)
		m.Cos1bit, m.MomentRatio = m.Cos1bit/n, m.MomentRatio/n
		m.EffectiveBits, m.RowsPerDim = m.EffectiveBits/n, m.RowsPerDim/n
		if m.TrainCos1bit != nil {
			*m.TrainCos1bit, *m.NoiseCos1bit = *m.TrainCos1bit/trained[i], *m.NoiseCos1bit/trained[i]
		}
	}
	return out
}

// plus adds x to a sum that may not have begun.
func plus(sum *float64, x float64) *float64 {
	if sum != nil {
		x += *sum
	}
	return &x
}

// FFNSummary averages rows and judges the learned rotations among them, which are called basis: by
// what they gain over a Hadamard transform on rows that they were not fitted to.
func FFNSummary(rows []spec.FFNRow, basis string) ([]spec.FFNMean, spec.FFNVerdict) {
	type matrix struct {
		layer, expert int
		name          string
	}
	hadamard := map[matrix]float64{}
	for _, r := range rows {
		if r.Rotation == "srht" {
			hadamard[matrix{r.Layer, r.Expert, r.Matrix}] = r.Cos1bit
		}
	}
	var gain, over tally
	for _, r := range rows {
		if r.Rotation != basis {
			continue
		}
		gain.add(r.Cos1bit - hadamard[matrix{r.Layer, r.Expert, r.Matrix}])
		if r.TrainCos1bit != nil && r.NoiseCos1bit != nil {
			over.add(*r.TrainCos1bit - *r.NoiseCos1bit)
		}
	}
	var v spec.FFNVerdict
	v.Gain, v.GainErr = gain.mean()
	v.OverNoise, v.OverNoiseErr = over.mean()
	v.Learned = v.Gain > 3*v.GainErr && v.Gain > spec.FFNLeast
	v.Text = "the learned rotations describe only the rows that they were fitted to; a Hadamard transform, which needs no storage, does as well on others"
	if v.Learned {
		v.Text = fmt.Sprintf("the learned rotations describe rows that they were not fitted to better than a Hadamard transform does, by %.4f in cos1bit",
			v.Gain)
	}
	return FFNMeans(rows), v
}

// A tally is numbers whose mean is asked for.
type tally struct{ n, sum, squares float64 }

func (t *tally) add(x float64) {
	t.n++
	t.sum += x
	t.squares += float64(x * x)
}

// mean returns it with its standard error, zeros for no numbers.
func (t *tally) mean() (mean, err float64) {
	if t.n == 0 {
		return 0, 0
	}
	mean = t.sum / t.n
	if t.n > 1 {
		err = math.Sqrt(max(0, t.squares/t.n-float64(mean*mean)) / (t.n - 1))
	}
	return mean, err
}
