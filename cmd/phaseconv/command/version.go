package command

import (
	"context"
	"fmt"
	"io"

	"github.com/urfave/cli/v3"

	"github.com/phaseconv/phaseconv/internal/buildinfo"
	"github.com/phaseconv/phaseconv/kernels/gemm"
)

func versionCommand(stdout io.Writer) *cli.Command {
	return &cli.Command{
		Name:      "version",
		Usage:     "print the version, the commit it was built from, and the instruction set in use",
		ArgsUsage: " ",
		Description: `Examples:
  phaseconv version
  phaseconv version --json`,
		Flags: []cli.Flag{jsonFlag()},
		Action: func(_ context.Context, c *cli.Command) error {
			if c.Args().Present() {
				return usagef("version takes no arguments, got %q", c.Args().First())
			}
			v := struct {
				buildinfo.Build
				Tier string `json:"cpu_tier"` // of the kernels
			}{buildinfo.Read(), gemm.Tier()}
			if c.Bool("json") {
				return printJSON(stdout, v)
			}
			revision := v.Revision
			switch {
			case revision == "":
				revision = "not known"
			case v.Modified:
				revision += ", with changes"
			}
			_, err := fmt.Fprintf(stdout, "%s\ncommit: %s\nbuilt with %s for %s/%s\nkernels: %s\n", buildinfo.Tool(), revision,
				v.Go, v.OS, v.Arch, v.Tier)
			return err
		},
	}
}
