package kvcache

import (
	"fmt"
	"slices"
	"strings"

	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/kernels/linalg"
	"github.com/phaseconv/phaseconv/rotations/transform"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// stockTypes are the cache types of llama.cpp that LlamaCpp knows, smallest first.
// Q1_0 is no value of its --cache-type options, but its library takes it.
var stockTypes = []gguf.Type{
	gguf.TypeQ1_0, gguf.TypeQ4_0, gguf.TypeIQ4_NL, gguf.TypeQ4_1, gguf.TypeQ5_0, gguf.TypeQ5_1,
	gguf.TypeQ8_0, gguf.TypeBF16, gguf.TypeF16,
}

// MLXTypes are the cache types of mlx-lm, smallest first; it has them for K and V alike.
var MLXTypes = []gguf.Type{gguf.TypeMLX4, gguf.TypeMLX8}

// StockTypes returns the cache types that LlamaCpp knows, as --cache-type-k and
// --cache-type-v spell them, smallest first.
func StockTypes() []string {
	var out []string
	for _, t := range stockTypes {
		out = append(out, TypeName(t))
	}
	return out
}

// TypeName spells a type as llama.cpp's options do: "q8_0".
func TypeName(t gguf.Type) string { return strings.ToLower(t.String()) }

// ParseStockType is the inverse of TypeName for the cache types.
func ParseStockType(name string) (gguf.Type, error) {
	for _, t := range slices.Concat(stockTypes, MLXTypes) {
		if TypeName(t) == name {
			return t, nil
		}
	}
	var mlx []string
	for _, t := range MLXTypes {
		mlx = append(mlx, TypeName(t))
	}
	return 0, fmt.Errorf("%q is not a cache type; there are %s, and %s of MLX", name, strings.Join(StockTypes(), ", "),
		strings.Join(mlx, ", "))
}

// LlamaCpp stands for the KV cache of llama.cpp's CPU backend on x86-64, filled by
// batches of 64 tokens and more, with flash attention, which is its default.
//
// What it reproduces, bit for bit: the stored rows of K and V, the Hadamard
// transforms around them, and what queries are rounded to. What it reproduces
// up to float32 rounding: the inner products of those numbers. (llama.cpp adds
// integers within a block; here the same products are added in float32, which
// is as fast as a float cache.)
//
// The rules, from llama.cpp's sources:
//   - A row is written by the CPU backend's from_float: gguf.QuantizeCacheRow.
//   - If K's type is quantised and the first layer's head_dim is a multiple of 64, K and Q are
//     turned by a Hadamard matrix whose size is the largest power of two that
//     divides the layer's head_dim. V, under the same condition on its own type, is turned
//     in blocks of 64, and the sum of values is turned back. Numbers of K and Q are in
//     the order of the GGUF file, which is not the checkpoint's in the llama family.
//     LLAMA_ATTN_ROT_DISABLE=1 switches both rotations off. Layers with a window and those
//     without have a cache each; one whose layers differ in head_dim is not turned.
//   - With F16 for both K and V queries stay float32. Otherwise they are rounded
//     to what K's dot product takes: F16 for F16, BF16 for BF16, Q8_1 for Q4_1 and
//     Q5_1, Q8_0 for the others.
//   - Sums over values are float32, except with V in F16 beside K in another type:
//     then the running sum is rounded to F16 after each key. Sum does that.
//
// With MLXTypes it stands for the quantised cache of mlx-lm instead (scales in F16): rows are stored in
// affine groups, nothing is turned, and queries are not rounded.
//
// Token by token llama.cpp computes the pair F16, F16 otherwise too (queries in
// F16, sums in F16), and without flash attention it rounds probabilities; neither
// is what its perplexity tool measures, nor what is done here.
type LlamaCpp struct {
	// CacheTypes are K and V, and whether llama.cpp's attention rotation is on: it takes
	// effect where RotationK and RotationV are not 0.
	CacheTypes
	// FloatSums adds up values in float32 in every case. The sums in F16 that it
	// replaces are a trait of one backend, cost little beside what the cache types
	// do, and take several times as long to reproduce as all the rest of attention.
	FloatSums bool

	cfg *family.Config
	// turns says which layers' caches may be turned: head_dim is a multiple of 64 in the first, and
	// the same in all layers of the cache. numbers is the largest size of the matrix.
	turns   []bool
	numbers int
}

// NewLlamaCpp returns the cache of a model. Types whose blocks do not divide
// head_dim are refused, as llama.cpp refuses them.
func NewLlamaCpp(cfg *family.Config, types CacheTypes) (*LlamaCpp, error) {
	const who = "the emulation of llama.cpp's cache types"
	if err := cfg.Require(who, family.OwnHeads|family.SharedKV); err != nil {
		return nil, err
	}
	for l := range cfg.Layers {
		if err := checkBlocks(types, cfg.Layers[l].HeadDim); err != nil {
			return nil, err
		}
	}
	s := &LlamaCpp{CacheTypes: types, cfg: cfg, turns: make([]bool, len(cfg.Layers))}
	for l := range cfg.Layers {
		y := &cfg.Layers[l]
		// Whoever differs in a cache keeps it from being turned.
		s.turns[l] = cfg.Layers[0].HeadDim%minHadamard == 0 && !slices.ContainsFunc(cfg.Layers, func(x family.Layer) bool {
			return (x.Window > 0) == (y.Window > 0) && x.HeadDim != y.HeadDim
		})
		if s.turns[l] {
			s.numbers = max(s.numbers, y.HeadDim&-y.HeadDim)
		}
	}
	return s, nil
}

// checkBlocks refuses types that are none of a cache, or whose blocks do not divide heads of d
// numbers.
func checkBlocks(types CacheTypes, d int) error {
	for _, x := range []struct {
		side string
		t    gguf.Type
	}{{"K", types.K}, {"V", types.V}} {
		if _, err := ParseStockType(TypeName(x.t)); err != nil {
			return err
		}
		if block, _ := x.t.Block(); d%block != 0 {
			return fmt.Errorf("%s cache of type %s: its blocks of %d do not divide head_dim %d; take another type",
				x.side, TypeName(x.t), block, d)
		}
	}
	return nil
}

// minHadamard is the smallest Hadamard matrix of llama.cpp's rotation.
const minHadamard = 64

// RotationK returns the size of the Hadamard matrix that turns K and Q in the layer with the
// largest, 0 for none.
func (s *LlamaCpp) RotationK() int {
	if !s.rotates(s.K) {
		return 0
	}
	return s.numbers
}

// RotationV returns the size of the Hadamard matrix that turns V, 0 for none.
func (s *LlamaCpp) RotationV() int {
	if !s.rotates(s.V) || s.numbers == 0 {
		return 0
	}
	return minHadamard
}

func (s *LlamaCpp) rotates(t gguf.Type) bool { return s.Rotation && t.Quantized() && !t.CacheOnly() }

// KeyRow returns what is done to a key before it is stored.
func (s *LlamaCpp) KeyRow() transform.CacheRow {
	return transform.CacheRow{Type: s.K, Hadamard: s.RotationK(), Pairs: s.cfg.Family.GGUFPairs}
}

// ValueRow returns what is done to a value before it is stored. Values have no pairs
// to be ordered by.
func (s *LlamaCpp) ValueRow() transform.CacheRow {
	return transform.CacheRow{Type: s.V, Hadamard: s.RotationV()}
}

// String names the pair: "q8_0/q4_0", K first.
func (s *LlamaCpp) String() string { return TypeName(s.K) + "/" + TypeName(s.V) }

// Flags returns the options that make llama.cpp's programs use these types, ""
// if they offer one of them only to callers of the library.
func (s *LlamaCpp) Flags() string { return Flags(s.K, s.V) }

// Flags is LlamaCpp.Flags for any pair of types.
func Flags(k, v gguf.Type) string {
	if k == gguf.TypeQ1_0 || v == gguf.TypeQ1_0 || k.CacheOnly() || v.CacheOnly() {
		return ""
	}
	f := fmt.Sprintf("--cache-type-k %s --cache-type-v %s", TypeName(k), TypeName(v))
	if v.Quantized() {
		// By default flash attention is on where the device has it; a quantised V
		// cache does not work without.
		f += " --flash-attn on"
	}
	return f
}

// BytesPerToken is what one token takes in the caches of all layers. (Layers with
// a sliding window keep only so many tokens: see Bytes.)
func (s *LlamaCpp) BytesPerToken() int {
	n := 0
	for l := range s.cfg.Layers {
		n += s.cell(l)
	}
	return n
}

// cell is what one token takes in the cache of a layer: nothing where the keys and values
// of another layer are read.
func (s *LlamaCpp) cell(l int) int {
	y := &s.cfg.Layers[l]
	if y.Owner != l {
		return 0
	}
	n := 0
	for _, x := range []struct {
		t   gguf.Type
		row int
	}{{s.K, y.KVHeads * y.HeadDim}, {s.V, y.KVHeads * y.ValueDim}} {
		block, size := x.t.Block()
		n += x.row / block * size
	}
	return n
}

// llama.cpp rounds the cells of a cache up to a multiple of cellPad (src/llama-context.cpp for
// the context, src/llama-kv-cache-iswa.cpp for windows). A cache of layers with a window has
// room for the window and one batch of microBatch tokens, the programs' default.
const (
	cellPad    = 256
	microBatch = 512
)

// Cells returns for how many tokens llama.cpp makes room in the cache of layer l, for one
// sequence at a context of ctx tokens and without --swa-full. Where stock runtimes do not
// apply a family's window they store the whole context.
func (s *LlamaCpp) Cells(l, ctx int) int {
	pad := func(n int) int { return (n + cellPad - 1) / cellPad * cellPad }
	n := pad(ctx)
	if w := s.cfg.Layers[l].Window; w > 0 && s.cfg.Family.Window.InGGUF {
		n = pad(min(n, w+microBatch))
	}
	return n
}

// Bytes is the size of the caches of all layers as llama.cpp allocates them for one sequence
// at a context of ctx tokens.
func (s *LlamaCpp) Bytes(ctx int) int64 {
	var n int64
	for l := range s.cfg.Layers {
		n += int64(s.Cells(l, ctx)) * int64(s.cell(l))
	}
	return n
}

// halfSums: V's running sums are F16 numbers, see Stock.
func (s *LlamaCpp) halfSums() bool {
	return !s.FloatSums && s.V == gguf.TypeF16 && s.K != gguf.TypeF16
}

// store replaces rows of head_dim numbers by what the cache gives back, and
// returns the stored bytes.
func store(t gguf.Type, x []float32, what string, layer, head int) ([]byte, error) {
	n, err := gguf.RowBytes(t, len(x))
	if err != nil {
		return nil, err
	}
	buf := make([]byte, n)
	if err := gguf.QuantizeCacheRow(t, buf, x); err != nil {
		return nil, fmt.Errorf("%s of layer %d, KV head %d: %w", what, layer, head, err)
	}
	return buf, gguf.DequantizeRow(t, x, buf)
}

// Values implements refmodel.Cache. The values are turned back here instead of
// their sum: the transform is linear and its own inverse.
func (s *LlamaCpp) Values(layer, head int, v []float32) error {
	n := s.RotationV()
	if !s.turns[layer] {
		n = 0
	}
	linalg.Hadamard(v, n)
	if _, err := store(s.V, v, "values", layer, head); err != nil {
		return err
	}
	linalg.Hadamard(v, n)
	return nil
}

// Keys implements refmodel.Cache.
func (s *LlamaCpp) Keys(layer, head int, k []float32) (refmodel.Scorer, error) {
	if s.K == gguf.TypeF16 && s.V == gguf.TypeF16 {
		_, err := store(s.K, k, "keys", layer, head)
		return nil, err
	}
	row := s.KeyRow()
	if !s.turns[layer] {
		row.Hadamard = 0
	}
	pairs, d := s.cfg.PairsIn(layer), s.cfg.Layers[layer].HeadDim
	row.ToCacheBasis(k, d, pairs)
	stored, err := store(s.K, k, "keys", layer, head)
	if err != nil {
		return nil, err
	}
	q := &stockScorer{d: d, width: d, row: row, pairs: pairs, query: queryType(s.K)}
	if q.query == gguf.TypeQ8_1 {
		q.packWithMinima(s.K, stored, k)
	} else {
		q.keys.PackRows(len(k)/q.d, q.d, k, q.d, 1)
	}
	if s.halfSums() {
		return &halfSummer{stockScorer: q}, nil
	}
	return q, nil
}

// queryType is what llama.cpp's CPU backend rounds queries to for keys of type k.
func queryType(k gguf.Type) gguf.Type {
	switch k {
	case gguf.TypeF16, gguf.TypeBF16:
		return k
	case gguf.TypeQ4_1, gguf.TypeQ5_1:
		return gguf.TypeQ8_1
	case gguf.TypeMLX4, gguf.TypeMLX8: // products are computed with queries as they are
		return gguf.TypeF32
	}
	return gguf.TypeQ8_0
}
