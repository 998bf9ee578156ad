package transform

import (
	"fmt"
	"math"

	"github.com/phaseconv/phaseconv/kernels/rope"
)

// A PairScale is identity G3 as a scale: key pair p of a KV head is multiplied by
// Scale[p] and the query pairs that meet it are divided by it, which changes no
// score. Scale has one entry per KV head, head_dim/2 numbers each.
type PairScale struct {
	Scale [][]float32
	// PerLayer: all heads share one scale, because the only place to fold it is a
	// norm gain that they share.
	PerLayer bool
}

// PairEnergy accumulates E|q_p|^2 and E|k_p|^2 of one layer, per KV head.
type PairEnergy struct {
	Heads, D int
	q, k     []float64 // [Heads, D/2]
	nq, nk   float64
}

// NewPairEnergy starts an empty sum.
func NewPairEnergy(heads, d int) *PairEnergy {
	return &PairEnergy{Heads: heads, D: d, q: make([]float64, heads*d/2), k: make([]float64, heads*d/2)}
}

// Add takes one token's queries, [Heads*group*D], and keys, [Heads*D]. RoPE does
// not change a pair's energy, so they may be taken before or after it.
func (e *PairEnergy) Add(q, k []float32, group int, pairs rope.Layout) {
	h := e.D / 2
	for head := range e.Heads {
		for p := range h {
			i, j := pairs.Dims(p, e.D)
			x, y := float64(k[head*e.D+i]), float64(k[head*e.D+j])
			e.k[head*h+p] += float64(x*x) + float64(y*y)
			for g := range group {
				o := (head*group + g) * e.D
				x, y := float64(q[o+i]), float64(q[o+j])
				e.q[head*h+p] += float64(x*x) + float64(y*y)
			}
		}
	}
	e.nk++
	e.nq += float64(group)
}

// maxBalance bounds a scale: beyond it a pair carries nothing on one side.
const maxBalance = 1 << 10

// PairScale returns the scales t with t_p^2 = sqrt(E|q_p|^2 / E|k_p|^2), which
// minimise E|k|^2 E|q|^2 summed over pairs: the score error of any code whose
// error is alike in all directions (closed form; design identity G3). perLayer
// averages the energies over the heads first.
func (e *PairEnergy) PairScale(perLayer bool) *PairScale {
	h := e.D / 2
	q, k := append([]float64(nil), e.q...), append([]float64(nil), e.k...)
	if perLayer {
		for p := range h {
			var sq, sk float64
			for head := range e.Heads {
				sq += q[head*h+p]
				sk += k[head*h+p]
			}
			for head := range e.Heads {
				q[head*h+p], k[head*h+p] = sq, sk
			}
		}
	}
	b := &PairScale{PerLayer: perLayer}
	for head := range e.Heads {
		eq, ek := make([]float64, h), make([]float64, h)
		for p := range h {
			eq[p], ek[p] = q[head*h+p]/e.nq, k[head*h+p]/e.nk
		}
		b.Scale = append(b.Scale, PairScaleOf(eq, ek))
	}
	return b
}

// KeyScale spreads the scale of one KV head over the d dimensions of a key: both
// dimensions of pair p get Scale[p].
func (b *PairScale) KeyScale(head, d int, pairs rope.Layout) []float32 {
	out := make([]float32, d)
	for p, t := range b.Scale[head] {
		i, j := pairs.Dims(p, d)
		out[i], out[j] = t, t
	}
	return out
}

// QueryScale is the inverse of KeyScale, for the queries that meet the head.
func (b *PairScale) QueryScale(head, d int, pairs rope.Layout) []float32 {
	out := make([]float32, d)
	for p, t := range b.Scale[head] {
		t = 1 / t
		i, j := pairs.Dims(p, d)
		out[i], out[j] = t, t
	}
	return out
}

// Check refuses scales that cannot be folded.
func (b *PairScale) Check(heads, d int) error {
	if len(b.Scale) != heads {
		return fmt.Errorf("balance for %d of %d KV heads", len(b.Scale), heads)
	}
	for h, s := range b.Scale {
		if len(s) != d/2 {
			return fmt.Errorf("balance of head %d has %d scales for %d pairs", h, len(s), d/2)
		}
		for _, t := range s {
			if !(t > 0) || math.IsInf(float64(t), 0) {
				return fmt.Errorf("balance of head %d has scale %g", h, t)
			}
		}
	}
	return nil
}
