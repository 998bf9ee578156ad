// Package codec holds the 1-bit key codes: what a code is, how its signs and
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
//
// A Group is such a code of several heads' keys and values together.
package codec

import (
	"context"
	"fmt"

	"github.com/phaseconv/phaseconv/kernels/rope"

	"github.com/phaseconv/phaseconv/kernels/gemm"
	"github.com/phaseconv/phaseconv/kernels/linalg"
	"github.com/phaseconv/phaseconv/spec"
)

// Limits of a code.
const (
	MaxDim  = spec.MaxHeadDim
	MaxBits = spec.MaxBits // signs per key
	// MaxBitsPerNumber bounds the signs per number of a key. The Gram matrix grows
	// with the square of the signs, so without it a small file could ask for much memory.
	MaxBitsPerNumber = spec.MaxBitsPerNumber
	// MaxGain bounds a code's gain and its inverse.
	MaxGain = 16
)

// A Code stores keys of one KV head. It is immutable once made and safe for
// concurrent use.
type Code struct {
	Kind Kind // how it was made
	D, B int
	Mean []float32 // [D]
	// Decode is M^T: row i, of length D, is what sign i stands for. [B, D]
	Decode []float32
	// Encode, [B, D], projects a centred key onto what the encoder needs:
	// E = M^T C for the metric C in which the error is measured. It is nil for
	// codes with orthonormal decode rows, for which it equals Decode.
	Encode []float32
	// Gain multiplies the scale before it is stored; 1 keeps the best fit of the
	// key itself. See WithGain.
	Gain float32

	gram []float32 // [B, B], Encode Decode^T: inner products of decode rows in the metric; nil for orthonormal codes

	// The matrices in the order of the kernels: E, M and the Gram matrix.
	encode, decode, gramW gemm.Weights
}

// New checks a code's parts and prepares it for encoding. Encode nil claims that
// the rows of decode are orthonormal; that is checked.
func New(kind Kind, d, b int, mean, decode, encode []float32) (*Code, error) {
	if err := CheckSize(d, b); err != nil {
		return nil, err
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
	c := &Code{Kind: kind, D: d, B: b, Mean: mean, Decode: decode, Encode: encode, Gain: 1}
	if encode == nil {
		if err := CheckOrthonormal(decode, b, d); err != nil {
			return nil, err
		}
		c.pack()
		return c, nil
	}
	c.gram = linalg.Float32(linalg.InnerProducts(encode, decode, b, d))
	// The metric is symmetric, so the Gram matrix is too, up to rounding; the
	// encoder relies on it exactly.
	for i := range b {
		for j := range i {
			v := 0.5 * (c.gram[i*b+j] + c.gram[j*b+i])
			if v-v != 0 {
				return nil, fmt.Errorf("signs %d and %d of the code have an inner product of %g: the matrices are too large", i, j,
					v)
			}
			c.gram[i*b+j], c.gram[j*b+i] = v, v
		}
		if v := c.gram[i*b+i]; !(v >= 0) || v-v != 0 {
			return nil, fmt.Errorf("sign %d of the code has the squared length %g in its own metric", i, v)
		}
	}
	c.pack()
	return c, nil
}

// WithGain returns the code with every stored scale multiplied by gain, from
// 1/MaxGain to MaxGain. The scale that fits a key best makes the decoded key
// shorter than the key, so scores lose spread and softmax flattens; a gain gives
// it back. Decoders do not need it: it is part of the stored scale.
func (c *Code) WithGain(gain float32) (*Code, error) {
	if !(gain >= 1.0/MaxGain && gain <= MaxGain) {
		return nil, fmt.Errorf("gain %g of a code: it must be from %g to %g", gain, 1.0/MaxGain, float64(MaxGain))
	}
	out := *c
	out.Gain = gain
	return &out, nil
}

// CheckSize refuses a code of b signs for keys of d numbers that no runtime could read.
func CheckSize(d, b int) error {
	if d < 1 || d > MaxDim || b < 8 || b > min(MaxBits, MaxBitsPerNumber*d) || b%8 != 0 {
		return fmt.Errorf("a code of %d signs for keys of %d numbers: signs must be a multiple of 8 up to %d and %d times the numbers, numbers at most %d", b, d, MaxBits, MaxBitsPerNumber, MaxDim)
	}
	return nil
}

func (c *Code) pack() {
	e := c.Encode
	if e == nil {
		e = c.Decode
	}
	c.encode.PackRows(c.B, c.D, e, c.D, 1)
	c.decode.PackT(c.D, c.B, c.Decode, c.D, 1)
	if c.gram != nil {
		c.gramW.PackRows(c.B, c.B, c.gram, c.B, 1)
	}
}

// orthonormalTolerance allows for float32 rounding of a matrix that was
// orthonormal in float64: inner products of unit rows err by about 1e-7 each way.
const orthonormalTolerance = 1e-5

// CheckOrthonormal refuses rows of m, [b, d], that are no orthonormal basis.
func CheckOrthonormal(m []float32, b, d int) error {
	if b != d {
		return fmt.Errorf("a code of %d signs for %d numbers needs an encode matrix", b, d)
	}
	gram := linalg.Gram(m, b, d)
	for i := range b {
		for j, v := range gram[i*b : i*b+i+1] {
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

// Orthonormal says whether the decode rows are an orthonormal basis.
func (c *Code) Orthonormal() bool { return c.Encode == nil }

// Words returns how many 32-bit words hold the signs of a key.
func (c *Code) Words() int { return (c.B + 31) / 32 }

// MeanBits returns the signs per number over all heads of codes [layer][head], NaN for none.
func MeanBits(codes [][]*Code) float64 {
	signs, numbers := 0, 0
	for _, heads := range codes {
		for _, c := range heads {
			signs, numbers = signs+c.B, numbers+c.D
		}
	}
	return float64(signs) / float64(numbers)
}

// MaxAlpha is the largest scale that binary16 holds.
const MaxAlpha = 65504

// EncodeKey finds the signs and the scale of one key; see EncodeKeys.
func (c *Code) EncodeKey(k []float32, words []uint32) (alpha float32) {
	e := newEncoder(c)
	e.encode(k[:c.D])
	return e.result(0, words)
}

// EncodeKeys finds the signs and scales of keys, [n, D]. Sign i of key n is bit
// i%32 of words[n*Words()+i/32], set for +1; bits past B are clear. A scale is
// multiplied by the gain, rounded to binary16 and returned as float32.
//
// The scale that minimises the error for given signs s is s.z / s^T G s, with
// z = E(k - mean) and G the Gram matrix of the decode rows in the metric; the
// signs maximise (s.z)^2 / s^T G s: first one after the other, each as if it were
// the last, then by flipping single signs while that helps. For orthonormal rows
// this is sign(z) and the mean of |z|.
//
// Each z is one chain of float32 fused multiply-adds over ascending dimensions
// (kernels/gemm), so one key and many give the same bits on every machine.
//
// It fails only when ctx ends, which it looks at once in EncodeBatch keys.
func (c *Code) EncodeKeys(ctx context.Context, keys []float32, words []uint32, alpha []float32) error {
	e := newEncoder(c)
	for n := len(keys) / c.D; n > 0; n = len(keys) / c.D {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		m := min(n, EncodeBatch)
		e.encode(keys[:m*c.D])
		for i := range m {
			w := words[i*c.Words() : (i+1)*c.Words()]
			alpha[i] = e.result(i, w)
		}
		keys, words, alpha = keys[m*c.D:], words[m*c.Words():], alpha[m:]
	}
	return nil
}

// DecodeKey sets dst = mean + alpha * M s.
func (c *Code) DecodeKey(dst []float32, words []uint32, alpha float32) {
	c.DecodeKeys(dst[:c.D], words, []float32{alpha})
}

// DecodeKeys sets dst, [n, D], to the keys that signs and scales stand for.
// M s is summed over ascending signs in float32.
func (c *Code) DecodeKeys(dst []float32, words []uint32, alpha []float32) {
	n := len(dst) / c.D
	s := make([]float32, n*c.B)
	for k := range n {
		w := words[k*c.Words() : (k+1)*c.Words()]
		for i := range c.B {
			s[k*c.B+i] = -1 + 2*float32(w[i/32]>>(i%32)&1)
		}
	}
	gemm.Mul(dst, c.D, s, c.B, n, &c.decode, 1)
	for k := range n {
		row := dst[k*c.D : (k+1)*c.D]
		for j, v := range row {
			row[j] = c.Mean[j] + float32(alpha[k]*v)
		}
	}
}

// To returns the code for keys whose dimensions moved from one pair layout to another.
func (c *Code) To(from, to rope.Layout) (*Code, error) {
	if from == to {
		return c, nil
	}
	at := make([]int, c.D)
	for i := range at {
		at[i] = from.Index(to, i, c.D)
	}
	return c.moved(at)
}

// moved returns the code of vectors whose number i moved to place at[i].
func (c *Code) moved(at []int) (*Code, error) {
	move := func(m []float32) []float32 {
		if m == nil {
			return nil
		}
		r := make([]float32, len(m))
		for i, v := range m {
			r[i/c.D*c.D+at[i%c.D]] = v
		}
		return r
	}
	n, err := New(c.Kind, c.D, c.B, move(c.Mean), move(c.Decode), move(c.Encode))
	if err != nil {
		return nil, err
	}
	return n.WithGain(c.Gain)
}
