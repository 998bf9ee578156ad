package command

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v3"

	"github.com/phaseconv/phaseconv/convert"
	"github.com/phaseconv/phaseconv/convert/bits"
	"github.com/phaseconv/phaseconv/convert/plan"
	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/engine"
	"github.com/phaseconv/phaseconv/verify/kvcache"
	"github.com/phaseconv/phaseconv/verify/quantweights"
)

func convertCommand(stdout, stderr io.Writer) *cli.Command {
	return &cli.Command{
		Name:      "convert",
		Usage:     "turn a checkpoint into a verified artifact",
		ArgsUsage: "SRC",
		Description: `SRC is a Hugging Face folder (safetensors) or a GGUF file.

` + hubNames + `

Examples:
  phaseconv convert ./SmolLM2-135M -o smol
  phaseconv convert HuggingFaceTB/SmolLM2-135M -o smol
  phaseconv convert model.gguf -o out --calib train.txt --eval test.txt
  phaseconv convert ./SmolLM2-135M -o smol --bits-kv 4 --pairs        # more bits, and layers in pairs
  phaseconv convert ./Qwen2.5-0.5B -o out --format both --dry-run
  phaseconv convert ./Llama-3-70B -o out --resume
  phaseconv convert ./Llama-3-70B -o out --unit 3/8    # one of eight processes, then
  phaseconv convert ./Llama-3-70B -o out --merge
  phaseconv convert model.gguf -o out --cache-type-k q4_0 --engine llama --devices CUDA0
  phaseconv convert ./SmolLM2-135M -o out --ffn auto --weights q4_0   # then llama-quantize out/model.gguf out.gguf Q4_0`,
		Flags:  convertFlags(),
		Action: func(ctx context.Context, c *cli.Command) error { return runConvert(ctx, c, stdout, stderr) },
	}
}

// Categories of convert's flags, in the order of the work.
const (
	categoryOutput  = "Output"
	categoryEngine  = "Engine"
	categoryCaches  = "Stock caches"
	categoryWeights = "Quantised weights"
	categoryOneBit  = "Codes of the cache"
	categoryJoint   = "Codes of the cache, joint"
	categoryTexts   = "Calibration"
	categoryUnits   = "Scale-out"
	categoryReports = "Report"
)

// in puts flags into a category.
func in(category string, flags ...cli.Flag) []cli.Flag {
	for _, f := range flags {
		f.(cli.CategorizableFlag).SetCategory(category)
	}
	return flags
}

func convertFlags() []cli.Flag {
	d := convert.DefaultOptions()
	return slices.Concat(
		in(categoryOutput,
			&cli.StringFlag{Name: "out", Aliases: []string{"o"}, Usage: "folder to create"},
			&cli.StringFlag{Name: "format", Usage: "gguf, safetensors or both", Value: "gguf"},
			&cli.StringFlag{Name: "outtype", Usage: "element type of re-encoded GGUF matrices: f32, f16, bf16, q8_0, or source for that of the source's (q8_0 where that cannot be written)",
				Value: d.OutType, DefaultText: d.OutType + ", source with --engine llama"},
			&cli.BoolFlag{Name: "dry-run", Usage: "print what would become of each tensor, and why, and stop"},
			jsonFlag(), threadsFlag(),
		),
		in(categoryEngine, engineFlags(engine.Own)...),
		in(categoryCaches,
			&cli.StringFlag{Name: "cache-type-k",
				Usage: "edit the weights for this key cache type of llama.cpp: q8_0, q4_0, ..., or of MLX: mlx8, mlx4 (what helps is measured)",
				Value: "f16"},
			&cli.StringFlag{Name: "cache-type-v", Usage: "the value cache type beside it", Value: "f16"},
			&cli.StringFlag{Name: "cache-rotation", Usage: "llama.cpp's attention rotation: on or off", Value: "on"},
			&cli.IntFlag{Name: "target-ctx", Usage: "context at which that cache will be used, in tokens",
				DefaultText: "4096, or the model's context if that is shorter"},
			&cli.IntFlag{Name: "cache-tokens", Usage: "calibration tokens that edits for that cache, or for --weights, are fitted to",
				Value: d.CacheTokens},
			&cli.StringFlag{Name: "weight-edits",
				Usage: "edits of weights that are allowed: none; exact (the model's function stays the same); approximate (also those that change it slightly, where the divergence with that cache falls by ten times what they cost)", DefaultText: "approximate with --cache-type-k, else exact"},
		),
		in(categoryWeights,
			&cli.StringFlag{Name: "ffn", Value: string(d.FFN),
				Usage: "exact changes of weights for a quantised file: none; scale (neurons and norms), rotate (the residual stream), or auto: what measures best, nothing where nothing helps"},
			&cli.StringFlag{Name: "weights", Usage: "the type that llama-quantize will give the matrices: " + quantweights.Names()},
			&cli.StringFlag{Name: "imatrix", Usage: "importance matrix of the source (GGUF) that llama-quantize will be given"},
		),
		in(categoryOneBit, &cli.StringFlag{Name: "code",
			Usage:       "joint: keys and values of a layer together; for keys alone: " + codec.KindNames(),
			DefaultText: "joint; frame with --bits, --outliers, --alloc angle, --cache-type-k or --engine llama, or where joint codes cannot be"}),
		keyFlags(d),
		in(categoryJoint,
			&cli.FloatFlag{Name: "bits-kv", Usage: "with --code joint: bits per pair of numbers, one of K and one of V, scales included; with --parts k or v bits per number",
				Value: convert.DefaultJoint().Bits, DefaultText: fmt.Sprintf("%g, half of it with --parts k or v",
					convert.DefaultJoint().Bits)},
			&cli.StringFlag{Name: "parts", Usage: "with --code joint: what a group of neighbouring heads holds: kv (keys and values), k or v (one of them alone; the other stays F16), k+v (each in groups of its own)",
				Value: string(convert.DefaultJoint().Parts)},
			&cli.IntFlag{Name: "span", Usage: "with --code joint: most numbers of a group's vector; heads beyond it go into more groups, and so do the keys and values of a head that is longer",
				Value: convert.DefaultJoint().Span},
			&cli.BoolFlag{Name: "trade",
				Usage: "with --code joint: measure --span and --anchor, those that are not named, and take what is worth its decode cost: twice the cost for three quarters of the divergence"},
			&cli.BoolFlag{Name: "pairs",
				Usage: "with --code joint: code every second layer given the codes of the layer below it; less divergence at the same bytes, for half as much decode work again"},
			&cli.FloatFlag{Name: "key-share", Value: convert.DefaultJoint().Shares.Key,
				Usage: "with --code joint: part of a group's signs that keys are decoded from, above 0 to 1; less is faster, see docs/speed.md"},
			&cli.FloatFlag{Name: "value-share", Value: convert.DefaultJoint().Shares.Value,
				Usage: "with --code joint: part of a group's signs that values are decoded from"},
			&cli.BoolFlag{Name: "fisher", Value: true, DefaultText: "on where every layer has a backward pass",
				Usage: "with --code joint: weigh errors by gradients of the model's own loss; --fisher=false weighs them by queries and is faster"},
		),
		in(categoryTexts, append(textFlags(d), &cli.StringFlag{Name: "eval", Usage: "held-out text to measure on",
			DefaultText: "one that comes with the program"})...),
		in(categoryReports,
			&cli.BoolFlag{Name: "report", Usage: "write report.html into the artifact", Value: d.Report},
			&cli.BoolFlag{Name: "report-detail", Usage: "measure more for it: each layer alone, other codes, other contexts"},
		),
		in(categoryUnits, unitFlags()...),
	)
}

// keyFlags say how keys are coded.
func keyFlags(d convert.Options) []cli.Flag {
	return in(categoryOneBit,
		&cli.FloatFlag{Name: "bits", Usage: "bits (signs) per number of a key, on average over all heads (frame only)",
			Value: d.Bits},
		&cli.StringFlag{Name: "alloc", Usage: "bit allocation over heads: uniform, sensitivity (by measured cost) or angle",
			DefaultText: "sensitivity for frames of keys, else uniform; layers of joint codes can take sensitivity"},
		&cli.IntFlag{Name: "outliers",
			Usage: "coordinates of each coded key that are kept in F16 beside its signs, 0 to head_dim/2",
			Value: d.Policy.Exceptions},
		&cli.IntFlag{Name: "anchor", Usage: "tokens in a position block: keys are coded with RoPE relative to its first position; 0 for absolute positions", Value: d.Policy.Anchor},
		&cli.IntFlag{Name: "sink", Usage: "tokens at the start (attention sinks) that stay F16", Value: d.Policy.Sink},
		&cli.IntFlag{Name: "recent", Usage: "latest tokens that stay F16", DefaultText: fmt.Sprintf("%d with joint codes, else 0",
			convert.JointRecent)},
		&cli.BoolFlag{Name: "break-drafter",
			Usage: "edit the keys and values that a drafter reads too (gemma4-assistant); without it those layers stay as they are"},
		&cli.BoolFlag{Name: "balance",
			Usage: "fold the K/Q pair scaling into the weights: one scale per KV head and rotary pair, divided out of Q (exact; on unless --balance=false)",
			Value: d.Balance},
	)
}

// textFlags say what is fitted to, and how much of it.
func textFlags(d convert.Options) []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "calib", Usage: "calibration text", DefaultText: "one that comes with the program"},
		&cli.IntFlag{Name: "calib-tokens", Usage: "tokens to fit to, in windows spread over the text", Value: d.CalibrationTokens},
		&cli.IntFlag{Name: "ctx", Usage: "context length of calibration and measuring", Value: d.Ctx},
		&cli.IntFlag{Name: "chunks", Usage: "windows to measure, 0 for all", Value: d.Chunks},
		seedFlag(),
	}
}

func runConvert(ctx context.Context, c *cli.Command, stdout, stderr io.Writer) error {
	src, err := one(c, "source")
	if err != nil {
		return err
	}
	o := convert.DefaultOptions()
	if o.Source, err = local(ctx, stderr, src); err != nil {
		return err
	}
	o.Out, o.OutType = c.String("out"), c.String("outtype")
	o.BreakDrafter = c.Bool("break-drafter")
	if err := codeOptions(c, &o); err != nil {
		return err
	}
	o.CalibrationTokens, o.Ctx, o.Chunks, o.Seed, o.Threads = c.Int("calib-tokens"), c.Int("ctx"), c.Int("chunks"),
		c.Uint64("seed"), c.Int("threads")
	o.Command, o.Progress, o.Notice = recorded(c, src), showProgress(stderr), notes(stderr)
	o.Report, o.ReportDetail = c.Bool("report"), c.Bool("report-detail")
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
	if err := cacheOptions(c, &o); err != nil {
		return err
	}
	if err := weightOptions(c, &o); err != nil {
		return err
	}
	if c.Bool("dry-run") {
		if f := firstSet(c, "plan", "unit", "merge"); f != "" {
			return usagef("--dry-run and --%s do not go together", f)
		}
		return dryRun(ctx, c, o, stdout, stderr)
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
	end, err := convertEngine(ctx, c, &o, stderr)
	if err != nil {
		return err
	}
	defer end()
	if done, err := unitOptions(ctx, c, &o, stdout); done || err != nil {
		return err
	}
	res, err := convert.Convert(ctx, o)
	if err != nil {
		return keptLayers(err, o)
	}
	return show(c, stdout, res.Verify, res.Verify.OK, func() { printConversion(stdout, o.Out, res) })
}

// convertEngine starts the engine that was asked for; end closes it.
func convertEngine(ctx context.Context, c *cli.Command, o *convert.Options, stderr io.Writer) (end func(), err error) {
	on, err := rotation(c)
	if err != nil {
		return nil, err
	}
	e, err := chosenEngine(c, on)
	if err != nil {
		return nil, err
	}
	if e.settle(o.Source); e.Kind == engine.Own {
		return func() {}, nil
	}
	engines, err := e.engines(ctx, stderr)
	if err != nil {
		return nil, err
	}
	engines.KeyBias = o.Cache != nil && o.Cache.K.Quantized() && o.WeightEdits != plan.EditsNone
	o.Engines = engines
	if !c.IsSet("outtype") {
		o.OutType = plan.OutTypeSource
	}
	return engines.Close, nil
}

// codeJoint is the --code of keys and values together: frames over the heads of a layer.
const codeJoint = spec.CodeJoint

// codeOptions reads what is coded, and how. Nothing named means keys and values together where they can be.
func codeOptions(c *cli.Command, o *convert.Options) error {
	code, named := c.String("code"), c.IsSet("code")
	o.Code, o.Bits, o.Alloc = codec.Frame, c.Float("bits"), bits.Alloc(c.String("alloc"))
	o.Balance, o.Policy = c.Bool("balance"), policy(c)
	ofJoint := firstSet(c, "bits-kv", "parts", "span", "trade", "pairs", "key-share", "value-share", "fisher")
	ofKeys := firstSet(c, "bits", "outliers")
	switch {
	case !named && ofJoint == "" && (ofKeys != "" || o.Alloc == bits.AllocAngle):
		o.Joint = nil
		return nil
	case named && code != codeJoint:
		var err error
		if o.Code, err = codec.ParseKind(code); err != nil {
			return usagef("--code %q: %w or %s", code, err, codeJoint)
		}
		if ofJoint != "" {
			return usagef("--%s goes with --code %s", ofJoint, codeJoint)
		}
		o.Joint = nil
		return nil
	case ofKeys != "":
		return usagef("--%s has no effect with --code %s; see --bits-kv", ofKeys, codeJoint)
	}
	j := convert.DefaultJoint()
	j.OrKeys, j.OrNoRecent = !named && ofJoint == "", !c.IsSet("recent")
	j.Parts, j.Span, j.Fisher, j.IfAble = bits.Parts(c.String("parts")), c.Int("span"), c.Bool("fisher"), !c.IsSet("fisher")
	if c.IsSet("bits-kv") {
		j.Bits = c.Float("bits-kv")
	} else if !j.Parts.Whole() {
		j.Bits /= 2
	}
	j.Pairs, j.Shares = c.Bool("pairs"), bits.Shares{Key: c.Float("key-share"), Value: c.Float("value-share")}
	if c.Bool("trade") {
		j.ChooseSpan, j.ChooseAnchor = !c.IsSet("span"), !c.IsSet("anchor")
		if !j.ChooseSpan && !j.ChooseAnchor {
			return usagef("--trade has nothing to choose: --span and --anchor are named")
		}
	}
	o.Joint = &j
	if !c.IsSet("recent") {
		o.Policy.Recent = convert.JointRecent
	}
	return nil
}

// policy reads which keys are coded, and how.
func policy(c *cli.Command) kvcache.Policy {
	return kvcache.Policy{Anchor: c.Int("anchor"), Sink: c.Int("sink"), Recent: c.Int("recent"),
		Exceptions: c.Int("outliers")}
}

// cacheOptions reads what to do for stock cache types.
func cacheOptions(c *cli.Command, o *convert.Options) error {
	o.WeightEdits, o.TargetCtx, o.CacheTokens = plan.WeightEdits(c.String("weight-edits")), c.Int("target-ctx"),
		c.Int("cache-tokens")
	if c.IsSet("target-ctx") && o.TargetCtx == 0 {
		return usagef("--target-ctx 0: name a context")
	}
	var err error
	if o.Cache, err = stockTypes(c); err != nil {
		return err
	}
	switch {
	case c.IsSet("cache-type-v") && !c.IsSet("cache-type-k"):
		return usagef("--cache-type-v goes with --cache-type-k")
	case o.Cache == nil && c.IsSet("target-ctx"):
		return usagef("--target-ctx is for changes of the weights for a cache type; name one with --cache-type-k")
	case o.Cache == nil && c.IsSet("cache-tokens") && !c.IsSet("weights"):
		return usagef("--cache-tokens is for changes of the weights for a cache or weight type; name one with --cache-type-k or --weights")
	case o.Cache != nil && o.Cache.K.CacheOnly() != o.Cache.V.CacheOnly() ||
		o.Cache != nil && o.Cache.K.CacheOnly() && o.Cache.K != o.Cache.V:
		return usagef("--cache-type-k %s --cache-type-v %s: MLX quantises K and V alike", kvcache.TypeName(o.Cache.K),
			kvcache.TypeName(o.Cache.V))
	case o.Cache != nil && o.Cache.K.CacheOnly() && c.String("format") != "safetensors":
		return usagef("--cache-type-k %s is for --format safetensors: MLX reads folders", kvcache.TypeName(o.Cache.K))
	case o.Cache != nil && c.IsSet("balance"):
		return usagef("--balance and --cache-type-k do not go together: with a cache type, measurements decide about the pair scaling; see --weight-edits")
	}
	return nil
}

// weightOptions reads what to do for the type of a quantised file.
func weightOptions(c *cli.Command, o *convert.Options) (err error) {
	if o.FFN, err = plan.ParseFFN(c.String("ffn")); err != nil {
		return err
	}
	if c.IsSet("weights") {
		t, err := quantweights.Parse(c.String("weights"))
		if err != nil {
			return err
		}
		o.Weights = &t
	}
	o.Imatrix = c.String("imatrix")
	return nil
}

func dryRun(ctx context.Context, c *cli.Command, o convert.Options, stdout, stderr io.Writer) error {
	end, err := convertEngine(ctx, c, &o, stderr)
	if err != nil {
		return err
	}
	defer end()
	plans, err := convert.Plans(ctx, o)
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

func printPlan(w io.Writer, p *plan.Plan) {
	fmt.Fprintf(w, "plan for %s (rotary pairs: %s)\n\n", p.Container, p.PairLayout)
	t := newTable("identity", "folded", "tensors", "why")
	for _, id := range p.Identities {
		t.row(id.ID+" "+id.Name, yes(id.Applied), fmt.Sprint(id.Tensors), id.Why)
	}
	t.print(w)
	fmt.Fprintln(w)
	for _, x := range p.Warnings {
		say(w, "warning: %s\n", x)
	}
	t = newTable("tensor", "shape", "from", "to", "action", "why")
	counts := map[plan.Action]int{}
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
		counts[plan.Copy], counts[plan.Recode], counts[plan.Fold], counts[plan.Drop])
	if p.Bytes > 0 {
		fmt.Fprintf(w, "%d bytes of tensors, in the source %d\n", p.Bytes, p.SourceBytes)
	}
	k := p.Keys
	if k.Groups > 0 {
		fmt.Fprintf(w, "%s: %d groups of up to %d numbers, %d signs a token (%.4g bits per number), %s: %d bytes a token, scales included\n",
			partsText(string(k.Parts)), k.Groups, k.GroupDim, k.Signs, k.Bits, k.Spread, k.Bytes)
		if k.Pairs {
			fmt.Fprintln(w, "every second layer is coded given the codes of the layer below it (--pairs)")
		}
		if k.KeyShare > 0 {
			fmt.Fprintf(w, "keys are decoded from %.3g, values from %.3g of a group's signs\n", k.KeyShare, k.ValueShare)
		}
		if len(k.MeasuredChoices) > 0 {
			fmt.Fprintf(w, "--trade measures and chooses: %s; the numbers above are of what it starts from\n",
				strings.Join(k.MeasuredChoices, ", "))
		}
		fmt.Fprintln(w)
		return
	}
	fmt.Fprintf(w, "keys: code %s, %d signs a token over all heads (%.4g bits per number), %s, %d outliers a key: %d bytes a token\n\n", k.Code, k.Signs, k.Bits, k.Spread, k.Exceptions, k.Bytes)
}

func printConversion(w io.Writer, out string, r *convert.Result) {
	m := r.Manifest
	say(w, "%s: %s, %d layers, %d KV heads of %d\n", m.Source.Name, m.Model.Family, m.Model.Layers,
		m.Model.KVHeads, m.Model.HeadDim)
	for _, id := range m.Identities {
		if id.Applied {
			say(w, "folded %s (%s) into %d tensors\n", id.ID, id.Name, id.Tensors)
		}
	}
	for _, p := range r.Plans {
		for _, x := range p.Warnings {
			say(w, "warning: %s\n", x)
		}
	}
	printFusion(w, m.Fusion)
	printWeightType(w, m.FFN)
	fmt.Fprintln(w)
	printVerify(w, r.Verify)
	say(w, "\nwritten to %s:\n", out)
	for _, f := range m.Files {
		say(w, "  %-28s %12d bytes\n", f.Name, f.Bytes)
	}
	say(w, "and %s, which lists them and what was measured", spec.ManifestName)
	page := filepath.Join(out, spec.ReportName)
	if _, err := os.Stat(page); err == nil {
		say(w, "; %s shows it", page)
	}
	fmt.Fprintln(w)
}

// printFusion shows how the change of keys was chosen and what it brings.
func printFusion(w io.Writer, f *spec.Fusion) {
	if f == nil {
		return
	}
	say(w, "\nkeys for a %s/%s cache at context %d, compared on %d later tokens of %s\n", f.KType, f.VType,
		f.TargetCtx, f.Text.Tokens, f.Text.Name)
	t := newTable("change", "KLD", "±", "PPL ratio", "same top", "cost with f16 caches", "")
	for _, x := range f.Tried {
		cost, mark := "-", ""
		if x.F16KLD != nil {
			cost = fmt.Sprintf("%.6f", *x.F16KLD)
		}
		if x.Name == f.Chosen {
			mark = "chosen"
		}
		t.row(x.Name, fmt.Sprintf("%.6f", x.KLD), fmt.Sprintf("%.6f", x.KLDErr), fmt.Sprintf("%.4f", x.PPLRatio),
			fmt.Sprintf("%.1f %%", 100*x.SameTop), cost, mark)
	}
	t.print(w)
	if len(f.Tried) > 0 && f.Chosen == f.Tried[0].Name {
		fmt.Fprintln(w, "no change brings a gain that is clear on this text: the weights keep their values")
	}
	if f.Refused != "" {
		say(w, "key biases are not shifted: %s\n", f.Refused)
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
		t.row(who, x.KType, x.VType, fmt.Sprint(x.Ctx), fmt.Sprintf("%.4f", x.PPLRatio), fmt.Sprintf("%.6f", x.KLD),
			fmt.Sprintf("%.6f", x.KLDErr), fmt.Sprintf("%.1f %%", 100*x.SameTop))
	}
	t.print(w)
}

// printWeightType shows how the change for a weight type was chosen and what it brings.
func printWeightType(w io.Writer, f *spec.FFNFold) {
	if f == nil {
		return
	}
	fmt.Fprintf(w, "\nweights for %s, compared on %d tokens of %s that nothing was fitted to\n", f.FileType, f.Text.Tokens, f.Text.Name)
	rows := func(list []spec.FFNTry) {
		t := newTable("weights", "bits", "KLD", "±", "PPL ratio", "same top", "")
		for _, x := range list {
			mark := ""
			if x.Name == f.Chosen {
				mark = "chosen"
			}
			t.row(x.Name, fmt.Sprintf("%.3f", x.Bits), fmt.Sprintf("%.6f", x.KLD), fmt.Sprintf("%.6f", x.KLDErr),
				fmt.Sprintf("%.4f", x.PPLRatio), fmt.Sprintf("%.1f %%", 100*x.SameTop), mark)
		}
		t.print(w)
	}
	rows(f.Tried)
	if len(f.Measured) > 0 {
		fmt.Fprintf(w, "\nas %s on held-out text, against the source in floats\n", f.FileType)
		rows(f.Measured)
	}
}
