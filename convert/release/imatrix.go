package release

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/dtype"
	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/rotations/sidecar"
	"github.com/phaseconv/phaseconv/rotations/transform"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/contract"
	"github.com/phaseconv/phaseconv/verify/option"
	"github.com/phaseconv/phaseconv/verify/quantweights"
)

// ImatrixName is what an importance matrix is called in a release. llama-quantize takes any name.
const ImatrixName = "phaseconv.imatrix"

// changedInputs are the matrices whose inputs an identity changes: what an importance matrix of the
// source says of them is no longer so. Queries, keys and values have their inputs as before. Used
// where the fold does not name what a file stores.
var changedInputs = map[string][]string{
	"G2": {"attn_output"}, // the sum of transformed values
	"G4": {"ffn_down", "ffn_down_exps", "ffn_down_shexp"},
	"G10": {"attn_q", "attn_k", "attn_v", "attn_qkv", "ffn_gate", "ffn_up", "ffn_gate_up", "ffn_gate_exps", "ffn_up_exps",
		"ffn_gate_up_exps", "ffn_gate_shexp", "ffn_up_shexp"}, // all that reads a norm
}

// inputs says what a conversion did to the inputs of matrices.
type inputs struct {
	edits checkpoint.Edits
	// drop lists what changed of names that edits do not have, such as those of fused matrices.
	drop []string
	// named says whether edits have the file's own names.
	named bool
}

// of returns the change of a matrix, nil for none that counts. known is false where its inputs changed
// in a way that the fold does not tell.
func (x *inputs) of(name string) (e *checkpoint.Edit, known bool) {
	if e, ok := x.edits[name]; ok && x.named {
		return e, true
	}
	// blk.N.attn_output.weight
	part := strings.Split(name, ".")
	if len(part) < 3 || part[0] != "blk" || x.named && part[2] != "attn_qkv" && !strings.HasPrefix(part[2], "ffn_gate_up") {
		return nil, true
	}
	return nil, !slices.Contains(x.drop, part[2])
}

// newInputs reads the fold of an artifact.
func newInputs(ctx context.Context, dir string, m *spec.Manifest) (*inputs, error) {
	x := &inputs{named: m.Graph == nil}
	for _, id := range m.Identities {
		if !id.Applied {
			continue
		}
		if id.ID == transform.IDResidual {
			return nil, option.Errorf("every matrix has other inputs after %s; make a new importance matrix", id.ID)
		}
		x.drop = append(x.drop, changedInputs[id.ID]...)
	}
	fold, err := sidecar.ReadFold(ctx, filepath.Join(dir, contract.FoldName(m)))
	if err != nil {
		return nil, err
	}
	x.edits = fold.Edits
	return x, nil
}

// imatrix writes the source's importance matrix (GGUF, as llama-imatrix writes it) for the changed
// weights. It has mean squares of inputs: where these were moved and multiplied (G4, G10), so are their
// squares; where they were mixed (G2) the squares are estimates: see checkpoint.Edit.MeanSquares.
// Entries of matrices that the fold has under another name are left out: llama-quantize then rounds
// them without.
func (o *Options) imatrix(ctx context.Context, m *spec.Manifest, dir string) (file spec.File, err error) {
	f, err := quantweights.OpenImportance(o.Imatrix)
	if err != nil {
		return file, option.Errorf("%w", err)
	}
	defer f.Close()
	in, err := newInputs(ctx, o.Dir, m)
	if err != nil {
		return file, fmt.Errorf("%s: %w", o.Imatrix, err)
	}
	var tensors []*gguf.Tensor
	changed := map[string][]byte{}
	estimates := 0
	for i := range f.Tensors {
		t := &f.Tensors[i]
		name, squares := strings.CutSuffix(t.Name, ".in_sum2")
		e, known := in.of(strings.TrimSuffix(name, ".counts"))
		if !known {
			continue
		}
		if squares && e != nil && (e.InnerCols != nil || e.ColMix != nil) {
			if changed[t.Name], err = moved(f, t, e); err != nil {
				return file, err
			}
			if e.ColMix != nil {
				estimates++
			}
		}
		tensors = append(tensors, t)
	}
	if len(tensors) == 0 {
		return file, option.Errorf("%s: no entry of it holds for the changed weights", o.Imatrix)
	}
	if n := len(f.Tensors) - len(tensors); n > 0 && o.Notice != nil {
		o.Notice(fmt.Sprintf("importance matrix: %d entries do not hold for the changed weights and were left out", n))
	}
	if estimates > 0 && o.Notice != nil {
		o.Notice(fmt.Sprintf("importance matrix: %d entries of mixed inputs are estimates, as if inputs were uncorrelated", estimates))
	}
	return copyTensors(ctx, filepath.Join(dir, ImatrixName), f.KVs, f, tensors, changed, func() {})
}

// moved returns the mean squares of inputs whose matrix had its columns changed. t has a row for each
// matrix of a bank.
func moved(f *gguf.File, t *gguf.Tensor, e *checkpoint.Edit) ([]byte, error) {
	n, rows := t.RowLen(), t.Rows()
	columns := []int{0, 0}
	if cols := e.InnerCols; cols != nil {
		columns = []int{len(cols.Order), len(cols.Factor)}
	}
	for i := range e.ColMix {
		if last := slices.Max(e.ColMix[i].Rows); last >= n || rows != 1 {
			return nil, option.Errorf("%s: %s has %d x %d numbers, the matrix more than %d columns", f.Path, t.Name, rows, n, last)
		}
	}
	for _, have := range columns {
		if have != 0 && have != n*rows || t.Type != gguf.TypeF32 {
			return nil, option.Errorf("%s: %s has %d x %d numbers of type %s, the matrix %d columns", f.Path, t.Name, rows, n,
				t.Type, have)
		}
	}
	x := make([]float32, n*rows)
	if err := f.ReadRows(t, 0, rows, x); err != nil {
		return nil, err
	}
	mean, err := e.MeanSquares(x, n)
	if err != nil {
		return nil, fmt.Errorf("%s: %s: %w", f.Path, t.Name, err)
	}
	return dtype.AppendF32(nil, mean), nil
}
