package command

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/phaseconv/phaseconv/format/atomicfile"
	"github.com/phaseconv/phaseconv/kernels/measure"
)

func benchCommand(stdout, stderr io.Writer) *cli.Command {
	return &cli.Command{
		Name:      "bench",
		Usage:     "time the kernels against each other and against the machine",
		ArgsUsage: " ",
		Description: `Matrix products as a share of the peak of multiply-adds, and scores of keys in
F16, Q8_0, Q4_0 and 1 bit. Scores take turns in short pieces, so their ratios
hold on a busy machine too; matrix products need an idle one. Four million keys
of 128 take 2.2 GB in all formats.

Examples:
  phaseconv bench
  phaseconv bench --keys 100000 --head-dim 64,128,256 --seconds 5
  phaseconv bench --json --svg roofline.svg > bench.json`,
		Flags: []cli.Flag{
			&cli.IntSliceFlag{Name: "keys", Usage: "numbers of keys to score", Value: measure.DefaultKeys},
			&cli.IntSliceFlag{Name: "head-dim", Usage: "dimensions of keys, multiples of 64", Value: []int{128}},
			&cli.FloatFlag{Name: "seconds", Usage: "time for each group of measurements", Value: 1},
			&cli.StringFlag{Name: "svg", Usage: "also draw a roofline to this file"},
			threadsFlag(), jsonFlag(),
		},
		Action: func(ctx context.Context, c *cli.Command) error { return runBench(ctx, c, stdout, stderr) },
	}
}

// Limits of what bench takes from the command line.
const (
	maxBenchKeys    = 1 << 26
	maxBenchDim     = 2048
	maxBenchSeconds = 3600
)

func runBench(ctx context.Context, c *cli.Command, stdout, stderr io.Writer) error {
	if c.Args().Present() {
		return usagef("bench takes no arguments, got %q", c.Args().First())
	}
	o := measure.Options{Threads: c.Int("threads"), Keys: c.IntSlice("keys"), Dims: c.IntSlice("head-dim")}
	for _, n := range o.Keys {
		if n < 1 || n > maxBenchKeys {
			return usagef("--keys %d: expected 1 to %d", n, maxBenchKeys)
		}
	}
	for _, d := range o.Dims {
		if d < 64 || d > maxBenchDim || d%64 != 0 {
			return usagef("--head-dim %d: expected a multiple of 64 up to %d", d, maxBenchDim)
		}
	}
	s := c.Float("seconds")
	if !(s > 0 && s <= maxBenchSeconds) {
		return usagef("--seconds %v: expected more than 0 and at most %d", s, maxBenchSeconds)
	}
	o.Time = time.Duration(s * float64(time.Second))
	o.Progress = func(group string) { fmt.Fprintln(stderr, "measuring", group) }
	r, err := measure.Run(ctx, o)
	if err != nil {
		return err
	}
	if path := c.String("svg"); path != "" {
		if err := atomicfile.WriteFile(path, []byte(roofline(r))); err != nil {
			return err
		}
	}
	if c.Bool("json") {
		return printJSON(stdout, r)
	}
	printBench(stdout, r)
	return nil
}

func printBench(w io.Writer, r *measure.Result) {
	fmt.Fprintf(w, "%s/%s, %s, %d threads; multiply-adds in registers: %.0f GFLOP/s (one thread %.0f)\n\n", r.OS, r.Arch,
		r.Tier, r.Threads, r.Peak, r.Peak1)
	t := newTable("read bandwidth: KiB per thread", "threads", "GB/s")
	for _, b := range r.Bandwidth {
		t.row(fmt.Sprint(b.Bytes>>10), fmt.Sprint(b.Threads), fmt.Sprintf("%.1f", b.GBs))
	}
	t.print(w)
	fmt.Fprintln(w)
	t = newTable("matrix product", "layer", "tokens x out x in", "GFLOP/s", "% of peak", "weights GB/s")
	for _, p := range r.Products {
		t.row(p.Model, p.Name, fmt.Sprintf("%dx%dx%d", p.M, p.N, p.K), fmt.Sprintf("%.1f", p.GFLOPS),
			fmt.Sprintf("%.0f", 100*p.Share), fmt.Sprintf("%.1f", p.WeightGBs))
	}
	t.print(w)
	fmt.Fprintln(w)
	t = newTable("keys", "head_dim", "format", "heads per pass", "ns per key and head", "bytes per key", "GB/s",
		"times F16")
	for _, s := range r.Scores {
		t.row(fmt.Sprint(s.Keys), fmt.Sprint(s.Dim), s.Format, fmt.Sprint(s.Heads), fmt.Sprintf("%.2f", s.Ns),
			fmt.Sprintf("%g", s.Bytes), fmt.Sprintf("%.1f", s.GBs), fmt.Sprintf("%.1f", s.Ratio))
	}
	t.print(w)
}
