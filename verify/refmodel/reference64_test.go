package refmodel

import (
	"math"
	"slices"
	"testing"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/kernels/rope"
)

// reference computes the forward pass in float64 with plain loops, one window at a time, so that
// differences of its losses are good to ten digits: the measure of the backward pass.
type reference struct {
	t      *testing.T
	c      *family.Config
	w      checkpoint.Weights
	loaded map[string][]float64
	// move, if set, adds to a layer's keys after RoPE and to its values, [T, n_kv_heads*head_dim].
	move func(layer int, k, v []float64)
}

func (r *reference) tensor(name string) []float64 {
	if x, ok := r.loaded[name]; ok {
		return x
	}
	t, ok := r.w.Find(name)
	if !ok {
		return nil
	}
	x := make([]float32, t.Elements())
	if err := r.w.ReadRows(t, 0, t.Rows(), x); err != nil {
		r.t.Fatal(err)
	}
	out := make([]float64, len(x))
	for i, v := range x {
		out[i] = float64(v)
	}
	if r.loaded == nil {
		r.loaded = map[string][]float64{}
	}
	r.loaded[name] = out
	return out
}

// product is rows of x times a matrix, plus a bias if there is one.
func product(x, w, bias []float64, cols int) []float64 {
	n, rows := len(w)/cols, len(x)/cols
	out := make([]float64, 0, rows*n)
	for i := range rows {
		a := x[i*cols : (i+1)*cols]
		for j := range n {
			var s float64
			for k, v := range w[j*cols : (j+1)*cols] {
				s += v * a[k]
			}
			if bias != nil {
				s += bias[j]
			}
			out = append(out, s)
		}
	}
	return out
}

func normed(x, gain []float64, eps float64) []float64 {
	d := len(gain)
	out := make([]float64, len(x))
	for at := 0; at < len(x); at += d {
		var s float64
		for _, v := range x[at : at+d] {
			s += v * v
		}
		s = 1 / math.Sqrt(s/float64(d)+eps)
		for i, v := range x[at : at+d] {
			out[at+i] = v * s * gain[i]
		}
	}
	return out
}

func softmaxed(x []float64) []float64 {
	top, sum := slices.Max(x), 0.0
	out := make([]float64, len(x))
	for i, v := range x {
		out[i] = math.Exp(v - top)
		sum += out[i]
	}
	for i := range out {
		out[i] /= sum
	}
	return out
}

func activation(kind family.Activation, x float64) float64 {
	if kind == family.GELUTanh {
		return x / 2 * (1 + math.Tanh(math.Sqrt(2/math.Pi)*(x+0.044715*x*x*x)))
	}
	return x / (1 + math.Exp(-x))
}

func (r *reference) ffn(f *family.FFN, x, gate, up, down []float64) []float64 {
	g, u := product(x, gate, nil, r.c.Hidden), product(x, up, nil, r.c.Hidden)
	for i := range g {
		g[i] = activation(f.Activation, g[i]) * u[i]
	}
	return product(g, down, nil, f.Size)
}

func (r *reference) mixture(l int, x []float64) []float64 {
	f, d := &r.c.Layers[l].FFN, r.c.Hidden
	part := func(name string, e int) []float64 {
		w := r.tensor(family.Name(l, name))
		n := len(w) / f.Experts
		return w[e*n : (e+1)*n]
	}
	out := make([]float64, len(x))
	for row := range len(x) / d {
		x := x[row*d : (row+1)*d]
		p := softmaxed(product(x, r.tensor(family.Name(l, "ffn_gate_inp.weight")), nil, d))
		order := make([]int, len(p))
		for i := range order {
			order[i] = i
		}
		slices.SortStableFunc(order, func(a, b int) int { return int(math.Copysign(1, p[b]-p[a])) })
		sum := 1.0
		if f.Renorm {
			sum = 0
			for _, e := range order[:f.Used] {
				sum += p[e]
			}
		}
		for _, e := range order[:f.Used] {
			y := r.ffn(f, x, part("ffn_gate_exps.weight", e), part("ffn_up_exps.weight", e), part("ffn_down_exps.weight", e))
			for i, v := range y {
				out[row*d+i] += p[e] / sum * v
			}
		}
	}
	return out
}

func (r *reference) turn(x []float64, heads, d int, table *rope.Table) {
	for i := range len(x) / d {
		cos, sin := table.Row(i / heads)
		h := x[i*d : (i+1)*d]
		for p := range d / 2 {
			a, b := r.c.Pairs.Dims(p, d)
			c, s := float64(cos[p]), float64(sin[p])
			h[a], h[b] = h[a]*c-h[b]*s, h[a]*s+h[b]*c
		}
	}
}

func (r *reference) attention(l int, x []float64, T int) []float64 {
	y, name := &r.c.Layers[l], func(s string) []float64 { return r.tensor(family.Name(l, s)) }
	project := func(s string) []float64 { return product(x, name(s+".weight"), name(s+".bias"), r.c.Hidden) }
	q, k, v := project("attn_q"), project("attn_k"), project("attn_v")
	if y.QKNorm != family.NoQKNorm {
		q, k = normed(q, name("attn_q_norm.weight"), r.c.NormEps), normed(k, name("attn_k_norm.weight"), r.c.NormEps)
	}
	table := rope.NewTable(y.Rope, T)
	d := y.HeadDim
	r.turn(q, y.Heads, d, table)
	r.turn(k, y.KVHeads, d, table)
	if r.move != nil {
		r.move(l, k, v)
	}
	o := make([]float64, len(q))
	for i := range T {
		for h := range y.Heads {
			at, kv := (i*y.Heads+h)*d, h/y.Group()
			var s []float64
			lo := FirstSeen(y, i)
			for j := lo; j <= i; j++ {
				s = append(s, y.Scale*product(q[at:at+d], k[(j*y.KVHeads+kv)*d:][:d], nil, d)[0])
			}
			for j, p := range softmaxed(s) {
				for n, z := range v[((lo+j)*y.KVHeads+kv)*d:][:d] {
					o[at+n] += p * z
				}
			}
		}
	}
	return product(o, name("attn_output.weight"), name("attn_output.bias"), y.Heads*d)
}

// logits returns those of one window, [T, vocab].
func (r *reference) logits(tokens []int32) []float64 {
	c := r.c
	var x []float64
	for _, id := range tokens {
		for _, v := range r.tensor("token_embd.weight")[int(id)*c.Hidden:][:c.Hidden] {
			x = append(x, v*c.EmbeddingScale)
		}
	}
	add := func(y []float64) {
		for i, v := range y {
			x[i] += v
		}
	}
	for l := range c.Layers {
		y := &c.Layers[l]
		name := func(s string) []float64 { return r.tensor(family.Name(l, s)) }
		out := r.attention(l, normed(x, name("attn_norm.weight"), c.NormEps), len(tokens))
		if y.PostNorms {
			out = normed(out, name("post_attention_norm.weight"), c.NormEps)
		}
		add(out)
		in := normed(x, name("ffn_norm.weight"), c.NormEps)
		if y.FFN.Experts > 0 {
			out = r.mixture(l, in)
		} else {
			out = r.ffn(&y.FFN, in, name("ffn_gate.weight"), name("ffn_up.weight"), name("ffn_down.weight"))
		}
		if y.PostNorms {
			out = normed(out, name("post_ffw_norm.weight"), c.NormEps)
		}
		add(out)
	}
	head := r.tensor("output.weight")
	if head == nil {
		head = r.tensor("token_embd.weight")
	}
	z := product(normed(x, r.tensor("output_norm.weight"), c.NormEps), head, nil, c.Hidden)
	if s := c.LogitSoftcap; s > 0 {
		for i, v := range z {
			z[i] = s * math.Tanh(v/s)
		}
	}
	return z
}

// loss is the sum of -log p(label) over a window's positions from the given one on.
func (r *reference) loss(tokens, labels []int32, from int) (sum float64) {
	z := r.logits(tokens)
	for i, id := range labels {
		if i >= from && id >= 0 {
			sum -= math.Log(softmaxed(z[i*r.c.Vocab : (i+1)*r.c.Vocab])[id])
		}
	}
	return sum
}
