package command

import (
	"context"
	"io"

	"github.com/urfave/cli/v3"
)

func auditCommand(stdout, stderr io.Writer) *cli.Command {
	return &cli.Command{Name: "audit", Usage: "measure beta per layer and head, without writing anything", ArgsUsage: "SRC",
		Action: func(ctx context.Context, c *cli.Command) error { return nil }}
}

func inspectCommand(stdout, stderr io.Writer) *cli.Command {
	return &cli.Command{Name: "inspect", Usage: "show what is in a GGUF, safetensors or sidecar file", ArgsUsage: "FILE...",
		Action: func(ctx context.Context, c *cli.Command) error { return nil }}
}
