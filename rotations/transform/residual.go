package transform

import (
	"errors"
	"fmt"
	"math"
	"math/bits"
	"slices"
	"sync"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/family"
	"github.com/phaseconv/phaseconv/kernels/gemm"
	"github.com/phaseconv/phaseconv/kernels/linalg"
	"github.com/phaseconv/phaseconv/kernels/parallel"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/rotations/internal/seeded"
)

// IDResidual is identity G1, a rotation of the residual stream.
const IDResidual = "G1"

// purposeResidual selects random numbers, as the other purposes do.
const purposeResidual uint64 = 0x100

// A ResidualRotation is an orthogonal matrix for a stream of D numbers,
//
//	Q = (H_P x Small) diag(Sign)
//
// with x the Kronecker product, H_P the normalised Sylvester-Hadamard matrix, P a
// power of two, and Small an orthogonal matrix of D/P numbers a side. P = D is a
// plain Hadamard transform, P = 1 any orthogonal matrix.
type ResidualRotation struct {
	D, P  int
	Sign  []float32 // [D], each 1 or -1; nil: all 1
	Small []float32 // [D/P, D/P]; nil: the identity
}

// ResidualKinds lists the rotations that NewResidualRotation makes.
var ResidualKinds = []string{"none", "hadamard", "srht"}

// NewResidualRotation returns a rotation that needs no data: none (the identity,
// with which a fold moves the gains of norms and nothing else), hadamard (in D/P
// interleaved blocks where D is no power of two), or srht (random signs first, and
// a random orthogonal matrix between the blocks).
func NewResidualRotation(kind string, d int, seed uint64) (*ResidualRotation, error) {
	if d < 1 {
		return nil, fmt.Errorf("a residual rotation of %d numbers", d)
	}
	q := &ResidualRotation{D: d, P: 1 << bits.TrailingZeros(uint(d))}
	m := d / q.P
	switch kind {
	case "none":
		q.P = 1
	case "hadamard":
		if q.P == 1 && d > 1 {
			return nil, fmt.Errorf("a hidden size of %d is odd, so no part of it has a Hadamard matrix", d)
		}
	case "srht":
		if m > codec.MaxDim {
			return nil, fmt.Errorf("a hidden size of %d is %d times a power of two; at most %d times is possible", d, m,
				codec.MaxDim)
		}
		r := seeded.Stream(seed, 0, 0, purposeResidual)
		q.Sign = make([]float32, d)
		for i := range q.Sign {
			q.Sign[i] = float32(1 - 2*int(r.Uint64()>>63))
		}
		if m > 1 {
			q.Small = linalg.Float32(seeded.RandomOrthogonal(m, r))
		}
	default:
		return nil, fmt.Errorf("residual rotation %q is not known (%v)", kind, ResidualKinds)
	}
	return q, nil
}

// Check refuses what is not orthogonal, or not for a stream of d numbers.
func (q *ResidualRotation) Check(d int) error {
	if q.D != d || q.P < 1 || q.P&(q.P-1) != 0 || d%q.P != 0 {
		return fmt.Errorf("a residual rotation of %d numbers, in Hadamard blocks of %d, for a hidden size of %d", q.D, q.P, d)
	}
	if q.Sign != nil && len(q.Sign) != d {
		return fmt.Errorf("%d signs of a residual rotation for a hidden size of %d", len(q.Sign), d)
	}
	for i, s := range q.Sign {
		if s != 1 && s != -1 {
			return fmt.Errorf("sign %d of the residual rotation is %g", i, s)
		}
	}
	if m := d / q.P; q.Small != nil {
		if len(q.Small) != m*m {
			return fmt.Errorf("%d numbers for the %d x %d part of a residual rotation", len(q.Small), m, m)
		}
		for i, v := range q.Small {
			if v-v != 0 {
				return fmt.Errorf("number %d of the residual rotation is %g", i, v)
			}
		}
		if err := codec.CheckOrthonormal(q.Small, m, m); err != nil {
			return fmt.Errorf("the residual rotation is not orthogonal: %w", err)
		}
	}
	return nil
}

// Apply replaces each row x of rows, [n, D], by Q x. Results do not depend on
// threads.
func (q *ResidualRotation) Apply(rows []float32, threads int) {
	m := q.D / q.P
	scale := float32(1 / math.Sqrt(float64(q.P)))
	for at := 0; at < len(rows); at += q.D {
		x := rows[at : at+q.D]
		for i, s := range q.Sign {
			x[i] *= s
		}
		for h := m; h < q.D; h *= 2 {
			for i := 0; i < q.D; i += 2 * h {
				a, b := x[i:i+h], x[i+h:i+2*h]
				for j, v := range a {
					a[j], b[j] = v+b[j], v-b[j]
				}
			}
		}
		if q.P > 1 {
			for i := range x {
				x[i] *= scale
			}
		}
	}
	if q.Small != nil {
		var w gemm.Weights
		w.PackRows(m, m, q.Small, m, threads)
		src := append([]float32(nil), rows...)
		gemm.Mul(rows, m, src, m, len(rows)/m, &w, threads)
	}
}

// ErrNoResidual is why a model's residual stream cannot be rotated.
var ErrNoResidual = errors.New("the residual stream cannot be rotated")

// CheckResidual says whether identity G1 holds for a model.
func CheckResidual(c *family.Config) error {
	switch {
	case c.LayerNorm:
		return fmt.Errorf("%w: family %s subtracts the mean of the stream in its norms, which a rotation does not keep",
			ErrNoResidual, c.Family.Name)
	case c.PerLayerInput > 0:
		return fmt.Errorf("%w: layers of family %s read further embeddings", ErrNoResidual, c.Family.Name)
	case slices.ContainsFunc(c.Layers, func(y family.Layer) bool {
		return y.BareInputs || y.Parallel ||
			y.FFN.Beside > 0
	}):
		return fmt.Errorf("%w: attention and FFN of family %s do not each read it through one norm of their own", ErrNoResidual,
			c.Family.Name)
	}
	if slices.ContainsFunc(c.Layers, func(y family.Layer) bool { return y.PostNorms }) {
		return fmt.Errorf("%w: family %s normalises the outputs of attention and FFN before they are added, and the gains of these norms scale single numbers of the stream: they have no matrix behind them to go into", ErrNoResidual, c.Family.Name)
	}
	return nil
}

// What G1 does to a tensor.
type residualPart int

const (
	untouched residualPart = iota
	reader                 // rows are turned, after the gain of the norm before them
	writer                 // columns are turned
	gain                   // becomes one
)

// residualParts says, by name within a layer, what reads and writes the stream,
// and behind which norm a reader stands. A name that is not here is refused.
var residualParts = map[string]struct {
	part residualPart
	norm string
}{
	"attn_norm.weight": {part: gain}, "ffn_norm.weight": {part: gain}, "output_norm.weight": {part: gain},
	"token_embd.weight": {part: reader}, "output.weight": {reader, "output_norm.weight"},
	"attn_q.weight": {reader, "attn_norm.weight"}, "attn_k.weight": {reader, "attn_norm.weight"},
	"attn_v.weight":      {reader, "attn_norm.weight"},
	"attn_output.weight": {part: writer}, "attn_output.bias": {part: writer},
	"attn_q.bias": {}, "attn_k.bias": {}, "attn_v.bias": {}, "attn_q_norm.weight": {}, "attn_k_norm.weight": {},
	"ffn_gate.weight": {reader, "ffn_norm.weight"}, "ffn_up.weight": {reader, "ffn_norm.weight"},
	"ffn_down.weight":     {part: writer},
	"ffn_gate_inp.weight": {reader, "ffn_norm.weight"}, "ffn_gate_exps.weight": {reader, "ffn_norm.weight"},
	"ffn_up_exps.weight":    {reader, "ffn_norm.weight"},
	"ffn_gate_shexp.weight": {reader, "ffn_norm.weight"}, "ffn_up_shexp.weight": {reader, "ffn_norm.weight"},
	"ffn_gate_inp_shexp.weight": {reader, "ffn_norm.weight"},
	"ffn_down_shexp.weight":     {part: writer},
	"ffn_gate_inp.bias":         {}, "exp_probs_b.bias": {}, "attn_sinks.weight": {},
	"ffn_gate_exps.bias": {}, "ffn_up_exps.bias": {},
	"ffn_down_exps.bias":   {part: reader}, // a row for each expert, which is added to the stream
	"ffn_down_exps.weight": {part: writer},
}

// A Residual is a model whose residual stream is rotated by Q, with the gains of
// the norms before it folded into the matrices that follow them. It computes the
// same function: RMS norms do not see a rotation once their gains are one,
//
//	W diag(g) x / rms(x) = (W diag(g) Q^T) (Q x) / rms(Q x),
//
// and what writes to the stream, embeddings included, is multiplied by Q. It is a
// Source; a matrix that writes is turned as a whole (one expert at a time) and the
// last one is kept, so reading in ascending order costs each matrix once.
type Residual struct {
	src     checkpoint.Weights
	cfg     *family.Config
	q       *ResidualRotation
	threads int
	gains   map[string][]float32
	// untied is the head that a model with tied embeddings gets: the gain of the
	// final norm goes into the head alone.
	untied *checkpoint.Tensor

	mu   sync.Mutex
	last struct {
		t    *checkpoint.Tensor
		part int
		x    []float32
	}
}

// FoldResidual returns the model with identity G1 folded. A model with tied
// embeddings comes out with a tensor output.weight of its own (see Untied).
// threads are for products of matrices; results do not depend on them.
func FoldResidual(src checkpoint.Weights, cfg *family.Config, q *ResidualRotation, threads int) (*Residual, error) {
	if err := CheckResidual(cfg); err != nil {
		return nil, err
	}
	if err := q.Check(cfg.Hidden); err != nil {
		return nil, err
	}
	r := &Residual{src: src, cfg: cfg, q: q, threads: parallel.Threads(threads), gains: map[string][]float32{}}
	for _, want := range cfg.Tensors() {
		t, ok := src.Find(want.Name)
		if !ok && !want.Optional {
			return nil, fmt.Errorf("the model has no tensor %s", want.Name)
		} else if !ok {
			continue
		}
		x, known := residualParts[inLayer(want.Name, want.Layer)]
		if !known {
			return nil, fmt.Errorf("%w: whether tensor %s reads or writes it is not known", ErrNoResidual, want.Name)
		}
		if x.part == gain {
			g := make([]float32, cfg.Hidden)
			if err := src.ReadRows(t, 0, 1, g); err != nil {
				return nil, err
			}
			r.gains[want.Name] = g
		}
	}
	if _, ok := src.Find("output.weight"); !ok {
		embd, _ := src.Find("token_embd.weight")
		t := *embd
		t.Name = "output.weight"
		r.untied = &t
	}
	return r, nil
}

// FoldStream puts identity G1 on top of the edits of v. Edits of rows and columns on the other side
// of the matrices may still be added.
func FoldStream(v *checkpoint.Edited, q *ResidualRotation, threads int) error {
	r, err := FoldResidual(v.WithoutStream(), v.Config(), q, threads)
	if err != nil {
		return err
	}
	v.Stream = r
	return nil
}

// Rotation returns the rotation of the stream.
func (r *Residual) Rotation() *ResidualRotation { return r.q }

// Untied returns the head that the fold adds to a model with tied embeddings, nil
// if the model has one. Writers have to store it, and in config.json set
// tie_word_embeddings to false.
func (r *Residual) Untied() *checkpoint.Tensor { return r.untied }

// Changes says whether the fold changes a tensor that it finds.
func (r *Residual) Changes(name string) bool { return StreamTensor(name) }

// StreamTensor says whether G1 changes a tensor.
func StreamTensor(name string) bool {
	return residualParts[inLayer(name, family.LayerOf(name))].part != untouched
}

// inLayer strips the layer's prefix from a canonical name.
func inLayer(name string, layer int) string {
	if layer < 0 {
		return name
	}
	return name[len(family.Name(layer, "")):]
}

// Find implements checkpoint.Weights.
func (r *Residual) Find(name string) (*checkpoint.Tensor, bool) {
	if r.untied != nil && name == r.untied.Name {
		return r.untied, true
	}
	return r.src.Find(name)
}

// ReadRows implements checkpoint.Weights.
func (r *Residual) ReadRows(t *checkpoint.Tensor, row0, n int, dst []float32) error {
	cols := t.Cols()
	if row0 < 0 || n < 0 || n > t.Rows()-row0 || len(dst) < n*cols {
		return fmt.Errorf("tensor %s: %d rows from %d on of %d asked for, room for %d values", t.Name, n, row0, t.Rows(),
			len(dst))
	}
	dst = dst[:n*cols]
	layer := family.LayerOf(t.Name)
	x := residualParts[inLayer(t.Name, layer)]
	switch x.part {
	case gain:
		for i := range dst {
			dst[i] = 1
		}
		return nil
	case writer:
		return r.written(t, row0, n, dst)
	}
	from := t
	if t == r.untied {
		from, _ = r.src.Find("token_embd.weight")
	}
	if err := r.src.ReadRows(from, row0, n, dst); err != nil {
		return err
	}
	if x.part == untouched {
		return nil
	}
	if x.norm != "" {
		norm := x.norm
		if layer >= 0 {
			norm = family.Name(layer, norm)
		}
		g := r.gains[norm]
		for i := range dst {
			dst[i] *= g[i%cols]
		}
	}
	r.q.Apply(dst, 1)
	return nil
}

// written reads rows of a tensor that writes to the stream: its hidden dimension is
// that of the rows, so a row of the result takes all rows of the matrix.
func (r *Residual) written(t *checkpoint.Tensor, row0, n int, dst []float32) error {
	d, cols := r.cfg.Hidden, t.Cols()
	if len(t.Shape) == 1 { // a bias, one row
		if err := r.src.ReadRows(t, row0, n, dst); err != nil {
			return err
		}
		r.q.Apply(dst, 1)
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for at := row0; at < row0+n; {
		part := at / d
		if r.last.t != t || r.last.part != part {
			x := make([]float32, d*cols)
			if err := r.src.ReadRows(t, part*d, d, x); err != nil {
				return err
			}
			byColumn := gemm.Transpose(nil, x, d, cols)
			r.q.Apply(byColumn, r.threads)
			r.last.t, r.last.part, r.last.x = t, part, gemm.Transpose(nil, byColumn, cols, d)
		}
		k := min(row0+n, (part+1)*d) - at
		copy(dst[(at-row0)*cols:], r.last.x[(at-part*d)*cols:(at-part*d+k)*cols])
		at += k
	}
	return nil
}
