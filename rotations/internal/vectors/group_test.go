package main

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/phaseconv/phaseconv/format/dtype"
	"github.com/phaseconv/phaseconv/kernels/coded"
	"github.com/phaseconv/phaseconv/kernels/onebit"
	"github.com/phaseconv/phaseconv/kernels/rope"
	"github.com/phaseconv/phaseconv/rotations/sidecar"
)

func readGroups(t *testing.T) []*groupVector {
	t.Helper()
	files, err := filepath.Glob(golden + "/group-*.json")
	if err != nil || len(files) < 8 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	var out []*groupVector
	for _, path := range files {
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		v := &groupVector{}
		if err := json.Unmarshal(raw, v); err != nil {
			t.Fatal(err)
		}
		out = append(out, v)
	}
	return out
}

// TestGroupVectors recomputes scores, sums and what is stored of the committed files in
// float64 and by another road: every token is decoded, keys are turned forth to their own
// places, and attended to as any other.
func TestGroupVectors(t *testing.T) {
	for _, v := range readGroups(t) {
		t.Run(v.Name, func(t *testing.T) {
			for _, e := range v.errors(t) {
				t.Error(e)
			}
			breaks := func(what string, edit func(x *groupVector)) {
				x := *v
				x.Words = append([]string(nil), v.Words...)
				edit(&x)
				if len(x.errors(t)) == 0 {
					t.Errorf("%s goes unnoticed", what)
				}
			}
			breaks("a flipped sign", func(x *groupVector) { x.Words[0] = flipLowest(v.Words[0]) })
			breaks("another alpha", func(x *groupVector) { x.Alpha = "7000" + v.Alpha[4:] })
			breaks("another stored word", func(x *groupVector) {
				x.Stored = append([]string{flipLowest(v.Stored[0])}, v.Stored[1:]...)
			})
			breaks("another transposed word", func(x *groupVector) {
				x.Transposed = append([]string{flipLowest(v.Transposed[0])}, v.Transposed[1:]...)
			})
			if v.PartGain != "" {
				breaks("gain 1", func(x *groupVector) { x.PartGain = "" })
			}
			if v.Below != nil {
				breaks("no group below", func(x *groupVector) { x.Below = nil })
			}
			if v.Sink > 0 {
				breaks("another sink", func(x *groupVector) { x.Sink--; x.Recent++ })
			}
			if v.Anchor > 0 && v.Queries != nil && v.turned() > 0 {
				breaks("another pair layout", func(x *groupVector) {
					x.PairLayout = map[string]string{"half": "interleaved", "interleaved": "half"}[v.PairLayout]
				})
				breaks("another anchor", func(x *groupVector) { x.Anchor *= 2 })
			}
		})
	}
}

// tokens returns words and scales of the coded tokens.
func (v *groupVector) tokens(t *testing.T) (words [][]uint32, alpha []float64) {
	t.Helper()
	return parseTokens(t, v.Words, v.Alpha)
}

// parseTokens reads words and scales of tokens.
func parseTokens(t *testing.T, lines []string, scales string) (words [][]uint32, alpha []float64) {
	t.Helper()
	for i, line := range lines {
		var row []uint32
		for _, f := range strings.Fields(line) {
			w, err := strconv.ParseUint(f, 16, 32)
			if err != nil {
				t.Fatal(err)
			}
			row = append(row, uint32(w))
		}
		a, err := strconv.ParseUint(strings.Fields(scales)[i], 16, 16)
		if err != nil {
			t.Fatal(err)
		}
		words, alpha = append(words, row), append(alpha, float64(dtype.F16ToF32(uint16(a))))
	}
	return words, alpha
}

// A floatPart is a part of a vector, in float64.
type floatPart struct {
	value        bool
	from, to     int
	mean, decode []float64 // decode [b, to-from], gain included
}

func (v *groupVector) layout(t *testing.T) (d int, parts []floatPart) {
	t.Helper()
	mean, decode := wide(remake(v.Mean, nil)), wide(remake(v.Decode, nil))
	d = len(mean)
	gains := make([]float64, len(v.Parts))
	for i := range gains {
		if gains[i] = 1; v.PartGain != "" {
			gains[i] = parse32(t, v.PartGain)[i]
		}
	}
	at := 0
	for i, text := range v.Parts {
		p := floatPart{value: text[0] == 'v', from: at, to: at + v.HeadDim}
		if p.value {
			p.to = at + v.ValueDim
		}
		at, p.mean = p.to, mean[p.from:p.to]
		for k := range v.Signs {
			for j := p.from; j < p.to; j++ {
				p.decode = append(p.decode, gains[i]*decode[k*d+j])
			}
		}
		parts = append(parts, p)
	}
	if at != d {
		t.Fatalf("parts of %d numbers, vectors of %d", at, d)
	}
	return d, parts
}

// turned returns how many numbers of a key RoPE turns.
func (v *groupVector) turned() int {
	if v.RopeDim != nil {
		return *v.RopeDim
	}
	return v.HeadDim
}

// rotate turns the first numbers of a head as a head of their own, and leaves the others.
func (v *groupVector) rotate(x []float64, position float64, pairs rope.Layout) []float64 {
	n := v.turned()
	return append(rotate(x[:n], position, pairs), x[n:]...)
}

// errors lists what does not agree in a vector.
func (v *groupVector) errors(t *testing.T) (errs []error) {
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	pairs, err := rope.ParseLayout(v.PairLayout)
	if err != nil {
		return []error{err}
	}
	words, alpha := v.tokens(t)
	d, parts := v.layout(t)
	var below []float64
	belowWords, belowAlpha := parseTokens(t, v.BelowWords, v.BelowAlpha)
	if v.Below != nil {
		below = wide(remake(v.Below, nil))
	}
	vectors := wide(remake(v.Vectors, nil))
	tokens := len(vectors) / d
	if len(words) != tokens-v.Sink-v.Recent {
		bad("%d of %d tokens are coded", len(words), tokens)
		return errs
	}
	v.checkLayouts(words, bad)
	scores, sums := 0, 0
	for _, p := range parts {
		// The part of every token as attention sees it.
		seen := make([][]float64, tokens)
		for n := range tokens {
			if i := n - v.Sink; i < 0 || i >= len(words) {
				for _, x := range vectors[n*d+p.from : n*d+p.to] {
					seen[n] = append(seen[n], float64(dtype.F16Round(float32(x))))
				}
				continue
			}
			hat := append([]float64(nil), p.mean...)
			w := len(hat)
			for k := range v.Signs {
				s := 2*float64(words[n-v.Sink][k/32]>>(k%32)&1) - 1
				for j := range hat {
					hat[j] += alpha[n-v.Sink] * s * p.decode[k*w+j]
				}
			}
			for k := range len(below) / d {
				s := 2*float64(belowWords[n-v.Sink][k/32]>>(k%32)&1) - 1
				for j := range hat {
					hat[j] += belowAlpha[n-v.Sink] * s * below[k*d+p.from+j]
				}
			}
			if n-v.Sink == len(words)-1 {
				for j, want := range parse32(t, v.Decoded)[p.from:p.to] {
					if math.Abs(want-hat[j]) > 1e-5*(1+math.Abs(want)) {
						bad("x_hat[%d] is %g, computed %g", p.from+j, want, hat[j])
					}
				}
			}
			if !p.value && v.Anchor > 0 {
				hat = v.rotate(hat, float64(n-n%v.Anchor), pairs)
			}
			seen[n] = hat
		}
		if p.value {
			weights := wide(remake(v.Weights, nil))[sums*tokens:][:tokens]
			got := parse32(t, v.Sums[sums])
			sums++
			for j := range p.mean {
				var want, size float64
				for n, a := range weights {
					want += a * seen[n][j]
					size += math.Abs(a * seen[n][j])
				}
				// The file has the exact value as float32; gains were rounded into the matrix before.
				if math.Abs(got[j]-want) > 2e-6*size {
					bad("sum %d, dimension %d: %g, computed %g", sums-1, j, got[j], want)
				}
			}
			continue
		}
		query := wide(remake(v.Queries, nil))[scores*v.HeadDim:][:v.HeadDim]
		got := parse32(t, v.Scores[scores])
		scores++
		for n := range tokens {
			want, size := dot(query, seen[n]), 0.0
			for j, x := range seen[n] {
				size += math.Abs(x * query[j])
			}
			// Cosines and sines of the program are those of float32.
			if math.Abs(got[n]-want) > 2e-6*(size+10) {
				bad("query %d, token %d: score %g, computed %g", scores-1, n, got[n], want)
			}
		}
	}
	return errs
}

// checkLayouts compares both layouts with the words of the tokens, bit by bit.
func (v *groupVector) checkLayouts(words [][]uint32, bad func(string, ...any)) {
	stored, transposed := hexArray(v.Stored), hexArray(v.Transposed)
	w, ones, seen := (v.Signs+31)/32, 0, [2]int{}
	for i, x := range [][]uint32{stored, transposed} {
		for _, word := range x {
			for ; word != 0; word &= word - 1 {
				seen[i]++
			}
		}
	}
	for n, row := range words {
		for i := range v.Signs {
			bit := row[i/32] >> (i % 32) & 1
			ones += int(bit)
			if stored[n/16*16*w+16*(i/32)+n%16]>>(i%32)&1 != bit {
				bad("token %d, sign %d: stored otherwise", n, i)
			}
			if transposed[n/32*32*w+i]>>(n%32)&1 != bit {
				bad("token %d, sign %d: transposed otherwise", n, i)
			}
		}
	}
	if seen != [2]int{ones, ones} || len(stored) != (len(words)+15)/16*16*w || len(transposed) != (len(words)+31)/32*32*w {
		bad("%d and %d bits of %d are set in %d and %d words", seen[0], seen[1], ones, len(stored), len(transposed))
	}
}

func hexArray(lines []string) (out []uint32) {
	for _, f := range strings.Fields(strings.Join(lines, " ")) {
		w, err := strconv.ParseUint(f, 16, 32)
		if err != nil {
			return nil
		}
		out = append(out, uint32(w))
	}
	return out
}

// TestGroupFiles: the committed sidecars have the numbers that groups.json names.
func TestGroupFiles(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join(golden, "groups.json"))
	if err != nil {
		t.Fatal(err)
	}
	var f groupFile
	if err := json.Unmarshal(raw, &f); err != nil {
		t.Fatal(err)
	}
	for _, name := range f.Files {
		s, err := sidecar.Read(t.Context(), filepath.Join(golden, name))
		if err != nil {
			t.Fatal(err)
		}
		if s.Version() != f.Version || len(s.Layers) != len(f.Layers) {
			t.Fatalf("%s: version %d, %d layers", name, s.Version(), len(s.Layers))
		}
		for l, want := range f.Layers {
			y := s.Layers[l]
			if y.Heads != want.Heads || y.KeyDim != want.HeadDim || y.ValueDim != want.ValueDim ||
				len(y.Groups) != len(want.Groups) {
				t.Fatalf("%s: layer %d is %+v, want %+v", name, l, y, want)
			}
			for i, w := range want.Groups {
				g := y.Groups[i]
				if fmt.Sprint(g.Parts) != fmt.Sprint(w.Parts) || (g.Code.Encode == nil) != (w.Encode == nil) {
					t.Errorf("%s: layer %d, group %d: %v", name, l, i, g.Parts)
				}
				decode := remake(w.Decode, nil)
				pairs := [][2][]float32{{g.Code.Mean, remake(w.Mean, nil).data}, {g.Code.Decode, decode.data}}
				if w.Encode != nil {
					pairs = append(pairs, [2][]float32{g.Code.Encode, remake(w.Encode, decode).data})
				}
				for k, x := range pairs {
					if floats(x[0]) != floats(x[1]) {
						t.Errorf("%s: layer %d, group %d: tensor %d differs", name, l, i, k)
					}
				}
				if got := floats([]float32{g.Code.Gain}); w.Gain != got && (w.Gain != "" || g.Code.Gain != 1) {
					t.Errorf("%s: layer %d, group %d: gain %s, want %q", name, l, i, got, w.Gain)
				}
				if got := floats(g.Gains); w.PartGain != got && (w.PartGain != "" || strings.Trim(got, "3f80 ") != "") {
					t.Errorf("%s: layer %d, group %d: gains of parts %s, want %q", name, l, i, got, w.PartGain)
				}
			}
		}
	}
}

// TestGroupKernels: scores and sums of kernels/onebit from the stored words lie within the
// tolerance that the format allows, which a wrong sign exceeds.
func TestGroupKernels(t *testing.T) {
	for _, v := range readGroups(t) {
		if v.Below != nil {
			continue // the kernels have no such codes
		}
		words, alpha := v.tokens(t)
		_, parts := v.layout(t)
		pairs, err := rope.ParseLayout(v.PairLayout)
		if err != nil {
			t.Fatal(err)
		}
		b, n, stored := v.Signs, len(words), hexArray(v.Stored)
		var scales []uint16
		for _, a := range alpha {
			scales = append(scales, dtype.F32ToF16(float32(a)))
		}
		scores, sums := 0, 0
		for _, p := range parts {
			d := p.to - p.from
			if p.value {
				all := remake(v.Weights, nil).data[sums*(n+v.Sink+v.Recent):][:n+v.Sink+v.Recent]
				weights := all[v.Sink : v.Sink+n]
				want := parse32(t, v.Sums[sums])
				sums++
				v.checkSums(t, p, all, weights, alpha, stored, scales, want)
				continue
			}
			query := remake(v.Queries, nil).data[scores*d:][:d]
			want := parse32(t, v.Scores[scores])[v.Sink:]
			scores++
			got := make([]float32, n)
			for from := 0; from < n; from++ {
				start := 0
				if v.Anchor > 0 {
					start = (v.Sink + from) / v.Anchor * v.Anchor
				}
				q := v.rotate(wide(&array{data: query}), -float64(start), pairs)
				turned := make([]float32, b)
				var o, size, square float64
				for k := range b {
					x := dot(q, p.decode[k*d:(k+1)*d])
					turned[k] = float32(x)
					square += x * x
					for j := range d {
						size += alpha[from] * math.Abs(q[j]*p.decode[k*d+j])
					}
				}
				for j, x := range q {
					o += x * p.mean[j]
					size += math.Abs(x * p.mean[j])
				}
				var tab onebit.Tables
				tab.Build(turned, b, 1, b)
				onebit.Score(got, n, &tab, stored, scales, n, []float32{float32(o)})
				tol := 0x1p-14*size + 0x1p-11*alpha[from]*math.Sqrt(float64(b)*square)
				if e := math.Abs(float64(got[from]) - want[from]); !(e <= tol) {
					t.Errorf("%s: score of token %d off by %.2g, allowed %.2g", v.Name, from, e, tol)
				}
			}
		}
	}
}

func (v *groupVector) checkSums(t *testing.T, p floatPart, all, weights []float32, alpha []float64, stored []uint32,
	scales []uint16, want []float64) {
	b, d, n := v.Signs, p.to-p.from, len(weights)
	vectors := remake(v.Vectors, nil).data
	width := len(vectors) / len(all)
	sums := make([]float32, b)
	var s onebit.Sums
	s.Add(sums, b, weights, n, 1, onebit.All(b), stored, scales, n)
	var total, coded, largest float64 // of |a|, |a| alpha, and the largest of the latter
	for i, a := range weights {
		x := math.Abs(float64(a)) * alpha[i]
		total, coded, largest = total+math.Abs(float64(a)), coded+x, max(largest, x)
	}
	caught := 0
	for j := range d {
		got, abs, square := total*p.mean[j], 0.0, 0.0 // these weights are not negative
		for k, x := range sums {
			m := p.decode[k*d+j]
			got += float64(x) * m
			abs, square = abs+math.Abs(m), square+m*m
		}
		for i, a := range all {
			if i < v.Sink || i >= v.Sink+n {
				got += float64(a) * float64(dtype.F16Round(vectors[i*width+p.from+j]))
			}
		}
		// All tokens are in one run of 128.
		tol := 0x1p-14*(math.Abs(p.mean[j])*total+coded*abs) + 0x1p-5*largest*math.Sqrt(square)
		if e := math.Abs(got - want[j]); !(e <= tol) {
			t.Errorf("%s: sum of dimension %d off by %.2g, allowed %.2g", v.Name, j, e, tol)
		}
		if 2*largest*abs/float64(b) > tol {
			caught++
		}
	}
	// The tolerance is narrower than what the usual sign of the heaviest token brings.
	if caught < d/2 {
		t.Errorf("%s: the tolerance catches a wrong sign in %d of %d dimensions", v.Name, caught, d)
	}
}

// TestGroupRuntime: a cache of kernels/coded, which a runtime would keep, gives the scores and
// sums of the files within the tolerance of the format. Its tokens are numbered by position:
// the places of first tokens are there and have no weight.
func TestGroupRuntime(t *testing.T) {
	for _, v := range readGroups(t) {
		if v.Below != nil {
			continue // the kernels have no such codes
		}
		words, alpha := v.tokens(t)
		_, parts := v.layout(t)
		pairs, err := rope.ParseLayout(v.PairLayout)
		if err != nil {
			t.Fatal(err)
		}
		var keys, values []coded.Matrix
		heads := 0
		for i, p := range parts {
			head, err := strconv.Atoi(v.Parts[i][1:])
			if err != nil {
				t.Fatal(err)
			}
			heads = max(heads, head+1)
			m := coded.Matrix{Head: head, Mean: narrow(p.mean), Decode: narrow(p.decode)}
			if p.value {
				values = append(values, m)
			} else {
				keys = append(keys, m)
			}
		}
		code, err := coded.NewCode(v.Signs, keys, values)
		if err != nil {
			t.Fatal(err)
		}
		n := v.Sink + len(words)
		table := rope.NewTable(rope.Params{Theta: theta, Dim: v.turned()}, n)
		cache, err := coded.NewCache(code, v.Anchor, table, pairs)
		if err != nil {
			t.Fatal(err)
		}
		for range v.Sink {
			cache.Append(make([]uint32, len(words[0])), 0)
		}
		for i, row := range words {
			cache.Append(row, dtype.F32ToF16(float32(alpha[i])))
		}
		var w coded.Worker
		scores, sums := make([]float32, heads*n), make([]float32, heads*v.ValueDim)
		query, weights := make([]float32, heads*v.HeadDim), make([]float32, heads*n)
		tokens := v.Vectors.Shape[0]
		for i, m := range keys {
			copy(query[m.Head*v.HeadDim:], remake(v.Queries, nil).data[i*v.HeadDim:][:v.HeadDim])
		}
		for i, m := range values {
			all := remake(v.Weights, nil).data[i*tokens:][:tokens]
			copy(weights[m.Head*n+v.Sink:][:len(words)], all[v.Sink:])
		}
		w.Scores(scores, n, cache, query, 1, 0, n)
		w.Sums(sums, cache, weights, n, 1, 0, n)
		var largest float64
		for i, a := range weights {
			if pos := i % n; pos >= v.Sink {
				largest = max(largest, float64(a)*alpha[pos-v.Sink])
			}
		}
		vectors, scored, summed := remake(v.Vectors, nil).data, 0, 0
		for _, p := range parts {
			d := p.to - p.from
			square := make([]float64, d) // of the columns of M
			for k, x := range p.decode {
				square[k%d] += x * x
			}
			if p.value {
				head := values[summed].Head
				for j, want := range parse32(t, v.Sums[summed]) {
					got := float64(sums[head*d+j])
					all := remake(v.Weights, nil).data[summed*tokens:][:tokens]
					for pos, a := range all {
						if pos < v.Sink || pos >= n {
							got += float64(a) * float64(dtype.F16Round(vectors[pos*v.Mean.Shape[1]+p.from+j]))
						}
					}
					// The part of the tolerance that rounding of weights needs; the rest is below it here.
					if tol := 0x1p-5*largest*math.Sqrt(square[j]) + 1e-4*math.Abs(want); math.Abs(got-want) > tol {
						t.Errorf("%s: sum of head %d, dimension %d: %g, want %g, allowed %.2g", v.Name, head, j, got, want, tol)
					}
				}
				summed++
				continue
			}
			head := keys[scored].Head
			var norm, all float64
			for _, x := range square {
				all += x
			}
			for _, x := range remake(v.Queries, nil).data[scored*d:][:d] {
				norm += float64(x) * float64(x)
			}
			for i, want := range parse32(t, v.Scores[scored])[v.Sink:n] {
				got := float64(scores[head*n+v.Sink+i])
				// |q'|_2 is at most |M|_F |q|_2.
				if tol := 0x1p-11*alpha[i]*math.Sqrt(float64(v.Signs)*all*norm) + 1e-4*math.Abs(want); math.Abs(got-want) > tol {
					t.Errorf("%s: score of head %d, token %d: %g, want %g, allowed %.2g", v.Name, head, i, got, want, tol)
				}
			}
			scored++
		}
	}
}
