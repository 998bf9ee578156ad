package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/format/dtype"
	"github.com/phaseconv/phaseconv/kernels/onebit"
	"github.com/phaseconv/phaseconv/kernels/rope"
	"github.com/phaseconv/phaseconv/rotations/codec"
)

const golden = "../../../spec/vectors"

// TestGolden: the committed vectors are those that this program makes, all of
// them and no others.
func TestGolden(t *testing.T) {
	want, err := vectorFiles()
	if err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(golden)
	if err != nil {
		t.Fatal(err)
	}
	total := 0
	for _, e := range entries {
		if want[e.Name()] == nil {
			t.Errorf("%s: no such vector is made any more", e.Name())
		}
	}
	for name, b := range want {
		got, err := os.ReadFile(filepath.Join(golden, name))
		if err != nil {
			t.Error(err)
			continue
		}
		if total += len(got); !bytes.Equal(got, b) {
			t.Errorf("%s differs; if the format was meant to change: go run ./rotations/internal/vectors -o spec/vectors", name)
		}
	}
	if total > 450_000 {
		t.Errorf("the vectors take %d bytes, more than a repository should carry", total)
	}
}

func parse32(t *testing.T, s string) []float64 {
	t.Helper()
	var out []float64
	for _, f := range strings.Fields(s) {
		v, err := strconv.ParseUint(f, 16, 32)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, float64(math.Float32frombits(uint32(v))))
	}
	return out
}

// rotate turns a head by an angle per pair in float64, from the text's formula.
func rotate(x []float64, position float64, pairs rope.Layout) []float64 {
	d := len(x)
	out := make([]float64, d)
	for p := range d / 2 {
		i, j := pairs.Dims(p, d)
		s, c := math.Sincos(position * math.Pow(theta, -2*float64(p)/float64(d)))
		out[i], out[j] = x[i]*c-x[j]*s, x[i]*s+x[j]*c
	}
	return out
}

func dot(x, y []float64) (s float64) {
	for i, v := range x {
		s += v * y[i]
	}
	return s
}

// TestScores recomputes every score of the committed files the long way, in
// float64 and by another road: the key is read back, turned to its own place
// and multiplied with the query.
func TestScores(t *testing.T) {
	files, err := filepath.Glob(golden + "/head-*.json")
	if err != nil || len(files) < 15 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, path := range files {
		t.Run(filepath.Base(path), func(t *testing.T) {
			raw, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			var v headVector
			if err := json.Unmarshal(raw, &v); err != nil {
				t.Fatal(err)
			}
			for _, e := range v.errors(t) {
				t.Error(e)
			}
			// A wrong bit, a wrong pair layout and a wrong anchor must be seen.
			break1 := v
			break1.Words = append([]string{flipLowest(v.Words[0])}, v.Words[1:]...)
			if len(break1.errors(t)) == 0 {
				t.Error("a flipped sign goes unnoticed")
			}
			if v.Exceptions > 0 {
				break4 := v
				break4.Values = append([]string{"7bff" + v.Values[0][4:]}, v.Values[1:]...)
				if len(break4.errors(t)) == 0 {
					t.Error("a wrong exception goes unnoticed")
				}
			}
			if v.Anchor > 0 {
				break2 := v
				break2.PairLayout = map[string]string{"half": "interleaved", "interleaved": "half"}[v.PairLayout]
				if len(break2.errors(t)) == 0 {
					t.Error("the other pair layout goes unnoticed")
				}
				break3 := v
				break3.FirstPosition += v.Anchor
				if len(break3.errors(t)) == 0 {
					t.Error("a wrong anchor goes unnoticed")
				}
			}
		})
	}
}

func flipLowest(words string) string {
	v, _ := strconv.ParseUint(words[:8], 16, 32)
	return fmt.Sprintf("%08x", v^1) + words[8:]
}

// errors lists what does not agree in a vector.
func (v *headVector) errors(t *testing.T) (errs []error) {
	pairs, err := rope.ParseLayout(v.PairLayout)
	if err != nil {
		return []error{err}
	}
	d, n := v.HeadDim, v.Keys.Shape[0]
	mean := wide(remake(v.Mean, nil))
	decode := wide(remake(v.Decode, nil))
	queries := wide(remake(v.Queries, nil))
	scores := make([][]float64, len(v.Scores))
	for h := range scores {
		scores[h] = parse32(t, v.Scores[h])
	}
	for i := range n {
		var words []uint32
		for _, f := range strings.Fields(v.Words[i]) {
			w, err := strconv.ParseUint(f, 16, 32)
			if err != nil {
				t.Fatal(err)
			}
			words = append(words, uint32(w))
		}
		a, err := strconv.ParseUint(strings.Fields(v.Alpha)[i], 16, 16)
		if err != nil {
			t.Fatal(err)
		}
		alpha := float64(dtype.F16ToF32(uint16(a)))
		hat := append([]float64(nil), mean...)
		size := 0.0 // of the terms of a score, for the tolerance
		for j := range v.Signs {
			s := 2*float64(words[j/32]>>(j%32)&1) - 1
			for k := range d {
				hat[k] += alpha * s * decode[j*d+k]
			}
		}
		if v.Exceptions > 0 {
			if len(v.Coordinates) != n || len(v.Values) != n {
				return append(errs, fmt.Errorf("coordinates of %d and values of %d of %d keys", len(v.Coordinates), len(v.Values),
					n))
			}
			last := -1
			for e, c := range strings.Fields(v.Coordinates[i]) {
				k, err := strconv.ParseUint(c, 16, 8)
				x, err2 := strconv.ParseUint(strings.Fields(v.Values[i])[e], 16, 16)
				if err != nil || err2 != nil || int(k) <= last {
					return append(errs, fmt.Errorf("key %d, exception %d: %q after coordinate %d", i, e, c, last))
				}
				last = int(k)
				hat[k] += float64(dtype.F16ToF32(uint16(x)))
			}
		}
		for _, x := range v.Decoded {
			if x.Key == i {
				for k, want := range parse32(t, x.KHat) {
					if math.Abs(want-hat[k]) > 1e-5*(1+math.Abs(alpha)) {
						errs = append(errs, fmt.Errorf("key %d: k_hat[%d] is %g, computed %g", i, k, want, hat[k]))
					}
				}
			}
		}
		if v.Anchor > 0 {
			pos := v.FirstPosition + i
			hat = rotate(hat, float64(pos-pos%v.Anchor), pairs)
		}
		for _, x := range hat {
			size += math.Abs(x)
		}
		for h := range scores {
			want := dot(queries[h*d:(h+1)*d], hat)
			// Rounding errors of chains of up to 256 terms in float32, which a
			// wrong sign exceeds by far.
			if tol := 4e-6 * (2*size + 10); math.Abs(scores[h][i]-want) > tol {
				errs = append(errs, fmt.Errorf("query %d, key %d: score %g, computed %g, tolerance %g", h, i, scores[h][i], want,
					tol))
			}
		}
	}
	return errs
}

func wide(a *array) []float64 {
	out := make([]float64, len(a.data))
	for i, v := range a.data {
		out[i] = float64(v)
	}
	return out
}

// remake evaluates an array's formula.
func remake(a, base *array) *array { return generate(*a.Formula, a.Shape[0], a.Shape[1], base) }

// TestKernel: the scores of kernels/onebit lie within the tolerance that the
// format allows, and by no means outside by a wrong sign or scale.
func TestKernel(t *testing.T) {
	for _, c := range scoreVectors().Cases {
		b, n := c.Signs, c.Keys
		q, offset, want := parse32(t, c.Query), parse32(t, c.Offset), parse32(t, c.Scores)
		var stored []uint32
		for _, line := range c.Stored {
			for _, f := range strings.Fields(line) {
				v, err := strconv.ParseUint(f, 16, 32)
				if err != nil {
					t.Fatal(err)
				}
				stored = append(stored, uint32(v))
			}
		}
		var scales []uint16
		for _, f := range strings.Fields(c.Scales) {
			v, err := strconv.ParseUint(f, 16, 16)
			if err != nil {
				t.Fatal(err)
			}
			scales = append(scales, uint16(v))
		}
		got := make([]float32, n)
		var tab onebit.Tables
		tab.Build(narrow(q), b, 1, b)
		onebit.Score(got, n, &tab, stored, scales, n, narrow(offset))
		var abs, square float64
		for _, x := range q {
			abs, square = abs+math.Abs(x), square+x*x
		}
		caught := 0
		for i := range got {
			alpha := float64(dtype.F16ToF32(scales[i]))
			tol := 0x1p-14*(math.Abs(offset[0])+alpha*abs) + 0x1p-11*alpha*math.Sqrt(float64(b)*square)
			if e := math.Abs(float64(got[i]) - want[i]); !(e <= tol) {
				t.Errorf("%d signs, key %d: score %g, want %g, off by %.2g, allowed %.2g", b, i, got[i], want[i], e, tol)
			}
			if 2*alpha*abs/float64(b) > tol {
				caught++
			}
		}
		// The tolerance is narrower than the change of one sign of usual size.
		if caught == 0 {
			t.Errorf("%d signs: the tolerance catches nothing", b)
		}
	}
}

func narrow(x []float64) []float32 {
	out := make([]float32, len(x))
	for i, v := range x {
		out[i] = float32(v)
	}
	return out
}

// TestMargins: no projection of an orthonormal code lies so near zero that
// another order of summation could change the sign, so any float32 encoder
// finds the bits.
func TestMargins(t *testing.T) {
	for _, c := range headCases() {
		v, err := c.vector()
		if err != nil {
			t.Fatal(err)
		}
		if c.encode {
			continue
		}
		code, err := codec.New(c.kind, c.d, c.b, v.Mean.data, v.Decode.data, nil)
		if err != nil {
			t.Fatal(err)
		}
		for i := range keysPerCase {
			x := wide(v.Keys)[i*c.d : (i+1)*c.d]
			if pos := firstPosition + i; c.anchor > 0 {
				x = rotate(x, -float64(pos-pos%c.anchor), c.pairs)
			}
			for j := range c.b {
				var z float64
				for k := range c.d {
					z += float64(code.Decode[j*c.d+k]) * (x[k] - float64(code.Mean[k]))
				}
				if math.Abs(z) < 2e-6 {
					t.Errorf("%s: key %d, sign %d: projection %g", c.name, i, j, z)
				}
			}
		}
	}
}

// TestFormulas: matrices that orthonormal codes use are orthonormal, and not
// symmetric, so that a transposed reader fails.
func TestFormulas(t *testing.T) {
	for _, rule := range []string{"hadamard", "reflector"} {
		const d = 64
		m := generate(formula{Rule: rule, Seed: 3}, d, d, nil).data
		asymmetric := 0
		for i := range d {
			for j := range d {
				var s float64
				for k := range d {
					s += float64(m[i*d+k]) * float64(m[j*d+k])
				}
				if i == j {
					s--
				}
				if math.Abs(s) > 1e-6 {
					t.Fatalf("%s: rows %d and %d: %g", rule, i, j, s)
				}
				if math.Abs(float64(m[i*d+j]-m[j*d+i])) > 0.1 {
					asymmetric++
				}
			}
		}
		if asymmetric < d {
			t.Errorf("%s: only %d entries differ from the transpose", rule, asymmetric)
		}
	}
}

// TestHadamardKeys: what a random Hadamard rotation does to single keys lies on
// both sides of the Gaussian cosine 0.798; the claim that all keys reach it is
// refuted by these two.
func TestHadamardKeys(t *testing.T) {
	const d = 64
	m := generate(formula{Rule: "hadamard", Seed: 8}, d, d, nil).data
	code, err := codec.New("srht", d, d, make([]float32, d), m, nil)
	if err != nil {
		t.Fatal(err)
	}
	one, two := make([]float32, d), make([]float32, d)
	one[3], two[3], two[17] = 2, 1, 1
	for _, x := range []struct {
		key  []float32
		want float64
	}{{one, 1}, {two, math.Sqrt(0.5)}} {
		if got, err := code.Measure(t.Context(), x.key); err != nil || math.Abs(got.Cos1bit-x.want) > 1e-6 {
			t.Errorf("cosine %g, want %g (%v)", got.Cos1bit, x.want, err)
		}
	}
}
