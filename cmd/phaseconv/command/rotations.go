package command

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v3"

	"github.com/phaseconv/phaseconv/convert"
	"github.com/phaseconv/phaseconv/internal/buildinfo"
	"github.com/phaseconv/phaseconv/rotations/sidecar"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/contract"
	"github.com/phaseconv/phaseconv/verify/progress"
)

func rotationsCommand(stdout, stderr io.Writer) *cli.Command {
	app := &cli.Command{
		Name:  "rotations",
		Usage: "publish what a conversion found, without the model, and apply it",
		Description: `A publisher gives away the sidecars, the fold (what was done to the weights) and
the manifest. Whoever has the base model makes the same artifact from them, byte
for byte.

Examples:
  phaseconv rotations export smol -o smol-rotations
  phaseconv rotations check smol-rotations --base ./SmolLM2-135M
  phaseconv rotations apply smol-rotations --base ./SmolLM2-135M -o smol
  phaseconv rotations diff smol-rotations other-rotations
  phaseconv rotations ffn ./SmolLM2-135M -o smol.ffn.gguf   # of FFN inputs: a file of its own, no part of an artifact`,
		Commands: []*cli.Command{exportCommand(stdout, stderr), applyCommand(stdout, stderr), checkCommand(stdout, stderr),
			diffCommand(stdout, stderr), ffnRotationsCommand(stdout, stderr)},
		Action: func(_ context.Context, c *cli.Command) error {
			if c.Args().Present() {
				return usagef("rotations: unknown command %q; expected export, apply, check, diff or ffn", c.Args().First())
			}
			return cli.ShowSubcommandHelp(c)
		},
	}
	for _, x := range app.Commands {
		x.OnUsageError = usageError
	}
	return app
}

func exportCommand(stdout, stderr io.Writer) *cli.Command {
	return &cli.Command{
		Name: "export", Usage: "copy an artifact without its models", ArgsUsage: "ARTIFACT",
		Flags: []cli.Flag{&cli.StringFlag{Name: "out", Aliases: []string{"o"}, Usage: "folder to create"}},
		Action: func(ctx context.Context, c *cli.Command) error {
			dir, err := one(c, "artifact")
			if err != nil {
				return err
			}
			if c.String("out") == "" {
				return usagef("export: name the folder to create with -o")
			}
			m, err := convert.Export(ctx, dir, c.String("out"), showProgress(stderr), notes(stderr))
			if err != nil {
				return err
			}
			say(stdout, "rotations of %s, SHA-256 %s\nwritten to %s\n", m.Source.Name, m.Source.SHA256, c.String("out"))
			return nil
		},
	}
}

func applyCommand(stdout, stderr io.Writer) *cli.Command {
	return &cli.Command{
		Name: "apply", Usage: "make the artifact again from its base model", ArgsUsage: "ROTATIONS",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "base", Usage: "the model that they were made for"},
			&cli.StringFlag{Name: "out", Aliases: []string{"o"}, Usage: "folder to create"},
		},
		Action: func(ctx context.Context, c *cli.Command) error {
			dir, err := one(c, "folder of rotations")
			if err != nil {
				return err
			}
			if c.String("base") == "" || c.String("out") == "" {
				return usagef("apply: name the model with --base and the folder to create with -o")
			}
			m, _, err := convert.Apply(ctx, convert.ApplyOptions{
				Dir: dir, Base: c.String("base"), Out: c.String("out"), Tool: buildinfo.Tool(), Progress: showProgress(stderr),
				Notice: notes(stderr),
			})
			if err != nil {
				return err
			}
			say(stdout, "%s: all %d files have the publisher's bytes\nwritten to %s\n", m.Source.Name, len(m.Files)+1,
				c.String("out"))
			return nil
		},
	}
}

func checkCommand(stdout, stderr io.Writer) *cli.Command {
	return &cli.Command{
		Name: "check", Usage: "check published rotations, or a file of rotations ffn", ArgsUsage: "ROTATIONS",
		Flags: []cli.Flag{&cli.StringFlag{Name: "base", Usage: "check that they belong to this model"}, jsonFlag()},
		Action: func(ctx context.Context, c *cli.Command) error {
			dir, err := one(c, "folder of rotations")
			if err != nil {
				return err
			}
			if isFile(dir) {
				return checkFFNRotations(ctx, c, dir, stdout, stderr)
			}
			checks, err := convert.CheckPublished(ctx, dir, c.String("base"), showProgress(stderr))
			if err != nil {
				return err
			}
			return printChecks(c, stdout, checks)
		},
	}
}

func diffCommand(stdout, stderr io.Writer) *cli.Command {
	return &cli.Command{
		Name: "diff", Usage: "tell how two sidecars, rotations or artifacts differ", ArgsUsage: "A B",
		Flags: []cli.Flag{jsonFlag()},
		Action: func(ctx context.Context, c *cli.Command) error {
			if c.Args().Len() != 2 {
				return usagef("diff: expected two sidecars or folders, got %d arguments", c.Args().Len())
			}
			return runDiff(ctx, c, stdout, stderr)
		},
	}
}

func printChecks(c *cli.Command, w io.Writer, checks []spec.Check) error {
	v := &spec.ChecksJSON{OK: true, Checks: checks}
	for _, x := range checks {
		v.OK = v.OK && x.OK
	}
	return show(c, w, v, v.OK, func() { printContract(w, checks) })
}

// coded opens what diff compares: a sidecar, or a folder with one.
func coded(ctx context.Context, report progress.Func, path string) (*sidecar.Sidecar, *sidecar.Fold, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, nil, err
	}
	if !st.IsDir() {
		s, err := sidecar.Read(ctx, path)
		return s, nil, err
	}
	checks := &contract.Checker{Progress: report}
	p, err := contract.OpenPublished(ctx, path, checks)
	if err != nil {
		return nil, nil, err
	}
	if p == nil {
		last := checks.Checks[len(checks.Checks)-1]
		return nil, nil, fmt.Errorf("%s: %s: %s", filepath.Clean(path), last.Check, last.Detail)
	}
	return p.Sidecars[0], p.Fold, nil
}

func runDiff(ctx context.Context, c *cli.Command, w, stderr io.Writer) error {
	report := showProgress(stderr)
	a, fa, err := coded(ctx, report, c.Args().Get(0))
	if err != nil {
		return err
	}
	b, fb, err := coded(ctx, report, c.Args().Get(1))
	if err != nil {
		return err
	}
	d, err := sidecar.Compare(ctx, a, b, fa, fb)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		err = printJSON(w, d)
	} else {
		printDiff(w, d)
	}
	if err == nil && !d.Equal {
		err = errGate
	}
	return err
}

func printDiff(w io.Writer, d *spec.DiffJSON) {
	if d.Equal {
		fmt.Fprintln(w, "equal")
		return
	}
	number := func(x *float64) string {
		if x == nil {
			return "-"
		}
		return fmt.Sprintf("%.4g", *x)
	}
	if len(d.Keys) > 0 {
		t := newTable("key", "a", "b")
		for _, k := range d.Keys {
			t.row(k.Key, k.A, k.B)
		}
		t.print(w)
	}
	if len(d.Heads) > 0 {
		fmt.Fprintln(w, "\nheads, as |a - b| / max(|a|, |b|)")
		t := newTable("layer", "head", "mean", "decode", "encode", "gain a", "gain b", "signs a", "signs b")
		for _, h := range d.Heads {
			t.row(fmt.Sprint(h.Layer), fmt.Sprint(h.Head), number(h.Mean), number(h.Decode), number(h.Encode),
				fmt.Sprintf("%.4g", h.GainA), fmt.Sprintf("%.4g", h.GainB), fmt.Sprint(h.SignsA), fmt.Sprint(h.SignsB))
		}
		t.print(w)
	}
	if len(d.Groups) > 0 {
		fmt.Fprintln(w, "\ngroups, as |a - b| / max(|a|, |b|)")
		t := newTable("layer", "group", "parts", "mean", "decode", "encode", "gains", "signs a", "signs b")
		for _, g := range d.Groups {
			t.row(fmt.Sprint(g.Layer), fmt.Sprint(g.Group), strings.Join(g.Parts, " "), number(g.Mean), number(g.Decode),
				number(g.Encode), number(g.PartGains), fmt.Sprint(g.SignsA), fmt.Sprint(g.SignsB))
		}
		t.print(w)
	}
	if len(d.Fold) > 0 {
		fmt.Fprintln(w, "\nedits of weights")
		t := newTable("tensor", "distance")
		for _, x := range d.Fold {
			t.row(x.Tensor, number(x.Distance))
		}
		t.print(w)
	}
}
