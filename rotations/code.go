// Package rotations holds the 1-bit key codes: what a code is, how its signs and
// scale are found for a key, how codes are fitted to calibration keys, which
// identities fold into the weights beforehand, and the sidecar that carries the
// result.
//
// A key k (after RoPE, of one KV head) is stored as signs s in {-1,+1}^b and one
// scale alpha, and read back as
//
//	k_hat = mean + alpha * M s
//
// with a mean of length d and a decode matrix M of shape d x b. A query scores it
// as q.mean + alpha * (M^T q).s, so a runtime transforms the query once and then
// only adds and subtracts.
package rotations

import (
	"fmt"

	"phaseconv/format/dtype"
	"phaseconv/spec"
)

// Limits of a code.
const (
	MaxDim  = spec.MaxHeadDim
	MaxBits = spec.MaxBits // signs per key
)

// A Code stores keys of one KV head. It is immutable once made and safe for
// concurrent use.
type Code struct {
	// Kind names how it was made: raw, cen, srht, random, learned or frame.
	Kind string
	D, B int
	Mean []float32 // [D]
	// Decode is M^T: row i, of length D, is what sign i stands for. [B, D]
	Decode []float32
	// Encode, [B, D], projects a centred key onto what the encoder needs:
	// E = M^T C for the metric C in which the error is measured. It is nil for
	// codes with orthonormal decode rows, for which it equals Decode.
	Encode []float32

	gram []float32 // [B, B], Encode Decode^T: inner products of decode rows in the metric; nil for orthonormal codes
}

// New checks a code's parts and prepares it for encoding. Encode nil claims that
// the rows of decode are orthonormal; that is checked.
func New(kind string, d, b int, mean, decode, encode []float32) (*Code, error) {
	if d < 1 || d > MaxDim || b < 8 || b > MaxBits || b%8 != 0 {
		return nil, fmt.Errorf("a code of %d signs for keys of %d numbers: signs must be a multiple of 8 up to %d, numbers at most %d", b, d, MaxBits, MaxDim)
	}
	if len(mean) != d || len(decode) != b*d || encode != nil && len(encode) != b*d {
		return nil, fmt.Errorf("code of %d signs for keys of %d numbers has mean of %d, decode of %d and encode of %d numbers", b, d, len(mean), len(decode), len(encode))
	}
	for _, part := range [][]float32{mean, decode, encode} {
		for _, v := range part {
			if v-v != 0 {
				return nil, fmt.Errorf("a number of the code is not finite")
			}
		}
	}
	c := &Code{Kind: kind, D: d, B: b, Mean: mean, Decode: decode, Encode: encode}
	if encode == nil {
		if err := checkOrthonormal(decode, b, d); err != nil {
			return nil, err
		}
		return c, nil
	}
	c.gram = make([]float32, b*b)
	for i := range b {
		e := encode[i*d : (i+1)*d]
		for j := range b {
			c.gram[i*b+j] = float32(dot64(e, decode[j*d:(j+1)*d]))
		}
	}
	// The metric is symmetric, so the Gram matrix is too, up to rounding; the
	// encoder relies on it exactly.
	for i := range b {
		for j := range i {
			v := 0.5 * (c.gram[i*b+j] + c.gram[j*b+i])
			c.gram[i*b+j], c.gram[j*b+i] = v, v
		}
		if !(c.gram[i*b+i] >= 0) {
			return nil, fmt.Errorf("sign %d of the code has a negative length in its own metric", i)
		}
	}
	return c, nil
}

// orthonormalTolerance allows for float32 rounding of a matrix that was
// orthonormal in float64: inner products of unit rows err by about 1e-7 each way.
const orthonormalTolerance = 1e-5

func checkOrthonormal(m []float32, b, d int) error {
	if b != d {
		return fmt.Errorf("a code of %d signs for %d numbers needs an encode matrix", b, d)
	}
	for i := range b {
		for j := 0; j <= i; j++ {
			v := dot64(m[i*d:(i+1)*d], m[j*d:(j+1)*d])
			if i == j {
				v--
			}
			if v > orthonormalTolerance || v < -orthonormalTolerance {
				return fmt.Errorf("rows %d and %d of the decode matrix are not orthonormal (off by %.2g) and there is no encode matrix", i, j, v)
			}
		}
	}
	return nil
}

// dot64 sums the products of float32 numbers in float64, in index order. Each
// product is exact there, so fusing it would change nothing.
func dot64(x, y []float32) float64 {
	var s float64
	for i, v := range x {
		s += float64(v) * float64(y[i])
	}
	return s
}

// Orthonormal says whether the decode rows are an orthonormal basis.
func (c *Code) Orthonormal() bool { return c.Encode == nil }

// Words returns how many 32-bit words hold the signs of a key.
func (c *Code) Words() int { return (c.B + 31) / 32 }

// project sets z = E (k - mean), the encoder's view of a key.
func (c *Code) project(z, k []float32) {
	e := c.Encode
	if e == nil {
		e = c.Decode
	}
	x := make([]float32, c.D)
	for i, v := range k[:c.D] {
		x[i] = v - c.Mean[i]
	}
	for i := range c.B {
		z[i] = float32(dot64(e[i*c.D:(i+1)*c.D], x))
	}
}

// MaxAlpha is the largest scale that binary16 holds.
const MaxAlpha = 65504

// EncodeKey finds the signs and the scale of one key. Sign i is bit i%32 of
// words[i/32], set for +1; bits past B are clear. The scale is rounded to
// binary16 and returned as float32.
//
// The scale that minimises the error for given signs is s.z / s^T G s with
// z = E(k - mean) and G the Gram matrix; the signs maximise (s.z)^2 / s^T G s:
// first one after the other, each as if it were the last, then by flipping
// single signs while that helps. For orthonormal rows this is sign(z) and the
// mean of |z|.
func (c *Code) EncodeKey(k []float32, words []uint32) (alpha float32) {
	z := make([]float32, c.B)
	c.project(z, k)
	return c.encodeProjected(z, words, make([]float32, 2*c.B))
}

// encodeProjected is EncodeKey from z on; scratch has room for 2*B numbers.
func (c *Code) encodeProjected(z []float32, words []uint32, scratch []float32) float32 {
	clear(words[:c.Words()])
	var num, den float64
	if c.gram == nil {
		for i, v := range z {
			if v >= 0 {
				words[i/32] |= 1 << (i % 32)
				num += float64(v)
			} else {
				num -= float64(v)
			}
		}
		den = float64(c.B)
	} else {
		s, g := scratch[:c.B], scratch[c.B:2*c.B]
		num, den = greedySigns(c.gram, z, s, g)
		num, den = flipSigns(c.gram, z, s, g, num, den)
		if num < 0 { // the opposite signs fit as well, with a positive scale
			num = -num
			for i := range s {
				s[i] = -s[i]
			}
		}
		for i, v := range s {
			if v > 0 {
				words[i/32] |= 1 << (i % 32)
			}
		}
	}
	if !(den > 0) {
		return 0
	}
	return dtype.F16Round(float32(min(num/den, MaxAlpha)))
}

// greedySigns chooses the signs in order. On return g = G s, num = s.z and
// den = s^T G s.
func greedySigns(gram, z, s, g []float32) (num, den float64) {
	b := len(s)
	clear(g)
	for i := range b {
		// With s_i the quotient becomes (num + s_i z_i)^2 / (den + 2 s_i g_i + G_ii).
		zi, gi, gii := float64(z[i]), float64(g[i]), float64(gram[i*b+i])
		nUp, dUp := num+zi, den+2*gi+gii
		nDown, dDown := num-zi, den-2*gi+gii
		up := float64(nUp*nUp)*dDown >= float64(nDown*nDown)*dUp
		if i == 0 {
			up = zi >= 0
		}
		if up {
			s[i], num, den = 1, nUp, dUp
		} else {
			s[i], num, den = -1, nDown, dDown
		}
		row, si := gram[i*b:(i+1)*b], s[i]
		for j, v := range row {
			g[j] += float32(si * v)
		}
	}
	return num, den
}

// maxSweeps bounds the passes over all signs; nearly all keys need two or three.
const maxSweeps = 8

// flipSigns improves signs one by one until a whole pass changes nothing.
func flipSigns(gram, z, s, g []float32, num, den float64) (float64, float64) {
	b := len(s)
	for range maxSweeps {
		changed := false
		for i := range b {
			si := float64(s[i])
			n := num - 2*float64(si*float64(z[i]))
			d := den - 4*float64(si*float64(g[i])) + 4*float64(gram[i*b+i])
			// The margin keeps rounding noise from flipping back and forth.
			if !(d > 0) || float64(n*n)*den <= float64(num*num)*d*(1+1e-9) {
				continue
			}
			num, den, changed = n, d, true
			row, step := gram[i*b:(i+1)*b], -2*s[i]
			s[i] = -s[i]
			for j, v := range row {
				g[j] += float32(step * v)
			}
		}
		if !changed {
			break
		}
	}
	return num, den
}

// DecodeKey sets dst = mean + alpha * M s.
func (c *Code) DecodeKey(dst []float32, words []uint32, alpha float32) {
	sum := make([]float64, c.D)
	for i := range c.B {
		row := c.Decode[i*c.D : (i+1)*c.D]
		if words[i/32]>>(i%32)&1 != 0 {
			for j, v := range row {
				sum[j] += float64(v)
			}
		} else {
			for j, v := range row {
				sum[j] -= float64(v)
			}
		}
	}
	for j := range dst[:c.D] {
		dst[j] = float32(float64(c.Mean[j]) + float64(float64(alpha)*sum[j]))
	}
}
