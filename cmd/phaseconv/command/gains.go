package command

import (
	"context"
	"fmt"
	"io"

	"github.com/urfave/cli/v3"

	"github.com/phaseconv/phaseconv/format/checkpoint"
	"github.com/phaseconv/phaseconv/verify/audit"
)

// runGains is audit --gains.
func runGains(ctx context.Context, c *cli.Command, src string, stdout io.Writer) error {
	if f := firstSet(c, "ffn", "report", "calib", "text"); f != "" {
		return usagef("--%s has no effect with --gains, which runs no text", f)
	}
	reach := c.Int("target-ctx")
	if reach < 0 {
		return usagef("--target-ctx %d: it cannot be negative", reach)
	}
	ck, err := checkpoint.Open(src)
	if err != nil {
		return err
	}
	defer ck.Close()
	g, err := audit.ReadGains(ctx, ck, reach)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(stdout, g)
	}
	printGains(stdout, g)
	return nil
}

func printGains(w io.Writer, g *audit.Gains) {
	t := newTable("layer", "keys of", "QK-norm", "balance", "worst head", "constant", "still", "slow", "largest head", "reach",
		"sinks")
	for _, r := range g.Layers {
		t.row(fmt.Sprint(r.Layer), fmt.Sprint(r.Owner), r.QKNorm, number(r.Balance), number(r.Worst), percent(r.Constant),
			percent(r.Still), percent(r.Slow), percent(r.Largest), fmt.Sprint(r.Reach), yes(r.Sinks))
	}
	t.print(w)
	if g.BytesRead == 0 {
		fmt.Fprintln(w, "\nkeys have no bias and no QK-norm: gains and biases say nothing about this model")
		return
	}
	fmt.Fprintf(w, "\nread: %.1f KiB; queries look back %d positions\n", float64(g.BytesRead)/1024, g.Positions)
	if b := g.Balance; b != nil {
		fmt.Fprintf(w, "balance: moving scales between the gains of q_norm and k_norm leaves at best %.3f of the error that a "+
			"quantised cache makes in scores (mean over layers)\n", *b)
	}
	if x := g.Constant; x != nil {
		fmt.Fprintf(w, "constant: the bias makes %.1f %% of the energy of keys (mean over layers), the same for all tokens; what is "+
			"still can go exactly where there are no sinks, what is slow nearly. A mean that the activations make is not in it.\n", 100**x)
	}
}

func number(x *float64) string {
	if x == nil {
		return "-"
	}
	return fmt.Sprintf("%.3f", *x)
}

func percent(x *float64) string {
	if x == nil {
		return "-"
	}
	return fmt.Sprintf("%.1f%%", 100**x)
}
