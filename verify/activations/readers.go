package activations

import (
	"context"
	"slices"

	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/rotations/fit"
	"github.com/phaseconv/phaseconv/rotations/transform"
	"github.com/phaseconv/phaseconv/verify/kvcache"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// A Gatherer holds the keys and values of layers until the queries of all layers that read them
// (shared KV) have passed.
type Gatherer struct {
	c       *family.Config
	policy  kvcache.Policy
	threads int
	wanted  func(owner int) bool
	open    map[int]*Gathered
}

// NewGatherer returns a Gatherer of the layers whose own keys and values are wanted; nil wants all.
func NewGatherer(c *family.Config, p kvcache.Policy, threads int, wanted func(owner int) bool) *Gatherer {
	return &Gatherer{c: c, policy: p, threads: threads, wanted: wanted, open: map[int]*Gathered{}}
}

// Gathered is the keys and values of one layer, and what is to be known of the queries that meet them.
type Gathered struct {
	// Attention is that of the layer which owns the keys and values. Of a layer whose cache others
	// read too it holds only K, V and numbers. It is valid until the hook that took it ends.
	*refmodel.Attention
	g *Gatherer
	// Where other layers read the cache, else nil: of each KV head, and of its pairs.
	heads    []readers
	energies *transform.PairEnergy
}

// readers sums up the queries of all layers that meet the keys of one KV head, keys not being scaled.
type readers struct {
	moments []float64 // sum w q q^T, [head_dim, head_dim]
	queries int       // how many
	seen    []float64 // how much attention each key gets, [windows*T]
}

// Add takes the attention of a layer. It returns what was gathered when the layer is the last of
// those that read a wanted cache, else nil. It fails only when ctx ends.
func (g *Gatherer) Add(ctx context.Context, a *refmodel.Attention) (*Gathered, error) {
	owner := g.c.Layers[a.Layer].Owner
	if g.wanted != nil && !g.wanted(owner) {
		return nil, nil
	}
	if !g.c.Shared(owner) {
		return &Gathered{Attention: a, g: g}, nil
	}
	x := g.open[owner]
	if x == nil {
		y := &g.c.Layers[owner]
		x = &Gathered{g: g, heads: make([]readers, y.KVHeads), energies: transform.NewPairEnergy(y.KVHeads, y.HeadDim),
			Attention: &refmodel.Attention{Layer: owner, T: a.T, Windows: a.Windows, Rope: a.Rope,
				K: slices.Clone(a.K), V: slices.Clone(a.V)}}
		g.open[owner] = x
	}
	if err := x.read(ctx, a); err != nil {
		return nil, err
	}
	if a.Layer < g.c.LastReader(owner) {
		return nil, nil
	}
	delete(g.open, owner)
	return x, nil
}

// read adds the queries of one layer.
func (x *Gathered) read(ctx context.Context, a *refmodel.Attention) error {
	c, g := x.g.c, x.g
	addEnergies(x.energies, c, a, g.policy.Sink)
	d := c.Layers[x.Layer].HeadDim
	table := anchors(&c.Layers[a.Layer], a, g.policy)
	for h := range x.heads {
		met, err := meetings(ctx, c, a, []int{h}, func(int) []float32 { return nil }, g.policy, table, g.threads)
		if err != nil {
			return err
		}
		r := &x.heads[h]
		if r.moments == nil {
			r.moments, r.seen = make([]float64, d*d), make([]float64, a.T*a.Windows)
		}
		sum, n := moments(met[0], d, g.threads)
		for i, v := range sum {
			r.moments[i] += float64(v)
		}
		r.queries += n
		for w, m := range met[0] {
			for k, v := range m.seen {
				r.seen[w*a.T+k] += v
			}
		}
	}
	return nil
}

// PairScale returns the scales that balance the keys with all queries that meet them.
func (x *Gathered) PairScale() *transform.PairScale {
	y := &x.g.c.Layers[x.Layer]
	e := x.energies
	if e == nil {
		e = transform.NewPairEnergy(y.KVHeads, y.HeadDim)
		addEnergies(e, x.g.c, x.Attention, x.g.policy.Sink)
	}
	return e.PairScale(y.QKNorm == family.NormHead)
}

// metric returns E[w q q^T] over the queries that meet head h, whose keys are multiplied by scale.
func (r *readers) metric(d int, scale []float32) []float64 {
	out := make([]float64, d*d)
	for i, v := range r.moments {
		if out[i] = v / float64(r.queries); scale != nil {
			out[i] /= float64(scale[i/d]) * float64(scale[i%d])
		}
	}
	return out
}

// Samples collects what the codes of the KV heads are fitted to. scale gives what the pair scaling
// multiplies a head's keys by, nil for nothing. It fails only when ctx ends.
func (x *Gathered) Samples(ctx context.Context, scale func(h int) []float32) ([]*fit.Sample, error) {
	all := make([]int, x.g.c.Layers[x.Layer].KVHeads)
	for h := range all {
		all[h] = h
	}
	return x.samples(ctx, all, scale)
}

// Sample is what Samples returns for KV head h, whose keys are multiplied by scale.
func (x *Gathered) Sample(ctx context.Context, h int, scale []float32) (*fit.Sample, error) {
	out, err := x.samples(ctx, []int{h}, func(int) []float32 { return scale })
	if err != nil {
		return nil, err
	}
	return out[0], nil
}

func (x *Gathered) samples(ctx context.Context, heads []int, scale func(h int) []float32) ([]*fit.Sample, error) {
	g, a := x.g, x.Attention
	c, y := g.c, &g.c.Layers[a.Layer]
	table := anchors(y, a, g.policy)
	sink := min(g.policy.Sink, a.T)
	out := make([]*fit.Sample, len(heads))
	for i, h := range heads {
		out[i] = &fit.Sample{D: y.HeadDim, Keys: keys(c, a, h, scale(h), g.policy, table), Layer: a.Layer, Head: h,
			Threads: g.threads}
	}
	if x.heads != nil {
		for i, h := range heads {
			r := &x.heads[h]
			out[i].Metric = r.metric(y.HeadDim, scale(h))
			for w := range a.Windows {
				out[i].Weights = append(out[i].Weights, r.seen[w*a.T+sink:(w+1)*a.T]...)
			}
		}
		return out, nil
	}
	met, err := meetings(ctx, c, a, heads, scale, g.policy, table, g.threads)
	if err != nil {
		return nil, err
	}
	for i, s := range out {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		s.Metric = metric(met[i], y.HeadDim, g.threads)
		for _, m := range met[i] {
			s.Weights = append(s.Weights, m.seen[sink:]...)
		}
	}
	return out, nil
}
