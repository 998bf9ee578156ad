package command

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/urfave/cli/v3"

	"github.com/phaseconv/phaseconv/convert"
	"github.com/phaseconv/phaseconv/internal/buildinfo"
	"github.com/phaseconv/phaseconv/spec"
)

func ffnRotationsCommand(stdout, stderr io.Writer) *cli.Command {
	d := convert.DefaultFFNRotationOptions()
	return &cli.Command{
		Name: "ffn", ArgsUsage: "SRC",
		Usage: "learn rotations of FFN inputs that cannot be folded, measure them, and write them to a file",
		Description: `For runtimes that rotate the input of an FFN, or of each expert, and keep rows of weights as signs
(spec/ffn-rotations.md). Rotations are fitted to every other row of gate and up, and of down, and measured on the rows
between; what noise of the same shape reaches stands beside them.

Examples:
  phaseconv rotations ffn ./SmolLM2-135M -o smol.ffn.gguf
  phaseconv rotations ffn ./Mixtral -o mixtral.ffn.gguf --basis shared --resume
  phaseconv rotations check smol.ffn.gguf --base ./SmolLM2-135M    # measures again`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "out", Aliases: []string{"o"},
				Usage: "file to write: GGUF if it ends with .gguf, else safetensors"},
			&cli.StringFlag{Name: "basis", Value: d.Basis,
				Usage: "own (each expert has its own rotations) or shared (one for all experts of a layer)"},
			&cli.IntFlag{Name: "block", Value: d.Block, Usage: "largest block of a rotation"},
			&cli.IntFlag{Name: "rows", Value: d.Rows,
				Usage: "most rows of a matrix to look at, spread over all; half are fitted to"},
			&cli.BoolFlag{Name: "resume", Usage: "keep fitted layers in OUT.work and go on from those that are there"},
			&cli.StringFlag{Name: "unit",
				Usage: "i/N: fit only the layers of unit i of N into OUT.work, for a run with --resume, and stop"},
			seedFlag(), threadsFlag(), jsonFlag(),
		},
		Action: func(ctx context.Context, c *cli.Command) error { return runFFNRotations(ctx, c, stdout, stderr) },
	}
}

func runFFNRotations(ctx context.Context, c *cli.Command, stdout, stderr io.Writer) error {
	src, err := one(c, "source")
	if err != nil {
		return err
	}
	if c.String("out") == "" {
		return usagef("ffn: name the file to write with -o")
	}
	o := convert.DefaultFFNRotationOptions()
	o.Out, o.Basis, o.Block, o.Rows = c.String("out"), c.String("basis"), c.Int("block"), c.Int("rows")
	o.Seed, o.Threads, o.Resume = c.Uint64("seed"), c.Int("threads"), c.Bool("resume")
	o.Tool, o.Progress, o.Notice = buildinfo.Tool(), showProgress(stderr), notes(stderr)
	if c.IsSet("unit") {
		if o.Unit, o.Units, err = parseUnit(c.String("unit")); err != nil {
			return err
		}
	}
	ck, err := openSource(ctx, stderr, src)
	if err != nil {
		return err
	}
	defer ck.Close()
	res, err := convert.FitFFNRotations(ctx, ck, o)
	if err != nil {
		if o.Resume || o.Units != 0 {
			err = keptLayers(err, convert.Options{Work: convert.WorkDir(o.Out)})
		}
		return err
	}
	if c.Bool("json") {
		return printJSON(stdout, res)
	}
	printFFNRotations(stdout, res)
	if o.Units != 0 {
		say(stdout, "\nunit %d of %d: its layers are in %s\n", o.Unit, o.Units, convert.WorkDir(o.Out))
		return nil
	}
	say(stdout, "\nwritten to %s\n", o.Out)
	return nil
}

// published are the claims of "Phase-Collapse Defragmentation", all of them on fitted rows.
const published = "published, on rows that were fitted to: dense FFNs 0.92 to 0.94, experts with one shared rotation 0.83"

func printFFNRotations(w io.Writer, x *spec.FFNRotationsJSON) {
	printFFN(w, x.Means)
	v := &x.Verdict
	fmt.Fprintf(w, "\n%d rotations in %d layers, %.1f MB as F32; rotated products are those of the source within %.1g of the lengths (rounding allows %.1g)\n",
		x.Rotations, x.Layers, float64(x.Bytes)/1e6, x.Products.MaxError, x.Products.Bound)
	fmt.Fprintln(w, published)
	fmt.Fprintf(w, "fitted rows, over noise of the same shape: %+.4f ± %.4f in cos1bit\n", v.OverNoise, v.OverNoiseErr)
	fmt.Fprintf(w, "other rows, over a Hadamard transform:     %+.4f ± %.4f\n", v.Gain, v.GainErr)
	fmt.Fprintf(w, "so %s\n", v.Text)
}

// checkFFNRotations checks a file of them, with the model if one is named.
func checkFFNRotations(ctx context.Context, c *cli.Command, path string, stdout, stderr io.Writer) error {
	base := c.String("base")
	if base == "" {
		checks, err := convert.CheckFFNRotations(ctx, path, nil, 0, showProgress(stderr))
		if err != nil {
			return err
		}
		return printChecks(c, stdout, checks)
	}
	ck, err := openSource(ctx, stderr, base)
	if err != nil {
		return err
	}
	defer ck.Close()
	checks, err := convert.CheckFFNRotations(ctx, path, ck, 0, showProgress(stderr))
	if err != nil {
		return err
	}
	return printChecks(c, stdout, checks)
}

// isFile says whether a path is a file, and no folder.
func isFile(path string) bool {
	st, err := os.Stat(path)
	return err == nil && !st.IsDir()
}
