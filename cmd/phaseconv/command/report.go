package command

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v3"

	"github.com/phaseconv/phaseconv/kernels/parallel"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/audit"
	"github.com/phaseconv/phaseconv/verify/contract"
	"github.com/phaseconv/phaseconv/verify/engine"
	"github.com/phaseconv/phaseconv/verify/figures"
	"github.com/phaseconv/phaseconv/verify/ppl"
	"github.com/phaseconv/phaseconv/verify/report"
	"github.com/phaseconv/phaseconv/verify/texts"
)

func reportCommand(stdout, stderr io.Writer) *cli.Command {
	return &cli.Command{
		Name:      "report",
		Usage:     "write report.html about one model or several side by side",
		ArgsUsage: "ARTIFACT|JSON...",
		Description: `ARTIFACT is a folder that "phaseconv convert" wrote. JSON is what verify, audit
or advise print with --json, a manifest, or a report.json; the results of verify
and advise belong to the model named before them. The page is one file and asks
no network for anything.

Examples:
  phaseconv report smol
  phaseconv report smol advise.json -o smol.html
  phaseconv report smol qwen gemma -o compared.html
  phaseconv report smol --ffn
  phaseconv report smol --measure --text test.txt --calib train.txt --report-detail`,
		Flags: append(engineFlags(engine.Own), []cli.Flag{
			&cli.StringFlag{Name: "out", Aliases: []string{"o"},
				Usage: "file to write (default: report.html in the artifact if there is just one, else here)"},
			&cli.BoolFlag{Name: "measure",
				Usage: "measure positions, angles and samples of the artifacts again and keep them in report.json"},
			&cli.BoolFlag{Name: "ffn", Usage: "measure the FFN weights of the artifacts and keep that in report.json"},
			&cli.BoolFlag{Name: "report-detail",
				Usage: "with --measure: also each layer alone, other codes and other contexts; about one forward pass for each layer"},
			&cli.StringFlag{Name: "text", Usage: "with --measure: held-out text (default: an embedded one)"},
			&cli.StringFlag{Name: "calib",
				Usage: "with --measure: the text that was fitted to, for codes of other sizes in the last probe (default: the embedded one, if it was that)"},
			&cli.IntFlag{Name: "calib-tokens", Usage: "with --measure: tokens to fit those to", Value: 4096},
			&cli.IntFlag{Name: "ctx", Usage: "with --measure: context length", Value: 512},
			&cli.IntFlag{Name: "chunks", Usage: "with --measure: windows", Value: 2},
			seedFlag(), threadsFlag(),
		}...),
		Action: func(ctx context.Context, c *cli.Command) error { return runReport(ctx, c, stdout, stderr) },
	}
}

func runReport(ctx context.Context, c *cli.Command, stdout, stderr io.Writer) error {
	args := c.Args().Slice()
	switch {
	case len(args) == 0:
		return usagef("report: name at least one artifact or file of JSON")
	case len(args) > 4*report.MaxModels:
		return usagef("report: %d arguments; at most %d models can be shown", len(args), report.MaxModels)
	case c.Bool("report-detail") && !c.Bool("measure"):
		return usagef("report: --report-detail needs --measure")
	case c.Int("calib-tokens") < 0:
		return usagef("--calib-tokens %d: it cannot be negative", c.Int("calib-tokens"))
	}
	if err := goWith(c, "measure", "text", "calib", "calib-tokens", "ctx", "chunks", "engine", "devices",
		"rpc", "gpu-layers"); err != nil {
		return err
	}
	if err := writable(c, "out"); err != nil {
		return err
	}
	folders := 0
	for _, a := range args {
		st, err := os.Stat(a)
		if err != nil {
			return err
		}
		if !st.IsDir() {
			continue
		}
		folders++
		if c.Bool("measure") || c.Bool("ffn") {
			if err := measureReport(ctx, c, a, stderr); err != nil {
				return err
			}
		}
	}
	if (c.Bool("measure") || c.Bool("ffn")) && folders == 0 {
		return usagef("report: --measure and --ffn need an artifact folder")
	}
	out := c.String("out")
	if out == "" {
		out = spec.ReportName
		if st, err := os.Stat(args[0]); err == nil && st.IsDir() && folders == 1 {
			out = filepath.Join(args[0], spec.ReportName)
		}
	}
	if err := report.Render(args, out); err != nil {
		return err
	}
	fmt.Fprintln(stdout, "written to", out)
	return nil
}

// measureReport fills an artifact's report.json.
func measureReport(ctx context.Context, c *cli.Command, dir string, stderr io.Writer) error {
	checks := &contract.Checker{Progress: showProgress(stderr)}
	a, err := contract.Open(ctx, dir, "", checks)
	if err != nil {
		return err
	}
	if a != nil {
		defer a.Close()
	}
	if err := checks.Failed(); err != nil {
		return fmt.Errorf("%s does not pass its contract: %w", dir, err)
	}
	if c.Bool("ffn") {
		if g := a.Model.Graph; g != nil {
			return usagef("--ffn: the table of families lacks architecture %s, so its FFN weights are not known", g.Architecture)
		}
		rows, err := audit.FFN(ctx, a.Model.Config, a.Model, audit.FFNOptions{
			Seed: c.Uint64("seed"), Threads: parallel.Threads(c.Int("threads")),
			Progress: showProgress(stderr).Of("auditing FFN matrices"),
		})
		if err != nil {
			return err
		}
		if err := report.Update(dir, func(r *spec.ReportJSON) { r.FFN = rows }); err != nil {
			return err
		}
	}
	if !c.Bool("measure") {
		return nil
	}
	o := figures.ReportOptions{
		CalibrationTokens: c.Int("calib-tokens"), Ctx: c.Int("ctx"), Chunks: c.Int("chunks"), Full: c.Bool("report-detail"),
		Seed: c.Uint64("seed"), Threads: c.Int("threads"), Progress: checks.Progress,
	}
	if o.Text, err = evaluationText(c.String("text")); err != nil {
		return err
	}
	embedded := ppl.Text{Name: texts.CalibrationName, Data: texts.Calibration}
	if c.String("calib") != "" || embedded.SHA256() == a.Sidecar.Calibration.SHA256 {
		if o.Calibration, err = calibrationText(c.String("calib")); err != nil {
			return err
		}
		if got := o.Calibration.SHA256(); got != a.Sidecar.Calibration.SHA256 {
			return usagef("--calib %s has SHA-256 %s, but the artifact was fitted to a text with %s", o.Calibration.Name, got,
				a.Sidecar.Calibration.SHA256)
		}
	}
	e, err := chosenEngine(c, true)
	if err != nil {
		return err
	}
	if e.settleArtifact(dir); e.Kind == engine.Llama {
		if o.Full {
			return usagef("--report-detail is for --engine own")
		}
		engines, err := e.engines(ctx, stderr)
		if err != nil {
			return err
		}
		defer engines.Close()
		o.Engines = engines
	} else if a.Model.Graph != nil {
		return usagef("%s: the own pass knows no architecture %s; take --engine llama", dir,
			printable(a.Model.Graph.Architecture))
	}
	d, err := figures.Detail(ctx, a, o)
	if err != nil {
		return err
	}
	return report.Update(dir, func(r *spec.ReportJSON) { r.Detail = d })
}

// reportFlag of commands that measure.
func reportFlag() cli.Flag {
	return &cli.StringFlag{Name: "report", Usage: "write a page about the result to this file"}
}

func reportDetailFlag() cli.Flag {
	return &cli.BoolFlag{Name: "report-detail",
		Usage: "measure more for it: each layer alone, other codes, other contexts"}
}

// verifyReport writes a page about an artifact with a verification of its own. Of
// an artifact whose manifest cannot be read it shows the failed contract.
func verifyReport(path, dir string, res *spec.VerifyJSON) error {
	models, err := report.Load([]string{dir})
	if err != nil {
		models = []report.Model{{Name: filepath.Base(filepath.Clean(dir))}}
	}
	models[0].Verify = res
	return report.WriteFile(path, models...)
}
