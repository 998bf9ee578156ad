// Package refmodel computes the exact float32 forward pass of every model
// family, layer by layer: the weights of one layer (of one expert, in a mixture)
// are in memory while a whole batch of windows passes through it.
//
// The result depends neither on the number of threads nor on the machine:
// matrix products come from kernels/gemm, transcendental functions from
// kernels/fmath, and every sum has a fixed order.
package refmodel

import (
	"context"
	"fmt"
	"maps"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/kernels/gemm"
	"github.com/phaseconv/phaseconv/kernels/linalg"
	"github.com/phaseconv/phaseconv/kernels/parallel"
	"github.com/phaseconv/phaseconv/kernels/rope"
)

// A Model is a configuration with its weights. Run and Logits reuse its
// buffers, so one Model serves one call at a time.
type Model struct {
	Config  *family.Config
	Threads int // 0: all that the machine offers
	// RoundInputs rounds the inputs of products as ggml's CPU backend does, to a type
	// that depends on the matrix's (Q8_K for Q4_K, F16 for F16). Without it all that
	// is rounded is what the matrices hold.
	RoundInputs bool
	// HalfGELU computes GELU as ggml's CPU backend does, from a table of F16 numbers by F16 numbers.
	HalfGELU bool
	// Resident keeps every weight that was read, as float32 numbers in the order of the
	// kernels: for callers that go through the layers once a token.
	Resident bool

	packed  map[packedKey]*matrix // of a Resident model
	vectors map[string][]float32
	w       checkpoint.Weights
	scratch []float32 // one matrix, decoded
	rounded []float32 // inputs
	mats    [4]matrix
	ropes   map[ropeKey]*rope.Table
}

// A packedKey names rows of a tensor.
type packedKey struct {
	tensor  string
	row0, n int
}

// A ropeKey is a RopeKind and a number of positions.
type ropeKey struct{ kind, n int }

// New returns a model that reads its weights from w as it needs them.
func New(cfg *family.Config, w checkpoint.Weights, threads int) *Model {
	return &Model{Config: cfg, Threads: parallel.Threads(threads), w: w, ropes: map[ropeKey]*rope.Table{},
		packed: map[packedKey]*matrix{}, vectors: map[string][]float32{}}
}

// A Variant is one stream of hidden states through the model: the same tokens may
// run in several variants whose key caches differ, sharing the loaded weights.
type Variant struct {
	// Cache stands for the KV cache's storage format; nil keeps float32.
	Cache Cache
	// Attend, if set, may compute a layer's attention in another way: the outputs of all query
	// heads before the output projection, [rows, heads*head_dim], into o, of whose old numbers
	// nothing is known. Where it returns false the layer attends as always, through Cache.
	Attend func(ctx context.Context, a *Attention, o []float32) (bool, error)
	// From is the variant's first layer. Up to there it is the first variant, whose hidden
	// states it then takes: variants whose caches change nothing before a layer need
	// not compute it again. The first variant begins with Start, or with the embeddings
	// at layer 0.
	From int
	// Until, if not 0, is the layer in front of which the variant ends; From of the same
	// number only takes the first variant's hidden states there.
	Until int
	// Start, of the first variant, is the Hidden of another run's variant that ended at From.
	Start []float32
	// Shared comes with Start in models whose layers share keys and values: Shared of the same
	// variant. A run adds to it.
	Shared Shared
	// Hidden is the result, [windows*T, hidden], before the final norm.
	Hidden []float32

	beside []float32 // the normed input of attention, for an FFN beside it
}

func (l *Variant) end(layers int) int {
	if l.Until > 0 {
		return l.Until
	}
	return layers
}

// Options of Run.
type Options struct {
	// Hooks see the first variant's activations.
	Hooks Hooks
	// Position is that of the first token of every window. Above 0 the keys and values of the
	// tokens before must be in what the variants' Attend keeps.
	Position int
	// Context is the number of positions that the run is a part of, if it is more than the
	// tokens up to its end: tables of angles are made for it, once.
	Context int
	// Progress, if set, is called after each layer.
	Progress func(done, total int)
}

// Hooks receive activations; nil ones are not called. The slices are valid only during the
// call and must not be changed. An error ends the run.
type Hooks struct {
	// Attention is called once per layer, before attention is computed.
	Attention func(a *Attention) error
	// NoPre and NoValues say that Attention looks at no QPre and KPre, and at no V: where activations travel, they
	// are nil.
	NoPre, NoValues bool
	// FFN is called once per layer with the normed input of the FFN, [windows*T, hidden].
	FFN func(layer int, x []float32) error
	// Neurons is called with what an FFN multiplies by down, [tokens, size]: once per layer, or for
	// every expert with its tokens and their weights in its output. Shared experts are left out.
	Neurons func(layer, expert int, h, weights []float32) error
}

// Attention is what one layer's attention works on; rows are windows*T tokens.
type Attention struct {
	Layer      int
	T, Windows int
	X          []float32 // the layer's normed input, [rows, hidden]
	QPre, KPre []float32 // before RoPE: [rows, heads*head_dim], [rows, n_kv_heads*head_dim]
	Q, K       []float32 // after RoPE, same shapes
	V          []float32 // [rows, n_kv_heads*head_dim]
	Rope       *rope.Table
	Sinks      []float32 // a logit per query head, nil for none

	norms *normInputs // set where the backward pass needs them
}

// A Cache replaces keys and values by what a cache of some format gives back.
// Methods are called concurrently for different windows and heads.
type Cache interface {
	// Keys takes the post-RoPE keys of one window and KV head, [T, head_dim],
	// and returns what scores queries against their stored form. A nil Scorer
	// means that the keys, perhaps changed in place, are used as they are.
	Keys(layer, head int, k []float32) (Scorer, error)
	// Values changes the values of one window and KV head, [T, head_dim], in place.
	Values(layer, head int, v []float32) error
}

// A LayerCache is a Cache that stores what all heads of a layer have of a token together.
type LayerCache interface {
	Cache
	// Window takes the post-RoPE keys and the values of one window of a layer, [T, n_kv_heads *
	// head_dim] and [T, n_kv_heads * value_dim], which it must not change, and returns the Cache
	// of that window's heads. Windows are counted from 0 within a call of Run, which takes them all
	// through one layer after the other.
	// It is called concurrently for different windows.
	Window(ctx context.Context, layer, window int, k, v []float32) (Cache, error)
}

// A Tile is a block of scores: of some queries with some keys.
type Tile struct {
	Dst []float32 // the score of row r with key j is at r*LD + j
	LD  int
	// Q holds the queries: row r, at r*LDQ, is the one at position Pos + r.
	Q              []float32
	LDQ, Rows, Pos int
	From, To       int // keys
}

// Product sets the tile to what keys, packed by rows of d numbers, give.
func (t Tile) Product(keys *gemm.Weights, d int) {
	gemm.MulRange(t.Dst, t.LD, t.Q, t.LDQ, t.Rows, keys, t.From, t.To, 0, d, false, 1)
}

// A Scorer gives inner products of queries with stored keys.
type Scorer interface {
	// Score sets t.Dst[r*t.LD+j] = q_r . k_j for rows r in [0, t.Rows) and keys j in
	// [t.From, t.To).
	Score(t Tile)
	// Fork returns a scorer of the same keys for use beside this one: a Scorer may keep
	// buffers, so each serves one goroutine.
	Fork() Scorer
}

// A Summer is a Scorer whose runtime also adds up values in a way of its own. Its
// forks are Summers too.
type Summer interface {
	// Sum sets dst[r*ldd+i] = sum over j of p[r*ldp+j] v[j*d+i] for rows r in
	// [0, n), dimensions i and keys j in [n0, pos+r]. p holds probabilities, 0
	// where a key is out of sight; v is [T, head_dim].
	Sum(dst []float32, ldd int, p []float32, ldp int, v []float32, n, pos, n0 int)
}

// features are those of layers that the forward pass computes.
const features = family.SharedKV | family.NoRoPE | family.PartialRoPE | family.LateNorm | family.NormedValues |
	family.NoPreNorms | family.AttentionSinks | family.KeysAsValues | family.QueryTemperature | family.CappedScores |
	family.OtherBlock | family.OtherRouter | family.SharedExperts | family.OtherExperts

// Run sends windows of token ids, all of the same length, through the model,
// once per variant. It fails on ids outside the vocabulary and on weights that
// cannot be read.
func (m *Model) Run(ctx context.Context, windows [][]int32, variants []*Variant, opt Options) error {
	c := m.Config
	if len(variants) == 0 {
		return fmt.Errorf("nothing to compute: no variant")
	}
	b, err := newBatch(windows)
	if err != nil {
		return err
	}
	if err := c.Require("the forward pass", features); err != nil {
		return err
	}
	b.first, b.span = opt.Position, max(opt.Context, opt.Position+b.T)
	if err := m.begin(b, variants); err != nil {
		return err
	}
	if err := m.perLayerInputs(ctx, b); err != nil {
		return err
	}
	last := 0
	for _, x := range variants {
		last = max(last, x.end(len(c.Layers)))
	}
	for l := variants[0].From; l < last; l++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		join(variants, l)
		var now []*Variant
		for _, x := range variants {
			if x.From <= l && l < x.end(len(c.Layers)) {
				now = append(now, x)
			}
		}
		hooks := opt.Hooks
		if l >= variants[0].end(len(c.Layers)) {
			hooks = Hooks{}
		}
		if err := m.layer(ctx, l, b, now, hooks); err != nil {
			return err
		}
		if opt.Progress != nil {
			opt.Progress(l+1, len(c.Layers))
		}
	}
	join(variants, last)
	return nil
}

// layer takes every variant through layer l.
func (m *Model) layer(ctx context.Context, l int, b *batch, variants []*Variant, hooks Hooks) error {
	if err := m.attention(ctx, l, b, variants, hooks); err != nil {
		return err
	}
	if err := m.ffn(ctx, l, b, variants, hooks); err != nil {
		return err
	}
	return m.finish(ctx, l, b, variants)
}

// begin checks where variants begin and end, and gives the first one its hidden states.
func (m *Model) begin(b *batch, variants []*Variant) error {
	first, layers := variants[0], len(m.Config.Layers)
	for i, x := range variants {
		if x.From < max(0, first.From) || x.From > first.end(layers) || x.end(layers) < x.From || x.end(layers) > layers {
			return fmt.Errorf("variant %d goes from layer %d to %d, the first one from %d to %d of %d", i, x.From, x.end(layers),
				first.From, first.end(layers), layers)
		}
	}
	if first.Start == nil {
		if first.From > 0 {
			return fmt.Errorf("the first variant begins at layer %d without hidden states", first.From)
		}
		return m.embed(b, first)
	}
	if len(first.Start) != b.rows()*m.Config.Hidden {
		return fmt.Errorf("%d hidden values for %d tokens", len(first.Start), b.rows())
	}
	first.Hidden, first.Shared = append([]float32(nil), first.Start...), maps.Clone(first.Shared)
	return nil
}

// join gives the variants that begin at layer l the first one's hidden states.
func join(variants []*Variant, l int) {
	for i, x := range variants {
		if i > 0 && x.From == l {
			x.Shared = maps.Clone(variants[0].Shared)
			x.Hidden = append([]float32(nil), variants[0].Hidden...)
		}
	}
}

// A batch is the tokens of one Run and the buffers that its layers share.
type batch struct {
	T, windows int
	tokens     []int32
	first      int // position of the first token of each window
	span       int // positions of tables of angles
	// Of probes: the positions of the T rows of each window, and what their queries meet.
	positions []int
	context   *Context

	norm             []float32 // normed hidden states
	q, k, v, o       []float32
	qPre, kPre, proj []float32
	gate, up         []float32
	perLayer         []float32 // see perLayerInputs
}

func (b *batch) rows() int { return b.T * b.windows }

// position returns where row r stands in its window.
func (b *batch) position(r int) int {
	if b.positions != nil {
		return b.positions[r%b.T]
	}
	return b.first + r%b.T
}

// newBatch returns the tokens of windows, which must be of one length.
func newBatch(windows [][]int32) (*batch, error) {
	if len(windows) == 0 || len(windows[0]) == 0 {
		return nil, fmt.Errorf("nothing to compute: %d windows", len(windows))
	}
	b := &batch{T: len(windows[0]), windows: len(windows), span: len(windows[0])}
	for _, w := range windows {
		if len(w) != b.T {
			return nil, fmt.Errorf("windows of %d and %d tokens in one batch", b.T, len(w))
		}
		b.tokens = append(b.tokens, w...)
	}
	return b, nil
}

func (m *Model) embed(b *batch, variant *Variant) error {
	t, err := m.find("token_embd.weight")
	if err != nil {
		return err
	}
	d := m.Config.Hidden
	x := make([]float32, b.rows()*d)
	scale := float32(m.Config.EmbeddingScale)
	// Each distinct token is read once: calibration text repeats its words.
	first := map[int32]int{}
	for i, id := range b.tokens {
		row := x[i*d : (i+1)*d]
		if j, ok := first[id]; ok {
			copy(row, x[j*d:(j+1)*d])
			continue
		}
		if id < 0 || int(id) >= t.Rows() {
			return fmt.Errorf("token id %d is outside the vocabulary of %d; tokenizer and model do not belong together", id,
				t.Rows())
		}
		if err := m.w.ReadRows(t, int(id), 1, row); err != nil {
			return err
		}
		if scale != 1 {
			for k := range row {
				row[k] *= scale
			}
		}
		first[id] = i
	}
	variant.Hidden = x
	return nil
}

func (m *Model) find(name string) (*checkpoint.Tensor, error) {
	t, ok := m.w.Find(name)
	if !ok {
		return nil, fmt.Errorf("the model has no tensor %s", name)
	}
	return t, nil
}

// vector reads a one-dimensional tensor; optional ones give nil when absent.
func (m *Model) vector(name string, optional bool) ([]float32, error) {
	t, ok := m.w.Find(name)
	if !ok {
		if optional {
			return nil, nil
		}
		return nil, fmt.Errorf("the model has no tensor %s", name)
	}
	if v := m.vectors[name]; v != nil {
		return v, nil
	}
	out := make([]float32, t.Elements())
	if err := m.w.ReadRows(t, 0, t.Rows(), out); err != nil {
		return nil, err
	}
	if m.Resident {
		m.vectors[name] = out
	}
	return out, nil
}

// decode reads rows [row0, row0+n) of a matrix into memory that the next decode takes again.
func (m *Model) decode(ctx context.Context, t *checkpoint.Tensor, row0, n int) ([]float32, error) {
	cols := t.Cols()
	buf := linalg.Grow(&m.scratch, n*cols)
	// About 256 KiB a piece: large enough to make calls rare, small enough to share out.
	step := max(1, 1<<16/cols)
	err := parallel.For(ctx, m.Threads, (n+step-1)/step, func(i int) error {
		r := i * step
		k := min(step, n-r)
		return m.w.ReadRows(t, row0+r, k, buf[r*cols:(r+k)*cols])
	})
	return buf, err
}

// vectorIf reads a one-dimensional tensor where the layer has it.
func (m *Model) vectorIf(have bool, name string) ([]float32, error) {
	if !have {
		return nil, nil
	}
	return m.vector(name, false)
}

// pack loads rows [row0, row0+n) of a matrix into w.
func (m *Model) pack(ctx context.Context, w *matrix, t *checkpoint.Tensor, row0, n int) error {
	key := packedKey{t.Name, row0, n}
	if kept := m.packed[key]; kept != nil {
		*w = *kept
		return nil
	}
	buf, err := m.decode(ctx, t, row0, n)
	if err != nil {
		return err
	}
	if m.Resident {
		*w = matrix{} // the memory of the last one is kept
	}
	w.PackRows(n, t.Cols(), buf, t.Cols(), m.Threads)
	w.input = inputType(t.Type)
	if m.Resident {
		kept := *w
		m.packed[key] = &kept
		m.scratch = nil // of the largest matrix, an output head of hundreds of megabytes
	}
	return nil
}

func (m *Model) packAll(ctx context.Context, w *matrix, name string) error {
	t, err := m.find(name)
	if err != nil {
		return err
	}
	return m.pack(ctx, w, t, 0, t.Rows())
}

// ropeTable returns the angles of layer l for n positions.
func (m *Model) ropeTable(l, n int) *rope.Table {
	key := ropeKey{m.Config.RopeKind(l), n}
	if m.ropes[key] == nil {
		m.ropes[key] = rope.NewTable(m.Config.Layers[l].Rope, n)
	}
	return m.ropes[key]
}
