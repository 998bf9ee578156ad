package audit

import (
	"context"
	"math"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/internal/tiny"
)

func near(t *testing.T, what string, got *float64, want float64) {
	t.Helper()
	if got == nil || math.Abs(*got-want) > 1e-6 {
		x := math.NaN()
		if got != nil {
			x = *got
		}
		t.Errorf("%s is %g, expected %g", what, x, want)
	}
}

// TestGainsBalance: keys four times as large in one of eight rotary pairs and queries four times
// as large in another. The best scales make the two equal, which the balance foretells; gains
// that are balanced already, by that very move, have 1.
func TestGainsBalance(t *testing.T) {
	balance := func(q, k [8]float32) *Gains {
		c := tiny.Open(t, "qwen3", tiny.Options{Layers: 1, Edit: func(name string, x []float32) {
			for i := range x {
				switch {
				case strings.HasSuffix(name, "q_norm.weight"):
					x[i] = q[i%8]
				case strings.HasSuffix(name, "k_norm.weight"):
					x[i] = k[i%8]
				}
			}
		}})
		g, err := ReadGains(context.Background(), c, 0)
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	q, k := [8]float32{1, 1, 1, 4, 1, 1, 1, 1}, [8]float32{4, 1, 1, 1, 1, 1, 1, 1}
	g := balance(q, k)
	// (6 + 4 + 4)^2 / (7 + 16)^2
	near(t, "balance", g.Balance, 14.*14/(23*23))
	near(t, "worst head", g.Layers[0].Worst, 14.*14/(23*23))
	if g.Constant != nil || g.Layers[0].Constant != nil {
		t.Error("keys behind a norm have a constant share")
	}
	for p := range q {
		s := float32(math.Sqrt(float64(q[p] / k[p])))
		q[p], k[p] = q[p]/s, k[p]*s
	}
	near(t, "balance of balanced gains", balance(q, k).Balance, 1)
	// Gains of both sides alike: there is nothing to move.
	near(t, "balance of equal gains", balance(k, k).Balance, 1)
}

// TestGainsConstant compares with the energies of bias and matrix, formed here from the
// numbers that went into the file, by head: heads have 16 dimensions, so all rows are read.
func TestGainsConstant(t *testing.T) {
	m := tiny.New(t, "qwen2", tiny.Options{Layers: 1, Edit: func(name string, x []float32) {
		if strings.HasSuffix(name, "k_proj.bias") {
			for i := range x {
				x[i] *= 3
			}
			x[7], x[16+7] = 40, 2 // pair 7, the slowest one
		}
	}})
	c := tiny.Open(t, "qwen2", m.Options)
	const reach = 1000 // pairs 6 (0.001 radians per position) and 7 turn by no more than a radian
	g, err := ReadGains(context.Background(), c, reach)
	if err != nil {
		t.Fatal(err)
	}
	w, b := m.Find("model.layers.0.self_attn.k_proj.weight").Values, m.Find("model.layers.0.self_attn.k_proj.bias").Values
	gain := m.Find("model.layers.0.input_layernorm.weight").Values
	var share, slow, most float64
	for h := range 2 {
		var vary, fixed, fixedSlow float64
		for i := 16 * h; i < 16*h+16; i++ {
			for j, x := range w[i*64 : i*64+64] {
				vary += float64(x) * float64(x) * float64(gain[j]) * float64(gain[j])
			}
			e := float64(b[i]) * float64(b[i])
			fixed += e
			if i%8 == 7 {
				fixedSlow += e
			}
		}
		share, slow, most = share+fixed/(fixed+vary)/2, slow+fixedSlow/(fixed+vary)/2, max(most, fixed/(fixed+vary))
	}
	near(t, "constant share", g.Layers[0].Constant, share)
	near(t, "mean over layers", g.Constant, share)
	near(t, "slow share", g.Layers[0].Slow, slow)
	near(t, "still share", g.Layers[0].Still, 0)
	near(t, "removable share", g.Removable, slow) // no dimension is still
	near(t, "largest share", g.Layers[0].Largest, most)
	if share < 0.5 || slow > 0.9*share || g.Balance != nil {
		t.Errorf("share %g, slow %g, balance %v: the model does not test much", share, slow, g.Balance)
	}
}

// TestGainsReadsLittle: of a model with biases a small part of the file is read.
func TestGainsReadsLittle(t *testing.T) {
	c := tiny.Open(t, "qwen2", tiny.Options{HeadDim: 128, Heads: 2, KVHeads: 1, Hidden: 256})
	g, err := ReadGains(context.Background(), c, 0)
	if err != nil {
		t.Fatal(err)
	}
	k, _ := c.Find("blk.0.attn_k.weight")
	all := int64(4 * len(g.Layers) * k.Elements())
	if g.BytesRead == 0 || g.BytesRead > all/4 {
		t.Errorf("%d bytes read, the key matrices have %d", g.BytesRead, all)
	}
}
