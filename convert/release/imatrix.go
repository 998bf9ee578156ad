package release

import (
	"context"
	"path/filepath"
	"slices"
	"strings"

	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/option"
)

// ImatrixName is what an importance matrix is called in a release. llama-quantize takes any name.
const ImatrixName = "phaseconv.imatrix"

// changedInputs are the matrices whose inputs an identity changes: what an importance matrix of the
// source says of them is no longer so. Queries, keys and values have their inputs as before.
var changedInputs = map[string][]string{
	"G2": {"attn_output"}, // the sum of transformed values
	"G4": {"ffn_down", "ffn_down_exps", "ffn_down_shexp"},
	"G10": {"attn_q", "attn_k", "attn_v", "attn_qkv", "ffn_gate", "ffn_up", "ffn_gate_exps", "ffn_up_exps", "ffn_gate_shexp",
		"ffn_up_shexp"}, // all that reads a norm
}

// imatrix writes what of the source's importance matrix (GGUF, as llama-imatrix writes it) holds for
// the changed weights. Entries that do not are left out: they are sums of squares, which tell too
// little to compute those of a transformed input. llama-quantize then rounds these matrices without.
func (o *Options) imatrix(ctx context.Context, m *spec.Manifest, dir string) (file spec.File, err error) {
	f, err := gguf.Open(o.Imatrix)
	if err != nil {
		return file, option.Errorf("%w; an importance matrix is taken as GGUF", err)
	}
	defer f.Close()
	if kind, err := f.String("general.type"); err != nil || kind != "imatrix" {
		return file, option.Errorf("%s is no importance matrix: its general.type is not imatrix", o.Imatrix)
	}
	var drop []string
	for _, id := range m.Identities {
		if !id.Applied {
			continue
		}
		if id.ID == "G1" {
			return file, option.Errorf("%s: every matrix has other inputs after G1; make a new importance matrix", o.Imatrix)
		}
		drop = append(drop, changedInputs[id.ID]...)
	}
	var tensors []*gguf.Tensor
	for i := range f.Tensors {
		t := &f.Tensors[i]
		// blk.N.attn_output.weight.in_sum2 and .counts
		part := strings.Split(t.Name, ".")
		if len(part) > 2 && part[0] == "blk" && slices.Contains(drop, part[2]) {
			continue
		}
		tensors = append(tensors, t)
	}
	if len(tensors) == 0 {
		return file, option.Errorf("%s: no entry of it holds for the changed weights", o.Imatrix)
	}
	if n := len(f.Tensors) - len(tensors); n > 0 && o.Notice != nil {
		o.Notice("importance matrix: entries of " + strings.Join(drop, ", ") + " do not hold for the changed weights and were left out")
	}
	return copyTensors(ctx, filepath.Join(dir, ImatrixName), f.KVs, f, tensors, func() {})
}
