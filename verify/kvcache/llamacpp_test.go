package kvcache

import (
	"bufio"
	"bytes"
	"fmt"
	"hash/fnv"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/format/dtype"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/kernels/fmath"
	"github.com/phaseconv/phaseconv/kernels/gemm"
	"github.com/phaseconv/phaseconv/kernels/linalg"
	"github.com/phaseconv/phaseconv/kernels/rope"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

func stockConfig(d int) *family.Config {
	return codedConfig(2, d)
}

func stock(t testing.TB, d int, k, v string, rotation bool) *LlamaCpp {
	t.Helper()
	kt, err := ParseStockType(k)
	if err != nil {
		t.Fatal(err)
	}
	vt, err := ParseStockType(v)
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewLlamaCpp(stockConfig(d), CacheTypes{kt, vt, rotation})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// filled is fill of scripts/oracles/stock_attention.c.
func filled(rows, d int, state uint32) []float32 {
	x := make([]float32, rows*d)
	for i := range x {
		sum := int32(0)
		for range 4 {
			state = state*1664525 + 1013904223
			sum += int32(state >> 16)
		}
		x[i] = float32(sum-131070) / 32768
		if i%d%13 == 5 {
			x[i] *= 3
		}
	}
	return x
}

// attended computes causal attention of T queries, one head, through a cache,
// the way refmodel does. k and v are overwritten.
func attended(t testing.TB, s *LlamaCpp, q, k, v []float32, d int) []float32 {
	t.Helper()
	T := len(q) / d
	scorer, err := s.Keys(1, 0, k)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Values(1, 0, v); err != nil {
		t.Fatal(err)
	}
	if scorer == nil {
		plain := &decoded{d: d}
		plain.coded.PackRows(T, d, k, d, 1)
		scorer = plain
	}
	p, out := make([]float32, T*T), make([]float32, T*d)
	scorer.Score(refmodel.Tile{Dst: p, LD: T, Q: q, LDQ: d, Rows: T, To: T})
	for i := range T {
		fmath.Softmax(p[i*T:i*T+i+1], float32(1/math.Sqrt(float64(d))))
		clear(p[i*T+i+1 : (i+1)*T])
	}
	if sum, ok := scorer.(refmodel.Summer); ok {
		sum.Sum(out, d, p, T, v, T, 0, 0)
		return out
	}
	var w gemm.Weights
	w.PackT(d, T, v, d, 1)
	gemm.Mul(out, d, p, T, T, &w, 1)
	return out
}

// rel is |a-b| / |b| over all numbers.
func rel(a, b []float32) float64 {
	var d, n float64
	for i := range b {
		d += float64(a[i]-b[i]) * float64(a[i]-b[i])
		n += float64(b[i]) * float64(b[i])
	}
	return math.Sqrt(d / n)
}

// TestStockGolden compares with ggml's own attention: the stored rows bit by
// bit, the output up to the rounding of float32 sums.
func TestStockGolden(t *testing.T) {
	raw, err := os.ReadFile("testdata/stock.txt")
	if err != nil {
		t.Fatal(err)
	}
	lines := 0
	for in := bufio.NewScanner(bytes.NewReader(raw)); in.Scan(); lines++ {
		var k, v, kHash, vHash, out string
		var d, T, hk, hv int
		if _, err := fmt.Sscan(in.Text(), &k, &v, &d, &T, &hk, &hv, &kHash, &vHash, &out); err != nil {
			t.Fatal(err)
		}
		t.Run(fmt.Sprintf("%s/%s/%d", k, v, hk+hv), func(t *testing.T) {
			s := stock(t, d, k, v, hk+hv > 0)
			if s.RotationK() != hk || s.RotationV() != hv {
				t.Fatalf("rotations of %d and %d, want %d and %d", s.RotationK(), s.RotationV(), hk, hv)
			}
			q, keys, vals := filled(T, d, 1), filled(T, d, 2), filled(T, d, 3)
			for _, x := range []struct {
				t    gguf.Type
				n    int
				x    []float32
				want string
			}{{s.K, hk, keys, kHash}, {s.V, hv, vals, vHash}} {
				y := slices.Clone(x.x)
				linalg.Hadamard(y, x.n)
				stored, err := store(x.t, y, "", 0, 0)
				if err != nil {
					t.Fatal(err)
				}
				h := fnv.New64a()
				h.Write(stored)
				if got := fmt.Sprintf("%016x", h.Sum64()); got != x.want {
					t.Errorf("stored rows of %s have hash %s, ggml's %s", TypeName(x.t), got, x.want)
				}
			}
			var want []float32
			for i := 0; i+8 <= len(out); i += 8 {
				b, err := strconv.ParseUint(out[i:i+8], 16, 32)
				if err != nil {
					t.Fatal(err)
				}
				want = append(want, math.Float32frombits(uint32(b)))
			}
			got := attended(t, s, q, keys, vals, d)[(T-2)*d:]
			// ggml adds 200 products of probabilities and values one after another, which
			// costs some 1e-6. Where the sum is rounded to F16, a difference of 1e-7 can
			// bring a number to the other side of a tie, 2^-11 of it away.
			limit := 5e-6
			if s.halfSums() {
				limit = 1e-4
			}
			if e := rel(got, want); !(e < limit) {
				t.Errorf("output differs by %.2g, limit %.2g", e, limit)
			} else {
				t.Logf("output differs by %.2g", e)
			}
		})
	}
	if lines < 20 {
		t.Fatalf("%d cases", lines)
	}
}

// Each part of the arithmetic must be visible to TestStockGolden: leaving it out
// moves the output by far more than that test allows.
func TestStockPartsMatter(t *testing.T) {
	const d, T = 128, 200
	run := func(s *LlamaCpp, change func(refmodel.Scorer) refmodel.Scorer) []float32 {
		q, k, v := filled(T, d, 1), filled(T, d, 2), filled(T, d, 3)
		scorer, err := s.Keys(0, 0, k)
		if err != nil {
			t.Fatal(err)
		}
		p, out := make([]float32, T*T), make([]float32, T*d)
		change(scorer).Score(refmodel.Tile{Dst: p, LD: T, Q: q, LDQ: d, Rows: T, To: T})
		for i := range T {
			fmath.Softmax(p[i*T:i*T+i+1], float32(1/math.Sqrt(d)))
			clear(p[i*T+i+1 : (i+1)*T])
		}
		if sum, ok := change(scorer).(refmodel.Summer); ok {
			sum.Sum(out, d, p, T, v, T, 0, 0)
			return out
		}
		var w gemm.Weights
		w.PackT(d, T, v, d, 1)
		gemm.Mul(out, d, p, T, T, &w, 1)
		return out
	}
	same := func(s refmodel.Scorer) refmodel.Scorer { return s }
	for _, c := range []struct {
		name, k, v string
		change     func(refmodel.Scorer) refmodel.Scorer
		least      float64
	}{
		{"queries rounded to Q8_0", "q8_0", "q8_0", func(s refmodel.Scorer) refmodel.Scorer {
			x := *s.(*stockScorer)
			x.query = gguf.TypeF16
			return &x
		}, 1e-3},
		{"sums rounded to F16", "q8_0", "f16", func(s refmodel.Scorer) refmodel.Scorer { return s.(*halfSummer).stockScorer },
			4e-4},
		{"sums of Q8_1 blocks", "q4_1", "q4_1", func(s refmodel.Scorer) refmodel.Scorer {
			x := *s.(*stockScorer)
			return cut{&x}
		}, 1e-5},
	} {
		s := stock(t, d, c.k, c.v, false)
		if e := rel(run(s, c.change), run(s, same)); e < c.least {
			t.Errorf("%s: leaving it out moves the output by only %.2g", c.name, e)
		} else {
			t.Logf("%s: %.2g", c.name, e)
		}
	}
}

// cut forgets the columns beside the numbers.
type cut struct{ *stockScorer }

func (s cut) Score(t refmodel.Tile) {
	rows := make([]float32, t.Rows*s.width)
	for r := range t.Rows {
		row := rows[r*s.width : (r+1)*s.width]
		copy(row, t.Q[r*t.LDQ:r*t.LDQ+s.d])
		s.round(row)
		clear(row[s.d:])
	}
	t.Q, t.LDQ = rows, s.width
	t.Product(&s.keys, s.width)
}

func TestHadamard(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{64, 128, 256} {
		x := make([]float32, 2*n)
		for i := range x {
			x[i] = float32(rng.NormFloat64())
		}
		y := slices.Clone(x)
		linalg.Hadamard(y, n)
		// Against the definition: entry (i, j) is (-1)^popcount(i&j) / sqrt(n).
		for i := range x {
			var want float64
			for j := range n {
				sign := 1.0
				for b := i % n & j; b != 0; b &= b - 1 {
					sign = -sign
				}
				want += sign * float64(x[i/n*n+j])
			}
			if want /= math.Sqrt(float64(n)); math.Abs(want-float64(y[i])) > 1e-5 {
				t.Fatalf("size %d, number %d: %g, want %g", n, i, y[i], want)
			}
		}
		linalg.Hadamard(y, n)
		if e := rel(y, x); e > 1e-6 {
			t.Errorf("size %d: twice differs from the identity by %g", n, e)
		}
	}
	x := []float32{1, 2, 3}
	linalg.Hadamard(x, 0)
	if !slices.Equal(x, []float32{1, 2, 3}) {
		t.Error("size 0 changed the numbers")
	}
}

func TestStockConditions(t *testing.T) {
	for _, c := range []struct {
		d        int
		k, v     string
		rotation bool
		hk, hv   int
	}{
		{64, "q8_0", "q4_0", true, 64, 64},
		{128, "q4_0", "f16", true, 128, 0},
		{256, "f16", "q4_0", true, 0, 64},
		{256, "q5_1", "iq4_nl", true, 256, 64},
		{192, "q8_0", "q8_0", true, 64, 64}, // 64 is the largest power of two in 192
		{320, "q8_0", "q8_0", true, 64, 64},
		{96, "q8_0", "q8_0", true, 0, 0}, // no multiple of 64
		{128, "q8_0", "q8_0", false, 0, 0},
		{128, "bf16", "f16", true, 0, 0},
	} {
		s := stock(t, c.d, c.k, c.v, c.rotation)
		if s.RotationK() != c.hk || s.RotationV() != c.hv {
			t.Errorf("%+v: rotations %d and %d", c, s.RotationK(), s.RotationV())
		}
	}
	for _, c := range []struct {
		d    int
		k, v gguf.Type
		want string
	}{
		{80, gguf.TypeQ8_0, gguf.TypeF16, "K cache of type q8_0: its blocks of 32"},
		{64, gguf.TypeF16, gguf.TypeQ1_0, "V cache of type q1_0: its blocks of 128"},
		{64, gguf.TypeQ4_K, gguf.TypeF16, `"q4_k" is not a cache type`},
		{64, gguf.TypeF16, gguf.Type(99), "is not a cache type"},
	} {
		if _, err := NewLlamaCpp(stockConfig(c.d), CacheTypes{c.k, c.v, true}); err == nil ||
			!strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	// Two layers of one head of 128: 256 numbers of each kind.
	for pair, want := range map[[2]string]int{{"f16", "f16"}: 1024, {"q8_0", "q4_0"}: 272 + 144,
		{"q1_0", "q5_1"}: 36 + 192} {
		if got := stock(t, 128, pair[0], pair[1], true).BytesPerToken(); got != want {
			t.Errorf("%v: %d bytes a token, want %d", pair, got, want)
		}
	}
	names := StockTypes()
	if len(names) != 9 || names[0] != "q1_0" || names[8] != "f16" {
		t.Error(names)
	}
}

// A key or value that is no number is refused with its place, and a query that
// is none gives scores that are none.
func TestStockNotFinite(t *testing.T) {
	s := stock(t, 64, "q4_0", "q4_0", true)
	bad := make([]float32, 128)
	bad[70] = float32(math.Inf(1))
	if _, err := s.Keys(1, 1, slices.Clone(bad)); err == nil ||
		!strings.Contains(err.Error(), "keys of layer 1, KV head 1") {
		t.Error(err)
	}
	if err := s.Values(0, 1, slices.Clone(bad)); err == nil || !strings.Contains(err.Error(), "values of layer 0") {
		t.Error(err)
	}
	scorer, err := s.Keys(0, 0, filled(2, 64, 1))
	if err != nil {
		t.Fatal(err)
	}
	dst := make([]float32, 4)
	scorer.Score(refmodel.Tile{Dst: dst, LD: 2, Q: bad, LDQ: 64, Rows: 2, To: 2})
	if dst[1] != dst[1] || dst[2] == dst[2] || dst[3] == dst[3] {
		t.Errorf("scores %v, want numbers in the first row only", dst)
	}
}

func TestRoundHalf(t *testing.T) {
	// Distances are compared, so that either neighbour is right on a tie.
	check := func(x float32) {
		t.Helper()
		got, want := roundHalf(x), dtype.F16Round(x)
		if d := float64(got) - float64(x); dtype.F16Round(got) != got || math.Abs(d) != math.Abs(float64(want)-float64(x)) {
			t.Fatalf("roundHalf(%g) = %g, want %g", x, got, want)
		}
	}
	rng := rand.New(rand.NewPCG(5, 5))
	for range 200000 { // exponents -30 to 14
		check(math.Float32frombits(rng.Uint32()&0x807fffff | (97+rng.Uint32N(45))<<23))
	}
	for h := range uint32(0x7bff) { // all ties, and their neighbours
		a, b := dtype.F16ToF32(uint16(h)), dtype.F16ToF32(uint16(h+1))
		mid := a + (b-a)/2
		for _, x := range []float32{a, mid, math.Nextafter32(mid, 1e9), math.Nextafter32(mid, -1)} {
			check(x)
			check(-x)
		}
	}
}

// Scores do not depend on how many queries are asked at a time.
func TestStockScoreBlocks(t *testing.T) {
	const d, T = 64, 40
	for _, k := range []string{"q4_1", "q4_0", "bf16"} {
		s := stock(t, d, k, "q4_0", true)
		q := filled(T, d, 9)
		scorer, err := s.Keys(0, 0, filled(T, d, 4))
		if err != nil {
			t.Fatal(err)
		}
		all, one := make([]float32, T*T), make([]float32, T*T)
		scorer.Score(refmodel.Tile{Dst: all, LD: T, Q: q, LDQ: d, Rows: T, To: T})
		for i := range T {
			scorer.Score(refmodel.Tile{Dst: one[i*T:], LD: T, Q: q[i*d:], LDQ: d, Rows: 1, Pos: i, To: T})
		}
		if !slices.Equal(all, one) {
			t.Errorf("%s: scores depend on the number of queries in a call", k)
		}
	}
}

func BenchmarkStock(b *testing.B) {
	const d, T = 64, 512
	for _, pair := range [][2]string{{"f16", "f16"}, {"q8_0", "q8_0"}, {"q4_1", "q4_1"}, {"q8_0", "f16"}} {
		b.Run(fmt.Sprintf("k=%s/v=%s", pair[0], pair[1]), func(b *testing.B) {
			s := stock(b, d, pair[0], pair[1], true)
			q, k, v := filled(T, d, 1), filled(T, d, 2), filled(T, d, 3)
			b.SetBytes(2 * T * T * d * 4)
			for b.Loop() {
				attended(b, s, q, slices.Clone(k), slices.Clone(v), d)
			}
		})
	}
}

// TestStockOrder: a checkpoint whose pairs lie apart measures what the GGUF file does
// that is made of it, in which they are neighbours: blocks and Hadamard matrices take in
// other numbers there.
func TestStockOrder(t *testing.T) {
	const d, T = 64, 40
	r := rand.New(rand.NewPCG(4, 2))
	k, q := make([]float32, T*d), make([]float32, T*d)
	for i := range k {
		// Large numbers in the first pairs, so that order matters.
		k[i], q[i] = float32(r.NormFloat64()*math.Exp(float64(-i%(d/2))/8)), float32(r.NormFloat64())
	}
	reordered := func(x []float32) []float32 {
		y := make([]float32, len(x))
		for i, v := range x {
			y[i/d*d+rope.Half.Index(rope.Interleaved, i%d, d)] = v
		}
		return y
	}
	scores := func(cfg *family.Config, typ gguf.Type, k, q []float32) []float32 {
		t.Helper()
		s, err := NewLlamaCpp(cfg, CacheTypes{typ, gguf.TypeF16, true})
		if err != nil {
			t.Fatal(err)
		}
		scorer, err := s.Keys(0, 0, slices.Clone(k))
		if err != nil {
			t.Fatal(err)
		}
		out := make([]float32, T*T)
		scorer.Score(refmodel.Tile{Dst: out, LD: T, Q: q, LDQ: d, Rows: T, To: T})
		return out
	}
	of := func(f *family.Family, pairs rope.Layout) *family.Config {
		c := codedConfig(1, d)
		c.Family, c.Pairs = f, pairs
		return c
	}
	llama := &family.Family{GGUFPairs: rope.Interleaved}
	for _, typ := range []gguf.Type{gguf.TypeQ4_0, gguf.TypeQ8_0, gguf.TypeQ4_1} {
		file := scores(of(llama, rope.Interleaved), typ, reordered(k), reordered(q))
		checkpoint := scores(of(llama, rope.Half), typ, k, q)
		if !slices.Equal(file, checkpoint) {
			t.Errorf("%v: the checkpoint scores otherwise than its file", typ)
		}
		other := scores(of(&family.Family{}, rope.Half), typ, k, q)
		if slices.Equal(file, other) {
			t.Errorf("%v: the order does not matter to the test", typ)
		}
	}
}
