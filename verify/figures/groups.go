package figures

import (
	"math"
	"sync"

	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/spec"
)

// groupMeter measures how well joint codes describe what they were given: the keys of a group, and
// its values. Tokens may come from several goroutines, in any order: each window has sums of its
// own, which are added up in the order of the windows.
type groupMeter struct {
	mu   sync.Mutex
	sums map[groupKey]*groupSums
}

type groupKey struct {
	layer, window, at int
	value             bool
}

type groupSums struct {
	group            *codec.Group
	tokens           int
	cos, lost, total float64
}

// observe takes the vectors of a group's coded tokens, [tokens, D], and what they are decoded to.
func (m *groupMeter) observe(layer, window, at int, g *codec.Group, rows, decoded []float32) {
	for _, value := range []bool{false, true} {
		if !g.Has(value) {
			continue
		}
		d := g.D()
		s := &groupSums{group: g, tokens: len(rows) / d}
		for i := range s.tokens {
			s.token(value, rows[i*d:(i+1)*d], decoded[i*d:(i+1)*d])
		}
		m.mu.Lock()
		if m.sums == nil {
			m.sums = map[groupKey]*groupSums{}
		}
		m.sums[groupKey{layer, window, at, value}] = s
		m.mu.Unlock()
	}
}

// token adds one token's keys, or its values, as one vector without its mean.
func (s *groupSums) token(value bool, row, decoded []float32) {
	var xx, hh, xh float64
	at := 0
	for i, p := range s.group.Parts {
		mean := s.group.PartMean(i)
		if p.Value == value {
			for j, m := range mean {
				x, h := float64(row[at+j])-float64(m), float64(decoded[at+j])-float64(m)
				xx, hh, xh = xx+float64(x*x), hh+float64(h*h), xh+float64(x*h)
			}
		}
		at += len(mean)
	}
	s.lost, s.total = s.lost+xx-float64(2*xh)+hh, s.total+xx
	if xx > 0 && hh > 0 {
		s.cos += xh / math.Sqrt(float64(xx*hh))
	}
}

// rows returns what was measured, by layer and group, keys before values.
func (m *groupMeter) rows(layers, windows int) (out []spec.GroupRow) {
	for layer := range layers {
		for at := 0; ; at++ {
			found := false
			for _, value := range []bool{false, true} {
				var all groupSums
				for window := range windows {
					if s := m.sums[groupKey{layer, window, at, value}]; s != nil {
						all.group, all.tokens = s.group, all.tokens+s.tokens
						all.cos, all.lost, all.total = all.cos+s.cos, all.lost+s.lost, all.total+s.total
					}
				}
				found = found || all.group != nil
				if all.tokens > 0 && all.total > 0 {
					out = append(out, all.row(layer, at, value))
				}
			}
			if !found {
				break
			}
		}
	}
	return out
}

func (s *groupSums) row(layer, at int, value bool) spec.GroupRow {
	r := spec.GroupRow{Layer: layer, Group: at, Part: "k", Signs: s.group.B(), Given: s.group.Below != nil,
		Tokens: s.tokens, Cos1bit: s.cos / float64(s.tokens), EnergyLeft: s.lost / s.total}
	if value {
		r.Part = "v"
	}
	for _, p := range s.group.Parts {
		if p.Value == value {
			r.Heads, r.Dims = append(r.Heads, p.Head), r.Dims+s.group.Dim(p)
		}
	}
	return r
}
