package refmodel

import (
	"cmp"
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
	kv   map[int][2][]float64 // keys and values of a run
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
	switch kind {
	case family.GELUTanh:
		return x / 2 * (1 + math.Tanh(math.Sqrt(2/math.Pi)*(x+0.044715*x*x*x)))
	case family.ClampedSwiGLU:
		x = min(x, family.ClampLimit)
		return x / (1 + math.Exp(-family.ClampAlpha*x))
	}
	return x / (1 + math.Exp(-x))
}

// norm is that of the residual stream.
func (r *reference) norm(x, gain []float64) []float64 {
	if r.c.LayerNorm {
		x = slices.Clone(x)
		for at := 0; at < len(x); at += len(gain) {
			var mean float64
			for _, v := range x[at : at+len(gain)] {
				mean += v / float64(len(gain))
			}
			for i := range gain {
				x[at+i] -= mean
			}
		}
	}
	return normed(x, gain, r.c.NormEps)
}

// ffn is a gated FFN of some tokens, whose matrices and biases, where there are any, are of gate, up and down.
func (r *reference) ffn(f *family.FFN, x []float64, w, bias [3][]float64) []float64 {
	g, u := product(x, w[0], bias[0], r.c.Hidden), product(x, w[1], bias[1], r.c.Hidden)
	for i := range g {
		if f.Activation == family.ClampedSwiGLU {
			u[i] = min(max(u[i], -family.ClampLimit), family.ClampLimit) + 1
		}
		g[i] = activation(f.Activation, g[i]) * u[i]
	}
	return product(g, w[2], bias[2], len(w[2])/r.c.Hidden)
}

// matrices returns gate, up and down of a layer.
func (r *reference) matrices(l int, kind string) (w [3][]float64) {
	for i, n := range []string{"ffn_gate", "ffn_up", "ffn_down"} {
		w[i] = r.tensor(family.Name(l, n+kind+".weight"))
	}
	return w
}

// part returns what expert e has of a tensor of all experts.
func (r *reference) part(l int, f *family.FFN, name string, e int) []float64 {
	w := r.tensor(family.Name(l, name))
	n := len(w) / f.Experts
	return w[e*n : (e+1)*n]
}

// chosen returns the weights of the experts for one token, 0 for those that it does not take.
func (r *reference) chosen(l int, f *family.FFN, x []float64) []float64 {
	name := func(s string) []float64 { return r.tensor(family.Name(l, s)) }
	p := product(x, name("ffn_gate_inp.weight"), name("ffn_gate_inp.bias"), r.c.Hidden)
	switch f.Router {
	case family.SoftmaxTopK:
		p = softmaxed(p)
	case family.SigmoidTopK:
		for i, v := range p {
			p[i] = 1 / (1 + math.Exp(-v))
		}
	}
	score := make([]float32, len(p))
	for i, v := range p {
		score[i] = float32(v)
		if f.ChoiceBias {
			score[i] += float32(name("exp_probs_b.bias")[i])
		}
	}
	order := make([]int, len(p))
	for i := range order {
		order[i] = i
	}
	if f.Groups > 1 {
		order = inGroups(f, score) // which there are is no matter of precision
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(score[b], score[a]) })
	out := make([]float64, len(p))
	var of []float64
	for _, e := range order[:f.Used] {
		of = append(of, p[e])
	}
	if f.Router == family.TopKSoftmax {
		of = softmaxed(of)
	}
	sum := 1.0
	if f.Renorm {
		sum = 0
		for _, v := range of {
			sum += v
		}
	}
	for i, e := range order[:f.Used] {
		out[e] = of[i] / sum * f.Scale()
	}
	return out
}

// mixture adds up experts, that read x, as the router says that reads route.
func (r *reference) mixture(l int, x, route []float64) []float64 {
	f, d := &r.c.Layers[l].FFN, r.c.Hidden
	out := make([]float64, len(x))
	for row := range len(x) / d {
		x := x[row*d : (row+1)*d]
		add := func(y []float64, weight float64) {
			for i, v := range y {
				out[row*d+i] += weight * v
			}
		}
		for e, weight := range r.chosen(l, f, route[row*d:(row+1)*d]) {
			if weight == 0 {
				continue
			}
			var w, bias [3][]float64
			for i, n := range []string{"ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"} {
				w[i] = r.part(l, f, n+".weight", e)
				if f.Biases {
					bias[i] = r.part(l, f, n+".bias", e)
				}
			}
			if f.Beside > 0 {
				weight *= r.tensor(family.Name(l, "ffn_down_exps.scale"))[e]
			}
			add(r.ffn(f, x, w, bias), weight)
		}
		if f.Shared > 0 {
			weight := 1.0
			if f.SharedGate {
				weight = 1 / (1 + math.Exp(-dot64(x, r.tensor(family.Name(l, "ffn_gate_inp_shexp.weight")))))
			}
			add(r.ffn(f, x, r.matrices(l, "_shexp"), [3][]float64{}), weight)
		}
	}
	return out
}

// layerFFN is the FFN of a layer, or its mixture, of hidden states x; in is what attention read.
func (r *reference) layerFFN(l int, x, in []float64) []float64 {
	y, name := &r.c.Layers[l], func(s string) []float64 { return r.tensor(family.Name(l, s)) }
	switch {
	case y.BareInputs:
		in = x
	case !y.Parallel:
		in = r.norm(x, name("ffn_norm.weight"))
	}
	switch f := &y.FFN; {
	case f.Beside > 0:
		gain := slices.Clone(name("ffn_gate_inp.scale"))
		for i := range gain {
			gain[i] /= math.Sqrt(float64(r.c.Hidden))
		}
		out := r.norm(r.ffn(f, in, r.matrices(l, ""), [3][]float64{}), name("post_ffw_norm_1.weight"))
		mixed := r.mixture(l, r.norm(x, name("pre_ffw_norm_2.weight")), r.norm(x, gain))
		for i, v := range r.norm(mixed, name("post_ffw_norm_2.weight")) {
			out[i] += v
		}
		return out
	case f.Experts > 0:
		return r.mixture(l, in, in)
	}
	return r.ffn(&y.FFN, in, r.matrices(l, ""), [3][]float64{})
}

func (r *reference) turn(x []float64, heads, d int, table *rope.Table) {
	for i := range len(x) / d {
		cos, sin := table.Row(i / heads)
		h := x[i*d : (i+1)*d]
		for p := range cos {
			a, b := r.c.Pairs.Dims(p, 2*len(cos))
			c, s := float64(cos[p]), float64(sin[p])
			h[a], h[b] = h[a]*c-h[b]*s, h[a]*s+h[b]*c
		}
	}
}

func (r *reference) attention(l int, x []float64, T int) []float64 {
	y, name := &r.c.Layers[l], func(s string) []float64 { return r.tensor(family.Name(l, s)) }
	project := func(s string) []float64 { return product(x, name(s+".weight"), name(s+".bias"), r.c.Hidden) }
	d, table := y.HeadDim, rope.NewTable(y.Rope, T)
	turned := func(x []float64, heads int, gain string) []float64 {
		if y.QKNorm != family.NoQKNorm && !y.NormAfterRoPE {
			x = normed(x, name(gain), r.c.NormEps)
		}
		r.turn(x, heads, d, table)
		if y.NormAfterRoPE {
			x = normed(x, name(gain), r.c.NormEps)
		}
		return x
	}
	q := turned(project("attn_q"), y.Heads, "attn_q_norm.weight")
	for i := range q {
		q[i] *= y.Temperature.At(i / (y.Heads * d))
	}
	if y.Owner == l {
		k := project("attn_k")
		v := slices.Clone(k)
		if !y.ValuesAreKeys {
			v = project("attn_v")
		}
		if y.ValueNorm {
			ones := make([]float64, d)
			for i := range ones {
				ones[i] = 1
			}
			v = normed(v, ones, r.c.NormEps)
		}
		k = turned(k, y.KVHeads, "attn_k_norm.weight")
		if r.move != nil {
			r.move(l, k, v)
		}
		r.kv[l] = [2][]float64{k, v}
	}
	k, v := r.kv[y.Owner][0], r.kv[y.Owner][1]
	o := make([]float64, len(q))
	for i := range T {
		for h := range y.Heads {
			at, kv := (i*y.Heads+h)*d, h/y.Group()
			var s []float64
			lo := FirstSeen(y, i)
			for j := lo; j <= i; j++ {
				z := y.Scale * dot64(q[at:at+d], k[(j*y.KVHeads+kv)*d:][:d])
				if y.SoftCap > 0 {
					z = y.SoftCap * math.Tanh(z/y.SoftCap)
				}
				s = append(s, z)
			}
			if y.Sinks {
				s = append(s, name("attn_sinks.weight")[h])
			}
			for j, p := range softmaxed(s)[:i-lo+1] {
				for n, z := range v[((lo+j)*y.KVHeads+kv)*d:][:d] {
					o[at+n] += p * z
				}
			}
		}
	}
	return product(o, name("attn_output.weight"), name("attn_output.bias"), y.Heads*d)
}

// perLayer returns what each layer reads of the tokens beside the residual stream x, [layer][T*n].
func (r *reference) perLayer(tokens []int32, x []float64) [][]float64 {
	c, n := r.c, r.c.PerLayerInput
	if n == 0 {
		return nil
	}
	all := product(x, r.tensor("per_layer_model_proj.weight"), nil, c.Hidden)
	for i := range all {
		all[i] /= math.Sqrt(float64(c.Hidden))
	}
	all = normed(all, r.tensor("per_layer_proj_norm.weight"), c.NormEps)
	out := make([][]float64, len(c.Layers))
	for i, id := range tokens {
		for j, v := range r.tensor("per_layer_token_embd.weight")[int(id)*n*len(c.Layers):][:n*len(c.Layers)] {
			out[j/n] = append(out[j/n], (all[i*n*len(c.Layers)+j]+v*math.Sqrt(float64(n)))*math.Sqrt(0.5))
		}
	}
	return out
}

// logits returns those of one window, [T, vocab].
func (r *reference) logits(tokens []int32) []float64 {
	c := r.c
	r.kv = map[int][2][]float64{}
	var x []float64
	for _, id := range tokens {
		for _, v := range r.tensor("token_embd.weight")[int(id)*c.Hidden:][:c.Hidden] {
			x = append(x, v*float64(float32(c.EmbeddingScale)))
		}
	}
	perLayer := r.perLayer(tokens, x)
	for l := range c.Layers {
		y := &c.Layers[l]
		name := func(s string) []float64 { return r.tensor(family.Name(l, s)) }
		add := func(out []float64, post string) {
			if y.PostNorms {
				out = r.norm(out, name(post))
			}
			for i, v := range out {
				x[i] += y.ResidualScale * v
			}
		}
		in := x
		if !y.BareInputs {
			in = r.norm(x, name("attn_norm.weight"))
		}
		add(r.attention(l, in, len(tokens)), "post_attention_norm.weight")
		add(r.layerFFN(l, x, in), "post_ffw_norm.weight")
		if perLayer != nil {
			g := product(x, name("inp_gate.weight"), nil, c.Hidden)
			for i := range g {
				g[i] = activation(y.FFN.Activation, g[i]) * perLayer[l][i]
			}
			for i, v := range r.norm(product(g, name("proj.weight"), nil, c.PerLayerInput), name("post_norm.weight")) {
				x[i] += v
			}
		}
		if y.OutputScale {
			for i := range x {
				x[i] *= name("layer_output_scale.weight")[0]
			}
		}
	}
	head := r.tensor("output.weight")
	if head == nil {
		head = r.tensor("token_embd.weight")
	}
	z := product(r.norm(x, r.tensor("output_norm.weight")), head, nil, c.Hidden)
	for i, v := range z {
		z[i] = v * c.LogitScale
		if s := c.LogitSoftcap; s > 0 {
			z[i] = s * math.Tanh(z[i]/s)
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
