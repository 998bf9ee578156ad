package codec_test

import (
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/phaseconv/phaseconv/format/dtype"
	"github.com/phaseconv/phaseconv/internal/keydata"
	"github.com/phaseconv/phaseconv/kernels/linalg"
	"github.com/phaseconv/phaseconv/rotations/codec"
)

// TestScoreIdentity: q.k_hat = q.mean + alpha (M^T q).s, which a runtime relies on
// when it transforms the query instead of decoding keys.
func TestScoreIdentity(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for _, d := range []int{16, 40} {
		for name, c := range codes(t, r, d) {
			keys := keydata.Keyish(r, 20, d)
			words, hat := make([]uint32, c.Words()), make([]float32, d)
			for i := 0; i < len(keys); i += d {
				alpha := c.EncodeKey(keys[i:i+d], words)
				c.DecodeKey(hat, words, alpha)
				q := keydata.Normal(r, d)
				var direct, fast, bound float64
				for j := range d {
					direct += float64(q[j]) * float64(hat[j])
					fast += float64(q[j]) * float64(c.Mean[j])
					bound += math.Abs(float64(q[j])) * math.Abs(float64(c.Mean[j]))
				}
				smallest := math.Inf(1)
				for k := range c.B {
					var mq float64
					for j, v := range c.Decode[k*d : (k+1)*d] {
						mq += float64(v) * float64(q[j])
						bound += float64(alpha) * math.Abs(float64(v)*float64(q[j]))
					}
					fast += float64(alpha) * mq * signOf(words, k)
					smallest = min(smallest, 2*float64(alpha)*math.Abs(mq))
				}
				// Decoding adds b float32 numbers and rounds twice more.
				tol := bound * float64(c.B+2) * (1.0 / (1 << 24))
				if e := math.Abs(direct - fast); !(e <= tol) {
					t.Errorf("%s: %g and %g differ by %.2g, allowed %.2g", name, direct, fast, e, tol)
				}
				// The check can fail: the sum without the mean is another number.
				if c.Kind == "cen" && i == 0 {
					fast -= linalg.Dot64(q, c.Mean)
					if math.Abs(direct-fast) <= tol {
						t.Errorf("%s: the check does not see a missing mean", name)
					}
				}
			}
		}
	}
}

// TestSignRule: for an orthonormal basis the signs are those of the turned key
// and the scale is the mean of its absolute values.
func TestSignRule(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 2))
	for _, d := range []int{16, 64} {
		for name, c := range codes(t, r, d, "raw", "cen", "srht", "random", "learned") {
			if !c.Orthonormal() {
				t.Fatal(name)
			}
			keys := keydata.Keyish(r, 50, d)
			words := make([]uint32, c.Words())
			decided := 0
			for i := 0; i < len(keys); i += d {
				alpha := c.EncodeKey(keys[i:i+d], words)
				var mean, norm float64
				for j := range d {
					x := float64(keys[i+j]) - float64(c.Mean[j])
					norm += x * x
				}
				norm = math.Sqrt(norm)
				for k := range c.B {
					var z float64
					for j := range d {
						z += float64(c.Decode[k*d+j]) * (float64(keys[i+j]) - float64(c.Mean[j]))
					}
					mean += math.Abs(z) / float64(d)
					// Subtracting the mean and d products in float32 may turn a sign
					// below this size.
					if math.Abs(z) < 1e-6*float64(d)*norm {
						continue
					}
					decided++
					if signOf(words, k) != math.Copysign(1, z) {
						t.Errorf("%s: sign %d of %g", name, k, z)
					}
				}
				// Half a unit of binary16 in the last place, and the float32 sums.
				if e := math.Abs(float64(alpha)/(mean*float64(c.Gain)) - 1); !(e < 1.0/2048+1e-5) {
					t.Errorf("%s: scale %g, mean |z| %g", name, alpha, mean)
				}
			}
			if decided < 40*d {
				t.Errorf("%s: only %d signs were checked", name, decided)
			}
		}
	}
}

// quality64 returns (s.z)^2 / s^T G s in float64 from the public matrices, and its
// parts z and G.
type problem struct {
	b    int
	z, g []float64
}

func newProblem(c *codec.Code, k []float32) *problem {
	p := &problem{b: c.B, z: make([]float64, c.B), g: make([]float64, c.B*c.B)}
	for i := range c.B {
		for j := range c.D {
			p.z[i] += float64(c.Encode[i*c.D+j]) * (float64(k[j]) - float64(c.Mean[j]))
		}
		for j := range c.B {
			p.g[i*c.B+j] = (linalg.Dot64(c.Encode[i*c.D:(i+1)*c.D],
				c.Decode[j*c.D:(j+1)*c.D]) + linalg.Dot64(c.Encode[j*c.D:(j+1)*c.D], c.Decode[i*c.D:(i+1)*c.D])) / 2
		}
	}
	return p
}

func (p *problem) quality(s []float64) (num, den float64) {
	for i, x := range s {
		num += x * p.z[i]
		for j, y := range s {
			den += x * y * p.g[i*p.b+j]
		}
	}
	return num, den
}

// TestLocalOptimum: no single flip improves what the encoder of a frame found,
// and its scale is the best for its signs, times the gain.
func TestLocalOptimum(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	better := 0
	for _, d := range []int{16, 32} {
		for name, c := range codes(t, r, d, "frame") {
			keys := keydata.Keyish(r, 30, d)
			words := make([]uint32, c.Words())
			for i := 0; i < len(keys); i += d {
				p := newProblem(c, keys[i:i+d])
				alpha := c.EncodeKey(keys[i:i+d], words)
				s := make([]float64, c.B)
				for j := range s {
					s[j] = signOf(words, j)
				}
				num, den := p.quality(s)
				if e := math.Abs(float64(alpha)*den/(num*float64(c.Gain)) - 1); !(e < 1.0/2048+1e-5) {
					t.Errorf("%s: scale %g, best %g", name, alpha, num/den)
				}
				for j := range s {
					s[j] = -s[j]
					n, dd := p.quality(s)
					// G s is kept in float32 while signs flip, so a gain below its
					// rounding goes unseen.
					if n*n/dd > num*num/den*(1+2e-5) {
						t.Errorf("%s, key %d: flipping sign %d raises the quality by %.2g of it", name, i/d, j, n*n/dd/(num*num/den)-1)
					}
					// The check can fail: from the flipped signs, flipping back helps.
					if n*n/dd*(1+2e-5) < num*num/den {
						better++
					}
					s[j] = -s[j]
				}
			}
		}
	}
	if better < 5000 {
		t.Errorf("only %d flips were worse", better)
	}
}

// TestExhaustive compares the encoder with the best of all 256 sign patterns of
// eight signs, on fitted frames and on random ones, which are harder.
func TestExhaustive(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 4))
	// The share of the best quality (captured energy in the metric) that the
	// encoder reaches. Measured: see the log of go test -v; bounds leave a margin.
	for _, x := range []struct {
		name        string
		d           int
		code        func(d int) *codec.Code
		mean, worst float64
	}{
		{"fitted", 8, func(d int) *codec.Code { return codes(t, r, d, "frame")["frame d=8 b=8"] }, 0.985, 0.5},
		{"fitted", 16, func(d int) *codec.Code { return codes(t, r, d, "frame")["frame d=16 b=8"] }, 0.965, 0.45},
		{"random", 4, func(d int) *codec.Code { return randomFrame(t, r, d, 8) }, 0.93, 0.3},
		{"random", 8, func(d int) *codec.Code { return randomFrame(t, r, d, 8) }, 0.93, 0.3},
		{"random", 16, func(d int) *codec.Code { return randomFrame(t, r, d, 8) }, 0.93, 0.3},
	} {
		var sum float64
		lowest, hits, n := 1.0, 0, 0
		for range 6 {
			c := x.code(x.d)
			keys := keydata.Keyish(r, 60, x.d)
			words := make([]uint32, 1)
			for i := 0; i < len(keys); i += x.d {
				p := newProblem(c, keys[i:i+x.d])
				best := 0.0
				s := make([]float64, 8)
				for bits := range 256 {
					for j := range s {
						s[j] = signOf([]uint32{uint32(bits)}, j)
					}
					if num, den := p.quality(s); den > 0 {
						best = max(best, num*num/den)
					}
				}
				c.EncodeKey(keys[i:i+x.d], words)
				for j := range s {
					s[j] = signOf(words, j)
				}
				num, den := p.quality(s)
				share := num * num / den / best
				sum, lowest, n = sum+share, min(lowest, share), n+1
				if share > 1-1e-6 {
					hits++
				}
			}
		}
		t.Logf("%s frame, d=%d, b=8: %.4f of the best on average, %.3f at worst, the best itself for %.0f %% of keys", x.name,
			x.d, sum/float64(n), lowest, 100*float64(hits)/float64(n))
		if !(sum/float64(n) > x.mean) || !(lowest > x.worst) {
			t.Errorf("%s frame, d=%d: %.4f of the best on average, %.3f at worst", x.name, x.d, sum/float64(n), lowest)
		}
	}
}

// randomFrame returns a frame of Gaussian rows of falling length, Euclidean metric.
func randomFrame(t testing.TB, r *rand.Rand, d, b int) *codec.Code {
	t.Helper()
	m := keydata.Normal(r, b*d)
	for i := range m {
		m[i] *= float32(math.Pow(0.8, float64(i/d)))
	}
	c, err := codec.New("frame", d, b, make([]float32, d), m, m)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestPadding: bits past the last sign are clear, whatever the words held.
func TestPadding(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 5))
	for _, b := range []int{8, 24, 32, 40, 64, 72} {
		c := randomFrame(t, r, 64, b)
		words := slices.Repeat([]uint32{^uint32(0)}, c.Words()+1)
		c.EncodeKey(keydata.Normal(r, 64), words[:c.Words()])
		if c.Words() != (b+31)/32 || words[c.Words()] != ^uint32(0) {
			t.Errorf("b=%d: %d words, the one behind is %x", b, c.Words(), words[c.Words()])
		}
		if b%32 != 0 && words[c.Words()-1]>>(b%32) != 0 {
			t.Errorf("b=%d: last word %x", b, words[c.Words()-1])
		}
	}
}

// TestBatch: many keys at once give the bits of one at a time, across the border
// of a batch too, and decoding likewise.
func TestBatch(t *testing.T) {
	r := rand.New(rand.NewPCG(6, 6))
	const d = 16
	n := codec.EncodeBatch + 5
	keys := keydata.Keyish(r, n, d)
	for name, c := range codes(t, r, d) {
		words, alpha, hat := make([]uint32, n*c.Words()), make([]float32, n), make([]float32, n*d)
		encode(t, c, keys, words, alpha)
		c.DecodeKeys(hat, words, alpha)
		w, h := make([]uint32, c.Words()), make([]float32, d)
		for i := 0; i < n; i += 31 {
			a := c.EncodeKey(keys[i*d:(i+1)*d], w)
			c.DecodeKey(h, w, a)
			if a != alpha[i] || !slices.Equal(w, words[i*c.Words():(i+1)*c.Words()]) || !slices.Equal(h, hat[i*d:(i+1)*d]) {
				t.Errorf("%s: key %d alone is coded in another way", name, i)
			}
		}
		encode(t, c, nil, nil, nil)
		c.DecodeKeys(nil, nil, nil)
	}
}

// TestScales: whatever the size of a key, its scale is a finite number of binary16.
func TestScales(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	const d = 16
	for name, c := range codes(t, r, d) {
		words, hat := make([]uint32, c.Words()), make([]float32, d)
		for _, size := range []float64{0, 1e-45, 1e-30, 1e-9, 1e-6, 1, 1e4, 1e6, 1e10, 1e20, 1e30} {
			for _, centred := range []bool{true, false} {
				k := keydata.Normal(r, d)
				for j := range k {
					k[j] = float32(float64(k[j]) * size)
					if centred {
						k[j] += c.Mean[j]
					}
				}
				alpha := c.EncodeKey(k, words)
				if !(alpha >= 0 && alpha <= codec.MaxAlpha) || dtype.F16Round(alpha) != alpha {
					t.Errorf("%s, keys of size %g: scale %g", name, size, alpha)
				}
				if size == 0 && centred && alpha != 0 {
					t.Errorf("%s: the mean itself has the scale %g", name, alpha)
				}
				if size == 1e30 && alpha != codec.MaxAlpha {
					t.Errorf("%s: a huge key has the scale %g", name, alpha)
				}
				c.DecodeKey(hat, words, alpha)
				if size == 0 && centred && !slices.Equal(hat, c.Mean) {
					t.Errorf("%s: the mean is read back as %v", name, hat)
				}
				for _, v := range hat {
					if v-v != 0 {
						t.Fatalf("%s, keys of size %g: read back as %v", name, size, hat)
					}
				}
			}
		}
	}
}

// TestNotFiniteKeys: what is no key is coded somehow, in finite time.
func TestNotFiniteKeys(t *testing.T) {
	r := rand.New(rand.NewPCG(8, 8))
	const d = 16
	done := make(chan bool)
	go func() {
		defer close(done)
		for _, c := range codes(t, r, d) {
			words, hat := make([]uint32, c.Words()), make([]float32, d)
			for _, bad := range []float64{math.NaN(), math.Inf(1), math.Inf(-1), math.MaxFloat32, -math.MaxFloat32} {
				for _, all := range []bool{false, true} {
					k := keydata.Normal(r, d)
					for j := range k {
						if all || j == 3 {
							k[j] = float32(bad)
						}
					}
					c.DecodeKey(hat, words, c.EncodeKey(k, words))
					measure(t, c, k)
				}
			}
		}
	}()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Fatal("encoding does not end")
	}
}

func TestNewRefuses(t *testing.T) {
	zero := func(n int) []float32 { return make([]float32, n) }
	eye := func(d int) []float32 {
		m := zero(d * d)
		for i := range d {
			m[i*d+i] = 1
		}
		return m
	}
	with := func(m []float32, i int, v float64) []float32 {
		m = slices.Clone(m)
		m[i] = float32(v)
		return m
	}
	huge := slices.Repeat([]float32{3e38}, 64)
	for _, x := range []struct {
		name                 string
		d, b                 int
		mean, decode, encode []float32
		says                 string
	}{
		{"no numbers", 0, 8, nil, nil, nil, "multiple of 8"},
		{"too many numbers", codec.MaxDim + 1, 8, zero(codec.MaxDim + 1), zero(8 * (codec.MaxDim + 1)),
			zero(8 * (codec.MaxDim + 1)), "multiple of 8"},
		{"no signs", 8, 0, zero(8), nil, nil, "multiple of 8"},
		{"odd signs", 8, 12, zero(8), zero(96), zero(96), "multiple of 8"},
		{"negative signs", 8, -8, zero(8), nil, nil, "multiple of 8"},
		{"too many signs", 512, codec.MaxBits + 8, zero(512), zero(512 * (codec.MaxBits + 8)),
			zero(512 * (codec.MaxBits + 8)), "multiple of 8"},
		{"too many signs for a number", 2, 24, zero(2), zero(48), zero(48), "8 times"},
		{"short mean", 8, 8, zero(7), eye(8), nil, "mean of 7"},
		{"short decode", 8, 8, zero(8), zero(63), nil, "decode of 63"},
		{"short encode", 8, 8, zero(8), zero(64), zero(63), "encode of 63"},
		{"NaN mean", 8, 8, with(zero(8), 3, math.NaN()), eye(8), nil, "not finite"},
		{"Inf decode", 8, 8, zero(8), with(eye(8), 3, math.Inf(1)), nil, "not finite"},
		{"-Inf encode", 8, 8, zero(8), eye(8), with(eye(8), 3, math.Inf(-1)), "not finite"},
		{"not orthonormal", 8, 8, zero(8), with(eye(8), 1, 0.001), nil, "rows 1 and 0"},
		{"not of unit length", 8, 8, zero(8), with(eye(8), 9, 1.001), nil, "rows 1 and 1"},
		{"no encode matrix", 8, 16, zero(8), zero(128), nil, "needs an encode matrix"},
		{"negative metric", 8, 8, zero(8), eye(8), with(eye(8), 0, -1), "sign 0"},
		{"too large", 8, 8, zero(8), huge, huge, "sign"},
	} {
		_, err := codec.New("frame", x.d, x.b, x.mean, x.decode, x.encode)
		if err == nil || !strings.Contains(err.Error(), x.says) {
			t.Errorf("%s: %v, want %q", x.name, err, x.says)
		}
	}
	// A code of nothing is allowed: all keys become the mean.
	c, err := codec.New("frame", 8, 8, zero(8), zero(64), zero(64))
	if err != nil {
		t.Fatal(err)
	}
	if a := c.EncodeKey([]float32{1, 2, 3, 4, 5, 6, 7, 8}, make([]uint32, 1)); a != 0 {
		t.Errorf("scale %g", a)
	}
}

// TestMeasure holds the measures against their definitions.
func TestMeasure(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 9))
	const d, n = 32, 3000
	// Gaussian keys: both floors, to the noise of n*d samples. The cosine's is
	// larger in few dimensions, by 1/(4d) of it to first order.
	c, err := codec.DataFree("srht", d, 1, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	b := measure(t, c, keydata.Normal(r, n*d))
	if floor := math.Sqrt(2/math.Pi) * (1 + 1/(4.0*d)); math.Abs(b.MomentRatio-2/math.Pi) > 0.006 ||
		math.Abs(b.Cos1bit-floor) > 0.004 || b.N != n {
		t.Errorf("Gaussian keys: cosine %.4f (%.4f), moment ratio %.4f (0.637), %d keys", b.Cos1bit, floor, b.MomentRatio,
			b.N)
	}
	// The best scale makes the lost energy 1 - cos^2 for each key, so on keys of one
	// length the two measures are one.
	if math.Abs(b.Energy-b.Cos1bit*b.Cos1bit) > 0.006 {
		t.Errorf("energy %.4f, cosine squared %.4f", b.Energy, b.Cos1bit*b.Cos1bit)
	}
	// Keys that are codes themselves are kept whole, but for the rounding of the scale.
	for name, c := range codes(t, r, d) {
		keys := make([]float32, 10*d)
		for i := range 10 {
			w := make([]uint32, c.Words())
			for j := range w {
				w[j] = r.Uint32()
			}
			if c.B%32 != 0 {
				w[len(w)-1] &= 1<<(c.B%32) - 1
			}
			c.DecodeKey(keys[i*d:(i+1)*d], w, 0.5)
		}
		c, err := c.WithGain(1)
		if err != nil {
			t.Fatal(err)
		}
		b := measure(t, c, keys)
		if c.Orthonormal() && (b.Cos1bit < 1-1e-6 || b.MomentRatio < 1-1e-3 || b.Energy < 1-1e-5) {
			t.Errorf("%s: keys that are codes measure %+v", name, b)
		}
		if c.Orthonormal() == math.IsNaN(b.MomentRatio) {
			t.Errorf("%s: moment ratio %g", name, b.MomentRatio)
		}
		if b.Cos1bit > 1+1e-6 || b.Energy > 1+1e-6 {
			t.Errorf("%s: %+v", name, b)
		}
	}
	// Keys equal to the mean carry nothing and are left out.
	if b := measure(t, c, make([]float32, 3*d)); b.N != 0 || !math.IsNaN(b.Cos1bit) {
		t.Errorf("zero keys: %+v", b)
	}
}

// TestConcurrent uses one code from several goroutines; run with -race.
func TestConcurrent(t *testing.T) {
	r := rand.New(rand.NewPCG(10, 10))
	const d = 16
	keys := keydata.Keyish(r, 200, d)
	for name, c := range codes(t, r, d) {
		want := encoded(t, c, keys)
		got := make(chan string)
		for range 4 {
			go func() { got <- encoded(t, c, keys) }()
		}
		for range 4 {
			if x := <-got; x != want {
				t.Errorf("%s: other bits when shared", name)
			}
		}
	}
}
