package command

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/phaseconv/phaseconv/format/atomicfile"
	"github.com/phaseconv/phaseconv/kernels/measure"
	"github.com/phaseconv/phaseconv/spec"
)

func benchCommand(stdout, stderr io.Writer) *cli.Command {
	return &cli.Command{
		Name:      "bench",
		Usage:     "time the kernels against each other and against the machine",
		ArgsUsage: " ",
		Description: `Matrix products as a share of the peak of multiply-adds, and scores of keys in
F16, Q8_0, Q4_0 and 1 bit; then the attention of one layer for one new token, with
keys and values in F16, q8_0, q4_0, in one code for all heads' keys and values
(joint), with every second layer given the one below (pairs), with parts of the signs
for keys and for values (shares, see convert --key-share), and in a code for all keys
and one for all values (apart): scores, softmax, sums over values. Scores and steps
take turns in short pieces, so their ratios hold on a busy machine too; matrix
products need an idle one. Four million keys of 128 take 2.2 GB in all formats.

Examples:
  phaseconv bench
  phaseconv bench --keys 100000 --head-dim 64,128,256 --seconds 5
  phaseconv bench --context 8192 --layer 2x64 --group 7 --anchor 64,128
  phaseconv bench --json --svg roofline.svg > bench.json`,
		Flags: []cli.Flag{
			&cli.IntSliceFlag{Name: "keys", Usage: "numbers of keys to score", Value: measure.DefaultKeys},
			&cli.IntSliceFlag{Name: "head-dim", Usage: "dimensions of keys, multiples of 64", Value: []int{128}},
			&cli.IntSliceFlag{Name: "context", Usage: "tokens in the cache of a decode step", Value: measure.DefaultContexts},
			&cli.StringFlag{Name: "layer", Usage: "KV heads and head_dim of the layer whose step it is, multiples of 64", Value: "3x64"},
			&cli.IntSliceFlag{Name: "group", Usage: "query heads for each KV head", Value: measure.DefaultLayer().Groups},
			&cli.IntSliceFlag{Name: "anchor", Usage: "anchors of the joint codes, 0 for none",
				Value: measure.DefaultLayer().Anchors},
			&cli.FloatFlag{Name: "key-share", Usage: "part of the signs that keys of codes called shares are decoded from",
				Value: measure.DefaultLayer().KeyShare},
			&cli.FloatFlag{Name: "value-share", Usage: "part of the signs that their values are decoded from",
				Value: measure.DefaultLayer().ValueShare},
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
	maxBenchContext = 1 << 20
	maxBenchGroup   = 64
)

// benchLayer reads the flags that say which layer's decode step is timed.
func benchLayer(c *cli.Command) (measure.LayerShape, error) {
	l := measure.DefaultLayer()
	kv, dim, ok := strings.Cut(c.String("layer"), "x")
	var err error
	if l.KVHeads, err = strconv.Atoi(kv); err == nil && ok {
		l.HeadDim, err = strconv.Atoi(dim)
	}
	if err != nil || !ok || l.KVHeads < 1 || l.HeadDim < 64 || l.HeadDim%64 != 0 || l.KVHeads*l.HeadDim > spec.MaxBits/4 {
		return l, usagef("--layer %s: expected KV heads and head_dim as in 3x64, head_dim a multiple of 64, at most %d together",
			c.String("layer"), spec.MaxBits/4)
	}
	l.Groups, l.Anchors = c.IntSlice("group"), c.IntSlice("anchor")
	for _, g := range l.Groups {
		if g < 1 || g > maxBenchGroup {
			return l, usagef("--group %d: expected 1 to %d", g, maxBenchGroup)
		}
	}
	for _, a := range l.Anchors {
		if a < 0 || a > spec.MaxAnchor || a%16 != 0 {
			return l, usagef("--anchor %d: expected 0 or a multiple of 16 up to %d", a, spec.MaxAnchor)
		}
	}
	l.KeyShare, l.ValueShare = c.Float("key-share"), c.Float("value-share")
	if k, v := l.KeyShare, l.ValueShare; !(k > 0 && k <= 1 && v > 0 && v <= 1 && k+v >= 1) {
		return l, usagef("--key-share %g, --value-share %g: expected above 0 to 1 each, and 1 at least together", k, v)
	}
	return l, nil
}

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
	var err error
	if o.Layer, err = benchLayer(c); err != nil {
		return err
	}
	o.Contexts = c.IntSlice("context")
	for _, n := range o.Contexts {
		if n < 1 || n > maxBenchContext {
			return usagef("--context %d: expected 1 to %d", n, maxBenchContext)
		}
	}
	if err := writable(c, "svg"); err != nil {
		return err
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
	fmt.Fprintf(w, "\ndecode step of a layer with %d KV heads of %d, one thread\n", r.Layer.KVHeads, r.Layer.HeadDim)
	t = newTable("tokens", "query heads", "K and V", "anchor", "bytes per token", "us", "scores", "softmax", "sums", "times F16")
	for _, s := range r.Steps {
		format, anchor := s.Format, ""
		if s.Bits > 0 {
			format, anchor = fmt.Sprintf("%s, %g bits", s.Format, s.Bits), fmt.Sprint(s.Anchor)
		}
		t.row(fmt.Sprint(s.Tokens), fmt.Sprint(s.Heads), format, anchor, fmt.Sprintf("%g", s.Bytes),
			fmt.Sprintf("%.0f", s.Us), fmt.Sprintf("%.0f", s.Scores), fmt.Sprintf("%.0f", s.Softmax),
			fmt.Sprintf("%.0f", s.Sums), fmt.Sprintf("%.2f", s.Ratio))
	}
	t.print(w)
}
