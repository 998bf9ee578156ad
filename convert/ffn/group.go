package ffn

import (
	"cmp"
	"math"
	"slices"

	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/kernels/fmath"
	"github.com/phaseconv/phaseconv/kernels/parallel"
	"github.com/phaseconv/phaseconv/rotations/transform"
	"github.com/phaseconv/phaseconv/verify/quantweights"
)

// A group is matrices that multiply the same inputs: down of one FFN, or all that reads a norm. Its
// inputs may be scaled by positive numbers that the matrices' columns are divided by, and moved.
type group struct {
	n      int
	energy []float64 // [n], mean squares of the inputs
	parts  []part
}

// A part is rows of one matrix, [k, n]: fitted are searched with, held are rows between them.
type part struct {
	fitted, held []float32
	typ          gguf.Type
	importance   []float32 // [n] of the importance matrix, nil for none
}

// columns returns the squared length of every column, over all rows.
func (g *group) columns() []float64 {
	sum := make([]float64, g.n)
	for _, p := range g.parts {
		for _, rows := range [][]float32{p.fitted, p.held} {
			for i, v := range rows {
				sum[i%g.n] += float64(v) * float64(v) // exact, so fusing changes nothing
			}
		}
	}
	return sum
}

// block is the largest block of the parts' types: errors of different blocks do not depend on each
// other.
func (g *group) block() int {
	n := 1
	for _, p := range g.parts {
		b, _ := p.typ.Block()
		n = max(n, b)
	}
	return min(n, g.n)
}

// A view is inputs in some order: number i of it is input Order[i].
type view struct {
	order []int
	scale []float32 // by place
}

// loss is the error of the outputs that the types cause in places [from, to), of one set of rows:
// the sum of energy_j s_j^2 (Q(w_j / s_j) - w_j / s_j)^2.
func (g *group) loss(v *view, from, to int, held bool) float64 {
	var sum float64
	x, was := make([]float32, to-from), make([]float32, to-from)
	for i := range g.parts {
		p := &g.parts[i]
		importance := p.at(v, from, to)
		rows := p.fitted
		if held {
			rows = p.held
		}
		for at := 0; at < len(rows); at += g.n {
			for k := range x {
				x[k] = rows[at+v.order[from+k]] / v.scale[from+k]
			}
			copy(was, x)
			if quantweights.Round(p.typ, x, importance) != nil {
				return math.Inf(1)
			}
			for k, y := range x {
				e := float64(y-was[k]) * float64(v.scale[from+k])
				sum += float64(g.energy[v.order[from+k]] * float64(e*e))
			}
		}
	}
	return sum
}

// at returns the importance of places [from, to), nil for none: what a column is divided by multiplies
// its input. Types that weigh by the mean square of a whole row get that of these places.
func (p *part) at(v *view, from, to int) []float32 {
	if p.importance == nil {
		return nil
	}
	out := make([]float32, to-from)
	for k := range out {
		s := v.scale[from+k]
		out[k] = float32(p.importance[v.order[from+k]] * float32(s*s))
	}
	return out
}

// total is the loss of all places on all rows.
func (g *group) total(v *view, threads int) float64 {
	block := g.block()
	parts := make([]float64, (g.n+block-1)/block)
	parallel.Do(threads, len(parts), func(i int) {
		from, to := i*block, min(g.n, (i+1)*block)
		parts[i] = g.loss(v, from, to, false) + g.loss(v, from, to, true)
	})
	var sum float64
	for _, x := range parts {
		sum += x
	}
	return sum
}

// identity is the view that changes nothing.
func (g *group) identity() *view {
	v := &view{scale: slices.Repeat([]float32{1}, g.n)}
	for i := range g.n {
		v.order = append(v.order, i)
	}
	return v
}

// balanced is the view with the scales of transform.FFNBalance, to a power.
func (g *group) balanced(order []int, power float64) *view {
	v := &view{order: order, scale: make([]float32, g.n)}
	s := transform.FFNBalance(g.energy, g.columns())
	for i, j := range order {
		v.scale[i] = float32(fmath.Pow(float64(s[j]), power))
	}
	return v
}

// Settings of the search for scales.
const (
	passes = 2
	step   = 1.25 // a scale is multiplied or divided by it
	least  = 1e-3 // share of the loss that a step must gain
)

// powers of the closed form that the search starts from.
var powers = []float64{0, 0.25, 0.5, 0.75, 1}

// tune searches the scales of every block by coordinate descent from the best of powers, on the
// fitted rows, and keeps of each block what is no worse on the held ones.
func (g *group) tune(order []int, threads int) *view {
	var starts []*view
	for _, p := range powers {
		starts = append(starts, g.balanced(order, p))
	}
	out := &view{order: order, scale: make([]float32, g.n)}
	block := g.block()
	parallel.Do(threads, (g.n+block-1)/block, func(i int) {
		from, to := i*block, min(g.n, (i+1)*block)
		best := slices.MinFunc(starts, func(a, b *view) int {
			return cmp.Compare(g.loss(a, from, to, false)+g.loss(a, from, to, true),
				g.loss(b, from, to, false)+g.loss(b, from, to, true))
		})
		copy(out.scale[from:to], best.scale[from:to])
		g.descend(out, from, to)
		if g.loss(out, from, to, true) > g.loss(best, from, to, true) {
			copy(out.scale[from:to], best.scale[from:to])
		}
	})
	return out
}

// descend changes one scale of a block after the other for as long as that helps.
func (g *group) descend(v *view, from, to int) {
	now := g.loss(v, from, to, false)
	for range passes {
		was := now
		for k := from; k < to; k++ {
			s := v.scale[k]
			for _, f := range []float32{step, 1 / float32(step)} {
				moved := false
				for next := s * f; next < transform.MaxFFNScale && next > 1/float32(transform.MaxFFNScale); next *= f {
					v.scale[k] = next
					loss := g.loss(v, from, to, false)
					if !(loss < now) {
						break
					}
					s, now, moved = next, loss, true
				}
				v.scale[k] = s
				if moved {
					break
				}
			}
		}
		if !(now < was*(1-least)) {
			return
		}
	}
}

// orders are ways to arrange neurons: by the length of their columns, by what they do to the output,
// and so that every block has as much of that as the next.
func (g *group) orders() [][]int {
	columns := g.columns()
	by := func(key func(j int) float64) []int {
		order := g.identity().order
		slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(key(b), key(a)) })
		return order
	}
	share := by(func(j int) float64 { return g.energy[j] * columns[j] })
	return [][]int{g.identity().order, by(func(j int) float64 { return columns[j] }), share, g.dealt(share)}
}

// dealt deals a list to blocks one by one, as cards, forth and back.
func (g *group) dealt(list []int) []int {
	block := g.block()
	n := g.n / block
	if n < 2 || g.n%block != 0 {
		return list
	}
	out := make([]int, g.n)
	for i, j := range list {
		round, b := i/n, i%n
		if round%2 == 1 {
			b = n - 1 - b
		}
		out[b*block+round] = j
	}
	return out
}

// arrange returns the order whose closed-form scales lose least.
func (g *group) arrange(threads int) []int {
	best, least := []int(nil), math.Inf(1)
	for _, o := range g.orders() {
		for _, p := range powers {
			if l := g.total(g.balanced(o, p), threads); best == nil || l < least {
				best, least = o, l
			}
		}
	}
	return best
}
