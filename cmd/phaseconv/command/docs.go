package command

import (
	"context"
	"io"

	docs "github.com/urfave/cli-docs/v3"
	"github.com/urfave/cli/v3"
)

func docsCommand(stdout io.Writer) *cli.Command {
	return &cli.Command{
		Name:      "docs",
		Usage:     "print the manual",
		ArgsUsage: "man|markdown",
		Description: `Examples:
  phaseconv docs man > phaseconv.1
  phaseconv docs markdown`,
		Action: func(_ context.Context, c *cli.Command) error {
			kind, err := one(c, "kind of manual")
			if err != nil {
				return err
			}
			// Made from a tree of its own: running one adds help commands to it.
			app := root(io.Discard, io.Discard)
			var text string
			switch kind {
			case "man":
				text, err = docs.ToManWithSection(app, 1)
			case "markdown":
				text, err = docs.ToMarkdown(app)
			default:
				return usagef("docs: %q is neither man nor markdown", kind)
			}
			if err != nil {
				return err
			}
			_, err = io.WriteString(stdout, text)
			return err
		},
	}
}

// completion makes the command that prints shell completions visible in help.
func completion(c *cli.Command) {
	c.Hidden = false
	c.Usage = "print a script that completes commands and flags"
	c.Description = `Examples:
  source <(phaseconv completion bash)
  phaseconv completion zsh > "${fpath[1]}/_phaseconv"
  phaseconv completion fish > ~/.config/fish/completions/phaseconv.fish`
}
