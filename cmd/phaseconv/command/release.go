package command

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/urfave/cli/v3"

	"github.com/phaseconv/phaseconv/convert/release"
	"github.com/phaseconv/phaseconv/spec"
	"github.com/phaseconv/phaseconv/verify/report"
)

func releaseCommand(stdout, stderr io.Writer) *cli.Command {
	return &cli.Command{
		Name:      "release",
		Usage:     "make a folder to publish from an artifact",
		ArgsUsage: "ARTIFACT [ADVISE.json...]",
		Description: `Renames the GGUF file by the convention of the format, splits it if asked, fills in the keys
that tell where it comes from, gives the sidecar a name that no loader takes for a model, writes a
model card, and a statement of provenance (in-toto, SLSA) that "phaseconv verify" checks. The result
is an artifact like any other. Nothing is uploaded; docs/releases.md tells how to sign it.

Examples:
  phaseconv release smol -o SmolLM2-135M-GGUF --base-model HuggingFaceTB/SmolLM2-135M
  phaseconv release out -o upload --split-max-size 4G --quantized-by me advise-chat.json`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "out", Aliases: []string{"o"}, Usage: "folder to create"},
			&cli.StringFlag{Name: "name", Usage: "name of the GGUF file, without .gguf; auto makes one by the convention", Value: "auto"},
			&cli.StringFlag{Name: "split-max-size", Usage: "split the GGUF file into files of at most so many bytes of tensors, such as 500M or 4G",
				DefaultText: "one file"},
			&cli.StringFlag{Name: "base-model", Usage: "id of the source on the hub, such as Org/Name",
				DefaultText: "what the source was converted from, if that was a model of the hub"},
			&cli.StringFlag{Name: "quantized-by", Usage: "who publishes it"},
			&cli.StringFlag{Name: "imatrix", Usage: "importance matrix of the source (GGUF); what of it holds for the changed weights is written beside the model"},
			&cli.StringFlag{Name: "source", Usage: "folder of the source; its README.md or LICENSE tell the licence"},
			&cli.StringFlag{Name: "license", Usage: "licence identifier, when no file tells it"},
			jsonFlag(),
		},
		Action: func(ctx context.Context, c *cli.Command) error { return runRelease(ctx, c, stdout, stderr) },
	}
}

// byteSize reads a size such as 500M or 4G, as llama-gguf-split does: powers of 1000.
func byteSize(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	scale := int64(1)
	digits := s
	for letter, by := range map[string]int64{"K": 1e3, "M": 1e6, "G": 1e9} {
		if d, ok := strings.CutSuffix(strings.ToUpper(s), letter); ok {
			digits, scale = d, by
		}
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n <= 0 || n > 1<<62/scale {
		return 0, usagef("--split-max-size %q: expected a size such as 500M or 4G", s)
	}
	return n * scale, nil
}

func runRelease(ctx context.Context, c *cli.Command, stdout, stderr io.Writer) error {
	if c.Args().Len() < 1 {
		return usagef("release: name an artifact")
	}
	o := release.Options{
		Dir: c.Args().First(), Out: c.String("out"), Name: c.String("name"), BaseModel: c.String("base-model"),
		QuantizedBy: c.String("quantized-by"), Imatrix: c.String("imatrix"),
		Progress: showProgress(stderr), Notice: notes(stderr),
	}
	if o.Out == "" {
		return usagef("release: name the folder to create with -o")
	}
	var err error
	if o.SplitSize, err = byteSize(c.String("split-max-size")); err != nil {
		return err
	}
	if err := checkBaseModel(o.BaseModel); err != nil {
		return err
	}
	if o.BaseModel == "" {
		o.BaseModel = sourceID(o.Dir)
	}
	license := report.License{}
	if src := c.String("source"); src != "" {
		license = report.ReadLicense(src)
		if license.String() == "" && c.String("license") == "" {
			return fmt.Errorf("%s: neither README.md nor LICENSE tells the licence; name it with --license", src)
		}
	}
	if id := c.String("license"); id != "" {
		license = report.ParseLicense(id)
	}
	if len(license.IDs) == 1 {
		o.License, o.LicenseName, o.LicenseLink = license.IDs[0], license.Name, license.Link
	}
	// First, as wrong advice is no reason to write a model.
	advice := c.Args().Slice()[1:]
	if len(advice) > 0 {
		if _, err := releaseNumbers(o.Dir, advice); err != nil {
			return err
		}
	}
	m, err := release.Make(ctx, o)
	if err != nil {
		return err
	}
	if err := releaseCard(o, license, advice); err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(stdout, m)
	}
	say(stdout, "written to %s:\n", o.Out)
	for _, f := range m.Files {
		say(stdout, "  %-60s %12d bytes\n", f.Name, f.Bytes)
	}
	fmt.Fprintf(stdout, "and %s, %s, %s\n", spec.ManifestName, spec.ProvenanceName, spec.CardName)
	return nil
}

// releaseNumbers reads what an artifact and files of advice tell for a card.
func releaseNumbers(dir string, advice []string) (m report.Model, err error) {
	models, err := report.Load(append([]string{dir}, advice...))
	if err != nil {
		return m, err
	}
	if len(models) != 1 {
		return m, usagef("release: what follows the artifact is the output of advise --json")
	}
	return models[0], nil
}

// releaseCard writes the model card of a release.
func releaseCard(o release.Options, l report.License, advice []string) error {
	model, err := releaseNumbers(o.Out, advice)
	if err != nil {
		return err
	}
	model.License = l
	f, err := os.Create(filepath.Join(o.Out, spec.CardName))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := report.Card(f, model, report.CardOptions{
		BaseModel: o.BaseModel, QuantizedBy: o.QuantizedBy,
	}); err != nil {
		return err
	}
	return f.Close()
}
