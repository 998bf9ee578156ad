//go:build (linux || darwin) && (amd64 || arm64)

package worker

import (
	"fmt"

	"github.com/phaseconv/phaseconv/cmd/phaseconv-llama/internal/graph"
	"github.com/phaseconv/phaseconv/cmd/phaseconv-llama/internal/libllama"
	"github.com/phaseconv/phaseconv/format/dtype"
	"github.com/phaseconv/phaseconv/format/gguf"
)

// A recent codes keys and values once they are not among the latest tokens of the next query any more. That is
// done in the caches between decodes, so tokens are decoded one by one.
type recent struct {
	coder
	latest, sink int
	threads      int
	caches       []*graph.Layer
	next         int           // the first token whose code is not in the caches
	from, to     int           // tokens whose codes are known
	k, v         [][][]float32 // by cache and token - from: what codes give back
	checked      bool
}

// newRecent looks at the caches of a context, which records a graph.
func newRecent(c *libllama.Context, by coder, latest, sink, threads int, tokens []int32) (*recent, *graph.Plan, error) {
	plan, err := graph.Record(c, tokens)
	if err != nil {
		return nil, nil, err
	}
	r := &recent{coder: by, latest: latest, sink: sink, threads: threads, caches: plan.Caches()}
	for _, y := range r.caches {
		if by.values && (!y.Flash || y.V == nil) {
			return nil, nil, fmt.Errorf("layer %d: this device keeps values by column, where those of a token "+
				"cannot be replaced later; take --recent 0", y.Layer)
		}
	}
	return r, plan, nil
}

// alone is how many of n tokens from position pos on can be decoded at once: the first see nothing coded.
func (r *recent) alone(pos, n int) int { return max(1, min(n, r.latest+r.sink-pos)) }

// before codes what the query at position pos sees in coded form.
func (r *recent) before(pos int) error {
	if pos == 0 {
		r.next, r.from, r.to = 0, 0, 0
	}
	for ; r.next <= pos-r.latest; r.next++ {
		if r.next >= r.to {
			if err := r.code(r.next, pos); err != nil {
				return err
			}
		}
		for i, y := range r.caches {
			if err := put(y.KCache, r.next, r.k[i][r.next-r.from]); err != nil {
				return err
			}
			if r.values {
				if err := put(y.VCache, r.next, r.v[i][r.next-r.from]); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// code codes tokens [from, to), which the caches hold as they are.
func (r *recent) code(from, to int) error {
	r.from, r.to = from, to
	r.k, r.v = make([][][]float32, len(r.caches)), make([][][]float32, len(r.caches))
	n := to - from
	for i, y := range r.caches {
		k, err := get(y.KCache, from, n)
		if err != nil {
			return err
		}
		var v []float32
		if r.values {
			if v, err = get(y.VCache, from, n); err != nil {
				return err
			}
		}
		if err := r.coder.code(i, from, n, k, v, r.threads); err != nil {
			return fmt.Errorf("cache %d: %w", i, err)
		}
		r.k[i], r.v[i] = split(k, n), split(v, n)
	}
	return nil
}

// split cuts the rows of n tokens apart.
func split(x []float32, n int) (out [][]float32) {
	for i := range n {
		w := len(x) / n
		out = append(out, x[i*w:(i+1)*w])
	}
	return out
}

// check holds what was decoded so far against the cells of the caches, the first time: token number n-1 must be
// in cell n-1, and nothing in the next one.
func (r *recent) check(n int) error {
	if r.checked {
		return nil
	}
	r.checked = true
	for _, y := range r.caches {
		for i, want := range []bool{true, false} {
			if int64(n-1+i) >= y.Cells {
				continue
			}
			x, err := get(y.KCache, n-1+i, 1)
			if err != nil {
				return err
			}
			some := false
			for _, v := range x {
				some = some || v != 0
			}
			if some != want {
				return fmt.Errorf("layer %d: token %d is not in cell %d of the cache, so what it stores cannot be "+
					"replaced later; take --recent 0", y.Layer, n-1, n-1)
			}
		}
	}
	return nil
}

// get reads the rows of n tokens of an F16 cache.
func get(t libllama.Tensor, from, n int) ([]float32, error) {
	if gguf.Type(t.Type()) != gguf.TypeF16 {
		return nil, fmt.Errorf("%s is of type %s, not F16", t.Name(), gguf.Type(t.Type()))
	}
	width := int(t.NE()[0])
	b, err := t.GetRows(from, n)
	if err != nil {
		return nil, err
	}
	x := make([]float32, n*width)
	dtype.DecodeF16(x, b)
	return x, nil
}

// put writes the row of a token of an F16 cache.
func put(t libllama.Tensor, at int, x []float32) error {
	b := make([]byte, 2*len(x))
	dtype.EncodeF16(b, x)
	return t.SetRow(at, b)
}
