package command

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v3"

	"phaseconv/convert"
	"phaseconv/format/checkpoint"
	"phaseconv/rotations"
	"phaseconv/verify"
	"phaseconv/verify/kvcache"
	"phaseconv/verify/probe"
	"phaseconv/verify/report"
)

func auditCommand(stdout, stderr io.Writer) *cli.Command {
	return &cli.Command{
		Name:      "audit",
		Usage:     "measure beta per layer and head, without writing anything",
		ArgsUsage: "SRC",
		Description: `SRC is a Hugging Face folder or a GGUF file.

Examples:
  phaseconv audit ./SmolLM2-135M
  phaseconv audit model.gguf --calib train.txt --text test.txt --json`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "calib", Usage: "calibration text (default: an embedded one)"},
			&cli.IntFlag{Name: "calib-tokens", Usage: "tokens to fit to", Value: 6144},
			&cli.StringFlag{Name: "text", Usage: "held-out text (default: an embedded one)"},
			&cli.IntFlag{Name: "ctx", Usage: "context length", Value: 512},
			&cli.IntFlag{Name: "chunks", Usage: "windows to measure, 0 for all", Value: 4},
			&cli.StringFlag{Name: "code", Usage: "code in the last column: " + strings.Join(rotations.Kinds, ", "), Value: "frame"},
			&cli.FloatFlag{Name: "bits", Usage: "signs per number of a key (frame only)", Value: 1},
			&cli.BoolFlag{Name: "balance", Usage: "audit the keys as the K/Q pair balance would leave them", Value: true},
			&cli.IntFlag{Name: "anchor", Usage: "block length B to anchor keys to, 0 for none", Value: 64},
			&cli.IntFlag{Name: "sink", Usage: "keys at the start that stay F16", Value: 4},
			&cli.IntFlag{Name: "recent", Usage: "latest keys that stay F16", Value: 0},
			reportFlag(), reportDetailFlag(),
			seedFlag(), threadsFlag(), jsonFlag(),
		},
		Action: func(ctx context.Context, c *cli.Command) error { return runAudit(ctx, c, stdout, stderr) },
	}
}

func runAudit(ctx context.Context, c *cli.Command, stdout, stderr io.Writer) error {
	src, err := one(c, "source")
	if err != nil {
		return err
	}
	o := verify.AuditOptions{
		CalibrationTokens: c.Int("calib-tokens"), Ctx: c.Int("ctx"), Chunks: c.Int("chunks"), Code: c.String("code"), Bits: c.Float("bits"),
		Balance: c.Bool("balance"), Policy: kvcache.Policy{Anchor: c.Int("anchor"), Sink: c.Int("sink"), Recent: c.Int("recent")},
		Seed: c.Uint64("seed"), Threads: c.Int("threads"), Progress: progress(stderr),
	}
	if o.Calibration, err = calibrationText(c.String("calib")); err != nil {
		return err
	}
	if o.Text, err = evaluationText(c.String("text")); err != nil {
		return err
	}
	ck, err := checkpoint.Open(src)
	if err != nil {
		return err
	}
	defer ck.Close()
	page := report.Model{Name: filepath.Base(filepath.Clean(src)), License: report.License(src)}
	if c.String("report") != "" {
		o.Probe = func(p probe.Options) (err error) {
			p.Detail = c.Bool("report-detail")
			page.Detail, err = probe.Run(ctx, p)
			return err
		}
	}
	res, err := verify.Audit(ctx, ck, o)
	if err != nil {
		return err
	}
	if path := c.String("report"); path != "" {
		page.Audit = res
		if err := convert.WriteReport(path, page); err != nil {
			return err
		}
	}
	if c.Bool("json") {
		return printJSON(stdout, res)
	}
	printBeta(stdout, res.Layers)
	p, k := res.PPL, res.KLD
	fmt.Fprintf(stdout, "\nPPL %.4f with float keys, %.4f with code %s (%.4fx), KLD %.4f, on %d tokens of %s; fitted to %d tokens of %s\n",
		p.Float, p.OneBit, p.Code, p.Ratio, k.Mean, p.Tokens, res.Text.Name, res.Calibration.Tokens, res.Calibration.Name)
	return nil
}
