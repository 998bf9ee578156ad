package fit

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/internal/keydata"
	"github.com/phaseconv/phaseconv/kernels/linalg"
	"github.com/phaseconv/phaseconv/rotations/codec"
)

func fit(t testing.TB, kind codec.Kind, b int, s *Sample) (*codec.Code, []Point) {
	t.Helper()
	c, curve, err := Fit(t.Context(), kind, b, s)
	if err != nil {
		t.Fatal(err)
	}
	return c, curve
}

func measure(t testing.TB, c *codec.Code, keys []float32) codec.Beta {
	t.Helper()
	b, err := c.Measure(t.Context(), keys)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func encode(t testing.TB, c *codec.Code, keys []float32, words []uint32, alpha []float32) {
	t.Helper()
	if err := c.EncodeKeys(t.Context(), keys, words, alpha); err != nil {
		t.Fatal(err)
	}
}

// TestOrthonormalRows: the data-free bases are orthonormal at every head_dim in
// use, and an SRHT of a power of two has entries of one size.
func TestOrthonormalRows(t *testing.T) {
	for _, d := range []int{8, 64, 80, 96, 112, 128, 192, 256} {
		for _, kind := range []codec.Kind{"raw", "srht", "random"} {
			// New refuses what is off by more than orthonormalTolerance.
			c, err := codec.DataFree(kind, d, 3, 1, 2)
			if err != nil {
				t.Fatal(err)
			}
			var worst float64
			for i := range d {
				for j := 0; j <= i; j++ {
					v := linalg.Dot64(c.Decode[i*d:(i+1)*d], c.Decode[j*d:(j+1)*d])
					if i == j {
						v--
					}
					worst = max(worst, math.Abs(v))
				}
			}
			// d products of numbers about 1/sqrt(d) that were rounded to float32: the
			// errors add up like sqrt(d) of 6e-8/d, and a largest of d^2 is taken.
			if !(worst < 3e-7) {
				t.Errorf("%s, d=%d: off by %.2g", kind, d, worst)
			}
			if kind == "srht" && d&(d-1) == 0 {
				for _, v := range c.Decode {
					if math.Abs(float64(v)) != float64(float32(1/math.Sqrt(float64(d)))) {
						t.Fatalf("d=%d: an entry is %g", d, v)
					}
				}
			}
		}
	}
}

// TestMixing: an SRHT spreads every unit vector over all signs, also where d has
// an odd factor; that is what it is for.
func TestMixing(t *testing.T) {
	for _, d := range []int{64, 80, 96, 112, 192} {
		c, err := codec.DataFree("srht", d, 7, 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		for j := range d {
			var sum float64
			for i := range d {
				sum += math.Abs(float64(c.Decode[i*d+j]))
			}
			// sqrt(d) for a power of two; with an odd part m the columns of a random
			// m x m matrix take their share of it.
			if sum < 0.5*math.Sqrt(float64(d)) {
				t.Errorf("d=%d: dimension %d has |column|_1 %.2f, at most %.2f", d, j, sum, math.Sqrt(float64(d)))
			}
		}
	}
}

// TestStreams: seed, layer, head and kind each give other numbers.
func TestStreams(t *testing.T) {
	seen := map[string]string{}
	for _, kind := range []codec.Kind{"srht", "random"} {
		for seed := range uint64(3) {
			for layer := range 3 {
				for head := range 3 {
					c, err := codec.DataFree(kind, 16, seed, layer, head)
					if err != nil {
						t.Fatal(err)
					}
					name := fmt.Sprintf("%s seed %d layer %d head %d", kind, seed, layer, head)
					key := fmt.Sprint(c.Decode)
					if other, dup := seen[key]; dup {
						t.Errorf("%s is the same as %s", name, other)
					}
					seen[key] = name
				}
			}
		}
	}
}

func TestFitRefuses(t *testing.T) {
	keys := keydata.Normal(rand.New(rand.NewPCG(1, 1)), 16*40)
	nan := slices.Clone(keys)
	nan[100] = float32(math.NaN())
	bad := make([]float64, 256)
	bad[0] = math.NaN()
	for _, x := range []struct {
		name string
		kind codec.Kind
		b    int
		s    Sample
		says string
	}{
		{"kind", "magic", 16, Sample{D: 16, Keys: keys}, "magic"},
		{"bits of srht", "srht", 24, Sample{D: 16, Keys: keys}, "only frame"},
		{"bits of learned", "learned", 8, Sample{D: 16, Keys: keys}, "only frame"},
		{"frame of 12 signs", "frame", 12, Sample{D: 16, Keys: keys}, "multiple of 8"},
		{"frame of no signs", "frame", 0, Sample{D: 16, Keys: keys}, "multiple of 8"},
		{"frame of -8 signs", "frame", -8, Sample{D: 16, Keys: keys}, "multiple of 8"},
		{"part of a key", "cen", 16, Sample{D: 16, Keys: keys[:100]}, "100 key values"},
		{"no head_dim", "cen", 0, Sample{Keys: keys}, "head_dim 0"},
		{"no keys", "cen", 16, Sample{D: 16}, "no calibration keys"},
		{"no keys for a frame", "frame", 16, Sample{D: 16, Layer: 3, Head: 4}, "layer 3, head 4"},
		{"metric of another size", "frame", 16, Sample{D: 16, Keys: keys, Metric: make([]float64, 64)}, "64 numbers"},
		{"metric not finite", "frame", 16, Sample{D: 16, Keys: keys, Metric: bad}, "energy of the queries is NaN"},
		{"NaN key, cen", "cen", 16, Sample{D: 16, Keys: nan}, "not finite"},
		{"NaN key, learned", "learned", 16, Sample{D: 16, Keys: nan}, "not finite"},
		{"NaN key, frame", "frame", 16, Sample{D: 16, Keys: nan}, "frame"},
	} {
		_, _, err := Fit(t.Context(), x.kind, x.b, &x.s)
		if err == nil || !strings.Contains(err.Error(), x.says) {
			t.Errorf("%s: %v, want %q", x.name, err, x.says)
		}
	}
	if _, err := codec.DataFree("learned", 16, 0, 0, 0); err == nil {
		t.Error("learned without data")
	}
}

// TestFitDegenerate: samples with hardly anything in them are fitted to something
// finite.
func TestFitDegenerate(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 2))
	const d = 16
	same := slices.Repeat(keydata.Normal(r, d), 50)
	constant := keydata.Normal(r, d*50) // dimensions 3 and 9 never change
	for i := 0; i < len(constant); i += d {
		constant[i+3], constant[i+9] = 4, 0
	}
	line := make([]float32, 0, 50*d) // one direction only
	dir := keydata.Normal(r, d)
	for i := range 50 {
		for _, v := range dir {
			line = append(line, v*float32(i-20))
		}
	}
	for name, keys := range map[string][]float32{
		"one key": keydata.Normal(r, d), "two keys": keydata.Normal(r, 2*d),
		"fewer keys than numbers": keydata.Normal(r, 7*d), "all equal": same, "all zero": make([]float32, 20*d),
		"constant dimensions": constant, "one line": line,
	} {
		held := keydata.Normal(r, 20*d)
		for _, kind := range codec.Kinds {
			for _, b := range []int{8, 16, 32} {
				if kind != "frame" && b != d {
					continue
				}
				c, curve := fit(t, kind, b, &Sample{D: d, Keys: keys, Threads: 1})
				for _, p := range curve {
					// The length of a code is the sum of float32 numbers that cancel where
					// rows depend on each other, as they do here.
					if p.Cos1bit-p.Cos1bit != 0 || p.Cos1bit > 1+1e-3 || p.Cos1bit < 0 {
						t.Errorf("%s, %s: curve %v", name, kind, curve)
						break
					}
				}
				words, hat := make([]uint32, c.Words()), make([]float32, d)
				for i := 0; i < len(held); i += d {
					c.DecodeKey(hat, words, c.EncodeKey(held[i:i+d], words))
					for _, v := range hat {
						if v-v != 0 {
							t.Fatalf("%s, %s b=%d: a key is read back as %v", name, kind, b, hat)
						}
					}
				}
			}
		}
		// One direction is all there is, so a frame, which can have it in its span,
		// keeps it whole, up to the rounding of the scale.
		if name == "one line" {
			for _, b := range []int{8, 16, 32} {
				c, curve := fit(t, "frame", b, &Sample{D: d, Keys: keys, Threads: 1})
				if m := measure(t, c, keys); m.Energy < 0.999 {
					t.Errorf("%s: a frame of %d signs keeps %.4f of their energy; curve %v", name, b, m.Energy, curve)
				}
			}
		}
	}
}

// TestDeadQueries: keys that no query asks for are coded as if all asked alike.
func TestDeadQueries(t *testing.T) {
	const d = 16
	keys := keydata.Normal(rand.New(rand.NewPCG(3, 3)), 50*d)
	dead, _ := fit(t, "frame", d, &Sample{D: d, Keys: keys, Metric: make([]float64, d*d), Threads: 1})
	plain, _ := fit(t, "frame", d, &Sample{D: d, Keys: keys, Threads: 1})
	if !slices.Equal(dead.Decode, plain.Decode) {
		t.Error("the codes differ")
	}
}

// TestFewKeys: with fewer keys than signs the least squares have many solutions, and
// rounding must not leave them without one.
func TestFewKeys(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 4))
	for _, x := range []struct{ d, b, n int }{{128, 128, 8}, {128, 256, 16}, {64, 512, 60}, {128, 1024, 120}} {
		c, _ := fit(t, "frame", x.b, &Sample{D: x.d, Keys: keydata.Normal(r, x.n*x.d), Threads: 1})
		if c.B != x.b {
			t.Errorf("%+v: %d signs", x, c.B)
		}
	}
}

// TestBits: a frame has exactly the signs that were asked for.
func TestBits(t *testing.T) {
	s := &Sample{D: 32, Keys: keydata.Keyish(rand.New(rand.NewPCG(3, 3)), 300, 32), Threads: 1}
	last := -1.0
	for _, b := range []int{8, 16, 24, 32, 48, 64, 96} {
		c, _ := fit(t, "frame", b, s)
		if c.B != b || len(c.Decode) != b*32 || len(c.Encode) != b*32 || c.Words() != (b+31)/32 {
			t.Errorf("b=%d: code of %d signs, %d words", b, c.B, c.Words())
		}
		// More signs keep more.
		e := measure(t, c, s.Keys).Energy
		if e <= last {
			t.Errorf("b=%d keeps %.4f of the energy, fewer signs %.4f", b, e, last)
		}
		last = e
	}
}

// TestThreads: the number of threads changes no bit.
func TestThreads(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 4))
	const d = 64
	c, _ := keydata.Metric(r, 200, d)
	keys := keydata.Keyish(r, 600, d)
	for _, kind := range []codec.Kind{"learned", "frame"} {
		one, curve1 := fit(t, kind, d, &Sample{D: d, Keys: keys, Metric: c, Threads: 1})
		four, curve4 := fit(t, kind, d, &Sample{D: d, Keys: keys, Metric: c, Threads: 4})
		if !slices.Equal(one.Decode, four.Decode) || !slices.Equal(one.Encode, four.Encode) ||
			!slices.Equal(one.Mean, four.Mean) || !slices.Equal(curve1, curve4) {
			t.Errorf("%s: 1 and 4 threads differ", kind)
		}
	}
}

// TestLearnedCurve: the objective never falls, and what the curve ends with is
// what the code does to the keys, measured another way.
func TestLearnedCurve(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 5))
	for name, keys := range map[string][]float32{"Gaussian": keydata.Normal(r, 800*32), "keys": keydata.Keyish(r, 800, 32),
		"lattice": lattice(r, 800, 32, 0.2), "few": keydata.Normal(r, 20*32)} {
		s := &Sample{D: 32, Keys: keys, Threads: 1}
		m, curve, err := s.learned(t.Context(), learnedRun{steps: learnedSteps}, s.Mean(),
			linalg.Float32(linalg.Identity(32)))
		if err != nil {
			t.Fatal(err)
		}
		c, err := codec.New("learned", 32, 32, s.Mean(), m, nil)
		if err != nil {
			t.Fatal(err)
		}
		if len(curve) < 3 {
			t.Errorf("%s: curve of %d steps", name, len(curve))
		}
		for i := 1; i < len(curve); i++ {
			if curve[i].Cos1bit < curve[i-1].Cos1bit || curve[i].Step != i {
				t.Errorf("%s: step %d falls from %.6f to %.6f", name, i, curve[i-1].Cos1bit, curve[i].Cos1bit)
			}
		}
		cen, _ := fit(t, "cen", 32, s)
		first, last := measure(t, cen, keys).Cos1bit, measure(t, c, keys).Cos1bit
		// It starts from the identity, which is the code cen.
		if math.Abs(curve[0].Cos1bit-first) > 1e-5 || math.Abs(curve[len(curve)-1].Cos1bit-last) > 1e-5 {
			t.Errorf("%s: curve from %.6f to %.6f, measured %.6f and %.6f", name, curve[0].Cos1bit, curve[len(curve)-1].Cos1bit,
				first, last)
		}
		// And the fit's own objective agrees with the measure on the finished code.
		f := NewL1(UnitKeys(s.Keys, c.Mean), 32, 1)
		if v := f.Objective(c.Decode); math.Abs(v-last) > 1e-5 {
			t.Errorf("%s: objective %.6f, measured %.6f", name, v, last)
		}
	}
}

// lattice returns sign vectors in a hidden basis with some noise: the keys that a
// learned rotation can describe almost perfectly, and a fixed one no better than any.
func lattice(r *rand.Rand, n, d int, noise float32) []float32 {
	x := keydata.Normal(r, n*d)
	for i := range x {
		s := float32(1)
		if r.Uint32()&1 == 0 {
			s = -1
		}
		x[i] = s + noise*x[i]
	}
	return keydata.Rotated(r, x, d)
}

// lowRank returns keys with most of their energy in a few hidden directions.
func lowRank(r *rand.Rand, n, d, rank int, noise float32) []float32 {
	x := keydata.Normal(r, n*d)
	for i := range x {
		if i%d >= rank {
			x[i] *= noise
		}
	}
	return keydata.Rotated(r, x, d)
}

// TestHonesty is the table of what a learned rotation does to Gaussian noise,
// where there is nothing to learn: a gain on the keys it was fitted to, none on
// others. Reporting the first as the second is the mistake that this guards.
func TestHonesty(t *testing.T) {
	r := rand.New(rand.NewPCG(6, 6))
	const d = 64
	held := keydata.Normal(r, 4000*d)
	srht, err := codec.DataFree("srht", d, 1, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	// train: bounds around the values that an independent program measured with the
	// plain fixed point (0.93, 0.88, 0.85, 0.825).
	for _, x := range []struct {
		perDim   int
		lo, hi   float64
		heldGain float64
	}{{1, 0.91, 0.96, 0.012}, {4, 0.86, 0.905, 0.008}, {16, 0.83, 0.87, 0.008}, {64, 0.81, 0.845, 0.008}} {
		if testing.Short() && x.perDim > 16 {
			continue
		}
		train := keydata.Normal(r, x.perDim*d*d)
		c, _ := fit(t, "learned", d, &Sample{D: d, Keys: train, Threads: 2})
		a, b := measure(t, c, train).Cos1bit, measure(t, c, held).Cos1bit
		floorTrain, floorHeld := measure(t, srht, train).Cos1bit, measure(t, srht, held).Cos1bit
		t.Logf("N/d = %2d: train %.4f (srht %.4f), held out %.4f (srht %.4f)", x.perDim, a, floorTrain, b, floorHeld)
		if !(a > x.lo && a < x.hi) || !(a > floorTrain+0.01) {
			t.Errorf("N/d = %d: %.4f on the fitted keys, expected %.3f to %.3f", x.perDim, a, x.lo, x.hi)
		}
		// 4,000 keys measure a mean cosine to 0.001. At one key per dimension the mean
		// that is taken off is noise too, an eighth of a key long.
		if math.Abs(b-floorHeld) > x.heldGain {
			t.Errorf("N/d = %d: %.4f on other keys, an SRHT has %.4f: noise cannot be learned", x.perDim, b, floorHeld)
		}
	}
}

// TestStructure: where there is something to learn, the gain is there on keys
// that were not fitted.
func TestStructure(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	const n = 2000
	for _, x := range []struct {
		name    string
		d       int
		keys    []float32
		learned float64 // least gain over SRHT, held out, in cosine
		frame   float64 // least gain of a frame over learned, in energy kept
	}{
		// A noise of 0.3 leaves a cosine of about 1/sqrt(1.09) = 0.958 to the lattice.
		// A frame starts from principal axes, of which a lattice has none.
		{"lattice", 32, lattice(r, 2*n, 32, 0.3), 0.14, -1},
		{"rank 4", 64, lowRank(r, 2*n, 64, 4, 0.1), 0.02, 0.1},
		{"rank 16", 64, lowRank(r, 2*n, 64, 16, 0.1), 0.004, 0.1},
	} {
		d := x.d
		train, held := x.keys[:n*d], x.keys[n*d:]
		s := &Sample{D: d, Keys: train, Threads: 2}
		l, _ := fit(t, "learned", d, s)
		f, _ := fit(t, "frame", d, s)
		h, _ := fit(t, "srht", d, s)
		ml, mf, mh := measure(t, l, held), measure(t, f, held), measure(t, h, held)
		t.Logf("%s, d=%d, held out: cosine srht %.4f, learned %.4f, frame %.4f; energy kept %.4f, %.4f, %.4f", x.name, d,
			mh.Cos1bit, ml.Cos1bit, mf.Cos1bit, mh.Energy, ml.Energy, mf.Energy)
		if !(ml.Cos1bit > mh.Cos1bit+x.learned) {
			t.Errorf("%s: learned %.4f, srht %.4f", x.name, ml.Cos1bit, mh.Cos1bit)
		}
		if !(mf.Energy > ml.Energy+x.frame) {
			t.Errorf("%s: frame keeps %.4f of the energy, learned %.4f", x.name, mf.Energy, ml.Energy)
		}
	}
}

// scoreLoss is E (q.(k - k_hat))^2 over E (q.(k - mean))^2: the error of scores.
func scoreLoss(t *testing.T, c *codec.Code, keys, queries []float32) float64 {
	d := c.D
	n := len(keys) / d
	words, alpha, hat := make([]uint32, n*c.Words()), make([]float32, n), make([]float32, n*d)
	encode(t, c, keys, words, alpha)
	c.DecodeKeys(hat, words, alpha)
	var lost, total float64
	for i := range n {
		q := queries[i*d%len(queries):][:d]
		var e, s float64
		for j := range d {
			e += float64(q[j]) * (float64(keys[i*d+j]) - float64(hat[i*d+j]))
			s += float64(q[j]) * (float64(keys[i*d+j]) - float64(c.Mean[j]))
		}
		lost += e * e
		total += s * s
	}
	return lost / total
}

// TestQueryMetric: where queries point in few directions, a frame that knows them
// loses less of the scores than a learned rotation, and than a frame that does not;
// the reverse holds for the error of the keys themselves.
func TestQueryMetric(t *testing.T) {
	r := rand.New(rand.NewPCG(8, 8))
	const d, n = 32, 3000
	keys := keydata.Keyish(r, 2*n, d)
	c, queries := keydata.Metric(r, 2*n, d)
	train, held := keys[:n*d], keys[n*d:]
	aware := &Sample{D: d, Keys: train, Metric: c, Threads: 2}
	blind := &Sample{D: d, Keys: train, Threads: 2}
	l, _ := fit(t, "learned", d, aware)
	f, _ := fit(t, "frame", d, aware)
	g, _ := fit(t, "frame", d, blind)
	sl, sf, sg := scoreLoss(t, l, held, queries[n*d:]), scoreLoss(t, f, held, queries[n*d:]),
		scoreLoss(t, g, held, queries[n*d:])
	el, ef, eg := measure(t, l, held).Energy, measure(t, f, held).Energy, measure(t, g, held).Energy
	t.Logf("score loss, held out: learned %.4f, frame without metric %.4f, frame with metric %.4f; key energy kept %.4f, %.4f, %.4f", sl, sg, sf, el, eg, ef)
	if !(sf < 0.8*sl) || !(sf < 0.95*sg) {
		t.Errorf("score loss: learned %.4f, frame without metric %.4f, with %.4f", sl, sg, sf)
	}
	if !(ef < eg) {
		t.Errorf("the metric costs the keys nothing (%.4f, %.4f), so it did nothing", eg, ef)
	}
	// A metric that knows no direction changes nothing but rounding.
	iso := make([]float64, d*d)
	for i := range d {
		iso[i*d+i] = 7
	}
	h, _ := fit(t, "frame", d, &Sample{D: d, Keys: train, Metric: iso, Threads: 2})
	if e := measure(t, h, held).Energy; math.Abs(e-eg) > 0.003 {
		t.Errorf("isotropic metric: %.4f of the energy, without metric %.4f", e, eg)
	}
}

// TestFrameCurve: the fit ends better than it began, and what it ends with holds
// for the finished code.
func TestFrameCurve(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 9))
	const d = 32
	keys := keydata.Keyish(r, 1000, d)
	c, curve := fit(t, "frame", d, &Sample{D: d, Keys: keys, Threads: 2})
	if len(curve) < 3 || curve[len(curve)-1].Cos1bit <= curve[0].Cos1bit {
		t.Fatalf("curve %v", curve)
	}
	// The matrix is solved once more after the last point and the scale is rounded.
	if m := measure(t, c, keys).Cos1bit; math.Abs(m-curve[len(curve)-1].Cos1bit) > 0.01 {
		t.Errorf("curve ends at %.4f, measured %.4f", curve[len(curve)-1].Cos1bit, m)
	}
}

// TestFrameHonesty: on Gaussian noise, where every direction is like every other,
// signs of a Hadamard rotation are as good as any; a frame seems better on the keys
// that it was fitted to and is not on others. It comes up to them from below.
func TestFrameHonesty(t *testing.T) {
	r := rand.New(rand.NewPCG(6, 6))
	const d = 32
	held := keydata.Normal(r, 3000*d)
	srht, err := codec.DataFree("srht", d, 1, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	floor := measure(t, srht, held).Cos1bit
	last := 0.0
	for _, perDim := range []int{4, 16, 64} {
		train := keydata.Normal(r, perDim*d*d)
		c, _ := fit(t, "frame", d, &Sample{D: d, Keys: train, Threads: 1})
		a, b := measure(t, c, train).Cos1bit, measure(t, c, held).Cos1bit
		t.Logf("N/d = %2d: train %.4f, held out %.4f, srht %.4f", perDim, a, b, floor)
		// 3,000 keys measure a mean cosine to 0.001.
		if b > floor+0.003 {
			t.Errorf("N/d = %d: %.4f on other keys, an SRHT has %.4f: noise cannot be learned", perDim, b, floor)
		}
		if a < floor+0.01 {
			t.Errorf("N/d = %d: %.4f on the fitted keys: the test does not see what it guards against", perDim, a)
		}
		if b < last {
			t.Errorf("N/d = %d: %.4f on other keys, %.4f with fewer keys to fit to", perDim, b, last)
		}
		last = b
	}
	if last < floor-0.01 {
		t.Errorf("with many keys %.4f, an SRHT has %.4f", last, floor)
	}
}

// TestFrameMonotone: neither the least squares nor the search for signs, which
// starts from those there are, makes the error larger.
func TestFrameMonotone(t *testing.T) {
	r := rand.New(rand.NewPCG(11, 12))
	const d, n = 32, 600
	for _, b := range []int{16, 32, 64} {
		f := &frameFit{d: d, b: b, threads: 1}
		f.take(keydata.Keyish(r, n, d), make([]float32, d), linalg.Float32(linalg.Identity(d)))
		if err := f.init(t.Context()); err != nil {
			t.Fatal(err)
		}
		// Of the signs, scales and rows that there are.
		lost := func() (sum float64) {
			for k := range n {
				for j := range d {
					v := float64(f.x[k*d+j])
					for i := range b {
						v -= f.alpha[k] * float64(f.s[k*b+i]) * float64(f.m[i*d+j])
					}
					sum += v * v
				}
			}
			return sum
		}
		last := math.Inf(1)
		for step := range 6 {
			for name, do := range []func() error{func() error { return f.solve(t.Context()) },
				func() error { return f.encode(t.Context(), true) }} {
				if err := do(); err != nil {
					t.Fatal(err)
				}
				// float32 least squares are exact to about this.
				now := lost()
				if now > last*(1+1e-5) {
					t.Errorf("%d signs, step %d: part %d raises the error from %g to %g", b, step, name, last, now)
				}
				last = now
			}
		}
	}
}

// TestGain: keys that a fitted frame decodes are as long as the keys, on average,
// though the best fit of each would be shorter.
func TestGain(t *testing.T) {
	r := rand.New(rand.NewPCG(8, 8))
	const d, n = 32, 1500
	keys := keydata.Normal(r, n*d)
	c, _ := fit(t, "frame", d, &Sample{D: d, Keys: keys, Threads: 1})
	plain, err := c.WithGain(1)
	if err != nil {
		t.Fatal(err)
	}
	length := func(c *codec.Code) float64 {
		words, alpha, got := make([]uint32, n*c.Words()), make([]float32, n), make([]float32, n*d)
		encode(t, c, keys, words, alpha)
		c.DecodeKeys(got, words, alpha)
		var a, b float64
		for i, v := range got {
			mu := float64(c.Mean[i%d])
			a += (float64(v) - mu) * (float64(v) - mu)
			b += (float64(keys[i]) - mu) * (float64(keys[i]) - mu)
		}
		return math.Sqrt(a / b)
	}
	// Scales are rounded to 11 bits, and the two averages weigh keys a little differently.
	if l := length(c); math.Abs(l-1) > 0.02 {
		t.Errorf("decoded keys are %.4f as long as the keys", l)
	}
	if l := length(plain); l > 0.9 {
		t.Errorf("without gain decoded keys are %.4f as long as the keys: nothing to correct", l)
	}
	for _, g := range []float32{0, -1, float32(math.NaN()), float32(math.Inf(1)), 17, 0.06} {
		if _, err := c.WithGain(g); err == nil {
			t.Errorf("a gain of %g is accepted", g)
		}
	}
}
