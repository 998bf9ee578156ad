// Package measure times the kernels against each other and against the limits of
// the machine, in one run: what "phaseconv bench" prints. What is compared takes
// turns, and scores and bandwidth are timed in short pieces of which the best count,
// so that their ratios hold on a machine that does other work. Products of large
// matrices cannot be cut that way and need an idle machine.
package measure

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/phaseconv/phaseconv/kernels/gemm"
	"github.com/phaseconv/phaseconv/kernels/halfdot"
	"github.com/phaseconv/phaseconv/kernels/onebit"
)

// Options of Run. The zero value stands for the defaults that it names.
type Options struct {
	Threads int           // of matrix products; 0: GOMAXPROCS. Scores use one.
	Time    time.Duration // for each group of entries that take turns; 0: 1 s
	Keys    []int         // numbers of keys to score; nil: DefaultKeys
	Dims    []int         // head_dims, multiples of 64; nil: 128
	// Contexts are tokens in the cache of a decode step; nil: DefaultContexts.
	Contexts []int
	Layer    LayerShape // of the decode step; without KVHeads: DefaultLayer
	// Progress, if set, is called before each group.
	Progress func(group string)
}

// DefaultKeys are numbers of keys whose binary16 form fits in a large cache and
// whose 1-bit form fits in none.
var DefaultKeys = []int{100_000, 4_000_000}

// Result is what a run measured. Times are those of undisturbed passes: the best of
// many, piece by piece.
type Result struct {
	OS        string      `json:"os"`
	Arch      string      `json:"arch"`
	Tier      string      `json:"gemm_tier"`
	Threads   int         `json:"threads"`
	Peak      float64     `json:"peak_gflops"` // multiply-adds in registers, all threads
	Peak1     float64     `json:"peak_gflops_one_thread"`
	Bandwidth []Bandwidth `json:"read_bandwidth"`
	Products  []Product   `json:"gemm"`
	Scores    []Score     `json:"scores"`
	Layer     LayerShape  `json:"decode_layer"`
	Steps     []Step      `json:"decode_steps"`
}

// Bandwidth is how fast one buffer per thread is read again and again.
type Bandwidth struct {
	Bytes   int     `json:"bytes_per_thread"`
	Threads int     `json:"threads"`
	GBs     float64 `json:"gb_per_s"`
}

// Product is a matrix product C[m,n] = A[m,k] W[n,k]^T.
type Product struct {
	Shape
	GFLOPS float64 `json:"gflops"`
	Share  float64 `json:"share_of_peak"`
	// WeightGBs is how fast the weights pass by: the limit where m is 1.
	WeightGBs float64 `json:"weight_gb_per_s"`
}

// Intensity is the product's operations per byte of its operands.
func (p *Product) Intensity() float64 {
	m, n, k := float64(p.M), float64(p.N), float64(p.K)
	return 2 * m * n * k / (4 * (m*n + n*k + m*k))
}

// Score is the scoring of keys in one format.
type Score struct {
	Format string  `json:"format"` // F16, Q8_0, Q4_0 or 1-bit
	Keys   int     `json:"keys"`
	Dim    int     `json:"head_dim"`
	Heads  int     `json:"heads"`          // queries per pass over the keys
	Ns     float64 `json:"ns_per_key"`     // and head
	Bytes  float64 `json:"bytes_per_key"`  // read once for all heads
	GBs    float64 `json:"gb_per_s"`       // of keys
	Ratio  float64 `json:"speed_over_f16"` // per key and head
}

// Intensity is the operations that the score stands for (a multiplication and an
// addition per number) per byte read.
func (s *Score) Intensity() float64 { return float64(2*s.Dim*s.Heads) / s.Bytes }

// GFLOPS is the rate of these operations.
func (s *Score) GFLOPS() float64 { return float64(2*s.Dim) / s.Ns }

// A Shape is a matrix product of a model.
type Shape struct {
	Model   string `json:"model"`
	Name    string `json:"name"`
	M, N, K int
}

// Shapes returns the products that are measured: the linear layers of three models
// for a window of 512 tokens, and two for few tokens.
func Shapes() []Shape {
	return []Shape{
		{"SmolLM2-135M", "q, o", 512, 576, 576},
		{"SmolLM2-135M", "k, v", 512, 192, 576},
		{"SmolLM2-135M", "gate, up", 512, 1536, 576},
		{"SmolLM2-135M", "down", 512, 576, 1536},
		{"Qwen2.5-0.5B", "q, o", 512, 896, 896},
		{"Qwen2.5-0.5B", "k, v", 512, 128, 896},
		{"Qwen2.5-0.5B", "gate, up", 512, 4864, 896},
		{"Qwen2.5-0.5B", "down", 512, 896, 4864},
		{"Llama-2-7B", "q, k, v, o", 512, 4096, 4096},
		{"Llama-2-7B", "gate, up", 512, 11008, 4096},
		{"Llama-2-7B", "down", 512, 4096, 11008},
		{"Llama-2-7B", "q of 8 tokens", 8, 4096, 4096},
		{"Llama-2-7B", "q of 1 token", 1, 4096, 4096},
	}
}

// bufferSizes are the buffers that bandwidth is measured on, powers of two in bytes.
var bufferSizes = []int{16 << 10, 512 << 10, 8 << 20, 256 << 20}

// Run measures everything, until ctx ends.
func Run(ctx context.Context, o Options) (*Result, error) {
	if o.Threads <= 0 {
		o.Threads = runtime.GOMAXPROCS(0)
	}
	if o.Time <= 0 {
		o.Time = time.Second
	}
	if o.Keys == nil {
		o.Keys = DefaultKeys
	}
	if o.Dims == nil {
		o.Dims = []int{128}
	}
	if o.Contexts == nil {
		o.Contexts = DefaultContexts
	}
	if o.Layer.KVHeads == 0 {
		o.Layer = DefaultLayer()
	}
	step := func(group string) error {
		if o.Progress != nil {
			o.Progress(group)
		}
		return context.Cause(ctx)
	}
	r := &Result{OS: runtime.GOOS, Arch: runtime.GOARCH, Tier: gemm.Tier(), Threads: o.Threads}
	r.Layer = o.Layer
	if err := step("peak and bandwidth"); err != nil {
		return nil, err
	}
	d := min(o.Time/4, longestPeak)
	r.Peak1 = gemm.Peak(1, d) / 1e9
	r.Peak = gemm.Peak(o.Threads, d) / 1e9
	r.Bandwidth = bandwidths(ctx, o.Threads, o.Time/8)
	for _, s := range Shapes() {
		if err := step("matrix product of " + s.Model + ": " + s.Name); err != nil {
			return nil, err
		}
		r.Products = append(r.Products, timeProduct(ctx, s, o))
	}
	for _, dim := range o.Dims {
		for _, n := range o.Keys {
			if err := step("scores of keys"); err != nil {
				return nil, err
			}
			r.Scores = append(r.Scores, timeScores(ctx, n, dim, o.Time)...)
		}
	}
	for _, n := range o.Contexts {
		for _, group := range o.Layer.Groups {
			if err := step(fmt.Sprintf("decode step with %d tokens, %d query heads", n, o.Layer.KVHeads*group)); err != nil {
				return nil, err
			}
			run, err := newStepRun(ctx, o.Layer, n, group)
			if err != nil {
				return nil, err
			}
			r.Steps = append(r.Steps, run.time(ctx, o.Time)...)
		}
	}
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	return r, nil
}

// longestPeak bounds the measurement of a peak, which cannot be interrupted and is the best of many
// short pieces.
const longestPeak = 500 * time.Millisecond

// bandwidths measures buffers of all sizes, until ctx ends.
func bandwidths(ctx context.Context, most int, d time.Duration) (out []Bandwidth) {
	for _, size := range bufferSizes {
		for _, threads := range slices.Compact([]int{1, most}) {
			if ctx.Err() != nil {
				return out
			}
			out = append(out, Bandwidth{size, threads, readRate(ctx, size, threads, d) / 1e9})
		}
	}
	return out
}

// chunk is the piece that the assembly reads at once; buffers are multiples of it.
const chunk = 512

// readGeneric reads b, a multiple of eight bytes.
func readGeneric(b []byte) uint64 {
	var s [4]uint64
	for ; len(b) >= 32; b = b[32:] {
		s[0] ^= binary.LittleEndian.Uint64(b)
		s[1] ^= binary.LittleEndian.Uint64(b[8:])
		s[2] ^= binary.LittleEndian.Uint64(b[16:])
		s[3] ^= binary.LittleEndian.Uint64(b[24:])
	}
	return s[0] ^ s[1] ^ s[2] ^ s[3]
}

// readRate returns the bytes per second at which threads read a buffer each. Once ctx has
// ended it returns something else, soon.
func readRate(ctx context.Context, size, threads int, d time.Duration) float64 {
	rates := make([]float64, threads)
	sums := make([]uint64, threads)
	var ready, done sync.WaitGroup
	ready.Add(threads)
	for i := range threads {
		done.Go(func() {
			b := make([]byte, size)
			for j := range b {
				b[j] = byte(j >> 7) // pages of their own, not the zero page
			}
			ready.Done()
			ready.Wait()
			// Pieces of a megabyte, each at its best, so that interruptions drop out.
			piece := min(size, 1<<20)
			passes := 1 << 20 / piece
			best := make([]float64, size/piece)
			for start, rounds := time.Now(), 0; ctx.Err() == nil && (rounds < 2 || time.Since(start) < d); rounds++ {
				for j := range best {
					t := time.Now()
					for range passes {
						sums[i] ^= read(b[j*piece:][:piece])
					}
					took := time.Since(t).Seconds() / float64(passes)
					if rounds == 0 {
						best[j] = took
					}
					best[j] = min(best[j], took)
				}
			}
			var total float64
			for _, t := range best {
				total += t
			}
			rates[i] = float64(size) / total
		})
	}
	done.Wait()
	var sum float64
	for _, r := range rates {
		sum += r
	}
	runtime.KeepAlive(sums) // or nothing need be read
	return sum
}

// product prepares a matrix product.
func product(s Shape, threads int) func() {
	r := rand.New(rand.NewPCG(1, 1))
	random := func(n int) []float32 {
		x := make([]float32, n)
		for i := range x {
			x[i] = r.Float32() - 0.5
		}
		return x
	}
	a, c := random(s.M*s.K), make([]float32, s.M*s.N)
	var w gemm.Weights
	w.PackRows(s.N, s.K, random(s.N*s.K), s.K, 0)
	return func() { gemm.Mul(c, s.N, a, s.K, s.M, &w, threads) }
}

func timeProduct(ctx context.Context, s Shape, o Options) Product {
	run := product(s, o.Threads)
	flop := 2 * float64(s.M) * float64(s.N) * float64(s.K)
	p := Product{Shape: s}
	best, peak := math.Inf(1), 0.0
	run()
	for start, rounds := time.Now(), 0; ctx.Err() == nil && (time.Since(start) < o.Time || rounds < 3); rounds++ {
		// The clock of the machine moves, so the peak takes turns with the product.
		peak = max(peak, gemm.Peak(o.Threads, time.Millisecond))
		t := time.Now()
		run()
		best = min(best, time.Since(t).Seconds())
	}
	p.GFLOPS, p.Share = flop/best/1e9, flop/best/peak
	p.WeightGBs = 4 * float64(s.N) * float64(s.K) / best / 1e9
	return p
}

// An entry is one way of scoring keys.
type entry struct {
	Score
	run  func(from, to int) // scores keys [from, to); from is a multiple of segment
	best []float64          // seconds of each segment
}

// segment is how many keys are timed at once: few enough that some passes over them
// are not interrupted, however busy the machine is.
const segment = 4096

// heads are the numbers of queries per pass that 1-bit keys are scored for.
var heads = []int{1, 2, 4, 8}

// scoreEntries prepares n keys of dim numbers in every format; the first entry is
// the one that others are compared with.
func scoreEntries(n, dim int) []*entry {
	r := rand.New(rand.NewPCG(1, 1))
	q := make([]float32, heads[len(heads)-1]*dim)
	for i := range q {
		q[i] = float32(r.NormFloat64())
	}
	// Scores of a segment stay in cache, where attention in blocks uses them up; what is
	// to be read from memory is keys.
	out := make([]float32, heads[len(heads)-1]*segment)
	var entries []*entry
	add := func(format string, heads int, bytes float64, run func(from, to int)) {
		entries = append(entries, &entry{Score: Score{Format: format, Keys: n, Dim: dim, Heads: heads, Bytes: bytes},
			run: run})
	}
	half := slices.Repeat([]uint16{0x3c00}, n*dim)
	add("F16", 1, float64(2*dim), func(from, to int) { halfdot.Score(out, q[:dim], half[from*dim:], to-from) })
	var query halfdot.Query
	query.Set(q[:dim])
	// Any bytes will do that give no NaN: 0x3c3c is about 1.
	size8, size4 := dim/halfdot.BlockLen*halfdot.BytesQ8, dim/halfdot.BlockLen*halfdot.BytesQ4
	q8, q4 := slices.Repeat([]byte{0x3c}, n*size8), slices.Repeat([]byte{0x3c}, n*size4)
	add("Q8_0", 1, float64(size8), func(from, to int) { halfdot.ScoreQ8(out, &query, q8[from*size8:], to-from) })
	add("Q4_0", 1, float64(size4), func(from, to int) { halfdot.ScoreQ4(out, &query, q4[from*size4:], to-from) })
	bits := make([]uint32, onebit.Len(n, dim))
	for i := range bits {
		bits[i] = r.Uint32()
	}
	scales := slices.Repeat([]uint16{0x3c00}, n)
	for _, h := range heads {
		var t onebit.Tables
		add("1-bit", h, float64(dim)/8+2, func(from, to int) {
			if from == 0 {
				t.Build(q, dim, h, dim) // once per pass is part of the work
			}
			onebit.Score(out, segment, &t, bits[onebit.Len(from, dim):], scales[from:], to-from, nil)
		})
	}
	return entries
}

func timeScores(ctx context.Context, n, dim int, d time.Duration) []Score {
	entries := scoreEntries(n, dim)
	for start, rounds := time.Now(), 0; time.Since(start) < d || rounds < 5; rounds++ {
		for _, e := range entries {
			if ctx.Err() != nil {
				return nil
			}
			for i, from := 0, 0; from < n; i, from = i+1, from+segment {
				t := time.Now()
				e.run(from, min(n, from+segment))
				took := time.Since(t).Seconds()
				if rounds == 0 {
					e.best = append(e.best, took)
				}
				e.best[i] = min(e.best[i], took)
			}
		}
	}
	var scores []Score
	for _, e := range entries {
		for _, s := range e.best {
			e.Ns += 1e9 * s / float64(n*e.Heads)
		}
		e.Ratio = entries[0].Ns / e.Ns
		e.GBs = e.Bytes / e.Ns / float64(e.Heads)
		scores = append(scores, e.Score)
	}
	return scores
}

// Memory returns the bandwidth of the largest buffer, in GB/s.
func (r *Result) Memory(threads int) float64 {
	var size int
	var rate float64
	for _, b := range r.Bandwidth {
		if b.Threads == threads && b.Bytes >= size {
			size, rate = b.Bytes, b.GBs
		}
	}
	return rate
}
