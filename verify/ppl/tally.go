package ppl

import (
	"fmt"
	"math"
	"sync"

	"github.com/phaseconv/phaseconv/kernels/fmath"
)

// row accumulates one token's softmax over pieces of the vocabulary. Sums are
// relative to the largest logit so far.
type row struct {
	max, sum float64
	target   float64
	top      int32
	topValue float32
}

func (r *row) merge(m, s float64) (scaleOld, scaleNew float64) {
	if m > r.max {
		scaleOld, scaleNew = fmath.Exp(r.max-m), 1
		r.max = m
	} else {
		scaleOld, scaleNew = 1, fmath.Exp(m-r.max)
	}
	r.sum = float64(r.sum*scaleOld) + float64(s*scaleNew)
	return scaleOld, scaleNew
}

// lse is the logarithm of the sum of exponentials.
func (r *row) lse() float64 { return r.max + fmath.Log(r.sum) }

func (r *row) see(z []float32, v0 int, target int32) {
	for i, v := range z {
		if v > r.topValue || v0 == 0 && i == 0 {
			r.topValue, r.top = v, int32(v0+i)
		}
	}
	if t := int(target) - v0; t >= 0 && t < len(z) {
		r.target = float64(z[t])
	}
}

// A tally takes in logits, piece by piece of the vocabulary. Stream 0 is the base.
type tally struct {
	targets []int32
	acc     [][]row     // [stream][token]
	cross   [][]float64 // [stream][token], sum of exp(zb - max) * (zb - z)

	mu    sync.Mutex
	delta []float64 // [stream], the largest difference of a logit
}

func newTally(targets []int32, streams int) *tally {
	t := &tally{targets: targets, acc: make([][]row, streams), cross: make([][]float64, streams),
		delta: make([]float64, streams)}
	for i := range t.acc {
		t.acc[i], t.cross[i] = make([]row, len(targets)), make([]float64, len(targets))
		for r := range t.acc[i] {
			t.acc[i][r].max = math.Inf(-1)
		}
	}
	return t
}

// token takes in the logits of scored token r that belong to the part of the vocabulary from v0
// on: z[stream]. Calls for different tokens may run at the same time.
func (c *tally) token(r int, z [][]float32, v0 int, scratch []float32) {
	zb := z[0]
	m := fmath.Max(zb)
	e := scratch[:len(zb)]
	bOld, bNew := c.acc[0][r].merge(float64(m), fmath.ExpSum(e, zb, m, 1))
	c.acc[0][r].see(zb, v0, c.targets[r])
	worst := make([]float64, len(z))
	for i := 1; i < len(z); i++ {
		var dot, most float64
		for k, p := range e {
			diff := float64(zb[k]) - float64(z[i][k])
			dot += float64(float64(p) * diff)
			most = max(most, math.Abs(diff))
		}
		worst[i] = most
		c.cross[i][r] = float64(c.cross[i][r]*bOld) + float64(dot*bNew)
	}
	for i := 1; i < len(z); i++ {
		m := fmath.Max(z[i])
		c.acc[i][r].merge(float64(m), fmath.ExpSum(e, z[i], m, 1))
		c.acc[i][r].see(z[i], v0, c.targets[r])
	}
	c.mu.Lock()
	for i, w := range worst {
		c.delta[i] = max(c.delta[i], w)
	}
	c.mu.Unlock()
}

// scores returns what was taken in.
func (c *tally) scores() []Scores {
	out := make([]Scores, len(c.acc))
	for i := range out {
		s := &out[i]
		s.MaxAbsDLogit = c.delta[i]
		for r := range c.targets {
			x, b := &c.acc[i][r], &c.acc[0][r]
			s.NLL = append(s.NLL, x.lse()-x.target)
			s.Top = append(s.Top, x.top)
			if i > 0 {
				// KL = sum p (zb - z) - lse_b + lse, with p from the base.
				s.KLD = append(s.KLD, c.cross[i][r]/b.sum-b.lse()+x.lse())
			}
		}
	}
	return out
}

// Scores are what the predictions of one stream measured, scored token by scored token.
type Scores struct {
	NLL []float64 // negative log-likelihoods, in nats
	KLD []float64 // from the base, in nats; the base has none
	Top []int32   // the most likely tokens
	// MaxAbsDLogit is the largest difference of any logit from the base's.
	MaxAbsDLogit float64
}

// Combine makes a result of the scores of a base, scores[0], and of streams.
func Combine(scores []Scores) (*Result, error) {
	if len(scores) == 0 || len(scores[0].NLL) == 0 {
		return nil, fmt.Errorf("no scored tokens")
	}
	base := &scores[0]
	n := len(base.NLL)
	res := &Result{Base: perplexity(base.NLL)}
	for i := range scores {
		s := &scores[i]
		if len(s.NLL) != n || len(s.Top) != n || i > 0 && len(s.KLD) != n {
			return nil, fmt.Errorf("stream %d has scores of %d, %d and %d tokens, the base of %d", i, len(s.NLL), len(s.Top),
				len(s.KLD), n)
		}
		if i == 0 {
			continue
		}
		p := perplexity(s.NLL)
		res.Streams = append(res.Streams, p)
		d := Divergence{MaxAbsDLogit: s.MaxAbsDLogit, KLD: s.KLD}
		same := 0
		for r := range s.Top {
			if s.Top[r] == base.Top[r] {
				same++
			}
		}
		d.summarise(res.Base, p, same)
		res.Divergences = append(res.Divergences, d)
	}
	return res, nil
}

func perplexity(nll []float64) Perplexity {
	p := Perplexity{Tokens: len(nll), NLL: nll}
	mean, err := MeanErr(p.NLL)
	p.PPL = fmath.Exp(mean)
	p.Err = p.PPL * err
	return p
}

// A Meter compares rows of logits as Measure does, for engines that give rows of the whole
// vocabulary.
type Meter struct {
	*tally
	vocab int
}

// NewMeter returns a meter of so many streams, the base among them, for scored tokens whose true
// continuations are targets.
func NewMeter(targets []int32, streams, vocab int) (*Meter, error) {
	if len(targets) == 0 || streams < 1 || vocab < 1 {
		return nil, fmt.Errorf("nothing to measure: %d tokens, %d streams, a vocabulary of %d", len(targets), streams, vocab)
	}
	return &Meter{newTally(targets, streams), vocab}, nil
}

// Row takes in the logits of scored token r of all streams, the base first. Each token is given
// once; calls for different tokens may run at the same time.
func (m *Meter) Row(r int, logits [][]float32) error {
	if r < 0 || r >= len(m.targets) || len(logits) != len(m.acc) {
		return fmt.Errorf("%d rows of logits for token %d of %d", len(logits), r, len(m.targets))
	}
	for _, z := range logits {
		if len(z) != m.vocab {
			return fmt.Errorf("%d logits for a vocabulary of %d", len(z), m.vocab)
		}
	}
	piece, scratch := make([][]float32, len(logits)), make([]float32, min(m.vocab, vocabPiece))
	for v0 := 0; v0 < m.vocab; v0 += vocabPiece {
		for i, z := range logits {
			piece[i] = z[v0:min(m.vocab, v0+vocabPiece)]
		}
		m.token(r, piece, v0, scratch)
	}
	return nil
}

// Scores returns what was taken in.
func (m *Meter) Scores() []Scores { return m.scores() }
