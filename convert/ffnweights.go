package convert

import (
	"cmp"
	"context"
	"fmt"

	"github.com/phaseconv/phaseconv/convert/edits"
	"github.com/phaseconv/phaseconv/convert/ffn"
	"github.com/phaseconv/phaseconv/convert/plan"
	"github.com/phaseconv/phaseconv/convert/write"
	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/gguf"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/ppl"
	"github.com/phaseconv/phaseconv/verify/refmodel"
)

// searched tells how the changes of a conversion were chosen; members are nil where nothing was
// asked for.
type searched struct {
	fusion *spec.Fusion
	ffn    *spec.FFNFold
}

// search measures which changes of the weights help the cache types and the weight type that were
// asked for, and makes them.
func (j *job) search(ctx context.Context) (*plan.Changes, *searched, error) {
	out := &searched{}
	ch, fusion, err := j.searchEdits(ctx)
	if err != nil || j.o.FFN == plan.FFNNone {
		out.fusion = fusion
		return ch, out, err
	}
	found, err := ffn.Search(ctx, j.source, ch.View, j.ffnOptions())
	if err != nil {
		return nil, nil, err
	}
	why := fmt.Sprintf("measured with %s weights: chosen is %q", j.o.Weights.Name, found.Report.Chosen)
	if found.View == ch.View && j.o.FFN == plan.FFNAuto {
		why = fmt.Sprintf("measured with %s weights: nothing helps this model", j.o.Weights.Name)
		j.o.notice(fmt.Sprintf("%s weights: nothing helps this model; they stay as they are", j.o.Weights.Name))
	}
	if o := &j.o; o.Imatrix != "" && len(found.View.Edits) > 0 {
		o.notice("the importance matrix holds for the source: \"phaseconv release OUT --imatrix FILE\" writes the one of the changed weights")
	}
	ch.Fold(j.source, found.View, why)
	j.edits = found.View.Edits
	if j.o.Imatrix != "" {
		if found.Report.Imatrix, err = checkpoint.FileDigest(ctx, j.o.Imatrix, nil); err != nil {
			return nil, nil, err
		}
	}
	out.fusion, out.ffn = fusion, found.Report
	return ch, out, nil
}

// ffnOptions are those of the search for a weight type.
func (j *job) ffnOptions() ffn.Options {
	o := &j.o
	return ffn.Options{Mode: o.FFN, Type: *o.Weights, File: j.fileType(), Text: o.Calibration, Ctx: o.Ctx,
		Tokens: cmp.Or(o.CacheTokens, edits.ChooseTokens), Seed: o.Seed, Threads: o.Threads, Progress: o.Progress}
}

// fileType is the element type of matrices in the file that llama-quantize will be given.
func (j *job) fileType() gguf.Type {
	if t, ok := plan.OutTypes[j.o.OutType]; ok {
		return t
	}
	// They keep the source's, which no option here lets be quantised.
	if t, ok := j.source.Find("token_embd.weight"); ok {
		if typ, err := gguf.ParseType(t.Type); err == nil && (typ == gguf.TypeF16 || typ == gguf.TypeBF16) {
			return typ
		}
	}
	return gguf.TypeF32
}

// compareWeights measures the source and the model e in dir with their matrices in the weight type, on
// the evaluation text, against the source in floats.
func (j *job) compareWeights(ctx context.Context, dir string, e spec.Artifact) ([]spec.FFNTry, error) {
	made, err := write.Open(dir, e, nil)
	if err != nil {
		return nil, err
	}
	defer made.Close()
	m := refmodel.New(j.source.Config, j.source, j.o.Threads)
	base, err := ppl.Run(ctx, m, j.evaluation, refmodel.Options{Progress: j.o.Progress.Of("comparing weight types")},
		&refmodel.Variant{})
	if err != nil {
		return nil, err
	}
	var out []spec.FFNTry
	for _, x := range []struct {
		name string
		c    *checkpoint.Checkpoint
	}{{"source", j.source}, {"converted", made}} {
		o := j.ffnOptions()
		if x.c == made {
			o.Type.Importance = o.Type.Importance.Edited(j.edits)
		}
		d, bits, err := ffn.Measure(ctx, checkpoint.NewEdited(x.c, nil), o, j.evaluation, base[0])
		if err != nil {
			return nil, err
		}
		out = append(out, ffn.Row(x.name, d, bits))
	}
	return out, nil
}
