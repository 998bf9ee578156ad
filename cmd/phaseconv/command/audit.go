package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/urfave/cli/v3"

	"github.com/phaseconv/phaseconv/convert"
	"github.com/phaseconv/phaseconv/convert/bits"
	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/format/hub"
	"github.com/phaseconv/phaseconv/rotations/codec"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/audit"
	"github.com/phaseconv/phaseconv/verify/engine"
	"github.com/phaseconv/phaseconv/verify/figures"
	"github.com/phaseconv/phaseconv/verify/report"
)

func auditCommand(stdout, stderr io.Writer) *cli.Command {
	return &cli.Command{
		Name:      "audit",
		Usage:     "measure beta per layer and head, without writing anything",
		ArgsUsage: "SRC",
		Description: `SRC is a Hugging Face folder or a GGUF file. ` + hubToo + `

Examples:
  phaseconv audit ./SmolLM2-135M
  phaseconv audit model.gguf --calib train.txt --text test.txt --json
  phaseconv audit model.gguf --gains --target-ctx 8192   # a second: what to expect of a conversion
  phaseconv audit falcon.gguf --engine llama             # architectures that only llama.cpp knows`,
		Flags:  auditFlags(),
		Action: func(ctx context.Context, c *cli.Command) error { return runAudit(ctx, c, stdout, stderr) },
	}
}

func auditFlags() []cli.Flag {
	d := convert.DefaultOptions()
	return slices.Concat(
		in(categoryOutput, jsonFlag(), threadsFlag()),
		in("Gains and biases",
			&cli.BoolFlag{Name: "gains", Usage: "read norm gains and biases only, and say what a conversion can win; no text is run"},
			&cli.IntFlag{Name: "target-ctx", Usage: "with --gains: context in tokens that constants must stay constant over",
				DefaultText: "the model's"},
		),
		in(categoryOneBit, &cli.StringFlag{Name: "code", Usage: "key code: " + codec.KindNames(), Value: string(d.Code)}),
		keyFlags(d),
		in(categoryTexts, append(textFlags(d), &cli.StringFlag{Name: "text", Usage: "held-out text to measure on",
			DefaultText: "one that comes with the program"})...),
		in("FFN weights",
			&cli.BoolFlag{Name: "ffn", Usage: "also measure 1-bit rows of the FFN matrices: as they stand, Hadamard, learned rotations"},
			&cli.IntFlag{Name: "ffn-block", Usage: "with --ffn: largest block of a learned rotation", Value: 128},
		),
		in(categoryReports, reportFlag(), reportDetailFlag()),
		in(categoryEngine, engineFlags(engine.Own)...),
	)
}

// maxGains is how large a tensor may be that audit --gains reads from the hub, in bytes: gains and
// biases are smaller, matrices larger.
const maxGains = 256 << 10

func runAudit(ctx context.Context, c *cli.Command, stdout, stderr io.Writer) error {
	src, err := one(c, "source")
	if err != nil {
		return err
	}
	if c.Bool("gains") {
		if hub.Is(src) {
			o, remove, err := outlined(ctx, stderr, src, maxGains)
			if err != nil {
				return err
			}
			defer remove()
			src = o.Path
		}
		if c.String("engine") != engine.Own {
			return usagef("--gains reads weights alone, without an engine")
		}
		return runGains(ctx, c, src, stdout)
	}
	if c.IsSet("target-ctx") {
		return usagef("--target-ctx is for audit --gains")
	}
	if err := errors.Join(goWith(c, "ffn", "ffn-block"), goWith(c, "report", "report-detail")); err != nil {
		return err
	}
	if err := writable(c, "report"); err != nil {
		return err
	}
	o := convert.DefaultAuditOptions()
	o.CalibrationTokens, o.Ctx, o.Chunks, o.Seed, o.Threads = c.Int("calib-tokens"), c.Int("ctx"), c.Int("chunks"),
		c.Uint64("seed"), c.Int("threads")
	o.Code, o.Bits, o.Alloc = codec.Kind(c.String("code")), c.Float("bits"), bits.Alloc(c.String("alloc"))
	o.Balance, o.Policy = c.Bool("balance"), policy(c)
	o.Progress, o.Notice = showProgress(stderr), notes(stderr)
	if o.Calibration, err = calibrationText(c.String("calib")); err != nil {
		return err
	}
	if o.Text, err = evaluationText(c.String("text")); err != nil {
		return err
	}
	ck, src, end, err := auditSource(ctx, c, stderr, src, &o)
	if err != nil {
		return err
	}
	defer end()
	if o.Engines != nil && c.Bool("report-detail") {
		return usagef("--report-detail is for --engine own")
	}
	if c.Bool("ffn") {
		if b := c.Int("ffn-block"); b < 1 || b > codec.MaxDim {
			return usagef("--ffn-block %d: it must be from 1 to %d", b, codec.MaxDim)
		}
		o.FFN = &audit.FFNOptions{Block: c.Int("ffn-block")}
	}
	page := report.Model{Name: ck.Name(), License: report.ReadLicense(src)}
	if c.String("report") != "" {
		o.Figures = func(p figures.Options) (err error) {
			p.Detail = c.Bool("report-detail")
			page.Detail, err = figures.Run(ctx, p)
			return err
		}
	}
	res, err := convert.Audit(ctx, ck, o)
	if err != nil {
		return err
	}
	if path := c.String("report"); path != "" {
		page.Audit, page.FFN = res, res.FFN
		if err := report.WriteFile(path, page); err != nil {
			return err
		}
	}
	if c.Bool("json") {
		return printJSON(stdout, res)
	}
	printBeta(stdout, res.Layers)
	printFFN(stdout, audit.FFNMeans(res.FFN))
	p, k := res.PPL, res.KLD
	say(stdout, "\nPPL %.4f with float keys, %.4f with code %s (%.4fx), KLD %.4f, on %d tokens of %s; fitted to %d tokens of %s\n",
		p.Float, p.OneBit, p.Code, p.Ratio, k.Mean, p.Tokens, res.Text.Name, res.Calibration.Tokens, res.Calibration.Name)
	if res.Engine != nil {
		say(stdout, "computed by %s\n", engineName(res.Engine))
	}
	return nil
}

// auditSource opens the source with the engine that was asked for. end closes both.
func auditSource(ctx context.Context, c *cli.Command, stderr io.Writer, name string, o *convert.AuditOptions) (
	ck *checkpoint.Checkpoint, src string, end func(), err error) {
	e, err := chosenEngine(c, true)
	if err != nil {
		return nil, "", nil, err
	}
	if src, err = local(ctx, stderr, name); err != nil {
		return nil, "", nil, err
	}
	if e.settle(src); e.Kind == engine.Own {
		if ck, err = openSource(ctx, stderr, src); err != nil {
			return nil, "", nil, err
		}
		return ck, src, func() { ck.Close() }, nil //nolint:errcheck // only read
	}
	engines, err := e.engines(ctx, stderr)
	if err != nil {
		return nil, "", nil, err
	}
	if ck, err = engines.Source(ctx, src); err != nil {
		engines.Close()
		return nil, "", nil, err
	}
	printNotes(stderr, ck)
	o.Engines = engines
	return ck, src, func() { ck.Close(); engines.Close() }, nil //nolint:errcheck // only read
}

// printFFN prints means over layers, and over experts of those that were looked at
// one by one.
func printFFN(w io.Writer, means []spec.FFNMean) {
	if len(means) == 0 {
		return
	}
	fmt.Fprintln(w, "\nbeta of FFN rows, means over layers; learned on every other row, cos1bit and moment_ratio are of the rows between (Gaussian floors 0.798 and 0.637)")
	t := newTable("matrix", "rows of", "rotation", "dims", "block", "rows/dim", "train", "on noise", "cos1bit",
		"moment_ratio", "bits/weight")
	for _, m := range means {
		of, train, noise := "all", "-", "-"
		if m.Each {
			of = "one expert"
		}
		if m.TrainCos1bit != nil {
			train, noise = fmt.Sprintf("%.4f", *m.TrainCos1bit), fmt.Sprintf("%.4f", *m.NoiseCos1bit)
		}
		t.row(m.Matrix, of, m.Rotation, fmt.Sprint(m.Dims), fmt.Sprint(m.Block), fmt.Sprintf("%.2f", m.RowsPerDim), train,
			noise,
			fmt.Sprintf("%.4f", m.Cos1bit), fmt.Sprintf("%.4f", m.MomentRatio), fmt.Sprintf("%.3f", m.EffectiveBits))
	}
	t.print(w)
}
