package main

import (
	"fmt"
	"sort"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/kernels/fmath"
	"github.com/phaseconv/phaseconv/kernels/gemm"
)

// bank names the matrices of a layer's FFN: one of each, or a bank of experts.
func bank(cfg *family.Config, layer int, matrix string) string {
	if cfg.Layers[layer].FFN.Experts > 0 {
		return family.Name(layer, "ffn_"+matrix+"_exps.weight")
	}
	return family.Name(layer, "ffn_"+matrix+".weight")
}

// matrix reads the matrix of one expert (0 in a dense model), [rows, cols].
func matrix(cfg *family.Config, w checkpoint.Weights, layer int, which string, expert int) (x []float32, rows, cols int, err error) {
	t, ok := w.Find(bank(cfg, layer, which))
	if !ok {
		return nil, 0, 0, fmt.Errorf("the model has no tensor %s", bank(cfg, layer, which))
	}
	rows, cols = t.Rows()/max(1, cfg.Layers[layer].FFN.Experts), t.Cols()
	x = make([]float32, rows*cols)
	return x, rows, cols, w.ReadRows(t, expert*rows, rows, x)
}

// ffnNorms returns, per expert (one in a dense model) and neuron of a layer, the
// squared lengths of its row in up and of its column in down.
func ffnNorms(cfg *family.Config, w checkpoint.Weights, layer int) (up, down [][]float64, err error) {
	for e := range max(1, cfg.Layers[layer].FFN.Experts) {
		u, rows, cols, err := matrix(cfg, w, layer, "up", e)
		if err != nil {
			return nil, nil, err
		}
		a, b := make([]float64, rows), make([]float64, rows)
		for i, v := range u {
			a[i/cols] += float64(v) * float64(v)
		}
		d, _, cols, err := matrix(cfg, w, layer, "down", e)
		if err != nil {
			return nil, nil, err
		}
		for i, v := range d {
			b[i%cols] += float64(v) * float64(v)
		}
		up, down = append(up, a), append(down, b)
	}
	return up, down, nil
}

// ffnEnergy is a tap that measures what the neurons of every FFN give:
// Energy[layer][expert][neuron] is the mean over all tokens of the square of up
// times activated gate, which in an expert counts times its weight, zero where it is
// not chosen.
type ffnEnergy struct {
	Config  *family.Config
	Weights checkpoint.Weights
	Threads int

	Energy [][][]float64
}

// FFN is a hook of refmodel.
func (f *ffnEnergy) FFN(layer int, x []float32) error {
	cfg, ffn := f.Config, &f.Config.Layers[layer].FFN
	n := len(x) / cfg.Hidden
	weights, err := f.route(layer, x, n)
	if err != nil {
		return err
	}
	var rows [][]float64
	for e := range max(1, ffn.Experts) {
		in, share := x, []float32(nil)
		if weights != nil {
			in = nil
			for i := range n {
				if p := weights[i*ffn.Experts+e]; p > 0 {
					in, share = append(in, x[i*cfg.Hidden:(i+1)*cfg.Hidden]...), append(share, p)
				}
			}
		}
		energy := make([]float64, ffn.Size)
		rows = append(rows, energy)
		k := len(in) / cfg.Hidden
		if k == 0 {
			continue
		}
		var h [2][]float32
		for i, which := range []string{"gate", "up"} {
			m, r, cols, err := matrix(cfg, f.Weights, layer, which, e)
			if err != nil {
				return err
			}
			var w gemm.Weights
			w.PackRows(r, cols, m, cols, f.Threads)
			h[i] = make([]float32, k*r)
			gemm.Mul(h[i], r, in, cols, k, &w, f.Threads)
		}
		if ffn.Activation == family.GELUTanh {
			fmath.GELUTanhMul(h[0], h[0], h[1])
		} else {
			fmath.SiLUMul(h[0], h[0], h[1])
		}
		for i, v := range h[0] {
			if share != nil {
				v *= share[i/ffn.Size]
			}
			energy[i%ffn.Size] += float64(v) * float64(v) / float64(n)
		}
	}
	f.Energy = append(f.Energy, rows)
	return nil
}

// route returns the weight of each expert for each token, [n, experts], 0 where it
// is not chosen; nil for a dense model.
func (f *ffnEnergy) route(layer int, x []float32, n int) ([]float32, error) {
	hidden, ffn := f.Config.Hidden, &f.Config.Layers[layer].FFN
	if ffn.Experts == 0 {
		return nil, nil
	}
	name := family.Name(layer, "ffn_gate_inp.weight")
	t, ok := f.Weights.Find(name)
	if !ok {
		return nil, fmt.Errorf("the model has no tensor %s", name)
	}
	m := make([]float32, t.Elements())
	if err := f.Weights.ReadRows(t, 0, t.Rows(), m); err != nil {
		return nil, err
	}
	var w gemm.Weights
	w.PackRows(ffn.Experts, hidden, m, hidden, f.Threads)
	out := make([]float32, n*ffn.Experts)
	gemm.Mul(out, ffn.Experts, x, hidden, n, &w, f.Threads)
	order := make([]int, ffn.Experts)
	for i := range n {
		p := out[i*ffn.Experts : (i+1)*ffn.Experts]
		fmath.Softmax(p, 1)
		for j := range order {
			order[j] = j
		}
		sort.SliceStable(order, func(a, b int) bool { return p[order[a]] > p[order[b]] })
		var sum float32
		for _, e := range order[:ffn.Used] {
			sum += p[e]
		}
		for k, e := range order {
			switch {
			case k >= ffn.Used:
				p[e] = 0
			case ffn.Renorm:
				p[e] /= sum
			}
		}
	}
	return out, nil
}
