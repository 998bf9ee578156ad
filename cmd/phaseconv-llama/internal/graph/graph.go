//go:build (linux || darwin) && (amd64 || arm64)

// Package graph reads what a model computes from the graph that llama.cpp runs: which nodes are
// a layer's queries, keys and values, before and after RoPE, what they are made of, and which
// cache they go to. Nodes are found by structure, not by their names.
package graph

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/phaseconv/phaseconv/cmd/phaseconv-llama/internal/libllama"
	"github.com/phaseconv/phaseconv/verify/engine/llama"
)

// A Plan is what one recorded graph says. Its nodes are known again in later graphs of the
// same topology.
type Plan struct {
	First  libllama.NodeKey
	Layers []*Layer
	// Weights are the tensors of the file that the graph reads.
	Weights map[string]libllama.Tensor
	Nodes   int

	nodes map[uintptr]*Node // by address while recording
	list  []*Node
	stops map[int]*store
	// outs are the nodes that attention gives, by address.
	outs map[uintptr]*Layer
}

// A Node is a node of the recorded graph.
type Node struct {
	libllama.Node
	Order int // its place in the graph

	t libllama.Tensor
}

// A Part is what a node gives, or some numbers of each token of it: one product may make queries, keys
// and values together.
type Part struct {
	*Node
	From, Len int // numbers of a token
	Of        int // how many the node has
}

// Whole says that the part is all of the node.
func (p *Part) Whole() bool { return p.Len == p.Of }

// Cut returns the part's numbers, [tokens, Len], of those of the node, [tokens, Of].
func (p *Part) Cut(x []float32) ([]float32, error) {
	if p.Whole() {
		return x, nil
	}
	if len(x)%p.Of != 0 {
		return nil, fmt.Errorf("%s: %d numbers are no rows of %d", p.Name, len(x), p.Of)
	}
	out := make([]float32, 0, len(x)/p.Of*p.Len)
	for ; len(x) > 0; x = x[p.Of:] {
		out = append(out, x[p.From:p.From+p.Len]...)
	}
	return out, nil
}

// Paste is the inverse of Cut: it puts the part's numbers into those of the node.
func (p *Part) Paste(x, part []float32) {
	for i := range len(x) / p.Of {
		copy(x[i*p.Of+p.From:][:p.Len], part[i*p.Len:])
	}
}

// A Layer is the attention of one layer, with the nodes of its activations. A node is nil where
// the layer has none.
type Layer struct {
	llama.Attention
	FirstReader bool // of its cache

	Q, K, V    *Part // as they are scored and stored, in front of a Hadamard transform
	QPre, KPre *Part // before RoPE
	// QScored is Q after scales behind RoPE, which may be in place.
	QScored *Node
	In      *Node // input of the product that K comes from, or Q where K is another layer's
	FFN     *Node // input of the FFN
	KType   int32 // of the cache
	VType   int32

	// KRow and VRow are the numbers of one token in the caches, Cells the tokens that fit.
	KRow, VRow, Cells int64
	// KCache and VCache are the caches, as long as their context lives; Stored is the place in the graph of the
	// first write to them.
	KCache, VCache libllama.Tensor
	Stored         int
}

// Caches are the layers that store keys, each cache once, in the order of llama.Facts.Owners.
func (p *Plan) Caches() (out []*Layer) {
	for _, y := range p.Layers {
		if y.FirstReader {
			out = append(out, y)
		}
	}
	return out
}

// store is a write to the caches of a layer.
type store struct {
	k, v, kpre        *Part
	in                *Node
	ktype, vtype      int32
	krow, vrow, cells int64
	kcache, vcache    libllama.Tensor
	at                int // the first write
	kchain, vchain    llama.Chain
	rope              *llama.Rope
}

var (
	cacheName = regexp.MustCompile(`^cache_([kv])_l(\d+)`)
	blockName = regexp.MustCompile(`^blk\.(\d+)\.`)
	ffnName   = regexp.MustCompile(`^blk\.(\d+)\.ffn_(gate|up|gate_exps|gate_up_exps|up_exps|gate_inp)\.weight$`)
)

// maxNodes bounds a recording.
const maxNodes = 1 << 18

// Record runs tokens through a context whose cache is cleared, and reads its graph.
func Record(c *libllama.Context, tokens []int32) (*Plan, error) {
	c.Clear()
	return RecordAs(c, func() error { return c.Decode(tokens, len(tokens)-1) })
}

// RecordAs reads the graph that run computes with a context.
func RecordAs(c *libllama.Context, run func() error) (*Plan, error) {
	p := &Plan{Weights: map[string]libllama.Tensor{}, nodes: map[uintptr]*Node{}, stops: map[int]*store{},
		outs: map[uintptr]*Layer{}}
	count := map[libllama.NodeKey]int{}
	if err := c.Visit(run, func(t libllama.Tensor) {
		if len(p.list) >= maxNodes {
			return
		}
		k := libllama.NodeKey{Name: t.Name(), Op: t.Op()}
		n := &Node{libllama.Node{NodeKey: k, N: count[k]}, len(p.list), t}
		count[k]++
		p.list, p.nodes[t.Address()] = append(p.list, n), n
		p.see(n) // while the graph is alive
	}); err != nil {
		return nil, err
	}
	if len(p.list) == 0 {
		return nil, fmt.Errorf("llama.cpp ran a graph without a node")
	}
	p.Nodes = len(p.list)
	if first := p.list[0].NodeKey; count[first] == 1 {
		p.First = first
	}
	p.finish()
	if err := p.check(); err != nil {
		return nil, err
	}
	p.nodes, p.list, p.outs = nil, nil, nil
	return p, nil
}

// see takes in one node. Sources run before it, so they have been seen.
func (p *Plan) see(n *Node) {
	t := n.t
	for i := range t.Sources() {
		if s := t.Src(i); s.OK() {
			if r := s.Root(); r.Leaf() && isWeight(r.Name()) {
				p.Weights[r.Name()] = r
			}
		}
	}
	switch n.Op {
	case "SET_ROWS":
		p.stored(t)
	case "FLASH_ATTN_EXT":
		p.scored(t, t.Src(0), t.Src(1), true)
	case "MUL_MAT", "MUL_MAT_ID":
		a := t.Src(0).Root().Name()
		if m := cacheName.FindStringSubmatch(a); m != nil && m[1] == "k" {
			p.scored(t, t.Src(1), t.Src(0), false)
		} else if m != nil {
			for _, y := range p.Layers {
				if y.Owner == number(m[2]) && y.O == "" {
					p.outs[t.Address()] = y // the last of them that is without output yet
				}
			}
		} else if y := p.outs[side(t.Src(1)).Address()]; y != nil && n.Op == "MUL_MAT" && t.Src(0).Root().Leaf() {
			y.O = a
		} else if m := ffnName.FindStringSubmatch(a); m != nil {
			l := number(m[1])
			for _, y := range p.Layers {
				if y.Layer == l && y.FFN == nil {
					y.FFN = p.node(t.Src(1))
				}
			}
		}
	}
}

func isWeight(name string) bool {
	return strings.HasSuffix(name, ".weight") || strings.HasSuffix(name, ".bias")
}

func number(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		return -1 // more digits than a number has
	}
	return n
}

// node is the recorded node that made a tensor.
func (p *Plan) node(t libllama.Tensor) *Node { return p.nodes[t.Producer().Address()] }

// side follows a tensor through what only moves or copies its numbers.
func side(t libllama.Tensor) libllama.Tensor {
	for t = t.Producer(); t.OK() && t.Op() == "CONT"; {
		t = t.Src(0).Producer()
	}
	return t
}

// part is what a tensor shows of the node that made it. Len is filled in when the sizes of heads are
// known.
func (p *Plan) part(t libllama.Tensor) *Part {
	n := p.node(t)
	if n == nil {
		return nil
	}
	from, _ := offset(t)
	ne := n.t.NE()
	out := &Part{Node: n, From: int(from), Of: int(ne[0])}
	if ne[2] > 1 {
		out.Of *= int(ne[1]) // [numbers, heads, tokens]
	}
	return out
}

// offset is the first number of a row of its producer that a tensor shows; gaps says that it leaves
// out numbers between heads.
func offset(t libllama.Tensor) (from int64, gaps bool) {
	made := t.Producer()
	for u := t; u.OK() && u.Address() != made.Address(); u = u.Src(0) {
		if ne, nb := u.NE(), u.NB(); u.Op() == "VIEW" && ne[1] > 1 && ne[2] > 1 && nb[1] != ne[0]*nb[0] {
			gaps = true
		}
	}
	if made.OK() && t.Address() != made.Address() && t.Root().Address() == made.Root().Address() && made.Type() == 0 {
		from = (t.ViewOffset() - made.ViewOffset()) / 4
	}
	return from, gaps
}

// unrotated follows a tensor through the Hadamard transform of quantised caches, if there is one.
func unrotated(t libllama.Tensor) libllama.Tensor {
	for m := t.Producer(); m.OK() && m.Op() == "MUL_MAT" && strings.Contains(m.Src(0).Root().Name(), "_rot") &&
		m.Src(0).Root().Leaf() && strings.HasPrefix(m.Src(0).Root().Name(), "attn_inp_"); m = t.Producer() {
		t = m.Src(1)
	}
	return t
}

// stored takes in a write to a cache.
func (p *Plan) stored(t libllama.Tensor) {
	cache := t.Root()
	m := cacheName.FindStringSubmatch(cache.Name())
	if m == nil {
		return
	}
	l := number(m[2])
	s := p.stops[l]
	if s == nil {
		s = &store{at: len(p.list) - 1}
		p.stops[l] = s
	}
	src := unrotated(t.Src(0))
	if !src.OK() {
		return
	}
	if m[1] == "v" {
		s.v, s.vtype, s.vrow, s.vcache = p.part(src), cache.Type(), cache.NE()[0], cache
		s.vchain, _ = chain(src)
		return
	}
	s.k, s.ktype, s.krow, s.cells = p.part(src), cache.Type(), cache.NE()[0], cache.NE()[1]*cache.NE()[2]
	s.kcache = cache
	var in libllama.Tensor
	s.kchain, in = chain(src)
	if in.OK() {
		s.in = p.node(in)
	}
	if r := rotation(src); r.OK() {
		s.kpre, s.rope = p.part(r.Src(0)), ropeOf(r)
	}
}

// maxScales bounds the scales of queries in a row.
const maxScales = 4

// scored takes in an attention node.
func (p *Plan) scored(t, q, k libllama.Tensor, flash bool) {
	m := cacheName.FindStringSubmatch(k.Root().Name())
	if m == nil {
		return
	}
	y := &Layer{}
	y.Owner, y.Layer, y.Flash = number(m[2]), -1, flash
	y.HeadDim, y.Heads, y.KVHeads = int(k.NE()[0]), int(q.NE()[2]), int(k.NE()[2])
	if flash {
		y.Scale, y.SoftCap, y.Sinks = t.FloatParam(0), t.FloatParam(2), t.Src(4).OK()
	}
	if flash {
		p.outs[t.Address()] = y
	}
	made := unrotated(q)
	y.QScored = p.node(made)
	y.Q, y.QueryScale = p.part(made), 1
	var in libllama.Tensor
	if y.Attention.Q, in = chain(made); in.OK() {
		y.In = p.node(in)
	}
	// Scales behind RoPE are no part of the queries that keys meet.
	plain := made.Producer()
	for range maxScales {
		if !plain.OK() || plain.Op() != "SCALE" {
			break
		}
		y.QueryScale *= plain.FloatParam(0)
		plain = plain.Src(0).Producer()
	}
	if r := rotation(made); r.OK() {
		y.QPre, y.Rope = p.part(r.Src(0)), ropeOf(r)
		if n := p.part(plain); n != nil {
			y.Q = n
		}
	} else {
		y.QueryScale = 1
	}
	for _, w := range y.Attention.Q.Weights() {
		if m := blockName.FindStringSubmatch(w); m != nil {
			y.Layer = number(m[1])
		}
	}
	if y.Layer < 0 {
		y.Layer = y.Owner
	}
	p.Layers = append(p.Layers, y)
}

// finish joins reads and writes of the same caches.
func (p *Plan) finish() {
	seen := map[int]bool{}
	for _, y := range p.Layers {
		y.FirstReader = !seen[y.Owner]
		seen[y.Owner] = true
		s := p.stops[y.Owner]
		if s == nil {
			continue
		}
		y.K, y.V, y.KPre = s.k, s.v, s.kpre
		if y.FirstReader && s.in != nil {
			y.In = s.in
		}
		y.KType, y.VType, y.KRow, y.VRow, y.Cells = s.ktype, s.vtype, s.krow, s.vrow, s.cells
		y.KCache, y.VCache, y.Stored = s.kcache, s.vcache, s.at
		y.Attention.K, y.Attention.V = s.kchain, s.vchain
		if s.v != nil && y.KVHeads > 0 {
			y.ValueDim = int(s.vrow) / y.KVHeads
		}
		for _, x := range []struct {
			p *Part
			n int
		}{{y.Q, y.Heads * y.HeadDim}, {y.QPre, y.Heads * y.HeadDim}, {y.K, y.KVHeads * y.HeadDim},
			{y.KPre, y.KVHeads * y.HeadDim}, {y.V, y.KVHeads * y.ValueDim}} {
			if x.p != nil {
				x.p.Len = x.n
			}
		}
		if s.rope != nil {
			y.Rope = s.rope
		}
	}
}

// check refuses a graph in which a read has no write.
func (p *Plan) check() error {
	if len(p.Layers) == 0 {
		for _, n := range p.list {
			if n.Op == "CPY" && cacheName.MatchString(n.t.Root().Name()) {
				return fmt.Errorf("this release of llama.cpp stores keys by CPY; those since July 2025, which use " +
					"SET_ROWS, are supported")
			}
		}
		return fmt.Errorf("no attention with a K cache was found among %d nodes: such a model has no keys to "+
			"convert", len(p.list))
	}
	for _, y := range p.Layers {
		switch {
		case y.K == nil:
			return fmt.Errorf("layer %d reads the cache of layer %d, to which no SET_ROWS writes", y.Layer, y.Owner)
		case y.Q == nil:
			return fmt.Errorf("layer %d: the node of its queries was not found", y.Layer)
		}
		for _, x := range []*Part{y.Q, y.K, y.V} {
			if x != nil && x.From+x.Len > x.Of {
				return fmt.Errorf("layer %d: %s gives %d numbers a token, %d from %d on were expected", y.Layer, x.Name, x.Of,
					x.Len, x.From)
			}
		}
	}
	return nil
}

// rotation follows a tensor back to its RoPE, through what may stand behind it.
func rotation(t libllama.Tensor) libllama.Tensor {
	for range 16 {
		t = t.Producer()
		if !t.OK() {
			return t
		}
		switch t.Op() {
		case "ROPE":
			return t
		case "SCALE", "MUL", "RMS_NORM", "NORM", "L2_NORM", "CONT", "ADD":
			t = t.Src(0)
		case "CONCAT":
			if r := rotation(t.Src(0)); r.OK() {
				return r
			}
			t = t.Src(1)
		default:
			return libllama.Tensor{}
		}
	}
	return libllama.Tensor{}
}

// Parameters of ROPE nodes, by their places.
const (
	ropeDim      = 1
	ropeMode     = 2
	ropeOriginal = 4
	ropeTheta    = 5
)

func ropeOf(t libllama.Tensor) *llama.Rope {
	r := &llama.Rope{
		Dim: int(t.Param(ropeDim)), Mode: t.Param(ropeMode), Original: t.Param(ropeOriginal), Theta: t.FloatParam(ropeTheta),
		FreqScale: t.FloatParam(ropeTheta + 1), Ext: t.FloatParam(ropeTheta + 2), Magnitude: t.FloatParam(ropeTheta + 3),
		BetaFast: t.FloatParam(ropeTheta + 4), BetaSlow: t.FloatParam(ropeTheta + 5),
	}
	if f := t.Src(2); f.OK() {
		r.Factors = f.Root().Name()
	}
	return r
}

// chain lists the operations that a tensor was made with, back to the matrix product, and that
// product's input. Branches of a CONCAT stand in brackets.
func chain(t libllama.Tensor) (steps llama.Chain, in libllama.Tensor) {
	for range 32 {
		from, gaps := offset(t)
		t = t.Producer()
		if !t.OK() || t.Leaf() {
			return steps, in
		}
		// A view of a part of a row: the rows of a fused matrix.
		if from != 0 || gaps {
			steps = append(llama.Chain{{Op: "VIEW", Offset: from, Gaps: gaps}}, steps...)
		}
		s := llama.Step{Op: t.Op()}
		switch s.Op {
		case "MUL_MAT", "MUL_MAT_ID":
			if w := t.Src(0).Root(); w.Leaf() {
				s.Weight = w.Name()
			}
			return append(llama.Chain{s}, steps...), t.Src(1)
		case "ADD", "MUL":
			if w := t.Src(1).Root(); w.Leaf() {
				s.Weight = w.Name()
			}
			steps, t = append(llama.Chain{s}, steps...), t.Src(0)
		case "CONCAT":
			a, ia := chain(t.Src(0))
			b, _ := chain(t.Src(1))
			out := append(llama.Chain{{Op: "("}}, a...)
			out = append(append(out, llama.Step{Op: "|"}), b...)
			return append(append(out, llama.Step{Op: ")"}, s), steps...), ia
		default:
			steps, t = append(llama.Chain{s}, steps...), t.Src(0)
		}
	}
	return steps, in
}

// Facts fills in what the plan says.
func (p *Plan) Facts(f *llama.Facts) {
	for _, y := range p.Layers {
		if r := y.Rope; r != nil && r.Factors != "" {
			if t, ok := p.Weights[r.Factors]; ok && t.Elements() <= maxFactors {
				if d, err := t.Get(nil); err == nil {
					r.Divisors = d
				}
			}
		}
	}
	f.Nodes, f.Weights = p.Nodes, map[string]llama.Weight{}
	for name, t := range p.Weights {
		f.Weights[name] = llama.Weight{Type: t.Type(), NE: t.NE(), Bytes: t.Bytes()}
	}
	for _, y := range p.Layers {
		f.Attention = append(f.Attention, y.Attention)
	}
}

// maxFactors bounds the divisors of RoPE; there is one for each pair of a head.
const maxFactors = 1 << 12

// CheckTypes holds the types of the caches against what was asked for.
func (p *Plan) CheckTypes(k, v int32) error {
	for _, y := range p.Layers {
		if y.KType != k || y.V != nil && y.VType != v {
			return fmt.Errorf("the caches of layer %d have types %d and %d where %d and %d were asked for: the fields "+
				"of llama_context_params are not where they were expected",
				y.Owner, y.KType, y.VType, k, v)
		}
	}
	return nil
}

// CacheBytes is what the caches take: of one token, and of all cells.
func (p *Plan) CacheBytes(row func(typ int32, n int64) int64) (token, all int64) {
	for _, y := range p.Layers {
		if !y.FirstReader {
			continue
		}
		n := row(y.KType, y.KRow)
		if y.V != nil {
			n += row(y.VType, y.VRow)
		}
		token, all = token+n, all+n*y.Cells
	}
	return token, all
}
