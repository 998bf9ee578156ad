// Package generate is the reference runtime: it decodes text token by token with a cache
// that holds what a runtime would hold. Coded keys and values are signs and scales that
// are packed as tokens arrive; the first and the latest tokens are kept in F16 beside them,
// as the policy says. Scores and sums come from the kernels of package kernels/coded, so
// nothing of a coded token is ever decoded.
//
// # Exactness
//
// With a float cache the logits have the bits of the forward pass over the whole text
// (package refmodel), and with codes those of the forward pass with kvcache.Codes or
// kvcache.Groups and their Kernels set: the same sums in the same order, one query at a time.
// From products with decoded keys and values they differ by the rounding of queries and
// weights that package onebit states.
//
// Tokens are coded as they come, from float32; those of the latest window are kept in F16
// beside their signs until they leave it.
package generate

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/kernels/linalg"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/verify/kvcache"
	"github.com/phaseconv/phaseconv/verify/option"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// Storage says how a session keeps keys and values.
type Storage struct {
	// Groups are the codes of every layer, see codec.CheckLayer; nil keeps all in float32.
	// What no group of a layer codes stays float32.
	Groups [][]*codec.Group
	// Policy of coded tokens.
	Policy kvcache.Policy
}

// KeyGroups returns the groups of codes of single heads' keys, codes[layer][head].
func KeyGroups(codes [][]*codec.Code) ([][]*codec.Group, error) {
	out := make([][]*codec.Group, len(codes))
	for l, heads := range codes {
		for h, c := range heads {
			g, err := codec.KeyGroup(c, h)
			if err != nil {
				return nil, fmt.Errorf("layer %d, head %d: %w", l, h, err)
			}
			out[l] = append(out[l], g)
		}
	}
	return out, nil
}

// A layerCache is what one layer keeps of the tokens so far.
type layerCache interface {
	// append takes the keys and values of the next tokens, [n, n_kv_heads*head_dim].
	append(ctx context.Context, k, v []float32) error
	// scores sets dst[h*ld+j] to the score of query head h, at position pos, with token j,
	// from <= j <= pos. q is [heads, head_dim]. Numbers before from belong to nobody.
	scores(dst []float32, ld int, q []float32, from, pos int)
	// sums sets out, [heads, head_dim], to the sums of values times p[h*ld+j], which are 0
	// before from, and which it may change.
	sums(out, p []float32, ld int, from, pos int)
	bytes() Bytes
}

// Bytes is what a cache holds.
type Bytes struct {
	Tokens int
	// Coded is what has a code takes: signs, scales, and the kept tokens in F16. The same
	// keys and values take CodedF16 bytes in F16.
	Coded, CodedF16 int
	Float           int // keys and values that have no code, in float32
}

func (b *Bytes) add(x Bytes) {
	b.Coded, b.CodedF16, b.Float = b.Coded+x.Coded, b.CodedF16+x.CodedF16, b.Float+x.Float
}

// A Session is one text. It is not safe for concurrent use, and neither are two
// sessions of one model.
type Session struct {
	m      *refmodel.Model
	layers []layerCache // nil for layers that read another's
	limit  int
	n      int

	p, logits []float32
}

// features of layers that a session can decode.
const features = family.OwnHeads | family.SharedKV

// NewSession begins a text of at most limit tokens. It makes the model Resident. It
// refuses layers and codes that do not fit each other, by name.
func NewSession(m *refmodel.Model, s Storage, limit int) (*Session, error) {
	cfg := m.Config
	if limit < 1 {
		return nil, fmt.Errorf("a session of %d tokens", limit)
	}
	if cfg.Context > 0 && limit > cfg.Context {
		return nil, option.Bad("Tokens", limit, "with the prompt; the model's own context is %d", cfg.Context)
	}
	if err := cfg.Require("generation", features); err != nil {
		return nil, err
	}
	if s.Groups != nil && len(s.Groups) != len(cfg.Layers) {
		return nil, fmt.Errorf("codes for %d of %d layers", len(s.Groups), len(cfg.Layers))
	}
	m.Resident = true
	x := &Session{m: m, limit: limit, layers: make([]layerCache, len(cfg.Layers))}
	tables := map[int]*tables{}
	for l := range cfg.Layers {
		y := &cfg.Layers[l]
		if y.Owner != l {
			continue
		}
		if s.Groups == nil {
			x.layers[l] = newFloatLayer(y)
			continue
		}
		kind := cfg.RopeKind(l)
		if tables[kind] == nil {
			tables[kind] = newTables(y, limit)
		}
		var lower *codedLayer
		if l > 0 {
			lower, _ = x.layers[l-1].(*codedLayer) // none where that layer reads another's
		}
		var err error
		if x.layers[l], err = newCodedLayer(y, s.Groups[l], s.Policy, tables[kind], cfg.PairsIn(l), lower,
			m.Threads); err != nil {
			return nil, fmt.Errorf("layer %d: %w", l, err)
		}
	}
	return x, nil
}

// Len returns how many tokens the session has seen.
func (s *Session) Len() int { return s.n }

// Bytes returns what the cache holds.
func (s *Session) Bytes() Bytes {
	b := Bytes{Tokens: s.n}
	for _, c := range s.layers {
		if c != nil {
			b.add(c.bytes())
		}
	}
	return b
}

// Feed appends tokens and returns the logits of what follows the last, valid until the
// next call. After an error the session is of no more use.
func (s *Session) Feed(ctx context.Context, tokens []int32) ([]float32, error) {
	if len(tokens) == 0 || len(tokens) > s.limit-s.n {
		return nil, fmt.Errorf("%d tokens after %d, in a session of at most %d", len(tokens), s.n, s.limit)
	}
	v := &refmodel.Variant{Attend: s.attend}
	opt := refmodel.Options{Position: s.n, Context: s.limit}
	if err := s.m.Run(ctx, [][]int32{tokens}, []*refmodel.Variant{v}, opt); err != nil {
		return nil, err
	}
	s.n += len(tokens)
	hidden := s.m.Config.Hidden
	normed, err := s.m.FinalNorm(v.Hidden[len(v.Hidden)-hidden:])
	if err != nil {
		return nil, err
	}
	if err := s.m.PackHead(ctx, 0, s.m.Config.Vocab); err != nil {
		return nil, err
	}
	out := linalg.Grow(&s.logits, s.m.Config.Vocab)
	return out, s.m.HeadLogits(ctx, out, normed)
}

// attend is a Variant's Attend: it appends what the layer sees to the cache, then scores one
// query position after the other.
func (s *Session) attend(ctx context.Context, a *refmodel.Attention, o []float32) (bool, error) {
	y := &s.m.Config.Layers[a.Layer]
	c := s.layers[y.Owner]
	if y.Owner == a.Layer {
		if err := c.append(ctx, a.K, a.V); err != nil {
			return false, err
		}
	}
	width := y.Heads * y.HeadDim
	for r := range a.T {
		if err := context.Cause(ctx); err != nil {
			return false, err
		}
		pos := s.n + r
		from := refmodel.FirstSeen(y, pos)
		ld := pos + 2 // a sink's place
		p := linalg.Grow(&s.p, y.Heads*ld)
		c.scores(p, ld, a.Q[r*width:(r+1)*width], from, pos)
		for h := range y.Heads {
			row := p[h*ld : (h+1)*ld]
			clear(row[:from])
			refmodel.Softmax(row, from, pos+1, y, a.Sinks, h)
		}
		c.sums(o[r*width:(r+1)*width], p, ld, from, pos)
	}
	return true, nil
}

// Options of Run.
type Options struct {
	Prompt []int32
	Tokens int // to generate, at most
	// Temperature of the choice; 0 takes the most likely token. Seed is its randomness.
	Temperature float64
	Seed        uint64
	// Emit is called with each token, once it is chosen. An error ends the run.
	Emit func(id int32) error
}

// Result of Run.
type Result struct {
	Tokens         []int32
	Ended          bool          // by the model's end-of-text token, which is not in Tokens
	Prompt, Decode time.Duration // the first one reads the weights, unless another run did
	Bytes          Bytes
}

// TokensPerSecond is the rate of decoding, without the prompt; NaN if nothing was decoded.
func (r *Result) TokensPerSecond() float64 {
	if len(r.Tokens) < 2 {
		return math.NaN()
	}
	// The first token comes with the prompt.
	return float64(len(r.Tokens)-1) / r.Decode.Seconds()
}

// Run generates text after a prompt.
func Run(ctx context.Context, m *refmodel.Model, s Storage, o Options) (*Result, error) {
	if len(o.Prompt) == 0 {
		return nil, option.Errorf("the prompt has no tokens; this tokenizer adds none by itself")
	}
	if o.Tokens < 1 {
		return nil, option.Bad("Tokens", o.Tokens, "expected at least 1")
	}
	sampler, err := NewSampler(o.Temperature, o.Seed)
	if err != nil {
		return nil, err
	}
	x, err := NewSession(m, s, len(o.Prompt)+o.Tokens)
	if err != nil {
		return nil, err
	}
	r := &Result{}
	start := time.Now()
	logits, err := x.Feed(ctx, o.Prompt)
	if err != nil {
		return nil, err
	}
	r.Prompt = time.Since(start)
	start = time.Now()
	for {
		id, err := sampler.Next(logits)
		if err != nil {
			return nil, err
		}
		if r.Ended = int(id) == m.Config.EOS; r.Ended {
			break
		}
		r.Tokens = append(r.Tokens, id)
		r.Decode = time.Since(start)
		if o.Emit != nil {
			if err := o.Emit(id); err != nil {
				return nil, err
			}
		}
		if len(r.Tokens) == o.Tokens {
			break
		}
		if logits, err = x.Feed(ctx, []int32{id}); err != nil {
			return nil, err
		}
	}
	r.Bytes = x.Bytes()
	return r, nil
}
