package command

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v3"

	"github.com/phaseconv/phaseconv/format/atomicfile"
	"github.com/phaseconv/phaseconv/format/hf"
	"github.com/phaseconv/phaseconv/format/hub"
	"github.com/phaseconv/phaseconv/format/jsonx"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/contract"
	"github.com/phaseconv/phaseconv/verify/report"
)

func cardCommand(stdout io.Writer) *cli.Command {
	return &cli.Command{
		Name:      "card",
		Usage:     "write a Hugging Face model card with the numbers of an artifact",
		ArgsUsage: "ARTIFACT [ADVISE.json]",
		Description: `Writes README.md into the artifact. Every number in it was measured; what was not
measured is not claimed. ADVISE.json is what "phaseconv advise --json" prints.

Examples:
  phaseconv card smol --source ./SmolLM2-135M --base-model HuggingFaceTB/SmolLM2-135M
  phaseconv card smol -o -`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "out", Aliases: []string{"o"},
				Usage: "file to write, - for standard output (default: README.md in the artifact)"},
			&cli.StringFlag{Name: "source", Usage: "folder of the source; its README.md or LICENSE tell the licence"},
			&cli.StringFlag{Name: "license", Usage: "licence identifier, when no file tells it; " +
				"one that the hub does not list is written as license_name of another"},
			&cli.StringFlag{Name: "base-model", Usage: "id of the source on the hub, such as Org/Name",
				DefaultText: "what the source was converted from, if that was a model of the hub"},
			&cli.StringFlag{Name: "name", Usage: "name of the converted model (default: the source's)"},
			&cli.BoolFlag{Name: "force", Usage: "replace a README.md that is there"},
		},
		Action: func(ctx context.Context, c *cli.Command) error { return runCard(c, stdout) },
	}
}

func runCard(c *cli.Command, stdout io.Writer) error {
	if n := c.Args().Len(); n < 1 || n > 2 {
		return usagef("card: expected an artifact and at most one file of advice, got %d arguments", n)
	}
	dir := c.Args().First()
	manifest, err := contract.ReadManifest(dir)
	if err != nil {
		return err
	}
	models, err := report.Load(c.Args().Slice())
	if err != nil {
		return err
	}
	if len(models) != 1 {
		return usagef("card: %s is another model, not advice", c.Args().Get(1))
	}
	m := models[0]
	if src := c.String("source"); src != "" {
		if m.License = report.ReadLicense(src); m.License.String() == "" && c.String("license") == "" {
			return fmt.Errorf("%s: neither README.md nor LICENSE tells the licence; name it with --license", src)
		}
	}
	if l := c.String("license"); l != "" {
		m.License = report.ParseLicense(strings.Split(l, ",")...)
	}
	o := report.CardOptions{BaseModel: c.String("base-model"), Name: c.String("name")}
	if err := checkBaseModel(o.BaseModel); err != nil {
		return err
	}
	if o.BaseModel == "" {
		o.BaseModel = sourceID(dir)
	}
	var b bytes.Buffer
	if err := report.Card(&b, m, o); err != nil {
		return err
	}
	out := c.String("out")
	switch out {
	case "-":
		_, err := stdout.Write(b.Bytes())
		return err
	case "":
		out = filepath.Join(dir, spec.CardName)
		if slices.ContainsFunc(manifest.Files, func(f spec.File) bool { return f.Name == spec.CardName }) {
			return fmt.Errorf("%s: the manifest lists it as the source's card, as earlier programs did; "+
				"write this one elsewhere with -o, or make a release, which renames that one", out)
		}
	}
	if _, err := os.Stat(out); !errors.Is(err, fs.ErrNotExist) && !c.Bool("force") {
		if err != nil {
			return err
		}
		return usagef("%s exists; --force replaces it", out)
	}
	if err := atomicfile.WriteFile(out, b.Bytes()); err != nil {
		return err
	}
	fmt.Fprintln(stdout, "written to", out)
	return nil
}

// checkBaseModel refuses what is no id of a model on the hub; "" is none.
func checkBaseModel(id string) error {
	if id == "" {
		return nil
	}
	if ref, err := hub.ParseRef(hub.Prefix + id); err != nil || ref.Repo != id {
		return usagef("--base-model %q is not the id of a model on the hub (Org/Name)", id)
	}
	return nil
}

// sourceID returns the id of an artifact's source on the hub: what it was converted from, or else what
// config.json says. "" where neither tells.
func sourceID(dir string) string {
	if m, err := contract.ReadManifest(dir); err == nil {
		for _, a := range m.Command {
			if ref, err := hub.ParseRef(a); strings.HasPrefix(a, hub.Prefix) && err == nil {
				return ref.Repo
			}
		}
	}
	return hubID(dir)
}

// hubID returns the id that config.json carries, if it looks like one.
func hubID(dir string) string {
	raw, err := hf.ReadRaw(dir)
	if err != nil {
		return ""
	}
	var c struct {
		Name string `json:"_name_or_path"`
	}
	if jsonx.Unmarshal(raw, &c) != nil {
		return ""
	}
	if org, name, ok := strings.Cut(c.Name, "/"); !ok || org == "" || org == "." || org == ".." || name == "" ||
		strings.ContainsAny(name, "/\\ ") {
		return ""
	}
	return c.Name
}
