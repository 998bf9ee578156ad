//go:build (linux || darwin) && (amd64 || arm64)

package libllama

import (
	"fmt"
	"runtime"
	"sync"
	"unsafe"

	"github.com/ebitengine/purego"
)

// ContextOptions of a Context.
type ContextOptions struct {
	// Ctx is the number of tokens of a window, Batch how many are computed at a time.
	Ctx, Batch int
	// K and V are numbers of the cache types.
	K, V int32
	// Flash asks for flash attention: 0 never, 1 always (what quantised values need), -1 where the
	// device has it.
	Flash int
	// FullWindow gives layers with a sliding window a cache for the whole context.
	FullWindow bool
	Threads    int
}

// A Context is a model with a KV cache; Close it.
type Context struct {
	Options ContextOptions

	m       *Model
	p       uintptr
	id      uintptr
	outputs []int8
	pos     int

	// visit, if set, is called with each node of a graph before it runs.
	visit func(t Tensor)
	stops Stops

	called  bool // the callback was
	met     int  // stops
	seen    map[NodeKey]int
	live    map[Node]Tensor
	pending func(t Tensor) error
	err     error
}

// A NodeKey is a node's name and operation. Several nodes of a graph can have the same.
type NodeKey struct{ Name, Op string }

// A Node is a node of a graph, known again in later graphs: the Nth with its key.
type Node struct {
	NodeKey
	N int
}

// Stops are what is done at nodes of a graph. At a stop the graph runs up to the node, and no
// operation behind it has run.
type Stops struct {
	// First is the first node of the graph: a batch may run as several, each counted from zero.
	First NodeKey
	// Do is called with the nodes when they are computed.
	Do map[Node]func(t Tensor) error
	// Watch are nodes whose addresses are kept for Live.
	Watch map[Node]bool

	keys map[NodeKey]bool
}

var (
	contextsMu sync.Mutex
	contexts   = map[uintptr]*Context{}
	lastID     uintptr
	// evalCallback is the one callback of all contexts, told apart by their user data: callbacks are
	// never freed, and there is room for few.
	evalCallback = sync.OnceValue(func() uintptr {
		return purego.NewCallback(func(t uintptr, ask bool, user uintptr) bool {
			contextsMu.Lock()
			c := contexts[user]
			contextsMu.Unlock()
			if c == nil {
				return false
			}
			return c.callback(Tensor{t, c.m.l}, ask)
		})
	})
)

// NewContext makes a KV cache. The error holds llama.cpp's reason, such as a block size that does
// not divide head_dim. What was asked for is asked back.
func (m *Model) NewContext(o ContextOptions) (*Context, error) {
	if o.Ctx <= 0 || o.Batch <= 0 {
		return nil, fmt.Errorf("a context of %d tokens in batches of %d holds nothing", o.Ctx, o.Batch)
	}
	if o.Threads <= 0 {
		o.Threads = runtime.NumCPU()
	}
	o.Batch = min(o.Batch, o.Ctx)
	l := m.l
	p, f := l.context, l.ctxAt
	*p.u32(0), *p.u32(4), *p.u32(8), *p.u32(12) = uint32(o.Ctx), uint32(o.Batch), uint32(o.Batch), 1
	*p.u32(f.Threads), *p.u32(f.Threads + 4) = uint32(o.Threads), uint32(o.Threads)
	*p.u32(f.TypeK), *p.u32(f.TypeK + 4) = uint32(o.K), uint32(o.V)
	*p.u32(f.Flash) = uint32(int32(o.Flash))
	*p.u8(f.OpOffload), *p.u8(f.FullWindow) = 0, 0
	if o.FullWindow {
		*p.u8(f.FullWindow) = 1
	}
	c := &Context{Options: o, m: m}
	contextsMu.Lock()
	lastID++
	c.id = lastID
	contexts[c.id] = c
	contextsMu.Unlock()
	*p.ptr(f.Eval), *p.ptr(f.Eval + 8) = evalCallback(), c.id
	l.Messages()
	if c.p = l.newContext(m.p, p); c.p == 0 {
		c.Close()
		return nil, fmt.Errorf("llama.cpp makes no such context: %s", LastLines(l.Messages()))
	}
	// llama.cpp rounds n_ctx up.
	for name, want := range map[string]int{
		"n_batch": o.Batch, "n_ubatch": o.Batch, "n_seq_max": 1, "n_threads": o.Threads,
	} {
		if got := int(l.ask[name](c.p)); got != want {
			c.Close()
			return nil, fmt.Errorf("llama_%s is %d where %d was asked for: the fields of llama_context_params are not "+
				"where they were expected", name, got, want)
		}
	}
	if got := int(l.ask["n_ctx"](c.p)); got < o.Ctx || got > o.Ctx+4096 {
		c.Close()
		return nil, fmt.Errorf("llama_n_ctx is %d where %d was asked for: the fields of llama_context_params are "+
			"not where they were expected", got, o.Ctx)
	}
	return c, nil
}

// Close frees the context.
func (c *Context) Close() {
	contextsMu.Lock()
	delete(contexts, c.id)
	contextsMu.Unlock()
	if c.p != 0 {
		c.m.l.free(c.p)
		c.p = 0
	}
}

// SetStops says what is done at nodes from now on.
func (c *Context) SetStops(s Stops) {
	s.keys = map[NodeKey]bool{}
	if s.First != (NodeKey{}) {
		s.keys[s.First] = true
	}
	for n := range s.Do {
		s.keys[n.NodeKey] = true
	}
	for n := range s.Watch {
		s.keys[n.NodeKey] = true
	}
	c.stops = s
}

// Live returns the tensor that a watched node is in the graph under way.
func (c *Context) Live(n Node) (Tensor, error) {
	t, ok := c.live[n]
	if !ok {
		return t, fmt.Errorf("the node %s (%s) was not met: this graph differs from the one that was "+
			"recorded", n.Name, n.Op)
	}
	return t, nil
}

// callback runs on the thread that called llama_decode. In the asking phase it says whether the
// node is wanted; the library then computes up to it, waits, and calls again. It never panics
// through the library: an error ends the work, and Decode returns it.
func (c *Context) callback(t Tensor, ask bool) (more bool) {
	defer func() {
		if r := recover(); r != nil {
			more = false
			if c.err == nil {
				c.err = fmt.Errorf("at a node of the graph: %v", r)
			}
		}
	}()
	c.called = true
	if !ask {
		if c.pending == nil || c.err != nil {
			return c.err == nil
		}
		if err := c.pending(t); err != nil {
			c.err = fmt.Errorf("at %s (%s): %w", t.Name(), t.Op(), err)
		}
		return c.err == nil
	}
	if c.visit != nil {
		c.visit(t)
		return false
	}
	if c.stops.keys == nil || c.err != nil {
		return false
	}
	k := NodeKey{t.Name(), t.Op()}
	if !c.stops.keys[k] {
		return false
	}
	if k == c.stops.First {
		clear(c.seen)
	}
	n := Node{k, c.seen[k]}
	c.seen[k]++
	if c.stops.Watch[n] {
		c.live[n] = t
	}
	if c.pending = c.stops.Do[n]; c.pending == nil {
		return false
	}
	c.met++
	return true
}

// Clear empties the cache: what is decoded next begins at position 0.
func (c *Context) Clear() {
	c.m.l.memoryClear(c.m.l.memory(c.p), true)
	c.pos = 0
}

// Visit calls visit for each node of the graphs that run computes, in their order, in place of
// stops.
func (c *Context) Visit(run func() error, visit func(t Tensor)) error {
	c.visit = visit
	defer func() { c.visit = nil }()
	return run()
}

// Position is that of the token that is decoded next.
func (c *Context) Position() int { return c.pos }

// Decode computes tokens at the positions that follow those of the cache. Logits are computed
// for tokens from number first on; first of len(tokens) is for none.
func (c *Context) Decode(tokens []int32, first int) error {
	if len(tokens) == 0 || len(tokens) > c.Options.Batch || c.pos+len(tokens) > c.Options.Ctx || first < 0 {
		return fmt.Errorf("%d tokens at position %d in a context of %d, batches of %d", len(tokens), c.pos, c.Options.Ctx,
			c.Options.Batch)
	}
	for i, t := range tokens {
		if t < 0 || int(t) >= c.m.Vocab {
			return fmt.Errorf("token %d is id %d, the vocabulary has %d", i, t, c.m.Vocab)
		}
	}
	c.outputs = append(c.outputs[:0], make([]int8, len(tokens))...)
	for i := first; i < len(tokens); i++ {
		c.outputs[i] = 1
	}
	c.seen, c.live, c.err, c.pending, c.called = map[NodeKey]int{}, map[Node]Tensor{}, nil, nil, false
	c.met = 0
	b := batch{N: int32(len(tokens)), Token: &tokens[0], Outputs: &c.outputs[0]}
	c.m.l.Messages()
	// The call sees addresses only: the garbage collector learns of them here.
	rc := c.m.l.decode(c.p, b)
	runtime.KeepAlive(tokens)
	runtime.KeepAlive(c.outputs)
	switch {
	case c.err != nil:
		return c.err
	case rc != 0:
		return fmt.Errorf("llama_decode returned %d: %s", rc, LastLines(c.m.l.Messages()))
	case !c.called:
		return fmt.Errorf("llama_decode did not call the callback: the fields of llama_context_params are not where " +
			"they were expected")
	}
	// With one graph a batch each stop is met once.
	if want := len(c.stops.Do); c.visit == nil && c.met != want {
		return fmt.Errorf("%d of %d nodes were met: this graph differs from the one that was recorded", c.met, want)
	}
	c.pos += len(tokens)
	return nil
}

// Logits returns the row of token number i of the last Decode, valid until the next.
func (c *Context) Logits(i int) ([]float32, error) {
	p := c.m.l.logits(c.p, int32(i))
	if p == nil {
		return nil, fmt.Errorf("llama.cpp has no logits of token %d: %s", i, LastLines(c.m.l.Messages()))
	}
	return unsafe.Slice(p, c.m.Vocab), nil
}
