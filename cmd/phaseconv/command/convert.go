package command

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v3"

	"github.com/phaseconv/phaseconv/convert"
	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/rotations"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/calibrate"
	"github.com/phaseconv/phaseconv/verify/kvcache"
)

func convertCommand(stdout, stderr io.Writer) *cli.Command {
	return &cli.Command{
		Name:      "convert",
		Usage:     "turn a checkpoint into a verified artifact",
		ArgsUsage: "SRC",
		Description: `SRC is a Hugging Face folder (safetensors) or a GGUF file.

Examples:
  phaseconv convert ./SmolLM2-135M -o smol
  phaseconv convert model.gguf -o out --calib train.txt --eval test.txt
  phaseconv convert ./Qwen2.5-0.5B -o out --format both --dry-run
  phaseconv convert ./Llama-3-70B -o out --resume
  phaseconv convert ./Llama-3-70B -o out --unit 3/8    # one of eight processes, then
  phaseconv convert ./Llama-3-70B -o out --merge`,
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "out", Aliases: []string{"o"}, Usage: "folder to create"},
			&cli.StringFlag{Name: "format", Usage: "gguf, safetensors or both", Value: "gguf"},
			&cli.StringFlag{Name: "outtype", Usage: "element type of re-encoded GGUF matrices: f32, f16, bf16 or q8_0", Value: "f16"},
			&cli.StringFlag{Name: "code", Usage: "key code: " + strings.Join(rotations.Kinds, ", "), Value: "frame"},
			&cli.BoolFlag{Name: "balance", Usage: "fold the K/Q pair balance (identity G3)", Value: true},
			&cli.StringFlag{Name: "cache-type-k", Usage: "change the weights for this stock key cache: q8_0, q4_0, ... (what helps is measured)", Value: "f16"},
			&cli.StringFlag{Name: "cache-type-v", Usage: "the value cache type beside it", Value: "f16"},
			&cli.StringFlag{Name: "cache-rotation", Usage: "llama.cpp's attention rotation: on or off", Value: "on"},
			&cli.IntFlag{Name: "target-ctx", Usage: "context at which that cache will be used", Value: 4096},
			&cli.IntFlag{Name: "cache-tokens", Usage: "calibration tokens to fit changes for that cache to", Value: 8192},
			&cli.StringFlag{Name: "fuse", Usage: "changes of weights that are allowed: none, exact, or near (near-identities, with --cache-type-k and where they measure far better than they cost; its default)"},
			&cli.FloatFlag{Name: "bits", Usage: "signs per number of a key, on average over all heads (frame only)", Value: 1},
			&cli.StringFlag{Name: "alloc", Usage: "how signs are spread over heads: uniform, sensitivity (by measured cost) or angle (default: sensitivity for frames)"},
			&cli.IntFlag{Name: "exceptions", Usage: "coordinates of each coded key that are kept beside its signs, 0 to head_dim/2"},
			&cli.IntFlag{Name: "anchor", Usage: "block length B to anchor keys to, 0 for none", Value: 64},
			&cli.IntFlag{Name: "sink", Usage: "keys at the start that stay F16", Value: 4},
			&cli.IntFlag{Name: "recent", Usage: "latest keys that stay F16", Value: 0},
			&cli.StringFlag{Name: "calib", Usage: "calibration text (default: an embedded one)"},
			&cli.IntFlag{Name: "calib-tokens", Usage: "tokens to fit to", Value: 12288},
			&cli.StringFlag{Name: "eval", Usage: "held-out text to measure on (default: an embedded one)"},
			&cli.IntFlag{Name: "ctx", Usage: "context length of calibration and measuring", Value: 512},
			&cli.IntFlag{Name: "chunks", Usage: "windows to measure", Value: 4},
			seedFlag(), threadsFlag(),
			&cli.BoolFlag{Name: "report", Usage: "write report.html into the artifact", Value: true},
			&cli.BoolFlag{Name: "report-detail", Usage: "measure more for it: each layer alone, other codes, other contexts"},
			&cli.BoolFlag{Name: "dry-run", Usage: "print the plan and stop"},
			jsonFlag(),
		}, unitFlags()...),
		Action: func(ctx context.Context, c *cli.Command) error { return runConvert(ctx, c, stdout, stderr) },
	}
}

func runConvert(ctx context.Context, c *cli.Command, stdout, stderr io.Writer) error {
	src, err := one(c, "source")
	if err != nil {
		return err
	}
	o := convert.Options{
		Source: src, Out: c.String("out"), OutType: c.String("outtype"), Code: c.String("code"), Bits: c.Float("bits"), Alloc: alloc(c),
		Balance: c.Bool("balance"), Policy: kvcache.Policy{Anchor: c.Int("anchor"), Sink: c.Int("sink"), Recent: c.Int("recent"), Exceptions: c.Int("exceptions")},
		CalibrationTokens: c.Int("calib-tokens"), Ctx: c.Int("ctx"), Chunks: c.Int("chunks"), Seed: c.Uint64("seed"), Threads: c.Int("threads"),
		Tool: Tool(), Command: recorded(lasting(c.Root().Args().Slice())), Progress: progress(stderr), Notice: notes(stderr),
		Report: c.Bool("report"), ReportDetail: c.Bool("report-detail"),
	}
	switch c.String("format") {
	case "gguf":
		o.Formats = []checkpoint.Container{checkpoint.GGUF}
	case "safetensors":
		o.Formats = []checkpoint.Container{checkpoint.Safetensors}
	case "both":
		o.Formats = []checkpoint.Container{checkpoint.GGUF, checkpoint.Safetensors}
	default:
		return usagef("--format %q: expected gguf, safetensors or both", c.String("format"))
	}
	if _, ok := convert.OutTypes[o.OutType]; !ok {
		return usagef("--outtype %q: expected f32, f16, bf16 or q8_0", o.OutType)
	}
	if err := cacheOptions(c, &o); err != nil {
		return err
	}
	if c.Bool("dry-run") {
		return dryRun(c, o, stdout)
	}
	if o.Out == "" {
		return usagef("convert: name the folder to create with -o")
	}
	if o.Calibration, err = calibrationText(c.String("calib")); err != nil {
		return err
	}
	if o.Evaluation, err = evaluationText(c.String("eval")); err != nil {
		return err
	}
	if done, err := unitOptions(ctx, c, &o, stdout, stderr); done || err != nil {
		return err
	}
	res, err := convert.Convert(ctx, o)
	if err != nil {
		return keptLayers(err, o)
	}
	if c.Bool("json") {
		if err := printJSON(stdout, res.Verify); err != nil {
			return err
		}
	} else {
		printConversion(stdout, o.Out, res)
	}
	if !res.Verify.OK {
		return errGate
	}
	return nil
}

// alloc returns how signs are spread over heads: as named, or the way that measures
// best (docs/codes.md). Only frames have a choice.
func alloc(c *cli.Command) string {
	switch a := c.String("alloc"); {
	case a != "":
		return a
	case c.String("code") == "frame":
		return calibrate.AllocSensitivity
	}
	return calibrate.AllocUniform
}

// cacheOptions reads what to do for stock cache types.
func cacheOptions(c *cli.Command, o *convert.Options) error {
	o.Fuse, o.TargetCtx, o.CacheTokens = c.String("fuse"), c.Int("target-ctx"), c.Int("cache-tokens")
	types, err := stockTypes(c)
	if err != nil {
		return err
	}
	if c.IsSet("cache-type-v") && !c.IsSet("cache-type-k") {
		return usagef("--cache-type-v goes with --cache-type-k")
	}
	o.Cache = types
	if o.Fuse == "" {
		o.Fuse = convert.FuseExact
		if types != nil {
			o.Fuse = convert.FuseNear
		}
	}
	if types != nil && c.IsSet("balance") {
		return usagef("--balance and --cache-type-k do not go together: with a cache type, measurements decide about the balance; see --fuse")
	}
	return nil
}

func dryRun(c *cli.Command, o convert.Options, stdout io.Writer) error {
	plans, err := convert.Plans(o)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(stdout, plans)
	}
	for _, p := range plans {
		printPlan(stdout, p)
	}
	return nil
}

func printPlan(w io.Writer, p *convert.Plan) {
	fmt.Fprintf(w, "plan for %s (rotary pairs: %s)\n\n", p.Container, p.PairLayout)
	t := newTable("identity", "folded", "tensors", "why")
	for _, id := range p.Identities {
		t.row(id.ID+" "+id.Name, yes(id.Applied), fmt.Sprint(id.Tensors), id.Why)
	}
	t.print(w)
	fmt.Fprintln(w)
	for _, x := range p.Warnings {
		fmt.Fprintf(w, "warning: %s\n", x)
	}
	t = newTable("tensor", "shape", "from", "to", "action", "why")
	counts := map[convert.Action]int{}
	for _, x := range p.Tensors {
		why := x.Why
		if len(x.By) > 0 {
			why = strings.Join(x.By, ", ") + ": " + why
		}
		if x.Reorder {
			why += "; rotary pairs reordered"
		}
		t.row(x.Name, shapeText(x.Shape), x.From, x.To, string(x.Action), why)
		counts[x.Action]++
	}
	t.print(w)
	fmt.Fprintf(w, "\n%d tensors: %d copied, %d re-encoded, %d folded, %d dropped\n", len(p.Tensors),
		counts[convert.Copy], counts[convert.Recode], counts[convert.Fold], counts[convert.Drop])
	k := p.Keys
	fmt.Fprintf(w, "keys: code %s, %d signs a token over all heads (%.4g bits per number), %s, %d exceptions a key: %d bytes a token\n\n", k.Code, k.Signs, k.Bits, k.Spread, k.Exceptions, k.Bytes)
}

func printConversion(w io.Writer, out string, r *convert.Result) {
	m := r.Manifest
	fmt.Fprintf(w, "%s: %s, %d layers, %d KV heads of %d\n", m.Source.Name, m.Model.Family, m.Model.Layers, m.Model.KVHeads, m.Model.HeadDim)
	for _, id := range m.Identities {
		if id.Applied {
			fmt.Fprintf(w, "folded %s (%s) into %d tensors\n", id.ID, id.Name, id.Tensors)
		}
	}
	for _, p := range r.Plans {
		for _, x := range p.Warnings {
			fmt.Fprintf(w, "warning: %s\n", x)
		}
	}
	printFusion(w, m.Fusion)
	fmt.Fprintln(w)
	printVerify(w, r.Verify)
	fmt.Fprintf(w, "\nwritten to %s:\n", out)
	for _, f := range m.Files {
		fmt.Fprintf(w, "  %-28s %12d bytes\n", f.Name, f.Bytes)
	}
}

// printFusion shows how the change of keys was chosen and what it brings.
func printFusion(w io.Writer, f *spec.Fusion) {
	if f == nil {
		return
	}
	fmt.Fprintf(w, "\nkeys for a %s/%s cache at context %d, compared on %d later tokens of %s\n", f.KType, f.VType, f.TargetCtx, f.Text.Tokens, f.Text.Name)
	t := newTable("change", "KLD", "±", "PPL ratio", "same top", "cost with f16 caches", "")
	for _, x := range f.Tried {
		cost, mark := "-", ""
		if x.F16KLD != nil {
			cost = fmt.Sprintf("%.6f", *x.F16KLD)
		}
		if x.Name == f.Chosen {
			mark = "chosen"
		}
		t.row(x.Name, fmt.Sprintf("%.6f", x.KLD), fmt.Sprintf("%.6f", x.KLDErr), fmt.Sprintf("%.4f", x.PPLRatio), fmt.Sprintf("%.1f %%", 100*x.SameTop), cost, mark)
	}
	t.print(w)
	if f.Refused != "" {
		fmt.Fprintf(w, "slow means stay: %s\n", f.Refused)
	}
	if len(f.Measured) == 0 {
		return
	}
	fmt.Fprintln(w, "\nstock caches on held-out text, against the source with f16 caches")
	t = newTable("weights", "K", "V", "context", "PPL ratio", "KLD", "±", "same top")
	for _, x := range f.Measured {
		who := "source"
		if x.Converted {
			who = "converted"
		}
		t.row(who, x.KType, x.VType, fmt.Sprint(x.Ctx), fmt.Sprintf("%.4f", x.PPLRatio), fmt.Sprintf("%.6f", x.KLD), fmt.Sprintf("%.6f", x.KLDErr), fmt.Sprintf("%.1f %%", 100*x.SameTop))
	}
	t.print(w)
}
