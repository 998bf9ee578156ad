package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/urfave/cli/v3"

	"github.com/phaseconv/phaseconv/convert"
	"github.com/phaseconv/phaseconv/spec"
)

// unitFlags are those of convert that say where and when fitting is done. No
// result depends on them.
func unitFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "resume", Usage: "keep fitted layers in OUT.work and go on from those that are there"},
		&cli.StringFlag{Name: "work", Usage: "keep them in this folder instead, and leave it there (implies --resume)"},
		&cli.BoolFlag{Name: "plan", Usage: "print how the fitting is divided into units, and stop"},
		&cli.IntFlag{Name: "units", Usage: "how many units --plan prints", DefaultText: "one per layer"},
		&cli.StringFlag{Name: "unit", Usage: "i/N: fit only the layers of unit i of N, for --merge, and stop"},
		&cli.BoolFlag{Name: "merge", Usage: "convert with the layers that units have fitted, and refuse to fit any"},
	}
}

// unitOptions reads the flags. done means that there is nothing else to do.
func unitOptions(ctx context.Context, c *cli.Command, o *convert.Options, stdout io.Writer) (done bool, err error) {
	plan, unit, merge := c.Bool("plan"), c.String("unit"), c.Bool("merge")
	modes := 0
	for _, on := range []bool{plan, unit != "", merge} {
		if on {
			modes++
		}
	}
	if modes > 1 {
		return true, usagef("--plan, --unit and --merge do not go together")
	}
	if c.IsSet("units") && !plan {
		return true, usagef("--units goes with --plan")
	}
	o.Merge = merge
	switch {
	case c.IsSet("work"):
		if o.Work, o.KeepWork = c.String("work"), true; o.Work == "" {
			return true, usagef("--work names no folder")
		}
	case c.Bool("resume") || modes > 0:
		o.Work = convert.WorkDir(o.Out)
	}
	switch {
	case plan:
		n := c.Int("units")
		if c.IsSet("units") && n == 0 {
			return true, usagef("--units 0: expected at least 1")
		}
		u, err := convert.PlanUnits(*o, n)
		if err != nil {
			return true, err
		}
		return true, printUnits(c, stdout, u, "fitted already")
	case unit != "":
		i, n, err := parseUnit(unit)
		if err != nil {
			return true, err
		}
		u, err := convert.RunUnit(ctx, *o, i, n)
		if err != nil {
			return true, keptLayers(err, *o)
		}
		return true, printUnits(c, stdout, u, "was there")
	}
	return false, nil
}

// keptLayers says what an interrupted run with a work folder leaves behind.
func keptLayers(err error, o convert.Options) error {
	if !errors.Is(err, context.Canceled) || o.Work == "" {
		return err
	}
	if found, e := os.ReadDir(o.Work); e != nil || len(found) == 0 {
		return err
	}
	return fmt.Errorf("interrupted; the layers that were fitted are in %s, and the same command goes on from them", o.Work)
}

// parseUnit reads i/N.
func parseUnit(s string) (i, n int, err error) {
	a, b, ok := strings.Cut(s, "/")
	i, err1 := strconv.Atoi(a)
	n, err2 := strconv.Atoi(b)
	if !ok || err1 != nil || err2 != nil || i < 1 {
		return 0, 0, usagef("--unit %q: expected i/N, such as 1/8 for the first of eight", s)
	}
	return i, n, convert.CheckUnits(i, n)
}

func printUnits(c *cli.Command, w io.Writer, u *spec.UnitsJSON, there string) error {
	if c.Bool("json") {
		return printJSON(w, u)
	}
	fmt.Fprintf(w, "%d layers in %d units, shared folder %s\n\n", u.Layers, u.Of, u.Work)
	t := newTable("unit", "layers", "files", there)
	empty := 0
	for _, x := range u.Units {
		k := len(x.Layers)
		if k == 0 {
			empty++
			continue
		}
		first, last := x.Layers[0], x.Layers[k-1]
		layers, files := fmt.Sprint(first.Layer), first.File
		if k > 1 {
			layers, files = fmt.Sprintf("%d to %d", first.Layer, last.Layer), first.File+" ..."
		}
		n := 0
		for _, l := range x.Layers {
			if l.There {
				n++
			}
		}
		t.row(fmt.Sprintf("%d/%d", x.Unit, u.Of), layers, files, fmt.Sprintf("%d of %d", n, k))
	}
	if empty < len(u.Units) {
		t.print(w)
	}
	if empty > 0 {
		fmt.Fprintf(w, "units without a layer: %d; a layer is not divided\n", empty)
	}
	return nil
}
