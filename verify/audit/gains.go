package audit

import (
	"context"
	"math"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/kernels/rope"
)

// Gains is what the gains and biases of a model alone tell of its keys: see ReadGains.
type Gains struct {
	// Positions is how far apart a query and a key may lie: what "slow" is meant for.
	Positions int          `json:"positions"`
	Layers    []GainsLayer `json:"layers"`
	// Balance is the geometric mean over the layers that have a figure, Constant the mean over
	// layers; nil where no layer has one.
	Balance  *float64 `json:"balance"`
	Constant *float64 `json:"constant"`
	// Removable is the mean of Still and Slow together: the share of the energy of keys that a
	// conversion can take out, exactly or nearly.
	Removable *float64 `json:"removable"`
	// BytesRead counts the stored bytes of the tensors that were looked at.
	BytesRead int64 `json:"bytes_read"`
}

// GainsLayer is one layer of Gains.
type GainsLayer struct {
	Layer  int    `json:"layer"`
	Owner  int    `json:"owner"` // the layer whose keys it reads
	QKNorm string `json:"qk_norm"`
	// Balance is (sum sq sk)^2 / (sum sq^2 sum sk^2) over the groups of dimensions that one scale
	// can serve, with sq and sk their root energies by the gains of q_norm and k_norm: the share
	// of the error of scores that is left when scales are moved between the gains in
	// the best way, if the cache spreads the error evenly over a head and normed
	// dimensions are of one size. nil without QK-norm: then scales go into the matrices.
	Balance *float64 `json:"balance"`
	// Worst is the least balance of a KV head, where heads have gains of their own.
	Worst *float64 `json:"worst_head"`
	// Constant is the share of the energy of keys that a bias makes: the same for every
	// token but for RoPE. nil with QK-norm, whose output has no bias.
	Constant *float64 `json:"constant"`
	// Still and Slow are parts of Constant: on dimensions that RoPE does not turn, where it can
	// go exactly unless there are sinks, and in pairs that turn by less than one radian
	// within Reach, where it can nearly go.
	Still *float64 `json:"still"`
	Slow  *float64 `json:"slow"`
	Reach int      `json:"reach"` // Positions, or the layer's window
	Sinks bool     `json:"sinks"`
	// Largest is the largest share of a single KV head.
	Largest *float64 `json:"largest_head"`
}

// sampleRows is how many rows of W_K per KV head stand for all in the energy of what is not
// constant.
const sampleRows = 16

// ReadGains reads norm gains and biases of all layers, and of W_K sixteen rows per KV head
// where there is a key bias: kilobytes to a few megabytes, so it takes a second on any model. What
// varies in keys is estimated from those rows as if the normed inputs were independent.
// positions is how far queries look back; 0 means the model's context. It fails when ctx ends
// and when a tensor cannot be read.
func ReadGains(ctx context.Context, c *checkpoint.Checkpoint, positions int) (*Gains, error) {
	if positions <= 0 {
		positions = c.Config.Context
	}
	g := &Gains{Positions: positions}
	r := gainReader{c: c, g: g}
	var logs, constants, removable []float64
	for l := range c.Config.Layers {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		row, err := r.layer(l)
		if err != nil {
			return nil, err
		}
		g.Layers = append(g.Layers, row)
		if row.Balance != nil && row.Owner == l {
			logs = append(logs, math.Log(*row.Balance))
		}
		if row.Constant != nil && row.Owner == l {
			constants = append(constants, *row.Constant)
			removable = append(removable, *row.Still+*row.Slow)
		}
	}
	if len(logs) > 0 {
		b := math.Exp(mean(logs))
		g.Balance = &b
	}
	if len(constants) > 0 {
		all, part := mean(constants), mean(removable)
		g.Constant, g.Removable = &all, &part
	}
	return g, nil
}

func mean(x []float64) float64 {
	sum := 0.0
	for _, v := range x {
		sum += v
	}
	return sum / float64(len(x))
}

type gainReader struct {
	c *checkpoint.Checkpoint
	g *Gains
}

// vector reads a layer's vector, nil if there is none.
func (r *gainReader) vector(l int, name string) ([]float32, error) {
	t, ok := r.c.Find(family.Name(l, name))
	if !ok {
		return nil, nil
	}
	for _, s := range t.Sources {
		raw, err := r.c.Raw(s)
		if err != nil {
			return nil, err
		}
		r.g.BytesRead += raw.Size()
	}
	return r.c.ReadAll(t)
}

func (r *gainReader) layer(l int) (GainsLayer, error) {
	y := &r.c.Config.Layers[l]
	row := GainsLayer{Layer: l, Owner: y.Owner, QKNorm: y.QKNorm.String(), Reach: r.g.Positions, Sinks: y.Sinks}
	if y.Kind != family.Softmax {
		return row, nil
	}
	if y.Window > 0 {
		row.Reach = min(row.Reach, y.Window)
	}
	if y.QKNorm != family.NoQKNorm {
		return row, r.balance(l, y, &row)
	}
	if y.Owner != l {
		return row, nil
	}
	bias, err := r.vector(l, "attn_k.bias")
	if err != nil {
		return row, err
	}
	if bias == nil {
		zero := 0.0
		row.Constant, row.Still, row.Slow, row.Largest = &zero, &zero, &zero, &zero
		return row, nil
	}
	return row, r.constant(l, y, bias, &row)
}

// stillFrequency, in radians per position, is below what turns a pair in any context. Files
// say that a pair does not turn by a huge divisor of its frequency.
const stillFrequency = 1e-15

// turning returns, for each dimension of a head, how fast RoPE turns it, in radians per
// position: 0 where it does not.
func turning(y *family.Layer, pairs rope.Layout) []float64 {
	out := make([]float64, y.HeadDim)
	if y.Rope.Dim == 0 {
		return out
	}
	for p, f := range y.Rope.InvFreq() {
		if i, j := pairs.Dims(p, y.Rope.Dim); f >= stillFrequency {
			out[i], out[j] = f, f
		}
	}
	return out
}

// groups returns sets of dimensions of a head that one scale serves: both of a pair that RoPE
// turns, each alone elsewhere and where the norm comes after RoPE.
func groups(y *family.Layer, pairs rope.Layout) [][]int {
	var out [][]int
	together := make([]bool, y.HeadDim)
	if speed := turning(y, pairs); !y.NormAfterRoPE {
		for p := range y.Rope.Dim / 2 {
			if i, j := pairs.Dims(p, y.Rope.Dim); speed[i] > 0 {
				together[i], together[j] = true, true
				out = append(out, []int{i, j})
			}
		}
	}
	for i, done := range together {
		if !done {
			out = append(out, []int{i})
		}
	}
	return out
}

func (r *gainReader) balance(l int, y *family.Layer, row *GainsLayer) error {
	q, err := r.vector(l, "attn_q_norm.weight")
	if err != nil {
		return err
	}
	k, err := r.vector(y.Owner, "attn_k_norm.weight")
	if err != nil {
		return err
	}
	d := y.HeadDim
	if len(q) == 0 || len(k) == 0 || len(q)%d != 0 || len(k)%d != 0 { // a norm without gains
		one := 1.0
		row.Balance, row.Worst = &one, &one
		return nil
	}
	sets := groups(y, r.c.Config.Pairs)
	heads := len(k) / d
	per := max(1, len(q)/d/heads) // query heads that share a key head's gains
	worst, logs := 1.0, 0.0
	for h := range heads {
		var cross, qq, kk float64
		for _, set := range sets {
			var eq, ek float64
			for _, i := range set {
				ek += square(k[h*d+i])
				for n := range per {
					eq += square(q[(h*per+n)%(len(q)/d)*d+i])
				}
			}
			cross, qq, kk = cross+math.Sqrt(eq*ek), qq+eq, kk+ek
		}
		b := 1.0
		if qq > 0 && kk > 0 {
			b = cross * cross / (qq * kk)
		}
		worst, logs = min(worst, b), logs+math.Log(b)
	}
	b := math.Exp(logs / float64(heads))
	row.Balance, row.Worst = &b, &worst
	return nil
}

func square(x float32) float64 { return float64(x) * float64(x) }

// constant compares the bias of each head with what rows of W_K make of normed inputs.
func (r *gainReader) constant(l int, y *family.Layer, bias []float32, row *GainsLayer) error {
	gain, err := r.vector(l, "attn_norm.weight")
	if err != nil {
		return err
	}
	t, ok := r.c.Find(family.Name(l, "attn_k.weight"))
	if !ok {
		return nil
	}
	d, speed := y.HeadDim, turning(y, r.c.Config.Pairs)
	var all, onStill, onSlow, largest float64
	step := max(1, d/sampleRows)
	x := make([]float32, t.Cols())
	for h := range y.KVHeads {
		var vary, rows, constant, heldStill, heldSlow float64
		for i := 0; i < d; i += step {
			// Both members of pairs of neighbours have their turn.
			if err := r.c.ReadRows(t, h*d+i+int(rows)%min(2, step), 1, x); err != nil {
				return err
			}
			for j, v := range x {
				w := float64(v)
				if gain != nil {
					w *= float64(gain[j])
				}
				vary += w * w
			}
			rows++
		}
		vary *= float64(d) / rows
		for i := range d {
			e := square(bias[h*d+i])
			constant += e
			switch {
			case speed[i] == 0:
				heldStill += e
			case speed[i]*float64(row.Reach) < 1:
				heldSlow += e
			}
		}
		if total := vary + constant; total > 0 {
			all, onStill, onSlow = all+constant/total, onStill+heldStill/total, onSlow+heldSlow/total
			largest = max(largest, constant/total)
		}
	}
	r.g.BytesRead += int64(y.KVHeads*((d+step-1)/step)) * rowBytes(r.c, t)
	n := float64(y.KVHeads)
	all, onStill, onSlow = all/n, onStill/n, onSlow/n
	row.Constant, row.Still, row.Slow, row.Largest = &all, &onStill, &onSlow, &largest
	return nil
}

// rowBytes returns the stored size of one row.
func rowBytes(c *checkpoint.Checkpoint, t *checkpoint.Tensor) int64 {
	var size int64
	for _, s := range t.Sources {
		if raw, err := c.Raw(s); err == nil {
			size += raw.Size()
		}
	}
	return size / int64(t.Rows())
}
