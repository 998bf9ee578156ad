package command

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v3"

	"github.com/phaseconv/phaseconv/format/atomicfile"
	"github.com/phaseconv/phaseconv/internal/buildinfo"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/ladder"
	"github.com/phaseconv/phaseconv/verify/report"
)

// ownFlags makes flags those of a command alone: those below it neither show nor take them.
func ownFlags(flags []cli.Flag) []cli.Flag {
	for _, f := range flags {
		switch f := f.(type) {
		case *cli.StringFlag:
			f.Local = true
		case *cli.IntFlag:
			f.Local = true
		case *cli.IntSliceFlag:
			f.Local = true
		case *cli.BoolFlag:
			f.Local = true
		}
	}
	return flags
}

func ladderCommand(stdout, stderr io.Writer) *cli.Command {
	d := ladder.DefaultOptions()
	return &cli.Command{
		Name:      "ladder",
		Usage:     "measure whether the attention of layers can be a state of finite size",
		ArgsUsage: "SRC",
		Description: `Runs the rungs RW0 to RW3.1 in order and stops where a gate is not passed: fixed features,
merged slots, decay, live in the model. Each rung leaves a record in the folder of -o, and
ladder.html there shows them; in the folder "ladder" of an artifact they are part of its report.
The model is not changed. Exit code 1 means that the last rung asked for did not pass at every context.

Examples:
  phaseconv ladder ./SmolLM2-135M --fit wikitext-2-valid.txt --eval wikitext-2-test.txt -o rungs
  phaseconv ladder model.gguf --layers all --ctx 512,2048 --until RW1
  phaseconv ladder ./SmolLM2-135M -o rungs --resume
  phaseconv ladder show rungs`,
		Flags: ownFlags(slices.Concat(
			in("Ladder",
				&cli.StringFlag{Name: "layers", Usage: "first,middle,last or all or numbers from 0", Value: d.Layers},
				&cli.IntSliceFlag{Name: "ctx", Usage: "context lengths; the ladder runs once for each", Value: d.Ctx},
				&cli.StringFlag{Name: "until", Usage: "last rung: " + strings.Join(rungs(), ", ") + "; RW1 for all of it", Value: d.Until},
				&cli.IntFlag{Name: "queries", Usage: "queries of fit text per KV head that masses are measured with", Value: d.Queries},
			),
			in(categoryTexts,
				&cli.StringFlag{Name: "fit", Usage: "text that everything is fitted to", DefaultText: "one that comes with the program"},
				&cli.IntFlag{Name: "fit-chunks", Usage: "windows of it at the shortest context; longer ones get as many tokens", Value: d.FitWindows},
				&cli.StringFlag{Name: "eval", Usage: "held-out text that errors are measured on", DefaultText: "one that comes with the program"},
				&cli.IntFlag{Name: "chunks", Usage: "windows of it at the shortest context; longer ones get as many tokens", Value: d.EvalWindows},
			),
			in(categoryOutput,
				&cli.StringFlag{Name: "out", Aliases: []string{"o"}, Usage: "folder for the records, one per rung and context, and their page"},
				&cli.BoolFlag{Name: "resume", Usage: "with -o: take finished rungs whose inputs are the same from there"},
				jsonFlag(), threadsFlag(),
			),
		)),
		Action: func(ctx context.Context, c *cli.Command) error { return runLadder(ctx, c, stdout, stderr) },
		Commands: []*cli.Command{{
			Name: "show", Usage: "print the table of the records in a folder", ArgsUsage: "DIR",
			Description: `Reads what ladder -o wrote; nothing is measured. Exit code 1 means what it means there.

Examples:
  phaseconv ladder show rungs
  phaseconv ladder show rungs --json`,
			Flags:        in(categoryOutput, jsonFlag()),
			OnUsageError: usageError,
			Action: func(_ context.Context, c *cli.Command) error {
				dir, err := one(c, "folder")
				if err != nil {
					return err
				}
				res, err := ladder.Read(dir)
				if err != nil {
					return err
				}
				return show(c, stdout, res, res.Passed, func() { printLadder(stdout, res) })
			},
		}},
	}
}

func rungs() (out []string) {
	for _, r := range spec.Ladder() {
		out = append(out, r.ID)
	}
	return out
}

func runLadder(ctx context.Context, c *cli.Command, stdout, stderr io.Writer) error {
	src, err := one(c, "model")
	if err != nil {
		return err
	}
	o := ladder.DefaultOptions()
	o.Layers, o.Ctx, o.Until, o.Queries = c.String("layers"), c.IntSlice("ctx"), c.String("until"), c.Int("queries")
	o.FitWindows, o.EvalWindows, o.Out, o.Resume = c.Int("fit-chunks"), c.Int("chunks"), c.String("out"), c.Bool("resume")
	o.Tool, o.Threads, o.Progress = buildinfo.Tool(), c.Int("threads"), showProgress(stderr)
	if o.Resume && o.Out == "" {
		return usagef("--resume takes up the records of a folder; name it with -o")
	}
	if o.Fit, err = calibrationText(c.String("fit")); err != nil {
		return err
	}
	if o.Eval, err = evaluationText(c.String("eval")); err != nil {
		return err
	}
	ck, err := openSource(ctx, stderr, src)
	if err != nil {
		return err
	}
	defer ck.Close()
	res, err := ladder.Run(ctx, ck, o)
	if errors.Is(err, context.Canceled) && o.Out != "" {
		return fmt.Errorf("interrupted; rungs that were finished are in %s, and --resume goes on after them", o.Out)
	}
	if err != nil {
		return err
	}
	if o.Out != "" {
		if err := writeLadderPage(o.Out); err != nil {
			return err
		}
	}
	return show(c, stdout, res, res.Passed, func() { printLadder(stdout, res) })
}

// writeLadderPage writes the page about all records of a folder: of other contexts too.
func writeLadderPage(dir string) error {
	all, err := ladder.Read(dir)
	if err != nil {
		return err
	}
	var page bytes.Buffer
	if err := report.WriteLadder(&page, all); err != nil {
		return err
	}
	return atomicfile.WriteFile(filepath.Join(dir, "ladder.html"), page.Bytes())
}

func printLadder(w io.Writer, res *spec.LadderJSON) {
	number := func(p *float64, format string, scale float64) string {
		if p == nil {
			return ""
		}
		return fmt.Sprintf(format, *p*scale)
	}
	first := res.Records[0]
	say(w, "%s; fitted to %s, measured on %s\n", first.Source.Name, first.Fit.Name, first.Eval.Name)
	for i, r := range res.Records {
		if i == 0 || r.Ctx != res.Records[i-1].Ctx {
			fmt.Fprintf(w, "\n%d tokens, %d windows fitted to, %d measured\n\n", r.Ctx, r.Fit.Windows, r.Eval.Windows)
			t := newTable("rung", "status", "method", "final max", "gap", "falling", "replay", "log z", "cache %", "seconds")
			for _, x := range res.Records {
				if x.Ctx != r.Ctx {
					continue
				}
				layers := 0
				for _, l := range x.Layers {
					if !l.Native {
						layers++
					}
				}
				falling := ""
				if layers > 0 && (strings.HasPrefix(x.Rung.ID, "RW1") || strings.HasPrefix(x.Rung.ID, "RW2")) {
					falling = fmt.Sprintf("%d of %d", x.Monotone, layers)
				}
				t.row(x.Rung.ID, x.Status, x.Rung.Method, number(x.FinalMax, "%.4f", 1), number(x.Gap, "%.4f", 1), falling,
					number(x.Replay, "%.1e", 1), number(x.LogZ, "%.3f", 1), number(x.Share, "%.1f", 100), fmt.Sprintf("%.1f", x.Seconds))
			}
			t.print(w)
			printLive(w, res.Records, r.Ctx)
		}
	}
	fmt.Fprintln(w)
	for _, v := range res.Verdicts {
		say(w, "%s\n", v)
	}
	for _, r := range res.Records {
		if r.Status != spec.RungPass {
			say(w, "%s at %d: %s: %s\n", r.Rung.ID, r.Ctx, r.Status, r.Reason)
		}
	}
}

// printLive prints what models did some of whose layers ran on states.
func printLive(w io.Writer, records []spec.LadderRecord, ctx int) {
	t := newTable("rung", "layers", "NLL %", "error", "logits", "one token", "KLD", "copy NLL", "live", "status", "one token")
	for _, r := range records {
		for _, x := range r.Live {
			if r.Ctx != ctx {
				continue
			}
			layers := strings.ReplaceAll(strings.Trim(fmt.Sprint(x.Layers), "[]"), " ", ",")
			if len(x.Layers) > 4 {
				layers = fmt.Sprintf("%d layers", len(x.Layers))
			}
			t.row(r.Rung.ID, layers, fmt.Sprintf("%+.3f", 100*x.NLLInflation), fmt.Sprintf("%.3f", 100*x.NLLErr), fmt.Sprintf("%.4f", x.Logits),
				fmt.Sprintf("%.4f", x.LogitsStrict), fmt.Sprintf("%.5f", x.KLD), fmt.Sprintf("%.4f", x.CopyNLL), fmt.Sprintf("%.4f", x.CopyLive),
				x.Status, x.StrictStatus)
		}
	}
	if len(t.rows) > 0 {
		fmt.Fprintln(w)
		t.print(w)
	}
}
